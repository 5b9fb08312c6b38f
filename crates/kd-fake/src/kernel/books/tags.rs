//! The tag tables: one row for each tag in each processor's table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::add;
use crate::isf::IsfError;
use crate::kernel::PoolKind;
use crate::kernel::builder::{Builder, Place};
use crate::kernel::memory::Memory;
use crate::kernel::pool::{FACTOR, TagRow, hash};

/// What a tag has of one kind of pool. Sums of processors' tables wrap, as the kernel's do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Blocks allocated.
    pub allocs: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Bytes in use.
    pub bytes: u64,
}

/// A tag's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TagUsage {
    /// `Key` of its rows, with the protected bit.
    pub tag: u32,
    /// NonPagedAllocs, NonPagedFrees, NonPagedBytes.
    pub nonpaged: Usage,
    /// PagedAllocs, PagedFrees, PagedBytes.
    pub paged: Usage,
}

pub(crate) struct Tags {
    /// One for each processor; the first is the master.
    tables: Vec<u64>,
    slots: u64,
    row: u64,
    key: Place,
    /// Allocs, Frees, Bytes of nonpaged and of paged pool: offset and width.
    counters: [[(u64, usize); 3]; 2],
    sums: BTreeMap<u32, [Usage; 2]>,
}

impl Tags {
    pub(crate) fn open(
        builder: &Builder,
        processors: u32,
        rows: &[TagRow],
        overflow: &[TagRow],
    ) -> Result<Tags, IsfError> {
        let ty = "_POOL_TRACKER_TABLE";
        let counter = |name| -> Result<(u64, usize), IsfError> {
            let (offset, ty) = builder.isf.member(ty, name)?;
            Ok((offset, builder.isf.size_of(ty)? as usize))
        };
        let tables = builder.symbol("ExPoolTagTables")?;
        Ok(Tags {
            tables: (0..u64::from(processors))
                .map(|number| builder.pointer(tables + builder.width() * number))
                .collect(),
            slots: builder.variable("PoolTrackTableMask")? + 1,
            row: builder.isf.size(ty)?,
            key: Place::of(&builder.isf, ty, "Key")?,
            counters: [
                [counter("NonPagedAllocs")?, counter("NonPagedFrees")?, counter("NonPagedBytes")?],
                [counter("PagedAllocs")?, counter("PagedFrees")?, counter("PagedBytes")?],
            ],
            sums: sums(rows.iter().chain(overflow)),
        })
    }

    /// One allocation (`direction` 1) or free (-1) of so many bytes.
    pub(crate) fn charge(
        &mut self,
        memory: &mut Memory,
        processor: u32,
        tag: u32,
        kind: PoolKind,
        direction: i64,
        bytes: u64,
    ) {
        let slot = self.slot(memory, tag);
        let table = self.tables[processor as usize % self.tables.len()];
        let row = table + slot * self.row;
        // What found no place of its own is counted in the last row.
        let tag = if slot == self.slots { crate::kernel::pool::tag(b"Ovfl") } else { tag };
        // A processor's table gets the key with its first use of the tag; the master has it always.
        for table in [self.tables[0], table] {
            memory.write(table + slot * self.row + self.key.offset as u64, &tag.to_le_bytes());
        }
        let bytes = bytes.wrapping_mul(direction as u64);
        let place = self.counters[usize::from(kind.is_paged())];
        let counted = if direction > 0 { place[0] } else { place[1] };
        add(memory, row + counted.0, counted.1, 1);
        add(memory, row + place[2].0, place[2].1, bytes);

        let sum = &mut self.sums.entry(tag).or_default()[usize::from(kind.is_paged())];
        *(if direction > 0 { &mut sum.allocs } else { &mut sum.frees }) += 1;
        sum.bytes = sum.bytes.wrapping_add(bytes);
    }

    /// The tag's row, a free one, or the last, which is for all that find no place.
    fn slot(&self, memory: &Memory, tag: u32) -> u64 {
        let first = hash(memory.machine(), tag.into(), FACTOR, self.slots - 1) as u64;
        (0..self.slots)
            .map(|step| (first + step) & (self.slots - 1))
            .find(|slot| {
                let mut key = [0; 4];
                memory.read(self.tables[0] + slot * self.row + self.key.offset as u64, &mut key);
                matches!(u32::from_le_bytes(key), key if key == 0 || key == tag)
            })
            .unwrap_or(self.slots)
    }

    /// Adds to a tag's counters (allocations, frees, bytes) in the master table what is in no other book.
    pub(crate) fn spoil(&self, memory: &mut Memory, tag: u32, counter: usize, change: u64) {
        let row = self.tables[0] + self.slot(memory, tag) * self.row;
        for (offset, width) in self.counters.map(|pool| pool[counter]) {
            add(memory, row + offset, width, change);
        }
    }

    pub(crate) fn sums(&self) -> Vec<TagUsage> {
        usages(&self.sums)
    }
}

/// The sums of all rows of each tag.
pub(crate) fn sums<'r>(rows: impl Iterator<Item = &'r TagRow>) -> BTreeMap<u32, [Usage; 2]> {
    let mut sums: BTreeMap<u32, [Usage; 2]> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(row.tag).or_default();
        for (sum, usage) in sum.iter_mut().zip([row.nonpaged, row.paged]) {
            sum.allocs += usage.allocs;
            sum.frees += usage.frees;
            sum.bytes += usage.bytes;
        }
    }
    sums
}

pub(crate) fn usages(sums: &BTreeMap<u32, [Usage; 2]>) -> Vec<TagUsage> {
    sums.iter().map(|(&tag, &[nonpaged, paged])| TagUsage { tag, nonpaged, paged }).collect()
}
