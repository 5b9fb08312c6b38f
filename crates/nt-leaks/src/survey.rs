//! Which tags grow: readings of the kernel's counters, without a look at the pool itself.
//!
//! The first and the second reading are of all tags. Those between which a tag grew are followed alone from then on,
//! where that costs less than reading all: on a machine with some hundred tags few grow within seconds. A tag that
//! breathes, that is born or that dies falls out by its trend (`trend.rs`).

mod reading;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nt_pool::{Tag, TagPattern};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::snapshot::Counters;
use crate::trend::{Point, Trend};
use crate::watch::{LONGEST, SHORTEST, is_beyond_chance, usual_life_ms};

pub use reading::{Pages, Reading};

/// Time between the first two readings where nobody says how long.
const FIRST: Duration = Duration::from_secs(2);
/// Time between the following ones, as long as something grows.
const NEXT: Duration = Duration::from_secs(1);
/// A survey that sees nothing that leaks ends after this time, where nobody says when.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// So many readings, at least, tell growth from a breath.
pub(crate) const READINGS: usize = 4;
/// Where no more tags than this grow, and all of them as a leak does, checks tell more than readings.
const FEW: usize = 2;
/// Requests that following one tag costs: its row by the hash, in each processor's table.
const REQUESTS_OF_A_TAG: u64 = 4;
/// Bytes by which pool grows beside its tags before that is worth a word.
const UNTAGGED: u64 = 1 << 20;

/// What growth is measured in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum By {
    /// Bytes in use.
    #[default]
    Bytes,
    /// Allocations in use.
    Count,
}

/// A tag in one of the two pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// As the kernel compares it.
    pub tag: u32,
    /// Paged or nonpaged pool.
    pub paged: bool,
}

/// How much a tag's growth is like that of a leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// It fell in between, or grew all at once.
    Uneven,
    /// It grows steadily, and much of what it allocates is freed again, or used to be: by its past it may grow as much by
    /// chance, or its blocks live for longer than it was followed.
    Steady,
    /// It grows steadily and keeps what it allocates.
    Leaks,
}

impl Grade {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Uneven => "uneven",
            Grade::Steady => "steady",
            Grade::Leaks => "leaks",
        }
    }
}

/// A tag that grew.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Grower {
    /// The tag that grew.
    #[serde(with = "crate::check::tag")]
    #[schemars(with = "String", length(equal = 4))]
    pub tag: Tag,
    /// Paged or nonpaged pool.
    pub paged: bool,
    /// How much it looks like a leak.
    pub grade: Grade,
    /// At the first reading and at the last.
    pub bytes_then: u64,
    /// At the last reading.
    pub bytes: u64,
    /// Allocations in use at the first reading.
    pub count_then: u64,
    /// And at the last.
    pub count: u64,
    /// In between.
    pub allocs: u64,
    /// Frees in between.
    pub frees: u64,
    /// The slope of most of the time.
    pub bytes_per_minute: f64,
    /// The same of allocations in use.
    pub count_per_minute: f64,
    /// How much of all that moved was growth, 0 to 1.
    pub steadiness: f64,
    /// Of so many intervals it grew in so many.
    pub intervals: usize,
    /// In how many of them.
    pub grew: usize,
}

/// Pool that grew without a tag: page ranges, contiguous memory, pages of MDLs.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Untagged {
    /// What the kernel counts as nonpaged pool grew by so much more than the tags in it.
    pub nonpaged: u64,
    /// Pages for MDLs, which are not of a pool.
    pub mdl: u64,
    /// Both together.
    pub bytes_per_minute: f64,
}

/// When a survey ends, and what it leaves out.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// What growth is ranked by.
    pub by: By,
    /// Tags that are nobody's business.
    pub exclude: Vec<TagPattern>,
    /// Only this pool.
    pub paged: Option<bool>,
    /// Between two readings; `None`: seconds at first, and longer as long as nothing leaks.
    pub every: Option<Duration>,
    /// It ends after this time at the latest.
    pub run_for: Option<Duration>,
    /// So many readings are enough, though never fewer than it takes to tell growth from chance.
    pub readings: Option<usize>,
}

/// One tag's counters at the readings that had it.
#[derive(Debug, Clone, Default)]
struct Track {
    points: Vec<(u64, Counters)>,
}

/// Readings, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    terms: Terms,
    tracks: BTreeMap<Key, Track>,
    /// When each reading was made, of the target's running time.
    times: Vec<u64>,
    /// When those of all tags were.
    whole: Vec<u64>,
    pages: Vec<(u64, Pages, u64)>,
    bits: Option<u8>,
    after: Duration,
}

impl Survey {
    /// Without a reading yet.
    pub fn new(terms: Terms) -> Survey {
        let after = terms.every.unwrap_or(FIRST).max(SHORTEST);
        Survey { terms, after, ..Survey::default() }
    }

    /// Takes the next reading into account.
    pub fn add(&mut self, reading: &Reading) {
        let now = reading.at_ms;
        self.bits = self.bits.or(reading.bits);
        self.times.push(now);
        if reading.is_whole {
            // A tag without a row has never been used.
            let earlier: Vec<u64> = self.whole.clone();
            for (key, counters) in &reading.rows {
                let track = self
                    .tracks
                    .entry(*key)
                    .or_insert_with(|| Track { points: earlier.iter().map(|ms| (*ms, Counters::default())).collect() });
                track.points.push((now, *counters));
            }
            self.whole.push(now);
            let nonpaged = reading.rows.iter().filter(|(key, _)| !key.paged).map(|(_, counters)| counters.bytes);
            self.pages.push((now, reading.pages, nonpaged.fold(0, u64::saturating_add)));
        } else {
            for (key, counters) in &reading.rows {
                if let Some(track) = self.tracks.get_mut(key) {
                    track.points.push((now, *counters));
                }
            }
        }
        self.set_pace();
    }

    fn set_pace(&mut self) {
        if self.terms.every.is_some() {
            return;
        }
        let grows =
            self.untagged().is_some() || self.growers().first().is_some_and(|first| first.grade == Grade::Leaks);
        self.after = match (self.times.len(), grows) {
            (0 | 1, _) => FIRST,
            (_, true) if self.times.len() < READINGS => NEXT,
            _ => (self.after * 2).min(LONGEST),
        };
    }

    /// How long the target may run until the next reading.
    pub fn next_interval(&self) -> Duration {
        self.after
    }

    /// The tags that the next reading may be limited to; `None`: all. `whole`: requests that a reading of all costs.
    pub fn follows(&self, whole: u64) -> Option<BTreeSet<u32>> {
        if self.whole.len() < 2 {
            return None;
        }
        let growers = self.growers();
        let leads = growers.first().is_some_and(|first| first.grade == Grade::Leaks);
        let tags: BTreeSet<u32> = growers.iter().map(|grower| grower.tag.key()).collect();
        (leads && tags.len() as u64 * REQUESTS_OF_A_TAG < whole).then_some(tags)
    }

    /// Enough is known to go on with what grows, or nothing leaks in the time that was given. `ran`: for how long the
    /// survey goes on.
    pub fn is_over(&self, ran: Duration) -> bool {
        if self.times.len() < READINGS {
            let growers = self.growers();
            let evident = growers.iter().all(|grower| grower.grade == Grade::Leaks);
            return self.times.len() >= 2 && (1..=FEW).contains(&growers.len()) && evident;
        }
        let evident = |grower: &Grower| grower.grade == Grade::Leaks && grower.grew == grower.intervals;
        let enough = self.terms.readings.is_some_and(|most| self.times.len() >= most.max(READINGS));
        // Readings that are limited to some tags tell nothing of other memory.
        let beside = self.whole.len() > READINGS && self.untagged().is_some();
        beside || self.growers().first().is_some_and(evident) || enough || ran >= self.terms.run_for.unwrap_or(PATIENCE)
    }

    /// Whether a survey whose growers turned out to be none may go on. `ran`: as of [`Survey::is_over`].
    pub fn has_time(&self, ran: Duration) -> bool {
        ran < self.terms.run_for.unwrap_or(PATIENCE)
    }

    /// How many there were.
    pub fn readings(&self) -> usize {
        self.times.len()
    }

    /// From the first reading to the last.
    pub fn elapsed_ms(&self) -> u64 {
        match (self.times.first(), self.times.last()) {
            (Some(first), Some(last)) => last.saturating_sub(*first),
            _ => 0,
        }
    }

    /// Tags that are known.
    pub fn tags(&self) -> usize {
        self.tracks.keys().map(|key| key.tag).collect::<BTreeSet<_>>().len()
    }

    /// The tags that grew: those that leak first, and the fastest of them first.
    pub fn growers(&self) -> Vec<Grower> {
        let wanted = |key: &Key| {
            let tag = Tag::from_key(key.tag).0;
            self.terms.paged.is_none_or(|paged| paged == key.paged)
                && !self.terms.exclude.iter().any(|pattern| pattern.matches(tag))
        };
        let tracks = self.tracks.iter().filter(|(key, _)| wanted(key));
        let mut growers: Vec<Grower> = tracks.filter_map(|(key, track)| self.grower(*key, track)).collect();
        growers.sort_by(|a, b| {
            let speed = |grower: &Grower| match self.terms.by {
                By::Bytes => grower.bytes_per_minute,
                By::Count => grower.count_per_minute,
            };
            (Reverse(a.grade), speed(b)).partial_cmp(&(Reverse(b.grade), speed(a))).unwrap_or(std::cmp::Ordering::Equal)
        });
        growers
    }

    fn grower(&self, key: Key, track: &Track) -> Option<Grower> {
        let (first, last) = (track.points.first()?.1, track.points.last()?.1);
        let in_use = |counters: Counters| u64::try_from(counters.outstanding(self.bits)).unwrap_or(0);
        let trend = |value: &dyn Fn(Counters) -> u64| {
            Trend::of(track.points.iter().map(|(ms, counters)| Point { ms: *ms as i64, value: value(*counters) }))
        };
        let (bytes, count) = (trend(&|counters| counters.bytes), trend(&in_use));
        let measured = match self.terms.by {
            By::Bytes => &bytes,
            By::Count => &count,
        };
        if measured.net() <= 0 {
            return None;
        }
        let mask = u64::MAX >> (64 - u32::from(self.bits.unwrap_or(64).clamp(1, 64)));
        let (allocs, frees) =
            (last.allocs.wrapping_sub(first.allocs) & mask, last.frees.wrapping_sub(first.frees) & mask);
        let watched = self.elapsed_ms();
        let uptime = self.times.first().copied().unwrap_or_default();
        let expected = first.frees as f64 * watched as f64 / uptime.max(1) as f64;
        let by_chance = !is_beyond_chance(count.net(), expected.max(frees as f64));
        let is_young = usual_life_ms(in_use(first), first.frees, uptime).is_some_and(|life| life > watched);
        // Two readings have one interval, which has no halves.
        let uneven = measured.has_setback() || measured.intervals() > 2 && !measured.is_even();
        let grade = match () {
            () if uneven || measured.slope() <= 0.0 => Grade::Uneven,
            () if is_young || by_chance || frees > allocs / 5 => Grade::Steady,
            () => Grade::Leaks,
        };
        Some(Grower {
            tag: Tag::from_key(key.tag).0,
            paged: key.paged,
            grade,
            bytes_then: first.bytes,
            bytes: last.bytes,
            count_then: in_use(first),
            count: in_use(last),
            allocs,
            frees,
            bytes_per_minute: bytes.slope(),
            count_per_minute: count.slope(),
            steadiness: measured.steadiness(),
            intervals: measured.intervals(),
            grew: measured.grew(),
        })
    }

    /// A tag's bytes in both pools at the readings before the last: milliseconds before it, bytes.
    pub fn earlier(&self, tag: u32) -> Vec<(u64, u64)> {
        let Some(&last) = self.times.last() else { return Vec::new() };
        let mut sums: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        let pools = self.tracks.iter().filter(|(key, _)| key.tag == tag);
        let count = pools.clone().count() as u32;
        for (_, track) in pools {
            for (ms, counters) in track.points.iter().filter(|point| point.0 < last) {
                let sum = sums.entry(*ms).or_default();
                *sum = (sum.0.wrapping_add(counters.bytes), sum.1 + 1);
            }
        }
        // Where only one of the pools was read there is no sum.
        sums.into_iter().filter(|(_, (_, seen))| *seen == count).map(|(ms, (bytes, _))| (last - ms, bytes)).collect()
    }

    /// Bytes that all tags of a pool had at the last reading of all.
    pub fn in_use(&self, paged: bool) -> u64 {
        let last = self.whole.last().copied();
        let tracks = self.tracks.iter().filter(|(key, _)| key.paged == paged);
        let at =
            |track: &Track| track.points.iter().find(|point| Some(point.0) == last).map_or(0, |point| point.1.bytes);
        tracks.map(|(_, track)| at(track)).fold(0, u64::saturating_add)
    }

    /// Memory that grew and that no tag shows; `None` where it did not, or the kernel does not count it.
    pub fn untagged(&self) -> Option<Untagged> {
        let (first, last) = (self.pages.first()?, self.pages.last()?);
        let elapsed = last.0.checked_sub(first.0).filter(|elapsed| *elapsed > 0)?;
        let grown =
            |then: Option<u64>, now: Option<u64>| now.zip(then).map_or(0, |(now, then)| now.saturating_sub(then));
        let tagged = last.2.saturating_sub(first.2);
        let nonpaged = grown(first.1.nonpaged, last.1.nonpaged).saturating_sub(tagged);
        // Small blocks fill pages that were there: the pool grows in steps, and its tags do not.
        let nonpaged = if nonpaged > tagged { nonpaged } else { 0 };
        let mdl = grown(first.1.mdl, last.1.mdl);
        let rises = |of: fn(&Pages) -> Option<u64>| {
            Trend::of(self.pages.iter().filter_map(|(ms, pages, _)| Some(Point { ms: *ms as i64, value: of(pages)? })))
        };
        let steady = |trend: Trend| trend.intervals() > 1 && trend.grew_at_most() && !trend.has_setback();
        let nonpaged = if steady(rises(|pages| pages.nonpaged)) { nonpaged } else { 0 };
        let mdl = if steady(rises(|pages| pages.mdl)) { mdl } else { 0 };
        let all = nonpaged.saturating_add(mdl);
        let bytes_per_minute = all as f64 * 60_000.0 / elapsed as f64;
        (all >= UNTAGGED).then_some(Untagged { nonpaged, mdl, bytes_per_minute })
    }
}
