//! A look at the pool: at the mark everything that identifies a block later, at a check only what can have changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use nt_memory::ReadError;
use nt_pool::big_pages::{self, BigPage};
use nt_pool::{Kernel, PoolError, Tag, pool_log, tags, verifier};
use serde::{Deserialize, Serialize};

use crate::harvest::{Harvest, Operation, Position, record};
use crate::identity::{Different, Identity, Times};
use crate::mark::Mark;
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
    pub allocs: u64,
    pub frees: u64,
    pub bytes: u64,
}

/// Which of the kernel's books a block is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The table of large allocations.
    Large,
    /// The tracked allocations of this verified driver.
    Tracked(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    #[serde(with = "crate::hex")]
    pub address: u64,
    pub size: u64,
    pub tag: u32,
    /// Unknown for what only the verifier tracks.
    pub paged: Option<bool>,
    pub source: Source,
    /// Sequence number of the record of this very allocation.
    pub allocation: Option<u32>,
    pub stack: Option<StackId>,
}

impl Block {
    pub fn tag(&self) -> Tag {
        Tag::from_key(self.tag).0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub times: Times,
    pub scope: Scope,
    /// By tag; a tag that has no row was never used.
    pub counters: BTreeMap<u32, Counters>,
    /// Width of the counters; `None` when the tables could not be read as a whole.
    pub counter_bits: Option<u8>,
    pub blocks: Vec<Block>,
    /// All of the kernel's books that list the blocks were readable.
    pub complete: bool,
    pub stacks: Stacks,
    /// Blocks of the mark whose address another block has now.
    pub occupied: BTreeSet<u64>,
    /// Freed since, as their old entries say: addresses where a block of the tag lived last.
    pub freed: BTreeSet<u64>,
    /// Drivers whose tracked allocations could be read.
    pub tracked: Vec<String>,
    pub notes: Vec<String>,
}

/// Blocks whose records are looked for; each costs some three requests.
const MAX_SEARCHED: usize = 4096;

/// Addresses from the log that are looked up instead of searching for the tag's blocks.
const MAX_CANDIDATES: usize = 16;

/// Addresses looked up to see who has them now.
const MAX_LOOKUPS: usize = 64;

/// Reads all that a later check compares with.
pub fn mark(
    kernel: &Kernel<'_>,
    name: &str,
    scope: Scope,
    modules: &Modules,
    resolver: &mut Resolver<'_>,
) -> Result<Mark, PoolError> {
    let (identity, times) = Identity::read(kernel)?;
    let mut now = Snapshot::empty(scope, times);
    now.read_counters(kernel)?;
    let log = Position::read(kernel)?;
    now.list(kernel)?;
    now.read_stacks(kernel, log.as_ref(), resolver)?;
    Ok(Mark { name: name.into(), identity, log, modules: modules.clone(), snapshot: now })
}

/// Why a check has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Different(#[from] Different),
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Looks again. Adds to `harvest` what was logged since it was extended last.
pub fn look(
    kernel: &Kernel<'_>,
    mark: &Mark,
    harvest: Option<&mut Harvest>,
    resolver: &mut Resolver<'_>,
) -> Result<Snapshot, LookError> {
    let (identity, times) = Identity::read(kernel)?;
    mark.identity.same(mark.snapshot.times, &identity, times)?;
    let mut now = Snapshot::empty(mark.snapshot.scope, times);
    now.read_counters(kernel)?;
    let mut harvest = harvest;
    let mut search = false;
    if let Some(harvest) = harvest.as_deref_mut() {
        search = harvest.extend(kernel, resolver, &mut now.notes)?;
    }
    let listed =
        now.take_from_counters(mark) || now.take_from_candidates(kernel, mark, harvest.as_deref(), resolver)?;
    if !listed {
        now.list(kernel)?;
        now.look_up_absent(kernel, mark)?;
    }
    if search && let Some(harvest) = harvest {
        let addresses: BTreeSet<u64> =
            mark.snapshot.blocks.iter().chain(&now.blocks).map(|block| block.address).collect();
        let addresses: Vec<u64> = addresses.into_iter().take(MAX_SEARCHED).collect();
        harvest.search(kernel, &addresses, resolver)?;
    }
    Ok(now)
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
            freed: BTreeSet::new(),
            tracked: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// What a tag's counters gained since, as (allocations, frees); `None` if they cannot be compared.
    pub(crate) fn gained(&self, then: &Snapshot, tag: u32) -> Option<(u64, u64)> {
        let bits = self.counter_bits.filter(|bits| then.counter_bits == Some(*bits))?;
        let mask = u64::MAX >> (64 - u32::from(bits.clamp(1, 64)));
        let of = |snapshot: &Snapshot| snapshot.counters.get(&tag).copied().unwrap_or_default();
        let (then, now) = (of(then), of(self));
        Some((now.allocs.wrapping_sub(then.allocs) & mask, now.frees.wrapping_sub(then.frees) & mask))
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
        let layout = kernel.layout("_POOL_TRACKER_TABLE");
        let size = layout.ok().and_then(|layout| layout.field("PagedFrees").map(|field| field.size));
        if report.notes.is_empty() {
            self.counter_bits = size.filter(|size| matches!(size, 4 | 8)).map(|size| 8 * size as u8);
        }
        self.notes.extend(report.notes);
        for row in report.tags {
            let (n, p) = (row.nonpaged, row.paged);
            let counters = Counters {
                allocs: n.allocs.wrapping_add(p.allocs),
                frees: n.frees.wrapping_add(p.frees),
                bytes: n.bytes.wrapping_add(p.bytes),
            };
            self.counters.insert(row.tag.key(), counters);
        }
        Ok(())
    }

    /// Lists the blocks from the kernel's own books.
    fn list(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        let pages = match self.scope.tag {
            Some(tag) => big_pages::find(kernel, Tag::from_key(tag).0)?,
            None => big_pages::read(kernel, &|_| true)?,
        };
        self.complete &= pages.notes.is_empty();
        self.notes.extend(pages.notes);
        let (freed, live): (Vec<BigPage>, Vec<BigPage>) = pages.blocks.into_iter().partition(|page| page.free);
        if self.scope.tag.is_some() {
            self.freed.extend(freed.iter().map(|page| page.address));
        }
        let mut seen = BTreeSet::new();
        for page in live {
            if self.wants(page.tag, Some(page.kind.is_paged())) && seen.insert(page.address) {
                self.blocks.push(large(&page));
            }
        }
        self.list_tracked(kernel, &seen)
    }

    /// What the verifier tracks and the table of large allocations has not: small blocks.
    fn list_tracked(&mut self, kernel: &Kernel<'_>, large: &BTreeSet<u64>) -> Result<(), PoolError> {
        let drivers = match verifier::drivers(kernel) {
            Ok(drivers) => drivers,
            // This version, or these symbols, have none.
            Err(PoolError::NoSymbol(_) | PoolError::NoType(_) | PoolError::NoField { .. }) => return Ok(()),
            Err(error) => return self.note("the verified drivers", error),
        };
        self.notes.extend(drivers.notes);
        for driver in &drivers.drivers {
            let tracked = match verifier::allocations(kernel, driver) {
                Ok(tracked) => tracked,
                Err(error) => {
                    self.note(&format!("what {} has allocated", driver.name), error)?;
                    continue;
                }
            };
            if tracked.notes.is_empty() && driver.image.is_some() {
                self.tracked.push(driver.name.clone());
            }
            self.notes.extend(tracked.notes);
            for block in tracked.allocations {
                if large.contains(&block.address) || !self.wants(block.tag, None) {
                    continue;
                }
                self.blocks.push(Block {
                    address: block.address,
                    size: block.size,
                    tag: block.tag.key(),
                    paged: None,
                    source: Source::Tracked(driver.name.clone()),
                    allocation: None,
                    stack: None,
                });
            }
        }
        Ok(())
    }

    /// Finds the record of each block's own allocation: the newest of its address, if it is of an allocation.
    fn read_stacks(
        &mut self,
        kernel: &Kernel<'_>,
        log: Option<&Position>,
        resolver: &mut Resolver<'_>,
    ) -> Result<(), PoolError> {
        if log.is_none() || self.blocks.is_empty() {
            return Ok(());
        }
        let addresses: Vec<u64> = self.blocks.iter().map(|block| block.address).take(MAX_SEARCHED).collect();
        if addresses.len() < self.blocks.len() {
            self.notes.push(format!(
                "stacks of {} blocks were not looked for (at most {MAX_SEARCHED} are)",
                self.blocks.len() - addresses.len()
            ));
        }
        let Some(found) = pool_log::find_starts(kernel, &addresses)? else { return Ok(()) };
        self.notes.extend(found.notes);
        let mut newest = BTreeMap::new();
        for trace in &found.traces {
            newest.entry(trace.address).or_insert(trace);
        }
        for block in &mut self.blocks {
            let Some(trace) = newest.get(&block.address) else { continue };
            let record = record(trace, resolver)?;
            if record.operation == Operation::Allocate && fits(record.size, block.size) {
                block.allocation = Some(record.sequence);
                block.stack = Some(self.stacks.add(resolver.stack(&record.frames)?));
            }
        }
        Ok(())
    }

    /// Neither an allocation nor a free of the tag was counted since: the blocks are those of the mark.
    fn take_from_counters(&mut self, mark: &Mark) -> bool {
        let then = &mark.snapshot;
        let Some(tag) = self.scope.tag else { return false };
        if !then.complete || self.gained(then, tag) != Some((0, 0)) {
            return false;
        }
        self.blocks = then.blocks.clone();
        self.tracked = then.tracked.clone();
        true
    }

    /// Takes the blocks of the mark and looks up the addresses that the log names since. That is all of them if every
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
        let Some((allocs, frees)) = self.gained(then, tag) else { return Ok(false) };
        let all_large = then.blocks.iter().all(|block| block.source == Source::Large);
        let candidates: Vec<u64> = harvest.addresses().filter(|address| address & 0xfff == 0).collect();
        if !then.complete || !all_large || candidates.is_empty() || candidates.len() > MAX_CANDIDATES {
            return Ok(false);
        }
        let mut blocks: BTreeMap<u64, Block> = then.blocks.iter().map(|block| (block.address, block.clone())).collect();
        let (mut occupied, mut freed) = (BTreeSet::new(), BTreeSet::new());
        // Operations that are the tag's for certain: what made the state of now out of that of then.
        let mut certain = (0, 0);
        let sites = sites(then, resolver)?;
        for &address in &candidates {
            let was = blocks.remove(&address).is_some();
            let page = big_pages::lookup(kernel, address)?;
            let of_tag = page.as_ref().is_some_and(|page| page.tag.key() == tag);
            let records = harvest.at(address);
            let last = records.iter().rfind(|record| record.operation == Operation::Allocate);
            certain.1 += u64::from(was);
            match page {
                Some(page) if !page.free && self.wants(page.tag, Some(page.kind.is_paged())) => {
                    certain.0 += u64::from(last.is_some());
                    blocks.insert(address, large(&page));
                }
                Some(page) if !page.free && was => {
                    occupied.insert(address);
                }
                Some(page) if page.free && of_tag => {
                    freed.insert(address);
                    // Allocated and freed in between. An old entry alone does not say when.
                    let site = last.map(|record| resolver.site(&record.frames)).transpose()?.flatten();
                    if site.is_some_and(|site| sites.contains(&site)) {
                        let times =
                            records.iter().filter(|record| record.operation == Operation::Allocate).count() as u64;
                        certain.0 += times;
                        certain.1 += times;
                    }
                }
                _ => {}
            }
        }
        if certain != (allocs, frees) {
            return Ok(false);
        }
        self.blocks = blocks.into_values().collect();
        (self.occupied, self.freed) = (occupied, freed);
        self.tracked = then.tracked.clone();
        Ok(true)
    }

    /// Who has the addresses of blocks that are gone.
    fn look_up_absent(&mut self, kernel: &Kernel<'_>, mark: &Mark) -> Result<(), PoolError> {
        let live: BTreeSet<u64> = self.blocks.iter().map(|block| block.address).collect();
        let gone = mark.snapshot.blocks.iter().filter(|block| block.source == Source::Large);
        let gone: Vec<u64> = gone.map(|block| block.address).filter(|address| !live.contains(address)).collect();
        for &address in gone.iter().take(MAX_LOOKUPS) {
            match big_pages::lookup(kernel, address)? {
                Some(page) if !page.free => {
                    self.occupied.insert(address);
                }
                Some(page) if Some(page.tag.key()) == self.scope.tag => {
                    self.freed.insert(address);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Turns what could not be read into a note; a source that is gone stays an error.
    fn note(&mut self, what: &str, error: PoolError) -> Result<(), PoolError> {
        match error {
            PoolError::Fault(_) | PoolError::Read(ReadError::Fault(_)) => Err(error),
            error => {
                self.notes.push(format!("{what}: {error}"));
                Ok(())
            }
        }
    }
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
fn fits(asked: u64, given: u64) -> bool {
    given.checked_sub(asked).is_some_and(|more| more <= 0x1010)
}

fn large(page: &BigPage) -> Block {
    Block {
        address: page.address,
        size: page.size,
        tag: page.tag.key(),
        paged: Some(page.kind.is_paged()),
        source: Source::Large,
        allocation: None,
        stack: None,
    }
}
