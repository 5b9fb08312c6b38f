//! `nt!PoolBigPageTable` in all its layouts, by bulk reads, by the target's search, and by hash.

use nt_pool::big_pages::{self, BigPage};
use nt_pool::{PoolKind, Tag};
use proptest::prelude::*;

use crate::support::*;

/// Size of an entry, offset of Key, of the type's dword and of NumberOfBytes with its width.
fn layout(version: Version) -> (u64, u64, u64, u64, u8) {
    match (version.pointer, version.build) {
        (4, _) => (0x10, 4, 8, 0xc, 4),
        (_, ..20348) => (0x18, 8, 0xc, 0x10, 8),
        _ => (0x20, 8, 0xc, 0x10, 8),
    }
}

pub(crate) fn describe(world: &mut World) {
    let version = world.version;
    let (size, key, kind, bytes, wide) = layout(version);
    let pointer = u64::from(version.pointer);
    let mut fields = vec![field("Va", 0, pointer), field("Key", key, 4), field("NumberOfBytes", bytes, wide.into())];
    if version.build < 10240 {
        fields.push(field("PoolType", kind, 4));
    } else {
        let name = if version.build < 26100 { "PoolType" } else { "PoolFlags" };
        fields.extend([bits("Pattern", kind, 0, 8), bits(name, kind, 8, 12), bits("SlushSize", kind, 20, 12)]);
    }
    if version.build >= 20348 {
        fields.push(field("ProcessBilled", 0x18, 8));
    }
    world.layout("_POOL_TRACKER_BIG_PAGES", size, &fields);
}

/// A table of blocks in use, by address, size and type, for kernels that are made for something else.
pub(crate) fn table_of(world: &mut World, blocks: &[(u64, u64, u32)]) {
    let version = world.version;
    let (size, key, kind, bytes, wide) = layout(version);
    let slots = blocks.len().next_power_of_two() as u64;
    let address = world.pool(0);
    world.pointer_variable("PoolBigPageTable", address);
    world.pointer_variable("PoolBigPageTableSize", slots);
    world.write(address, &vec![0; (slots * size) as usize]);
    for (slot, (block, length, pool_type)) in blocks.iter().enumerate() {
        let at = address + slot as u64 * size;
        world.put(at, *block, version.pointer);
        world.write(at + key, b"Larg");
        let pool_type = match version.build {
            ..10240 => *pool_type,
            10240..26100 => pool_type << 8,
            // POOL_FLAGS.
            _ => {
                if pool_type & 1 != 0 {
                    0x100 << 8
                } else {
                    0x40 << 8
                }
            }
        };
        world.put(at + kind, pool_type.into(), 4);
        world.put(at + bytes, *length, wide);
    }
}

#[derive(Debug)]
struct Table {
    world: World,
    slots: u64,
    address: u64,
    /// In table order.
    truth: Vec<(u64, BigPage)>,
}

impl Table {
    fn new(version: Version, slots: u64) -> Self {
        let mut world = World::new(version);
        describe(&mut world);
        let (size, ..) = layout(version);
        let address = world.pool(0);
        world.pointer_variable("PoolBigPageTable", address);
        world.pointer_variable("PoolBigPageTableSize", slots);
        world.write(address, &vec![0; (slots * size) as usize]);
        for slot in 0..slots {
            // A slot that never held a block is free.
            world.put(address + slot * size, 1, version.pointer);
        }
        Table { world, slots, address, truth: Vec::new() }
    }

    fn slot_of(&self, address: u64) -> u64 {
        let product = u128::from((address >> 12) as u32) * 40543;
        let mut slot = (product ^ product >> 32) as u64 % self.slots;
        while self.truth.iter().any(|(used, _)| *used == slot) {
            slot = (slot + 1) % self.slots;
        }
        slot
    }

    fn put(&mut self, slot: u64, page: BigPage) {
        let version = self.world.version;
        let (size, key, kind, bytes, wide) = layout(version);
        let at = self.address + slot * size;
        self.world.put(at, page.address | u64::from(page.free), version.pointer);
        self.world.put(at + key, u64::from(page.tag.key()) | u64::from(page.protected) << 31, 4);
        let type_bits = match (page.pattern, page.slush) {
            (Some(pattern), Some(slush)) => u32::from(pattern) | page.pool_type << 8 | u32::from(slush) << 20,
            _ => page.pool_type,
        };
        self.world.put(at + kind, type_bits.into(), 4);
        self.world.put(at + bytes, page.size, wide);
        if let Some(process) = page.process_billed {
            self.world.put(at + 0x18, process, 8);
        }
        self.truth.push((slot, page));
        self.truth.sort_by_key(|(slot, _)| *slot);
    }

    fn block(&self, page_number: u64, tag: &[u8; 4], size: u64) -> BigPage {
        let version = self.world.version;
        BigPage {
            address: self.world.pool(4) + page_number * 0x1000,
            tag: Tag(*tag),
            protected: false,
            size,
            pool_type: 1,
            kind: PoolKind::Paged,
            free: false,
            pattern: (version.build >= 10240).then_some(0x5a),
            slush: (version.build >= 10240).then_some(0xe10),
            process_billed: (version.build >= 20348).then_some(0xffff_1234_5678_9abc),
        }
    }

    fn pages(&self, wanted: impl Fn(&BigPage) -> bool) -> Vec<BigPage> {
        self.truth.iter().map(|(_, page)| page.clone()).filter(wanted).collect()
    }
}

fn kind_of(pool_type: u32) -> PoolKind {
    match pool_type {
        0 | 4 => PoolKind::NonPaged,
        1 | 5 => PoolKind::Paged,
        0x20 => PoolKind::NonPagedSession,
        0x21 => PoolKind::PagedSession,
        0x200 => PoolKind::NonPagedNx,
        other => unreachable!("{other:#x} is not used here"),
    }
}

prop_compose! {
    fn contents()(
        version in prop::sample::select(&ALL[..]),
        searches in any::<bool>(),
        blocks in prop::collection::btree_map(
            1..0x8000u64,
            // Few tags, so that a tag has several blocks; one is the other's with the protected bit's neighbourhood.
            (prop::sample::select(vec![*b"Leak", *b"Proc", *b"MmSt", *b"aeLa"]), any::<bool>(),
             prop::sample::select(vec![0u32, 1, 4, 5, 0x20, 0x21, 0x200]), any::<bool>(), 0x1000..0x80_0000u64),
            0..60,
        ),
        noise in prop::collection::vec((0..256u64, 0..0x10u64), 0..40),
    ) -> Table {
        let mut table = Table::new(version, 256);
        table.world.searches = searches;
        for (number, (tag, protected, pool_type, free, size)) in blocks {
            let mut page = table.block(number, &tag, size);
            let pool_type = if version.build < 9200 { pool_type & 0xff } else { pool_type };
            (page.protected, page.pool_type, page.free, page.kind) = (protected, pool_type, free, kind_of(pool_type));
            let slot = table.slot_of(page.address);
            table.put(slot, page);
        }
        // The tag's bytes at places where no Key is: hits that must not count.
        let (size, key, ..) = layout(version);
        for (slot, place) in noise {
            if place + 4 <= size && place.abs_diff(key) >= 4 && table.truth.iter().all(|(used, _)| *used != slot) && place >= u64::from(version.pointer) {
                table.world.write(table.address + slot * size + place, b"Leak");
            }
        }
        table
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn all_blocks_are_the_truth(table in contents()) {
        let found = big_pages::read(&table.world.kernel(), &|_| true).unwrap();
        prop_assert_eq!(found.notes.lines(), Vec::<String>::new());
        prop_assert_eq!(found.blocks, table.pages(|_| true));
        let end = table.address + table.slots * layout(table.world.version).0;
        prop_assert_eq!(found.table, table.address..end);
        prop_assert_eq!(big_pages::table(&table.world.kernel()).unwrap(), table.address..end);
    }

    #[test]
    fn a_tags_blocks_are_the_truth(table in contents(), tag in prop::sample::select(vec![*b"Leak", *b"Proc", *b"None"])) {
        let found = big_pages::find(&table.world.kernel(), Tag(tag)).unwrap();
        prop_assert_eq!(found.blocks, table.pages(|page| page.tag == Tag(tag)));
        prop_assert_eq!(found.notes.lines(), Vec::<String>::new());
    }

    #[test]
    fn every_block_is_found_by_its_address(table in contents()) {
        for page in table.pages(|_| true) {
            let found = big_pages::lookup(&table.world.kernel(), page.address).unwrap();
            prop_assert_eq!(found.as_ref(), Some(&page));
            let inside = page.address + page.size - 1;
            let containing = big_pages::entry_containing(&table.world.kernel(), inside).unwrap().unwrap();
            prop_assert!(containing.contains(inside));
            prop_assert!(!containing.free || table.pages(|page| page.contains(inside) && !page.free).is_empty());
        }
        prop_assert_eq!(big_pages::lookup(&table.world.kernel(), table.world.pool(3)).unwrap(), None);
    }
}

pub(crate) fn check_ordinary(version: Version) {
    let mut table = Table::new(version, 256);
    for n in 0..50 {
        let page = table.block(n, b"Leak", 0x1000 * (n + 1));
        let slot = table.slot_of(page.address);
        table.put(slot, page);
    }
    let found = big_pages::find(&table.world.kernel(), Tag(*b"Leak")).unwrap();
    assert_eq!((found.blocks, found.notes.lines()), (table.pages(|_| true), vec![]), "{version:?}");
}

/// The article's table: 65,536 entries, 23 blocks of the tag, here among blocks of others.
fn article() -> Table {
    let mut table = Table::new(WIN7_X64, 0x1_0000);
    let mut others = 0;
    for n in 0..200u64 {
        let leak = n % 9 == 4 && n / 9 < 23 || n == 199;
        let mut page = table.block(n * 0xfa, if leak { b"Leak" } else { b"CM31" }, 0xfa000);
        page.protected = n == 4;
        others += u64::from(!leak);
        let slot = table.slot_of(page.address);
        table.put(slot, page);
    }
    assert_eq!(others, 177);
    table
}

#[test]
fn the_articles_question_is_cheap_when_the_target_searches() {
    let mut table = article();
    table.world.searches = true;
    let found = big_pages::find(&table.world.kernel(), Tag(*b"Leak")).unwrap();
    assert_eq!(found.blocks.len(), 23);
    assert_eq!(found.blocks, table.pages(|page| page.tag == Tag(*b"Leak")));
    let cost = table.world.cost();
    assert!(cost.requests <= 60 && cost.bytes <= 16 << 10, "{cost:?}");
}

#[test]
fn in_bulk_the_table_is_read_once() {
    let table = article();
    let found = big_pages::find(&table.world.kernel(), Tag(*b"Leak")).unwrap();
    assert_eq!(found.blocks.len(), 23);
    let cost = table.world.cost();
    let bytes = 0x1_0000 * 0x18u64;
    assert!(cost.requests <= bytes.div_ceil(1296) + 6 && cost.bytes <= bytes + 128, "{cost:?}");
}

#[test]
fn a_tag_with_many_blocks_does_not_cost_more_than_twice_the_table() {
    let mut table = Table::new(WIN7_X64, 0x2000);
    table.world.searches = true;
    for slot in (0..0x2000).step_by(9) {
        let page = table.block(slot, b"Leak", 0x1000);
        table.put(slot, page);
    }
    let found = big_pages::find(&table.world.kernel(), Tag(*b"Leak")).unwrap();
    assert_eq!(found.blocks, table.pages(|_| true));
    let cost = table.world.cost();
    assert!(cost.requests <= 2 * (0x2000u64 * 0x18).div_ceil(1296) + 6, "{cost:?}");
}

#[test]
fn a_table_that_hashes_otherwise_still_finds_its_blocks() {
    for searches in [false, true] {
        let mut table = Table::new(WIN11_21H2, 256);
        table.world.searches = searches;
        let page = table.block(5, b"Leak", 0x3000);
        let slot = table.slot_of(page.address) ^ 0x80;
        table.put(slot, page.clone());
        assert_eq!(big_pages::lookup(&table.world.kernel(), page.address).unwrap(), Some(page));
    }
}

/// A freed slot keeps its address; the block that has the address now may stand behind it.
#[test]
fn a_block_in_use_is_found_behind_what_was_freed_there() {
    for (searches, elsewhere) in [(false, 0), (true, 0), (false, 0x80), (true, 0x80)] {
        let mut table = Table::new(WIN11_21H2, 256);
        table.world.searches = searches;
        let page = table.block(5, b"Leak", 0x3000);
        let old = BigPage { tag: Tag(*b"Olds"), free: true, ..page.clone() };
        let slot = table.slot_of(page.address) ^ elsewhere;
        table.put(slot, old);
        table.put(slot + 1, page.clone());
        assert_eq!(big_pages::lookup(&table.world.kernel(), page.address).unwrap(), Some(page));
    }
}

#[test]
fn an_address_costs_one_probe() {
    let table = article();
    let (_, page) = table.truth[17].clone();
    table.world.reset_cost();
    assert_eq!(big_pages::lookup(&table.world.kernel(), page.address).unwrap(), Some(page));
    assert!(table.world.cost().requests <= 4, "{:?}", table.world.cost());
}

#[test]
fn a_hole_is_named_and_the_other_blocks_are_shown() {
    let mut table = Table::new(WIN7_X64, 0x400);
    for slot in [1, 0x200, 0x3ff] {
        let page = table.block(slot, b"Leak", 0x1000);
        table.put(slot, page);
    }
    let page = table.address + 0x200 * 0x18;
    table.world.unmap(page);
    let found = big_pages::read(&table.world.kernel(), &|_| true).unwrap();
    assert_eq!(found.blocks.len(), 2);
    assert_eq!(
        found.notes.lines(),
        [format!("nt!PoolBigPageTable: 0x1000 bytes at {:016x} could not be read", page & !0xfff)]
    );
}

#[test]
fn an_entry_that_cannot_be_is_named() {
    for searches in [false, true] {
        for (address, size) in [(0x4141_4141_4141_4000, 0x1000), (0, 0), (0, 1 << 63)] {
            let mut table = Table::new(WIN7_X64, 0x400);
            table.world.searches = searches;
            let good = table.block(7, b"Leak", 0x1000);
            let mut bad = table.block(9, b"Leak", size);
            if address != 0 {
                bad.address = address;
            }
            let text = format!("{size:#x} bytes at {:016x}", bad.address);
            table.put(1, bad);
            table.put(0x100, good.clone());
            let found = big_pages::find(&table.world.kernel(), Tag(*b"Leak")).unwrap();
            assert_eq!(found.blocks, [good]);
            assert!(
                found.notes.lines().len() == 1 && found.notes.lines()[0].contains(&text),
                "{:?}",
                found.notes.lines()
            );
        }
    }
}

#[test]
fn a_table_that_cannot_be_is_refused() {
    let mut table = Table::new(WIN7_X64, 16);
    let size = table.world.address_of("PoolBigPageTableSize");
    for entries in [0, u64::MAX, 1 << 30] {
        table.world.put(size, entries, 8);
        let error = big_pages::read(&table.world.kernel(), &|_| true).unwrap_err().to_string();
        assert!(error.contains(&format!("nt!PoolBigPageTableSize {entries:#x} entries")), "{error}");
    }
}

/// The kernel puts a larger table in the place of this one, or one elsewhere, while it is read.
#[test]
fn a_table_that_moves_while_it_is_read_is_told() {
    for searches in [false, true] {
        let mut table = article();
        table.world.searches = searches;
        let place = big_pages::table(&table.world.kernel()).unwrap();
        let changes = [("PoolBigPageTableSize", 2 * table.slots), ("PoolBigPageTable", table.world.pool(9))];
        for (name, value) in changes {
            let memory = Changing::new(&table.world, place.clone(), table.world.address_of(name), value);
            let told = |notes: &[String]| notes.iter().any(|note| note.contains("moved or grew while it was read"));
            let found = big_pages::read(&memory.kernel(), &|_| true).unwrap();
            assert!(memory.has_changed() && told(&found.notes.lines()), "{name}: {:?}", found.notes.lines());
            let memory = Changing::new(&table.world, place.clone(), table.world.address_of(name), value);
            let found = big_pages::find(&memory.kernel(), Tag(*b"Leak")).unwrap();
            assert!(memory.has_changed() && told(&found.notes.lines()), "{name}, by tag: {:?}", found.notes.lines());
        }
        assert_eq!(big_pages::read(&table.world.kernel(), &|_| true).unwrap().notes.lines(), Vec::<String>::new());
    }
}
