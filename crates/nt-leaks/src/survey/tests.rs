//! Random machines: tags that breathe, wander, are born and die, and some that leak.

use std::f64::consts::TAU;

use super::*;
use crate::identity::{Identity, Times};
use crate::watch::{self, Look, Outcome, Start, Watch};

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }

    /// More small ones than large ones.
    fn log_between(&mut self, low: f64, high: f64) -> f64 {
        (self.between(low.ln(), high.ln())).exp()
    }

    /// As many whole steps as a rate makes, the rest by chance.
    fn steps(&mut self, rate: f64) -> u64 {
        rate as u64 + u64::from(self.share() < rate.fract())
    }
}

#[derive(Clone, Copy)]
enum Life {
    Still,
    /// Up and down around a mean, with others that come and go.
    Breathes {
        mean: f64,
        amplitude: f64,
        period_s: f64,
        phase: f64,
        churn: f64,
    },
    /// As many allocations as frees, by chance.
    Wanders {
        rate: f64,
    },
    /// Allocates all it needs within two seconds, and may free it later.
    Born {
        at_s: f64,
        blocks: f64,
        dies_s: f64,
    },
    /// Grows by this share of what it had at first, each minute.
    Leaks {
        base: f64,
        per_minute: f64,
        churn: f64,
    },
}

struct Used {
    key: Key,
    size: u64,
    life: Life,
    counters: Counters,
    /// What is due.
    due: f64,
}

struct Machine {
    random: Random,
    tags: Vec<Used>,
    ms: u64,
    started_ms: u64,
}

const STEP_MS: u64 = 500;

impl Machine {
    fn new(seed: u64) -> Machine {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        // From hours to weeks.
        let started_ms = (random.log_between(3.0, 500.0) * 3_600_000.0) as u64;
        let leaks = 1 + random.below(5);
        let count = 30 + random.below(70);
        let mut machine = Machine { random, tags: Vec::new(), ms: started_ms, started_ms };
        for n in 0..count {
            let life = machine.life(n < leaks);
            machine.plant(n as u32, life);
        }
        machine
    }

    fn life(&mut self, leaks: bool) -> Life {
        let random = &mut self.random;
        if leaks {
            // Enough blocks that a tenth of a percent a minute is some.
            let per_minute = random.log_between(0.001, 0.5);
            let base = random.log_between(2000.0f64.max(20.0 / per_minute), 200_000.0f64.max(40.0 / per_minute));
            return Life::Leaks { base, per_minute, churn: 0.0 };
        }
        match random.below(10) {
            0..=2 => Life::Still,
            3..=6 => Life::Breathes {
                mean: random.log_between(50.0, 50_000.0),
                amplitude: random.between(0.02, 0.6),
                period_s: random.log_between(3.0, 300.0),
                phase: random.between(0.0, TAU),
                churn: if random.below(3) == 0 { 0.0 } else { random.log_between(0.1, 500.0) },
            },
            7 | 8 => Life::Wanders { rate: random.log_between(0.5, 500.0) },
            _ => {
                let at_s = random.between(0.0, 400.0);
                let dies_s = at_s + random.log_between(3.0, 400.0);
                Life::Born { at_s, blocks: random.log_between(10.0, 20_000.0), dies_s }
            }
        }
    }

    fn plant(&mut self, n: u32, life: Life) {
        let up_s = self.started_ms as f64 / 1000.0;
        let (in_use, frees) = match life {
            Life::Still => (self.random.below(5000), self.random.below(1_000_000)),
            Life::Breathes { mean, amplitude, period_s, phase, churn } => {
                let breath = 4.0 * amplitude * mean / period_s;
                let now = mean * (1.0 + amplitude * phase.sin());
                (now as u64, (up_s * (churn + breath / 2.0)) as u64)
            }
            Life::Wanders { rate } => (500 + self.random.below(20_000), (up_s * rate) as u64),
            Life::Born { .. } => (0, 0),
            Life::Leaks { base, .. } => (base as u64, self.random.below(base as u64)),
        };
        let size = 16 * (1 + self.random.below(200));
        let counters = Counters { allocs: in_use + frees, frees, bytes: in_use * size };
        let tag = u32::from_le_bytes(*b"Aa00") + ((n / 64) << 24) + ((n % 64) << 16);
        let key = Key { tag, paged: n.is_multiple_of(2) };
        self.tags.push(Used { key, size, life, counters, due: 0.0 });
    }

    fn run(&mut self, time: Duration) {
        let end = self.ms + time.as_millis() as u64;
        while self.ms < end {
            self.ms += STEP_MS;
            let seconds = STEP_MS as f64 / 1000.0;
            let t = (self.ms - self.started_ms) as f64 / 1000.0;
            for used in &mut self.tags {
                let in_use = used.counters.allocs - used.counters.frees;
                let (allocs, frees) = match used.life {
                    Life::Still => (0, 0),
                    Life::Breathes { mean, amplitude, period_s, phase, churn } => {
                        let wanted = mean * (1.0 + amplitude * (phase + TAU * t / period_s).sin());
                        let both = self.random.steps(churn * seconds);
                        let more = (wanted as u64).saturating_sub(in_use);
                        (both + more, both + in_use.saturating_sub(wanted as u64))
                    }
                    Life::Wanders { rate } => {
                        let random = &mut self.random;
                        let mut some = || {
                            let share = random.share();
                            random.steps(rate * seconds * 2.0 * share)
                        };
                        (some(), some())
                    }
                    Life::Born { at_s, blocks, dies_s } => match () {
                        () if t >= dies_s => (0, in_use),
                        () if t >= at_s && t < at_s + 2.0 => (self.random.steps(blocks * seconds / 2.0), 0),
                        () => (0, 0),
                    },
                    Life::Leaks { base, per_minute, churn } => {
                        used.due += base * per_minute * seconds / 60.0;
                        let whole = used.due as u64;
                        used.due -= whole as f64;
                        let both = self.random.steps(churn * seconds);
                        (whole + both, both)
                    }
                };
                let frees = frees.min(in_use + allocs);
                used.counters.allocs += allocs;
                used.counters.frees += frees;
                used.counters.bytes = (used.counters.allocs - used.counters.frees) * used.size;
            }
        }
    }

    fn reading(&self, only: Option<&BTreeSet<u32>>) -> Reading {
        let wanted = |used: &&Used| only.is_none_or(|only| only.contains(&used.key.tag)) && used.counters.allocs > 0;
        let identity = Identity {
            build: 7601,
            pointer_size: 8,
            pdb: None,
            pdb_at: None,
            image: None,
            base: 0,
            boot_time: None,
            boot_id: None,
        };
        Reading {
            at_ms: self.ms,
            rows: self.tags.iter().filter(wanted).map(|used| (used.key, used.counters)).collect(),
            bits: Some(64),
            is_whole: only.is_none(),
            pages: Pages::default(),
            identity,
            times: Times::default(),
            notes: Vec::new(),
        }
    }

    /// Planted, and grown so far by at least this many blocks.
    fn planted(&self) -> BTreeSet<u32> {
        let leaks = self.tags.iter().filter(|used| matches!(used.life, Life::Leaks { .. }));
        leaks.map(|used| used.key.tag).collect()
    }

    /// The hunt's second half: watches one tag until the watch is over.
    fn watch(&mut self, tag: u32, survey: &Survey) -> Outcome {
        let at = |machine: &Machine| machine.tags.iter().find(|used| used.key.tag == tag).unwrap().counters;
        let (then, marked) = (at(self), self.ms);
        let in_use = then.allocs - then.frees;
        let start = Start {
            outstanding: Some(in_use),
            bytes: then.bytes,
            blocks: 0,
            frees: then.frees,
            uptime_ms: self.ms,
            earlier: survey.earlier(tag),
        };
        let mut watch = Watch::new(watch::Terms::default(), start, None);
        while !watch.is_over(Duration::from_millis(self.ms - marked)) {
            self.run(watch.next_interval().after);
            let now = at(self);
            watch.add(Look {
                elapsed_ms: self.ms - marked,
                bytes: Some(now.bytes),
                allocs: Some(now.allocs - then.allocs),
                frees: Some(now.frees - then.frees),
                ..Look::default()
            });
        }
        watch.verdict().outcome
    }
}

/// As many requests as all tags cost on the article's machine.
const WHOLE: u64 = 122;

fn survey(machine: &mut Machine, terms: Terms) -> Survey {
    let (mut survey, started) = (Survey::new(terms), machine.ms);
    loop {
        let only = survey.follows(WHOLE);
        survey.add(&machine.reading(only.as_ref()));
        if survey.is_over(Duration::from_millis(machine.ms - started)) {
            return survey;
        }
        machine.run(survey.next_interval());
    }
}

/// Whoever has ten minutes sees what leaks before everything that breathes, wanders, is born and dies.
#[test]
fn what_is_planted_is_ranked_first() {
    for seed in 0..60 {
        let mut machine = Machine::new(seed);
        let mut survey = Survey::new(Terms::default());
        for _ in 0..41 {
            survey.add(&machine.reading(None));
            machine.run(Duration::from_secs(15));
        }
        let planted = machine.planted();
        let growers = survey.growers();
        let found: BTreeSet<u32> = growers.iter().take(planted.len()).map(|grower| grower.tag.key()).collect();
        assert_eq!(found, planted, "seed {seed}: {:#?}", &growers[..growers.len().min(8)]);
    }
}

/// The hunt as it is when nobody says how long: whatever it comes to, no tag is called a leak that is none, and where
/// something leaks fast it is found.
#[test]
fn no_tag_is_confirmed_that_does_not_leak() {
    let (mut confirmed, mut first, mut runs) = (0, 0, 0);
    for seed in 0..1000 {
        let mut machine = Machine::new(seed);
        let found = survey(&mut machine, Terms::default());
        let planted = machine.planted();
        let growers: Vec<Grower> = found.growers().into_iter().filter(|grower| grower.grade > Grade::Uneven).collect();
        runs += 1;
        first += u64::from(growers.first().is_some_and(|grower| planted.contains(&grower.tag.key())));
        for grower in growers.iter().take(3) {
            let tag = grower.tag.key();
            let outcome = machine.watch(tag, &found);
            let what = format!("seed {seed}: {grower:#?}");
            assert!(outcome != Outcome::Confirmed || planted.contains(&tag), "{what}");
            confirmed += u64::from(outcome == Outcome::Confirmed);
        }
    }
    eprintln!("{runs} machines: a planted leak first in {first}, {confirmed} confirmed");
    assert!(first >= runs * 95 / 100 && confirmed >= runs * 90 / 100, "{first} of {runs} first, {confirmed} confirmed");
}

fn reading(ms: u64, whole: bool, rows: &[(&[u8; 4], u64, u64)], pages: Pages) -> Reading {
    let row = |&(tag, allocs, frees): &(&[u8; 4], u64, u64)| {
        let key = Key { tag: u32::from_le_bytes(*tag), paged: false };
        (key, Counters { allocs, frees, bytes: 0x100 * (allocs - frees) })
    };
    Reading { at_ms: ms, rows: rows.iter().map(row).collect(), is_whole: whole, pages, ..Machine::new(1).reading(None) }
}

#[test]
fn few_that_grow_are_followed_alone() {
    let mut survey = Survey::new(Terms::default());
    assert_eq!(survey.follows(WHOLE), None);
    let none = Pages::default();
    survey.add(&reading(0, true, &[(b"Leak", 10, 0), (b"Stay", 100, 90), (b"Fall", 50, 10)], none));
    assert_eq!((survey.follows(WHOLE), survey.next_interval()), (None, FIRST));
    survey.add(&reading(2000, true, &[(b"Leak", 12, 0), (b"Stay", 110, 100), (b"Fall", 50, 12)], none));
    let leak: BTreeSet<u32> = [u32::from_le_bytes(*b"Leak")].into();
    assert_eq!((survey.follows(WHOLE), survey.next_interval()), (Some(leak.clone()), NEXT));
    assert!(survey.is_over(Duration::ZERO), "one tag grows, and keeps all");
    assert_eq!(survey.follows(3), None, "reading all costs less");
    survey.add(&reading(3000, false, &[(b"Leak", 13, 0)], none));
    survey.add(&reading(4000, false, &[(b"Leak", 14, 0)], none));
    assert!(survey.is_over(Duration::ZERO));
    let growers = survey.growers();
    assert_eq!(growers.len(), 1, "{growers:?}");
    assert_eq!((growers[0].grade, growers[0].bytes_then, growers[0].bytes), (Grade::Leaks, 0xa00, 0xe00));
    assert_eq!((growers[0].count_per_minute, growers[0].intervals), (60.0, 3));
    assert_eq!(survey.earlier(*leak.first().unwrap()), [(4000, 0xa00), (2000, 0xc00), (1000, 0xd00)]);
}

#[test]
fn a_survey_of_a_quiet_machine_ends() {
    let mut survey = Survey::new(Terms { run_for: Some(Duration::from_secs(10)), ..Terms::default() });
    let mut intervals = Vec::new();
    for ms in [0, 2000, 6000, 14_000] {
        survey.add(&reading(ms, true, &[(b"Stay", 110, 100)], Pages::default()));
        intervals.push(survey.next_interval().as_secs());
        assert_eq!(survey.is_over(Duration::from_millis(ms)), ms == 14_000);
    }
    assert_eq!(intervals, [2, 4, 8, 16]);
    assert!(survey.growers().is_empty() && survey.untagged().is_none());
    assert_eq!((survey.tags(), survey.elapsed_ms(), survey.in_use(false)), (1, 14_000, 0xa00));
}

/// Page ranges and MDLs have no tag.
#[test]
fn memory_that_no_tag_shows_is_told() {
    let grown = |nonpaged: u64, mdl: u64, blocks: u64| {
        let mut survey = Survey::new(Terms::default());
        for i in 0..4 {
            let pages = Pages { nonpaged: Some((50 << 20) + i * nonpaged), paged: None, mdl: Some(4096 + i * mdl) };
            survey.add(&reading(60_000 * i, true, &[(b"Used", 100 + i * blocks, 0)], pages));
        }
        survey.untagged()
    };
    assert_eq!(grown(0, 0, 0), None);
    let found = grown(2 << 20, 0, 0).unwrap();
    assert_eq!((found.nonpaged, found.mdl, found.bytes_per_minute), (6 << 20, 0, f64::from(2 << 20)));
    assert_eq!(grown(0, 1 << 20, 0).map(|found| found.mdl), Some(3 << 20));
    // The tags in it grow as much.
    assert_eq!(grown(2 << 20, 0, (2 << 20) / 0x100), None);
    assert_eq!(grown(1 << 16, 0, 0), None);
}
