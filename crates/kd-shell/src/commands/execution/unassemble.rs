//! `u [address [end | L count]]`, `ub`, `uf`: instructions.
//!
//! ```text
//! ECHO!EchoEvtIoWrite:
//! fffff801`0bf95810 4c89442418      mov     qword ptr [rsp+18h],r8
//! ```

use std::collections::BTreeMap;
use std::fmt;

use nt_memory::{Memory, read_sparse};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::disassembly::{self, Disassembler, Flow, MAX_LENGTH, line};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::grammar::range;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["u"],
    usage: "u [address [end | L instructions]]",
    help: "disassemble",
    details: "Without a length eight instructions are shown; without an address it goes on where it ended. x64 and x86.",
    results: &[ResultShape::of::<Listing>("u")],
    action: Action::Answer(run),
};

pub(in crate::commands) const BACKWARDS: CommandInfo = CommandInfo {
    names: &["ub"],
    usage: "ub [address [L instructions]]",
    help: "disassemble what is before an address",
    details: "Instructions are found from the start of the function where that is known, else as the longest row that\nends at \
              the address. x64 and x86.",
    results: &[ResultShape::of::<Listing>("u")],
    action: Action::Answer(backwards),
};

pub(in crate::commands) const FUNCTION: CommandInfo = CommandInfo {
    names: &["uf"],
    usage: "uf [/c] [address]",
    help: "disassemble a function, or list what it calls (/c)",
    details: "From the start of the function that the address is in, along its branches, as far as they stay in its image and \
              do not\nenter another function. x64 and x86.",
    results: &[ResultShape::of::<Listing>("u"), ResultShape::of::<Calls>("uf-calls")],
    action: Action::Answer(function),
};

const DEFAULT_INSTRUCTIONS: u64 = 8;

/// Bytes that `uf` reads of a function at most.
const MAX_OF_FUNCTION: usize = 0x4000;

/// One display; more is asked for piece by piece.
const MAX_BYTES: u64 = 1 << 20;

#[derive(JsonSchema, Serialize)]
struct Listing {
    instructions: Vec<Instruction>,
    /// Of the last one, and where the next one is.
    #[serde(skip)]
    function: Option<String>,
    #[serde(skip)]
    next: Option<u64>,
    #[serde(skip)]
    width: Width,
}

impl Listing {
    fn new(width: Width) -> Self {
        Self { instructions: Vec::new(), function: None, next: None, width }
    }
}

#[derive(JsonSchema, Serialize)]
struct Instruction {
    address: Hex,
    /// The name of this place when it is another function than the one before, or the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<String>,
    bytes: String,
    text: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let machine = kernel.version().machine;
    let Some(mut disassembler) = Disassembler::new(machine) else {
        return Err(CommandError::Failed(format!(
            "instructions of machine {:04x} are not in this version",
            machine.number()
        )));
    };
    // An end is an address, a length counts instructions.
    let range = range::parse(context.arguments, 1, &mut context.scope())?;
    let (start, count) = match range {
        Some(range) => (range.address, range.count),
        None => (context.session.next_code.unwrap_or(kernel.stop().program_counter), None),
    };
    let start = width.address(start);
    let by_length =
        context.arguments.rsplit(char::is_whitespace).next().is_some_and(|last| last.starts_with(['L', 'l']))
            || context.arguments.contains([' ', '\t']) && context.arguments.to_ascii_lowercase().contains(" l");
    let (most, end) = match count {
        None => (DEFAULT_INSTRUCTIONS, None),
        Some(count) if by_length => (count, None),
        Some(count) => (u64::MAX, Some(start.wrapping_add(count))),
    };
    let bytes = match end {
        Some(end) => end.wrapping_sub(start).saturating_add(MAX_LENGTH as u64),
        None => most.saturating_mul(MAX_LENGTH as u64),
    };
    if bytes > MAX_BYTES {
        return Err(usage(&INFO, format!("that is more than the {MAX_BYTES:#x} bytes of one display")));
    }
    let sparse = read_sparse(&context.memory()?, start, bytes as usize)?;
    let readable = sparse.holes.first().map_or(sparse.bytes.len(), |hole| hole.start.wrapping_sub(start) as usize);
    let code = &sparse.bytes[..readable.min(sparse.bytes.len())];
    let mut names = context.names()?;
    let mut listing = Listing::new(width);
    let mut at = 0;
    while (listing.instructions.len() as u64) < most {
        let address = start.wrapping_add(at as u64);
        if end.is_some_and(|end| address.wrapping_sub(start) >= end.wrapping_sub(start)) {
            break;
        }
        let left = &code[at..];
        let Some(one) = disassembler.named(&left[..left.len().min(MAX_LENGTH)], address, &mut names)? else { break };
        listing.push(address, &left[..one.length], one.text, names.name(address)?);
        at += one.length;
    }
    let ended = listing.instructions.len() as u64 == most || end.is_some();
    let stopped = width.tick(start.wrapping_add(at as u64));
    let nothing = listing.instructions.is_empty();
    context.session.next_code = Some(start.wrapping_add(at as u64));
    let mut reply = Reply::new(listing);
    if nothing {
        reply.complete = false;
        reply.failure = Some(CommandError::Failed(format!("Memory access error: cannot read {stopped}")));
    } else if !ended {
        reply.complete = false;
        reply.warnings.push(format!("cannot read {stopped}"));
    }
    Ok(reply)
}

/// A disassembler for the target's instructions.
fn disassembler(context: &Context<'_>) -> Result<Disassembler, CommandError> {
    let machine = context.kernel()?.version().machine;
    let why =
        || CommandError::Failed(format!("instructions of machine {:04x} are not in this version", machine.number()));
    Disassembler::new(machine).ok_or_else(why)
}

/// The start of the function that an address is in, as far as names tell.
fn start_of(context: &mut Context<'_>, address: u64) -> Result<Option<u64>, CommandError> {
    let width = context.width();
    let near = context.names()?.near(address)?;
    Ok(near.and_then(|near| Some(width.address(near.base.wrapping_add(near.before?.rva.into())))))
}

fn backwards(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    disassembler(context)?;
    let (end, count) = match range::parse(context.arguments, 1, &mut context.scope())? {
        Some(range) => (range.address, range.count.unwrap_or(DEFAULT_INSTRUCTIONS)),
        None => (context.session.next_code.unwrap_or(kernel.stop().program_counter), DEFAULT_INSTRUCTIONS),
    };
    let end = width.address(end);
    if count > MAX_BYTES / MAX_LENGTH as u64 {
        return Err(usage(&BACKWARDS, format!("that is more than the {MAX_BYTES:#x} bytes of one display")));
    }
    // As far as a function's start may be, else as far as so many instructions reach.
    const FAR: u64 = 0x2000;
    let reach = (count * MAX_LENGTH as u64).min(end);
    let start = start_of(context, end.wrapping_sub(1))?.filter(|start| end > *start && end - start <= FAR.max(reach));
    let from = start.map_or(end - reach, |start| start.min(end - reach));
    let mut bytes = vec![0; (end - from) as usize];
    let view = context.memory()?;
    let mut first = from;
    // What is unreadable at the front is not needed.
    while first < end && view.read(first, &mut bytes[(first - from) as usize..])? < (end - first) as usize {
        first = (first | 0xfff).saturating_add(1).min(end);
    }
    let code = &bytes[(first - from) as usize..];
    let known = start.filter(|start| *start >= first).map(|start| (start - first) as usize);
    let starts = disassembly::backwards(kernel.version().machine, code, known, count as usize);
    let Some(first_start) = starts.first() else {
        let why = format!("Memory access error: no instructions before {}", width.tick(end));
        return Err(CommandError::Failed(why));
    };
    let at = first.wrapping_add(*first_start as u64);
    let mut listing = Listing::new(width);
    let (mut disassembler, mut names) = (disassembler(context)?, context.names()?);
    let mut place = at;
    while place < end {
        let left = &code[(place - first) as usize..];
        let Some(one) = disassembler.named(left, place, &mut names)? else { break };
        listing.push(place, &left[..one.length], one.text, names.name(place)?);
        place += one.length as u64;
    }
    context.session.next_code = Some(at);
    Ok(Reply::new(listing))
}

fn function(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let text = context.arguments.trim();
    let (calls_only, text) = match text.strip_prefix("/c") {
        Some(rest) if rest.is_empty() || rest.starts_with(char::is_whitespace) => (true, rest.trim()),
        _ => (false, text),
    };
    if text.starts_with('/') {
        return Err(usage(&FUNCTION, format!("unknown option '{text}'")));
    }
    let address = match text {
        "" => kernel.stop().program_counter,
        text => evaluate_all(text, &mut context.scope())?,
    };
    let address = width.address(address);
    let start = start_of(context, address)?.unwrap_or(address);
    let mut disassembler = disassembler(context)?;
    let view = context.memory()?;
    let mut names = context.names()?;
    let function = names.name(start)?;
    let base = function.as_deref().map(|name| name.split('+').next().unwrap_or(name).to_string());
    let (mut found, mut waiting, mut notes) = (BTreeMap::new(), vec![start], Vec::new());
    while let Some(mut at) = waiting.pop() {
        while !found.contains_key(&at) {
            if found.len() >= MAX_OF_FUNCTION {
                notes.push(format!("cut after {MAX_OF_FUNCTION:#x} instructions"));
                waiting.clear();
                break;
            }
            let mut code = [0; MAX_LENGTH];
            let read = view.read(at, &mut code)?.min(MAX_LENGTH);
            let Some(one) = disassembler.named(&code[..read], at, &mut names)? else {
                notes.push(format!("cannot read {}", width.tick(at)));
                break;
            };
            let next = at.wrapping_add(one.length as u64);
            let (target, goes_on) = match one.flow {
                Flow::Next | Flow::Call(_) => (None, true),
                Flow::Branch(target) => (Some(target), true),
                Flow::Jump(target) => (target, false),
                Flow::End => (None, false),
            };
            found.insert(at, (code[..one.length].to_vec(), one));
            if let Some(target) = target.map(|target| width.address(target)) {
                // Another function that is jumped to is another function.
                let name = names.name(target)?;
                let of = name.as_deref().map(|name| name.split('+').next().unwrap_or(name));
                if of == base.as_deref() || name.is_none() {
                    waiting.push(target);
                }
            }
            match goes_on {
                true => at = next,
                false => break,
            }
        }
    }
    let mut listing = Listing::new(width);
    let mut calls = Calls { calls: Vec::new(), function: function.unwrap_or_else(|| width.tick(start)), width };
    for (at, (bytes, one)) in found {
        if let Flow::Call(target) = one.flow {
            let to = match target {
                Some(target) => names.name(width.address(target))?.unwrap_or_else(|| width.tick(target)),
                None => one.text.trim_start_matches("call").trim().to_string(),
            };
            calls.calls.push(Called { address: Hex(at), from: names.name(at)?, to });
        }
        if !calls_only {
            listing.push(at, &bytes, one.text, names.name(at)?);
        }
    }
    Ok(match calls_only {
        true => Reply::with_notes(calls, notes),
        false => Reply::with_notes(listing, notes),
    })
}

/// What a function calls.
#[derive(JsonSchema, Serialize)]
struct Calls {
    function: String,
    calls: Vec<Called>,
    #[serde(skip)]
    width: Width,
}

#[derive(JsonSchema, Serialize)]
struct Called {
    address: Hex,
    from: Option<String>,
    to: String,
}

impl Text for Calls {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{}", self.function)?;
        for Called { address, from, to } in &self.calls {
            let at = self.width.tick(address.0);
            writeln!(out, "  {} ({at}):\n    call to {to}", from.as_deref().unwrap_or(&at))?;
        }
        Ok(())
    }
}

impl Listing {
    fn push(&mut self, address: u64, bytes: &[u8], text: String, symbol: Option<String>) {
        let of = |symbol: &str| symbol.split('+').next().unwrap_or_default().to_string();
        let function = symbol.as_deref().map(of);
        let gap = self.next.replace(address.wrapping_add(bytes.len() as u64)) != Some(address);
        let is_new = gap || function != self.function;
        self.function = function;
        self.instructions.push(Instruction {
            address: Hex(address),
            symbol: symbol.filter(|_| is_new),
            bytes: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            text,
        });
    }
}

/// The two lines of the current instruction, after the registers.
pub(in crate::commands) fn at_counter(context: &mut Context<'_>, address: u64) -> Result<String, CommandError> {
    let kernel = context.kernel()?;
    let width = kernel.width();
    let address = width.address(address);
    let mut text = String::new();
    // The stop's own place has the name that the stop was shown with.
    let name = match address == width.address(kernel.stop().program_counter) {
        true => crate::banner::place(kernel, &mut context.session.symbols)?,
        false => context.names()?.name(address)?,
    };
    if let Some(name) = name {
        text.push_str(&format!("{name}:\n"));
    }
    let mut names = context.names()?;
    let mut code = [0; MAX_LENGTH];
    let read = kernel.memory().read(address, &mut code)?.min(MAX_LENGTH);
    let one = match Disassembler::new(kernel.version().machine) {
        Some(mut disassembler) => disassembler.named(&code[..read], address, &mut names)?,
        None => None,
    };
    match one {
        Some(one) => text.push_str(&format!("{}\n", line(width, address, &code[..one.length], &one.text))),
        None => text.push_str(&format!("{} ??\n", width.tick(address))),
    }
    Ok(text)
}

impl Text for Listing {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for Instruction { address, symbol, bytes, text } in &self.instructions {
            if let Some(symbol) = symbol {
                writeln!(out, "{symbol}:")?;
            }
            writeln!(out, "{} {bytes:<15} {text}", self.width.tick(address.0))?;
        }
        Ok(())
    }
}
