//! A small image in memory for the tests of this crate.

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
