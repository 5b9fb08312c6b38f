//! A look at large reads before they are done.

use std::cell::Cell;
use std::sync::Arc;

use crate::Pace;

/// What a read is about to ask of the target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LargeRead {
    /// Requests that the read will take.
    pub requests: u64,
    /// Bytes that will come.
    pub bytes: u64,
    /// How fast the link has been so far.
    pub pace: Pace,
}

/// Looks at every read of many bytes at once before it is done: the target stands still meanwhile, and on a serial line
/// that may be minutes. It is asked on the thread that reads.
pub trait Gate: Send + Sync {
    /// False: the read ends as Ctrl+C would end it.
    fn passes(&self, read: LargeRead) -> bool;
}

/// Bytes that are read without a look: a second and a half at 115,200 baud.
const MUCH: usize = 16 << 10;

/// The gate of one read.
pub(crate) struct AtGate {
    gate: Option<Arc<dyn Gate>>,
    asked: Cell<bool>,
}

impl AtGate {
    pub(crate) fn new(gate: Option<Arc<dyn Gate>>) -> Self {
        AtGate { gate, asked: Cell::new(false) }
    }

    /// Whether `bytes` that are not known yet may be read, in replies of `reply` bytes; asked once.
    pub(crate) fn passes(&self, bytes: usize, reply: usize, pace: Pace) -> bool {
        let Some(gate) = self.gate.as_ref().filter(|_| bytes >= MUCH && !self.asked.replace(true)) else { return true };
        gate.passes(LargeRead { requests: bytes.div_ceil(reply.max(1)) as u64, bytes: bytes as u64, pace })
    }
}
