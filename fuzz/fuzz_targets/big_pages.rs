#![no_main]

//! The table of large allocations, damaged here and there.

mod machine;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    machine::with(
        data,
        |machine| &machine.big_pages,
        |kernel, _| {
            if let Ok(found) = nt_pool::big_pages::read(kernel, &|_| true) {
                for block in &found.blocks {
                    let _ = nt_pool::around::read(kernel, block.address);
                }
            }
        },
    );
});
