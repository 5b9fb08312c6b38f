//! `!leak watch tag -every 30s [-times N] [-for 10m] [-min-age T] [-until-confirmed]`: short stops, and a verdict.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use nt_leaks::{CheckReport, Counters, Depth, Growth, Mark, Scope};
use nt_pool::Tag;
use serde::Serialize;

use super::arguments::{Arguments, FailOn, Options, no_more, scope};
use super::check::{look, write_brief, write_report};
use super::files::{export, have_places, write_files};
use super::mark::take;
use super::{Held, INFO, left};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::output::difference;
use crate::shell::{Drive, is_cancelled};
use crate::text::Width;

const EVERY: Duration = Duration::from_secs(30);
/// The shortest time between two stops.
const SHORTEST: Duration = Duration::from_millis(100);
/// So many checks, at least, make a verdict more than a guess.
const CHECKS: usize = 3;

/// What the watch comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Confirmed,
    Growing,
    Stable,
    Shrinking,
}

/// One stop.
#[derive(Debug, Clone, Serialize)]
struct Stop {
    elapsed_ms: u64,
    frozen_ms: f64,
    requests: u64,
    bytes_read: u64,
    /// In use, as the tag's counters say.
    outstanding: u64,
    bytes: u64,
    still: u64,
    freed: u64,
    reused: u64,
    new: u64,
    unknown: u64,
    /// Records that the verifier's log gained since the last stop.
    log_records: Option<u32>,
    log_wrapped: bool,
}

#[derive(Serialize)]
struct Watched {
    tag: String,
    outcome: Outcome,
    reasons: Vec<String>,
    /// Blocks that were there at the first look and are at the last, for certain.
    survivors: u64,
    /// So old are they at least.
    survivors_age_ms: u64,
    bytes_per_minute: f64,
    /// Until the pool is full at this rate, from what its size allows at most.
    exhausted_in_minutes: Option<f64>,
    at_mark: AtMark,
    checks: Vec<Stop>,
    /// The last check, as `!leak check` gives it.
    last: Option<CheckReport>,
    /// Where the watch left the target.
    target: &'static str,
    #[serde(skip)]
    options: Options,
    #[serde(skip)]
    width: Width,
    /// For one screen.
    #[serde(skip)]
    brief: bool,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct AtMark {
    outstanding: u64,
    bytes: u64,
    blocks: u64,
}

/// What is asked for, and whether its files have a place: a watch may take hours until it writes them.
fn asked(text: &str) -> Result<(Arguments, Scope), CommandError> {
    let arguments = Arguments::parse(text)?;
    let mut words = arguments.words.iter().map(String::as_str);
    let tag = words.next().ok_or_else(|| usage(&INFO, "which tag?"))?;
    let scope = scope(Some(tag), words.next())?;
    no_more(words)?;
    have_places(arguments.file.iter().chain(arguments.report.files.iter().map(|(_, file)| file)))?;
    Ok((arguments, scope))
}

/// Why `!leak watch …` would be refused, as far as that can be told without a target.
pub fn refuse_watch(text: &str) -> Result<(), CommandError> {
    asked(text).map(drop)
}

pub(super) fn run(drive: &mut Drive<'_>, text: &str) -> Result<Reply, CommandError> {
    let (arguments, scope) = asked(text)?;
    let key = scope.tag.unwrap_or_default();
    let mut notes = Vec::new();
    if !drive.is_halted() {
        drive.break_in()?;
    }
    let before = drive.cost();
    let width = drive.with(|context| context.width());
    let mut held = drive.with(|context| take(context, "watch", scope, Depth::default(), &mut notes))?;
    if let Some(file) = &arguments.file {
        held.mark.save(file).map_err(|error| CommandError::Failed(error.to_string()))?;
    }
    export(&held.mark, None, &arguments.report)?;
    let limit = drive.with(|context| pool_limit(context, &held.mark))?;
    let counters = held.mark.snapshot.counters.get(&key).copied().unwrap_or_default();
    let at_mark = AtMark {
        outstanding: outstanding(counters),
        bytes: counters.bytes,
        blocks: held.mark.snapshot.blocks.len() as u64,
    };
    let frozen = difference(before, drive.cost()).frozen.as_secs_f64() * 1000.0;
    let tag = Tag::from_key(key).0.to_string();
    drive.say(&format!(
        "Watching {tag}: {} in use, {} bytes, {} blocks listed (stopped for {frozen:.1} ms)\n",
        at_mark.outstanding, at_mark.bytes, at_mark.blocks
    ));

    let mut watch = Watch {
        key,
        tag: tag.clone(),
        at_mark,
        limit,
        stops: Vec::new(),
        first: HashSet::new(),
        last: None,
        arguments: &arguments,
    };
    let ended = watch.stops(drive, &mut held);
    let mut failure = None;
    let mut own_stop = false;
    match ended {
        Ok(End::Done) => {}
        Ok(End::OwnStop) => own_stop = true,
        Err(error) if is_cancelled(&error) => {}
        Err(error) => failure = Some(error),
    }
    if own_stop {
        let lines = drive.stop_lines().unwrap_or_default();
        drive.say(&lines);
        notes.push("the target stopped by itself; the watch ends here, and g lets the target go on".into());
    } else if drive.is_halted()
        && let Err(error) = drive.go()
    {
        failure.get_or_insert(error);
    }
    let target = drive.state();
    let (outcome, reasons) = watch.verdict();
    let fails = match arguments.fail_on {
        Some(FailOn::Confirmed) => outcome == Outcome::Confirmed,
        Some(FailOn::Growing) => matches!(outcome, Outcome::Confirmed | Outcome::Growing),
        None => false,
    };
    let (survivors, survivors_age_ms) = watch.survivors();
    let (rate, exhausted_in_minutes) = (watch.rate(), watch.exhausted());
    let Watch { stops, last, .. } = watch;
    notes.extend(last.iter().flat_map(|report| report.notes.iter().cloned()));
    let growth: Vec<Growth> =
        stops.iter().map(|stop| Growth { elapsed_ms: stop.elapsed_ms, bytes: stop.bytes }).collect();
    let answer = Watched {
        tag,
        outcome,
        reasons,
        survivors,
        survivors_age_ms,
        bytes_per_minute: rate,
        exhausted_in_minutes,
        at_mark,
        checks: stops,
        last,
        target,
        options: arguments.report.clone(),
        width,
        brief: drive.is_interactive() && !arguments.report.verbose,
    };
    if let Err(error) = write_files(answer.last.as_ref(), &growth, &answer.lines(), &answer, &arguments.report) {
        failure.get_or_insert(error);
    }
    drive.with(|context| {
        context.session.leaks.insert("watch".into(), held);
        context.session.leak_found |= fails;
    });
    let mut reply = Reply::with_notes(answer, notes);
    reply.failure = failure;
    Ok(reply)
}

fn outstanding(counters: Counters) -> u64 {
    // 32-bit counters were summed in their own width; the difference is a small number in either.
    match counters.allocs.wrapping_sub(counters.frees) {
        count if count > 1 << 32 => count & 0xffff_ffff,
        count => count,
    }
}

/// The size of the pool that the tag's blocks are of, where the version has a variable for it.
fn pool_limit(context: &mut crate::session::Context<'_>, mark: &Mark) -> Result<Option<u64>, CommandError> {
    let first = mark.snapshot.blocks.iter().find_map(|block| block.paged);
    let paged = mark.snapshot.scope.paged.or(first).unwrap_or(true);
    let name = if paged { "MmSizeOfPagedPoolInBytes" } else { "MmMaximumNonPagedPoolInBytes" };
    context.pool(|kernel| {
        let Some(address) = kernel.find_symbol(name) else { return Ok(None) };
        let mut bytes = [0; 8];
        let read = kernel.memory.read(address, &mut bytes[..usize::from(kernel.pointer_size)])?;
        let size = u64::from_le_bytes(bytes);
        Ok((read == usize::from(kernel.pointer_size) && size != 0).then_some(size))
    })
}

enum End {
    Done,
    /// The target stopped by itself.
    OwnStop,
}

struct Watch<'a> {
    key: u32,
    tag: String,
    at_mark: AtMark,
    /// The size of the pool.
    limit: Option<u64>,
    stops: Vec<Stop>,
    /// Addresses that were listed at the first check.
    first: HashSet<u64>,
    /// The last check; those before it are their lines in `stops`.
    last: Option<CheckReport>,
    arguments: &'a Arguments,
}

impl Watch<'_> {
    fn stops(&mut self, drive: &mut Drive<'_>, held: &mut Held) -> Result<End, CommandError> {
        let started = Instant::now();
        let mut every = self.arguments.every.unwrap_or(EVERY).max(SHORTEST);
        drive.go()?;
        let mut running = Instant::now();
        loop {
            let rest = self.arguments.run_for.map(|time| time.saturating_sub(started.elapsed()));
            if drive.run_for(rest.map_or(every, |rest| rest.min(every)))? {
                return Ok(End::OwnStop);
            }
            let ran = running.elapsed();
            drive.break_in()?;
            let before = drive.cost();
            let position = held.harvest.as_ref().map(|harvest| harvest.now().clone());
            let report = drive.with(|context| look(context, held))?;
            let cost = difference(before, drive.cost());
            let log = position.zip(held.harvest.as_ref()).map(|(then, harvest)| {
                let now = harvest.now();
                (now.index.wrapping_sub(then.index), now.length)
            });
            // Nobody has to stand still while files and the table are written.
            let gone = drive.go();
            running = Instant::now();
            let exported = export(&held.mark, Some(&report), &self.arguments.report);
            self.add(report, cost, log.map(|log| log.0));
            gone.and(exported)?;
            let next = (self.arguments.times.is_none_or(|times| self.stops.len() < times as usize)).then_some(every);
            drive.say_row(&self.table(next), &(self.line() + "\n"));
            if let Some((written, length)) = log
                && written > length / 2
            {
                // The log must not come round between two stops; half of it is a margin for bursts.
                let share = f64::from(length) / 2.0 / f64::from(written);
                let next = ran.mul_f64(share.min(1.0)).max(SHORTEST);
                if next < every {
                    drive.say(&format!(
                        "The log gained {written} of its {length} records: the next stop is in {:.1} s\n",
                        next.as_secs_f64()
                    ));
                    every = next;
                }
            }
            let times = self.arguments.times.is_some_and(|times| self.stops.len() >= times as usize);
            let over = self.arguments.run_for.is_some_and(|time| started.elapsed() >= time);
            let confirmed = self.arguments.until_confirmed && self.verdict().0 == Outcome::Confirmed;
            if times || over || confirmed {
                return Ok(End::Done);
            }
        }
    }

    fn add(&mut self, report: CheckReport, cost: kd_target::Cost, log_records: Option<u32>) {
        let books = report.tags.iter().find(|tag| tag.tag.key() == self.key);
        let gained = books.and_then(|tag| Some(tag.allocs?.wrapping_sub(tag.frees?))).unwrap_or_default();
        let summary = report.summary;
        self.stops.push(Stop {
            elapsed_ms: report.elapsed_ms,
            frozen_ms: (cost.frozen.as_secs_f64() * 10_000.0).round() / 10.0,
            requests: cost.requests,
            bytes_read: cost.bytes_read,
            outstanding: self.at_mark.outstanding.wrapping_add(gained),
            bytes: books.map_or(0, |tag| tag.bytes),
            still: summary.still,
            freed: summary.freed,
            reused: summary.reused,
            new: summary.new,
            unknown: summary.unknown,
            log_records,
            log_wrapped: report.log_wrapped,
        });
        if self.stops.len() == 1 {
            self.first = listed(&report);
        }
        self.last = Some(report);
    }

    fn line(&self) -> String {
        let Some(stop) = self.stops.last() else { return String::new() };
        format!(
            "{:>8.1} s  {:>8} in use  {:>12} bytes  {:>5} still {:>5} freed {:>5} reused {:>5} new {:>5} unknown  stopped \
             {:>6.1} ms",
            stop.elapsed_ms as f64 / 1000.0,
            stop.outstanding,
            stop.bytes,
            stop.still,
            stop.freed,
            stop.reused,
            stop.new,
            stop.unknown,
            stop.frozen_ms,
        )
    }

    /// What is redrawn at a terminal: the last stops below a head line.
    fn table(&self, next: Option<Duration>) -> String {
        const ROWS: usize = 10;
        let seconds = self.stops.last().map_or(0, |stop| stop.elapsed_ms) as f64 / 1000.0;
        let mut table = format!(
            "{}: {} bytes  {}  {} checks in {seconds:.1} s",
            self.tag,
            self.bytes(),
            self.sparkline(),
            self.stops.len()
        );
        if let Some(next) = next {
            table += &format!("; the next one in {:.1} s, Ctrl+C ends", next.as_secs_f64());
        }
        table += "\n      time    in use         bytes  still  freed reused    new unknown   stopped\n";
        for stop in &self.stops[self.stops.len().saturating_sub(ROWS)..] {
            table += &format!(
                "{:>8.1} s {:>9} {:>13} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6.1} ms\n",
                stop.elapsed_ms as f64 / 1000.0,
                stop.outstanding,
                stop.bytes,
                stop.still,
                stop.freed,
                stop.reused,
                stop.new,
                stop.unknown,
                stop.frozen_ms
            );
        }
        table
    }

    /// Bytes in use at the mark and at the last stops.
    fn sparkline(&self) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const WIDTH: usize = 16;
        let all: Vec<u64> =
            std::iter::once(self.at_mark.bytes).chain(self.stops.iter().map(|stop| stop.bytes)).collect();
        let shown = &all[all.len().saturating_sub(WIDTH)..];
        let (least, most) = (shown.iter().min().copied().unwrap_or(0), shown.iter().max().copied().unwrap_or(0));
        let bar = |bytes: &u64| match most - least {
            0 => BARS[3],
            range => BARS[(u128::from(bytes - least) * 7 / u128::from(range)) as usize],
        };
        shown.iter().map(bar).collect()
    }

    fn bytes(&self) -> u64 {
        self.stops.last().map_or(self.at_mark.bytes, |stop| stop.bytes)
    }

    /// Bytes a minute of the target's running time.
    fn rate(&self) -> f64 {
        let Some(last) = self.stops.last().filter(|stop| stop.elapsed_ms > 0) else { return 0.0 };
        (last.bytes as f64 - self.at_mark.bytes as f64) / (last.elapsed_ms as f64 / 60_000.0)
    }

    /// Minutes until the pool is full at this rate, if nothing else were in it.
    fn exhausted(&self) -> Option<f64> {
        let rate = self.rate();
        let left = self.limit?.checked_sub(self.bytes())?;
        (rate > 0.0).then(|| left as f64 / rate)
    }

    /// How many blocks are known to have been there at all looks, and for how long.
    fn survivors(&self) -> (u64, u64) {
        let Some(report) = &self.last else { return (0, 0) };
        let books = report.tags.iter().find(|tag| tag.tag.key() == self.key);
        (books.map_or(0, |tag| tag.at_least), report.elapsed_ms)
    }

    /// Growth alone is no leak: the pool must grow again and again, and what was allocated must stay.
    fn verdict(&self) -> (Outcome, Vec<String>) {
        let mut reasons = Vec::new();
        let (Some(last), Some(report)) = (self.stops.last(), &self.last) else {
            return (Outcome::Stable, vec!["no check was made".into()]);
        };
        let series: Vec<u64> =
            std::iter::once(self.at_mark.bytes).chain(self.stops.iter().map(|stop| stop.bytes)).collect();
        let grew = series.windows(2).filter(|pair| pair[1] > pair[0]).count();
        let fell = series.windows(2).filter(|pair| pair[1] < pair[0]).count();
        let checks = self.stops.len();
        let seconds = last.elapsed_ms as f64 / 1000.0;
        let change = last.bytes as i128 - i128::from(self.at_mark.bytes);
        reasons.push(format!(
            "{} bytes at the mark, {} after {seconds:.1} s; of {checks} checks {grew} grew, {fell} fell",
            self.at_mark.bytes, last.bytes
        ));
        let (at_least, age) = self.survivors();
        if at_least > 0 {
            reasons.push(format!(
                "at least {at_least} of the {} blocks of the mark survived {checks} checks, {:.1} s and more",
                self.at_mark.blocks,
                age as f64 / 1000.0
            ));
        }
        let frees = report.tags.iter().find(|tag| tag.tag.key() == self.key).and_then(|tag| tag.frees);
        if let Some(frees) = frees {
            reasons.push(match frees {
                0 => "nothing of this tag was freed since the mark".into(),
                frees => format!("{frees} allocations of this tag were freed since the mark"),
            });
        }
        // Blocks that were new at the first check and are listed at the last.
        let kept = self.first.intersection(&listed(report)).count();
        let old_enough = self.arguments.min_age.is_none_or(|age| u128::from(last.elapsed_ms) >= age.as_millis());
        if !old_enough {
            reasons.push(format!("no survivor is as old as -min-age yet ({seconds:.1} s)"));
        }
        if change > 0 {
            let rate = self.rate();
            let full = self
                .exhausted()
                .map(|minutes| format!("; at this rate the pool is exhausted in {minutes:.0} minutes at the latest"));
            reasons.push(format!("it grows by {rate:.0} bytes a minute{}", full.unwrap_or_default()));
        }
        if change < 0 {
            return (Outcome::Shrinking, reasons);
        }
        if change == 0 {
            return (Outcome::Stable, reasons);
        }
        let steady = grew >= CHECKS.min(checks.max(2)) - 1 && grew > fell;
        let survivors = at_least > 0 || (frees == Some(0) && kept > 0);
        if checks >= CHECKS && steady && survivors && old_enough {
            return (Outcome::Confirmed, reasons);
        }
        if checks < CHECKS {
            reasons.push(format!("{checks} checks are too few for a verdict (at least {CHECKS})"));
        } else if !survivors {
            reasons.push("no block is proved to have survived".into());
        }
        (Outcome::Growing, reasons)
    }
}

fn listed(report: &CheckReport) -> HashSet<u64> {
    report.blocks.iter().filter(|block| block.listed).map(|block| block.address).collect()
}

impl Watched {
    /// The outcome, and why.
    fn lines(&self) -> Vec<String> {
        let outcome = match self.outcome {
            Outcome::Confirmed => "confirmed leak",
            Outcome::Growing => "growing, not confirmed",
            Outcome::Stable => "stable",
            Outcome::Shrinking => "shrinking",
        };
        std::iter::once(format!("{}: {outcome}", self.tag)).chain(self.reasons.iter().cloned()).collect()
    }
}

impl Text for Watched {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if let Some(last) = &self.last {
            writeln!(out)?;
            match self.brief {
                true => write_brief(last, &self.options, out)?,
                false => write_report(last, &self.options, self.width, out)?,
            }
        }
        writeln!(out, "\n{}", self.lines().join("\n  "))?;
        writeln!(out, "{}", left(self.target))
    }
}
