//! `!pooltop [n] [-by bytes|count]`: the pool on one screen.
//!
//! Counts come from the tag tables and the table of large allocations; nothing of the pool itself is read.

use std::cmp::Reverse;
use std::fmt;

use nt_pool::{big_pages, tags};
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::session::Context;

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!pooltop"],
    usage: "!pooltop [n] [-by bytes|count]",
    help: "the pool on one screen: totals, large allocations, the biggest tags",
    details: "n tags are shown, 10 (hexadecimal) unless another number is given, by bytes or by allocations in use.",
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
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let mut count = 0x10;
    let mut by_count = false;
    let mut words = context.arguments.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "-by" => match words.next() {
                Some("bytes") => by_count = false,
                Some("count") => by_count = true,
                _ => return Err(usage(&INFO, "-by bytes or -by count")),
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
    let mut large_of = std::collections::HashMap::new();
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
    rows.sort_by_key(|(_, bytes, count)| Reverse(if by_count { i128::from(*count) } else { i128::from(*bytes) }));
    rows.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    let row = |(tag, bytes, count): (nt_pool::Tag, u64, i64)| Row {
        tag: tag.to_string(),
        bytes,
        count,
        average: u64::try_from(count).ok().and_then(|count| bytes.checked_div(count)).unwrap_or(0),
        large_bytes: large_of.get(&tag).copied().unwrap_or(0),
        description: context.session.pool_tags.poolused(tag),
        share: bytes.saturating_mul(100).checked_div(all).unwrap_or(0),
    };
    let answer = PoolTop { nonpaged, paged, tags: rows.into_iter().map(row).collect() };
    Ok(Reply::with_notes(answer, notes))
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
        writeln!(out, "\n Tag  {:>14} {:>10} {:>10} {:>14}", "Bytes", "Allocs", "Average", "Large bytes")?;
        for Row { tag, bytes, count, average, large_bytes, description, share } in &self.tags {
            let filled = (share * BAR / 100).min(BAR) as usize;
            let bar = format!("{:<20}", "#".repeat(filled));
            writeln!(out, " {tag} {bytes:>14} {count:>10} {average:>10} {large_bytes:>14} {bar} {description}")?;
        }
        Ok(())
    }
}
