//! What repeated looks at one tag come to. Pure: whoever stops the target hands over what a check found, and asks when
//! to look again and what it comes to.
//!
//! Growth alone is no leak. A tag leaks when its bytes grow at most looks, without a setback and not all at once, when
//! what was allocated stays, and when it stayed for longer than blocks of the tag usually live. docs/leaks.md has the
//! reasoning; [`Watch::verdict`] follows it.

mod reasons;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{CheckReport, Verdict as BlockVerdict};
use crate::mark::Mark;
use crate::stack::StackId;
use crate::trend::{Point, Trend};

pub use reasons::Reason;

/// Time to the first look where nobody says how long.
pub const FIRST: Duration = Duration::from_secs(1);
/// The longest time between two looks where nobody says how long.
pub const LONGEST: Duration = Duration::from_secs(30);
/// The shortest time between two stops.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// So many looks, at least, make a verdict more than a guess.
pub const LOOKS: usize = 3;
/// Where nobody says when a watch ends: with a leak that is confirmed by so many looks,
pub const LOOKS_OF_A_LEAK: usize = 4;
/// or without growth in so many,
pub const LOOKS_WITHOUT: usize = 5;
/// or after so many, whatever they saw.
pub const MOST_LOOKS: usize = 20;
/// Blocks that a place allocated since and that all stay are an accident when they are fewer.
const BLOCKS_OF_A_STACK: usize = 3;

/// What a watch comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It grows, and what was allocated is proved to stay.
    Confirmed,
    /// It grew, without that proof.
    Growing,
    /// It neither grew nor shrank.
    Stable,
    /// Less is in use than at the mark.
    Shrinking,
    /// There was no look, or it could not count.
    #[default]
    Unknown,
}

impl Outcome {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Confirmed => "confirmed",
            Outcome::Growing => "growing",
            Outcome::Stable => "stable",
            Outcome::Shrinking => "shrinking",
            Outcome::Unknown => "unknown",
        }
    }
}

/// When to look, and when to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Between two looks; `None`: a second at first, and longer as long as nothing grows.
    pub every: Option<Duration>,
    /// The watch ends after so many looks.
    pub times: Option<u32>,
    /// Or after this time.
    pub run_for: Option<Duration>,
    /// Or as soon as a leak is confirmed. Where no end is given it ends when it knows: [`LOOKS_OF_A_LEAK`] and so on.
    pub until_confirmed: bool,
    /// A leak is confirmed only by blocks of this age; `None`: of the age that blocks of the tag usually reach.
    pub min_age: Option<Duration>,
}

/// What the mark found of the tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// In use, as the counters say; `None` where they do not.
    pub outstanding: Option<u64>,
    /// In use then.
    pub bytes: u64,
    /// Blocks that are listed.
    pub blocks: u64,
    /// Frees of the tag since the machine started, as far as the counter's width goes, and for how long it runs.
    pub frees: u64,
    /// How long the machine had been running.
    pub uptime_ms: u64,
    /// Bytes in use before the mark, oldest first: milliseconds before it, bytes.
    pub earlier: Vec<(u64, u64)>,
}

impl Start {
    /// What a mark has of one tag.
    pub fn of(mark: &Mark, tag: u32) -> Start {
        let snapshot = &mark.snapshot;
        let counters = snapshot.counters.get(&tag).copied().unwrap_or_default();
        Start {
            outstanding: snapshot.outstanding(tag),
            bytes: counters.bytes,
            blocks: snapshot.blocks.iter().filter(|block| block.tag == tag).count() as u64,
            frees: counters.frees,
            uptime_ms: snapshot.times.interrupt / 10_000,
            earlier: Vec::new(),
        }
    }

    fn usual_life_ms(&self) -> Option<u64> {
        usual_life_ms(self.outstanding?, self.frees, self.uptime_ms)
    }

    /// Frees that were to be expected in a time, as many as there were in all the time since the machine started.
    fn expected_frees(&self, elapsed_ms: u64) -> f64 {
        self.frees as f64 * elapsed_ms as f64 / self.uptime_ms.max(1) as f64
    }
}

/// More was allocated than freed, and not by chance: where as many allocations as frees come at any time their difference
/// has the square root of their sum as its standard deviation. `frees`: those that were seen, or that were expected.
pub(crate) fn is_beyond_chance(gained: i64, frees: f64) -> bool {
    const DEVIATIONS: f64 = 5.0;
    gained as f64 >= DEVIATIONS * (2.0 * frees).sqrt()
}

/// How long a block of a tag may live, judged by all that were freed since the machine started: blocks in use over frees a
/// second are their mean age (Little's law), and three times that is old. `None` for a tag that keeps a third and more of what it allocates.
///
/// Objects of files come and go: thousands are in use, millions were freed. That some outlive a watch of a few seconds
/// says nothing.
pub(crate) fn usual_life_ms(in_use: u64, frees: u64, uptime_ms: u64) -> Option<u64> {
    let comes_and_goes = in_use > 0 && frees / 2 >= in_use;
    // What comes and goes in waves lives for a part of one.
    const WAVES: u128 = 3;
    let life = WAVES * u128::from(in_use) * u128::from(uptime_ms) / u128::from(frees.max(1));
    comes_and_goes.then(|| u64::try_from(life).unwrap_or(u64::MAX))
}

/// What the verifier's log gained between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogGain {
    /// Records since the last look.
    pub written: u32,
    /// Slots of the ring.
    pub length: u32,
    /// While the target ran.
    pub ran: Duration,
}

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Since the mark, while the target ran.
    pub elapsed_ms: u64,
    /// In use; `None` where the counters could not be read.
    pub bytes: Option<u64>,
    /// Since the mark; `None` where the counters cannot be compared.
    pub allocs: Option<u64>,
    /// As `allocs`.
    pub frees: Option<u64>,
    /// Blocks of the mark that are there still, for certain.
    pub at_least: u64,
    /// Addresses that are listed now, by stack; `None`: blocks without one.
    pub listed: BTreeMap<Option<StackId>, BTreeSet<u64>>,
    /// Stacks of which a block of the mark is gone.
    pub gone: BTreeSet<Option<StackId>>,
    /// What the log gained, where it is followed.
    pub log: Option<LogGain>,
}

impl Look {
    /// What a check says of one tag.
    pub fn of(report: &CheckReport, tag: u32, log: Option<LogGain>) -> Look {
        let books = report.tags.iter().find(|books| books.tag.key() == tag);
        let mut look = Look {
            elapsed_ms: report.elapsed_ms,
            bytes: books.filter(|_| report.is_counted).map(|books| books.bytes),
            allocs: books.and_then(|books| books.allocs),
            frees: books.and_then(|books| books.frees),
            at_least: books.map_or(0, |books| books.at_least),
            log,
            ..Look::default()
        };
        for block in report.blocks.iter().filter(|block| block.tag.key() == tag) {
            if block.listed {
                look.listed.entry(block.stack).or_default().insert(block.address);
            }
            if matches!(block.verdict, BlockVerdict::Freed | BlockVerdict::Reused) {
                look.gone.insert(block.stack);
            }
        }
        look
    }
}

/// What became of the blocks of one stack.
#[derive(Debug, Clone, Default)]
struct Place {
    now: BTreeSet<u64>,
    /// At the first look.
    first: usize,
    grew: usize,
    /// A block of it went.
    lost: bool,
}

/// The outcome, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What the looks came to.
    pub outcome: Outcome,
    /// All that it rests on.
    pub reasons: Vec<Reason>,
}

/// When to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From now on, while the target runs.
    pub after: Duration,
    /// The log fills so fast that it is looked at sooner than was asked for.
    pub log: Option<LogGain>,
}

/// Looks at one tag.
#[derive(Debug, Clone)]
pub struct Watch {
    terms: Terms,
    start: Start,
    /// Elapsed time and bytes of each look.
    points: Vec<(u64, u64)>,
    looks: usize,
    last: Option<Look>,
    places: BTreeMap<Option<StackId>, Place>,
    pace: Pace,
    /// What the pool has room for beside what is in use.
    left: Option<u64>,
}

impl Watch {
    /// `left`: bytes that the pool may still grow by.
    pub fn new(terms: Terms, start: Start, left: Option<u64>) -> Watch {
        let pace = Pace { after: terms.every.unwrap_or(FIRST).max(SHORTEST), log: None };
        Watch { terms, start, points: Vec::new(), looks: 0, last: None, places: BTreeMap::new(), pace, left }
    }

    /// What the mark found.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Takes the next look into account.
    pub fn add(&mut self, look: Look) {
        let before = self.bytes();
        self.looks += 1;
        self.points.extend(look.bytes.map(|bytes| (look.elapsed_ms, bytes)));
        let first = self.looks == 1;
        for (stack, place) in &mut self.places {
            let now = look.listed.get(stack).cloned().unwrap_or_default();
            place.lost |= !place.now.is_subset(&now);
            place.grew += usize::from(now.len() > place.now.len());
            place.now = now;
        }
        for (stack, now) in &look.listed {
            let (known, grew) = if first { (now.len(), 0) } else { (0, 1) };
            let new = || Place { first: known, now: now.clone(), grew, lost: false };
            self.places.entry(*stack).or_insert_with(new);
        }
        for stack in &look.gone {
            if let Some(place) = self.places.get_mut(stack) {
                place.lost = true;
            }
        }
        self.set_pace(&look, look.bytes.is_some_and(|bytes| bytes > before));
        self.last = Some(look);
    }

    fn set_pace(&mut self, look: &Look, grew: bool) {
        self.pace.log = None;
        // Without growth the next look may wait.
        if self.terms.every.is_none() && !grew {
            self.pace.after = (self.pace.after * 2).min(LONGEST);
        }
        let Some(log) = look.log.filter(|log| log.written > log.length / 2) else { return };
        // The log must not come round between two looks; half of it is a margin for bursts.
        let share = f64::from(log.length) / 2.0 / f64::from(log.written);
        let after = log.ran.mul_f64(share.min(1.0)).max(SHORTEST);
        if after < self.pace.after {
            self.pace = Pace { after, log: Some(log) };
        }
    }

    /// How long the target may run until the next look.
    pub fn next_interval(&self) -> Pace {
        self.pace
    }

    /// Whether the watch has run its course. `ran`: for how long it goes on.
    pub fn is_over(&self, ran: Duration) -> bool {
        let Terms { times, run_for, until_confirmed, .. } = self.terms;
        let outcome = self.verdict().outcome;
        let knows = match outcome {
            Outcome::Confirmed => self.looks >= LOOKS_OF_A_LEAK,
            Outcome::Growing => self.looks >= MOST_LOOKS,
            Outcome::Stable | Outcome::Shrinking | Outcome::Unknown => self.looks >= LOOKS_WITHOUT,
        };
        times.is_some_and(|times| self.looks >= times as usize)
            || run_for.is_some_and(|time| ran >= time)
            || until_confirmed && outcome == Outcome::Confirmed
            || times.is_none() && run_for.is_none() && !until_confirmed && knows
    }

    /// How many there were.
    pub fn looks(&self) -> usize {
        self.looks
    }

    /// In use at the last look.
    pub fn bytes(&self) -> u64 {
        self.points.last().map_or(self.start.bytes, |point| point.1)
    }

    fn elapsed_ms(&self) -> u64 {
        self.last.as_ref().map_or(0, |look| look.elapsed_ms)
    }

    /// Bytes a minute of the target's running time since the mark.
    pub fn rate(&self) -> f64 {
        let Some(&(elapsed, bytes)) = self.points.last().filter(|point| point.0 > 0) else { return 0.0 };
        (bytes as f64 - self.start.bytes as f64) / (elapsed as f64 / 60_000.0)
    }

    /// Minutes until the pool is full at this rate.
    pub fn exhausted(&self) -> Option<f64> {
        let rate = self.rate();
        (rate > 0.0).then_some(self.left? as f64 / rate)
    }

    /// How many allocations of the mark are there still, for certain: by what was proved of its blocks, or by the counters
    /// alone, since each free took one of them at most.
    pub fn survivors(&self) -> u64 {
        let Some(look) = &self.last else { return 0 };
        let counted = self.start.outstanding.zip(look.frees).map_or(0, |(then, frees)| then.saturating_sub(frees));
        look.at_least.max(counted)
    }

    /// Growth as it was seen, from before the mark on.
    fn trend(&self) -> Trend {
        let before = self.start.earlier.iter().map(|&(before, bytes)| Point { ms: -(before as i64), value: bytes });
        let mark = std::iter::once(Point { ms: 0, value: self.start.bytes });
        let since = self.points.iter().map(|&(elapsed, bytes)| Point { ms: elapsed as i64, value: bytes });
        Trend::of(before.chain(mark).chain(since))
    }

    /// A stack of which every block stays, and that the growth is mostly of: other blocks of the tag may come and go.
    fn keeper(&self) -> Option<(StackId, u64)> {
        let grown = |place: &Place| place.now.len().saturating_sub(place.first);
        let all: usize = self.places.values().map(grown).sum();
        let kept = self.places.iter().filter_map(|(stack, place)| Some(((*stack)?, place)));
        kept.filter(|(_, place)| !place.lost && place.grew * 2 > self.looks && grown(place) >= BLOCKS_OF_A_STACK)
            .map(|(stack, place)| (stack, grown(place)))
            .max_by_key(|(_, grown)| *grown)
            .filter(|(_, grown)| grown * 2 >= all)
            .map(|(stack, grown)| (stack, grown as u64))
    }

    /// What it comes to, and why.
    pub fn verdict(&self) -> Verdict {
        let Some(look) = &self.last else {
            let reasons = std::iter::once(Reason::NoLook).chain(self.before_the_mark()).collect();
            return Verdict { outcome: Outcome::Unknown, reasons };
        };
        let Some(bytes) = look.bytes else {
            return Verdict { outcome: Outcome::Unknown, reasons: vec![Reason::NotCounted] };
        };
        let mut reasons = self.facts(look, bytes);
        let outcome = match bytes.cmp(&self.start.bytes) {
            std::cmp::Ordering::Less => Outcome::Shrinking,
            std::cmp::Ordering::Equal => Outcome::Stable,
            std::cmp::Ordering::Greater => {
                let doubts = self.doubts(look);
                let outcome = if doubts.is_empty() { Outcome::Confirmed } else { Outcome::Growing };
                reasons.extend(doubts);
                outcome
            }
        };
        Verdict { outcome, reasons }
    }

    /// Growth that a survey saw, which is no verdict.
    fn before_the_mark(&self) -> Option<Reason> {
        let &(elapsed_ms, then) = self.start.earlier.first()?;
        let grew = self.start.bytes.checked_sub(then).filter(|grew| *grew > 0)?;
        Some(Reason::Before { grew, readings: self.start.earlier.len() + 1, elapsed_ms })
    }

    /// What was seen.
    fn facts(&self, look: &Look, bytes: u64) -> Vec<Reason> {
        let series: Vec<u64> =
            std::iter::once(self.start.bytes).chain(self.points.iter().map(|point| point.1)).collect();
        let count = |which: fn(&u64, &u64) -> bool| series.windows(2).filter(|pair| which(&pair[1], &pair[0])).count();
        let (looks, elapsed_ms) = (self.looks, self.elapsed_ms());
        let (grew, fell) = (count(u64::gt), count(u64::lt));
        let mut facts = vec![Reason::Change { then: self.start.bytes, now: bytes, elapsed_ms, looks, grew, fell }];
        let survivors = self.survivors();
        if look.at_least > 0 && look.at_least == survivors {
            facts.push(Reason::BlocksSurvived { at_least: look.at_least, of: self.start.blocks, looks, elapsed_ms });
        } else if survivors > 0 {
            let of = self.start.outstanding.unwrap_or(survivors);
            facts.push(Reason::CountedSurvived { at_least: survivors, of, looks, elapsed_ms });
        }
        facts.extend(look.frees.map(|frees| Reason::Freed { frees, allocs: look.allocs.unwrap_or_default() }));
        if let Some((stack, blocks)) = self.keeper().filter(|_| look.frees != Some(0)) {
            facts.push(Reason::StackKeeps { stack, blocks });
        }
        facts
    }

    /// Why growth is not called a leak.
    fn doubts(&self, look: &Look) -> Vec<Reason> {
        let mut doubts = Vec::new();
        if self.looks < LOOKS {
            doubts.push(Reason::TooFew { looks: self.looks, least: LOOKS });
        }
        let trend = self.trend();
        if self.looks >= LOOKS {
            if !trend.grew_at_most() {
                doubts.push(Reason::Seldom { grew: trend.grew(), of: trend.intervals() });
            }
            if trend.has_setback() {
                doubts.push(Reason::Setback { bytes: trend.drawdown() });
            } else if !trend.is_even() {
                doubts.push(Reason::Burst);
            }
        }
        let keeps_most = match (look.allocs, look.frees) {
            (_, Some(0)) => true,
            (Some(allocs), Some(frees)) => frees <= allocs / 5,
            _ => self.start.blocks > 0 && look.at_least >= self.start.blocks - self.start.blocks / 10,
        };
        let keeper = self.keeper().is_some();
        if !keeps_most && !keeper {
            doubts.push(match (look.allocs, look.frees) {
                (Some(allocs), Some(frees)) => Reason::Churn { allocs, frees },
                _ => Reason::NoSurvivor,
            });
        } else if !keeper && !self.is_beyond_chance(look) {
            doubts.push(Reason::Chance);
        } else if self.survivors() == 0 && !keeper && !self.first_look_stays(look) {
            doubts.push(Reason::NoSurvivor);
        }
        let age_ms = self.elapsed_ms();
        match self.terms.min_age {
            Some(least) if u128::from(age_ms) < least.as_millis() => {
                doubts.push(Reason::Young { age_ms, asked_ms: least.as_millis() as u64 });
            }
            None => doubts.extend(
                self.start
                    .usual_life_ms()
                    .filter(|life| *life > age_ms)
                    .map(|life_ms| Reason::Usual { age_ms, life_ms }),
            ),
            Some(_) => {}
        }
        doubts
    }

    /// Where the counters do not tell there is nothing to be said of chance.
    fn is_beyond_chance(&self, look: &Look) -> bool {
        let Some((allocs, frees)) = look.allocs.zip(look.frees) else { return true };
        let expected = self.start.expected_frees(look.elapsed_ms);
        is_beyond_chance(allocs.wrapping_sub(frees) as i64, expected.max(frees as f64))
    }

    /// Nothing was freed since a mark that had no block: what the first look saw is there still.
    fn first_look_stays(&self, look: &Look) -> bool {
        look.frees == Some(0) && self.points.first().is_some_and(|first| first.1 > self.start.bytes)
    }
}
