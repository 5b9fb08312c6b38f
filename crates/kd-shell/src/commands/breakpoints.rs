//! `bp bl bc bd be`: breakpoints.
//!
//! ```text
//!  0 e fffff801`0bf9b1c0     0001 (0001) ECHO!EchoEvtDeviceAdd
//! ```
//!
//! They are in the target's own table; ending the session takes them out.

use std::fmt;

use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Done, Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["bp", "bu"],
    usage: "bp address",
    help: "set a breakpoint",
    details: "",
    action: Action::Answer(set),
};

pub(super) const LIST: CommandInfo = CommandInfo {
    names: &["bl"],
    usage: "bl",
    help: "list the breakpoints",
    details: "",
    action: Action::Answer(list),
};

pub(super) const CHANGE: CommandInfo = CommandInfo {
    names: &["bc", "bd", "be"],
    usage: "bc|bd|be number ... | *",
    help: "clear, disable or enable breakpoints",
    details: "",
    action: Action::Answer(change),
};

/// The target's table has no more entries.
const MAX_BREAKPOINTS: u32 = 32;

/// A breakpoint of this session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Breakpoint {
    pub(crate) number: u32,
    pub(crate) address: Hex,
    pub(crate) enabled: bool,
    symbol: Option<String>,
}

#[derive(Serialize)]
struct Breakpoints {
    breakpoints: Vec<Breakpoint>,
    #[serde(skip)]
    width: Width,
}

fn set(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.trim().is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let kernel = context.kernel()?;
    let width = context.width();
    let address = width.address(evaluate_all(context.arguments, &mut context.scope())?);
    if let Some(known) = context.session.breakpoints.iter().find(|known| known.address == Hex(address)) {
        let number = known.number;
        return Err(CommandError::Failed(format!("breakpoint {number} is there already (bl lists them)")));
    }
    let symbol = context.names()?.name(address)?;
    let used = |number: &u32| context.session.breakpoints.iter().any(|known| known.number == *number);
    let Some(number) = (0..MAX_BREAKPOINTS).find(|number| !used(number)) else {
        return Err(CommandError::Failed(format!("the target has room for {MAX_BREAKPOINTS} breakpoints")));
    };
    kernel.set_breakpoint(address)?;
    context.session.breakpoints.push(Breakpoint { number, address: Hex(address), enabled: true, symbol });
    context.session.breakpoints.sort_by_key(|breakpoint| breakpoint.number);
    Ok(Reply::new(Done {}))
}

fn list(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let width = context.width();
    Ok(Reply::new(Breakpoints { breakpoints: context.session.breakpoints.clone(), width }))
}

fn change(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let mut chosen = Vec::new();
    for word in context.arguments.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
        let known = context.session.breakpoints.iter().map(|breakpoint| breakpoint.number);
        match word {
            "*" => chosen.extend(known),
            word => match word.parse::<u32>() {
                Ok(number) if known.clone().any(|known| known == number) => chosen.push(number),
                _ => return Err(usage(&CHANGE, format!("there is no breakpoint '{word}'"))),
            },
        }
    }
    if chosen.is_empty() && !context.arguments.contains('*') {
        return Err(usage(&CHANGE, "no number"));
    }
    for number in chosen {
        let breakpoints = &mut context.session.breakpoints;
        let Some(at) = breakpoints.iter().position(|breakpoint| breakpoint.number == number) else { continue };
        let breakpoint = &mut breakpoints[at];
        match (context.word, breakpoint.enabled) {
            ("be", false) => {
                kernel.set_breakpoint(breakpoint.address.0)?;
                breakpoint.enabled = true;
            }
            ("bc" | "bd", true) => {
                kernel.clear_breakpoint(breakpoint.address.0)?;
                breakpoint.enabled = false;
            }
            _ => {}
        }
        if context.word == "bc" {
            breakpoints.remove(at);
        }
    }
    Ok(Reply::new(Done {}))
}

impl Text for Breakpoints {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for Breakpoint { number, address, enabled, symbol } in &self.breakpoints {
            let state = if *enabled { 'e' } else { 'd' };
            let symbol = symbol.as_deref().unwrap_or_default();
            let line = format!("{number:>2} {state} {}     0001 (0001) {symbol}", self.width.tick(address.0));
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
