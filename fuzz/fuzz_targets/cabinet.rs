#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;

const LIMIT: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let mut out = Vec::new();
    let _ = nt_symbols::expand_cabinet(&mut Cursor::new(data), &mut out, LIMIT, || false);
    assert!(out.len() as u64 <= LIMIT);
});
