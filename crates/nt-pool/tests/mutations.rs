//! Machines whose kernel breaks one rule on purpose: no list of blocks is silently wrong. Either it is right, because two
//! readings were tried, or a book does not balance, or the answer says what it lacks.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use kd_fake::isf::{CARRIED, Isf as Table};
use kd_fake::kernel::{self, Mutation, Residence, SeededOptions, SmallState, Truth};
use nt_memory::{Fault, Memory};
use nt_pool::checks::{self, Book};
use nt_pool::small_blocks::{self, BlockState, Blocks, Kinds, Limits};
use nt_pool::{Kernel, Lack, big_pages};
use nt_symbols::Isf;

struct Machine<'m>(&'m kernel::Kernel);

impl Memory for Machine<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.0.read_virtual(address, buffer))
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.0.read_physical(address, buffer))
    }
}

/// The segment heaps among the kernels that kd-fake carries.
fn heaps() -> Vec<(&'static str, &'static [u8])> {
    let heap = |name: &str| ["heap", "22631", "26100", "later"].iter().any(|part| name.contains(part));
    CARRIED.into_iter().filter(|(name, _)| heap(name)).collect()
}

/// Walks a machine and shows it what was found.
fn walk(name: &str, json: &[u8], seed: u64, options: &SeededOptions, check: impl FnOnce(&Kernel<'_>, &Truth, Blocks)) {
    let symbols = Isf::parse(name, json.to_vec()).unwrap();
    let table = Table::from_json(json).unwrap();
    let (machine, truth) = kernel::seeded(&table, seed, options).unwrap();
    let (memory, facts) = (Machine(&machine), machine.facts());
    let kernel = Kernel {
        memory: &memory,
        symbols: &symbols,
        base: facts.kernel_base,
        pointer_size: table.machine.pointer() as u8,
        build: facts.build,
    };
    let Ok(found) = small_blocks::find(&kernel, &|_| true, Kinds::ALL, Limits::default()) else { return };
    check(&kernel, &truth, found);
}

/// Live blocks: address, size but for special pool's, tag.
fn live(found: &Blocks) -> BTreeSet<(u64, u32)> {
    let live = found.blocks.iter().filter(|block| block.state == BlockState::Allocated);
    live.map(|block| (block.address, block.tag.key())).collect()
}

fn wanted(truth: &Truth) -> BTreeSet<(u64, u32)> {
    let live = truth.small.iter().filter(|block| block.state == SmallState::Live);
    let there = live.filter(|block| block.residence != Residence::PagedOut);
    there.map(|block| (block.address, block.tag & 0x7fff_ffff)).collect()
}

fn small(mutation: Option<Mutation>) -> SeededOptions {
    SeededOptions { small_operations: 1_500, operations: 300, mutation, ..SeededOptions::default() }
}

const POOL: [Mutation; 20] = [
    Mutation::VsSizeWithHeader,
    Mutation::VsSignature,
    Mutation::VsKey,
    Mutation::VsPreviousSize,
    Mutation::VsNoSpareUnit,
    Mutation::HeaderCrossesPage,
    Mutation::HeaderSize,
    Mutation::LfhOtherBits,
    Mutation::LfhShiftedBitmap,
    Mutation::LfhFreeCount,
    Mutation::LfhWithheld,
    Mutation::LfhKey,
    Mutation::SegmentSignature,
    Mutation::SegmentCount,
    Mutation::RangeFlags,
    Mutation::SlotUnit,
    Mutation::SlotContext,
    Mutation::PageHash,
    Mutation::NeverUsed,
    Mutation::BigPageBytes,
];

#[test]
fn no_broken_rule_ends_in_a_list_that_is_silently_wrong() {
    let mut silent = Vec::new();
    let classic = CARRIED.into_iter().filter(|(name, _)| heaps().iter().all(|(heap, _)| heap != name));
    let classic = classic.map(|kernel| (kernel, Mutation::HeaderSize));
    let heaps = heaps().into_iter().flat_map(|kernel| POOL.map(|mutation| (kernel, mutation)));
    for ((name, json), mutation) in classic.chain(heaps) {
        walk(name, json, 1, &small(Some(mutation)), |_, truth, found| {
            let right = live(&found) == wanted(truth);
            let told = found.checks.iter().any(|check| !check.ok) || !found.notes.is_complete();
            let failed: Vec<Book> = found.checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
            println!("{name} {mutation:?}: right {right}, told {told}, {failed:?} {:?}", found.notes.lines().first());
            if !right && !told {
                let (live, wanted) = (live(&found), wanted(truth));
                println!("{} of {}, {:?}", live.intersection(&wanted).count(), wanted.len(), found.checks);
                silent.push(format!("{name} {mutation:?}"));
            }
        });
    }
    assert_eq!(silent, [""; 0]);
}

#[test]
fn no_member_that_is_elsewhere_ends_in_a_list_that_is_silently_wrong() {
    let mut silent = Vec::new();
    let mut told = 0;
    let layouts = std::env::var("KDPOOL_LAYOUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(LAYOUTS);
    for layout in 0..layouts {
        let (name, json) = CARRIED[layout as usize % CARRIED.len()];
        let mutation = Mutation::Layout(layout.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        walk(name, json, layout, &small(Some(mutation)), |_, truth, found| {
            let right = live(&found) == wanted(truth);
            let complains = found.checks.iter().any(|check| !check.ok) || !found.notes.is_complete();
            told += u64::from(complains);
            if !right && !complains {
                let (live, wanted) = (live(&found), wanted(truth));
                println!("{} of {}, {:?}", live.intersection(&wanted).count(), wanted.len(), found.checks);
                silent.push(format!("{name} {mutation:?}"));
            }
        });
    }
    println!("{told} of {layouts} layouts were noticed");
    assert_eq!(silent, [""; 0]);
}

/// More with `KDPOOL_LAYOUTS`; a thousand were tried.
const LAYOUTS: u64 = 60;

/// Pages in a page file are the one reason for an answer that lacks something; nothing else is said.
#[test]
fn what_is_paged_out_is_all_that_is_missing() {
    for (name, json) in heaps() {
        for seed in 1..4 {
            let options = SeededOptions { paged_out: true, ..small(None) };
            walk(name, json, seed, &options, |_, truth, found| {
                let why: Vec<Lack> = found.notes.all_missing().map(|missing| missing.why).collect();
                assert!(why.iter().all(|why| *why == Lack::PagedOut), "{name} {seed}: {:?}", found.notes.lines());
                assert!(found.notes.lines().len() <= 1, "{name} {seed}: {:?}", found.notes.lines());
                assert!(checks::balance(&found.checks), "{name} {seed}: {:?}", found.checks);
                let (live, wanted) = (live(&found), wanted(truth));
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
    for (name, json) in heaps().into_iter().filter(|(name, _)| name.contains("26100") || name.contains("later")) {
        let options = SeededOptions { private_pool: true, ..small(None) };
        walk(name, json, 3, &options, |kernel, _, found| {
            let strays = found.checks.iter().find(|check| check.name == Book::LargeInHeaps).unwrap();
            let known = big_pages::read(kernel, &|_| true).unwrap().blocks.len();
            assert!(!strays.ok, "{name}: {known} entries, {:?}", found.notes.lines());
            assert!(found.notes.lines()[0].contains("private pools"), "{:?}", found.notes.lines());
        });
    }
}
