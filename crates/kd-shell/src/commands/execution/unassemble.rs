//! `u [address [end | L count]]`: instructions.
//!
//! ```text
//! ECHO!EchoEvtIoWrite:
//! fffff801`0bf95810 4c89442418      mov     qword ptr [rsp+18h],r8
//! ```

use std::fmt;

use nt_memory::read_sparse;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::disassembly::{Disassembler, MAX_LENGTH, line};
use crate::error::CommandError;
use crate::grammar::range;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["u"],
    usage: "u [address [end | L instructions]]",
    help: "disassemble",
    details: "Without a length eight instructions are shown; without an address it goes on where it ended. x64 and x86.",
    action: Action::Answer(run),
};

const DEFAULT_INSTRUCTIONS: u64 = 8;

/// One display; more is asked for piece by piece.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Serialize)]
struct Listing {
    instructions: Vec<Instruction>,
    #[serde(skip)]
    width: Width,
}

#[derive(Serialize)]
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
        return Err(CommandError::Failed(format!("instructions of machine {machine:04x} are not in this version")));
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
    let mut listing = Listing { instructions: Vec::new(), width };
    let (mut at, mut function) = (0, None);
    while (listing.instructions.len() as u64) < most {
        let address = start.wrapping_add(at as u64);
        if end.is_some_and(|end| address.wrapping_sub(start) >= end.wrapping_sub(start)) {
            break;
        }
        let left = &code[at..];
        let Some(one) = disassembler.named(&left[..left.len().min(MAX_LENGTH)], address, &mut names)? else { break };
        let symbol = names.name(address)?;
        let of = symbol.as_ref().map(|symbol| symbol.split('+').next().unwrap_or_default().to_string());
        let is_new = at == 0 || of != function;
        function = of;
        listing.instructions.push(Instruction {
            address: Hex(address),
            symbol: symbol.filter(|_| is_new),
            bytes: left[..one.length].iter().map(|byte| format!("{byte:02x}")).collect(),
            text: one.text,
        });
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
