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

use std::cell::Cell;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use nt_memory::{Fault, Memory, Search};
use nt_pool::big_pages::{self, BigPage, BigPages};
use nt_pool::sessions::{self, Session, Sessions};
use nt_pool::small_blocks::{self, BlockKind, BlockState, Blocks, Cost, Kinds, Limits, Plan, SmallBlock};
use nt_pool::{Lack, Missing, Notes, PoolError, PoolKind, Tag, TagPattern, tags};
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::{duration, pattern, unclosed, unquoted};
use crate::session::Context;
use crate::session::SearchPlace;
use crate::shell::Drive;
use crate::text::NEW_LAYOUT;
use crate::text::{Hex, Width, words};

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
    action: Action::Drive(run),
};

/// Megabytes of pool that are read when nobody says otherwise.
pub(in crate::commands) const LIMIT: u64 = 256;

/// Bytes of pool that are read without a word before.
const QUIET: u64 = 1 << 20;

/// What a question costs in all that the kernel's counters have answered already: small blocks are looked for as long as
/// it stays within.
const QUICK: Cost = Cost { requests: 60, bytes: 16 << 10 };

/// Requests without which it is not even begun to ask where small blocks can be: no pool is so small.
const LEAST_PLAN: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    NonPaged,
    Paged,
    Session,
    /// Only as what is asked for: a block of special pool is nonpaged or paged.
    Special,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    pool_name: String,
}

impl Block {
    fn small(block: &SmallBlock, width: Width) -> Self {
        let special = block.kind == BlockKind::Special;
        Self {
            address: Hex(width.address(block.address)),
            header: Some(Hex(width.address(block.header))),
            size: block.size,
            block_size: Some(block.block_size),
            tag: block.tag.to_string(),
            kind: if special { "special" } else { "small" },
            pool: block.pool.into(),
            // A block that waits in a lookaside list is free for everyone but the pool.
            state: if block.state == BlockState::Allocated { "allocated" } else { "free" },
            session: None,
            process: None,
            previous_size: block.previous_size,
            pool_name: if special { "Special pool".into() } else { block.pool.to_string() },
        }
    }

    fn large(block: &BigPage, width: Width) -> Self {
        Self {
            address: Hex(width.address(block.address)),
            header: None,
            size: block.size,
            block_size: None,
            tag: block.tag.to_string(),
            kind: "large",
            pool: block.kind.into(),
            state: if block.free { "free" } else { "allocated" },
            session: None,
            process: None,
            previous_size: 0,
            pool_name: block.kind.to_string(),
        }
    }
}

impl Block {
    fn of_session(self, id: u32) -> Self {
        Self { session: Some(id), ..self }
    }
}

/// What a walk costs, from what was measured on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(in crate::commands) struct Estimate {
    pub(in crate::commands) requests: u64,
    bytes: u64,
    pub(in crate::commands) frozen_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Table {
    start: Hex,
    end: Hex,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    tag: TagPattern,
    pool: Option<Pool>,
    /// Not the sessions' own pools.
    global: bool,
    small: bool,
    large: bool,
    free: bool,
    process: bool,
    /// Without the target's own search.
    bulk: bool,
    command: Option<String>,
    /// Bytes.
    limit: u64,
    budget: Option<Duration>,
    from: u64,
}

fn arguments(text: &str) -> Result<Question, CommandError> {
    let mut tag = None;
    let mut question = Question {
        tag: nt_pool::Tag(*b"    ").into(),
        pool: None,
        global: false,
        small: false,
        large: false,
        free: false,
        process: false,
        bulk: false,
        command: None,
        limit: LIMIT << 20,
        budget: None,
        from: 0,
    };
    if let Some(mark) = unclosed(text) {
        return Err(usage(&INFO, format!("the quote {mark} has no end")));
    }
    let mut words = words(text);
    while let Some(option) = words.next() {
        let mut number = |what: &str| {
            let value = words.next().and_then(plain_number);
            value.ok_or_else(|| usage(&INFO, format!("{option} needs {what}")))
        };
        match option {
            "-tag" => {}
            "-global" => question.global = true,
            "-small" => question.small = true,
            "-large" => question.large = true,
            "-free" => question.free = true,
            "-process" => question.process = true,
            "-bulk" => question.bulk = true,
            "-limit" => question.limit = number("a number of megabytes")?.saturating_mul(1 << 20),
            "-from" => question.from = number("an address")?,
            "-budget" => {
                let time = words.next().and_then(duration);
                question.budget = Some(time.ok_or_else(|| usage(&INFO, "-budget needs a time (500ms, 30s, 5m)"))?);
            }
            "-x" => {
                let command = words.next().map(|word| unquoted(word).trim());
                let command = command.filter(|command| !command.is_empty());
                question.command = Some(command.ok_or_else(|| usage(&INFO, "-x needs a command"))?.into());
            }
            "-nonpaged" => question.pool = Some(Pool::NonPaged),
            "-paged" => question.pool = Some(Pool::Paged),
            "-special" => question.pool = Some(Pool::Special),
            "-session" => question.pool = Some(Pool::Session),
            word if tag.is_none() && !word.starts_with('-') => {
                tag = Some(pattern(word).map_err(|error| usage(&INFO, error))?);
            }
            word if word.starts_with('-') => return Err(usage(&INFO, format!("unknown option '{word}'"))),
            word => {
                question.pool = Some(match plain_number(word) {
                    Some(0) => Pool::NonPaged,
                    Some(1) => Pool::Paged,
                    Some(2) => Pool::Special,
                    Some(4) => Pool::Session,
                    _ => return Err(usage(&INFO, format!("'{word}' is no pool type; they are 0, 1, 2 and 4"))),
                });
            }
        }
    }
    if question.process && question.large {
        return Err(usage(&INFO, "-process is about small blocks: large ones have no header that names a process"));
    }
    question.small |= question.process;
    if question.small && question.large {
        (question.small, question.large) = (false, false);
    }
    question.tag = tag.ok_or_else(|| usage(&INFO, "no tag"))?;
    Ok(question)
}

impl Question {
    fn kinds(&self) -> Kinds {
        match self.pool {
            None => Kinds::ALL,
            Some(Pool::NonPaged) => Kinds { nonpaged: true, ..Kinds::NONE },
            Some(Pool::Paged) => Kinds { paged: true, ..Kinds::NONE },
            Some(Pool::Special) => Kinds { special: true, ..Kinds::NONE },
            Some(Pool::Session) => Kinds::NONE,
        }
    }

    fn sessions(&self) -> bool {
        match self.pool {
            None => !self.global,
            Some(pool) => pool == Pool::Session,
        }
    }

    /// Whether a block is of the pool that was asked for.
    fn shows(&self, block: &Block) -> bool {
        let of_pool = match self.pool {
            None => true,
            Some(Pool::Special) => block.kind == "special",
            Some(Pool::Session) => block.pool == Pool::Session,
            Some(pool) => block.pool == pool && block.kind != "special",
        };
        of_pool && (self.free || block.state == "allocated") && (!self.process || block.process.is_some())
    }
}

/// What a search came upon, piece by piece: what cannot be read is a note, and the rest goes on.
#[derive(Default)]
struct Found {
    /// Where an earlier search was stopped: what it has found is not told again.
    resumed: Option<SearchPlace>,
    table: Range<u64>,
    large: Vec<BigPage>,
    /// The whole table, if it was read.
    whole: Option<Vec<BigPage>>,
    /// How many allocations of the tag the kernel counts, nonpaged and paged.
    counted: Option<[i64; 2]>,
    /// Of these, the pools asked for have no more than the large allocations that were found.
    all: bool,
    /// The sessions, and the large allocations of each, by its number.
    sessions: Vec<Session>,
    session_large: Vec<(u32, BigPage)>,
    notes: Notes,
    /// Why a piece has no answer at all.
    failures: Vec<PoolError>,
    answered: bool,
    stopped: Option<SearchPlace>,
}

impl Found {
    /// Keeps a failed piece from failing the others; a source that is gone stays an error.
    fn take<T>(&mut self, what: &str, result: Result<T, PoolError>) -> Result<Option<T>, PoolError> {
        let taken = self.look(what, result)?;
        self.answered |= taken.is_some();
        Ok(taken)
    }

    /// The same for what helps with an answer and is none itself.
    fn look<T>(&mut self, what: &str, result: Result<T, PoolError>) -> Result<Option<T>, PoolError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let error = error.local()?;
                self.notes.missing(format!("{what}: {error}"));
                self.failures.push(error);
                Ok(None)
            }
        }
    }

    /// As [`Found::look`]; a piece that the user stops is where the search is stopped.
    fn piece<T>(
        &mut self,
        what: &str,
        place: SearchPlace,
        result: Result<T, PoolError>,
    ) -> Result<Option<T>, PoolError> {
        match self.look(what, result) {
            Err(PoolError::Fault(Fault::Cancelled)) => {
                self.notes.missing(Missing::because(Lack::Stopped, "interrupted"));
                self.stopped = Some(place);
                Ok(None)
            }
            taken => taken,
        }
    }

    /// The large allocations of the machine as a whole.
    fn large(&mut self, kernel: &nt_pool::Kernel<'_>, question: &Question) -> Result<(), PoolError> {
        const WHAT: &str = "large allocations are missing";
        let tag = &question.tag;
        let wants =
            !question.small && self.resumed.is_none() && !matches!(question.pool, Some(Pool::Special | Pool::Session));
        if !wants {
            let table = self.look("the table of large allocations is not known", big_pages::table(kernel))?;
            self.table = table.unwrap_or(0..0);
            return Ok(());
        }
        let read = match tag.exact() {
            Some(tag) => big_pages::find(kernel, tag),
            None => big_pages::read(kernel, &|_| true),
        };
        let Some(BigPages { table, blocks, notes }) = self.take(WHAT, read)? else { return Ok(()) };
        self.table = table;
        self.notes.extend(notes);
        if tag.exact().is_none() {
            self.whole = Some(blocks.clone());
        }
        self.large = blocks.into_iter().filter(|block| tag.matches(block.tag)).collect();
        self.counted = if question.free { None } else { counted(kernel, question)? };
        self.all = self.counted.is_some_and(|counted| {
            let kinds = question.kinds();
            let all = |paged: bool| counted[usize::from(paged)] == self.live(paged);
            (!kinds.nonpaged || all(false)) && (!kinds.paged || all(true))
        });
        Ok(())
    }

    /// Large allocations in use.
    fn live(&self, paged: bool) -> i64 {
        let live = self.large.iter().filter(|block| !block.free && block.kind.is_paged() == paged);
        i64::try_from(live.count()).unwrap_or(i64::MAX)
    }

    /// How many small blocks the tag has, as far as the kernel's count is known.
    fn expected(&self) -> u64 {
        let small = |counted: [i64; 2]| counted[0] - self.live(false) + counted[1] - self.live(true);
        self.counted.map_or(0, |counted| u64::try_from(small(counted)).unwrap_or(0))
    }

    /// What lies in large allocations has no headers.
    fn whole(&mut self, kernel: &nt_pool::Kernel<'_>) -> Result<&[BigPage], PoolError> {
        if self.whole.is_none() {
            let read = big_pages::read(kernel, &|_| true);
            let pages = self.look("what belongs to large allocations is not known", read)?;
            self.whole = Some(pages.map_or(Vec::new(), |pages| {
                self.notes.extend(pages.notes);
                pages.blocks
            }));
        }
        Ok(self.whole.as_deref().unwrap_or_default())
    }

    /// The small blocks of the machine as a whole, with the target's own search for one tag or by reading everything.
    fn small(
        &mut self,
        kernel: &nt_pool::Kernel<'_>,
        plan: &Plan,
        question: &Question,
        search: Option<(Tag, u64)>,
        limits: Limits,
    ) -> Result<Option<Blocks>, PoolError> {
        let blocks = match search {
            Some((tag, reply)) => plan.search(kernel, tag, reply, limits),
            None => match self.whole(kernel) {
                Ok(whole) => plan.find(kernel, &|tag| question.tag.matches(tag), whole, limits),
                Err(error) => Err(error),
            },
        };
        let start = SearchPlace { session: None, address: limits.from };
        let blocks = self.piece("small blocks are missing", start, blocks)?;
        self.answered |= blocks.is_some();
        if let Some(blocks) = &blocks {
            self.stopped = blocks.stopped.map(|address| SearchPlace { session: None, address });
            self.notes.extend(blocks.notes.iter().cloned());
        }
        Ok(blocks)
    }

    /// The sessions' own pools; what was read before counts against the limits. A small block has its session's place in
    /// the list.
    fn sessions(
        &mut self,
        kernel: &nt_pool::Kernel<'_>,
        question: &Question,
        limits: Limits,
    ) -> Result<Vec<(usize, SmallBlock)>, PoolError> {
        let mut small = Vec::new();
        let resumed = self.resumed.filter(|place| place.session.is_some());
        let start = resumed.unwrap_or(SearchPlace { session: Some(0), address: 0 });
        let sessions = self.piece("sessions' pools are missing", start, sessions::all(kernel))?;
        let Some(Sessions { sessions, notes }) = sessions else { return Ok(small) };
        self.notes.extend(notes);
        // Where nothing else was asked for, no session is an answer.
        self.answered |= question.pool == Some(Pool::Session);
        let wanted = |tag| question.tag.matches(tag);
        let (mut read, mut walked) = (0, false);
        self.sessions = sessions;
        for index in 0..self.sessions.len() {
            let session = self.sessions[index].clone();
            let resumed = resumed.filter(|place| place.session >= Some(session.id));
            let from = match resumed {
                Some(place) if place.session == Some(session.id) => place.address,
                Some(_) => continue,
                None => 0,
            };
            let place = SearchPlace { session: Some(session.id), address: from };
            let left = Limits {
                bytes: limits.bytes.saturating_sub(read),
                blocks: limits.blocks.saturating_sub(small.len()),
                from,
            };
            // However small the limit is, a walk that is taken up again and again comes to its end.
            if !question.large && (left.bytes == 0 || left.blocks == 0) && (walked || self.resumed.is_none()) {
                self.notes.missing(format!("a limit stopped the search before session {}", session.id));
                self.stopped = Some(place);
                break;
            }
            let what = format!("session {}", session.id);
            let pages = self.piece(&what, place, sessions::big_pages(kernel, &session, &|_| true))?;
            self.answered |= pages.is_some();
            if self.stopped.is_some() {
                break;
            }
            let pages = pages.map_or(Vec::new(), |pages| {
                self.notes.extend(pages.notes);
                pages.blocks
            });
            let listed = self.session_large.len();
            // Those of a session in which an earlier search was stopped were told then.
            if !question.small && from == 0 {
                let pages = pages.iter().filter(|page| wanted(page.tag)).cloned();
                self.session_large.extend(pages.map(|page| (session.id, page)));
            }
            if question.large {
                continue;
            }
            walked = true;
            let found = sessions::small_blocks(kernel, &session, &wanted, &pages, left);
            let found = self.piece(&format!("small blocks of {what}"), place, found)?;
            if let Some(found) = found {
                self.answered = true;
                read += found.read;
                self.notes.extend(found.notes);
                small.extend(found.blocks.into_iter().map(|block| (index, block)));
                self.stopped = found.stopped.map(|address| SearchPlace { session: Some(session.id), address });
            }
            if let Some(stopped) = self.stopped {
                if stopped.address == 0 {
                    self.session_large.truncate(listed);
                }
                break;
            }
        }
        Ok(small)
    }
}

/// How many allocations of the tag the kernel counts, nonpaged and paged, if its counters can be read.
fn counted(kernel: &nt_pool::Kernel<'_>, question: &Question) -> Result<Option<[i64; 2]>, PoolError> {
    let counted = match question.tag.exact() {
        Some(tag) => tags::read_one(kernel, tag),
        None => tags::read(kernel, &|tag| question.tag.matches(tag)),
    };
    let counted = match counted {
        Ok(counted) if counted.notes.is_complete() && !counted.tags.is_empty() => counted,
        Ok(_) => return Ok(None),
        Err(error) => {
            error.local()?;
            return Ok(None);
        }
    };
    let sum = |paged: bool| {
        let usage = counted.tags.iter().map(|tag| if paged { tag.paged } else { tag.nonpaged });
        usage.map(|usage| usage.diff).fold(0, i64::wrapping_add)
    };
    Ok(Some([sum(false), sum(true)]))
}

/// Memory that is read no further than a cost allows.
struct Frugal<'m> {
    memory: &'m dyn Memory,
    reply: u64,
    left: Cell<Cost>,
    exhausted: Cell<bool>,
}

impl<'m> Frugal<'m> {
    fn new(memory: &'m dyn Memory, reply: u64, left: Cost) -> Self {
        Frugal { memory, reply: reply.max(1), left: Cell::new(left), exhausted: Cell::new(false) }
    }

    fn charge(&self, bytes: u64) -> Result<(), Fault> {
        let left = self.left.get();
        let requests = left.requests.checked_sub(bytes.div_ceil(self.reply).max(1));
        match requests.zip(left.bytes.checked_sub(bytes)) {
            Some((requests, bytes)) => {
                self.left.set(Cost { requests, bytes });
                Ok(())
            }
            None => {
                self.exhausted.set(true);
                Err(Fault::Cancelled)
            }
        }
    }
}

impl Memory for Frugal<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.charge(buffer.len() as u64)?;
        self.memory.read(address, buffer)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        self.charge(0)?;
        self.memory.search(address, length, pattern)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.charge(buffer.len() as u64)?;
        self.memory.read_physical(address, buffer)
    }
}

/// Where small blocks can be, if that and looking there costs no more than `left`.
fn quick_plan(
    kernel: &nt_pool::Kernel<'_>,
    question: &Question,
    reply: u64,
    left: Cost,
) -> Result<Option<Plan>, PoolError> {
    if left.requests < LEAST_PLAN {
        return Ok(None);
    }
    let frugal = Frugal::new(kernel.memory, reply, left);
    let plan = Plan::read(&nt_pool::Kernel { memory: &frugal, ..*kernel }, question.kinds());
    let plan = match plan {
        Ok(plan) => plan,
        Err(_) if frugal.exhausted.get() => return Ok(None),
        Err(error) => {
            error.local()?;
            return Ok(None);
        }
    };
    let left = frugal.left.get();
    let fits = |cost: Cost| cost.requests <= left.requests && cost.bytes <= left.bytes;
    // To read everything the table of large allocations would be read in whole.
    let bulk = plan.cost(question.from, reply);
    let searched = question.tag.exact().is_some() && !question.bulk;
    let quick = bulk == Cost::default()
        || searched && fits(plan.search_cost(question.from, reply, 0)) && small_blocks::is_searchable(kernel)?;
    Ok(quick.then_some(plan))
}

/// What a search needs of whoever asks for it.
trait Host {
    fn arguments(&self) -> &str;
    fn with<T>(&mut self, f: impl FnOnce(&mut Context<'_>) -> T) -> T;
    /// Bytes of memory that one reply of the target carries.
    fn reply_data(&self) -> u64;
    fn spent(&self) -> Cost;
    fn remark(&mut self, line: &str);
}

impl Host for Drive<'_> {
    fn arguments(&self) -> &str {
        self.arguments
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Context<'_>) -> T) -> T {
        Drive::with(self, f)
    }

    fn reply_data(&self) -> u64 {
        Drive::reply_data(self) as u64
    }

    fn spent(&self) -> Cost {
        let spent = self.cost();
        Cost { requests: spent.requests, bytes: spent.bytes_read }
    }

    fn remark(&mut self, line: &str) {
        Drive::remark(self, line);
    }
}

/// The answer, and what is to be known about it.
struct Searched {
    answer: PoolFind,
    notes: Notes,
    question: Question,
}

fn search(drive: &mut impl Host) -> Result<Searched, CommandError> {
    let text = drive.arguments().trim().to_owned();
    let (text, resumed) = match text.strip_prefix("-resume") {
        Some("") => {
            let stopped = drive.with(|context| context.session.stopped_search.clone());
            let stopped = stopped.ok_or_else(|| CommandError::Failed("no search was stopped".into()))?;
            (stopped.0, Some(stopped.1))
        }
        _ => (text, None),
    };
    let mut question = arguments(&text)?;
    let in_session = resumed.is_some_and(|place| place.session.is_some());
    question.from = resumed.filter(|_| !in_session).map_or(question.from, |place| place.address);
    drive.with(|context| context.kernel().map(drop))?;
    let (before, start) = (drive.spent(), Instant::now());
    let reply = drive.reply_data().max(1);
    let mut found = Found { resumed, ..Found::default() };
    drive.with(|context| context.pool(|kernel| found.large(kernel, &question)))?;
    let wants_small = !question.large && question.kinds() != Kinds::NONE && !in_session;
    let counted = wants_small && found.all && !question.small && question.pool != Some(Pool::Special);
    let left = |spent: Cost| Cost {
        requests: QUICK.requests.saturating_sub(spent.requests.saturating_sub(before.requests)),
        bytes: QUICK.bytes.saturating_sub(spent.bytes.saturating_sub(before.bytes)),
    };
    let plan = match (wants_small, counted) {
        (false, _) => None,
        (true, true) => {
            let left = left(drive.spent());
            drive.with(|context| context.pool(|kernel| quick_plan(kernel, &question, reply, left)))?
        }
        (true, false) => {
            let start = SearchPlace { session: None, address: question.from };
            drive.with(|context| {
                context
                    .pool(|kernel| found.piece("small blocks are missing", start, Plan::read(kernel, question.kinds())))
            })?
        }
    };
    let skipped = counted && plan.is_none();
    let (mut small, mut ranges) = (Vec::new(), Vec::new());
    let (mut estimate, mut in_bulk, mut covers) = (None, None, 0);
    let (mut searched_small, mut in_sessions) = (false, Vec::new());
    let mut limits = Limits { bytes: question.limit, from: question.from, ..Limits::default() };
    let requests = |spent: Cost| spent.requests.saturating_sub(before.requests).max(1);
    if let Some(budget) = question.budget {
        let affordable = affordable(budget, requests(drive.spent()), start.elapsed(), reply);
        limits.bytes = limits.bytes.min(affordable);
    }
    if let Some(plan) = plan {
        let hits = found.expected();
        let (mut bulk, mut search) = (plan.cost(question.from, reply), None);
        // What is read in whole needs the table of large allocations in whole.
        let table = found.table.end.wrapping_sub(found.table.start);
        if found.whole.is_none() {
            bulk = Cost { requests: bulk.requests + table.div_ceil(reply), bytes: bulk.bytes + table };
        }
        if let Some(tag) = question.tag.exact().filter(|_| !question.bulk) {
            let mut cost = plan.search_cost(question.from, reply, hits);
            if hits > 0 && !plan.segment_heap {
                cost = Cost { requests: cost.requests + table.div_ceil(reply), bytes: cost.bytes + table };
            }
            let cheaper = counted || cost.requests < bulk.requests;
            let searches =
                cheaper && drive.with(|context| context.pool(|kernel| Ok(small_blocks::is_searchable(kernel)?)))?;
            search = searches.then_some((tag, cost));
        }
        let (spent, time) = (requests(drive.spent()), start.elapsed());
        let all = Estimate::new(bulk, spent, time);
        let expected = search.map_or(all, |(_, cost)| Estimate::new(cost, spent, time));
        (estimate, in_bulk, covers) = (Some(expected), search.map(|_| all), plan.bytes(question.from));
        if covers > QUIET {
            drive.remark(&expected.line(in_bulk, covers, limits.bytes));
        }
        let search = search.map(|(tag, _)| (tag, reply));
        let blocks =
            drive.with(|context| context.pool(|kernel| found.small(kernel, &plan, &question, search, limits)))?;
        ranges = plan.ranges();
        if let Some(blocks) = blocks {
            searched_small = true;

            small = blocks.blocks;
            limits.bytes = limits.bytes.saturating_sub(blocks.read);
            limits.blocks = limits.blocks.saturating_sub(small.len());
        }
    }
    if question.sessions() && !skipped && found.stopped.is_none() {
        limits.from = 0;
        let notes = found.notes.clone();
        let left = if counted { left(drive.spent()) } else { Cost { requests: u64::MAX, bytes: u64::MAX } };
        let (blocks, exhausted) = drive.with(|context| {
            context.pool(|kernel| {
                let frugal = Frugal::new(kernel.memory, reply, left);
                let kernel = nt_pool::Kernel { memory: &frugal, ..*kernel };
                Ok((found.sessions(&kernel, &question, limits)?, frugal.exhausted.get()))
            })
        })?;
        match exhausted {
            true => {
                found.session_large.clear();
                found.notes = notes;
                found.stopped = None;
                drive.remark("Sessions' own pools were not searched (-session does).\n");
            }
            false => {
                searched_small |= !question.large;
                in_sessions = blocks;
            }
        }
    }
    if !found.answered
        && let Some(error) = found.failures.pop()
    {
        return Err(error.into());
    }
    let width = drive.with(|context| context.width());
    let mut blocks: Vec<Block> = found.large.iter().map(|block| Block::large(block, width)).collect();
    for block in &small {
        let mut shown = Block::small(block, width);
        if question.process && question.tag.matches(block.tag) {
            let process = drive.with(|context| context.pool(|kernel| small_blocks::process(kernel, block)))?;
            shown.process = process.map(|process| Hex(width.address(process)));
        }
        blocks.push(shown);
    }
    blocks.extend(found.session_large.iter().map(|(id, block)| Block::large(block, width).of_session(*id)));
    for (index, block) in &in_sessions {
        let session = &found.sessions[*index];
        let mut shown = Block::small(block, width).of_session(session.id);
        if question.process {
            let process = drive.with(|context| context.pool(|kernel| sessions::process(kernel, session, block)))?;
            shown.process = process.map(|process| Hex(width.address(process)));
        }
        blocks.push(shown);
    }
    blocks.retain(|block| question.shows(block));
    let only_small = question.small || resumed.is_some() || question.pool == Some(Pool::Special);
    let searched = match (searched_small, only_small) {
        (false, _) => "large",
        (true, true) => "small",
        (true, false) => "all",
    };
    let mut notes = std::mem::take(&mut found.notes);
    let stopped = found.stopped;
    if let Some(place) = stopped {
        let at = match place.session {
            Some(session) => format!("in session {session}"),
            None => format!("-from {}", width.pointer(place.address)),
        };
        notes.missing(Missing::because(Lack::Stopped, format!(
            "the search was to cover {} of pool; !poolfind -resume goes on where it stopped ({at}), -limit and -budget \
             set how far it goes",
            size(covers)
        )));
    }
    if skipped {
        let counted =
            if found.large.is_empty() { "no allocation of this tag" } else { "no more of this tag than these" };
        drive.remark(&format!("The kernel counts {counted}: small blocks were not searched (-small does).\n"));
    }
    drive.with(|context| context.session.stopped_search = stopped.map(|place| (text.clone(), place)));
    let name = question.tag.to_string();
    let key = key(&name);
    let table = Table { start: Hex(width.address(found.table.start)), end: Hex(width.address(found.table.end)) };
    let new_layout = drive.with(|context| Ok::<_, CommandError>(context.kernel()?.version().minor >= NEW_LAYOUT))?;
    let answer = PoolFind {
        tag: name,
        searched,
        table,
        stopped: stopped.map(|place| Hex(width.address(place.address))),
        stopped_session: stopped.and_then(|place| place.session),
        estimate,
        bulk: in_bulk,
        blocks,
        written: false,
        ranges,
        key,
        width,
        new_layout,
    };
    Ok(Searched { answer, notes, question })
}

/// Four characters as the value that the kernel has.
fn key(tag: &str) -> u32 {
    tag.bytes().take(4).rev().fold(0, |key, byte| key << 8 | u32::from(byte))
}

fn run(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let Searched { mut answer, notes, question } = search(drive)?;
    let mut failed = 0;
    if let Some(command) = &question.command {
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
    }
    let failure = (failed > 0).then(|| CommandError::Failed(format!("the command failed for {failed} blocks")));
    Ok(Reply { failure, ..Reply::with_notes(answer, notes) })
}

/// Bytes that can be read in so much time, or the requests that carry them be spent otherwise; `spent` requests took
/// `time` just now.
fn affordable(budget: Duration, spent: u64, time: Duration, reply: u64) -> u64 {
    let left = budget.saturating_sub(time).as_micros();
    let requests = left.saturating_mul(u128::from(spent)) / time.as_micros().max(1);
    u64::try_from(requests.saturating_mul(u128::from(reply))).unwrap_or(u64::MAX).max(0x1000)
}

impl Estimate {
    /// `spent` requests took `time` just now.
    pub(in crate::commands) fn new(cost: Cost, spent: u64, time: Duration) -> Self {
        let Cost { requests, bytes } = cost;
        let each = time.as_micros() / u128::from(spent.max(1));
        let frozen_ms = u64::try_from(each.saturating_mul(requests.into()) / 1000).unwrap_or(u64::MAX);
        Estimate { requests, bytes, frozen_ms }
    }

    /// `bulk`: what reading all of it would cost, when the target's own search is taken.
    fn line(&self, bulk: Option<Estimate>, covers: u64, limit: u64) -> String {
        let Estimate { requests, frozen_ms, .. } = self;
        let still = |ms: u64| format!("the target stands still for about {} s", ms / 1000);
        let (how, cheaper) = match bulk {
            Some(bulk) => (
                " by the target itself",
                format!("Reading it all (-bulk): about {} requests, {} s. ", bulk.requests, bulk.frozen_ms / 1000),
            ),
            None => ("", String::new()),
        };
        let some = match bulk {
            None if limit < covers => format!(", of which {} are read now", size(limit)),
            _ => String::new(),
        };
        format!(
            "Searching {} of pool{how}: about {requests} requests, {}{some}. {cheaper}Cheaper: -large, a pool type, \
             -limit MB or -budget 10s (then -resume); Ctrl+C stops it.\n",
            size(covers),
            still(*frozen_ms)
        )
    }
}

pub(in crate::commands) fn size(bytes: u64) -> String {
    if bytes < 10 << 20 { format!("{} KB", bytes >> 10) } else { format!("{} MB", bytes >> 20) }
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
            (false, Some(header)) if block.kind == "special" => {
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

#[cfg(test)]
impl Host for Context<'_> {
    fn arguments(&self) -> &str {
        self.arguments
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Context<'_>) -> T) -> T {
        f(self)
    }

    fn reply_data(&self) -> u64 {
        1024
    }

    fn spent(&self) -> Cost {
        Cost::default()
    }

    fn remark(&mut self, _: &str) {}
}

/// The command without a shell: all but `-x`.
#[cfg(test)]
pub(crate) fn answer(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let Searched { answer, notes, .. } = search(context)?;
    Ok(Reply::with_notes(answer, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The article's addresses, in its order.
    const ARTICLE: [u64; 23] = [
        0xfffff8a006a00000,
        0xfffff8a0058fa000,
        0xfffff8a006200000,
        0xfffff8a0068fa000,
        0xfffff8a0060fa000,
        0xfffff8a005a00000,
        0xfffff8a006c00000,
        0xfffff8a006400000,
        0xfffff8a0062fa000,
        0xfffff8a005afa000,
        0xfffff8a005c00000,
        0xfffff8a006e00000,
        0xfffff8a006600000,
        0xfffff8a0064fa000,
        0xfffff8a005cfa000,
        0xfffff8a006afa000,
        0xfffff8a005e00000,
        0xfffff8a006800000,
        0xfffff8a0066fa000,
        0xfffff8a005efa000,
        0xfffff8a006cfa000,
        0xfffff8a006000000,
        0xfffff8a005800000,
    ];

    fn found(new_layout: bool) -> PoolFind {
        let block = |&address| Block {
            address: Hex(address),
            header: None,
            block_size: None,
            previous_size: 0,
            size: 0xfa000,
            tag: "Leak".into(),
            kind: "large",
            pool: Pool::Paged,
            state: "allocated",
            session: None,
            process: None,
            pool_name: "Paged pool".into(),
        };
        PoolFind {
            tag: "Leak".into(),
            searched: "large",
            table: Table { start: Hex(0xfffffa8002e00000), end: Hex(0xfffffa8002f80000) },
            stopped: None,
            stopped_session: None,
            estimate: None,
            bulk: None,
            written: false,
            ranges: Vec::new(),
            blocks: ARTICLE.iter().map(block).collect(),
            key: 0x6b61654c,
            width: Width::Eight,
            new_layout,
        }
    }

    fn lines(found: &PoolFind) -> Vec<String> {
        let mut text = String::new();
        found.text(&mut text).unwrap();
        text.lines().map(String::from).collect()
    }

    #[test]
    fn the_articles_blocks() {
        let lines = lines(&found(false));
        assert_eq!(lines[0], "");
        assert_eq!(
            lines[1],
            "Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)"
        );
        assert_eq!(lines[2], "");
        assert_eq!(lines[3], "*fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
        assert_eq!(lines[25], "*fffff8a005800000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
        assert_eq!(lines.len(), 26);
    }

    /// facts 8.2.
    #[test]
    fn small_blocks_have_kds_rows() {
        let mut found = found(false);
        found.searched = "all";
        let small = |header: u64, state| Block {
            address: Hex(header + 8),
            header: Some(Hex(header)),
            size: 0xb8,
            block_size: Some(0xc0),
            tag: "SeSd".into(),
            kind: "small",
            pool: Pool::NonPaged,
            state,
            session: None,
            process: None,
            previous_size: 0x40,
            pool_name: "Nonpaged pool".into(),
        };
        found.tag = "SeSd".into();
        found.width = Width::Four;
        found.ranges = vec![(PoolKind::NonPaged, 0x823b1000..0x82800000)];
        found.blocks = vec![small(0x826fa130, "allocated"), small(0x82721c00, "free")];
        found.stopped = Some(Hex(0xe1224000));
        let old = lines(&found);
        assert_eq!(
            old[3..],
            [
                "",
                "Searching NonPaged pool (823b1000 : 82800000) for Tag: SeSd",
                "",
                "826fa130 size:   c0 previous size:   40  (Allocated) SeSd",
                "82721c00 size:   c0 previous size:   40  (Free)      SeSd",
                "",
                "...terminating - searched pool to e1224000",
            ]
        );
        found.new_layout = true;
        assert_eq!(lines(&found)[6], "826fa138 : tag SeSd, size      0xb8, Nonpaged pool");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            json["blocks"][0],
            serde_json::json!({
                "address": "0x826fa138", "header": "0x826fa130", "size": 0xb8, "block_size": 0xc0, "tag": "SeSd",
                "kind": "small", "pool": "nonpaged", "state": "allocated"
            })
        );
    }

    /// facts 8.2: a tag of wildcards is filled up with blanks.
    #[test]
    fn wildcards_have_a_value_too() {
        let question = arguments("*").unwrap();
        let mut found = found(true);
        found.tag = question.tag.to_string();
        found.key = key(&found.tag);
        assert!(lines(&found)[1].contains(" for tag 0x2020202a (*   ) ("), "{:?}", lines(&found));
        found.blocks[0].size = 0x79e8;
        found.blocks[1].size = 0xb70;
        found.blocks[2].size = 0;
        let lines = lines(&found);
        assert!(lines[3].ends_with(" : tag Leak, size    0x79e8, Paged pool"), "{}", lines[3]);
        assert!(lines[4].ends_with(" : tag Leak, size     0xb70, Paged pool"), "{}", lines[4]);
        assert!(lines[5].ends_with(" : tag Leak, size         0, Paged pool"), "{}", lines[5]);
    }

    #[test]
    fn the_current_layout() {
        let lines = lines(&found(true));
        assert_eq!(
            lines[1],
            "Scanning large pool allocation table for tag 0x6b61654c (Leak) (fffffa8002e00000 : fffffa8002f80000)"
        );
        assert_eq!(lines[3], "fffff8a006a00000 : tag Leak, size   0xfa000, Paged pool");
    }

    #[test]
    fn arguments_are_kds() {
        let parsed =
            |text: &str| arguments(text).map(|q| (q.tag.to_string(), q.pool)).map_err(|error| error.to_string());
        assert_eq!(parsed("Leak"), Ok(("Leak".into(), None)));
        assert_eq!(parsed("Leak 1"), Ok(("Leak".into(), Some(Pool::Paged))));
        assert_eq!(parsed("MmSt -paged"), Ok(("MmSt".into(), Some(Pool::Paged))));
        assert_eq!(parsed(r#"-tag "AB C" 0"#), Ok(("AB C".into(), Some(Pool::NonPaged))));
        assert_eq!(parsed("Irp"), Ok(("Irp ".into(), None)));
        assert_eq!(parsed("Leak 2"), Ok(("Leak".into(), Some(Pool::Special))));
        let question = arguments("-small -limit 10 -from fffff8a0`00000000 -free Leak -paged").unwrap();
        assert_eq!((question.limit, question.from), (0x10 << 20, 0xfffff8a000000000));
        assert!(question.small && question.free && !question.large && question.pool == Some(Pool::Paged));
        assert!(parsed("Leak -limit").unwrap_err().contains("megabytes"));
        assert!(parsed("").unwrap_err().contains("no tag"));
        assert!(parsed("Leak 9").unwrap_err().contains("no pool type"));
        assert!(parsed("TooLong").unwrap_err().contains("four characters"));
        assert_eq!(parsed(r#"-tag "A B""#), Ok(("A B ".into(), None)));
        assert!(parsed(r#"-tag "A B"#).unwrap_err().contains("has no end"));
        assert!(parsed(r#"Leak -x ".echo hit"#).unwrap_err().contains("has no end"));
        assert!(parsed("Leak -smal").unwrap_err().contains("unknown option"));
        assert!(parsed("Leak -process -large").unwrap_err().contains("no header"));
        let question = arguments(r#"Leak -process -x "dd @$extret L1; .echo 'it'""#).unwrap();
        assert!(question.process && question.small);
        assert_eq!(question.command.as_deref(), Some("dd @$extret L1; .echo 'it'"));
    }

    #[test]
    fn json_has_the_issues_names() {
        let json = serde_json::to_value(found(false)).unwrap();
        assert_eq!(json["tag"], "Leak");
        assert_eq!(
            json["blocks"][0],
            serde_json::json!({
                "address": "0xfffff8a006a00000", "size": 0xfa000, "tag": "Leak", "kind": "large", "pool": "paged",
                "state": "allocated"
            })
        );
    }
}
