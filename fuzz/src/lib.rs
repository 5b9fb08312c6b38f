//! The bodies of the fuzz targets, and inputs to begin with.
//!
//! `fuzz_targets/` hands each body to libFuzzer, one program a target; the test of this crate runs the same bodies on
//! the checked-in inputs and on a few changes of them, so that a mistake is seen without a fuzzer.

mod machine;
mod play;
pub mod seeds;
pub mod targets;

#[cfg(test)]
mod tests;

/// A target's name, as its program and its folder of seeds are called, and its body.
pub struct Target {
    /// `cabinet`, `kdnet`.
    pub name: &'static str,
    /// Panics on a mistake; whatever the input, it comes back soon.
    pub run: fn(&[u8]),
}
