//! `!verifier 0x80 [address [-full] | quantity]`: Driver Verifier's log of pool allocations and frees.
//!
//! ```text
//! Log of recent kernel pool Allocate and Free operations:
//!
//! There are up to 0x10000 entries in the log.
//!
//! Parsing 0x0000000000010000 log entries, searching for address 0xfffff8a005800000.
//!
//!
//! ======================================================================
//! Pool block fffff8a005800000, Size 00000000000fa000, Thread fffffa8002be4060
//! fffff80001923cc6 nt!VeAllocatePoolWithTagPriority+0x2b6
//! ```

use std::fmt;

use nt_pool::pool_log::{self, Operation, PoolLog, Wanted};
use serde::Serialize;

use super::{Action, CommandInfo, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::session::Context;
use crate::text::{Hex, Width};

pub(super) const INFO: CommandInfo = CommandInfo {
    names: &["!verifier"],
    usage: "!verifier 0x80 [address [-full] | quantity]",
    help: "Driver Verifier's log of pool operations with call stacks, newest first",
    details: "An address (in the kernel's half of the address space) shows the records of the block that contains it; a \
              smaller number\nshows that many of the newest records. The target searches its own log where it can; -full reads all of it,\n\
              which also finds larger blocks that begin far below the address. The log exists when pool tracking (8) or special pool \
              (1) is on for a driver.\nA stack is not a proof of who owns a block now: the log keeps old records of an \
              address too. The newest is at the top.",
    action: Action::Answer(run),
};

/// kd's flag for this log; 4, 8, 0x20, 0x40 and 0x100 are other logs, other numbers are sums of what to show.
const POOL_LOG: u64 = 0x80;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct VerifierLog {
    /// Slots of the log; 0 when the kernel keeps none.
    log_entries: u32,
    /// Slots that were looked at.
    parsed: u32,
    /// The lowest start of a block that was looked for; blocks that begin below it and reach over the address asked
    /// for are not among the entries. `null` when every record was read.
    searched_from: Option<Hex>,
    entries: Vec<Entry>,
    #[serde(skip)]
    enabled: bool,
    #[serde(skip)]
    wanted: Wanted,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Entry {
    address: Hex,
    size: u64,
    thread: Hex,
    operation: &'static str,
    sequence: u32,
    frames: Vec<Frame>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Frame {
    address: Hex,
    /// `null` outside all modules.
    symbol: Option<String>,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (flags, argument) = match context.arguments.split_once(char::is_whitespace) {
        Some((flags, argument)) => (flags, argument.trim()),
        None => (context.arguments, ""),
    };
    let flags = match flags {
        "" => 0,
        text => plain_number(text).ok_or_else(|| usage(&INFO, format!("the flags are a number, not '{text}'")))?,
    };
    if flags != POOL_LOG {
        return Err(usage(&INFO, format!("!verifier {flags:#x} is not in this version")));
    }
    let width = context.kernel()?.width();
    let (argument, full) = match argument.strip_suffix("-full") {
        Some(address) if !address.trim().is_empty() => (address.trim(), true),
        _ => (argument, false),
    };
    let wanted = match argument {
        "" => Wanted::All,
        text => match width.address(evaluate_all(text, &mut context.scope())?) {
            address if width.is_kernel(address) => Wanted::Address(address),
            0 => return Err(usage(&INFO, "0 records are none")),
            quantity => match u32::try_from(quantity) {
                Ok(quantity) => Wanted::Newest(quantity),
                Err(_) => {
                    return Err(usage(&INFO, format!("{quantity:#x} is neither a kernel address nor a quantity")));
                }
            },
        },
    };
    let (log, searched_from) = match wanted {
        Wanted::Address(address) if !full => look_for(context, address)?,
        _ => (context.pool(|kernel| pool_log::read(kernel, wanted))?, None),
    };
    let Some(PoolLog { length, parsed, traces, mut notes, .. }) = log else {
        let answer = VerifierLog {
            log_entries: 0,
            parsed: 0,
            searched_from: None,
            entries: Vec::new(),
            enabled: false,
            wanted,
            width,
        };
        return Ok(Reply::new(answer));
    };
    let mut names = context.names()?;
    let mut entries = Vec::with_capacity(traces.len());
    for trace in traces {
        let mut frames = Vec::with_capacity(trace.frames.len());
        for &address in &trace.frames {
            frames.push(Frame { address: Hex(width.address(address)), symbol: names.name(address)? });
        }
        let symbol = |address| {
            let frame = frames.iter().find(|frame: &&Frame| frame.address.0 == width.address(address));
            frame.and_then(|frame| frame.symbol.clone())
        };
        let operation = match pool_log::operation(&trace, &symbol) {
            Operation::Allocate => "allocate",
            Operation::Free => "free",
            Operation::Unknown => "unknown",
        };
        entries.push(Entry {
            address: Hex(width.address(trace.address)),
            size: trace.size,
            thread: Hex(width.address(trace.thread)),
            operation,
            sequence: trace.sequence,
            frames,
        });
    }
    if !entries.is_empty() {
        notes.extend(names.drivers()?.notes.iter().cloned());
    }
    let searched_from = searched_from.map(|start| Hex(width.address(start)));
    let answer = VerifierLog { log_entries: length, parsed, searched_from, entries, enabled: true, wanted, width };
    let mut reply = Reply::with_notes(answer, notes);
    if let Some(start) = searched_from {
        reply.remarks.push(format!(
            "The target searched its log. Blocks that begin below {} were not looked for; add -full to read all of it.",
            width.pointer(start.0)
        ));
    }
    Ok(reply)
}

/// The records of blocks that contain the address, and the lowest start that was looked for unless all were.
///
/// Where the target can search and knows a block that begins right there, the answer is a few small requests away. A
/// log that has nothing of the kind is read whole, as kd does: the address may lie in the middle of a large block.
fn look_for(context: &mut Context<'_>, address: u64) -> Result<(Option<PoolLog>, Option<u64>), CommandError> {
    let Some(found) = context.pool(|kernel| pool_log::find(kernel, address))? else { return Ok((None, None)) };
    let lowest = found.starts.start;
    if lowest == 0 {
        return Ok((Some(found.log), None));
    }
    if found.log.traces.iter().any(|trace| trace.address == address) {
        return Ok((Some(found.log), Some(lowest)));
    }
    Ok((context.pool(|kernel| pool_log::read(kernel, Wanted::Address(address)))?, None))
}

impl Text for VerifierLog {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "\nLog of recent kernel pool Allocate and Free operations:\n")?;
        if !self.enabled {
            return writeln!(
                out,
                "The kernel keeps no such log: neither pool tracking nor special pool is on for any driver\n\
                 (on the target: verifier /flags 8 /driver NAME.sys, then restart it)."
            );
        }
        let pointer = |value| self.width.pointer(value);
        writeln!(out, "There are up to {:#x} entries in the log.\n", self.log_entries)?;
        let length = pointer(self.log_entries.into());
        match self.wanted {
            Wanted::All => writeln!(out, "Parsing 0x{length} log entries.\n\n")?,
            Wanted::Newest(quantity) => writeln!(
                out,
                "Parsing 0x{length} log entries, displaying the most recent 0x{}.\n\n",
                pointer(quantity.into())
            )?,
            Wanted::Address(address) => {
                writeln!(out, "Parsing 0x{length} log entries, searching for address 0x{}.\n\n", pointer(address))?
            }
        }
        for entry in &self.entries {
            writeln!(out, "{:=<70}", "")?;
            let (address, size, thread) = (pointer(entry.address.0), pointer(entry.size), pointer(entry.thread.0));
            writeln!(out, "Pool block {address}, Size {size}, Thread {thread}")?;
            for frame in &entry.frames {
                match &frame.symbol {
                    Some(symbol) => writeln!(out, "{} {symbol}", pointer(frame.address.0))?,
                    None => writeln!(out, "{}", pointer(frame.address.0))?,
                }
            }
        }
        if self.entries.is_empty() {
            match self.wanted {
                Wanted::Address(address) => {
                    writeln!(out, "No entry of the log is about a block that contains 0x{}.", pointer(address))?;
                }
                Wanted::All | Wanted::Newest(_) => writeln!(out, "The log is empty.")?,
            }
        }
        writeln!(out, "Parsed entry {}/{length}...", pointer(self.parsed.into()))?;
        writeln!(out, "Finished parsing all pool tracking information.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, size: u64, thread: u64, frames: &[(u64, &str)]) -> Entry {
        Entry {
            address: Hex(address),
            size,
            thread: Hex(thread),
            operation: "unknown",
            sequence: 0,
            frames: frames
                .iter()
                .map(|&(address, symbol)| Frame { address: Hex(address), symbol: Some(symbol.into()) })
                .collect(),
        }
    }

    fn log(wanted: Wanted, entries: Vec<Entry>) -> VerifierLog {
        VerifierLog {
            log_entries: 0x10000,
            parsed: 0x10000,
            searched_from: None,
            entries,
            enabled: true,
            wanted,
            width: Width::Eight,
        }
    }

    fn text(log: &VerifierLog) -> String {
        let mut text = String::new();
        log.text(&mut text).unwrap();
        text
    }

    #[test]
    fn the_articles_two_records() {
        let block = 0xfffff8a005800000;
        let entries = vec![
            entry(
                block,
                0xfa000,
                0xfffffa8002be4060,
                &[
                    (0xfffff80001923cc6, "nt!VeAllocatePoolWithTagPriority+0x2b6"),
                    (0xfffff80001923d3d, "nt!VerifierExAllocatePoolEx+0x1d"),
                    (0xfffff880042881f6, "myfault+0x11f6"),
                    (0xfffff8800428842f, "myfault+0x142f"),
                    (0xfffff8000192e750, "nt!IovCallDriver+0xa0"),
                    (0xfffff800017a3a97, "nt!IopXxxControlFile+0x607"),
                    (0xfffff800017a42f6, "nt!NtDeviceIoControlFile+0x56"),
                    (0xfffff80001487ed3, "nt!KiSystemServiceCopyEnd+0x13"),
                ],
            ),
            entry(
                block,
                0x1000,
                0xfffffa8002187060,
                &[
                    (0xfffff8000192393a, "nt!VfFreePoolNotification+0x4a"),
                    (0xfffff800015b6a6f, "nt!ExDeferredFreePool+0x107b"),
                    (0xfffff800017273eb, "nt!HvFreeDirtyData+0x7f"),
                    (0xfffff800017269bb, "nt!HvOptimizedSyncHive+0x53"),
                    (0xfffff80001726303, "nt!CmFlushKey+0xaf"),
                    (0xfffff80001726b22, "nt!NtFlushKey+0x142"),
                    (0xfffff80001487ed3, "nt!KiSystemServiceCopyEnd+0x13"),
                ],
            ),
        ];
        assert_eq!(
            text(&log(Wanted::Address(block), entries)),
            "
Log of recent kernel pool Allocate and Free operations:

There are up to 0x10000 entries in the log.

Parsing 0x0000000000010000 log entries, searching for address 0xfffff8a005800000.


======================================================================
Pool block fffff8a005800000, Size 00000000000fa000, Thread fffffa8002be4060
fffff80001923cc6 nt!VeAllocatePoolWithTagPriority+0x2b6
fffff80001923d3d nt!VerifierExAllocatePoolEx+0x1d
fffff880042881f6 myfault+0x11f6
fffff8800428842f myfault+0x142f
fffff8000192e750 nt!IovCallDriver+0xa0
fffff800017a3a97 nt!IopXxxControlFile+0x607
fffff800017a42f6 nt!NtDeviceIoControlFile+0x56
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
======================================================================
Pool block fffff8a005800000, Size 0000000000001000, Thread fffffa8002187060
fffff8000192393a nt!VfFreePoolNotification+0x4a
fffff800015b6a6f nt!ExDeferredFreePool+0x107b
fffff800017273eb nt!HvFreeDirtyData+0x7f
fffff800017269bb nt!HvOptimizedSyncHive+0x53
fffff80001726303 nt!CmFlushKey+0xaf
fffff80001726b22 nt!NtFlushKey+0x142
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
Parsed entry 0000000000010000/0000000000010000...
Finished parsing all pool tracking information.
"
        );
    }

    #[test]
    fn a_log_without_a_match_says_so() {
        let text = text(&log(Wanted::Address(0xfffff8a005800000), Vec::new()));
        assert!(text.contains("No entry of the log is about a block that contains 0xfffff8a005800000.\nParsed entry"));
    }

    #[test]
    fn a_kernel_of_32_bits_has_short_addresses() {
        let mut log = log(Wanted::Address(0x982a8fe0), vec![entry(0x982a8fe0, 0x20, 0x9c158bc0, &[])]);
        log.width = Width::Four;
        let text = text(&log);
        assert!(text.contains("Parsing 0x00010000 log entries, searching for address 0x982a8fe0."));
        assert!(text.contains("Pool block 982a8fe0, Size 00000020, Thread 9c158bc0"));
    }
}
