//! The table of large allocations, damaged here and there.

use nt_pool::big_pages;

use crate::machine::{self, Places};

/// One input.
pub fn run(data: &[u8]) {
    machine::with(data, Places::BigPages, |kernel, memory| {
        let found = big_pages::read(kernel, &|_| true);
        let blocks = found.as_ref().map_or(&[][..], |found| &found.blocks[..]);
        for block in blocks.iter().take(2) {
            let _ = big_pages::lookup(kernel, block.address);
            let _ = big_pages::find(kernel, block.tag);
            let _ = nt_pool::around::read(kernel, block.address);
        }
        for address in memory.bytes.keys().take(1) {
            let _ = big_pages::entry_containing(kernel, *address);
        }
    });
}
