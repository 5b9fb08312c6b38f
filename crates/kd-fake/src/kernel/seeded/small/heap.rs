//! The segment heap's rules, on lists of our own: ranges of pages in segments, chunks of any size (VS) and blocks of one
//! size (LFH) in them.

use std::collections::BTreeMap;

use super::{HEADER, Owner, PAGE};
use crate::kernel::books::PoolKind;
use crate::kernel::random::Random;

/// Bytes of a VS chunk's header; it comes before the pool's own.
pub(crate) const CHUNK: u64 = 16;
/// Where the first chunk of a VS subsegment is.
pub(crate) const FIRST_CHUNK: u64 = 0x30;
/// Largest block with both headers that does not need a page of its own.
const SMALL: u64 = 0xfe0;
/// Blocks up to this size, header included, are given to the LFH once their size is popular.
const LFH_LIMIT: u64 = 0x200;
const POPULAR: u32 = 12;
/// Sizes that a lookaside list takes back.
const LOOKASIDE: std::ops::RangeInclusive<u64> = 0x200..=0xf80;

/// What a range of a segment's units holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Free,
    /// One block of so many bytes.
    User(u64),
    /// A subsegment, by number.
    Vs(usize),
    Lfh(usize),
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
/// Units that the segment's own header takes.
pub(crate) const FIRST_UNIT: [u64; 2] = [2, 1];
const SEGMENT_UNITS: u64 = 256;

#[derive(Debug, Clone, Copy)]
pub(crate) enum ChunkState {
    Free,
    Live(Owner),
    Lookaside(Owner),
    /// Page aligned and without a pool header: it is in the big-page table.
    Large(Owner),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    /// Of 16 bytes.
    pub(crate) units: u64,
    pub(crate) state: ChunkState,
}

pub(crate) struct Vs {
    pub(crate) address: u64,
    pub(crate) pages: u64,
    /// None once it was given back.
    pub(crate) chunks: Vec<Chunk>,
}

impl Vs {
    /// Address of each chunk with the chunk.
    pub(crate) fn walk(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.chunks.iter().scan(self.address + FIRST_CHUNK, |next, chunk| {
            let at = *next;
            *next += chunk.units * CHUNK;
            Some((at, chunk))
        })
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
}

impl Lfh {
    fn new(address: u64, bytes: u64) -> Lfh {
        let pages = [1, 2, 4, 8].into_iter().find(|pages| pages * PAGE / bytes >= 24).unwrap_or(8);
        // Two bits for each block, in words of 64, behind the header.
        let most = pages * PAGE / bytes;
        let first = (FIRST_CHUNK + (2 * most).div_ceil(64) * 8).next_multiple_of(16);
        let count = (pages * PAGE - first) / bytes;
        Lfh { address, pages, bytes, first, blocks: vec![None; count as usize] }
    }

    pub(crate) fn block(&self, number: usize) -> u64 {
        self.address + self.first + self.bytes * number as u64
    }

    /// A block that crosses a page is never handed out.
    fn usable(&self, number: usize) -> bool {
        self.block(number) % PAGE + self.bytes <= PAGE
    }
}

/// Address space for segments.
pub(crate) struct Room {
    pub(crate) next: u64,
}

impl Room {
    fn segment(&mut self, context: usize) -> u64 {
        let size = SEGMENT_UNITS << SHIFT[context];
        let at = self.next.next_multiple_of(size);
        self.next = at + size;
        at
    }
}

pub(crate) struct Heap {
    pub(crate) kind: PoolKind,
    pub(crate) segments: Vec<Segment>,
    pub(crate) vs: Vec<Vs>,
    pub(crate) lfh: Vec<Lfh>,
    /// Page ranges: address and owner.
    pub(crate) user: Vec<(u64, Owner)>,
    popular: BTreeMap<u64, u32>,
}

impl Heap {
    pub(crate) fn new(kind: PoolKind) -> Heap {
        let (segments, vs, lfh, user) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Heap { kind, segments, vs, lfh, user, popular: BTreeMap::new() }
    }

    /// The first free range that is large enough, or one of a new segment.
    pub(crate) fn range(&mut self, context: usize, units: u64, content: Content, room: &mut Room) -> u64 {
        let fits = |segment: &Segment| {
            let fit = |range: &Range| range.content == Content::Free && range.units >= units;
            (segment.context == context).then(|| segment.ranges.iter().position(fit)).flatten()
        };
        let found = self.segments.iter().enumerate().find_map(|(at, segment)| Some((at, fits(segment)?)));
        let (at, slot) = found.unwrap_or_else(|| {
            let first = FIRST_UNIT[context];
            let free = Range { first, units: SEGMENT_UNITS - first, content: Content::Free };
            self.segments.push(Segment { base: room.segment(context), context, ranges: vec![free] });
            (self.segments.len() - 1, 0)
        });
        let segment = &mut self.segments[at];
        let free = segment.ranges[slot];
        let mut new = vec![Range { first: free.first, units, content }];
        if free.units > units {
            new.push(Range { first: free.first + units, units: free.units - units, content: Content::Free });
        }
        segment.ranges.splice(slot..=slot, new);
        segment.base + (free.first << SHIFT[context])
    }

    /// Gives a range back, and joins it with its neighbours.
    fn release(&mut self, address: u64) {
        for segment in &mut self.segments {
            let unit = address.wrapping_sub(segment.base) >> SHIFT[segment.context];
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

    pub(crate) fn allocate(&mut self, owner: Owner, room: &mut Room, random: &mut Random) {
        let bytes = (owner.size + HEADER).next_multiple_of(HEADER);
        if bytes <= LFH_LIMIT {
            let count = self.popular.entry(bytes).or_default();
            *count += 1;
            if *count > POPULAR {
                return self.allocate_lfh(owner, bytes, room, random);
            }
        }
        if bytes <= SMALL {
            return self.allocate_vs(bytes / CHUNK + 1, ChunkState::Live(owner), room);
        }
        let pages = owner.size.div_ceil(PAGE);
        if pages <= 30 {
            // Its page-aligned bytes, and a header before them.
            let units = owner.size.div_ceil(CHUNK) + 1;
            return self.allocate_vs(units, ChunkState::Large(owner), room);
        }
        let context = usize::from(pages > 0xc0);
        let units = owner.size.div_ceil(1 << SHIFT[context]);
        let address = self.range(context, units, Content::User(owner.size), room);
        self.user.push((address, owner));
    }

    fn allocate_vs(&mut self, units: u64, state: ChunkState, room: &mut Room) {
        let large = matches!(state, ChunkState::Large(_));
        let fit = |at: u64, chunk: &Chunk| {
            let gap = gap(at, units, large);
            (matches!(chunk.state, ChunkState::Free) && gap + units <= chunk.units).then_some(gap)
        };
        let found = self.vs.iter().enumerate().find_map(|(number, vs)| {
            let slot = vs.walk().enumerate().find_map(|(slot, (at, chunk))| Some((slot, fit(at, chunk)?)))?;
            Some((number, slot.0, slot.1))
        });
        let (number, slot, gap) = found.unwrap_or_else(|| {
            let pages = if large { 64 } else { 16 };
            let address = self.range(0, pages, Content::Vs(self.vs.len()), room);
            let free = Chunk { units: (pages * PAGE - FIRST_CHUNK) / CHUNK, state: ChunkState::Free };
            self.vs.push(Vs { address, pages, chunks: vec![free] });
            (self.vs.len() - 1, 0, self::gap(address + FIRST_CHUNK, units, large))
        });
        let chunks = &mut self.vs[number].chunks;
        let rest = chunks[slot].units - gap - units;
        // A chunk of a header only cannot be free: it goes with the block.
        let (units, rest) = if rest == 1 { (units + 1, 0) } else { (units, rest) };
        let mut new = vec![Chunk { units: gap, state: ChunkState::Free }, Chunk { units, state }];
        new.push(Chunk { units: rest, state: ChunkState::Free });
        new.retain(|chunk| chunk.units > 0);
        chunks.splice(slot..=slot, new);
    }

    fn allocate_lfh(&mut self, owner: Owner, bytes: u64, room: &mut Room, random: &mut Random) {
        let free = |lfh: &Lfh| -> Vec<usize> {
            (0..lfh.blocks.len()).filter(|&block| lfh.blocks[block].is_none() && lfh.usable(block)).collect()
        };
        let same = self.lfh.iter().enumerate().filter(|(_, lfh)| lfh.bytes == bytes);
        let found = same.map(|(number, lfh)| (number, free(lfh))).find(|(_, free)| !free.is_empty());
        let (number, free) = found.unwrap_or_else(|| {
            let mut lfh = Lfh::new(0, bytes);
            lfh.address = self.range(0, lfh.pages, Content::Lfh(self.lfh.len()), room);
            let blocks = free(&lfh);
            self.lfh.push(lfh);
            (self.lfh.len() - 1, blocks)
        });
        self.lfh[number].blocks[*random.pick(&free)] = Some(owner);
    }

    /// Frees a random block.
    pub(crate) fn free(&mut self, random: &mut Random) {
        match random.below(20) {
            0 if !self.user.is_empty() => {
                let (address, _) = self.user.swap_remove(random.below(self.user.len() as u64) as usize);
                self.release(address);
            }
            1..14 => self.free_lfh(random),
            _ => self.free_vs(random),
        }
    }

    fn free_lfh(&mut self, random: &mut Random) {
        let used: Vec<(usize, usize)> = self
            .lfh
            .iter()
            .enumerate()
            .flat_map(|(number, lfh)| (0..lfh.blocks.len()).map(move |block| (number, block)))
            .filter(|(number, block)| self.lfh[*number].blocks[*block].is_some())
            .collect();
        if used.is_empty() {
            return;
        }
        let (number, block) = *random.pick(&used);
        let lfh = &mut self.lfh[number];
        lfh.blocks[block] = None;
        if lfh.blocks.iter().all(Option::is_none) && random.once_in(2) {
            lfh.blocks.clear();
            lfh.bytes = 0;
            let address = lfh.address;
            self.release(address);
        }
    }

    fn free_vs(&mut self, random: &mut Random) {
        let used: Vec<(usize, usize)> = self
            .vs
            .iter()
            .enumerate()
            .flat_map(|(number, vs)| (0..vs.chunks.len()).map(move |slot| (number, slot)))
            .filter(|(number, slot)| {
                matches!(self.vs[*number].chunks[*slot].state, ChunkState::Live(_) | ChunkState::Large(_))
            })
            .collect();
        if used.is_empty() {
            return;
        }
        let (number, slot) = *random.pick(&used);
        let chunks = &mut self.vs[number].chunks;
        if let ChunkState::Live(owner) = chunks[slot].state
            && self.kind != PoolKind::NonPaged
            && LOOKASIDE.contains(&(chunks[slot].units * CHUNK - CHUNK))
            && random.once_in(4)
        {
            chunks[slot].state = ChunkState::Lookaside(owner);
            return;
        }
        chunks[slot].state = ChunkState::Free;
        let free = |chunk: Option<&Chunk>| chunk.is_some_and(|chunk| matches!(chunk.state, ChunkState::Free));
        if free(chunks.get(slot + 1)) {
            chunks[slot].units += chunks.remove(slot + 1).units;
        }
        if slot > 0 && free(chunks.get(slot - 1)) {
            chunks[slot - 1].units += chunks.remove(slot).units;
        }
        if chunks.len() == 1 && free(chunks.first()) {
            chunks.clear();
            let address = self.vs[number].address;
            self.release(address);
        }
    }
}

/// Units to leave free before a chunk, so that its block does not cross a page, or starts one.
fn gap(at: u64, units: u64, large: bool) -> u64 {
    let block = (at + CHUNK) % PAGE;
    let stays = if large { block == 0 } else { block + (units - 1) * CHUNK <= PAGE };
    if stays {
        return 0;
    }
    // The header is the last of its page, the block the first of the next one.
    let gap = (PAGE - block) / CHUNK;
    // What is left free needs room for a header and a node of the tree.
    if gap < 2 { gap + PAGE / CHUNK } else { gap }
}
