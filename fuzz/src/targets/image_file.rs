//! Bytes as the file of an image: headers, sections, the PDB's name, exports, as they are in memory.

use nt_memory::Memory;
use nt_symbols::{Exports, ImageFile, SymbolFile};

const BASE: u64 = 0xffff_f800_0260_0000;

/// One input.
pub fn run(data: &[u8]) {
    let Ok(file) = ImageFile::parse("fuzz.sys", data.to_vec()) else { return };
    let file = file.loaded_at(BASE);
    if let Ok(identity) = file.image().clone().pdb(&file) {
        assert!(!identity.pdb_name.contains(['/', '\\', ':', '\0']) && identity.pdb_name != "..");
    }
    let _ = file.image().sections(&file);
    if let Ok(exports) = Exports::read(&file, file.image(), "fuzz.sys") {
        let _ = (exports.symbol("Foo"), exports.around(0x1000), exports.matching("*a*").len());
    }
    let mut buffer = [0; 0x800];
    for address in [BASE, BASE + 0x1f0, BASE - 8, u64::MAX - 4] {
        assert!(file.read(address, &mut buffer).is_ok_and(|read| read <= buffer.len()));
    }
}
