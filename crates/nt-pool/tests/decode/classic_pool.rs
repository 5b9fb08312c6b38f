//! The classic pool in its ranges: page tables, chains, lists of freed blocks, special pool.

use nt_pool::around::{self, Contents};
use nt_pool::small_blocks::{BlockKind, BlockState, Kinds, Limits, SmallBlock, find};
use nt_pool::{PoolKind, Tag};

use crate::support::*;

const VERSIONS: [Version; 3] = [VISTA_X86, WIN7_X64, WIN10_1607];

pub(crate) struct Pool {
    pub(crate) world: World,
    /// Start of nonpaged, of paged and of special pool.
    pub(crate) nonpaged: u64,
    pub(crate) paged: u64,
    special: u64,
    pub(crate) blocks: Vec<SmallBlock>,
}

const PTE_BASE_10: u64 = 0xffff_9a00_0000_0000;

impl Pool {
    fn new(version: Version) -> Self {
        let mut world = World::new(version);
        let narrow = version.pointer == 4;
        crate::pool_page::describe(&mut world);
        crate::big_pages::describe(&mut world);
        crate::big_pages::table_of(&mut world, &[]);
        let entry = if narrow { 4 } else { 8 };
        let bit = |name, first| nt_symbols::Field { size: entry, ..bits(name, 0, first, 1) };
        world.layout("_MMPTE_HARDWARE", entry, &[bit("Valid", 0), bit("LargePage", 7)]);
        world.layout("_MMPTE_TRANSITION", entry, &[bit("Prototype", 10), bit("Transition", 11)]);
        let (nonpaged, paged, special) = match version.build {
            _ if narrow => (0x8400_0000, 0x9800_0000, 0xa000_0000),
            7601 => (0xffff_fa80_0100_0000, 0xffff_f8a0_0000_0000, 0xffff_f980_0000_0000),
            _ => (0xffff_8a80_0000_0000, 0xffff_b700_0000_0000, 0xffff_d000_0000_0000),
        };
        match version.build {
            _ if narrow => {
                world.pointer_variable("MmSystemRangeStart", 0x8000_0000);
                let types = world.variable("MiSystemVaType", 0x200);
                for (start, kind) in [(nonpaged, 5), (paged, 6), (special, 13)] {
                    world.put(types + ((start - 0x8000_0000) >> 22), kind, 1);
                }
            }
            7601 => {
                world.pointer_variable("MmNonPagedPoolStart", nonpaged);
                world.pointer_variable("MiNonPagedPoolEnd", nonpaged + 0x4000_0000);
                world.pointer_variable("MmPagedPoolEnd", paged + 0x1f_ffff_ffff);
                let fields = [number("PteBase", 0, 8), member("SpecialPoolPdes", 8, 0x10, "_RTL_BITMAP")];
                world.layout("_MI_SPECIAL_POOL", 0x18, &fields);
                world.layout("_RTL_BITMAP", 0x10, &[number("SizeOfBitMap", 0, 4)]);
                let state = world.variable("MiSpecialPool", 0x18);
                world.put(state, 0xffff_f680_0000_0000 + ((special & 0xffff_ffff_ffff) >> 12) * 8, 8);
                world.put(state + 8, 0x4000, 4);
            }
            _ => {
                world.pointer_variable("MmPteBase", PTE_BASE_10);
                world.layout(
                    "_MI_SYSTEM_VA_ASSIGNMENT",
                    0x10,
                    &[number("BaseAddress", 0, 8), number("NumberOfBytes", 8, 8)],
                );
                world.layout("_MI_VISIBLE_STATE", 0x840, &[array("SystemVaRegions", 0x760, 14, 0x10)]);
                world.enumeration(
                    "_MI_ASSIGNED_REGION_TYPES",
                    &[
                        ("AssignedRegionNonPagedPool", 0),
                        ("AssignedRegionPagedPool", 1),
                        ("AssignedRegionSpecialPool", 9),
                    ],
                );
                let state = world.pool(0x40);
                world.pointer_variable("MiVisibleState", state);
                world.write(state, &[0; 0x840]);
                for (index, start) in [(0, nonpaged), (1, paged), (9, special)] {
                    world.put(state + 0x760 + index * 0x10, start, 8);
                    world.put(state + 0x768 + index * 0x10, 1 << 44, 8);
                }
            }
        }
        Pool { world, nonpaged, paged, special, blocks: Vec::new() }
    }

    /// 8.1 on x64: fixed places, and no variable that says where special pool is.
    fn of_8_1() -> Self {
        let version = Version { build: 9600, ..WIN7_X64 };
        let (nonpaged, paged, special) = (0xffff_e000_0000_0000, 0xffff_c000_0000_0000, 0xffff_cf80_0000_0000);
        let mut pool = Pool { nonpaged, paged, special, ..Pool::new(Version { build: 7601, ..version }) };
        pool.world.version = version;
        pool.world.pointer_variable("MmNonPagedPoolStart", nonpaged);
        pool.world.pointer_variable("MiNonPagedPoolEnd", nonpaged + 0x4000_0000);
        pool.world.pointer_variable("MmPagedPoolEnd", paged + 0x1f_ffff_ffff);
        pool.world.forget_symbol("MiSpecialPool");
        pool
    }

    fn entry(&self, address: u64, level: u32) -> (u64, u8) {
        let (base, size) = match (self.world.version.pointer, self.world.version.build) {
            (4, _) => (0xc000_0000, 4),
            (_, 7601 | 9600) => (0xffff_f680_0000_0000, 8u64),
            _ => (PTE_BASE_10, 8),
        };
        let mask = if self.world.version.pointer == 4 { 0xffff_ffff } else { 0xffff_ffff_ffff };
        (0..=level).fold((address, size as u8), |(at, _), _| (base + ((at & mask) >> 12) * size, size as u8))
    }

    /// Makes the page's entries say `last`, and those above that there is a table.
    fn map(&mut self, address: u64, last: u64) {
        let levels = if self.world.version.pointer == 4 { 2 } else { 4 };
        for level in (1..levels).rev() {
            let (at, size) = self.entry(address, level);
            self.world.put(at, 0x63, size);
        }
        let (at, size) = self.entry(address, 0);
        self.world.put(at, last, size);
    }

    /// A page filled with blocks of the given sizes (in headers) and PoolTypes.
    fn page(&mut self, address: u64, pool: PoolKind, blocks: &[(u64, u8, [u8; 4])]) {
        self.map(address, 0x8000_0063);
        let narrow = self.world.version.pointer == 4;
        let unit = if narrow { 8 } else { 16 };
        let (mut at, mut previous) = (address, 0u64);
        let left = 0x1000 / unit - blocks.iter().map(|(units, ..)| units).sum::<u64>();
        for &(units, pool_type, tag) in blocks.iter().chain(&[(left, 0, *b"Free")]) {
            if narrow {
                self.world.put(at, previous, 2);
                self.world.put(at + 2, units | u64::from(pool_type) << 9, 2);
            } else {
                self.world.write(at, &[previous as u8, 0, units as u8, pool_type]);
            }
            self.world.write(at + 4, &tag);
            self.blocks.push(SmallBlock {
                header: at,
                address: at + unit,
                size: (units - 1) * unit,
                block_size: units * unit,
                previous_size: previous * unit,
                tag: Tag(tag),
                protected: false,
                pool,
                state: if pool_type == 0 { BlockState::Free } else { BlockState::Allocated },
                kind: BlockKind::Page,
            });
            previous = units;
            at += units * unit;
        }
    }
}

pub(crate) fn ordinary(version: Version) -> Pool {
    fill(Pool::new(version))
}

fn fill(mut pool: Pool) -> Pool {
    let version = pool.world.version;
    let (nonpaged, paged, special) = (pool.nonpaged, pool.paged, pool.special);
    for n in 0..3 {
        pool.page(
            nonpaged + n * 0x1000,
            PoolKind::NonPaged,
            &[(0x20, 2, *b"Leak"), (0x60, 2, *b"Proc"), (2, 0, *b"Leak")],
        );
    }
    pool.page(paged + 0x12_3000, PoolKind::Paged, &[(0x40, 3, *b"Leak"), (0x44, 3, *b"MmSt")]);
    // In transition, and yet readable; and one that went to the page file.
    pool.page(paged + 0x20_0000, PoolKind::Paged, &[(0x10, 3, *b"Leak")]);
    pool.map(paged + 0x20_0000, 0x8000_0800);
    pool.map(paged + 0x20_1000, 0x1234_5000 << if version.pointer == 4 { 0 } else { 16 });
    // Resident, but not a page of blocks.
    pool.map(nonpaged + 0x10_0000, 0x63);
    pool.world.write(nonpaged + 0x10_0000, &[0x41; 0x1000]);
    pool.map(special + 0x2000, 0x63);
    let page = special + 0x2000;
    pool.world.write(page, &[0x5b; 0x1000]);
    pool.world.put(page, 0x120 | 0x5b_8000, 4);
    pool.world.write(page + 4, b"Leak");
    pool.world.put(page + 8, 0, if version.pointer == 4 { 0 } else { 8 });
    pool.blocks.push(SmallBlock {
        header: page,
        address: page + 0xee0,
        size: 0x120,
        block_size: 0x1000,
        previous_size: 0,
        tag: Tag(*b"Leak"),
        protected: false,
        pool: PoolKind::Paged,
        state: BlockState::Allocated,
        kind: BlockKind::Special,
    });
    // The second page's first block waits in a processor's lookaside list, the third page's in the pending frees.
    let waits = |pool: &Pool, n: usize| pool.blocks[n * 4].address;
    let prcb = pool.world.pool(0x50);
    pool.world.u32_variable("KeNumberProcessors", 1);
    pool.world.pointer_variable("KiProcessorBlock", prcb);
    let size = lookaside_types(&mut pool.world);
    pool.world.layout("_KPRCB", 0x1000, &[array("PPNPagedLookasideList", 0x100, 32, size)]);
    pool.world.write(prcb, &[0; 0x1000]);
    let (cached, pending) = (waits(&pool, 1), waits(&pool, 2));
    let width = version.pointer;
    put_lookaside(&mut pool.world, prcb + 0x100 + 5 * size, 0x60, &[cached]);
    pool.world.put(cached, 0, width);
    pool.world.layout("_POOL_DESCRIPTOR", 0x1140, &[field("PendingFrees", 0x100, width.into())]);
    let descriptor = pool.world.variable("NonPagedPoolDescriptor", 0x1140);
    pool.world.put(descriptor + 0x100, pending, width);
    pool.world.put(pending, 0, width);
    for n in [1, 2] {
        pool.blocks[n * 4].state = BlockState::Cached;
    }
    pool.blocks.sort_by_key(|block| block.header);
    pool
}

/// Special pool of 8 and 8.1 is at ffffcf80`00000000 where no variable says more; where the kernel counts no page of it,
/// it is not looked for.
#[test]
fn special_pool_of_8_1_is_found_where_no_variable_says_it() {
    for (pages, found) in [(None, true), (Some(1), true), (Some(0), false)] {
        let mut pool = fill(Pool::of_8_1());
        if let Some(pages) = pages {
            pool.world.u32_variable("MmSpecialPagesInUse", pages);
        }
        let blocks = find(&pool.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        let special: Vec<_> = blocks.blocks.iter().filter(|block| block.kind == BlockKind::Special).collect();
        assert_eq!(special.len(), usize::from(found), "{pages:?}");
        assert_eq!(blocks.notes.lines().len(), 1, "the page in a page file alone: {:?}", blocks.notes.lines());
    }
}

#[test]
fn blocks_of_every_generation_are_found() {
    for version in VERSIONS {
        let pool = ordinary(version);
        let kernel = pool.world.kernel();
        let found = find(&kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
        assert_eq!(found.blocks, pool.blocks, "{version:?}");
        told_by_address(&pool.world.kernel(), &found.blocks);
        let out = "pages of pool that are in a page file, and whose blocks are missing: 1";
        assert_eq!((&found.notes.lines()[..], found.is_complete()), (&[out.to_string()][..], false), "{version:?}");
        let special = find(&kernel, &|_| true, Kinds { special: true, ..Kinds::NONE }, Limits::default()).unwrap();
        assert_eq!((special.blocks.len(), special.blocks[0].kind), (1, BlockKind::Special));
    }
}

#[test]
fn a_whole_region_costs_its_tables_and_its_resident_pages() {
    let pool = ordinary(WIN10_1607);
    pool.world.reset_cost();
    find(&pool.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    // 48 TB of regions: some page tables and seven pages of pool.
    assert!(pool.world.cost().bytes < 0x4_0000, "{:?}", pool.world.cost());
}

#[test]
fn a_broken_page_is_named_and_the_others_are_found() {
    let mut pool = ordinary(WIN7_X64);
    let broken = pool.nonpaged + 0x1000 + 0x800;
    pool.world.write(broken, &[0x33]);
    let found = find(&pool.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
    assert!(!found.is_complete());
    assert!(found.notes.lines().iter().any(|note| note.contains("fffffa8001001800")), "{:?}", found.notes.lines());
    // The block itself is whole: only what its header says of the one before is wrong.
    let mut expected = pool.blocks.clone();
    expected.iter_mut().find(|block| block.header == broken).unwrap().previous_size = 0x330;
    assert_eq!(found.blocks, expected);
    // One bit of it was turned over.
    pool.world.write(broken, &[0x60 ^ 4]);
    let kernel = pool.world.kernel();
    assert!(around::single_bit_errors(&kernel, broken).unwrap().contains(&(broken, 2)));
    assert!(around::read(&kernel, broken).unwrap().problem.is_some());
}

/// Sizes of zero and sizes that lead past the page's end, in every header of a page: the others are found, and the page
/// is named.
#[test]
fn a_size_that_cannot_be_costs_its_block_alone() {
    for (index, size) in (0..4).flat_map(|index| [(index, 0), (index, 0xff), (index, 1)]) {
        let mut pool = ordinary(WIN7_X64);
        let damaged = pool.blocks.iter().filter(|block| block.header >> 12 == (pool.nonpaged + 0x1000) >> 12);
        let damaged = damaged.map(|block| block.header).nth(index).unwrap();
        pool.world.write(damaged + 2, &[size]);
        let found = find(&pool.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        let others = pool.blocks.iter().filter(|block| block.header != damaged).copied();
        // Of a last block nothing says where it ended.
        let unnamed = found.blocks.iter().filter(|block| block.header != damaged).copied();
        assert_eq!(unnamed.collect::<Vec<_>>(), others.collect::<Vec<_>>(), "header {index}, size {size:#x}");
        assert!(!found.is_complete());
        let page = format!("{:013x}", damaged >> 12);
        assert!(
            found.notes.lines().iter().any(|note| note.contains(&page)),
            "header {index}, {size:#x}: {:?}",
            found.notes.lines()
        );
    }
}

/// A page of two blocks, the first of which has no size, or one that leads into itself or into the second.
#[test]
fn a_damaged_first_block_does_not_take_the_only_other_one_with_it() {
    for size in [0, 1, 0xff] {
        let mut pool = ordinary(WIN7_X64);
        let at = pool.paged + 0x12_4000;
        pool.page(at, PoolKind::Paged, &[(0xfa, 3, *b"Leak")]);
        pool.blocks.sort_by_key(|block| block.header);
        pool.world.write(at + 2, &[size]);
        let found = find(&pool.world.kernel(), &|_| true, Kinds::ALL, Limits::default()).unwrap();
        let others: Vec<_> = pool.blocks.iter().filter(|block| block.header != at).copied().collect();
        assert_eq!(found.blocks, others, "size {size:#x}");
        let page = format!("{at:016x}");
        assert!(
            !found.is_complete() && found.notes.lines().iter().any(|note| note.contains(&page)),
            "{:?}",
            found.notes.lines()
        );
    }
}

#[test]
fn one_address_has_its_page_around_it() {
    for version in VERSIONS {
        let pool = ordinary(version);
        let kernel = pool.world.kernel();
        let address = pool.blocks.iter().find(|block| block.tag == Tag(*b"Proc")).unwrap().address + 3;
        let found = around::read(&kernel, address).unwrap();
        assert_eq!(found.pool, Some(PoolKind::NonPaged));
        assert_eq!(found.block(address).unwrap().tag, Tag(*b"Proc"));
        let Contents::Blocks(blocks) = &found.contents else { panic!("{found:?}") };
        assert_eq!(blocks.len(), 4);
        let found = around::read(&kernel, pool.special + 0x2ff0).unwrap();
        let Contents::Special(block) = &found.contents else { panic!("{found:?}") };
        assert_eq!((block.size, block.kind), (0x120, PoolKind::Paged));
        let found = around::read(&kernel, pool.paged + 0x555_5000).unwrap();
        assert_eq!((found.contents, found.readable), (Contents::Nothing, false));
    }
}

#[test]
fn the_end_of_the_address_space_is_no_place_of_pool() {
    for version in ALL.into_iter().filter(|version| version.build < 17134) {
        let pool = ordinary(version);
        let last = if version.pointer == 4 { u64::from(u32::MAX) } else { u64::MAX };
        assert_eq!(around::read(&pool.world.kernel(), last).unwrap().contents, Contents::Nothing);
    }
}

#[test]
fn tables_that_lead_to_themselves_end() {
    let mut pool = ordinary(WIN7_X64);
    // Every entry of the paged pool's top table leads back to it.
    let (at, _) = pool.entry(pool.paged, 3);
    for n in 0..8 {
        pool.world.put((at & !0xfff) + n * 8, 0x63, 8);
    }
    let limits = Limits { bytes: 1 << 20, ..Limits::default() };
    let found = find(&pool.world.kernel(), &|_| true, Kinds::ALL, limits).unwrap();
    assert!(found.blocks.len() >= 12);
}
