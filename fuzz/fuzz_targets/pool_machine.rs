#![no_main]

//! Whole machines whose memory the input changes here and there: the pool's and Verifier's structures are walked through
//! damage. The first byte chooses the machine, every eight that follow are a place and what to write there.

mod machine;

use libfuzzer_sys::fuzz_target;
use nt_pool::small_blocks::{self, Kinds, Limits};
use nt_pool::verifier::{self, LogKind};
use nt_pool::{around, big_pages, lookaside, pool_log, sessions, tags};

fuzz_target!(|data: &[u8]| {
    machine::with(
        data,
        |machine| &machine.pages,
        |kernel, memory| {
            let limits = Limits { bytes: 16 << 20, blocks: 1 << 16, from: 0 };
            let _ = tags::read(kernel, &|_| true);
            let large = big_pages::read(kernel, &|_| true);
            let _ = small_blocks::find(kernel, &|_| true, Kinds::ALL, limits);
            let _ = pool_log::read(kernel, pool_log::Wanted::All);
            let _ = verifier::settings(kernel);
            if let Ok(drivers) = verifier::drivers(kernel) {
                for driver in &drivers.drivers {
                    let _ = verifier::allocations(kernel, driver);
                }
            }
            for kind in [
                LogKind::Faults,
                LogKind::Irql,
                LogKind::ForcedPending,
                LogKind::Irps,
                LogKind::CriticalRegions,
                LogKind::WatchedIrps,
            ] {
                let _ = verifier::log(kernel, kind, pool_log::Wanted::All);
            }
            let _ = lookaside::all(kernel);
            for session in sessions::all(kernel).map_or(Vec::new(), |found| found.sessions) {
                let _ = sessions::tags(kernel, &session, &|_| true);
                let large = sessions::big_pages(kernel, &session, &|_| true).map_or(Vec::new(), |found| found.blocks);
                let _ = sessions::small_blocks(kernel, &session, &|_| true, &large, limits);
            }
            let changed = memory.bytes.keys().take(4).copied();
            let starts = large.iter().flat_map(|large| large.blocks.iter().take(2)).map(|page| page.address);
            for address in changed.chain(starts) {
                let _ = around::read(kernel, address);
            }
        },
    );
});
