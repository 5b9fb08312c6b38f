//! Tab: what a word may become depends on where it stands.

use std::collections::BTreeSet;
use std::path::{MAIN_SEPARATOR, Path};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use nt_memory::Fault;
use nt_pool::Tag;

use super::Shell;
use crate::command::{CommandInfo, Table};
use crate::kernel::Kernel;
use crate::symbols::short_name;
use crate::text::visible_name;

/// More than that nobody reads.
const MOST: usize = 200;

/// What the target's tags may cost: the machine stands still while somebody looks at his keyboard.
const TAGS_TIME: Duration = Duration::from_millis(300);
/// A usual tag table.
const TAGS_BYTES: u64 = 200 << 10;

/// What a word may become, and a word about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// What would stand there.
    pub text: String,
    /// What it is, in a line.
    pub help: String,
}

impl Shell {
    /// What a word at the end of a line may become: a command, a module, or a symbol or type of a module whose symbols
    /// are loaded; without a module, of the kernel. No symbols are looked for, and the module list is read for half a
    /// second at most.
    pub fn complete(&self, prefix: &str) -> Vec<Completion> {
        let lower = prefix.to_ascii_lowercase();
        let mut found = Vec::new();
        for info in self.commands.commands {
            let names = info.names.iter().filter(|name| name.starts_with(&lower));
            found.extend(names.map(|name| Completion { text: name.to_string(), help: info.help.into() }));
        }
        let Some(halted) = self.halted() else { return found };
        let (module, name) = match lower.split_once('!') {
            Some(("", _)) => return found,
            Some((module, name)) => (Some(module), name),
            None => (None, lower.as_str()),
        };
        let base = Kernel::base(halted);
        let mut files = Vec::new();
        match module {
            Some("nt") => files.extend(self.session.symbols.known_nt(halted).map(|nt| ("nt!".to_owned(), nt))),
            None if name.is_empty() => {}
            _ => {
                let modules = self.soon(|| halted.drivers()).map(|list| list.drivers).unwrap_or_default();
                for driver in &modules {
                    let short = short_name(driver, base);
                    let folded = short.to_ascii_lowercase();
                    match module {
                        Some(module) if folded == module => {
                            let file = self.session.symbols.known(halted, driver).flatten();
                            files.extend(file.map(|file| (short + "!", file)));
                        }
                        None if folded.starts_with(name) => {
                            found.push(Completion { text: short, help: visible_name(&driver.file) });
                        }
                        _ => {}
                    }
                }
                // A letter or two would be most of the kernel.
                if module.is_none() && name.len() > 2 {
                    files.extend(self.session.symbols.known_nt(halted).map(|nt| (String::new(), nt)));
                }
            }
        }
        for (module, file) in files {
            let pattern = format!("{name}*");
            let named = |name: &str, help: &str| Completion {
                text: format!("{module}{}", visible_name(name)),
                help: help.into(),
            };
            let mut symbols = file.matching(&pattern);
            symbols.sort_by(|a, b| a.name.cmp(&b.name));
            found.extend(symbols.iter().take(MOST).map(|symbol| named(&symbol.name, "")));
            found.extend(file.types_matching(&pattern).iter().take(MOST).map(|name| named(name, "type")));
        }
        found
    }

    /// Runs `f`, which asks the target, and interrupts it when it takes longer than somebody waits who pressed a key.
    fn soon<T>(&self, f: impl FnOnce() -> Result<T, Fault>) -> Option<T> {
        const PATIENCE: Duration = Duration::from_millis(500);
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        let interrupt = self.interrupt.clone();
        let watch = std::thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                interrupt.raise();
            }
        });
        let result = f();
        drop(done);
        // It ends at once; what it raised is meant for `f` alone.
        let _ = watch.join();
        self.interrupt.take();
        result.ok()
    }
}

/// What stands where the cursor is.
enum Place {
    Command,
    Option(&'static CommandInfo),
    Subcommand(Vec<&'static str>),
    Tag,
    Type,
    Register,
    File,
    /// Anything that has an address.
    Name,
}

impl Shell {
    /// What the word before the cursor may become, and where in `line` that word begins. `line` ends at the cursor.
    pub fn complete_line(&mut self, line: &str) -> (usize, Vec<Completion>) {
        let statement = start_of_statement(line);
        let text = &line[statement..];
        let trimmed = text.trim_start();
        let begin = statement + text.len() - trimmed.len();
        if let Some(file) = script_file(trimmed) {
            return (line.len() - file.len(), files(file));
        }
        let word_start = begin + trimmed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let word = &line[word_start..];
        let before: Vec<&str> = line[begin..word_start].split_whitespace().collect();
        let place = place(self.commands, &before, word);
        // Of an expression only the last name counts.
        let (start, word) = match place {
            Place::Name | Place::Register | Place::Type => {
                let start = word.rfind(['(', '+', '-', '*', ',', '@', '=']).map_or(0, |at| at + 1);
                (word_start + start, &word[start..])
            }
            _ => (word_start, word),
        };
        let mut found = match place {
            Place::Command => self.commands(word),
            Place::Option(info) => options(info, word),
            Place::Subcommand(words) => starting(words, word, ""),
            Place::Tag => self.tags(word),
            Place::Type => self.names(word, true),
            Place::Register => self.registers(word),
            Place::File => files(word),
            Place::Name => self.names(word, false),
        };
        found.truncate(MOST);
        (start, found)
    }

    /// Commands; one whose mark was left out too. A name with a module is an expression's beginning.
    fn commands(&self, word: &str) -> Vec<Completion> {
        let found = self.complete(word);
        if !found.is_empty() || word.is_empty() {
            return found;
        }
        let lower = word.to_ascii_lowercase();
        let named = |info: &'static CommandInfo| {
            let names = info.names.iter().filter(|name| name.trim_start_matches(['!', '.']).starts_with(&lower));
            names.map(|name| Completion { text: (*name).into(), help: info.help.into() })
        };
        self.commands.commands.iter().flat_map(named).collect()
    }

    fn names(&self, word: &str, types: bool) -> Vec<Completion> {
        let is_command = |text: &str| self.commands.find(text).is_some();
        let found = self.complete(word).into_iter().filter(|found| !is_command(&found.text));
        // A symbol of the kernel is no type; modules lead to their types.
        found.filter(|found| !types || !found.help.is_empty()).collect()
    }

    fn registers(&self, word: &str) -> Vec<Completion> {
        let mut names: Vec<String> = (0..crate::session::TEMPORARIES).map(|number| format!("$t{number}")).collect();
        names.extend(["$ip", "$csp", "$retreg", "$proc", "$thread", "$peb", "$teb", "$extret"].map(str::to_owned));
        let machine = self.halted().map(|halted| Kernel::version(halted).machine);
        let mut all: Vec<String> =
            machine.iter().flat_map(|machine| crate::registers::names(*machine)).map(str::to_owned).collect();
        all.append(&mut names);
        starting(all.iter().map(String::as_str), word, "")
    }

    /// Tags that somebody described, that this session has met, and those of the target, if asking it is cheap.
    fn tags(&mut self, word: &str) -> Vec<Completion> {
        self.learn_tags();
        let session = &self.session;
        let mut tags: BTreeSet<Tag> = session.pool_tags.tags().collect();
        tags.extend(session.pool_counts.iter().flat_map(|counts| counts.keys().copied()));
        tags.extend(self.seen_tags.iter().flatten().copied());
        let plain = |tag: &Tag| tag.0.iter().all(|byte| byte.is_ascii_graphic() && !b";\"'".contains(byte));
        let whole = |tag: &Tag| tag.to_string().trim_end().to_owned();
        let tags =
            tags.iter().filter(|tag| plain(tag) || tag.0.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '));
        let found = tags.filter(|tag| whole(tag).starts_with(word) && !whole(tag).contains([' ', ';', '"', '\'']));
        let help =
            |tag: &Tag| session.pool_tags.describe(*tag).map_or_else(String::new, |known| visible_name(&known.text));
        found.map(|tag| Completion { text: visible_name(&whole(tag)), help: help(tag) }).collect()
    }

    /// Reads the target's tag table, once a session, and only where that takes no longer than a key press may.
    fn learn_tags(&mut self) {
        let Some(halted) = self.halted().filter(|_| self.seen_tags.is_none()) else { return };
        let Some(nt) = self.session.symbols.known_nt(halted) else { return };
        let requests = TAGS_BYTES.div_ceil(halted.reply_data().max(1) as u64);
        let pace = self.meter().and_then(|meter| meter.pace().estimate(requests, TAGS_BYTES));
        if pace.is_none_or(|time| time > TAGS_TIME) {
            return;
        }
        let read = || nt_pool::tags::read(&halted.pool(nt.as_ref()), &|_| true);
        let read = self.soon(|| read().or_else(|error| error.local().map(|_| Default::default())));
        self.seen_tags = Some(read.into_iter().flat_map(|report| report.tags).map(|usage| usage.tag).collect());
    }
}

/// Where the statement of the cursor begins: after the last `;` that is not between quotes.
fn start_of_statement(line: &str) -> usize {
    let (mut start, mut quoted) = (0, false);
    for (at, letter) in line.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            ';' | '{' if !quoted => start = at + 1,
            _ => {}
        }
    }
    start
}

/// The name that a script's command has so far.
fn script_file(statement: &str) -> Option<&str> {
    let rest = ["$$>a<", "$$><", "$$<", "$><", "$<"].iter().find_map(|mark| statement.strip_prefix(mark))?;
    (!rest.contains(char::is_whitespace)).then_some(rest)
}

fn place(table: &Table, before: &[&str], word: &str) -> Place {
    if word.starts_with('@') {
        return Place::Register;
    }
    let Some((first, between)) = before.split_first() else { return Place::Command };
    let command = first.to_ascii_lowercase();
    let Some(info) = table.find(&command) else { return Place::Name };
    if word.starts_with('-') || word.starts_with('/') && !info.usage.contains("file") {
        return Place::Option(info);
    }
    const FILES: [&str; 13] = [
        "-file",
        "-html",
        "-json",
        "-svg",
        "-svg-count",
        "-svg-diff",
        "-folded",
        "-folded-count",
        "-folded-diff",
        "-parquet",
        "-mark",
        "-junit",
        "-sarif",
    ];
    let last = between.last().copied().unwrap_or_default();
    match (command.as_str(), between) {
        _ if FILES.contains(&last) => Place::File,
        _ if last == "-tag" => Place::Tag,
        ("!poolfind", []) | ("!poolused", [_]) | ("!tagowner", []) => Place::Tag,
        ("!leak", ["mark" | "watch" | "trace", ..]) if !last.starts_with('-') => Place::Tag,
        ("!leak", ["report", ..]) => Place::File,
        ("dt" | "??", _) => Place::Type,
        ("r", _) => Place::Register,
        (".logopen" | ".logappend" | ".sympath" | ".sympath+" | ".symfix" | ".symfix+", _) => Place::File,
        (_, []) => match info.subcommands() {
            words if words.is_empty() => Place::Name,
            words => Place::Subcommand(words),
        },
        _ => Place::Name,
    }
}

/// The options that a command's help names.
fn options(info: &CommandInfo, word: &str) -> Vec<Completion> {
    let text = [info.usage, " ", info.details].concat();
    let words = text.split(|c: char| c.is_whitespace() || "[]|(),;:".contains(c));
    let is_option = |word: &&str| {
        let name = word.strip_prefix(['-', '/']);
        name.is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    let all: BTreeSet<&str> = words.filter(is_option).map(|word| word.trim_end_matches('.')).collect();
    starting(all, word, "")
}

fn starting<'w>(words: impl IntoIterator<Item = &'w str>, prefix: &str, help: &str) -> Vec<Completion> {
    let prefix = prefix.to_ascii_lowercase();
    let words = words.into_iter().filter(|word| word.to_ascii_lowercase().starts_with(&prefix));
    words.map(|word| Completion { text: word.into(), help: help.into() }).collect()
}

/// Names on this machine; a folder's ends in a separator. What a line could not hold is left out.
fn files(prefix: &str) -> Vec<Completion> {
    let quoted = prefix.starts_with('"');
    let typed = prefix.trim_start_matches('"');
    // A symbol path has several folders.
    let typed = typed.rsplit([';', '*']).next().unwrap_or(typed);
    let kept = &prefix[..prefix.len() - typed.len()];
    let cut = typed.rfind(['/', MAIN_SEPARATOR]).map_or(0, |at| at + 1);
    let (folder, start) = typed.split_at(cut);
    let Ok(entries) = std::fs::read_dir(if folder.is_empty() { Path::new(".") } else { Path::new(folder) }) else {
        return Vec::new();
    };
    let mut found: Vec<Completion> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let fits = name.starts_with(start) && (!name.starts_with('.') || start.starts_with('.'));
            if !fits || name.contains(['"', ';']) || !quoted && name.contains(char::is_whitespace) {
                return None;
            }
            let end = if entry.path().is_dir() { "/" } else { "" };
            Some(Completion { text: format!("{kept}{folder}{name}{end}"), help: String::new() })
        })
        .collect();
    found.sort_by(|a, b| a.text.cmp(&b.text));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::TABLE;

    fn texts(found: Vec<Completion>) -> Vec<String> {
        found.into_iter().map(|found| found.text).collect()
    }

    #[test]
    fn subcommands_come_from_the_usage() {
        let leak = TABLE.find("!leak").unwrap().subcommands();
        assert!(leak.contains(&"mark") && leak.contains(&"watch") && leak.contains(&"trace"), "{leak:?}");
        assert_eq!(TABLE.find("!sym").unwrap().subcommands(), ["noisy", "quiet"]);
        assert_eq!(TABLE.find("!poolfind").unwrap().subcommands(), [""; 0]);
    }

    #[test]
    fn options_come_from_the_help() {
        let found = texts(options(TABLE.find("!poolfind").unwrap(), "-s"));
        assert!(found.contains(&"-small".to_owned()) && found.contains(&"-special".to_owned()), "{found:?}");
        assert!(texts(options(TABLE.find(".reload").unwrap(), "/")).starts_with(&[
            "/f".into(),
            "/i".into(),
            "/u".into()
        ]));
    }

    #[test]
    fn the_place_decides() {
        let kind = |line: &str| {
            let start = start_of_statement(line);
            let text = line[start..].trim_start();
            let cut = text.rfind(char::is_whitespace).map_or(0, |at| at + 1);
            let before: Vec<&str> = text[..cut].split_whitespace().collect();
            match place(&TABLE, &before, &text[cut..]) {
                Place::Command => "command",
                Place::Option(_) => "option",
                Place::Subcommand(_) => "subcommand",
                Place::Tag => "tag",
                Place::Type => "type",
                Place::Register => "register",
                Place::File => "file",
                Place::Name => "name",
            }
        };
        for (line, expected) in [
            ("!po", "command"),
            ("g; !po", "command"),
            (".if (1) { !po", "command"),
            (".echo \"a; b", "name"),
            ("!poolfind Le", "tag"),
            ("!poolfind Leak -sm", "option"),
            ("!poolused 4 Le", "tag"),
            ("!poolused ", "name"),
            ("!leak wa", "subcommand"),
            ("!leak watch Le", "tag"),
            ("!leak watch Leak -html r", "file"),
            ("!leak report mo", "file"),
            ("dt nt!_PO", "type"),
            ("? @r", "register"),
            ("r ra", "register"),
            (".logopen /tmp/x", "file"),
            ("dps nt!Pool", "name"),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
    }

    #[test]
    fn files_of_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["script.txt", "scratch", "a blank.txt", ".hidden"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("scripts")).unwrap();
        let root = folder.path().display();
        let found = |prefix: &str| {
            let found = texts(files(&format!("{root}/{prefix}")));
            found.iter().map(|text| text[root.to_string().len() + 1..].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("scr"), ["scratch", "script.txt", "scripts/"]);
        assert_eq!(found(""), ["scratch", "script.txt", "scripts/"]);
        assert_eq!(found("."), [".hidden"]);
        assert_eq!(texts(files(&format!("\"{root}/a"))), [format!("\"{root}/a blank.txt")]);
        assert_eq!(texts(files(&format!("srv*{root}/scripts"))), [format!("srv*{root}/scripts/")]);
        assert_eq!(script_file("$$>a<tests/x"), Some("tests/x"));
        assert_eq!(script_file("$$>a<x y"), None);
        assert_eq!(script_file("$t0"), None);
    }
}
