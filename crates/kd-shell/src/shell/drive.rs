//! What a command that lets the target run and stops it again works with.

use std::time::Duration;

use kd_target::{Cost, Target, TargetError};
use nt_memory::Fault;

use super::{Shell, debuggee};
use crate::commands::Control;
use crate::error::CommandError;
use crate::output::Output;
use crate::session::{Context, Format};

pub(crate) struct Drive<'a> {
    pub(super) shell: &'a mut Shell,
    pub(super) out: &'a mut dyn Output,
    pub(super) word: &'a str,
    pub(crate) arguments: &'a str,
}

impl Drive<'_> {
    /// Runs what needs a target that stands still.
    pub(crate) fn with<T>(&mut self, f: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let cost = self.cost();
        let lost = self.shell.lost();
        f(&mut Context {
            debuggee: debuggee(self.shell.target.as_ref(), lost.as_deref()),
            session: &mut self.shell.session,
            word: self.word,
            arguments: self.arguments,
            cost,
        })
    }

    pub(crate) fn cost(&self) -> Cost {
        self.shell.cost()
    }

    pub(crate) fn is_halted(&mut self) -> bool {
        self.shell.refresh();
        self.shell.halted().is_some()
    }

    pub(crate) fn go(&mut self) -> Result<(), CommandError> {
        let mut next = super::Next::Continue;
        self.shell.control(Control::Go, "", &mut next).map(drop)
    }

    /// Lets the target run for a time. True: it stopped by itself before.
    pub(crate) fn run_for(&mut self, time: Duration) -> Result<bool, CommandError> {
        Ok(self.shell.wait(Some(time))?)
    }

    pub(crate) fn break_in(&mut self) -> Result<(), CommandError> {
        match self.shell.target.take() {
            Some(Target::Running(running)) => match running.break_in(self.shell.patience) {
                Ok(halted) => {
                    self.shell.target = Some(Target::Halted(halted));
                    Ok(())
                }
                Err((running, error)) => {
                    self.shell.target = Some(Target::Running(running));
                    Err(error.into())
                }
            },
            target => {
                self.shell.target = target;
                self.shell.halted().map(drop).ok_or(CommandError::NoTarget)
            }
        }
    }

    /// Why the target stands still, and where.
    pub(crate) fn stop_lines(&mut self) -> Result<String, Fault> {
        self.shell.stop_lines()
    }

    /// A line while the command runs; programs get their answer when it is done.
    pub(crate) fn say(&mut self, line: &str) {
        if self.shell.format == Format::Kd {
            self.out.write(line);
        }
    }
}

/// The user wants an end, or the target's debugger does.
pub(crate) fn is_cancelled(error: &CommandError) -> bool {
    matches!(error, CommandError::Fault(Fault::Cancelled) | CommandError::Target(TargetError::Fault(Fault::Cancelled)))
}
