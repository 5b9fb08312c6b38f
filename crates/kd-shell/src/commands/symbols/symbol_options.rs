//! `.symopt`: how symbols are looked for, as the bits that the debuggers know.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".symopt", ".symopt+", ".symopt-"],
    usage: ".symopt[+ | -] [bits]",
    help: "show or change how symbols are looked for",
    details: "Two of kd's bits can be changed here:\n  40        take symbols of another build where there are no others, \
              as .reload /i does\n  80000000  tell every place that is looked at, as !sym noisy does\nNames are always \
              looked up whatever their case, undecorated, and when they are needed.\nExample: .symopt+ 40",
    results: &[ResultShape::of::<Options>("symopt")],
    action: Action::Answer(run),
};

const LOAD_ANYTHING: u64 = 0x40;
const DEBUG: u64 = 0x8000_0000;

/// What always holds here: names without regard to case, undecorated, loaded when needed, secure.
const FIXED: u64 = 0x1 | 0x2 | 0x4;

const NAMES: [(u64, &str); 5] = [
    (0x1, "SYMOPT_CASE_INSENSITIVE"),
    (0x2, "SYMOPT_UNDNAME"),
    (0x4, "SYMOPT_DEFERRED_LOADS"),
    (LOAD_ANYTHING, "SYMOPT_LOAD_ANYTHING"),
    (DEBUG, "SYMOPT_DEBUG"),
];

#[derive(JsonSchema, Serialize)]
struct Options {
    options: u64,
    names: Vec<&'static str>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (sign, text) = match (context.word, context.arguments.trim()) {
        (".symopt+", bits) => (Some(true), bits),
        (".symopt-", bits) => (Some(false), bits),
        (_, text) => match text.split_at_checked(1) {
            Some(("+", bits)) => (Some(true), bits.trim()),
            Some(("-", bits)) => (Some(false), bits.trim()),
            _ => (None, text),
        },
    };
    match (sign, text) {
        (None, "") => {}
        (Some(on), bits) if !bits.is_empty() => {
            let digits = bits.strip_prefix("0x").unwrap_or(bits);
            let value = u64::from_str_radix(digits, 16);
            change(context, value.map_err(|_| usage(&INFO, format!("'{bits}' is no number")))?, on)?;
        }
        _ => return Err(usage(&INFO, "bits are added with .symopt+ and taken away with .symopt-")),
    }
    let options = current(context);
    let names = NAMES.iter().filter(|(bit, _)| options & bit != 0).map(|(_, name)| *name).collect();
    Ok(Reply::new(Options { options, names }))
}

fn current(context: &Context<'_>) -> u64 {
    let symbols = &context.session.symbols;
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    FIXED | bit(symbols.takes_mismatched(), LOAD_ANYTHING) | bit(symbols.source().monitor().is_noisy(), DEBUG)
}

fn change(context: &mut Context<'_>, bits: u64, on: bool) -> Result<(), CommandError> {
    let settled = if on { FIXED } else { 0 };
    let unknown = bits & !(LOAD_ANYTHING | DEBUG | settled);
    if unknown != 0 {
        return Err(usage(&INFO, format!("{unknown:#x} cannot be changed here: 0x40 and 0x80000000 can")));
    }
    if bits & LOAD_ANYTHING != 0 && context.session.symbols.takes_mismatched() != on {
        context.session.symbols.take_mismatched(on);
    }
    if bits & DEBUG != 0 {
        context.session.symbols.source().monitor().set_noisy(on);
    }
    Ok(())
}

impl Text for Options {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Symbol options are {:#x}:", self.options)?;
        for (bit, name) in NAMES.iter().filter(|(bit, _)| self.options & bit != 0) {
            writeln!(out, "  0x{bit:08x} - {name}")?;
        }
        Ok(())
    }
}
