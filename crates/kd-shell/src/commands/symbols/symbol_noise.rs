//! `!sym`: how much is said while symbols are looked for.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!sym"],
    usage: "!sym [noisy | quiet]",
    help: "show or set how much is said while symbols are looked for",
    details: "noisy: every place that is looked at and every request to a server. It goes with .reload /f.",
    results: &[ResultShape::of::<Noise>("sym")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Noise {
    noisy: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let monitor = context.session.symbols.source().monitor();
    match context.arguments.trim().to_ascii_lowercase().as_str() {
        "" => {}
        "noisy" => monitor.set_noisy(true),
        "quiet" => monitor.set_noisy(false),
        other => return Err(usage(&INFO, format!("unknown mode '{other}'"))),
    }
    Ok(Reply::new(Noise { noisy: monitor.is_noisy() }))
}

impl Text for Noise {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mode = if self.noisy { "noisy" } else { "quiet" };
        writeln!(out, "{mode} mode - symbol prompts on")
    }
}
