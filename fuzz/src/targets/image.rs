//! Bytes as an image in the target's memory: headers, the PDB's name, exports.

use nt_memory::KDNET_REPLY;
use nt_symbols::{Exports, Image, SymbolFile, rsds};

use crate::mapped::{BASE, Mapped};

/// One input.
pub fn run(data: &[u8]) {
    let memory = Mapped { bytes: data, reply: KDNET_REPLY };
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
