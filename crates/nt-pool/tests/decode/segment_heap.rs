//! Segment heaps built by hand: heaps, segments, VS chunks, LFH blocks, lookaside lists, special pool, damage.

use nt_pool::around::{self, Contents};
use nt_pool::small_blocks::{BlockKind, BlockState, Kinds, Limits, Plan, SmallBlock, find};
use nt_pool::{PoolKind, Tag, big_pages, freed};
use proptest::prelude::*;

use crate::support::*;

/// Where the affinity slots of 26100's heaps are, behind their VS context: the map's, and two slots.
const SLOT_MAP: u64 = 0x28;
const SLOTS: [u64; 2] = [0x2a, 0x2c];

const WIN10_1809: Version = Version { build: 17763, ..WIN10_1903 };
const WIN10_2004: Version = Version { build: 19041, ..WIN10_1903 };
const HEAPS: [Version; 8] =
    [WIN10_1809, WIN10_1903, WIN10_2004, SERVER_2022, WIN11_21H2, WIN11_23H2, WIN11_24H2, LATER];

pub(crate) const HEAP_KEY: u64 = 0x9e37_79b9_7f4a_7c15;
pub(crate) const LFH_KEY: u64 = 0x2545_f491_4f6c_dd1d;
const SEGMENT: u64 = 0xa2e6_4ead_a2e6_4ead;

/// pool-internals 5.2 and 5.3, segment-heap-measured 10.
pub(crate) struct Places {
    number_of_pools: u64,
    nodes: u64,
    pub(crate) special: u64,
    contexts: u64,
    pub(crate) vs: u64,
}

pub(crate) fn places(build: u16) -> Places {
    let state = |number_of_pools, nodes, special| (number_of_pools, nodes, special);
    let (number_of_pools, nodes, special) = match build {
        17763 => state(0x30c8, 0x3100, 0x86100),
        18362 | 19041 => state(0x38d0, 0x3900, 0x86900),
        26100 => state(0x3910, 0x3940, 0x86940),
        29671 => state(0x3974, 0x3980, 0x86980),
        _ => state(0x38e0, 0x3900, 0x86900),
    };
    let (contexts, vs) = if build < 20348 { (0x100, 0x280) } else { (0x140, 0x2c0) };
    Places { number_of_pools, nodes, special, contexts, vs }
}

const NODE: u64 = 0x20c0;

pub(crate) struct Heap {
    pub(crate) world: World,
    pub(crate) state: u64,
    pub(crate) blocks: Vec<SmallBlock>,
    pub(crate) large: Vec<(u64, u64, u32)>,
    segments: u64,
    /// Windows 11 24H2 and later.
    newer: bool,
    /// Affinity slots say how far behind their context they lie.
    pub(crate) by_offset: bool,
}

/// What a chunk or a block is to become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) units: u64,
    pub(crate) tag: [u8; 4],
    pub(crate) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Allocated,
    Free,
    Lookaside,
    DelayFree,
    Large,
}

fn piece() -> impl Strategy<Value = Piece> {
    let tag = prop::sample::select(vec![*b"Leak", *b"Proc", *b"MmSt"]);
    let fate =
        prop::sample::select(vec![Fate::Allocated, Fate::Allocated, Fate::Free, Fate::Lookaside, Fate::DelayFree]);
    prop_oneof![
        9 => (2..0xfeu64, tag.clone(), fate).prop_map(|(units, tag, fate)| Piece { units, tag, fate }),
        1 => (0x100..0x300u64, tag).prop_map(|(units, tag)| Piece { units, tag, fate: Fate::Large }),
    ]
}

impl Heap {
    pub(crate) fn new(version: Version) -> Self {
        let mut world = World::new(version);
        let build = version.build;
        let newer = build >= 26100;
        let at = places(build);
        pool_header(&mut world);
        world.layout("_RTLP_HP_HEAP_GLOBALS", 0x38, &[field("HeapKey", 0, 8), field("LfhKey", 8, 8)]);
        let state_size = at.special + 0x40;
        let special = if build < 19041 { 3 } else { 4 };
        world.layout(
            "_EX_POOL_HEAP_MANAGER_STATE",
            state_size,
            &[
                number("NumberOfPools", at.number_of_pools, 4),
                array("PoolNode", at.nodes, 64, NODE),
                array("SpecialHeaps", at.special, special, 8),
            ],
        );
        world.layout("_EX_HEAP_POOL_NODE", NODE, &[array("Heaps", 0, 4, 8), array("Lookasides", 0x40, 2, 0x1040)]);
        world.layout("_RTL_DYNAMIC_LOOKASIDE", 0x1040, &[array("Buckets", 0x40, 64, 0x40)]);
        world.layout(
            "_SEGMENT_HEAP",
            match build {
                ..20348 => 0x800,
                20348..26100 => 0x840,
                26100 => 0xa00,
                _ => 0xa40,
            },
            &[
                number("Signature", 0x10, 4),
                array("SegContexts", at.contexts, 2, 0xc0),
                member("VsContext", at.vs, if newer { 0x60 } else { 0xc0 }, "_HEAP_VS_CONTEXT"),
            ],
        );
        let delay_free = member("DelayFreeContext", 0x40, 0x10, "_HEAP_VS_DELAY_FREE_CONTEXT");
        match newer {
            false => world.layout("_HEAP_VS_CONTEXT", 0xc0, &[delay_free]),
            true => {
                let members = [number("SlotMapRef", 0, 2), number("AffinityMask", 2, 1)];
                world.layout("_HEAP_VS_CONTEXT", if build == 26100 { 0x60 } else { 0x68 }, &members);
                world.layout("_HEAP_VS_SLOT_MAP", 4, &[number("SlotRef", 0, 2)]);
                world.layout("_HEAP_VS_AFFINITY_SLOT", 0x80, &[field("VsContext", 0, 8), delay_free]);
            }
        }
        world.layout(
            "_HEAP_SEG_CONTEXT",
            0xc0,
            &[
                number("UnitShift", 8, 1),
                number("FirstDescriptorIndex", 0xa, 1),
                number("Heap", 0x38, 8),
                member("SegmentListHead", 0x48, 0x10, "_LIST_ENTRY"),
            ],
        );
        world.layout("_HEAP_PAGE_SEGMENT", 0x2000, &[number("Signature", 0x10, 8), array("DescArray", 0, 256, 0x20)]);
        world.layout(
            "_HEAP_PAGE_RANGE_DESCRIPTOR",
            0x20,
            &[number("TreeSignature", 0, 4), number("RangeFlags", 0x18, 1), number("UnitSize", 0x1f, 1)],
        );
        let half = |name, offset, first, count| nt_symbols::Field { size: 2, ..bits(name, offset, first, count) };
        let signature = if newer { 0x24 } else { 0x22 };
        world.layout("_HEAP_VS_SUBSEGMENT", 0x28, &[number("Size", 0x20, 2), half("Signature", signature, 0, 15)]);
        world.layout(
            "_HEAP_VS_CHUNK_HEADER",
            0x10,
            &[member("Sizes", 0, 8, "_HEAP_VS_CHUNK_HEADER_SIZE"), bits("EncodedSegmentPageOffset", 8, 0, 8)],
        );
        world.layout(
            "_HEAP_VS_CHUNK_HEADER_SIZE",
            8,
            &[
                bits("MemoryCost", 0, 0, 16),
                bits("UnsafeSize", 0, 16, 16),
                bits("UnsafePrevSize", 4, 0, 16),
                bits("Allocated", 4, 16, 8),
            ],
        );
        let counts = |withheld, bitmap| {
            [
                number("FreeCount", 0x20, 2),
                number("BlockCount", 0x22, 2),
                number("WitheldBlockCount", withheld, 1),
                member("BlockOffsets", 0x28, 4, "_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS"),
                array("BlockBitmap", bitmap, 1, 8),
            ]
        };
        match newer {
            false => world.layout("_HEAP_LFH_SUBSEGMENT", 0x38, &counts(0x27, 0x30)),
            true => {
                let mut members = counts(0x25, 0x40).to_vec();
                members.push(member("State", 0x10, 8, "_HEAP_LFH_SUBSEGMENT_STATE"));
                members.push(number("HighWatermarkBlockIndex", 0x30, 2));
                world.layout("_HEAP_LFH_SUBSEGMENT", 0x48, &members);
                let state = [number("DelayFreeList", 0, 2), number("DelayFreeCount", 2, 2)];
                world.layout("_HEAP_LFH_SUBSEGMENT_STATE", 8, &state);
            }
        }
        world.layout(
            "_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS",
            4,
            &[number("BlockSize", 0, 2), number("FirstBlockOffset", 2, 2)],
        );
        crate::big_pages::describe(&mut world);
        let globals = world.variable("RtlpHpHeapGlobals", 0x38);
        world.put(globals, HEAP_KEY, 8);
        world.put(globals + 8, LFH_KEY, 8);
        let state = world.variable("ExPoolState", state_size as u32);
        world.put(state, globals, 8);
        world.put(state + at.number_of_pools, 2, 4);
        if build == 17763 {
            world.u32_variable("ExpHeapBackedPoolEnabledState", 1);
        }
        Heap { world, state, blocks: Vec::new(), large: Vec::new(), segments: 0, newer, by_offset: false }
    }

    pub(crate) fn node(&self, node: u64) -> u64 {
        self.state + places(self.world.version.build).nodes + node * NODE
    }

    /// A heap without segments; `slot` is where the pool's state points at it.
    pub(crate) fn heap(&mut self, slot: u64) -> u64 {
        let heap = self.world.pool(0x80 + self.segments) + 0x8_0000;
        self.segments += 1;
        let at = places(self.world.version.build);
        self.world.write(heap, &[0; 0x1800]);
        if self.newer {
            self.affinity_slots(heap);
        }
        self.world.put(heap + 0x10, 0xddee_ddee, 4);
        for (index, shift, first) in [(0, 12u64, 2u64), (1, 16, 1)] {
            let context = heap + at.contexts + index * 0xc0;
            self.world.put(context + 8, shift, 1);
            self.world.put(context + 0xa, first, 1);
            self.world.put(context + 0x38, heap, 8);
            self.world.put(context + 0x48, context + 0x48, 8);
            self.world.put(context + 0x50, context + 0x48, 8);
        }
        self.world.put(slot, heap, 8);
        heap
    }

    /// Four processors' entries share two slots, and one has none.
    fn affinity_slots(&mut self, heap: u64) {
        let context = heap + places(self.world.version.build).vs;
        self.world.put(context, SLOT_MAP, 2);
        self.world.put(context + 2, 3, 1);
        for (entry, slot) in [SLOTS[0], SLOTS[1], 0, SLOTS[0]].into_iter().enumerate() {
            self.world.put(context + (SLOT_MAP << 6) + 4 * entry as u64, slot, 2);
        }
        for slot in SLOTS {
            let back = if self.by_offset { slot << 6 } else { context };
            self.world.put(context + (slot << 6), back, 8);
        }
    }

    /// The head of a list of freed VS chunks.
    fn delay_free(&self, heap: u64, n: u64) -> u64 {
        let context = heap + places(self.world.version.build).vs;
        match self.newer {
            true => context + (SLOTS[n as usize % 2] << 6) + 0x40,
            false => context + 0x40,
        }
    }

    /// Puts a new segment at the front of a heap's list.
    pub(crate) fn segment(&mut self, heap: u64, large_units: bool) -> u64 {
        let segment = self.world.pool(0x80 + self.segments);
        self.segments += if large_units { 2 } else { 1 };
        let context = heap + places(self.world.version.build).contexts + if large_units { 0xc0 } else { 0 };
        let head = context + 0x48;
        let mut first = [0; 8];
        nt_memory::Memory::read(&self.world, head, &mut first).unwrap();
        self.world.write(segment, &[0; 0x2000]);
        self.world.write(segment, &first);
        self.world.put(segment + 8, head, 8);
        self.world.put(u64::from_le_bytes(first) + 8, segment, 8);
        self.world.put(head, segment, 8);
        let constant = if self.newer { 0 } else { SEGMENT };
        self.world.put(segment + 0x10, context ^ segment ^ HEAP_KEY ^ constant, 8);
        segment
    }

    /// Marks pages of a segment; returns where they are.
    pub(crate) fn range(&mut self, segment: u64, first: u64, units: u64, flags: u64, shift: u64) -> u64 {
        for unit in first..first + units {
            let descriptor = segment + unit * 0x20;
            if unit == first {
                self.world.put(descriptor, 0xccdd_ccdd, 4);
                self.world.put(descriptor + 0x18, flags, 1);
                self.world.put(descriptor + 0x1f, units, 1);
            } else {
                self.world.put(descriptor + 0x18, 1, 1);
                self.world.put(descriptor + 0x1f, unit - first, 1);
            }
        }
        segment + (first << shift)
    }

    pub(crate) fn push(
        &mut self,
        header: u64,
        size: u64,
        tag: [u8; 4],
        pool: PoolKind,
        state: BlockState,
        kind: BlockKind,
    ) {
        let tag = Tag(tag);
        self.blocks.push(SmallBlock {
            header,
            address: header + 0x10,
            size: size - 0x10,
            block_size: size,
            previous_size: 0,
            tag,
            protected: false,
            pool,
            state,
            kind,
        });
    }

    pub(crate) fn pool_header(&mut self, at: u64, units: u64, tag: [u8; 4], pool: PoolKind) {
        let pool_type = if pool.is_paged() { 3 } else { 2 };
        self.world.write(at, &[0, 0, units as u8, pool_type, tag[0], tag[1], tag[2], tag[3]]);
    }

    /// Puts an element into the list whose head is at `head`.
    pub(crate) fn push_list(&mut self, head: u64, element: u64) {
        let (mut first, mut depth) = ([0; 8], [0; 2]);
        nt_memory::Memory::read(&self.world, head, &mut depth).unwrap();
        nt_memory::Memory::read(&self.world, head + 8, &mut first).unwrap();
        self.world.put(element, u64::from_le_bytes(first) & !0xf, 8);
        self.world.put(head, u64::from(u16::from_le_bytes(depth)) + 1, 2);
        self.world.put(head + 8, element | 1, 8);
    }

    /// `previous`: bytes of the chunk before.
    pub(crate) fn chunk(&mut self, at: u64, size: u64, previous: u64, allocated: bool) {
        let sizes = 0x55 | (size / 0x10) << 16 | (previous / 0x10) << 32 | u64::from(allocated) << 48;
        self.world.put(at, sizes ^ at ^ HEAP_KEY, 8);
    }

    /// The header of a VS subsegment whose chunks end `length` bytes behind its start.
    pub(crate) fn vs_header(&mut self, at: u64, length: u64) {
        // Without what lies before the first chunk (measured: 0xffd for 0x10000 bytes).
        let size = (length - 0x30) / 0x10;
        self.world.put(at + 0x20, size, 2);
        let signature = if self.newer { 0x24 } else { 0x22 };
        self.world.put(at + signature, (size ^ 0x2bed) & 0x7fff, 2);
    }

    /// Fills a VS subsegment; the last chunk is free.
    pub(crate) fn vs(&mut self, heap: u64, node: u64, pool: PoolKind, at: u64, length: u64, pieces: &[Piece]) {
        self.world.write(at, &vec![0; length as usize]);
        self.vs_header(at, length);
        let end = at + length;
        let mut chunk = at + 0x30;
        let mut previous = 0;
        for piece in pieces {
            let header = chunk + 0x10;
            let (place, bytes) = match piece.fate {
                // A page-aligned block behind a header that ends a page.
                Fate::Large => (header.next_multiple_of(0x1000), piece.units * 0x10),
                // No block crosses a page. One of so few bytes would leave its chunk as full at the old place.
                _ if header % 0x1000 + piece.units * 0x10 > 0x1000 => {
                    (header.next_multiple_of(0x1000), piece.units.max(5) * 0x10)
                }
                _ => (header, piece.units * 0x10),
            };
            let next = place + bytes;
            if next + 0x20 > end {
                break;
            }
            if place > header {
                // What an earlier block left.
                self.pool_header(header, 2, *b"Olds", pool);
            }
            self.chunk(chunk, next - chunk, previous, piece.fate != Fate::Free);
            previous = next - chunk;
            let state = match piece.fate {
                Fate::Large => {
                    self.large.push((place, bytes, if pool.is_paged() { 1 } else { 0x200 }));
                    chunk = next;
                    continue;
                }
                Fate::Free => {
                    chunk = next;
                    continue;
                }
                Fate::Allocated => BlockState::Allocated,
                Fate::Lookaside | Fate::DelayFree => BlockState::Cached,
            };
            self.pool_header(place, bytes / 0x10, piece.tag, pool);
            match piece.fate {
                Fate::Lookaside => {
                    let bucket = piece.units % 64;
                    let lookaside = self.node(node) + 0x40 + u64::from(pool.is_paged()) * 0x1040;
                    self.push_list(lookaside + 0x40 + bucket * 0x40, place + 0x10);
                }
                Fate::DelayFree => {
                    let head = self.delay_free(heap, piece.units);
                    self.push_list(head, chunk + 0x10);
                    if place == header {
                        // The link takes the pool header's place.
                        chunk = next;
                        continue;
                    }
                }
                _ => {}
            }
            self.push(place, bytes, piece.tag, pool, state, BlockKind::Vs);
            chunk = next;
        }
        self.chunk(chunk, end - chunk, previous, false);
    }

    pub(crate) fn lfh(&mut self, pool: PoolKind, at: u64, length: u64, units: u64, pieces: &[Piece]) {
        self.world.write(at, &vec![0; length as usize]);
        let size = units * 0x10;
        let first = 0x100;
        let slots = (length - first) / size;
        self.lfh_offsets(at, size, first);
        let mut free = 0;
        let mut withheld = 0;
        for (index, piece) in (0..slots).zip(pieces.iter().cycle()) {
            let block = at + first + index * size;
            if block % 0x1000 + size > 0x1000 {
                // Marked as in use so that nobody gets it.
                self.set_bit(at, index);
                withheld += 1;
                continue;
            }
            let units = 1 + piece.units % units;
            self.pool_header(block, units, piece.tag, pool);
            let allocated = piece.fate == Fate::Allocated;
            if allocated {
                self.set_bit(at, index);
            }
            free += u64::from(!allocated);
            let state = if allocated { BlockState::Allocated } else { BlockState::Free };
            self.push(block, units * 0x10, piece.tag, pool, state, BlockKind::Lfh);
        }
        self.lfh_counts(at, slots - withheld, free, withheld);
        if self.newer {
            // What is left of the last word (measured).
            (slots..slots.next_multiple_of(64)).for_each(|index| self.set_bit(at, index));
        }
    }

    pub(crate) fn lfh_counts(&mut self, at: u64, count: u64, free: u64, withheld: u64) {
        self.world.put(at + 0x20, free, 2);
        self.world.put(at + 0x22, count, 2);
        self.world.put(at + if self.newer { 0x25 } else { 0x27 }, withheld, 1);
    }

    pub(crate) fn lfh_offsets(&mut self, at: u64, size: u64, first: u64) {
        let offsets = size as u32 | (first as u32) << 16;
        let shifted = if self.newer { (at >> 12) as u32 } else { at as u32 >> 12 };
        self.world.put(at + 0x28, (offsets ^ LFH_KEY as u32 ^ shifted).into(), 4);
    }

    pub(crate) fn set_bit(&mut self, subsegment: u64, index: u64) {
        let (at, bit) = match self.newer {
            true => (subsegment + 0x40 + index / 8, index % 8),
            false => (subsegment + 0x30 + index / 4, index % 4 * 2),
        };
        let mut byte = [0];
        nt_memory::Memory::read(&self.world, at, &mut byte).unwrap();
        self.world.write(at, &[byte[0] | 1 << bit]);
    }

    pub(crate) fn special(&mut self, page: u64, size: u64, tag: [u8; 4], pool: PoolKind) {
        let data = (0x1000 - size) & !0xf;
        self.world.write(page, &[0x5b; 0x1000]);
        self.world.put(page, size | 0x5b_0000, 4);
        self.world.write(page + 4, &tag);
        self.world.put(page + 8, 0, 8);
        self.blocks.push(SmallBlock {
            header: page,
            address: page + data,
            size,
            block_size: 0x1000,
            previous_size: 0,
            tag: Tag(tag),
            protected: false,
            pool,
            state: BlockState::Allocated,
            kind: BlockKind::Special,
        });
    }

    pub(crate) fn finish(&mut self) {
        let large = std::mem::take(&mut self.large);
        crate::big_pages::table_of(&mut self.world, &large);
        self.blocks.sort_by_key(|block| block.header);
    }
}

/// Two nodes, two sizes of segment, every kind of range.
pub(crate) fn ordinary(version: Version, pieces: &[Piece]) -> Heap {
    let mut heap = Heap::new(version);
    for (node, slot, pool) in [
        (0, 0, PoolKind::NonPaged),
        (0, 1, PoolKind::NonPagedNx),
        (0, 2, PoolKind::Paged),
        (1, 1, PoolKind::NonPagedNx),
    ] {
        let pointer = heap.node(node) + slot * 8;
        let address = heap.heap(pointer);
        let segment = heap.segment(address, false);
        // One unit more than the subsegment has.
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.vs(address, node, pool, at, 0x1_0000, pieces);
        let at = heap.range(segment, 20, 4, 0xb, 12);
        heap.lfh(pool, at, 0x4000, 0x12, pieces);
        let at = heap.range(segment, 32, 8, 3, 12);
        heap.large.push((at, 0x8000, 0x200));
        heap.world.write(at, &[0x41; 0x8000]);
        let segment = heap.segment(address, true);
        let at = heap.range(segment, 2, 3, 0xf, 16);
        heap.vs(address, node, pool, at, 0x2_0000, pieces);
    }
    let special = heap.state + places(version.build).special;
    let address = heap.heap(special + 8);
    let segment = heap.segment(address, false);
    for (index, size) in [(2, 0x20), (5, 0x4f0), (250, 0xff0)] {
        let page = heap.range(segment, index, 1, 3, 12);
        heap.special(page, size, *b"Leak", PoolKind::NonPagedNx);
    }
    heap.finish();
    heap
}

pub(crate) fn plain(units: u64) -> Piece {
    Piece { units, tag: *b"Leak", fate: Fate::Allocated }
}

/// Without what a list's link made of the header of a freed block.
pub(crate) fn with_headers(blocks: &[SmallBlock]) -> Vec<SmallBlock> {
    let header = |block: &&SmallBlock| {
        block.state != BlockState::Cached || [*b"Leak", *b"Proc", *b"MmSt"].contains(&block.tag.0)
    };
    blocks.iter().filter(header).copied().collect()
}

/// Shows what differs, not thousands of blocks that do not.
pub(crate) fn same(found: &[SmallBlock], expected: &[SmallBlock]) -> Result<(), String> {
    let missing: Vec<_> = expected.iter().filter(|block| !found.contains(block)).take(4).collect();
    let extra: Vec<_> = found.iter().filter(|block| !expected.contains(block)).take(4).collect();
    match found == expected {
        true => Ok(()),
        false => Err(format!("of {} {} found; missing {missing:#x?}; extra {extra:#x?}", expected.len(), found.len())),
    }
}

pub(crate) fn check_ordinary(version: Version) {
    let fates = [Fate::Allocated, Fate::Lookaside, Fate::Free, Fate::DelayFree, Fate::Allocated];
    let mut pieces: Vec<Piece> = (0..60)
        .map(|n| Piece {
            units: 2 + n * 37 % 250,
            tag: [*b"Leak", *b"Proc"][n as usize % 2],
            fate: fates[n as usize % 5],
        })
        .collect();
    pieces[9] = Piece { units: 0x201, tag: *b"Leak", fate: Fate::Large };
    let heap = ordinary(version, &pieces);
    let kernel = heap.world.kernel();
    let found = find(&kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert_eq!(found.notes.lines(), [""; 0], "{version:?}");
    assert!(found.is_complete());
    same(&with_headers(&found.blocks), &heap.blocks).unwrap();
    assert!(heap.blocks.iter().any(|block| block.state == BlockState::Cached));
    told_by_address(&kernel, &found.blocks);
    let leak =
        find(&kernel, &|tag| tag == Tag(*b"Leak"), Kinds { paged: true, ..Kinds::NONE }, Limits::default()).unwrap();
    let wanted =
        |block: &&SmallBlock| block.tag == Tag(*b"Leak") && block.pool.is_paged() && block.kind != BlockKind::Special;
    assert_eq!(leak.blocks, heap.blocks.iter().filter(wanted).copied().collect::<Vec<_>>());
}

#[test]
fn every_generation_of_heaps_is_walked() {
    for version in HEAPS {
        check_ordinary(version);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn any_mixture_of_chunks_is_found(pieces in prop::collection::vec(piece(), 1..150), n in 0..HEAPS.len()) {
        let heap = ordinary(HEAPS[n], &pieces);
        let kernel = heap.world.kernel();
        let found = find(&kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
        prop_assert_eq!(&found.notes.lines(), &[""; 0]);
        prop_assert_eq!(same(&with_headers(&found.blocks), &heap.blocks), Ok(()));
    }

    #[test]
    fn damage_costs_what_it_hits_and_no_more(at in 0u64..0x4_0000, bytes in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut heap = ordinary(WIN10_2004, &[plain(0x20), plain(7), plain(0xf0)]);
        let first = heap.blocks[0].header & !0xfffff;
        heap.world.write(first + at, &bytes);
        let kernel = heap.world.kernel();
        let found = find(&kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
        // The other heaps are whole.
        let elsewhere = |block: &&SmallBlock| block.header & !0xfffff != first;
        let expected: Vec<_> = heap.blocks.iter().filter(elsewhere).collect();
        let got: Vec<_> = found.blocks.iter().filter(elsewhere).collect();
        prop_assert_eq!(got, expected);
    }
}

/// Lists that take too long to follow for one page are said, and how long they are.
#[test]
fn what_may_wait_in_a_long_list_is_said() {
    let piece = |n: u64| Piece { units: 2 + n * 37 % 250, tag: *b"Leak", fate: Fate::Lookaside };
    let heap = ordinary(WIN11_21H2, &(0..150).map(piece).collect::<Vec<_>>());
    let kernel = heap.world.kernel();
    let (mut told, mut undecided) = (0, 0);
    for block in heap.blocks.iter().filter(|block| block.state == BlockState::Cached) {
        let around = around::read(&kernel, block.address).unwrap();
        let Contents::Blocks(mut page) = around.contents else { continue };
        page.retain(|here| here.contains(block.address));
        let answer = freed::tell(&kernel, around.pool, &mut page).unwrap();
        match answer.undecided {
            Some(lists) => {
                assert!(page[0].allocated && lists.blocks == 1 && lists.elements > 64, "{lists:?}");
                undecided += 1;
            }
            None => {
                assert!(!page[0].allocated);
                told += 1;
            }
        }
    }
    assert!(undecided > 0, "{told} {undecided}");
}

#[test]
fn a_plan_says_the_cost_before_it_is_paid() {
    let heap = ordinary(WIN10_2004, &[plain(0x20)]);
    let kernel = heap.world.kernel();
    let large = big_pages::read(&kernel, &|_| true).unwrap().blocks;
    heap.world.reset_cost();
    let plan = Plan::read(&kernel, Kinds::ALL).unwrap();
    // Two nodes, five heaps of nearly a page, nine segments: and nothing of what they hold.
    assert!(heap.world.cost().bytes < 2 * 0x20c0 + 5 * 0x840 + 9 * 0x2000 + 0x100, "{:?}", heap.world.cost());
    assert_eq!(plan.bytes(0), 4 * (0x1_0000 + 0x4000 + 0x2_0000) + 3 * 0x1000);
    heap.world.reset_cost();
    let found = plan.find(&kernel, &|_| true, &large, Limits::default()).unwrap();
    assert_eq!(heap.world.cost().bytes, plan.bytes(0));
    // A search with a budget goes on where it stopped.
    let mut parts = Vec::new();
    let mut from = 0;
    loop {
        let limits = Limits { bytes: 0x3_0000, from, ..Limits::default() };
        let part = plan.find(&kernel, &|_| true, &large, limits).unwrap();
        assert_eq!(part.is_complete(), part.stopped.is_none());
        parts.extend(part.blocks);
        match part.stopped {
            Some(at) => from = at,
            None => break,
        }
    }
    assert_eq!(parts, found.blocks);
}

#[test]
fn a_type_that_is_missing_costs_what_needs_it_and_no_more() {
    let ask = |heap: &Heap| find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    let pieces = [plain(0x20), plain(0x30)];
    let mut heap = ordinary(WIN10_2004, &pieces);
    heap.world.forget_layout("_RTLP_HP_HEAP_GLOBALS");
    let found = ask(&heap);
    assert_eq!((found.blocks, found.notes.lines()), (heap.blocks.clone(), vec![]), "where the keys lie is known");
    let mut heap = ordinary(WIN10_2004, &pieces);
    heap.world.forget_layout("_RTL_DYNAMIC_LOOKASIDE");
    let found = ask(&heap);
    assert_eq!((&found.blocks, found.is_complete()), (&heap.blocks, false));
    assert!(
        found.notes.lines()[0].contains("lookaside") && found.notes.lines().len() == 1,
        "{:?}",
        found.notes.lines()
    );
}

#[test]
fn segments_of_no_size_that_segments_have_are_not_believed() {
    let mut heap = ordinary(WIN10_2004, &[plain(0x20)]);
    let mut first = [0; 8];
    nt_memory::Memory::read(&heap.world, heap.node(0), &mut first).unwrap();
    let context = u64::from_le_bytes(first) + places(WIN10_2004.build).contexts;
    for shift in [0, 13, 24, 63, 255] {
        heap.world.put(context + 8, shift, 1);
        let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        assert!(found.notes.lines()[0].contains(&format!("parts of 2^{shift} bytes")), "{:?}", found.notes.lines());
        assert!(!found.is_complete() && !found.blocks.is_empty());
    }
}

#[test]
fn unreadable_and_foreign_parts_are_named() {
    let pieces = [plain(0x20), plain(0x30)];
    // The keys.
    let mut heap = ordinary(WIN10_2004, &pieces);
    let globals = heap.world.address_of("RtlpHpHeapGlobals");
    heap.world.forget_symbol("RtlpHpHeapGlobals");
    let with_pointer = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert_eq!(with_pointer.blocks, heap.blocks, "ExPoolState leads to the keys as well");
    heap.world.put(heap.state, 0x1234, 8);
    let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert!(found.notes.lines()[0].contains("keys"), "{:?}", found.notes.lines());
    assert!(found.blocks.iter().all(|block| block.kind == BlockKind::Special));
    assert_eq!((found.blocks.len(), found.is_complete()), (3, false));
    heap.world.put(heap.state, globals, 8);
    // A list that runs in a circle, one that leaves the kernel.
    for link in [0, 0x1234_5678] {
        let mut heap = ordinary(WIN10_2004, &pieces);
        let heap_address = {
            let mut bytes = [0; 8];
            nt_memory::Memory::read(&heap.world, heap.node(0), &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let head = heap_address + 0x100 + 0x48;
        let mut first = [0; 8];
        nt_memory::Memory::read(&heap.world, head, &mut first).unwrap();
        let segment = u64::from_le_bytes(first);
        heap.world.put(segment, if link == 0 { segment } else { link }, 8);
        let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        assert_eq!(found.blocks, heap.blocks);
        assert!(!found.is_complete() && found.notes.lines().len() == 1, "{:?}", found.notes.lines());
        // Another heap's segment.
        heap.world.put(segment + 0x10, 0, 8);
        let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        assert!(found.notes.lines()[0].contains("signature"), "{:?}", found.notes.lines());
        assert!(found.blocks.iter().all(|block| block.header & !0xfffff != segment));
    }
    // A list that is cut: its other end leads to what is left.
    let mut heap = Heap::new(WIN10_2004);
    let pointer = heap.node(0);
    let address = heap.heap(pointer);
    let mut newest = 0;
    for _ in 0..3 {
        newest = heap.segment(address, false);
        let at = heap.range(newest, 2, 17, 0xf, 12);
        heap.vs(address, 0, PoolKind::NonPaged, at, 0x1_0000, &pieces);
    }
    heap.finish();
    heap.world.put(newest, 0, 8);
    let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert_eq!((&found.blocks, found.is_complete()), (&heap.blocks, false));
    assert!(found.notes.lines()[0].contains("without coming back"), "{:?}", found.notes.lines());
    // A page that is not there.
    let mut heap = ordinary(WIN10_2004, &pieces);
    let lost = heap.blocks.iter().find(|block| block.kind == BlockKind::Lfh).unwrap().header & !0xfff;
    heap.world.unmap(lost + 0x2000);
    let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert!(!found.is_complete());
    let there = |block: &&SmallBlock| block.header & !0xfff != lost + 0x2000;
    assert_eq!(found.blocks, heap.blocks.iter().filter(there).copied().collect::<Vec<_>>());
}

/// Behind a page that is not there a chain of chunks is taken up again: each chunk says how large the one before is.
#[test]
fn a_chain_of_chunks_goes_on_behind_a_hole() {
    let pieces: Vec<Piece> = (0..200).map(|n| plain(3 + n * 29 % 60)).collect();
    for page in 1..12 {
        let mut heap = ordinary(WIN10_2004, &pieces);
        let first = heap.blocks.iter().find(|block| block.kind == BlockKind::Vs).unwrap().header & !0xfff;
        let lost = first + page * 0x1000;
        heap.world.unmap(lost);
        let found = find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        // A block's chunk header lies before its pool header, some of them in the page before.
        let there = |block: &&SmallBlock| block.header & !0xfff != lost;
        let expected: Vec<_> = heap.blocks.iter().filter(there).copied().collect();
        let missing: Vec<_> = expected.iter().filter(|block| !found.blocks.contains(block)).collect();
        assert!(missing.iter().all(|block| block.header == lost + 0x1000), "{missing:x?}");
        assert!(found.blocks.iter().all(|block| expected.contains(block)));
        let named = found.notes.lines().iter().any(|note| note.contains("what lies up to"));
        assert!(named && !found.is_complete(), "{:?}", found.notes.lines());
    }
}
