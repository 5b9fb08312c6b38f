//! Bytes as a compressed file of a symbol store.

use std::io::Cursor;
use std::panic;
use std::sync::Once;

const LIMIT: u64 = 1 << 20;

/// The reader of LZX asserts what a damaged stream does not keep, and nt-symbols catches that. libFuzzer's hook would end
/// the program before it is caught.
fn let_lzx_be_caught() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            if !what.location().is_some_and(|place| place.file().contains("/lzxd-")) {
                hook(what);
            }
        }));
    });
}

/// One input.
pub fn run(data: &[u8]) {
    let_lzx_be_caught();
    let mut out = Vec::new();
    let _ = nt_symbols::expand_cabinet(&mut Cursor::new(data), &mut out, LIMIT, || false);
    assert!(out.len() as u64 <= LIMIT);
}
