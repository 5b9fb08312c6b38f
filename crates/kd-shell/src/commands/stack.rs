//! `k kn kb kv`: the stack of the current processor, or of the thread that `.thread` set.
//!
//! ```text
//!  # Child-SP          RetAddr           Call Site
//! 00 ffffd001`51978110 fffff801`0942f55b ECHO!EchoEvtDeviceAdd+0x66
//! ```

use std::fmt;

use nt_memory::{Fault, ReadError};
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::registers::{AMD64, ARM64, I386, Registers};
use crate::session::Context;
use crate::symbols::Names;
use crate::text::{Hex, Width};
use crate::typed::read_pointer;
use crate::unwind::{State, Stuck, Unwinder};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["k", "kn", "kb", "kv", "kbn", "kvn"],
    usage: "k|kn|kb|kv [frames]",
    help: "show the stack: frames, with numbers (n), with arguments (b)",
    details: "On x64 frames are found through the unwind data of the images in the target's memory, on x86 and ARM64 \
              along the chain\nof frame pointers. On x64 the arguments are what stands in their home places, which is \
              not always an argument.",
    action: Action::Answer(run),
};

const DEFAULT_FRAMES: u64 = 0x100;
const MAX_FRAMES: u64 = 0xffff;

#[derive(Serialize)]
struct Stack {
    frames: Vec<Frame>,
    #[serde(skip)]
    numbers: bool,
    #[serde(skip)]
    arguments: bool,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    of_thread: bool,
}

#[derive(Debug, Serialize)]
struct Frame {
    /// The stack pointer in the frame (x64), or the frame pointer.
    stack: Hex,
    return_address: Hex,
    address: Hex,
    symbol: Option<String>,
    arguments: Vec<Hex>,
    /// The processor pushed this frame: an interrupt or a trap.
    trap: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let count = match context.arguments.trim() {
        "" => DEFAULT_FRAMES,
        text => evaluate_all(text, &mut context.scope())?,
    };
    if !(1..=MAX_FRAMES).contains(&count) {
        return Err(usage(&INFO, format!("1 to {MAX_FRAMES:#x} frames")));
    }
    let width = context.width();
    let word = context.word;
    let of_thread = context.session.thread.is_some();
    let state = match context.session.thread {
        Some(thread) => super::process::switched_out(context, thread)?,
        None => current(&Registers::read(kernel)?),
    };
    let machine = kernel.version().machine;
    let mut names = context.names()?;
    let (frames, notes) = match machine {
        AMD64 => by_unwinding(kernel.memory(), &mut names, state, count)?,
        I386 | ARM64 => by_chain(kernel.memory(), &mut names, state, count, width)?,
        other => return Err(CommandError::Failed(format!("stacks of machine {other:04x} are not in this version"))),
    };
    let stack = Stack { frames, numbers: word.contains('n'), arguments: word.contains(['b', 'v']), width, of_thread };
    Ok(Reply::with_notes(stack, notes))
}

/// The registers that a stack begins with. x86 and ARM64 keep their frame pointer where x64 has rbp.
fn current(registers: &Registers) -> State {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let any = |names: &[&str]| names.iter().find_map(|name| registers.get(name)).unwrap_or(0);
    let mut state = State { rip: any(&["$ip"]), registers: NAMES.map(|name| any(&[name])) };
    state.registers[4] = any(&["$csp"]);
    state.registers[5] = any(&["rbp", "ebp", "fp"]);
    state
}

type Walked = (Vec<Frame>, Vec<String>);

fn by_unwinding(
    memory: &dyn nt_memory::Memory,
    names: &mut Names<'_>,
    mut state: State,
    count: u64,
) -> Result<Walked, CommandError> {
    let mut unwinder = Unwinder::new(memory);
    let (mut frames, mut notes) = (Vec::new(), Vec::new());
    while (frames.len() as u64) < count {
        let (address, stack) = (state.rip, state.rsp());
        let symbol = names.name(address)?;
        let base = names.driver_at(address)?.map(|driver| driver.base);
        let step = unwinder.step(&mut state, base);
        let mut frame = Frame {
            stack: Hex(stack),
            return_address: Hex(0),
            address: Hex(address),
            symbol,
            arguments: Vec::new(),
            trap: *step.as_ref().unwrap_or(&false),
        };
        if step.is_ok() {
            frame.return_address = Hex(state.rip);
            let mut home = [0; 32];
            let read = memory.read(state.rsp(), &mut home)?.min(home.len());
            let words = home[..read].chunks_exact(8);
            frame.arguments = words.map(|word| Hex(u64::from_le_bytes(word.try_into().unwrap_or_default()))).collect();
        }
        let number = frames.len();
        let trap = frame.trap;
        frames.push(frame);
        match step {
            Ok(_) if state.rip == 0 => break,
            // A stack grows towards its callers; after a trap it may be another one.
            Ok(_) if state.rsp() <= stack && !trap => {
                notes.push(format!("frame {number:02x} leads back to itself: the stack is damaged"));
                break;
            }
            Ok(_) => {}
            Err(Stuck::Fault(fault)) => return Err(fault.into()),
            Err(stuck) => {
                notes.push(format!("the stack ends at frame {number:02x}: {stuck}"));
                break;
            }
        }
    }
    Ok((frames, notes))
}

/// Frame pointers: each frame holds its caller's pointer and, behind it, the return address.
fn by_chain(
    memory: &dyn nt_memory::Memory,
    names: &mut Names<'_>,
    state: State,
    count: u64,
    width: Width,
) -> Result<Walked, CommandError> {
    let pointer = width.bytes() as u64;
    let (mut frames, mut notes) = (Vec::<Frame>::new(), Vec::new());
    let (mut address, mut frame) = (width.address(state.rip), width.address(state.registers[5]));
    while (frames.len() as u64) < count {
        let number = frames.len();
        let read = |at: u64| match read_pointer(memory, width.address(frame.wrapping_add(at * pointer)), width) {
            Ok(value) => Ok(Some(value)),
            Err(ReadError::Hole { .. }) => Ok(None),
            Err(ReadError::Fault(fault)) => Err::<_, Fault>(fault),
        };
        let (next, caller) = (read(0)?, read(1)?);
        let mut arguments = Vec::new();
        for at in 2..5 {
            arguments.extend(read(at)?.map(Hex));
        }
        frames.push(Frame {
            stack: Hex(frame),
            return_address: Hex(caller.unwrap_or(0)),
            address: Hex(address),
            symbol: names.name(address)?,
            arguments,
            trap: false,
        });
        let (Some(next), Some(caller)) = (next, caller) else {
            notes.push(format!("the stack ends at frame {number:02x}: {} cannot be read", width.tick(frame)));
            break;
        };
        if caller == 0 || next == 0 {
            break;
        }
        if next <= frame {
            notes.push(format!("the chain of frames ends at frame {number:02x}: its pointer leads back"));
            break;
        }
        (address, frame) = (caller, next);
    }
    Ok((frames, notes))
}

impl Text for Stack {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.of_thread {
            writeln!(out, "  *** Stack trace for last set context - .thread/.cxr resets it")?;
        }
        let number = if self.numbers { " # " } else { "" };
        match (self.width, self.arguments) {
            (Width::Eight, false) => writeln!(out, "{number}Child-SP          RetAddr           Call Site")?,
            (Width::Eight, true) => {
                writeln!(out, "{number}Child-SP          RetAddr           : {:<71} : Call Site", "Args to Child")?;
            }
            (Width::Four, false) => writeln!(out, "{number}ChildEBP RetAddr  ")?,
            (Width::Four, true) => writeln!(out, "{number}ChildEBP RetAddr  Args to Child              ")?,
        }
        for (i, frame) in self.frames.iter().enumerate() {
            if self.numbers {
                write!(out, "{i:02x} ")?;
            }
            let tick = |value: Hex| self.width.tick(value.0);
            write!(out, "{} {} ", tick(frame.stack), tick(frame.return_address))?;
            if self.arguments {
                let wanted = if self.width == Width::Four { 3 } else { 4 };
                let unreadable = "?".repeat(tick(Hex(0)).len());
                let arguments: Vec<String> = (0..wanted)
                    .map(|i| frame.arguments.get(i).map_or(unreadable.clone(), |value| tick(*value)))
                    .collect();
                match self.width {
                    Width::Eight => write!(out, ": {} : ", arguments.join(" "))?,
                    Width::Four => write!(out, "{} ", arguments.join(" "))?,
                }
            }
            let at = match &frame.symbol {
                Some(symbol) => symbol.clone(),
                None => format!("0x{}", tick(frame.address)),
            };
            let trap = if frame.trap { format!(" (TrapFrame @ {})", tick(frame.stack)) } else { String::new() };
            writeln!(out, "{at}{trap}")?;
        }
        Ok(())
    }
}
