//! `!leak watch [tag] [-every 30s] [-times N] [-for 10m] [-min-age T] [-until-confirmed]`: short stops, and a verdict.
//!
//! What confirms a leak, when to look again and when to end is nt-leaks' business ([`nt_leaks::watch`]); here the target
//! is let go and stopped, and what is seen is shown.

use std::time::Instant;

use kd_target::Cost;
use nt_leaks::survey::{By, Grade};
use nt_leaks::watch::{LogGain, Look, Outcome, Start, Terms, Watch};
use nt_leaks::{AtMark, CheckReport, Depth, Ended, Scope, Stop, Trails, WatchReport, units};
use nt_pool::{Tag, tags};

use super::INFO;
use super::arguments::{Arguments, FailOn};
use super::check::look;
use super::files::{Source, export, now, write_files};
use super::mark::take;
use super::naming::Naming;
use super::survey::{self, Found};
use super::watched::{Origin, Watched, mood, row};
use crate::answer::Reply;
use crate::command::usage;
use crate::error::CommandError;
use crate::marks::Held;
use crate::output::difference;
use crate::session::{Context, HuntEnd};
use crate::shell::{Drive, is_cancelled};
use crate::vertarget::system;

/// Tags that a hunt marks where nobody says how many.
const TOP: u32 = 3;

/// A tag that is watched.
struct Quarry {
    key: u32,
    held: Held,
    watch: Watch,
    paged: Option<bool>,
    at_mark: AtMark,
    stops: Vec<Stop>,
    /// The last check; those before it are their lines in `stops`.
    last: Option<CheckReport>,
    trails: Trails,
}

impl Quarry {
    fn tag(&self) -> String {
        Tag::from_key(self.key).0.to_string()
    }
}

pub(super) fn run(drive: &mut Drive<'_>, asked: &Arguments) -> Result<Reply, CommandError> {
    let scope = asked.watched().map_err(|why| usage(&INFO, why))?;
    drive.unattended();
    if !drive.is_halted() {
        drive.break_in()?;
    }
    let windows = drive.with(|context| context.kernel().ok().map(|kernel| system(kernel.version())));
    let naming = Naming::default();
    let mut hunt = Hunt { asked, found: None, quarries: Vec::new(), notes: Vec::new(), windows, naming };
    drive.with(|context| context.session.symbols.begin_later());
    let gone = hunt.go(drive, scope);
    drive.with(|context| context.session.symbols.end_later());
    let (ended, failure) = match gone {
        Ok(ended) => (ended, None),
        Err(error) if is_cancelled(&error) => (Ended::Interrupted, None),
        // Nothing was begun: there is nothing to report.
        Err(error) if hunt.found.is_none() && hunt.quarries.is_empty() => return Err(leave(drive, error)),
        Err(error) => (Ended::Failed, Some(error)),
    };
    hunt.finish(drive, ended, failure)
}

/// Lets the target go after all.
fn leave(drive: &mut Drive<'_>, error: CommandError) -> CommandError {
    if drive.is_halted() && !drive.is_interactive() {
        // The first error is the one to know.
        let _ = drive.go();
    }
    error
}

/// The tags that leak most, once each.
fn worth_a_watch(found: &Found, asked: &Arguments) -> Vec<u32> {
    let mut tags: Vec<u32> = Vec::new();
    for grower in found.growers.iter().filter(|grower| grower.grade > Grade::Uneven) {
        let key = grower.tag.key();
        if !tags.contains(&key) {
            tags.push(key);
        }
    }
    tags.truncate(asked.top.unwrap_or(TOP) as usize);
    tags
}

/// From the first reading to the report.
struct Hunt<'a> {
    asked: &'a Arguments,
    /// What was found to grow, where no tag was given.
    found: Option<Found>,
    quarries: Vec<Quarry>,
    notes: Vec<String>,
    /// `Windows 7 7601 x64`
    windows: Option<String>,
    naming: Naming,
}

impl Hunt<'_> {
    fn go(&mut self, drive: &mut Drive<'_>, scope: Scope) -> Result<Ended, CommandError> {
        let started = Instant::now();
        if Naming::begin(drive)? {
            return Ok(Ended::Stopped);
        }
        if scope.tag.is_some() {
            self.mark(drive, scope, None)?;
            return self.stops(drive, started);
        }
        loop {
            let mut found = survey::run(drive, self.asked, self.found.take());
            self.notes.append(&mut found.notes);
            let (ended, failure) = (found.ended, found.failure.take());
            let tags = worth_a_watch(&found, self.asked);
            self.found = Some(found);
            if let Some(failure) = failure {
                return Err(failure);
            }
            if ended != Ended::Done || tags.is_empty() {
                return Ok(ended);
            }
            self.quarries.clear();
            for key in tags {
                self.mark(drive, Scope { tag: Some(key), paged: None }, Some(key))?;
            }
            let ended = self.stops(drive, started)?;
            let leaks = self.quarries.iter().any(|quarry| quarry.watch.verdict().outcome == Outcome::Confirmed);
            let may_go_on = self.asked.times.is_none() && self.found.as_ref().is_some_and(Found::has_time);
            if leaks || ended != Ended::Done || !may_go_on {
                return Ok(ended);
            }
            drive.say("None of them is a leak for certain: the survey of all tags goes on\n");
        }
    }

    /// Marks a tag, and says what it has.
    fn mark(&mut self, drive: &mut Drive<'_>, scope: Scope, surveyed: Option<u32>) -> Result<(), CommandError> {
        let key = scope.tag.unwrap_or_default();
        let tag = Tag::from_key(key).0.to_string();
        let before = drive.cost();
        let name = if surveyed.is_some() { format!("watch-{}", self.quarries.len() + 1) } else { "watch".to_owned() };
        // Who allocates the tag is learned of what is new.
        let depth = Depth { without_records: surveyed.is_some(), ..Depth::default() };
        let held = drive.with(|context| take(context, &name, scope, depth, &mut self.notes))?;
        let snapshot = &held.mark.snapshot;
        if snapshot.counter_bits.is_some() && !snapshot.counters.contains_key(&key) && snapshot.blocks.is_empty() {
            return Err(drive.with(|context| no_such_tag(context, key)));
        }
        let mut start = Start::of(&held.mark, key);
        let survey = self.found.as_ref().map(|found| &found.survey);
        start.earlier = survey.map(|survey| survey.earlier(key)).unwrap_or_default();
        let listed = snapshot.blocks.iter().find_map(|block| block.paged);
        let paged = scope.paged.or(snapshot.paged.get(&key).copied()).or(listed);
        let in_use = survey.zip(paged).map(|(survey, paged)| survey.in_use(paged));
        let left = match paged {
            Some(paged) => {
                drive.with(|context| context.pool(|kernel| nt_leaks::room(kernel, paged, in_use, start.bytes)))?
            }
            None => None,
        };
        let at_mark =
            AtMark { outstanding: start.outstanding.unwrap_or_default(), bytes: start.bytes, blocks: start.blocks };
        let Arguments { every, times, run_for, until_confirmed, min_age, .. } = *self.asked;
        let frozen = difference(before, drive.cost()).frozen.as_secs_f64() * 1000.0;
        drive.say(&format!(
            "Watching {tag}: {} in use, {}, {} blocks listed (stopped {})\n",
            at_mark.outstanding,
            units::bytes(at_mark.bytes as f64),
            at_mark.blocks,
            units::time(frozen)
        ));
        let watch = Watch::new(Terms { every, times, run_for, until_confirmed, min_age }, start, left);
        self.quarries.push(Quarry {
            key,
            held,
            watch,
            paged,
            at_mark,
            stops: Vec::new(),
            last: None,
            trails: Trails::default(),
        });
        Ok(())
    }

    /// Lets the target run from check to check.
    fn stops(&mut self, drive: &mut Drive<'_>, started: Instant) -> Result<Ended, CommandError> {
        let run_for = self.asked.run_for;
        drive.go()?;
        let mut running = Instant::now();
        self.keep_marks(drive)?;
        loop {
            let pace = self.quarries.iter().map(|quarry| quarry.watch.next_interval().after).min().unwrap_or_default();
            let rest = run_for.map(|time| time.saturating_sub(started.elapsed()));
            if drive.run_for(rest.map_or(pace, |rest| rest.min(pace)))? {
                return Ok(Ended::Stopped);
            }
            let ran = running.elapsed();
            drive.break_in()?;
            let before = drive.cost();
            self.naming.export_names(drive)?;
            for quarry in &mut self.quarries {
                quarry.check(drive, ran)?;
            }
            let cost = difference(before, drive.cost());
            for quarry in &mut self.quarries {
                quarry.note_cost(cost);
            }
            // Nobody has to stand still while files and the table are written.
            let gone = drive.go();
            running = Instant::now();
            self.name_frames(drive)?;
            let exported = self.quarries.iter().try_for_each(|quarry| {
                quarry.last.as_ref().map_or(Ok(()), |last| export(&quarry.held.mark, Some(last), &self.asked.report))
            });
            gone.and(exported)?;
            let over = self.is_over(started);
            self.show(drive, over);
            if over {
                return Ok(Ended::Done);
            }
        }
    }

    /// Names the marks' frames and writes the marks, with the target let go.
    fn keep_marks(&mut self, drive: &mut Drive<'_>) -> Result<(), CommandError> {
        self.name_frames(drive)?;
        if let (Some(file), Some(quarry)) = (&self.asked.file, self.quarries.first()) {
            quarry.held.mark.save(file).map_err(|error| CommandError::Failed(error.to_string()))?;
        }
        self.quarries.iter().try_for_each(|quarry| export(&quarry.held.mark, None, &self.asked.report))
    }

    /// Looks for names that the last stop's stacks lack.
    fn name_frames(&mut self, drive: &mut Drive<'_>) -> Result<(), CommandError> {
        self.naming.fetch(drive)?;
        if self.naming.take_changed() {
            drive.with(|context| {
                for quarry in &mut self.quarries {
                    self.naming.mark(context.session, &mut quarry.held.mark);
                    quarry.last.iter_mut().for_each(|last| self.naming.report(context.session, last));
                }
            });
        }
        Ok(())
    }

    /// One of them is a leak, or none will be.
    fn is_over(&self, started: Instant) -> bool {
        let ran = started.elapsed();
        let over: Vec<&Quarry> = self.quarries.iter().filter(|quarry| quarry.watch.is_over(ran)).collect();
        over.len() == self.quarries.len()
            || over.iter().any(|quarry| quarry.watch.verdict().outcome == Outcome::Confirmed)
    }

    fn show(&self, drive: &mut Drive<'_>, over: bool) {
        let paces = self.quarries.iter().map(|quarry| quarry.watch.next_interval());
        let Some(next) = paces.min_by_key(|pace| pace.after) else { return };
        let (mut table, mut lines) = (String::new(), String::new());
        for quarry in &self.quarries {
            table += &table_of(quarry, self.quarries.len());
            lines += &line_of(quarry);
        }
        if !over {
            let after = units::time(next.after.as_secs_f64() * 1000.0);
            table += &format!("The next check is in {after}; Ctrl+C ends the watch\n");
        }
        drive.say_row(&table, &lines);
        if let Some(LogGain { written, length, .. }) = next.log {
            let after = units::time(next.after.as_secs_f64() * 1000.0);
            drive.say(&format!("The log gained {written} of its {length} records: the next stop is in {after}\n"));
        }
    }

    /// The report, in text, JSON and files, with the target let go.
    fn finish(
        mut self,
        drive: &mut Drive<'_>,
        ended: Ended,
        mut failure: Option<CommandError>,
    ) -> Result<Reply, CommandError> {
        if ended == Ended::Stopped {
            let lines = drive.stop_lines().unwrap_or_default();
            drive.say(&lines);
            self.notes.push("the target stopped by itself; the watch ends here, and g lets the target go on".into());
        } else if drive.is_halted()
            && let Err(error) = drive.go()
        {
            failure.get_or_insert(error);
        }
        let target = drive.state();
        for quarry in &self.quarries {
            self.notes.extend(quarry.last.iter().flat_map(|report| report.notes.iter().cloned()));
        }
        let report = self.report(ended, target);
        let fails = self.asked.fails(&report);
        let options = &self.asked.report;
        let strict = self.asked.fail_on == Some(FailOn::Growing);
        if let Err(error) = write_files(&Source::of_watch(&report, strict), &report, options) {
            failure.get_or_insert(error);
        }
        let width = drive.with(|context| {
            for quarry in self.quarries {
                context.session.leaks.insert(quarry.held.mark.name.clone(), quarry.held);
            }
            context.session.hunt_end = match () {
                () if fails => HuntEnd::Found,
                () if ended == Ended::Interrupted => HuntEnd::Interrupted,
                () => HuntEnd::Done,
            };
            context.width()
        });
        drive.erase();
        for watch in report.all() {
            drive.say_headline(&watch.headline, mood(watch.outcome));
        }
        let origin = if drive.is_interactive() { Origin::Terminal } else { Origin::Watch };
        let answer = Watched::new(report, options.clone(), width, origin, self.notes.len());
        let mut reply = Reply::with_notes(answer, self.notes);
        reply.failure = failure;
        Ok(reply)
    }

    fn report(&mut self, ended: Ended, target: &str) -> WatchReport {
        let mut reports: Vec<WatchReport> =
            self.quarries.iter_mut().map(|quarry| quarry.report(ended, target, self.asked)).collect();
        let rank = |report: &WatchReport| match report.outcome {
            Outcome::Confirmed => 0,
            Outcome::Growing => 1,
            Outcome::Unknown => 2,
            Outcome::Stable | Outcome::Shrinking => 3,
        };
        // Those that are alike stay in the survey's order.
        let by_count = self.asked.by == By::Count;
        reports.sort_by(|a, b| {
            let faster =
                if by_count { std::cmp::Ordering::Equal } else { b.bytes_per_minute.total_cmp(&a.bytes_per_minute) };
            rank(a).cmp(&rank(b)).then(faster)
        });
        let mut reports = reports.into_iter();
        let nothing = || WatchReport { ended, target: target.into(), ..WatchReport::default() };
        let mut leader = reports.next().unwrap_or_else(nothing);
        leader.others = reports.collect();
        if let Some(found) = &self.found {
            leader.survey = Some(found.summary.clone());
            leader.growers.clone_from(&found.growers);
            leader.untagged = found.survey.untagged();
            leader.outcome = match (&leader.tag, leader.untagged) {
                (Some(_), _) => leader.outcome,
                (None, Some(_)) => Outcome::Growing,
                // What was surveyed to the end and not watched does not grow.
                (None, None) if ended == Ended::Done => Outcome::Stable,
                (None, None) => Outcome::Unknown,
            };
        }
        leader.headline = leader.make_headline();
        leader.windows.clone_from(&self.windows);
        leader.machine.clone_from(&self.asked.report.machine);
        leader.ended_at = Some(now());
        leader
    }
}

impl Quarry {
    /// Looks once more. The target stands still.
    fn check(&mut self, drive: &mut Drive<'_>, ran: std::time::Duration) -> Result<(), CommandError> {
        let before = drive.cost();
        let position = self.held.harvest.as_ref().map(|harvest| harvest.now().clone());
        let held = &mut self.held;
        let report = drive.with(|context| look(context, held))?;
        let cost = difference(before, drive.cost());
        let log = position.zip(self.held.harvest.as_ref()).map(|(then, harvest)| {
            let now = harvest.now();
            LogGain { written: now.index.wrapping_sub(then.index), length: now.length, ran }
        });
        let look = Look::of(&report, self.key, log);
        self.stops.push(stop(&report, &look, self.at_mark.outstanding, cost));
        self.watch.add(look);
        self.trails.add(&report);
        self.last = Some(report);
        Ok(())
    }

    /// The stop was one for all that are watched.
    fn note_cost(&mut self, cost: Cost) {
        if let Some(stop) = self.stops.last_mut() {
            stop.frozen_ms = milliseconds(cost);
        }
    }

    fn report(&mut self, ended: Ended, target: &str, asked: &Arguments) -> WatchReport {
        let verdict = self.watch.verdict();
        let culprit = self.last.as_ref().and_then(|last| nt_leaks::culprit(last, &asked.report.skip));
        let mut report = WatchReport {
            tag: Some(self.tag()),
            outcome: verdict.outcome,
            reasons: verdict.reasons.iter().map(ToString::to_string).collect(),
            ended,
            culprit,
            paged: self.paged,
            survivors: self.last.as_ref().map_or(0, |_| self.watch.survivors()),
            survivors_age_ms: self.stops.last().map_or(0, |stop| stop.elapsed_ms),
            bytes_per_minute: self.watch.rate(),
            exhausted_in_minutes: self.watch.exhausted(),
            at_mark: self.at_mark,
            checks: std::mem::take(&mut self.stops),
            trails: std::mem::take(&mut self.trails),
            last: self.last.take(),
            target: target.into(),
            ..WatchReport::default()
        };
        report.headline = report.make_headline();
        report
    }
}

fn milliseconds(cost: Cost) -> f64 {
    (cost.frozen.as_secs_f64() * 10_000.0).round() / 10.0
}

fn stop(report: &CheckReport, look: &Look, at_mark: u64, cost: Cost) -> Stop {
    let gained = look.allocs.zip(look.frees).map_or(0, |(allocs, frees)| allocs.wrapping_sub(frees) as i64);
    let summary = report.summary;
    Stop {
        elapsed_ms: report.elapsed_ms,
        frozen_ms: milliseconds(cost),
        requests: cost.requests,
        bytes_read: cost.bytes_read,
        outstanding: at_mark.saturating_add_signed(gained),
        bytes: look.bytes.unwrap_or_default(),
        still: summary.still,
        freed: summary.freed,
        reused: summary.reused,
        new: summary.new,
        unknown: summary.unknown,
        log_records: look.log.map(|log| log.written),
        log_wrapped: report.log_wrapped,
    }
}

/// A line of a log: one check of one tag.
fn line_of(quarry: &Quarry) -> String {
    let Some(stop) = quarry.stops.last() else { return String::new() };
    format!(
        "{:>8}  {}  {:>8} in use  {:>9}  {} still {} freed {} reused {} new {} unknown  stopped {}\n",
        units::time(stop.elapsed_ms as f64),
        quarry.tag(),
        stop.outstanding,
        units::bytes(stop.bytes as f64),
        stop.still,
        stop.freed,
        stop.reused,
        stop.new,
        stop.unknown,
        units::time(stop.frozen_ms),
    )
}

/// What is redrawn at a terminal: the last stops below a head line; of several tags fewer of each.
fn table_of(quarry: &Quarry, tags: usize) -> String {
    const ROWS: usize = 8;
    let seconds = units::time(quarry.stops.last().map_or(0, |stop| stop.elapsed_ms) as f64);
    let mut table = format!(
        "{}: {}  {}  {} in {seconds}\n",
        quarry.tag(),
        units::bytes(quarry.watch.bytes() as f64),
        sparkline(quarry),
        units::count(quarry.stops.len() as u64, "check"),
    );
    if tags == 1 {
        table += "    time   in use      bytes  still  freed reused    new unknown  stopped\n";
    }
    let rows = (ROWS / tags.max(1)).max(1);
    for stop in &quarry.stops[quarry.stops.len().saturating_sub(rows)..] {
        table += &format!("{}\n", row(stop));
    }
    table
}

/// Bytes in use at the mark and at the last stops.
fn sparkline(quarry: &Quarry) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 16;
    let stops = quarry.stops.iter().map(|stop| stop.bytes);
    let all: Vec<u64> = std::iter::once(quarry.at_mark.bytes).chain(stops).collect();
    let shown = &all[all.len().saturating_sub(WIDTH)..];
    let (least, most) = (shown.iter().min().copied().unwrap_or(0), shown.iter().max().copied().unwrap_or(0));
    let bar = |bytes: &u64| match most - least {
        0 => BARS[3],
        range => BARS[(u128::from(bytes - least) * 7 / u128::from(range)) as usize],
    };
    shown.iter().map(bar).collect()
}

/// Nothing was ever allocated with the tag; says which one was meant.
fn no_such_tag(context: &mut Context<'_>, key: u32) -> CommandError {
    let tag = Tag::from_key(key).0;
    let known = match context.pool(|kernel| tags::read(kernel, &|_| true)) {
        Ok(report) => report.tags.into_iter().map(|usage| usage.tag).collect(),
        Err(error @ CommandError::Fault(_)) => return error,
        Err(_) => Vec::new(),
    };
    let near = nearest(tag, &known).map_or(String::new(), |near| format!("; did you mean {near}?"));
    context.session.hunt_end = HuntEnd::NoSuchTag;
    CommandError::Failed(format!("nothing was ever allocated with the tag {tag} (tags are case-sensitive){near}"))
}

/// The tag that differs in case only, else in one character.
fn nearest(tag: Tag, known: &[Tag]) -> Option<Tag> {
    let bytes = |tag: Tag| tag.key().to_le_bytes();
    let differs = |other: &Tag, same: fn(u8, u8) -> bool| {
        bytes(tag).iter().zip(bytes(*other)).filter(|(a, b)| !same(**a, *b)).count()
    };
    let fold = |a: u8, b: u8| a.eq_ignore_ascii_case(&b);
    let in_case = known.iter().find(|other| differs(other, fold) == 0);
    in_case.or_else(|| known.iter().find(|other| differs(other, fold) == 1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_meant_is_near() {
        let tag = |text: &[u8; 4]| Tag(*text);
        let known = [tag(b"Lead"), tag(b"Leak"), tag(b"MmSt"), tag(b"Irp ")];
        let near = |text| nearest(tag(text), &known).map(|tag| tag.to_string());
        assert_eq!(near(b"leak").as_deref(), Some("Leak"));
        assert_eq!(near(b"Lealk"[..4].try_into().unwrap()).as_deref(), Some("Lead"));
        assert_eq!(near(b"irp ").as_deref(), Some("Irp "));
        assert_eq!(near(b"none"), None);
    }
}
