//! Bytes as a PDB, or as the streams of one whose container and headers are right.
//!
//! ```text
//! kind: bit 0 the rest is the whole file; 1 there is an address map; 2 the file is stripped; 3 it is of x86
//! else six parts, each a u16 with its length and so many bytes: type records, modules, symbol records, section headers,
//! address map, the modules' own symbols
//! ```

use std::io::Cursor;

use kd_fake::pdb::container;
use nt_symbols::{Pdb, SymbolFile};

/// As small as the format allows: fewer bytes to fill for each input.
const PAGE: usize = 0x200;

/// The next part of the input.
fn part(data: &mut &[u8]) -> Vec<u8> {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return std::mem::take(data).to_vec() };
    let (part, rest) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))));
    *data = rest;
    part.to_vec()
}

/// The file's streams: those with fixed numbers start with headers that are right, and end in the fuzzer's bytes.
fn streams(kind: u8, mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut info = 20_000_404u32.to_le_bytes().to_vec();
    info.resize(32, 0);

    let records = part(&mut data);
    let mut types = Vec::new();
    for value in [20_040_203, 56, 0x1000, 0x1000 + records.len() as u32 / 4, records.len() as u32] {
        types.extend(u32::to_le_bytes(value));
    }
    types.resize(56, 0);
    types.extend(records);

    let modules = part(&mut data);
    let mut debug = vec![0; 64];
    debug[0..4].fill(0xff);
    debug[20] = 4;
    debug[24..28].copy_from_slice(&(modules.len() as u32).to_le_bytes());
    debug[48] = 22;
    debug[56] = if kind & 4 != 0 { 2 } else { 0 };
    debug[58..60].copy_from_slice(&if kind & 8 != 0 { 0x14cu16 } else { 0x8664 }.to_le_bytes());
    debug.extend(modules);
    // Where the section headers are, and the address map with the headers of before.
    let mut extra = [0xff; 22];
    extra[10..12].copy_from_slice(&[5, 0]);
    if kind & 2 != 0 {
        extra[8..10].copy_from_slice(&[6, 0]);
        extra[20..22].copy_from_slice(&[5, 0]);
    }
    debug.extend(extra);
    let rest = [(); 4].map(|()| part(&mut data));
    [vec![Vec::new(), info, types, debug], rest.to_vec()].concat()
}

/// One input.
pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let bytes = if kind & 1 != 0 { data.to_vec() } else { container(&streams(kind, data), PAGE) };
    let Ok(pdb) = Pdb::read("fuzz.pdb", Cursor::new(bytes)) else { return };
    let _ = (pdb.symbol("Foo"), pdb.around(0x1000), pdb.matching("*o*").len());
    for name in pdb.types_matching("*").iter().take(64) {
        let _ = (pdb.layout(name), pdb.enumeration(name));
    }
    assert!(pdb.notes().len() <= 200);
}
