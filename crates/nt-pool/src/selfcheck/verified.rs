//! Driver Verifier's books.

use std::collections::BTreeSet;

use nt_memory::PAGE_SIZE;

use super::{Part, SelfCheck, Subject, one};
use crate::checks::{Book, Books, Check};
use crate::kernel::Variable;
use crate::pool_log::{Trace, Wanted};
use crate::record::Record;
use crate::{Kernel, PoolError, pool_log, verifier};

/// What `MmVerifierData` counts as allocated now, against what the verifier tracks of its drivers.
pub(super) fn verifier(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Verifier);
    let settings = verifier::settings(kernel)?;
    if settings.level & (verifier::POOL_TRACKING | verifier::SPECIAL_POOL) == 0 {
        check.parts.push(Part::unknown(Subject::Verifier, "Driver Verifier tracks no pool here"));
        return Ok(());
    }
    let counted: Option<u64> = ["CurrentPagedPoolAllocations", "CurrentNonPagedPoolAllocations"]
        .iter()
        .map(|name| settings.counters.get(name))
        .sum();
    let drivers = verifier::drivers(kernel)?;
    part.lacks(&drivers.notes);
    let (mut tracked, mut books) = (0, Books::default());
    let mut complete = drivers.notes.is_complete();
    for driver in &drivers.drivers {
        let listed = verifier::allocations(kernel, driver)?;
        part.lacks(&listed.notes);
        complete &= listed.notes.is_complete();
        tracked += listed.allocations.len() as u64;
        check.tracked.extend(listed.allocations.iter().map(|allocation| (allocation.address, allocation.size)));
        // How many there are is compared below, of all drivers together.
        let checks = verifier::check(kernel, driver, &listed).into_iter();
        books.extend(checks.filter(|check| check.name != Book::TrackedAllocations));
    }
    part.balance(books);
    match counted {
        Some(counted) if complete => part.checks.push(one(Book::TrackedAllocations, counted, tracked, 0)),
        Some(_) => {}
        None => part.limits.push("this version's MmVerifierData has no counters to compare with".into()),
    }
    check.parts.push(part);
    Ok(())
}

/// Newest records that are looked at, at most.
const RECORDS: u64 = 256;

/// Of those, the threads that are.
const THREADS: usize = 4;

/// The record that the index names is written, and in a log that has not come round yet the one behind it is not.
pub(super) fn log(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let Some(position) = pool_log::position(kernel)? else {
        check.parts.push(Part::unknown(Subject::Log, "Driver Verifier keeps no pool log here"));
        return Ok(());
    };
    let mut part = Part::new(Subject::Log);
    let layout = kernel.layout("_VF_POOL_TRACE")?;
    let records = check.left(kernel) / 4 * kernel.memory.reply_size() as u64 / layout.size.max(1);
    if let Some(log) = pool_log::read(kernel, Wanted::Newest(records.clamp(1, RECORDS) as u32))? {
        part.checks.extend(pool_log::check(kernel, &log.traces));
        part.checks.extend(sizes(check, &log.traces));
        part.checks.extend(threads(kernel, &log.traces)?);
    }
    if position.index < position.length && position.index > 0 {
        let written = |sequence: u32| -> Result<bool, PoolError> { Ok(pool_log::record(kernel, sequence)?.is_some()) };
        let right = written(position.index)? && !written_behind(kernel, position)?;
        let index = u64::from(position.index);
        let mut book = one(Book::LogIndex, index, index, 0);
        if !right {
            book.found = index.wrapping_sub(1);
            book.ok = false;
        }
        part.checks.push(book);
    } else {
        part.limits.push("the log has come round: no record says which one is the newest".into());
    }
    check.parts.push(part);
    Ok(())
}

/// Whether the newest records of tracked allocations ask for about what their blocks have: units of pool, or pages, and the
/// verifier's pointer.
fn sizes(check: &SelfCheck, traces: &[Trace]) -> Option<Check> {
    let mut seen = BTreeSet::new();
    let newest = traces.iter().filter(|trace| seen.insert(trace.address));
    let sizes = newest.filter_map(|trace| Some((trace.size, *check.tracked.get(&trace.address)?)));
    let (good, other): (Vec<_>, Vec<_>) = sizes.partition(|(asked, has)| asked <= has && has - asked < PAGE_SIZE);
    Check::most(Book::LogSizes, (good.len() + other.len()) as u64, good.len() as u64)
}

/// `_KOBJECTS.ThreadObject`, in every version.
const THREAD_OBJECT: u64 = 6;

/// Whether the threads of the newest records are threads. One that has ended may be anything by now; one of them runs.
fn threads(kernel: &Kernel<'_>, traces: &[Trace]) -> Result<Option<Check>, PoolError> {
    let Ok(thread) = Record::new(kernel, "_KTHREAD") else { return Ok(None) };
    let Some(kind) = thread.find("Header.Type") else { return Ok(None) };
    let mut threads: Vec<u64> = Vec::new();
    for trace in traces {
        if threads.len() < THREADS && kernel.is_kernel_address(trace.thread) && !threads.contains(&trace.thread) {
            threads.push(trace.thread);
        }
    }
    if threads.is_empty() {
        return Ok(None);
    }
    let at = |thread: &u64| Variable { address: kernel.wrap(thread.wrapping_add(kind.offset as u64)), size: 1 };
    let kinds = kernel.gather(&threads.iter().map(at).collect::<Vec<_>>())?;
    let found = kinds.iter().filter(|kind| matches!(kind, Ok(THREAD_OBJECT))).count() as u64;
    let ok = found > 0;
    Ok(Some(Check { name: Book::LogThreads, expected: threads.len() as u64, found, ok, place: None }))
}

/// Whether the slot behind the newest record's was written.
fn written_behind(kernel: &Kernel<'_>, position: pool_log::Position) -> Result<bool, PoolError> {
    // The slot's record would be of the round before, which there was none of.
    let before = position.index.wrapping_add(1).wrapping_sub(position.length);
    Ok(pool_log::record(kernel, before)?.is_some())
}
