#![doc = include_str!("../README.md")]

// What tests of more than one crate share names this one.
#[cfg(test)]
extern crate self as kd_shell;

pub mod answer;
pub mod banner;
mod breakpoint;
mod command;
pub mod commands;
mod consent;
mod cpp;
mod disassembly;
mod error;
pub mod grammar;
mod kept_log;
mod kernel;
mod layout;
mod leftover;
mod log;
mod lookup;
mod marks;
mod monitor;
mod output;
mod registers;
mod schema;
#[cfg(test)]
#[path = "../tests/schema_check/mod.rs"]
mod schema_check;
mod selfcheck;
mod session;
mod shell;
mod stack;
mod store;
mod suggest;
pub mod symbols;
#[cfg(test)]
mod tests;
pub mod text;
mod translation;
mod typed;
mod vertarget;

pub use command::CommandInfo;
pub use commands::{commands, leak};
pub use consent::{Consent, Question, Say};
pub use error::CommandError;
pub use grammar::words::duration;
pub use kernel::{Driver, Drivers, Kernel};
pub use leftover::state_folder;
pub use log::Log;
pub use monitor::{Ask, Monitor, Sink};
pub use nt_leaks::{create_private_folder, open_private, open_private_as_it_is};
pub use nt_pool::pooltag::{MAX_FILE as MAX_POOLTAG, PoolTags};
pub use output::{CostRecord, Mood, Output, Record};
pub use schema::{ResultShape, shapes, shapes_of};
pub use selfcheck::SelfCheckReport;
pub use session::{Context, Debuggee, Format, HuntEnd, Session};
pub use shell::{Completion, Next, Outcome, Shell, event_text};
pub use store::PathSource;
pub use symbols::Symbols;
