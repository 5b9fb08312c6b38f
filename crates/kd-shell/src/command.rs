//! What a command is, for those who list, find and run commands.

use crate::answer::Reply;
use crate::error::{CommandError, Unknown};
use crate::grammar::alias::Aliases;
use crate::grammar::check::{Refusal, check};
use crate::grammar::line::{Command, command};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::Drive;
use crate::suggest;
use crate::text::visible_name;

/// What help and Tab know about a command.
#[derive(Debug, Clone, Copy)]
pub struct CommandInfo {
    /// The first is the one that is shown.
    pub names: &'static [&'static str],
    /// What the command takes, in kd's notation.
    pub usage: &'static str,
    /// One line.
    pub help: &'static str,
    /// More lines for `.help command`; may be empty.
    pub details: &'static str,
    /// What its `result` looks like in JSON: one shape, or one for each way to call it.
    pub results: &'static [ResultShape],
    pub(crate) action: Action,
}

impl CommandInfo {
    /// The words that the usage separates by `|`: `!leak mark | check | watch`.
    pub(crate) fn subcommands(&self) -> Vec<&'static str> {
        let Some((_, rest)) = self.usage.split_once(char::is_whitespace) else { return Vec::new() };
        if !rest.contains(" | ") {
            return Vec::new();
        }
        let word = |part: &'static str| part.trim_matches(|c: char| c.is_whitespace() || c == '[' || c == ']');
        let plain = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
        rest.split(" | ").map(word).filter(plain).collect()
    }
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
    /// Out of a `.catch`.
    Leave,
    /// The line again from its start, while an expression is not 0.
    Repeat,
    Wait,
    Sleep,
    Reboot,
    Crash,
    Quit,
}

/// The commands that a shell knows. The shell is given one: it names no command itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// In the order in which help lists them.
    pub(crate) commands: &'static [CommandInfo],
    /// What help says of a command's word; of all commands when the word is empty.
    /// Laid out for so many columns.
    pub(crate) help: fn(&Table, &str, usize) -> Result<Reply, CommandError>,
    /// What to say of a word that is kd's and is not among the commands.
    pub(crate) not_here: fn(&str) -> Option<CommandError>,
}

impl Table {
    /// Every word that is a command.
    pub(crate) fn words(&self) -> impl Iterator<Item = &'static str> {
        self.commands.iter().flat_map(|info| info.names.iter().copied())
    }

    /// The command with this word (lower case).
    pub(crate) fn find(&self, word: &str) -> Option<&'static CommandInfo> {
        // `bp3` is `bp` with the breakpoint's number.
        let number = ["bp", "bu", "ba"].iter().find_map(|name| word.strip_prefix(name)).unwrap_or_default();
        let numbered = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        let name = if numbered { &word[..2] } else { word };
        self.commands.iter().find(|info| info.names.contains(&name))
    }

    /// Why a word that is no command is refused.
    pub(crate) fn unknown(&self, command: &Command<'_>) -> CommandError {
        let unknown = |text| Unknown { text: visible_name(text), meant: suggest::command(&command.word, self.words()) };
        match ((self.not_here)(&command.word), command.word.strip_prefix('!')) {
            (Some(error), _) => error,
            (None, Some(extension)) => CommandError::UnknownExtension(unknown(extension)),
            (None, None) => CommandError::UnknownCommand(unknown(command.text)),
        }
    }

    /// Whether commands that are to be run later can be, as far as that is known now.
    pub(crate) fn check(&self, text: &str, aliases: &Aliases) -> Result<(), CommandError> {
        let expanded = aliases.expand(text);
        check(&expanded, &|word| self.find(word).is_some()).map_err(|why| {
            let word = if let Refusal::Unknown(text) = &why { command(text) } else { None };
            let not_here = word.and_then(|command| (self.not_here)(&command.word));
            not_here.unwrap_or_else(|| CommandError::Usage(format!("'{}' is not kept: {why}", visible_name(text))))
        })
    }
}

/// A mistake in a command's arguments, with the way it is written.
pub(crate) fn usage(info: &CommandInfo, what: impl std::fmt::Display) -> CommandError {
    CommandError::Usage(format!("{what}; usage: {}", info.usage))
}

/// A subcommand that there is not, with the one that was probably meant.
pub(crate) fn no_subcommand(info: &CommandInfo, word: &str) -> CommandError {
    let command = info.names.first().copied().unwrap_or_default();
    let meant = suggest::nearest(word, info.subcommands());
    let hint = meant.map_or_else(String::new, |meant| format!(" (did you mean {command} {meant}?)"));
    usage(info, format!("there is no '{command} {}'{hint}", visible_name(word)))
}
