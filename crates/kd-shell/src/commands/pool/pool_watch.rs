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
use schemars::JsonSchema;
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

impl Order {
    fn word(self) -> &'static str {
        match self {
            Order::Bytes => "bytes",
            Order::Count => "diff",
            Order::Growth => "growth",
            Order::Allocs => "allocs",
            Order::Frees => "frees",
            Order::Tag => "tag",
        }
    }
}

/// Which pools are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pools {
    Both,
    Nonpaged,
    Paged,
}

impl Pools {
    /// poolmon's P goes round.
    fn next(self) -> Pools {
        match self {
            Pools::Both => Pools::Nonpaged,
            Pools::Nonpaged => Pools::Paged,
            Pools::Paged => Pools::Both,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Pools::Both => "both pools",
            Pools::Nonpaged => "nonpaged",
            Pools::Paged => "paged",
        }
    }

    fn has(self, paged: bool) -> bool {
        match self {
            Pools::Both => true,
            Pools::Nonpaged => !paged,
            Pools::Paged => paged,
        }
    }
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
/// How soon a key is answered.
const STEP: Duration = Duration::from_millis(100);

/// What is shown, which keys change while it is.
#[derive(Debug, Clone, Copy)]
struct View {
    rows: usize,
    order: Order,
    pools: Pools,
    /// Somebody can press keys.
    keys: bool,
}

/// What a key means: poolmon's, as far as its columns are ours.
enum Pressed {
    View(View),
    Quit,
}

impl View {
    fn pressed(self, key: char) -> Option<Pressed> {
        let order = match key.to_ascii_lowercase() {
            'b' => Order::Bytes,
            'a' => Order::Allocs,
            'f' => Order::Frees,
            'd' => Order::Count,
            'g' => Order::Growth,
            't' => Order::Tag,
            'p' => return Some(Pressed::View(View { pools: self.pools.next(), ..self })),
            // Escape, as in poolmon.
            'q' | '\u{1b}' => return Some(Pressed::Quit),
            _ => return None,
        };
        Some(Pressed::View(View { order, ..self }))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    allocs: u64,
    frees: u64,
    diff: i64,
    bytes: u64,
}

/// A tag in one of the two pools.
type Key = (Tag, bool);

#[derive(Debug, JsonSchema, Serialize)]
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

#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Screen {
    /// How often was looked.
    looks: u32,
    nonpaged_bytes: u64,
    paged_bytes: u64,
    rows: Vec<Row>,
    /// Requests of the last look, and how long the target stood still for it.
    requests: u64,
    frozen_ms: f64,
    #[serde(skip)]
    view: View,
}

/// The last two looks.
#[derive(Default)]
struct Looks {
    count: u32,
    before: Option<BTreeMap<Key, Counters>>,
    now: BTreeMap<Key, Counters>,
    requests: u64,
    frozen_ms: f64,
}

/// How the time until the next look ended.
enum Rest {
    Over,
    Stopped,
    Quit,
}

pub(super) fn run(drive: &mut Drive<'_>, terms: Terms) -> Result<Reply, CommandError> {
    if !drive.is_halted() {
        drive.break_in()?;
    }
    let keys = drive.listen(true);
    let mut view = View { rows: terms.rows, order: terms.order, pools: Pools::Both, keys };
    let (mut looks, mut notes) = (Looks::default(), Vec::new());
    let ended = watch(drive, terms, &mut view, &mut looks, &mut notes);
    drive.listen(false);
    if looks.count == 0 {
        return ended.and(Ok(Reply::new(crate::answer::Done {})));
    }
    drive.erase();
    let mut reply = Reply::with_notes(screen(&looks, View { keys: false, ..view }), notes);
    reply.failure = ended.err().filter(|error| !is_cancelled(error));
    Ok(reply)
}

/// Looks and shows until it is over.
fn watch(
    drive: &mut Drive<'_>,
    terms: Terms,
    view: &mut View,
    looks: &mut Looks,
    notes: &mut Vec<String>,
) -> Result<(), CommandError> {
    let started = Instant::now();
    loop {
        let cost = drive.cost();
        let report = drive.with(|context| context.pool(|kernel| tags::read(kernel, &|_| true)))?;
        let cost = difference(cost, drive.cost());
        *notes = report.notes.lines();
        let then = std::mem::replace(&mut looks.now, counters(&report.tags));
        looks.before = (looks.count > 0).then_some(then);
        looks.count += 1;
        looks.requests = cost.requests;
        looks.frozen_ms = (cost.frozen.as_secs_f64() * 10_000.0).round() / 10.0;
        // Nobody has to stand still while a screen is drawn.
        let gone = drive.go();
        show(drive, looks, *view);
        gone?;
        let over = terms.times.is_some_and(|times| looks.count >= times)
            || terms.run_for.is_some_and(|time| started.elapsed() >= time);
        if over {
            return Ok(());
        }
        match rest(drive, terms.every, view, looks)? {
            Rest::Over => drive.break_in()?,
            Rest::Quit => return Ok(()),
            Rest::Stopped => {
                notes.push("the target stopped by itself; g lets it go on".into());
                return Ok(());
            }
        }
    }
}

fn show(drive: &mut Drive<'_>, looks: &Looks, view: View) {
    let screen = screen(looks, view);
    let mut table = String::new();
    // A string takes everything.
    let _ = screen.text(&mut table);
    drive.say_row(&table, &line(&screen));
}

/// Lets the target run until the next look. What is shown changes with the keys in between.
fn rest(drive: &mut Drive<'_>, every: Duration, view: &mut View, looks: &Looks) -> Result<Rest, CommandError> {
    let until = Instant::now() + every;
    loop {
        while let Some(key) = drive.key() {
            match view.pressed(key) {
                Some(Pressed::Quit) => return Ok(Rest::Quit),
                Some(Pressed::View(changed)) => {
                    *view = changed;
                    show(drive, looks, *view);
                }
                None => {}
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Rest::Over);
        }
        if drive.run_for(if view.keys { left.min(STEP) } else { left })? {
            return Ok(Rest::Stopped);
        }
    }
}

fn counters(tags: &[tags::TagUsage]) -> BTreeMap<Key, Counters> {
    let both = tags.iter().flat_map(|usage| [(usage.tag, false, usage.nonpaged), (usage.tag, true, usage.paged)]);
    let used = both.filter(|(.., usage)| (usage.allocs, usage.frees) != (0, 0));
    used.map(|(tag, paged, tags::Usage { allocs, frees, diff, bytes })| {
        ((tag, paged), Counters { allocs, frees, diff, bytes })
    })
    .collect()
}

fn screen(looks: &Looks, view: View) -> Screen {
    let Looks { count, now, requests, frozen_ms, .. } = looks;
    let before = looks.before.as_ref();
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
    let mut rows: Vec<Row> = now.iter().filter(|((_, paged), _)| view.pools.has(*paged)).map(row).collect();
    // Ties keep the order of the tags.
    rows.sort_by_key(|row| {
        std::cmp::Reverse(match view.order {
            Order::Bytes => i128::from(row.bytes),
            Order::Count => i128::from(row.count),
            Order::Growth => i128::from(row.growth),
            Order::Allocs => i128::from(row.allocs),
            Order::Frees => i128::from(row.frees),
            Order::Tag => 0,
        })
    });
    rows.truncate(view.rows);
    let (nonpaged_bytes, paged_bytes) = (sum(false), sum(true));
    Screen { looks: *count, nonpaged_bytes, paged_bytes, rows, requests: *requests, frozen_ms: *frozen_ms, view }
}

/// A look in a pipe: what all tags come to, and the rows that changed since the look before.
fn line(screen: &Screen) -> String {
    let (nonpaged, paged) = (units::bytes(screen.nonpaged_bytes as f64), units::bytes(screen.paged_bytes as f64));
    let changed: Vec<&Row> =
        screen.rows.iter().filter(|row| row.new_allocs != 0 || row.new_frees != 0 || row.growth != 0).collect();
    let changes = match (screen.looks, changed.len()) {
        (1, _) => String::new(),
        (_, 0) => "; nothing changed".into(),
        (_, count) => format!("; {} changed", units::count(count as u64, "row")),
    };
    let mut line = format!("Look {}: nonpaged {nonpaged}, paged {paged}{changes}\n", screen.looks);
    for row in changed {
        // A string takes everything.
        let _ = row.write(&mut line);
    }
    line
}

impl Row {
    fn write(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let kind = if self.paged { "Paged" } else { "Nonp" };
        let per = u64::try_from(self.count).ok().and_then(|count| self.bytes.checked_div(count)).unwrap_or(0);
        writeln!(
            out,
            " {} {kind:<5} {:>7} {:>7} {:>7} {:>7} {:>6} {:>10} {:>9} {per:>7}",
            self.tag,
            self.allocs,
            format!("({:+})", self.new_allocs),
            self.frees,
            format!("({:+})", self.new_frees),
            self.count,
            self.bytes,
            format!("({:+})", self.growth),
        )
    }
}

impl Text for Screen {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(
            out,
            " Nonpaged {}, paged {}; look {}: {} requests, stopped {}",
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
        self.rows.iter().try_for_each(|row| row.write(out))?;
        if self.view.keys {
            let (order, pools) = (self.view.order.word(), self.view.pools.word());
            writeln!(out, " Keys: b bytes, a allocs, f frees, d diff, g growth, t tag, p pool, q quit")?;
            writeln!(out, " Sorted by {order}, {pools}; Ctrl+C ends too")?;
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
        let view = View { rows: 2, order: Order::Growth, pools: Pools::Both, keys: false };
        let looks = Looks { count: 2, before: Some(look(23, 5000)), now: look(26, 5600), ..Looks::default() };
        let shown = screen(&looks, view);
        let rows: Vec<_> =
            shown.rows.iter().map(|row| (row.tag.as_str(), row.new_allocs, row.new_frees, row.growth)).collect();
        assert_eq!(rows, [("Leak", 3, 0, 3_072_000), ("Aaaa", 0, 0, 0)]);
        assert_eq!((shown.paged_bytes, shown.nonpaged_bytes), (26 * 1_024_000, 25_600 + 9_000_000));
        let plain = line(&shown);
        assert!(plain.contains("; 1 row changed\n Leak Paged      26    (+3) "), "{plain}");
        let mut text = String::new();
        shown.text(&mut text).unwrap();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(
            text.contains("\n Leak Paged      26    (+3)       0    (+0)     26   26624000 (+3072000) 1024000"),
            "{text}"
        );
        // The first look has nothing to compare with, and each order has its first row.
        let first = Looks { before: None, ..looks };
        let lead = |view| screen(&first, view).rows.remove(0);
        for (key, tag) in [('b', "Leak"), ('D', "File"), ('f', "File"), ('a', "File"), ('t', "Aaaa")] {
            let Some(Pressed::View(view)) = view.pressed(key) else { panic!("{key} does nothing") };
            assert_eq!((lead(view).tag.as_str(), lead(view).growth), (tag, 0), "{key}");
        }
        let Some(Pressed::View(nonpaged)) = view.pressed('p') else { panic!("p does nothing") };
        let Some(Pressed::View(paged)) = nonpaged.pressed('P') else { panic!("P does nothing") };
        assert!(screen(&first, nonpaged).rows.iter().all(|row| !row.paged));
        assert_eq!(screen(&first, paged).rows.len(), 1);
        assert!(matches!(view.pressed('q'), Some(Pressed::Quit)) && view.pressed('x').is_none());
        // With the keys' lines it fits a screen, and the prompt behind it.
        let mut text = String::new();
        let full = View { rows: ROWS, keys: true, ..view };
        let tags = (0..40_u8).map(|i| ((Tag([b'T', b'a', b'g', b'A' + i]), false), Counters::default()));
        screen(&Looks { now: tags.collect(), ..Looks::default() }, full).text(&mut text).unwrap();
        assert!(text.lines().count() <= 22 && text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
