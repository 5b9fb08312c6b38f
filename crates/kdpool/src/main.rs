//! `kdpool`: options, terminal, signals. What it does is in the crates it wires together.

mod console;
mod debug;
mod decode;
mod demo;
mod diagnose;
mod doctor;
mod ending;
mod fake;
mod holder;
mod host;
mod inputs;
mod keys;
mod leak;
mod manual;
mod mcp;
mod memory;
mod options;
mod pipe;
mod progress;
mod selfcheck;
mod setup;
mod signals;
mod spelling;
mod terminal;
mod work;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::FromArgMatches;

use crate::options::{Cli, Command};

/// Exit statuses beside 0 (all commands succeeded).
pub(crate) const COMMAND_FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const NO_CONNECTION: u8 = 3;
pub(crate) const CONNECTION_LOST: u8 = 4;
/// What `kdpool leak --fail-on` waits for.
pub(crate) const LEAK_FOUND: u8 = 5;
/// `kdpool leak`: nothing was ever allocated with the tag.
pub(crate) const NO_SUCH_TAG: u8 = 6;
/// As a shell tells of a program that ended by Ctrl+C.
pub(crate) const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = match spelling::from_kd(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(why) => return debug::usage(&why),
    };
    let matches = options::command().get_matches_from(arguments);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Err(error) = memory::limit(cli.max_memory) {
        console::complain(&format!("cannot limit the memory: {error}"));
        return ExitCode::from(COMMAND_FAILED);
    }
    let result = match cli.command {
        None => debug::run(cli.debug),
        Some(Command::Demo(arguments)) => demo::run(arguments),
        Some(Command::Leak(arguments)) => leak::run(*arguments),
        Some(Command::Report(arguments)) => arguments.run(),
        Some(Command::Compare(arguments)) => arguments.run(),
        Some(Command::Selfcheck(arguments)) => selfcheck::run(&arguments),
        Some(Command::Fake(arguments)) => fake::run(&arguments),
        Some(Command::Decode(arguments)) => decode::run(arguments),
        Some(Command::Setup(arguments)) => setup::run(arguments),
        Some(Command::Doctor(arguments)) => doctor::run(arguments),
        Some(Command::Mcp(arguments)) => mcp::run(arguments),
        Some(Command::Completions(arguments)) => manual::completions(&arguments),
        Some(Command::Man(arguments)) => manual::man(&arguments),
        Some(Command::Schemas(arguments)) => manual::schemas(&arguments),
    };
    result.unwrap_or_else(|error| {
        console::complain(&format!("{error:#}"));
        ExitCode::from(COMMAND_FAILED)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // The tasks that let a target go are here.
        .on_thread_start(heap_limit::exempt_this_thread)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
