//! The commands, one file for each or for each family.

use crate::answer::Reply;
use crate::error::CommandError;
use crate::session::Context;
use crate::shell::Drive;

mod breakpoints;
mod control;
mod display_type;
mod dump;
mod echo;
mod edit;
mod evaluate;
mod evaluate_typed;
mod examine;
mod formats;
mod global_flags;
mod help;
mod leak;
mod list_modules;
mod list_nearest;
mod log;
mod lookaside;
mod page_table;
mod pool;
mod pool_find;
mod pool_top;
mod pool_used;
mod pool_val;
mod print_formatted;
mod process;
mod radix;
mod registers;
mod reload;
mod search;
mod stack;
mod stats;
mod step;
mod symbol_noise;
mod symbol_path;
mod time;
mod unassemble;
mod verifier;
mod vertarget;
mod virtual_memory;

pub(crate) use breakpoints::{Breakpoint, Hit, hit};
pub use control::Control;
pub(crate) use help::explain;
pub(crate) use leak::Leaks;
pub use leak::refuse_watch;
pub(crate) use pool_find::SearchPlace;
#[cfg(test)]
pub(crate) use pool_find::answer as find_in_pool;
pub(crate) use process::current as current_process;
pub(crate) use registers::temporary;
pub(crate) use symbol_path::check as check_symbol_path;
pub(crate) use verifier::KeptLog;
pub(crate) use vertarget::{Vertarget, connected};

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

const COMMANDS: &[CommandInfo] = &[
    pool_used::INFO,
    pool_find::INFO,
    pool::INFO,
    pool_val::INFO,
    pool_top::INFO,
    lookaside::INFO,
    lookaside::PER_PROCESSOR,
    verifier::INFO,
    leak::INFO,
    control::GO,
    control::BREAK,
    control::CONTINUE,
    control::WAIT,
    control::SLEEP,
    control::QUIT,
    evaluate::INFO,
    evaluate_typed::INFO,
    radix::INFO,
    formats::INFO,
    display_type::INFO,
    dump::INFO,
    search::INFO,
    registers::INFO,
    registers::PROCESSOR,
    stack::INFO,
    unassemble::INFO,
    process::INFO,
    process::THREAD,
    process::SET_PROCESS,
    process::SET_THREAD,
    page_table::INFO,
    virtual_memory::INFO,
    global_flags::INFO,
    edit::INFO,
    edit::ALLOW,
    breakpoints::INFO,
    breakpoints::LIST,
    breakpoints::CHANGE,
    step::INFO,
    step::UP,
    list_nearest::INFO,
    list_modules::INFO,
    examine::INFO,
    vertarget::INFO,
    vertarget::VERSION,
    time::INFO,
    reload::INFO,
    symbol_path::INFO,
    symbol_path::FIX,
    symbol_noise::INFO,
    stats::INFO,
    echo::INFO,
    print_formatted::INFO,
    global_flags::CLEAR_SCREEN,
    log::OPEN,
    log::CLOSE,
    log::STATUS,
    help::INFO,
];

/// All commands, in the order in which help lists them.
pub fn commands() -> &'static [CommandInfo] {
    COMMANDS
}

/// The command with this word (lower case).
pub(crate) fn find(word: &str) -> Option<&'static CommandInfo> {
    // `bp3` is `bp` with the breakpoint's number.
    let number = word.strip_prefix("bp").or_else(|| word.strip_prefix("bu")).unwrap_or_default();
    let numbered = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let name = if numbered { &word[..2] } else { word };
    COMMANDS.iter().find(|info| info.names.contains(&name))
}

/// A mistake in a command's arguments, with the way it is written.
fn usage(info: &CommandInfo, what: impl std::fmt::Display) -> CommandError {
    CommandError::Usage(format!("{what}; usage: {}", info.usage))
}
