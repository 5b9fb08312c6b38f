//! Inputs to begin with, for formats that random bytes never enter. `KDPOOL_BLESS=1 cargo test -p kdpool-fuzz` writes them
//! to `seeds/`; a test says when they are stale.

mod files;
mod machines;
mod symbols;
mod text;
mod wire;

/// An input.
pub struct Seed {
    /// Whose it is.
    pub target: &'static str,
    /// Of its file.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl Seed {
    fn new(target: &'static str, name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Seed {
        Seed { target, name: name.into(), bytes: bytes.into() }
    }
}

/// All that are generated. What a fuzzer found, and what `kdpool demo` wrote, lies beside them in `seeds/`.
pub fn all() -> Vec<Seed> {
    [wire::all(), files::all(), symbols::all(), machines::all(), text::all()].into_iter().flatten().collect()
}

/// Numbers of one width, one after the other.
fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes `bytes` over what is at `at`.
fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    target[at..at + bytes.len()].copy_from_slice(bytes);
}
