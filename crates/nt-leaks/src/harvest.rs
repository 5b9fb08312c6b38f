//! The verifier's log as it was seen at several stops: together they may hold more than the log does.

use std::collections::HashMap;

use nt_memory::Fault;
use nt_pool::pool_log::{self, Trace, Wanted};
use nt_pool::{Kernel, PoolError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::stack::Resolver;

pub use nt_pool::pool_log::Operation;

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub sequence: u32,
    pub address: u64,
    pub size: u64,
    pub thread: u64,
    pub operation: Operation,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
}

/// Where the log stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub index: u32,
    pub length: u32,
    /// What the newest record held: if its slot holds something else later, more was written than the index tells.
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
    /// No record since the position is missing.
    complete: bool,
    /// More was written between two looks than the log holds.
    wrapped: bool,
}

/// Records kept; some 100 MB.
const MAX_RECORDS: usize = 1 << 19;

fn digest(trace: &Trace) -> String {
    let mut hash = Sha256::new();
    for number in [trace.address, trace.size, trace.thread].iter().chain(&trace.frames) {
        hash.update(number.to_le_bytes());
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Position {
    /// Where the log stands; `None` when the kernel keeps none.
    pub(crate) fn read(kernel: &Kernel<'_>) -> Result<Option<Self>, PoolError> {
        let log = pool_log::read(kernel, Wanted::Newest(1))?;
        Ok(log.map(|log| Position { index: log.index, length: log.length, anchor: log.traces.first().map(digest) }))
    }
}

impl Harvest {
    /// Nothing was seen yet of what is written after `since`.
    pub fn new(since: Position) -> Self {
        Harvest { now: since.clone(), since, records: HashMap::new(), count: 0, complete: true, wrapped: false }
    }

    /// Reads what was written since the last look. Where the log has come round since, nothing is read: reading all of
    /// it costs too much, and [`Harvest::search`] looks for what matters. Says whether that is needed.
    pub(crate) fn extend(
        &mut self,
        kernel: &Kernel<'_>,
        resolver: &mut Resolver<'_>,
        notes: &mut Vec<String>,
    ) -> Result<bool, PoolError> {
        let Some(now) = Position::read(kernel)? else {
            notes.push("the kernel keeps no pool log any more".into());
            self.complete = false;
            return Ok(false);
        };
        let written = now.index.wrapping_sub(self.now.index);
        if written >= now.length || now.length != self.now.length {
            notes.push(format!(
                "the verifier's log went round: {written} records were written since the last look, and it holds {}",
                now.length
            ));
            (self.wrapped, self.complete, self.now) = (true, false, now);
            return Ok(true);
        }
        // One record more than is new: the newest of then must still be the same.
        let log = pool_log::read_since(kernel, self.now.index.wrapping_sub(1))?;
        let (traces, lost) = log.map_or((Vec::new(), Vec::new()), |log| (log.traces, log.notes));
        let anchor = traces.iter().find(|trace| trace.sequence == self.now.index).map(digest);
        if anchor != self.now.anchor {
            (self.wrapped, self.complete) = (true, false);
            notes.push("the verifier's log went all the way round since the last look, or was replaced".into());
        }
        let new: Vec<&Trace> = traces.iter().filter(|trace| now.index.wrapping_sub(trace.sequence) < written).collect();
        if new.len() < written as usize || !lost.is_empty() {
            self.complete = false;
            notes.push(format!("{} new records of the verifier's log could not be read", written as usize - new.len()));
            notes.extend(lost);
        }
        for trace in new.into_iter().rev() {
            self.add(trace, resolver)?;
        }
        self.now = now;
        Ok(false)
    }

    /// Looks for the records of some blocks in a log that has come round: every record in it is new.
    pub(crate) fn search(
        &mut self,
        kernel: &Kernel<'_>,
        addresses: &[u64],
        resolver: &mut Resolver<'_>,
    ) -> Result<(), PoolError> {
        let Some(log) = pool_log::find_starts(kernel, addresses)? else { return Ok(()) };
        for trace in log.traces.iter().rev() {
            self.add(trace, resolver)?;
        }
        Ok(())
    }

    /// Records of since are missing.
    pub(crate) fn miss(&mut self) {
        self.complete = false;
    }

    fn add(&mut self, trace: &Trace, resolver: &mut Resolver<'_>) -> Result<(), Fault> {
        if self.count >= MAX_RECORDS {
            self.complete = false;
            return Ok(());
        }
        let record = record(trace, resolver)?;
        self.push(record);
        Ok(())
    }

    pub(crate) fn push(&mut self, record: Record) {
        let records = self.records.entry(record.address).or_default();
        if records.last().is_none_or(|last| last.sequence != record.sequence) {
            records.push(record);
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

    pub(crate) fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.values().flatten()
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn has_wrapped(&self) -> bool {
        self.wrapped
    }

    pub fn since(&self) -> &Position {
        &self.since
    }

    /// Where the log stood at the last look.
    pub fn now(&self) -> &Position {
        &self.now
    }

    pub fn len(&self) -> usize {
        self.count
    }

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
    })
}
