//! `.help [command]`

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, Table};
use crate::error::CommandError;
use crate::layout::{lay_out, table, wrap};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::suggest;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".help", ".hh"],
    usage: ".help [command | all | lines]",
    help: "list the commands, or explain one",
    details: "all  every command with a line about it\n\
              lines  how commands are put together: comments, scripts, loops\n\
              command -? explains a command too.\n\
              Example: .help poolfind",
    results: &[ResultShape::of::<Help>("help")],
    action: Action::Answer(run),
};

/// The commands by what they are for, those first that this program is for. What stands nowhere comes at the end.
const GROUPS: [(&str, &[&str]); 8] = [
    (
        "Pool",
        &["!poolused", "!poolfind", "!pool", "!poolval", "!pooltop", "!lookaside", "!pplookaside", "!vm", ".selfcheck"],
    ),
    ("Leaks", &["!leak", "!verifier", "!tagowner"]),
    ("Memory", &["d*", "e*", "s", "dt", "?", "??", ".formats", "n", "!pte", "!list", ".allow_write"]),
    (
        "Running",
        &[
            "g",
            ".break",
            "t",
            "gu",
            "bp",
            "ba",
            "bl",
            "bc",
            "k",
            ".frame",
            "r",
            "~",
            "u",
            "ub",
            "uf",
            ".lastevent",
            ".bugcheck",
            "sx",
            ".wait",
            ".sleep",
            ".reboot",
            ".crash",
            "q",
        ],
    ),
    ("Processes", &["!process", "!thread", ".process", ".thread"]),
    ("Symbols", &[".symfix", ".sympath", ".symopt", ".reload", "!sym", "lm", "x", "ln", "!lmi", "!drvobj"]),
    (
        "Scripts",
        &["as", "ad", "al", "z", ".continue", ".leave", "!for_each_module", "!for_each_process", ".printf", ".echo"],
    ),
    (
        "Session",
        &["vertarget", "version", ".time", "!gflag", ".logopen", ".logclose", ".logfile", ".stats", ".cls", ".help"],
    ),
];

const LINES: &str = "\
;  separates commands\n\
* and $$  start comments; $$ ends at a semicolon\n\
$<file $$<file  run the lines of a file\n\
$><file $$><file  run all of a file as one line\n\
$$>a<file arguments  the same, with ${$arg1} and so on in it\n\
.if (c) { } .elsif (c) { } .else { }  one of them\n\
.for (a; c; b) { } .while (c) { }  loops; .break and .continue work in them\n\
.foreach (x { commands }) { ${x} }  for every word that commands print\n\
ENTER  repeats the last line; memory commands go on where they ended\n\
Numbers are hexadecimal: 0n10 is ten.";

#[derive(JsonSchema, Serialize)]
struct Help {
    commands: Vec<Entry>,
    #[serde(skip)]
    shown: Shown,
    #[serde(skip)]
    width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Names by group.
    Groups,
    /// A line each.
    All,
    Lines,
    One,
}

#[derive(JsonSchema, Serialize)]
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
    explain(context.commands, context.arguments.trim(), context.session.columns)
}

/// What there is to know of a command, or the list of all for an empty word.
pub(in crate::commands) fn explain(table: &Table, word: &str, width: usize) -> Result<Reply, CommandError> {
    let word = word.to_ascii_lowercase();
    let shown = match word.as_str() {
        "" => Shown::Groups,
        "all" => Shown::All,
        "lines" => Shown::Lines,
        word => {
            let find = |word: &str| table.find(word);
            let lm = word.starts_with("lm").then(|| find("lm")).flatten();
            let info = find(word).or_else(|| find(&format!("!{word}"))).or_else(|| find(&format!(".{word}"))).or(lm);
            let Some(info) = info else {
                let meant = suggest::command(word, table.words());
                let hint = meant.map_or(".help lists them".to_owned(), |name| format!("did you mean {name}?"));
                return Err(CommandError::Usage(format!("no command '{word}'; {hint}")));
            };
            return Ok(Reply::new(Help { commands: vec![info.into()], shown: Shown::One, width }));
        }
    };
    Ok(Reply::new(Help { commands: table.commands.iter().map(Entry::from).collect(), shown, width }))
}

impl Help {
    fn groups(&self) -> Vec<(&'static str, String)> {
        // Families are known by their pattern: the commands that dump memory, and those that write it.
        let name = |entry: &Entry| match entry.names.first() {
            Some(&"db") => "d*",
            Some(&"eb") => "e*",
            Some(first) => first,
            None => "",
        };
        let mut named: Vec<(&str, String)> = Vec::new();
        for (title, names) in GROUPS {
            let there = names.iter().filter(|wanted| self.commands.iter().any(|entry| name(entry) == **wanted));
            named.push((title, there.copied().collect::<Vec<_>>().join(" ")));
        }
        let grouped = |entry: &&Entry| GROUPS.iter().any(|(_, names)| names.contains(&name(entry)));
        let more = self.commands.iter().filter(|entry| !grouped(entry)).map(name).collect::<Vec<_>>();
        if !more.is_empty() {
            named.push(("More", more.join(" ")));
        }
        named
    }

    fn one(&self, entry: &Entry, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", wrap(entry.usage, self.width, "", "    "))?;
        writeln!(out, "{}", wrap(entry.help, self.width, "    ", "    "))?;
        if entry.names.len() > 1 {
            writeln!(out, "{}", wrap(&entry.names[1..].join(" "), self.width, "also: ", "      "))?;
        }
        lay_out(entry.details, self.width, 0, out)
    }
}

impl Text for Help {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.shown {
            Shown::Groups => {
                table(&self.groups(), self.width, 0, out)?;
                lay_out(
                    "\n.help command explains one (command -? too), .help all has a line for each, .help lines tells how they are \
                     put together.\nExamples:\n\
                     !poolused 4  what is in use, most paged pool first\n\
                     !poolfind Leak  the blocks of a tag\n\
                     !leak watch Leak  whether it leaks, and who allocates it",
                    self.width,
                    0,
                    out,
                )
            }
            Shown::All => {
                let rows: Vec<_> = self.commands.iter().map(|entry| (entry.usage, entry.help)).collect();
                table(&rows, self.width, 0, out)
            }
            Shown::Lines => lay_out(LINES, self.width, 0, out),
            Shown::One => self.commands.iter().try_for_each(|entry| self.one(entry, out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{TABLE, commands};

    fn shown(commands: Vec<Entry>, shown: Shown, width: usize) -> String {
        let mut text = String::new();
        Help { commands, shown, width }.text(&mut text).unwrap();
        text
    }

    fn all() -> Vec<Entry> {
        commands().iter().map(Entry::from).collect()
    }

    /// Every page at every usual width: no line is too long, no word is lost or broken.
    #[test]
    fn help_fits_every_terminal() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for width in [60, 80, 120] {
            let check = |text: &str| {
                let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(longest <= width, "{longest} columns of {width}:\n{text}");
            };
            for page in [Shown::Groups, Shown::All, Shown::Lines] {
                check(&shown(all(), page, width));
            }
            for info in commands() {
                let text = shown(vec![info.into()], Shown::One, width);
                check(&text);
                assert!(!info.help.is_empty() && info.help.len() < 100, "{}", info.names[0]);
                let there = words(&text);
                for part in [info.usage, info.help, info.details] {
                    for word in words(part) {
                        assert!(there.contains(&word), "{word} is broken:\n{text}");
                    }
                }
            }
        }
    }

    /// The list is a screen of the usual size, and holds every command.
    #[test]
    fn the_list_is_one_screen() {
        let text = shown(all(), Shown::Groups, 80);
        assert!(text.lines().count() <= 23, "{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        for info in commands() {
            let name = match info.names[0] {
                "db" => "d*",
                "eb" => "e*",
                name => name,
            };
            assert!(words.contains(&name), "{name}:\n{text}");
        }
        // No group names what is no command, and no command is without a group.
        for name in GROUPS.iter().flat_map(|(_, names)| *names) {
            let word = name.strip_suffix('*').map_or((*name).to_owned(), |start| format!("{start}b"));
            assert!(commands().iter().any(|info| info.names[0] == word), "{name} is no command");
        }
        assert!(!words.contains(&"More"), "{text}");
    }

    /// Rows of options stay rows.
    #[test]
    fn tables_of_options_are_kept() {
        let page = |word: &str, width| shown(vec![TABLE.find(word).unwrap().into()], Shown::One, width);
        assert!(page("bp", 120).contains("\n  /1          it is gone after its first hit\n"), "{}", page("bp", 120));
        let narrow = page("s", 60);
        assert!(narrow.contains("\n  -sa -su      anything that is printable text\n"), "{narrow}");
        assert!(
            narrow.contains("\n  -b -w -d -q  numbers of that size (-w -d -q at aligned\n               places)\n"),
            "{narrow}"
        );
    }
}
