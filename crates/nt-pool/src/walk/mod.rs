//! The walk over the places of pool that a plan names: what is read of each, and what becomes of it.

mod heap;
mod pages;

use std::collections::HashMap;
use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Sparse};

use crate::big_pages;
use crate::checks::{Book, Books, Check};
use crate::kernel::Variable;
use crate::lfh_subsegment::{Chosen, LfhFormat};
use crate::lists::{Head, note};
use crate::page_tables::{self, add};
use crate::pool_header::{Header, Headers};
use crate::readings::Readings;
use crate::segment_heap::{Heaps, Keys};
use crate::small_blocks::{Area, BlockKind, BlockState, Blocks, Content, Limits, PIECE, SmallBlock, in_use};
use crate::tag_search::{Mapping, Scout};
use crate::vs_subsegment::VsFormat;
use crate::{Kernel, Lack, Missing, Notes, PoolError, PoolKind, Tag, freed, special_page};

/// Damaged places that are named; more are only counted.
const NAMED: usize = 16;

/// Fewer LFH subsegments say nothing about how many of them are set up.
const FEW_SUBSEGMENTS: u64 = 4;

/// Fewer blocks in use say nothing about where their tags lie.
const FEW_TAGS: u64 = 4;

/// Fewer pages of the classic pool say nothing; of so many one at least has a chain of headers, though free pages and
/// those of other things lie there too.
const FEW_PAGES: u64 = 16;
const OTHER_PAGES: u64 = 256;

/// Of a header's PoolType.
const SESSION: u8 = 0x20;

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
pub(crate) struct Hunt<'w> {
    pub(crate) scout: Scout<'w>,
    pub(crate) mapping: Mapping<'w>,
    pub(crate) reply: u64,
}

/// Large allocations in use, by address.
pub(crate) enum Large {
    /// They are read when the first place may belong to one.
    Unread,
    Known(Vec<Range<u64>>),
    /// They cannot be paid for: what may be one is taken for one, and not judged.
    Unknown,
}

/// A walk as far as it has come.
pub(crate) struct Walk<'w> {
    kernel: &'w Kernel<'w>,
    wanted: &'w dyn Fn(Tag) -> bool,
    formats: &'w Formats,
    /// `None`: everything is read.
    pub(crate) hunt: Option<Hunt<'w>>,
    pub(crate) large: Large,
    /// So much of the start of each subsegment is looked at.
    pub(crate) first: u64,
    limits: Limits,
    read: u64,
    reached: u64,
    blocks: Vec<SmallBlock>,
    /// VS chunks in use without a pool header: damaged, unless they wait in a list whose links lie there.
    headless: Vec<u64>,
    /// The chunk of each block whose pool header is not right behind its chunk's, by the header's address.
    moved: HashMap<u64, u64>,
    /// What of the area that is being decoded is in a page file.
    paged_out: Vec<Range<u64>>,
    /// Pages in a page file that hid headers.
    pages_lost: u64,
    /// Blocks in use whose headers are not in memory.
    tagless: u64,
    /// LFH subsegments, and those of them that are set up.
    subsegments: (u64, u64),
    /// VS chunks, and those with a mark that a chunk can have.
    marks: (u64, u64),
    /// Blocks in use, and those of them with a tag that can be typed.
    tags: (u64, u64),
    /// Pages of the classic pool that belong to no large allocation, and those of them with a chain of headers.
    pool_pages: (u64, u64),
    /// Headers of the classic pool; those that are of a free block or of one in use; those in use.
    pool_types: (u64, u64, u64),
    /// What the LFH subsegments so far say of their forms, and those that wait until enough is said.
    chosen: Chosen,
    undecided: Vec<(Area, Sparse, Vec<Range<u64>>)>,
    undecided_bytes: u64,
    books: Books,
    notes: Notes,
    damaged: Damaged,
}

impl<'w> Walk<'w> {
    pub(crate) fn new(
        kernel: &'w Kernel<'w>,
        formats: &'w Formats,
        wanted: &'w dyn Fn(Tag) -> bool,
        limits: Limits,
    ) -> Self {
        Walk {
            kernel,
            wanted,
            formats,
            hunt: None,
            large: Large::Unread,
            first: u64::MAX,
            limits,
            read: 0,
            reached: 0,
            blocks: Vec::new(),
            headless: Vec::new(),
            moved: HashMap::new(),
            paged_out: Vec::new(),
            pages_lost: 0,
            tagless: 0,
            subsegments: (0, 0),
            marks: (0, 0),
            tags: (0, 0),
            pool_pages: (0, 0),
            pool_types: (0, 0, 0),
            chosen: Chosen::default(),
            undecided: Vec::new(),
            undecided_bytes: 0,
            books: Books::default(),
            notes: Notes::default(),
            damaged: Damaged::default(),
        }
    }

    /// Decodes the areas, which are in the order of their addresses; `heaps` is what else is known of them.
    pub(crate) fn run<'a>(mut self, areas: impl Iterator<Item = &'a Area>, heaps: &Heaps) -> Result<Blocks, PoolError> {
        let mut stopped = None;
        let from = self.limits.from;
        for area in areas.filter(|area| area.end() > from) {
            match self.area(area) {
                Ok(None) => {}
                Ok(at) => {
                    stopped = at;
                    break;
                }
                Err(Fault::Cancelled) => {
                    let at = self.reached.max(area.address);
                    stopped = Some(at);
                    self.notes.missing(Missing::because(Lack::Stopped, "interrupted").at(at));
                    break;
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        self.decide(stopped.is_some())?;
        self.out(&heaps.out, stopped)?;
        let follows = self.hunt.is_none() || self.may_rest()?;
        self.finish(if follows { &heaps.resting } else { &[] }, heaps, stopped)
    }

    /// Tells the blocks that wait in lists apart, and sums up.
    fn finish(mut self, resting: &[Head], heaps: &Heaps, stopped: Option<u64>) -> Result<Blocks, PoolError> {
        let kernel = self.kernel;
        let mut waiting = freed::Waiting::new();
        let followed = match freed::follow_all(kernel, resting, &mut self.books, &mut self.notes, &mut waiting) {
            Ok(()) => true,
            Err(Fault::Cancelled) => {
                self.notes.missing("lists of freed blocks were not followed; such blocks look allocated");
                false
            }
            Err(fault) => return Err(fault.into()),
        };
        let chunk_header = 2 * u64::from(kernel.pointer_size);
        let rests = |chunk: u64| [chunk, chunk.wrapping_add(chunk_header)].iter().any(|at| waiting.has(*at));
        for block in self.blocks.iter_mut().filter(|block| block.state == BlockState::Allocated) {
            let chunk = || self.moved.get(&block.header).copied().unwrap_or(block.header.wrapping_sub(chunk_header));
            let chunk = (block.kind == BlockKind::Vs).then(chunk);
            if freed::places(kernel, block.address, block.header, chunk).any(|at| waiting.has(at)) {
                block.state = BlockState::Cached;
            }
        }
        let mut headless = std::mem::take(&mut self.headless);
        headless.retain(|at| {
            let waits = rests(*at);
            if waits || followed {
                self.books.hold(Book::VsPoolHeaders, waits, *at);
            }
            !waits
        });
        match headless.first() {
            // The link of a list takes the place of a header.
            Some(first) if !followed || !heaps.without_lists.is_empty() => self.notes.missing(format!(
                "{} VS chunks in use have no pool header, the first at {first:016x}; they may be freed ones in lists \
                 that are not known",
                headless.len()
            )),
            _ => headless.into_iter().for_each(|at| {
                self.damaged.add(|| format!("the VS chunk at {at:016x} is allocated, but its pool header is damaged"));
            }),
        }
        let formats = self.formats;
        let Walk {
            mut blocks,
            mut notes,
            mut books,
            damaged,
            read,
            chosen,
            subsegments,
            marks,
            tags,
            pool_pages,
            pool_types,
            hunt,
            ..
        } = self;
        notes.extend(damaged.notes());
        blocks.sort_by_key(|block| block.header);
        books.extend(heaps.books.clone().checks());
        if let (expected @ 1.., found) = subsegments {
            let ok = expected < FEW_SUBSEGMENTS || 2 * found >= expected;
            books.add(Check { name: Book::LfhSetUp, expected, found, ok, place: None });
        }
        books.add_known(Check::most(Book::VsMarks, marks.0, marks.1));
        // One block says nothing of where tags lie.
        books.add_known(Check::most(Book::TypedTags, tags.0, tags.1).filter(|_| tags.0 >= FEW_TAGS));
        let (expected, found) = pool_pages;
        // Where the target searches, most pages that are read are others.
        if expected > 0 && hunt.is_none() {
            let name = if expected < OTHER_PAGES { Book::FewPoolPages } else { Book::PoolPages };
            let ok = expected < FEW_PAGES || found > expected / OTHER_PAGES;
            books.add(Check { name, expected, found, ok, place: None });
        }
        let (seen, good) = formats.headers.aligned_seen();
        if seen > 0 {
            books.count(Book::AlignedHeaders, seen, good, 0);
        }
        if let (expected @ 1.., found, in_use) = pool_types {
            let ok = FEW_PAGES * (expected - found) <= expected && (in_use > 0 || expected < OTHER_PAGES);
            books.add(Check { name: Book::PoolTypes, expected, found, ok, place: None });
        }
        let mut readings = Readings { lfh_bits: chosen.bits, lfh_offsets: chosen.offsets, ..Readings::default() };
        readings.merge(&heaps.readings);
        Ok(Blocks { blocks, notes, stopped, read, checks: books.checks(), readings })
    }

    /// Decodes one area; returns where the walk has to stop, if it has to.
    fn area(&mut self, area: &Area) -> Result<Option<u64>, Fault> {
        self.paged_out.clear();
        match area.content {
            Content::Pages | Content::SpecialPages | Content::MixedPages => self.pieces(area),
            Content::Range => Ok(None),
            Content::Vs | Content::Lfh | Content::SpecialRange => {
                if self.is_full(area.address, area.cost()) {
                    return Ok(Some(area.address));
                }
                match area.content {
                    Content::Vs => {
                        let places = self.places(area.address..area.end())?;
                        self.vs(area, &places)?;
                    }
                    Content::Lfh => {
                        let places = self.places(area.address..area.end())?;
                        self.lfh(area, places)?;
                    }
                    _ => {
                        for place in self.places(area.address..area.address + area.cost())? {
                            let bytes = self.bytes(&place)?;
                            self.special_pages(area, &bytes);
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// Pages that follow each other, of which each stands for itself.
    fn pieces(&mut self, area: &Area) -> Result<Option<u64>, Fault> {
        let mut at = area.address.max(self.limits.from & !(PAGE_SIZE - 1));
        while at < area.end() {
            let left = self.limits.bytes.saturating_sub(self.read) & !(PAGE_SIZE - 1);
            let length = PIECE.min(area.end() - at).min(left.max(PAGE_SIZE));
            if self.is_full(at, length) {
                return Ok(Some(at));
            }
            for place in self.places(at..at + length)? {
                let bytes = self.bytes(&place)?;
                match area.content {
                    Content::Pages => self.pages(area, &bytes)?,
                    _ => self.special_pages(area, &bytes),
                }
            }
            at = at.saturating_add(length);
        }
        Ok(None)
    }

    /// Whether a limit forbids to read what lies at `at`; says so.
    fn is_full(&mut self, at: u64, length: u64) -> bool {
        // However small the limit is, a walk that is taken up again and again comes to its end. How much of it is read is
        // not known before where the target searches.
        let least = if self.hunt.is_some() { 1 } else { length };
        let full = self.read > 0 && self.read.saturating_add(least) > self.limits.bytes;
        if full || self.blocks.len() >= self.limits.blocks {
            let what = format!("a limit stopped the search at {at:016x}; what lies there and above is missing");
            self.notes.missing(Missing::because(Lack::Stopped, what).at(at));
            return true;
        }
        self.reached = at;
        false
    }

    /// Where in a range the wanted blocks can lie, in order.
    fn places(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>, Fault> {
        let Some(Hunt { scout, mapping, reply }) = self.hunt.as_mut().filter(|hunt| hunt.scout.is_worth_it()) else {
            let end = range.end.min(range.start.saturating_add(self.first));
            let first = range.start..end;
            return Ok(vec![first]);
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

    /// Reads a range; what of it is in a page file is in `paged_out` until the next area.
    fn bytes(&mut self, range: &Range<u64>) -> Result<Sparse, Fault> {
        let length = range.end - range.start;
        let bytes = page_tables::read_telling(self.kernel, range.start, length as usize, &mut self.paged_out)?;
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
        let mut sparse = Sparse::zeroed(area.address, area.length as usize)?;
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

    /// Says what is not in memory: `pages` of the classic pool, below where the walk stopped, and what of a heap was
    /// lost.
    fn out(&mut self, pages: &[Range<u64>], stopped: Option<u64>) -> Result<(), Fault> {
        let end = stopped.unwrap_or(u64::MAX);
        let pages = pages.iter().flat_map(|run| (run.start..run.end).step_by(PAGE_SIZE as usize));
        let pages: Vec<u64> = pages.filter(|page| (self.limits.from..end).contains(page)).collect();
        let mut lost = self.pages_lost;
        for page in pages {
            lost += u64::from(!self.is_large(page..page.saturating_add(PAGE_SIZE))?);
        }
        let (what, count) = match (lost, self.tagless) {
            (0, 0) => return Ok(()),
            (0, blocks) => (
                format!(
                    "blocks in use whose pages are not in memory, so that their tags are not known, and which are \
                     missing: {blocks}"
                ),
                blocks,
            ),
            (pages, 0) => {
                (format!("pages of pool that are in a page file, and whose blocks are missing: {pages}"), pages)
            }
            (pages, blocks) => (
                format!(
                    "pages of pool that are in a page file, and whose blocks are missing: {pages}; and as many as \
                     {blocks} blocks in use, so that their tags are not known, are not in memory"
                ),
                pages,
            ),
        };
        self.notes.missing(Missing::because(Lack::PagedOut, what).count(count));
        Ok(())
    }

    /// Counts what of a range of the area that is being decoded is in a page file; whether there is any.
    fn lose(&mut self, range: &Range<u64>) -> bool {
        let pages = |part: &Range<u64>| {
            let (start, end) = (part.start.max(range.start), part.end.min(range.end));
            if start < end { (end - 1) / PAGE_SIZE - start / PAGE_SIZE + 1 } else { 0 }
        };
        let lost: u64 = self.paged_out.iter().map(pages).sum();
        self.pages_lost += lost;
        lost > 0
    }

    /// Whether a range belongs to a large allocation in use.
    fn is_large(&mut self, range: Range<u64>) -> Result<bool, Fault> {
        let large = match &mut self.large {
            Large::Known(large) => large,
            Large::Unknown => return Ok(true),
            Large::Unread => {
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
                self.large = Large::Known(in_use(&pages));
                return self.is_large(range);
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

    fn special_pages(&mut self, area: &Area, bytes: &Sparse) {
        let size = PAGE_SIZE as usize;
        for offset in (0..bytes.bytes.len()).step_by(size) {
            let at = bytes.address.wrapping_add(offset as u64);
            let Some(page) = bytes.get(offset, size) else {
                match area.content {
                    // A freed block's page is taken away until its place is used again.
                    Content::SpecialRange => _ = self.lose(&(at..at.saturating_add(PAGE_SIZE))),
                    Content::MixedPages => {}
                    _ => self.damaged.add(|| format!("the page of special pool at {at:016x} could not be read")),
                }
                continue;
            };
            let block = special_page::decode(self.kernel, at, page);
            if area.content == Content::SpecialRange {
                self.books.hold(Book::SpecialPages, block.is_some(), at);
                if block.is_none() {
                    self.damaged.add(|| format!("the page of special pool at {at:016x} has no header that can be"));
                }
            }
            let Some(block) = block else { continue };
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

    fn count_tag(&mut self, tag: Tag) {
        self.tags.0 += 1;
        self.tags.1 += u64::from(tag.is_typed());
    }

    fn add(&mut self, area: &Area, at: u64, header: Header, state: BlockState, kind: BlockKind) {
        let unit = self.formats.headers.unit;
        let (tag, protected) = header.tag();
        // Pages of the classic pool may turn out to be something else: they count for themselves.
        if state == BlockState::Allocated && kind != BlockKind::Page {
            self.count_tag(tag);
        }
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
            // In a segment heap it is the distance of a cache-aligned block's headers.
            previous_size: if kind == BlockKind::Page { header.previous_size } else { 0 },
            tag,
            protected,
            pool,
            state,
            kind,
        });
    }
}
