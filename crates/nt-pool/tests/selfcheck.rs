//! The self-check on machines that are as they should be, and on machines of which one rule was broken on purpose.
//! kd-fake breaks them, and knows nothing of what is checked here.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use kd_fake::kernel::{self, Mutation, Residence, SeededOptions, SmallState};
use nt_memory::{Fault, Memory, Search, Spent};
use nt_pool::selfcheck::{Part, SelfCheck, State, Subject};
use nt_pool::small_blocks::{self, BlockState, Kinds, Limits};
use nt_pool::{Kernel, big_pages};
use nt_symbols::Isf;

/// Memory of a machine that runs in this process, and what a link would have carried.
struct Machine<'m>(&'m kernel::Kernel, Cell<Spent>);

const REPLY: u64 = 1296;

impl Machine<'_> {
    fn charge(&self, bytes: usize) {
        let mut spent = self.1.get();
        spent.requests += (bytes as u64).div_ceil(REPLY).max(1);
        spent.bytes += bytes as u64;
        spent.time += Duration::from_micros(250);
        self.1.set(spent);
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

    fn spent(&self) -> Spent {
        self.1.get()
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let read = self.0.read_physical(address, buffer);
        self.charge(read);
        Ok(read)
    }
}

/// The kernels that kd-fake carries, as each side reads them.
fn tables() -> Vec<(&'static str, Isf, kd_fake::isf::Isf)> {
    let read = |(name, json): (&'static str, &[u8])| {
        let ours = Isf::parse(name, json.to_vec()).expect("a table");
        (name, ours, kd_fake::isf::Isf::from_json(json).expect("a table"))
    };
    kd_fake::isf::CARRIED.into_iter().map(read).collect()
}

fn options(mutation: Option<Mutation>) -> SeededOptions {
    SeededOptions { balanced: true, small_operations: 1500, operations: 500, mutation, ..SeededOptions::default() }
}

/// Runs `f` on a machine.
fn on<T>(
    (_, symbols, isf): &(&str, Isf, kd_fake::isf::Isf),
    seed: u64,
    mutation: Option<Mutation>,
    f: impl FnOnce(&Kernel<'_>, &kernel::Truth) -> T,
) -> T {
    let (machine, truth) = kernel::seeded(isf, seed, &options(mutation)).expect("a machine");
    let memory = Machine(&machine, Cell::default());
    let facts = machine.facts();
    let kernel = Kernel {
        memory: &memory,
        symbols,
        base: facts.kernel_base,
        pointer_size: isf.machine.pointer() as u8,
        build: facts.build,
    };
    f(&kernel, &truth)
}

fn check(kernel: &Kernel<'_>, requests: u64) -> SelfCheck {
    let mut check = SelfCheck::new(requests);
    loop {
        match check.step(kernel) {
            Ok(true) => {}
            Ok(false) => return check,
            Err(error) => panic!(
                "{error} after {:?} of {requests}: {:?}",
                check.spent(),
                check.parts.iter().map(describe).collect::<Vec<_>>()
            ),
        }
    }
}

fn describe(part: &Part) -> String {
    let differing: Vec<String> = part.checks.iter().filter(|check| !check.ok).map(|check| check.to_string()).collect();
    let missing: Vec<&str> = part.missing.iter().take(3).map(|missing| missing.what.as_str()).collect();
    format!("{}: {}; {differing:?} {:?} {missing:?}", part.subject, part.state().name(), part.limits)
}

#[test]
fn an_undamaged_machine_balances() {
    for table in tables() {
        for seed in [1, 7] {
            on(&table, seed, None, |kernel, truth| {
                let check = check(kernel, 1 << 20);
                for part in &check.parts {
                    println!("{} {} seed {seed}: {}", table.0, truth.build, describe(part));
                }
                let differs: Vec<String> =
                    check.parts.iter().filter(|part| part.state() == State::Differs).map(describe).collect();
                assert!(differs.is_empty(), "{} {}, seed {seed}: {differs:#?}", table.0, truth.build);
                for subject in [Subject::Modules, Subject::Tags, Subject::Large, Subject::Small, Subject::Blocks] {
                    let part = check.parts.iter().find(|part| part.subject == subject).expect("a part");
                    assert_eq!(part.state(), State::Ok, "{} {}, seed {seed}: {}", table.0, truth.build, describe(part));
                }
            });
        }
    }
}

/// It asks no more than it may, and says what that was not enough for.
#[test]
fn it_costs_no_more_than_was_allowed() {
    for table in tables() {
        for requests in [10, 100, 500] {
            on(&table, 1, None, |kernel, truth| {
                let check = check(kernel, requests);
                assert!(check.spent().requests <= requests, "{} {}: {:?}", table.0, truth.build, check.spent());
                assert_eq!(check.parts.len(), 7);
                for part in check.parts.iter().filter(|part| part.state() == State::Unknown) {
                    assert!(!part.limits.is_empty() || !part.missing.is_empty(), "{}", describe(part));
                }
                let differs: Vec<String> =
                    check.parts.iter().filter(|part| part.state() == State::Differs).map(describe).collect();
                assert!(differs.is_empty(), "{} {}, {requests}: {differs:#?}", table.0, truth.build);
            });
        }
    }
}

/// A list of blocks that is not the machine's, when nothing that was checked says that it cannot be trusted.
fn silently_wrong(kernel: &Kernel<'_>, truth: &kernel::Truth) -> Option<String> {
    let mut wanted: BTreeSet<(u64, u32)> =
        truth.large.iter().map(|block| (block.address, block.tag & 0x7fff_ffff)).collect();
    let live = |block: &&kernel::SmallBlock| block.state == SmallState::Live && block.residence != Residence::PagedOut;
    wanted.extend(truth.small.iter().filter(live).map(|block| (block.address, block.tag & 0x7fff_ffff)));
    let large = big_pages::read(kernel, &|_| true).ok()?;
    let small = small_blocks::find(kernel, &|_| true, Kinds::ALL, Limits::default()).ok()?;
    let mut found: BTreeSet<(u64, u32)> =
        large.blocks.iter().filter(|page| !page.free).map(|page| (page.address, page.tag.key())).collect();
    let allocated = small.blocks.iter().filter(|block| block.state == BlockState::Allocated);
    found.extend(allocated.map(|block| (block.address, block.tag.key())));
    if found == wanted || !large.notes.is_complete() || !small.notes.is_complete() {
        return None;
    }
    let check = check(kernel, 1 << 20);
    if check.parts.iter().any(|part| !part.is_sound()) {
        return None;
    }
    let missing: Vec<_> = wanted.difference(&found).take(3).collect();
    let extra: Vec<_> = found.difference(&wanted).take(3).collect();
    Some(format!("missing {missing:x?}, extra {extra:x?}: {:?}", check.parts.iter().map(describe).collect::<Vec<_>>()))
}

/// The names of those parts that differ.
fn differing(kernel: &Kernel<'_>) -> Vec<Subject> {
    let check = check(kernel, 1 << 20);
    check.parts.iter().filter(|part| part.state() == State::Differs).map(|part| part.subject).collect()
}

/// Each rule that is broken on purpose is named on some machine that has it, or does no harm; and none of them makes a
/// list of blocks wrong without a word.
#[test]
fn every_broken_rule_is_named() {
    let tables = tables();
    // These the decoders read either way, and what is found is right.
    let harmless = [Mutation::VsNoSpareUnit, Mutation::LfhOtherBits, Mutation::NeverUsed];
    let mut unnamed = Vec::new();
    for mutation in Mutation::rules() {
        let mut named = Vec::new();
        for table in &tables {
            on(table, 3, Some(mutation), |kernel, truth| {
                let differing = differing(kernel);
                println!("{mutation} on {} {}: {differing:?}", table.0, truth.build);
                named.extend(differing);
                let wrong = silently_wrong(kernel, truth);
                assert_eq!(wrong, None, "{mutation} on {} {}", table.0, truth.build);
            });
        }
        unnamed.extend(named.is_empty().then_some(mutation));
    }
    assert_eq!(unnamed, harmless);
}

/// Symbols that are wrong about a member of a pool type: no list of blocks is wrong without a word.
/// KDPOOL_MUTATIONS sets how many are tried.
#[test]
fn wrong_layouts_are_not_believed() {
    let tables = tables();
    let count = std::env::var("KDPOOL_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(40);
    let mut wrong = Vec::new();
    for number in 0..count {
        let table = &tables[number as usize % tables.len()];
        on(table, 5, Some(Mutation::Layout(number)), |kernel, truth| {
            if let Some(why) = silently_wrong(kernel, truth) {
                let (_, what) = kernel::mutated_layout(&table.2, number);
                wrong.push(format!("{} {}, {number} ({what}): {why}", table.0, truth.build));
            }
        });
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
}
