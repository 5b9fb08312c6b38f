//! The pool of Windows 10 1809 and later, written as the heap keeps it: segments with signatures, page-range
//! descriptors, encoded chunk headers, bitmaps, the trees of free chunks and the dynamic lookaside lists.

mod lfh;
mod vs;

use std::collections::BTreeSet;
use std::ops::Range;

use self::vs::VsLayout;
use super::heap::{ChunkState, Format, Heap};
use super::{CACHE_LINE, Header, Headers, Owner, PAGE, World, Written, fill, kinds, special};
use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::books::{PoolKind, SmallRoom};
use crate::kernel::builder::{Builder, Place};
use crate::kernel::pool::BigPage;
use crate::kernel::random::Random;
use crate::kernel::rules::Rules;
use crate::kernel::seeded::places::Map;
use crate::kernel::segments::{Content, Room, RunningHeap, RunningHeaps, SHIFT, Segment, SegmentLayout};
use crate::kernel::truth::{Carrier, OuterHeader, Residence, SmallBlock, SmallState};

const SEGMENT_HEAP: &str = "_SEGMENT_HEAP";
const CONTEXT: &str = "_HEAP_SEG_CONTEXT";
/// Subsegments for small blocks that are allocated while the machine runs, and the size of those with their headers.
const RESERVED: usize = 60;
const RESERVED_BYTES: u64 = 0x90;
const STATE: &str = "_EX_POOL_HEAP_MANAGER_STATE";

/// What all heaps share.
struct Writer<'a> {
    headers: Headers,
    format: Format,
    segments: SegmentLayout,
    vs: VsLayout,
    heap_key: u64,
    lfh_key: u64,
    rules: Rules,
    paged_out: bool,
    random: &'a mut Random,
    small: Vec<SmallBlock>,
    pages: Vec<BigPage>,
}

/// What the heaps' rules come to, outside the machine.
struct Simulated {
    /// Those of each node, one after the other.
    heaps: Vec<Heap>,
    /// Heaps of special pool, and the page of each of their blocks.
    special: Vec<(Vec<u64>, Heap)>,
    private: Heap,
    /// Subsegments without a block in use, of the first node's heap for what is no code.
    reserved: Range<usize>,
}

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<Written, IsfError> {
    let (heap_key, lfh_key) = (random.next(), random.next());
    let globals = builder.symbol("RtlpHpHeapGlobals")?;
    builder.put_pointer(globals, heap_key);
    builder.put_pointer(globals + builder.width(), lfh_key);
    builder.set_known("ExpHeapBackedPoolEnabledState", &1u32.to_le_bytes());
    builder.set_known("ExpCacheLineSize", &(CACHE_LINE as u32).to_le_bytes());
    let state = builder.symbol("ExPoolState")?;
    builder.put_pointer(state, globals);

    let format = format(builder, world)?;
    let nodes = if builder.isf.machine.is_x86() { 1 } else { 1 + random.below(3) };
    let count = state + builder.isf.offset(STATE, "NumberOfPools")?;
    builder.memory.put(count, &(nodes as u32).to_le_bytes());
    let Simulated { heaps, special, private, reserved } = simulate(map, random, world, format, nodes);

    let mut writer = Writer::new(builder, world, format, random)?;
    let running = writer.nodes(builder, map, state, &heaps, kinds(world.build).len())?;
    let special_heaps = state + builder.isf.offset(STATE, "SpecialHeaps")?;
    for (slot, (pages, heap)) in (0..).zip(special) {
        let at = writer.heap(builder, map, &heap)?;
        builder.put_pointer(special_heaps + builder.width() * slot, at);
        writer.special(builder, &pages, heap.kind, 0);
    }
    if world.private_pool {
        let at = writer.heap(builder, map, &private)?;
        private_pool(builder, map, state, at)?;
    }
    let room = match reserved.is_empty() {
        true => None,
        false => Some(small_room(builder, world, &heaps[1], reserved)?),
    };
    let rooms = [map.nonpaged_large(), map.paged_large()].map(|range| Room { next: range.start, end: range.end });
    let running = RunningHeaps { layout: writer.segments, rooms, heaps: running, stale: Vec::new(), lazy: true };
    Ok(Written { small: writer.small, pages: writer.pages, heaps: Some(running), room })
}

fn simulate(map: &Map, random: &mut Random, world: &World, format: Format, nodes: u64) -> Simulated {
    let of_node = || kinds(world.build).iter().map(|kind| Heap::new(*kind, format));
    let mut heaps: Vec<Heap> = (0..nodes).flat_map(|_| of_node()).collect();
    let mut rooms = [map.nonpaged_small(), map.paged_small()].map(|range| Room { next: range.start, end: range.end });
    // Each block of special pool is a range of pages in a heap of its own, with a guard page behind it. They come first:
    // others may use their room up.
    let mut special = Vec::new();
    for kind in kinds(world.build) {
        let mut heap = Heap::new(*kind, format);
        let room = &mut rooms[usize::from(kind.is_paged())];
        let count = 10 + random.below(60);
        special.push((special_pages(&mut heap, count, room), heap));
    }
    let mut private = Heap::new(PoolKind::NonPagedNx, format);
    for _ in 0..if world.private_pool { 8 } else { 0 } {
        let owner = Owner { size: 0x2_1000 + random.below(0x4_0000), ..Owner::random(random, world, PAGE) };
        private.allocate_range(owner, &mut rooms[0], random);
    }
    for _ in 0..world.operations {
        let heap = random.below(heaps.len() as u64) as usize;
        let heap = &mut heaps[heap];
        operate(heap, &mut rooms[usize::from(heap.kind.is_paged())], random, world);
    }
    let reserved = if world.hunt { heaps[1].reserve(RESERVED_BYTES, RESERVED, &mut rooms[0]) } else { 0..0 };
    Simulated { heaps, special, private, reserved }
}

/// The free blocks of some subsegments.
fn small_room(builder: &Builder, world: &World, heap: &Heap, reserved: Range<usize>) -> Result<SmallRoom, IsfError> {
    let subsegments = heap.lfh[reserved].iter().rev();
    let slots = subsegments.flat_map(|lfh| {
        let free = (0..lfh.blocks.len()).rev().filter(|number| !lfh.is_withheld(*number));
        free.map(|number| (lfh.address, number as u64, lfh.block(number)))
    });
    let ty = "_HEAP_LFH_SUBSEGMENT";
    Ok(SmallRoom {
        kind: heap.kind,
        bytes: RESERVED_BYTES,
        unit: world.unit,
        slots: slots.collect(),
        headers: Headers::new(builder, world)?,
        free_count: Place::of(&builder.isf, ty, "FreeCount")?,
        bitmap: builder.isf.offset(ty, "BlockBitmap")?,
        bits: builder.rules.lfh_bits,
    })
}

/// A pool that a driver made for itself: no node leads to its heap.
fn private_pool(builder: &mut Builder, map: &mut Map, state: u64, heap: u64) -> Result<(), IsfError> {
    let own = builder.isf.offset(STATE, "PrivatePools").or_else(|_| builder.isf.offset(STATE, "PoolManager.Pools"));
    // What such a pool looks like nobody has told.
    let pool = map.room(PAGE);
    builder.put_pointer(pool + 0x40, heap);
    if let Ok(own) = own {
        builder.put_pointer(state + own, pool);
    }
    Ok(())
}

fn special_pages(heap: &mut Heap, count: u64, room: &mut Room) -> Vec<u64> {
    let content = Content::User { bytes: PAGE, flags: 0 };
    (0..count).filter_map(|_| heap.segments.take(0, 2, content, room)).collect()
}

/// The heaps of a session, in its own address space; `space`: its `_MM_SESSION_SPACE`.
pub(crate) fn write_session(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
    space: u64,
    range: &Range<u64>,
) -> Result<(Vec<SmallBlock>, Vec<BigPage>), IsfError> {
    let format = format(builder, world)?;
    let (ordinary, special) = (Heap::new(PoolKind::PagedSession, format), Heap::new(PoolKind::PagedSession, format));
    let mut room = Room { next: range.start, end: range.end };
    let [mut ordinary, mut special] = [ordinary, special];
    for _ in 0..world.operations / 4 {
        operate(&mut ordinary, &mut room, random, world);
    }
    for _ in 0..20 + random.below(60) {
        let owner = Owner { size: PAGE + 16 * random.below(0x800), ..Owner::random(random, world, PAGE) };
        ordinary.allocate_range(owner, &mut room, random);
        if random.once_in(4) {
            ordinary.free(random);
        }
    }
    let pages = special_pages(&mut special, 30, &mut room);

    let ty = "_EX_HEAP_SESSION_STATE";
    let state = map.room(builder.isf.size(ty)?);
    builder.memory.map(state, builder.isf.size(ty)?);
    builder.put_pointer(state, builder.symbol("RtlpHpHeapGlobals")?);
    builder.put_pointer(space + builder.isf.offset("_MM_SESSION_SPACE", "HeapState")?, state);
    let mut writer = Writer::new(builder, world, format, random)?;
    for (member, heap) in [("PagedHeap", &ordinary), ("SpecialPoolHeap", &special)] {
        let at = writer.heap(builder, map, heap)?;
        builder.put_pointer(state + builder.isf.offset(ty, member)?, at);
    }
    writer.special(builder, &pages, PoolKind::PagedSession, 0x2000);
    Ok((writer.small, writer.pages))
}

fn format(builder: &Builder, world: &World) -> Result<Format, IsfError> {
    let wide = !builder.isf.machine.is_x86();
    Ok(Format {
        unit: world.unit,
        first_chunk: builder.isf.size("_HEAP_VS_SUBSEGMENT")?.next_multiple_of(world.unit),
        bitmap: builder.isf.offset("_HEAP_LFH_SUBSEGMENT", "BlockBitmap")?,
        first_unit: SegmentLayout::of(builder)?.first_unit(),
        lfh_bits: builder.rules.lfh_bits,
        late_header: wide,
        spare_units: u64::from(!builder.rules.breaks(Mutation::VsNoSpareUnit)),
        delays_blocks: builder.isf.offset("_HEAP_LFH_SUBSEGMENT", "State.DelayFreeList").is_ok(),
    })
}

/// One allocation or free.
fn operate(heap: &mut Heap, room: &mut Room, random: &mut Random, world: &World) {
    if random.below(9) >= if heap.live() < world.crowd { 5 } else { 4 } {
        heap.free(random);
        return;
    }
    let mut owner = Owner::random(random, world, 0xfd0);
    match random.below(200) {
        0..6 => owner.size = 0xff1 + random.below(0x1d000),
        6 => owner.size = 0x20001 + random.below(0x80000),
        7 if random.once_in(4) => owner.size = 0x10_0000 + random.below(0x20_0000),
        8..20 if world.unit == 16 => (owner.aligned, owner.process) = (owner.size < 0xf00, None),
        _ => {}
    }
    heap.allocate(owner, room, random);
}

/// The two `_HEAP_SEG_CONTEXT`s of a heap.
fn contexts(builder: &Builder, heap: u64) -> Result<[u64; 2], IsfError> {
    let first = heap + builder.isf.offset(SEGMENT_HEAP, "SegContexts")?;
    Ok([first, first + builder.isf.size(CONTEXT)?])
}

impl<'a> Writer<'a> {
    /// The keys are in memory already.
    fn new(builder: &Builder, world: &World, format: Format, random: &'a mut Random) -> Result<Self, IsfError> {
        let globals = builder.symbol("RtlpHpHeapGlobals")?;
        Ok(Writer {
            headers: Headers::new(builder, world)?,
            format,
            segments: SegmentLayout::of(builder)?,
            vs: VsLayout::of(builder)?,
            heap_key: builder.pointer(globals),
            lfh_key: builder.pointer(globals + builder.width()),
            rules: builder.rules,
            paged_out: world.paged_out,
            random,
            small: Vec::new(),
            pages: Vec::new(),
        })
    }

    /// The heaps of all nodes, so many for each, with their lookaside lists; returns what goes on while the machine runs.
    fn nodes(
        &mut self,
        builder: &mut Builder,
        map: &mut Map,
        state: u64,
        heaps: &[Heap],
        of_node: usize,
    ) -> Result<Vec<RunningHeap>, IsfError> {
        let first = state + builder.isf.offset(STATE, "PoolNode")?;
        let size = builder.isf.size("_EX_HEAP_POOL_NODE")?;
        // The fourth heap of a node is one that this machine does not use.
        let unused = Heap::new(PoolKind::Paged, self.format);
        let mut running = Vec::new();
        for (node, heaps) in (first..).step_by(size as usize).zip(heaps.chunks(of_node)) {
            for (slot, heap) in (0..).zip(heaps.iter().chain([&unused])) {
                let at = self.heap(builder, map, heap)?;
                builder.put_pointer(node + builder.width() * slot, at);
                let (contexts, segments) = (contexts(builder, at)?, heap.segments.clone());
                running.push(RunningHeap { kind: heap.kind, contexts, segments });
            }
            let lists = node + builder.isf.offset("_EX_HEAP_POOL_NODE", "Lookasides")?;
            let size = builder.isf.size("_RTL_DYNAMIC_LOOKASIDE")?;
            for (at, heap) in (lists..).step_by(size as usize).zip(&heaps[1..]) {
                lookasides(builder, at, heap, self.format)?;
            }
        }
        Ok(running)
    }

    /// Blocks of special pool, each with a page behind it that is not there.
    fn special(&mut self, builder: &mut Builder, pages: &[u64], kind: PoolKind, mark: u32) {
        for page in pages {
            self.small.push(special::write_page(builder, *page, kind, true, mark, self.random));
            builder.memory.unmap(page + PAGE, PAGE);
        }
    }

    /// Writes a heap and all that is in it; returns the address of its `_SEGMENT_HEAP`.
    fn heap(&mut self, builder: &mut Builder, map: &mut Map, heap: &Heap) -> Result<u64, IsfError> {
        let own = builder.isf.size(SEGMENT_HEAP)?.next_multiple_of(0x40);
        let at = map.room(own + vs::SLOTS_ROOM);
        let place = |builder: &Builder, path| Ok::<u64, IsfError>(at + builder.isf.offset(SEGMENT_HEAP, path)?);
        let mut object = builder.object(SEGMENT_HEAP)?;
        builder.field(&mut object, "Signature", 0xddee_ddee)?;
        builder.store(at, &object);
        let (vs, lfh) = (place(builder, "VsContext")?, place(builder, "LfhContext")?);
        for (context, place) in contexts(builder, at)?.into_iter().enumerate() {
            let mut object = builder.object(CONTEXT)?;
            let values = [
                ("SegmentMask", !0 << (SHIFT[context] + 8)),
                ("UnitShift", SHIFT[context].into()),
                ("PagesPerUnitShift", u64::from(SHIFT[context]) - 12),
                ("FirstDescriptorIndex", self.format.first_unit[context]),
                ("MaxAllocationSize", crate::kernel::segments::MOST[context]),
                ("LfhContext", lfh),
                ("VsContext", vs),
                ("Heap", at),
            ];
            builder.fields(&mut object, &values)?;
            builder.store(place, &object);
            let segments: Vec<&Segment> = heap.segments.of(context).collect();
            for segment in &segments {
                self.segments.segment(&mut builder.memory, segment, place);
            }
            self.segments.index(&mut builder.memory, place, &segments);
        }
        self.vs_context(builder, heap, vs, at + own)?;
        self.buckets(builder, map, heap, lfh)?;
        for (address, owner) in &heap.user {
            builder.memory.map(*address, PAGE);
            stale(builder, *address, 0x100, self.random);
            self.large(*address, owner, heap.kind, false);
        }
        self.ended(heap);
        Ok(at)
    }

    /// The pool's header or headers, and the block behind them.
    fn block(
        &mut self,
        builder: &mut Builder,
        header: u64,
        owner: Owner,
        kind: PoolKind,
        state: SmallState,
        carrier: Carrier,
    ) {
        let unit = self.format.unit;
        let units = owner.units(unit);
        let mut values = Header { previous: 0, units, index: 0, pool: kind, owner: Some(owner), tag: owner.tag };
        let aligned = (header + 2 * unit).next_multiple_of(CACHE_LINE);
        let own = if owner.aligned && !(header + unit).is_multiple_of(CACHE_LINE) { aligned - unit } else { header };
        fill(builder, own + unit, owner.size, self.random);
        let outer = (own != header).then_some(OuterHeader { header, bytes: units * unit });
        if outer.is_some() {
            // The first header has the whole block, the second what is behind it.
            values.owner = Some(Owner { aligned: false, ..owner });
            self.headers.write(&mut builder.memory, header, &values);
            if own - header > unit {
                builder.put_pointer(header + unit, self.headers.cookie ^ own);
            }
            let distance = (own - header) / unit;
            (values.previous, values.units, values.owner) = (distance, units - distance, Some(owner));
        }
        self.headers.write(&mut builder.memory, own, &values);
        self.small.push(SmallBlock {
            address: own + unit,
            header: own,
            bytes: values.units * unit,
            size: owner.size,
            tag: owner.tag,
            kind,
            state,
            process: owner.process,
            carrier,
            residence: Residence::Present,
            outer,
        });
    }

    fn large(&mut self, address: u64, owner: &Owner, kind: PoolKind, freed: bool) {
        let bytes = owner.size.next_multiple_of(self.format.unit);
        self.pages.push(BigPage { address, tag: owner.tag, kind, bytes, freed });
    }

    /// Large blocks that were freed, where nothing large is now: their entries stay in the table. They came before
    /// others or after them: who comes later may find its place taken.
    fn ended(&mut self, heap: &Heap) {
        let mut known: BTreeSet<u64> = self.pages.iter().map(|page| page.address).collect();
        for (address, owner) in heap.ended.iter().rev() {
            if known.insert(*address) {
                self.large(*address, owner, heap.kind, true);
                let last = self.pages.len() - 1;
                let other = self.random.below(self.pages.len() as u64) as usize;
                self.pages.swap(last, other);
            }
        }
    }

    /// What becomes of a page that nobody needs in a list.
    fn residence(&mut self, kind: PoolKind) -> Residence {
        match self.random.below(10) {
            0 if kind.is_paged() => Residence::Transition,
            1 if kind.is_paged() && self.paged_out => Residence::PagedOut,
            _ => Residence::Present,
        }
    }
}

/// What others left behind: their data, and headers of pool that look as good as any.
fn stale(builder: &mut Builder, at: u64, bytes: u64, random: &mut Random) {
    let mut content = Vec::with_capacity(bytes as usize);
    for unit in 0..bytes / 16 {
        let left = (PAGE - (at + unit * 16) % PAGE) / 16;
        let mut words = [0, 0];
        match random.below(8) {
            0 => {
                // PreviousSize, PoolIndex, BlockSize, PoolType, PoolTag.
                let units = 1 + random.below(left.min(0xff));
                let kind = *random.pick(&[2, 3, 0xa]);
                let tag = u32::from_le_bytes(**random.pick(&[b"Leak", b"File", b"Old1"]));
                words = [units << 16 | kind << 24 | u64::from(tag) << 32, random.next()];
            }
            1..4 => words = [random.next(), random.next()],
            _ => {}
        }
        content.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    content.resize(bytes as usize, 0xcc);
    builder.memory.put(at, &content);
}

/// `_RTL_DYNAMIC_LOOKASIDE`: a list for each size; a block's link is behind its pool header.
fn lookasides(builder: &mut Builder, at: u64, heap: &Heap, format: Format) -> Result<(), IsfError> {
    let buckets = at + builder.isf.offset("_RTL_DYNAMIC_LOOKASIDE", "Buckets")?;
    let size = builder.isf.size("_RTL_LOOKASIDE")?;
    let mut lists: Vec<Vec<u64>> = vec![Vec::new(); 64];
    for (address, chunk) in heap.vs.iter().flat_map(|vs| vs.walk(format)) {
        if let ChunkState::Lookaside(owner) = chunk.state {
            let bucket = bucket(owner.units(format.unit) * format.unit);
            lists[bucket].push(address + (chunk.lead + 1) * format.unit);
        }
    }
    let enabled =
        lists.iter().enumerate().filter(|(_, list)| !list.is_empty()).fold(0, |bits, (at, _)| bits | 1u64 << at);
    let mut object = builder.object("_RTL_DYNAMIC_LOOKASIDE")?;
    let count = u64::from(enabled.count_ones());
    let values = [("EnabledBucketBitmap", enabled), ("BucketCount", 64), ("ActiveBucketCount", count)];
    builder.fields(&mut object, &values)?;
    builder.store(at, &object);
    for (list, head) in lists.iter().zip((buckets..).step_by(size as usize)) {
        if !list.is_empty() {
            builder.singly_linked(head, list);
        }
    }
    Ok(())
}

/// The list of a size: the larger the blocks, the more sizes share one.
fn bucket(bytes: u64) -> usize {
    let bucket = match bytes {
        ..0x400 => (bytes - 0x200) / 0x10,
        0x400..0x800 => 32 + (bytes - 0x400) / 0x40,
        _ => 48 + (bytes - 0x800) / 0x80,
    };
    bucket as usize
}

/// A member that not every version has.
fn known(builder: &Builder, ty: &str, path: &str) -> Option<Place> {
    Place::of(&builder.isf, ty, path).ok()
}
