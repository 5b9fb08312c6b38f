//! One reading of the counters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nt_memory::{PAGE_SIZE, ReadError};
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
            pages: if only.is_none() { Pages::read(kernel)? } else { Pages::default() },
            identity,
            times,
            notes: Vec::new(),
        };
        match only {
            None => {
                let report = tags::read(kernel, &|_| true)?;
                reading.add(&report.tags);
                reading.notes = report.notes.lines();
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

impl Pages {
    fn read(kernel: &Kernel<'_>) -> Result<Pages, PoolError> {
        let paged = kernel.layout("_MM_PAGED_POOL_INFO").ok();
        let paged = paged.and_then(|layout| layout.field("AllocatedPagedPool").map(|field| field.offset));
        let state = |part: (&str, &str), member: &str| match in_state(kernel, part, member) {
            Some(offset) => pages(kernel, STATE, offset),
            None => Ok(None),
        };
        Ok(Pages {
            nonpaged: match pages(kernel, "MmAllocatedNonPagedPool", 0)? {
                None => state(("Pools", "_MI_POOL_STATE"), "AllocatedNonPagedPool")?,
                known => known,
            },
            paged: match paged {
                Some(offset) => pages(kernel, "MmPagedPoolInfo", offset)?,
                None => None,
            },
            mdl: match pages(kernel, "MmMdlPagesAllocated", 0)? {
                None => state(("Vs", "_MI_VISIBLE_STATE"), "MdlPagesAllocated")?,
                known => known,
            },
        })
    }
}

/// Windows 10 and later keep their counts in one variable, an `_MI_SYSTEM_INFORMATION`. Folklore: the variables of
/// Windows 7 are gone there (10.0.16299 to 22000, by the public symbol tables of those kernels), the members have the
/// variables' old names without `Mm`.
const STATE: &str = "MiState";

/// Where a member of a part of [`STATE`] is, by the kernel's own types. `part`: its name and its type.
fn in_state(kernel: &Kernel<'_>, part: (&str, &str), member: &str) -> Option<u64> {
    let place = kernel.layout("_MI_SYSTEM_INFORMATION").ok()?.field(part.0)?.offset;
    place.checked_add(kernel.layout(part.1).ok()?.field(member)?.offset)
}

/// A count of pages, in bytes. Newer kernels keep some of the variables and count in others: 0 is no count.
fn pages(kernel: &Kernel<'_>, name: &str, offset: u64) -> Result<Option<u64>, PoolError> {
    let Some(address) = kernel.find_symbol(name) else { return Ok(None) };
    let mut bytes = [0; 8];
    let width = usize::from(kernel.pointer_size).min(bytes.len());
    match kernel.memory.read_exact(address.wrapping_add(offset), &mut bytes[..width]) {
        Ok(()) => {
            Ok(Some(u64::from_le_bytes(bytes)).filter(|pages| *pages > 0).map(|pages| pages.saturating_mul(PAGE_SIZE)))
        }
        Err(ReadError::Fault(fault)) => Err(fault.into()),
        Err(_) => Ok(None),
    }
}
