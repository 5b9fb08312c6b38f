//! How a watch's answer is read: its headline comes first ([`crate::shell::Drive::say_headline`]), then why, who, and
//! only on demand each block.

use std::fmt::{self, Write};

use nt_leaks::survey::Grower;
use nt_leaks::watch::Outcome;
use nt_leaks::{CheckReport, Ended, Format, Group, Stop, WatchReport, units};
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::Options;
use super::check::write_blocks;
use super::left;
use super::survey::{listed, named};
use crate::answer::Text;
use crate::output::Mood;
use crate::text::Width;

/// What a screen of 24 lines has room for above the prompt and the line that says where the target is.
const SCREEN: usize = 22;
const COLUMNS: usize = 80;
/// Stacks, and frames of one, that are shown without `-v`, if there is room.
const STACKS: usize = 3;
const FRAMES: usize = 6;

#[derive(JsonSchema, Serialize)]
pub(super) struct Watched {
    #[serde(flatten)]
    pub(super) report: WatchReport,
    #[serde(skip)]
    pub(super) options: Options,
    #[serde(skip)]
    pub(super) width: Width,
    /// Where the report is from.
    #[serde(skip)]
    origin: Origin,
    /// Warnings that will follow it.
    #[serde(skip)]
    warnings: usize,
}

/// Where a report is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A watch that has just ended; nothing else tells where the target is.
    Watch,
    /// The same at a terminal, whose own line about the target follows.
    Terminal,
    File,
}

impl Watched {
    pub(super) fn new(report: WatchReport, options: Options, width: Width, origin: Origin, warnings: usize) -> Self {
        Watched { report, options, width, origin, warnings }
    }
}

/// What an outcome means to who reads it.
pub(super) fn mood(outcome: Outcome) -> Mood {
    match outcome {
        Outcome::Confirmed => Mood::Bad,
        Outcome::Growing | Outcome::Unknown => Mood::Doubtful,
        Outcome::Stable | Outcome::Shrinking => Mood::Good,
    }
}

impl Text for Watched {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let watches: Vec<&WatchReport> = self.report.all().collect();
        let facts: Vec<Vec<String>> = watches.iter().map(|watch| self.facts(watch, watches.len())).collect();
        let end = self.end()?;
        let used = watches.iter().map(|watch| textwrap::wrap(&watch.headline, COLUMNS).len()).sum::<usize>()
            + facts.iter().map(Vec::len).sum::<usize>()
            + end.lines().count()
            + self.warnings;
        let has_stacks = |last: &CheckReport| !last.stacks.is_empty() || last.unattributed.is_some();
        let with_stacks = watches.iter().filter(|watch| watch.last.as_ref().is_some_and(has_stacks)).count();
        let room = SCREEN.saturating_sub(used) / with_stacks.max(1);
        for (watch, facts) in watches.iter().zip(facts) {
            facts.iter().try_for_each(|fact| writeln!(out, "{fact}"))?;
            let Some(last) = &watch.last else { continue };
            self.write_stacks(last, room, out)?;
            if self.options.verbose || self.origin == Origin::File {
                write_checks(watch, out)?;
            }
            if self.options.verbose {
                write_blocks(last, self.width, out)?;
            }
        }
        out.write_str(&end)
    }
}

impl Watched {
    /// What was seen of a tag; of several not all of it.
    fn facts(&self, watch: &WatchReport, tags: usize) -> Vec<String> {
        let Some(tag) = &watch.tag else { return Vec::new() };
        // Without a verdict the headline has all there is.
        if watch.outcome == Outcome::Unknown {
            return Vec::new();
        }
        let mut facts = watch.reasons.clone();
        let most = match tags {
            _ if self.options.verbose => usize::MAX,
            1 => usize::MAX,
            2 => 3,
            _ => 2,
        };
        // What was seen comes first; what keeps it from being called a leak, last.
        if facts.len() > most && watch.outcome == Outcome::Growing {
            facts.drain(1..facts.len() - (most - 1));
        }
        facts.truncate(most);
        let name = if tags > 1 { format!("{tag}: ") } else { String::new() };
        let lead = |(i, fact): (usize, String)| if i == 0 { format!("  {name}{fact}") } else { format!("  {fact}") };
        let mut facts: Vec<String> = facts.into_iter().enumerate().map(lead).collect();
        let sums = watch.last.as_ref().map(|last| last.summary);
        if let Some(s) = sums.filter(|_| tags == 1 || self.options.verbose) {
            let sum = s.still + s.freed + s.reused + s.new + s.unknown;
            let (still, freed, reused, new, unknown) = (s.still, s.freed, s.reused, s.new, s.unknown);
            if sum > 0 {
                facts.push(format!(
                    "  {sum} blocks: {still} still, {freed} freed, {reused} reused, {new} new, {unknown} unknown"
                ));
            }
        }
        facts.extend(self.advice(watch, tag));
        facts
    }

    /// What tells more.
    fn advice(&self, watch: &WatchReport, tag: &str) -> Option<String> {
        let tag = tag.trim_end();
        let tag = if tag.contains(' ') { format!("\"{tag}\"") } else { tag.to_owned() };
        match watch.outcome {
            Outcome::Confirmed | Outcome::Growing if watch.culprit.is_none() => {
                Some(format!("  who: !tagowner {tag} names drivers that hold the tag; or !leak trace {tag}"))
            }
            Outcome::Growing if watch.ended == Ended::Done && self.origin != Origin::File => {
                Some(format!("  a longer watch tells more ({}for 10m)", self.dash()))
            }
            _ => None,
        }
    }

    /// How options are written where this is read: at the prompt, or on a command line.
    fn dash(&self) -> &'static str {
        if self.options.at_prompt { "-" } else { "--" }
    }

    /// What lists the rest.
    fn all(&self) -> &'static str {
        if self.options.at_prompt { "-v" } else { "--blocks" }
    }

    /// Stacks in so many lines, at least two.
    fn write_stacks(&self, last: &CheckReport, room: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        let groups: Vec<&Group> = last.stacks.iter().chain(&last.unattributed).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let grew = groups.iter().filter(|group| group.delta_bytes > 0).count();
        let (stacks, frames) = match self.options.verbose {
            true => (groups.len(), usize::MAX),
            false => {
                let worth = if grew > 0 { grew } else { groups.len() };
                let stacks = worth.min(STACKS).min((room / 3).max(1));
                let more = usize::from(groups.len() > stacks);
                (stacks, (room.saturating_sub(1 + more) / stacks).saturating_sub(1).clamp(1, FRAMES))
            }
        };
        if room > 3 {
            writeln!(out, "Stacks by growth:")?;
        }
        for group in &groups[..stacks] {
            self.write_stack(group, frames, out)?;
        }
        match groups.len() - stacks {
            0 => Ok(()),
            more => {
                let grew = match grew.saturating_sub(stacks) {
                    0 => ", without growth".into(),
                    grew if grew == more => String::new(),
                    grew => format!(", {grew} of them grew"),
                };
                let plural = if more == 1 { "" } else { "s" };
                writeln!(out, "  ... and {more} more stack{plural}{grew} ({})", self.all())
            }
        }
    }

    fn write_stack(&self, group: &Group, most: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        let name = group.id.map_or("stack not known".to_owned(), |id| id.to_string());
        writeln!(
            out,
            "  {}, {:+} blocks ({} in {})  {name}",
            signed(group.delta_bytes),
            group.delta_count,
            units::bytes(group.bytes as f64),
            group.count
        )?;
        let frames = self.options.skip.fold(&group.frames);
        // The line that says how many are left out takes the place of one, if there is more than one.
        let shown = if frames.len() > most { most.saturating_sub(1).max(1) } else { frames.len() };
        for frame in &frames[..shown] {
            writeln!(out, "\t{frame}")?;
        }
        match frames.len() - shown {
            rest if rest > 0 && most > 1 => writeln!(out, "\t... {rest} more ({})", self.all()),
            _ => Ok(()),
        }
    }

    /// What stands below the watches.
    fn end(&self) -> Result<String, fmt::Error> {
        let mut end = String::new();
        self.write_growers(&mut end)?;
        // Without a check there are only its own words to write.
        let is_written = |format: &Format| self.report.last.is_some() || !format.needs_check();
        for (_, file) in self.options.files.iter().filter(|(format, _)| is_written(format)) {
            writeln!(end, "Written: {}", file.display())?;
        }
        // At a terminal a line of its own says where a target is that runs.
        let said = match self.origin {
            Origin::Watch => false,
            Origin::Terminal => self.report.target == RUNNING,
            Origin::File => true,
        };
        if self.origin == Origin::File {
            let facts: Vec<&str> = [&self.report.machine, &self.report.windows, &self.report.ended_at]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect();
            if !facts.is_empty() {
                writeln!(end, "{}", facts.join(", "))?;
            }
        }
        if !said {
            writeln!(end, "{}", left(&self.report.target))?;
        }
        Ok(end)
    }

    /// What else grew.
    fn write_growers(&self, out: &mut String) -> fmt::Result {
        let report = &self.report;
        if let Some(untagged) = report.untagged.filter(|_| report.tag.is_some()) {
            let rate = units::bytes(untagged.bytes_per_minute);
            writeln!(
                out,
                "Beside its tags nonpaged memory grew by {rate}/min: page ranges, contiguous memory or MDLs"
            )?;
        }
        let watched: Vec<&String> = report.all().filter_map(|watch| watch.tag.as_ref()).collect();
        let others: Vec<&Grower> =
            report.growers.iter().filter(|grower| !watched.contains(&&grower.tag.to_string())).collect();
        match others.as_slice() {
            [] => Ok(()),
            others if self.options.verbose => {
                writeln!(out, "Also grew, and was not watched ({}top N):", self.dash())?;
                others.iter().try_for_each(|grower| write_grower(grower, out))
            }
            others => {
                let head = format!("Also grew, not watched ({}top N): ", self.dash());
                let names = others.iter().map(|grower| named(grower));
                writeln!(out, "{head}{}", listed(names, COLUMNS - head.len()))
            }
        }
    }
}

/// A target that runs, as a report names it.
const RUNNING: &str = "running";

fn write_grower(grower: &Grower, out: &mut String) -> fmt::Result {
    let pool = if grower.paged { "paged" } else { "nonpaged" };
    let grew = signed((grower.bytes as i64).saturating_sub(grower.bytes_then as i64));
    let Grower { tag, grew: intervals, intervals: of, .. } = grower;
    writeln!(out, "  {tag}  {pool:<8}  {grew:>9}  {intervals} of {of} intervals  {}", grower.grade.word())
}

fn signed(bytes: i64) -> String {
    let sign = if bytes < 0 { "" } else { "+" };
    format!("{sign}{}", units::bytes(bytes as f64))
}

/// One stop under the head `time   in use      bytes  still  freed reused    new unknown  stopped`.
pub(super) fn row(stop: &Stop) -> String {
    format!(
        "{:>8} {:>8} {:>10} {:>6} {:>6} {:>6} {:>6} {:>7} {:>8}",
        units::time(stop.elapsed_ms as f64),
        stop.outstanding,
        units::bytes(stop.bytes as f64),
        stop.still,
        stop.freed,
        stop.reused,
        stop.new,
        stop.unknown,
        units::time(stop.frozen_ms)
    )
}

/// Every check, as the watch showed it.
fn write_checks(report: &WatchReport, out: &mut dyn fmt::Write) -> fmt::Result {
    writeln!(out, "Checks:\n    time   in use      bytes  still  freed reused    new unknown  stopped requests")?;
    for stop in &report.checks {
        writeln!(out, "{} {:>8}", row(stop), stop.requests)?;
    }
    Ok(())
}
