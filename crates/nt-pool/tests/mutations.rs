//! Machines whose kernel breaks one rule on purpose: no answer is silently wrong. Either it is right, because two readings
//! were tried, or a book does not balance, or the answer says what it lacks.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::kernel::{Mutation, Residence, SeededOptions, SmallState, Truth, mutated_layout};
use machine::{Table, carried, describe, on, self_check};
use nt_memory::Spent;
use nt_pool::checks::{self, Book, Check};
use nt_pool::find::{Bounds, Question, Quote, Silent};
use nt_pool::pool_log::{self, Wanted};
use nt_pool::selfcheck::State;
use nt_pool::small_blocks::{self, BlockState, Blocks, Kinds, Limits};
use nt_pool::{Kernel, Lack, Notes, PoolError, Tag, big_pages, tags, verifier};

/// Every tag's counters are those of its blocks.
fn options(mutation: Option<Mutation>) -> SeededOptions {
    SeededOptions { balanced: true, small_operations: 1_500, operations: 300, mutation, ..SeededOptions::default() }
}

/// Segment heaps among the kernels that kd-fake carries.
fn heaps() -> Vec<Table> {
    let heap = |table: &Table| ["heap", "22631", "26100", "later"].iter().any(|part| table.name.contains(part));
    carried().into_iter().filter(heap).collect()
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Right,
    /// Wrong, and it says so: a book does not balance, or something is missing.
    Told,
    /// Wrong without a word.
    Silent,
}

fn outcome(right: bool, notes: &Notes, checks: &[Check]) -> Outcome {
    match (right, notes.is_complete() && checks.iter().all(|check| check.ok)) {
        (true, _) => Outcome::Right,
        (false, true) => Outcome::Silent,
        (false, false) => Outcome::Told,
    }
}

/// What `!poolfind` and leak verdicts rest on: its own books have to tell. What else is wrong without a word the self-check
/// has to doubt.
const OF_TAG: &str = "blocks of a tag";

const TAGS: &str = "tags";

/// Asks a question of a machine, and compares the answer.
type Ask = fn(&Kernel<'_>, &Truth) -> Result<Outcome, PoolError>;

/// The questions whose answers are compared with what the machine knows.
const QUESTIONS: [(&str, Ask); 6] = [
    ("small blocks", small),
    ("large allocations", large),
    (OF_TAG, of_tag),
    (TAGS, counted),
    ("pool log", log),
    ("tracked", tracked),
];

const LEAK: Tag = Tag(*b"Leak");

fn key(tag: u32) -> u32 {
    tag & 0x7fff_ffff
}

/// Small blocks in use that can be read: address and tag.
fn live_small(truth: &Truth) -> BTreeSet<(u64, u32)> {
    let live = truth.small.iter().filter(|block| block.state == SmallState::Live);
    let there = live.filter(|block| block.residence != Residence::PagedOut);
    there.map(|block| (block.address, key(block.tag))).collect()
}

fn found_small(found: &Blocks) -> BTreeSet<(u64, u32)> {
    let live = found.blocks.iter().filter(|block| block.state == BlockState::Allocated);
    live.map(|block| (block.address, block.tag.key())).collect()
}

fn small(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let found = small_blocks::find(kernel, &|_| true, Kinds::ALL, Limits::default())?;
    Ok(outcome(found_small(&found) == live_small(truth), &found.notes, &found.checks))
}

fn large(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let found = big_pages::read(kernel, &|_| true)?;
    let live = found.blocks.iter().filter(|page| !page.free);
    let live: BTreeSet<_> = live.map(|page| (page.address, page.tag.key(), page.size)).collect();
    let wanted: BTreeSet<_> = truth.large.iter().map(|block| (block.address, key(block.tag), block.bytes)).collect();
    Ok(outcome(live == wanted, &found.notes, &found.checks))
}

fn of_tag(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let question = Question { global: true, ..Question::new(LEAK) };
    let found = Quote::new(kernel, question, Spent::default())?.run(kernel, Bounds::default(), &mut Silent)?;
    let blocks: BTreeSet<_> = found.blocks.iter().map(|block| (block.address(), block.tag().key())).collect();
    let large = truth.large.iter().map(|block| (block.address, key(block.tag)));
    let wanted = large.chain(live_small(truth)).filter(|(_, tag)| *tag == LEAK.key()).collect();
    Ok(outcome(blocks == wanted, &found.notes, &found.checks))
}

fn counted(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let mut wanted: BTreeMap<u32, [u64; 4]> = BTreeMap::new();
    for tag in &truth.tags {
        let sums = wanted.entry(key(tag.tag)).or_default();
        for (sum, usage) in sums.chunks_mut(2).zip([tag.nonpaged, tag.paged]) {
            sum[0] = sum[0].wrapping_add(usage.allocs).wrapping_sub(usage.frees);
            sum[1] = sum[1].wrapping_add(usage.bytes);
        }
    }
    let report = tags::read(kernel, &|_| true)?;
    let found = report.tags.iter().map(|row| {
        let [nonpaged, paged] = [row.nonpaged, row.paged].map(|usage| [usage.diff as u64, usage.bytes]);
        (row.tag.key(), [nonpaged[0], nonpaged[1], paged[0], paged[1]])
    });
    Ok(outcome(found.collect::<BTreeMap<_, _>>() == wanted, &report.notes, &report.checks))
}

fn log(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let found = pool_log::read(kernel, Wanted::All)?;
    let wanted = truth.pool_log.as_ref().map(|log| {
        let record = |record: &kd_fake::kernel::Record| {
            (record.index, record.address, record.size, record.thread, record.frames.clone())
        };
        log.records.iter().map(record).collect::<Vec<_>>()
    });
    let traces = found.as_ref().map(|log| {
        let record =
            |trace: &pool_log::Trace| (trace.sequence, trace.address, trace.size, trace.thread, trace.frames.clone());
        log.traces.iter().map(record).collect::<Vec<_>>()
    });
    let check = found.as_ref().and_then(|log| pool_log::check(kernel, &log.traces));
    Ok(outcome(traces == wanted, &found.map(|log| log.notes).unwrap_or_default(), check.as_slice()))
}

fn tracked(kernel: &Kernel<'_>, truth: &Truth) -> Result<Outcome, PoolError> {
    let mut found = BTreeSet::new();
    let drivers = verifier::drivers(kernel)?;
    let (mut notes, mut checks) = (drivers.notes, Vec::new());
    for driver in &drivers.drivers {
        let listed = verifier::allocations(kernel, driver)?;
        checks.extend(verifier::check(kernel, driver, &listed));
        notes.extend(listed.notes);
        let blocks = listed.allocations.iter();
        found.extend(blocks.map(|block| (block.address, block.size, block.tag.key(), block.caller)));
    }
    let blocks = truth.verifier_drivers.iter().flat_map(|driver| &driver.allocations);
    let wanted = blocks.map(|block| (block.address, block.bytes, key(block.tag), block.caller)).collect();
    Ok(outcome(found == wanted, &notes, &checks))
}

/// What was asked of one machine, and what the self-check says of it.
struct Asked {
    outcomes: Vec<(&'static str, Outcome)>,
    /// Of each part that is not sound.
    doubts: Vec<String>,
    /// Some part differs, be it by a rule that nobody has proved.
    differs: bool,
}

impl Asked {
    /// The answers that are wrong without a word of their own; those that the self-check doubts, and those that nobody does.
    fn silent(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let silent = self.outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Silent);
        silent.map(|(question, _)| *question).partition(|question| self.differs && *question != OF_TAG)
    }
}

fn ask(table: &Table, seed: u64, mutation: Mutation) -> Asked {
    on(&table.symbols, &table.isf, seed, &options(Some(mutation)), |kernel, truth, _| {
        // A question that has no answer says why.
        let outcomes = QUESTIONS.map(|(name, ask)| (name, ask(kernel, truth).unwrap_or(Outcome::Told)));
        let check = self_check(kernel, 1 << 20);
        let doubts = check.parts.iter().filter(|part| !part.is_sound()).map(describe).collect();
        let differs = check.parts.iter().any(|part| part.state() == State::Differs);
        Asked { outcomes: outcomes.to_vec(), doubts, differs }
    })
}

/// Each rule that is broken on purpose is named by the self-check on some machine that has it, or does no harm.
#[test]
fn every_broken_rule_is_named() {
    let tables = carried();
    // These the decoders read either way, and what is found is right.
    let harmless = [Mutation::VsNoSpareUnit, Mutation::LfhOtherBits, Mutation::NeverUsed];
    let (mut unnamed, mut silent) = (Vec::new(), Vec::new());
    for mutation in Mutation::rules() {
        let mut named = false;
        for table in &tables {
            let asked = ask(table, 3, mutation);
            println!("{mutation} on {}: {:?}", table.name, asked.doubts);
            named |= asked.differs;
            let (_, wrong) = asked.silent();
            // So few bytes may be what the kernel aligned a block by.
            let wrong = wrong.into_iter().filter(|question| (mutation, *question) != (Mutation::TagBytes, TAGS));
            silent.extend(wrong.map(|question| format!("{question}: {mutation} on {}", table.name)));
        }
        unnamed.extend((!named).then_some(mutation));
    }
    assert_eq!((unnamed, silent), (harmless.to_vec(), Vec::new()));
}

/// Layouts that once ended in an answer that nobody doubted.
const ONCE_SILENT: [u64; 16] = [4, 7, 30, 43, 51, 202, 218, 223, 265, 299, 412, 481, 658, 793, 886, 934];

/// Symbols that are wrong about a member of a pool type. KDPOOL_MUTATIONS sets how many are tried (some thousand were),
/// KDPOOL_FIRST the first.
#[test]
fn wrong_layouts_are_not_believed() {
    let tables = carried();
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = number("KDPOOL_FIRST").unwrap_or(0);
    let numbers = first..first + number("KDPOOL_MUTATIONS").unwrap_or(24);
    let (mut told, mut wrong) = (Vec::new(), Vec::new());
    for number in ONCE_SILENT.into_iter().chain(numbers.clone()) {
        let table = &tables[number as usize % tables.len()];
        let asked = ask(table, number, Mutation::Layout(number));
        let (_, what) = mutated_layout(&table.isf, number);
        let line = |question| format!("{question}: {} {number} ({what}); self-check: {:?}", table.name, asked.doubts);
        let (doubted, silent) = asked.silent();
        told.extend(doubted.into_iter().map(line));
        wrong.extend(silent.into_iter().map(line));
    }
    println!("{} answers of {numbers:?} are doubted by the self-check alone: {told:#?}", told.len());
    assert!(wrong.is_empty(), "{} of {numbers:?}: {wrong:#?}", wrong.len());
}

/// Walks a machine and shows it what was found.
fn walk(table: &Table, seed: u64, options: &SeededOptions, check: impl FnOnce(&Kernel<'_>, &Truth, Blocks)) {
    on(&table.symbols, &table.isf, seed, options, |kernel, truth, _| {
        let found = small_blocks::find(kernel, &|_| true, Kinds::ALL, Limits::default()).unwrap();
        check(kernel, truth, found);
    });
}

/// Pages in a page file are the one reason for an answer that lacks something; nothing else is said.
#[test]
fn what_is_paged_out_is_all_that_is_missing() {
    for table in heaps() {
        let name = table.name;
        for seed in 1..4 {
            let options = SeededOptions { paged_out: true, ..options(None) };
            walk(&table, seed, &options, |_, truth, found| {
                let why: Vec<Lack> = found.notes.all_missing().map(|missing| missing.why).collect();
                assert!(why.iter().all(|why| *why == Lack::PagedOut), "{name} {seed}: {:?}", found.notes.lines());
                assert!(found.notes.lines().len() <= 1, "{name} {seed}: {:?}", found.notes.lines());
                assert!(checks::balance(&found.checks), "{name} {seed}: {:?}", found.checks);
                let (live, wanted) = (found_small(&found), live_small(truth));
                let extra: Vec<_> = live.difference(&wanted).collect();
                let missing: Vec<_> = wanted.difference(&live).collect();
                println!("{name} {seed}: {} of {} {:?}", live.len(), wanted.len(), found.notes.lines());
                assert!(extra.is_empty(), "{name} {seed}: extra {extra:x?}");
                assert!(missing.is_empty() || !why.is_empty(), "{name} {seed}: missing {missing:x?}");
            });
        }
    }
}

/// A pool that no node leads to is told by the large allocations that lie in no known heap.
#[test]
fn a_private_pool_is_told() {
    let late = |table: &Table| table.name.contains("26100") || table.name.contains("later");
    for table in heaps().into_iter().filter(late) {
        let name = table.name;
        let options = SeededOptions { private_pool: true, ..options(None) };
        walk(&table, 3, &options, |kernel, _, found| {
            let strays = found.checks.iter().find(|check| check.name == Book::LargeInHeaps).unwrap();
            let known = big_pages::read(kernel, &|_| true).unwrap().blocks.len();
            assert!(!strays.ok, "{name}: {known} entries, {:?}", found.notes.lines());
            assert!(found.notes.lines()[0].contains("private pools"), "{:?}", found.notes.lines());
        });
    }
}
