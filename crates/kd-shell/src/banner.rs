//! The lines of a session's beginning and of its stops, as kd writes them.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use jiff::Zoned;
use nt_memory::Fault;

use crate::disassembly::{Disassembler, MAX_LENGTH, line};
use crate::error::CommandError;
use crate::kernel::Kernel;
use crate::symbols::{Names, NoSymbols, PathElement, PathState, Symbols};
use crate::text::{tick, time, visible, visible_name};
use crate::vertarget::Vertarget;

/// Before anything was heard of a KDNET target.
pub fn waiting_net() -> String {
    "Using NET for debugging\nOpened WinSock 2.0\nWaiting to reconnect...\n".into()
}

/// Before anything was heard of a serial target. `port` is the line as we name it: `/dev/ttyUSB0`, `\\.\com1`.
pub fn waiting_serial(port: &str) -> String {
    format!("Opened {port}\nWaiting to reconnect...\n")
}

/// The KDNET target has been heard.
pub fn connected_net(peer: SocketAddr, port: u16, local: Option<IpAddr>) -> String {
    let address = peer.ip().to_canonical();
    match local {
        Some(local) => format!("Connected to target {address} on port {port} on local IP {}.\n", local.to_canonical()),
        None => format!("Connected to target {address} on port {port}.\n"),
    }
}

/// kd checks each element before it names the path.
pub fn path_validation(elements: &[PathElement]) -> String {
    let mut text = String::from("\n************* Path validation summary **************\n");
    text.push_str("Response                         Time (ms)     Location\n");
    for element in elements {
        let response = match element.state {
            PathState::Ok => "OK",
            PathState::Error => "Error",
            PathState::Deferred => "Deferred",
        };
        let _ = writeln!(text, "{response:<47}{}", element.location);
    }
    text
}

/// One line about the elements that do not exist: a warning when the others may have what is needed.
pub(crate) fn missing_elements(elements: &[PathElement]) -> Result<Option<String>, CommandError> {
    let missing = elements.iter().filter(|element| element.state == PathState::Error);
    let missing: Vec<&str> = missing.map(|element| element.location.as_str()).collect();
    let line = format!("the symbol path has what does not exist: {}", missing.join("; "));
    match missing.len() {
        0 => Ok(None),
        count if count == elements.len() => Err(CommandError::Failed(line)),
        _ => Ok(Some(line)),
    }
}

/// The path's lines, or kd's box when there is none.
pub fn symbol_path(path: &str, elements: &[PathElement]) -> String {
    match path.is_empty() {
        true => "Symbol search path is: *** Invalid ***\n\
                 ****************************************************************************\n\
                 * Symbol loading may be unreliable without a symbol search path.           *\n\
                 * Use .symfix to have the debugger choose a symbol path.                   *\n\
                 * After setting your symbol path, use .reload to refresh symbol locations. *\n\
                 ****************************************************************************\n"
            .into(),
        false => format!("{}Symbol search path is: {path}\n", path_validation(elements)),
    }
}

/// All that follows the lines about the connection, up to the stop. Costs the reads of `vertarget`.
pub fn target(kernel: &dyn Kernel, symbols: &mut Symbols) -> Result<String, Fault> {
    let mut text = symbol_path(symbols.source().path(), &symbols.source().check());
    text.push_str("Executable search path is: \n");
    let target = Vertarget::read(kernel, symbols)?;
    // The box about an empty path has said it already.
    if !symbols.source().path().is_empty()
        && !symbols.is_nt_unasked(kernel)
        && let Err(NoSymbols::Missing(why)) = symbols.nt(kernel)
    {
        let _ = writeln!(text, "*** ERROR: {why}");
    }
    let _ = target.lines(&mut text, false);
    let build = kernel.version().minor;
    if nt_pool::build::is_unproven(build) {
        let _ = writeln!(
            text,
            "Nobody has measured the pool of build {build} yet (newest: {}): it is read by its types; .selfcheck \
             compares its books.",
            nt_pool::build::NEWEST_MEASURED
        );
    }
    Ok(text)
}

/// `kd> `, or the processor's number on a machine with several: `0: kd> `.
pub fn prompt(kernel: &dyn Kernel) -> String {
    let stop = kernel.stop();
    match kernel.version().is_multiprocessor() && stop.processors > 1 {
        true => format!("{}: kd> ", kernel.processor()),
        false => "kd> ".into(),
    }
}

const BREAKPOINT: u32 = 0x8000_0003;
const SINGLE_STEP: u32 = 0x8000_0004;
const ACCESS_VIOLATION: u32 = 0xc000_0005;

const BREAK_IN: &str = "\
*******************************************************************************
*                                                                             *
*   You are seeing this message because you pressed either                    *
*       CTRL+C (if you run console kernel debugger) or,                       *
*       CTRL+BREAK (if you run GUI kernel debugger),                          *
*   on your debugger machine's keyboard.                                      *
*                                                                             *
*                   THIS IS NOT A BUG OR A SYSTEM CRASH                       *
*                                                                             *
* If you did not intend to break into the debugger, press the \"g\" key, then   *
* press the \"Enter\" key now.  This message might immediately reappear.  If it *
* does, press \"g\" and \"Enter\" again.                                          *
*                                                                             *
*******************************************************************************
";

/// Why the target stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An exception of the target's own.
    Exception,
    /// A breakpoint of the session.
    Breakpoint(u32),
    /// The user wanted one instruction.
    Step,
}

/// `Break instruction exception - code 80000003 (first chance)`
pub(crate) fn exception(stop: &kd_target::Stop) -> String {
    if let Some(load) = &stop.load {
        let what = if load.unload { "Unload" } else { "Load" };
        return format!("{what} module {} at {}", visible_name(&load.path), tick(load.base));
    }
    let what = match stop.code {
        BREAKPOINT => "Break instruction exception",
        SINGLE_STEP => "Single step exception",
        ACCESS_VIOLATION => "Access violation",
        _ => "Unknown exception",
    };
    let chance = if stop.first_chance { "first chance" } else { "!!! second chance !!!" };
    format!("{what} - code {:08x} ({chance})", stop.code)
}

/// Why the target stands still, and where. With `explain` a break-in has kd's box.
pub fn stopped(kernel: &dyn Kernel, symbols: &mut Symbols, reason: Reason, explain: bool) -> Result<String, Fault> {
    let stop = kernel.stop();
    let mut text = String::new();
    match reason {
        Reason::Step => {}
        Reason::Breakpoint(number) => {
            let _ = writeln!(text, "Breakpoint {number} hit");
        }
        Reason::Exception if stop.load.is_some() => {
            let load = stop.load.iter();
            text.extend(load.map(|load| module_change(&load.path, load.base, load.size, load.unload)));
        }
        Reason::Exception => {
            let _ = writeln!(text, "{}", exception(stop));
            if stop.code == BREAKPOINT && stop.asked && explain {
                text.push_str(BREAK_IN);
            }
        }
    }
    if let Some(name) = place(kernel, symbols)? {
        let _ = writeln!(text, "{name}:");
    }
    text.push_str(&instruction(kernel, symbols)?);
    Ok(text)
}

/// The name of the program counter. On Windows 7 two names share kd's break instruction; each Windows is shown the one
/// that its own debuggers showed.
pub(crate) fn place(kernel: &dyn Kernel, symbols: &mut Symbols) -> Result<Option<String>, Fault> {
    let (stop, version) = (kernel.stop(), kernel.version());
    let width = kernel.width();
    let rva = width.address(stop.program_counter).wrapping_sub(kernel.base());
    // The banner must not cost the module list: the break instruction is in the kernel's image, which is not large.
    const KERNEL_IMAGE: u64 = 0x200_0000;
    if rva < KERNEL_IMAGE
        && let Ok(nt) = symbols.nt(kernel)
    {
        let preferred = match version.minor {
            ..nt_pool::build::WINDOWS_8 => "RtlpBreakWithStatusInstruction",
            _ => "DbgBreakPointWithStatus",
        };
        if nt.symbol(preferred).is_some_and(|symbol| u64::from(symbol.rva) == rva) {
            return Ok(Some(format!("nt!{preferred}")));
        }
        if let (Some(symbol), _) = nt.around(rva as u32) {
            return Ok(Some(match rva - u64::from(symbol.rva).min(rva) {
                0 => format!("nt!{}", symbol.name),
                offset => format!("nt!{}+{offset:#x}", symbol.name),
            }));
        }
    }
    match rva < KERNEL_IMAGE {
        true => Ok(None),
        false => Names::new(kernel, symbols).name(stop.program_counter),
    }
}

/// ``fffff800`01489f60 cc              int     3``
fn instruction(kernel: &dyn Kernel, symbols: &mut Symbols) -> Result<String, Fault> {
    let (stop, width) = (kernel.stop(), kernel.width());
    let address = width.address(stop.program_counter);
    let bytes = &stop.instructions[..stop.instructions.len().min(MAX_LENGTH)];
    let mut names = Names::new(kernel, symbols);
    let one = match Disassembler::new(kernel.version().machine) {
        Some(mut disassembler) => disassembler.named(bytes, address, &mut names)?,
        None => None,
    };
    Ok(match one {
        Some(one) => format!("{}\n", line(width, address, &bytes[..one.length], &one.text)),
        None => {
            let bytes: String = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("{} {bytes}\n", width.tick(address))
        }
    })
}

/// The target reboots, or did so without a word.
pub fn restarted(announced: bool, when: &Zoned) -> String {
    match announced {
        true => format!("Shutdown occurred at ({})...unloading all symbol tables.\n", time(when)),
        false => {
            "The target machine restarted without notifying the debugger.\nForcing a debugger reconnect...\n".into()
        }
    }
}

/// Text that a driver printed.
pub fn printed(text: &str) -> String {
    visible(text).into_owned()
}

/// A driver came or went while the target ran; kd shows it when it is verbose.
///
/// ```text
/// ModLoad: fffff880`09990000 fffff880`09995000   \SystemRoot\x.sys
/// ```
pub fn module_change(path: &str, base: u64, size: u32, unload: bool) -> String {
    let path = visible_name(path);
    let what = if unload { "Unload" } else { "Load" };
    format!("Mod{what}: {} {}   {path}\n", tick(base), tick(base.wrapping_add(size.into())))
}
