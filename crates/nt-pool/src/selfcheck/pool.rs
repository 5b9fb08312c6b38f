//! The pool itself: large allocations, what holds small blocks, and both against the counters of their tags.

use std::collections::{BTreeMap, BTreeSet};

use nt_memory::{PAGE_SIZE, Through};

use super::{Part, SelfCheck, Subject, sample, words};
use crate::allowance::Allowance;
use crate::big_pages::{self, BigPage};
use crate::checks::{Book, Books, Check};
use crate::readings::Readings;
use crate::segment_heap;
use crate::small_blocks::{BlockKind, BlockState, Blocks, Cost, Kinds, Limits, Plan, SmallBlock, requests};
use crate::tags::{self, TagUsage};
use crate::{Kernel, Lack, PoolError, Tag};

/// All three parts, of one stop: blocks and counters move together.
pub(super) fn pool(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let large = large(check, kernel)?;
    let whole = large.complete.then_some(large.blocks.as_slice());
    match (whole, small(check, kernel, whole)?) {
        (Some(whole), Some(small)) => all_tags(check, kernel, whole, &small),
        _ => some_tags(check, kernel, &large.blocks),
    }
}

/// Large allocations, all of them or those at the table's start.
struct Large {
    blocks: Vec<BigPage>,
    complete: bool,
}

/// The table, if reading all of it leaves enough for small blocks; else its start.
fn large(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<Large, PoolError> {
    let mut part = Part::new(Subject::Large);
    let table = big_pages::table(kernel)?;
    let cost = requests(kernel.memory, kernel.memory.unread(table.start, table.end.wrapping_sub(table.start)));
    // Without it the pages of the classic pool mean nothing; of a segment heap a few subsegments do.
    let most = if segment_heap::is_segment_heap(kernel)? { check.left(kernel) / 2 } else { check.left(kernel) / 4 * 3 };
    if cost > most {
        let (found, read) = big_pages::sample(kernel, check.left(kernel) / 8)?;
        part.lacks(&found.notes);
        part.checks.extend(found.checks);
        check.readings.merge(&Readings { large_hash: found.hash, ..Readings::default() });
        part.limits.push(format!("the table's first {read} entries were read; all of it costs {cost} requests"));
        check.parts.push(part);
        return Ok(Large { blocks: found.blocks, complete: false });
    }
    let found = big_pages::read(kernel, &|_| true)?;
    part.lacks(&found.notes);
    part.checks.extend(found.checks.iter().copied());
    check.readings.merge(&Readings { large_hash: found.hash, ..Readings::default() });
    let complete = found.notes.is_complete();
    check.parts.push(part);
    Ok(Large { blocks: found.blocks, complete })
}

/// What holds small blocks, as much of it as three quarters of what is left can be spent on.
fn small(check: &mut SelfCheck, kernel: &Kernel<'_>, large: Option<&[BigPage]>) -> Result<Option<Blocks>, PoolError> {
    let mut part = Part::new(Subject::Small);
    // Without the table of large allocations their contents cannot be told from small blocks.
    if large.is_none() && !segment_heap::is_segment_heap(kernel)? {
        part.limits.push("without the table of large allocations pages of small blocks are not known".into());
        check.parts.push(part);
        return Ok(None);
    }
    let plan = Plan::within(kernel, Kinds::ALL, check.left(kernel) / 4)?;
    check.words = words::of(kernel, plan.heaps())?;
    let (found, whole) = walked(check, kernel, &plan, large, &mut part)?;
    part.lacks(&found.notes);
    part.missing.retain(|missing| missing.why != Lack::Stopped);
    part.checks.extend(found.checks.iter().copied());
    check.readings.merge(&found.readings);
    part.balance(shapes(&found.blocks));
    for block in &found.blocks {
        let holder = match block.kind {
            BlockKind::Page => "page",
            BlockKind::Vs => "vs",
            BlockKind::Lfh => "lfh",
            BlockKind::Special => "special",
        };
        *check.sizes.entry((holder, block.block_size.next_power_of_two())).or_default() += 1;
    }
    let complete = found.notes.is_complete() && large.is_some() && whole;
    check.parts.push(part);
    Ok(complete.then_some(found))
}

/// The blocks of all places of the plan, or of as many as half of what is left goes for; and whether it is all.
fn walked(
    check: &SelfCheck,
    kernel: &Kernel<'_>,
    plan: &Plan,
    large: Option<&[BigPage]>,
    part: &mut Part,
) -> Result<(Blocks, bool), PoolError> {
    let left = check.left(kernel) / 2;
    let cost = plan.cost(kernel.memory, 0).requests;
    let whole = cost <= left && !plan.heaps().more && large.is_some();
    if whole || !plan.segment_heap {
        let all = plan.bytes(0);
        let bytes = if cost <= left { u64::MAX } else { all / cost.max(1) * left };
        let found = plan.find(kernel, &|_| true, large.unwrap_or_default(), Limits { bytes, ..Limits::default() })?;
        if found.stopped.is_some() {
            part.limits.push(format!("{} KB of {} KB of pool were read", found.read >> 10, all >> 10));
        }
        let whole = found.stopped.is_none();
        return Ok((found, whole));
    }
    // Freed blocks wait in lists, which cost a request an element: as many as a quarter is left for.
    let memory = Through(Allowance::new(kernel.memory, Cost { requests: left / 2 * 3, bytes: u64::MAX }));
    let sample = sample::look(&Kernel { memory: &memory, ..*kernel }, plan, large, left)?;
    let (some, all) = sample.areas;
    let of = if plan.heaps().more { "that some segments of each heap have" } else { "that there are" };
    let first = sample::FIRST >> 10;
    part.limits.push(format!(
        "the first {first} KB of {some} subsegments were read, of {all} {of}; more cost more than it may"
    ));
    Ok((sample.found, false))
}

/// No two small blocks share a byte.
fn shapes(blocks: &[SmallBlock]) -> Books {
    let mut books = Books::default();
    let in_order = blocks.iter().filter(|block| block.kind != BlockKind::Special);
    let mut before: Option<&SmallBlock> = None;
    for block in in_order {
        if let Some(before) = before {
            let apart = before.header.saturating_add(before.block_size) <= block.header;
            books.hold(Book::BlocksApart, apart, block.header);
        }
        before = Some(block);
    }
    books
}

/// Blocks and bytes of a tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    blocks: u64,
    bytes: u64,
    /// Small blocks of a segment heap.
    in_heaps: u64,
    /// Of special pool, which not every version counts.
    special: (u64, u64),
}

/// Every tag's blocks against its counters.
fn all_tags(check: &mut SelfCheck, kernel: &Kernel<'_>, large: &[BigPage], small: &Blocks) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Blocks);
    let counted = tags::read(kernel, &|_| true)?;
    part.lacks(&counted.notes);
    if counted.notes.is_complete() {
        let found = sums(large, &small.blocks);
        part.checks.extend(compare(&counted.tags, &found));
    }
    check.parts.push(part);
    Ok(())
}

fn sums(large: &[BigPage], small: &[SmallBlock]) -> BTreeMap<(u32, bool), Sum> {
    let mut sums: BTreeMap<(u32, bool), Sum> = BTreeMap::new();
    for page in large.iter().filter(|page| !page.free) {
        let sum = sums.entry((page.tag.key(), page.kind.is_paged())).or_default();
        sum.blocks += 1;
        sum.bytes += page.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(page.size);
    }
    for block in small.iter().filter(|block| block.state == BlockState::Allocated) {
        let sum = sums.entry((block.tag.key(), block.pool.is_paged())).or_default();
        match block.kind {
            BlockKind::Special => sum.special = (sum.special.0 + 1, sum.special.1 + block.size),
            _ => {
                sum.blocks += 1;
                sum.bytes += block.block_size;
                sum.in_heaps += u64::from(block.kind != BlockKind::Page);
            }
        }
    }
    sums
}

/// Before a block of a segment heap that is aligned for its caller lies another header: that much is counted as well, and
/// is no part of the block.
const ALIGNMENT: u64 = 0x40;

/// The row of all tags that found none.
const OVERFLOW: Tag = Tag(*b"Ovfl");

/// Both books of all tags together.
fn compare(counted: &[TagUsage], found: &BTreeMap<(u32, bool), Sum>) -> Vec<Check> {
    let mut books = Books::default();
    let usage = |tag: &TagUsage| [((tag.tag.key(), false), tag.nonpaged), ((tag.tag.key(), true), tag.paged)];
    // What found no row when the tables were full is counted together: which tags that were is not known.
    let (overflow, rows): (Vec<&TagUsage>, Vec<&TagUsage>) = counted.iter().partition(|tag| tag.tag == OVERFLOW);
    let overflowed = overflow.iter().any(|tag| tag.nonpaged.allocs != 0 || tag.paged.allocs != 0);
    let known: BTreeSet<u32> = rows.iter().map(|tag| tag.tag.key()).collect();
    for (_, sum) in found.iter().filter(|((key, _), _)| !overflowed && !known.contains(key)) {
        books.count(Book::TagCounters, 0, sum.blocks, 0);
    }
    for (key, usage) in rows.into_iter().flat_map(usage) {
        let sum = found.get(&key).copied().unwrap_or_default();
        let counted = u64::try_from(usage.diff).unwrap_or(0);
        let most = sum.blocks + sum.special.0;
        let agrees = (sum.blocks..=most).contains(&counted);
        books.count(Book::TagCounters, counted, if agrees { counted } else { most }, 0);
        // How many bytes a block of special pool counts differs between versions.
        if sum.special.0 == 0 && agrees {
            let before = usage.bytes.saturating_sub(sum.bytes);
            let aligned = before % 16 == 0 && before <= sum.in_heaps * ALIGNMENT;
            books.count(
                Book::TagBytes,
                usage.bytes,
                if aligned { usage.bytes.min(sum.bytes + before) } else { sum.bytes },
                0,
            );
        }
    }
    books.checks()
}

/// So many tags are looked for where not all of them can be.
const SOME: usize = 8;

/// Large allocations of one tag that are looked for; each costs some requests.
const MOST: i64 = 64;

/// Tags of the largest allocations of those that are known: where their large allocations are all that they have, both
/// books must agree; and no tag has more of them than blocks.
fn some_tags(check: &mut SelfCheck, kernel: &Kernel<'_>, known: &[BigPage]) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Blocks);
    let average = |tag: &TagUsage| {
        let blocks = tag.nonpaged.diff.max(0).saturating_add(tag.paged.diff.max(0)) as u64;
        tag.nonpaged.bytes.saturating_add(tag.paged.bytes) / blocks.max(1)
    };
    let mut known: Vec<&BigPage> = known.iter().filter(|page| !page.free && page.tag != OVERFLOW).collect();
    known.sort_by_key(|page| std::cmp::Reverse(page.size));
    let mut seen = BTreeSet::new();
    known.retain(|page| seen.insert(page.tag.key()));
    let (mut books, mut compared) = (Books::default(), 0);
    for page in known.into_iter().take(SOME) {
        if check.left(kernel) < 100 {
            break;
        }
        let counted = tags::read_one(kernel, page.tag)?;
        part.lacks(&counted.notes);
        let Some(usage) = counted.tags.first().filter(|tag| average(tag) >= PAGE_SIZE) else { continue };
        if usage.nonpaged.diff.saturating_add(usage.paged.diff) > MOST || check.left(kernel) < 100 {
            continue;
        }
        let found = big_pages::find(kernel, usage.tag)?;
        part.lacks(&found.notes);
        let found = sums(&found.blocks, &[]);
        for (paged, usage, key) in [(false, usage.nonpaged, usage.tag.key()), (true, usage.paged, usage.tag.key())] {
            let sum = found.get(&(key, paged)).copied().unwrap_or_default();
            let counted = u64::try_from(usage.diff).unwrap_or(0);
            // Fewer: the others are small.
            if sum.blocks < counted {
                continue;
            }
            compared += 1;
            books.count(Book::TagCounters, counted, sum.blocks, 0);
            if sum.blocks == counted {
                books.count(Book::TagBytes, usage.bytes, sum.bytes, 0);
            }
        }
    }
    part.limits.push(format!("{compared} pools of tags were compared; all of them cost more than it may"));
    part.balance(books);
    check.parts.push(part);
    Ok(())
}
