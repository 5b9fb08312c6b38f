//! `.help [command]`

use std::fmt;

use serde::Serialize;

use super::{Action, CommandInfo, commands, find};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &[".help", ".hh"],
    usage: ".help [command]",
    help: "list the commands, or explain one",
    details: "",
    action: Action::Answer(run),
};

#[derive(Serialize)]
struct Help {
    commands: Vec<Entry>,
    #[serde(skip)]
    detailed: bool,
}

#[derive(Serialize)]
struct Entry {
    names: &'static [&'static str],
    usage: &'static str,
    help: &'static str,
    details: &'static str,
}

impl From<&CommandInfo> for Entry {
    fn from(info: &CommandInfo) -> Self {
        Self { names: info.names, usage: info.usage, help: info.help, details: info.details }
    }
}

pub(super) fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let help = match context.arguments.trim() {
        "" => Help { commands: commands().iter().map(Entry::from).collect(), detailed: false },
        word => {
            let word = word.to_ascii_lowercase();
            let info = find(&word).or_else(|| find(&format!("!{word}"))).or_else(|| find(&format!(".{word}")));
            let info = info.ok_or_else(|| CommandError::Usage(format!("no command '{word}'; .help lists them")))?;
            Help { commands: vec![info.into()], detailed: true }
        }
    };
    Ok(Reply::new(help))
}

impl Text for Help {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for entry in &self.commands {
            writeln!(out, "{:<34} {}", entry.usage, entry.help)?;
            if self.detailed {
                if entry.names.len() > 1 {
                    writeln!(out, "also: {}", entry.names[1..].join(" "))?;
                }
                if !entry.details.is_empty() {
                    writeln!(out, "{}", entry.details)?;
                }
            }
        }
        match self.detailed {
            true => Ok(()),
            false => writeln!(
                out,
                "\n; separates commands, * and $$ start comments, $<file and $$<file run the lines of a file,\n$$>a<file arguments runs \
                 them as one line. .if (c) {{ }} .elsif (c) {{ }} .else {{ }} and .foreach (x {{ }}) {{ }} are there too."
            ),
        }
    }
}
