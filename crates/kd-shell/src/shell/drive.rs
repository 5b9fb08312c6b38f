//! What a command that lets the target run and stops it again works with.

use std::time::Duration;

use kd_target::{Cost, TargetError};
use nt_memory::{Fault, Spent};

use super::{Outcome, Seen, Shell, Stopped, debuggee};
use crate::banner::Reason;
use crate::error::CommandError;
use crate::output::{Mood, Output};
use crate::session::{Context, Format};

/// A look of `!leak` takes some tenths of a second over a network, and some seconds over a serial line.
const UNATTENDED_HOLD: Duration = Duration::from_secs(60);

pub(crate) struct Drive<'a> {
    pub(super) shell: &'a mut Shell,
    pub(super) out: &'a mut dyn Output,
    pub(crate) word: &'a str,
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
            commands: self.shell.commands,
        })
    }

    pub(crate) fn cost(&self) -> Cost {
        self.shell.cost()
    }

    /// The same as a pool question compares it with later.
    pub(crate) fn spent(&self) -> Spent {
        let Cost { requests, bytes_read, frozen, .. } = self.cost();
        Spent { requests, bytes: bytes_read, time: frozen }
    }

    pub(crate) fn is_halted(&mut self) -> bool {
        self.shell.refresh();
        self.shell.halted().is_some()
    }

    /// What a report says of the target at its end.
    pub(crate) fn state(&mut self) -> &'static str {
        match (self.is_halted(), self.shell.lost()) {
            (_, Some(_)) => "lost",
            (true, None) => "halted",
            (false, None) => "running",
        }
    }

    pub(crate) fn go(&mut self) -> Result<(), CommandError> {
        self.shell.go()
    }

    /// Runs one instruction. False: something else stopped the target.
    pub(crate) fn step(&mut self, patience: Duration) -> Result<bool, CommandError> {
        self.shell.step()?;
        match self.shell.wait(Some(patience), self.out)? {
            true => Ok(self.shell.stopped_by_step()),
            false => Err(TargetError::Timeout(patience).into()),
        }
    }

    /// Waits until the target stops for the user to see.
    pub(crate) fn wait_for_stop(&mut self) -> Result<Seen, CommandError> {
        self.shell.wait(None, self.out)?;
        self.shell.look_at_stop(self.out)
    }

    /// The target stands where a command wanted it: that is no exception to tell of.
    pub(crate) fn as_wanted(&mut self) {
        self.shell.reason = Some(Reason::Step);
    }

    /// Lets the target run for a time. True: it stopped by itself before.
    pub(crate) fn run_for(&mut self, time: Duration) -> Result<bool, CommandError> {
        Ok(self.shell.wait(Some(time), self.out)?)
    }

    pub(crate) fn break_in(&mut self) -> Result<(), CommandError> {
        self.shell.break_in()
    }

    /// Where the target stands, as an answer.
    pub(crate) fn stopped(&mut self) -> Result<Stopped, CommandError> {
        self.shell.stopped()
    }

    /// Why the target stands still, and where.
    pub(crate) fn stop_lines(&mut self) -> Result<String, Fault> {
        self.shell.stop_lines()
    }

    /// Nobody may be there who sees that the command does not come to an end: it holds the target for so long at most,
    /// if the user said nothing else.
    pub(crate) fn unattended(&mut self) {
        self.shell.hold(UNATTENDED_HOLD);
    }

    pub(crate) fn clear_screen(&mut self) {
        if self.shell.format == Format::Kd {
            self.out.clear();
        }
    }

    /// A line while the command runs; programs get their answer when it is done.
    pub(crate) fn say(&mut self, line: &str) {
        if self.shell.format == Format::Kd {
            self.out.write(line);
        }
    }

    /// A line more of a table while the command runs.
    pub(crate) fn say_row(&mut self, table: &str, line: &str) {
        if self.shell.format == Format::Kd {
            self.out.redraw(table, line);
        }
    }

    /// The answer in one sentence; in JSON it is in the answer.
    pub(crate) fn say_headline(&mut self, text: &str, mood: Mood) {
        if self.shell.format == Format::Kd {
            self.out.headline(&format!("{text}\n"), mood);
        }
    }

    /// Makes room where a table was drawn.
    pub(crate) fn erase(&mut self) {
        if self.shell.format == Format::Kd {
            self.out.erase();
        }
    }

    /// Keys count by themselves from now on, or lines again. Whether there is somebody who can press one.
    pub(crate) fn listen(&mut self, on: bool) -> bool {
        self.shell.format == Format::Kd && self.out.listen(on)
    }

    /// A key that was pressed.
    pub(crate) fn key(&mut self) -> Option<char> {
        self.out.key()
    }

    /// Asks whoever sits at the terminal; `None` when nobody does.
    pub(crate) fn ask(&mut self, question: &str) -> Option<bool> {
        (self.shell.format == Format::Kd).then(|| self.out.ask(question)).flatten()
    }

    pub(crate) fn is_interactive(&self) -> bool {
        self.shell.format == Format::Kd && self.out.is_interactive()
    }

    /// A line about what is going to happen.
    pub(crate) fn remark(&mut self, line: &str) {
        if self.shell.format == Format::Kd {
            self.out.remark(line);
        }
    }

    /// Runs a line of commands, as if it had been typed.
    pub(crate) fn run(&mut self, line: &str) -> Outcome {
        self.shell.run_line(line, self.out)
    }

    /// What a line of commands prints.
    pub(crate) fn captured(&mut self, line: &str) -> String {
        self.shell.captured(line).0
    }

    /// Whether commands that are run one after the other are to end: the user stopped them, or one made no sense.
    pub(crate) fn is_line_over(&self) -> bool {
        self.shell.cancelled || self.shell.refused
    }

    /// Whether the user stopped what runs.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.shell.cancelled
    }
}

/// The user wants an end, or the target's debugger does.
pub(crate) fn is_cancelled(error: &CommandError) -> bool {
    matches!(error, CommandError::Fault(Fault::Cancelled) | CommandError::Target(TargetError::Fault(Fault::Cancelled)))
}
