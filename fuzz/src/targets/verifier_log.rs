//! Verifier's log of the pool, damaged here and there.

use nt_pool::pool_log::{self, Wanted};

use crate::machine::{self, Places};

/// One input.
pub fn run(data: &[u8]) {
    machine::with(data, Places::Log, |kernel, memory| {
        let log = match pool_log::read(kernel, Wanted::All) {
            Ok(Some(log)) => log,
            _ => return,
        };
        let _ = pool_log::check(kernel, &log.traces);
        let _ = pool_log::check_index(log.index, &log.traces);
        let _ = pool_log::heads(kernel, 4);
        let _ = pool_log::record(kernel, log.index);
        let _ = pool_log::read_since(kernel, log.index.wrapping_sub(3));
        if let Some(trace) = log.traces.first() {
            let _ = pool_log::find(kernel, trace.address);
            let _ = pool_log::find_since(kernel, trace.address, log.index.wrapping_sub(3));
            let _ = pool_log::find_starts(kernel, &[trace.address]);
            let _ = pool_log::operation(trace, &|address| (address & 1 == 0).then(|| "nt!ExFreePool".into()));
        }
        let _ = nt_pool::history::outstanding(&log.traces, &|trace| pool_log::operation(trace, &|_| None)).len();
        let _ = nt_pool::history::group(&log.traces).len();
        if let Ok(Some(then)) = pool_log::position(kernel)
            && let Ok(Some(now)) = pool_log::position(kernel)
        {
            let _ = now.since(then);
        }
        for address in memory.bytes.keys().take(2) {
            let _ = pool_log::find(kernel, *address);
        }
    });
}
