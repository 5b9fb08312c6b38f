//! Driver Verifier's books.

use super::{Part, SelfCheck, Subject, one};
use crate::checks::Book;
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
    let mut tracked = 0;
    let mut complete = drivers.notes.is_complete();
    for driver in &drivers.drivers {
        let listed = verifier::allocations(kernel, driver)?;
        part.lacks(&listed.notes);
        complete &= listed.notes.is_complete();
        tracked += listed.allocations.len() as u64;
    }
    match counted {
        Some(counted) if complete => part.checks.push(one(Book::TrackedAllocations, counted, tracked, 0)),
        Some(_) => {}
        None => part.limits.push("this version's MmVerifierData has no counters to compare with".into()),
    }
    check.parts.push(part);
    Ok(())
}

/// The record that the index names is written, and in a log that has not come round yet the one behind it is not.
pub(super) fn log(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let Some(position) = pool_log::position(kernel)? else {
        check.parts.push(Part::unknown(Subject::Log, "Driver Verifier keeps no pool log here"));
        return Ok(());
    };
    let mut part = Part::new(Subject::Log);
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

/// Whether the slot behind the newest record's was written.
fn written_behind(kernel: &Kernel<'_>, position: pool_log::Position) -> Result<bool, PoolError> {
    // The slot's record would be of the round before, which there was none of.
    let before = position.index.wrapping_add(1).wrapping_sub(position.length);
    Ok(pool_log::record(kernel, before)?.is_some())
}
