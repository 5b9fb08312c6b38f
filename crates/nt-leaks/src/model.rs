//! A small kernel whose truth is known: random histories, and what the check says of them.
//!
//! What verified drivers do is logged, and the free of a block of theirs by whomever; what others do with their own
//! blocks is not, and all use the same tags.

use std::collections::BTreeMap;

use nt_memory::Fault;
use nt_pool::Tag;
use nt_pool::pool_log::Operation;
use proptest::prelude::*;

use crate::check::{CheckReport, Verdict, check};
use crate::harvest::{Harvest, Position, Record};
use crate::identity::{Identity, Times};
use crate::mark::Mark;
use crate::snapshot::{Block, Counters, Scope, Snapshot, Source};
use crate::stack::{Frame, Module, Modules, Namer, Resolver};

const TAG: u32 = 0x6b61654c;
const OTHER: u32 = 0x20707249;
const NT: u64 = 0xfffff80000000000;
const DRIVER: u64 = 0xfffff88000000000;

struct Names;

impl Namer for Names {
    fn name(&mut self, module: &Module, _: u32) -> Result<Option<String>, Fault> {
        Ok((module.name == "nt").then(|| "VeAllocatePoolWithTagPriority+0x1".into()))
    }
}

fn modules() -> Modules {
    let module = |base, name: &str| Module::new(base, 0x10000, name);
    Modules::new(vec![module(NT, "nt"), module(DRIVER, "myfault")])
}

#[derive(Debug, Clone)]
enum Step {
    /// Slot, verified, tag is ours, place in the driver.
    Allocate(usize, bool, bool, u64),
    /// Slot, by verified code.
    Free(usize, bool),
    /// A small block of our tag, in no list.
    Small(bool),
    /// Another driver's operations.
    Noise,
    /// From now on the verifier leaves records out, or does not.
    Skip(bool),
}

fn step(unverified: bool) -> impl Strategy<Value = Step> {
    let verified = if unverified { prop_oneof![3 => Just(true), 1 => Just(false)].boxed() } else { Just(true).boxed() };
    let small = if unverified { 1 } else { 0 };
    prop_oneof![
        6 => (0..5usize, verified.clone(), prop::bool::weighted(0.85), 0..3u64)
            .prop_map(|(slot, verified, ours, site)| Step::Allocate(slot, verified, ours, site)),
        4 => (0..5usize, verified).prop_map(|(slot, verified)| Step::Free(slot, verified)),
        small => any::<bool>().prop_map(Step::Small),
        2 => Just(Step::Noise),
    ]
}

#[derive(Debug, Clone)]
struct Life {
    id: u64,
    tag: u32,
    size: u64,
    /// By the verifier, since its allocation: its free is logged, whoever frees it.
    tracked: bool,
}

/// The kernel and its books.
#[derive(Debug, Clone, Default)]
struct World {
    live: BTreeMap<u64, Life>,
    counters: BTreeMap<u32, Counters>,
    log: Vec<Record>,
    next: u64,
    small: u64,
    skips: bool,
}

impl World {
    fn address(slot: usize) -> u64 {
        0xfffff8a000000000 + slot as u64 * 0x100000
    }

    fn record(&mut self, address: u64, size: u64, operation: Operation, site: u64) {
        if self.skips {
            return;
        }
        let sequence = self.log.len() as u32 + 1;
        let frames = vec![NT + 0x10, DRIVER + 0x1000 + site];
        self.log.push(Record { sequence, address, size, thread: 1, operation, frames, whole: true });
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Allocate(slot, verified, ours, site) => {
                let address = Self::address(slot);
                if self.live.contains_key(&address) {
                    return;
                }
                let (tag, size) = (if ours { TAG } else { OTHER }, 0x2000);
                self.next += 1;
                // A place in a driver allocates with one tag.
                let site = if ours { site } else { 0x100 };
                if verified {
                    self.record(address, size, Operation::Allocate, site);
                }
                self.live.insert(address, Life { id: self.next, tag, size, tracked: verified });
                let counters = self.counters.entry(tag).or_default();
                counters.allocs += 1;
                counters.bytes += size;
            }
            Step::Free(slot, verified) => {
                let address = Self::address(slot);
                let Some(life) = self.live.remove(&address) else { return };
                if verified || life.tracked {
                    self.record(address, life.size, Operation::Free, 0x500);
                }
                let counters = self.counters.entry(life.tag).or_default();
                counters.frees += 1;
                counters.bytes -= life.size;
            }
            Step::Small(allocate) => {
                let counters = self.counters.entry(TAG).or_default();
                if allocate {
                    self.small += 1;
                    counters.allocs += 1;
                } else if self.small > 0 {
                    self.small -= 1;
                    counters.frees += 1;
                }
            }
            Step::Skip(skips) => self.skips = skips,
            Step::Noise => {
                self.record(0xfffff98000000ff0, 0x10, Operation::Allocate, 0x900);
                self.record(0xfffff98000000ff0, 0x10, Operation::Free, 0x900);
            }
        }
    }

    fn snapshot(&self, log_length: usize) -> Snapshot {
        let mut snapshot = Snapshot::empty(Scope { tag: Some(TAG), paged: None }, Times::default());
        snapshot.counter_bits = Some(32);
        snapshot.counters = self.counters.clone();
        let oldest = self.log.len().saturating_sub(log_length);
        for (&address, life) in self.live.iter().filter(|(_, life)| life.tag == TAG) {
            let newest = self.log[oldest..].iter().rev().find(|record| record.address == address);
            let own = newest.filter(|record| record.operation == Operation::Allocate);
            let frame = |address: u64| Frame {
                address,
                module: modules().find(address).map(|module| module.name.clone()),
                offset: address & 0xffff,
                symbol: None,
            };
            let stack = own.map(|record| record.frames.iter().map(|&address| frame(address)).collect());
            let stack = stack.map(|stack| snapshot.stacks.add(stack));
            let block = Block::new(address, life.size, Tag::from_key(TAG).0, Some(true), Source::Large);
            snapshot.blocks.push(Block { allocation: own.map(|record| record.sequence), stack, ..block });
        }
        snapshot
    }

    fn position(&self, length: usize) -> Position {
        Position { index: self.log.len() as u32, length: length as u32, anchor: None }
    }
}

/// What really became of an address.
fn truth(then: &World, now: &World, address: u64) -> Verdict {
    let of = |world: &World| world.live.get(&address).cloned();
    let ours = |life: &Life| life.tag == TAG;
    match (of(then).filter(ours), of(now)) {
        (Some(was), Some(is)) if was.id == is.id => Verdict::Still,
        (Some(_), Some(_)) => Verdict::Reused,
        (Some(_), None) => Verdict::Freed,
        (None, _) => Verdict::New,
    }
}

fn mark(then: &World, log_length: usize) -> Mark {
    let identity = Identity {
        build: 7601,
        pointer_size: 8,
        pdb: None,
        pdb_at: None,
        image: None,
        base: NT,
        boot_time: None,
        boot_id: None,
    };
    Mark {
        name: "m".into(),
        identity,
        log: Some(then.position(log_length)),
        modules: modules(),
        snapshot: then.snapshot(log_length),
    }
}

fn compare(before: &[Step], after: &[Step], log_length: usize) -> (World, World, CheckReport) {
    let mut world = World::default();
    before.iter().for_each(|step| world.run(step));
    let then = world.clone();
    after.iter().for_each(|step| world.run(step));
    let mark = mark(&then, log_length);
    let mut harvest = Harvest::new(then.position(log_length));
    let written = world.log.len() - then.log.len();
    if written >= log_length {
        harvest.lose();
    }
    let from = then.log.len().max(world.log.len().saturating_sub(log_length));
    for record in &world.log[from..] {
        harvest.push(record.clone());
    }
    let mut snapshot = world.snapshot(log_length);
    // What a lookup finds at an address that has another tag now.
    for (&address, life) in &world.live {
        if life.tag != TAG {
            snapshot.occupied.insert(address);
        }
    }
    let (modules, mut names) = (modules(), Names);
    let mut resolver = Resolver::new(&modules, &mut names);
    let report = check(&mark, &snapshot, Some(&harvest), &mut resolver).expect("no memory is read");
    (then, world, report)
}

fn judge(before: &[Step], after: &[Step], log_length: usize) -> Result<u64, TestCaseError> {
    let (then, now, report) = compare(before, after, log_length);
    for block in &report.blocks {
        let truth = truth(&then, &now, block.address);
        prop_assert!(
            block.verdict == Verdict::Unknown || block.verdict == truth,
            "{:x} is {truth:?}, and the check says {:?} by {:?}",
            block.address,
            block.verdict,
            block.evidence
        );
        prop_assert!(!block.evidence.is_empty());
    }
    let still = then
        .live
        .iter()
        .filter(|(address, life)| life.tag == TAG && now.live.get(address).is_some_and(|now| now.id == life.id));
    prop_assert!(report.tags[0].at_least <= still.count() as u64);
    Ok(report.summary.unknown)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Unverified drivers, small blocks of the same tag, a log that comes round: never a wrong verdict.
    #[test]
    fn no_verdict_is_wrong(
        before in prop::collection::vec(step(true), 0..20),
        after in prop::collection::vec(step(true), 0..30),
        log_length in prop_oneof![Just(4usize), Just(16), Just(1024)],
    ) {
        judge(&before, &after, log_length)?;
    }

    /// Everything is verified and the log holds all of it: there is nothing that cannot be known, except of blocks
    /// that share their tag with allocations from places that no block now in use tells of.
    #[test]
    fn a_whole_log_leaves_little_open(
        before in prop::collection::vec(step(false), 0..20),
        after in prop::collection::vec(step(false), 0..30),
    ) {
        let one_place = |steps: Vec<Step>| -> Vec<Step> {
            let place = |step| match step {
                Step::Allocate(slot, verified, ours, _) => Step::Allocate(slot, verified, ours, 0),
                step => step,
            };
            steps.into_iter().map(place).collect()
        };
        prop_assert_eq!(judge(&one_place(before), &one_place(after), 1024)?, 0);
    }
}

fn allocate(slot: usize) -> Step {
    Step::Allocate(slot, true, true, slot as u64)
}

fn verdicts(report: &CheckReport) -> Vec<Verdict> {
    report.blocks.iter().map(|block| block.verdict).collect()
}

#[test]
fn each_verdict_by_hand() {
    use Verdict::{Freed, New, Reused, Still};
    let before = [allocate(0), allocate(1), allocate(2)];
    let after = [Step::Free(1, true), Step::Free(2, true), Step::Allocate(2, true, true, 7), allocate(3)];
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Still, Freed, Reused, New]);
    assert!(report.blocks.iter().all(|block| block.stack.is_some()));
    assert_ne!(report.blocks[2].stack, report.blocks[0].stack);
    assert_eq!(report.tags[0].at_least, 1);
}

/// An unverified driver frees and allocates again, with nothing in the log: the counters say that one of the blocks is
/// another, and not which.
#[test]
fn a_silent_reuse_is_not_called_still() {
    let before = [0, 1, 2].map(|slot| Step::Allocate(slot, false, true, 0));
    let after = [Step::Free(1, false), Step::Allocate(1, false, true, 1)];
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Verdict::Unknown; 3]);
    assert_eq!(report.tags[0].at_least, 2);
}

/// The same beside blocks that the verifier tracks: their frees should be in the log, but it may lack some.
#[test]
fn silence_is_no_proof_while_frees_are_missing() {
    let before = [allocate(0), Step::Allocate(1, false, true, 0), allocate(2)];
    let after = [Step::Free(1, false), Step::Allocate(1, false, true, 1), Step::Free(2, false), allocate(2)];
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Verdict::Unknown, Verdict::Unknown, Verdict::Reused]);
}

/// Who allocates in silence frees nothing: what was counted as freed is in the log, a block that came and went.
#[test]
fn silence_proves_a_tracked_block() {
    let before = [allocate(0), Step::Allocate(1, false, true, 0)];
    let after = [allocate(3), Step::Free(3, true), Step::Allocate(2, false, true, 1)];
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Verdict::Still, Verdict::Unknown, Verdict::New]);
    assert_eq!(report.blocks[0].evidence, [crate::Evidence::Log]);
    // Where records were lost, silence proves nothing.
    let (.., report) = compare(&before, &after, 1);
    assert_eq!(report.blocks[0].verdict, Verdict::Unknown);
}

/// A place that allocated what lived at an address before tells nothing of the tag that is there now: who frees and
/// allocates in silence may have put it there.
#[test]
fn an_earlier_life_teaches_no_place() {
    let before = [Step::Allocate(1, false, true, 0)];
    let silent = |slot| [Step::Free(slot, false), Step::Allocate(slot, false, true, 0)];
    let mut after = vec![Step::Allocate(0, true, false, 0), Step::Free(0, true), Step::Allocate(0, false, true, 0)];
    after.push(Step::Allocate(3, true, false, 0));
    after.extend(silent(1));
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Verdict::Unknown, Verdict::New]);
}

/// All pool of a large machine is compared in time.
#[test]
fn many_blocks_of_many_tags_are_compared_at_once() {
    const BLOCKS: u64 = 100_000;
    let mut snapshot = Snapshot::empty(Scope::default(), Times::default());
    snapshot.counter_bits = Some(32);
    for i in 0..BLOCKS {
        let tag = 0x3030_3030 + (i % 1000) as u32;
        let block = Block::new(i << 12, 0x1000, Tag::from_key(tag).0, Some(true), Source::Large);
        snapshot.blocks.push(block);
        snapshot.counters.entry(tag).or_default().allocs += 1;
    }
    let mark = Mark { snapshot: snapshot.clone(), ..mark(&World::default(), 16) };
    let began = std::time::Instant::now();
    let (modules, mut names) = (modules(), Names);
    let report = check(&mark, &snapshot, None, &mut Resolver::new(&modules, &mut names)).expect("no memory is read");
    assert_eq!((report.summary.still, report.tags.len()), (BLOCKS, 1000));
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

/// A log that is seen to lack records proves nothing by its silence.
#[test]
fn a_log_with_holes_is_not_silent() {
    let before = [allocate(0), allocate(1), allocate(2)];
    let reuse = [Step::Skip(true), Step::Free(1, true), allocate(1)];
    let (.., report) = compare(&before, &reuse, 1024);
    assert_eq!(verdicts(&report), [Verdict::Unknown; 3]);
    // The free alone is missing.
    let free = [Step::Skip(true), Step::Free(1, true), Step::Skip(false), Step::Free(2, true), allocate(2)];
    let (.., report) = compare(&before, &free, 1024);
    assert_eq!(verdicts(&report)[1..], [Verdict::Freed, Verdict::Reused]);
    assert!(!report.blocks[0].evidence.contains(&crate::Evidence::Log), "{:?}", report.blocks[0]);
}

/// Only the counters know: a leak without a verifier is proved.
#[test]
fn a_counter_that_stands_still_proves_all() {
    let before = [Step::Allocate(0, false, true, 0), Step::Allocate(1, false, true, 0)];
    let after = [Step::Allocate(2, false, true, 0)];
    let (.., report) = compare(&before, &after, 1024);
    assert_eq!(verdicts(&report), [Verdict::Still, Verdict::Still, Verdict::New]);
    assert_eq!(report.blocks[0].evidence, [crate::Evidence::Counters]);
}
