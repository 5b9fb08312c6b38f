#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use nt_symbols::{Pdb, SymbolFile};

const PAGE: usize = 0x1000;

/// A container with a valid header around streams of any content, so that the fuzzer need not find the header.
fn container(streams: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vec![0; 3 * PAGE];
    let mut directory = (streams.len() as u32).to_le_bytes().to_vec();
    directory.extend(streams.iter().flat_map(|stream| (stream.len() as u32).to_le_bytes()));
    let mut append = |bytes: &[u8]| {
        let first = file.len() / PAGE;
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(PAGE), 0);
        (first as u32..(file.len() / PAGE) as u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    for stream in streams {
        directory.extend(append(stream));
    }
    let pages = append(&directory);
    let map = append(&pages);
    let count = (file.len() / PAGE) as u32;
    file[..32].copy_from_slice(b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0");
    for (at, value) in [(32, PAGE as u32), (36, 1), (40, count), (44, directory.len() as u32)] {
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    file[52..52 + map.len()].copy_from_slice(&map);
    file
}

/// The file's streams: those with fixed numbers start with headers that are right, and end in the fuzzer's bytes.
fn streams(data: &[u8]) -> Vec<Vec<u8>> {
    let part = data.len() / 6;
    let mut parts = data.chunks(part.max(1)).map(<[u8]>::to_vec).chain(std::iter::repeat(Vec::new()));
    let mut next = || parts.next().unwrap_or_default();

    let mut info = 20_000_404u32.to_le_bytes().to_vec();
    info.resize(32, 0);

    let records = next();
    let mut types = Vec::new();
    for value in [20_040_203, 56, 0x1000, 0x1000 + records.len() as u32 / 4, records.len() as u32] {
        types.extend(u32::to_le_bytes(value));
    }
    types.resize(56, 0);
    types.extend(records);

    let modules = next();
    let mut debug = vec![0; 64];
    debug[0..4].fill(0xff);
    debug[20] = 4;
    debug[24..28].copy_from_slice(&(modules.len() as u32).to_le_bytes());
    debug[48] = 22;
    debug[58..60].copy_from_slice(&0x8664u16.to_le_bytes());
    debug.extend(modules);
    let mut extra = [0xff; 22];
    extra[8..12].copy_from_slice(&[6, 0, 5, 0]);
    extra[20..22].copy_from_slice(&[
        if data.len().is_multiple_of(2) { 5 } else { 0xff },
        if data.len().is_multiple_of(2) { 0 } else { 0xff },
    ]);
    debug.extend(extra);
    vec![Vec::new(), info, types, debug, next(), next(), next(), next()]
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes = if kind % 4 == 0 { data.to_vec() } else { container(&streams(data)) };
    let Ok(pdb) = Pdb::read("fuzz.pdb", Cursor::new(bytes)) else { return };
    let _ = (pdb.symbol("Foo"), pdb.around(0x1000), pdb.matching("*o*").len());
    for name in pdb.types_matching("*").iter().take(64) {
        let _ = (pdb.layout(name), pdb.enumeration(name));
    }
    assert!(pdb.notes().len() <= 200);
});
