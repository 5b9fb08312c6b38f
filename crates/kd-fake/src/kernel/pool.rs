//! Pool accounting: the tag tables and the table of big pages.

use crate::isf::IsfError;
use crate::kernel::books::{EntryLayout, PoolKind, Usage};
use crate::kernel::builder::Builder;
use crate::machine::Machine;

/// A row of the tag tables, summed over the processors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TagRow {
    pub(crate) tag: u32,
    pub(crate) nonpaged: Usage,
    pub(crate) paged: Usage,
}

/// Where the tag tables lie.
pub(crate) struct TagTables<'a> {
    /// One for each processor; the first is the master.
    pub(crate) tables: &'a [u64],
    /// Rows of each, a power of two; one more follows for what finds no place.
    pub(crate) slots: u64,
    pub(crate) expansion: u64,
}

/// A slot of the big-page table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BigPage {
    pub(crate) address: u64,
    pub(crate) tag: u32,
    pub(crate) kind: PoolKind,
    pub(crate) bytes: u64,
    /// A slot that was freed: it keeps its content and gets bit 0 of its address.
    pub(crate) freed: bool,
}

/// The four characters of a tag.
pub(crate) const fn tag(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

/// What tags are multiplied with.
pub(crate) const FACTOR: u64 = 0x9e5f;

/// Where the search for a tag or a page number starts, in a table of `mask + 1` slots. The product is as wide as a
/// pointer.
pub(crate) fn hash(machine: Machine, value: u64, factor: u64, mask: u64) -> usize {
    let product = value.wrapping_mul(factor);
    let product = if machine.is_x86() { product & 0xffff_ffff } else { product };
    ((product ^ product >> 32) & mask) as usize
}

/// The slots of a big-page table for these pages, a power of two and no fewer than `least`: the table doubles when blocks
/// in use fill three quarters of it. Entries of freed blocks that find no room then are gone: the kernel gives their slots
/// to others.
pub(crate) fn big_page_slots(least: u64, pages: &mut Vec<BigPage>) -> u64 {
    let live = pages.iter().filter(|page| !page.freed).count() as u64;
    let mut slots = least;
    while live > slots / 4 * 3 {
        slots *= 2;
    }
    // A search ends at a slot that was never used.
    let mut room = slots / 8 * 7 - live;
    pages.retain(|page| {
        let keep = !page.freed || room > 0;
        room -= u64::from(keep && page.freed);
        keep
    });
    slots
}

impl Builder {
    /// Writes the tag tables and the expansion table. `part` says what of a row is in a processor's table; a row that
    /// the processor does not have yet stays empty. `last` is the row for what found no place.
    pub(crate) fn pool_tags(
        &mut self,
        place: &TagTables<'_>,
        rows: &[TagRow],
        last: Option<&TagRow>,
        overflow: &[TagRow],
        mut part: impl FnMut(&TagRow, u64) -> Option<TagRow>,
    ) -> Result<(), IsfError> {
        let mask = place.slots - 1;
        let places = self.tag_places(place.slots, rows, last);
        for (processor, &table) in (0..).zip(place.tables) {
            let mut bytes = Vec::new();
            for place in &places {
                let share = place.and_then(|row| part(row, processor));
                bytes.extend(self.tag_row(share.as_ref())?);
            }
            self.memory.put(table, &bytes);
            let slot = self.symbol("ExPoolTagTables")? + self.width() * processor;
            self.put_pointer(slot, table);
        }
        let mut bytes = Vec::new();
        for row in overflow {
            bytes.extend(self.tag_row(Some(row))?);
        }
        self.memory.put(place.expansion, &bytes);
        self.set_pointer("PoolTrackTable", place.tables[0])?;
        self.set_pointer("PoolTrackTableSize", place.slots + 1)?;
        self.set_pointer("PoolTrackTableMask", mask)?;
        self.set_pointer("PoolTrackTableExpansion", if overflow.is_empty() { 0 } else { place.expansion })?;
        self.set_pointer("PoolTrackTableExpansionSize", overflow.len() as u64)
    }

    /// Which row is in which place of a table: where the kernel's hash says, and `last` behind them all.
    pub(crate) fn tag_places<'r>(
        &self,
        slots: u64,
        rows: &'r [TagRow],
        last: Option<&'r TagRow>,
    ) -> Vec<Option<&'r TagRow>> {
        let mask = slots - 1;
        let mut places = vec![None; slots as usize];
        for row in rows {
            let mut slot = hash(self.isf.machine, row.tag.into(), FACTOR, mask);
            while places[slot].is_some() {
                slot = (slot + 1) & mask as usize;
            }
            places[slot] = Some(row);
        }
        places.push(last);
        places
    }

    pub(crate) fn tag_row(&self, row: Option<&TagRow>) -> Result<Vec<u8>, IsfError> {
        let mut object = self.object("_POOL_TRACKER_TABLE")?;
        if let Some(row) = row {
            let values = [
                ("Key", u64::from(row.tag)),
                ("NonPagedAllocs", row.nonpaged.allocs),
                ("NonPagedFrees", row.nonpaged.frees),
                ("NonPagedBytes", row.nonpaged.bytes),
                ("PagedAllocs", row.paged.allocs),
                ("PagedFrees", row.paged.frees),
                ("PagedBytes", row.paged.bytes),
            ];
            self.fields(&mut object, &values)?;
        }
        Ok(object.into_bytes())
    }

    /// Writes the big-page table of `slots` entries (a power of two) at `table`; each page is put where the kernel's
    /// hash says.
    pub(crate) fn big_pages(&mut self, table: u64, slots: u64, pages: &[BigPage]) -> Result<(), IsfError> {
        let live = self.big_page_table(table, slots, pages)?;
        self.set_pointer("PoolBigPageTable", table)?;
        self.set_pointer("PoolBigPageTableSize", slots)?;
        self.set_u32("ExpPoolBigEntriesInUse", live as u32)
    }

    /// The table alone, of more slots than there are pages; returns how many of the pages are in use.
    pub(crate) fn big_page_table(&mut self, table: u64, slots: u64, pages: &[BigPage]) -> Result<usize, IsfError> {
        let size = self.isf.size("_POOL_TRACKER_BIG_PAGES")?;
        let layout = EntryLayout::of(self)?;
        layout.clear(&mut self.memory, table, slots);
        let mut used = vec![false; slots as usize];
        for page in pages {
            let mut slot = layout.slot(self.isf.machine, page.address, slots);
            while used[slot] {
                slot = (slot + 1) & (slots as usize - 1);
            }
            used[slot] = true;
            self.memory.write(table + slot as u64 * size, &layout.write(page));
        }
        Ok(pages.iter().filter(|page| !page.freed).count())
    }
}

/// A processor's part of the sum. A block may be freed on another processor than the one that allocated it, so
/// every second processor frees more than it allocates: its bytes are below zero, and wrap.
pub(crate) fn share(total: Usage, processor: u64, count: u64) -> Usage {
    if count == 1 {
        return total;
    }
    let mut first = total;
    let mut others = Usage::default();
    for other in 1..count {
        let allocs = total.allocs / (2 * count);
        let frees = total.frees / count;
        let bytes = match other % 2 {
            1 => (total.bytes / (3 * count)).wrapping_neg(),
            _ => total.bytes / (3 * count),
        };
        first.allocs -= allocs;
        first.frees -= frees;
        first.bytes = first.bytes.wrapping_sub(bytes);
        if other == processor {
            others = Usage { allocs, frees, bytes };
        }
    }
    if processor == 0 { first } else { others }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64, freed: bool) -> BigPage {
        BigPage { address: number << 12, tag: tag(b"Leak"), kind: PoolKind::Paged, bytes: 0x1000, freed }
    }

    /// Else a page without a slot would be looked for without end.
    #[test]
    fn a_table_has_room_for_its_pages() {
        let mut few: Vec<BigPage> = (1..=7).map(|number| page(number, number > 3)).collect();
        assert_eq!((big_page_slots(8, &mut few), few.len()), (8, 7));
        let mut many: Vec<BigPage> = (1..=40).map(|number| page(number, number % 2 == 0)).collect();
        assert_eq!(big_page_slots(8, &mut many), 32);
        let live = many.iter().filter(|page| !page.freed).count();
        assert_eq!((live, many.len()), (20, 28));
    }
}
