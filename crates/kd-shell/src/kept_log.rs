//! What a session keeps of the pool log, so that only new records are read at the next look.
//!
//! A record's sequence number says where in the log it was written. Between two looks the log has gained the records
//! from the old index to the new; a witness, a record of the old look, is read again to prove that the log is still the
//! same one. The newest records of a look may have been half written by other processors: they are read again too.

use std::collections::BTreeMap;
use std::sync::Arc;

use nt_pool::Notes;
use nt_pool::pool_log::{self, PoolLog, Position, Since, Trace, UNSETTLED, Wanted};

use crate::error::CommandError;
use crate::session::Context;
use crate::vertarget::interrupt_time;

/// Memory for one log: more is not kept.
const MAX_BYTES: usize = 64 << 20;

/// Addresses whose records are kept.
const MAX_ADDRESSES: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct KeptLog {
    /// The kernel that all of this is of, and its log's length.
    of: (u64, u32),
    /// A record of the last look, [`UNSETTLED`] before its newest.
    witness: Option<Trace>,
    whole: Option<Part>,
    by_address: BTreeMap<u64, Part>,
    /// Where the log stood when, by the target's clock (100 ns).
    looked: Option<(u32, u64)>,
    /// Records written, and the time that took, between two looks.
    rate: Option<(u32, u64)>,
}

/// Records that were read, newest first.
#[derive(Debug, Clone)]
struct Part {
    index: u32,
    /// See [`Records::lowest`].
    lowest: u64,
    traces: Arc<Vec<Trace>>,
}

/// Records of the log, from this look or earlier ones.
pub(crate) struct Records {
    pub(crate) length: u32,
    pub(crate) index: u32,
    /// Slots looked at.
    pub(crate) parsed: u32,
    /// The lowest start of a block that was looked for; 0 when every record was read.
    pub(crate) lowest: u64,
    /// Newest first.
    pub(crate) traces: Arc<Vec<Trace>>,
    pub(crate) notes: Notes,
    /// The log is too large to be kept.
    pub(crate) too_large: bool,
}

impl From<PoolLog> for Records {
    fn from(log: PoolLog) -> Self {
        let PoolLog { length, index, parsed, traces, notes } = log;
        Records { length, index, parsed, lowest: 0, traces: Arc::new(traces), notes, too_large: false }
    }
}

impl KeptLog {
    /// The part to start from. Useless if nearly all of the log is new.
    fn part(&self, address: Option<u64>, position: Position) -> Option<Part> {
        let of_address = address.and_then(|address| self.by_address.get(&address));
        // The newer one has more in it.
        let newer = |part: &&Part| std::cmp::Reverse(position.index.wrapping_sub(part.index));
        let part = of_address.into_iter().chain(&self.whole).max_by_key(newer)?;
        let then = Position { index: part.index, length: position.length };
        match position.since(then) {
            Since::Gained(written) => (written < position.length.saturating_sub(UNSETTLED)).then(|| part.clone()),
            Since::WentRound(_) | Since::Another => None,
        }
    }

    /// Remembers a time and says how old the oldest record of a full log is (100 ns), once that is known.
    fn age(&mut self, position: Position, now: u64) -> Option<u64> {
        match self.looked {
            Some((index, then)) if then < now => self.rate = Some((position.index.wrapping_sub(index), now - then)),
            // The same stop.
            Some((index, then)) if then == now && index == position.index => {}
            _ => self.rate = None,
        }
        self.looked = Some((position.index, now));
        let (written, time) = self.rate.filter(|(written, _)| *written > 0)?;
        let age = u128::from(position.length) * u128::from(time) / u128::from(written);
        let age = u64::try_from(age).ok()?;
        (position.index >= position.length && age < now).then_some(age)
    }
}

/// Says how long ago the log wrapped, once its rate is known.
pub(crate) fn wrapped(context: &mut Context<'_>, position: Position) -> Result<Option<String>, CommandError> {
    let Some(now) = interrupt_time(context.kernel()?)? else { return Ok(None) };
    let kept = &mut context.session.kept_log;
    let Some(age) = kept.age(position, now) else { return Ok(None) };
    let (written, time) = kept.rate.unwrap_or_default();
    let rate = u64::try_from(u128::from(written) * 10_000_000 / u128::from(time.max(1))).unwrap_or(u64::MAX);
    Ok(Some(format!(
        "The pool log wrapped about {} seconds ago: what was allocated before that has no record ({rate} records a \
         second between the last two looks).",
        age / 10_000_000
    )))
}

/// Where the log stands. Forgets what was kept of another log.
pub(crate) fn position(context: &mut Context<'_>) -> Result<Option<Position>, CommandError> {
    let position = context.pool(pool_log::position)?;
    let of = (context.kernel()?.base(), position.map_or(0, |position| position.length));
    let known = of == context.session.kept_log.of;
    let witness = context.session.kept_log.witness.take().filter(|_| known);
    let record = match &witness {
        Some(witness) => context.pool(|kernel| pool_log::record(kernel, witness.sequence))?,
        None => None,
    };
    let kept = &mut context.session.kept_log;
    if record.is_some() && record == witness {
        kept.witness = witness;
    } else {
        // All of it may have been overwritten, which says how busy it is; another record proves another log.
        let (looked, rate) = if known && record.is_none() { (kept.looked, kept.rate) } else { (None, None) };
        *kept = KeptLog { of, looked, rate, ..KeptLog::default() };
    }
    Ok(position)
}

/// The whole log.
pub(crate) fn whole(context: &mut Context<'_>, position: Position) -> Result<Option<Records>, CommandError> {
    let part = context.session.kept_log.part(None, position);
    let log = match &part {
        Some(part) => context.pool(|kernel| pool_log::read_since(kernel, part.index.wrapping_sub(UNSETTLED)))?,
        None => context.pool(|kernel| pool_log::read(kernel, Wanted::All))?,
    };
    let Some(mut log) = log else { return Ok(None) };
    if let Some(part) = &part {
        merge(&mut log, &part.traces, &|_| true);
        log.parsed = log.length;
    }
    let mut records = Records::from(log);
    let frames: usize = records.traces.iter().map(|trace| trace.frames.capacity()).sum();
    let bytes = records.traces.capacity() * size_of::<Trace>() + frames * size_of::<u64>();
    records.too_large = bytes > MAX_BYTES;
    if records.notes.is_complete() && !records.too_large {
        let wanted = records.index.wrapping_sub(UNSETTLED);
        let witness = records.traces.iter().find(|trace| trace.sequence == wanted).cloned();
        let kept = &mut context.session.kept_log;
        kept.whole = Some(Part { index: records.index, lowest: 0, traces: Arc::clone(&records.traces) });
        kept.witness = witness;
    }
    Ok(Some(records))
}

/// The records of blocks that contain the address.
///
/// Where the target can search and knows a block that begins right there, the answer is a few small requests away. A
/// log that has nothing of the kind is read whole, as kd does: the address may lie in the middle of a large block.
pub(crate) fn of_address(
    context: &mut Context<'_>,
    position: Position,
    address: u64,
) -> Result<Option<Records>, CommandError> {
    let part = context.session.kept_log.part(Some(address), position);
    let found = match &part {
        Some(part) => {
            context.pool(|kernel| pool_log::find_since(kernel, address, part.index.wrapping_sub(UNSETTLED)))?
        }
        None => context.pool(|kernel| pool_log::find(kernel, address))?,
    };
    let Some(mut found) = found else { return Ok(None) };
    let mut lowest = found.starts.start;
    if let Some(part) = &part {
        merge(&mut found.log, &part.traces, &|trace| trace.contains(address));
        found.log.parsed = found.log.length;
        lowest = lowest.max(part.lowest);
    }
    if lowest > 0 && !found.log.traces.iter().any(|trace| trace.address == address) {
        return of_address_in_all(context, position, address);
    }
    let records = Records { lowest, ..Records::from(found.log) };
    if records.notes.is_complete() {
        let witness = context.pool(|kernel| pool_log::record(kernel, records.index.wrapping_sub(UNSETTLED)))?;
        let kept = &mut context.session.kept_log;
        if kept.by_address.len() >= MAX_ADDRESSES && !kept.by_address.contains_key(&address) {
            kept.by_address.clear();
        }
        kept.by_address.insert(address, Part { index: records.index, lowest, traces: Arc::clone(&records.traces) });
        kept.witness = witness;
    }
    Ok(Some(records))
}

/// [`of_address`] with every record read, which also finds blocks that begin far below.
pub(crate) fn of_address_in_all(
    context: &mut Context<'_>,
    position: Position,
    address: u64,
) -> Result<Option<Records>, CommandError> {
    let records = whole(context, position)?;
    Ok(records.map(|mut records| {
        let traces = records.traces.iter().filter(|trace| trace.contains(address)).cloned().collect();
        records.traces = Arc::new(traces);
        records
    }))
}

/// The records of blocks that start at one of the addresses.
pub(crate) fn of_starts(
    context: &mut Context<'_>,
    position: Position,
    addresses: &[u64],
) -> Result<Option<Records>, CommandError> {
    if context.session.kept_log.part(None, position).is_some() {
        return whole(context, position);
    }
    Ok(context.pool(|kernel| pool_log::find_starts(kernel, addresses))?.map(Records::from))
}

/// Adds older records to those of the newest `log.parsed` slots.
fn merge(log: &mut PoolLog, older: &[Trace], wanted: &dyn Fn(&Trace) -> bool) {
    let PoolLog { length, index, parsed, .. } = *log;
    let still_there = |trace: &&Trace| (parsed..length).contains(&index.wrapping_sub(trace.sequence));
    log.traces.extend(older.iter().filter(still_there).filter(|trace| wanted(trace)).cloned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(sequence: u32) -> Trace {
        Trace { sequence, address: 0, size: 0, thread: 0, frames: Vec::new() }
    }

    #[test]
    fn overwritten_records_are_dropped_when_logs_are_merged() {
        let mut log =
            PoolLog { length: 8, index: 2, parsed: 3, traces: vec![trace(2), trace(1)], notes: Notes::default() };
        let older: Vec<Trace> = (0..12).map(|n| trace(0u32.wrapping_sub(n))).collect();
        merge(&mut log, &older, &|trace| trace.sequence != 0);
        let sequences: Vec<i32> = log.traces.iter().map(|trace| trace.sequence as i32).collect();
        assert_eq!(sequences, [2, 1, -1, -2, -3, -4, -5]);
    }

    #[test]
    fn the_logs_age_is_known_after_two_looks() {
        let mut kept = KeptLog::default();
        let position = |index| Position { length: 0x1000, index };
        let second = 10_000_000;
        assert_eq!(kept.age(position(0x8000), 100 * second), None);
        assert_eq!(kept.age(position(0x8400), 101 * second), Some(4 * second));
        // Again in the same stop.
        assert_eq!(kept.age(position(0x8400), 101 * second), Some(4 * second));
        // Nothing was written since.
        assert_eq!(kept.age(position(0x8400), 102 * second), None);
        // The machine was started anew.
        assert_eq!(kept.age(position(0x8500), 50 * second), None);
        // A log that is not full has all its records.
        assert_eq!(kept.age(position(0x0f00), 51 * second), None);
    }
}
