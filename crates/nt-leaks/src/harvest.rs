//! The verifier's log as it was seen at several stops: together they may hold more than the log does.

use std::collections::{BTreeSet, HashMap};

use nt_memory::Fault;
use nt_pool::pool_log::{self, Heads, LEADING, PoolLog, Since, Trace, UNSETTLED};
use nt_pool::{Kernel, PoolError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::stack::Resolver;

pub use nt_pool::pool_log::Operation;

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts since the log was made.
    pub sequence: u32,
    /// What was allocated or freed.
    pub address: u64,
    /// What was asked for, or what the block could hold.
    pub size: u64,
    /// ETHREAD of whoever did it.
    pub thread: u64,
    /// Which of the two.
    pub operation: Operation,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
    /// All of them were read.
    pub whole: bool,
}

/// Where the log stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The newest record's sequence number.
    pub index: u32,
    /// Slots of the ring.
    pub length: u32,
    /// What the newest [`UNSETTLED`] records held, newest first, with blanks between: if none of their slots holds that
    /// later, more was written than the index tells. One that differs alone was half written then, by another processor.
    pub anchor: Option<String>,
}

/// Everything that was logged since a position, as far as it was seen.
#[derive(Debug, Clone)]
pub struct Harvest {
    since: Position,
    now: Position,
    /// By address, oldest first.
    records: HashMap<u64, Vec<Record>>,
    count: usize,
    /// Records that were not settled at a look, and were others later, or are not known to be the same.
    void: BTreeSet<u32>,
    /// No record since the position is missing.
    complete: bool,
    /// More was written between two looks than the log holds.
    wrapped: bool,
}

/// Records kept; some 100 MB.
const MAX_RECORDS: usize = 1 << 19;

/// Of what a record begins with.
fn digest(trace: &Trace) -> String {
    let mut hash = Sha256::new();
    for number in [trace.address, trace.size, trace.thread].iter().chain(trace.frames.iter().take(LEADING)) {
        hash.update(number.to_le_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The digests of the newest records up to `index`; of slots that were never written a dash.
fn anchor(traces: &[Trace], index: u32) -> Vec<String> {
    let at = |age: u32| traces.iter().find(|trace| trace.sequence == index.wrapping_sub(age));
    (0..UNSETTLED).map(|age| at(age).map_or("-".into(), digest)).collect()
}

impl Position {
    fn place(&self) -> pool_log::Position {
        pool_log::Position { length: self.length, index: self.index }
    }

    /// The record was written in full when the log stood here: the kernel counts a record first and writes it then, field
    /// by field. In a log that has come round the slot of one that is not may hold that of one round before.
    fn is_settled(&self, sequence: u32) -> bool {
        self.index < self.length || self.index.wrapping_sub(sequence) >= UNSETTLED
    }

    /// Where the log stands; `None` when the kernel keeps none.
    pub(crate) fn read(kernel: &Kernel<'_>) -> Result<Option<Self>, PoolError> {
        let heads = pool_log::heads(kernel, UNSETTLED)?;
        Ok(heads.map(|Heads { log, .. }| Position::of(&log)))
    }

    fn of(log: &PoolLog) -> Self {
        let anchor = Some(anchor(&log.traces, log.index).join(" "));
        Position { index: log.index, length: log.length, anchor }
    }
}

impl Harvest {
    /// Nothing was seen yet of what is written after `since`.
    pub fn new(since: Position) -> Self {
        let (records, void) = (HashMap::new(), BTreeSet::new());
        Harvest { now: since.clone(), since, records, count: 0, void, complete: true, wrapped: false }
    }

    /// Reads what was written since the last look. Where the log has come round since, nothing is read: reading all of
    /// it costs too much, and [`Harvest::search`] looks for what matters. Says whether that is needed.
    pub(crate) fn extend(
        &mut self,
        kernel: &Kernel<'_>,
        resolver: &mut Resolver<'_>,
        notes: &mut Vec<String>,
    ) -> Result<bool, PoolError> {
        let Some(place) = pool_log::position(kernel)? else {
            notes.push("the kernel keeps no pool log any more".into());
            self.complete = false;
            return Ok(false);
        };
        let written = match place.since(self.now.place()) {
            Since::Gained(written) => written,
            Since::Another => {
                notes.push(
                    "the verifier's log gave records back since the last look, or was replaced: it is not used".into(),
                );
                self.complete = false;
                self.take_up(kernel)?;
                return Ok(false);
            }
            Since::WentRound(written) => {
                notes.push(format!(
                    "the verifier's log went round: {written} records were written since the last look, and it holds {}",
                    place.length
                ));
                (self.wrapped, self.complete) = (true, false);
                self.take_up(kernel)?;
                return Ok(true);
            }
        };
        // Some records more than are new: they must still be the same.
        let witnesses = UNSETTLED.min(place.length - written);
        let Some(Heads { log, cut }) = pool_log::heads(kernel, written + witnesses)? else { return Ok(false) };
        let then = self.now.anchor.clone().unwrap_or_default();
        let again = anchor(&log.traces, self.now.index);
        let changed: Vec<bool> = then.split(' ').zip(&again).map(|(then, again)| then != again).collect();
        let seen = changed.len().min(witnesses as usize);
        if changed[..seen].iter().all(|changed| *changed) {
            (self.wrapped, self.complete) = (true, false);
            notes.push("the verifier's log went all the way round since the last look, or was replaced".into());
        }
        let is_new = |trace: &&Trace| {
            let before = self.now.index.wrapping_sub(trace.sequence) as usize;
            place.index.wrapping_sub(trace.sequence) < written || before < seen && changed[before]
        };
        let new: Vec<&Trace> = log.traces.iter().filter(is_new).collect();
        let read = new.iter().filter(|trace| place.index.wrapping_sub(trace.sequence) < written).count();
        if read < written as usize || !log.notes.is_complete() {
            self.complete = false;
            notes.push(format!("{} new records of the verifier's log could not be read", written as usize - read));
            notes.extend(log.notes.lines());
        }
        for age in (0..UNSETTLED as usize).filter(|age| *age >= seen || changed[*age]) {
            // What its slot seemed to hold was half written, or of the round before.
            let sequence = self.now.index.wrapping_sub(age as u32);
            self.void.insert(sequence);
            for records in self.records.values_mut() {
                let before = records.len();
                records.retain(|record| record.sequence != sequence);
                self.count -= before - records.len();
                // What it was is not known where its slot was written again since.
                self.complete &= age < seen || before == records.len();
            }
        }
        for trace in new.into_iter().rev() {
            self.add(kernel, trace, !cut.contains(&trace.sequence), resolver)?;
        }
        self.now = Position::of(&log);
        Ok(false)
    }

    /// Goes on from where the log stands now. What was not settled at the last look stays unknown.
    fn take_up(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        self.void.extend((0..UNSETTLED).map(|age| self.now.index.wrapping_sub(age)));
        self.now = Position::read(kernel)?.unwrap_or(Position { anchor: None, ..self.now.clone() });
        Ok(())
    }

    /// The record was what it seemed to be at the look that saw it.
    pub(crate) fn is_true(&self, sequence: u32) -> bool {
        !self.void.contains(&sequence)
    }

    /// Looks for the records of some blocks in a log that has come round.
    pub(crate) fn search(
        &mut self,
        kernel: &Kernel<'_>,
        addresses: &[u64],
        resolver: &mut Resolver<'_>,
    ) -> Result<(), PoolError> {
        let Some(log) = pool_log::find_starts(kernel, addresses)? else { return Ok(()) };
        let is_new = |trace: &&Trace| trace.sequence.wrapping_sub(self.since.index).wrapping_sub(1) < u32::MAX / 2;
        let new: Vec<&Trace> = log.traces.iter().filter(is_new).collect();
        for trace in new.into_iter().rev() {
            self.add(kernel, trace, true, resolver)?;
        }
        Ok(())
    }

    /// Reads the rest of the newest allocations of some addresses, where only their beginnings were read.
    pub(crate) fn complete_records(
        &mut self,
        kernel: &Kernel<'_>,
        addresses: impl Iterator<Item = u64>,
    ) -> Result<(), PoolError> {
        for address in addresses {
            let mut records = self.records.get_mut(&address).into_iter().flatten();
            let newest = records.rfind(|record| record.operation == Operation::Allocate);
            if let Some(record) = newest.filter(|record| !record.whole) {
                record.finish(kernel)?;
            }
        }
        Ok(())
    }

    pub(crate) fn is_settled(&self, record: &Record) -> bool {
        self.now.is_settled(record.sequence)
    }

    /// What this record says of its address was not said over by one that was lost.
    pub(crate) fn is_newest(&self, record: &Record) -> bool {
        self.complete || self.now.index.wrapping_sub(record.sequence) < self.now.length
    }

    /// Records of since are missing.
    pub(crate) fn miss(&mut self) {
        self.complete = false;
    }

    fn add(
        &mut self,
        kernel: &Kernel<'_>,
        trace: &Trace,
        whole: bool,
        resolver: &mut Resolver<'_>,
    ) -> Result<(), PoolError> {
        if self.count >= MAX_RECORDS {
            self.complete = false;
            return Ok(());
        }
        let mut record = Record { whole, ..record(trace, resolver)? };
        // Who called is to be known of all.
        if !whole && record.operation != Operation::Free && resolver.site(&record.frames)?.is_none() {
            record.finish(kernel)?;
        }
        self.push(record);
        Ok(())
    }

    pub(crate) fn push(&mut self, record: Record) {
        let records = self.records.entry(record.address).or_default();
        let is_older = |other: &Record| record.sequence.wrapping_sub(other.sequence) < 1 << 31;
        let at = records.iter().rposition(is_older).map_or(0, |before| before + 1);
        if at == 0 || records[at - 1].sequence != record.sequence {
            records.insert(at, record);
            self.count += 1;
        }
    }

    /// What happened at an address since, oldest first.
    pub fn at(&self, address: u64) -> &[Record] {
        self.records.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.records.keys().copied()
    }

    /// Whether every record since the position is here.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether records were overwritten before they were seen.
    pub fn has_wrapped(&self) -> bool {
        self.wrapped
    }

    /// Where it begins.
    pub fn since(&self) -> &Position {
        &self.since
    }

    /// Where the log stood at the last look.
    pub fn now(&self) -> &Position {
        &self.now
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing was logged since.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[cfg(test)]
    pub(crate) fn lose(&mut self) {
        self.complete = false;
        self.wrapped = true;
    }
}

pub(crate) fn record(trace: &Trace, resolver: &mut Resolver<'_>) -> Result<Record, Fault> {
    Ok(Record {
        sequence: trace.sequence,
        address: trace.address,
        size: trace.size,
        thread: trace.thread,
        operation: resolver.operation(trace)?,
        frames: trace.frames.clone(),
        whole: true,
    })
}

impl Record {
    /// Reads the frames that are missing, in the stop that the record was seen in.
    fn finish(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        let trace = pool_log::record(kernel, self.sequence)?;
        if let Some(trace) = trace.filter(|trace| trace.address == self.address) {
            (self.frames, self.whole) = (trace.frames, true);
        }
        Ok(())
    }
}
