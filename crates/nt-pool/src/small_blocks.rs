//! Blocks smaller than a page, wherever this version of Windows keeps them, and the blocks of special pool.
//!
//! [`Plan::read`] learns from page tables or from the heap's own books where blocks can be, which is cheap and says what
//! the rest will cost; [`Plan::find`] reads that and decodes it. `allocated` and `free` are what the pool's books say. A
//! block that its owner has freed and that waits in one of the pool's own lists (lookaside, deferred free) is told
//! apart from both: [`BlockState::Cached`].

use std::ops::Range;

use nt_memory::{Fault, Memory, PAGE_SIZE, Search};

use crate::big_pages::{self, BigPage, BigPages};
use crate::checks::{Book, Check};
use crate::classic_pool;
use crate::lists::{Head, note};
use crate::page_tables;
use crate::pool_header::Headers;
use crate::readings::Readings;
use crate::segment_heap::{self, Heap, Heaps};
use crate::tag_search::{Mapping, Scout, stretches};
use crate::walk::{Formats, Hunt, Large, Walk};
use crate::{Kernel, Missing, Notes, PoolError, PoolKind, Tag, pool_page};

/// A block below a page, as its header and whatever holds it tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmallBlock {
    /// Where the pool header lies.
    pub header: u64,
    /// What the allocation call returned.
    pub address: u64,
    /// What the caller may use.
    pub size: u64,
    /// With the header.
    pub block_size: u64,
    /// Of the block before, as a header of the classic pool has it.
    pub previous_size: u64,
    /// A free block keeps its last owner's.
    pub tag: Tag,
    /// The top bit of its stored tag is set: the tag must be given again to free it.
    pub protected: bool,
    /// Paged or nonpaged, as whatever holds it says.
    pub pool: PoolKind,
    /// In use, free, or kept for the next.
    pub state: BlockState,
    /// What holds it.
    pub kind: BlockKind,
}

/// Whether a small block is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// In its owner's hands.
    Allocated,
    /// Given back.
    Free,
    /// Freed by its owner and kept for the next allocation of its size; the pool's pages still call it allocated.
    Cached,
}

/// What holds a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// A page of the classic pool.
    Page,
    /// A VS subsegment of a segment heap.
    Vs,
    /// An LFH subsegment of a segment heap.
    Lfh,
    /// A page of special pool.
    Special,
}

/// Which pools are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    /// Nonpaged pool.
    pub nonpaged: bool,
    /// Paged pool.
    pub paged: bool,
    /// Special pool, where each block has pages for itself.
    pub special: bool,
}

impl Kinds {
    /// Everything but sessions.
    pub const ALL: Kinds = Kinds { nonpaged: true, paged: true, special: true };
    /// Nothing; to be built on.
    pub const NONE: Kinds = Kinds { nonpaged: false, paged: false, special: false };
}

/// Where a walk ends at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of pool that are read; a request for the target's own search counts as a reply full of them.
    pub bytes: u64,
    /// Blocks that are kept.
    pub blocks: usize,
    /// Pool below this address is passed over: where an earlier walk stopped.
    pub from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: u64::MAX, blocks: 1 << 24, from: 0 }
    }
}

/// What a walk over small blocks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// In the order of their headers' addresses.
    pub blocks: Vec<SmallBlock>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
    /// Where the walk was stopped by a limit or by the user; a later one can go on from there.
    pub stopped: Option<u64>,
    /// Bytes of pool that were read, counted as [`Limits::bytes`] are.
    pub read: u64,
    /// What was counted twice on the way, and whether it agrees.
    pub checks: Vec<Check>,
    /// Which of two possible readings of a structure were taken.
    pub readings: Readings,
}

impl Blocks {
    /// All of the pools that were asked for has been read and understood.
    pub fn is_complete(&self) -> bool {
        self.notes.is_complete()
    }
}

/// What a walk costs on a link: requests, and the bytes of memory that come over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests to the target.
    pub requests: u64,
    /// Bytes that come for them.
    pub bytes: u64,
}

impl Cost {
    fn read(&mut self, memory: &dyn Memory, range: &Range<u64>) {
        let bytes = memory.unread(range.start, range.end - range.start);
        self.requests += requests(memory, bytes);
        self.bytes += bytes;
    }
}

/// Requests that reading so many bytes takes.
pub(crate) fn requests(memory: &dyn Memory, bytes: u64) -> u64 {
    bytes.div_ceil((memory.reply_size() as u64).max(1))
}

/// The blocks of the kinds asked for whose tag is `wanted`, free ones included.
pub fn find(
    kernel: &Kernel<'_>,
    wanted: &dyn Fn(Tag) -> bool,
    kinds: Kinds,
    limits: Limits,
) -> Result<Blocks, PoolError> {
    let plan = Plan::read(kernel, kinds)?;
    let mut notes = Notes::default();
    let large = match big_pages::read(kernel, &|_| true) {
        Ok(pages) => pages,
        Err(error) => {
            note(&mut notes, "what belongs to large allocations is not known", error)?;
            BigPages::new(0..0)
        }
    };
    let mut found = plan.find(kernel, wanted, &large.blocks, limits)?;
    notes.extend(large.notes);
    found.notes.prepend(notes);
    found.checks.extend(large.checks);
    found.readings.large_hash = large.hash;
    Ok(found)
}

/// As [`find`], of one tag: the target searches, where it can.
pub fn find_tag(kernel: &Kernel<'_>, tag: Tag, kinds: Kinds, limits: Limits) -> Result<Blocks, PoolError> {
    Plan::read(kernel, kinds)?.search(kernel, tag, kernel.memory.reply_size() as u64, limits)
}

/// Whether the target searches its own memory when it is asked to; one request.
pub fn is_searchable(kernel: &Kernel<'_>) -> Result<bool, Fault> {
    Ok(kernel.memory.search(kernel.base, 4, b"PE\0\0")? != Search::Unsupported)
}

/// The process that a block is charged to, as its header says.
pub fn process(kernel: &Kernel<'_>, block: &SmallBlock) -> Result<Option<u64>, PoolError> {
    if block.kind == BlockKind::Special {
        return Ok(None);
    }
    let headers = Headers::new(kernel)?;
    // Where the header has no room for it, the process is the block's last pointer.
    let length = if headers.has_process() { headers.unit } else { block.block_size.min(PAGE_SIZE) };
    let bytes = page_tables::read(kernel, block.header, length as usize)?;
    let Some(header) = headers.at(&bytes.bytes, 0).filter(|_| bytes.is_complete()) else { return Ok(None) };
    Ok(pool_page::block(kernel, &headers, block.header, header, &bytes.bytes, &mut None)?.process)
}

/// A run of pages that holds blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) address: u64,
    pub(crate) length: u64,
    /// The unit in which the length is counted.
    pub(crate) unit: u64,
    pub(crate) pool: PoolKind,
    pub(crate) content: Content,
}

impl Area {
    pub(crate) fn end(&self) -> u64 {
        self.address.wrapping_add(self.length)
    }

    /// Bytes from the start in which a VS subsegment's chunks end as a rule: its run of pages has one unit more, which
    /// may not be there, or hold anything.
    pub(crate) fn chunks(&self) -> u64 {
        self.length.checked_sub(self.unit).filter(|length| *length > 0).unwrap_or(self.length)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Vs,
    Lfh,
    /// One allocation without a header; the table of large allocations has it.
    Range,
    /// One allocation of special pool.
    SpecialRange,
    /// Pages of the classic pool.
    Pages,
    /// Pages of special pool, a block in each.
    SpecialPages,
    /// The same among pages of other things.
    MixedPages,
}

/// Where blocks can be.
#[derive(Debug)]
pub struct Plan {
    heaps: Heaps,
    /// The kinds whose places are known; nothing of a session's.
    kinds: Kinds,
    /// Whether the pool is a segment heap.
    pub segment_heap: bool,
    /// What of it could not be learned.
    pub notes: Notes,
}

/// How many bytes are read at once; a classic pool's pages can follow each other for gigabytes.
pub(crate) const PIECE: u64 = 1 << 20;

/// Chunks of this size and more can be large allocations: those have at least a page (measured: segment-heap-measured 3).
pub(crate) const LARGE_CHUNK: u64 = PAGE_SIZE;

/// Forms of a tag that the target is asked about: with and without the protected bit.
const KEYS: u64 = 2;

impl Plan {
    /// Looks for the places only: reads no block.
    pub fn read(kernel: &Kernel<'_>, kinds: Kinds) -> Result<Plan, PoolError> {
        Self::within(kernel, kinds, u64::MAX)
    }

    /// As [`Plan::read`]; of segment heaps with more segments than about so many requests go for, some of each heap.
    pub(crate) fn within(kernel: &Kernel<'_>, kinds: Kinds, requests: u64) -> Result<Plan, PoolError> {
        let segment_heap = segment_heap::is_segment_heap(kernel)?;
        let mut heaps = match segment_heap {
            true => segment_heap::read(kernel, kinds, requests)?,
            false => classic_pool::read(kernel, kinds)?,
        };
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, kinds, segment_heap, notes })
    }

    /// The places of these heaps alone.
    pub(crate) fn of_heaps(kernel: &Kernel<'_>, heaps: &[Heap]) -> Result<Plan, PoolError> {
        let mut heaps = segment_heap::read_these(kernel, heaps)?;
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, kinds: Kinds::NONE, segment_heap: true, notes })
    }

    /// The resident pages of one range, and its lists of freed blocks.
    pub(crate) fn of_pages(kernel: &Kernel<'_>, range: Range<u64>, resting: Vec<Head>) -> Result<Plan, PoolError> {
        let heaps = classic_pool::read_range(kernel, range, PoolKind::PagedSession)?;
        let mut heaps = Heaps { resting, ..heaps };
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, kinds: Kinds::NONE, segment_heap: false, notes })
    }

    pub(crate) fn heaps(&self) -> &Heaps {
        &self.heaps
    }

    /// Bytes that [`Plan::find`] will read from `from` on.
    pub fn bytes(&self, from: u64) -> u64 {
        self.walked().map(|area| area.rest(from)).map(|rest| rest.end - rest.start).sum()
    }

    /// What [`Plan::find`] costs from `from` on: what `memory` keeps costs nothing.
    pub fn cost(&self, memory: &dyn Memory, from: u64) -> Cost {
        let mut cost = Cost::default();
        self.walked().for_each(|area| cost.read(memory, &area.rest(from)));
        cost
    }

    /// What [`Plan::search`] costs if it comes upon a tag in so many places, and no more than lists of freed blocks and
    /// the table of large allocations beside.
    pub fn search_cost(&self, memory: &dyn Memory, from: u64, hits: u64) -> Cost {
        let reply = (memory.reply_size() as u64).max(1);
        let (mut cost, mut most) = (Cost::default(), Cost::default());
        let (mut areas, mut heap) = (0, 0);
        for area in self.walked().filter(|area| area.end() > from) {
            let rest = area.rest(from);
            most.read(memory, &rest);
            areas += 1;
            heap += if matches!(area.content, Content::Vs | Content::Lfh) { area.length } else { 0 };
            for (part, mapped) in Mapping::But(&self.heaps.transition).of(&rest) {
                let length = part.end - part.start;
                match mapped && length.div_ceil(reply) > KEYS {
                    true => cost.requests += KEYS * length.div_ceil(PIECE),
                    false => cost.read(memory, &part),
                }
            }
        }
        if self.segment_heap {
            // Entries of page tables, and the tables above them.
            for stretch in stretches(self.walked().filter(|area| area.end() > from)) {
                let tables = (stretch.end - stretch.start) / PAGE_SIZE * 8;
                cost.requests += 1 + tables.div_ceil(reply);
                cost.bytes += tables;
            }
        }
        // Of a heap's area about half is read to decide on a block, of other pool its page.
        let each = if heap > 0 { (heap / areas.max(1) / 2).max(PAGE_SIZE) } else { PAGE_SIZE };
        // However many they are, nothing is read twice.
        let reads = hits.saturating_mul(each.div_ceil(reply)).min(most.requests);
        cost.requests = cost.requests.saturating_add(hits).saturating_add(reads);
        cost.bytes = cost.bytes.saturating_add(hits.saturating_mul(each)).min(most.bytes.max(cost.bytes));
        cost
    }

    /// Bytes of the places, by what they hold: what blocks and the room between them take together. Pages of the
    /// classic pool that belong to `large` allocations are not counted.
    pub fn held(&self, large: &[BigPage]) -> Vec<(BlockKind, PoolKind, u64)> {
        let taken = in_use(large);
        let mut held: Vec<(BlockKind, PoolKind, u64)> = Vec::new();
        for area in self.walked() {
            let (kind, bytes) = match area.content {
                Content::Vs => (BlockKind::Vs, area.length),
                Content::Lfh => (BlockKind::Lfh, area.length),
                Content::Pages => {
                    let first = taken.partition_point(|range| range.end <= area.address);
                    let inside = taken[first..].iter().take_while(|range| range.start < area.end());
                    let inside = inside.map(|range| {
                        let end = range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end);
                        end.min(area.end()).saturating_sub(range.start.max(area.address))
                    });
                    (BlockKind::Page, area.length.saturating_sub(inside.sum()))
                }
                Content::SpecialRange => (BlockKind::Special, PAGE_SIZE.min(area.length)),
                Content::SpecialPages => (BlockKind::Special, area.length),
                // Other things lie there too.
                Content::MixedPages | Content::Range => continue,
            };
            match held.iter_mut().find(|(known, pool, _)| (*known, *pool) == (kind, area.pool)) {
                Some((.., sum)) => *sum = sum.saturating_add(bytes),
                None => held.push((kind, area.pool, bytes)),
            }
        }
        held
    }

    /// Where the places begin and end, by pool, in ascending order: what a search says that it searches.
    pub fn ranges(&self) -> Vec<(PoolKind, Range<u64>)> {
        let mut ranges: Vec<(PoolKind, Range<u64>)> = Vec::new();
        for area in self.walked() {
            match ranges.iter_mut().find(|(pool, _)| pool.is_paged() == area.pool.is_paged()) {
                Some((_, range)) => *range = range.start.min(area.address)..range.end.max(area.end()),
                None => ranges.push((area.pool, area.address..area.end())),
            }
        }
        ranges
    }

    pub(crate) fn walked(&self) -> impl Iterator<Item = &Area> {
        self.heaps.areas.iter().filter(|area| area.content != Content::Range)
    }

    /// Reads the places and decodes them. `large` is the table of large allocations, free ones included: what lies in
    /// one has no headers.
    pub fn find(
        &self,
        kernel: &Kernel<'_>,
        wanted: &dyn Fn(Tag) -> bool,
        large: &[BigPage],
        limits: Limits,
    ) -> Result<Blocks, PoolError> {
        let formats = Formats::new(kernel, self.heaps.keys)?;
        let mut walk = Walk::new(kernel, &formats, wanted, limits);
        walk.large = Large::Known(in_use(large));
        let mut found = walk.run(self.walked(), &self.heaps)?;
        if limits.from == 0 {
            self.large_in_heaps(large, &mut found);
        }
        found.notes.prepend(self.notes.clone());
        Ok(found)
    }

    /// Whether every large allocation that a segment has room for lies in a heap that is known.
    fn large_in_heaps(&self, large: &[BigPage], found: &mut Blocks) {
        let unknown = |page: &BigPage| self.heaps.unknown.iter().any(|segment| segment.contains(&page.address));
        let judged = |page: &&BigPage| {
            let kind = if page.kind.is_paged() { self.kinds.paged } else { self.kinds.nonpaged };
            kind && !page.free && !page.kind.is_session() && page.size <= self.heaps.largest && !unknown(page)
        };
        let in_heap = |page: &BigPage| {
            let index = self.heaps.areas.partition_point(|area| area.end() <= page.address);
            self.heaps.areas.get(index).is_some_and(|area| area.address <= page.address)
        };
        let (mut count, mut strays) = (0, Vec::new());
        for page in large.iter().filter(judged) {
            count += 1;
            strays.extend((!in_heap(page)).then_some(page));
        }
        let Some(first) = strays.first() else {
            found.checks.extend((count > 0).then(|| Check::new(Book::LargeInHeaps, count, count, 0)));
            return;
        };
        let lost = strays.len() as u64;
        found.checks.push(Check::new(Book::LargeInHeaps, count, count - lost, first.address));
        let bytes: u64 = strays.iter().map(|page| page.size).sum();
        let what = format!(
            "{lost} large allocations in use ({bytes:#x} bytes, the first at {:016x}) lie in no heap that nt!ExPoolState \
             leads to: there are pools of somebody's own (private pools), whose small blocks are missing",
            first.address
        );
        found.notes.missing(Missing::from(what).at(first.address).count(lost));
    }

    /// As [`Plan::find`], of one tag: lets the target look for its bytes, where it can, and reads only what is needed to
    /// decide on what it finds. `reply` is what one reply of the link carries. The table of large allocations is read
    /// when a place may belong to one.
    pub fn search(&self, kernel: &Kernel<'_>, tag: Tag, reply: u64, limits: Limits) -> Result<Blocks, PoolError> {
        let formats = Formats::new(kernel, self.heaps.keys)?;
        let wanted = |other: Tag| other.key() == tag.key();
        let mut walk = Walk::new(kernel, &formats, &wanted, limits);
        if is_searchable(kernel)? {
            let mapping = match self.segment_heap {
                true => Mapping::asked(kernel, self.walked())?,
                false => Some(Mapping::But(&self.heaps.transition)),
            };
            let scout = Scout::new(kernel.memory, &formats.headers, tag, reply);
            walk.hunt = mapping.map(|mapping| Hunt { scout, mapping, reply });
        }
        let mut found = walk.run(self.walked(), &self.heaps)?;
        found.notes.prepend(self.notes.clone());
        Ok(found)
    }
}

/// Where large allocations in use lie, by address.
pub(crate) fn in_use(large: &[BigPage]) -> Vec<Range<u64>> {
    let large = large.iter().filter(|page| !page.free);
    let mut large: Vec<_> = large.map(|page| page.address..page.address.saturating_add(page.size)).collect();
    large.sort_by_key(|range| range.start);
    large
}

impl Area {
    /// What is read of it by a walk that begins at `from`: pages one by one, everything else as a whole.
    fn rest(&self, from: u64) -> Range<u64> {
        let end = self.address.saturating_add(self.cost());
        let start = match self.content {
            _ if self.end() <= from => end,
            Content::Pages | Content::SpecialPages | Content::MixedPages => from & !(PAGE_SIZE - 1),
            Content::Vs | Content::Lfh | Content::Range | Content::SpecialRange => self.address,
        };
        start.clamp(self.address, end)..end
    }

    /// Bytes that are read of it.
    pub(crate) fn cost(&self) -> u64 {
        match self.content {
            // The header is in the first page, and so is the block, or it has an entry in the table.
            Content::SpecialRange => PAGE_SIZE.min(self.length),
            Content::Vs => self.chunks(),
            _ => self.length,
        }
    }
}
