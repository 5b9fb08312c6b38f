//! `.lastevent`: why the target stands still.

use std::fmt;

use jiff::Zoned;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::banner;
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, time};

pub(in crate::commands) const LAST_EVENT: CommandInfo = CommandInfo {
    names: &[".lastevent"],
    usage: ".lastevent",
    help: "show the exception that the target stopped for",
    details: "",
    results: &[ResultShape::of::<LastEvent>("lastevent")],
    action: Action::Answer(last_event),
};

#[derive(JsonSchema, Serialize)]
struct LastEvent {
    code: u32,
    first_chance: bool,
    address: Hex,
    parameters: Vec<Hex>,
    processor: u16,
    #[serde(skip)]
    lines: String,
}

fn last_event(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let (stop, width) = (kernel.stop(), kernel.width());
    let lines = format!("Last event: {}\n  debugger time: {}\n", banner::exception(stop), time(&Zoned::now()));
    Ok(Reply::new(LastEvent {
        code: stop.code,
        first_chance: stop.first_chance,
        address: Hex(width.address(stop.exception_address)),
        parameters: stop.parameters.iter().map(|parameter| Hex(*parameter)).collect(),
        processor: stop.processor,
        lines,
    }))
}

impl Text for LastEvent {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.lines)
    }
}
