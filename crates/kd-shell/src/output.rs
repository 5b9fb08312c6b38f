//! From a command's reply to what is written.

use std::fmt::{self, Write};

use kd_target::Cost;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::answer::Reply;
use crate::error::CommandError;
use crate::session::Format;
use crate::text::visible_name;

/// Where a shell's words go. The binary decides which streams those are.
pub trait Output {
    /// Results: text, or one JSON object and a line end.
    fn write(&mut self, text: &str);
    /// A line about a command that failed. Only in kd's format; in JSON it is in the object.
    fn error(&mut self, line: &str);
    /// Clears the screen where there is one.
    fn clear(&mut self) {}
    /// A line about an answer that is as it should be. Only in kd's format.
    fn remark(&mut self, line: &str) {
        self.error(line);
    }
    /// A table that grows by `line`: at a terminal `table` takes the place of the one that was shown last.
    fn redraw(&mut self, _table: &str, line: &str) {
        self.write(line);
    }
    /// The answer in one sentence, before all that explains it.
    fn headline(&mut self, text: &str, _mood: Mood) {
        self.write(text);
    }
    /// Takes the table that was drawn last from the screen, where there is one.
    fn erase(&mut self) {}
    /// From now on keys count by themselves (`on`), or lines do again. Whether keys can be had: at a terminal.
    fn listen(&mut self, _on: bool) -> bool {
        false
    }
    /// A key that was pressed since, if there is one.
    fn key(&mut self) -> Option<char> {
        None
    }
    /// Asks whoever sits at the terminal; `None` when nobody does.
    fn ask(&mut self, _question: &str) -> Option<bool> {
        None
    }
    /// How wide lines may be that are laid out for people.
    fn columns(&self) -> usize {
        crate::layout::COLUMNS
    }
    /// Whether somebody sits at a terminal.
    fn is_interactive(&self) -> bool {
        false
    }
}

/// What a headline means to who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should be.
    Good,
    /// Not certain.
    Doubtful,
    /// Not as it should be.
    Bad,
}

/// A cost as it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct CostRecord {
    /// Requests, repeated ones included.
    pub requests: u64,
    /// Bytes of memory that came.
    pub bytes_read: u64,
    /// To the target, headers included.
    pub bytes_sent: u64,
    /// How long the target stood still.
    pub frozen_ms: u64,
}

impl From<Cost> for CostRecord {
    fn from(cost: Cost) -> Self {
        let frozen_ms = u64::try_from(cost.frozen.as_millis()).unwrap_or(u64::MAX);
        Self { requests: cost.requests, bytes_read: cost.bytes_read, bytes_sent: cost.bytes_sent, frozen_ms }
    }
}

/// What happened between two looks at a session's cost.
pub(crate) fn difference(before: Cost, after: Cost) -> Cost {
    Cost {
        requests: after.requests.saturating_sub(before.requests),
        bytes_read: after.bytes_read.saturating_sub(before.bytes_read),
        bytes_sent: after.bytes_sent.saturating_sub(before.bytes_sent),
        frozen: after.frozen.saturating_sub(before.frozen),
    }
}

/// What a command comes to: a line of `--format json` (docs/json.md).
#[derive(JsonSchema, Serialize)]
pub struct Record<'a> {
    /// As it was typed, without surrounding blanks.
    pub command: &'a str,
    /// False when it failed.
    pub ok: bool,
    /// Why it failed; for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// False when something could not be read: there may be more than `result` shows.
    pub complete: bool,
    /// What is missing or to be known; for people.
    pub warnings: Vec<&'a str>,
    /// The command's own object, as its schema says; null when there is none.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub result: Box<RawValue>,
    /// What the command took.
    pub cost: CostRecord,
}

impl<'a> Record<'a> {
    /// Of a command that failed before the target was asked.
    pub fn failed(command: &'a str, error: String) -> Self {
        Record {
            command,
            ok: false,
            error: Some(error),
            complete: false,
            warnings: Vec::new(),
            result: Box::default(),
            cost: CostRecord::default(),
        }
    }
}

/// Writes one command's outcome; returns why it failed, if it did.
pub(crate) fn show(
    command: &str,
    outcome: Result<Reply, CommandError>,
    cost: Cost,
    format: Format,
    out: &mut dyn Output,
) -> Option<CommandError> {
    let (reply, failure) = match outcome {
        Ok(mut reply) => {
            let failure = reply.failure.take();
            (Some(reply), failure)
        }
        Err(error) => (None, Some(error)),
    };
    match format {
        Format::Kd => {
            if let Some(reply) = &reply {
                for remark in &reply.remarks {
                    out.remark(&format!("{}\n", visible_name(remark)));
                }
                // The sink never fails; an answer does not either.
                let mut pieces = Pieces { out: &mut *out, text: String::new() };
                let _ = reply.answer.text(&mut pieces);
                pieces.flush();
                for warning in &reply.warnings {
                    out.write(&format!("WARNING: {}\n", visible_name(warning)));
                }
            }
            if let Some(error) = &failure {
                out.error(&format!("{}\n", visible_name(&error.to_string())));
            }
        }
        Format::Json => {
            let result = reply.as_ref().map(|reply| reply.answer.json());
            let result = result.and_then(Result::ok).and_then(|json| RawValue::from_string(json).ok());
            let warnings = reply.iter().flat_map(|reply| reply.warnings.iter().chain(&reply.remarks));
            let record = Record {
                command,
                ok: failure.is_none(),
                error: failure.as_ref().map(CommandError::to_string),
                complete: failure.is_none() && reply.as_ref().is_some_and(|reply| reply.complete),
                warnings: warnings.map(String::as_str).collect(),
                result: result.unwrap_or_default(),
                cost: cost.into(),
            };
            if let Ok(mut line) = serde_json::to_string(&record) {
                line.push('\n');
                out.write(&line);
            }
        }
    }
    failure
}

/// Large answers are passed on in pieces, neither as one text nor word by word.
struct Pieces<'a> {
    out: &'a mut dyn Output,
    text: String,
}

const PIECE: usize = 0x8000;

impl Pieces<'_> {
    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.out.write(&self.text);
            self.text.clear();
        }
    }
}

impl Write for Pieces<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        if self.text.len() >= PIECE {
            self.flush();
        }
        Ok(())
    }
}
