//! What a report is written to beside the screen.

use std::borrow::Cow;
use std::path::PathBuf;

use nt_leaks::{CheckReport, Growth, Mark, Sheet, Trails, WatchReport};
use serde::Serialize;

use super::arguments::Options;
use crate::error::CommandError;

/// What files are made of.
pub(super) struct Source<'a> {
    /// Of several tags all in one.
    last: Option<Cow<'a, CheckReport>>,
    /// What each check found in use.
    growth: Vec<Growth>,
    trails: Trails,
    /// What they come to, and why.
    outcome: Vec<String>,
    watch: Option<&'a WatchReport>,
    /// `Windows 7 7601 x64`, and when it was looked at, as far as that is known.
    windows: Option<String>,
    ended_at: Option<String>,
    /// Growth is a failure, too.
    strict: bool,
}

/// What stands under a page's headline: which machine, when, and by which program.
fn facts(source: &Source<'_>, options: &Options) -> Vec<String> {
    let machine = options.machine.as_ref().or(source.watch.and_then(|watch| watch.machine.as_ref()));
    let when = source.ended_at.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    let when = when.map(|time| time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M %Z").to_string());
    let program = format!("kdpool {}", env!("CARGO_PKG_VERSION"));
    machine.cloned().into_iter().chain(source.windows.clone()).chain(when).chain([program]).collect()
}

/// Now, as reports keep it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Whether there are folders for these files.
pub(super) fn have_places<'p>(files: impl Iterator<Item = &'p PathBuf>) -> Result<(), String> {
    for file in files {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            let (file, folder) = (file.display(), folder.display());
            return Err(format!("cannot write {file}: there is no folder {folder}"));
        }
    }
    Ok(())
}

impl<'a> Source<'a> {
    /// `windows`: of a target that is there, and was looked at now.
    pub(super) fn of_check(last: &'a CheckReport, windows: Option<String>) -> Self {
        Source {
            growth: vec![last.growth()],
            last: Some(Cow::Borrowed(last)),
            trails: Trails::default(),
            outcome: Vec::new(),
            watch: None,
            ended_at: windows.is_some().then(now),
            windows,
            strict: false,
        }
    }

    pub(super) fn of_watch(watch: &'a WatchReport, strict: bool) -> Self {
        Source {
            last: watch.whole().map(Cow::Owned),
            growth: watch.growth(),
            trails: watch.whole_trails(),
            outcome: watch.lines(),
            watch: Some(watch),
            windows: watch.windows.clone(),
            ended_at: watch.ended_at.clone(),
            strict,
        }
    }
}

/// Writes the files that were asked for, those behind one that cannot be written too. `answer` is what the command
/// answers with; without a check there are only its own words to write.
pub(super) fn write_files(source: &Source<'_>, answer: &impl Serialize, options: &Options) -> Result<(), CommandError> {
    let (facts, answer) = (facts(source, options), || serde_json::to_string(answer));
    let sheet = Sheet {
        last: source.last.as_deref(),
        growth: &source.growth,
        trails: &source.trails,
        outcome: &source.outcome,
        watch: source.watch,
        strict: source.strict,
        facts: &facts,
        skip: &options.skip,
        answer: &answer,
    };
    let mut written = Ok(());
    for (format, path) in &options.files {
        let content = format.content(&sheet).map_err(|error| CommandError::Failed(error.to_string()))?;
        let Some(content) = content else { continue };
        if let Err(error) = nt_leaks::write_private(path, content) {
            written = written.and(Err(CommandError::Failed(format!("cannot write {}: {error}", path.display()))));
        }
    }
    written
}

/// Adds a look to the Parquet files that were asked for: the mark itself, or a check of it.
pub(super) fn export(mark: &Mark, check: Option<&CheckReport>, options: &Options) -> Result<(), CommandError> {
    let Some(directory) = &options.parquet else { return Ok(()) };
    let machine = options.machine.as_deref().unwrap_or("unnamed");
    let exported = match check {
        None => nt_leaks::export_mark(directory, machine, mark),
        Some(report) => nt_leaks::export_check(directory, machine, mark, report),
    };
    exported.map_err(|error| CommandError::Failed(error.to_string()))
}
