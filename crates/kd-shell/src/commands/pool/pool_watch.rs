//! `!pooltop -watch`: poolmon over the wire. The tag tables are read again and again, the target runs in between, and one
//! screen shows what they count and by how much that changed since the look before.
//!
//! ```text
//!  Tag  Type    Allocs            Frees           Diff      Bytes               Per
//!  Leak Paged       26    (+3)        0    (+0)     26   26624000 (+3072000) 1024000
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use nt_leaks::units;
use nt_pool::{Tag, tags};
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::output::difference;
use crate::shell::{Drive, is_cancelled};

/// What a screen is ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Bytes,
    Count,
    /// Bytes that it grew by since the look before.
    Growth,
    Allocs,
    Frees,
    Tag,
}

/// How to watch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) rows: usize,
    pub(super) order: Order,
    pub(super) every: Duration,
    pub(super) times: Option<u32>,
    pub(super) run_for: Option<Duration>,
}

/// poolmon's pace.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Rows that one screen of 24 lines has room for.
pub(super) const ROWS: usize = 18;

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    allocs: u64,
    frees: u64,
    diff: i64,
    bytes: u64,
}

/// A tag in one of the two pools.
type Key = (Tag, bool);

#[derive(Debug, Serialize)]
struct Row {
    tag: String,
    /// Of paged pool; else of nonpaged.
    paged: bool,
    allocs: u64,
    frees: u64,
    count: i64,
    bytes: u64,
    /// Since the look before; 0 at the first.
    new_allocs: u64,
    new_frees: u64,
    growth: i64,
}

#[derive(Debug, Serialize)]
struct Screen {
    /// How often was looked.
    looks: u32,
    nonpaged_bytes: u64,
    paged_bytes: u64,
    rows: Vec<Row>,
    /// Requests of the last look, and how long the target stood still for it.
    requests: u64,
    frozen_ms: f64,
}

pub(super) fn run(drive: &mut Drive<'_>, terms: Terms) -> Result<Reply, CommandError> {
    let started = Instant::now();
    if !drive.is_halted() {
        drive.break_in()?;
    }
    let mut before: Option<BTreeMap<Key, Counters>> = None;
    let (mut looks, mut last, mut failure) = (0, None, None);
    let mut notes = Vec::new();
    loop {
        let cost = drive.cost();
        let report = drive.with(|context| context.pool(|kernel| tags::read(kernel, &|_| true)));
        let report = match report {
            Ok(report) => report,
            Err(error) if last.is_none() => return Err(error),
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        let cost = difference(cost, drive.cost());
        notes = report.notes.lines();
        let now = counters(&report.tags);
        looks += 1;
        let mut screen = screen(&now, before.as_ref(), terms);
        (screen.looks, screen.requests) = (looks, cost.requests);
        screen.frozen_ms = (cost.frozen.as_secs_f64() * 10_000.0).round() / 10.0;
        // Nobody has to stand still while a screen is drawn.
        if let Err(error) = drive.go() {
            failure = Some(error);
        }
        let mut table = String::new();
        // A string takes everything.
        let _ = screen.text(&mut table);
        drive.say_row(&table, &line(&screen));
        (before, last) = (Some(now), Some(screen));
        let over = terms.times.is_some_and(|times| looks >= times)
            || terms.run_for.is_some_and(|time| started.elapsed() >= time);
        if over || failure.is_some() {
            break;
        }
        match drive
            .run_for(terms.every)
            .and_then(|stopped| if stopped { Ok(true) } else { drive.break_in().map(|()| false) })
        {
            Ok(false) => {}
            Ok(true) => {
                notes.push("the target stopped by itself; g lets it go on".into());
                break;
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    drive.erase();
    let mut reply = match last {
        Some(screen) => Reply::with_notes(screen, notes),
        None => Reply::new(crate::answer::Done {}),
    };
    reply.failure = failure.filter(|error| !is_cancelled(error));
    Ok(reply)
}

fn counters(tags: &[tags::TagUsage]) -> BTreeMap<Key, Counters> {
    let both = tags.iter().flat_map(|usage| [(usage.tag, false, usage.nonpaged), (usage.tag, true, usage.paged)]);
    let used = both.filter(|(.., usage)| (usage.allocs, usage.frees) != (0, 0));
    used.map(|(tag, paged, tags::Usage { allocs, frees, diff, bytes })| {
        ((tag, paged), Counters { allocs, frees, diff, bytes })
    })
    .collect()
}

fn screen(now: &BTreeMap<Key, Counters>, before: Option<&BTreeMap<Key, Counters>>, terms: Terms) -> Screen {
    let row = |(&(tag, paged), &counters): (&Key, &Counters)| {
        let then = match before {
            // A tag that is new had nothing.
            Some(before) => before.get(&(tag, paged)).copied().unwrap_or_default(),
            None => counters,
        };
        Row {
            tag: tag.to_string(),
            paged,
            allocs: counters.allocs,
            frees: counters.frees,
            count: counters.diff,
            bytes: counters.bytes,
            new_allocs: counters.allocs.wrapping_sub(then.allocs) & 0xffff_ffff,
            new_frees: counters.frees.wrapping_sub(then.frees) & 0xffff_ffff,
            growth: counters.bytes.wrapping_sub(then.bytes) as i64,
        }
    };
    let sum = |paged: bool| {
        let of = now.iter().filter(|((_, of), _)| *of == paged).map(|(_, counters)| counters.bytes);
        of.fold(0, u64::saturating_add)
    };
    let mut rows: Vec<Row> = now.iter().map(row).collect();
    // Ties keep the order of the tags.
    rows.sort_by_key(|row| {
        std::cmp::Reverse(match terms.order {
            Order::Bytes => i128::from(row.bytes),
            Order::Count => i128::from(row.count),
            Order::Growth => i128::from(row.growth),
            Order::Allocs => i128::from(row.allocs),
            Order::Frees => i128::from(row.frees),
            Order::Tag => 0,
        })
    });
    rows.truncate(terms.rows);
    Screen { looks: 0, nonpaged_bytes: sum(false), paged_bytes: sum(true), rows, requests: 0, frozen_ms: 0.0 }
}

/// What is left of a look in a pipe: one line.
fn line(screen: &Screen) -> String {
    let mut growing: Vec<&Row> = screen.rows.iter().filter(|row| row.growth > 0).collect();
    growing.sort_by_key(|row| std::cmp::Reverse(row.growth));
    let grown: Vec<String> =
        growing.iter().take(3).map(|row| format!("{} +{}", row.tag, units::bytes(row.growth as f64))).collect();
    let (nonpaged, paged) = (units::bytes(screen.nonpaged_bytes as f64), units::bytes(screen.paged_bytes as f64));
    let grown = if grown.is_empty() { "none grew".into() } else { grown.join(", ") };
    format!("Look {}: nonpaged {nonpaged}, paged {paged}; {grown}\n", screen.looks)
}

impl Text for Screen {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(
            out,
            " Nonpaged {}, paged {}; look {}: {} requests, stopped {}; Ctrl+C ends",
            units::bytes(self.nonpaged_bytes as f64),
            units::bytes(self.paged_bytes as f64),
            self.looks,
            self.requests,
            units::time(self.frozen_ms)
        )?;
        writeln!(
            out,
            " Tag  Type  {:>7} {:>7} {:>7} {:>7} {:>6} {:>10} {:>9} {:>7}",
            "Allocs", "", "Frees", "", "Diff", "Bytes", "", "Per"
        )?;
        for row in &self.rows {
            let kind = if row.paged { "Paged" } else { "Nonp" };
            let per = u64::try_from(row.count).ok().and_then(|count| row.bytes.checked_div(count)).unwrap_or(0);
            writeln!(
                out,
                " {} {kind:<5} {:>7} {:>7} {:>7} {:>7} {:>6} {:>10} {:>9} {per:>7}",
                row.tag,
                row.allocs,
                format!("({:+})", row.new_allocs),
                row.frees,
                format!("({:+})", row.new_frees),
                row.count,
                row.bytes,
                format!("({:+})", row.growth),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(leak: u64, other: u64) -> BTreeMap<Key, Counters> {
        let counters = |allocs, frees, each| {
            let diff = allocs as i64 - frees as i64;
            Counters { allocs, frees, diff, bytes: diff as u64 * each }
        };
        [
            ((Tag(*b"Leak"), true), counters(leak, 0, 1_024_000)),
            ((Tag(*b"File"), false), counters(other, other - 100, 256)),
            ((Tag(*b"Aaaa"), false), counters(5, 4, 9_000_000)),
        ]
        .into()
    }

    #[test]
    fn a_screen_shows_what_changed() {
        let terms = Terms { rows: 2, order: Order::Growth, every: EVERY, times: None, run_for: None };
        let (then, now) = (look(23, 5000), look(26, 5600));
        let shown = screen(&now, Some(&then), terms);
        let rows: Vec<_> =
            shown.rows.iter().map(|row| (row.tag.as_str(), row.new_allocs, row.new_frees, row.growth)).collect();
        assert_eq!(rows, [("Leak", 3, 0, 3_072_000), ("Aaaa", 0, 0, 0)]);
        assert_eq!((shown.paged_bytes, shown.nonpaged_bytes), (26 * 1_024_000, 25_600 + 9_000_000));
        assert!(line(&shown).ends_with("; Leak +2.9 MB\n"), "{}", line(&shown));
        let mut text = String::new();
        shown.text(&mut text).unwrap();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.contains("\n Leak Paged      26    (+3)       0    (+0)     26   26624000 (+3072000) 1024000"),
            "{text}"
        );
        // The first look has nothing to compare with, and each order has its first row.
        let first = |order| screen(&now, None, Terms { order, ..terms }).rows.remove(0);
        assert_eq!(first(Order::Bytes).tag, "Leak");
        assert_eq!(first(Order::Bytes).growth, 0);
        assert_eq!(first(Order::Count).tag, "File");
        assert_eq!(first(Order::Frees).tag, "File");
        assert_eq!(first(Order::Tag).tag, "Aaaa");
    }
}
