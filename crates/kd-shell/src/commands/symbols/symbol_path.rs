//! `.sympath`, `.symfix`: where symbols are looked for.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::banner;
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::symbols::PathElement;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".sympath", ".sympath+"],
    usage: ".sympath[+] [path]",
    help: "show, set or extend the symbol path",
    details: "Elements are separated by semicolons, so the path goes between quotes on a line with other commands. An \
              element is\na directory, a symbol store, srv*DIRECTORY*URL, or cache*DIRECTORY, which keeps what the elements \
              after it find.\nA server is asked when a command needs a file; one that cannot be reached is not tried \
              again before the path is set anew.",
    results: &[ResultShape::of::<Path>("sympath")],
    action: Action::Answer(run),
};

pub(in crate::commands) const FIX: CommandInfo = CommandInfo {
    names: &[".symfix", ".symfix+"],
    usage: ".symfix[+] [directory]",
    help: "set the symbol path to Microsoft's symbol server, or add it",
    details: "The directory keeps what was fetched; without one it is the default store (.sympath shows where that is).",
    results: &[ResultShape::of::<Path>("sympath")],
    action: Action::Answer(fix),
};

const MICROSOFT: &str = "https://msdl.microsoft.com/download/symbols";

#[derive(JsonSchema, Serialize)]
struct Path {
    path: String,
    expanded: String,
    elements: Vec<PathElement>,
    #[serde(skip)]
    changed: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let path = context.arguments.trim().trim_matches('"');
    if path.is_empty() {
        return Ok(answer(context, false));
    }
    let old = context.session.symbols.source().path().to_string();
    let new = match context.word {
        ".sympath+" if !old.is_empty() => format!("{old};{path}"),
        _ => path.to_string(),
    };
    set(context, &new)
}

/// Sets the path; what is of no use in it is a warning.
fn set(context: &mut Context<'_>, path: &str) -> Result<Reply, CommandError> {
    let refused = context.session.symbols.set_path(path).map_err(CommandError::Failed)?;
    let mut reply = answer(context, true);
    reply.warnings = refused;
    match banner::missing_elements(&context.session.symbols.source().check()) {
        Ok(warning) => reply.warnings.extend(warning),
        Err(error) => reply.failure = Some(error),
    }
    Ok(reply)
}

fn fix(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let server = match context.arguments.trim().trim_matches('"') {
        "" => "srv*".to_string(),
        directory => format!("srv*{directory}*{MICROSOFT}"),
    };
    let old = context.session.symbols.source().path();
    let path = match context.word {
        ".symfix+" if !old.is_empty() => format!("{old};{server}"),
        _ => server,
    };
    set(context, &path)
}

fn answer(context: &Context<'_>, changed: bool) -> Reply {
    let source = context.session.symbols.source();
    Reply::new(Path { path: source.path().into(), expanded: source.expanded(), elements: source.check(), changed })
}

impl Text for Path {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.path.is_empty() {
            return out.write_str(&banner::symbol_path("", &[]));
        }
        writeln!(out, "Symbol search path is: {}", self.path)?;
        writeln!(out, "Expanded Symbol search path is: {}", self.expanded)?;
        match self.changed {
            true => out.write_str(&banner::path_validation(&self.elements)),
            false => Ok(()),
        }
    }
}
