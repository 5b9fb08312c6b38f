//! One reading of the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nt_pool::page_counts::{PageCount, PageCounts};
use nt_pool::tags::{self, TagUsage};
use nt_pool::{Kernel, PoolError, Tag};

use super::Key;
use crate::identity::{Identity, Times};
use crate::snapshot::{Counters, LookError, counter_bits};

/// Variables of the kernel that every reading needs.
const VARIABLES: [&str; 12] = [
    "KeBootTime",
    "KeBootTimeBias",
    "PoolTrackTable",
    "PoolTrackTableSize",
    "PoolTrackTableMask",
    "PoolTrackTableExpansion",
    "PoolTrackTableExpansionSize",
    "ExPoolTagTables",
    "KeNumberProcessors",
    "MmAllocatedNonPagedPool",
    "MmPagedPoolInfo",
    "MmMdlPagesAllocated",
];

/// Memory as the kernel counts it beside its tags, in bytes; `None` where it has neither a variable nor members of a
/// public name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of nonpaged pool in use, as the kernel counts pages.
    pub nonpaged: Option<u64>,
    /// The same of paged pool.
    pub paged: Option<u64>,
    /// Allocated by MmAllocatePagesForMdl: pages of no pool.
    pub mdl: Option<u64>,
}

/// The counters of all tags, or of some.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The target's running time.
    pub at_ms: u64,
    /// Counters by tag and pool.
    pub rows: BTreeMap<Key, Counters>,
    /// Width of the counters; `None` where it is not known, or something of the tables could not be read.
    pub bits: Option<u8>,
    /// All tags were read, and not only some.
    pub is_whole: bool,
    /// Pages that tags do not tell of.
    pub pages: Pages,
    /// Of which kernel, and which boot.
    pub identity: Identity,
    /// The target's clocks then.
    pub times: Times,
    /// What is missing, as sentences.
    pub notes: Vec<String>,
}

impl Reading {
    /// Reads all tags, or `only` some. `first`: the survey's first reading; another life of the kernel has no counters in
    /// common with it. `frozen`: for how long we kept the target stopped since, at most.
    ///
    /// # Errors
    ///
    /// [`LookError::Different`] when the target was restarted; [`LookError::Pool`] when the tables cannot be read.
    pub fn take(
        kernel: &Kernel<'_>,
        only: Option<&BTreeSet<u32>>,
        first: Option<&Reading>,
        frozen: Duration,
    ) -> Result<Reading, LookError> {
        kernel.read_ahead(&VARIABLES, &[]).map_err(PoolError::from)?;
        let (identity, times) = Identity::read(kernel, first.map(|first| &first.identity))?;
        if let Some(first) = first {
            first.identity.same(first.times, &identity, times, frozen)?;
        }
        let mut reading = Reading {
            at_ms: times.interrupt / 10_000,
            rows: BTreeMap::new(),
            bits: counter_bits(kernel),
            is_whole: only.is_none(),
            pages: Pages::default(),
            identity,
            times,
            notes: Vec::new(),
        };
        match only {
            None => {
                let counts = PageCounts::read(kernel)?;
                reading.pages = Pages::from(&counts);
                let report = tags::read(kernel, &|_| true)?;
                reading.add(&report.tags);
                reading.notes = report.notes.lines();
                reading.notes.extend(counts.notes.lines());
            }
            Some(only) => {
                for &tag in only {
                    let report = tags::read_one(kernel, Tag::from_key(tag).0)?;
                    reading.add(&report.tags);
                    reading.notes.extend(report.notes.lines());
                }
            }
        }
        Ok(reading)
    }

    fn add(&mut self, tags: &[TagUsage]) {
        for usage in tags {
            for (paged, usage, tag) in [(false, usage.nonpaged, usage.tag), (true, usage.paged, usage.tag)] {
                let counters = Counters { allocs: usage.allocs, frees: usage.frees, bytes: usage.bytes };
                if counters != Counters::default() {
                    self.rows.insert(Key { tag: tag.key(), paged }, counters);
                }
            }
        }
    }
}

impl From<&PageCounts> for Pages {
    fn from(counts: &PageCounts) -> Self {
        let bytes = |count: Option<PageCount>| count.map(|count| count.bytes);
        Pages { nonpaged: bytes(counts.nonpaged), paged: bytes(counts.paged), mdl: bytes(counts.mdl) }
    }
}
