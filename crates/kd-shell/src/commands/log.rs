//! `.logopen`, `.logappend`, `.logclose`

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;

pub(super) const OPEN: CommandInfo = CommandInfo {
    names: &[".logopen", ".logappend"],
    usage: ".logopen file | .logappend file",
    help: "write all that is shown to a file as well",
    details: "",
    action: Action::Answer(open),
};

pub(super) const CLOSE: CommandInfo = CommandInfo {
    names: &[".logclose"],
    usage: ".logclose",
    help: "close the log file",
    details: "",
    action: Action::Answer(close),
};

#[derive(Serialize)]
struct Opened {
    file: String,
}

#[derive(Serialize)]
struct Closed {
    file: Option<String>,
}

fn open(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let file = context.arguments.trim().trim_matches('"');
    if file.is_empty() {
        return Err(usage(&OPEN, "no file name"));
    }
    let opened = context.session.log.open(Path::new(file), context.word == ".logappend");
    opened.map_err(|error| CommandError::Failed(format!("cannot open the log file {file}: {error}")))?;
    Ok(Reply::new(Opened { file: file.into() }))
}

fn close(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let file = context.session.log.close().map(|path| path.display().to_string());
    Ok(Reply::new(Closed { file }))
}

impl Text for Opened {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Opened log file '{}'", self.file)
    }
}

impl Text for Closed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match &self.file {
            Some(file) => writeln!(out, "Closing open log file {file}"),
            None => writeln!(out, "No log file open"),
        }
    }
}
