//! A small image and small PDBs for the tests of this crate.

use std::cell::Cell;
use std::ops::Range;

use nt_memory::{Fault, Memory};

pub(crate) const BASE: u64 = 0xffff_f800_0260_0000;

/// An x64 driver of four pages: headers, code, debug directory, the end of its exports.
pub(crate) struct TestImage {
    pub(crate) bytes: Vec<u8>,
    holes: Vec<Range<usize>>,
    reads: Cell<usize>,
}

impl TestImage {
    pub(crate) fn new(pdb_name: &[u8]) -> TestImage {
        let mut image = TestImage { bytes: vec![0; 0x4000], holes: Vec::new(), reads: Cell::new(0) };
        let nt = 0xe8;
        let optional = nt + 0x18;
        image.put(0, b"MZ");
        image.put32(0x3c, nt as u32);
        image.put(nt, b"PE\0\0");
        image.put(nt + 4, &0x8664u16.to_le_bytes());
        image.put(nt + 6, &1u16.to_le_bytes());
        image.put32(nt + 8, 0x5ce7_7c41);
        image.put(nt + 0x14, &0xf0u16.to_le_bytes());
        image.put(optional, &0x20bu16.to_le_bytes());
        image.put32(optional + 0x38, 0x4000);
        image.put32(optional + 0x40, 0x0012_3456);
        image.put32(optional + 0x6c, 16);
        // Exports, then the debug directory.
        image.put32(optional + 0x70, 0x2f80);
        image.put32(optional + 0x74, 0x180);
        image.put32(optional + 0xa0, 0x2000);
        image.put32(optional + 0xa4, 2 * 0x1c);
        let section = optional + 0xf0;
        image.put(section, b".text\0\0\0");
        image.put32(section + 8, 0x3000);
        image.put32(section + 12, 0x1000);
        image.put32(section + 36, 0x6000_0020);
        // A debug entry of another type first, as linkers of today write.
        image.put32(0x200c, 13);
        image.put32(0x201c + 0xc, 2);
        image.put32(0x201c + 0x10, 25 + pdb_name.len() as u32);
        image.put32(0x201c + 0x14, 0x2100);
        image.put(0x2100, b"RSDS\x03\x02\x01\x00\x05\x04\x07\x06\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x02\0\0\0");
        image.put(0x2118, pdb_name);
        // Three functions from ordinal 7 on: one without a name, Alpha, and Beta, which is forwarded.
        for (offset, value) in [(0x10, 7), (0x14, 3), (0x18, 2), (0x1c, 0x2fa8), (0x20, 0x2fb4), (0x24, 0x2fbc)] {
            image.put32(0x2f80 + offset, value);
        }
        for (n, value) in [0x1010, 0x1020, 0x3010, 0x3000, 0x3006].into_iter().enumerate() {
            image.put32(0x2fa8 + n * 4, value);
        }
        image.put(0x2fbc, &[1, 0, 2, 0]);
        image.put(0x3000, b"Alpha\0Beta\0");
        image.put(0x3010, b"HAL.Gamma\0");
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn hole(&mut self, range: Range<usize>) {
        self.holes.push(range);
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.get()
    }
}

impl Memory for TestImage {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.reads.set(self.reads.get() + 1);
        let Some(start) = address.checked_sub(BASE).map(|at| at as usize) else { return Ok(0) };
        let mut good = self.bytes.len().saturating_sub(start).min(buffer.len());
        for hole in &self.holes {
            if start < hole.end && hole.start < start + good {
                good = hole.start.saturating_sub(start);
            }
        }
        if good > 0 {
            buffer[..good].copy_from_slice(&self.bytes[start..start + good]);
        }
        Ok(good)
    }
}

/// Writes PDBs of a few records: container, headers, type and symbol records, section headers, address map.
pub(crate) struct TestPdb {
    types: Vec<u8>,
    next: u32,
    symbols: Vec<u8>,
    omap: Vec<u8>,
    /// Symbols of the one module, and how often the module is listed.
    module: Vec<u8>,
    modules: usize,
}

const PAGE: usize = 0x200;

fn padded(mut record: Vec<u8>) -> Vec<u8> {
    while !(record.len() + 2).is_multiple_of(4) {
        record.push(0xf0 + (4 - (record.len() + 2) % 4) as u8);
    }
    let mut whole = (record.len() as u16).to_le_bytes().to_vec();
    whole.append(&mut record);
    whole
}

impl TestPdb {
    pub(crate) fn new() -> TestPdb {
        TestPdb {
            types: Vec::new(),
            next: 0x1000,
            symbols: Vec::new(),
            omap: Vec::new(),
            module: Vec::new(),
            modules: 0,
        }
    }

    pub(crate) fn next_type(&self) -> u32 {
        self.next
    }

    fn add(&mut self, leaf: u16, parts: &[&[u8]]) -> u32 {
        let record = leaf.to_le_bytes().into_iter().chain(parts.concat()).collect();
        self.types.append(&mut padded(record));
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn public(&mut self, section: u16, offset: u32, name: &str) {
        let record =
            [&[0x0e, 0x11, 2, 0, 0, 0][..], &offset.to_le_bytes(), &section.to_le_bytes(), name.as_bytes(), b"\0"];
        self.symbols.append(&mut padded(record.concat()));
    }

    pub(crate) fn static_function(&mut self, section: u16, offset: u32, name: &str) {
        if self.module.is_empty() {
            self.module.extend([4, 0, 0, 0]);
            self.modules = 1;
        }
        let place = [&offset.to_le_bytes()[..], &section.to_le_bytes(), &[0], name.as_bytes(), b"\0"].concat();
        self.module.append(&mut padded([&[0x0f, 0x11][..], &[0; 28], &place].concat()));
    }

    pub(crate) fn repeat_module(&mut self, times: usize) {
        self.modules = times;
    }

    pub(crate) fn omap(&mut self, pairs: &[(u32, u32)]) {
        self.omap = pairs.iter().flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()].concat()).collect();
    }

    fn list(members: &[(&str, u32, u16)]) -> Vec<u8> {
        let mut list = Vec::new();
        for (name, kind, offset) in members {
            list.extend(
                [&[0x0d, 0x15, 3, 0][..], &kind.to_le_bytes(), &offset.to_le_bytes(), name.as_bytes(), b"\0"].concat(),
            );
            // Each entry starts at a multiple of four of the record.
            while !list.len().is_multiple_of(4) {
                list.push(0xf0 + (4 - list.len() % 4) as u8);
            }
        }
        list
    }

    pub(crate) fn field_list(&mut self, members: &[(&str, u32, u16)]) -> u32 {
        self.add(0x1203, &[&TestPdb::list(members)])
    }

    pub(crate) fn field_list_continued(&mut self, members: &[(&str, u32, u16)], next: u32) -> u32 {
        self.add(0x1203, &[&TestPdb::list(members), &[0x04, 0x14, 0, 0], &next.to_le_bytes()])
    }

    pub(crate) fn enumerators(&mut self, values: &[(&str, i64)]) -> u32 {
        let mut list = Vec::new();
        for (name, value) in values {
            list.extend([&[0x02, 0x15, 3, 0, 0x09, 0x80][..], &value.to_le_bytes(), name.as_bytes(), b"\0"].concat());
        }
        self.add(0x1203, &[&list])
    }

    pub(crate) fn structure(&mut self, name: &str, fields: u32, size: u16) -> u32 {
        self.add(0x1505, &[&[0; 4], &fields.to_le_bytes(), &[0; 8], &size.to_le_bytes(), name.as_bytes(), b"\0"])
    }

    pub(crate) fn forward(&mut self, name: &str) -> u32 {
        self.add(0x1505, &[&[0, 0, 0x80, 0], &[0; 14], name.as_bytes(), b"\0"])
    }

    pub(crate) fn enumeration(&mut self, name: &str, fields: u32) -> u32 {
        self.add(0x1507, &[&[0; 4], &0x74u32.to_le_bytes(), &fields.to_le_bytes(), name.as_bytes(), b"\0"])
    }

    pub(crate) fn pointer(&mut self, to: u32) -> u32 {
        self.add(0x1002, &[&to.to_le_bytes(), &0x1000cu32.to_le_bytes()])
    }

    pub(crate) fn modifier(&mut self, of: u32) -> u32 {
        self.add(0x1001, &[&of.to_le_bytes(), &[1, 0]])
    }

    pub(crate) fn bit_field(&mut self, of: u32, position: u8, length: u8) -> u32 {
        self.add(0x1205, &[&of.to_le_bytes(), &[length, position]])
    }

    pub(crate) fn array(&mut self, of: u32, bytes: u16) -> u32 {
        self.add(0x1503, &[&of.to_le_bytes(), &0x23u32.to_le_bytes(), &bytes.to_le_bytes(), b"\0"])
    }

    fn streams(&self) -> Vec<Vec<u8>> {
        let guid = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        let info = [&20000404u32.to_le_bytes()[..], &[0; 4], &9u32.to_le_bytes(), &guid, &[0; 4]].concat();

        let mut types = Vec::new();
        for value in [20040203, 56, 0x1000, self.next, self.types.len() as u32] {
            types.extend(u32::to_le_bytes(value));
        }
        types.resize(56, 0);
        types.extend(&self.types);

        let mut dbi = vec![0; 64];
        dbi[0..4].fill(0xff);
        dbi[8] = 3;
        dbi[20] = 4;
        dbi[48] = 22;
        // Stripped, unless there is something private.
        dbi[56] = if self.modules == 0 { 2 } else { 0 };
        dbi[58..60].copy_from_slice(&0x8664u16.to_le_bytes());
        let mut module = vec![0; 64];
        module[34] = 7;
        module[36..40].copy_from_slice(&(self.module.len() as u32).to_le_bytes());
        module.extend(b"a.obj\0b\0");
        let modules = module.repeat(self.modules);
        dbi[24..28].copy_from_slice(&(modules.len() as u32).to_le_bytes());
        dbi.extend(modules);
        let mut extra = [0xff; 22];
        extra[10..12].copy_from_slice(&[5, 0]);
        if !self.omap.is_empty() {
            extra[8..10].copy_from_slice(&[6, 0]);
            extra[20..22].copy_from_slice(&[5, 0]);
        }
        dbi.extend(extra);

        let mut sections = vec![0; 80];
        sections[12..16].copy_from_slice(&0x1000u32.to_le_bytes());
        sections[52..56].copy_from_slice(&0x5000u32.to_le_bytes());
        vec![vec![], info, types, dbi, self.symbols.clone(), sections, self.omap.clone(), self.module.clone()]
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        kd_fake::pdb::container(&self.streams(), PAGE)
    }
}

/// A cabinet with one file, compressed with MSZIP.
pub(crate) fn cabinet(file: &[u8]) -> Vec<u8> {
    let mut builder = cab::CabinetBuilder::new();
    builder.add_folder(cab::CompressionType::MsZip).add_file("x.pdb");
    let mut writer = builder.build(std::io::Cursor::new(Vec::new())).unwrap();
    std::io::Write::write_all(&mut writer.next_file().unwrap().unwrap(), file).unwrap();
    writer.finish().unwrap().into_inner()
}
