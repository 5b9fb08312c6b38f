//! `vertarget` and `version`: what is being debugged. The banner shows the same lines.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::vertarget::Vertarget;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["vertarget"],
    usage: "vertarget",
    help: "the target's Windows version, kernel base, time and uptime",
    details: "",
    results: &[ResultShape::of::<Vertarget>("vertarget")],
    action: Action::Answer(run),
};

pub(in crate::commands) const VERSION: CommandInfo = CommandInfo {
    names: &["version"],
    usage: "version",
    help: "vertarget, and the version of kdpool",
    details: "",
    results: &[ResultShape::of::<WithDebugger>("version")],
    action: Action::Answer(version),
};

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    Ok(Reply::new(Vertarget::read(kernel, &mut context.session.symbols)?))
}

#[derive(JsonSchema, Serialize)]
struct WithDebugger {
    #[serde(flatten)]
    target: Vertarget,
    debugger: &'static str,
}

fn version(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let target = Vertarget::read(kernel, &mut context.session.symbols)?;
    Ok(Reply::new(WithDebugger { target, debugger: concat!("kdpool ", env!("CARGO_PKG_VERSION")) }))
}

impl Text for WithDebugger {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.target.text(out)?;
        writeln!(out, "{}", self.debugger)
    }
}
