//! `.logopen`, `.logappend`, `.logclose`, `.logfile`

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const OPEN: CommandInfo = CommandInfo {
    names: &[".logopen", ".logappend"],
    usage: ".logopen [/t] [file] | .logappend [/t] [file]",
    help: "write all that is shown to a file as well",
    details: "Without a name it is dbgeng.log, as in kd. /t puts the time into the name. The log is\nUTF-8; /u is accepted.",
    results: &[ResultShape::of::<Opened>("logopen")],
    action: Action::Answer(open),
};

pub(in crate::commands) const STATUS: CommandInfo = CommandInfo {
    names: &[".logfile"],
    usage: ".logfile",
    help: "tell which log file is open",
    details: "",
    results: &[ResultShape::of::<Status>("logfile")],
    action: Action::Answer(status),
};

pub(in crate::commands) const CLOSE: CommandInfo = CommandInfo {
    names: &[".logclose"],
    usage: ".logclose",
    help: "close the log file",
    details: "",
    results: &[ResultShape::of::<Closed>("logclose")],
    action: Action::Answer(close),
};

#[derive(JsonSchema, Serialize)]
struct Opened {
    file: String,
}

#[derive(JsonSchema, Serialize)]
struct Closed {
    file: Option<String>,
}

/// kd's own choice of a name.
const DEFAULT_FILE: &str = "dbgeng.log";

fn open(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let mut text = context.arguments.trim();
    let mut stamped = false;
    while let Some(rest) = ["/t", "/u"].iter().find_map(|option| text.strip_prefix(option)) {
        // A path may begin with a slash as well.
        if !(rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            break;
        }
        stamped |= text.starts_with("/t");
        text = rest.trim_start();
    }
    let name = text.trim_matches('"');
    let mut path = PathBuf::from(if name.is_empty() { DEFAULT_FILE } else { name });
    if stamped {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let time = jiff::Zoned::now().strftime("%Y-%m-%d_%H-%M-%S").to_string();
        let extension = path.extension().map_or(String::new(), |extension| format!(".{}", extension.to_string_lossy()));
        path.set_file_name(format!("{stem}_{time}{extension}"));
    }
    let file = path.display().to_string();
    let opened = context.session.log.open(&path, context.word == ".logappend");
    opened.map_err(|error| CommandError::Failed(format!("cannot open the log file {file}: {error}")))?;
    Ok(Reply::new(Opened { file }))
}

fn status(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    Ok(Reply::new(Status { file: context.session.log.path().map(|path| path.display().to_string()) }))
}

fn close(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let file = context.session.log.close().map(|path| path.display().to_string());
    Ok(Reply::new(Closed { file }))
}

#[derive(JsonSchema, Serialize)]
struct Status {
    file: Option<String>,
}

impl Text for Status {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match &self.file {
            Some(file) => writeln!(out, "Log '{file}' open"),
            None => writeln!(out, "No log file open"),
        }
    }
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
