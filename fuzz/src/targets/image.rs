//! Bytes as an image in the target's memory: headers, the PDB's name, exports.

use nt_memory::{Fault, Memory};
use nt_symbols::{Exports, Image, SymbolFile, rsds};

const BASE: u64 = 0xffff_f800_0260_0000;

/// Memory that holds the input and nothing else.
struct Mapped<'d>(&'d [u8]);

impl Memory for Mapped<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let start = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX);
        let there = self.0.get(start..).unwrap_or_default();
        let good = there.len().min(buffer.len());
        buffer[..good].copy_from_slice(&there[..good]);
        Ok(good)
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let memory = Mapped(data);
    if let Ok(identity) = rsds(&memory, BASE) {
        assert!(!identity.pdb_name.is_empty() && identity.pdb_name.len() <= 255);
        assert!(!identity.pdb_name.contains(['/', '\\', ':', '\0']) && identity.pdb_name != "..");
    }
    if let Ok(image) = Image::read(&memory, BASE) {
        let _ = image.sections(&memory);
        if let Ok(exports) = Exports::read(&memory, &image, "fuzz.sys") {
            let _ = (exports.symbol("Foo"), exports.around(0x1000), exports.matching("*a*").len());
        }
    }
}
