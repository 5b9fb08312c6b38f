//! Blocks smaller than a page, wherever this version of Windows keeps them, and the blocks of special pool.
//!
//! [`Plan::read`] learns from page tables or from the heap's own books where blocks can be, which is cheap and says what
//! the rest will cost; [`Plan::find`] reads that and decodes it. `allocated` and `free` are what the pool's books say. A
//! block that its owner has freed and that waits in one of the pool's own lists (lookaside, deferred free) is told
//! apart from both: [`BlockState::Cached`].

use std::collections::HashSet;
use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Search, Sparse};

use crate::big_pages::{self, BigPage};
use crate::classic_pool;
use crate::kernel::Variable;
use crate::lfh_subsegment::LfhFormat;
use crate::lists::note;
use crate::page_tables::{self, add};
use crate::pool_header::{Break, Header, Headers};
use crate::segment_heap::{self, Heap, Heaps, Keys};
use crate::tag_search::{Mapping, Scout, stretches};
use crate::vs_subsegment::{Chunk, VsFormat};
use crate::{Kernel, Lack, Missing, Notes, PoolError, PoolKind, Tag, pool_page, special_page};

/// One block.
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
    pub protected: bool,
    pub pool: PoolKind,
    pub state: BlockState,
    pub kind: BlockKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    Allocated,
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
    pub nonpaged: bool,
    pub paged: bool,
    pub special: bool,
}

impl Kinds {
    pub const ALL: Kinds = Kinds { nonpaged: true, paged: true, special: true };
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

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// In the order of their headers' addresses.
    pub blocks: Vec<SmallBlock>,
    pub notes: Notes,
    /// Where the walk was stopped by a limit or by the user; a later one can go on from there.
    pub stopped: Option<u64>,
    /// Bytes of pool that were read, counted as [`Limits::bytes`] are.
    pub read: u64,
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
    pub requests: u64,
    pub bytes: u64,
}

impl Cost {
    fn read(&mut self, bytes: u64, reply: u64) {
        self.requests += bytes.div_ceil(reply);
        self.bytes += bytes;
    }
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
        Ok(pages) => {
            notes.extend(pages.notes);
            pages.blocks
        }
        Err(error) => {
            note(&mut notes, "what belongs to large allocations is not known", error)?;
            Vec::new()
        }
    };
    let mut found = plan.find(kernel, wanted, &large, limits)?;
    found.notes.prepend(notes);
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
    pub(crate) pool: PoolKind,
    pub(crate) content: Content,
}

impl Area {
    pub(crate) fn end(&self) -> u64 {
        self.address.wrapping_add(self.length)
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
    /// Whether the pool is a segment heap.
    pub segment_heap: bool,
    /// What of it could not be learned.
    pub notes: Notes,
}

/// How many bytes are read at once; a classic pool's pages can follow each other for gigabytes.
const PIECE: u64 = 1 << 20;

/// Chunks of this size and more can be large allocations (facts 5.5).
pub(crate) const LARGE_CHUNK: u64 = 0xff0;

/// Forms of a tag that the target is asked about: with and without the protected bit.
const KEYS: u64 = 2;

/// Damaged places that are named; more are only counted.
const NAMED: usize = 16;

impl Plan {
    /// Looks for the places only: reads no block.
    pub fn read(kernel: &Kernel<'_>, kinds: Kinds) -> Result<Plan, PoolError> {
        let segment_heap = segment_heap::is_segment_heap(kernel)?;
        let mut heaps = match segment_heap {
            true => segment_heap::read(kernel, kinds)?,
            false => classic_pool::read(kernel, kinds)?,
        };
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, segment_heap, notes })
    }

    /// The places of these heaps alone.
    pub(crate) fn of_heaps(kernel: &Kernel<'_>, heaps: &[Heap]) -> Result<Plan, PoolError> {
        let mut heaps = segment_heap::read_these(kernel, heaps)?;
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, segment_heap: true, notes })
    }

    /// The resident pages of one range, and the first elements of its lists of freed blocks.
    pub(crate) fn of_pages(kernel: &Kernel<'_>, range: Range<u64>, resting: Vec<u64>) -> Result<Plan, PoolError> {
        let heaps = classic_pool::read_range(kernel, range, PoolKind::PagedSession)?;
        let mut heaps = Heaps { resting, ..heaps };
        let notes = std::mem::take(&mut heaps.notes);
        Ok(Plan { heaps, segment_heap: false, notes })
    }

    /// Bytes that [`Plan::find`] will read from `from` on.
    pub fn bytes(&self, from: u64) -> u64 {
        self.walked().map(|area| area.rest(from)).map(|rest| rest.end - rest.start).sum()
    }

    /// What [`Plan::find`] costs from `from` on where a reply carries so many bytes.
    pub fn cost(&self, from: u64, reply: u64) -> Cost {
        let mut cost = Cost::default();
        self.walked().map(|area| area.rest(from)).for_each(|rest| cost.read(rest.end - rest.start, reply.max(1)));
        cost
    }

    /// What [`Plan::search`] costs if it comes upon a tag in so many places, and no more than lists of freed blocks and
    /// the table of large allocations beside.
    pub fn search_cost(&self, from: u64, reply: u64, hits: u64) -> Cost {
        let reply = reply.max(1);
        let (mut cost, mut most) = (Cost::default(), Cost::default());
        let (mut areas, mut heap) = (0, 0);
        for area in self.walked().filter(|area| area.end() > from) {
            let rest = area.rest(from);
            most.read(rest.end - rest.start, reply);
            areas += 1;
            heap += if matches!(area.content, Content::Vs | Content::Lfh) { area.length } else { 0 };
            for (part, mapped) in Mapping::But(&self.heaps.transition).of(&rest) {
                let length = part.end - part.start;
                match mapped && length.div_ceil(reply) > KEYS {
                    true => cost.requests += KEYS * length.div_ceil(PIECE),
                    false => cost.read(length, reply),
                }
            }
        }
        if self.segment_heap {
            // Entries of page tables, and the tables above them.
            for stretch in stretches(self.walked().filter(|area| area.end() > from)) {
                cost.read((stretch.end - stretch.start) / PAGE_SIZE * 8, reply);
                cost.requests += 1;
            }
        }
        // Of a heap's area about half is read to decide on a block, of other pool its page.
        let each = if heap > 0 { (heap / areas.max(1) / 2).max(PAGE_SIZE) } else { PAGE_SIZE };
        cost.requests = cost.requests.saturating_add(hits.saturating_mul(1 + each.div_ceil(reply)));
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

    fn walked(&self) -> impl Iterator<Item = &Area> {
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
        walk.large = Some(in_use(large));
        self.walk(walk)
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
        self.walk(walk)
    }

    fn walk(&self, mut walk: Walk<'_>) -> Result<Blocks, PoolError> {
        let (kernel, limits) = (walk.kernel, walk.limits);
        let mut stopped = None;
        for area in self.walked().filter(|area| area.end() > limits.from) {
            match walk.area(area) {
                Ok(None) => {}
                Ok(at) => {
                    stopped = at;
                    break;
                }
                Err(Fault::Cancelled) => {
                    stopped = Some(walk.reached.max(area.address));
                    walk.notes
                        .missing(Missing::because(Lack::Stopped, "interrupted").at(walk.reached.max(area.address)));
                    break;
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        walk.out(&self.heaps.out, stopped)?;
        let follows = walk.hunt.is_none() || walk.may_rest()?;
        let Walk { mut blocks, headless, moved, mut notes, mut damaged, read, .. } = walk;
        let resting = match segment_heap::resting(kernel, if follows { &self.heaps.resting } else { &[] }, &mut notes) {
            Ok(resting) => resting,
            Err(Fault::Cancelled) => {
                notes.missing("lists of freed blocks were not followed; such blocks look allocated");
                HashSet::new()
            }
            Err(fault) => return Err(fault.into()),
        };
        mark(&mut blocks, &resting, kernel);
        let chunk_header = 2 * u64::from(kernel.pointer_size);
        let rests = |chunk: u64| [chunk, chunk.wrapping_add(chunk_header)].iter().any(|at| resting.contains(at));
        for (index, _) in moved.iter().filter(|(_, chunk)| rests(*chunk)) {
            blocks[*index].state = BlockState::Cached;
        }
        for at in headless.into_iter().filter(|at| !rests(*at)) {
            damaged.add(|| {
                format!("the VS chunk at {at:016x} is allocated, but its pool header is unreadable or damaged")
            });
        }
        notes.extend(damaged.notes());
        blocks.sort_by_key(|block| block.header);
        notes.prepend(self.notes.clone());
        Ok(Blocks { blocks, notes, stopped, read })
    }
}

/// Where large allocations in use lie, by address.
fn in_use(large: &[BigPage]) -> Vec<Range<u64>> {
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
    fn cost(&self) -> u64 {
        match self.content {
            // The header is in the first page, and so is the block, or it has an entry in the table.
            Content::SpecialRange => PAGE_SIZE.min(self.length),
            _ => self.length,
        }
    }
}

/// Takes blocks that wait in lists out of those in use.
fn mark(blocks: &mut [SmallBlock], resting: &HashSet<u64>, kernel: &Kernel<'_>) {
    if resting.is_empty() {
        return;
    }
    // A list's links lie in the block, in its pool header, or in the header of its chunk.
    let chunk_header = 2 * u64::from(kernel.pointer_size);
    for block in blocks.iter_mut().filter(|block| block.state == BlockState::Allocated) {
        let places = [block.address, block.header, block.header.wrapping_sub(chunk_header)];
        let places = if block.kind == BlockKind::Vs { &places[..] } else { &places[..2] };
        if places.iter().any(|place| resting.contains(place)) {
            block.state = BlockState::Cached;
        }
    }
}

/// Places that do not hold what they should.
#[derive(Default)]
struct Damaged {
    named: Vec<String>,
    more: usize,
}

impl Damaged {
    fn add(&mut self, what: impl FnOnce() -> String) {
        match self.named.len() < NAMED {
            true => self.named.push(what()),
            false => self.more += 1,
        }
    }

    fn notes(self) -> impl Iterator<Item = Missing> {
        let more = (self.more > 0).then(|| format!("{} more places are damaged or unreadable", self.more));
        self.named.into_iter().chain(more).map(|what| Missing::because(Lack::Damaged, what))
    }
}

/// How this kernel's blocks are laid out; without the heap's keys some cannot be decoded.
pub(crate) struct Formats {
    pub(crate) headers: Headers,
    pub(crate) vs: Option<VsFormat>,
    pub(crate) lfh: Option<LfhFormat>,
}

impl Formats {
    pub(crate) fn new(kernel: &Kernel<'_>, keys: Keys) -> Result<Self, PoolError> {
        Ok(Formats {
            headers: Headers::new(kernel)?,
            vs: keys.heap.map(|key| VsFormat::new(kernel, key)).transpose()?,
            lfh: keys.lfh.map(|key| LfhFormat::new(kernel, key)).transpose()?,
        })
    }
}

/// How the target's own search is used.
struct Hunt<'w> {
    scout: Scout<'w>,
    mapping: Mapping<'w>,
    reply: u64,
}

struct Walk<'w> {
    kernel: &'w Kernel<'w>,
    wanted: &'w dyn Fn(Tag) -> bool,
    formats: &'w Formats,
    /// `None`: everything is read.
    hunt: Option<Hunt<'w>>,
    /// Large allocations in use, by address; `None`: not read yet.
    large: Option<Vec<Range<u64>>>,
    limits: Limits,
    read: u64,
    reached: u64,
    blocks: Vec<SmallBlock>,
    /// VS chunks in use without a pool header: damaged, unless they wait in a list whose links lie there.
    headless: Vec<u64>,
    /// Blocks, by index, whose pool header is not right behind their chunk's, with the chunk's address.
    moved: Vec<(usize, u64)>,
    /// Blocks in use whose headers are not in memory.
    tagless: usize,
    notes: Notes,
    damaged: Damaged,
}

impl<'w> Walk<'w> {
    fn new(kernel: &'w Kernel<'w>, formats: &'w Formats, wanted: &'w dyn Fn(Tag) -> bool, limits: Limits) -> Self {
        Walk {
            kernel,
            wanted,
            formats,
            hunt: None,
            large: None,
            limits,
            read: 0,
            reached: 0,
            blocks: Vec::new(),
            headless: Vec::new(),
            moved: Vec::new(),
            tagless: 0,
            notes: Notes::default(),
            damaged: Damaged::default(),
        }
    }

    /// Decodes one area; returns where the walk has to stop, if it has to.
    fn area(&mut self, area: &Area) -> Result<Option<u64>, Fault> {
        let mut at = area.address;
        let step = match area.content {
            Content::Pages | Content::SpecialPages | Content::MixedPages => {
                at = at.max(self.limits.from & !(PAGE_SIZE - 1));
                PIECE
            }
            Content::Vs | Content::Lfh | Content::Range | Content::SpecialRange => area.cost(),
        };
        while at < area.end() {
            let mut length = step.min(area.end() - at);
            if step == PIECE {
                let left = self.limits.bytes.saturating_sub(self.read) & !(PAGE_SIZE - 1);
                length = length.min(left.max(PAGE_SIZE));
            }
            // However small the limit is, a walk that is taken up again and again comes to its end. How much of it is
            // read is not known before where the target searches.
            let least = if self.hunt.is_some() { 1 } else { length };
            let full = self.read > 0 && self.read.saturating_add(least) > self.limits.bytes;
            if full || self.blocks.len() >= self.limits.blocks {
                let what = format!("a limit stopped the search at {at:016x}; what lies there and above is missing");
                self.notes.missing(Missing::because(Lack::Stopped, what).at(at));
                return Ok(Some(at));
            }
            self.reached = at;
            let places = self.places(at..at + length)?;
            match area.content {
                Content::Vs => self.vs(area, &places)?,
                Content::Lfh => self.lfh(area, &places)?,
                Content::Range => {}
                content => {
                    for place in places {
                        let bytes = self.bytes(&place)?;
                        match content {
                            Content::Pages => self.pages(area, &bytes)?,
                            _ => self.special_pages(area, &bytes),
                        }
                    }
                }
            }
            at = at.saturating_add(if area.content == Content::SpecialRange { area.length } else { length });
        }
        Ok(None)
    }

    /// Where in a range the wanted blocks can lie, in order.
    fn places(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>, Fault> {
        let Some(Hunt { scout, mapping, reply }) = self.hunt.as_mut().filter(|hunt| hunt.scout.is_worth_it()) else {
            return Ok(vec![range]);
        };
        let before = scout.requests;
        let Some(parts) = mapping.parts(&range)? else { return Ok(vec![range]) };
        let mut places = Vec::new();
        for (part, mapped) in parts {
            let mut at = part.start;
            while at < part.end {
                let piece = at..part.end.min(at.saturating_add(PIECE));
                at = piece.end;
                match if mapped { scout.pages(piece.clone())? } else { None } {
                    Some(pages) => pages.into_iter().for_each(|page| add(&mut places, page..page + PAGE_SIZE)),
                    None => add(&mut places, piece),
                }
            }
        }
        self.read += (scout.requests - before) * *reply;
        Ok(places)
    }

    fn bytes(&mut self, range: &Range<u64>) -> Result<Sparse, Fault> {
        let length = range.end - range.start;
        let bytes = page_tables::read(self.kernel, range.start, length as usize)?;
        self.read += length;
        Ok(bytes)
    }

    /// An area of which no more than some ranges, in order, is read; the rest is a hole.
    fn parts(&mut self, area: &Area, ranges: &[Range<u64>]) -> Result<Sparse, Fault> {
        if let [whole] = ranges
            && whole.end - whole.start == area.length
        {
            return self.bytes(whole);
        }
        let mut sparse = Sparse { address: area.address, bytes: vec![0; area.length as usize], holes: Vec::new() };
        let mut at = area.address;
        for range in ranges {
            sparse.holes.extend((at < range.start).then_some(at..range.start));
            let part = self.bytes(range)?;
            let offset = (range.start - area.address) as usize;
            sparse.bytes[offset..offset + part.bytes.len()].copy_from_slice(&part.bytes);
            sparse.holes.extend(part.holes);
            at = range.end;
        }
        sparse.holes.extend((at < area.end()).then_some(at..area.end()));
        Ok(sparse)
    }

    /// Says what is not in memory: `pages` of the classic pool, below where the walk stopped, and blocks of a heap.
    fn out(&mut self, pages: &[Range<u64>], stopped: Option<u64>) -> Result<(), Fault> {
        let end = stopped.unwrap_or(u64::MAX);
        let pages = pages.iter().flat_map(|run| (run.start..run.end).step_by(PAGE_SIZE as usize));
        let pages: Vec<u64> = pages.filter(|page| (self.limits.from..end).contains(page)).collect();
        let mut count = 0;
        for page in pages {
            count += usize::from(!self.is_large(page..page.saturating_add(PAGE_SIZE))?);
        }
        if count > 0 {
            let what = format!("pages of pool that are in a page file, and whose blocks are missing: {count}");
            self.notes.missing(Missing::because(Lack::PagedOut, what).count(count as u64));
        }
        if self.tagless > 0 {
            let what = format!(
                "blocks in use whose pages are not in memory, so that their tags are not known, and which are missing: {}",
                self.tagless
            );
            self.notes.missing(Missing::because(Lack::PagedOut, what).count(self.tagless as u64));
        }
        Ok(())
    }

    /// Whether a range belongs to a large allocation in use.
    fn is_large(&mut self, range: Range<u64>) -> Result<bool, Fault> {
        let large = match &self.large {
            Some(large) => large,
            None => {
                let pages = match big_pages::read(self.kernel, &|_| true) {
                    Ok(pages) => {
                        self.notes.extend(pages.notes);
                        pages.blocks
                    }
                    Err(error) => {
                        note(&mut self.notes, "what belongs to large allocations is not known", error)?;
                        Vec::new()
                    }
                };
                self.large.insert(in_use(&pages))
            }
        };
        let before = large.partition_point(|large| large.start < range.end);
        Ok(before.checked_sub(1).is_some_and(|last| large[last].end > range.start))
    }

    /// Whether one of the blocks can be in a list of freed ones: an element of a list starts with its link.
    fn may_rest(&self) -> Result<bool, Fault> {
        let chunk_header = 2 * u64::from(self.kernel.pointer_size);
        let links = |block: &SmallBlock| {
            let places = [block.address, block.header, block.header.wrapping_sub(chunk_header)];
            places.map(|place| Variable { address: self.kernel.wrap(place), size: self.kernel.pointer_size })
        };
        let links: Vec<_> =
            self.blocks.iter().filter(|block| block.state == BlockState::Allocated).flat_map(links).collect();
        let values = self.kernel.gather(&links)?;
        let links = |value: &Result<u64, _>| {
            value.as_ref().map_or(true, |value| *value == 0 || self.kernel.is_kernel_address(*value))
        };
        Ok(!self.headless.is_empty() || !self.moved.is_empty() || values.iter().any(links))
    }

    fn vs(&mut self, area: &Area, places: &[Range<u64>]) -> Result<(), Fault> {
        let Formats { headers, vs: Some(format), .. } = self.formats else { return Ok(()) };
        let Some(last) = places.last() else { return Ok(()) };
        // Chunks follow each other from the start, and the last one's pool header may begin the page behind.
        let until = last.end - area.address;
        let read = (until + headers.unit).min(area.length);
        let mut bytes = self.parts(area, std::slice::from_ref(&(area.address..area.address + read)))?;
        let mut chunks = Vec::new();
        let mut problems = format.chunks(&bytes, until, |chunk| chunks.push(chunk));
        if !problems.is_empty() && read < area.length {
            // Where a chain goes on behind what is damaged can only be told from the rest of it.
            bytes = self.parts(area, std::slice::from_ref(&(area.address..area.end())))?;
            chunks.clear();
            problems = format.chunks(&bytes, until, |chunk| chunks.push(chunk));
        }
        let is_place = |at: u64| {
            let index = places.partition_point(|place| place.end <= at);
            places.get(index).is_some_and(|place| place.start <= at)
        };
        for chunk in chunks.into_iter().filter(|chunk| chunk.allocated) {
            self.chunk(area, &bytes, chunk, &is_place)?;
        }
        for problem in problems {
            self.damaged.add(|| problem);
        }
        Ok(())
    }

    /// A VS chunk in use.
    fn chunk(
        &mut self,
        area: &Area,
        bytes: &Sparse,
        chunk: Chunk,
        is_place: &dyn Fn(u64) -> bool,
    ) -> Result<(), Fault> {
        let Formats { headers, vs: Some(format), .. } = self.formats else { return Ok(()) };
        let at = area.address.wrapping_add(chunk.offset);
        let found = format.pool_header(headers, bytes, chunk);
        let plain = at.wrapping_add(format.unit);
        let concerns = match found {
            Some((_, header)) => (self.wanted)(header.tag().0),
            None => is_place(plain) || is_place(plain.next_multiple_of(PAGE_SIZE)),
        };
        if !concerns || chunk.size >= LARGE_CHUNK && self.is_large(at..at.saturating_add(chunk.size))? {
            return Ok(());
        }
        match found {
            Some((place, header)) => {
                if place != chunk.offset + format.unit {
                    self.moved.push((self.blocks.len(), at));
                }
                self.add(area, area.address.wrapping_add(place), header, true, BlockKind::Vs);
            }
            None => self.headless.push(at),
        }
        Ok(())
    }

    fn lfh(&mut self, area: &Area, places: &[Range<u64>]) -> Result<(), Fault> {
        let Formats { headers, lfh: Some(format), .. } = self.formats else { return Ok(()) };
        let Some(first) = places.first() else { return Ok(()) };
        // Which blocks are in use is written at the start.
        let books = area.address + format.books(area.length, headers.unit);
        let mut ranges: Vec<_> = std::iter::once(area.address..books).collect();
        for place in places {
            match ranges.last_mut() {
                Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
                _ => ranges.push(place.clone()),
            }
        }
        let bytes = self.parts(area, &ranges)?;
        let whole = first.end - first.start == area.length;
        let walked = format.slots(&bytes, |slot| {
            let at = area.address.wrapping_add(slot.offset);
            let index = places.partition_point(|place| place.end <= at);
            if !whole && places.get(index).is_none_or(|place| place.start > at) {
                return;
            }
            let header = bytes.get(slot.offset as usize, headers.unit as usize).map(|bytes| headers.get(bytes));
            match header {
                Some(header) if (headers.unit..=slot.size).contains(&header.block_size) => {
                    self.add(area, at, header, slot.allocated, BlockKind::Lfh);
                }
                // A block that was never handed out has no header.
                _ if !slot.allocated => {}
                Some(_) => self
                    .damaged
                    .add(|| format!("the LFH block at {at:016x} is allocated, but its pool header is damaged")),
                None => self.tagless += 1,
            }
        });
        if let Err(problem) = walked {
            self.damaged.add(|| problem);
        }
        Ok(())
    }

    fn pages(&mut self, area: &Area, bytes: &Sparse) -> Result<(), Fault> {
        let size = PAGE_SIZE as usize;
        for offset in (0..bytes.bytes.len()).step_by(size) {
            let at = bytes.address.wrapping_add(offset as u64);
            let range = at..at.saturating_add(PAGE_SIZE);
            // The table of large allocations is asked first only if it was read already.
            let asked = self.large.is_some();
            if asked && self.is_large(range.clone())? {
                continue;
            }
            let first = self.blocks.len();
            let problems = match bytes.get(offset, size) {
                Some(page) => self.page(area, at, page),
                None => vec![format!("the pool page at {at:016x} could not be read")],
            };
            if self.blocks.len() == first && problems.is_empty() {
                continue;
            }
            if !asked && self.is_large(range)? {
                self.blocks.truncate(first);
                continue;
            }
            for problem in problems {
                self.damaged.add(|| problem);
            }
        }
        Ok(())
    }

    /// One page of the classic pool; says what is damaged. Behind a damaged header the chain is taken up again where it
    /// can be.
    fn page(&mut self, area: &Area, at: u64, page: &[u8]) -> Vec<String> {
        let headers = &self.formats.headers;
        let paged = area.pool.is_paged();
        let first = self.blocks.len();
        let (mut decoded, mut plausible) = (0, true);
        let (mut start, mut before) = (0, 0);
        let mut broken_at = Vec::new();
        // A page has no more places to break at than headers.
        'parts: while broken_at.len() < page.len() / headers.unit as usize {
            let mut last = None;
            for (offset, header) in headers.chain_from(page, start, before) {
                let broken = match header {
                    Ok(header) => {
                        decoded += 1;
                        plausible &= header.is_plausible(paged);
                        last = Some((offset, self.blocks.len()));
                        self.add(area, at.wrapping_add(offset), header, header.pool_type != 0, BlockKind::Page);
                        continue;
                    }
                    Err(broken) => broken,
                };
                let what = broken.describe(at.wrapping_add(offset));
                // Only what it says of the block before may be wrong, or that block's size, or all of this header.
                let alone = match broken {
                    Break::PreviousSize { given, .. } => {
                        headers.whole(page, offset, given, paged).map(|count| (offset, given, count))
                    }
                    Break::NoRoom | Break::BlockSize(_) => None,
                };
                let resume = |damaged: u64| {
                    let (next, count) = headers.resume(page, damaged, paged)?;
                    Some((next, next - damaged, count))
                };
                let (damaged, resumed) = match (alone, last) {
                    (Some(alone), _) => (offset, Some(alone)),
                    (None, Some((before, kept))) if !matches!(broken, Break::BlockSize(0)) => match resume(before) {
                        Some(resumed) => {
                            self.blocks.truncate(kept);
                            decoded -= 1;
                            (before, Some(resumed))
                        }
                        None => (offset, resume(offset)),
                    },
                    (None, _) => (offset, resume(offset)),
                };
                // A damaged header that otherwise looks like one speaks for the page, too.
                let itself = headers.at(page, damaged).is_some_and(|header| header.is_plausible(paged));
                let resumed = resumed.filter(|(next, _, count)| {
                    plausible && decoded + count + usize::from(itself && *next != damaged) >= 2
                });
                let missing = match resumed {
                    Some((next, ..)) if next == damaged => "",
                    Some(_) => "; that block is missing",
                    None => "; the rest of its page is missing",
                };
                broken_at.push(format!("the header at {:016x} is damaged: {what}{missing}", at.wrapping_add(damaged)));
                let Some((next, size, _)) = resumed else { break 'parts };
                (start, before, decoded) = (next, size, decoded.max(2));
                continue 'parts;
            }
            break;
        }
        // Free pages and pages of other use can look like the start of a chain.
        if !broken_at.is_empty() && (decoded < 2 || !plausible) {
            self.blocks.truncate(first);
            return Vec::new();
        }
        broken_at
    }

    fn special_pages(&mut self, area: &Area, bytes: &Sparse) {
        let size = PAGE_SIZE as usize;
        for offset in (0..bytes.bytes.len()).step_by(size) {
            let at = bytes.address.wrapping_add(offset as u64);
            let Some(page) = bytes.get(offset, size) else {
                if area.content != Content::MixedPages {
                    self.damaged.add(|| format!("the page of special pool at {at:016x} could not be read"));
                }
                continue;
            };
            let Some(block) = special_page::decode(self.kernel, at, page) else { continue };
            // Where other things lie too, only a page that is whole is taken for one of special pool.
            if area.content == Content::MixedPages && !block.overwritten.is_empty() {
                continue;
            }
            if (self.wanted)(block.tag) {
                self.blocks.push(SmallBlock {
                    header: block.header,
                    address: block.address,
                    size: block.size,
                    block_size: PAGE_SIZE,
                    previous_size: 0,
                    tag: block.tag,
                    protected: false,
                    pool: if area.content == Content::SpecialRange { area.pool } else { block.kind },
                    state: BlockState::Allocated,
                    kind: BlockKind::Special,
                });
            }
        }
    }

    fn add(&mut self, area: &Area, at: u64, header: Header, allocated: bool, kind: BlockKind) {
        let unit = self.formats.headers.unit;
        let (tag, protected) = header.tag();
        if !(self.wanted)(tag) {
            return;
        }
        let pool = match (area.pool, header.pool_type & SESSION != 0) {
            (PoolKind::Paged, true) => PoolKind::PagedSession,
            (PoolKind::NonPaged, true) => PoolKind::NonPagedSession,
            (pool, _) => pool,
        };
        self.blocks.push(SmallBlock {
            header: at,
            address: at.wrapping_add(unit),
            size: header.block_size.saturating_sub(unit),
            block_size: header.block_size,
            previous_size: header.previous_size,
            tag,
            protected,
            pool,
            state: if allocated { BlockState::Allocated } else { BlockState::Free },
            kind,
        });
    }
}

/// Of a header's PoolType.
const SESSION: u8 = 0x20;
