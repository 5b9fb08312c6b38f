//! `!poolused`: sums equal what was put into the tables, in every generation of `_POOL_TRACKER_TABLE`.

use std::collections::BTreeMap;

use nt_pool::tags::{self, TagUsage, Usage};
use nt_pool::{PoolError, Tag};
use proptest::prelude::*;

use crate::support::*;

/// Offset and width of each field, in the order Key, then nonpaged and paged allocs, frees, bytes.
type Fields = [(u64, u64); 7];

fn row(version: Version) -> (u64, Fields) {
    match (version.pointer, version.build) {
        (4, ..16299) => (0x1c, [(0, 4), (4, 4), (8, 4), (0xc, 4), (0x10, 4), (0x14, 4), (0x18, 4)]),
        (4, _) => (0x30, [(0, 4), (8, 8), (0x10, 8), (4, 4), (0x20, 8), (0x28, 8), (0x18, 4)]),
        (_, ..16299) => (0x28, [(0, 4), (4, 4), (8, 4), (0x10, 8), (0x18, 4), (0x1c, 4), (0x20, 8)]),
        (_, ..20348) => (0x38, [(0, 4), (0x10, 8), (0x18, 8), (8, 8), (0x28, 8), (0x30, 8), (0x20, 8)]),
        _ => (0x50, [(0, 4), (0x10, 8), (0x18, 8), (8, 8), (0x28, 8), (0x30, 8), (0x20, 8)]),
    }
}

const NAMES: [&str; 7] =
    ["Key", "NonPagedAllocs", "NonPagedFrees", "NonPagedBytes", "PagedAllocs", "PagedFrees", "PagedBytes"];

/// One row of one processor's table: six counters.
type Counts = [u64; 6];

#[derive(Debug)]
struct Tables {
    world: World,
    size: u64,
    fields: Fields,
    rows: u64,
    addresses: Vec<u64>,
    truth: BTreeMap<u32, Counts>,
}

impl Tables {
    fn new(version: Version, rows: u64, processors: u64) -> Self {
        let mut world = World::new(version);
        let (size, fields) = row(version);
        let types: Vec<_> = NAMES.iter().zip(fields).map(|(name, (at, size))| field(name, at, size)).collect();
        world.layout("_POOL_TRACKER_TABLE", size, &types);
        let addresses: Vec<u64> = (0..processors).map(|n| world.pool(n)).collect();
        world.pointer_variable("PoolTrackTable", addresses[0]);
        world.pointer_variable("PoolTrackTableSize", rows);
        world.pointer_variable("PoolTrackTableMask", rows - 2);
        world.pointer_variable("PoolTrackTableExpansion", 0);
        world.pointer_variable("PoolTrackTableExpansionSize", 0);
        let pointer = u64::from(version.pointer);
        let array = world.variable("ExPoolTagTables", 256 * version.pointer as u32);
        for (i, address) in addresses.iter().enumerate() {
            world.put(array + i as u64 * pointer, *address, version.pointer);
        }
        let size_of_count = if version.build < 7600 { 1 } else { 4 };
        let count = world.variable("KeNumberProcessors", size_of_count);
        world.put(count, processors, size_of_count as u8);
        for address in &addresses {
            world.write(*address, &vec![0; (rows * size) as usize]);
        }
        Tables { world, size, fields, rows, addresses, truth: BTreeMap::new() }
    }

    fn mask(&self, counter: usize) -> u64 {
        u64::MAX >> (64 - 8 * self.fields[counter + 1].1)
    }

    fn put_row(&mut self, table: u64, index: u64, key: u32, counts: Counts) {
        let at = table + index * self.size;
        self.world.put(at + self.fields[0].0, key.into(), 4);
        for (i, count) in counts.into_iter().enumerate() {
            let (offset, size) = self.fields[i + 1];
            self.world.put(at + offset, count, size as u8);
        }
        let masks: [u64; 6] = std::array::from_fn(|i| self.mask(i));
        let sum = self.truth.entry(key & 0x7fff_ffff).or_default();
        for i in 0..6 {
            sum[i] = sum[i].wrapping_add(counts[i]) & masks[i];
        }
    }

    /// Where the kernel would put the tag: multiply by 40543, fold, take the next free row.
    fn slot(&self, used: &[u64], key: u32) -> u64 {
        let product = u128::from(key) * 40543;
        let mut slot = (product ^ product >> 32) as u64 % (self.rows - 1);
        while used.contains(&slot) {
            slot = (slot + 1) % (self.rows - 1);
        }
        slot
    }

    fn expected(&self) -> Vec<TagUsage> {
        let mut expected: Vec<_> = self.truth.iter().map(|(key, sums)| self.usage(*key, sums)).collect();
        expected.sort_by_key(|usage| usage.tag);
        expected
    }

    fn usage(&self, key: u32, sums: &Counts) -> TagUsage {
        let usage = |i: usize| {
            let narrow = self.fields[i + 1].1 == 4;
            let diff = if narrow {
                i64::from((sums[i] as i32).wrapping_sub(sums[i + 1] as i32))
            } else {
                (sums[i] as i64).wrapping_sub(sums[i + 1] as i64)
            };
            Usage { allocs: sums[i], frees: sums[i + 1], diff, bytes: sums[i + 2] }
        };
        TagUsage { tag: Tag(key.to_le_bytes()), nonpaged: usage(0), paged: usage(3) }
    }
}

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(&ALL[..])
}

fn counts() -> impl Strategy<Value = Counts> {
    // Small numbers and numbers near the ends of 32 and 64 bits: sums must wrap where the field does.
    let count = prop_oneof![0..1000u64, Just(u64::MAX), Just(0xffff_fff0), any::<u64>()];
    prop::array::uniform6(count)
}

prop_compose! {
    /// Tags with a row per processor: the processor, whether it has seen the tag, and its counters.
    fn contents()(
        version in version(),
        processors in 1..5u64,
        tags in prop::collection::btree_map(1..0x7fff_ffffu32, prop::collection::vec(prop::option::of(counts()), 5), 0..40),
        expansion in prop::collection::vec((1..0xffff_ffffu32, counts()), 0..6),
        overflow in prop::option::of(counts()),
    ) -> Tables {
        let mut tables = Tables::new(version, 65, processors);
        let mut used = Vec::new();
        for (key, rows) in &tags {
            let slot = tables.slot(&used, *key);
            used.push(slot);
            for (n, counts) in rows.iter().enumerate().take(processors as usize) {
                let table = tables.addresses[n];
                match counts {
                    Some(counts) => tables.put_row(table, slot, *key, *counts),
                    // The master always has the key, the others get it with the first count.
                    None if n == 0 => tables.put_row(table, slot, *key, [0; 6]),
                    None => {}
                }
            }
        }
        if let Some(counts) = overflow {
            tables.put_row(tables.addresses[0], 64, u32::from_le_bytes(*b"Ovfl"), counts);
        }
        if !expansion.is_empty() {
            let address = tables.world.pool(9);
            for (i, (key, counts)) in expansion.iter().enumerate() {
                tables.put_row(address, i as u64, *key, *counts);
            }
            let pointer = version.pointer;
            let at = tables.world.address_of("PoolTrackTableExpansion");
            tables.world.put(at, address, pointer);
            let at = tables.world.address_of("PoolTrackTableExpansionSize");
            tables.world.put(at, expansion.len() as u64, pointer);
        }
        tables
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn every_field_of_every_tag_is_the_truth(tables in contents()) {
        let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
        prop_assert_eq!(report.notes.lines(), Vec::<String>::new());
        prop_assert_eq!(report.tags, tables.expected());
    }

    #[test]
    fn one_tag_is_the_same_by_its_row(tables in contents(), pick in any::<prop::sample::Index>()) {
        let expected = tables.expected();
        if expected.is_empty() {
            return Ok(());
        }
        let wanted = &expected[pick.index(expected.len())];
        let report = tags::read_one(&tables.world.kernel(), wanted.tag).unwrap();
        prop_assert_eq!(report.tags, std::slice::from_ref(wanted));
        prop_assert_eq!(report.notes.lines(), Vec::<String>::new());
    }
}

/// A table of the usual size with one tag in each processor's.
fn ordinary(version: Version, processors: u64) -> Tables {
    let mut tables = Tables::new(version, 4097, processors);
    let key = u32::from_le_bytes(*b"Leak");
    let slot = tables.slot(&[], key);
    for n in 0..processors as usize {
        tables.put_row(tables.addresses[n], slot, key, [1, 0, 64, 3, 1, 8192]);
    }
    tables
}

pub(crate) fn check_ordinary(version: Version) {
    let tables = ordinary(version, 3);
    let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
    assert_eq!((report.tags, report.notes.lines()), (tables.expected(), vec![]), "{version:?}");
}

#[test]
fn each_table_is_read_once_in_full_replies() {
    let tables = ordinary(WIN10_1903, 4);
    let table = 4097 * 0x38u64;
    tags::read(&tables.world.kernel(), &|_| true).unwrap();
    let cost = tables.world.cost();
    assert!(cost.requests <= 4 * table.div_ceil(1296) + 5, "{cost:?}");
    assert!(cost.bytes <= 4 * table + 0x400, "{cost:?}");
}

#[test]
fn one_tag_costs_a_row_per_processor() {
    for version in ALL {
        let tables = ordinary(version, 4);
        let tag = Tag(*b"Leak");
        let report = tags::read_one(&tables.world.kernel(), tag).unwrap();
        assert_eq!(report.tags, tables.expected());
        let cost = tables.world.cost();
        assert!(cost.requests <= 10 && cost.bytes <= 2176, "{version:?}: {cost:?}");
    }
}

#[test]
fn a_tag_with_the_protected_bit_has_a_row_of_its_own() {
    for version in ALL {
        let mut tables = ordinary(version, 2);
        let key = u32::from_le_bytes(*b"Leak") | 0x8000_0000;
        let used = tables.slot(&[], key & 0x7fff_ffff);
        // Where its own hash leads, and where the unprotected one's does.
        for slot in [tables.slot(&[used], key), used + 1] {
            tables.put_row(tables.addresses[0], slot, key, [7, 2, 64, 0, 0, 0]);
            tables.put_row(tables.addresses[1], slot, key, [5, 1, 64, 0, 0, 0]);
            tables.world.reset_cost();
            let report = tags::read_one(&tables.world.kernel(), Tag(*b"Leak")).unwrap();
            assert_eq!((report.tags, report.notes.lines()), (tables.expected(), vec![]), "{version:?}");
            assert!(tables.world.cost().requests <= 12, "{version:?}: by its rows, not by the whole table");
        }
    }
}

#[test]
fn a_tag_that_is_nowhere_is_not_invented() {
    let tables = ordinary(WIN7_X64, 2);
    assert_eq!(tags::read_one(&tables.world.kernel(), Tag(*b"None")).unwrap().tags, []);
}

#[test]
fn the_wanted_tags_only() {
    let mut tables = ordinary(WIN7_X64, 1);
    tables.put_row(tables.addresses[0], 7, u32::from_le_bytes(*b"Proc") | 0x8000_0000, [1; 6]);
    let report = tags::read(&tables.world.kernel(), &|tag| tag.0.starts_with(b"Pr")).unwrap();
    assert_eq!(report.tags.iter().map(|usage| usage.tag).collect::<Vec<_>>(), [Tag(*b"Proc")]);
}

#[test]
fn more_than_255_processors_are_counted() {
    let mut tables = Tables::new(WIN11_21H2, 65, 1);
    let array = tables.world.variable("ExPoolTagTables", 2048 * 8);
    for n in 0..300 {
        tables.world.put(array + n * 8, tables.world.pool(n), 8);
        tables.put_row(tables.world.pool(n), 3, 0x41414141, [1; 6]);
    }
    let count = tables.world.address_of("KeNumberProcessors");
    tables.world.put(count, 300, 4);
    let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
    assert_eq!(report.tags[0].nonpaged.allocs, 300);
}

#[test]
fn the_processors_of_vista_are_counted_in_one_byte() {
    let mut tables = ordinary(VISTA_X86, 2);
    let count = tables.world.address_of("KeNumberProcessors");
    // What lies behind the byte is another variable.
    tables.world.write(count, &[2, 0xff, 0xff, 0xff]);
    let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
    assert_eq!((report.tags, report.notes.lines()), (tables.expected(), vec![]));
}

#[test]
fn more_processors_than_tables_are_said() {
    let mut tables = ordinary(WIN7_X64, 1);
    let count = tables.world.address_of("KeNumberProcessors");
    tables.world.put(count, 0x7fff_ffff, 4);
    let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
    assert!(report.notes.lines()[0].contains("room for 256 tables"), "{:?}", report.notes.lines());
    assert_eq!(report.tags, tables.expected());
}

/// A larger table takes the master's place, or what found no row gets an expansion, or a larger one, while it is read.
#[test]
fn tables_that_move_or_grow_while_they_are_read_are_told() {
    for version in [VISTA_X86, WIN7_X64, WIN11_21H2] {
        let tables = ordinary(version, 2);
        let table = tables.addresses[0]..tables.addresses[0] + tables.rows * tables.size;
        let changes = [
            ("PoolTrackTable", tables.world.pool(9)),
            ("PoolTrackTableSize", 2 * tables.rows - 1),
            ("PoolTrackTableExpansion", tables.world.pool(9)),
            ("PoolTrackTableExpansionSize", 0x100),
        ];
        for (name, value) in changes {
            let told = |notes: &[String]| notes == ["the tag tables moved or grew while they were read; ask again"];
            let at = tables.world.address_of(name);
            let memory = Changing::new(&tables.world, table.clone(), at, value);
            let report = tags::read(&memory.kernel(), &|_| true).unwrap();
            assert!(
                memory.has_changed() && told(&report.notes.lines()),
                "{version:?}, {name}: {:?}",
                report.notes.lines()
            );
            // What was read until then is shown.
            assert_eq!(report.tags, tables.expected(), "{version:?}, {name}");
        }
    }
}

/// An expansion that grows while it is read itself: its first rows are there.
#[test]
fn an_expansion_that_grows_while_it_is_read_is_told() {
    let mut tables = ordinary(WIN7_X64, 1);
    let expansion = tables.world.pool(9);
    tables.put_row(expansion, 0, u32::from_le_bytes(*b"More"), [3, 1, 0x40, 0, 0, 0]);
    for (name, value) in [("PoolTrackTableExpansion", expansion), ("PoolTrackTableExpansionSize", 1)] {
        let at = tables.world.address_of(name);
        tables.world.put(at, value, 8);
    }
    let at = tables.world.address_of("PoolTrackTableExpansionSize");
    let memory = Changing::new(&tables.world, expansion..expansion + 0x28, at, 2);
    let report = tags::read(&memory.kernel(), &|_| true).unwrap();
    assert_eq!(report.tags, tables.expected());
    assert_eq!(report.notes.lines(), ["the tag tables moved or grew while they were read; ask again"]);
}

/// Of one counter each: what is behind the end of 32 bits, and whose sign that is.
#[test]
fn counters_of_32_bits_wrap_and_those_of_64_do_not() {
    let key = u32::from_le_bytes(*b"Wrap");
    for version in ALL {
        let mut tables = Tables::new(version, 65, 2);
        let slot = tables.slot(&[], key);
        // The first processor has allocated until its counter came to its end, the second has freed as often.
        tables.put_row(tables.addresses[0], slot, key, [0xffff_fff0, 0, 0x100, 5, 0, 0x50]);
        tables.put_row(tables.addresses[1], slot, key, [0x20, 0xffff_fffe, 0, 0, 7, 0]);
        let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
        let usage = report.tags[0].nonpaged;
        let narrow = version.build < 16299;
        assert_eq!(usage.allocs, if narrow { 0x10 } else { 0x1_0000_0010 }, "{version:?}");
        assert_eq!((usage.frees, usage.diff, usage.bytes), (0xffff_fffe, 0x12, 0x100), "{version:?}");
        // More frees than allocations: the table changed while it was read, or is damaged.
        assert_eq!(report.tags[0].paged.diff, -2);
    }
}

/// The row of what found no place is the last, behind those that the hash leads to; its tag alone is found too.
#[test]
fn the_overflow_row_is_counted_like_any_other() {
    for version in ALL {
        let mut tables = ordinary(version, 2);
        for table in tables.addresses.clone() {
            tables.put_row(table, 4096, u32::from_le_bytes(*b"Ovfl"), [9, 4, 0x500, 3, 1, 0x20]);
        }
        let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
        assert_eq!((report.tags, report.notes.lines()), (tables.expected(), vec![]), "{version:?}");
        let report = tags::read_one(&tables.world.kernel(), Tag(*b"Ovfl")).unwrap();
        let usage = (report.tags[0].nonpaged, report.tags[0].paged);
        assert_eq!((usage.0.diff, usage.1.diff), (10, 4), "{version:?}");
    }
}

/// A driver that protects its tag is the same driver: one row of each kind is one line.
#[test]
fn a_protected_tag_and_the_same_unprotected_are_one() {
    for version in ALL {
        let mut tables = Tables::new(version, 65, 1);
        let key = u32::from_le_bytes(*b"Proc");
        tables.put_row(tables.addresses[0], 3, key, [2, 1, 0x40, 0, 0, 0]);
        tables.put_row(tables.addresses[0], 9, key | 0x8000_0000, [5, 1, 0x80, 1, 0, 0x10]);
        let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
        assert_eq!(report.tags.len(), 1);
        let usage = &report.tags[0];
        assert_eq!(
            (usage.tag, usage.nonpaged.diff, usage.nonpaged.bytes, usage.paged.bytes),
            (Tag(*b"Proc"), 5, 0xc0, 0x10)
        );
    }
}

#[test]
fn an_unreadable_page_is_named_and_the_rest_is_shown() {
    let mut tables = ordinary(WIN7_X64, 1);
    tables.put_row(tables.addresses[0], 4096, u32::from_le_bytes(*b"Ovfl"), [5; 6]);
    let page = tables.addresses[0] + 0x3000;
    tables.world.unmap(page);
    let report = tags::read(&tables.world.kernel(), &|tag| tag == Tag(*b"Ovfl")).unwrap();
    assert_eq!(report.tags[0].paged.frees, 5);
    assert_eq!(report.notes.lines(), [format!("nt!PoolTrackTable: 0x1000 bytes at {page:016x} could not be read")]);
}

#[test]
fn a_type_without_a_counter_still_gives_the_others() {
    let mut tables = ordinary(WIN7_X64, 1);
    tables.world.layout("_POOL_TRACKER_TABLE", 0x28, &[field("Key", 0, 4), field("PagedBytes", 0x20, 8)]);
    let report = tags::read(&tables.world.kernel(), &|_| true).unwrap();
    assert_eq!(report.tags[0].paged.bytes, 8192);
    assert_eq!(report.tags[0].nonpaged, Usage::default());
    assert_eq!(report.notes.lines().len(), 5);
}

#[test]
fn a_kernel_that_does_not_say_where_its_expansion_is_gets_a_note() {
    let mut tables = ordinary(WIN7_X64, 2);
    tables.world.forget_symbol("PoolTrackTableExpansionSize");
    tables.world.forget_symbol("PoolTrackTableMask");
    let report = tags::read_one(&tables.world.kernel(), Tag(*b"Leak")).unwrap();
    assert_eq!(report.tags, tables.expected());
    assert!(
        report.notes.lines()[0].starts_with("nt!PoolTrackTableExpansion is not known"),
        "{:?}",
        report.notes.lines()
    );
}

#[test]
fn what_makes_an_answer_impossible_is_an_error() {
    let mut tables = ordinary(WIN7_X64, 1);
    let size = tables.world.address_of("PoolTrackTableSize");
    tables.world.put(size, 1 << 40, 8);
    let error = tags::read(&tables.world.kernel(), &|_| true).unwrap_err();
    assert!(matches!(error, PoolError::Unlikely(_)) && error.to_string().contains("PoolTrackTableSize"), "{error}");

    let table = tables.world.address_of("PoolTrackTable");
    tables.world.put(table, 0x1000, 8);
    let error = tags::read(&tables.world.kernel(), &|_| true).unwrap_err();
    assert!(error.to_string().contains("nt!PoolTrackTable holds 0000000000001000"), "{error}");

    tables.world.unmap(table);
    assert!(matches!(tags::read(&tables.world.kernel(), &|_| true), Err(PoolError::Read(_))));

    tables.world.forget_symbol("PoolTrackTable");
    let error = tags::read(&tables.world.kernel(), &|_| true).unwrap_err();
    assert!(matches!(error, PoolError::NoSymbol(_)), "{error}");
}
