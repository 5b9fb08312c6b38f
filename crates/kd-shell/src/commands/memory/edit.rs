//! `eb ew ed eq ep ea eu eza ezu address values`: memory is changed. Off until it is allowed.

use nt_memory::Memory;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::Hex;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["eb", "ew", "ed", "eq", "ep", "ea", "eu", "eza", "ezu"],
    usage: "eb|ew|ed|eq|ep [/p] address value ... | ea|eu|eza|ezu address \"text\"",
    help: "change memory (needs .allow_write on)",
    details: "/p writes physical memory. ea and eu write text as it is, eza and ezu with a zero\nbehind it. What was written is read again and compared.",
    results: &[ResultShape::of::<Written>("e")],
    action: Action::Answer(run),
};

pub(in crate::commands) const ALLOW: CommandInfo = CommandInfo {
    names: &[".allow_write"],
    usage: ".allow_write [on|off]",
    help: "allow commands to change the target, or forbid it",
    details: "It is off unless the session was started with --allow-write.",
    results: &[ResultShape::of::<Allowed>("allow_write")],
    action: Action::Answer(allow),
};

#[derive(JsonSchema, Serialize)]
struct Written {
    address: Hex,
    bytes: usize,
}

#[derive(JsonSchema, Serialize)]
struct Allowed {
    allowed: bool,
}

/// One command writes no more.
const MAX_BYTES: usize = 4096;

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    context.session.check_writing()?;
    let kernel = context.kernel()?;
    let width = context.width();
    let (physical, text) = match context.arguments.strip_prefix("/p") {
        Some(rest) if rest.starts_with(char::is_whitespace) => (true, rest.trim_start()),
        _ => (false, context.arguments),
    };
    let (address, mut left) = evaluate(text, &mut context.scope())?;
    let address = if physical { address } else { width.address(address) };
    let size = match context.word {
        "eb" => 1,
        "ew" => 2,
        "ed" => 4,
        "eq" => 8,
        "ep" => width.bytes(),
        _ => 0,
    };
    let mut data = Vec::new();
    if size == 0 {
        let text = left.trim();
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let text = text.ok_or_else(|| usage(&INFO, "the text belongs between double quotes"))?;
        match context.word {
            "ea" | "eza" => data.extend(text.bytes()),
            _ => data.extend(text.encode_utf16().flat_map(u16::to_le_bytes)),
        }
        match context.word {
            "eza" => data.push(0),
            "ezu" => data.extend([0, 0]),
            _ => {}
        }
    }
    while size > 0 && !left.trim().is_empty() {
        let (value, rest) = evaluate(left, &mut context.scope())?;
        // Numbers of 32 bits were sign-extended.
        if size < 8 && value >> (8 * size) != 0 && (value as i64) >> (8 * size - 1) != -1 {
            return Err(usage(&INFO, format!("{value:#x} is more than {size} bytes")));
        }
        data.extend(&value.to_le_bytes()[..size]);
        left = rest;
    }
    if data.is_empty() || data.len() > MAX_BYTES {
        return Err(usage(&INFO, format!("one to {MAX_BYTES} bytes can be written, not {}", data.len())));
    }
    let written = match physical {
        false => context.memory()?.write(address, &data)?,
        true => kernel.write_physical(address, &data)?,
    };
    let mut there = vec![0; written.min(data.len())];
    let read = match physical {
        false => context.memory()?.read(address, &mut there)?,
        true => kernel.read_physical(address, &mut there)?,
    };
    let mut reply = Reply::new(Written { address: Hex(address), bytes: written });
    let same = there.iter().zip(&data).take(read).take_while(|(there, wanted)| there == wanted).count();
    if same < there.len() {
        let bad = width.tick(address.wrapping_add(same as u64));
        reply.complete = false;
        reply.failure = Some(CommandError::Failed(format!("what was written does not read back at {bad}")));
    }
    if written < data.len() {
        let bad = width.tick(address.wrapping_add(written as u64));
        reply.complete = false;
        reply.failure = Some(CommandError::Failed(format!(
            "Memory access error: cannot write {bad}; {written} of {} bytes are written",
            data.len()
        )));
    }
    Ok(reply)
}

fn allow(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    match context.arguments.trim() {
        "" => {}
        "on" => context.session.allow_write = true,
        "off" => context.session.allow_write = false,
        other => return Err(usage(&ALLOW, format!("'{other}' is neither on nor off"))),
    }
    Ok(Reply::new(Allowed { allowed: context.session.allow_write }))
}

impl Text for Written {
    fn text(&self, _: &mut dyn std::fmt::Write) -> std::fmt::Result {
        Ok(())
    }
}

impl Text for Allowed {
    fn text(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        writeln!(out, "Changing the target is {}.", if self.allowed { "allowed" } else { "not allowed" })
    }
}
