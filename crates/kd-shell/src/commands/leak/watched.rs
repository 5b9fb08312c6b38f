//! How a watch's answer is read: its headline comes first ([`crate::shell::Drive::say_headline`]), then why, who, and
//! only on demand each block.

use std::fmt;

use nt_leaks::survey::Grower;
use nt_leaks::watch::Outcome;
use nt_leaks::{CheckReport, Group, Stop, WatchReport, units};
use serde::Serialize;

use super::arguments::Options;
use super::check::write_blocks;
use super::files::FileKind;
use super::left;
use crate::answer::Text;
use crate::output::Mood;
use crate::text::Width;

/// Stacks, and frames of one, that are shown without `-v`.
const STACKS: usize = 3;
const FRAMES: usize = 6;
/// Tags that grew, beside those that were watched.
const GROWERS: usize = 5;

#[derive(Serialize)]
pub(super) struct Watched {
    #[serde(flatten)]
    pub(super) report: WatchReport,
    #[serde(skip)]
    pub(super) options: Options,
    #[serde(skip)]
    pub(super) width: Width,
    /// The target is still there.
    #[serde(skip)]
    live: bool,
}

impl Watched {
    pub(super) fn new(report: WatchReport, options: Options, width: Width) -> Self {
        Watched { report, options, width, live: true }
    }

    /// What a file keeps of a watch.
    pub(super) fn of_file(report: WatchReport, options: Options) -> Self {
        Watched { report, options, width: Width::Eight, live: false }
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
        self.write(&self.report, out)?;
        for other in &self.report.others {
            writeln!(out, "\n{}", other.headline)?;
            self.write(other, out)?;
        }
        write_growers(&self.report, out)?;
        // Without a check there are only its own words to write.
        let is_written = |kind: &FileKind| {
            self.report.last.is_some() || matches!(kind, FileKind::Json | FileKind::JUnit | FileKind::Sarif)
        };
        for (_, file) in self.options.files.iter().filter(|(kind, _)| is_written(kind)) {
            writeln!(out, "Written: {}", file.display())?;
        }
        if self.live { writeln!(out, "{}", left(&self.report.target)) } else { Ok(()) }
    }
}

impl Watched {
    fn write(&self, report: &WatchReport, out: &mut dyn fmt::Write) -> fmt::Result {
        for reason in &report.reasons {
            writeln!(out, "  {reason}")?;
        }
        let Some(last) = &report.last else { return Ok(()) };
        let s = &last.summary;
        let sum = s.still + s.freed + s.reused + s.new + s.unknown;
        if sum > 0 {
            writeln!(
                out,
                "  {sum} blocks: {} still, {} freed, {} reused, {} new, {} unknown",
                s.still, s.freed, s.reused, s.new, s.unknown
            )?;
        }
        self.write_stacks(last, out)?;
        if self.options.verbose {
            write_checks(report, out)?;
            write_blocks(last, self.width, out)?;
        }
        Ok(())
    }

    fn write_stacks(&self, last: &CheckReport, out: &mut dyn fmt::Write) -> fmt::Result {
        let groups: Vec<&Group> = last.stacks.iter().chain(&last.unattributed).collect();
        if groups.is_empty() {
            return Ok(());
        }
        writeln!(out, "Stacks by growth:")?;
        let (stacks, frames) = if self.options.verbose { (usize::MAX, usize::MAX) } else { (STACKS, FRAMES) };
        for group in groups.iter().take(stacks) {
            let name = group.id.map_or("stack not known".to_owned(), |id| id.to_string());
            writeln!(
                out,
                "  {}, {:+} blocks ({} in {})  {name}",
                signed(group.delta_bytes),
                group.delta_count,
                units::bytes(group.bytes as f64),
                group.count
            )?;
            let shown = self.options.skip.fold(&group.frames);
            for frame in shown.iter().take(frames) {
                writeln!(out, "\t{frame}")?;
            }
            if shown.len() > frames {
                writeln!(out, "\t... {} more (-v)", shown.len() - frames)?;
            }
        }
        match groups.len().saturating_sub(stacks) {
            0 => Ok(()),
            more => writeln!(out, "  ... and {more} more stacks (-v)"),
        }
    }
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

/// What else grew.
fn write_growers(report: &WatchReport, out: &mut dyn fmt::Write) -> fmt::Result {
    let watched: Vec<&String> = report.all().filter_map(|watch| watch.tag.as_ref()).collect();
    let others: Vec<&Grower> =
        report.growers.iter().filter(|grower| !watched.contains(&&grower.tag.to_string())).collect();
    if !others.is_empty() {
        writeln!(out, "Also grew, and was not watched (-top N):")?;
    }
    for grower in others.iter().take(GROWERS) {
        let pool = if grower.paged { "paged" } else { "nonpaged" };
        writeln!(
            out,
            "  {}  {pool:<8}  {:>9}/min  {} of {} intervals  {}",
            grower.tag,
            signed(grower.bytes_per_minute as i64),
            grower.grew,
            grower.intervals,
            grower.grade.word()
        )?;
    }
    if let Some(untagged) = report.untagged.filter(|_| report.tag.is_some()) {
        let rate = units::bytes(untagged.bytes_per_minute);
        writeln!(out, "Beside its tags nonpaged memory grew by {rate}/min: page ranges, contiguous memory or MDLs")?;
    }
    match others.len().saturating_sub(GROWERS) {
        0 => Ok(()),
        more => writeln!(out, "  ... and {more} more"),
    }
}
