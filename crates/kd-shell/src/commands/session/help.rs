//! `.help [command]`

use std::fmt;

use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, Table};
use crate::error::CommandError;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".help", ".hh"],
    usage: ".help [command]",
    help: "list the commands, or explain one",
    details: "command -? explains it too.",
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

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    explain(context.commands, context.arguments.trim())
}

/// What there is to know of a command, or the list of all for an empty word.
pub(in crate::commands) fn explain(table: &Table, word: &str) -> Result<Reply, CommandError> {
    if word.is_empty() {
        let commands = table.commands.iter().map(Entry::from).collect();
        return Ok(Reply::new(Help { commands, detailed: false }));
    }
    let word = word.to_ascii_lowercase();
    let find = |word: &str| table.find(word);
    let lm = word.starts_with("lm").then(|| find("lm")).flatten();
    let info = find(&word).or_else(|| find(&format!("!{word}"))).or_else(|| find(&format!(".{word}"))).or(lm);
    let info = info.ok_or_else(|| CommandError::Usage(format!("no command '{word}'; .help lists them")))?;
    Ok(Reply::new(Help { commands: vec![info.into()], detailed: true }))
}

/// Columns of a terminal that nobody made wider.
const COLUMNS: usize = 80;
/// Where the list's explanations begin.
const LIST_COLUMN: usize = 32;

/// Text in lines of at most `COLUMNS`, of which all but the first are indented. Lines that are short enough stay.
fn wrap(text: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    for (i, line) in text.lines().enumerate() {
        if i > 0 {
            wrapped.push('\n');
        }
        let mut column = 0;
        let inner = line.len() - line.trim_start().len();
        wrapped.push_str(&line[..inner]);
        column += inner;
        // Columns of a table are kept where they fit.
        if line.chars().count() <= COLUMNS - if i == 0 { indent } else { 0 } {
            wrapped.push_str(line.trim_start());
            continue;
        }
        for (word, first) in line.split_whitespace().zip(std::iter::once(true).chain(std::iter::repeat(false))) {
            let length = word.chars().count();
            if !first && column + 1 + length > COLUMNS - if wrapped.contains('\n') { 0 } else { indent } {
                wrapped.push('\n');
                wrapped.push_str(&" ".repeat(indent));
                column = indent;
            } else if !first {
                wrapped.push(' ');
                column += 1;
            }
            wrapped.push_str(word);
            column += length;
        }
    }
    wrapped
}

impl Text for Help {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for entry in &self.commands {
            if self.detailed {
                writeln!(out, "{}", wrap(entry.usage, 4))?;
                writeln!(out, "    {}", wrap(entry.help, 4))?;
                if entry.names.len() > 1 {
                    writeln!(out, "also: {}", wrap(&entry.names[1..].join(" "), 6))?;
                }
                if !entry.details.is_empty() {
                    writeln!(out, "{}", wrap(entry.details, 0))?;
                }
                continue;
            }
            let help = wrap(entry.help, LIST_COLUMN);
            match entry.usage.len() < LIST_COLUMN {
                true => writeln!(out, "{:<LIST_COLUMN$}{help}", entry.usage)?,
                false => writeln!(out, "{}\n{:LIST_COLUMN$}{help}", wrap(entry.usage, 4), "")?,
            }
        }
        match self.detailed {
            true => Ok(()),
            false => writeln!(
                out,
                "\n; separates commands, * and $$ start comments, $<file and $$<file run the lines\n\
                 of a file, $><file and $$><file all of it as one line, $$>a<file arguments with\n\
                 arguments. .if (c) {{ }} .elsif (c) {{ }} .else {{ }}, .foreach (x {{ }}) {{ }},\n\
                 .for (a; c; b) {{ }} and .while (c) {{ }} are there too. command -? explains a\n\
                 command."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::commands;

    #[test]
    fn help_fits_a_terminal() {
        let width = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let show = |help: Help| {
            let mut text = String::new();
            help.text(&mut text).unwrap();
            text
        };
        let list = show(Help { commands: commands().iter().map(Entry::from).collect(), detailed: false });
        assert!(width(&list) <= COLUMNS, "{list}");
        for info in commands() {
            let text = show(Help { commands: vec![info.into()], detailed: true });
            assert!(width(&text) <= COLUMNS, "{text}");
            assert!(!info.help.is_empty() && info.help.len() < 100, "{}", info.names[0]);
        }
        assert_eq!(wrap(&"word ".repeat(40), 4).lines().last().map(|line| &line[..8]), Some("    word"));
    }
}
