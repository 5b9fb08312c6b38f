//! What a report is written to beside the screen.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nt_leaks::{CheckReport, Column, Growth, Mark, Page, Skip, WatchReport, flame_graph, folded, html, junit, sarif};
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
    /// Of a watch: for systems that run jobs.
    JUnit,
    Sarif,
}

/// What files are made of.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) last: Option<&'a CheckReport>,
    /// What each check found in use.
    pub(super) growth: &'a [Growth],
    /// What they come to, and why.
    pub(super) outcome: &'a [String],
    pub(super) watch: Option<&'a WatchReport>,
    /// Growth is a failure, too.
    pub(super) strict: bool,
}

/// What stands under a page's headline: which machine, when, and by which program.
fn facts(options: &Options) -> Vec<String> {
    let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z").to_string();
    let program = format!("kdpool {}", env!("CARGO_PKG_VERSION"));
    options.machine.iter().cloned().chain([now, program]).collect()
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
    pub(super) fn of_check(last: &'a CheckReport, growth: &'a [Growth]) -> Self {
        Source { last: Some(last), growth, outcome: &[], watch: None, strict: false }
    }

    pub(super) fn of_watch(watch: &'a WatchReport, growth: &'a [Growth], outcome: &'a [String], strict: bool) -> Self {
        Source { last: watch.last.as_ref(), growth, outcome, watch: Some(watch), strict }
    }
}

/// Writes the files that were asked for, those behind one that cannot be written too. `answer` is what the command
/// answers with; without a check there are only its own words to write.
pub(super) fn write_files(source: Source<'_>, answer: &impl Serialize, options: &Options) -> Result<(), CommandError> {
    let Source { last, growth, outcome, watch, strict } = source;
    let mut written = Ok(());
    for (kind, path) in &options.files {
        let text = match (kind, last) {
            (FileKind::Json, _) => {
                let json = serde_json::to_string(answer);
                json.map_err(|error| CommandError::Failed(error.to_string()))? + "\n"
            }
            (FileKind::JUnit | FileKind::Sarif, _) => {
                let Some(watch) = watch else {
                    let why = "JUnit and SARIF tell what a watch came to, and this is none";
                    return Err(CommandError::Failed(why.into()));
                };
                match kind {
                    FileKind::Sarif => sarif(watch),
                    _ => junit(watch, strict).map_err(|error| CommandError::Failed(error.to_string()))?,
                }
            }
            (_, None) => continue,
            (FileKind::Html, Some(last)) => {
                let (trails, facts) = (BTreeMap::new(), facts(options));
                html(&Page { last, growth, outcome, trails: &trails, facts: &facts, skip: &options.skip })
            }
            (FileKind::Svg(column), Some(last)) => flame_graph(last, *column, &options.skip),
            // Folded stacks keep every frame: their readers fold by themselves.
            (FileKind::Folded(column), Some(last)) => folded(last, *column, &Skip::none()),
        };
        if let Err(error) = nt_leaks::write_private(path, text) {
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
