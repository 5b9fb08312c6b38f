//! What a report is written to beside the screen.

use std::borrow::Cow;
use std::path::PathBuf;

use nt_leaks::{CheckReport, Column, Growth, Mark, Page, Skip, Trails, WatchReport};
use nt_leaks::{flame_graph, folded, html, junit, pprof, sarif};
use serde::Serialize;

use super::arguments::Options;
use crate::error::CommandError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// A page with everything.
    Html,
    /// The command's `result`, as `--format json` prints it.
    Json,
    Svg(Column),
    Folded(Column),
    /// For pprof and what reads its profiles.
    Pprof,
    /// Of a watch: for systems that run jobs.
    JUnit,
    Sarif,
}

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
    let mut written = Ok(());
    for (kind, path) in &options.files {
        let Some(content) = content(*kind, source, answer, options)? else { continue };
        if let Err(error) = nt_leaks::write_private(path, content) {
            written = written.and(Err(CommandError::Failed(format!("cannot write {}: {error}", path.display()))));
        }
    }
    written
}

/// What goes into a file; `None`: there was no check to write of.
fn content(
    kind: FileKind,
    source: &Source<'_>,
    answer: &impl Serialize,
    options: &Options,
) -> Result<Option<Vec<u8>>, CommandError> {
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(error.to_string());
    let Source { growth, trails, outcome, watch, strict, .. } = source;
    let text = match (kind, source.last.as_deref()) {
        (FileKind::Json, _) => serde_json::to_string(answer).map_err(|error| failed(&error))? + "\n",
        (FileKind::JUnit | FileKind::Sarif, _) => {
            let Some(watch) = watch else {
                let why = "JUnit and SARIF tell what a watch came to, and this is none";
                return Err(CommandError::Failed(why.into()));
            };
            match kind {
                FileKind::Sarif => sarif(watch),
                _ => junit(watch, *strict).map_err(|error| failed(&error))?,
            }
        }
        (_, None) => return Ok(None),
        (FileKind::Html, Some(last)) => {
            let facts = facts(source, options);
            html(&Page { last, growth, outcome, trails, facts: &facts, skip: &options.skip })
        }
        (FileKind::Svg(column), Some(last)) => flame_graph(last, column, &options.skip),
        // Folded stacks and profiles keep every frame: their readers fold by themselves.
        (FileKind::Folded(column), Some(last)) => folded(last, column, &Skip::none()),
        (FileKind::Pprof, Some(last)) => {
            let headline = outcome.first().map(String::as_str);
            return pprof(last, headline).map(Some).map_err(|error| failed(&error));
        }
    };
    Ok(Some(text.into_bytes()))
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
