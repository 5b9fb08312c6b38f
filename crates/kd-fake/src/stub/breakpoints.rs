//! The kernel's table of 32 breakpoints, which outlives a debugger.

use crate::kernel::Kernel;

const SLOTS: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    /// The bytes under the break instruction, as many as it has; `None` while the page is not resident.
    original: Option<[u8; 4]>,
}

#[derive(Debug, Default)]
pub(crate) struct Breakpoints([Option<Entry>; SLOTS]);

impl Breakpoints {
    /// Plants one; `None` when the table is full or holds the address already. Handles count from 1.
    pub(crate) fn add(&mut self, kernel: &mut Kernel, address: u64) -> Option<u32> {
        if self.0.iter().flatten().any(|entry| entry.address == address) {
            return None;
        }
        let slot = self.0.iter().position(Option::is_none)?;
        let code = kernel.machine().breakpoint();
        let mut original = [0; 4];
        let resident = kernel.read_virtual(address, &mut original[..code.len()]) == code.len()
            && kernel.write_virtual(address, code) == code.len();
        self.0[slot] = Some(Entry { address, original: resident.then_some(original) });
        Some(slot as u32 + 1)
    }

    /// Takes one out; false for an empty slot.
    pub(crate) fn remove(&mut self, kernel: &mut Kernel, handle: u32) -> bool {
        let slot = (handle as usize).checked_sub(1).and_then(|index| self.0.get_mut(index));
        let Some(entry) = slot.and_then(Option::take) else { return false };
        if let Some(original) = entry.original {
            let length = kernel.machine().breakpoint().len();
            kernel.write_virtual(entry.address, &original[..length]);
        }
        true
    }

    /// Takes out everything in `start .. start + length`, as a stop does around its program counter.
    pub(crate) fn remove_range(&mut self, kernel: &mut Kernel, start: u64, length: u64) {
        for handle in 1..=SLOTS {
            if self.0[handle - 1].is_some_and(|entry| entry.address.wrapping_sub(start) < length) {
                self.remove(kernel, handle as u32);
            }
        }
    }

    pub(crate) fn remove_all(&mut self, kernel: &mut Kernel) {
        for handle in 1..=SLOTS {
            self.remove(kernel, handle as u32);
        }
    }

    pub(crate) fn addresses(&self) -> Vec<u64> {
        self.0.iter().flatten().map(|entry| entry.address).collect()
    }
}
