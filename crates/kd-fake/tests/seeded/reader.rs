//! A reader of a machine's memory by a symbol table.

use std::path::PathBuf;

use kd_fake::isf::{Isf, Type};
use kd_fake::kernel::Kernel;

/// The carried table, and those of the shared folder where it is.
pub(crate) fn tables() -> Vec<Isf> {
    let mut files =
        vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/339E74133576439CBCDF7E0229DA3773-1.json.xz")];
    let shared = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    match std::fs::read_dir(shared.join("isf")) {
        Ok(entries) => {
            files = entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|xz| xz == "xz"))
                .collect();
        }
        Err(_) => println!("skipped for all but Windows 7: {} is not there", shared.display()),
    }
    files.sort();
    let mut tables: Vec<Isf> = files.iter().map(|file| Isf::from_xz(&std::fs::read(file).unwrap()).unwrap()).collect();
    let carried = ["x64-heap", "x64-22631", "x64-26100", "x64-later", "arm64-26100"];
    tables.extend(carried.map(|name| Isf::carried(name).unwrap().unwrap()));
    tables
}

pub(crate) struct Reader<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) isf: &'a Isf,
}

impl Reader<'_> {
    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert_eq!(self.kernel.read_virtual(address, &mut bytes), length, "{address:x}");
        bytes
    }

    pub(crate) fn number(&self, address: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&self.bytes(address, width));
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn pointer(&self, address: u64) -> u64 {
        self.number(address, 8)
    }

    pub(crate) fn symbol(&self, name: &str) -> u64 {
        self.kernel.facts().kernel_base + self.isf.symbol(name).unwrap()
    }

    pub(crate) fn variable(&self, name: &str) -> u64 {
        self.pointer(self.symbol(name))
    }

    pub(crate) fn dword(&self, name: &str) -> u32 {
        self.number(self.symbol(name), 4) as u32
    }

    /// A member of the structure at an address; signed integers are extended.
    pub(crate) fn field(&self, ty: &str, path: &str, address: u64) -> u64 {
        let (offset, ty) = self.isf.member(ty, path).unwrap();
        let width = self.isf.size_of(ty).unwrap() as usize;
        let value = self.number(address + offset, width);
        match ty {
            Type::Bitfield { bit_position, bit_length, .. } => value >> bit_position & ((1 << bit_length) - 1),
            _ if path.ends_with("Allocs") || path.ends_with("Frees") => sign(value, width),
            _ => value,
        }
    }
}

fn sign(value: u64, width: usize) -> u64 {
    match width {
        4 => value as u32 as i32 as u64,
        _ => value,
    }
}
