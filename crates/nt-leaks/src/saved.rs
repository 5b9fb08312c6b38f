//! Marks and reports that were written to files, read without their target.

use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::check::CheckReport;
use crate::mark::{Mark, MarkError, read};
use crate::stack::{Frame, Module, PdbName};

pub enum Saved {
    Mark(Box<Mark>),
    Report(Box<CheckReport>),
}

/// What `--format json` prints for a command, what `!leak watch` has inside, or nothing of both.
#[derive(Deserialize)]
struct Wrapped<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    last: Option<&'a RawValue>,
}

impl Saved {
    /// Reads a mark's file, the file of `-json`, or what `--format json` printed: of more lines the last check.
    pub fn load(path: &Path) -> Result<Saved, MarkError> {
        let text = read(path)?;
        let shown = path.display().to_string();
        match Mark::from_json(&text, &shown) {
            Err(MarkError::NotAMark { .. }) => {}
            mark => return Ok(Saved::Mark(Box::new(mark?))),
        }
        // One line for each command, or one object on several lines.
        let whole = match report(&text) {
            Ok(report) => return Ok(Saved::Report(Box::new(report))),
            Err(error) => error,
        };
        match text.lines().rev().find_map(|line| report(line).ok()) {
            Some(report) => Ok(Saved::Report(Box::new(report))),
            None => Err(MarkError::Neither { path: shown, why: whole.to_string() }),
        }
    }

    /// Gives frames the names that `name` finds, where they have none yet, and returns how many were found.
    pub fn name(&mut self, name: &mut dyn FnMut(&PdbName, u32) -> Option<String>) -> usize {
        match self {
            Saved::Mark(mark) => {
                let modules: Vec<Module> = mark.modules.iter().cloned().collect();
                rename(mark.snapshot.stacks.frames_mut(), &modules, name)
            }
            Saved::Report(report) => {
                let frames = report.stacks.iter_mut().flat_map(|group| &mut group.frames);
                rename(frames, &report.modules, name)
            }
        }
    }

    /// The modules that stacks lead to.
    pub fn modules(&self) -> Vec<&Module> {
        match self {
            Saved::Mark(mark) => mark.modules.iter().filter(|module| module.in_stack).collect(),
            Saved::Report(report) => report.modules.iter().collect(),
        }
    }
}

fn report(mut text: &str) -> serde_json::Result<CheckReport> {
    // What is printed for a watch has the check in `last` in `result`.
    for _ in 0..2 {
        let inner = serde_json::from_str::<Wrapped<'_>>(text).ok().and_then(|wrapped| wrapped.last.or(wrapped.result));
        text = inner.map_or(text, RawValue::get);
    }
    serde_json::from_str(text)
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
