//! What was measured on live machines (segment-heap-measured.md), row by row: each case is a layout that a decoder from
//! the older notes reads wrongly.

use nt_memory::Memory;
use nt_pool::checks::{Book, Check};
use nt_pool::readings::{Form, VsLists};
use nt_pool::small_blocks::{BlockKind, BlockState, Blocks, Kinds, Limits, Plan, SmallBlock, find};
use nt_pool::{Lack, PoolKind, Tag, around, big_pages};
use proptest::prelude::*;

use crate::segment_heap::*;
use crate::support::*;

const NEWER: [Version; 2] = [WIN11_24H2, LATER];
const EVERY: [Version; 5] = [WIN10_1903, WIN11_21H2, WIN11_23H2, WIN11_24H2, LATER];

fn all(heap: &Heap) -> Blocks {
    find(&heap.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap()
}

/// Everything is found, and there is nothing to say about it.
fn whole(heap: &Heap) -> Blocks {
    let found = all(heap);
    assert_eq!(found.notes.lines(), [""; 0]);
    same(&with_headers(&found.blocks), &heap.blocks).unwrap();
    let wrong: Vec<Check> = found.checks.iter().filter(|check| !check.ok && check.name.is_proven()).copied().collect();
    assert_eq!(wrong, []);
    found
}

/// A heap of nonpaged pool with one segment.
fn one_segment(version: Version) -> (Heap, u64, u64) {
    let mut heap = Heap::new(version);
    let node = heap.node(0);
    let address = heap.heap(node);
    let segment = heap.segment(address, false);
    (heap, address, segment)
}

fn check(found: &Blocks, name: Book) -> Check {
    *found.checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}: {:?}", found.checks))
}

/// A chunk in use with a header right behind its own, of the whole rest of the chunk.
fn used(heap: &mut Heap, chunk: u64, size: u64, previous: u64, tag: [u8; 4]) {
    heap.chunk(chunk, size, previous, true);
    heap.pool_header(chunk + 0x10, size / 0x10 - 1, tag, PoolKind::NonPaged);
    heap.push(chunk + 0x10, size - 0x10, tag, PoolKind::NonPaged, BlockState::Allocated, BlockKind::Vs);
}

/// Row 1: the last chunk ends at the first one's place + Size * 16; it is in use here.
#[test]
fn the_last_chunk_of_a_subsegment_is_found() {
    for version in EVERY {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        let last = at + 0xffe0;
        heap.chunk(at + 0x30, last - at - 0x30, 0, false);
        used(&mut heap, last, 0x20, last - at - 0x30, *b"Last");
        // A header of 0x10 bytes' room would end the page; this one is before.
        heap.blocks.clear();
        heap.world.put(last, 0, 8);
        heap.chunk(at + 0x30, 0xff00 - 0x30, 0, false);
        used(&mut heap, at + 0xff00, 0x100, 0xff00 - 0x30, *b"Last");
        heap.finish();
        let found = whole(&heap);
        assert_eq!(check(&found, Book::VsChunkSizes), Check::new(Book::VsChunkSizes, 1, 1, 0), "{version:?}");
    }
}

/// Row 2: the range has a unit more, which holds junk, or is not there; a range of just the subsegment is read as well.
#[test]
fn the_unit_behind_a_subsegment_is_never_decoded() {
    for (version, units, junk) in EVERY
        .into_iter()
        .flat_map(|version| [(version, 17, true), (version, 17, false), (version, 16, false), (version, 24, true)])
    {
        let (mut heap, address, segment) = one_segment(version);
        let at = heap.range(segment, 2, units, 0xf, 12);
        heap.vs(address, 0, PoolKind::NonPaged, at, 0x1_0000, &[plain(0x20), plain(0x7), plain(0xf0)]);
        if junk {
            let old = [0, 0, 2, 2, b'J', b'u', b'n', b'k'].repeat(2);
            heap.world.write(at + 0x1_0000, &old.repeat((units - 16) as usize * 0x100));
        }
        heap.finish();
        let found = whole(&heap);
        assert!(units == 16 || found.read == (units - 1) * 0x1000, "{units}: {:#x}", found.read);
    }
}

/// A run of pages that was given back lies inside a free chunk: the chain crosses it.
#[test]
fn a_chain_crosses_pages_that_were_given_back() {
    for version in EVERY {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        used(&mut heap, at + 0x30, 0x200, 0, *b"Leak");
        heap.chunk(at + 0x230, 0xe000 - 0x230, 0x200, false);
        used(&mut heap, at + 0xe000, 0x500, 0xe000 - 0x230, *b"Leak");
        heap.chunk(at + 0xe500, 0x1b00, 0x500, false);
        (1..14).for_each(|page| heap.world.unmap(at + page * 0x1000));
        heap.world.unmap(at + 0xf000);
        heap.finish();
        assert_eq!(whole(&heap).blocks.len(), 2);
    }
}

/// A damaged header costs what lies behind it up to where the chain proves itself, and nothing is made up: what looks like
/// chunks in between agrees with nothing.
#[test]
fn a_broken_chain_is_taken_up_only_where_it_proves_itself() {
    for (damage, goes_on) in [(0u64, true), (1, true), (2, false)] {
        let (mut heap, _, segment) = one_segment(WIN11_24H2);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        let mut chunk = at + 0x30;
        let mut previous = 0;
        for n in 0..20u64 {
            let size = 0x100 + n * 0x30;
            // No block crosses a page.
            if chunk % 0x1000 + size > 0x1000 {
                let page = chunk.next_multiple_of(0x1000);
                heap.chunk(chunk, page - chunk, previous, false);
                (chunk, previous) = (page, page - chunk);
            }
            used(&mut heap, chunk, size, previous, *b"Leak");
            (chunk, previous) = (chunk + size, size);
        }
        heap.chunk(chunk, at + 0x1_0000 - chunk, previous, false);
        let broken = heap.blocks[9].header - 0x10;
        let size = heap.blocks[9].block_size + 0x10;
        let before = broken - heap.blocks[8].header + 0x10;
        match damage {
            // No size; a size that is too small; and what an old subsegment left there, which is in step with itself.
            0 => heap.chunk(broken, 0, before, true),
            1 => heap.chunk(broken, size - 0x20, before, true),
            _ => {
                heap.world.write(broken, &vec![0xee; (at + 0x1_0000 - broken) as usize]);
                let old = broken + 0x40;
                heap.chunk(old, 0x80, 0x30, true);
                heap.chunk(old + 0x80, 0x70, 0x80, true);
                heap.chunk(old + 0xf0, 0x60, 0x70, true);
            }
        }
        heap.finish();
        let found = all(&heap);
        let kept = |n: &usize| *n < 9 || goes_on && *n > 9;
        let expected: Vec<_> = (0..20).filter(kept).map(|n| heap.blocks[n]).collect();
        same(&found.blocks, &expected).unwrap();
        assert_eq!(found.notes.all_missing().map(|missing| missing.why).collect::<Vec<_>>(), [Lack::Damaged]);
        let check = check(&found, Book::VsChunkSizes);
        assert!(!check.ok && check.place.is_some_and(|place| place >= broken), "{check:?}");
    }
}

/// Only what a header says of the chunk before it is wrong: nothing is missing, and it is said.
#[test]
fn a_wrong_word_about_the_chunk_before_loses_nothing() {
    let (mut heap, _, segment) = one_segment(WIN10_1903);
    let at = heap.range(segment, 2, 17, 0xf, 12);
    heap.world.write(at, &[0; 0x1_0000]);
    heap.vs_header(at, 0x1_0000);
    used(&mut heap, at + 0x30, 0x200, 0, *b"Leak");
    used(&mut heap, at + 0x230, 0x300, 0x210, *b"Leak");
    used(&mut heap, at + 0x530, 0x100, 0x300, *b"Leak");
    heap.chunk(at + 0x630, 0x1_0000 - 0x630, 0x100, false);
    heap.finish();
    let found = all(&heap);
    same(&found.blocks, &heap.blocks).unwrap();
    assert!(found.notes.lines()[0].contains("gives the one before it 0x210 bytes, which has 0x200"));
    assert_eq!(
        check(&found, Book::VsChunkSizes),
        Check { name: Book::VsChunkSizes, expected: 3, found: 2, ok: false, place: Some(at + 0x230) }
    );
}

/// Row 3, 4 and point 2: the book chooses between one bit and two, never the build, and the withheld slots count.
#[test]
fn the_book_chooses_how_many_bits_a_block_has() {
    for version in EVERY {
        for swapped in [false, true] {
            let (mut heap, _, segment) = one_segment(version);
            let older = (version.build < 26100) != swapped;
            // 0x90 bytes: a slot crosses a page now and then.
            let mut in_use = 0;
            for (n, place) in [2, 10, 20, 40].into_iter().enumerate() {
                let at = heap.range(segment, place, 4, 0xb, 12);
                heap.world.write(at, &[0; 0x4000]);
                let (first, size) = (0x100, 0x90);
                heap.lfh_offsets(at, size, first);
                let (mut free, mut withheld) = (0, 0);
                for slot in 0..(0x4000 - first) / size {
                    let block = at + first + slot * size;
                    // The first has one block in use, which both readings have.
                    let crosses = block % 0x1000 + size > 0x1000;
                    let busy = match n {
                        0 => slot == 4 && !crosses,
                        _ => slot % 3 != 1,
                    };
                    if busy || crosses {
                        let bitmap = at + if version.build < 26100 { 0x30 } else { 0x40 };
                        let bit = if older { 2 * slot } else { slot };
                        let mut byte = [0];
                        heap.world.read(bitmap + bit / 8, &mut byte).unwrap();
                        heap.world.write(bitmap + bit / 8, &[byte[0] | 1 << (bit % 8)]);
                    }
                    if crosses {
                        withheld += 1;
                        continue;
                    }
                    free += u64::from(!busy);
                    in_use += u64::from(busy);
                    heap.pool_header(block, 9, *b"Leak", PoolKind::NonPaged);
                    let state = if busy { BlockState::Allocated } else { BlockState::Free };
                    heap.push(block, 0x90, *b"Leak", PoolKind::NonPaged, state, BlockKind::Lfh);
                }
                assert!(withheld > 2);
                heap.lfh_counts(at, (0x4000 - first) / size - withheld, free, withheld);
            }
            heap.finish();
            let found = whole(&heap);
            let form = if older { Form::Older } else { Form::Newer };
            assert_eq!(found.readings.lfh_bits.chosen(), Some(form), "{version:?}");
            assert_eq!(check(&found, Book::LfhBlocksInUse), Check::new(Book::LfhBlocksInUse, in_use, in_use, 0));
        }
    }
}

/// When no reading balances, it is said with figures, and the book shows it.
#[test]
fn a_bitmap_that_balances_in_no_way_is_said() {
    for version in EVERY {
        let pieces = [plain(3), Piece { fate: Fate::Free, ..plain(4) }, plain(9)];
        let mut heap = ordinary(version, &pieces);
        let lfh = heap.blocks.iter().find(|block| block.kind == BlockKind::Lfh).unwrap().header & !0xfff;
        let mut free = [0; 2];
        heap.world.read(lfh + 0x20, &mut free).unwrap();
        let free = u64::from(u16::from_le_bytes(free));
        heap.world.put(lfh + 0x20, free - 1, 2);
        let found = all(&heap);
        let check = check(&found, Book::LfhBlocksInUse);
        assert_eq!((check.ok, check.place, check.expected), (false, Some(lfh), check.found + 1), "{version:?}");
        assert!(found.notes.lines()[0].contains("blocks in use, and its bitmap with"), "{:?}", found.notes.lines());
        assert!(!found.is_complete());
    }
}

/// A subsegment that is committed and not set up yet is no damage.
#[test]
fn a_subsegment_that_is_not_set_up_is_no_damage() {
    let mut heap = ordinary(WIN11_24H2, &[plain(0x20)]);
    let segment = heap.blocks[0].header & !0xfffff;
    let at = heap.range(segment, 60, 4, 0xb, 12);
    heap.world.write(at, &[0; 0x4000]);
    whole(&heap);
}

/// Blocks in a subsegment's own list of freed ones are in use by the bitmap, and free in truth; the link lies in the
/// header's first two bytes.
#[test]
fn blocks_whose_freeing_is_delayed_are_not_in_use() {
    for version in NEWER {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 4, 0xb, 12);
        heap.lfh(PoolKind::NonPaged, at, 0x4000, 0x10, &[plain(15)]);
        let waiting = [7, 3, 11].map(|slot| (slot, at + 0x100 + slot * 0x100));
        for (n, (_, block)) in waiting.iter().enumerate() {
            let next = waiting.get(n + 1).map_or(0, |(slot, _)| slot + 1);
            heap.world.put(*block, next, 2);
            let known = heap.blocks.iter_mut().find(|known| known.header == *block).unwrap();
            known.state = BlockState::Cached;
        }
        heap.world.put(at + 0x10, waiting[0].0 + 1, 2);
        heap.world.put(at + 0x12, 3, 2);
        heap.finish();
        let found = whole(&heap);
        assert_eq!(found.blocks.iter().filter(|block| block.state == BlockState::Cached).count(), 3);
        // A list that comes back on itself ends.
        heap.world.put(waiting[2].1, waiting[0].0 + 1, 2);
        heap.world.put(at + 0x12, 9, 2);
        let found = all(&heap);
        assert!(found.notes.lines()[0].contains("list of freed blocks"), "{:?}", found.notes.lines());
    }
}

/// Both ways of hiding a subsegment's sizes are tried: what can be is taken.
#[test]
fn sizes_are_decoded_whichever_way_they_are_hidden() {
    for version in EVERY {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 4, 0xb, 12);
        heap.lfh(PoolKind::NonPaged, at, 0x4000, 0x10, &[plain(7), Piece { fate: Fate::Free, ..plain(3) }, plain(2)]);
        let shifted = if version.build < 26100 { (at >> 12) as u32 } else { at as u32 >> 12 };
        heap.world.put(at + 0x28, ((0x100u32 | 0x100 << 16) ^ LFH_KEY as u32 ^ shifted).into(), 4);
        heap.finish();
        let found = whole(&heap);
        let form = if version.build < 26100 { Form::Newer } else { Form::Older };
        assert_eq!(found.readings.lfh_offsets.chosen(), Some(form), "{version:?}");
    }
}

/// Row 5, 6 and point 6: the hash of 26100 does not cut the page number, a slot that was never used reads 1, and freed
/// entries are stepped over.
#[test]
fn the_hash_of_24h2_leads_to_a_large_allocation() {
    for (version, cut) in
        [(WIN11_24H2, false), (LATER, false), (WIN11_23H2, false), (WIN11_23H2, true), (WIN11_24H2, true)]
    {
        let mut world = World::new(version);
        big_pages_world(&mut world, cut);
        world.searches = true;
        for n in 0..200u64 {
            let block = 0xffff_c986_0000_0000 + n * 0x7000;
            world.reset_cost();
            let found = big_pages::lookup(&world.kernel(), block).unwrap().unwrap();
            assert_eq!((found.address, found.free), (block, n % 5 == 0));
            // The two variables, and one or two places of the table.
            assert!(world.cost().requests <= 8, "{version:?}, cut {cut}: {:?}", world.cost());
        }
        let pages = big_pages::read(&world.kernel(), &|_| true).unwrap();
        assert_eq!(pages.blocks.len(), 200);
        assert_eq!(pages.hash.chosen(), Some(if cut { Form::Older } else { Form::Newer }));
        let hash = pages.checks.iter().find(|check| check.name == Book::LargeHash);
        assert_eq!(hash, Some(&Check::new(Book::LargeHash, 160, 160, 0)));
        assert!(pages.checks.iter().all(|check| check.ok), "{:?}", pages.checks);
    }
}

/// A table of 200 entries, every fifth freed, in the places where the hash leads.
fn big_pages_world(world: &mut World, cut: bool) {
    crate::big_pages::describe(world);
    let (slots, entry, table) = (0x200u64, 0x20u64, world.pool(0));
    world.pointer_variable("PoolBigPageTable", table);
    world.pointer_variable("PoolBigPageTableSize", slots);
    world.write(table, &vec![0; (slots * entry) as usize]);
    (0..slots).for_each(|slot| world.put(table + slot * entry, 1, 8));
    let mut taken = vec![false; slots as usize];
    for n in 0..200u64 {
        let block = 0xffff_c986_0000_0000 + n * 0x7000;
        let page = if cut { u64::from((block >> 12) as u32) } else { block >> 12 };
        let product = page.wrapping_mul(0x9e5f);
        let mut slot = (product ^ product >> 32) % slots;
        while std::mem::replace(&mut taken[slot as usize], true) {
            slot = (slot + 1) % slots;
        }
        let at = table + slot * entry;
        world.put(at, block | u64::from(n % 5 == 0), 8);
        world.write(at + 8, b"Larg");
        world.put(at + 0xc, 0x40 << 8, 4);
        world.put(at + 0x10, 0x5000, 8);
    }
}

/// Row 7 and point 5: 26100's lists of freed chunks are in affinity slots, which lead back by pointer or by offset.
#[test]
fn lists_of_freed_chunks_are_found_in_affinity_slots() {
    let fates = [Fate::DelayFree, Fate::Allocated];
    let pieces: Vec<Piece> = (0..40).map(|n| Piece { fate: fates[n % 2], ..plain(6 + n as u64) }).collect();
    for (version, by_offset) in NEWER.into_iter().flat_map(|version| [(version, false), (version, true)]) {
        let mut heap = Heap::new(version);
        heap.by_offset = by_offset;
        let node = heap.node(0);
        let address = heap.heap(node);
        let segment = heap.segment(address, false);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.vs(address, 0, PoolKind::NonPaged, at, 0x1_0000, &pieces);
        heap.finish();
        let found = whole(&heap);
        let expected = if by_offset { VsLists::SlotsByOffset } else { VsLists::Slots };
        assert_eq!(found.readings.vs_lists, expected);
        // A slot that leads elsewhere is not believed.
        let context = address + places(version.build).vs;
        heap.world.put(context + (0x2a << 6), 0x1234, 8);
        let found = all(&heap);
        assert!(found.notes.lines()[0].contains("does not lead back"), "{:?}", found.notes.lines());
        assert!(found.notes.lines().len() <= 2, "{:?}", found.notes.lines());
    }
}

/// Row 8: the fourth heap of a node is paged pool.
#[test]
fn the_fourth_heap_is_paged() {
    let mut heap = Heap::new(WIN11_24H2);
    let node = heap.node(0);
    let address = heap.heap(node + 0x18);
    let segment = heap.segment(address, false);
    let at = heap.range(segment, 2, 17, 0xf, 12);
    heap.vs(address, 0, PoolKind::Paged, at, 0x1_0000, &[plain(0x20)]);
    heap.finish();
    assert_eq!(whole(&heap).blocks[0].pool, PoolKind::Paged);
}

/// Point 3: a segment's signature is good in either form on any build, and a plain range may have more bits.
#[test]
fn either_form_of_a_segments_signature_is_good() {
    for version in EVERY {
        let mut heap = ordinary(version, &[plain(0x20), plain(0x30)]);
        let segment = heap.blocks[0].header & !0xfffff;
        let mut signature = [0; 8];
        heap.world.read(segment + 0x10, &mut signature).unwrap();
        let other = u64::from_le_bytes(signature) ^ 0xa2e6_4ead_a2e6_4ead;
        heap.world.put(segment + 0x10, other, 8);
        let votes = whole(&heap).readings.segment_signature;
        assert_eq!(votes.older.min(votes.newer), 1, "{votes:?}");
        let around = around::read(&heap.world.kernel(), heap.blocks[0].address).unwrap();
        assert_eq!(around.block(heap.blocks[0].address).map(|block| block.header), Some(heap.blocks[0].header));
        // Neither.
        heap.world.put(segment + 0x10, other ^ 0x1000, 8);
        let found = all(&heap);
        assert!(!check(&found, Book::SegmentSignatures).ok && !found.is_complete());
    }
}

/// A plain range whose flags have a bit more lies in its heap as well, and is not damaged.
#[test]
fn a_plain_range_may_have_more_bits() {
    for flags in [0x3, 0x7, 0x13, 0x43, 0xc3] {
        let mut heap = ordinary(WIN11_24H2, &[plain(0x20)]);
        let segment = heap.blocks[0].header & !0xfffff;
        let at = heap.range(segment, 80, 8, flags, 12);
        heap.large.push((at, 0x8000, 0x200));
        let mut large = heap.large.clone();
        large.extend([(segment + 0x2_0000, 0x8000, 0x200)]);
        crate::big_pages::table_of(&mut heap.world, &large);
        let found = whole(&heap);
        assert_eq!(check(&found, Book::LargeInHeaps).found, 2, "{flags:#x}");
    }
}

/// Point 4: of two places the one counts whose block ends in its page, whatever stale bytes say.
#[test]
fn stale_bytes_do_not_beat_the_true_header() {
    for (version, stale) in
        EVERY.into_iter().flat_map(|version| (2..=0xff).step_by(3).map(move |units| (version, units)))
    {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        heap.chunk(at + 0x30, 0xfe0 - 0x30, 0, false);
        // At ...fe0: its header lies at the next page's start, and bytes of an earlier block before it.
        let chunk = at + 0xfe0;
        heap.chunk(chunk, 0xda0, 0xfe0 - 0x30, true);
        heap.pool_header(chunk + 0x10, stale, *b"Olds", PoolKind::NonPaged);
        heap.pool_header(chunk + 0x20, 0xd7, *b"MmLd", PoolKind::NonPaged);
        heap.push(chunk + 0x20, 0xd70, *b"MmLd", PoolKind::NonPaged, BlockState::Allocated, BlockKind::Vs);
        let next = chunk + 0xda0;
        // Another whose block ends its page, with a few bytes more behind, where an earlier one began.
        let end = at + 0x2000;
        heap.chunk(next, end + 0x20 - next, 0xda0, true);
        let bytes = end - next - 0x10;
        heap.pool_header(next + 0x10, bytes / 0x10, *b"Here", PoolKind::NonPaged);
        heap.pool_header(end, 2, *b"Olds", PoolKind::NonPaged);
        heap.push(next + 0x10, bytes, *b"Here", PoolKind::NonPaged, BlockState::Allocated, BlockKind::Vs);
        heap.chunk(end + 0x20, at + 0x1_0000 - end - 0x20, end + 0x20 - next, false);
        heap.finish();
        whole(&heap);
    }
}

/// Chunks of a page and more are matched with the table before a header is looked for: what lies where it would be is the
/// caller's, or stale.
#[test]
fn large_chunks_are_the_tables() {
    for version in EVERY {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        heap.chunk(at + 0x30, 0xfe0 - 0x30, 0, false);
        // 0x12a0 bytes at the page's start in a chunk of 0x12c0 (measured).
        heap.chunk(at + 0xfe0, 0x12c0, 0xfe0 - 0x30, true);
        heap.pool_header(at + 0xff0, 1, *b"Olds", PoolKind::NonPaged);
        heap.pool_header(at + 0x1000, 0x80, *b"User", PoolKind::NonPaged);
        heap.large.push((at + 0x1000, 0x12a0, 0x200));
        used(&mut heap, at + 0x22a0, 0x400, 0x12c0, *b"Leak");
        heap.chunk(at + 0x26a0, 0x1_0000 - 0x26a0, 0x400, false);
        heap.finish();
        let found = whole(&heap);
        assert_eq!(check(&found, Book::LargeInHeaps), Check::new(Book::LargeInHeaps, 1, 1, 0));
    }
}

/// Point 7: a cache-aligned block has two headers; the caller got what is behind the second.
#[test]
fn a_cache_aligned_block_is_where_its_caller_has_it() {
    for version in EVERY {
        let (mut heap, _, segment) = one_segment(version);
        let at = heap.range(segment, 2, 17, 0xf, 12);
        heap.world.write(at, &[0; 0x1_0000]);
        heap.vs_header(at, 0x1_0000);
        let two = |heap: &mut Heap, first: u64, units: u64, kind: BlockKind| {
            heap.pool_header(first, units, *b"Algn", PoolKind::NonPaged);
            let second = (first + 0x10).next_multiple_of(0x40) - 0x10;
            // One that is aligned by itself has one header.
            let distance = (second - first) / 0x10;
            let header = [distance as u8, 0, (units - distance) as u8, 6, b'A', b'l', b'g', b'n'];
            heap.world.write(second, &header);
            if distance > 1 {
                heap.world.put(first + 0x10, 0x1234_5678_9abc_def0, 8);
            }
            let bytes = (units - distance) * 0x10;
            heap.push(second, bytes, *b"Algn", PoolKind::NonPaged, BlockState::Allocated, kind);
        };
        let mut chunk = at + 0x30;
        let mut previous = 0;
        for n in 0..8u64 {
            let size = 0x110 + n * 0x10;
            heap.chunk(chunk, size, previous, true);
            two(&mut heap, chunk + 0x10, size / 0x10 - 1, BlockKind::Vs);
            (chunk, previous) = (chunk + size, size);
        }
        heap.chunk(chunk, at + 0x1_0000 - chunk, previous, false);
        let lfh = heap.range(segment, 30, 2, 0xb, 12);
        heap.lfh(PoolKind::NonPaged, lfh, 0x2000, 0x10, &[]);
        let slots = (0x2000 - 0x100) / 0x100;
        for slot in 0..slots {
            let block = lfh + 0x100 + slot * 0x100;
            heap.set_bit(lfh, slot);
            two(&mut heap, block, 0x10, BlockKind::Lfh);
        }
        heap.lfh_counts(lfh, slots, 0, 0);
        heap.finish();
        let found = whole(&heap);
        assert!(found.blocks.iter().all(|block| block.address % 0x40 == 0));
        // By its address, too.
        for block in found.blocks.iter().step_by(5) {
            let around = around::read(&heap.world.kernel(), block.address).unwrap();
            assert_eq!(around.block(block.address).map(|block| block.address), Some(block.address));
        }
    }
}

/// Pages in a page file are counted, are the one reason why an answer lacks something, and the chain goes on behind them.
#[test]
fn what_is_paged_out_is_counted_and_nothing_else_is_said() {
    for version in EVERY {
        let pieces: Vec<Piece> = (0..200).map(|n| plain(3 + n * 29 % 60)).collect();
        let mut heap = ordinary(version, &pieces);
        let vs = heap.blocks.iter().find(|block| block.kind == BlockKind::Vs).unwrap().header & !0xfff;
        let lost = vs + 0x3000;
        page_tables(&mut heap.world);
        heap.world.unmap(lost);
        // In a page file: Protect 4.
        put_entry(&mut heap.world, lost, 0x1234_0000_0080);
        let found = all(&heap);
        let missing: Vec<_> = found.notes.all_missing().map(|missing| (missing.why, missing.count)).collect();
        assert_eq!(missing, [(Lack::PagedOut, Some(1))], "{:?}", found.notes.lines());
        assert_eq!(found.notes.lines().len(), 1);
        let there = |block: &&SmallBlock| block.header & !0xfff != lost && block.header != lost + 0x1000;
        let expected: Vec<_> = heap.blocks.iter().filter(there).copied().collect();
        assert!(expected.iter().all(|block| found.blocks.contains(block)));
        assert!(found.checks.iter().all(|check| check.ok || !check.name.is_proven()), "{:?}", found.checks);
        // A search says the same.
        heap.world.searches = true;
        let plan = Plan::read(&heap.world.kernel(), Kinds::ALL).unwrap();
        let searched = plan.search(&heap.world.kernel(), Tag(*b"Leak"), 1296, Limits::default()).unwrap();
        assert_eq!((searched.blocks, searched.notes), (found.blocks, found.notes));
    }
}

/// A page of which not even the table is in memory is out as well; one whose table never was is not.
#[test]
fn a_page_is_out_where_its_table_is() {
    for (table, out) in [(0x1234_0000_0080, true), (0x863 & !1 | 1 << 11, true), (0, false)] {
        let pieces: Vec<Piece> = (0..200).map(|n| plain(3 + n * 29 % 60)).collect();
        let mut heap = ordinary(WIN11_24H2, &pieces);
        let lost = heap.blocks.iter().find(|block| block.kind == BlockKind::Vs).unwrap().header & !0xfff;
        page_tables(&mut heap.world);
        heap.world.unmap(lost);
        heap.world.unmap(entry_of(lost, 0) & !0xfff);
        put_entry(&mut heap.world, entry_of(lost, 0), table);
        let found = all(&heap);
        let counted = found.notes.all_missing().any(|missing| missing.why == Lack::PagedOut);
        assert_eq!(counted, out, "{table:x}: {:?}", found.notes.lines());
    }
}

/// Makes the last level of the page tables there for what the world has, where the kernel maps them.
fn page_tables(world: &mut World) {
    world.pointer_variable("MmPteBase", 0xffff_f680_0000_0000);
    let pages = world.mapped();
    for page in pages {
        for level in 0..4 {
            let entry = entry_of(page, level);
            world.put(entry, 0x0000_0001_2345_6863, 8);
        }
    }
}

fn entry_of(address: u64, level: u32) -> u64 {
    (0..=level).fold(address, |at, _| 0xffff_f680_0000_0000 + ((at & 0xffff_ffff_ffff) >> 12) * 8)
}

fn put_entry(world: &mut World, address: u64, entry: u64) {
    world.put(entry_of(address, 0), entry, 8);
}

/// Section 8: nothing is asked of what lies at 8 to 15 of a page of special pool, and the fill byte may be any.
#[test]
fn a_page_of_special_pool_needs_no_zeros() {
    for version in EVERY {
        let mut heap = Heap::new(version);
        let special = heap.state + places(version.build).special;
        let address = heap.heap(special + 8);
        let segment = heap.segment(address, false);
        for (index, size) in [(2, 0x68u64), (5, 0x4f1), (250, 0xff0)] {
            let page = heap.range(segment, index, 1, 3, 12);
            heap.special(page, size, *b"Leak", PoolKind::NonPagedNx);
            heap.world.put(page + 8, 0x1234_5678_9abc_def0, 8);
        }
        // A freed block's page is taken away.
        heap.range(segment, 20, 1, 3, 12);
        heap.finish();
        let found = whole(&heap);
        assert_eq!(found.blocks[0].address & 0xfff, 0xf90);
        assert_eq!(check(&found, Book::SpecialPages), Check::new(Book::SpecialPages, 3, 3, 0));
        // A page whose size cannot be is said.
        heap.world.put(segment + 0x5000, 0x5b_1fff, 4);
        let found = all(&heap);
        assert!(found.notes.lines()[0].contains("has no header that can be"), "{:?}", found.notes.lines());
    }
}

/// Section 7: blocks of the table in no known heap are said, with what that means; larger ones than a segment can hold
/// have pages of their own.
#[test]
fn large_allocations_in_no_known_heap_are_said() {
    let mut heap = ordinary(LATER, &[plain(0x20)]);
    let segment = heap.blocks[0].header & !0xfffff;
    let inside = (segment + 0x2_0000, 0x8000, 0x200);
    crate::big_pages::table_of(&mut heap.world, &[inside, (0xffff_b000_0000_0000, 0x80_0000, 0x200)]);
    whole(&heap);
    let stray = (0xffff_b000_1234_0000, 0x1000, 0x200);
    crate::big_pages::table_of(&mut heap.world, &[inside, stray]);
    let found = all(&heap);
    assert_eq!(found.notes.lines().len(), 1);
    assert!(found.notes.lines()[0].contains("private pools"), "{:?}", found.notes.lines());
    let check = check(&found, Book::LargeInHeaps);
    assert_eq!((check.expected, check.found, check.place), (2, 1, Some(stray.0)));
}

proptest! {
    #![proptest_config(cases(48))]

    /// Whatever lies in subsegments and in the heap's own structures, a walk ends, with notes or without.
    #[test]
    fn no_bytes_stop_a_walk(
        version in prop::sample::select(EVERY.to_vec()),
        seed in any::<u64>(),
        whole in any::<bool>(),
        places in prop::collection::vec((0u64..0x10_0000, any::<u64>()), 0..24),
    ) {
        let mut heap = ordinary(version, &[plain(0x20), plain(7), plain(0xf0)]);
        let segment = heap.blocks[0].header & !0xfffff;
        let noise = |at: u64| (at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        if whole {
            // All of a VS and of an LFH subsegment but for their headers' signatures.
            for at in (segment + 0x2030..segment + 0x1_2000).chain(segment + 0x1_4000..segment + 0x1_8000).step_by(8) {
                heap.world.put(at, noise(at), 8);
            }
        }
        for (offset, value) in places {
            heap.world.put(segment + (offset & !7), value, 8);
        }
        let kernel = heap.world.kernel();
        let found = find(&kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
        for block in found.blocks.iter().step_by(9) {
            let _ = around::read(&kernel, block.address);
        }
    }
}

/// What cannot be read is missing; it says nothing against the picture of what is there, and of no private pool.
#[test]
fn what_is_not_in_memory_accuses_nobody() {
    let pieces: Vec<Piece> = (0..200).map(|n| plain(3 + n * 29 % 60)).collect();
    for version in [WIN10_1903, WIN11_24H2] {
        let whole = all(&ordinary(version, &pieces));
        let first =
            |kind: BlockKind| whole.blocks.iter().find(|block| block.kind == kind).expect("a block").header & !0xfff;
        // The page of a subsegment's header, and those of a segment's first and last descriptors.
        let segment = first(BlockKind::Vs) & !0xf_ffff;
        let places = [first(BlockKind::Vs), first(BlockKind::Lfh), segment, segment + 0x1000];
        for page in places {
            let mut heap = ordinary(version, &pieces);
            heap.world.unmap(page);
            let found = all(&heap);
            assert!(!found.is_complete(), "{page:x}");
            let wrong: Vec<_> = found.checks.iter().filter(|check| !check.ok && check.name.is_proven()).collect();
            assert!(wrong.is_empty(), "{page:x}: {wrong:?}, {:?}", found.notes.lines());
            assert!(!found.notes.lines().iter().any(|line| line.contains("private")), "{:?}", found.notes.lines());
        }
    }
}
