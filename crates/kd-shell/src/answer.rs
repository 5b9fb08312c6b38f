//! What a command has to say, before it is text or JSON.

use std::fmt;

use nt_pool::Notes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::CommandError;

/// kd's text for a result.
pub trait Text {
    /// Writes the answer as kd would print it.
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}

/// The result of one command: one structure, two renderings.
pub trait Answer: Text {
    /// The answer as one JSON value.
    fn json(&self) -> serde_json::Result<String>;
}

impl<T: Text + Serialize> Answer for T {
    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// An answer and what is to be known about it.
pub struct Reply {
    /// What was asked for.
    pub answer: Box<dyn Answer>,
    /// False when something could not be read, so that more may be there than is shown.
    pub complete: bool,
    /// What it lacks and what is worth saying, for `warnings` of JSON and `WARNING:` of text.
    pub warnings: Vec<String>,
    /// What was not looked at on purpose, because it would have cost too much. In JSON these are warnings as well.
    pub remarks: Vec<String>,
    /// The answer is all there is to say, and yet the command did not do what was asked.
    pub failure: Option<CommandError>,
}

impl Reply {
    /// An answer without a note.
    pub fn new(answer: impl Answer + 'static) -> Self {
        Self { answer: Box::new(answer), complete: true, warnings: Vec::new(), remarks: Vec::new(), failure: None }
    }

    /// A result with what is to be known about it. Sentences alone are about what is missing.
    pub fn with_notes(answer: impl Answer + 'static, notes: impl Into<Notes>) -> Self {
        let notes = notes.into();
        Self { complete: notes.is_complete(), warnings: notes.lines(), ..Self::new(answer) }
    }
}

/// Nothing to say.
#[derive(JsonSchema, Serialize)]
pub struct Done {}

impl Text for Done {
    fn text(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}
