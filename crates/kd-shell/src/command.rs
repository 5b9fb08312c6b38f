//! What a command is, for those who list, find and run commands.

use crate::answer::Reply;
use crate::error::CommandError;
use crate::session::Context;
use crate::shell::Drive;

/// What help and Tab know about a command.
#[derive(Debug, Clone, Copy)]
pub struct CommandInfo {
    /// The first is the one that is shown.
    pub names: &'static [&'static str],
    pub usage: &'static str,
    /// One line.
    pub help: &'static str,
    /// More lines for `.help command`; may be empty.
    pub details: &'static str,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// Answers from what it is given.
    Answer(fn(&mut Context<'_>) -> Result<Reply, CommandError>),
    /// Lets the target run and stops it again.
    Drive(fn(&mut Drive<'_>) -> Result<Reply, CommandError>),
    /// Changes the state of the target or ends the session: the shell does it.
    Control(Control),
}

/// What only the shell can do: it owns the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Go,
    Break,
    Continue,
    Wait,
    Sleep,
    Quit,
}

/// A mistake in a command's arguments, with the way it is written.
pub(crate) fn usage(info: &CommandInfo, what: impl std::fmt::Display) -> CommandError {
    CommandError::Usage(format!("{what}; usage: {}", info.usage))
}
