//! The segment heap's rules, on lists of our own: ranges of pages in segments, chunks of any size (VS) and blocks of one
//! size (LFH) in them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Owner, PAGE};
use crate::kernel::books::PoolKind;
use crate::kernel::random::Random;

/// Largest block with both headers that does not need a page of its own.
const SMALL: u64 = 0xfe0;
/// Blocks up to this size, header included, are given to the LFH once their size is popular.
const LFH_LIMIT: u64 = 0x200;
const POPULAR: u32 = 12;
/// Sizes that a lookaside list takes back, and how many of them.
const LOOKASIDE: std::ops::RangeInclusive<u64> = 0x200..=0xf80;
const DEPTH: usize = 64;
/// Freed chunks that wait before all of them are given back.
const DELAYED: usize = 32;
/// Free chunks that are tried before one is taken that fits in any case.
const NEAR: usize = 32;

/// What a range of a segment's units holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Free,
    /// One block of so many bytes.
    User(u64),
    /// A subsegment.
    Vs,
    Lfh,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) units: u64,
    pub(crate) content: Content,
}

/// 1 MiB of 4 KiB units, or 16 MiB of 64 KiB units.
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) context: usize,
    pub(crate) ranges: Vec<Range>,
}

/// Bits of a unit's size, by context.
pub(crate) const SHIFT: [u32; 2] = [12, 16];
pub(crate) const SEGMENT_UNITS: u64 = 256;

#[derive(Debug, Clone, Copy)]
pub(crate) enum ChunkState {
    Free,
    Live(Owner),
    Lookaside(Owner),
    /// Freed, and waiting to be given back; whose it was, unless it was a large one.
    Delayed(Option<Owner>),
    /// Page aligned and without a pool header: it is in the big-page table.
    Large(Owner),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) units: u64,
    pub(crate) state: ChunkState,
}

pub(crate) struct Vs {
    pub(crate) address: u64,
    pub(crate) pages: u64,
    /// By their first unit, counted from the first chunk; none once it was given back.
    chunks: BTreeMap<u64, Chunk>,
}

impl Vs {
    /// Address of each chunk with the chunk.
    pub(crate) fn walk(&self, format: Format) -> impl Iterator<Item = (u64, &Chunk)> {
        let start = self.address + format.first_chunk;
        self.chunks.iter().map(move |(first, chunk)| (start + first * format.unit, chunk))
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.chunks.is_empty()
    }
}

pub(crate) struct Lfh {
    pub(crate) address: u64,
    pub(crate) pages: u64,
    /// Of a block, its header included.
    pub(crate) bytes: u64,
    /// Where the first block is.
    pub(crate) first: u64,
    /// Empty once it was given back.
    pub(crate) blocks: Vec<Option<Owner>>,
    /// Blocks that can be handed out, and how many there are when none is.
    free: Vec<usize>,
    usable: usize,
}

impl Lfh {
    fn new(bytes: u64, format: Format) -> Lfh {
        let pages = [1, 2, 4, 8].into_iter().find(|pages| pages * PAGE / bytes >= 24).unwrap_or(8);
        // Two bits for each block, in words of 64, behind the header.
        let most = pages * PAGE / bytes;
        let first = (format.bitmap + (2 * most).div_ceil(64) * 8).next_multiple_of(format.unit);
        let count = (pages * PAGE - first) / bytes;
        let blocks = vec![None; count as usize];
        let mut lfh = Lfh { address: 0, pages, bytes, first, blocks, free: Vec::new(), usable: 0 };
        // A block that crosses a page is never handed out.
        lfh.free = (0..lfh.blocks.len()).filter(|number| lfh.block(*number) % PAGE + bytes <= PAGE).collect();
        lfh.usable = lfh.free.len();
        lfh
    }

    pub(crate) fn block(&self, number: usize) -> u64 {
        self.address + self.first + self.bytes * number as u64
    }
}

/// Address space for segments.
pub(crate) struct Room {
    pub(crate) next: u64,
    pub(crate) end: u64,
}

impl Room {
    fn segment(&mut self, context: usize) -> Option<u64> {
        let size = SEGMENT_UNITS << SHIFT[context];
        let at = self.next.next_multiple_of(size);
        if at + size > self.end {
            return None;
        }
        self.next = at + size;
        Some(at)
    }
}

/// What differs between 32 and 64 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// Bytes of a VS chunk's header, of the pool's header behind it, and of a unit of both's sizes.
    pub(crate) unit: u64,
    /// Where the first chunk of a VS subsegment is.
    pub(crate) first_chunk: u64,
    /// Where the bitmap of an LFH subsegment is.
    pub(crate) bitmap: u64,
    /// Units that a segment's own header takes, by context.
    pub(crate) first_unit: [u64; 2],
}

pub(crate) struct Heap {
    pub(crate) kind: PoolKind,
    format: Format,
    pub(crate) segments: Vec<Segment>,
    pub(crate) vs: Vec<Vs>,
    pub(crate) lfh: Vec<Lfh>,
    /// Page ranges: address and owner.
    pub(crate) user: Vec<(u64, Owner)>,
    popular: BTreeMap<u64, u32>,
    /// Free chunks: units, subsegment, first unit.
    free_chunks: BTreeSet<(u64, usize, u64)>,
    live_chunks: Vec<(usize, u64)>,
    /// By units of the chunk; the last freed one is the first to be used again.
    lookaside: BTreeMap<u64, Vec<(usize, u64)>>,
    /// Oldest first.
    delayed: Vec<(usize, u64)>,
    /// LFH subsegments with a free block, by the size of their blocks.
    available: BTreeMap<u64, Vec<usize>>,
    live_blocks: Vec<(usize, usize)>,
}

impl Heap {
    pub(crate) fn new(kind: PoolKind, format: Format) -> Heap {
        Heap {
            kind,
            format,
            segments: Vec::new(),
            vs: Vec::new(),
            lfh: Vec::new(),
            user: Vec::new(),
            popular: BTreeMap::new(),
            free_chunks: BTreeSet::new(),
            live_chunks: Vec::new(),
            lookaside: BTreeMap::new(),
            delayed: Vec::new(),
            available: BTreeMap::new(),
            live_blocks: Vec::new(),
        }
    }

    /// Blocks in use.
    pub(crate) fn live(&self) -> usize {
        self.live_chunks.len() + self.live_blocks.len() + self.user.len()
    }

    /// The first free range that is large enough, or one of a new segment; none when the address space is used up.
    pub(crate) fn range(&mut self, context: usize, units: u64, content: Content, room: &mut Room) -> Option<u64> {
        let fits = |segment: &Segment| {
            let fit = |range: &Range| range.content == Content::Free && range.units >= units;
            (segment.context == context).then(|| segment.ranges.iter().position(fit)).flatten()
        };
        let found = self.segments.iter().enumerate().find_map(|(at, segment)| Some((at, fits(segment)?)));
        let (at, slot) = match found {
            Some(found) => found,
            None => {
                let first = self.format.first_unit[context];
                let free = Range { first, units: SEGMENT_UNITS - first, content: Content::Free };
                self.segments.push(Segment { base: room.segment(context)?, context, ranges: vec![free] });
                (self.segments.len() - 1, 0)
            }
        };
        let segment = &mut self.segments[at];
        let free = segment.ranges[slot];
        let mut new = vec![Range { first: free.first, units, content }];
        if free.units > units {
            new.push(Range { first: free.first + units, units: free.units - units, content: Content::Free });
        }
        segment.ranges.splice(slot..=slot, new);
        Some(segment.base + (free.first << SHIFT[context]))
    }

    /// Gives a range back, and joins it with its neighbours.
    fn release(&mut self, address: u64) {
        for segment in &mut self.segments {
            let unit = address.wrapping_sub(segment.base) >> SHIFT[segment.context];
            if unit >= SEGMENT_UNITS {
                continue;
            }
            let Some(slot) = segment.ranges.iter().position(|range| range.first == unit) else { continue };
            let ranges = &mut segment.ranges;
            ranges[slot].content = Content::Free;
            if ranges.get(slot + 1).is_some_and(|range| range.content == Content::Free) {
                ranges[slot].units += ranges.remove(slot + 1).units;
            }
            if slot > 0 && ranges[slot - 1].content == Content::Free {
                ranges[slot - 1].units += ranges.remove(slot).units;
            }
            return;
        }
    }

    /// Nothing happens when the address space is used up.
    pub(crate) fn allocate(&mut self, owner: Owner, room: &mut Room, random: &mut Random) -> Option<()> {
        let unit = self.format.unit;
        let units = owner.units(unit);
        let bytes = units * unit;
        if bytes <= LFH_LIMIT {
            let count = self.popular.entry(bytes).or_default();
            *count += 1;
            if *count > POPULAR {
                return self.allocate_lfh(owner, bytes, room, random);
            }
        }
        if bytes <= SMALL {
            if random.once_in(2)
                && let Some((vs, first)) = self.lookaside.get_mut(&(units + 1)).and_then(Vec::pop)
            {
                self.vs[vs].chunks.insert(first, Chunk { units: units + 1, state: ChunkState::Live(owner) });
                self.live_chunks.push((vs, first));
                return Some(());
            }
            return self.allocate_vs(units + 1, ChunkState::Live(owner), room);
        }
        let pages = owner.size.div_ceil(PAGE);
        if pages <= 30 {
            // Its page-aligned bytes, and a header before them.
            let units = owner.size.div_ceil(unit) + 1;
            return self.allocate_vs(units, ChunkState::Large(owner), room);
        }
        let context = usize::from(pages > 0xc0);
        let units = owner.size.div_ceil(1 << SHIFT[context]);
        let address = self.range(context, units, Content::User(owner.size), room)?;
        self.user.push((address, owner));
        Some(())
    }

    fn allocate_vs(&mut self, units: u64, state: ChunkState, room: &mut Room) -> Option<()> {
        let Format { unit, first_chunk, .. } = self.format;
        let large = matches!(state, ChunkState::Large(_));
        let at = |vs: &Vs, first: u64| vs.address + first_chunk + first * unit;
        let fit = |&(size, vs, first): &(u64, usize, u64)| {
            let gap = gap(at(&self.vs[vs], first), units, unit, large);
            (gap + units <= size).then_some((size, vs, first, gap))
        };
        // The smallest that is large enough with what has to stay free before the block; that is never two pages.
        let near = self.free_chunks.range((units, 0, 0)..).take(NEAR).find_map(fit);
        let found = near.or_else(|| self.free_chunks.range((units + 2 * PAGE / unit, 0, 0)..).find_map(fit));
        let (size, number, first, gap) = match found {
            Some(found) => found,
            None => {
                let pages = if large { 64 } else { 16 };
                let address = self.range(0, pages, Content::Vs, room)?;
                let size = (pages * PAGE - first_chunk) / unit;
                let chunks = BTreeMap::from([(0, Chunk { units: size, state: ChunkState::Free })]);
                self.vs.push(Vs { address, pages, chunks });
                let number = self.vs.len() - 1;
                self.free_chunks.insert((size, number, 0));
                (size, number, 0, self::gap(address + first_chunk, units, unit, large))
            }
        };
        self.free_chunks.remove(&(size, number, first));
        let rest = size - gap - units;
        // A chunk of a header only cannot be free: it goes with the block.
        let (units, rest) = if rest == 1 { (units + 1, 0) } else { (units, rest) };
        let chunks = &mut self.vs[number].chunks;
        chunks.remove(&first);
        for (first, units) in [(first, gap), (first + gap + units, rest)] {
            if units > 0 {
                chunks.insert(first, Chunk { units, state: ChunkState::Free });
                self.free_chunks.insert((units, number, first));
            }
        }
        chunks.insert(first + gap, Chunk { units, state });
        self.live_chunks.push((number, first + gap));
        Some(())
    }

    fn allocate_lfh(&mut self, owner: Owner, bytes: u64, room: &mut Room, random: &mut Random) -> Option<()> {
        let available = self.available.get(&bytes).and_then(|list| list.first().copied());
        let number = match available {
            Some(number) => number,
            None => {
                let mut lfh = Lfh::new(bytes, self.format);
                lfh.address = self.range(0, lfh.pages, Content::Lfh, room)?;
                self.lfh.push(lfh);
                self.available.entry(bytes).or_default().push(self.lfh.len() - 1);
                self.lfh.len() - 1
            }
        };
        let lfh = &mut self.lfh[number];
        let block = lfh.free.swap_remove(random.below(lfh.free.len() as u64) as usize);
        lfh.blocks[block] = Some(owner);
        if lfh.free.is_empty() {
            self.available.entry(bytes).or_default().swap_remove(0);
        }
        self.live_blocks.push((number, block));
        Some(())
    }

    /// Frees a random block.
    pub(crate) fn free(&mut self, random: &mut Random) {
        let number = random.below(self.live().max(1) as u64) as usize;
        if number < self.user.len() {
            let (address, _) = self.user.swap_remove(number);
            self.release(address);
        } else if number < self.user.len() + self.live_blocks.len() {
            self.free_lfh(random);
        } else {
            self.free_vs(random);
        }
    }

    fn free_lfh(&mut self, random: &mut Random) {
        if self.live_blocks.is_empty() {
            return;
        }
        let (number, block) = self.live_blocks.swap_remove(random.below(self.live_blocks.len() as u64) as usize);
        let lfh = &mut self.lfh[number];
        lfh.blocks[block] = None;
        lfh.free.push(block);
        let bytes = lfh.bytes;
        let available = self.available.entry(bytes).or_default();
        if lfh.free.len() == 1 {
            available.push(number);
        }
        if lfh.free.len() == lfh.usable && random.once_in(2) {
            available.retain(|other| *other != number);
            lfh.blocks.clear();
            lfh.bytes = 0;
            let address = lfh.address;
            self.release(address);
        }
    }

    fn free_vs(&mut self, random: &mut Random) {
        if self.live_chunks.is_empty() {
            return;
        }
        let (number, first) = self.live_chunks.swap_remove(random.below(self.live_chunks.len() as u64) as usize);
        let chunks = &mut self.vs[number].chunks;
        let Some(mut chunk) = chunks.remove(&first) else { return };
        if let ChunkState::Live(owner) = chunk.state
            // Those lists are the nodes', for their second and third heap.
            && matches!(self.kind, PoolKind::NonPagedNx | PoolKind::Paged)
            && LOOKASIDE.contains(&((chunk.units - 1) * self.format.unit))
            // One that took a header's room with it is not of its size's list.
            && chunk.units == owner.units(self.format.unit) + 1
            && random.once_in(4)
        {
            let list = self.lookaside.entry(chunk.units).or_default();
            if list.len() < DEPTH {
                list.push((number, first));
                chunks.insert(first, Chunk { units: chunk.units, state: ChunkState::Lookaside(owner) });
                return;
            }
        }
        if random.once_in(4) {
            chunk.state = match chunk.state {
                ChunkState::Live(owner) => ChunkState::Delayed(Some(owner)),
                _ => ChunkState::Delayed(None),
            };
            chunks.insert(first, chunk);
            self.delayed.push((number, first));
            if self.delayed.len() >= DELAYED {
                for (number, first) in std::mem::take(&mut self.delayed) {
                    self.give_back(number, first);
                }
            }
            return;
        }
        chunks.insert(first, chunk);
        self.give_back(number, first);
    }

    /// Addresses of the chunks that wait, the last one first.
    pub(crate) fn delayed(&self) -> impl Iterator<Item = u64> {
        let start = |(number, first): &(usize, u64)| {
            self.vs[*number].address + self.format.first_chunk + first * self.format.unit
        };
        self.delayed.iter().rev().map(start)
    }

    /// Joins a chunk with its free neighbours; an empty subsegment is given back.
    fn give_back(&mut self, number: usize, first: u64) {
        let chunks = &mut self.vs[number].chunks;
        let Some(mut chunk) = chunks.remove(&first) else { return };
        chunk.state = ChunkState::Free;
        let free = |chunk: &Chunk| matches!(chunk.state, ChunkState::Free);
        let next = first + chunk.units;
        if let Some(after) = chunks.get(&next).copied().filter(free) {
            chunks.remove(&next);
            self.free_chunks.remove(&(after.units, number, next));
            chunk.units += after.units;
        }
        let before = chunks.range(..first).next_back().map(|(at, chunk)| (*at, *chunk));
        let mut first = first;
        if let Some((at, before)) = before.filter(|(_, chunk)| free(chunk)) {
            chunks.remove(&at);
            self.free_chunks.remove(&(before.units, number, at));
            chunk.units += before.units;
            first = at;
        }
        if chunks.is_empty() {
            let address = self.vs[number].address;
            self.release(address);
            return;
        }
        chunks.insert(first, chunk);
        self.free_chunks.insert((chunk.units, number, first));
    }
}

/// Units to leave free before a chunk, so that its block does not cross a page, or starts one.
fn gap(at: u64, units: u64, unit: u64, large: bool) -> u64 {
    let block = (at + unit) % PAGE;
    let stays = if large { block == 0 } else { block + (units - 1) * unit <= PAGE };
    if stays {
        return 0;
    }
    // The header is the last of its page, the block the first of the next one.
    let gap = (PAGE - block) / unit;
    // What is left free needs room for a header and a node of the tree.
    if gap < 2 { gap + PAGE / unit } else { gap }
}
