//! The pool of Vista to Windows 10 1803: pages of chained headers, free lists, lookaside lists, deferred frees.

use std::ops::Range;

use super::{HEADER, Header, Headers, Owner, PAGE, World, fill, kinds, singly_linked};
use crate::isf::IsfError;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::seeded::places::Map;
use crate::kernel::truth::{Carrier, Residence, SmallBlock, SmallState};

/// Units of 16 bytes in a page.
const UNITS: u64 = PAGE / HEADER;
/// Above this many bytes a block is a large one.
const LIMIT: u64 = 0xfc0;
/// Lookaside lists of a processor, for blocks of 1 to so many units.
const LOOKASIDES: u64 = 32;
const DESCRIPTOR: &str = "_POOL_DESCRIPTOR";

#[derive(Debug, Clone, Copy)]
enum State {
    Free,
    Live,
    /// On a list of this processor.
    Lookaside(usize),
    Deferred,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    units: u64,
    /// The last one, when it is free.
    owner: Owner,
    state: State,
}

struct Page {
    address: u64,
    blocks: Vec<Block>,
}

/// A pool with a descriptor of its own.
struct Pool {
    kind: PoolKind,
    index: u64,
    descriptor: u64,
    pages: Vec<Page>,
}

/// Page-aligned addresses for the pools of one kind.
struct Room {
    range: Range<u64>,
    free: Vec<u64>,
}

impl Room {
    fn page(&mut self, random: &mut Random) -> u64 {
        if !self.free.is_empty() && random.once_in(2) {
            return self.free.swap_remove(0);
        }
        let at = self.range.start;
        // Now and then a hole: pages are not all together.
        self.range.start += PAGE * if random.once_in(10) { 1 + random.below(0x400) } else { 1 };
        at
    }
}

impl Pool {
    /// Splits the smallest free block that is large enough, or takes a new page.
    fn allocate(&mut self, owner: Owner, room: &mut Room, random: &mut Random) {
        let units = (owner.size + HEADER).div_ceil(HEADER).max(2);
        if random.once_in(2) {
            // A processor's lookaside list gives back what it got.
            let same = self.pages.iter_mut().flat_map(|page| &mut page.blocks);
            let mut same = same.filter(|block| block.units == units && matches!(block.state, State::Lookaside(_)));
            if let Some(block) = same.next() {
                (block.owner, block.state) = (owner, State::Live);
                return;
            }
        }
        let best = self
            .pages
            .iter()
            .enumerate()
            .flat_map(|(at, page)| page.blocks.iter().enumerate().map(move |(slot, block)| (block.units, at, slot)))
            .filter(|(free, at, slot)| *free >= units && matches!(self.pages[*at].blocks[*slot].state, State::Free))
            .min();
        let (at, slot) = match best {
            Some((_, at, slot)) => (at, slot),
            None => {
                let free = Block { units: UNITS, owner, state: State::Free };
                self.pages.push(Page { address: room.page(random), blocks: vec![free] });
                (self.pages.len() - 1, 0)
            }
        };
        let blocks = &mut self.pages[at].blocks;
        let rest = Block { units: blocks[slot].units - units, ..blocks[slot] };
        let live = Block { units, owner, state: State::Live };
        if rest.units == 0 {
            blocks[slot] = live;
        } else if slot == 0 {
            blocks.splice(slot..=slot, [live, rest]);
        } else {
            // Within a page the end of the free block is taken.
            blocks.splice(slot..=slot, [rest, live]);
        }
    }

    /// Frees a random live block.
    fn free(&mut self, room: &mut Room, processors: usize, random: &mut Random) {
        let live: Vec<(usize, usize)> = self
            .pages
            .iter()
            .enumerate()
            .flat_map(|(at, page)| (0..page.blocks.len()).map(move |slot| (at, slot)))
            .filter(|(at, slot)| matches!(self.pages[*at].blocks[*slot].state, State::Live))
            .collect();
        if live.is_empty() {
            return;
        }
        let (at, slot) = *random.pick(&live);
        let blocks = &mut self.pages[at].blocks;
        if random.once_in(8) && blocks[slot].units <= LOOKASIDES {
            blocks[slot].state = State::Lookaside(random.below(processors as u64) as usize);
            return;
        }
        if random.once_in(16) {
            blocks[slot].state = State::Deferred;
            return;
        }
        blocks[slot].state = State::Free;
        let free = |block: Option<&Block>| block.is_some_and(|block| matches!(block.state, State::Free));
        if free(blocks.get(slot + 1)) {
            blocks[slot].units += blocks.remove(slot + 1).units;
        }
        if slot > 0 && free(blocks.get(slot - 1)) {
            blocks[slot - 1].units += blocks.remove(slot).units;
        }
        if blocks.len() == 1 && free(blocks.first()) {
            room.free.push(self.pages.remove(at).address);
        }
    }
}

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<Vec<SmallBlock>, IsfError> {
    let mut pools = pools(builder, map, random, world)?;
    let region = |range: &Range<u64>| range.start..range.start + (1 << 32);
    let mut rooms = [&map.nonpaged, &map.paged].map(|range| Room { range: region(range), free: Vec::new() });
    for _ in 0..world.operations {
        let pool = random.below(pools.len() as u64) as usize;
        let pool = &mut pools[pool];
        let room = &mut rooms[usize::from(pool.kind == PoolKind::Paged)];
        if random.below(9) < 5 {
            pool.allocate(Owner::random(random, world, LIMIT), room, random);
        } else {
            pool.free(room, world.processors.len(), random);
        }
    }
    let headers = Headers::new(builder, world)?;
    let mut small = Vec::new();
    for pool in &pools {
        write_pool(builder, random, world, &headers, pool, &mut small)?;
    }
    lookasides(builder, world, &pools)?;
    Ok(small)
}

/// Nonpaged pool, the same without execution, and three pools of paged pool; with the variables that lead to them.
fn pools(builder: &mut Builder, map: &mut Map, random: &mut Random, world: &World) -> Result<Vec<Pool>, IsfError> {
    let size = builder.isf.size(DESCRIPTOR)?;
    let nonpaged = builder.symbol("NonPagedPoolDescriptor")?;
    let mut pools = Vec::new();
    let mut pool = |kind, index, descriptor| pools.push(Pool { kind, index, descriptor, pages: Vec::new() });
    for (index, kind) in (0..).zip(kinds(world.build)) {
        if *kind != PoolKind::Paged {
            pool(*kind, index, nonpaged + index * size);
            builder.memory.put(
                builder.symbol("ExpNonPagedPoolDescriptor")? + 8 * index,
                &(nonpaged + index * size).to_le_bytes(),
            );
        }
    }
    let count = 1 + random.below(4) as u32;
    let paged = map.room(size * 5);
    for index in 0..=u64::from(count) {
        pool(PoolKind::Paged, index, paged + index * size);
        builder
            .memory
            .put(builder.symbol("ExpPagedPoolDescriptor")? + 8 * index, &(paged + index * size).to_le_bytes());
    }
    builder.set_u32("ExpNumberOfPagedPools", count)?;
    builder.set_u32("ExpNumberOfNonPagedPools", 1)?;
    builder.set("PoolVector", &[nonpaged.to_le_bytes(), paged.to_le_bytes()].concat())?;
    Ok(pools)
}

fn write_pool(
    builder: &mut Builder,
    random: &mut Random,
    world: &World,
    headers: &Headers,
    pool: &Pool,
    small: &mut Vec<SmallBlock>,
) -> Result<(), IsfError> {
    let paged = pool.kind == PoolKind::Paged;
    let heads = pool.descriptor + builder.isf.offset(DESCRIPTOR, "ListHeads")?;
    let mut lists: Vec<Vec<u64>> = (0..256).map(|units| vec![heads + 16 * units]).collect();
    let mut pending = Vec::new();
    let mut out = Vec::new();
    for page in &pool.pages {
        // The lists are in memory; only pages of live and free blocks leave it.
        let quiet = page.blocks.iter().all(|block| matches!(block.state, State::Live | State::Free));
        let residence = match random.below(10) {
            0 if paged && quiet => Residence::Transition,
            1 if paged && quiet => Residence::PagedOut,
            _ => Residence::Present,
        };
        let mut header = page.address;
        let mut previous = 0;
        for block in &page.blocks {
            let free = matches!(block.state, State::Free);
            let owner = (!free).then_some(block.owner);
            let tag = block.owner.tag;
            headers.write(
                builder,
                header,
                &Header { previous, units: block.units, index: pool.index, paged, owner, tag },
            );
            let (address, bytes) = (header + HEADER, block.units * HEADER);
            fill(builder, address, bytes - HEADER, random);
            match block.state {
                // A block of a header only is a remnant, and on no list.
                State::Free if block.units > 1 && residence != Residence::PagedOut => {
                    lists[block.units as usize].push(address);
                }
                State::Deferred => pending.push(address),
                _ => {}
            }
            small.push(SmallBlock {
                address,
                header,
                bytes,
                size: if free { 0 } else { block.owner.size },
                tag,
                kind: pool.kind,
                state: match block.state {
                    State::Free => SmallState::Free,
                    State::Live => SmallState::Live,
                    State::Lookaside(_) => SmallState::Lookaside,
                    State::Deferred => SmallState::Deferred,
                },
                process: owner.and_then(|owner| owner.process),
                carrier: Carrier::Page,
                residence,
            });
            header += bytes;
            previous = block.units;
        }
        out.push((page.address, residence));
    }
    let mut descriptor = builder.object(DESCRIPTOR)?;
    let values = [
        ("PoolType", pool.kind.pool_type()),
        ("PoolIndex", pool.index),
        ("RunningAllocs", u64::from(world.operations)),
        ("PendingFrees", pending.first().copied().unwrap_or_default()),
        ("PendingFreeDepth", pending.len() as u64),
    ];
    for (name, value) in values {
        match name {
            // A pointer, or a list's head, by version.
            "PendingFrees" => builder.bytes(&mut descriptor, name, &value.to_le_bytes())?,
            _ => builder.field(&mut descriptor, name, value)?,
        }
    }
    builder.store(pool.descriptor, &descriptor);
    for (at, element) in pending.iter().enumerate() {
        let next = pending.get(at + 1).copied().unwrap_or_default();
        builder.memory.put(*element, &next.to_le_bytes());
    }
    for list in &lists {
        builder.link(list);
    }
    for (page, residence) in out {
        match residence {
            Residence::Present => {}
            Residence::Transition => builder.memory.trim(page),
            Residence::PagedOut => builder.memory.page_out(page),
        }
    }
    Ok(())
}

/// The lookaside lists in each KPRCB: by kind, then by units.
fn lookasides(builder: &mut Builder, world: &World, pools: &[Pool]) -> Result<(), IsfError> {
    let size = builder.isf.size("_GENERAL_LOOKASIDE_POOL")?;
    for (processor, prcb) in world.processors.iter().enumerate() {
        for kind in kinds(world.build) {
            let array = match kind {
                PoolKind::NonPaged => "PPNPagedLookasideList",
                PoolKind::NonPagedNx => "PPNxPagedLookasideList",
                PoolKind::Paged => "PPPagedLookasideList",
            };
            let array = prcb + builder.isf.offset("_KPRCB", array)?;
            let mut lists: Vec<Vec<u64>> = vec![Vec::new(); LOOKASIDES as usize];
            for page in pools.iter().filter(|pool| pool.kind == *kind).flat_map(|pool| &pool.pages) {
                let mut header = page.address;
                for block in &page.blocks {
                    if matches!(block.state, State::Lookaside(owner) if owner == processor) {
                        lists[block.units as usize - 1].push(header + HEADER);
                    }
                    header += block.units * HEADER;
                }
            }
            for (list, head) in lists.iter().zip((array..).step_by(size as usize)) {
                singly_linked(builder, head, list);
            }
        }
    }
    Ok(())
}
