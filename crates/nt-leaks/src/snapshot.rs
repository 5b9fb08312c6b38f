//! A look at the pool: at the mark everything that identifies a block later, at a check only what can have changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use nt_pool::around::{self, Contents};
use nt_pool::big_pages::{self, BigPage, BigPages};
use nt_pool::checks::{Check, balance};
use nt_pool::small_blocks::{self, BlockState, Kinds, Limits, Plan};
use nt_pool::{Kernel, PoolError, Tag, pool_log, tags, verifier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::harvest::{Harvest, Operation, Position, record};
use crate::identity::{Different, Identity, Times};
use crate::mark::Mark;
use crate::print::{Header, MAX_PRINTS, first_bytes};
use crate::stack::{Modules, Resolver, StackId, Stacks};

pub use crate::harvest::Position as LogPosition;

/// Which blocks are watched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// All tags without one.
    pub tag: Option<u32>,
    /// Paged or nonpaged pool only.
    pub paged: Option<bool>,
}

/// What a tag's row says, summed over processors and both pools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Since the machine started, as far as the counter's width goes.
    pub allocs: u64,
    /// Since the machine started, as far as the counter's width goes.
    pub frees: u64,
    /// In use.
    pub bytes: u64,
}

impl Counters {
    /// Allocations in use, subtracted in the counters' own width; below 0 where a processor was stopped between its two
    /// counters. Where the width is not known, counters that fit in 32 bits have no more.
    pub fn outstanding(self, bits: Option<u8>) -> i64 {
        let fits = self.allocs.max(self.frees) <= u64::from(u32::MAX);
        let unused = 64 - u32::from(bits.unwrap_or(if fits { 32 } else { 64 }).clamp(1, 64));
        (self.allocs.wrapping_sub(self.frees) << unused) as i64 >> unused
    }
}

/// Which of the kernel's books a block is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table of large allocations.
    Large,
    /// The tracked allocations of this verified driver.
    Tracked(String),
    /// The pool's own pages.
    Small,
}

/// Where a block's stack is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StackFrom {
    /// The record of its allocation.
    Log,
    /// The verifier's list of what a driver has: one frame, the caller.
    Verifier,
}

impl StackFrom {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            StackFrom::Log => "log",
            StackFrom::Verifier => "verifier",
        }
    }
}

/// Why the log has no record of a block's allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoStack {
    /// The verifier's log is off, or cannot be read.
    NoLog,
    /// It is older than all the log holds, or was overwritten between two looks.
    Wrapped,
    /// Verified code did not allocate it.
    NotVerified,
    /// The log reaches back to its beginning and has no allocation of it.
    Before,
    /// Not every block's record was looked for ([`Depth::without_records`]).
    NotSearched,
}

impl NoStack {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            NoStack::NoLog => "no_log",
            NoStack::Wrapped => "wrapped",
            NoStack::NotVerified => "not_verified",
            NoStack::Before => "before",
            NoStack::NotSearched => "not_searched",
        }
    }

    /// A sentence for people.
    pub fn why(self) -> &'static str {
        match self {
            NoStack::NoLog => "the kernel keeps no pool log",
            NoStack::Wrapped => "the log has come round since",
            NoStack::NotVerified => "its driver is not verified",
            NoStack::NotSearched => "its record was not looked for",
            NoStack::Before => "allocated before the log began, or by a driver that is not verified",
        }
    }
}

/// A block of a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// What the allocation call returned.
    #[serde(with = "crate::hex")]
    pub address: u64,
    /// Bytes that its caller may use.
    pub size: u64,
    /// As the kernel compares it.
    pub tag: u32,
    /// Unknown for what only the verifier tracks.
    pub paged: Option<bool>,
    /// Which of the kernel's books has it.
    pub source: Source,
    /// Sequence number of the record of this very allocation, if that was written in full.
    pub allocation: Option<u32>,
    /// Who allocated it, where that is known.
    pub stack: Option<StackId>,
    /// Whether log or verifier's list gave the stack.
    #[serde(default)]
    pub stack_from: Option<StackFrom>,
    /// Why there is none.
    #[serde(default)]
    pub no_stack: Option<NoStack>,
    /// Of a small block.
    #[serde(default)]
    pub header: Option<Header>,
    /// A digest of its first bytes.
    #[serde(default)]
    pub content: Option<String>,
}

impl Block {
    pub(crate) fn new(address: u64, size: u64, tag: Tag, paged: Option<bool>, source: Source) -> Self {
        Block {
            address,
            size,
            tag: tag.key(),
            paged,
            source,
            allocation: None,
            stack: None,
            stack_from: None,
            no_stack: None,
            header: None,
            content: None,
        }
    }

    /// For people.
    pub fn tag(&self) -> Tag {
        Tag::from_key(self.tag).0
    }
}

/// The pool at one moment, as far as it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The target's clocks then.
    pub times: Times,
    /// What was looked at.
    pub scope: Scope,
    /// By tag; a tag that has no row was never used, or the tables were full when it was.
    pub counters: BTreeMap<u32, Counters>,
    /// Width of the counters; `None` when the tables could not be read as a whole.
    pub counter_bits: Option<u8>,
    /// By address.
    pub blocks: Vec<Block>,
    /// All of the kernel's books that list the blocks were readable.
    pub complete: bool,
    /// Those of the blocks.
    pub stacks: Stacks,
    /// Blocks of the mark whose address another block has now.
    pub occupied: BTreeSet<u64>,
    /// Addresses of the mark's small blocks that nobody has now.
    #[serde(default)]
    pub gone: BTreeSet<u64>,
    /// Addresses of the mark's small blocks whose pages are not there.
    #[serde(default)]
    pub unmapped: BTreeSet<u64>,
    /// Drivers whose tracked allocations could be read.
    pub tracked: Vec<String>,
    /// Bytes of pool that were to be searched for small blocks at most; `None` when they were not looked for.
    #[serde(default)]
    pub small: Option<u64>,
    /// All small blocks were found.
    #[serde(default)]
    pub small_complete: bool,
    /// The table of large allocations says something else than another book of the kernel's: nothing is concluded from it.
    #[serde(default)]
    pub large_doubted: bool,
    /// Whether most bytes of a tag are of paged pool, as the counters say.
    #[serde(skip)]
    pub paged: BTreeMap<u32, bool>,
    /// Who called the allocator, of the blocks that the verifier tracks.
    #[serde(skip)]
    pub callers: BTreeMap<u64, u64>,
    /// What is missing, as sentences.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub notes: Vec<String>,
}

/// What a mark takes beside the blocks of the large table and those that the verifier tracks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Small blocks too, from so many bytes of pool at most.
    pub small: Option<u64>,
    /// What the blocks look like.
    pub prints: bool,
    /// Without the records of the blocks' allocations, of which each costs some three requests and more. Who wants to know
    /// who allocates a tag that grows learns that of the blocks that are new.
    pub without_records: bool,
}

/// Variables of the kernel that every look reads.
const VARIABLES: [&str; 12] = [
    "KeBootTime",
    "KeBootTimeBias",
    "PoolTrackTable",
    "PoolTrackTableSize",
    "PoolTrackTableMask",
    "PoolTrackTableExpansion",
    "PoolTrackTableExpansionSize",
    "ExPoolTagTables",
    "KeNumberProcessors",
    "VfPoolTraces",
    "VfPoolTracesIndex",
    "VfPoolTracesLength",
];

/// Blocks whose records are looked for; each costs some three requests.
const MAX_SEARCHED: usize = 4096;

/// Addresses from the log that are looked up instead of searching for the tag's blocks.
const MAX_CANDIDATES: usize = 12;
/// Where the tag has many blocks a search costs more: one lookup costs less than two blocks that are searched for.
const BLOCKS_OF_A_CANDIDATE: usize = 2;

/// Small blocks that a mark keeps; some 300 MB.
const MAX_SMALL: usize = 1 << 20;

/// Addresses looked up to see who has them now.
const MAX_LOOKUPS: usize = 64;

/// Width of a tag's counters.
pub(crate) fn counter_bits(kernel: &Kernel<'_>) -> Option<u8> {
    let layout = kernel.layout("_POOL_TRACKER_TABLE").ok()?;
    let size = layout.field("PagedFrees").map(|field| field.size);
    size.filter(|size| matches!(size, 4 | 8)).map(|size| 8 * size as u8)
}

/// Reads all that a later check compares with.
pub fn mark(
    kernel: &Kernel<'_>,
    name: &str,
    scope: Scope,
    depth: Depth,
    modules: &Modules,
    resolver: &mut Resolver<'_>,
) -> Result<Mark, PoolError> {
    let (identity, times) = Identity::read(kernel, None)?;
    let mut now = Snapshot::empty(scope, times);
    now.read_counters(kernel)?;
    let log = match Position::read(kernel) {
        Ok(log) => log,
        Err(error) => {
            now.note("the verifier's log is not used", error)?;
            None
        }
    };
    now.list(kernel, depth.small)?;
    now.read_stacks(kernel, log.as_ref(), depth.without_records, resolver)?;
    if let Some(tag) = scope.tag.filter(|tag| now.counter_bits.is_some() && !now.of(*tag).are_counted()) {
        let tag = Tag::from_key(tag).0;
        now.notes.push(format!(
            "more blocks of {tag} are listed than the kernel has counted (its table of tags was full): its counters \
             prove nothing"
        ));
    }
    if depth.prints {
        now.read_prints(kernel)?;
    }
    let mut modules = modules.clone();
    modules.update(&resolver.identified(now.stacks.frames())?);
    Ok(Mark { name: name.into(), identity, log, modules, snapshot: now })
}

/// What a list of small blocks costs.
#[derive(Debug, Clone, Copy)]
pub struct SmallPool {
    /// Bytes of the pool that is searched.
    pub pool: u64,
    /// Bytes of it that are to be read: fewer where the target searches for the tag itself.
    pub read: u64,
}

/// How much pool a mark of this scope has to search for small blocks, if the tag has `hits` of them.
pub fn small_pool(kernel: &Kernel<'_>, scope: Scope, hits: u64) -> Result<SmallPool, PoolError> {
    let plan = Plan::read(kernel, kinds(scope.paged))?;
    let pool = plan.bytes(0);
    let searched = scope.tag.is_some() && small_blocks::is_searchable(kernel)?;
    let read = match searched {
        true => plan.search_cost(kernel.memory, 0, hits).bytes.min(pool),
        false => pool,
    };
    Ok(SmallPool { pool, read })
}

fn kinds(paged: Option<bool>) -> Kinds {
    Kinds { nonpaged: paged != Some(true), paged: paged != Some(false), special: true }
}

/// Why a check has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// It is another kernel, or another boot of it.
    #[error(transparent)]
    Different(#[from] Different),
    /// The kernel's books cannot be read.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Looks again. Adds to `harvest` what was logged since it was extended last. `frozen`: for how long we kept the target
/// stopped since the mark, at most.
pub fn look(
    kernel: &Kernel<'_>,
    mark: &Mark,
    frozen: Duration,
    harvest: Option<&mut Harvest>,
    resolver: &mut Resolver<'_>,
) -> Result<Snapshot, LookError> {
    kernel.read_ahead(&VARIABLES, &["PoolBigPageTable", "PoolBigPageTableSize"]).map_err(PoolError::from)?;
    let (identity, times) = Identity::read(kernel, Some(&mark.identity))?;
    mark.identity.same(mark.snapshot.times, &identity, times, frozen)?;
    let mut now = Snapshot::empty(mark.snapshot.scope, times);
    now.read_counters(kernel)?;
    let mut harvest = harvest;
    let mut search = false;
    if let Some(harvest) = harvest.as_deref_mut() {
        match harvest.extend(kernel, resolver, &mut now.notes) {
            Ok(wrapped) => search = wrapped,
            Err(error) => {
                harvest.miss();
                now.note("the verifier's log could not be read", error)?;
            }
        }
    }
    let listed =
        now.take_from_counters(mark) || now.take_from_candidates(kernel, mark, harvest.as_deref(), resolver)?;
    if !listed {
        now.list(kernel, mark.snapshot.small)?;
        now.look_up_absent(kernel, mark)?;
    }
    if let Some(harvest) = harvest.as_deref_mut() {
        let listed = now.blocks.iter().map(|block| block.address);
        if let Err(error) = harvest.complete_records(kernel, listed) {
            now.note("the verifier's log could not be read", error)?;
        }
    }
    if search && let Some(harvest) = harvest {
        let addresses: BTreeSet<u64> =
            mark.snapshot.blocks.iter().chain(&now.blocks).map(|block| block.address).collect();
        let addresses: Vec<u64> = addresses.into_iter().take(MAX_SEARCHED).collect();
        if let Err(error) = harvest.search(kernel, &addresses, resolver) {
            now.note("the verifier's log could not be searched", error)?;
        }
    }
    Ok(now)
}

/// What a look has of one tag.
pub(crate) struct Tagged<'a> {
    pub(crate) look: &'a Snapshot,
    tag: u32,
    pub(crate) blocks: BTreeMap<u64, &'a Block>,
}

impl Tagged<'_> {
    /// Blocks that the counters have and the list has not; `None` where that is not known.
    fn unlisted(&self) -> Option<u64> {
        self.look.outstanding(self.tag)?.checked_sub(self.blocks.len() as u64)
    }

    /// The list has all blocks, and nothing else: what lies free in one of the pool's own lists can look like a block
    /// in use.
    pub(crate) fn is_exact(&self) -> bool {
        let look = self.look;
        look.complete && look.small_complete && look.scope.paged.is_none() && self.unlisted() == Some(0)
    }

    /// The counters have all blocks that are in use for certain. If not, some of them are counted elsewhere, and so are
    /// their frees.
    pub(crate) fn are_counted(&self) -> bool {
        let certain = self.blocks.values().filter(|block| block.source != Source::Small).count() as u64;
        self.look.outstanding(self.tag).is_some_and(|outstanding| outstanding >= certain)
    }

    /// What the counters gained since, as (allocations, frees); `None` if they cannot be compared, or do not count all
    /// of the blocks.
    pub(crate) fn gained(&self, then: &Tagged<'_>) -> Option<(u64, u64)> {
        let bits = self.look.counter_bits.filter(|bits| then.look.counter_bits == Some(*bits))?;
        if !then.are_counted() || !self.are_counted() {
            return None;
        }
        let mask = u64::MAX >> (64 - u32::from(bits.clamp(1, 64)));
        let of = |tagged: &Tagged<'_>| tagged.look.counters.get(&tagged.tag).copied().unwrap_or_default();
        let (then, now) = (of(then), of(self));
        Some((now.allocs.wrapping_sub(then.allocs) & mask, now.frees.wrapping_sub(then.frees) & mask))
    }
}

impl Snapshot {
    pub(crate) fn empty(scope: Scope, times: Times) -> Self {
        Snapshot {
            times,
            scope,
            counters: BTreeMap::new(),
            counter_bits: None,
            blocks: Vec::new(),
            complete: true,
            stacks: Stacks::default(),
            occupied: BTreeSet::new(),
            gone: BTreeSet::new(),
            unmapped: BTreeSet::new(),
            tracked: Vec::new(),
            small: None,
            small_complete: false,
            large_doubted: false,
            paged: BTreeMap::new(),
            callers: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    /// Blocks in use, as the counters say; `None` where they are not known, or have more frees than allocations.
    pub fn outstanding(&self, tag: u32) -> Option<u64> {
        let counters = self.counters.get(&tag).copied().unwrap_or_default();
        u64::try_from(counters.outstanding(Some(self.counter_bits?))).ok()
    }

    /// Blocks of a tag that the counters have and the list has not; `None` where that is not known.
    pub fn unlisted(&self, tag: u32) -> Option<u64> {
        self.of(tag).unlisted()
    }

    /// A tag's blocks.
    fn of(&self, tag: u32) -> Tagged<'_> {
        let blocks = self.blocks.iter().filter(|block| block.tag == tag);
        Tagged { look: self, tag, blocks: blocks.map(|block| (block.address, block)).collect() }
    }

    /// The blocks of every tag that has some.
    pub(crate) fn by_tag(&self) -> BTreeMap<u32, Tagged<'_>> {
        let mut tags = BTreeMap::new();
        for block in &self.blocks {
            let tagged = tags.entry(block.tag).or_insert_with(|| self.none_of(block.tag));
            tagged.blocks.insert(block.address, block);
        }
        tags
    }

    /// A tag that has no blocks.
    pub(crate) fn none_of(&self, tag: u32) -> Tagged<'_> {
        Tagged { look: self, tag, blocks: BTreeMap::new() }
    }

    fn wants(&self, tag: Tag, paged: Option<bool>) -> bool {
        self.scope.tag.is_none_or(|wanted| wanted == tag.key())
            && (self.scope.paged.is_none() || paged.is_none() || self.scope.paged == paged)
    }

    fn read_counters(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        let report = match self.scope.tag {
            Some(tag) => tags::read_one(kernel, Tag::from_key(tag).0),
            None => tags::read(kernel, &|_| true),
        };
        let report = match report {
            Ok(report) => report,
            Err(error) => return self.note("the tag's counters", error),
        };
        if report.notes.is_complete() {
            self.counter_bits = counter_bits(kernel);
        }
        self.notes.extend(report.notes.lines());
        for row in report.tags {
            let (n, p) = (row.nonpaged, row.paged);
            let counters = Counters {
                allocs: n.allocs.wrapping_add(p.allocs),
                frees: n.frees.wrapping_add(p.frees),
                bytes: n.bytes.wrapping_add(p.bytes),
            };
            self.counters.insert(row.tag.key(), counters);
            self.paged.insert(row.tag.key(), p.bytes > n.bytes);
        }
        Ok(())
    }

    /// Lists the blocks from the kernel's own books.
    fn list(&mut self, kernel: &Kernel<'_>, small: Option<u64>) -> Result<(), PoolError> {
        let pages = match self.scope.tag {
            Some(tag) => big_pages::find(kernel, Tag::from_key(tag).0),
            None => big_pages::read(kernel, &|_| true),
        };
        let pages = self.all_of("the table of large allocations", pages)?;
        let mut seen = BTreeSet::new();
        for page in pages.into_iter().filter(|page| !page.free) {
            if self.wants(page.tag, Some(page.kind.is_paged())) && seen.insert(page.address) {
                self.blocks.push(large(&page));
            }
        }
        self.list_tracked(kernel, &seen)?;
        match small {
            Some(limit) => self.list_small(kernel, limit),
            None => Ok(()),
        }
    }

    /// What the table of large allocations has; where it could not be read, the look is not complete.
    fn all_of(&mut self, what: &str, pages: Result<BigPages, PoolError>) -> Result<Vec<BigPage>, PoolError> {
        match pages {
            Ok(pages) => {
                self.large_doubted |= !self.holds("large allocations", &pages.checks);
                self.complete &= pages.notes.is_complete() && !self.large_doubted;
                self.notes.extend(pages.notes.lines());
                Ok(pages.blocks)
            }
            Err(error) => {
                self.complete = false;
                self.note(what, error)?;
                Ok(Vec::new())
            }
        }
    }

    /// Whether the books of some blocks balance; says it where they do not. Where a number that the kernel keeps twice
    /// differs, blocks may be missing or made up: no verdict rests on them.
    fn holds(&mut self, what: &str, checks: &[Check]) -> bool {
        for check in checks.iter().filter(|check| !check.ok && check.name.is_proven()) {
            self.notes.push(format!("nothing is concluded from {what}: their books do not balance: {check}"));
        }
        balance(checks)
    }

    /// The blocks of the pool's own pages.
    fn list_small(&mut self, kernel: &Kernel<'_>, limit: u64) -> Result<(), PoolError> {
        let seen: BTreeSet<u64> = self.blocks.iter().map(|block| block.address).collect();
        let limits = Limits { bytes: limit, blocks: MAX_SMALL, ..Limits::default() };
        self.small = Some(limit);
        let kinds = kinds(self.scope.paged);
        let found = match self.scope.tag {
            Some(key) => small_blocks::find_tag(kernel, Tag::from_key(key).0, kinds, limits),
            None => small_blocks::find(kernel, &|_| true, kinds, limits),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.note("small blocks", error),
        };
        self.small_complete = self.holds("small blocks", &found.checks) && found.is_complete();
        self.notes.extend(found.notes.lines());
        if let Some(at) = found.stopped {
            self.notes.push(format!("the search for small blocks ended at {at:016x}: those behind are not listed"));
        }
        for small in found.blocks {
            let paged = small.pool.is_paged();
            if small.state != BlockState::Allocated {
                self.gone.insert(small.address);
            } else if self.wants(small.tag, Some(paged)) && !seen.contains(&small.address) {
                let mut block = Block::new(small.address, small.size, small.tag, Some(paged), Source::Small);
                if self.blocks.len() < MAX_PRINTS {
                    block.header = Header::read(kernel, small.header)?;
                }
                self.blocks.push(block);
            }
        }
        Ok(())
    }

    /// What the blocks look like.
    fn read_prints(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        if self.blocks.len() > MAX_PRINTS {
            self.notes.push(format!("the content of only {MAX_PRINTS} of the blocks is remembered"));
        }
        for block in self.blocks.iter_mut().take(MAX_PRINTS) {
            block.content = first_bytes(kernel, block)?;
        }
        Ok(())
    }

    /// What the verifier tracks and the table of large allocations has not: small blocks.
    fn list_tracked(&mut self, kernel: &Kernel<'_>, large: &BTreeSet<u64>) -> Result<(), PoolError> {
        let drivers = match verifier::drivers(kernel) {
            Ok(drivers) => drivers,
            // This version, or these symbols, have none.
            Err(PoolError::NoSymbol(_) | PoolError::NoType(_) | PoolError::NoField { .. }) => return Ok(()),
            Err(error) => return self.note("the verified drivers", error),
        };
        self.notes.extend(drivers.notes.lines());
        for driver in &drivers.drivers {
            let tracked = match verifier::allocations(kernel, driver) {
                Ok(tracked) => tracked,
                Err(error) => {
                    self.note(&format!("what {} has allocated", driver.name), error)?;
                    continue;
                }
            };
            if !self.holds("tracked allocations", &verifier::check(kernel, driver, &tracked)) {
                self.complete = false;
                continue;
            }
            if tracked.notes.is_complete() && driver.image.is_some() {
                self.tracked.push(driver.name.clone());
            }
            self.notes.extend(tracked.notes.lines());
            for block in tracked.allocations {
                if !self.wants(block.tag, None) {
                    continue;
                }
                self.callers.insert(block.address, block.caller);
                if !large.contains(&block.address) {
                    let source = Source::Tracked(driver.name.clone());
                    self.blocks.push(Block::new(block.address, block.size, block.tag, None, source));
                }
            }
        }
        Ok(())
    }

    /// Finds the record of each block's own allocation: the newest of its address, if it is of an allocation. Else the
    /// verifier may know who called.
    fn read_stacks(
        &mut self,
        kernel: &Kernel<'_>,
        log: Option<&Position>,
        without_records: bool,
        resolver: &mut Resolver<'_>,
    ) -> Result<(), PoolError> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let most = if without_records { 0 } else { MAX_SEARCHED };
        let addresses: Vec<u64> = self.blocks.iter().map(|block| block.address).take(most).collect();
        if log.is_some() && !without_records && addresses.len() < self.blocks.len() {
            self.notes.push(format!(
                "stacks of {} blocks were not looked for (at most {MAX_SEARCHED} are)",
                self.blocks.len() - addresses.len()
            ));
        }
        let wanted = log.filter(|_| !addresses.is_empty());
        let found = match wanted.map(|_| pool_log::find_starts(kernel, &addresses)).transpose() {
            Ok(found) => found.flatten(),
            Err(error) => {
                self.note("the verifier's log could not be searched", error)?;
                None
            }
        };
        let searched: HashSet<u64> = addresses.into_iter().collect();
        let mut newest = BTreeMap::new();
        if let Some(found) = &found {
            self.notes.extend(found.notes.lines());
            let check = pool_log::check(kernel, &found.traces);
            let sound = self.holds("the verifier's log", check.as_slice());
            // The newest slot may be half written: an address, and nothing else yet.
            for trace in
                found.traces.iter().filter(|_| sound).filter(|trace| trace.size != 0 || !trace.frames.is_empty())
            {
                newest.entry(trace.address).or_insert(trace);
            }
        }
        for block in &mut self.blocks {
            if let Some(trace) = newest.get(&block.address) {
                let record = record(trace, resolver)?;
                if record.operation == Operation::Allocate && fits(record.size, block.size) {
                    block.allocation = Some(record.sequence);
                    block.stack = Some(self.stacks.add(resolver.stack(&record.frames)?));
                    block.stack_from = Some(StackFrom::Log);
                    continue;
                }
            }
            let caller = self.callers.get(&block.address);
            if let Some(&caller) = caller {
                block.stack = Some(self.stacks.add(resolver.stack(&[caller])?));
                block.stack_from = Some(StackFrom::Verifier);
            }
            block.no_stack = Some(match log {
                None => NoStack::NoLog,
                Some(_) if !searched.contains(&block.address) => NoStack::NotSearched,
                Some(log) if log.index >= log.length => NoStack::Wrapped,
                Some(_) => NoStack::Before,
            });
        }
        let nowhere = |block: &&mut Block| {
            block.stack.is_none() && !matches!(block.no_stack, Some(NoStack::NoLog | NoStack::NotSearched))
        };
        if self.blocks.iter_mut().any(|block| nowhere(&block)) && self.tracks_all(kernel)? {
            // What verified drivers have is tracked, and these are not.
            self.blocks.iter_mut().filter(nowhere).for_each(|block| block.no_stack = Some(NoStack::NotVerified));
        }
        Ok(())
    }

    /// The verifier tracks the pool of its drivers, and its books could be read.
    fn tracks_all(&self, kernel: &Kernel<'_>) -> Result<bool, PoolError> {
        match verifier::settings(kernel) {
            Ok(settings) => Ok(settings.level & verifier::POOL_TRACKING != 0 && !self.tracked.is_empty()),
            Err(error) => {
                error.local()?;
                Ok(false)
            }
        }
    }

    /// Neither an allocation nor a free of the tag was counted since: the blocks are those of the mark.
    fn take_from_counters(&mut self, mark: &Mark) -> bool {
        let then = &mark.snapshot;
        let Some(tag) = self.scope.tag else { return false };
        if !then.complete || self.of(tag).gained(&then.of(tag)) != Some((0, 0)) {
            return false;
        }
        self.blocks = then.blocks.clone();
        self.tracked = then.tracked.clone();
        true
    }

    /// Takes the blocks of the mark and looks up addresses that the log names since. That is all of them if every
    /// operation that the tag's counters counted is then accounted for.
    fn take_from_candidates(
        &mut self,
        kernel: &Kernel<'_>,
        mark: &Mark,
        harvest: Option<&Harvest>,
        resolver: &mut Resolver<'_>,
    ) -> Result<bool, PoolError> {
        let then = &mark.snapshot;
        let (Some(harvest), Some(tag)) = (harvest.filter(|harvest| harvest.is_complete()), self.scope.tag) else {
            return Ok(false);
        };
        let Some(gained) = self.of(tag).gained(&then.of(tag)) else { return Ok(false) };
        let all_large = then.blocks.iter().all(|block| block.source == Source::Large);
        if !then.complete || !all_large {
            return Ok(false);
        }
        let sites = sites(then, resolver)?;
        let mut blocks: BTreeMap<u64, Block> = then.blocks.iter().map(|block| (block.address, block.clone())).collect();
        // Those that were of the tag, or were allocated where the tag is; then others that may be allocated now.
        let (mut likely, mut others) = (Vec::new(), Vec::new());
        for address in harvest.addresses().filter(|address| address & 0xfff == 0) {
            let mut ours = blocks.contains_key(&address);
            for record in harvest.at(address).iter().filter(|record| record.operation == Operation::Allocate) {
                ours |= resolver.site(&record.frames)?.is_some_and(|site| sites.contains(&site));
            }
            if ours {
                likely.push(address);
            } else if harvest.at(address).last().is_some_and(|last| last.operation != Operation::Free) {
                others.push(address);
            }
        }
        let mut occupied = BTreeSet::new();
        // Operations that are the tag's for certain: what made the state of now out of that of then.
        let mut certain = (0, 0);
        for round in [likely, others] {
            if certain == gained {
                break;
            }
            if round.len() > MAX_CANDIDATES.max(then.blocks.len() * BLOCKS_OF_A_CANDIDATE) {
                return Ok(false);
            }
            for address in round {
                let was = blocks.remove(&address).is_some();
                let page = match big_pages::lookup(kernel, address) {
                    Ok(page) => page,
                    Err(error) => {
                        self.note("the table of large allocations", error)?;
                        return Ok(false);
                    }
                };
                let of_tag = page.as_ref().is_some_and(|page| page.tag.key() == tag);
                let live = page.as_ref().is_some_and(|page| !page.free);
                let mut is_ours = was;
                let records = harvest.at(address);
                if let ([record], true) = (records, was)
                    && !harvest.is_settled(record)
                {
                    return Ok(false);
                }
                let last = records.iter().rposition(|record| record.operation == Operation::Allocate);
                for (at, record) in records.iter().enumerate() {
                    let ours = match record.operation {
                        // The table says what the last one was of, and keeps that after its free.
                        Operation::Allocate if last == Some(at) => page.is_some() && of_tag,
                        Operation::Allocate => resolver.site(&record.frames)?.is_some_and(|site| sites.contains(&site)),
                        Operation::Free => false,
                        Operation::Unknown => return Ok(false),
                    };
                    certain.1 += u64::from(is_ours);
                    certain.0 += u64::from(ours);
                    is_ours = ours;
                }
                if is_ours != (live && of_tag) {
                    return Ok(false);
                }
                match page {
                    Some(page) if live && self.wants(page.tag, Some(page.kind.is_paged())) => {
                        blocks.insert(address, large(&page));
                    }
                    Some(_) if live && was => {
                        occupied.insert(address);
                    }
                    _ => {}
                }
            }
        }
        if certain != gained {
            return Ok(false);
        }
        self.blocks = blocks.into_values().collect();
        self.occupied = occupied;
        self.tracked = then.tracked.clone();
        Ok(true)
    }

    /// Who has the addresses of blocks that are gone.
    fn look_up_absent(&mut self, kernel: &Kernel<'_>, mark: &Mark) -> Result<(), PoolError> {
        let live: BTreeSet<u64> = self.blocks.iter().map(|block| block.address).collect();
        let gone = mark.snapshot.blocks.iter().filter(|block| block.source == Source::Large);
        let gone: Vec<u64> = gone.map(|block| block.address).filter(|address| !live.contains(address)).collect();
        let small = mark.snapshot.blocks.iter().filter(|block| block.source != Source::Large);
        let small: Vec<&Block> =
            small.filter(|block| !live.contains(&block.address) && !self.gone.contains(&block.address)).collect();
        if small.len() > MAX_LOOKUPS {
            self.notes.push(format!(
                "who has the addresses of only {MAX_LOOKUPS} of {} small blocks was looked up",
                small.len()
            ));
        }
        for block in small.into_iter().take(MAX_LOOKUPS) {
            match who_has(kernel, block)? {
                Owner::Another => drop(self.occupied.insert(block.address)),
                Owner::Nobody => drop(self.gone.insert(block.address)),
                Owner::NoPage => drop(self.unmapped.insert(block.address)),
                Owner::Unknown => {}
            }
        }
        self.look_up_large(kernel, &gone)
    }

    /// Who has the addresses of large blocks that are gone. Where they are many, the whole table costs less.
    fn look_up_large(&mut self, kernel: &Kernel<'_>, gone: &[u64]) -> Result<(), PoolError> {
        const WHAT: &str = "who has the addresses of blocks that are gone";
        let mut found = Vec::new();
        if gone.len() > MAX_LOOKUPS {
            let gone: BTreeSet<u64> = gone.iter().copied().collect();
            found = self.all_of(WHAT, big_pages::read(kernel, &|_| true))?;
            found.retain(|page| gone.contains(&page.address));
        } else {
            for &address in gone {
                match big_pages::lookup(kernel, address) {
                    Ok(page) => found.extend(page),
                    Err(error) => {
                        self.complete = false;
                        self.note(WHAT, error)?;
                        break;
                    }
                }
            }
        }
        self.occupied.extend(found.iter().filter(|page| !page.free).map(|page| page.address));
        Ok(())
    }

    /// Turns what could not be read into a note; a source that is gone stays an error.
    fn note(&mut self, what: &str, error: PoolError) -> Result<(), PoolError> {
        self.notes.push(format!("{what}: {}", error.local()?));
        Ok(())
    }
}

/// Who has the address of a small block that is gone.
enum Owner {
    Another,
    Nobody,
    /// The page is not there, and cannot be in a page file.
    NoPage,
    Unknown,
}

fn who_has(kernel: &Kernel<'_>, gone: &Block) -> Result<Owner, PoolError> {
    match big_pages::lookup(kernel, gone.address) {
        Ok(Some(page)) if !page.free => return Ok(Owner::Another),
        Ok(_) => {}
        Err(error) => {
            error.local()?;
            return Ok(Owner::Unknown);
        }
    }
    let around = match around::read(kernel, gone.address) {
        Ok(around) => around,
        Err(error) => {
            error.local()?;
            return Ok(Owner::Unknown);
        }
    };
    Ok(match around.contents {
        Contents::Blocks(blocks) => {
            let holds = |from: u64, size: u64| gone.address.checked_sub(from).is_some_and(|at| at < size);
            match blocks.iter().find(|block| holds(block.header, block.block_size)) {
                Some(block) if !block.allocated => Owner::Nobody,
                // The same tag: it may be the block itself, freed, in a list of the pool's that its page does not show.
                Some(block) if block.address == gone.address && block.tag.key() != gone.tag => Owner::Another,
                _ => Owner::Unknown,
            }
        }
        Contents::Special(special) if special.address == gone.address && special.tag.key() != gone.tag => {
            Owner::Another
        }
        Contents::Special(_) | Contents::Large(_) => Owner::Unknown,
        Contents::Nothing if !around.readable && around.pool.is_none_or(|pool| !pool.is_paged()) => Owner::NoPage,
        Contents::Nothing => Owner::Unknown,
    })
}

/// The places in drivers that allocated the blocks.
fn sites(then: &Snapshot, resolver: &mut Resolver<'_>) -> Result<HashSet<(String, u64)>, PoolError> {
    let mut sites = HashSet::new();
    let stacks: BTreeSet<StackId> = then.blocks.iter().filter_map(|block| block.stack).collect();
    for stack in stacks {
        let frames: Vec<u64> = then.stacks.get(stack).iter().map(|frame| frame.address).collect();
        sites.extend(resolver.site(&frames)?);
    }
    Ok(sites)
}

/// A record holds what was asked for, and the books what was given: rounded up, with the verifier's pointer.
pub(crate) fn fits(asked: u64, given: u64) -> bool {
    given.checked_sub(asked).is_some_and(|more| more <= 0x1010)
}

fn large(page: &BigPage) -> Block {
    Block::new(page.address, page.size, page.tag, Some(page.kind.is_paged()), Source::Large)
}
