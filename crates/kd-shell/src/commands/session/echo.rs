//! `.echo text`

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".echo"],
    usage: ".echo text",
    help: "print text",
    details: "",
    results: &[ResultShape::of::<Echo>("echo")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Echo {
    text: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments;
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    Ok(Reply::new(Echo { text: quoted.unwrap_or(text).into() }))
}

impl Text for Echo {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", self.text)
    }
}
