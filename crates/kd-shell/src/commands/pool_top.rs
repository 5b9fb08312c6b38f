//! `!pooltop [n] [-by bytes|count|growth]`: the pool on one screen.
//!
//! Counts come from the tag tables and the table of large allocations; nothing of the pool itself is read.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use nt_pool::{Tag, big_pages, tags};
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::session::Context;

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!pooltop"],
    usage: "!pooltop [n] [-by bytes|count|growth]",
    help: "the pool on one screen: totals, large allocations, the biggest tags",
    details: "n tags are shown, 10 (hexadecimal) unless another number is given, by bytes or by allocations in use, or \
              by what their bytes\nhave grown by since the last !pooltop of this session.",
    action: Action::Answer(run),
};

#[derive(Debug, Serialize)]
struct PoolTop {
    nonpaged: Totals,
    paged: Totals,
    tags: Vec<Row>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Totals {
    bytes: u64,
    count: i64,
    large_bytes: u64,
    large_count: u64,
}

#[derive(Debug, Serialize)]
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

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let mut count = 0x10;
    let mut order = Order::Bytes;
    let mut words = context.arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "-by" => match words.next() {
                Some("bytes") => order = Order::Bytes,
                Some("count") => order = Order::Count,
                Some("growth") => order = Order::Growth,
                _ => return Err(usage(&INFO, "-by bytes, -by count or -by growth")),
            },
            word => {
                count = plain_number(word).ok_or_else(|| usage(&INFO, format!("'{word}' is no number of tags")))?;
            }
        }
    }
    let (counted, large) =
        context.pool(|kernel| Ok((tags::read(kernel, &|_| true)?, big_pages::read(kernel, &|_| true)?)))?;
    let mut notes = counted.notes;
    notes.extend(large.notes);
    let (mut nonpaged, mut paged) = (Totals::default(), Totals::default());
    let mut large_of = HashMap::new();
    for block in large.blocks.iter().filter(|block| !block.free) {
        let totals = if block.kind.is_paged() { &mut paged } else { &mut nonpaged };
        totals.large_bytes = totals.large_bytes.saturating_add(block.size);
        totals.large_count += 1;
        let bytes: &mut u64 = large_of.entry(block.tag).or_default();
        *bytes = bytes.saturating_add(block.size);
    }
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
    let before = context.session.pool_counts.replace(now);
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
            Order::Bytes | Order::Growth => i128::from(*bytes),
        })
    });
    rows.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    let row = |(tag, bytes, count): (Tag, u64, i64)| Row {
        tag: tag.to_string(),
        bytes,
        count,
        average: u64::try_from(count).ok().and_then(|count| bytes.checked_div(count)).unwrap_or(0),
        large_bytes: large_of.get(&tag).copied().unwrap_or(0),
        description: context.session.pool_tags.poolused(tag),
        share: bytes.saturating_mul(100).checked_div(all).unwrap_or(0),
        growth: growth(tag, bytes),
    };
    let answer = PoolTop { nonpaged, paged, tags: rows.into_iter().map(row).collect() };
    Ok(Reply { remarks, ..Reply::with_notes(answer, notes) })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Bytes,
    Count,
    Growth,
}

/// The width of a bar for all of the pool.
const BAR: u64 = 20;

impl Text for PoolTop {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "           {:>14} {:>10} {:>14} {:>8}", "Bytes", "Allocs", "Large bytes", "Large")?;
        for (name, totals) in [("NonPaged", &self.nonpaged), ("Paged", &self.paged)] {
            let Totals { bytes, count, large_bytes, large_count } = totals;
            writeln!(out, " {name:<10}{bytes:>14} {count:>10} {large_bytes:>14} {large_count:>8}")?;
        }
        let grown = if self.tags.iter().any(|row| row.growth.is_some()) { "       Growth" } else { "" };
        writeln!(out, "\n Tag  {:>14} {:>10} {:>10} {:>14}{grown}", "Bytes", "Allocs", "Average", "Large bytes")?;
        for row in &self.tags {
            let Row { tag, bytes, count, average, large_bytes, description, share, growth } = row;
            let filled = (share * BAR / 100).min(BAR) as usize;
            let bar = format!("{:<20}", "#".repeat(filled));
            let grown = growth.map(|growth| format!(" {growth:>+12}")).unwrap_or_default();
            writeln!(out, " {tag} {bytes:>14} {count:>10} {average:>10} {large_bytes:>14}{grown} {bar} {description}")?;
        }
        Ok(())
    }
}
