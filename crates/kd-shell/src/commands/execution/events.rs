//! `.lastevent` and `.bugcheck`: why the target stands still, and what it crashed of.

use std::fmt;

use jiff::Zoned;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::banner;
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::grammar::Scope;
use crate::session::Context;
use crate::text::{Hex, Width, time};

pub(in crate::commands) const LAST_EVENT: CommandInfo = CommandInfo {
    names: &[".lastevent"],
    usage: ".lastevent",
    help: "show the exception that the target stopped for",
    details: "",
    action: Action::Answer(last_event),
};

pub(in crate::commands) const BUG_CHECK: CommandInfo = CommandInfo {
    names: &[".bugcheck"],
    usage: ".bugcheck",
    help: "show the code and the parameters of the target's bugcheck",
    details: "They are what the kernel noted down (nt!KiBugCheckData); all of it is 0 when it has not crashed.",
    action: Action::Answer(bug_check),
};

#[derive(Serialize)]
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

#[derive(Serialize)]
struct BugCheck {
    code: u32,
    parameters: [Hex; 4],
    #[serde(skip)]
    width: Width,
}

fn bug_check(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    context.kernel()?;
    let mut word = |name: &str| {
        let value = context.scope().register(name)?;
        value.ok_or_else(|| CommandError::Failed("the symbols of nt have no KiBugCheckData".into()))
    };
    let code = word("$bug_code")? as u32;
    let names = ["$bug_param1", "$bug_param2", "$bug_param3", "$bug_param4"];
    let mut parameters = [Hex(0); 4];
    for (parameter, name) in parameters.iter_mut().zip(names) {
        *parameter = Hex(word(name)?);
    }
    Ok(Reply::new(BugCheck { code, parameters, width: context.width() }))
}

impl Text for BugCheck {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let parameters = self.parameters.map(|parameter| self.width.tick(parameter.0));
        writeln!(out, "Bugcheck code {:08X}\nArguments {}", self.code, parameters.join(" "))
    }
}
