//! The self-check on machines that are as they should be: all books balance, and it costs no more than it may. Machines of
//! which something was broken on purpose are in mutations.rs.

mod machine;

use kd_fake::kernel::{Mutation, SeededOptions, Truth};
use machine::{Machine, Table, carried, describe, on, self_check};
use nt_pool::Kernel;
use nt_pool::checks::Book;
use nt_pool::selfcheck::{Part, SelfCheck, State, Subject};
use nt_pool::small_blocks::{Kinds, Plan};

/// Runs `f` on a machine whose tags count just its blocks.
fn balanced(table: &Table, seed: u64, f: impl FnOnce(&Kernel<'_>, &Truth)) {
    let options = SeededOptions { balanced: true, small_operations: 1500, operations: 500, ..SeededOptions::default() };
    on(&table.symbols, &table.isf, seed, &options, |kernel, truth, _| f(kernel, truth));
}

#[test]
fn an_undamaged_machine_balances() {
    for table in carried() {
        for seed in [1, 7] {
            balanced(&table, seed, |kernel, truth| {
                let check = self_check(kernel, 1 << 20);
                for part in &check.parts {
                    println!("{} {} seed {seed}: {}", table.name, truth.build, describe(part));
                }
                let differs: Vec<String> =
                    check.parts.iter().filter(|part| part.state() == State::Differs).map(describe).collect();
                assert!(differs.is_empty(), "{} {}, seed {seed}: {differs:#?}", table.name, truth.build);
                for subject in [Subject::Modules, Subject::Tags, Subject::Large, Subject::Small, Subject::Blocks] {
                    let part = check.parts.iter().find(|part| part.subject == subject).expect("a part");
                    assert_eq!(
                        part.state(),
                        State::Ok,
                        "{} {}, seed {seed}: {}",
                        table.name,
                        truth.build,
                        describe(part)
                    );
                }
            });
        }
    }
}

/// What tags count is held against the pages of both pools, where the kernel says how many those are; elsewhere the part
/// says what is not known.
#[test]
fn tags_are_held_against_the_pages_of_pool() {
    let mut held = Vec::new();
    for table in carried() {
        balanced(&table, 1, |kernel, _| {
            let check = self_check(kernel, 1 << 20);
            let part = check.parts.iter().find(|part| part.subject == Subject::Tags).expect("a part");
            for (book, pool) in [(Book::NonPagedTotal, " nonpaged"), (Book::PagedTotal, " paged")] {
                let known = part.checks.iter().filter(|check| check.name == book).count();
                let unknown = part.limits.iter().filter(|limit| limit.contains(pool)).count();
                assert_eq!(known + unknown, 1, "{}: {}", table.name, describe(part));
                held.extend((known == 1).then_some((table.name, book)));
            }
        });
    }
    for book in [Book::NonPagedTotal, Book::PagedTotal] {
        assert!(held.contains(&("x64-heap", book)), "{held:?}");
    }
}

/// A count of pages that is too small for what the tags have is noticed.
#[test]
fn fewer_pages_than_the_tags_have_differ() {
    let table = carried().into_iter().find(|table| table.name == "x64-heap").unwrap();
    let options = SeededOptions { balanced: true, ..SeededOptions::default() };
    let (mut machine, _) = kd_fake::kernel::seeded(&table.isf, 1, &options).unwrap();
    let state = machine.facts().kernel_base + table.isf.symbol("MiState").unwrap();
    let inside = |path| state + table.isf.offset("_MI_SYSTEM_INFORMATION", path).unwrap();
    for place in [inside("Pools.AllocatedNonPagedPool"), inside("Vs.PagedPoolInfo.AllocatedPagedPool")] {
        assert_eq!(machine.write_virtual(place, &1u64.to_le_bytes()), 8);
    }
    let memory = Machine::new(&machine);
    let kernel = Kernel::new(&memory, &table.symbols, machine.facts().kernel_base, 8, machine.facts().build);
    let check = self_check(&kernel, 1 << 20);
    let differ: Vec<Book> =
        check.parts.iter().flat_map(|part| &part.checks).filter(|check| !check.ok).map(|check| check.name).collect();
    assert_eq!(differ, [Book::NonPagedTotal, Book::PagedTotal]);
}

/// A pool that is larger than the allowance leaves what is cheap its share.
#[test]
fn cheap_parts_are_checked_before_the_pool() {
    let mut seen = 0;
    for table in carried() {
        balanced(&table, 1, |kernel, truth| {
            let (whole, some) = (self_check(kernel, 1 << 20), self_check(kernel, 500));
            for subject in [Subject::Verifier, Subject::Log] {
                let state =
                    |check: &SelfCheck| check.parts.iter().find(|part| part.subject == subject).unwrap().state();
                assert_eq!(state(&some), state(&whole), "{} {}: {subject}", table.name, truth.build);
                seen += usize::from(state(&whole) == State::Ok);
            }
        });
    }
    assert!(seen > 0);
}

/// It asks no more than it may, and says what that was not enough for.
#[test]
fn it_costs_no_more_than_was_allowed() {
    for table in carried() {
        for requests in [10, 100, 500] {
            balanced(&table, 1, |kernel, truth| {
                let check = self_check(kernel, requests);
                assert!(check.spent().requests <= requests, "{} {}: {:?}", table.name, truth.build, check.spent());
                assert_eq!(check.parts.len(), 7);
                for part in check.parts.iter().filter(|part| part.state() == State::Unknown) {
                    assert!(!part.limits.is_empty() || !part.missing.is_empty(), "{}", describe(part));
                }
                let differs: Vec<String> =
                    check.parts.iter().filter(|part| part.state() == State::Differs).map(describe).collect();
                assert!(differs.is_empty(), "{} {}, {requests}: {differs:#?}", table.name, truth.build);
            });
        }
    }
}

/// Of pool that is larger than it may read it looks at some of each kind, and notices there what is wrong everywhere.
#[test]
fn a_heap_larger_than_the_allowance_is_sampled() {
    let machine = |table: &Table, mutation: Option<Mutation>, f: &dyn Fn(&Part)| {
        let options = SeededOptions {
            balanced: true,
            small_operations: 40_000,
            small_blocks: 4_000,
            small_sizes: Some((1, 0xf80)),
            operations: 500,
            mutation,
            ..SeededOptions::default()
        };
        on(&table.symbols, &table.isf, 3, &options, |kernel, _, _| {
            let check = self_check(kernel, 500);
            assert!(check.spent().requests <= 500, "{:?}", check.spent());
            f(check.parts.iter().find(|part| part.subject == Subject::Small).expect("a part"));
        });
    };
    for table in carried().iter().filter(|table| ["x64-heap", "x64-26100"].contains(&table.name)) {
        machine(table, None, &|part| {
            assert_eq!(part.state(), State::Ok, "{}: {}", table.name, describe(part));
            assert!(part.limits[0].contains("subsegments were read"), "{}", describe(part));
            for book in [Book::SegmentSignatures, Book::VsChunkSizes, Book::VsPoolHeaders, Book::LfhBlocksInUse] {
                let seen = part.checks.iter().any(|check| check.name == book && check.expected > 0);
                assert!(seen, "{}, {book:?}: {}", table.name, describe(part));
            }
        });
        for mutation in [
            Mutation::SegmentSignature,
            Mutation::VsSignature,
            Mutation::VsKey,
            Mutation::HeaderSize,
            Mutation::LfhShiftedBitmap,
            Mutation::LfhKey,
        ] {
            machine(table, Some(mutation), &|part| {
                assert_eq!(part.state(), State::Differs, "{}, {mutation:?}: {}", table.name, describe(part));
            });
        }
    }
}

/// The same of a heap of a gigabyte: `cargo test -p nt-pool --test selfcheck -- --ignored --nocapture` prints what it costs.
#[test]
#[ignore = "its machines take a gigabyte of memory each, and half a minute"]
fn a_heap_of_a_gigabyte_costs_no_more_than_was_allowed() {
    let options = SeededOptions {
        balanced: true,
        small_operations: 12 * 420_000,
        small_blocks: 280_000,
        small_sizes: Some((1, 0xf80)),
        ..SeededOptions::default()
    };
    for table in carried().iter().filter(|table| ["x64-heap", "x64-26100"].contains(&table.name)) {
        on(&table.symbols, &table.isf, 1, &options, |kernel, truth, _| {
            let pool = Plan::read(kernel, Kinds::ALL).expect("a plan").bytes(0);
            for requests in [500, 20_000, 1 << 30] {
                let check = self_check(kernel, requests);
                let spent = check.spent();
                println!("{} ({}), {pool:#x} bytes, {requests} allowed: {spent:?}", table.name, truth.build);
                check.parts.iter().for_each(|part| println!("  {}", describe(part)));
                assert!(spent.requests <= requests);
                for subject in [Subject::Large, Subject::Small] {
                    let part = check.parts.iter().find(|part| part.subject == subject).expect("a part");
                    assert_eq!(part.state(), State::Ok, "{}", describe(part));
                }
            }
        });
    }
}
