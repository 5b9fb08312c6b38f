//! The bodies of the fuzz targets, and inputs to begin with.
//!
//! `fuzz_targets/` hands each body to libFuzzer, one program a target; the test of this crate runs the same bodies on
//! the checked-in inputs and on a few changes of them, so that a mistake is seen without a fuzzer.

use std::panic;
use std::sync::Once;

mod machine;
mod mapped;
mod play;
pub mod seeds;
pub mod targets;

#[cfg(test)]
mod tests;

/// The readers of LZX and xz panic on what a damaged file does not keep, and nt-symbols catches that. libFuzzer's hook would
/// end the program before it is caught.
fn let_them_be_caught() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let caught = ["/lzxd-", "/lzma-rs-"];
            if !what.location().is_some_and(|place| caught.iter().any(|name| place.file().contains(name))) {
                hook(what);
            }
        }));
    });
}

/// A target's name, as its program and its folder of seeds are called, and its body.
pub struct Target {
    /// `cabinet`, `kdnet`.
    pub name: &'static str,
    /// Panics on a mistake; whatever the input, it comes back soon.
    pub run: fn(&[u8]),
}
