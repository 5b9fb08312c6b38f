//! Commands for each of many: `!for_each_module`, `!for_each_process`, `!for_each_thread`, `!list`.

use std::collections::HashSet;
use std::fmt;

use nt_memory::ReadError;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::commands::execution::process;
use crate::cpp;
use crate::error::CommandError;
use crate::grammar::expression::evaluate;
use crate::grammar::words::unquoted;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::{Drive, Next};
use crate::symbols::short_name;
use crate::text::{Width, words};
use crate::typed::{offset_of, read_pointer};

pub(in crate::commands) const MODULES: CommandInfo = CommandInfo {
    names: &["!for_each_module"],
    usage: "!for_each_module commands",
    help: "run commands for each loaded module",
    details: "@#ModuleName, @#ImageName, @#Base, @#Size, @#End and @#ModuleIndex in them stand for\n\
              the module's: !for_each_module s -a @#Base @#End \"Leak\". With ; in them they\n\
              belong between double quotes or in .block { }.",
    results: &[ResultShape::of::<Rounds>("rounds")],
    action: Action::Drive(modules),
};

pub(in crate::commands) const PROCESSES: CommandInfo = CommandInfo {
    names: &["!for_each_process", "!for_each_thread"],
    usage: "!for_each_process commands",
    help: "run commands for each process, or for each thread",
    details: "@#Process and @#Thread in them stand for the addresses of the EPROCESS and ETHREAD:\n\
              !for_each_process dt nt!_EPROCESS @#Process ImageFileName",
    results: &[ResultShape::of::<Rounds>("rounds")],
    action: Action::Drive(processes),
};

pub(in crate::commands) const LIST: CommandInfo = CommandInfo {
    names: &["!list"],
    usage: "!list -t type.member [-x \"commands\"] [-a \"arguments\"] [-m count] [-e] address",
    help: "follow a list, and run commands at each of its entries",
    details: "The entry's address is $extret in the commands, which show it by dp unless -x has\n\
              others: !list -t nt!_LIST_ENTRY.Flink -x \"dps @$extret L2\" nt!PsLoadedModuleList.\n\
              -a puts arguments behind them; -m stops after so many entries; -e shows each\n\
              command. All of it may stand between double quotes.",
    results: &[ResultShape::of::<Rounds>("rounds")],
    action: Action::Drive(list),
};

/// Entries of one list.
const MAX_ENTRIES: u64 = 1 << 16;

/// How often the commands were run.
#[derive(JsonSchema, Serialize)]
struct Rounds {
    count: u64,
}

impl Text for Rounds {
    fn text(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

/// The commands, without quotes around all of them.
fn commands(drive: &mut Drive<'_>, info: &CommandInfo) -> Result<String, CommandError> {
    let text = drive.arguments.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map_or(text.into(), unescaped);
    if text.is_empty() {
        return Err(usage(info, "no commands"));
    }
    drive.with(|context| context.commands.check(&text, &context.session.aliases))?;
    Ok(text)
}

fn unescaped(text: &str) -> String {
    text.replace("\\\"", "\"")
}

/// Runs a line for each of `rounds`, in which names stand for values.
fn run_each(drive: &mut Drive<'_>, commands: &str, rounds: Vec<Vec<(&str, String)>>) -> Result<Reply, CommandError> {
    let (mut count, mut failed) = (0, false);
    for values in rounds {
        let mut line = commands.to_string();
        for (name, value) in values {
            line = line.replace(&format!("${{@#{name}}}"), &value).replace(&format!("@#{name}"), &value);
        }
        let outcome = drive.run(&line);
        count += 1;
        failed |= outcome.failed;
        if outcome.next != Next::Continue || drive.is_line_over() {
            break;
        }
    }
    let mut reply = Reply::new(Rounds { count });
    if failed {
        reply.failure = Some(CommandError::Failed("not all of the commands succeeded".into()));
    }
    Ok(reply)
}

fn modules(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let commands = commands(drive, &MODULES)?;
    let rounds = drive.with(|context| {
        let kernel = context.kernel()?;
        let drivers = kernel.drivers()?.drivers;
        let of = |(index, driver): (usize, &crate::kernel::Driver)| {
            let end = driver.base.wrapping_add(driver.size.into());
            // Longer names first: one may begin another.
            vec![
                ("ModuleIndex", format!("{index:x}")),
                ("ModuleName", short_name(driver, kernel.base())),
                ("LoadedImageName", driver.file.clone()),
                ("ImageName", driver.file.clone()),
                ("Base", format!("0x{:x}", kernel.width().address(driver.base))),
                ("Size", format!("0x{:x}", driver.size)),
                ("End", format!("0x{:x}", kernel.width().address(end))),
            ]
        };
        Ok::<_, CommandError>(drivers.iter().enumerate().map(of).collect())
    })?;
    run_each(drive, &commands, rounds)
}

fn processes(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let commands = commands(drive, &PROCESSES)?;
    let of_threads = drive.word == "!for_each_thread";
    let (found, notes) = drive.with(|context| process::addresses(context, of_threads))?;
    let rounds = found
        .into_iter()
        .map(|(process, thread)| {
            let mut values = vec![("Process", format!("0x{process:x}"))];
            values.extend(thread.map(|thread| ("Thread", format!("0x{thread:x}"))));
            values
        })
        .collect();
    let mut reply = run_each(drive, &commands, rounds)?;
    reply.complete &= notes.is_empty();
    reply.warnings.extend(notes);
    Ok(reply)
}

/// What is asked of `!list`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walk {
    type_name: String,
    member: String,
    commands: String,
    most: Option<u64>,
    echo: bool,
    start: String,
}

impl Walk {
    fn parse(text: &str) -> Result<Self, CommandError> {
        let text = text.trim();
        let inside = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(unescaped);
        let text = inside.as_deref().unwrap_or(text);
        let mut walk = Self::default();
        let mut arguments = String::new();
        let (mut place, mut words) = (Vec::new(), words(text));
        while let Some(word) = words.next() {
            let mut value = |what: &str| words.next().ok_or_else(|| usage(&LIST, format!("{word} without {what}")));
            match word {
                "-t" => {
                    let path = value("a type and its member")?;
                    let split = path.split_once('!').map_or(path, |(_, rest)| rest).find('.');
                    let at =
                        split.map(|at| path.len() - path.split_once('!').map_or(path, |(_, rest)| rest).len() + at);
                    let at = at.ok_or_else(|| usage(&LIST, "-t takes type.member"))?;
                    (walk.type_name, walk.member) = (path[..at].into(), path[at + 1..].into());
                }
                "-x" => walk.commands = unescaped(unquoted(value("commands")?)),
                "-a" => arguments = unescaped(unquoted(value("arguments")?)),
                "-m" => {
                    let number = value("a number")?;
                    let count = crate::grammar::expression::plain_number(number);
                    walk.most = Some(count.ok_or_else(|| usage(&LIST, format!("'{number}' is no number")))?);
                }
                "-e" => walk.echo = true,
                word => place.push(word),
            }
        }
        if walk.commands.is_empty() {
            walk.commands = "dp @$extret".into();
        }
        if !arguments.is_empty() {
            walk.commands = format!("{} {arguments}", walk.commands);
        }
        walk.start = place.join(" ");
        if walk.type_name.is_empty() || walk.start.is_empty() {
            return Err(usage(&LIST, "-t and an address are missing"));
        }
        Ok(walk)
    }
}

fn list(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let walk = Walk::parse(drive.arguments)?;
    let (start, offset, width) = drive.with(|context| start(context, &walk))?;
    let (mut seen, mut at) = (HashSet::new(), start);
    let (mut count, mut failed, mut cut) = (0, false, None);
    while at != 0 && seen.insert(at) && count < walk.most.unwrap_or(u64::MAX) {
        if count >= MAX_ENTRIES {
            cut = Some(format!("cut after {MAX_ENTRIES:#x} entries"));
            break;
        }
        count += 1;
        if walk.echo {
            drive.say(&format!("{}\n", walk.commands));
        }
        drive.with(|context| context.session.extension_result = at);
        let outcome = drive.run(&walk.commands);
        failed |= outcome.failed;
        if outcome.next != Next::Continue || drive.is_line_over() {
            break;
        }
        // The links are the list's structures: the member's address is what the next one holds.
        let next = drive.with(|context| {
            Ok::<_, CommandError>(read_pointer(
                context.kernel()?.memory(),
                width.address(at.wrapping_add(offset)),
                width,
            ))
        })?;
        at = match next {
            Ok(next) => width.address(next),
            Err(ReadError::Fault(fault)) => return Err(fault.into()),
            Err(hole) => {
                cut = Some(format!("the list ends early: {hole}"));
                break;
            }
        };
    }
    let mut reply = Reply::new(Rounds { count });
    reply.complete = cut.is_none();
    reply.warnings.extend(cut);
    if failed {
        reply.failure = Some(CommandError::Failed("not all of the commands succeeded".into()));
    }
    Ok(reply)
}

/// The first entry, the link's offset, and the width of a link.
fn start(context: &mut Context<'_>, walk: &Walk) -> Result<(u64, u64, Width), CommandError> {
    context.commands.check(&walk.commands, &context.session.aliases)?;
    let width = context.width();
    let (start, left) = evaluate(&walk.start, &mut context.scope())?;
    if !left.trim().is_empty() {
        return Err(usage(&LIST, format!("what is '{}'?", left.trim())));
    }
    let (module, type_name) = walk.type_name.split_once('!').unwrap_or(("nt", &walk.type_name));
    let symbols = cpp::symbols(&mut context.scope(), module)?;
    let offset = offset_of(symbols.as_ref(), type_name, &walk.member)
        .ok_or_else(|| CommandError::Failed(format!("type {} has no member {}", walk.type_name, walk.member)))?;
    Ok((width.address(start), offset, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_asked_for_in_kds_ways() {
        let parsed = Walk::parse("-t nt!_LIST_ENTRY.Flink -x \"dps @$extret L2; k\" -m 5 -e nt!Head + 8").unwrap();
        assert_eq!((parsed.type_name.as_str(), parsed.member.as_str()), ("nt!_LIST_ENTRY", "Flink"));
        assert_eq!((parsed.commands.as_str(), parsed.most, parsed.echo), ("dps @$extret L2; k", Some(5), true));
        assert_eq!(parsed.start, "nt!Head + 8");
        let parsed = Walk::parse("\"-t _EPROCESS.Links.Flink -x \\\"dt x @$extret\\\" -a \\\"Name\\\" 1000\"").unwrap();
        assert_eq!((parsed.type_name.as_str(), parsed.member.as_str()), ("_EPROCESS", "Links.Flink"));
        assert_eq!(parsed.commands, "dt x @$extret Name");
        assert_eq!(Walk::parse("-t a.b 1000").unwrap().commands, "dp @$extret");
        for text in ["", "-t a 1", "-t a.b", "-x \"k\" 1", "-t"] {
            assert!(Walk::parse(text).is_err(), "{text}");
        }
    }
}
