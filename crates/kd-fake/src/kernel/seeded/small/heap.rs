//! The segment heap's rules, on lists of our own: chunks of any size (VS) and blocks of one size (LFH) in ranges of pages.

use std::collections::{BTreeMap, BTreeSet};

use super::{Owner, PAGE};
use crate::kernel::books::PoolKind;
use crate::kernel::random::Random;
use crate::kernel::segments::{Content, MOST, Room, SHIFT, Segments};

/// Largest block with its header: `BlockSize` has eight bits.
const SMALL: u64 = 0xff0;
/// Largest block that is a chunk.
const VS_LIMIT: u64 = 0x2_0000;
/// Blocks up to this size, header included, are given to the LFH once their size is popular.
const LFH_LIMIT: u64 = 0x200;
const POPULAR: u32 = 12;
/// Sizes that a lookaside list takes back, and how many of them.
const LOOKASIDE: std::ops::RangeInclusive<u64> = 0x200..=0xf80;
const DEPTH: usize = 64;
/// Freed chunks of less than so many bytes wait, until there are so many of them; then all are given back.
const DELAYED_BELOW: u64 = 0x400;
const DELAYED: usize = 32;
/// Freed LFH blocks of a subsegment that wait.
const DELAYED_BLOCKS: usize = 6;
/// Bytes of an LFH subsegment's commit state for each page.
pub(crate) const COMMIT_STATE: u64 = 2;
/// Free chunks that are tried before one is taken that fits in any case.
const NEAR: usize = 32;

#[derive(Debug, Clone, Copy)]
pub(crate) enum ChunkState {
    Free,
    Live(Owner),
    Lookaside(Owner),
    /// Freed, and waiting to be given back; whose it was.
    Delayed(Owner),
    /// Page aligned and without a pool header: it is in the big-page table.
    Large(Owner),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) units: u64,
    /// Units from the chunk to its block; of a free one to the end of its own header.
    pub(crate) lead: u64,
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
    /// Blocks that are freed and wait, the first one last.
    pub(crate) delayed: Vec<usize>,
}

impl Lfh {
    fn new(bytes: u64, format: Format) -> Lfh {
        let pages = [1, 2, 4, 8].into_iter().find(|pages| pages * PAGE / bytes >= 24).unwrap_or(8);
        // The bitmap in words of 64, behind the header, and the state of the pages' commitment behind that.
        let most = pages * PAGE / bytes;
        let words = (format.lfh_bits * most).div_ceil(64);
        let first = (format.bitmap + words * 8 + COMMIT_STATE * pages).next_multiple_of(format.unit);
        let count = (pages * PAGE - first) / bytes;
        let blocks = vec![None; count as usize];
        let (free, delayed) = (Vec::new(), Vec::new());
        let mut lfh = Lfh { address: 0, pages, bytes, first, blocks, free, usable: 0, delayed };
        // A block that crosses a page is never handed out.
        lfh.free = (0..lfh.blocks.len()).filter(|number| !lfh.is_withheld(*number)).collect();
        lfh.usable = lfh.free.len();
        lfh
    }

    pub(crate) fn is_withheld(&self, number: usize) -> bool {
        self.block(number) % PAGE + self.bytes > PAGE
    }

    /// Blocks that can be handed out or are.
    pub(crate) fn usable(&self) -> usize {
        self.usable
    }

    /// Of those, the ones that are free.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn block(&self, number: usize) -> u64 {
        self.address + self.first + self.bytes * number as u64
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
    /// Bits of a block in that bitmap.
    pub(crate) lfh_bits: u64,
    /// Whether a chunk may lie so close to a page's end that its block starts the next page, with a unit between.
    pub(crate) late_header: bool,
    /// Units of a VS range behind its subsegment.
    pub(crate) spare_units: u64,
    /// Whether freed LFH blocks may wait in their subsegment.
    pub(crate) delays_blocks: bool,
}

pub(crate) struct Heap {
    pub(crate) kind: PoolKind,
    format: Format,
    pub(crate) segments: Segments,
    pub(crate) vs: Vec<Vs>,
    pub(crate) lfh: Vec<Lfh>,
    /// Page ranges: address and owner.
    pub(crate) user: Vec<(u64, Owner)>,
    /// Large blocks that are no more, oldest first.
    pub(crate) ended: Vec<(u64, Owner)>,
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
            segments: Segments::new(format.first_unit),
            vs: Vec::new(),
            lfh: Vec::new(),
            user: Vec::new(),
            ended: Vec::new(),
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
                && let Some((vs, first)) = self.lookaside.get_mut(&units).and_then(Vec::pop)
            {
                if let Some(chunk) = self.vs[vs].chunks.get_mut(&first) {
                    chunk.state = ChunkState::Live(owner);
                }
                self.live_chunks.push((vs, first));
                return Some(());
            }
            return self.allocate_vs(units, ChunkState::Live(owner), room, random);
        }
        // What needs no header has a page at least.
        let owner = Owner { size: owner.size.max(PAGE), ..owner };
        if owner.size <= VS_LIMIT {
            return self.allocate_vs(owner.size.div_ceil(unit), ChunkState::Large(owner), room, random);
        }
        self.allocate_range(owner, room, random)
    }

    /// A block of whole pages, which are its own.
    pub(crate) fn allocate_range(&mut self, owner: Owner, room: &mut Room, random: &mut Random) -> Option<()> {
        let context = usize::from(owner.size > MOST[0]);
        let units = owner.size.div_ceil(1 << SHIFT[context]);
        // Nobody knows what the upper bits say.
        let flags = if random.once_in(3) { 0x10 << random.below(3) } else { 0 };
        let content = Content::User { bytes: owner.size, flags };
        let address = self.segments.take(context, units, content, room)?;
        self.user.push((address, owner));
        Some(())
    }

    /// A block of so many units, in the smallest free chunk that is large enough with what has to stay free before it;
    /// that is never two pages.
    fn allocate_vs(&mut self, units: u64, state: ChunkState, room: &mut Room, random: &mut Random) -> Option<()> {
        let format = self.format;
        let Format { unit, first_chunk, .. } = format;
        let large = matches!(state, ChunkState::Large(_));
        let straight = random.once_in(2);
        let place = |at| place(at, units, format, large, straight);
        let at = |vs: &Vs, first: u64| vs.address + first_chunk + first * unit;
        let fit = |&(size, vs, first): &(u64, usize, u64)| {
            let (gap, lead) = place(at(&self.vs[vs], first));
            (gap + lead + units <= size).then_some((size, vs, first, gap, lead))
        };
        let near = self.free_chunks.range((units, 0, 0)..).take(NEAR).find_map(fit);
        let found = near.or_else(|| self.free_chunks.range((units + 2 * PAGE / unit, 0, 0)..).find_map(fit));
        let (size, number, first, gap, lead) = match found {
            Some(found) => found,
            None => {
                let pages = if large { 64 } else { *random.pick(&[16, 16, 32]) };
                // The unit behind the subsegment has no chunks.
                let address = self.segments.take(0, pages + format.spare_units, Content::Vs, room)?;
                let size = (pages * PAGE - first_chunk) / unit;
                let chunks = BTreeMap::from([(0, Chunk { units: size, lead: 0, state: ChunkState::Free })]);
                self.vs.push(Vs { address, pages, chunks });
                let number = self.vs.len() - 1;
                self.free_chunks.insert((size, number, 0));
                let (gap, lead) = place(address + first_chunk);
                (size, number, 0, gap, lead)
            }
        };
        self.free_chunks.remove(&(size, number, first));
        let units = lead + units;
        let rest = size - gap - units;
        // A chunk of a header only cannot be free: it goes with the block.
        let (units, rest) = if rest == 1 { (units + 1, 0) } else { (units, rest) };
        let chunks = &mut self.vs[number].chunks;
        chunks.remove(&first);
        for (first, units) in [(first, gap), (first + gap + units, rest)] {
            if units > 0 {
                chunks.insert(first, Chunk { units, lead: 0, state: ChunkState::Free });
                self.free_chunks.insert((units, number, first));
            }
        }
        chunks.insert(first + gap, Chunk { units, lead, state });
        self.live_chunks.push((number, first + gap));
        Some(())
    }

    fn allocate_lfh(&mut self, owner: Owner, bytes: u64, room: &mut Room, random: &mut Random) -> Option<()> {
        let available = self.available.get(&bytes).and_then(|list| list.first().copied());
        let number = match available {
            Some(number) => number,
            None => {
                let mut lfh = Lfh::new(bytes, self.format);
                lfh.address = self.segments.take(0, lfh.pages, Content::Lfh, room)?;
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

    /// Makes subsegments of which no block is in use, for whoever comes later; returns which they are.
    pub(crate) fn reserve(&mut self, bytes: u64, count: usize, room: &mut Room) -> std::ops::Range<usize> {
        let first = self.lfh.len();
        for _ in 0..count {
            let mut lfh = Lfh::new(bytes, self.format);
            let Some(address) = self.segments.take(0, lfh.pages, Content::Lfh, room) else { break };
            lfh.address = address;
            self.lfh.push(lfh);
        }
        first..self.lfh.len()
    }

    /// Frees a random block.
    pub(crate) fn free(&mut self, random: &mut Random) {
        let number = random.below(self.live().max(1) as u64) as usize;
        if number < self.user.len() {
            let (address, owner) = self.user.swap_remove(number);
            self.segments.release(address);
            self.ended.push((address, owner));
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
        let freed = match self.format.delays_blocks && random.once_in(6) {
            true => {
                lfh.delayed.push(block);
                if lfh.delayed.len() < DELAYED_BLOCKS {
                    return;
                }
                std::mem::take(&mut lfh.delayed)
            }
            false => vec![block],
        };
        let bytes = lfh.bytes;
        let available = self.available.entry(bytes).or_default();
        if lfh.free.is_empty() {
            available.push(number);
        }
        for block in freed {
            lfh.blocks[block] = None;
            lfh.free.push(block);
        }
        if lfh.free.len() == lfh.usable && random.once_in(2) {
            available.retain(|other| *other != number);
            lfh.blocks.clear();
            lfh.bytes = 0;
            let address = lfh.address;
            self.segments.release(address);
        }
    }

    fn free_vs(&mut self, random: &mut Random) {
        if self.live_chunks.is_empty() {
            return;
        }
        let (number, first) = self.live_chunks.swap_remove(random.below(self.live_chunks.len() as u64) as usize);
        let chunks = &mut self.vs[number].chunks;
        let Some(mut chunk) = chunks.remove(&first) else { return };
        if let ChunkState::Live(owner) = chunk.state {
            let units = owner.units(self.format.unit);
            // The lists are the nodes', for their second and third heap.
            if matches!(self.kind, PoolKind::NonPagedNx | PoolKind::Paged)
                && LOOKASIDE.contains(&(units * self.format.unit))
                && !owner.aligned
                && random.once_in(4)
            {
                let list = self.lookaside.entry(units).or_default();
                if list.len() < DEPTH {
                    list.push((number, first));
                    chunks.insert(first, Chunk { state: ChunkState::Lookaside(owner), ..chunk });
                    return;
                }
            }
            if chunk.units * self.format.unit < DELAYED_BELOW && !owner.aligned && random.once_in(4) {
                chunk.state = ChunkState::Delayed(owner);
                chunks.insert(first, chunk);
                self.delayed.push((number, first));
                if self.delayed.len() >= DELAYED {
                    for (number, first) in std::mem::take(&mut self.delayed) {
                        self.give_back(number, first);
                    }
                }
                return;
            }
        }
        if let ChunkState::Large(owner) = chunk.state {
            let address = self.vs[number].address + self.format.first_chunk + (first + chunk.lead) * self.format.unit;
            self.ended.push((address, owner));
        }
        self.vs[number].chunks.insert(first, chunk);
        self.give_back(number, first);
    }

    /// The chunks that wait, the last one first: subsegment and address.
    pub(crate) fn delayed(&self) -> impl Iterator<Item = (usize, u64)> {
        let start = |(number, first): &(usize, u64)| {
            (*number, self.vs[*number].address + self.format.first_chunk + first * self.format.unit)
        };
        self.delayed.iter().rev().map(start)
    }

    /// Joins a chunk with its free neighbours; an empty subsegment is given back.
    fn give_back(&mut self, number: usize, first: u64) {
        let chunks = &mut self.vs[number].chunks;
        let Some(mut chunk) = chunks.remove(&first) else { return };
        chunk = Chunk { lead: 0, state: ChunkState::Free, ..chunk };
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
            self.segments.release(address);
            return;
        }
        chunks.insert(first, chunk);
        self.free_chunks.insert((chunk.units, number, first));
    }
}

/// Units to leave free before a chunk, so that its block does not cross a page, or starts one; and units from the chunk
/// to the block. `straight`: a block that starts a page has its chunk right before it, where there is a choice.
fn place(at: u64, units: u64, format: Format, large: bool, straight: bool) -> (u64, u64) {
    let Format { unit, late_header, .. } = format;
    let offset = at % PAGE;
    // Units to the place from which a block starts the next page with so many units between, once or a page later.
    let before = |lead: u64| {
        let gap = (2 * PAGE - lead * unit - offset) % PAGE / unit;
        // What is left free needs room for a header and a node of the tree.
        (if gap == 1 { gap + PAGE / unit } else { gap }, lead)
    };
    if large {
        return before(2);
    }
    if late_header && offset == PAGE - 2 * unit {
        return (0, 2);
    }
    if (offset + unit) % PAGE + units * unit <= PAGE {
        return (0, 1);
    }
    let (near, late) = (before(1), before(2));
    if late_header && (near.0 > PAGE / unit || !straight && late.0 < PAGE / unit) { late } else { near }
}
