//! The loaded-module list.

use crate::isf::{Identity, IsfError};
use crate::kernel::builder::Builder;
use crate::kernel::code::Function;
use crate::kernel::image::Image;
use crate::kernel::truth::LoadedModule;
use crate::pdb::Section;

/// A loaded image other than the kernel.
pub(crate) struct Module {
    /// Path below `\SystemRoot\system32\`.
    pub(crate) path: &'static str,
    pub(crate) base: u64,
    pub(crate) size: u32,
    pub(crate) timestamp: u32,
    /// Whether the image names a PDB; it is one that nobody has.
    pub(crate) pdb: bool,
    /// Those with unwind data.
    pub(crate) functions: &'static [Function],
}

/// `_KLDR_DATA_TABLE_ENTRY`, which not every kernel's PDB describes: its size, and where DllBase, EntryPoint, SizeOfImage,
/// FullDllName, BaseDllName, Flags, LoadCount, CheckSum, SizeOfImageNotRounded and TimeDateStamp are.
const ENTRY_64: (usize, [usize; 10]) = (0xa0, [0x30, 0x38, 0x40, 0x48, 0x58, 0x68, 0x6c, 0x78, 0x98, 0x9c]);
const ENTRY_32: (usize, [usize; 10]) = (0x5c, [0x18, 0x1c, 0x20, 0x24, 0x2c, 0x34, 0x38, 0x40, 0x54, 0x58]);
/// From one entry to the next: the names lie behind each.
const STRIDE: u64 = 0x200;

/// Two pages: the headers, and one with the debug directory that stands for the rest.
const SECOND_PAGE: Section = Section { name: ".rdata", rva: 0x1000, size: 0x1000, characteristics: 0x4000_0040 };

impl Builder {
    /// Writes the images' headers and the list at `PsLoadedModuleList`, whose entries lie at `entries`; returns the
    /// list.
    pub(crate) fn modules(
        &mut self,
        entries: u64,
        kernel: (u32, u32),
        modules: &[Module],
    ) -> Result<Vec<LoadedModule>, IsfError> {
        let mut links = vec![self.symbol("PsLoadedModuleList")?];
        let (timestamp, checksum) = kernel;
        let mut loaded =
            vec![LoadedModule { name: "ntoskrnl.exe".to_owned(), base: self.base, size: self.image_size().into() }];
        let entry_point = self.symbol("KiSystemStartup")?;
        self.module_entry(entries, "ntoskrnl.exe", (self.base, self.image_size()), entry_point, (timestamp, checksum));
        links.push(entries);
        for (index, module) in modules.iter().enumerate() {
            let name = module.path.rsplit('\\').next().unwrap_or(module.path);
            let stem = name.split('.').next().unwrap_or(name);
            // A made-up identity, different for every module and the same in every run.
            let guid = format!("{:08X}6B644F6F9C1A{:012X}", module.timestamp, index + 1);
            let pdb = if module.pdb { Some(Identity::new(&guid, 1, &format!("{stem}.pdb"))?) } else { None };
            let checksum = module.size ^ module.timestamp & 0xffff;
            let image = Image {
                name,
                base: module.base,
                size: module.size,
                entry_point: 0x1000,
                timestamp: module.timestamp,
                checksum,
                pdb,
                sections: vec![SECOND_PAGE],
                functions: module.functions,
            };
            self.memory.map(module.base, 0x2000);
            self.image(&image, &[]);
            let entry = entries + STRIDE * (index as u64 + 1);
            let times = (module.timestamp, checksum);
            self.module_entry(entry, module.path, (module.base, module.size), module.base + 0x1000, times);
            links.push(entry);
            loaded.push(LoadedModule { name: name.to_owned(), base: module.base, size: module.size.into() });
        }
        self.link(&links);
        Ok(loaded)
    }

    /// `MmUnloadedDrivers`: 50 slots, a ring of which `MmLastUnloadedDriver` is the next. `drivers` are oldest first.
    pub(crate) fn unloaded_drivers(&mut self, at: u64, drivers: &[LoadedModule], time: u64) -> Result<(), IsfError> {
        const SLOTS: u64 = 50;
        let width = self.isf.machine.pointer();
        // A UNICODE_STRING, where it was, and a time.
        let size = 4 * width as u64 + 8;
        self.memory.map(at, size * SLOTS);
        let mut text = at + size * SLOTS;
        for (slot, driver) in (0..SLOTS).zip(drivers) {
            let name: Vec<u8> = driver.name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let length = (name.len() as u16).to_le_bytes();
            let mut entry = [length, length].concat();
            entry.resize(width, 0);
            for value in [text, driver.base, driver.base + driver.size] {
                entry.extend(&value.to_le_bytes()[..width]);
            }
            entry.extend((time + slot).to_le_bytes());
            self.memory.put(at + slot * size, &entry);
            self.memory.put(text, &name);
            text += name.len() as u64;
        }
        self.set_pointer("MmUnloadedDrivers", at)?;
        self.set_u32("MmLastUnloadedDriver", (drivers.len() as u64 % SLOTS) as u32)
    }

    fn module_entry(
        &mut self,
        at: u64,
        path: &str,
        (base, size): (u64, u32),
        entry_point: u64,
        (timestamp, checksum): (u32, u32),
    ) {
        let full: Vec<u8> = utf16(&format!(r"\SystemRoot\system32\{path}"));
        let name = utf16(path.rsplit('\\').next().unwrap_or(path));
        let width = self.isf.machine.pointer();
        let (length, places) = if width == 4 { ENTRY_32 } else { ENTRY_64 };
        let [at_base, at_entry_point, at_size, at_full, at_name, flags, count, at_checksum, at_exact, at_time] = places;
        let full_at = at + length as u64;
        let name_at = full_at + full.len() as u64;
        let mut entry = vec![0; length];
        let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
        put(at_base, &base.to_le_bytes()[..width]);
        put(at_entry_point, &entry_point.to_le_bytes()[..width]);
        put(at_size, &size.to_le_bytes());
        for (place, text, buffer) in [(at_full, &full, full_at), (at_name, &name, name_at)] {
            // Length without the terminator, then the buffer's size.
            put(place, &(text.len() as u16 - 2).to_le_bytes());
            put(place + 2, &(text.len() as u16).to_le_bytes());
            put(place + width, &buffer.to_le_bytes()[..width]);
        }
        put(flags, &0x0900_4000u32.to_le_bytes());
        put(count, &1u16.to_le_bytes());
        put(at_checksum, &checksum.to_le_bytes());
        put(at_exact, &size.to_le_bytes());
        put(at_time, &timestamp.to_le_bytes());
        self.memory.put(at, &entry);
        self.memory.put(full_at, &full);
        self.memory.put(name_at, &name);
    }
}

/// UTF-16, with a terminator.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}
