//! `bp bl bc bd be`: breakpoints.
//!
//! ```text
//!  0 e fffff801`0bf9b1c0     0001 (0001) ECHO!EchoEvtDeviceAdd
//! ```
//!
//! They are in the target's own table while it runs; ending the session takes them out.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::breakpoint::{Breakpoint, Data, clear, plant};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate;
use crate::kernel::Kernel;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["bp", "bu"],
    usage: "bp[number] [options] address [passes] [\"commands\"]",
    help: "set a breakpoint",
    details: "With a number (bp3), it is that one: one of the same number is defined anew.\n\
              /1          it is gone after its first hit\n\
              /p process  it counts in this process only (address of its EPROCESS)\n\
              /t thread   it counts in this thread only (address of its ETHREAD)\n\
              /w \"x\"      it counts only where the expression is not 0\n\
              With passes it stops at that hit, and from then on at every one. The commands\n\
              are run at each stop; where they end with g the target goes on. Each hit,\n\
              counted or not, stops the whole machine for some milliseconds. Hits are handled\n\
              while kdpool waits: at the prompt, in .wait, or before the next command.",
    results: &[ResultShape::NOTHING],
    action: Action::Answer(set),
};

pub(in crate::commands) const DATA: CommandInfo = CommandInfo {
    names: &["ba"],
    usage: "ba[number] w|r|e size [options] address [passes] [\"commands\"]",
    help: "stop where data is written (w), or read or written (r)",
    details: "Four at most, in the debug registers of all processors (x64 and x86): 1, 2, 4 or 8\n\
              bytes at a multiple of that. e 1 is bp. Options, passes and commands are those of bp.\n\
              The target stops behind the instruction. They are off while it stands, and after q.",
    results: &[ResultShape::NOTHING],
    action: Action::Answer(set),
};

pub(in crate::commands) const LIST: CommandInfo = CommandInfo {
    names: &["bl"],
    usage: "bl",
    help: "list the breakpoints",
    details: "Each line has the number, e or d for enabled or disabled, the address, how many\n\
              passes are left (and how many there were), the symbol and the commands.",
    results: &[ResultShape::of::<Breakpoints>("bl")],
    action: Action::Answer(list),
};

pub(in crate::commands) const CHANGE: CommandInfo = CommandInfo {
    names: &["bc", "bd", "be"],
    usage: "bc|bd|be number ... | first-last | *",
    help: "clear, disable or enable breakpoints",
    details: "",
    results: &[ResultShape::NOTHING],
    action: Action::Answer(change),
};

/// The target's table has no more entries.
const MAX_BREAKPOINTS: u32 = 32;

#[derive(JsonSchema, Serialize)]
struct Breakpoints {
    breakpoints: Vec<Breakpoint>,
    #[serde(skip)]
    width: Width,
}

/// The inside of a quoted text at the start of `text`, and what follows. `\"` is a quote inside.
fn quoted(text: &str) -> Result<(String, &str), CommandError> {
    let Some(inside) = text.strip_prefix('"') else {
        return Err(usage(&INFO, format!("text between double quotes is missing at '{text}'")));
    };
    let mut value = String::new();
    let mut characters = inside.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((value, &inside[at + 1..])),
            '\\' if inside[at + 1..].starts_with(['"', '\\']) => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    // As in kd, the end of the line is the end of the commands.
    Ok((value, ""))
}

/// `w4`, `r 8`, `e1` in front of an address. An execution is a breakpoint as any other.
fn access(text: &str) -> Result<(Option<Data>, &str), CommandError> {
    let wrong = || usage(&DATA, "an access (e, r or w) and a size (1, 2, 4, 8) are missing");
    let mut characters = text.chars();
    let kind = characters.next().ok_or_else(wrong)?.to_ascii_lowercase();
    let rest = characters.as_str().trim_start();
    let (size, rest) = rest.split_once(char::is_whitespace).ok_or_else(wrong)?;
    let size = size.parse().ok().filter(|size| matches!(size, 1 | 2 | 4 | 8)).ok_or_else(wrong)?;
    match kind {
        'e' if size == 1 => Ok((None, rest.trim_start())),
        'w' | 'r' => Ok((Some(Data { access: kind, size }), rest.trim_start())),
        'e' => Err(usage(&DATA, "an execution is of 1 byte")),
        'i' => Err(usage(&DATA, "accesses to ports are not watched")),
        _ => Err(wrong()),
    }
}

/// What `bp` and `ba` were told, but for the number.
struct Wanted {
    address: u64,
    passes: u64,
    commands: Option<String>,
    condition: Option<String>,
    process: Option<Hex>,
    thread: Option<Hex>,
    once: bool,
    data: Option<Data>,
}

fn set(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let number = match context.word.get(2..).filter(|number| !number.is_empty()) {
        None => None,
        Some(text) => {
            let number: Result<u32, _> = text.parse();
            Some(number.map_err(|_| usage(&INFO, format!("{text} is no number of a breakpoint")))?)
        }
    };
    let wanted = wanted(context)?;
    let (kernel, address) = (context.kernel()?, wanted.address);
    let symbol = context.names()?.name(address)?;
    let breakpoints = &mut context.session.breakpoints;
    let known = known(breakpoints, number, address)?;
    let new = |number| Breakpoint {
        number,
        address: Hex(address),
        enabled: true,
        symbol,
        passes: wanted.passes,
        passes_left: wanted.passes,
        commands: wanted.commands,
        condition: wanted.condition,
        process: wanted.process,
        thread: wanted.thread,
        once: wanted.once,
        data: wanted.data,
    };
    if let Some(known) = known.map(|known| &mut breakpoints[known]) {
        let number = known.number;
        redefine(kernel, known, new(number))?;
        let mut reply = Reply::new(Done {});
        reply.remarks.push(format!("breakpoint {number} redefined"));
        return Ok(reply);
    }
    let used = |number: &u32| breakpoints.iter().any(|known| known.number == *number);
    let number = number.or_else(|| (0..MAX_BREAKPOINTS).find(|number| !used(number)));
    let Some(number) = number.filter(|_| breakpoints.len() < MAX_BREAKPOINTS as usize) else {
        return Err(CommandError::Failed(format!("the target has room for {MAX_BREAKPOINTS} breakpoints")));
    };
    plant(kernel, address, wanted.data)?;
    breakpoints.push(new(number));
    breakpoints.sort_by_key(|breakpoint| breakpoint.number);
    Ok(Reply::new(Done {}))
}

/// Reads the arguments: access (`ba`), options, address, passes, commands.
fn wanted(context: &mut Context<'_>) -> Result<Wanted, CommandError> {
    let mut text = context.arguments.trim();
    let mut data = None;
    if context.word.starts_with("ba") {
        (data, text) = access(text)?;
    }
    let (mut once, mut condition, mut process, mut thread) = (false, None, None, None);
    while let Some(option) = text.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        text = rest.trim_start();
        match option {
            "1" => once = true,
            "w" => {
                let (expression, rest) = quoted(text)?;
                condition = Some(expression);
                text = rest.trim_start();
            }
            "p" | "t" => {
                let (address, rest) = evaluate(text, &mut context.scope())?;
                let which = if option == "p" { &mut process } else { &mut thread };
                *which = Some(Hex(address));
                text = rest.trim_start();
            }
            other => return Err(usage(&INFO, format!("unknown option '/{other}'"))),
        }
    }
    if text.is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let (address, rest) = evaluate(text, &mut context.scope())?;
    let address = context.width().address(address);
    if let Some(Data { size, .. }) = data
        && !address.is_multiple_of(u64::from(size))
    {
        return Err(usage(&DATA, format!("the address is no multiple of {size}")));
    }
    let (passes, rest) = match rest.trim_start() {
        "" => (1, ""),
        rest if rest.starts_with('"') => (1, rest),
        rest => evaluate(rest, &mut context.scope())?,
    };
    if passes == 0 {
        return Err(usage(&INFO, "a breakpoint stops at its first pass or at a later one"));
    }
    let commands = commands(context, rest.trim_start())?;
    Ok(Wanted { address, passes, commands, condition, process, thread, once, data })
}

/// What is run at each stop: checked now, when its author reads the error.
fn commands(context: &Context<'_>, rest: &str) -> Result<Option<String>, CommandError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (commands, left) = quoted(rest)?;
    if !left.trim().is_empty() {
        return Err(usage(&INFO, format!("what is '{}'?", left.trim())));
    }
    context.commands.check(&commands, &context.session.aliases)?;
    Ok(Some(commands).filter(|commands| !commands.trim().is_empty()))
}

/// The breakpoint that is defined anew: the one with this number, or without a number the one at this address.
fn known(breakpoints: &[Breakpoint], number: Option<u32>, address: u64) -> Result<Option<usize>, CommandError> {
    let here = breakpoints.iter().position(|known| known.address == Hex(address));
    let Some(number) = number else { return Ok(here) };
    if let Some(other) = here.map(|here| breakpoints[here].number).filter(|other| *other != number) {
        let why = format!("breakpoint {other} is at this address already; bc {other} clears it");
        return Err(CommandError::Failed(why));
    }
    Ok(breakpoints.iter().position(|known| known.number == number))
}

/// As kd does it. The target may refuse the new place; then the old one stays.
fn redefine(kernel: &dyn Kernel, known: &mut Breakpoint, new: Breakpoint) -> Result<(), CommandError> {
    let moved = known.address != new.address;
    // One of another kind at the same place has to go first.
    if known.enabled && !moved && known.data != new.data {
        clear(kernel, known.address.0)?;
        known.enabled = false;
    }
    if !known.enabled || moved {
        plant(kernel, new.address.0, new.data)?;
    }
    if known.enabled && moved {
        clear(kernel, known.address.0)?;
    }
    *known = new;
    Ok(())
}

fn list(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let width = context.width();
    Ok(Reply::new(Breakpoints { breakpoints: context.session.breakpoints.clone(), width }))
}

fn change(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let known: Vec<u32> = context.session.breakpoints.iter().map(|breakpoint| breakpoint.number).collect();
    let mut chosen: Vec<u32> = Vec::new();
    for word in context.arguments.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
        let (first, last) = match word.split_once('-') {
            _ if word == "*" => (0, u32::MAX),
            Some((first, last)) => (first.parse().unwrap_or(u32::MAX), last.parse().unwrap_or(0)),
            None => word.parse().map_or((u32::MAX, 0), |number| (number, number)),
        };
        let before = chosen.len();
        chosen.extend(known.iter().filter(|number| (first..=last).contains(number)));
        if chosen.len() == before && word != "*" {
            return Err(usage(&CHANGE, format!("there is no breakpoint '{}'", visible_name(word))));
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
                plant(kernel, breakpoint.address.0, breakpoint.data)?;
                breakpoint.enabled = true;
            }
            ("bc" | "bd", true) => {
                clear(kernel, breakpoint.address.0)?;
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
        for breakpoint in &self.breakpoints {
            let Breakpoint { number, address, enabled, symbol, passes, passes_left, .. } = breakpoint;
            let state = if *enabled { 'e' } else { 'd' };
            let symbol = symbol.as_deref().unwrap_or_default();
            let address = self.width.tick(address.0);
            let data = breakpoint.data.map_or("    ".into(), |data| format!("{} {} ", data.access, data.size));
            let mut line = format!("{number:>2} {state} {address} {data}{passes_left:04x} ({passes:04x}) {symbol}");
            if let Some(commands) = &breakpoint.commands {
                line.push_str(&format!(" \"{}\"", visible_name(commands)));
            }
            writeln!(out, "{}", line.trim_end())?;
            if let Some(Hex(process)) = breakpoint.process {
                writeln!(out, "     Match process data {}", self.width.tick(process))?;
            }
            if let Some(Hex(thread)) = breakpoint.thread {
                writeln!(out, "     Match thread data {}", self.width.tick(thread))?;
            }
            if let Some(condition) = &breakpoint.condition {
                writeln!(out, "     Condition: {}", visible_name(condition))?;
            }
        }
        Ok(())
    }
}
