//! `VfPoolTraces`: the ring of Verifier's records.

use std::collections::VecDeque;

use serde::Serialize;

use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::memory::Memory;
use crate::kernel::verifier::{Trace, TraceLayout};

/// A record of the log with its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Value of `VfPoolTracesIndex` when it was written.
    pub index: u32,
    /// It is of a free; else of an allocation.
    pub free: bool,
    /// Of the block's first byte.
    pub address: u64,
    /// Asked for, in an allocation's record; usable, in a free's.
    pub size: u64,
    /// The ETHREAD.
    pub thread: u64,
    /// Return addresses, innermost first, as many as a record holds.
    pub frames: Vec<u64>,
}

pub(crate) struct Log {
    table: u64,
    index_at: u64,
    index: u32,
    length: u32,
    layout: TraceLayout,
    /// Oldest first; not more than the ring holds.
    records: VecDeque<Trace>,
}

impl Log {
    pub(crate) fn open(builder: &Builder, records: &[Trace]) -> Result<Log, IsfError> {
        let number = |name| -> Result<u32, IsfError> {
            let mut bytes = [0; 4];
            builder.memory.read(builder.symbol(name)?, &mut bytes);
            Ok(u32::from_le_bytes(bytes))
        };
        Ok(Log {
            table: builder.variable("VfPoolTraces")?,
            index_at: builder.symbol("VfPoolTracesIndex")?,
            index: number("VfPoolTracesIndex")?,
            length: number("VfPoolTracesLength")?,
            layout: TraceLayout::of(&builder.isf)?,
            records: records.iter().cloned().collect(),
        })
    }

    /// The index comes first, then the record.
    pub(crate) fn write(&mut self, memory: &mut Memory, trace: Trace) -> u32 {
        self.index = self.index.wrapping_add(1);
        memory.write(self.index_at, &self.index.to_le_bytes());
        let slot = u64::from(self.index & (self.length - 1));
        memory.write(self.table + slot * self.layout.size as u64, &self.layout.write(&trace));
        self.records.push_back(trace);
        if self.records.len() > self.length as usize {
            self.records.pop_front();
        }
        self.index
    }

    pub(crate) fn position(&self) -> (u32, u32) {
        (self.index, self.length)
    }

    /// The newest record of a block that starts here.
    pub(crate) fn newest(&self, address: u64) -> Option<(u32, &Trace)> {
        self.numbered().rev().find(|(_, trace)| trace.address == address)
    }

    fn numbered(&self) -> impl DoubleEndedIterator<Item = (u32, &Trace)> {
        let first = self.index.wrapping_sub(self.records.len() as u32);
        self.records.iter().enumerate().map(move |(at, trace)| (first.wrapping_add(at as u32 + 1), trace))
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let record = |(index, trace): (u32, &Trace)| Record {
            index,
            free: trace.free,
            address: trace.address,
            size: trace.size,
            thread: trace.thread,
            frames: trace.frames.iter().take(self.layout.depth).copied().collect(),
        };
        self.numbered().map(record).collect()
    }
}
