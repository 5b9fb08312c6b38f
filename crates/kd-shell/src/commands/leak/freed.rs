//! `!leak freed address`: what was done with a block, newest first, with stacks.

use std::fmt;

use nt_pool::big_pages::{self, BigPage};
use nt_pool::pool_log::{self, Trace};
use schemars::JsonSchema;
use serde::Serialize;

use super::{INFO, modules, with_pool};
use crate::answer::{Reply, Text};
use crate::command::usage;
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::kept_log as kept;
use crate::session::Context;
use crate::text::{Hex, Width};

#[derive(JsonSchema, Serialize)]
pub(super) struct Freed {
    address: Hex,
    /// What the table of large allocations says: `"allocated"`, `"free"`, or `null` where it has no entry.
    state: Option<&'static str>,
    tag: Option<String>,
    size: Option<u64>,
    history: Vec<Entry>,
    log_entries: u32,
    #[serde(skip)]
    width: Width,
}

#[derive(JsonSchema, Serialize)]
struct Entry {
    operation: &'static str,
    sequence: u32,
    address: Hex,
    size: u64,
    thread: Hex,
    frames: Vec<Frame>,
}

#[derive(JsonSchema, Serialize)]
struct Frame {
    address: Hex,
    symbol: Option<String>,
}

pub(super) fn run(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    if text.is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let width = context.kernel()?.width();
    let address = width.address(evaluate_all(text, &mut context.scope())?);
    if !width.is_kernel(address) {
        return Err(usage(&INFO, format!("{address:#x} is no address of the kernel's")));
    }
    let mut notes = Vec::new();
    let found = match kept::position(context)? {
        Some(position) => kept::of_address(context, position, address)?,
        None => None,
    };
    let log_entries = found.as_ref().map_or(0, |found| found.length);
    let mut traces: Vec<Trace> = Vec::new();
    match found {
        None => notes.push("the kernel keeps no pool log (see !leak setup)".into()),
        Some(found) => {
            notes.extend(found.notes.lines());
            traces.extend_from_slice(&found.traces);
        }
    }
    // What earlier stops have seen and the log has lost.
    for harvest in context.session.leaks.values().filter_map(|held| held.harvest.as_ref()) {
        for record in harvest.at(address) {
            if !traces.iter().any(|trace| trace.sequence == record.sequence) {
                if !record.whole {
                    notes.push(format!(
                        "of record {:#x} only the {} innermost frames were read before the log lost it",
                        record.sequence,
                        record.frames.len()
                    ));
                }
                traces.push(Trace {
                    sequence: record.sequence,
                    address: record.address,
                    size: record.size,
                    thread: record.thread,
                    frames: record.frames.clone(),
                });
            }
        }
    }
    let newest =
        traces.iter().map(|trace| trace.sequence).reduce(|a, b| if b.wrapping_sub(a) < 1 << 31 { b } else { a });
    let newest = newest.unwrap_or_default();
    traces.sort_by_key(|trace| newest.wrapping_sub(trace.sequence));
    let page = page(context, address, traces.first())?;
    let modules = if traces.is_empty() { Default::default() } else { modules(context, &mut notes)? };
    let history = with_pool(context, &modules, |_, resolver| {
        let mut history = Vec::new();
        for trace in &traces {
            let frames = resolver.stack(&trace.frames)?;
            let symbol = |address| frames.iter().find(|frame| frame.address == address).map(ToString::to_string);
            let frame = |frame: &nt_leaks::Frame| Frame {
                address: Hex(frame.address),
                symbol: frame.module.as_ref().map(|_| frame.to_string()),
            };
            history.push(Entry {
                operation: pool_log::operation(trace, &symbol).word(),
                sequence: trace.sequence,
                address: Hex(trace.address),
                size: trace.size,
                thread: Hex(trace.thread),
                frames: frames.iter().map(frame).collect(),
            });
        }
        Ok(history)
    })?;
    let answer = Freed {
        address: Hex(address),
        state: page.as_ref().map(|page| if page.free { "free" } else { "allocated" }),
        tag: page.as_ref().map(|page| page.tag.to_string()),
        size: page.as_ref().map(|page| page.size),
        history,
        log_entries,
        width,
    };
    Ok(Reply::with_notes(answer, notes))
}

/// The table's entry of the block that the address lies in. The newest record of it says where that starts.
fn page(context: &mut Context<'_>, address: u64, newest: Option<&Trace>) -> Result<Option<BigPage>, CommandError> {
    context.pool(|kernel| {
        let start = newest.map_or(address, |trace| trace.address) & !0xfff;
        let page = big_pages::lookup(kernel, start)?.filter(|page| page.contains(address) || page.address == address);
        match page {
            None if newest.is_none() => big_pages::entry_containing(kernel, address),
            page => Ok(page),
        }
    })
}

impl Text for Freed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |value: Hex| self.width.pointer(value.0);
        write!(out, "Pool block {}", pointer(self.address))?;
        match (self.state, &self.tag, self.size) {
            (Some(state), Some(tag), Some(size)) => writeln!(out, ": {state}, tag {tag}, size {size:#x}")?,
            _ => writeln!(out, ": no large allocation starts there")?,
        }
        for entry in &self.history {
            let what = match entry.operation {
                "allocate" => "Allocated",
                "free" => "Freed",
                _ => "Allocated or freed",
            };
            writeln!(
                out,
                "\n{what}: block {}, size {:#x}, thread {}, record {:#x}",
                pointer(entry.address),
                entry.size,
                pointer(entry.thread),
                entry.sequence
            )?;
            for frame in &entry.frames {
                writeln!(out, "    {} {}", pointer(frame.address), frame.symbol.as_deref().unwrap_or_default())?;
            }
        }
        if self.history.is_empty() {
            writeln!(
                out,
                "\nNone of the {:#x} entries of the log is about it: nothing verified allocated or freed it, or the log \
                 has come round since.",
                self.log_entries
            )?;
        }
        Ok(())
    }
}
