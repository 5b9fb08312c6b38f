//! Machines that break a rule: they can be built, and this crate's own reader, which knows the rules, does not get through
//! them.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, Mutation, SeededOptions, SmallState};

use crate::compare;

fn table(name: &str) -> Isf {
    Isf::carried(name).unwrap().unwrap()
}

fn gets_through(isf: &Isf, mutation: Option<Mutation>) -> bool {
    let options = SeededOptions { mutation, ..SeededOptions::default() };
    let (kernel, truth) = kernel::seeded(isf, 7, &options).unwrap();
    panic::catch_unwind(AssertUnwindSafe(|| compare(&kernel, isf, &truth))).is_ok()
}

#[test]
fn every_broken_rule_shows() {
    let isf = table("x64-26100");
    assert!(gets_through(&isf, None));
    for mutation in Mutation::rules() {
        assert_eq!(mutation.to_string().parse(), Ok(mutation));
        // The list of modules is read forwards here.
        let shows = mutation != Mutation::ModuleLinks;
        assert_eq!(gets_through(&isf, Some(mutation)), !shows, "{mutation}");
    }
    assert!("no-such-rule".parse::<Mutation>().unwrap_err().contains("layout:NUMBER"));
    assert_eq!("layout:12".parse(), Ok(Mutation::Layout(12)));
}

#[test]
fn any_layout_can_be_built() {
    for name in ["x64-26100", "x64-heap", "x86", "arm64-26100"] {
        let isf = table(name);
        for number in 0..60 {
            let (changed, what) = kernel::mutated_layout(&isf, number);
            assert_eq!(kernel::mutated_layout(&isf, number).1, what);
            let differs = changed.user_types.iter().filter(|(name, ty)| {
                let fields = |ty: &kd_fake::isf::UserType| format!("{:?}", ty.fields);
                fields(ty) != fields(&isf.user_types[*name])
            });
            assert_eq!(differs.count(), 1, "{what}");
            let options = SeededOptions {
                mutation: Some(Mutation::Layout(number)),
                operations: 200,
                small_operations: 800,
                ..SeededOptions::default()
            };
            kernel::seeded(&isf, number, &options).unwrap();
        }
    }
}

#[test]
fn balanced_books_count_the_blocks_and_nothing_else() {
    for name in ["x64-26100", "x64-heap", "x86", "arm64"] {
        let options = SeededOptions { balanced: true, ..SeededOptions::default() };
        let (_, truth) = kernel::seeded(&table(name), 3, &options).unwrap();
        let mut blocks: BTreeMap<u32, [(u64, u64); 2]> = BTreeMap::new();
        let mut count = |tag, kind, bytes| {
            let pool = matches!(kind, kernel::PoolKind::Paged | kernel::PoolKind::PagedSession);
            let (number, sum) = &mut blocks.entry(tag).or_default()[usize::from(pool)];
            (*number, *sum) = (*number + 1, *sum + bytes);
        };
        for life in &truth.large {
            count(life.tag, life.kind, life.bytes.next_multiple_of(0x1000));
        }
        for block in truth.small.iter().filter(|block| block.state == SmallState::Live) {
            count(block.tag, block.kind, block.outer.map_or(block.bytes, |outer| outer.bytes));
        }
        let live = |usage: kernel::Usage| (usage.allocs.wrapping_sub(usage.frees), usage.bytes);
        let counted: BTreeMap<u32, [(u64, u64); 2]> = truth
            .tags
            .iter()
            .map(|tag| (tag.tag, [live(tag.nonpaged), live(tag.paged)]))
            .filter(|(_, pools)| *pools != [(0, 0); 2])
            .collect();
        assert_eq!(counted, blocks, "{name}");
    }
}
