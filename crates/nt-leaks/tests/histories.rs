//! 1,000 histories of a machine's pool: every verdict of a check against the machine's own truth.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use kd_fake::kernel::{Article, FREE_STACK, FREEING_THREAD, Kernel, LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind};
use nt_leaks::{CheckReport, Depth, Harvest, Module, Modules, Namer, Resolver, Scope, Verdict};
use nt_memory::{Fault, Memory, Search};
use nt_symbols::{Pdb, SymbolFile};

const OTHER: u32 = u32::from_le_bytes(*b"Othr");
const SIZE: u64 = 0x3000;

struct Machine {
    kernel: RefCell<Kernel>,
    requests: RefCell<(u64, u64)>,
    /// A session reads nothing twice in one stop.
    known: RefCell<HashSet<(u64, usize)>>,
}

impl Memory for Machine {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.kernel.borrow().read_virtual(address, buffer);
        if self.known.borrow_mut().insert((address, buffer.len())) {
            let mut requests = self.requests.borrow_mut();
            // As KDNET carries them.
            requests.0 += (read as u64).div_ceil(1296).max(1);
            requests.1 += read as u64;
        }
        Ok(read)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.requests.borrow_mut().0 += 1;
        Ok(self.kernel.borrow().search(address, length, pattern).map_or(Search::NotFound, Search::Found))
    }
}

struct Names<'a>(&'a Pdb);

impl Namer for Names<'_> {
    fn name(&mut self, module: &Module, rva: u32) -> Result<Option<String>, Fault> {
        let symbol = self.0.around(rva).0.filter(|_| module.name == "nt");
        Ok(symbol.map(|symbol| format!("{}+{:#x}", symbol.name, rva - symbol.rva)))
    }
}

/// A machine, its symbols, and a source of chance.
struct Lab {
    machine: Machine,
    pdb: Pdb,
    base: u64,
    modules: Modules,
    seed: u64,
}

impl Lab {
    fn new(log_length: u32, seed: u64) -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let pdb = Pdb::open(kd_fake::kernel::write_symbol_store(directory.path()).unwrap()).unwrap();
        let kernel = Article { log_length }.build();
        let facts = kernel.facts().clone();
        let module = |base, size, name: &str| Module::new(base, size, name);
        let modules = Modules::new(vec![
            module(facts.kernel_base, facts.kernel_size, "nt"),
            module(LEAK_STACK[2] & !0xfff, 0x8000, "myfault"),
        ]);
        let machine = Machine { kernel: RefCell::new(kernel), requests: RefCell::default(), known: RefCell::default() };
        Lab { machine, pdb, base: facts.kernel_base, modules, seed }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % limit
    }

    fn with<T>(&self, f: impl FnOnce(&nt_pool::Kernel<'_>, &mut Resolver<'_>) -> T) -> T {
        let kernel = nt_pool::Kernel {
            memory: &self.machine,
            symbols: &self.pdb,
            base: self.base,
            pointer_size: 8,
            build: 7601,
        };
        f(&kernel, &mut Resolver::new(&self.modules, &mut Names(&self.pdb)))
    }

    fn mark(&self) -> nt_leaks::Mark {
        let scope = Scope { tag: Some(LEAK_TAG), paged: None };
        self.with(|kernel, resolver| {
            nt_leaks::mark(kernel, "m", scope, Depth::default(), &self.modules, resolver).unwrap()
        })
    }

    fn check(&self, mark: &nt_leaks::Mark, harvest: &mut Harvest) -> CheckReport {
        self.with(|kernel, resolver| {
            let now = nt_leaks::look(kernel, mark, std::time::Duration::ZERO, Some(harvest), resolver).unwrap();
            nt_leaks::check(mark, &now, Some(harvest), resolver).unwrap()
        })
    }

    /// Where a symbol of the kernel's is.
    fn symbol(&self, name: &str) -> u64 {
        self.with(|kernel, _| kernel.symbol(name).unwrap())
    }

    fn number(&self, address: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.machine.kernel.borrow().read_virtual(address, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    /// Other tags take every row, so that the tag's operations are counted in the last one, which is for all that find
    /// no place.
    fn fill_tag_tables(&mut self) {
        let (row, rows) = (0x28, self.number(self.symbol("PoolTrackTableSize"), 8));
        let tables = self.symbol("ExPoolTagTables");
        let processors = u64::from(self.machine.kernel.borrow().facts().processors);
        for table in (0..processors).map(|processor| self.number(tables + 8 * processor, 8)) {
            for slot in 0..rows - 1 {
                let at = table + slot * row;
                if matches!(self.number(at, 4) as u32, 0 | LEAK_TAG) {
                    let key = 0x0101_0101 + slot as u32;
                    self.machine.kernel.borrow_mut().write_virtual(at, &key.to_le_bytes());
                }
            }
        }
    }

    fn allocate(&self, address: u64, tag: u32, stack: &[u64]) {
        let mut kernel = self.machine.kernel.borrow_mut();
        kernel.allocate_large_at(address, tag, SIZE, PoolKind::Paged, stack, LEAK_THREAD).unwrap();
    }

    fn free(&self, address: u64, stack: &[u64]) {
        self.machine.kernel.borrow_mut().free_large(address, stack, FREEING_THREAD).unwrap();
    }

    /// One operation: by verified code, by code that nobody watches, of the tag or of another. `silent` is how many of
    /// a hundred operations are not logged.
    fn operate(&mut self, silent: u64) {
        let address = 0xffff_f8a0_0a00_0000 + self.below(8) * 0x10_0000;
        let stack: Vec<u64> = if self.below(100) < silent { Vec::new() } else { LEAK_STACK.to_vec() };
        let (site, ours) = (self.below(3), self.below(6) > 0);
        let small = self.below(40) == 0;
        let mut kernel = self.machine.kernel.borrow_mut();
        if kernel.history(address).last().is_some_and(|life| life.freed.is_none()) {
            let stack: &[u64] = if stack.is_empty() { &[] } else { &FREE_STACK };
            kernel.free_large(address, stack, FREEING_THREAD);
            return;
        }
        let mut stack = stack;
        if let Some(frame) = stack.get_mut(2) {
            // Other places in the driver allocate the other tag.
            *frame += if ours { site * 0x10 } else { 0x100 };
        }
        let tag = if ours { LEAK_TAG } else { OTHER };
        let size = if small { 2 * SIZE } else { SIZE };
        kernel.allocate_large_at(address, tag, size, PoolKind::Paged, &stack, LEAK_THREAD).unwrap();
    }

    /// The present lives of the tag's blocks, and who has an address at all.
    fn lives(&self) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
        let kernel = self.machine.kernel.borrow();
        let all = |life: &kd_fake::kernel::Life| (life.address, life.id);
        let ours = kernel.large().filter(|life| life.tag == LEAK_TAG).map(all).collect();
        (ours, kernel.large().map(all).collect())
    }
}

fn truth(then: &BTreeMap<u64, u64>, ours: &BTreeMap<u64, u64>, all: &BTreeMap<u64, u64>) -> BTreeMap<u64, Verdict> {
    let mut truth: BTreeMap<u64, Verdict> = BTreeMap::new();
    for (address, id) in then {
        truth.insert(
            *address,
            match all.get(address) {
                Some(now) if now == id => Verdict::Still,
                Some(_) => Verdict::Reused,
                None => Verdict::Freed,
            },
        );
    }
    for address in ours.keys() {
        truth.entry(*address).or_insert(Verdict::New);
    }
    truth
}

/// Runs histories and returns how many verdicts of each kind there were.
fn histories(count: u32, log_length: u32, silent: u64, seed: u64) -> HashMap<Verdict, u32> {
    let mut lab = Lab::new(log_length, seed);
    let leaked: Vec<u64> = lab.lives().0.into_keys().collect();
    for address in leaked {
        lab.machine.kernel.borrow_mut().free_large(address, &[], FREEING_THREAD);
    }
    let mut seen = HashMap::new();
    for history in 0..count {
        let (then, _) = lab.lives();
        let mark = lab.mark();
        let mut harvest = Harvest::new(mark.log.clone().unwrap());
        // Now and then the target is stopped more than once.
        let stops = 1 + lab.below(2);
        for _ in 0..stops {
            for _ in 0..lab.below(14) {
                lab.operate(silent);
            }
            let report = lab.check(&mark, &mut harvest);
            let (ours, all) = lab.lives();
            let truth = truth(&then, &ours, &all);
            let said: BTreeMap<u64, Verdict> =
                report.blocks.iter().map(|block| (block.address, block.verdict)).collect();
            assert_eq!(said.len(), truth.len(), "history {history} of seed {seed}: blocks are missing or too many");
            for (address, truth) in &truth {
                let said = said[address];
                *seen.entry(said).or_insert(0) += 1;
                assert!(
                    said == *truth || said == Verdict::Unknown,
                    "history {history} of seed {seed}: {address:x} is {truth:?}, and the check says {said:?}"
                );
            }
            for block in report.blocks.iter().filter(|block| block.verdict == Verdict::Still) {
                assert!(!block.evidence.is_empty());
            }
        }
    }
    seen
}

fn verdict(report: &CheckReport, address: u64) -> Verdict {
    report.blocks.iter().find(|block| block.address == address).unwrap().verdict
}

/// A tag that found no row is counted in the last one, together with others: its own counters say nothing, though they
/// stand still.
#[test]
fn a_tag_without_a_row_is_not_judged_by_its_counters() {
    let mut lab = Lab::new(0x400, 11);
    lab.fill_tag_tables();
    let blocks: Vec<u64> = (0..6).map(|i| 0xffff_f8a0_0b00_0000 + i * 0x10_0000).collect();
    blocks.iter().for_each(|block| lab.allocate(*block, LEAK_TAG, &[]));
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    lab.free(blocks[3], &[]);
    lab.free(blocks[5], &[]);
    lab.allocate(blocks[5], LEAK_TAG, &[]);
    let report = lab.check(&mark, &mut harvest);
    assert_eq!(verdict(&report, blocks[3]), Verdict::Freed);
    assert_eq!(verdict(&report, blocks[5]), Verdict::Unknown);
    assert_eq!(report.tags[0].frees, None);
    assert!(report.notes.iter().any(|note| note.contains("more blocks of Leak are listed")), "{:?}", report.notes);
}

/// A place of another tag is not taken for one of this tag where a block of this tag came and went in silence.
#[test]
fn a_freed_block_teaches_no_place() {
    let lab = Lab::new(0x400, 15);
    let [quiet, one, two] = [0, 1, 2].map(|i| 0xffff_f8a0_0b00_0000 + i * 0x10_0000);
    lab.allocate(quiet, LEAK_TAG, &[]);
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    let mut stack = LEAK_STACK;
    stack[2] += 0x100;
    lab.allocate(one, OTHER, &stack);
    lab.free(one, &FREE_STACK);
    lab.allocate(one, LEAK_TAG, &[]);
    lab.free(one, &[]);
    lab.allocate(two, OTHER, &stack);
    lab.free(quiet, &[]);
    lab.allocate(quiet, LEAK_TAG, &[]);
    assert_eq!(verdict(&lab.check(&mark, &mut harvest), quiet), Verdict::Unknown);
}

/// Of a hundred blocks that are gone, who has the address now is known of each.
#[test]
fn many_addresses_that_went_to_another_tag() {
    let lab = Lab::new(0x400, 12);
    let blocks: Vec<u64> = (0..100).map(|i| 0xffff_f8a0_0b00_0000 + i * 0x10_0000).collect();
    blocks.iter().for_each(|block| lab.allocate(*block, LEAK_TAG, &[]));
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    blocks.iter().for_each(|block| lab.free(*block, &[]));
    blocks[90..].iter().for_each(|block| lab.allocate(*block, OTHER, &[]));
    let report = lab.check(&mark, &mut harvest);
    for (i, block) in blocks.iter().enumerate() {
        assert_eq!(verdict(&report, *block), if i < 90 { Verdict::Freed } else { Verdict::Reused }, "{i}");
    }
}

/// A table that cannot be read is said, and the rest says what it can.
#[test]
fn damaged_tables_end_no_look() {
    let mut lab = Lab::new(0x400, 13);
    let set = |lab: &mut Lab, name: &str, value: u64| {
        let at = lab.symbol(name);
        let before = lab.number(at, 8);
        lab.machine.kernel.borrow_mut().write_virtual(at, &value.to_le_bytes());
        before
    };
    let blocks: Vec<u64> = lab.lives().0.into_keys().collect();
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    lab.free(blocks[0], &FREE_STACK);
    let entries = set(&mut lab, "PoolBigPageTableSize", 0);
    let report = lab.check(&mark, &mut harvest);
    assert_eq!(report.blocks.len(), blocks.len());
    assert!(report.blocks.iter().all(|block| matches!(block.verdict, Verdict::Unknown | Verdict::Still)));
    assert_ne!(verdict(&report, blocks[0]), Verdict::Still);
    assert!(report.notes.iter().any(|note| note.contains("PoolBigPageTable")), "{:?}", report.notes);
    // The mark too.
    let half = lab.mark();
    assert!(!half.snapshot.complete && half.snapshot.blocks.iter().all(|block| block.address != blocks[0]));
    set(&mut lab, "PoolBigPageTableSize", entries);
    let report = lab.check(&mark, &mut harvest);
    assert_eq!(verdict(&report, blocks[0]), Verdict::Freed);
    let mut harvest = Harvest::new(half.log.clone().unwrap());
    let report = lab.check(&half, &mut harvest);
    assert!(report.blocks.iter().all(|block| block.verdict != Verdict::New));
}

/// A machine whose log of 64 records has come round, with a block whose allocation is the oldest of them.
fn oldest_record() -> (Lab, u64) {
    let lab = Lab::new(0x40, 14);
    let (block, noise) = (0xffff_f8a0_0b00_0000, 0xffff_f8a0_0c00_0000);
    (0..0x20).for_each(|_| {
        lab.allocate(noise, OTHER, &LEAK_STACK);
        lab.free(noise, &FREE_STACK);
    });
    lab.allocate(block, LEAK_TAG, &LEAK_STACK);
    (0..0x1f).for_each(|_| {
        lab.allocate(noise, OTHER, &LEAK_STACK);
        lab.free(noise, &FREE_STACK);
    });
    lab.allocate(noise, OTHER, &LEAK_STACK);
    (lab, block)
}

fn move_index(lab: &Lab, by: i32) {
    let at = lab.symbol("VfPoolTracesIndex");
    let index = (lab.number(at, 4) as u32).wrapping_add_signed(by);
    lab.machine.kernel.borrow_mut().write_virtual(at, &index.to_le_bytes());
}

/// A record is counted before it is written: what its slot still holds is no record of now.
#[test]
fn a_record_that_is_not_written_yet_is_not_believed() {
    let (lab, block) = oldest_record();
    let mark = lab.mark();
    let own = mark.snapshot.blocks.iter().find(|known| known.address == block).unwrap().allocation;
    assert_eq!(own, mark.log.as_ref().map(|log| log.index - 0x3f));
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    move_index(&lab, 1);
    let report = lab.check(&mark, &mut harvest);
    assert_eq!(verdict(&report, block), Verdict::Still);
    // The same where the counters do not help.
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    let others: Vec<u64> = lab.lives().0.into_keys().filter(|other| *other != block).collect();
    lab.free(others[0], &[]);
    lab.allocate(others[0], LEAK_TAG, &[]);
    move_index(&lab, 1);
    let report = lab.check(&mark, &mut harvest);
    assert_ne!(verdict(&report, block), Verdict::Reused);
}

/// Windows 11 gives a record back when it cannot take the stack.
#[test]
fn a_record_that_was_given_back_makes_no_old_one_new() {
    let (lab, block) = oldest_record();
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    move_index(&lab, -1);
    let report = lab.check(&mark, &mut harvest);
    assert_eq!((verdict(&report, block), report.log_wrapped), (Verdict::Still, false));
    assert!(report.notes.iter().any(|note| note.contains("gave records back")), "{:?}", report.notes);
}

#[test]
fn a_log_that_holds_all_leaves_nothing_open() {
    let seen = histories(400, 0x400, 0, 1);
    for verdict in [Verdict::Still, Verdict::Freed, Verdict::Reused, Verdict::New] {
        assert!(seen[&verdict] > 50, "{seen:?}");
    }
    let all: u32 = seen.values().sum();
    // Blocks freed and allocated again in between, from places that no block in use tells of.
    assert!(seen.get(&Verdict::Unknown).copied().unwrap_or(0) * 50 < all, "{seen:?}");
}

#[test]
fn a_log_that_goes_round_makes_no_verdict_wrong() {
    let seen = histories(300, 0x10, 0, 2);
    assert!(seen[&Verdict::Reused] > 20 && seen[&Verdict::Still] > 40, "{seen:?}");
}

#[test]
fn code_that_nobody_watches_makes_no_verdict_wrong() {
    let seen = histories(300, 0x400, 30, 3);
    assert!(seen[&Verdict::Unknown] > 0 && seen[&Verdict::Still] > 40, "{seen:?}");
}

/// 100 new records, some of them of the tag: at most 40 requests and 64 KB.
#[test]
fn a_check_costs_little() {
    let lab = Lab::new(0x10000, 7);
    let mark = lab.mark();
    let mut harvest = Harvest::new(mark.log.clone().unwrap());
    {
        let mut kernel = lab.machine.kernel.borrow_mut();
        for i in 0..47u64 {
            let address = 0xffff_fa80_0500_0000 + (i % 3) * 0x10000;
            let mut stack = LEAK_STACK;
            stack[2] = stack[0];
            kernel.allocate_large_at(address, OTHER, SIZE, PoolKind::NonPaged, &stack, LEAK_THREAD).unwrap();
            kernel.free_large(address, &FREE_STACK, FREEING_THREAD).unwrap();
        }
        for i in 0..6u64 {
            let address = 0xffff_f8a0_0a00_0000 + i * 0x10_0000;
            kernel.allocate_large_at(address, LEAK_TAG, SIZE, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD).unwrap();
        }
    }
    *lab.machine.requests.borrow_mut() = (0, 0);
    lab.machine.known.borrow_mut().clear();
    let report = lab.check(&mark, &mut harvest);
    let (requests, bytes) = *lab.machine.requests.borrow();
    println!("a check after 100 records: {requests} requests, {bytes} bytes");
    assert_eq!((report.summary.still, report.summary.new, report.summary.unknown), (23, 6, 0));
    assert!(requests <= 40 && bytes <= 64 << 10, "{requests} requests, {bytes} bytes");
}
