//! Stacks, walked from a state of the registers, and how kd shows them.
//!
//! ```text
//!  # Child-SP          RetAddr           Call Site
//! 00 ffffd001`51978110 fffff801`0942f55b ECHO!EchoEvtDeviceAdd+0x66
//! ```

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use kd_target::Machine;
use nt_memory::{Fault, ReadError};
use nt_unwind::{ImageId, Images, Position, State, Stuck, Unwinder};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Text;
use crate::error::CommandError;
use crate::kernel::{Driver, Kernel};
use crate::registers::{self, Registers};
use crate::session::{Context, Session};
use crate::symbols::{Names, NoSymbols, Symbols};
use crate::text::{Hex, Width, tick, visible_name};
use crate::typed::{offset_of, read_pointer};

/// Frames that are walked when nobody says how many.
pub(crate) const DEFAULT_FRAMES: u64 = 0x100;

#[derive(JsonSchema, Serialize)]
pub(crate) struct Stack {
    pub(crate) frames: Vec<Frame>,
    #[serde(skip)]
    pub(crate) numbers: bool,
    #[serde(skip)]
    pub(crate) arguments: bool,
    #[serde(skip)]
    pub(crate) names_only: bool,
    #[serde(skip)]
    pub(crate) width: Width,
    #[serde(skip)]
    pub(crate) of_thread: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Frame {
    /// The stack pointer in the frame (x64), or the frame pointer.
    stack: Hex,
    return_address: Hex,
    address: Hex,
    symbol: Option<String>,
    arguments: Vec<Hex>,
    /// The processor pushed this frame: an interrupt or a trap.
    trap: bool,
}

/// The stack that begins with `state` as `kb` shows it, with notes on what is missing and remarks.
pub(crate) fn of(context: &mut Context<'_>, state: State) -> Result<(Stack, Vec<String>, Vec<String>), CommandError> {
    let Walked { frames, notes, remarks } = walk(context.kernel()?, context.session, state, DEFAULT_FRAMES)?;
    let width = context.width();
    let stack = Stack { frames, numbers: false, arguments: true, names_only: false, width, of_thread: false };
    Ok((stack, notes, remarks))
}

/// The frames from `state` on, innermost first.
pub(crate) fn walk(
    kernel: &dyn Kernel,
    session: &mut Session,
    state: State,
    count: u64,
) -> Result<Walked, CommandError> {
    let mut images = std::mem::take(&mut session.images);
    let walked = walk_with(kernel, &mut session.symbols, &mut images, state, count);
    session.images = images;
    walked
}

fn walk_with(
    kernel: &dyn Kernel,
    symbols: &mut Symbols,
    images: &mut Images,
    state: State,
    count: u64,
) -> Result<Walked, CommandError> {
    let (memory, width) = (kernel.memory(), kernel.width());
    let bounds = bounds(kernel, symbols, width.address(state.rsp()))?;
    let mut names = Names::new(kernel, symbols);
    match kernel.version().machine {
        Machine::X64 => by_unwinding(&mut Unwinder::new(memory, images), memory, &mut names, state, (count, bounds)),
        Machine::X86 | Machine::Arm64 => by_chain(memory, &mut names, state, (count, bounds), width),
        other => Err(CommandError::Failed(format!("stacks of machine {:04x} are not in this version", other.number()))),
    }
}

/// The stack that `stack` lies in, when it is that of the thread that runs: nothing behind its base is a frame of it.
/// `None` on another one (of a DPC, of a thread that waits), and where the symbols do not tell.
fn bounds(kernel: &dyn Kernel, symbols: &mut Symbols, stack: u64) -> Result<Option<Range<u64>>, Fault> {
    let nt = match symbols.nt(kernel) {
        Ok(nt) => nt,
        Err(NoSymbols::Fault(fault)) => return Err(fault),
        Err(NoSymbols::Missing(_)) => return Ok(None),
    };
    let offset = |member| offset_of(nt.as_ref(), "_KTHREAD", member);
    let (Some(base), Some(limit)) = (offset("StackBase"), offset("StackLimit")) else { return Ok(None) };
    let width = kernel.width();
    let thread = width.address(kernel.stop().thread);
    // They lie near each other: one request has both.
    let (first, last) = (base.min(limit), base.max(limit));
    let mut bytes = vec![0; (last - first).min(0x100) as usize + width.bytes()];
    if kernel.memory().read(thread.wrapping_add(first), &mut bytes)? < bytes.len() {
        return Ok(None);
    }
    let pointer = |offset: u64| {
        let bytes = bytes.get((offset - first) as usize..)?.get(..width.bytes())?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (Some(base), Some(limit)) = (pointer(base), pointer(limit)) else { return Ok(None) };
    Ok(Some(limit..base).filter(|bounds| bounds.contains(&stack)))
}

/// Where the processor that stopped is, and its return addresses, innermost first.
pub(crate) fn addresses(context: &mut Context<'_>, count: u64) -> Result<Vec<u64>, CommandError> {
    let state = registers::state(&Registers::read(context.kernel()?)?);
    Ok(walk(context.kernel()?, context.session, state, count)?.frames.iter().map(|frame| frame.address.0).collect())
}

/// Where the current function returns to, and the least stack pointer that it leaves there.
pub(crate) fn caller(kernel: &dyn Kernel, session: &mut Session, state: State) -> Result<(u64, u64), CommandError> {
    let walked = walk(kernel, session, state, 2)?;
    match walked.frames.as_slice() {
        [frame, rest @ ..] if frame.return_address.0 != 0 => {
            let stack = rest.first().filter(|_| kernel.width() == Width::Eight).unwrap_or(frame).stack;
            Ok((frame.return_address.0, stack.0))
        }
        _ => Err(CommandError::Failed(format!("the caller is not known: {}", walked.notes.join("; ")))),
    }
}

#[derive(Default)]
pub(crate) struct Walked {
    pub(crate) frames: Vec<Frame>,
    pub(crate) notes: Vec<String>,
    pub(crate) remarks: Vec<String>,
}

fn by_unwinding(
    unwinder: &mut Unwinder<'_>,
    memory: &dyn nt_memory::Memory,
    names: &mut Names<'_>,
    mut state: State,
    (count, bounds): (u64, Option<Range<u64>>),
) -> Result<Walked, CommandError> {
    let is_behind = |stack: u64| bounds.as_ref().is_some_and(|bounds| stack > bounds.end);
    let mut walked = Walked::default();
    let mut searched = HashSet::new();
    let mut position = Position::Interrupted;
    while (walked.frames.len() as u64) < count {
        let (address, stack) = (state.rip, state.rsp());
        let symbol = names.name_of_code(address)?;
        let driver = names.driver_at(address)?;
        let number = walked.frames.len();
        let step = leave(
            unwinder,
            names,
            &mut state,
            driver.as_ref(),
            position,
            &mut |file, address| {
                walked.notes.push(format!(
                    "frame {number:02x}: the target cannot read {file} at {}, and the symbol path has no such image",
                    tick(address)
                ));
            },
            &mut searched,
        )?;
        let trap = *step.as_ref().unwrap_or(&false);
        position = if trap { Position::Interrupted } else { Position::Calling };
        let mut frame = Frame {
            stack: Hex(stack),
            return_address: Hex(0),
            address: Hex(address),
            symbol,
            arguments: Vec::new(),
            trap,
        };
        // What was taken for its return address lies behind the stack's base: nothing called this frame.
        let is_last = step.is_ok() && !trap && is_behind(state.rsp());
        if step.is_ok() && !is_last {
            frame.return_address = Hex(state.rip);
            let mut home = [0; 32];
            let read = memory.read(state.rsp(), &mut home)?.min(home.len());
            let words = home[..read].chunks_exact(8);
            frame.arguments = words.map(|word| Hex(u64::from_le_bytes(word.try_into().unwrap_or_default()))).collect();
        }
        walked.frames.push(frame);
        match step {
            Ok(_) if is_last || state.rip == 0 => break,
            // A stack grows towards its callers; after a trap it may be another one.
            Ok(_) if state.rsp() <= stack && !trap => {
                walked.notes.push(format!("frame {number:02x} leads back to itself: the stack is damaged"));
                break;
            }
            Ok(_) if trap && !Width::Eight.is_kernel(state.rip) => {
                let user = tick(state.rip);
                walked.remarks.push(format!("the frames of user code, from {user} on, are not followed"));
                break;
            }
            Ok(_) => {}
            Err(Stuck::Fault(fault)) => return Err(fault.into()),
            Err(stuck) => {
                walked.notes.push(format!("the stack ends at frame {number:02x}: {stuck}"));
                break;
            }
        }
    }
    Ok(walked)
}

/// Leaves one frame, with the image's file where this machine has it, or where the target cannot read the image.
fn leave(
    unwinder: &mut Unwinder<'_>,
    names: &mut Names<'_>,
    state: &mut State,
    driver: Option<&Driver>,
    position: Position,
    missing: &mut dyn FnMut(String, u64),
    searched: &mut HashSet<u64>,
) -> Result<Result<bool, Stuck>, CommandError> {
    let image =
        driver.map(|driver| ImageId { base: driver.base, size: driver.size, time_date_stamp: driver.timestamp });
    if let (Some(image), Some(driver)) = (image, driver)
        && !unwinder.images().was_seen(image)
        && let Some(file) = names.image_here(driver)?
    {
        unwinder.images().use_file(image, file);
    }
    let mut after = state.clone();
    let step = unwinder.step(&mut after, image, position);
    // What the target has paged out of the image may be in a file that a server has.
    if let (Err(Stuck::Unreadable { address, .. }), Some(image), Some(driver)) = (&step, image, driver)
        && address.checked_sub(driver.base).is_some_and(|offset| offset < driver.size.into())
        && !unwinder.images().has_file(image)
        && searched.insert(driver.base)
    {
        let Some(file) = names.image(driver)? else {
            missing(visible_name(&driver.file).to_string(), *address);
            *state = after;
            return Ok(step);
        };
        unwinder.images().use_file(image, file);
        let mut again = state.clone();
        let step = unwinder.step(&mut again, Some(image), position);
        *state = again;
        return Ok(step);
    }
    *state = after;
    Ok(step)
}

/// Frame pointers: each frame holds its caller's pointer and, behind it, the return address.
fn by_chain(
    memory: &dyn nt_memory::Memory,
    names: &mut Names<'_>,
    state: State,
    (count, bounds): (u64, Option<Range<u64>>),
    width: Width,
) -> Result<Walked, CommandError> {
    let is_behind = |frame: u64| bounds.as_ref().is_some_and(|bounds| frame >= bounds.end);
    let pointer = width.bytes() as u64;
    let mut walked = Walked::default();
    let (mut address, mut frame) = (width.address(state.rip), width.address(state.registers[5]));
    let word = |address: u64| match read_pointer(memory, width.address(address), width) {
        Ok(value) => Ok(Some(value)),
        Err(ReadError::Hole { .. }) => Ok(None),
        Err(ReadError::Fault(fault)) => Err::<_, Fault>(fault),
    };
    // Before its frame is set up a function's caller is on top of the stack, and the chain begins with the caller's.
    if width == Width::Four
        && let Some(caller) = unframed(memory, names, address, &state, &word)?
    {
        let stack = width.address(state.rsp().wrapping_sub(pointer));
        let mut arguments = Vec::new();
        for at in 1..4 {
            arguments.extend(word(state.rsp().wrapping_add(at * pointer))?.map(Hex));
        }
        walked.frames.push(Frame {
            stack: Hex(stack),
            return_address: Hex(caller),
            address: Hex(address),
            symbol: names.name_of_code(address)?,
            arguments,
            trap: false,
        });
        address = caller;
    }
    while (walked.frames.len() as u64) < count {
        let number = walked.frames.len();
        let read = |at: u64| word(frame.wrapping_add(at * pointer));
        let (next, caller) = (read(0)?, read(1)?);
        let mut arguments = Vec::new();
        for at in 2..5 {
            arguments.extend(read(at)?.map(Hex));
        }
        walked.frames.push(Frame {
            stack: Hex(frame),
            return_address: Hex(caller.unwrap_or(0)),
            address: Hex(address),
            symbol: names.name_of_code(address)?,
            arguments,
            trap: false,
        });
        let (Some(next), Some(caller)) = (next, caller) else {
            let frame = width.tick(frame);
            walked.notes.push(format!("the stack ends at frame {number:02x}: {frame} cannot be read"));
            break;
        };
        if caller == 0 || walked.frames.len() as u64 >= count {
            break;
        }
        if next == 0 || is_behind(next) {
            // Where the stack begins: nothing called it.
            walked.frames.push(Frame {
                stack: Hex(0),
                return_address: Hex(0),
                address: Hex(caller),
                symbol: names.name_of_code(caller)?,
                arguments: Vec::new(),
                trap: false,
            });
            break;
        }
        if next <= frame {
            walked.notes.push(format!("the chain of frames ends at frame {number:02x}: its pointer leads back"));
            break;
        }
        (address, frame) = (caller, next);
    }
    Ok(walked)
}

/// Where an x86 function returns to whose frame is not set up at `address`: it begins there, or it never sets one up
/// and the top of the stack is an address behind a call.
fn unframed(
    memory: &dyn nt_memory::Memory,
    names: &mut Names<'_>,
    address: u64,
    state: &State,
    word: &dyn Fn(u64) -> Result<Option<u64>, Fault>,
) -> Result<Option<u64>, CommandError> {
    let Some(top) = word(state.rsp())? else { return Ok(None) };
    let Some(near) = names.near(address)? else { return Ok(None) };
    let Some(symbol) = near.before else { return Ok(None) };
    let start = near.base.wrapping_add(symbol.rva.into());
    // mov edi,edi; push ebp; mov ebp,esp
    let mut prolog = [0; 5];
    let read = memory.read(start, &mut prolog)?.min(prolog.len());
    let push = match prolog[..read] {
        [0x8b, 0xff, 0x55, 0x8b, 0xec] => Some(2),
        [0x55, 0x8b, 0xec, ..] => Some(0),
        _ => None,
    };
    if push.is_some_and(|push| address > start.wrapping_add(push)) || names.driver_at(top)?.is_none() {
        return Ok(None);
    }
    let mut before = [0; 7];
    let good = memory.read(top.wrapping_sub(before.len() as u64), &mut before)? >= before.len();
    let is_call = good && (before[2] == 0xe8 || (0..6).any(|at| before[at] == 0xff && before[at + 1] >> 3 & 7 == 2));
    Ok(is_call.then_some(top))
}

impl Frame {
    /// ``fffff880`06d2fc28 fffff800`01923cc6 nt!ViPoolLogStackTrace``
    pub(crate) fn line(&self, out: &mut dyn fmt::Write, width: Width) -> fmt::Result {
        write!(out, "{} {} ", width.tick(self.stack.0), width.tick(self.return_address.0))?;
        self.place(out, width)
    }

    /// Where it is, and the end of the line.
    fn place(&self, out: &mut dyn fmt::Write, width: Width) -> fmt::Result {
        let at = match &self.symbol {
            Some(symbol) => symbol.clone(),
            None => format!("0x{}", width.tick(self.address.0)),
        };
        let trap = if self.trap { format!(" (TrapFrame @ {})", width.tick(self.stack.0)) } else { String::new() };
        writeln!(out, "{at}{trap}")
    }
}

impl Text for Stack {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.of_thread {
            writeln!(out, "  *** Stack trace for last set context - .thread/.cxr resets it")?;
        }
        let number = if self.numbers { " # " } else { "" };
        match (self.width, self.arguments) {
            _ if self.names_only => writeln!(out, "{number}Call Site")?,
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
            if !self.names_only {
                write!(out, "{} {} ", tick(frame.stack), tick(frame.return_address))?;
            }
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
            frame.place(out, self.width)?;
        }
        Ok(())
    }
}
