//! kd's prompt: grammar, commands, and their output as text and as JSON.
//!
//! A [`Shell`] has a target and runs lines of commands on it. It opens no socket and knows no terminal; the binary
//! gives it a target, reads lines, and says where output goes ([`Output`]).
//!
//! Each command makes one structure, which knows how it looks as kd's text and as JSON (docs/json.md): what people and
//! programs read cannot drift apart.

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
pub use nt_leaks::{create_private_folder, open_private};
pub use nt_pool::pooltag::PoolTags;
pub use output::{CostRecord, Mood, Output};
pub use selfcheck::SelfCheckReport;
pub use session::{Context, Debuggee, Format, HuntEnd, Session};
pub use shell::{Completion, Next, Outcome, Shell, event_text};
pub use store::PathSource;
pub use symbols::Symbols;
