//! `!verifier 0x80 [quantity | address] [options]`: the log of pool allocations and frees.
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

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use nt_pool::checks::Check;
use nt_pool::pool_log::{self, Operation, Position, Trace, Wanted};
use nt_pool::{TagPattern, big_pages, history, verifier};
use schemars::JsonSchema;
use serde::Serialize;

use super::options::Options;
use super::stacks::{Frame, Stacks};
use super::watch::TURN_ON;
use super::{INFO, Known, usage};
use crate::answer::{Reply, Text};
use crate::commands::pool::balance::Balance;
use crate::error::CommandError;
use crate::kept_log::{self as kept, Records};
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};

#[derive(Debug, Default, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(super) struct PoolLogAnswer {
    /// Slots of the log; 0 when the kernel keeps none.
    log_entries: u32,
    /// The newest record's sequence number.
    index: Option<u32>,
    /// Slots that were looked at.
    parsed: u32,
    /// The lowest start of a block that was looked for; blocks that begin below it and reach over the address asked
    /// for are not among the entries. `null` when every record was read.
    searched_from: Option<Hex>,
    /// Newest first.
    entries: Vec<Entry>,
    /// In place of the entries, with `-group`: most bytes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group>>,
    /// With `-timeline`: oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Vec<Moment>>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    /// Why there is no log.
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<String>,
    /// What of the log is shown, in words that follow "log entries".
    #[serde(skip)]
    asked: String,
    #[serde(skip)]
    address: Option<Hex>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Entry {
    address: Hex,
    size: u64,
    thread: Hex,
    operation: &'static str,
    sequence: u32,
    frames: Vec<Frame>,
}

/// Records with the same stack.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Group {
    count: u64,
    bytes: u64,
    operation: &'static str,
    /// Of the newest of them.
    sequence: u32,
    frames: Vec<Frame>,
}

/// What happened to an address.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Moment {
    sequence: u32,
    operation: &'static str,
    address: Hex,
    size: u64,
    thread: Hex,
    /// The first frame that is neither the kernel's nor the verifier's, else the first.
    by: Option<Frame>,
    /// The record before it is of the same operation, so one between them is missing.
    gap: bool,
}

pub(super) fn reply(context: &mut Context<'_>, arguments: &str) -> Result<Reply, CommandError> {
    context.kernel()?;
    let options = Options::parse(context, arguments)?;
    let mut known = Known::default();
    let answer = read(context, &options, &mut known)?;
    Ok(known.reply(answer))
}

pub(super) fn read(
    context: &mut Context<'_>,
    options: &Options,
    known: &mut Known,
) -> Result<PoolLogAnswer, CommandError> {
    let width = context.width();
    let mut answer = PoolLogAnswer {
        asked: asked(options, width),
        address: options.address.map(Hex),
        width,
        ..PoolLogAnswer::default()
    };
    let Some((position, mut records)) = records(context, options, known)? else {
        answer.unavailable = Some(format!(
            "The kernel keeps no such log: neither pool tracking nor special pool is on for any driver\n({TURN_ON})."
        ));
        return Ok(answer);
    };
    // An overview with this log has said it already.
    let wrapped = kept::wrapped(context, position)?.filter(|wrapped| !known.remarks.contains(wrapped));
    known.remarks.extend(wrapped);
    known.notes.append(&mut records.notes);
    answer.log_entries = records.length;
    answer.index = Some(records.index);
    answer.parsed = records.parsed;
    if records.lowest > 0 {
        let lowest = width.address(records.lowest);
        answer.searched_from = Some(Hex(lowest));
        known.remarks.push(format!(
            "The target searched its log. Blocks that begin below {} were not looked for; add -full to read all of it.",
            width.pointer(lowest)
        ));
    }
    if records.too_large {
        known.remarks.push("The log is too large to be kept: the next look reads all of it again.".into());
    }
    if options.since.is_some() || options.group || options.outstanding {
        let index = records.index;
        known
            .remarks
            .push(format!("The log's index is {index:#x}: -since {index:#x} shows what is written from now on."));
    }
    if options.outstanding {
        known.remarks.push("Blocks that were allocated before the log's oldest record are not among these.".into());
    }

    let mut checks: Vec<Check> =
        context.pool(|kernel| Ok(pool_log::check(kernel, &records.traces)))?.into_iter().collect();
    // Else the newest records need not be among these.
    if *options == Options::default() {
        checks.extend(pool_log::check_index(records.index, &records.traces));
    }
    answer.checks = Balance::all(&checks, &[], &mut known.notes);

    let mut stacks = Stacks::new(context, options.calls)?;
    let traces = select(options, &records.traces, &mut stacks)?;
    if options.group {
        answer.groups = Some(groups(&traces, &mut stacks)?);
    } else {
        for &trace in &traces {
            answer.entries.push(Entry {
                address: Hex(width.address(trace.address)),
                size: trace.size,
                thread: Hex(width.address(trace.thread)),
                operation: stacks.operation(trace)?.word(),
                sequence: trace.sequence,
                frames: stacks.stack(&trace.frames)?,
            });
        }
    }
    if options.timeline {
        answer.timeline = Some(timeline(&answer.entries));
    }
    if !traces.is_empty() {
        stacks.finish(known);
    }
    Ok(answer)
}

/// The records that the question is about, by the cheapest way to them.
fn records(
    context: &mut Context<'_>,
    options: &Options,
    known: &mut Known,
) -> Result<Option<(Position, Records)>, CommandError> {
    let Some(position) = kept::position(context)? else { return Ok(None) };
    let tagged = match &options.tag {
        Some(tag) => tagged(context, tag, known)?,
        None => Tagged::default(),
    };
    let mut records = match options {
        Options { address: Some(address), full: true, .. } => kept::of_address_in_all(context, position, *address)?,
        Options { address: Some(address), .. } => kept::of_address(context, position, *address)?,
        Options { quantity: Some(quantity), .. } => {
            context.pool(|kernel| pool_log::read(kernel, Wanted::Newest(*quantity)))?.map(Records::from)
        }
        Options { since: Some(since), .. } => {
            let ahead = since.wrapping_sub(position.index);
            if (1..1 << 31).contains(&ahead) {
                let index = position.index;
                return Err(usage(&INFO, format!("the log's index is {index:#x}, before {since:#x}")));
            }
            context.pool(|kernel| pool_log::read_since(kernel, *since))?.map(Records::from)
        }
        Options { tag: Some(_), .. } => kept::of_starts(context, position, &tagged.addresses)?,
        _ => kept::whole(context, position)?,
    };
    if let Some(records) = &mut records {
        let mut keep = |wanted: &dyn Fn(&Trace) -> bool| {
            if !records.traces.iter().all(wanted) {
                records.traces = Arc::new(records.traces.iter().filter(|trace| wanted(trace)).cloned().collect());
            }
        };
        if let Some(since) = options.since {
            let index = position.index;
            keep(&|trace| index.wrapping_sub(trace.sequence) < index.wrapping_sub(since));
        }
        if let Some(tag) = &options.tag {
            keep(&|trace| tagged.addresses.binary_search(&trace.address).is_ok());
            known.remarks.push(format!(
                "The log holds no tags: shown is what happened where {} blocks with tag {tag} are allocated now, and \
                 where {} were that have been freed since. Records of such a place may be of other blocks.",
                tagged.allocated, tagged.freed
            ));
        }
    }
    Ok(records.map(|records| (position, records)))
}

/// Where blocks with a tag are or were.
#[derive(Default)]
struct Tagged {
    /// In order.
    addresses: Vec<u64>,
    /// How many of them are blocks now, and how many were.
    allocated: usize,
    freed: usize,
}

/// The large blocks with the tag, freed ones too while the kernel's table still has their entries, and what verified
/// drivers have.
fn tagged(context: &mut Context<'_>, tag: &TagPattern, known: &mut Known) -> Result<Tagged, CommandError> {
    let large = context.pool(|kernel| match tag.exact() {
        Some(tag) => big_pages::find(kernel, tag),
        None => big_pages::read(kernel, &|found| tag.matches(found)),
    })?;
    known.notes.extend(large.notes);
    let (freed, live): (Vec<_>, Vec<_>) = large.blocks.iter().partition(|block| block.free);
    let mut addresses: BTreeSet<u64> = live.iter().map(|block| block.address).collect();
    let drivers = context.pool(verifier::drivers)?;
    known.notes.extend(drivers.notes);
    for driver in &drivers.drivers {
        let found = context.pool(|kernel| verifier::allocations(kernel, driver))?;
        known.notes.extend(found.notes);
        let blocks = found.allocations.iter().filter(|allocation| tag.matches(allocation.tag));
        addresses.extend(blocks.map(|allocation| allocation.address));
    }
    let allocated = addresses.len();
    addresses.extend(freed.iter().map(|block| block.address));
    Ok(Tagged { allocated, freed: addresses.len() - allocated, addresses: addresses.into_iter().collect() })
}

/// The records that the options leave, newest first.
fn select<'t>(options: &Options, traces: &'t [Trace], stacks: &mut Stacks<'_>) -> Result<Vec<&'t Trace>, CommandError> {
    let mut selected: Vec<&Trace> = if options.outstanding {
        let mut operations = HashMap::new();
        for trace in traces {
            operations.insert(trace.sequence, stacks.operation(trace)?);
        }
        let operation = |trace: &Trace| operations.get(&trace.sequence).copied().unwrap_or(Operation::Unknown);
        history::outstanding(traces, &operation)
    } else {
        traces.iter().collect()
    };
    if let Some(name) = &options.driver {
        let image = stacks.image(name)?.ok_or_else(|| {
            CommandError::Failed(format!("no module '{}' is loaded, and none was unloaded lately", visible_name(name)))
        })?;
        selected.retain(|trace| trace.frames.iter().any(|&frame| image.contains(&stacks.address(frame))));
    }
    if let Some(wanted) = options.operation {
        let mut kept = Vec::with_capacity(selected.len());
        for trace in selected {
            if stacks.operation(trace)? == wanted {
                kept.push(trace);
            }
        }
        selected = kept;
    }
    Ok(selected)
}

fn groups(traces: &[&Trace], stacks: &mut Stacks<'_>) -> Result<Vec<Group>, CommandError> {
    let mut groups = Vec::new();
    for group in history::group(traces.iter().copied()) {
        let history::Group { frames, count, bytes, sequence } = group;
        let trace = Trace { sequence, address: 0, size: 0, thread: 0, frames };
        groups.push(Group {
            count,
            bytes,
            operation: stacks.operation(&trace)?.word(),
            sequence,
            frames: stacks.stack(&trace.frames)?,
        });
    }
    Ok(groups)
}

/// `entries` are newest first.
fn timeline(entries: &[Entry]) -> Vec<Moment> {
    let own = |frame: &&Frame| {
        let module = frame.symbol.as_deref().and_then(|symbol| symbol.split_once('!')).map(|(module, _)| module);
        !matches!(module, Some("nt" | "VerifierExt"))
    };
    let mut before: Option<&Entry> = None;
    let mut moments = Vec::with_capacity(entries.len());
    for entry in entries.iter().rev() {
        let same = |before: &Entry| {
            before.address == entry.address && before.operation == entry.operation && entry.operation != "unknown"
        };
        moments.push(Moment {
            sequence: entry.sequence,
            operation: entry.operation,
            address: entry.address,
            size: entry.size,
            thread: entry.thread,
            by: entry.frames.iter().find(own).or(entry.frames.first()).cloned(),
            gap: before.is_some_and(same),
        });
        before = Some(entry);
    }
    moments
}

/// What follows "log entries" in the answer's first lines.
fn asked(options: &Options, width: Width) -> String {
    let mut parts = Vec::new();
    if let Some(quantity) = options.quantity {
        parts.push(format!("displaying the most recent 0x{}", width.pointer(quantity.into())));
    }
    if let Some(address) = options.address {
        parts.push(format!("searching for address 0x{}", width.pointer(address)));
    }
    if let Some(since) = options.since {
        parts.push(format!("written since {since:#x}"));
    }
    if let Some(tag) = &options.tag {
        parts.push(format!("of blocks with tag {tag}"));
    }
    if let Some(driver) = &options.driver {
        parts.push(format!("with a frame in {}", visible_name(driver)));
    }
    match options.operation {
        Some(Operation::Allocate) => parts.push("allocations only".into()),
        Some(Operation::Free) => parts.push("frees only".into()),
        Some(Operation::Unknown) | None => {}
    }
    if options.outstanding {
        parts.push("without a later free".into());
    }
    parts.iter().map(|part| format!(", {part}")).collect()
}

impl Text for PoolLogAnswer {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "\nLog of recent kernel pool Allocate and Free operations:\n")?;
        if let Some(why) = &self.unavailable {
            return writeln!(out, "{why}");
        }
        let pointer = |value| self.width.pointer(value);
        writeln!(out, "There are up to {:#x} entries in the log.\n", self.log_entries)?;
        let length = pointer(self.log_entries.into());
        writeln!(out, "Parsing 0x{length} log entries{}.\n\n", self.asked)?;
        match (&self.groups, &self.timeline) {
            (Some(groups), _) => self.groups(out, groups)?,
            (None, Some(timeline)) => self.timeline(out, timeline)?,
            (None, None) => self.records(out)?,
        }
        if self.entries.is_empty() && self.groups.as_ref().is_none_or(Vec::is_empty) {
            match (self.address, self.asked.is_empty()) {
                (Some(address), _) => {
                    writeln!(out, "No entry of the log is about a block that contains 0x{}.", pointer(address.0))?;
                }
                (None, true) => writeln!(out, "The log is empty.")?,
                (None, false) => writeln!(out, "The log has no such entry.")?,
            }
        }
        writeln!(out, "Parsed entry {}/{length}...", pointer(self.parsed.into()))?;
        writeln!(out, "Finished parsing all pool tracking information.")
    }
}

impl PoolLogAnswer {
    fn records(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |value| self.width.pointer(value);
        for entry in &self.entries {
            writeln!(out, "{:=<70}", "")?;
            let (address, size, thread) = (pointer(entry.address.0), pointer(entry.size), pointer(entry.thread.0));
            writeln!(out, "Pool block {address}, Size {size}, Thread {thread}")?;
            for frame in &entry.frames {
                writeln!(out, "{}", frame.line(self.width))?;
            }
        }
        Ok(())
    }

    /// ```text
    /// ======================================================================
    /// 0x166fa000 bytes in 0x17 allocations by:
    /// fffff80001923cc6 nt!VeAllocatePoolWithTagPriority+0x2b6
    /// ```
    fn groups(&self, out: &mut dyn fmt::Write, groups: &[Group]) -> fmt::Result {
        for Group { count, bytes, operation, frames, .. } in groups {
            let what = match (*operation, count) {
                ("allocate", 1) => "allocation",
                ("allocate", _) => "allocations",
                ("free", 1) => "free",
                ("free", _) => "frees",
                (_, 1) => "operation",
                _ => "operations",
            };
            writeln!(out, "{:=<70}\n{bytes:#x} bytes in {count:#x} {what} by:", "")?;
            for frame in frames {
                writeln!(out, "{}", frame.line(self.width))?;
            }
        }
        Ok(())
    }

    /// ```text
    /// Sequence  Operation  Address           Size              Thread            By
    /// 0001a2c0  free       fffff8a005800000  0000000000001000  fffffa8002187060  nt!VfFreePoolNotification+0x4a
    /// 0001fe34  allocate   fffff8a005800000  00000000000fa000  fffffa8002be4060  myfault+0x11f6
    /// ```
    fn timeline(&self, out: &mut dyn fmt::Write, timeline: &[Moment]) -> fmt::Result {
        let wide = 2 * self.width.bytes();
        if !timeline.is_empty() {
            let (address, size, thread) = ("Address", "Size", "Thread");
            writeln!(out, "Sequence  Operation  {address:<wide$}  {size:<wide$}  {thread:<wide$}  By")?;
        }
        for Moment { sequence, operation, address, size, thread, by, gap } in timeline {
            if *gap {
                writeln!(out, "          (a record between these two is missing)")?;
            }
            let pointer = |value| self.width.pointer(value);
            let by = by.as_ref().map(|frame| match &frame.symbol {
                Some(symbol) => symbol.to_string(),
                None => pointer(frame.address.0),
            });
            let (address, size, thread) = (pointer(address.0), pointer(*size), pointer(thread.0));
            let by = by.unwrap_or_default();
            writeln!(out, "{sequence:08x}  {operation:<9}  {address}  {size}  {thread}  {by}")?;
        }
        Ok(())
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
                .map(|&(address, symbol)| Frame { address: Hex(address), symbol: Some(symbol.to_string().into()) })
                .collect(),
        }
    }

    fn log(address: u64, entries: Vec<Entry>) -> PoolLogAnswer {
        log_of(address, entries, Width::Eight)
    }

    fn log_of(address: u64, entries: Vec<Entry>, width: Width) -> PoolLogAnswer {
        let options = Options { address: Some(address), ..Options::default() };
        PoolLogAnswer {
            log_entries: 0x10000,
            parsed: 0x10000,
            entries,
            asked: asked(&options, width),
            address: Some(Hex(address)),
            width,
            ..PoolLogAnswer::default()
        }
    }

    fn text(log: &PoolLogAnswer) -> String {
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
        assert_eq!(text(&log(block, entries)), crate::tests::ARTICLES_THIRD_ANSWER);
    }

    #[test]
    fn a_log_without_a_match_says_so() {
        let text = text(&log(0xfffff8a005800000, Vec::new()));
        assert!(text.contains("No entry of the log is about a block that contains 0xfffff8a005800000.\nParsed entry"));
    }

    #[test]
    fn a_kernel_of_32_bits_has_short_addresses() {
        let log = log_of(0x982a8fe0, vec![entry(0x982a8fe0, 0x20, 0x9c158bc0, &[])], Width::Four);
        let text = text(&log);
        assert!(text.contains("Parsing 0x00010000 log entries, searching for address 0x982a8fe0."));
        assert!(text.contains("Pool block 982a8fe0, Size 00000020, Thread 9c158bc0"));
    }
}
