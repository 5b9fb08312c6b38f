//! `as`, `aS`, `ad`, `al`: names that stand for text.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::commands::session::print_formatted::text_at;
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::grammar::words::unquoted;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::Drive;
use crate::text::visible_name;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["as", "aS"],
    usage: "as|aS [/e|/ma|/mu|/msa|/msu|/x|/f|/c] name text",
    help: "let a name stand for text (as: the rest of the line, aS: up to ;)",
    details: "A word that is the name becomes the text; ${name} does so inside of words as well.\n\
              /x            the text is the value of an expression\n\
              /ma /mu       it is what stands at an address, in bytes or in UTF-16\n\
              /msa /msu     it is that of a STRING or UNICODE_STRING\n\
              /e /f /c      it is an environment variable's, a file's, what commands print\n\
              ${/d:name} is 1 when there is such a name, else 0; ${/f:name} is nothing then;\n\
              ${/n:name} and ${/v:name} are the name. Blocks look names up when they are\n\
              reached, a line when it is entered: as Foo 1; .block { .echo Foo }.",
    results: &[ResultShape::NOTHING],
    action: Action::Drive(set),
};

pub(in crate::commands) const DELETE: CommandInfo = CommandInfo {
    names: &["ad"],
    usage: "ad [/q] name | *",
    help: "take an alias back, or all",
    details: "/q says nothing of a name that there is not.",
    results: &[ResultShape::NOTHING],
    action: Action::Answer(delete),
};

pub(in crate::commands) const LIST: CommandInfo = CommandInfo {
    names: &["al"],
    usage: "al",
    help: "list the aliases",
    details: "",
    results: &[ResultShape::of::<Listed>("al")],
    action: Action::Answer(list),
};

/// The largest text that a file or commands give an alias.
const MAX_TEXT: usize = 1 << 16;

#[derive(JsonSchema, Serialize)]
struct Listed {
    aliases: Vec<Named>,
}

#[derive(JsonSchema, Serialize)]
struct Named {
    name: String,
    value: String,
}

fn set(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let mut left = drive.arguments.trim();
    let mut option = "";
    if let Some(rest) = left.strip_prefix('/') {
        (option, left) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        left = left.trim_start();
    }
    let (name, text) = left.split_once(char::is_whitespace).unwrap_or((left, ""));
    let text = text.trim();
    if name.is_empty() || text.is_empty() {
        return Err(usage(&INFO, "a name and a text are missing"));
    }
    let value = match option {
        "" => text.to_string(),
        "x" => drive.with(|context| evaluate_all(text, &mut context.scope())).map(|value| format!("0x{value:x}"))?,
        "ma" | "mu" | "msa" | "msu" => drive.with(|context| {
            let address = evaluate_all(text, &mut context.scope())?;
            text_at(context, option, address)
        })?,
        "e" => std::env::var(text)
            .map_err(|error| CommandError::Failed(format!("environment variable {}: {error}", visible_name(text))))?,
        "f" => one_line(&crate::shell::read_script(unquoted(text))?)?,
        "c" => one_line(&drive.captured(unquoted(text)))?,
        other => return Err(usage(&INFO, format!("unknown option '/{other}'"))),
    };
    drive.with(|context| context.session.aliases.set(name, &value));
    Ok(Reply::new(Done {}))
}

/// Line ends would end the line that the alias stands in.
fn one_line(text: &str) -> Result<String, CommandError> {
    match text.len() <= MAX_TEXT {
        true => Ok(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        false => Err(CommandError::Failed(format!("{} bytes are too much for an alias", text.len()))),
    }
}

fn delete(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let (quiet, name) = match text.strip_prefix("/q") {
        Some(name) if name.starts_with(char::is_whitespace) => (true, name.trim_start()),
        _ => (false, text),
    };
    match name {
        "" => return Err(usage(&DELETE, "no name")),
        "*" => context.session.aliases.clear(),
        name if context.session.aliases.remove(name) || quiet => {}
        name => return Err(CommandError::Failed(format!("there is no alias '{}'", visible_name(name)))),
    }
    Ok(Reply::new(Done {}))
}

fn list(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let named = |(name, value): (&str, &str)| Named { name: name.into(), value: value.into() };
    Ok(Reply::new(Listed { aliases: context.session.aliases.iter().map(named).collect() }))
}

impl Text for Listed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.aliases.is_empty() {
            return writeln!(out, "No aliases");
        }
        writeln!(out, "  Alias            Value  \n -------          ------- ")?;
        for Named { name, value } in &self.aliases {
            writeln!(out, " {:<16} {} ", visible_name(name), visible_name(value))?;
        }
        Ok(())
    }
}
