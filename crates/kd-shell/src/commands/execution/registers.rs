//! `r [register [= value]]` and `~Ns`: registers of the current processor, and which one that is.
//!
//! ```text
//! rax=000000000000c301 rbx=ffffe00173eed880 rcx=0000000000000001
//! ...
//! iopl=0         nv up ei pl nz na pe nc
//! cs=0010  ss=0018  ds=002b  es=002b  fs=0053  gs=002b             efl=00000202
//! nt!DbgBreakPointWithStatus:
//! fffff803`bb757020 cc              int     3
//! ```

use std::fmt::{self, Write};

use kd_target::Machine;
use schemars::JsonSchema;
use serde::Serialize;

use super::unassemble::at_counter;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::cpp;
use crate::error::CommandError;
use crate::grammar::Scope;
use crate::grammar::expression::evaluate_all;
use crate::grammar::words::unquoted;
use crate::registers::{Registers, is_special, size};
use crate::schema::ResultShape;
use crate::session::{Context, temporary};
use crate::shell::{Drive, Next};
use crate::text::{Hex, Width, visible_name};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["r"],
    usage: "r [register[=value]] [, register ...]",
    help: "show or set registers of the current processor",
    details: "Parts (eax, r8d, al), flags (zf) and control registers (cr3) have their names too. ~1s makes another \
              processor the current one.\n$t0 to $t19 hold numbers of your own; r? sets one to a C++ expression. $.u0 to \
              $.u9 are texts that $u0 to $u9 stand for.\nOthers that are known: $ip $csp $ra $retreg $proc $thread $peb \
              $teb $tpid $tid $extret $exp $bp0 $ptrsize $pagesize\n$exr_code $exr_param0 $bug_code $bug_param1, with \
              and without @. Registers of the target are set only when writing is\nallowed (.allow_write on).",
    results: &[ResultShape::of::<Shown>("r")],
    action: Action::Answer(run),
};

pub(in crate::commands) const PROCESSOR: CommandInfo = CommandInfo {
    names: &["~"],
    usage: "~[number s | number|* command]",
    help: "choose the current processor, or run a command for one or for all",
    details: "~1s chooses processor 1; ~1k shows its stack; ~*k shows those of all; ~*e \"r; k\" runs several commands; ~ \
              alone says\nwhich one is current.",
    results: &[ResultShape::of::<Shown>("r")],
    action: Action::Drive(processor),
};

#[derive(JsonSchema, Serialize)]
struct Shown {
    processor: u16,
    registers: Vec<Value>,
    #[serde(skip)]
    text: String,
}

#[derive(JsonSchema, Serialize)]
struct Value {
    name: String,
    value: Hex,
}

/// The general registers and flags that `r` alone shows.
const ALL: [(Machine, &[&str]); 3] = [
    (
        Machine::X64,
        &[
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rip", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15", "cs", "ss", "ds", "es", "fs", "gs", "efl",
        ],
    ),
    (
        Machine::X86,
        &["eax", "ebx", "ecx", "edx", "esi", "edi", "eip", "esp", "ebp", "cs", "ss", "ds", "es", "fs", "gs", "efl"],
    ),
    (
        Machine::Arm64,
        &[
            "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
            "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "fp", "lr",
            "sp", "pc", "cpsr",
        ],
    ),
];

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    if !text.is_empty() {
        return some(context, text);
    }
    let kernel = context.kernel()?;
    let machine = kernel.version().machine;
    let registers = Registers::read(kernel)?;
    let names = ALL.iter().find(|(known, _)| *known == machine).map_or(&[][..], |(_, names)| names);
    let mut values = Vec::new();
    for name in names {
        let value = registers
            .get(name)
            .ok_or_else(|| CommandError::Failed("the target's context record is too short for its registers".into()))?;
        values.push(Value { name: name.to_string(), value: Hex(value) });
    }
    let mut text = layout(machine, &values);
    text.push_str(&at_counter(context, registers.get("$ip").unwrap_or_default())?);
    Ok(Reply::new(Shown { processor: kernel.processor(), registers: values, text }))
}

/// `r rax, rbx`, `r rax=1`, `r? $t0=sizeof(nt!_POOL_HEADER)`, `r $.u0=text`
fn some(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    let (text, typed) = text.strip_prefix('?').map_or((text, false), |text| (text.trim_start(), true));
    if let Some((name, value)) = text.split_once('=') {
        let name = name.trim();
        let name = name.strip_prefix('@').unwrap_or(name);
        if let Some(number) = name.strip_prefix("$.u").and_then(|number| number.parse().ok()) {
            let value = value.trim();
            let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            context.session.aliases.set_fixed(number, unquoted.unwrap_or(value));
        } else {
            let value = match typed {
                true => cpp::number(&mut context.scope(), value)?,
                false => evaluate_all(value, &mut context.scope())?,
            };
            set(context, name, value)?;
        }
        let processor = context.kernel().map_or(0, |kernel| kernel.processor());
        return Ok(Reply::new(Shown { processor, registers: Vec::new(), text: String::new() }));
    }
    if typed {
        return Err(usage(&INFO, "r? sets a register to a C++ expression: r? $t0 = sizeof(nt!_POOL_HEADER)"));
    }
    let mut shown = Shown { processor: 0, registers: Vec::new(), text: String::new() };
    for name in text.split([',', ' ']).filter(|name| !name.is_empty()) {
        let name = name.strip_prefix('@').unwrap_or(name).to_ascii_lowercase();
        let value = context.scope().register(&name)?.ok_or_else(|| bad_register(&name))?;
        let (width, size) = match context.kernel() {
            Ok(kernel) => {
                shown.processor = kernel.processor();
                let size = size(kernel.version().machine, &name);
                (kernel.width(), size.unwrap_or(kernel.width().bytes()))
            }
            Err(_) => (Width::Eight, 8),
        };
        let value = width.address(value);
        let _ = match size {
            1 => writeln!(shown.text, "{name}={value:x}"),
            size => writeln!(shown.text, "{name}={value:0digits$x}", digits = 2 * size),
        };
        shown.registers.push(Value { name, value: Hex(value) });
    }
    Ok(Reply::new(shown))
}

fn bad_register(name: &str) -> CommandError {
    CommandError::Usage(format!("Bad register error at '{}'", visible_name(name)))
}

fn set(context: &mut Context<'_>, name: &str, value: u64) -> Result<(), CommandError> {
    if let Some(number) = temporary(name) {
        context.session.temporaries[number] = value;
        return Ok(());
    }
    let kernel = context.kernel()?;
    let machine = kernel.version().machine;
    if is_special(machine, name) {
        return Err(CommandError::Failed(format!("{name} is shown and cannot be set: the target keeps it itself")));
    }
    if size(machine, name).is_none() {
        return Err(bad_register(name));
    }
    context.session.check_writing()?;
    let changed = Registers::read(kernel)?.set(name, value).ok_or_else(|| bad_register(name))?;
    Ok(kernel.set_context(kernel.processor(), changed)?)
}

/// kd's lines of all registers.
fn layout(machine: Machine, values: &[Value]) -> String {
    let get = |name: &str| values.iter().find(|value| value.name == name).map_or(0, |value| value.value.0);
    let mut text = String::new();
    let segments = |text: &mut String| {
        for name in ["cs", "ss", "ds", "es", "fs", "gs"] {
            let _ = write!(text, "{name}={:04x}  ", get(name));
        }
        let _ = writeln!(text, "           efl={:08x}", get("efl"));
    };
    match machine {
        Machine::X64 => {
            for row in [
                &["rax", "rbx", "rcx"][..],
                &["rdx", "rsi", "rdi"],
                &["rip", "rsp", "rbp"],
                &["r8", "r9", "r10"],
                &["r11", "r12", "r13"],
                &["r14", "r15"],
            ] {
                let row: Vec<String> = row.iter().map(|name| format!("{name:>3}={:016x}", get(name))).collect();
                let _ = writeln!(text, "{}", row.join(" "));
            }
            let _ = writeln!(text, "{}", flags(machine, get("efl")));
            segments(&mut text);
        }
        Machine::X86 => {
            let row =
                |names: &[&str]| -> String { names.iter().map(|name| format!("{name}={:08x} ", get(name))).collect() };
            let _ = writeln!(text, "{}", row(&["eax", "ebx", "ecx", "edx", "esi", "edi"]).trim_end());
            let _ = writeln!(text, "{}{}", row(&["eip", "esp", "ebp"]), flags(machine, get("efl")));
            segments(&mut text);
        }
        _ => {
            for row in values.chunks(4) {
                let row: Vec<String> =
                    row.iter().map(|value| format!("{:>4}={:016x}", value.name, value.value.0)).collect();
                let _ = writeln!(text, "{}", row.join(" "));
            }
        }
    }
    text
}

/// `iopl=0         nv up ei pl nz na pe nc`. kd's words for parity are the wrong way round on x64: with 202, where the
/// flag is clear, it says pe there and po on x86.
fn flags(machine: Machine, efl: u64) -> String {
    let (even, odd) = if machine == Machine::X64 { ("po", "pe") } else { ("pe", "po") };
    let flag = |bit: u32, set: &'static str, clear: &'static str| if efl >> bit & 1 != 0 { set } else { clear };
    format!(
        "iopl={} {} {} {} {} {} {} {} {} {} {}",
        efl >> 12 & 3,
        flag(20, "vip", "   "),
        flag(19, "vif", "   "),
        flag(11, "ov", "nv"),
        flag(10, "dn", "up"),
        flag(9, "ei", "di"),
        flag(7, "ng", "pl"),
        flag(6, "zr", "nz"),
        flag(4, "ac", "na"),
        flag(2, even, odd),
        flag(0, "cy", "nc")
    )
}

fn processor(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let text = drive.arguments.trim();
    let (current, count) =
        drive.with(|context| context.kernel().map(|kernel| (kernel.processor(), kernel.stop().processors)))?;
    let shown = |processor, text| Ok(Reply::new(Shown { processor, registers: Vec::new(), text }));
    if text.is_empty() {
        return shown(current, format!("processor {current} of {count}\n"));
    }
    // Processors are counted in decimal.
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (chosen, command) = match text.strip_prefix('*') {
        Some(rest) => ((0..count.min(u16::MAX.into()) as u16).collect(), rest.trim()),
        None => {
            let number = text[..end].parse();
            let number: u16 = number.map_err(|_| usage(&PROCESSOR, format!("'{text}' names no processor")))?;
            (vec![number], text[end..].trim())
        }
    };
    if let (&[number], "s" | "S") = (chosen.as_slice(), command) {
        // Choosing is silent, as in kd: the prompt says it.
        drive.with(|context| context.kernel()?.set_processor(number).map_err(CommandError::from))?;
        return shown(number, String::new());
    }
    let command = match command.split_once(char::is_whitespace) {
        Some(("e" | "E", commands)) => unquoted(commands.trim()),
        _ => command,
    };
    if command.is_empty() || command == "s" {
        return Err(usage(&PROCESSOR, "a command for the processors is missing"));
    }
    drive.with(|context| context.commands.check(command, &context.session.aliases))?;
    run_on(drive, &chosen, current, command)?;
    shown(current, String::new())
}

/// Runs a command with each processor the current one in turn.
fn run_on(drive: &mut Drive<'_>, chosen: &[u16], current: u16, command: &str) -> Result<(), CommandError> {
    let mut failed = false;
    for number in chosen {
        drive.with(|context| context.kernel()?.set_processor(*number).map_err(CommandError::from))?;
        if chosen.len() > 1 {
            drive.say(&format!("\nProcessor {number}:\n"));
        }
        let outcome = drive.run(command);
        failed |= outcome.failed;
        if outcome.next != Next::Continue || drive.is_line_over() || !drive.is_halted() {
            break;
        }
    }
    if drive.is_halted() {
        drive.with(|context| context.kernel()?.set_processor(current).map_err(CommandError::from))?;
    }
    match failed {
        true => Err(CommandError::Failed("not all of the commands succeeded".into())),
        false => Ok(()),
    }
}

impl Text for Shown {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_registers() {
        let values: Vec<Value> = [
            ("rax", 0xc301),
            ("rbx", 0xffffe00173eed880),
            ("rcx", 1),
            ("rdx", 0xd800000000),
            ("rsi", 0xffffe00173eed8e0),
            ("rdi", 0xffffe00173eed8f0),
            ("rip", 0xfffff803bb757020),
            ("rsp", 0xffffd001f01f8988),
            ("rbp", 0xffffe00173f0b620),
            ("r8", 0x3e),
            ("r9", 0xffffe00167a4a000),
            ("r10", 0x1e),
            ("r11", 0xffffd001f01f88f8),
            ("r12", 0),
            ("r13", 0xffffd001f01efdc0),
            ("r14", 1),
            ("r15", 0),
            ("cs", 0x10),
            ("ss", 0x18),
            ("ds", 0x2b),
            ("es", 0x2b),
            ("fs", 0x53),
            ("gs", 0x2b),
            ("efl", 0x202),
        ]
        .map(|(name, value)| Value { name: name.into(), value: Hex(value) })
        .into();
        let expected = "\
rax=000000000000c301 rbx=ffffe00173eed880 rcx=0000000000000001
rdx=000000d800000000 rsi=ffffe00173eed8e0 rdi=ffffe00173eed8f0
rip=fffff803bb757020 rsp=ffffd001f01f8988 rbp=ffffe00173f0b620
 r8=000000000000003e  r9=ffffe00167a4a000 r10=000000000000001e
r11=ffffd001f01f88f8 r12=0000000000000000 r13=ffffd001f01efdc0
r14=0000000000000001 r15=0000000000000000
iopl=0         nv up ei pl nz na pe nc
cs=0010  ss=0018  ds=002b  es=002b  fs=0053  gs=002b             efl=00000202
";
        assert_eq!(layout(Machine::X64, &values), expected);
    }

    #[test]
    fn flags_are_told() {
        assert_eq!(flags(Machine::X86, 0x246), "iopl=0         nv up ei pl zr na pe nc");
        assert_eq!(flags(Machine::X86, 0x202), "iopl=0         nv up ei pl nz na po nc");
        assert_eq!(flags(Machine::X64, 0x246), "iopl=0         nv up ei pl zr na po nc");
        assert_eq!(flags(Machine::X86, 0x3e97), "iopl=3         ov dn ei ng nz ac pe cy");
    }
}
