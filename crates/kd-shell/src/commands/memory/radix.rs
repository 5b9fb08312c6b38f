//! `n [8 | 10 | 16]`: the radix of numbers without a prefix.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["n"],
    usage: "n [8|10|16]",
    help: "the radix of numbers without a prefix",
    details: "It holds for expressions. The arguments of extensions (!poolused 4) are hexadecimal\n\
              whatever it is.",
    results: &[ResultShape::of::<Radix>("n")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Radix {
    radix: u32,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    match context.arguments.trim() {
        "" => {}
        "8" => context.session.radix = 8,
        "10" => context.session.radix = 10,
        "16" => context.session.radix = 16,
        other => return Err(usage(&INFO, format!("'{other}' is not 8, 10 or 16"))),
    }
    Ok(Reply::new(Radix { radix: context.session.radix }))
}

impl Text for Radix {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "base is {}", self.radix)
    }
}
