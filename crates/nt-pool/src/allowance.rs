//! Memory that is read no further than a cost allows.

use std::cell::Cell;

use nt_memory::{Fault, Layer, Memory, Search};

use crate::small_blocks::Cost;

pub(crate) struct Allowance<'m> {
    memory: &'m dyn Memory,
    reply: u64,
    left: Cell<Cost>,
    exhausted: Cell<bool>,
}

impl<'m> Allowance<'m> {
    pub(crate) fn new(memory: &'m dyn Memory, left: Cost) -> Self {
        let reply = (memory.reply_size() as u64).max(1);
        Allowance { memory, reply, left: Cell::new(left), exhausted: Cell::new(false) }
    }

    pub(crate) fn left(&self) -> Cost {
        self.left.get()
    }

    /// Whether something was not read because of the cost.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.get()
    }

    /// For a read: what the memory keeps costs nothing.
    fn charge_unread(&self, address: u64, length: usize) -> Result<(), Fault> {
        match self.memory.unread(address, length as u64) {
            0 => Ok(()),
            unread => self.charge(unread),
        }
    }

    fn charge(&self, bytes: u64) -> Result<(), Fault> {
        let left = self.left.get();
        let requests = left.requests.checked_sub(bytes.div_ceil(self.reply).max(1));
        match requests.zip(left.bytes.checked_sub(bytes)) {
            Some((requests, bytes)) => {
                self.left.set(Cost { requests, bytes });
                Ok(())
            }
            None => {
                self.exhausted.set(true);
                Err(Fault::Cancelled)
            }
        }
    }
}

impl Layer for Allowance<'_> {
    fn below(&self) -> &dyn Memory {
        self.memory
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.charge_unread(address, buffer.len())?;
        self.memory.read(address, buffer)
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.charge(buffer.len() as u64)?;
        self.memory.reread(address, buffer)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.charge(0)?;
        self.memory.search(address, length, pattern)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.charge(buffer.len() as u64)?;
        self.memory.read_physical(address, buffer)
    }

    fn unread(&self, address: u64, length: u64) -> u64 {
        self.memory.unread(address, length)
    }
}
