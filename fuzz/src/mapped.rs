//! Memory that holds an input as an image, and nothing else.

use nt_memory::{Fault, Memory};

pub(crate) const BASE: u64 = 0xffff_f800_0260_0000;

pub(crate) struct Mapped<'d> {
    pub(crate) bytes: &'d [u8],
    /// What one reply of the target carries.
    pub(crate) reply: usize,
}

impl Memory for Mapped<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let start = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX);
        let there = self.bytes.get(start..).unwrap_or_default();
        let good = there.len().min(buffer.len());
        buffer[..good].copy_from_slice(&there[..good]);
        Ok(good)
    }

    fn reply_size(&self) -> usize {
        self.reply
    }
}
