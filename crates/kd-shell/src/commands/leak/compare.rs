//! `!leak compare A B`: two reports, of two builds of a driver, stack by stack.

use std::fmt;

use nt_leaks::{StackChange, Versus, units, versus};
use schemars::JsonSchema;
use serde::Serialize;

use super::INFO;
use super::arguments::Arguments;
use super::report::{load, named};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::words::unquoted;
use crate::output::Mood;
use crate::session::HuntEnd;
use crate::shell::Drive;

/// Frames of a stack that are shown.
const FRAMES: usize = 6;

#[derive(JsonSchema, Serialize)]
pub(super) struct Compared(Versus);

pub(super) fn run(drive: &mut Drive<'_>, asked: &Arguments) -> Result<Reply, CommandError> {
    let [before, after] = asked.words.as_slice() else {
        return Err(usage(&INFO, "two reports are compared: before and after"));
    };
    let mut notes = Vec::new();
    let mut read = |word: &str| drive.with(|context| load(context.session, &named(unquoted(word)), &mut notes));
    let (before, after) = (read(before)?, read(after)?);
    let found = versus(&before, &after, &asked.report.skip).ok_or_else(|| {
        let why = "a mark alone has not grown: what -json wrote of a watch or a check is compared";
        CommandError::Failed(why.into())
    })?;
    let mood = if found.fixed { Mood::Good } else { Mood::Bad };
    drive.say_headline(&found.headline, mood);
    if !found.fixed {
        drive.with(|context| context.session.hunt_end = HuntEnd::Found);
    }
    Ok(Reply::with_notes(Compared(found), notes))
}

impl Text for Compared {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if !self.0.stacks.is_empty() {
            writeln!(out, "  {:<6} {:>12} {:>12}", "", "before/min", "after/min")?;
        }
        for StackChange { change, before, after, frames } in &self.0.stacks {
            let (before, after) = (units::bytes(*before), units::bytes(*after));
            writeln!(out, "  {:<6} {before:>12} {after:>12}", change.word())?;
            for frame in frames.iter().take(FRAMES) {
                writeln!(out, "\t{frame}")?;
            }
            if frames.is_empty() {
                writeln!(out, "\tstack not known")?;
            }
        }
        Ok(())
    }
}
