//! Bytes as a compressed file of a symbol store.

use std::io::Cursor;

const LIMIT: u64 = 1 << 20;

/// One input.
pub fn run(data: &[u8]) {
    crate::let_them_be_caught();
    let mut out = Vec::new();
    let _ = nt_symbols::expand_cabinet(&mut Cursor::new(data), &mut out, LIMIT, || false);
    assert!(out.len() as u64 <= LIMIT);
}
