//! The logs beside the pool's: `!verifier 4`, `8`, `0x20`, `0x40`, `0x100`, `0x200`, `0x400`, `0x800`.
//!
//! ```text
//! -----------------------------------------------
//! Track irql trace log
//! -----------------------------------------------
//!
//! Displaying most recent 0x0000000000000004 entries from the IRQL transition log.
//! There are up to 0x100 entries in the log.
//!
//! Thread:             fffff80002bf8c40
//! Old irql:           0000000000000002
//! New irql:           0000000000000002
//! Processor:          0000000000000000
//! Time stamp:         000000000000495e
//!
//!     fffff8800420f2ca USBPORT!USBPORT_DM_IoTimerDpc+0x9a
//! ```

use std::fmt;

use nt_pool::PoolError;
use nt_pool::build::{WINDOWS_7, WINDOWS_8_1};
use nt_pool::pool_log::{self, Wanted};
use nt_pool::verifier::{self, LogKind};
use schemars::JsonSchema;
use serde::Serialize;

use super::options::{Place, address_or_quantity};
use super::stacks::{Frame, Stacks};
use super::{INFO, Known, usage};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::session::Context;
use crate::text::{Hex, Width};

/// A log by the flag that `!verifier` asks for it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Log {
    flag: u64,
    /// In JSON.
    name: &'static str,
    words: &'static str,
    /// `None`: no kernel is known to have it where it can be read.
    kind: Option<LogKind>,
    /// Records shown without a quantity.
    quantity: Option<u32>,
    /// What its variables are called; one of them, if the version has the log.
    variables: &'static [&'static str],
    /// The setting that fills it.
    setting: &'static str,
}

const LOGS: [Log; 8] = [
    Log {
        flag: 0x4,
        name: "faults",
        words: "fault injection",
        kind: Some(LogKind::Faults),
        quantity: Some(4),
        variables: &["ViFaultTraces"],
        setting: "randomized low resources simulation (0x4)",
    },
    Log {
        flag: 0x8,
        name: "irql",
        words: "IRQL transition",
        kind: Some(LogKind::Irql),
        quantity: Some(4),
        variables: &["ViTrackIrqlQueue"],
        setting: "force IRQL checking (0x2)",
    },
    Log { flag: 0x20, name: "hang", words: "driver hang", kind: None, quantity: None, variables: &[], setting: "" },
    Log {
        flag: 0x40,
        name: "forced_pending",
        words: "forced-pending IRP",
        kind: Some(LogKind::ForcedPending),
        quantity: None,
        variables: &["VfForcedPendingLog", "IovForcePendingLog"],
        setting: "force pending I/O requests (0x200)",
    },
    Log {
        flag: 0x100,
        name: "irps",
        words: "IRP",
        kind: Some(LogKind::Irps),
        quantity: None,
        variables: &["IovIrpTraces"],
        setting: "I/O verification (0x10)",
    },
    Log {
        flag: 0x200,
        name: "critical_regions",
        words: "critical region",
        kind: Some(LogKind::CriticalRegions),
        quantity: None,
        variables: &["VfKeCriticalRegionTraces"],
        setting: "the option that fills it",
    },
    Log {
        flag: 0x400,
        name: "watched_irps",
        words: "cancelled IRP",
        kind: Some(LogKind::WatchedIrps),
        quantity: None,
        variables: &["VfWdIrpListHead"],
        setting: "I/O verification (0x10)",
    },
    Log {
        flag: 0x800,
        name: "low_resources",
        words: "systematic low resources",
        kind: None,
        quantity: None,
        variables: &[],
        setting: "",
    },
];

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(super) struct EntryLog {
    log: &'static str,
    /// Slots of the log, or elements of the list; 0 when there is none.
    log_entries: u32,
    /// Why there is no such log.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
    entries: Vec<Entry>,
    #[serde(skip)]
    flag: u64,
    #[serde(skip)]
    words: &'static str,
    #[serde(skip)]
    address: Option<Hex>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize)]
struct Entry {
    /// Names a record until it is overwritten; lists have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    irp: Option<Hex>,
    /// What was done to an IRP or a critical region, by the functions on the stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_irql: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_irql: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processor: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tick_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    irql: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_apc_disable: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    special_apc_disable: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_tick_count: Option<u32>,
    frames: Vec<Frame>,
}

pub(super) fn reply(context: &mut Context<'_>, flag: u64, argument: &str) -> Result<Reply, CommandError> {
    let wanted = match argument {
        "" => None,
        text => Some(match address_or_quantity(context, text)? {
            Place::Address(_) if matches!(flag, 0x4 | 0x8 | 0x40) => {
                return Err(usage(&INFO, format!("the log {flag:#x} takes a quantity, not an address")));
            }
            Place::Address(address) => Wanted::Address(address),
            Place::Quantity(quantity) => Wanted::Newest(quantity),
        }),
    };
    let mut known = Known::default();
    let log = read(context, flag, wanted, &mut known)?;
    Ok(known.reply(log))
}

/// Reads one log; without `wanted` as much of it as kd shows.
pub(super) fn read(
    context: &mut Context<'_>,
    flag: u64,
    wanted: Option<Wanted>,
    known: &mut Known,
) -> Result<EntryLog, CommandError> {
    let Some(log) = LOGS.iter().find(|log| log.flag == flag) else {
        return Err(usage(&INFO, format!("there is no log {flag:#x}")));
    };
    let width = context.kernel()?.width();
    let wanted = wanted.unwrap_or_else(|| log.quantity.map_or(Wanted::All, Wanted::Newest));
    let address = match wanted {
        Wanted::Address(address) => Some(Hex(address)),
        Wanted::All | Wanted::Newest(_) => None,
    };
    let mut answer = EntryLog {
        log: log.name,
        log_entries: 0,
        unavailable: None,
        entries: Vec::new(),
        flag,
        words: log.words,
        address,
        width,
    };
    let found = match log.kind {
        Some(kind) => match context.pool(|kernel| verifier::log(kernel, kind, wanted)) {
            Ok(Some(found)) => found,
            Ok(None) => {
                answer.unavailable = Some(absent(context, log)?);
                return Ok(answer);
            }
            Err(CommandError::Pool(PoolError::NoType(name))) => {
                answer.unavailable =
                    Some(format!("The {} log cannot be read: the symbols of nt have no type {name}.", log.words));
                return Ok(answer);
            }
            Err(error) => return Err(error),
        },
        None => {
            answer.unavailable = Some(absent(context, log)?);
            return Ok(answer);
        }
    };
    known.notes.extend(found.notes);
    answer.log_entries = found.length;
    let mut stacks = Stacks::new(context, false)?;
    for entry in found.entries {
        let frames = stacks.stack(&entry.frames)?;
        let pointer = |value: Option<u64>| value.map(|value| Hex(width.address(value)));
        answer.entries.push(Entry {
            sequence: (log.kind != Some(LogKind::WatchedIrps)).then_some(entry.sequence),
            thread: pointer(entry.thread),
            irp: pointer(entry.irp),
            operation: operation(flag, &frames),
            old_irql: entry.old_irql,
            new_irql: entry.new_irql,
            processor: entry.processor,
            tick_count: entry.tick_count,
            irql: entry.irql,
            // KTHREAD has them side by side.
            kernel_apc_disable: entry.apc_disable.map(|both| both as i16),
            special_apc_disable: entry.apc_disable.map(|both| (both >> 16) as i16),
            due_tick_count: entry.due_tick_count,
            frames,
        });
    }
    if !answer.entries.is_empty() {
        stacks.finish(known);
    }
    Ok(answer)
}

/// Why a log is not there, in one line.
fn absent(context: &mut Context<'_>, log: &Log) -> Result<String, CommandError> {
    let build = context.kernel()?.version().minor;
    let words = log.words;
    Ok(match (log.flag, build) {
        (0x20, WINDOWS_7..) => "This version of Windows has no driver hang verification.".into(),
        (0x800, ..WINDOWS_8_1) => "This version of Windows has no systematic low resources simulation.".into(),
        (0x20 | 0x800, _) => {
            format!("The {words} log cannot be read: it is not known where this version of Windows keeps it.")
        }
        _ => {
            let has =
                |kernel: &nt_pool::Kernel<'_>| log.variables.iter().any(|name| kernel.find_symbol(name).is_some());
            match context.pool(|kernel| Ok(has(kernel)))? {
                true => format!("The kernel keeps no {words} log now: {} is off.", log.setting),
                false => format!("This version of Windows has no {words} log."),
            }
        }
    })
}

/// By the first of the leading frames that tells: further out, a driver may be in the middle of something else.
fn operation(flag: u64, frames: &[Frame]) -> Option<&'static str> {
    const IRPS: &[(&str, &str)] =
        &[("AllocateIrp", "allocate"), ("CompleteRequest", "complete"), ("CancelIrp", "cancel"), ("FreeIrp", "free")];
    const REGIONS: &[(&str, &str)] = &[
        ("EnterCriticalRegion", "enter"),
        ("EnterGuardedRegion", "enter"),
        ("LeaveCriticalRegion", "leave"),
        ("LeaveGuardedRegion", "leave"),
    ];
    let words = match flag {
        0x100 => IRPS,
        0x200 => REGIONS,
        _ => return None,
    };
    let of = |name: &str| words.iter().find(|(part, _)| name.contains(part)).map(|(_, operation)| *operation);
    let names = frames.iter().take(pool_log::LEADING).filter_map(|frame| frame.symbol.as_deref());
    Some(names.filter_map(of).next().unwrap_or("unknown"))
}

impl Text for EntryLog {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.flag {
            0x4 => boxed(out, "Fault injection trace log")?,
            0x8 => boxed(out, "Track irql trace log")?,
            _ => {}
        }
        if let Some(why) = &self.unavailable {
            return writeln!(out, "{why}");
        }
        match self.flag {
            0x4 if self.entries.is_empty() => writeln!(out, "Driver Verifier didn't inject any faults."),
            0x4 | 0x8 => self.recent(out),
            0x40 => self.forced_pending(out),
            _ => self.operations(out),
        }
    }
}

/// A title between lines that are as wide.
fn boxed(out: &mut dyn fmt::Write, title: &str) -> fmt::Result {
    let line = format_args!("{:-<47} ", "");
    writeln!(out, "{line}\n{title:<48}\n{line}\n")
}

impl EntryLog {
    fn pointer(&self, value: u64) -> String {
        self.width.pointer(value)
    }

    fn frames(&self, out: &mut dyn fmt::Write, indent: usize, entry: &Entry) -> fmt::Result {
        entry.frames.iter().try_for_each(|frame| writeln!(out, "{:indent$}{}", "", frame.line(self.width)))
    }

    /// The logs of which kd shows the newest few.
    fn recent(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let count = self.pointer(self.entries.len() as u64);
        writeln!(out, "Displaying most recent 0x{count} entries from the {} log.", self.words)?;
        writeln!(out, "There are up to {:#x} entries in the log.", self.log_entries)?;
        for entry in &self.entries {
            let values = [
                ("Thread:", entry.thread.map(|thread| thread.0)),
                ("Old irql:", entry.old_irql.map(u64::from)),
                ("New irql:", entry.new_irql.map(u64::from)),
                ("Processor:", entry.processor.map(u64::from)),
                ("Time stamp:", entry.tick_count.map(u64::from)),
            ];
            writeln!(out)?;
            for (name, value) in values {
                if let Some(value) = value {
                    writeln!(out, "{name:<20}{}", self.pointer(value))?;
                }
            }
            writeln!(out)?;
            self.frames(out, 4, entry)?;
        }
        self.if_empty(out)
    }

    fn if_empty(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.entries.is_empty() {
            true => writeln!(out, "The log is empty."),
            false => Ok(()),
        }
    }

    fn forced_pending(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Size of the log is {:#x}", self.log_entries)?;
        for entry in &self.entries {
            writeln!(out, "{:=<56}", "")?;
            let irp = self.pointer(entry.irp.map_or(0, |irp| irp.0));
            writeln!(out, "IRP: {irp} - forced pending from stack trace:\n")?;
            self.frames(out, 5, entry)?;
            writeln!(out)?;
        }
        self.if_empty(out)
    }

    /// The logs whose text no source shows: in the shape of the pool log.
    fn operations(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (title, of) = match self.flag {
            0x100 => ("Log of recent IRP Allocate, Complete and Cancel operations", "IRP"),
            0x200 => ("Log of recent Enter and Leave Critical Region operations", "thread"),
            _ => ("Cancelled IRPs that are being watched", "IRP"),
        };
        writeln!(out, "\n{title}:\n\nThere are up to {:#x} entries in the log.\n", self.log_entries)?;
        match self.address {
            Some(address) => writeln!(out, "Searching for {of} 0x{}.\n", self.pointer(address.0))?,
            None => writeln!(out, "Displaying the most recent {:#x} entries.\n", self.entries.len())?,
        }
        for entry in &self.entries {
            writeln!(out, "{:=<70}", "")?;
            let mut line = String::new();
            let mut add = |text: String| {
                let comma = if line.is_empty() { "" } else { ", " };
                line = format!("{line}{comma}{text}");
            };
            if let Some(irp) = entry.irp {
                add(format!("IRP {}", self.pointer(irp.0)));
            }
            if let Some(thread) = entry.thread {
                add(format!("Thread {}", self.pointer(thread.0)));
            }
            if let Some(irql) = entry.irql {
                add(format!("IRQL = {irql}"));
            }
            if let (Some(kernel), Some(special)) = (entry.kernel_apc_disable, entry.special_apc_disable) {
                add(format!("KernelApcDisable = {kernel}, SpecialApcDisable = {special}"));
            }
            if let Some(due) = entry.due_tick_count {
                add(format!("watched until tick {due:#x}"));
            }
            writeln!(out, "{line}")?;
            self.frames(out, 0, entry)?;
        }
        match self.address {
            Some(address) if self.entries.is_empty() => {
                writeln!(out, "No entry of the log is about 0x{}.", self.pointer(address.0))
            }
            _ => self.if_empty(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(flag: u64, words: &'static str, log_entries: u32, entries: Vec<Entry>, width: Width) -> String {
        let log = EntryLog { log: "", log_entries, unavailable: None, entries, flag, words, address: None, width };
        let mut text = String::new();
        log.text(&mut text).unwrap();
        text
    }

    fn frame(address: u64, symbol: &str) -> Frame {
        Frame { address: Hex(address), symbol: Some(symbol.to_string().into()) }
    }

    /// The sample of facts/pool-internals.md 8.5, of one entry. Titles end with blanks.
    #[test]
    fn irql_transitions() {
        let entry = Entry {
            thread: Some(Hex(0xfffff80002bf8c40)),
            old_irql: Some(2),
            new_irql: Some(2),
            processor: Some(0),
            tick_count: Some(0x495e),
            frames: vec![frame(0xfffff8800420f2ca, "USBPORT!USBPORT_DM_IoTimerDpc+0x9a")],
            ..Entry::default()
        };
        let text = text(0x8, "IRQL transition", 0x100, vec![entry], Width::Eight);
        assert!(text.lines().take(3).all(|line| line.len() == 48 && line.ends_with(' ')), "{text}");
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "-----------------------------------------------",
                "Track irql trace log",
                "-----------------------------------------------",
                "",
                "Displaying most recent 0x0000000000000001 entries from the IRQL transition log.",
                "There are up to 0x100 entries in the log.",
                "",
                "Thread:             fffff80002bf8c40",
                "Old irql:           0000000000000002",
                "New irql:           0000000000000002",
                "Processor:          0000000000000000",
                "Time stamp:         000000000000495e",
                "",
                "    fffff8800420f2ca USBPORT!USBPORT_DM_IoTimerDpc+0x9a",
            ]
        );
    }

    #[test]
    fn forced_pending_irps_and_injected_faults() {
        let frames = vec![frame(0x817b21e4, "nt!IovpLocalCompletionRoutine+0xb2")];
        let entry = Entry { irp: Some(Hex(0x8f84ef00)), frames, ..Entry::default() };
        assert_eq!(
            text(0x40, "forced-pending IRP", 0x40, vec![entry], Width::Four),
            "Size of the log is 0x40
========================================================
IRP: 8f84ef00 - forced pending from stack trace:

     817b21e4 nt!IovpLocalCompletionRoutine+0xb2

"
        );
        let none = text(0x4, "fault injection", 0x80, Vec::new(), Width::Four);
        assert!(none.ends_with("\n\nDriver Verifier didn't inject any faults.\n"), "{none}");
    }

    #[test]
    fn what_was_done_is_told_by_the_stack() {
        let stack = |names: &[&str]| names.iter().map(|name| frame(0, name)).collect::<Vec<_>>();
        let of = |flag, names: &[&str]| operation(flag, &stack(names));
        assert_eq!(of(0x100, &["nt!VfIrpLog+0x1", "nt!IovAllocateIrp+0x2"]), Some("allocate"));
        assert_eq!(of(0x100, &["nt!IovCompleteRequest+0x2", "a!IoFreeIrp"]), Some("complete"));
        assert_eq!(of(0x200, &["nt!VerifierKeLeaveCriticalRegion+0x2"]), Some("leave"));
        assert_eq!(of(0x200, &["a+0x2"]), Some("unknown"));
        assert_eq!(of(0x8, &["nt!IovAllocateIrp+0x2"]), None);
    }
}
