//! `kdpool decode`: a capture file, one line per datagram.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Lines for people
    Text,
    /// JSON
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {}

pub(crate) fn run(_args: DecodeArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
