//! The pool of Windows 10 1809 and later, written as the heap keeps it: segments with signatures, page-range
//! descriptors, encoded chunk headers, bitmaps, the tree of free chunks and the dynamic lookaside lists.

use std::ops::Range;

use super::heap::{Chunk, ChunkState, Content, Format, Heap, Lfh, Room, SEGMENT_UNITS, SHIFT, Segment, Vs};
use super::{Header, Headers, Owner, PAGE, World, balanced, fill, kinds, special};
use crate::isf::IsfError;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::pool::BigPage;
use crate::kernel::random::Random;
use crate::kernel::seeded::places::Map;
use crate::kernel::truth::{Carrier, Residence, SmallBlock, SmallState};

const SEGMENT_HEAP: &str = "_SEGMENT_HEAP";
const CONTEXT: &str = "_HEAP_SEG_CONTEXT";
const DESCRIPTOR: &str = "_HEAP_PAGE_RANGE_DESCRIPTOR";
/// XORed into a segment's signature.
const SEGMENT_SIGNATURE: u64 = 0xa2e6_4ead_a2e6_4ead;
const ALLOCATED: u32 = 0xccdd_ccdd;
/// Of `RangeFlags`: in use, the first unit of its range, and what is in it.
const USED: u64 = 1;
const FIRST: u64 = 2;
const VS: u64 = 0xc;
const LFH: u64 = 8;

/// What all heaps share.
struct Writer<'a> {
    headers: Headers,
    format: Format,
    heap_key: u64,
    lfh_key: u64,
    /// Whether the link of a chunk that waits to be given back is behind its pool header, or in its place.
    delayed_behind: bool,
    random: &'a mut Random,
    small: Vec<SmallBlock>,
    pages: Vec<BigPage>,
}

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    world: &World,
) -> Result<(Vec<SmallBlock>, Vec<BigPage>), IsfError> {
    let format = format(builder, world)?;
    let nodes = if builder.isf.machine.is_x86() { 1 } else { 1 + random.below(3) };
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
        let pages: Vec<u64> = (0..count).filter_map(|_| heap.range(0, 2, Content::User(PAGE), room)).collect();
        special.push((heap, pages));
    }
    for _ in 0..world.operations {
        let heap = random.below(heaps.len() as u64) as usize;
        let heap = &mut heaps[heap];
        operate(heap, &mut rooms[usize::from(heap.kind.is_paged())], random, world);
    }

    let (heap_key, lfh_key) = (random.next(), random.next());
    let globals = builder.symbol("RtlpHpHeapGlobals")?;
    builder.put_pointer(globals, heap_key);
    builder.put_pointer(globals + builder.width(), lfh_key);
    builder.set_known("ExpHeapBackedPoolEnabledState", &1u32.to_le_bytes());
    let state = builder.symbol("ExPoolState")?;
    let manager = "_EX_POOL_HEAP_MANAGER_STATE";
    builder.put_pointer(state, globals);
    let count = state + builder.isf.offset(manager, "NumberOfPools")?;
    builder.memory.put(count, &(nodes as u32).to_le_bytes());
    let node = state + builder.isf.offset(manager, "PoolNode")?;

    let mut writer = Writer::new(builder, world, format, random)?;
    let size = builder.isf.size("_EX_HEAP_POOL_NODE")?;
    // The fourth heap of a node is one that this machine does not use.
    let unused = Heap::new(PoolKind::Paged, format);
    for (node, heaps) in (node..).step_by(size as usize).zip(heaps.chunks(kinds(world.build).len())) {
        for (slot, heap) in (0..).zip(heaps.iter().chain([&unused])) {
            let at = writer.heap(builder, map, heap)?;
            builder.put_pointer(node + builder.width() * slot, at);
        }
        let lists = node + builder.isf.offset("_EX_HEAP_POOL_NODE", "Lookasides")?;
        let size = builder.isf.size("_RTL_DYNAMIC_LOOKASIDE")?;
        for (at, heap) in (lists..).step_by(size as usize).zip(&heaps[1..]) {
            lookasides(builder, at, heap, format)?;
        }
    }
    let special_heaps = state + builder.isf.offset(manager, "SpecialHeaps")?;
    for (slot, (heap, pages)) in (0..).zip(special) {
        let at = writer.heap(builder, map, &heap)?;
        builder.put_pointer(special_heaps + builder.width() * slot, at);
        for page in pages {
            writer.small.push(special::write_page(builder, page, heap.kind, true, 0, writer.random));
            builder.memory.unmap(page + PAGE, PAGE);
        }
    }
    Ok((writer.small, writer.pages))
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
    let pages: Vec<u64> = (0..30).filter_map(|_| special.range(0, 2, Content::User(PAGE), &mut room)).collect();

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
    for page in pages {
        let block = special::write_page(builder, page, PoolKind::PagedSession, true, 0x2000, writer.random);
        writer.small.push(block);
        builder.memory.unmap(page + PAGE, PAGE);
    }
    Ok((writer.small, writer.pages))
}

fn format(builder: &Builder, world: &World) -> Result<Format, IsfError> {
    let descriptors = descriptor_size(builder)? * SEGMENT_UNITS;
    Ok(Format {
        unit: world.unit,
        first_chunk: builder.isf.size("_HEAP_VS_SUBSEGMENT")?.next_multiple_of(world.unit),
        bitmap: builder.isf.offset("_HEAP_LFH_SUBSEGMENT", "BlockBitmap")?,
        first_unit: SHIFT.map(|shift| descriptors.div_ceil(1 << shift)),
    })
}

/// One allocation or free.
fn operate(heap: &mut Heap, room: &mut Room, random: &mut Random, world: &World) {
    if random.below(9) >= if heap.live() < world.crowd { 5 } else { 4 } {
        heap.free(random);
        return;
    }
    let mut owner = Owner::random(random, world, 0xfc0);
    match random.below(200) {
        0..6 => owner.size = 0xff0 + random.below(0x1d000),
        6 => owner.size = 0x20000 + random.below(0x80000),
        7 if random.once_in(4) => owner.size = 0x10_0000 + random.below(0x20_0000),
        _ => {}
    }
    heap.allocate(owner, room, random);
}

impl<'a> Writer<'a> {
    /// The keys are in memory already.
    fn new(builder: &Builder, world: &World, format: Format, random: &'a mut Random) -> Result<Self, IsfError> {
        let globals = builder.symbol("RtlpHpHeapGlobals")?;
        Ok(Writer {
            headers: Headers::new(builder, world)?,
            format,
            heap_key: builder.pointer(globals),
            lfh_key: builder.pointer(globals + builder.width()),
            // Where a chunk's link is, the facts do not say.
            delayed_behind: random.once_in(2),
            random,
            small: Vec::new(),
            pages: Vec::new(),
        })
    }

    /// Writes a heap and all that is in it; returns the address of its `_SEGMENT_HEAP`.
    fn heap(&mut self, builder: &mut Builder, map: &mut Map, heap: &Heap) -> Result<u64, IsfError> {
        let at = map.room(builder.isf.size(SEGMENT_HEAP)?);
        let place = |builder: &Builder, path| Ok::<u64, IsfError>(at + builder.isf.offset(SEGMENT_HEAP, path)?);
        let mut object = builder.object(SEGMENT_HEAP)?;
        builder.field(&mut object, "Signature", 0xddee_ddee)?;
        builder.store(at, &object);
        let (vs, lfh) = (place(builder, "VsContext")?, place(builder, "LfhContext")?);

        let contexts = place(builder, "SegContexts")?;
        for context in 0..2 {
            let place = contexts + builder.isf.size(CONTEXT)? * context as u64;
            let segments: Vec<&Segment> = heap.segments.iter().filter(|segment| segment.context == context).collect();
            let mut free = Vec::new();
            for segment in &segments {
                free.extend(self.segment(builder, segment, place)?);
            }
            free.sort_unstable();
            let nodes: Vec<u64> = free.iter().map(|(_, node)| *node).collect();
            let root = balanced(builder, &nodes, 0);
            let mut object = builder.object(CONTEXT)?;
            let values = [
                ("SegmentMask", !0 << (SHIFT[context] + 8)),
                ("UnitShift", SHIFT[context].into()),
                ("PagesPerUnitShift", u64::from(SHIFT[context]) - 12),
                ("FirstDescriptorIndex", self.format.first_unit[context]),
                ("MaxAllocationSize", [0x7_f000, 0x7f_0000][context]),
                ("LfhContext", lfh),
                ("VsContext", vs),
                ("Heap", at),
                ("SegmentCount", segments.len() as u64),
                ("FreePageRanges.Root", root),
                ("FreePageRanges.Min", nodes.first().copied().unwrap_or_default()),
            ];
            builder.fields(&mut object, &values)?;
            builder.store(place, &object);
            let mut links = vec![place + builder.isf.offset(CONTEXT, "SegmentListHead")?];
            links.extend(segments.iter().map(|segment| segment.base));
            builder.link(&links);
        }

        let mut free = Vec::new();
        let mut links = vec![vs + builder.isf.offset("_HEAP_VS_CONTEXT", "SubsegmentList")?];
        for subsegment in heap.vs.iter().filter(|vs| !vs.is_gone()) {
            self.vs(builder, heap.kind, subsegment, &mut free)?;
            links.push(subsegment.address);
        }
        builder.link(&links);
        free.sort_unstable();
        // The node is behind the size.
        let nodes: Vec<u64> = free.iter().map(|(_, chunk)| chunk + builder.width()).collect();
        let root = balanced(builder, &nodes, 0);
        let tree = vs + builder.isf.offset("_HEAP_VS_CONTEXT", "FreeChunkTree")?;
        builder.put_pointer(tree, root);
        builder.put_pointer(tree + builder.width(), nodes.first().copied().unwrap_or_default());

        let behind = if self.delayed_behind { 2 } else { 1 };
        let delayed: Vec<u64> = heap.delayed().map(|chunk| chunk + behind * self.format.unit).collect();
        builder.singly_linked(vs + builder.isf.offset("_HEAP_VS_CONTEXT", "DelayFreeContext.ListHead")?, &delayed);

        self.buckets(builder, map, heap, lfh)?;
        for (address, owner) in &heap.user {
            builder.memory.map(*address, PAGE);
            fill(builder, *address, 16, self.random);
            self.large(*address, owner, heap.kind);
        }
        Ok(at)
    }

    /// Descriptors of a segment; returns size and descriptor of each free range.
    fn segment(&self, builder: &mut Builder, segment: &Segment, context: u64) -> Result<Vec<(u64, u64)>, IsfError> {
        builder.memory.map(segment.base, builder.isf.size("_HEAP_PAGE_SEGMENT")?);
        let signature = segment.base ^ context ^ self.heap_key ^ SEGMENT_SIGNATURE;
        let size = descriptor_size(builder)?;
        builder.put_pointer(segment.base + builder.isf.offset("_HEAP_PAGE_SEGMENT", "Signature")?, signature);
        let mut free = Vec::new();
        for range in &segment.ranges {
            let kind = match range.content {
                Content::Free => 0,
                Content::User(_) => USED,
                Content::Vs => USED | VS,
                Content::Lfh => USED | LFH,
            };
            for unit in 0..range.units {
                let at = segment.base + size * (range.first + unit);
                let mut descriptor = builder.object(DESCRIPTOR)?;
                let first = if unit == 0 { FIRST } else { 0 };
                let pages = 1u64 << (SHIFT[segment.context] - 12);
                let values = [
                    ("RangeFlags", kind | first),
                    ("CommittedPageCount", if kind == 0 { 0 } else { pages }),
                    ("UnitSize", if unit == 0 { range.units } else { unit }),
                ];
                builder.fields(&mut descriptor, &values)?;
                if unit == 0 && kind != 0 {
                    let unused = match range.content {
                        Content::User(bytes) => (range.units << SHIFT[segment.context]) - bytes,
                        _ => 0,
                    };
                    let values = [("TreeSignature", ALLOCATED.into()), ("UnusedBytes", unused)];
                    builder.fields(&mut descriptor, &values)?;
                }
                builder.store(at, &descriptor);
            }
            if kind == 0 {
                free.push((range.units, segment.base + size * range.first));
            }
        }
        Ok(free)
    }

    /// A VS subsegment; adds size and address of each free chunk.
    fn vs(
        &mut self,
        builder: &mut Builder,
        kind: PoolKind,
        vs: &Vs,
        free: &mut Vec<(u64, u64)>,
    ) -> Result<(), IsfError> {
        builder.memory.map(vs.address, vs.pages * PAGE);
        let mut committed = u64::MAX >> (64 - vs.pages);
        let mut previous = 0;
        let unit = self.format.unit;
        for (at, chunk) in vs.walk(self.format) {
            self.chunk(builder, vs.address, at, chunk, previous);
            previous = chunk.units;
            let end = at + chunk.units * unit;
            match chunk.state {
                ChunkState::Free => {
                    free.push((chunk.units, at));
                    // Whole pages inside a free chunk are given back now and then.
                    let pages = (at + 2 * unit).next_multiple_of(PAGE)..end & !(PAGE - 1);
                    if pages.start < pages.end && self.random.once_in(2) {
                        builder.memory.unmap(pages.start, pages.end - pages.start);
                        for page in pages.step_by(PAGE as usize) {
                            committed &= !(1 << ((page - vs.address) / PAGE));
                        }
                    }
                }
                ChunkState::Live(owner) => self.block(builder, at + unit, owner, kind, SmallState::Live, Carrier::Vs),
                ChunkState::Lookaside(owner) => {
                    self.block(builder, at + unit, owner, kind, SmallState::Lookaside, Carrier::Vs);
                }
                ChunkState::Delayed(Some(owner)) => {
                    self.block(builder, at + unit, owner, kind, SmallState::Deferred, Carrier::Vs);
                }
                ChunkState::Delayed(None) => fill(builder, at + unit, unit, self.random),
                ChunkState::Large(owner) => {
                    fill(builder, at + unit, unit, self.random);
                    self.large(at + unit, &owner, kind);
                }
            }
        }
        let ty = "_HEAP_VS_SUBSEGMENT";
        let mut object = builder.object(ty)?;
        let size = vs.pages * PAGE / unit;
        let full = u64::from(committed == u64::MAX >> (64 - vs.pages));
        let values = [("CommitBitmap", committed), ("Size", size), ("Signature", size ^ 0x2bed), ("FullCommit", full)];
        builder.fields(&mut object, &values)?;
        builder.store(vs.address, &object);
        Ok(())
    }

    /// `_HEAP_VS_CHUNK_HEADER`.
    ///
    /// ```text
    /// 64 bits: bits 0 MemoryCost 16, 16 UnsafeSize 16, 32 UnsafePrevSize 16, 48 Allocated 8
    /// 32 bits: bits 0 MemoryCost 1, 1 UnsafeSize 15, 16 UnsafePrevSize 15, 31 Allocated 1
    /// ```
    fn chunk(&self, builder: &mut Builder, subsegment: u64, at: u64, chunk: &Chunk, previous: u64) {
        let used = !matches!(chunk.state, ChunkState::Free);
        let sizes = match builder.width() {
            4 => chunk.units << 1 | previous << 16 | u64::from(used) << 31,
            _ => chunk.units << 16 | previous << 32 | u64::from(used) << 48,
        };
        builder.put_pointer(at, sizes ^ at ^ self.heap_key);
        if used {
            let page = (at >> 12) - (subsegment >> 12);
            let encoded = (page ^ at ^ self.heap_key) & 0xff;
            builder.put_pointer(at + builder.width(), encoded);
        }
    }

    /// The pool's header and the block behind it.
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
        let bytes = units * unit;
        let values = Header { previous: 0, units, index: 0, pool: kind, owner: Some(owner), tag: owner.tag };
        fill(builder, header + unit, owner.size, self.random);
        self.headers.write(builder, header, &values);
        self.small.push(SmallBlock {
            address: header + unit,
            header,
            bytes,
            size: owner.size,
            tag: owner.tag,
            kind,
            state,
            process: owner.process,
            carrier,
            residence: Residence::Present,
        });
    }

    fn large(&mut self, address: u64, owner: &Owner, kind: PoolKind) {
        let bytes = owner.size.next_multiple_of(self.format.unit);
        self.pages.push(BigPage { address, tag: owner.tag, kind, bytes, freed: false });
    }

    /// The LFH: a bucket for each size, with the list of its subsegments.
    fn buckets(&mut self, builder: &mut Builder, map: &mut Map, heap: &Heap, context: u64) -> Result<(), IsfError> {
        let buckets = context + builder.isf.offset("_HEAP_LFH_CONTEXT", "Buckets")?;
        let ty = "_HEAP_LFH_BUCKET";
        let mut sizes: Vec<u64> = heap.lfh.iter().map(|lfh| lfh.bytes).filter(|bytes| *bytes != 0).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for bytes in sizes {
            let bucket = map.room(builder.isf.size(ty)?);
            let same: Vec<&Lfh> = heap.lfh.iter().filter(|lfh| lfh.bytes == bytes).collect();
            let mut object = builder.object(ty)?;
            let blocks: usize = same.iter().map(|lfh| lfh.blocks.len()).sum();
            let values = [
                ("State.IsBucket", 1),
                ("State.BucketIndex", bytes / self.format.unit),
                ("State.AvailableSubsegmentCount", same.len() as u64),
                ("TotalBlockCount", blocks as u64),
                ("TotalSubsegmentCount", same.len() as u64),
            ];
            builder.fields(&mut object, &values)?;
            builder.store(bucket, &object);
            let mut links = vec![bucket + builder.isf.offset(ty, "State.AvailableSubsegmentList")?];
            for lfh in same {
                self.lfh(builder, heap.kind, lfh, bucket)?;
                links.push(lfh.address);
            }
            builder.link(&links);
            builder.link(&[bucket + builder.isf.offset(ty, "State.FullSubsegmentList")?]);
            builder.put_pointer(buckets + builder.width() * (bytes / self.format.unit), bucket);
        }
        Ok(())
    }

    fn lfh(&mut self, builder: &mut Builder, kind: PoolKind, lfh: &Lfh, owner: u64) -> Result<(), IsfError> {
        let ty = "_HEAP_LFH_SUBSEGMENT";
        builder.memory.map(lfh.address, lfh.pages * PAGE);
        let mut bitmap = vec![0u64; (2 * lfh.blocks.len()).div_ceil(64)];
        let mut pages = vec![false; lfh.pages as usize];
        let mine = self.small.len();
        for (number, block) in lfh.blocks.iter().enumerate() {
            let Some(block) = block else { continue };
            // The pair's upper bit: not all of the block was asked for.
            let pair = if block.size % self.format.unit == 0 { 1 } else { 3 };
            bitmap[number / 32] |= pair << (number % 32 * 2);
            let at = lfh.block(number);
            pages[((at - lfh.address) / PAGE) as usize] = true;
            self.block(builder, at, *block, kind, SmallState::Live, Carrier::Lfh);
        }
        let used = lfh.blocks.iter().flatten().count();
        let offsets = lfh.bytes | lfh.first << 16;
        let key = self.lfh_key as u32 ^ (lfh.address as u32) >> 12;
        let mut object = builder.object(ty)?;
        let values = [
            ("Owner", owner),
            ("FreeCount", (lfh.blocks.len() - used) as u64),
            ("BlockCount", lfh.blocks.len() as u64),
            ("BlockOffsets.EncodedData", u64::from(offsets as u32 ^ key)),
            ("CommitUnitShift", 12),
        ];
        builder.fields(&mut object, &values)?;
        builder.store(lfh.address, &object);
        let words: Vec<u8> = bitmap.into_iter().flat_map(u64::to_le_bytes).collect();
        builder.memory.put(lfh.address + builder.isf.offset(ty, "BlockBitmap")?, &words);
        // The first page has the header and stays.
        for (page, used) in (lfh.address..).step_by(PAGE as usize).zip(pages).skip(1) {
            let residence = match self.random.below(10) {
                0 if kind.is_paged() && used => Residence::Transition,
                1 if kind.is_paged() && used => Residence::PagedOut,
                _ => Residence::Present,
            };
            match residence {
                Residence::Present if !used && self.random.once_in(2) => builder.memory.unmap(page, PAGE),
                Residence::Present => {}
                Residence::Transition => builder.memory.trim(page),
                Residence::PagedOut => builder.memory.page_out(page),
            }
            for block in &mut self.small[mine..] {
                if block.header & !(PAGE - 1) == page {
                    block.residence = residence;
                }
            }
        }
        Ok(())
    }
}

fn descriptor_size(builder: &Builder) -> Result<u64, IsfError> {
    builder.isf.size(DESCRIPTOR)
}

/// `_RTL_DYNAMIC_LOOKASIDE`: a list for each size; a block's link is behind its pool header.
fn lookasides(builder: &mut Builder, at: u64, heap: &Heap, format: Format) -> Result<(), IsfError> {
    let buckets = at + builder.isf.offset("_RTL_DYNAMIC_LOOKASIDE", "Buckets")?;
    let size = builder.isf.size("_RTL_LOOKASIDE")?;
    let mut lists: Vec<Vec<u64>> = vec![Vec::new(); 64];
    for (chunk, state) in heap.vs.iter().flat_map(|vs| vs.walk(format)) {
        if let ChunkState::Lookaside(owner) = state.state {
            let bucket = (owner.size.saturating_sub(0x200) / 0x40).min(63);
            lists[bucket as usize].push(chunk + 2 * format.unit);
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
