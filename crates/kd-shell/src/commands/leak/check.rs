//! `!leak check [name] [-file F]`

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use nt_leaks::{BlockReport, CheckReport, LookError, Mark, StackFrom, umdh};
use schemars::JsonSchema;
use serde::Serialize;

use super::arguments::{Arguments, Options, no_more};
use super::files::{Source, export, write_files};
use super::mark::{name, place};
use super::options::Sub;
use super::{DEFAULT_NAME, Held, modules, with_pool};
use crate::answer::{Reply, Text};
use crate::error::CommandError;
use crate::marks::Marks;
use crate::session::Context;
use crate::text::Width;
use crate::vertarget::system;

#[derive(JsonSchema, Serialize)]
pub(super) struct Checked {
    #[serde(flatten)]
    report: CheckReport,
    #[serde(skip)]
    options: Options,
    #[serde(skip)]
    width: Width,
}

/// The session's last mark.
fn newest(leaks: &Marks) -> String {
    let newest = leaks.iter().max_by_key(|(_, held)| held.mark.snapshot.times.interrupt);
    newest.map_or(DEFAULT_NAME, |(name, _)| name).to_owned()
}

pub(super) fn run(context: &mut Context<'_>, text: &str) -> Result<Reply, CommandError> {
    let arguments = Arguments::parse(Sub::Check, text)?;
    no_more(arguments.words.iter().skip(1).map(String::as_str))?;
    let width = context.kernel()?.width();
    let name = match arguments.words.first() {
        Some(word) => name(word)?,
        None => newest(&context.session.leaks),
    };
    let held = match &arguments.file {
        Some(file) => Held::new(load(file)?),
        None => match context.session.leaks.remove(&name) {
            Some(held) => held,
            None => {
                Held::new(place(&name).map_err(CommandError::Failed).and_then(|path| load(&path)).map_err(|error| {
                    CommandError::Failed(format!(
                        "there is no mark {name} in this session (!leak mark {name}), and {error}"
                    ))
                })?)
            }
        },
    };
    let mut held = held;
    let report = look(context, &mut held);
    let exported = report.as_ref().map_or(Ok(()), |report| export(&held.mark, Some(report), &arguments.report));
    context.session.leaks.insert(name, held);
    let report = report?;
    exported?;
    let windows = Some(system(context.kernel()?.version()));
    write_files(&Source::of_check(&report, windows), &report, &arguments.report)?;
    let notes = report.notes.clone();
    Ok(Reply::with_notes(Checked { report, options: arguments.report, width }, notes))
}

fn load(path: &Path) -> Result<Mark, CommandError> {
    Mark::load(path).map_err(|error| CommandError::Failed(error.to_string()))
}

/// Looks again, and compares.
pub(super) fn look(context: &mut Context<'_>, held: &mut Held) -> Result<CheckReport, CommandError> {
    let Held { mark, harvest } = held;
    let frozen = context.cost.frozen;
    let now = with_pool(context, &mark.modules, |kernel, resolver| {
        nt_leaks::look(kernel, mark, frozen, harvest.as_mut(), resolver).map_err(|error| match error {
            LookError::Different(different) => CommandError::Failed(different.to_string()),
            LookError::Pool(error) => error.into(),
        })
    })?;
    let compare = |context: &mut Context<'_>, mark: &Mark| {
        with_pool(context, &mark.modules, |_, resolver| Ok(nt_leaks::check(mark, &now, harvest.as_ref(), resolver)?))
    };
    let report = compare(context, mark)?;
    let outside = |report: &CheckReport| {
        report.stacks.iter().any(|group| group.frames.iter().any(|frame| frame.module.is_none()))
    };
    if !outside(&report) {
        return weigh(context, mark, report);
    }
    // A driver that was loaded since the mark.
    let mut notes = Vec::new();
    mark.modules = modules(context, &mut notes)?;
    let mut report = compare(context, mark)?;
    report.notes.extend(notes);
    weigh(context, mark, report)
}

/// Compares headers and contents of the blocks that stayed open.
fn weigh(context: &mut Context<'_>, mark: &Mark, mut report: CheckReport) -> Result<CheckReport, CommandError> {
    if report.summary.unknown > 0 {
        with_pool(context, &mark.modules, |kernel, _| Ok(nt_leaks::weigh(kernel, mark, &mut report)?))?;
    }
    Ok(report)
}

/// Kinds of blocks, and lines of addresses of one, that are listed without `-v`.
const SHOWN: usize = 20;

impl Text for Checked {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        write_report(&self.report, &self.options, self.width, out)
    }
}

pub(super) fn write_report(
    report: &CheckReport,
    options: &Options,
    width: Width,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    writeln!(out, "Mark {}, {:.1} s of the target's time later:\n", report.mark, report.elapsed_ms as f64 / 1000.0)?;
    for tag in &report.tags {
        writeln!(out, "{tag}")?;
    }
    let s = &report.summary;
    let sum = s.still + s.freed + s.reused + s.new + s.unknown;
    writeln!(
        out,
        "{sum} blocks: {} still, {} freed, {} reused, {} new, {} unknown\n",
        s.still, s.freed, s.reused, s.new, s.unknown
    )?;
    umdh(report, &options.skip, options.decimal, out)?;
    if options.verbose { write_blocks(report, width, out) } else { write_alike(report, width, out) }
}

/// Blocks that are alike, with their addresses.
fn kinds(report: &CheckReport) -> Vec<(&BlockReport, Vec<u64>)> {
    let mut kinds: Vec<(&BlockReport, Vec<u64>)> = Vec::new();
    let mut places = HashMap::new();
    for block in &report.blocks {
        let BlockReport { size, tag, verdict, ref evidence, stack, stack_from, no_stack, .. } = *block;
        let place = *places.entry((size, tag, verdict, evidence, stack, stack_from, no_stack)).or_insert(kinds.len());
        match kinds.get_mut(place) {
            Some((_, addresses)) => addresses.push(block.address),
            None => kinds.push((block, vec![block.address])),
        }
    }
    kinds
}

fn write_kind(block: &BlockReport, addresses: &[u64], out: &mut dyn fmt::Write) -> fmt::Result {
    writeln!(
        out,
        "{} {} of {:#x} bytes: {} by {}, {}",
        addresses.len(),
        block.tag,
        block.size,
        block.verdict.word(),
        evidence_words(block),
        stack_word(block)
    )
}

/// Blocks that are alike in one line with their addresses below.
fn write_alike(report: &CheckReport, width: Width, out: &mut dyn fmt::Write) -> fmt::Result {
    // As many as 80 columns have room for.
    const ADDRESSES: usize = 4;
    let kinds = kinds(report);
    let shown = kinds.len().min(SHOWN);
    for (block, addresses) in &kinds[..shown] {
        writeln!(out)?;
        write_kind(block, addresses, out)?;
        let lines = if addresses.len() > ADDRESSES * SHOWN { SHOWN } else { usize::MAX };
        for line in addresses.chunks(ADDRESSES).take(lines) {
            let line: Vec<String> = line.iter().map(|address| width.pointer(*address)).collect();
            writeln!(out, "  {}", line.join(" "))?;
        }
        if lines != usize::MAX {
            writeln!(out, "  ... and {} more; -v lists them", addresses.len() - ADDRESSES * SHOWN)?;
        }
    }
    match kinds.len() - shown {
        0 => Ok(()),
        more => writeln!(out, "\n... and {more} more kinds of blocks; -v lists all"),
    }
}

/// A line for each block, with its verdict and evidence.
pub(super) fn write_blocks(report: &CheckReport, width: Width, out: &mut dyn fmt::Write) -> fmt::Result {
    let address = width.pointer(0).len();
    writeln!(out, "\n{:<address$}  {:>10}  Tag   Verdict  {:<14}  Stack", "Address", "Size", "Evidence")?;
    for block in &report.blocks {
        let size = format!("{:#x}", block.size);
        writeln!(
            out,
            "{}  {size:>10}  {}  {:<7}  {:<14}  {}",
            width.pointer(block.address),
            block.tag,
            block.verdict.word(),
            evidence_words(block),
            stack_word(block)
        )?;
    }
    Ok(())
}

fn evidence_words(block: &BlockReport) -> String {
    let words: Vec<&str> = block.evidence.iter().map(|evidence| evidence.word()).collect();
    words.join(" ")
}

fn stack_word(block: &BlockReport) -> String {
    let why = block.no_stack.map_or("not in the log".into(), |why| format!("not in the log: {}", why.why()));
    match (block.stack, block.stack_from) {
        (Some(id), Some(StackFrom::Verifier)) => format!("{id} (the caller only; {why})"),
        (Some(id), _) => id.to_string(),
        (None, _) => why,
    }
}
