//! `.time`: the target's clock and how long it has been up.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::vertarget::Vertarget;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".time"],
    usage: ".time",
    help: "the target's time and uptime",
    details: "",
    results: &[ResultShape::of::<Times>("time")],
    action: Action::Answer(|context| Ok(Reply::new(Times::read(context)?))),
};

/// The last two lines of `vertarget`.
#[derive(JsonSchema, Serialize)]
struct Times {
    time: Option<Timestamp>,
    uptime_ms: Option<u64>,
    #[serde(skip)]
    target: Vertarget,
}

impl Times {
    fn read(context: &mut Context<'_>) -> Result<Self, CommandError> {
        let kernel = context.kernel()?;
        let target = Vertarget::read(kernel, &mut context.session.symbols)?;
        Ok(Self { time: target.time, uptime_ms: target.uptime_ms, target })
    }
}

impl Text for Times {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.target.time_line(out)?;
        self.target.uptime_line(out)
    }
}
