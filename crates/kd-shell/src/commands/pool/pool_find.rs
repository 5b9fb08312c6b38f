//! `!poolfind tag [pool type]`: the allocations of a tag, large and small.
//!
//! ```text
//! Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)
//!
//! *fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes
//! ```
//!
//! kd's default pool type is nonpaged, but it scans the large table for both, and so the article's paged blocks are
//! found without a type. A type that is given restricts the answer to it.
//!
//! kd then reads through the whole pool. Here the target looks for the tag's bytes itself, where it can and that is
//! cheaper. And the kernel's own count of the tag is asked first: when the large allocations are all that the tag has, as
//! in the article, small blocks are looked for only as far as the answer stays quick.

mod arguments;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use nt_memory::Fault;
use nt_pool::build::WINDOWS_8;
use nt_pool::find::{self, Findings, Quote, Searched, Silent, Skipped, What};
use nt_pool::small_blocks::BlockKind;
use nt_pool::{Lack, Missing, PoolKind};
use schemars::JsonSchema;
use serde::Serialize;

use self::arguments::{Arguments, key, parse};
use super::balance::Balance;
use super::cost::{Estimate, size, time};
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::StoppedSearch;
use crate::shell::Drive;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!poolfind"],
    usage: "!poolfind tag [pooltype] [options]",
    help: "the allocations with a tag",
    details: "A tag is four characters, may have wildcards (* ?), and keeps its blanks between quotes (-tag \"AB C\"); \
              0x6b61654c\nis a tag's value. Pool types: 0 nonpaged, 1 paged, 2 special, 4 session, or -nonpaged -paged \
              -special -session;\nwithout one all pools are searched, with -global all but the sessions' own. Small \
              blocks (less than a page) are\nsearched when the kernel counts more allocations of the tag than there are \
              large ones, or with -small; -large leaves\nthem out. -free shows freed blocks that still have the tag, \
              too; -process only small blocks whose header\nsays which process pays for them, with that process (what kd \
              makes of this option is not documented).\n-x runs a command for each block, with its address in @$extret.\n\
              Before much is read, one line says how much, and how long the target will stand still. The target \
              searches its pool\nitself where it can; -bulk reads all of it instead. No more than 256 MB (-limit) of \
              pool are read, and no longer than\n-budget (30s, 5m) allows; Ctrl+C stops a search with what it has \
              found. -resume goes on where the last search was\nstopped, -from at an address.",
    results: &[ResultShape::of::<PoolFind>("poolfind")],
    action: Action::Drive(run),
};

/// Bytes of pool that are read without a word before.
const QUIET: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    NonPaged,
    Paged,
    Session,
}

impl From<PoolKind> for Pool {
    fn from(kind: PoolKind) -> Self {
        match kind {
            kind if kind.is_session() => Pool::Session,
            kind if kind.is_paged() => Pool::Paged,
            _ => Pool::NonPaged,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Block {
    /// What the allocation call returned.
    address: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Hex>,
    size: u64,
    /// With the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u64>,
    tag: String,
    kind: &'static str,
    pool: Pool,
    state: &'static str,
    /// Of a session's own pool: in other sessions there is something else at this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<u32>,
    /// The process that it is charged to; only when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Hex>,
    #[serde(skip)]
    previous_size: u64,
    #[serde(skip)]
    special: bool,
    #[serde(skip)]
    pool_name: String,
}

impl Block {
    fn new(block: &find::Block, width: Width) -> Self {
        let hex = |address| Hex(width.address(address));
        let special = block.kind() == Some(BlockKind::Special);
        let (kind, small) = match &block.what {
            What::Large(_) => ("large", None),
            What::Small(small) if special => ("special", Some(small)),
            What::Small(small) => ("small", Some(small)),
        };
        Self {
            address: hex(block.address()),
            header: small.map(|small| hex(small.header)),
            size: block.size(),
            block_size: small.map(|small| small.block_size),
            tag: block.tag().to_string(),
            kind,
            pool: block.pool_kind().into(),
            state: if block.is_allocated() { "allocated" } else { "free" },
            session: block.session,
            process: block.process.map(hex),
            previous_size: small.map_or(0, |small| small.previous_size),
            special,
            pool_name: if special { "Special pool".into() } else { block.pool_kind().to_string() },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct PoolFind {
    tag: String,
    /// What was looked at: `large`, `small` or `all`.
    searched: &'static str,
    table: Table,
    /// Where the search of small blocks stopped; it can go on from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<Hex>,
    /// The session in whose pool it stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_session: Option<u32>,
    /// What a search of all small blocks was expected to cost before it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
    /// What reading everything was expected to cost, when the target searched itself instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    bulk: Option<Estimate>,
    blocks: Vec<Block>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    /// The rows were written already, each with its command's output.
    #[serde(skip)]
    written: bool,
    #[serde(skip)]
    ranges: Vec<(PoolKind, Range<u64>)>,
    #[serde(skip)]
    key: u32,
    #[serde(skip)]
    width: Width,
    #[serde(skip)]
    new_layout: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Table {
    start: Hex,
    end: Hex,
}

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let text = drive.arguments;
    let arguments = drive.with(|context| parse(text, context.session.stopped_search.as_ref()))?;
    // A search may take long: commands that make no sense are refused before it.
    if let Some(command) = &arguments.command {
        drive.with(|context| context.commands.check(command, &context.session.aliases))?;
    }
    let (quote, findings) = search(drive, &arguments)?;
    let (answer, notes) = answer(drive, &arguments, &quote, findings)?;
    let (answer, failure) = run_for_each(drive, answer, arguments.command.as_deref())?;
    Ok(Reply { failure, ..Reply::with_notes(answer, notes) })
}

/// What was said of the cost before the search.
struct Quoted {
    covers: u64,
    expected: Option<Estimate>,
    bulk: Option<Estimate>,
}

fn search(drive: &mut Drive<'_>, arguments: &Arguments) -> Result<(Quoted, Findings), CommandError> {
    let since = drive.spent();
    let (bounds, question) = (arguments.bounds, arguments.question.clone());
    let (quote, allowed) = drive.with(|context| {
        context.pool(|kernel| {
            let quote = Quote::new(kernel, question, since)?;
            let allowed = quote.allowed(kernel, bounds);
            Ok((quote, allowed))
        })
    })?;
    if let Some(expected) = quote.expected.filter(|_| quote.covers > QUIET) {
        drive.remark(&before(expected, quote.bulk, quote.covers, allowed));
        let time = match quote.bulk {
            None if allowed < quote.covers => expected.time.mul_f64(allowed as f64 / quote.covers as f64),
            _ => expected.time,
        };
        drive.with(|context| context.consent("Searching pool", time))?;
    }
    let quoted = Quoted {
        covers: quote.covers,
        expected: quote.expected.map(Estimate::from),
        bulk: quote.bulk.map(Estimate::from),
    };
    let findings = drive.with(|context| context.pool(|kernel| quote.run(kernel, bounds, &mut Silent)))?;
    Ok((quoted, findings))
}

/// The line before a search that takes its time.
fn before(expected: find::Estimate, bulk: Option<find::Estimate>, covers: u64, limit: u64) -> String {
    let (how, cheaper) = match bulk {
        Some(bulk) => (
            " by the target itself",
            format!("Reading it all (-bulk): about {} requests, {}. ", bulk.requests, time(bulk.time)),
        ),
        None => ("", String::new()),
    };
    let some = match bulk {
        None if limit < covers => format!(", of which {} are read now", size(limit)),
        _ => String::new(),
    };
    format!(
        "Searching {} of pool{how}: about {} requests, the target stands still for about {}{some}. {cheaper}Cheaper: \
         -large, a pool type, -limit MB or -budget 10s (then -resume); Ctrl+C stops it.\n",
        size(covers),
        expected.requests,
        time(expected.time)
    )
}

/// What was found, as it is shown; and where it was stopped is kept.
fn answer(
    drive: &mut Drive<'_>,
    arguments: &Arguments,
    quoted: &Quoted,
    findings: Findings,
) -> Result<(PoolFind, nt_pool::Notes), CommandError> {
    let question = &arguments.question;
    let (width, new_layout) = drive
        .with(|context| Ok::<_, CommandError>((context.width(), context.kernel()?.version().minor >= WINDOWS_8)))?;
    let Findings { table, ranges, blocks, searched, stopped, skipped, mut notes, checks } = findings;
    if let Some(place) = stopped {
        let at = match place.session {
            Some(session) => format!("in session {session}"),
            None => format!("-from {}", width.pointer(place.address)),
        };
        let hint = format!(
            "the search was to cover {} of pool; !poolfind -resume goes on where it stopped ({at}), -limit and -budget \
             set how far it goes",
            size(quoted.covers)
        );
        notes.missing(Missing::because(Lack::Stopped, hint).at(place.address));
    }
    for skipped in skipped {
        drive.remark(match skipped {
            Skipped::Sessions => "Sessions' own pools were not searched (-session does).\n",
            Skipped::Counted if blocks.is_empty() => {
                "The kernel counts no allocation of this tag: small blocks were not searched (-small does).\n"
            }
            Skipped::Counted => {
                "The kernel counts no more of this tag than these: small blocks were not searched (-small does).\n"
            }
        });
    }
    let kept = stopped.map(|place| StoppedSearch {
        question: question.clone(),
        bounds: arguments.bounds,
        command: arguments.command.clone(),
        place,
    });
    drive.with(|context| context.session.stopped_search = kept);
    let name = question.tag.to_string();
    let hex = |address| Hex(width.address(address));
    let answer = PoolFind {
        key: key(&name),
        tag: name,
        searched: match searched {
            Searched::Large => "large",
            Searched::Small => "small",
            Searched::All => "all",
        },
        table: Table { start: hex(table.start), end: hex(table.end) },
        stopped: stopped.map(|place| hex(place.address)),
        stopped_session: stopped.and_then(|place| place.session),
        estimate: quoted.expected,
        bulk: quoted.bulk,
        blocks: blocks.iter().map(|block| Block::new(block, width)).collect(),
        checks: checks.iter().map(Balance::from).collect(),
        written: false,
        ranges,
        width,
        new_layout,
    };
    Ok((answer, notes))
}

/// `-x`: each row, and what its command says.
fn run_for_each(
    drive: &mut Drive<'_>,
    mut answer: PoolFind,
    command: Option<&str>,
) -> Result<(PoolFind, Option<CommandError>), CommandError> {
    let Some(command) = command else { return Ok((answer, None)) };
    let mut failed = 0;
    for block in &answer.blocks {
        let mut row = String::new();
        // Writing to a text does not fail.
        let _ = answer.row(block, &mut row);
        drive.say(&row);
        drive.with(|context| context.session.extension_result = block.address.0);
        let outcome = drive.run(command);
        failed += usize::from(outcome.failed);
        if drive.was_cancelled() {
            return Err(Fault::Cancelled.into());
        }
    }
    answer.written = true;
    let failure = (failed > 0).then(|| CommandError::Failed(format!("the command failed for {failed} blocks")));
    Ok((answer, failure))
}

impl PoolFind {
    fn row(&self, block: &Block, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| self.width.pointer(address.0);
        let Block { tag, size, state, pool_name, .. } = block;
        let address = pointer(block.address);
        let free = *state == "free";
        let billed = block.process.map(|process| format!("  Process: {}", pointer(process))).unwrap_or_default();
        match (self.new_layout, block.header) {
            (false, None) => {
                let freed = if free { " (Free)" } else { "" };
                writeln!(out, "*{address} :large page allocation, Tag  is {tag}, size  is {size:#x} bytes{freed}")
            }
            (false, Some(header)) if block.special => {
                let pool = if block.pool == Pool::Paged { "Paged" } else { "NonPaged" };
                writeln!(out, "*{} size: {size:4x} data: {address} ({pool}) *{tag}", pointer(header))
            }
            (false, Some(header)) => {
                let state = if free { "(Free)     " } else { "(Allocated)" };
                let block_size = block.block_size.unwrap_or(*size);
                let previous = block.previous_size;
                writeln!(
                    out,
                    "{} size: {block_size:4x} previous size: {previous:4x}  {state} {tag}{billed}",
                    pointer(header)
                )
            }
            (true, _) => {
                let freed = if free { " (Free)" } else { "" };
                let size = if *size == 0 { "0".into() } else { format!("{size:#x}") };
                writeln!(out, "{address} : tag {tag}, size {size:>9}, {pool_name}{freed}{billed}")
            }
        }
    }
}

impl Text for PoolFind {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let pointer = |address: Hex| self.width.pointer(address.0);
        let (tag, start, end) = (&self.tag, pointer(self.table.start), pointer(self.table.end));
        let scanning = "Scanning large pool allocation table for";
        if self.searched != "small" {
            match self.new_layout {
                false => writeln!(out, "\n{scanning} Tag: {tag} ({start} : {end})\n")?,
                true => writeln!(out, "\n{scanning} tag 0x{:08x} ({tag}) ({start} : {end})\n", self.key)?,
            }
        }
        let (large, small): (Vec<&Block>, Vec<&Block>) = self.blocks.iter().partition(|block| block.header.is_none());
        for block in large.iter().filter(|_| !self.written) {
            self.row(block, out)?;
        }
        let paged = |block: &&&Block| block.pool == Pool::Paged;
        for (pool, range) in &self.ranges {
            let (start, end) = (self.width.pointer(range.start), self.width.pointer(range.end));
            match (self.new_layout, pool.is_paged()) {
                (false, true) => writeln!(out, "\nSearching Paged pool ({start} : {end}) for Tag: {tag}\n")?,
                (false, false) => writeln!(out, "\nSearching NonPaged pool ({start} : {end}) for Tag: {tag}\n")?,
                (true, is_paged) => {
                    let name = if is_paged { "paged" } else { "nonpaged" };
                    writeln!(out, "\nSearching {name} pool ({start} : {end}) for tag 0x{:08x} ({tag})\n", self.key)?;
                }
            }
            let of_pool = |block: &&&Block| block.pool != Pool::Session && paged(block) == pool.is_paged();
            for block in small.iter().filter(of_pool).filter(|_| !self.written) {
                self.row(block, out)?;
            }
        }
        let of_sessions = small.iter().filter(|block| block.pool == Pool::Session && !self.written);
        let mut last = None;
        for block in of_sessions {
            if last != Some(block.session) {
                last = Some(block.session);
                let number = block.session.map(|id| format!(" of session {id}")).unwrap_or_default();
                match self.new_layout {
                    false => writeln!(out, "\nSearching Paged session pool{number} for Tag: {tag}\n")?,
                    true => {
                        writeln!(out, "\nSearching paged session pool{number} for tag 0x{:08x} ({tag})\n", self.key)?
                    }
                }
            }
            self.row(block, out)?;
        }
        if let Some(at) = self.stopped {
            writeln!(out, "\n...terminating - searched pool to {}", pointer(at))?;
        }
        match (self.blocks.is_empty(), self.searched) {
            (true, "large") => writeln!(out, "No large allocation has the tag {tag}."),
            (true, _) => writeln!(out, "No allocation that was searched has the tag {tag}."),
            (false, _) => Ok(()),
        }
    }
}
