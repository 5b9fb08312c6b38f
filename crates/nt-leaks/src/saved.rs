//! Marks and reports that were written to files, read without their target.

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::check::CheckReport;
use crate::hunt::WatchReport;
use crate::mark::{Mark, MarkError, read};
use crate::stack::{Frame, Module, PdbName};

/// What a file of this program holds.
pub enum Saved {
    /// The pool of one moment.
    Mark(Box<Mark>),
    /// One comparison with a mark.
    Report(Box<CheckReport>),
    /// What a watch or a hunt came to.
    Watch(Box<WatchReport>),
}

/// What `--format json` prints for a command has the answer inside.
#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

/// What tells a watch from a check.
#[derive(Deserialize)]
struct HasOutcome {
    #[serde(rename = "outcome")]
    _outcome: IgnoredAny,
}

impl Saved {
    /// Reads a mark's file, the file of `-json`, or what `--format json` printed: of more lines the last check.
    pub fn load(path: &Path) -> Result<Saved, MarkError> {
        Saved::parse(&read(path)?, &path.display().to_string())
    }

    /// The same of a file's text; errors call it `shown`.
    pub fn parse(text: &str, shown: &str) -> Result<Saved, MarkError> {
        match Mark::from_json(text, shown) {
            Err(MarkError::NotAMark { .. }) => {}
            mark => return Ok(Saved::Mark(Box::new(mark?))),
        }
        // One line for each command, or one object on several lines.
        let whole = match report(text) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        match text.lines().rev().find_map(|line| report(line).ok()) {
            Some(report) => Ok(report),
            None => Err(MarkError::Neither { path: shown.into(), why: whole.to_string() }),
        }
    }

    /// Gives frames the names that `name` finds, where they have none yet, and returns how many were found.
    pub fn name(&mut self, name: &mut dyn FnMut(&PdbName, u32) -> Option<String>) -> usize {
        match self {
            Saved::Mark(mark) => name_mark(mark, name),
            Saved::Report(report) => name_report(report, name),
            Saved::Watch(watch) => {
                let mut renamed = 0;
                for watch in
                    std::iter::once(&mut watch.last).chain(watch.others.iter_mut().map(|other| &mut other.last))
                {
                    renamed += watch.as_mut().map_or(0, |last| name_report(last, name));
                }
                renamed
            }
        }
    }

    /// The modules that stacks lead to.
    pub fn modules(&self) -> Vec<&Module> {
        match self {
            Saved::Mark(mark) => mark.modules.iter().filter(|module| module.in_stack).collect(),
            Saved::Report(report) => report.modules.iter().collect(),
            Saved::Watch(watch) => {
                watch.all().filter_map(|watch| watch.last.as_ref()).flat_map(|last| &last.modules).collect()
            }
        }
    }
}

fn report(text: &str) -> serde_json::Result<Saved> {
    let inner = serde_json::from_str::<Wrapped<'_>>(text).ok().and_then(|wrapped| wrapped.result);
    let text = inner.map_or(text, RawValue::get);
    let watch = match serde_json::from_str::<WatchReport>(text) {
        Ok(watch) => return Ok(Saved::Watch(Box::new(watch))),
        Err(error) => error,
    };
    match serde_json::from_str(text) {
        Ok(check) => Ok(Saved::Report(Box::new(check))),
        // A check has no outcome: what is wrong with a watch is not that it is no check.
        Err(error) => Err(if serde_json::from_str::<HasOutcome>(text).is_ok() { watch } else { error }),
    }
}

/// Finds the name of a place in the image that a PDB is of; `None` where there is none.
pub type NameOf<'n> = &'n mut dyn FnMut(&PdbName, u32) -> Option<String>;

/// Gives frames of a mark the names that `name` finds, where they have none yet, and returns how many were found.
pub fn name_mark(mark: &mut Mark, name: NameOf<'_>) -> usize {
    let modules: Vec<Module> = mark.modules.iter().cloned().collect();
    rename(mark.snapshot.stacks.frames_mut(), &modules, name)
}

/// The same of a report.
pub fn name_report(report: &mut CheckReport, name: NameOf<'_>) -> usize {
    rename(report.stacks.iter_mut().flat_map(|group| &mut group.frames), &report.modules, name)
}

fn rename<'f>(
    frames: impl Iterator<Item = &'f mut Frame>,
    modules: &[Module],
    name: &mut dyn FnMut(&PdbName, u32) -> Option<String>,
) -> usize {
    let mut renamed = 0;
    for frame in frames.filter(|frame| frame.symbol.is_none() && frame.module.is_some()) {
        let base = frame.address.wrapping_sub(frame.offset);
        let pdb = modules.iter().find(|module| module.base == base).and_then(|module| module.pdb.as_ref());
        if let (Some(pdb), Ok(rva)) = (pdb, u32::try_from(frame.offset)) {
            frame.symbol = name(pdb, rva);
            renamed += usize::from(frame.symbol.is_some());
        }
    }
    renamed
}
