//! The pool of Vista to Windows 10 1803: pages of chained headers, free lists, lookaside lists, deferred frees.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Header, Headers, Owner, PAGE, World, fill, kinds};
use crate::isf::IsfError;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::seeded::places::Map;
use crate::kernel::truth::{Carrier, Residence, SmallBlock, SmallState};

/// Above this many bytes a block is a large one.
const LIMIT: u64 = 0xfc0;
/// Lookaside lists of a processor, for blocks of 1 to so many units.
const LOOKASIDES: u64 = 32;
/// Blocks that a lookaside list takes.
const DEPTH: usize = 256;
/// Deferred frees that wait before all of them are done.
const DEFERRED: usize = 32;
const DESCRIPTOR: &str = "_POOL_DESCRIPTOR";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// A block: its page, and its first unit there.
type At = (usize, u64);

struct Page {
    address: u64,
    /// By first unit; none of a page that was given back.
    blocks: BTreeMap<u64, Block>,
}

/// A pool with a descriptor of its own.
struct Pool {
    kind: PoolKind,
    index: u64,
    descriptor: u64,
    /// Bytes of a unit.
    unit: u64,
    /// Blocks of more units have no lookaside list.
    limit: u64,
    pages: Vec<Page>,
    /// Of `pages`, those that were given back.
    gone: Vec<usize>,
    /// Free blocks by size.
    free: BTreeSet<(u64, At)>,
    live: Vec<At>,
    /// By units, then by processor; the last freed one is the first to be used again.
    lookasides: BTreeMap<(u64, usize), Vec<At>>,
    deferred: Vec<At>,
}

/// Page-aligned addresses for the pools of one kind.
struct Room {
    range: Range<u64>,
    free: Vec<u64>,
}

impl Room {
    fn page(&mut self, random: &mut Random) -> u64 {
        if !self.free.is_empty() && random.once_in(2) {
            let at = random.below(self.free.len() as u64) as usize;
            return self.free.swap_remove(at);
        }
        let at = self.range.start;
        // Now and then a hole: pages are not all together.
        let rest = (self.range.end - at) / PAGE;
        let hole = if random.once_in(10) { 1 + random.below(0x400.min(rest / 64).max(1)) } else { 1 };
        self.range.start += PAGE * hole;
        at
    }
}

impl Pool {
    fn new(kind: PoolKind, index: u64, descriptor: u64, unit: u64) -> Pool {
        Pool {
            kind,
            index,
            descriptor,
            unit,
            limit: LOOKASIDES,
            pages: Vec::new(),
            gone: Vec::new(),
            free: BTreeSet::new(),
            live: Vec::new(),
            lookasides: BTreeMap::new(),
            deferred: Vec::new(),
        }
    }

    /// What its owner got of a block.
    fn address(&self, &(page, first): &At) -> u64 {
        self.pages[page].address + (first + 1) * self.unit
    }

    fn block(&mut self, (page, first): At) -> Option<&mut Block> {
        self.pages[page].blocks.get_mut(&first)
    }

    /// Splits the smallest free block that is large enough, or takes a new page.
    fn allocate(&mut self, owner: Owner, room: &mut Room, processors: usize, random: &mut Random) {
        let units = owner.units(self.unit).max(2);
        let processor = random.below(processors as u64) as usize;
        if random.once_in(2)
            && let Some(at) = self.lookasides.get_mut(&(units, processor)).and_then(Vec::pop)
        {
            // A processor's lookaside list gives back what it got.
            self.take(at, owner);
            return;
        }
        let best = self.free.range((units, (0, 0))..).next().copied();
        let (size, (page, first)) = best.unwrap_or_else(|| {
            let units = PAGE / self.unit;
            let free = Block { units, owner, state: State::Free };
            let new = Page { address: room.page(random), blocks: BTreeMap::from([(0, free)]) };
            let page = match self.gone.pop() {
                Some(page) => {
                    self.pages[page] = new;
                    page
                }
                None => {
                    self.pages.push(new);
                    self.pages.len() - 1
                }
            };
            self.free.insert((units, (page, 0)));
            (units, (page, 0))
        });
        self.free.remove(&(size, (page, first)));
        let rest = size - units;
        // Of a page's first block the start is taken, of others the end.
        let (live, left) = if first == 0 { (0, units) } else { (first + rest, first) };
        let blocks = &mut self.pages[page].blocks;
        let last = blocks.remove(&first).map_or(owner, |block| block.owner);
        blocks.insert(live, Block { units, owner, state: State::Live });
        if rest > 0 {
            blocks.insert(left, Block { units: rest, owner: last, state: State::Free });
            self.free.insert((rest, (page, left)));
        }
        self.live.push((page, live));
    }

    /// A cached block goes to a program again.
    fn take(&mut self, at: At, owner: Owner) {
        if let Some(block) = self.block(at) {
            (block.owner, block.state) = (owner, State::Live);
        }
        self.live.push(at);
    }

    /// Frees a random live block.
    fn free(&mut self, room: &mut Room, processors: usize, random: &mut Random) {
        if self.live.is_empty() {
            return;
        }
        let at = self.live.swap_remove(random.below(self.live.len() as u64) as usize);
        let units = self.block(at).map_or(0, |block| block.units);
        if random.once_in(8) && units <= self.limit {
            let processor = random.below(processors as u64) as usize;
            let list = self.lookasides.entry((units, processor)).or_default();
            if list.len() < DEPTH {
                list.push(at);
                self.mark(at, State::Lookaside(processor));
                return;
            }
        }
        if random.once_in(16) {
            self.mark(at, State::Deferred);
            self.deferred.push(at);
            if self.deferred.len() >= DEFERRED {
                for at in std::mem::take(&mut self.deferred) {
                    self.give_back(at, room);
                }
            }
            return;
        }
        self.give_back(at, room);
    }

    fn mark(&mut self, at: At, state: State) {
        if let Some(block) = self.block(at) {
            block.state = state;
        }
    }

    /// Joins a block with its free neighbours; an empty page is given back.
    fn give_back(&mut self, (page, mut first): At, room: &mut Room) {
        let blocks = &mut self.pages[page].blocks;
        let Some(mut block) = blocks.remove(&first) else { return };
        block.state = State::Free;
        let free = |block: &Block| block.state == State::Free;
        let next = first + block.units;
        if let Some(after) = blocks.get(&next).copied().filter(free) {
            blocks.remove(&next);
            self.free.remove(&(after.units, (page, next)));
            block.units += after.units;
        }
        let before = blocks.range(..first).next_back().map(|(at, block)| (*at, *block));
        if let Some((at, before)) = before.filter(|(_, block)| free(block)) {
            blocks.remove(&at);
            self.free.remove(&(before.units, (page, at)));
            // The tag is that of the header that stays.
            block = Block { units: before.units + block.units, ..before };
            first = at;
        }
        if blocks.is_empty() {
            room.free.push(self.pages[page].address);
            self.gone.push(page);
            return;
        }
        blocks.insert(first, block);
        self.free.insert((block.units, (page, first)));
    }
}

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<Vec<SmallBlock>, IsfError> {
    let mut pools = pools(builder, map, random, world)?;
    let mut rooms = [map.nonpaged_small(), map.paged_small()].map(|range| Room { range, free: Vec::new() });
    for _ in 0..world.operations {
        let pool = random.below(pools.len() as u64) as usize;
        let pool = &mut pools[pool];
        operate(pool, &mut rooms[usize::from(pool.kind.is_paged())], world.processors.len(), random, world);
    }
    let headers = Headers::new(builder, world)?;
    let mut small = Vec::new();
    for pool in &pools {
        write_pool(builder, random, world, &headers, pool, &mut small)?;
    }
    lookasides(builder, world, &pools)?;
    Ok(small)
}

/// The pool of a session, in its own address space; `space`: its `_MM_SESSION_SPACE`.
pub(crate) fn write_session(
    builder: &mut Builder,
    random: &mut Random,
    world: &World,
    space: u64,
    range: &Range<u64>,
) -> Result<Vec<SmallBlock>, IsfError> {
    const SPACE: &str = "_MM_SESSION_SPACE";
    let descriptor = space + builder.isf.offset(SPACE, "PagedPool")?;
    let mut pool = Pool::new(PoolKind::PagedSession, 0, descriptor, world.unit);
    // Its lookaside lists are for all processors.
    let (lists, ty) = builder.isf.member(SPACE, "Lookaside")?;
    let size = builder.isf.size("_GENERAL_LOOKASIDE")?;
    let (lists, count) = (space + lists, builder.isf.size_of(ty)? / size);
    pool.limit = count;
    let mut room = Room { range: range.clone(), free: Vec::new() };
    for _ in 0..world.operations / 4 {
        operate(&mut pool, &mut room, 1, random, world);
    }
    let mut small = Vec::new();
    write_pool(builder, random, world, &Headers::new(builder, world)?, &pool, &mut small)?;
    for units in 1..=count {
        let list = pool.lookasides.get(&(units, 0)).map_or(&[][..], Vec::as_slice);
        let list: Vec<u64> = list.iter().rev().map(|at| pool.address(at)).collect();
        builder.singly_linked(lists + size * (units - 1), &list);
    }
    builder.set_known("ExpSessionPoolSmallLists", &(count as u32).to_le_bytes());
    Ok(small)
}

/// One allocation or free; as many are freed as allocated once there is enough.
fn operate(pool: &mut Pool, room: &mut Room, processors: usize, random: &mut Random, world: &World) {
    if random.below(9) < if pool.live.len() < world.crowd { 5 } else { 4 } {
        pool.allocate(Owner::random(random, world, LIMIT), room, processors, random);
    } else {
        pool.free(room, processors, random);
    }
}

/// Nonpaged pool, the same without execution, and some pools of paged pool; with the variables that lead to them.
fn pools(builder: &mut Builder, map: &mut Map, random: &mut Random, world: &World) -> Result<Vec<Pool>, IsfError> {
    let size = builder.isf.size(DESCRIPTOR)?;
    let (width, unit) = (builder.width(), world.unit);
    let nonpaged = builder.symbol("NonPagedPoolDescriptor")?;
    let mut pools = Vec::new();
    for (index, kind) in (0..).zip(kinds(world.build)) {
        if *kind != PoolKind::Paged {
            pools.push(Pool::new(*kind, index, nonpaged + index * size, unit));
            let slot = builder.symbol("ExpNonPagedPoolDescriptor")? + width * index;
            builder.put_pointer(slot, nonpaged + index * size);
        }
    }
    let count = 1 + random.below(4) as u32;
    let paged = map.room(size * 5);
    for index in 0..=u64::from(count) {
        pools.push(Pool::new(PoolKind::Paged, index, paged + index * size, unit));
        let slot = builder.symbol("ExpPagedPoolDescriptor")? + width * index;
        builder.put_pointer(slot, paged + index * size);
    }
    builder.set_u32("ExpNumberOfPagedPools", count)?;
    builder.set_u32("ExpNumberOfNonPagedPools", 1)?;
    let vector = builder.symbol("PoolVector")?;
    builder.put_pointer(vector, nonpaged);
    builder.put_pointer(vector + width, paged);
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
    let paged = pool.kind.is_paged();
    let unit = pool.unit;
    let heads = pool.descriptor + builder.isf.offset(DESCRIPTOR, "ListHeads")?;
    let mut lists: Vec<Vec<u64>> = (0..PAGE / unit).map(|units| vec![heads + 2 * builder.width() * units]).collect();
    let mut out = Vec::new();
    for page in pool.pages.iter().filter(|page| !page.blocks.is_empty()) {
        // The lists are in memory; only pages of live and free blocks leave it.
        let quiet = page.blocks.values().all(|block| matches!(block.state, State::Live | State::Free));
        let residence = match random.below(10) {
            0 if paged && quiet => Residence::Transition,
            1 if paged && quiet && world.paged_out => Residence::PagedOut,
            _ => Residence::Present,
        };
        let mut previous = 0;
        for (first, block) in &page.blocks {
            let header = page.address + first * unit;
            let free = block.state == State::Free;
            let owner = (!free).then_some(block.owner);
            let tag = block.owner.tag;
            let (address, bytes) = (header + unit, block.units * unit);
            fill(builder, address, bytes - unit, random);
            headers.write(
                &mut builder.memory,
                header,
                &Header { previous, units: block.units, index: pool.index, pool: pool.kind, owner, tag },
            );
            // A block of a header only is a remnant, and on no list.
            if free && block.units > 1 && residence != Residence::PagedOut {
                lists[block.units as usize].push(address);
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
                outer: None,
            });
            previous = block.units;
        }
        out.push((page.address, residence));
    }
    let pending: Vec<u64> = pool.deferred.iter().map(|at| pool.address(at)).collect();
    let mut descriptor = builder.object(DESCRIPTOR)?;
    let values = [
        ("PoolType", pool.kind.pool_type()),
        ("PoolIndex", pool.index),
        ("RunningAllocs", u64::from(world.operations)),
    ];
    builder.fields(&mut descriptor, &values)?;
    // Vista on 32 bits does not count them.
    builder.known_fields(&mut descriptor, &[("PendingFreeDepth", pending.len() as u64)]);
    // A pointer, or a list's head, by version.
    let first = pending.first().copied().unwrap_or_default();
    builder.bytes(&mut descriptor, "PendingFrees", &first.to_le_bytes()[..builder.width() as usize])?;
    builder.store(pool.descriptor, &descriptor);
    for (at, element) in pending.iter().enumerate() {
        builder.put_pointer(*element, pending.get(at + 1).copied().unwrap_or_default());
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
                PoolKind::Paged | PoolKind::PagedSession => "PPPagedLookasideList",
            };
            let array = prcb + builder.isf.offset("_KPRCB", array)?;
            for units in 1..=LOOKASIDES {
                let list: Vec<u64> = pools
                    .iter()
                    .filter(|pool| pool.kind == *kind)
                    .filter_map(|pool| Some((pool, pool.lookasides.get(&(units, processor))?)))
                    .flat_map(|(pool, list)| list.iter().rev().map(move |at| pool.address(at)))
                    .collect();
                builder.singly_linked(array + size * (units - 1), &list);
            }
        }
    }
    Ok(())
}
