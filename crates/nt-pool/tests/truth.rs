//! Machines that a seed decides, of every kernel there is a table of: what is decoded is what the machine's own
//! allocator says. kd-fake shares no code with this crate, and lays its structures out from the same kernels' types.

mod machine;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kd_fake::kernel::{self, Carrier, Residence, SeededOptions, SmallState, Truth};
use machine::{REPLY, carried, on};
use nt_memory::Spent;
use nt_pool::lookaside::{self, Lookasides, Place};
use nt_pool::small_blocks::{self, BlockKind, BlockState, Kinds, Limits, Plan};
use nt_pool::{Kernel, PoolKind, Tag, big_pages, sessions, tags, verifier};
use nt_symbols::{Isf, Layout, Symbol, SymbolFile, SymbolKind};

/// A table, as each of the two sides reads it.
type Table = (Isf, kd_fake::isf::Isf);

/// Every kernel of `../shared/isf`, or Windows 7 alone.
fn x64() -> Vec<Table> {
    let read = |path: PathBuf| -> Table {
        let ours = Isf::open(&path).expect("a table");
        (ours, kd_fake::isf::Isf::from_xz(&std::fs::read(&path).expect("a table")).expect("a table"))
    };
    files().into_iter().map(read).collect()
}

fn others() -> Vec<Table> {
    carried().into_iter().map(|table| (table.symbols, table.isf)).collect()
}

fn files() -> Vec<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| here.join("../../../shared"), PathBuf::from);
    let Ok(entries) = std::fs::read_dir(shared.join("isf")) else {
        println!("skipped for all but Windows 7: {} is not there", shared.display());
        return vec![here.join("../kd-fake/data/339E74133576439CBCDF7E0229DA3773-1.json.xz")];
    };
    let files = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|xz| xz == "xz")).collect();
    files.sort();
    files
}

/// Runs `check` on machines of every kernel.
fn each_machine<S: SymbolFile>(
    tables: Vec<(S, kd_fake::isf::Isf)>,
    seeds: &[u64],
    check: impl Fn(&Kernel<'_>, &Truth, &Cell<Spent>) + Sync,
) {
    each_machine_with(tables, seeds, &SeededOptions::default(), check);
}

fn each_machine_with<S: SymbolFile>(
    tables: Vec<(S, kd_fake::isf::Isf)>,
    seeds: &[u64],
    options: &SeededOptions,
    check: impl Fn(&Kernel<'_>, &Truth, &Cell<Spent>) + Sync,
) {
    let check = &check;
    std::thread::scope(|scope| {
        for (symbols, isf) in tables {
            scope.spawn(move || {
                for &seed in seeds {
                    on(&symbols, &isf, seed, options, |kernel, truth, spent| {
                        println!("{:?}, build {}, seed {seed}", isf.machine, truth.build);
                        check(kernel, truth, spent);
                    });
                }
            });
        }
    });
}

const SEEDS: [u64; 6] = [1, 2, 7, 31, 1234, 65_537];

/// Allocs, frees and bytes of nonpaged and of paged pool. Two tags that differ in the protected bit are one.
type Counters = [u64; 6];

fn add(sums: &mut BTreeMap<u32, Counters>, key: u32, values: Counters, width: u32, bytes: u32) {
    let sum = sums.entry(key & 0x7fff_ffff).or_default();
    for (index, (sum, value)) in sum.iter_mut().zip(values).enumerate() {
        *sum = sum.wrapping_add(value);
        // Bytes are as wide as a pointer.
        if [width, bytes][usize::from(index % 3 == 2)] == 32 {
            *sum &= 0xffff_ffff;
        }
    }
}

fn sums(usages: &[kernel::TagUsage], width: u32, bytes: u32) -> BTreeMap<u32, Counters> {
    let mut sums = BTreeMap::new();
    for usage in usages {
        let (n, p) = (usage.nonpaged, usage.paged);
        add(&mut sums, usage.tag, [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes], width, bytes);
    }
    sums
}

#[test]
fn every_tag_and_every_live_block_and_no_other() {
    each_machine(x64(), &SEEDS, everything);
}

#[test]
fn the_same_on_the_kernels_that_are_carried() {
    each_machine(others(), &SEEDS, everything);
}

/// More than one group of processors has: each has a tag table and lookaside lists of its own.
#[test]
fn more_processors_than_a_group_has() {
    let options = SeededOptions { processors: Some(80), small_operations: 20_000, ..SeededOptions::default() };
    // The oldest and the newest.
    let tables = x64().into_iter().filter(|(_, isf)| is_end(isf)).collect();
    each_machine_with(tables, &[5], &options, |kernel, truth, _| {
        assert_eq!(truth.processors, 80);
        every_field_of_every_tag(kernel, truth);
        every_live_block(kernel, truth);
    });
}

/// Of x64 the oldest and the newest: the old pool and the segment heap.
fn is_end(isf: &kd_fake::isf::Isf) -> bool {
    let has = |name| isf.symbols.contains_key(name);
    !has("ExpPoolQuotaCookie") || has("VfHandlePoolAlloc")
}

/// A table of which some things are others: a kernel that no table is of.
struct Changed {
    table: Isf,
    /// Symbols by the name that they have here; none of those that are not there.
    symbols: BTreeMap<&'static str, Option<&'static str>>,
    /// The same of types.
    layouts: BTreeMap<&'static str, Option<Arc<Layout>>>,
}

impl SymbolFile for Changed {
    fn kind(&self) -> SymbolKind {
        self.table.kind()
    }

    fn path(&self) -> &Path {
        self.table.path()
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        match self.symbols.get(name) {
            Some(old) => self.table.symbol((*old)?),
            None => self.table.symbol(name),
        }
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        self.table.around(rva)
    }

    fn matching(&self, pattern: &str) -> Vec<Symbol> {
        self.table.matching(pattern)
    }

    fn layout(&self, type_name: &str) -> Option<Arc<Layout>> {
        self.layouts.get(type_name).cloned().unwrap_or_else(|| self.table.layout(type_name))
    }

    fn enum_value(&self, enum_name: &str, enumerator: &str) -> Option<i64> {
        self.table.enum_value(enum_name, enumerator)
    }
}

/// 10 1511's types are those of 1607, but for what that was the first to have.
#[test]
fn a_kernel_without_a_table_of_regions() {
    let older = |(table, mut isf): Table| {
        let visible = isf.user_types.get_mut("_MI_VISIBLE_STATE")?;
        visible.fields.remove("SystemVaRegions").filter(|_| table.symbol("ExPoolState").is_none())?;
        isf.symbols.remove("MmPteBase");
        let symbols = BTreeMap::from([("MmPteBase", None)]);
        Some((Changed { table, symbols, layouts: BTreeMap::from([("_MI_VISIBLE_STATE", None)]) }, isf))
    };
    each_machine(x64().into_iter().filter_map(older).collect(), &SEEDS, |kernel, truth, cost| {
        assert_eq!(truth.build, 10586);
        everything(kernel, truth, cost);
    });
}

/// What Vista on x64 has elsewhere than Windows 7: a type with its size, and its members that are left with their places
/// (facts 1.7, 6.1, 7.4); of a new type, whose members they are in Windows 7.
type Moved = (&'static str, u64, &'static [(&'static str, &'static str, u64)]);

const VISTA: [Moved; 4] = [
    (
        "_POOL_DESCRIPTOR",
        0x1048,
        &[
            ("", "PoolType", 0),
            ("", "PoolIndex", 4),
            ("", "RunningAllocs", 8),
            ("", "RunningDeAllocs", 0xc),
            ("", "TotalPages", 0x10),
            ("", "TotalBigPages", 0x14),
            ("", "PendingFrees", 0x28),
            ("", "PendingFreeDepth", 0x34),
            ("", "TotalBytes", 0x38),
            ("", "ListHeads", 0x48),
        ],
    ),
    ("_MI_SPECIAL_POOL", 0x30, &[("", "PteBase", 0), ("", "PagesInUse", 0x18), ("", "SpecialPoolPdes", 0x20)]),
    (
        "_MI_VERIFIER_DRIVER_ENTRY",
        0xa0,
        &[
            ("_VF_SUSPECT_DRIVER_ENTRY", "Links", 0),
            ("_VF_SUSPECT_DRIVER_ENTRY", "Loads", 0x10),
            ("_VF_SUSPECT_DRIVER_ENTRY", "Unloads", 0x14),
            ("_VF_SUSPECT_DRIVER_ENTRY", "BaseName", 0x18),
            ("_POOL_TRACKER_BIG_PAGES.Va", "StartAddress", 0x28),
            ("_POOL_TRACKER_BIG_PAGES.Va", "EndAddress", 0x30),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "Signature", 0x40),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PoolPageHeaders", 0x50),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "CurrentPagedPoolAllocations", 0x70),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "CurrentNonPagedPoolAllocations", 0x74),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PeakPagedPoolAllocations", 0x78),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PeakNonPagedPoolAllocations", 0x7c),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PagedBytes", 0x80),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "NonPagedBytes", 0x88),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PeakPagedBytes", 0x90),
            ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PeakNonPagedBytes", 0x98),
        ],
    ),
    (
        "_POOL_TRACKER_BIG_PAGES",
        0x18,
        &[("", "Va", 0), ("", "Key", 8), ("", "PoolType", 0xc), ("", "NumberOfBytes", 0x10)],
    ),
];

#[test]
fn vista_on_x64() {
    let older = |(table, mut isf): Table| {
        table.symbol("ExpPoolQuotaCookie").is_none().then_some(())?;
        let mut symbols = BTreeMap::from([("MiSuspectDriverList", Some("VfSuspectDriversList"))]);
        let list = isf.symbols.remove("VfSuspectDriversList")?;
        isf.symbols.insert("MiSuspectDriverList".into(), list);
        for name in ["VfSuspectDriversList", "ViTargetDriversAvl", "VfOptionFlags", "VfWdIrpListHead"] {
            symbols.insert(name, None);
            isf.symbols.remove(name);
        }
        let mut layouts = BTreeMap::new();
        for (ty, size, members) in VISTA {
            let mut fields = Vec::new();
            let mut user = isf.user_types["_POOL_DESCRIPTOR"].clone();
            (user.size, user.fields) = (size, BTreeMap::new());
            for &(from, name, offset) in members {
                let (source, member) = from.split_once('.').unwrap_or((if from.is_empty() { ty } else { from }, name));
                let mut field = table.layout(source)?.field(member)?.clone();
                (field.name, field.offset) = (name.into(), offset);
                fields.push(field);
                let mut field = isf.user_types[source].fields[member].clone();
                field.offset = offset;
                user.fields.insert(name.into(), field);
            }
            layouts.insert(ty, Some(Arc::new(Layout { name: ty.into(), size, fields })));
            isf.user_types.insert(ty.into(), user);
        }
        // Windows 7's last members are not in Verifier's settings yet.
        let settings = isf.user_types.get_mut("_MM_DRIVER_VERIFIER_DATA")?;
        settings.size = 0x90;
        settings.fields.retain(|_, field| field.offset < 0x90);
        Some((Changed { table, symbols, layouts }, isf))
    };
    each_machine(x64().into_iter().filter_map(older).collect(), &SEEDS, |kernel, truth, cost| {
        assert_eq!(truth.build, 6002);
        everything(kernel, truth, cost);
        let drivers = verifier::drivers(kernel).expect("the drivers");
        let names: Vec<_> = drivers.drivers.iter().map(|driver| (driver.name.clone(), driver.loads)).collect();
        let wanted: Vec<_> =
            truth.verifier_drivers.iter().map(|driver| (driver.name.clone(), driver.loads as u32)).collect();
        assert_eq!((names, drivers.notes.lines()), (wanted, vec![]));
    });
}

/// The allocators' lists after so many allocations and frees that every page, chunk and slot was used again and again.
#[test]
fn more_than_a_million_allocations_and_frees() {
    let options = SeededOptions { small_operations: 300_000, small_blocks: 3_000, ..SeededOptions::default() };
    // Old pool of 32 bits; segment heaps with two bits a block, with one, and of ARM64.
    const KERNELS: [&str; 4] = ["x86", "x64-heap", "x64-26100", "arm64-26100"];
    let chosen = kd_fake::isf::CARRIED.iter().map(|(name, _)| KERNELS.contains(name));
    let tables = others().into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(table, _)| table).collect();
    each_machine_with(tables, &[3], &options, |kernel, truth, cost| {
        let states: BTreeSet<SmallState> = truth.small.iter().map(|block| block.state).collect();
        assert!(states.contains(&SmallState::Live) && states.contains(&SmallState::Lookaside), "{states:?}");
        every_live_block(kernel, truth);
        every_large_block(kernel, truth);
        a_search_finds_what_reading_all_does(kernel, truth, cost);
    });
}

fn everything(kernel: &Kernel<'_>, truth: &Truth, cost: &Cell<Spent>) {
    every_field_of_every_tag(kernel, truth);
    every_live_block(kernel, truth);
    every_large_block(kernel, truth);
    a_search_finds_what_reading_all_does(kernel, truth, cost);
    every_session(kernel, truth);
    every_lookaside_list(kernel, truth);
}

fn every_lookaside_list(kernel: &Kernel<'_>, truth: &Truth) {
    use kernel::LookasidePlace;
    type List = (u64, u32, u32, [u64; 8], Place);
    let place = |place: LookasidePlace| match place {
        LookasidePlace::Registered => Place::Registered,
        LookasidePlace::Pool { processor, member, index } => Place::Pool { processor, member, index },
        LookasidePlace::System { processor, index, shared } => Place::System { processor, index, shared },
    };
    let wanted = |per_processor: bool| {
        let mut lists: Vec<List> = truth
            .lookasides
            .iter()
            .filter(|list| (list.place == LookasidePlace::Registered) != per_processor)
            .map(|list| {
                let counters = [list.total_allocates, list.allocate_misses, list.total_frees, list.free_misses];
                let sizes = [list.size, list.current_depth, list.depth, list.maximum_depth];
                let numbers: Vec<u64> = sizes.into_iter().chain(counters).collect();
                let numbers = numbers.try_into().expect("eight numbers");
                (list.address, list.tag & 0x7fff_ffff, list.pool_type, numbers, place(list.place))
            })
            .collect();
        lists.sort_by_key(|list| list.0);
        lists
    };
    let found = |found: Lookasides| {
        assert_eq!(found.notes.lines(), Vec::<String>::new());
        let mut lists: Vec<List> = found
            .lists
            .iter()
            .map(|list| {
                let counters = [list.total_allocates, list.allocate_misses, list.total_frees, list.free_misses];
                let sizes = [list.size, list.current_depth, list.depth, list.maximum_depth];
                let numbers: Vec<u64> = sizes.into_iter().chain(counters).collect();
                let numbers = numbers.try_into().expect("eight numbers");
                (list.address, list.tag.key(), list.pool_type, numbers, list.place)
            })
            .collect();
        lists.sort_by_key(|list| list.0);
        lists
    };
    assert_eq!(found(lookaside::all(kernel).expect("lists")), wanted(false), "build {}", truth.build);
    assert_eq!(found(lookaside::per_processor(kernel, None).expect("lists")), wanted(true), "build {}", truth.build);
    let mut second = wanted(true);
    // A list that all share is the first processor's when all are asked for.
    let of_second = |list: &List| match list.4 {
        Place::Pool { processor, .. } => processor == 1,
        Place::System { processor, shared, .. } => processor == 1 && !shared,
        Place::Given | Place::Registered => false,
    };
    second.retain(of_second);
    let mut one = found(lookaside::per_processor(kernel, Some(1)).expect("lists"));
    one.retain(of_second);
    assert_eq!(one, second, "build {}", truth.build);
    let first = &truth.lookasides[0];
    let given = lookaside::read(kernel, first.address).expect("a list");
    assert_eq!((given.place, given.depth), (Place::Given, first.depth));
}

fn every_field_of_every_tag(kernel: &Kernel<'_>, truth: &Truth) {
    let width = if truth.build < 16299 { 32 } else { 64 };
    let wanted = sums(&truth.tags, width, 8 * u32::from(kernel.pointer_size));
    let report = tags::read(kernel, &|_| true).expect("the tag tables");
    assert_eq!(report.notes.lines(), Vec::<String>::new(), "build {}", truth.build);
    let found: BTreeMap<u32, Counters> = report
        .tags
        .iter()
        .map(|usage| {
            let (n, p) = (usage.nonpaged, usage.paged);
            let diff = |allocs: u64, frees: u64| match width {
                32 => i64::from(allocs.wrapping_sub(frees) as u32 as i32),
                _ => allocs.wrapping_sub(frees) as i64,
            };
            assert_eq!((n.diff, p.diff), (diff(n.allocs, n.frees), diff(p.allocs, p.frees)));
            (usage.tag.key(), [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes])
        })
        .collect();
    assert_eq!(found, wanted, "build {}", truth.build);
    // Each alone, by its row or by all of them.
    for (key, counters) in wanted.iter().step_by(7) {
        let report = tags::read_one(kernel, Tag::from_key(*key).0).expect("the tag's rows");
        assert_eq!(report.tags.len(), 1, "build {}, {key:x}", truth.build);
        let (n, p) = (report.tags[0].nonpaged, report.tags[0].paged);
        assert_eq!([n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes], *counters, "build {}", truth.build);
    }
}

/// A live block: address, bytes the caller may use, tag, protected, pool, and what holds it.
type Live = (u64, u64, u32, &'static str, &'static str);

fn pool(kind: kernel::PoolKind, build: u16, carrier: Carrier) -> &'static str {
    match kind {
        kernel::PoolKind::Paged => "paged",
        // The header of the old pool and special pool's do not tell these apart.
        kernel::PoolKind::NonPagedNx if build >= 17763 && carrier != Carrier::Special => "nonpaged nx",
        _ => "nonpaged",
    }
}

fn name(kind: PoolKind, special: bool) -> &'static str {
    match kind {
        PoolKind::Paged => "paged",
        PoolKind::NonPagedNx if !special => "nonpaged nx",
        PoolKind::NonPaged | PoolKind::NonPagedNx => "nonpaged",
        other => panic!("{other}"),
    }
}

fn every_live_block(kernel: &Kernel<'_>, truth: &Truth) {
    let build = truth.build;
    // A header's bytes.
    let unit = 2 * u64::from(kernel.pointer_size);
    let small = truth.small.iter().filter(|block| block.state == SmallState::Live);
    let readable = |residence: Residence| residence != Residence::PagedOut;
    let wanted: BTreeSet<Live> = small
        .clone()
        .filter(|block| readable(block.residence))
        .map(|block| {
            let (size, held) = match block.carrier {
                Carrier::Special => (block.size, "special"),
                Carrier::Page => (block.bytes - unit, "page"),
                Carrier::Vs => (block.bytes - unit, "vs"),
                Carrier::Lfh => (block.bytes - unit, "lfh"),
            };
            (block.address, size, block.tag & 0x7fff_ffff, pool(block.kind, build, block.carrier), held)
        })
        .collect();
    let found = small_blocks::find(kernel, &|_| true, Kinds::ALL, Limits::default()).expect("blocks");
    let live = found.blocks.iter().filter(|block| block.state == BlockState::Allocated);
    let blocks: BTreeSet<Live> = live
        .map(|block| {
            let held = match block.kind {
                BlockKind::Page => "page",
                BlockKind::Vs => "vs",
                BlockKind::Lfh => "lfh",
                BlockKind::Special => "special",
            };
            let pool = name(block.pool, block.kind == BlockKind::Special);
            (block.address, block.size, block.tag.key(), pool, held)
        })
        .collect();
    let missing: Vec<_> = wanted.difference(&blocks).take(5).collect();
    let extra: Vec<_> = blocks.difference(&wanted).take(5).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "build {build}: missing {missing:x?}, extra {extra:x?}, {:?}",
        found.notes.lines()
    );
    for held in ["special"].iter().chain(if build < 17763 { &["page"][..] } else { &["vs", "lfh"][..] }) {
        let count = blocks.iter().filter(|block| block.4 == *held).count();
        assert!(count > 20, "build {build}: {count} {held}");
    }
    // What cannot be read is said, and nothing else is.
    let out = truth.small.iter().any(|block| !readable(block.residence) && block.state == SmallState::Live);
    let said = found.notes.lines().iter().any(|note| note.contains("page file") || note.contains("not in memory"));
    assert_eq!((out, found.notes.lines().len()), (said, usize::from(said)), "build {build}: {:?}", found.notes.lines());
    assert_eq!(found.is_complete(), !said);
}

/// With the target's own search: the same blocks, free and waiting ones too, and the same notes. Of a tag that nobody
/// has it reads next to nothing.
fn a_search_finds_what_reading_all_does(kernel: &Kernel<'_>, truth: &Truth, cost: &Cell<Spent>) {
    let spent = |f: &mut dyn FnMut()| {
        let before = cost.get();
        f();
        let spent = cost.get().since(before);
        (spent.requests, spent.bytes)
    };
    let large = big_pages::read(kernel, &|_| true).expect("the table").blocks;
    let plan = Plan::read(kernel, Kinds::ALL).expect("a plan");
    let all = plan.find(kernel, &|_| true, &large, Limits::default()).expect("blocks");
    let keys: BTreeSet<u32> = truth.small.iter().map(|block| block.tag & 0x7fff_ffff).collect();
    // Special pool has tags of its own; a few will do.
    let common = |key: &u32| truth.small.iter().filter(|block| block.tag & 0x7fff_ffff == *key).count() > 3;
    let (many, few): (Vec<u32>, Vec<u32>) = keys.into_iter().partition(common);
    for key in many.into_iter().chain(few.into_iter().take(4)) {
        let tag = Tag::from_key(key).0;
        let found = plan.search(kernel, tag, REPLY, Limits::default()).expect("blocks");
        let of_tag: Vec<_> = all.blocks.iter().filter(|block| block.tag.key() == key).copied().collect();
        assert_eq!(found.blocks, of_tag, "build {}, tag {tag}", truth.build);
        assert_eq!(
            (&found.notes.lines(), found.is_complete()),
            (&all.notes.lines(), all.is_complete()),
            "build {}, tag {tag}",
            truth.build
        );
    }
    let kinds = Kinds { special: false, ..Kinds::ALL };
    let plan = Plan::read(kernel, kinds).expect("a plan");
    let nobody = Tag(*b"zQ7!");
    let bulk = spent(&mut || drop(plan.find(kernel, &|tag| tag == nobody, &large, Limits::default()).expect("blocks")));
    let search = spent(&mut || drop(plan.search(kernel, nobody, REPLY, Limits::default()).expect("blocks")));
    println!(
        "build {}: {bulk:?} requests and bytes in bulk ({:?}), {search:?} with a search ({:?})",
        truth.build,
        plan.cost(kernel.memory, 0),
        plan.search_cost(kernel.memory, 0, 0)
    );
    // Runs of a page or two cost two requests each, and a subsegment with pages in transition is read up to them.
    assert!(3 * search.0 < 2 * bulk.0 && 2 * search.1 < bulk.1, "build {}: {search:?}, {bulk:?}", truth.build);
}

fn every_large_block(kernel: &Kernel<'_>, truth: &Truth) {
    let wanted: BTreeSet<_> = truth
        .large
        .iter()
        .map(|life| {
            let kind = match truth.build {
                ..26100 => format!("{:x}", life.kind.pool_type()),
                _ => pool(life.kind, truth.build, Carrier::Vs).into(),
            };
            (life.address, life.bytes, life.tag & 0x7fff_ffff, life.tag >> 31 != 0, kind)
        })
        .collect();
    // 24H2's entries have POOL_FLAGS, which name the same pools.
    let entry = |page: &big_pages::BigPage| {
        let kind = match truth.build {
            ..26100 => format!("{:x}", page.pool_type),
            _ => name(page.kind, false).into(),
        };
        (page.address, page.size, page.tag.key(), page.protected, kind)
    };
    let found = big_pages::read(kernel, &|_| true).expect("the table");
    let live: BTreeSet<_> = found.blocks.iter().filter(|page| !page.free).map(entry).collect();
    assert_eq!(live, wanted, "build {}", truth.build);
    assert_eq!(found.notes.lines(), Vec::<String>::new());
    // By tag, with the target's search.
    let keys: BTreeSet<u32> = wanted.iter().map(|block| block.2).collect();
    for key in keys {
        let found = big_pages::find(kernel, Tag::from_key(key).0).expect("the tag's entries");
        let live: BTreeSet<_> = found.blocks.iter().filter(|page| !page.free).map(entry).collect();
        assert_eq!(live, wanted.iter().filter(|block| block.2 == key).cloned().collect(), "build {}", truth.build);
    }
}

/// Each session by itself: two have different things at the same addresses.
fn every_session(kernel: &Kernel<'_>, truth: &Truth) {
    if truth.sessions.is_empty() {
        if kernel.symbols.layout("_MM_SESSION_SPACE").is_some() {
            let found = sessions::all(kernel).expect("sessions");
            assert_eq!((found.sessions, found.notes.lines()), (vec![], vec![]), "build {}", truth.build);
        }
        return;
    }
    let build = truth.build;
    let found = sessions::all(kernel).expect("sessions");
    assert_eq!(found.notes.lines(), Vec::<String>::new(), "build {build}");
    let places: Vec<_> = found.sessions.iter().map(|session| (session.id, session.address)).collect();
    let wanted: Vec<_> = truth.sessions.iter().map(|session| (session.id, session.address)).collect();
    assert_eq!(places, wanted, "build {build}");
    for (session, truth) in found.sessions.iter().zip(&truth.sessions) {
        assert_eq!(session.process, truth.processes.first().copied());

        let wanted = sums(&truth.tags, if build < 16299 { 32 } else { 64 }, 64);
        let report = sessions::tags(kernel, session, &|_| true).expect("the tag table");
        let tags: BTreeMap<u32, Counters> = report
            .tags
            .iter()
            .map(|usage| {
                let (n, p) = (usage.nonpaged, usage.paged);
                (usage.tag.key(), [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes])
            })
            .collect();
        assert_eq!((tags, report.notes.lines()), (wanted, vec![]), "build {build}, session {}", session.id);

        let wanted: BTreeSet<_> = truth
            .large
            .iter()
            .map(|block| (block.address, block.bytes, block.tag & 0x7fff_ffff, block.freed))
            .collect();
        let pages = sessions::big_pages(kernel, session, &|_| true).expect("the table");
        let large: BTreeSet<_> =
            pages.blocks.iter().map(|page| (page.address, page.size, page.tag.key(), page.free)).collect();
        assert_eq!((large, pages.notes.lines()), (wanted, vec![]), "build {build}, session {}", session.id);
        assert!(pages.blocks.iter().all(|page| page.kind == PoolKind::PagedSession));

        let small = truth.small.iter().filter(|block| block.state == SmallState::Live);
        let wanted: BTreeSet<_> = small
            .clone()
            .filter(|block| block.residence != Residence::PagedOut)
            .map(|block| {
                let special = block.carrier == Carrier::Special;
                (block.address, if special { block.size } else { block.bytes - 16 }, block.tag & 0x7fff_ffff, special)
            })
            .collect();
        let blocks = sessions::small_blocks(kernel, session, &|_| true, &pages.blocks, Limits::default());
        let blocks = blocks.expect("blocks");
        let live: BTreeSet<_> = blocks
            .blocks
            .iter()
            .filter(|block| block.state == BlockState::Allocated)
            .map(|block| {
                assert_eq!(block.pool, PoolKind::PagedSession);
                (block.address, block.size, block.tag.key(), block.kind == BlockKind::Special)
            })
            .collect();
        let missing: Vec<_> = wanted.difference(&live).take(5).collect();
        let extra: Vec<_> = live.difference(&wanted).take(5).collect();
        assert!(
            missing.is_empty() && extra.is_empty(),
            "build {build}, session {}: missing {missing:x?}, extra {extra:x?}, {:?}",
            session.id,
            blocks.notes.lines()
        );
        assert!(live.len() > 40, "build {build}: {}", live.len());
        let out = small.clone().any(|block| block.residence == Residence::PagedOut);
        assert_eq!(blocks.is_complete(), !out, "{:?}", blocks.notes.lines());
    }
}
