//! `!pooltop [n] [-by bytes|count|growth] [-small] [-watch]`: the pool on one screen.
//!
//! Counts come from the tag tables and the table of large allocations; nothing of the pool itself is read. `-small` walks
//! the pool, says before what that costs, and tells what holds the small blocks and how much of it is unused.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use nt_memory::{PAGE_SIZE, Spent};
use nt_pool::big_pages::BigPage;
use nt_pool::checks::{Book, Check};
use nt_pool::small_blocks::{BlockKind, BlockState, Kinds, Limits, Plan};
use nt_pool::{Notes, PoolKind, Tag, big_pages, tags};
use schemars::JsonSchema;
use serde::Serialize;

use super::balance::Balance;
use super::cost::{Estimate, LIMIT, size, time};
use super::pool_watch::{self, Order, Terms};
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::duration;
use crate::schema::ResultShape;
use crate::shell::Drive;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!pooltop"],
    usage: "!pooltop [n] [-by bytes|count|growth] [-small [-limit MB]] [-watch [-every T] [-times N] [-for T]]",
    help: "the pool on one screen: totals, large allocations, the biggest tags and block sizes",
    details: "n tags and sizes are shown, 10 (hexadecimal) unless another number is given, by bytes or by allocations in \
              use, or by what\ntheir bytes have grown by since the last !pooltop of this session. Slack is what large \
              allocations leave unused of their\nlast pages. -small reads the pool too (no more than 256 MB, -limit), \
              after a line that says what that costs, and tells\nhow much is in VS and LFH subsegments, in pages of \
              chained headers and in special pool, what of that is unused, and\nwhich sizes small blocks have.\n-watch is poolmon: the tags again and again with what changed, every 5 s, until q or Ctrl+C (-every, -times, -for; \
              -by\nallocs, frees and tag too). It reads the counters only, and the target runs in between. Keys sort it while \
              it runs:\nb bytes, a allocs, f frees, d diff, g growth, t tag; p shows both pools or one.",
    results: &[
        ResultShape::of::<PoolTop>("pooltop"),
        ResultShape::of::<pool_watch::Screen>("pooltop-watch"),
        ResultShape::NOTHING,
    ],
    action: Action::Drive(run),
};

#[derive(Debug, JsonSchema, Serialize)]
struct PoolTop {
    nonpaged: Totals,
    paged: Totals,
    tags: Vec<Row>,
    /// Block sizes, most bytes first: of large allocations, and with `-small` of all blocks.
    sizes: Vec<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    small: Option<Small>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    #[serde(skip)]
    width: Width,
}

/// Books of what the screen shows.
const SHOWN: [Book; 4] = [Book::TagRows, Book::NonPagedTotal, Book::LargeInUse, Book::LargeCounted];

#[derive(Debug, Default, Clone, Copy, JsonSchema, Serialize)]
struct Totals {
    bytes: u64,
    count: i64,
    large_bytes: u64,
    large_count: u64,
    /// What large allocations leave unused of their last pages.
    large_slack: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Row {
    tag: String,
    bytes: u64,
    count: i64,
    /// Bytes per allocation.
    average: u64,
    large_bytes: u64,
    description: String,
    /// Of all bytes in use, in percent.
    share: u64,
    /// Bytes more than at the last `!pooltop`, if there was one.
    growth: Option<i64>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Size {
    size: u64,
    count: u64,
    bytes: u64,
    kind: &'static str,
}

/// What a walk through the pool found.
#[derive(Debug, JsonSchema, Serialize)]
struct Small {
    estimate: Estimate,
    /// Where the walk was stopped, if it was: sums are of what lies below.
    stopped: Option<Hex>,
    carriers: Vec<Carrier>,
}

/// Small blocks of one pool that are kept in one way.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Carrier {
    /// `page`, `vs`, `lfh`, `special`.
    kind: &'static str,
    pool: &'static str,
    count: u64,
    /// With their headers.
    bytes: u64,
    /// Freed blocks that are kept for the next allocation.
    cached_count: u64,
    cached_bytes: u64,
    /// Of the pages or subsegments.
    held: u64,
    /// Of that, what no block in use takes.
    slack: u64,
}

struct Arguments {
    count: Option<u64>,
    order: Order,
    watch: bool,
    every: Option<Duration>,
    times: Option<u32>,
    run_for: Option<Duration>,
    small: bool,
    /// Bytes.
    limit: u64,
}

fn arguments(text: &str) -> Result<Arguments, CommandError> {
    let mut asked = Arguments {
        count: None,
        order: Order::Bytes,
        watch: false,
        every: None,
        times: None,
        run_for: None,
        small: false,
        limit: LIMIT << 20,
    };
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "-by" => match words.next() {
                Some("bytes") => asked.order = Order::Bytes,
                Some("count") => asked.order = Order::Count,
                Some("growth") => asked.order = Order::Growth,
                Some("allocs") => asked.order = Order::Allocs,
                Some("frees") => asked.order = Order::Frees,
                Some("tag") => asked.order = Order::Tag,
                _ => return Err(usage(&INFO, "-by bytes, count or growth; with -watch allocs, frees or tag too")),
            },
            "-watch" => asked.watch = true,
            "-every" | "-for" => {
                let time = words.next().and_then(duration);
                let time = time.ok_or_else(|| usage(&INFO, format!("{word} needs a time (5s, 500ms, 10m)")))?;
                *if word == "-every" { &mut asked.every } else { &mut asked.run_for } = Some(time);
            }
            "-times" => {
                let times = words.next().and_then(|times| times.parse().ok()).filter(|times| *times > 0);
                asked.times = Some(times.ok_or_else(|| usage(&INFO, "-times needs a number above 0"))?);
            }
            "-small" => asked.small = true,
            "-limit" => {
                let limit = words.next().and_then(plain_number);
                let limit = limit.ok_or_else(|| usage(&INFO, "-limit needs a number of megabytes"))?;
                asked.limit = limit.saturating_mul(1 << 20);
            }
            word if word.starts_with('-') => return Err(usage(&INFO, format!("unknown option '{word}'"))),
            word => {
                let count = plain_number(word).ok_or_else(|| usage(&INFO, format!("'{word}' is no number of tags")))?;
                asked.count = Some(count);
            }
        }
    }
    let only_watched = asked.every.or(asked.run_for).is_some()
        || asked.times.is_some()
        || matches!(asked.order, Order::Allocs | Order::Frees | Order::Tag);
    if only_watched && !asked.watch {
        return Err(usage(&INFO, "-every, -times, -for and -by allocs, frees or tag are for -watch"));
    }
    if asked.watch && asked.small {
        return Err(usage(&INFO, "-watch reads counters only: not with -small"));
    }
    Ok(asked)
}

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let asked = arguments(drive.arguments)?;
    if asked.watch {
        let rows = asked.count.map_or(pool_watch::ROWS, |count| usize::try_from(count).unwrap_or(usize::MAX));
        let every = asked.every.unwrap_or(pool_watch::EVERY);
        let Arguments { order, times, run_for, .. } = asked;
        return pool_watch::run(drive, Terms { rows, order, every, times, run_for });
    }
    let Arguments { order, small, limit, .. } = asked;
    let count = asked.count.unwrap_or(0x10);
    let since = drive.spent();
    let (counted, large) = drive.with(|context| {
        context.pool(|kernel| Ok((tags::read(kernel, &|_| true)?, big_pages::read(kernel, &|_| true)?)))
    })?;
    let mut checks = counted.checks.clone();
    checks.extend(large.checks.iter().copied().chain(tags::large_counted(&counted, &large.blocks)));
    let mut notes = counted.notes;
    notes.extend(large.notes);
    let (mut nonpaged, mut paged) = (Totals::default(), Totals::default());
    let mut large_of = HashMap::new();
    let mut sizes: BTreeMap<(u64, &str), u64> = BTreeMap::new();
    for block in large.blocks.iter().filter(|block| !block.free) {
        let totals = if block.kind.is_paged() { &mut paged } else { &mut nonpaged };
        totals.large_bytes = totals.large_bytes.saturating_add(block.size);
        totals.large_count += 1;
        let pages = block.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(block.size);
        totals.large_slack = totals.large_slack.saturating_add(pages - block.size);
        let bytes: &mut u64 = large_of.entry(block.tag).or_default();
        *bytes = bytes.saturating_add(block.size);
        *sizes.entry((block.size, "large")).or_default() += 1;
    }
    let small = match small {
        true => {
            let spent = drive.spent().since(since);
            let walked = walk(drive, &large.blocks, limit, spent, &mut sizes)?;
            let (small, found) = walked;
            notes.extend(found.notes);
            checks.extend(found.checks);
            Some(small)
        }
        false => None,
    };
    let mut rows = Vec::new();
    for usage in &counted.tags {
        for (totals, usage) in [(&mut nonpaged, usage.nonpaged), (&mut paged, usage.paged)] {
            totals.bytes = totals.bytes.saturating_add(usage.bytes);
            totals.count = totals.count.saturating_add(usage.diff);
        }
        let bytes = usage.nonpaged.bytes.saturating_add(usage.paged.bytes);
        let count = usage.nonpaged.diff.saturating_add(usage.paged.diff);
        rows.push((usage.tag, bytes, count));
    }
    let all = nonpaged.bytes.saturating_add(paged.bytes);
    let now: HashMap<Tag, u64> = rows.iter().map(|(tag, bytes, _)| (*tag, *bytes)).collect();
    let before = drive.with(|context| context.session.pool_counts.replace(now));
    let growth = |tag: Tag, bytes: u64| {
        let before = before.as_ref()?.get(&tag).copied().unwrap_or(0);
        Some(bytes.wrapping_sub(before) as i64)
    };
    let mut remarks = Vec::new();
    if order == Order::Growth && before.is_none() {
        remarks.push("there is no earlier !pooltop to compare with; let the target run and ask again".into());
    }
    rows.sort_by_key(|(tag, bytes, count)| {
        Reverse(match order {
            Order::Count => i128::from(*count),
            Order::Growth if before.is_some() => i128::from(growth(*tag, *bytes).unwrap_or(0)),
            _ => i128::from(*bytes),
        })
    });
    // A tag with nothing in use is nobody's trouble, unless it had something before.
    rows.retain(|(tag, bytes, count)| {
        (*bytes, *count) != (0, 0) || growth(*tag, *bytes).is_some_and(|grown| grown != 0)
    });
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    rows.truncate(count);
    let sizes =
        sizes.into_iter().map(|((size, kind), count)| Size { size, count, bytes: size.saturating_mul(count), kind });
    let mut sizes: Vec<Size> = sizes.collect();
    sizes.sort_by_key(|size| Reverse(if order == Order::Count { size.count } else { size.bytes }));
    sizes.truncate(count);
    let (descriptions, width) = drive.with(|context| {
        let tags = &context.session.pool_tags;
        (rows.iter().map(|(tag, ..)| tags.poolused(*tag)).collect::<Vec<_>>(), context.width())
    });
    let row = |((tag, bytes, count), description): ((Tag, u64, i64), String)| Row {
        tag: tag.to_string(),
        bytes,
        count,
        average: u64::try_from(count).ok().and_then(|count| bytes.checked_div(count)).unwrap_or(0),
        large_bytes: large_of.get(&tag).copied().unwrap_or(0),
        description,
        share: bytes.saturating_mul(100).checked_div(all).unwrap_or(0),
        growth: growth(tag, bytes),
    };
    let tags = rows.into_iter().zip(descriptions).map(row).collect();
    let checks = Balance::all(&checks, &SHOWN, &mut notes);
    let answer = PoolTop { nonpaged, paged, tags, sizes, small, checks, width };
    Ok(Reply { remarks, ..Reply::with_notes(answer, notes) })
}

/// What is to be known about a walk.
struct Walked {
    notes: Notes,
    checks: Vec<Check>,
}

/// Reads the pool for its small blocks; returns what holds them. `spent`: what was spent on this question.
fn walk(
    drive: &mut Drive<'_>,
    large: &[BigPage],
    limit: u64,
    spent: Spent,
    sizes: &mut BTreeMap<(u64, &'static str), u64>,
) -> Result<(Small, Walked), CommandError> {
    let (plan, expected) = drive.with(|context| {
        context.pool(|kernel| {
            let plan = Plan::read(kernel, Kinds::ALL)?;
            let expected = nt_pool::find::Estimate::new(kernel.memory, plan.cost(kernel.memory, 0), spent);
            Ok((plan, expected))
        })
    })?;
    let bytes = plan.bytes(0);
    drive.remark(&format!(
        "Reading {} of pool: about {} requests, the target stands still for about {}. Cheaper: without -small, or \
         -limit MB; Ctrl+C stops it.\n",
        size(bytes.min(limit)),
        expected.requests,
        time(expected.time)
    ));
    let limits = Limits { bytes: limit, ..Limits::default() };
    let found = drive.with(|context| context.pool(|kernel| plan.find(kernel, &|_| true, large, limits)))?;
    let mut notes = found.notes;
    if found.stopped.is_some() {
        notes.remark(format!("the pool is {}; -limit sets how much of it is read", size(bytes)));
    }
    let mut carriers: Vec<Carrier> = Vec::new();
    for (kind, pool, held) in plan.held(large) {
        carrier(&mut carriers, kind, pool).held += held;
    }
    for block in &found.blocks {
        let sum = carrier(&mut carriers, block.kind, block.pool);
        match block.state {
            BlockState::Allocated => {
                sum.count += 1;
                sum.bytes += taken(block.kind, block.size, block.block_size);
                *sizes.entry((block.size, kind_name(block.kind))).or_default() += 1;
            }
            BlockState::Cached => {
                sum.cached_count += 1;
                sum.cached_bytes += block.block_size;
            }
            BlockState::Free => {}
        }
    }
    for carrier in &mut carriers {
        carrier.slack = carrier.held.saturating_sub(carrier.bytes);
    }
    carriers.sort_by_key(|carrier| (carrier.pool, carrier.kind));
    let stopped = found.stopped.map(|at| drive.with(|context| Hex(context.width().address(at))));
    Ok((Small { estimate: expected.into(), stopped, carriers }, Walked { notes, checks: found.checks }))
}

/// Bytes that a block in use takes. One of special pool has its page to itself, and uses what was asked for.
fn taken(kind: BlockKind, size: u64, block_size: u64) -> u64 {
    if kind == BlockKind::Special { size } else { block_size }
}

fn kind_name(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Page => "page",
        BlockKind::Vs => "vs",
        BlockKind::Lfh => "lfh",
        BlockKind::Special => "special",
    }
}

fn carrier(carriers: &mut Vec<Carrier>, kind: BlockKind, pool: PoolKind) -> &mut Carrier {
    let (kind, pool) = (kind_name(kind), if pool.is_paged() { "paged" } else { "nonpaged" });
    let known = carriers.iter().position(|carrier| (carrier.kind, carrier.pool) == (kind, pool));
    let index = known.unwrap_or_else(|| {
        let (count, bytes, cached_count, cached_bytes, held, slack) = (0, 0, 0, 0, 0, 0);
        carriers.push(Carrier { kind, pool, count, bytes, cached_count, cached_bytes, held, slack });
        carriers.len() - 1
    });
    &mut carriers[index]
}

/// The width of a bar for all of the pool.
const BAR: u64 = 10;

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}

fn bar(share: u64) -> String {
    let filled = (share * BAR).div_ceil(100).min(BAR) as usize;
    format!("{:<10}", "#".repeat(filled))
}

/// As much of a tag's description as a line of the overview has room for: not the binary, which `!poolused` tells.
fn brief(description: &str) -> String {
    const MOST: usize = 30;
    let text = description.split(" , Binary: ").next().unwrap_or_default();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", text[..end].trim_end()),
        None => text.trim_end().to_owned(),
    }
}

impl Text for PoolTop {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(
            out,
            "           {:>14} {:>10} {:>14} {:>8} {:>6} {:>12}",
            "Bytes", "Allocs", "Large bytes", "Large", "", "Slack"
        )?;
        for (name, totals) in [("NonPaged", &self.nonpaged), ("Paged", &self.paged)] {
            let Totals { bytes, count, large_bytes, large_count, large_slack } = totals;
            let share = format!("({}%)", percent(*large_bytes, *bytes));
            writeln!(
                out,
                " {name:<10}{bytes:>14} {count:>10} {large_bytes:>14} {large_count:>8} {share:>6} {large_slack:>12}"
            )?;
        }
        if let Some(small) = &self.small {
            writeln!(out, "\n Small blocks      {:>14} {:>10} {:>14} {:>12}", "Bytes", "Blocks", "Held", "Unused")?;
            for carrier in &small.carriers {
                let Carrier { kind, pool, count, bytes, cached_count, cached_bytes, held, slack } = carrier;
                let pool = if *pool == "paged" { "Paged" } else { "NonPaged" };
                let name = match *kind {
                    "vs" => "VS",
                    "lfh" => "LFH",
                    "special" => "Special",
                    _ => "Pages",
                };
                let unused = format!("({}%)", percent(*slack, *held));
                write!(out, " {pool:<9}{name:<9}{bytes:>14} {count:>10} {held:>14} {slack:>12} {unused:>6}")?;
                match cached_count {
                    0 => writeln!(out)?,
                    _ => writeln!(out, "  {cached_count} freed blocks kept ({cached_bytes})")?,
                }
            }
            if let Some(at) = small.stopped {
                writeln!(out, "\n...terminating - searched pool to {}", self.width.pointer(at.0))?;
            }
        }
        let grown = if self.tags.iter().any(|row| row.growth.is_some()) { "       Growth" } else { "" };
        writeln!(out, "\n Tag  {:>14} {:>10} {:>10} {:>14}{grown}", "Bytes", "Allocs", "Average", "Large bytes")?;
        for row in &self.tags {
            let Row { tag, bytes, count, average, large_bytes, description, share, growth } = row;
            let bar = bar(*share);
            let description = brief(description);
            let grown = growth.map(|growth| format!(" {growth:>+12}")).unwrap_or_default();
            writeln!(out, " {tag} {bytes:>14} {count:>10} {average:>10} {large_bytes:>14}{grown} {bar} {description}")?;
        }
        if !self.sizes.is_empty() {
            let of = if self.small.is_some() { "" } else { " (large allocations; -small: all blocks)" };
            writeln!(out, "\n Size        {:>14} {:>10}  Kind{of}", "Bytes", "Blocks")?;
        }
        for Size { size, count, bytes, kind } in &self.sizes {
            writeln!(out, " {:<11} {bytes:>14} {count:>10}  {kind}", format!("{size:#x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_leave_a_line_short() {
        assert_eq!(brief("Vista event tracing , Binary: nt!etw"), "Vista event tracing");
        assert_eq!(
            brief("Internal Configuration manager allocations , Binary: nt!cm"),
            "Internal Configuration manager..."
        );
        assert_eq!(brief("ééééééééééééééééééééééééééééééééé"), format!("{}...", "é".repeat(30)));
        assert_eq!(brief(""), "");
    }
}
