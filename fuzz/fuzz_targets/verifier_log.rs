#![no_main]

//! Verifier's log of the pool, damaged here and there.

mod machine;

use libfuzzer_sys::fuzz_target;
use nt_pool::pool_log;

fuzz_target!(|data: &[u8]| {
    machine::with(
        data,
        |machine| &machine.log,
        |kernel, _| {
            if let Ok(Some(log)) = pool_log::read(kernel, pool_log::Wanted::All) {
                let _ = pool_log::read_since(kernel, log.index);
            }
        },
    );
});
