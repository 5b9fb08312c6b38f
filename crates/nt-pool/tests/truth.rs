//! Machines that a seed decides, of every kernel there is a table of: what is decoded is what the machine's own
//! allocator says. kd-fake shares no code with this crate, and lays its structures out from the same kernels' types.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kd_fake::kernel::{self, Carrier, Residence, SeededOptions, SmallState, Truth};
use nt_memory::{Fault, Memory, Search};
use nt_pool::small_blocks::{self, BlockKind, BlockState, Kinds, Limits, Plan};
use nt_pool::{Kernel, PoolKind, Tag, big_pages, tags};
use nt_symbols::Isf;

/// Memory of a machine that runs in this process, and what a link would have carried: requests, and bytes of memory.
struct Machine<'m>(&'m kernel::Kernel, Cell<(u64, u64)>);

/// Bytes of memory that one reply carries.
const REPLY: u64 = 1296;

impl Machine<'_> {
    fn charge(&self, bytes: usize) {
        let (requests, all) = self.1.get();
        self.1.set((requests + (bytes as u64).div_ceil(REPLY).max(1), all + bytes as u64));
    }
}

impl Memory for Machine<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.0.read_virtual(address, buffer);
        self.charge(read);
        Ok(read)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.charge(0);
        Ok(self.0.search(address, length, pattern).map_or(Search::NotFound, Search::Found))
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.0.read_physical(address, buffer);
        self.charge(read);
        Ok(read)
    }
}

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

/// The x86 and ARM64 kernels that kd-fake carries.
fn others() -> Vec<Table> {
    let read = |(name, json): (&str, &[u8])| {
        let ours = Isf::parse(name, json.to_vec()).expect("a table");
        (ours, kd_fake::isf::Isf::from_json(json).expect("a table"))
    };
    kd_fake::isf::CARRIED.into_iter().map(read).collect()
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
fn each_machine(tables: Vec<Table>, seeds: &[u64], check: impl Fn(&Kernel<'_>, &Truth, &Cell<(u64, u64)>) + Sync) {
    each_machine_with(tables, seeds, &SeededOptions::default(), check);
}

fn each_machine_with(
    tables: Vec<Table>,
    seeds: &[u64],
    options: &SeededOptions,
    check: impl Fn(&Kernel<'_>, &Truth, &Cell<(u64, u64)>) + Sync,
) {
    let check = &check;
    std::thread::scope(|scope| {
        for (symbols, isf) in tables {
            scope.spawn(move || {
                for &seed in seeds {
                    let (machine, truth) = kernel::seeded(&isf, seed, options).expect("a machine");
                    println!("{:?}, build {}, seed {seed}", isf.machine, truth.build);
                    let memory = Machine(&machine, Cell::default());
                    let facts = machine.facts();
                    let kernel = Kernel {
                        memory: &memory,
                        symbols: &symbols,
                        base: facts.kernel_base,
                        pointer_size: isf.machine.pointer() as u8,
                        build: facts.build,
                    };
                    check(&kernel, &truth, &memory.1);
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

#[test]
fn every_tag_and_every_live_block_and_no_other() {
    each_machine(x64(), &SEEDS, everything);
}

#[test]
fn the_same_on_x86_and_arm64() {
    each_machine(others(), &SEEDS, everything);
}

/// The allocators' lists after so many allocations and frees that every page, chunk and slot was used again and again.
#[test]
fn more_than_a_million_allocations_and_frees() {
    let options = SeededOptions { small_operations: 300_000, small_blocks: 3_000, ..SeededOptions::default() };
    let mut tables = others();
    // Of x64 the oldest and the newest: the old pool and the segment heap.
    let has = |isf: &kd_fake::isf::Isf, name| isf.symbols.contains_key(name);
    let ends = |isf: &kd_fake::isf::Isf| !has(isf, "ExpPoolQuotaCookie") || has(isf, "VfHandlePoolAlloc");
    tables.extend(x64().into_iter().filter(|(_, isf)| ends(isf)));
    each_machine_with(tables, &[3, 11], &options, |kernel, truth, cost| {
        let states: BTreeSet<SmallState> = truth.small.iter().map(|block| block.state).collect();
        assert!(states.contains(&SmallState::Live) && states.contains(&SmallState::Lookaside), "{states:?}");
        every_live_block(kernel, truth);
        every_large_block(kernel, truth);
        a_search_finds_what_reading_all_does(kernel, truth, cost);
    });
}

fn everything(kernel: &Kernel<'_>, truth: &Truth, cost: &Cell<(u64, u64)>) {
    every_field_of_every_tag(kernel, truth);
    every_live_block(kernel, truth);
    every_large_block(kernel, truth);
    a_search_finds_what_reading_all_does(kernel, truth, cost);
}

fn every_field_of_every_tag(kernel: &Kernel<'_>, truth: &Truth) {
    let width = if truth.build < 16299 { 32 } else { 64 };
    let mut wanted = BTreeMap::new();
    for usage in &truth.tags {
        let (n, p) = (usage.nonpaged, usage.paged);
        add(
            &mut wanted,
            usage.tag,
            [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes],
            width,
            8 * u32::from(kernel.pointer_size),
        );
    }
    let report = tags::read(kernel, &|_| true).expect("the tag tables");
    assert_eq!(report.notes, Vec::<String>::new(), "build {}", truth.build);
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
    // Special pool of 8.1 has no range that a variable tells.
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
        found.notes
    );
    for held in ["special"].iter().chain(if build < 17763 { &["page"][..] } else { &["vs", "lfh"][..] }) {
        let count = blocks.iter().filter(|block| block.4 == *held).count();
        assert!(count > 20 || build == 9600, "build {build}: {count} {held}");
    }
    // What cannot be read is said, and nothing else is.
    let out = truth.small.iter().any(|block| !readable(block.residence) && block.state == SmallState::Live);
    let said = found.notes.iter().any(|note| note.contains("page file") || note.contains("not in memory"));
    assert_eq!((out, found.notes.len()), (said, usize::from(said)), "build {build}: {:?}", found.notes);
    assert_eq!(found.complete, !said);
}

/// With the target's own search: the same blocks, free and waiting ones too, and the same notes. Of a tag that nobody
/// has it reads next to nothing.
fn a_search_finds_what_reading_all_does(kernel: &Kernel<'_>, truth: &Truth, cost: &Cell<(u64, u64)>) {
    let spent = |f: &mut dyn FnMut()| {
        let before = cost.get();
        f();
        (cost.get().0 - before.0, cost.get().1 - before.1)
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
        assert_eq!((&found.notes, found.complete), (&all.notes, all.complete), "build {}, tag {tag}", truth.build);
    }
    let kinds = Kinds { special: false, ..Kinds::ALL };
    let plan = Plan::read(kernel, kinds).expect("a plan");
    let nobody = Tag(*b"zQ7!");
    let bulk = spent(&mut || drop(plan.find(kernel, &|tag| tag == nobody, &large, Limits::default()).expect("blocks")));
    let search = spent(&mut || drop(plan.search(kernel, nobody, REPLY, Limits::default()).expect("blocks")));
    println!(
        "build {}: {bulk:?} requests and bytes in bulk ({:?}), {search:?} with a search ({:?})",
        truth.build,
        plan.cost(0, REPLY),
        plan.search_cost(0, REPLY, 0)
    );
    assert!(2 * search.0 < bulk.0 && 2 * search.1 < bulk.1, "build {}: {search:?}, {bulk:?}", truth.build);
}

fn every_large_block(kernel: &Kernel<'_>, truth: &Truth) {
    let wanted: BTreeSet<_> = truth
        .large
        .iter()
        .map(|life| (life.address, life.bytes, life.tag & 0x7fff_ffff, life.tag >> 31 != 0, life.kind.pool_type()))
        .collect();
    let entry = |page: &big_pages::BigPage| {
        (page.address, page.size, page.tag.key(), page.protected, u64::from(page.pool_type))
    };
    let found = big_pages::read(kernel, &|_| true).expect("the table");
    let live: BTreeSet<_> = found.blocks.iter().filter(|page| !page.free).map(entry).collect();
    assert_eq!(live, wanted, "build {}", truth.build);
    assert_eq!(found.notes, Vec::<String>::new());
    // By tag, with the target's search.
    let keys: BTreeSet<u32> = wanted.iter().map(|block| block.2).collect();
    for key in keys {
        let found = big_pages::find(kernel, Tag::from_key(key).0).expect("the tag's entries");
        let live: BTreeSet<_> = found.blocks.iter().filter(|page| !page.free).map(entry).collect();
        assert_eq!(live, wanted.iter().filter(|block| block.2 == key).copied().collect(), "build {}", truth.build);
    }
}
