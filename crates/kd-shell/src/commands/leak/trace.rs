//! `!leak trace tag [-hits N] [-rate R] [-frozen T] [-for T]`: who allocates and frees, without the verifier.
//!
//! The kernel breaks into its debugger at each allocation and each free of the tag that `nt!PoolHitTag` holds. The
//! variable is changed for a while, and put back in every way of leaving: by this command, by the session's end, or, when
//! the link was lost or the process killed, by the next session (leftover.rs).

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use nt_leaks::{Skip, StackId, Stacks, units};
use nt_memory::ReadError;
use nt_pool::Tag;
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::{Arguments, no_more, scope};
use super::options::Sub;
use super::{INFO, left, modules, with_pool};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::leftover::{Leftover, Note, timestamp};
use crate::output::difference;
use crate::shell::{Drive, is_cancelled};
use crate::stack;
use crate::text::Hex;

const HITS: u32 = 20;
/// Hits a second.
const RATE: u32 = 10;
/// How long the target may stand still altogether.
const FROZEN: Duration = Duration::from_secs(5);
/// How long it waits for hits where nobody says how long.
const RUN_FOR: Duration = Duration::from_secs(60);
/// How often it says that it still waits.
const TELL: Duration = Duration::from_secs(10);
const FRAMES: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ended {
    /// As many hits as were asked for.
    Hits,
    /// The time was over.
    Time,
    /// The target stood still for as long as it may.
    Frozen,
    /// Ctrl+C.
    Cancelled,
    /// The target stopped for another reason.
    Stopped,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    Allocate,
    Free,
    Unknown,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Traced {
    tag: String,
    hits: u32,
    /// Most hits first.
    stacks: Vec<Group>,
    ended: Ended,
    elapsed_ms: u64,
    frozen_ms: u64,
    /// `nt!PoolHitTag` before, and again now if `restored`.
    old_value: Hex,
    restored: bool,
    /// Where the trace left the target.
    target: &'static str,
}

#[derive(JsonSchema, Serialize)]
struct Group {
    id: StackId,
    operation: Operation,
    hits: u32,
    frames: Vec<Frame>,
    #[serde(skip)]
    shown: Vec<String>,
}

#[derive(JsonSchema, Serialize)]
struct Frame {
    address: Hex,
    symbol: Option<String>,
}

pub(super) fn run(drive: &mut Drive<'_>, text: &str) -> Result<Reply, CommandError> {
    let arguments = Arguments::parse(Sub::Trace, text)?;
    let mut words = arguments.words.iter().map(String::as_str);
    let tag = words.next().ok_or_else(|| usage(&INFO, "which tag?"))?;
    no_more(words)?;
    let key = scope(Some(tag), None).map_err(|why| usage(&INFO, why))?.tag.unwrap_or_default();
    drive.with(|context| context.session.check_writing())?;
    drive.unattended();
    if !drive.is_halted() {
        drive.break_in()?;
    }
    let before = drive.cost();
    let started = Instant::now();
    let mut trace = Trace::arm(drive, key, arguments.report.skip)?;
    drive.say(&format!(
        "Tracing {}: nt!PoolHitTag was {:#x}; Ctrl+C ends the trace and puts it back\n",
        Tag::from_key(key).0,
        trace.leftover.old
    ));
    let limits = Limits {
        hits: arguments.hits.unwrap_or(HITS),
        gap: Duration::from_secs(1) / arguments.rate.unwrap_or(RATE),
        frozen: before.frozen + arguments.frozen.unwrap_or(FROZEN),
        end: started + arguments.run_for.unwrap_or(RUN_FOR),
    };
    let mut failure = None;
    let ended = match trace.hits(drive, &limits) {
        Ok(ended) => ended,
        Err(error) if is_cancelled(&error) => Ended::Cancelled,
        Err(error) => {
            failure = Some(error);
            Ended::Failed
        }
    };
    let mut notes = Vec::new();
    let old_value = Hex(trace.leftover.old.into());
    let (hits, groups) = (trace.count, std::mem::take(&mut trace.groups));
    let restored = match trace.disarm(drive) {
        Ok(()) => true,
        Err(error) => {
            notes.push(format!(
                "nt!PoolHitTag could not be put back ({error}); the next session on this target does it"
            ));
            failure.get_or_insert(error);
            false
        }
    };
    if ended == Ended::Stopped {
        let lines = drive.stop_lines().unwrap_or_default();
        drive.say(&lines);
        notes.push("the target stopped for another reason; g lets it go on".into());
    } else if drive.is_halted()
        && let Err(error) = drive.go()
    {
        failure.get_or_insert(error);
    }
    let spent = difference(before, drive.cost());
    let mut stacks: Vec<Group> = groups.into_values().collect();
    stacks.sort_by_key(|group| (std::cmp::Reverse(group.hits), group.id, group.operation));
    let answer = Traced {
        tag: Tag::from_key(key).0.to_string(),
        hits,
        stacks,
        ended,
        elapsed_ms: started.elapsed().as_millis() as u64,
        frozen_ms: spent.frozen.as_millis() as u64,
        old_value,
        restored,
        target: drive.state(),
    };
    let mut reply = Reply::with_notes(answer, notes);
    reply.failure = failure;
    Ok(reply)
}

struct Limits {
    hits: u32,
    /// Between two hits.
    gap: Duration,
    /// The session's frozen time at which the trace ends.
    frozen: Duration,
    end: Instant,
}

impl Limits {
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

fn seconds(time: Duration) -> String {
    units::time(time.as_secs_f64() * 1000.0)
}

struct Trace {
    leftover: Leftover,
    note: Option<Note>,
    /// Frames that are not shown.
    skip: Skip,
    count: u32,
    groups: BTreeMap<(StackId, Operation), Group>,
}

impl Trace {
    /// Sets the variable. What it held is noted first, in a file and with the session's end.
    fn arm(drive: &mut Drive<'_>, key: u32, skip: Skip) -> Result<Trace, CommandError> {
        let leftover = drive.with(|context| {
            let kernel = context.kernel()?;
            let nt = context.session.symbols.nt(kernel)?;
            let symbol = nt.symbol("PoolHitTag").ok_or_else(|| {
                CommandError::Failed("this kernel has no nt!PoolHitTag (or the symbols do not say where)".into())
            })?;
            let address = kernel.width().address(kernel.base().wrapping_add(symbol.rva.into()));
            let old = kernel.memory().read_u32(address).map_err(|error| match error {
                ReadError::Fault(fault) => CommandError::Fault(fault),
                error => CommandError::Failed(format!("nt!PoolHitTag: {error}")),
            })?;
            let timestamp = timestamp(kernel)?;
            let what = "nt!PoolHitTag".to_owned();
            Ok::<_, CommandError>(Leftover { base: kernel.base(), timestamp, what, address, ours: key, old })
        })?;
        if leftover.old == key {
            return Err(CommandError::Failed(
                "nt!PoolHitTag holds this tag already: another debugger set it, or a session that died (ed \
                 nt!PoolHitTag 0xffffff0f is its default)"
                    .into(),
            ));
        }
        let note = Note::write(&leftover)
            .map_err(|error| CommandError::Failed(format!("cannot note what is to be put back: {error}")))?;
        let trace = Trace { leftover, note: Some(note), skip, count: 0, groups: BTreeMap::new() };
        drive.with(|context| {
            let Leftover { address, old, .. } = trace.leftover;
            Ok::<_, CommandError>(context.kernel()?.restore_on_leave(address, &old.to_le_bytes())?)
        })?;
        trace.set(drive, key)?;
        Ok(trace)
    }

    fn set(&self, drive: &mut Drive<'_>, value: u32) -> Result<(), CommandError> {
        let address = self.leftover.address;
        let written =
            drive.with(|context| Ok::<_, CommandError>(context.kernel()?.write(address, &value.to_le_bytes())?))?;
        match written {
            4 => Ok(()),
            _ => Err(CommandError::Failed("the target does not take a new nt!PoolHitTag".into())),
        }
    }

    /// Lets the target run from hit to hit.
    fn hits(&mut self, drive: &mut Drive<'_>, limits: &Limits) -> Result<Ended, CommandError> {
        loop {
            if self.count >= limits.hits {
                return Ok(Ended::Hits);
            }
            if drive.cost().frozen >= limits.frozen {
                return Ok(Ended::Frozen);
            }
            if limits.left().is_zero() {
                return Ok(Ended::Time);
            }
            drive.go()?;
            let resumed = Instant::now();
            while !drive.run_for(limits.left().min(TELL))? {
                let left = limits.left();
                if left.is_zero() {
                    return Ok(Ended::Time);
                }
                let (waited, left) = (seconds(resumed.elapsed()), seconds(left));
                let hits = self.count;
                drive.say(&format!(
                    "{hits} hits so far, none for {waited}; the trace ends in {left} (-for), or by Ctrl+C\n"
                ));
            }
            if !self.hit(drive)? {
                return Ok(Ended::Stopped);
            }
            let rest = limits.gap.saturating_sub(resumed.elapsed());
            if !rest.is_zero() && self.count < limits.hits {
                // Too many a second: for the rest of the time the target runs undisturbed.
                self.set(drive, self.leftover.old)?;
                drive.go()?;
                if drive.run_for(rest)? {
                    return Ok(Ended::Stopped);
                }
                drive.break_in()?;
                self.set(drive, self.leftover.ours)?;
            }
        }
    }

    /// Notes where the target stands. False: not in the pool's code.
    fn hit(&mut self, drive: &mut Drive<'_>) -> Result<bool, CommandError> {
        let mut notes = Vec::new();
        let found = drive.with(|context| {
            let addresses = stack::addresses(context, FRAMES)?;
            let modules = modules(context, &mut notes)?;
            with_pool(context, &modules, |_, resolver| Ok(resolver.stack(&addresses)?))
        })?;
        let name = |frame: &nt_leaks::Frame| frame.symbol.clone().filter(|_| frame.module.as_deref() == Some("nt"));
        let leading: Vec<String> = found.iter().take(LEADING).filter_map(name).collect();
        let Some(pool) = leading.iter().find(|name| name.starts_with("Ex")) else { return Ok(false) };
        let operation = match () {
            () if pool.contains("Free") => Operation::Free,
            () if pool.contains("Alloc") => Operation::Allocate,
            () => Operation::Unknown,
        };
        let id = Stacks::default().add(found.clone());
        let frames = || {
            let symbol = |frame: &nt_leaks::Frame| frame.module.as_ref().map(|_| frame.to_string());
            found.iter().map(|frame| Frame { address: Hex(frame.address), symbol: symbol(frame) }).collect()
        };
        let shown = || self.skip.fold(&found).iter().map(ToString::to_string).collect();
        let group = self.groups.entry((id, operation)).or_insert_with(|| Group {
            id,
            operation,
            hits: 0,
            frames: frames(),
            shown: shown(),
        });
        group.hits += 1;
        self.count += 1;
        Ok(true)
    }

    /// Puts the old value back.
    fn disarm(mut self, drive: &mut Drive<'_>) -> Result<(), CommandError> {
        if !drive.is_halted() {
            drive.break_in()?;
        }
        let Leftover { address, base, ours, old, .. } = self.leftover;
        let is_ours = drive.with(|context| {
            let kernel = context.kernel()?;
            Ok::<_, CommandError>(kernel.base() == base && kernel.memory().read_u32(address).ok() == Some(ours))
        })?;
        // A machine that was restarted has its default.
        if is_ours {
            self.set(drive, old)?;
        }
        drive.with(|context| Ok::<_, CommandError>(context.kernel()?.restore_on_leave(address, &[])?))?;
        if let Some(note) = self.note.take() {
            note.remove();
        }
        Ok(())
    }
}

/// Frames among which the pool's own must be: the break instruction may have a function of its own.
const LEADING: usize = 4;

impl Text for Traced {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for group in &self.stacks {
            let what = match group.operation {
                Operation::Allocate => "allocations",
                Operation::Free => "frees",
                Operation::Unknown => "operations",
            };
            writeln!(out, "{} {what} by: {}", group.hits, group.id)?;
            for frame in &group.shown {
                writeln!(out, "\t{frame}")?;
            }
            writeln!(out)?;
        }
        let why = match self.ended {
            Ended::Hits => "as many hits as were asked for",
            Ended::Time => "the time is over",
            Ended::Frozen => "the target stood still for as long as it may (-frozen)",
            Ended::Cancelled => "ended by Ctrl+C",
            Ended::Stopped => "the target stopped for another reason",
            Ended::Failed => "the session failed",
        };
        writeln!(
            out,
            "{} hits of {} in {:.1} s: {why}. The target stood still for {} ms.",
            self.hits,
            self.tag,
            self.elapsed_ms as f64 / 1000.0,
            self.frozen_ms
        )?;
        let state = if self.restored { "is" } else { "should be" };
        writeln!(out, "nt!PoolHitTag {state} {:#x} again. {}", self.old_value.0, left(self.target))
    }
}
