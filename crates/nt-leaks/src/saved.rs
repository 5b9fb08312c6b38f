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
        let mark = Mark::from_json(&text, &shown);
        if !matches!(mark, Err(MarkError::NotAMark { .. })) {
            return Ok(Saved::Mark(Box::new(mark?)));
        }
        let report = text.lines().rev().find_map(report).or_else(|| report(&text));
        let nothing = || MarkError::NotAMark { path: shown, why: "it is no report of !leak check either".into() };
        Ok(Saved::Report(Box::new(report.ok_or_else(nothing)?)))
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

fn report(text: &str) -> Option<CheckReport> {
    if let Ok(report) = serde_json::from_str(text) {
        return Some(report);
    }
    let wrapped: Wrapped<'_> = serde_json::from_str(text).ok()?;
    wrapped.last.or(wrapped.result).and_then(|inner| report(inner.get()))
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
