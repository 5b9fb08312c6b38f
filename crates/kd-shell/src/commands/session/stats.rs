//! `.stats`: what the session and the last command cost.

use std::fmt;

use kd_target::Cost;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::output::CostRecord;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".stats"],
    usage: ".stats",
    help: "requests, bytes and frozen time of the session and of the last command",
    details: "",
    results: &[ResultShape::of::<Stats>("stats")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Stats {
    session: CostRecord,
    last_command: Last,
}

#[derive(JsonSchema, Serialize)]
struct Last {
    command: String,
    #[serde(flatten)]
    cost: CostRecord,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let last = &context.session.last_command;
    let record = |cost: Cost| CostRecord::from(cost);
    Ok(Reply::new(Stats {
        session: record(context.cost),
        last_command: Last { command: last.command.clone(), cost: record(last.cost) },
    }))
}

impl Text for Stats {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "                Requests   Bytes read   Bytes sent    Frozen")?;
        let mut row = |name: &str, cost: &CostRecord| {
            let CostRecord { requests, bytes_read, bytes_sent, frozen_ms } = cost;
            writeln!(out, "{name:<12} {requests:>11} {bytes_read:>12} {bytes_sent:>12} {frozen_ms:>6} ms")
        };
        row("Session", &self.session)?;
        row("Last command", &self.last_command.cost)?;
        match self.last_command.command.as_str() {
            "" => Ok(()),
            command => writeln!(out, "Last command: {command}"),
        }
    }
}
