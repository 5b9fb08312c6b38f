//! The commands, one file for each or for each family.

use kd_target::Interrupt;

use crate::command::{CommandInfo, Table};
use crate::session::{Format, Session};
use crate::shell::Shell;

mod execution;
pub mod leak;
mod memory;
mod not_here;
mod pool;
mod session;
mod symbols;
mod verifier;

const COMMANDS: &[CommandInfo] = &[
    pool::pool_used::INFO,
    pool::pool_find::INFO,
    pool::pool_page::INFO,
    pool::pool_val::INFO,
    pool::pool_top::INFO,
    pool::lookaside::INFO,
    pool::lookaside::PER_PROCESSOR,
    pool::tag_owner::INFO,
    pool::selfcheck::INFO,
    verifier::INFO,
    leak::INFO,
    execution::control::GO,
    execution::control::BREAK,
    execution::control::CONTINUE,
    execution::control::LEAVE,
    execution::control::REPEAT,
    execution::control::WAIT,
    execution::control::SLEEP,
    execution::control::REBOOT,
    execution::control::CRASH,
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
    execution::stack::FRAME,
    execution::unassemble::INFO,
    execution::unassemble::BACKWARDS,
    execution::unassemble::FUNCTION,
    execution::events::LAST_EVENT,
    execution::bug_check::INFO,
    execution::driver_object::INFO,
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
    execution::breakpoints::DATA,
    execution::breakpoints::LIST,
    execution::breakpoints::CHANGE,
    execution::filters::INFO,
    execution::step::INFO,
    execution::step::UP,
    symbols::list_nearest::INFO,
    symbols::list_modules::INFO,
    symbols::image_info::INFO,
    symbols::examine::INFO,
    session::vertarget::INFO,
    session::vertarget::VERSION,
    session::time::INFO,
    symbols::reload::INFO,
    symbols::symbol_path::INFO,
    symbols::symbol_path::FIX,
    symbols::symbol_options::INFO,
    symbols::symbol_noise::INFO,
    session::stats::INFO,
    session::alias::INFO,
    session::alias::DELETE,
    session::alias::LIST,
    session::each::MODULES,
    session::each::PROCESSES,
    session::each::LIST,
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

pub(crate) static TABLE: Table =
    Table { commands: COMMANDS, help: session::help::explain, not_here: not_here::not_here };

impl Shell {
    /// A shell that knows all commands. `interrupt` is the one the target was attached with.
    pub fn new(session: Session, format: Format, interrupt: Interrupt) -> Self {
        Shell::with_commands(&TABLE, session, format, interrupt)
    }
}
