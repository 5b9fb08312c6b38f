//! The commands, one file for each or for each family.

use crate::command::CommandInfo;

mod execution;
mod leak;
mod memory;
mod pool;
mod session;
mod symbols;
mod verifier;

pub(crate) use execution::breakpoints::{Breakpoint, Hit, hit};
pub(crate) use execution::process::current as current_process;
pub(crate) use execution::registers::temporary;
pub(crate) use leak::Leaks;
pub use leak::refuse_watch;
pub(crate) use pool::pool_find::SearchPlace;
#[cfg(test)]
pub(crate) use pool::pool_find::answer as find_in_pool;
pub(crate) use session::help::explain;
pub(crate) use session::vertarget::{Vertarget, connected};
pub(crate) use symbols::symbol_path::check as check_symbol_path;
pub(crate) use verifier::KeptLog;

const COMMANDS: &[CommandInfo] = &[
    pool::pool_used::INFO,
    pool::pool_find::INFO,
    pool::pool_page::INFO,
    pool::pool_val::INFO,
    pool::pool_top::INFO,
    pool::lookaside::INFO,
    pool::lookaside::PER_PROCESSOR,
    verifier::INFO,
    leak::INFO,
    execution::control::GO,
    execution::control::BREAK,
    execution::control::CONTINUE,
    execution::control::WAIT,
    execution::control::SLEEP,
    execution::control::QUIT,
    memory::evaluate::INFO,
    memory::evaluate_typed::INFO,
    memory::radix::INFO,
    memory::formats::INFO,
    memory::display_type::INFO,
    memory::dump::INFO,
    memory::search::INFO,
    execution::registers::INFO,
    execution::registers::PROCESSOR,
    execution::stack::INFO,
    execution::unassemble::INFO,
    execution::process::INFO,
    execution::process::THREAD,
    execution::process::SET_PROCESS,
    execution::process::SET_THREAD,
    memory::page_table::INFO,
    pool::virtual_memory::INFO,
    session::global_flags::INFO,
    memory::edit::INFO,
    memory::edit::ALLOW,
    execution::breakpoints::INFO,
    execution::breakpoints::LIST,
    execution::breakpoints::CHANGE,
    execution::step::INFO,
    execution::step::UP,
    symbols::list_nearest::INFO,
    symbols::list_modules::INFO,
    symbols::examine::INFO,
    session::vertarget::INFO,
    session::vertarget::VERSION,
    session::time::INFO,
    symbols::reload::INFO,
    symbols::symbol_path::INFO,
    symbols::symbol_path::FIX,
    symbols::symbol_noise::INFO,
    session::stats::INFO,
    session::echo::INFO,
    session::print_formatted::INFO,
    session::global_flags::CLEAR_SCREEN,
    session::log::OPEN,
    session::log::CLOSE,
    session::log::STATUS,
    session::help::INFO,
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
