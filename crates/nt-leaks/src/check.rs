//! What became of each block of a mark. The reasoning is in docs/leaks.md; the rules here have its numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use nt_memory::Fault;
use nt_pool::{Kernel, Tag};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::harvest::{Harvest, Operation, Record};
use crate::identity::Different;
use crate::mark::Mark;
use crate::print::{Header, MAX_PRINTS, first_bytes};
use crate::snapshot::{Block, NoStack, Snapshot, Source, StackFrom, Tagged, fits};
use crate::stack::{Frame, Module, Resolver, StackId, Stacks};

/// What became of a block since the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The same allocation.
    Still,
    /// It is not there any more.
    Freed,
    /// Freed, and the address was allocated again.
    Reused,
    /// Allocated since.
    New,
    /// Nothing proves what became of it.
    Unknown,
}

/// What a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The verifier's log shows what happened, or that nothing did.
    Log,
    /// The tag's counters leave no other possibility.
    Counters,
    /// The pool header of a small block is as it was. Weak: the next block of the same size and tag gets the same.
    Header,
    /// The block's first bytes are as they were. Weak: a driver may fill each block alike, or never write to it.
    Content,
    /// The kernel's list of blocks has the address, or has it no more.
    Address,
}

impl Evidence {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Evidence::Log => "log",
            Evidence::Counters => "counters",
            Evidence::Header => "header",
            Evidence::Content => "content",
            Evidence::Address => "address",
        }
    }
}

impl Verdict {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Still => "still",
            Verdict::Freed => "freed",
            Verdict::Reused => "reused",
            Verdict::New => "new",
            Verdict::Unknown => "unknown",
        }
    }
}

/// One block, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BlockReport {
    /// What the allocation call returned.
    #[serde(with = "crate::hex")]
    #[schemars(schema_with = "crate::hex::schema")]
    pub address: u64,
    /// Bytes that its caller may use.
    pub size: u64,
    /// Its owner's.
    #[serde(with = "tag")]
    #[schemars(with = "String", length(equal = 4))]
    pub tag: Tag,
    /// What became of it.
    pub verdict: Verdict,
    /// All that the verdict rests on; empty for an unknown one.
    pub evidence: Vec<Evidence>,
    /// Who allocated it: the block that is there now, or else the one that was.
    pub stack: Option<StackId>,
    /// Whether log or verifier's list gave the stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_from: Option<StackFrom>,
    /// Why the log has no record of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_stack: Option<NoStack>,
    /// The kernel's books list it now, under its tag.
    #[serde(skip)]
    pub listed: bool,
}

pub(crate) mod tag {
    use nt_pool::Tag;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(tag: &Tag, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(tag)
    }

    /// Bytes that are not printable were written as dots, and stay dots.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tag, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.as_bytes().try_into().map_err(|_| de::Error::custom("a tag has four characters"))?;
        Ok(Tag(bytes))
    }
}

/// How many blocks have each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Summary {
    /// The same allocations as at the mark.
    pub still: u64,
    /// Of the mark, and gone.
    pub freed: u64,
    /// Of the mark, freed and allocated again.
    pub reused: u64,
    /// Not there at the mark.
    pub new: u64,
    /// Of which nothing is proved.
    pub unknown: u64,
}

/// Blocks that one stack allocated: now, and compared with the mark.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Group {
    /// `None`: blocks whose stack is not known.
    pub id: Option<StackId>,
    /// In use now.
    pub bytes: u64,
    /// Blocks in use now.
    pub count: u64,
    /// More bytes than at the mark.
    pub delta_bytes: i64,
    /// More blocks than at the mark.
    pub delta_count: i64,
    /// Innermost first.
    #[serde(with = "crate::stack::frames")]
    #[schemars(with = "Vec<crate::stack::frames::Shown>")]
    pub frames: Vec<Frame>,
}

/// A tag's counters since the mark, and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TagBooks {
    /// The tag that was counted.
    #[serde(with = "tag")]
    #[schemars(with = "String", length(equal = 4))]
    pub tag: Tag,
    /// Blocks at the mark.
    pub marked: u64,
    /// Operations that were counted since; `None` when the counters cannot be compared.
    pub allocs: Option<u64>,
    /// As `allocs`.
    pub frees: Option<u64>,
    /// So many blocks of the mark are still there for certain.
    pub at_least: u64,
    /// Bytes in use, as the counters say, now and at the mark.
    pub bytes: u64,
    /// At the mark.
    pub bytes_marked: u64,
}

/// `Leak: 23 blocks at the mark; since then 2 allocations and 1 frees; …`
impl fmt::Display for TagBooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TagBooks { tag, marked, allocs, frees, at_least, bytes, .. } = self;
        write!(f, "{tag}: {marked} blocks at the mark; ")?;
        match allocs.zip(*frees) {
            Some((allocs, frees)) => write!(
                f,
                "since then {allocs} allocations and {frees} frees; at least {at_least} of the {marked} are still there; \
                 {bytes} bytes in use"
            ),
            None => write!(f, "its counters cannot be compared"),
        }
    }
}

/// A look compared with a mark: every block, by block and by stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CheckReport {
    /// The mark's name.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub mark: String,
    /// While the target ran.
    pub elapsed_ms: u64,
    /// By address.
    pub blocks: Vec<BlockReport>,
    /// Most growth first. Blocks without a stack are in `unattributed`.
    pub stacks: Vec<Group>,
    /// Those whose stack is not known.
    #[serde(default)]
    pub unattributed: Option<Group>,
    /// Blocks by verdict.
    pub summary: Summary,
    /// What the counters alone prove.
    #[serde(default)]
    pub tags: Vec<TagBooks>,
    /// Records were overwritten between two looks: the log proves less.
    pub log_wrapped: bool,
    /// The counters could be read, all of them.
    #[serde(skip)]
    pub is_counted: bool,
    /// Where the frames lie, to name them without the target.
    #[serde(default)]
    pub modules: Vec<Module>,
    /// What is missing, as sentences.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// What a check found in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Since the mark.
    pub elapsed_ms: u64,
    /// Bytes in use, as the counters say.
    pub bytes: u64,
}

impl Group {
    /// Adds what another tag has of the same stack.
    fn add(&mut self, other: &Group) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.count = self.count.saturating_add(other.count);
        self.delta_bytes = self.delta_bytes.saturating_add(other.delta_bytes);
        self.delta_count = self.delta_count.saturating_add(other.delta_count);
    }
}

impl CheckReport {
    /// Adds a check of another tag at the same stop.
    pub(crate) fn merge(&mut self, other: &CheckReport) {
        self.blocks.extend(other.blocks.iter().cloned());
        let mut places: HashMap<StackId, usize> =
            self.stacks.iter().enumerate().filter_map(|(place, group)| Some((group.id?, place))).collect();
        for group in &other.stacks {
            match group.id.and_then(|id| places.get(&id).copied()) {
                Some(place) => self.stacks[place].add(group),
                None => {
                    places.extend(group.id.map(|id| (id, self.stacks.len())));
                    self.stacks.push(group.clone());
                }
            }
        }
        self.stacks.sort_by_key(|group| std::cmp::Reverse(group.delta_bytes));
        match (&mut self.unattributed, &other.unattributed) {
            (Some(ours), Some(theirs)) => ours.add(theirs),
            (None, theirs) => self.unattributed.clone_from(theirs),
            (Some(_), None) => {}
        }
        self.elapsed_ms = self.elapsed_ms.max(other.elapsed_ms);
        let (s, o) = (&mut self.summary, other.summary);
        for (sum, more) in [
            (&mut s.still, o.still),
            (&mut s.freed, o.freed),
            (&mut s.reused, o.reused),
            (&mut s.new, o.new),
            (&mut s.unknown, o.unknown),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.tags.extend(other.tags.iter().cloned());
        self.log_wrapped |= other.log_wrapped;
        for module in &other.modules {
            if !self.modules.iter().any(|known| known.base == module.base) {
                self.modules.push(module.clone());
            }
        }
        let notes = other.notes.iter().filter(|note| !self.notes.contains(note)).cloned().collect::<Vec<_>>();
        self.notes.extend(notes);
    }

    /// What a chart of several checks has of this one.
    pub fn growth(&self) -> Growth {
        let bytes = self.tags.iter().fold(0u64, |sum, tag| sum.saturating_add(tag.bytes));
        Growth { elapsed_ms: self.elapsed_ms, bytes }
    }
}

/// Compares a look with a mark.
pub fn check(
    mark: &Mark,
    now: &Snapshot,
    harvest: Option<&Harvest>,
    resolver: &mut Resolver<'_>,
) -> Result<CheckReport, Fault> {
    let then = &mark.snapshot;
    let (mut marked, mut live) = (then.by_tag(), now.by_tag());
    let mut tags: BTreeSet<u32> = marked.keys().chain(live.keys()).copied().collect();
    tags.extend(then.scope.tag);
    let mut of_tag = |tag| {
        let marked = marked.remove(&tag).unwrap_or_else(|| then.none_of(tag));
        (tag, marked, live.remove(&tag).unwrap_or_else(|| now.none_of(tag)))
    };
    let tags: Vec<(u32, Tagged<'_>, Tagged<'_>)> = tags.into_iter().map(&mut of_tag).collect();
    let known: HashSet<u64> = then.blocks.iter().map(|block| block.address).collect();
    let listed: HashMap<u64, &Block> = now.blocks.iter().map(|block| (block.address, block)).collect();
    let sites = Sites::new(mark, now, harvest, resolver)?;
    let mut report = CheckReport {
        mark: mark.name.clone(),
        elapsed_ms: now.times.interrupt.saturating_sub(then.times.interrupt) / 10_000,
        log_wrapped: harvest.is_some_and(Harvest::has_wrapped),
        is_counted: now.counter_bits.is_some(),
        notes: now.notes.clone(),
        ..CheckReport::default()
    };
    report.notes.extend(uncounted(&tags));
    for (tag, marked, live) in tags {
        let exact = (marked.is_exact(), live.is_exact());
        Books { tag, then, now, marked, live, exact, known: &known, listed: &listed, harvest, sites: &sites }
            .judge(&mut report);
    }
    let order: HashMap<u64, usize> = then.blocks.iter().enumerate().map(|(i, block)| (block.address, i)).collect();
    report.blocks.sort_by_key(|block| (order.get(&block.address).copied().unwrap_or(usize::MAX), block.address));
    let mut stacks = then.stacks.clone();
    name_stacks(mark, now, harvest, resolver, &mut stacks, &mut report)?;
    let listed = report.blocks.iter().filter(|block| block.listed);
    let now: Vec<Part> = listed.map(|block| Part { stack: block.stack, size: block.size }).collect();
    (report.stacks, report.unattributed) = group(&parts(then), &now, &stacks);
    report.modules = resolver.identified(report.stacks.iter().flat_map(|group| &group.frames))?;
    for block in &report.blocks {
        let count = match block.verdict {
            Verdict::Still => &mut report.summary.still,
            Verdict::Freed => &mut report.summary.freed,
            Verdict::Reused => &mut report.summary.reused,
            Verdict::New => &mut report.summary.new,
            Verdict::Unknown => &mut report.summary.unknown,
        };
        *count += 1;
    }
    Ok(report)
}

/// Says of which tags the counters are not used.
fn uncounted(tags: &[(u32, Tagged<'_>, Tagged<'_>)]) -> Option<String> {
    const NAMED: usize = 4;
    let compared = |then: &Tagged<'_>, now: &Tagged<'_>| {
        then.look.counter_bits.is_some_and(|bits| now.look.counter_bits == Some(bits))
    };
    let tags = tags.iter().filter(|(_, then, now)| compared(then, now) && !(then.are_counted() && now.are_counted()));
    let mut tags: Vec<String> = tags.map(|(tag, ..)| Tag::from_key(*tag).0.to_string()).collect();
    if tags.is_empty() {
        return None;
    }
    if tags.len() > NAMED {
        let more = tags.len() - NAMED;
        tags.truncate(NAMED);
        tags.push(format!("{more} more tags"));
    }
    Some(format!(
        "more blocks of {} are listed than the counters have (they may be counted in the row of the tags that found no \
         place), so nothing is concluded from them",
        tags.join(", ")
    ))
}

/// How often the log shows an operation that is known to be of a tag.
#[derive(Default)]
struct Sites {
    /// Allocations from a place that is known to allocate the tag.
    allocs: HashMap<u32, u64>,
    /// Allocations from places that are not known to allocate one tag, and such as are not settled.
    unowned: u64,
    /// Frees of the mark's blocks, and of what a place that is known to allocate the tag allocated since.
    frees: HashMap<u32, u64>,
    /// Frees of what may have had any tag.
    unowned_frees: u64,
}

impl Sites {
    fn new(mark: &Mark, now: &Snapshot, harvest: Option<&Harvest>, resolver: &mut Resolver<'_>) -> Result<Self, Fault> {
        let mut found = Sites::default();
        let Some(harvest) = harvest else { return Ok(found) };
        let mut owners: HashMap<(String, u64), BTreeSet<u32>> = HashMap::new();
        let certain =
            |block: &&Block| own_record(block, harvest).is_some() || block.stack_from == Some(StackFrom::Verifier);
        for block in mark.snapshot.blocks.iter().filter(certain) {
            let frames = block.stack.map(|id| mark.snapshot.stacks.get(id)).unwrap_or_default();
            let addresses: Vec<u64> = frames.iter().map(|frame| frame.address).collect();
            if let Some(site) = resolver.site(&addresses)? {
                owners.entry(site).or_default().insert(block.tag);
            }
        }
        for block in &now.blocks {
            let newest = newest_allocation(harvest.at(block.address));
            if let Some(record) = newest.filter(|record| harvest.is_settled(record) && fits(record.size, block.size))
                && let Some(site) = resolver.site(&record.frames)?
            {
                owners.entry(site).or_default().insert(block.tag);
            }
        }
        let then: HashMap<u64, &Block> = mark.snapshot.blocks.iter().map(|block| (block.address, block)).collect();
        let now: HashMap<u64, u32> = now.blocks.iter().map(|block| (block.address, block.tag)).collect();
        for address in harvest.addresses() {
            let known = then.get(&address);
            let mut before = if known.is_some() { Operation::Allocate } else { Operation::Free };
            let mut held = known.map(|block| block.tag);
            // The mark's own allocation, logged late, was counted before.
            let late = known.is_some_and(|block| own_record(block, harvest).is_none());
            for (at, record) in harvest.at(address).iter().enumerate() {
                let was = std::mem::replace(&mut before, record.operation);
                if record.operation == Operation::Free {
                    match held.take() {
                        Some(tag) => *found.frees.entry(tag).or_insert(0) += 1,
                        None => found.unowned_frees += 1,
                    }
                }
                if record.operation != Operation::Allocate || at == 0 && late {
                    continue;
                }
                held = None;
                // A place that allocates with several tags says nothing of one of them.
                let site = resolver.site(&record.frames)?;
                let tags = site.and_then(|site| owners.get(&site)).filter(|tags| tags.len() == 1);
                let Some(&tag) = tags.and_then(BTreeSet::first) else {
                    found.unowned += 1;
                    continue;
                };
                // What is not settled is believed if the list agrees: something was allocated there.
                let listed = was == Operation::Free && now.get(&address) == Some(&tag);
                if listed || harvest.is_settled(record) {
                    *found.allocs.entry(tag).or_insert(0) += 1;
                    held = Some(tag);
                } else {
                    found.unowned += 1;
                }
            }
        }
        Ok(found)
    }

    /// How many of the operations are of the tag.
    fn count(operations: &HashMap<u32, u64>, tag: u32) -> u64 {
        operations.get(&tag).copied().unwrap_or(0)
    }
}

fn newest_allocation(records: &[Record]) -> Option<&Record> {
    records.last().filter(|record| record.operation == Operation::Allocate)
}

/// The record of a block's own allocation, where it was what the mark took it for.
fn own_record(block: &Block, harvest: &Harvest) -> Option<u32> {
    block.allocation.filter(|sequence| harvest.is_true(*sequence))
}

/// One tag's blocks and counters, then and now.
struct Books<'a> {
    tag: u32,
    then: &'a Snapshot,
    now: &'a Snapshot,
    marked: Tagged<'a>,
    live: Tagged<'a>,
    /// The lists of then and of now have all blocks, and nothing else.
    exact: (bool, bool),
    /// All that was listed at the mark.
    known: &'a HashSet<u64>,
    /// All that is listed now.
    listed: &'a HashMap<u64, &'a Block>,
    harvest: Option<&'a Harvest>,
    sites: &'a Sites,
}

impl Books<'_> {
    fn judge(&self, report: &mut CheckReport) {
        let (marked, live) = (&self.marked.blocks, &self.live.blocks);
        let mut verdicts: BTreeMap<u64, (Verdict, Vec<Evidence>)> = BTreeMap::new();
        let mut open = Vec::new();
        for &block in marked.values() {
            let verdict = match live.get(&block.address) {
                Some(now) if now.source == block.source && now.size != block.size => {
                    Some((Verdict::Reused, evidence(Evidence::Address, self.logged_reuse(block))))
                }
                Some(_) if self.logged_reuse(block) => Some((Verdict::Reused, vec![Evidence::Log])),
                Some(_) => {
                    open.push(block);
                    None
                }
                None => Some(self.absent(block)),
            };
            verdicts.extend(verdict.map(|verdict| (block.address, verdict)));
        }
        let fresh: Vec<&Block> = live.values().copied().filter(|block| !marked.contains_key(&block.address)).collect();
        let count = |wanted: Verdict| verdicts.values().filter(|(verdict, _)| *verdict == wanted).count() as u64;
        let (gone, reused, fresh_count) = (count(Verdict::Freed), count(Verdict::Reused), fresh.len() as u64);
        // Blocks whose address went to another tag are gone, not allocated again under this one.
        let went = |(address, (verdict, _)): &(&u64, &(Verdict, _))| {
            *verdict == Verdict::Reused && !live.contains_key(address)
        };
        let elsewhere = verdicts.iter().filter(went).count() as u64;
        let again = reused - elsewhere;

        let gained = self.live.gained(&self.marked);
        let possible = self.possible_reuses(gained, (gone + elsewhere, again, fresh_count), report);
        let nothing_left = possible == Some(0);
        let accounted = self.harvest.is_some_and(Harvest::is_complete)
            && gained.is_some_and(|(allocs, _)| Sites::count(&self.sites.allocs, self.tag) == allocs);
        let has_hole = self.shows_hole(&fresh, gained);
        let mut proved = 0;
        let mut left = 0;
        let doubted = self.then.large_doubted || self.now.large_doubted;
        for block in open {
            // Neither its place nor its size is certain where the table is not.
            if doubted && block.source == Source::Large {
                left += 1;
                verdicts.insert(block.address, (Verdict::Unknown, vec![Evidence::Address]));
                continue;
            }
            let quiet = self.records(block.address).is_empty();
            // The verifier tracks what it logged the allocation of, and logs its free, whoever frees it.
            let unfreed = quiet
                && !has_hole
                && self.own_record(block).is_some()
                && self.harvest.is_some_and(Harvest::is_complete);
            let certain = block.source != Source::Small || self.exact.0;
            let verdict = if nothing_left && certain {
                (Verdict::Still, evidence(Evidence::Counters, unfreed))
            } else if unfreed {
                (Verdict::Still, vec![Evidence::Log])
            } else if !certain {
                // It may have been free already, in a list of the pool's that its page does not show.
                verdicts.insert(block.address, (Verdict::Unknown, vec![Evidence::Address]));
                continue;
            } else if accounted && quiet {
                (Verdict::Still, vec![Evidence::Log, Evidence::Counters])
            } else {
                (Verdict::Unknown, vec![Evidence::Address])
            };
            match verdict.0 {
                Verdict::Still => proved += 1,
                _ => left += 1,
            }
            verdicts.insert(block.address, verdict);
        }
        for block in marked.values() {
            // Another tag's block has its line here, and none of its own.
            let now = self.listed.get(&block.address);
            if let Some((verdict, evidence)) = verdicts.remove(&block.address) {
                report.blocks.push(self.line(now.unwrap_or(block), now.is_some(), verdict, evidence));
            }
        }
        for block in fresh.into_iter().filter(|block| !self.known.contains(&block.address)) {
            let logged = newest_allocation(self.records(block.address)).is_some();
            let verdict = match self.then.complete && self.was_watched(block) {
                true => (Verdict::New, evidence(Evidence::Address, logged)),
                // The newest of two cannot be a late record of before.
                false if self.records(block.address).len() > 1 && self.settled_allocation(block.address).is_some() => {
                    (Verdict::New, vec![Evidence::Log])
                }
                false => (Verdict::Unknown, vec![Evidence::Address]),
            };
            report.blocks.push(self.line(block, true, verdict.0, verdict.1));
        }
        let bytes = |snapshot: &Snapshot| snapshot.counters.get(&self.tag).map_or(0, |counters| counters.bytes);
        if marked.is_empty() && live.is_empty() && self.now.scope.tag.is_none() {
            return;
        }
        report.tags.push(TagBooks {
            tag: Tag::from_key(self.tag).0,
            marked: marked.len() as u64,
            allocs: gained.map(|gained| gained.0),
            frees: gained.map(|gained| gained.1),
            at_least: proved + possible.map_or(0, |possible| u64::saturating_sub(left, possible)),
            bytes: bytes(self.now),
            bytes_marked: bytes(self.then),
        });
    }

    fn records(&self, address: u64) -> &[Record] {
        self.harvest.map_or(&[], |harvest| harvest.at(address))
    }

    /// The log shows that a block which is listed now is not the one of the mark: an allocation that is not the mark's
    /// own. A free alone does not do: it is logged before it is done, and the target may have been stopped in between.
    fn logged_reuse(&self, block: &Block) -> bool {
        let records = self.records(block.address);
        let Some(last) = records.iter().rposition(|record| record.operation == Operation::Allocate) else {
            return false;
        };
        // The mark's own allocation was logged before the mark, so this is another one. Without that it may be the
        // mark's own, logged late, unless something came before. So it may if it is not settled.
        self.own_record(block).is_some_and(|own| own != records[last].sequence) && self.is_settled(&records[last])
            || records[..last].iter().any(|record| record.operation != Operation::Unknown)
    }

    fn own_record(&self, block: &Block) -> Option<u32> {
        self.harvest.and_then(|harvest| own_record(block, harvest))
    }

    /// The verifier may leave a record out (pool-internals 9). Says whether operations of the tag show that it did:
    /// then its silence proves nothing. `gained`: allocations and frees that were counted since.
    fn shows_hole(&self, fresh: &[&Block], gained: Option<(u64, u64)>) -> bool {
        let is = |operation: Operation| move |record: &Record| record.operation == operation;
        let freed_unseen = self.marked.blocks.values().filter(|block| self.own_record(block).is_some()).any(|block| {
            let records = self.records(block.address);
            let absent = self.now.complete && !self.live.blocks.contains_key(&block.address);
            records.first().is_some_and(is(Operation::Allocate)) || absent && !records.iter().any(is(Operation::Free))
        });
        let twice = |records: &[Record]| records.windows(2).any(|pair| pair.iter().all(is(Operation::Allocate)));
        let addresses = self.marked.blocks.keys().chain(self.live.blocks.keys());
        let allocated_twice = addresses.clone().any(|address| twice(self.records(*address)));
        let unlogged = |block: &&Block| newest_allocation(self.records(block.address)).is_none();
        let tracked_unseen =
            fresh.iter().copied().any(|block| unlogged(&block) && self.now.callers.contains_key(&block.address));
        // Where nobody else uses the tag, all that was counted is logged; what is of no known tag may be of this one.
        let others = self.marked.blocks.values().any(|block| self.own_record(block).is_none())
            || fresh.iter().copied().any(|block| unlogged(&block));
        let logged = Sites::count(&self.sites.allocs, self.tag) + self.sites.unowned;
        let too_few = !others && gained.is_some_and(|(allocs, _)| allocs > logged);
        // Whoever made them, frees that are not in the log may be of any block.
        let freed = Sites::count(&self.sites.frees, self.tag) + self.sites.unowned_frees;
        let silent = gained.is_none_or(|(_, frees)| frees > freed);
        freed_unseen || allocated_twice || tracked_unseen || too_few || silent
    }

    fn is_settled(&self, record: &Record) -> bool {
        self.harvest.is_some_and(|harvest| harvest.is_settled(record))
    }

    /// The newest record of an address, if it is of an allocation and settled.
    fn settled_allocation(&self, address: u64) -> Option<&Record> {
        newest_allocation(self.records(address)).filter(|record| self.is_settled(record))
    }

    fn line(&self, block: &Block, listed: bool, verdict: Verdict, evidence: Vec<Evidence>) -> BlockReport {
        let Block { address, size, .. } = *block;
        BlockReport {
            address,
            size,
            tag: Tag::from_key(self.tag).0,
            verdict,
            evidence,
            stack: None,
            stack_from: None,
            no_stack: None,
            listed,
        }
    }

    /// A block that the kernel's books do not list under this tag any more.
    fn absent(&self, block: &Block) -> (Verdict, Vec<Evidence>) {
        let logged = self.records(block.address).iter().any(|record| record.operation == Operation::Free);
        if self.listed.contains_key(&block.address) || self.now.occupied.contains(&block.address) {
            return (Verdict::Reused, evidence(Evidence::Address, logged));
        }
        let allocated_last = self.settled_allocation(block.address).is_some();
        let address = block.address;
        let gone = match &block.source {
            Source::Large => self.now.complete,
            // The verifier's list is of one driver's blocks: others may have the address.
            Source::Tracked(driver) => self.now.tracked.contains(driver) && self.now.gone.contains(&address),
            Source::Small => self.now.gone.contains(&address) && self.exact.0,
        };
        let tracked = match &block.source {
            Source::Tracked(driver) => self.now.tracked.contains(driver),
            Source::Large | Source::Small => false,
        };
        match gone {
            true => (Verdict::Freed, evidence(Evidence::Address, logged)),
            false if tracked && allocated_last => (Verdict::Reused, vec![Evidence::Log, Evidence::Address]),
            // Freed last, and no page is there.
            false if tracked && logged && self.now.unmapped.contains(&address) => {
                (Verdict::Freed, vec![Evidence::Log, Evidence::Address])
            }
            // A part of the table is missing: the block may be there.
            _ => (Verdict::Unknown, vec![Evidence::Address]),
        }
    }

    /// Whether the book that lists the block was read at the mark.
    fn was_watched(&self, block: &Block) -> bool {
        match &block.source {
            Source::Large => true,
            Source::Tracked(driver) => self.then.tracked.contains(driver),
            Source::Small => self.exact == (true, true),
        }
    }

    /// At most so many of the blocks that are listed then and now can have been freed and allocated again in between;
    /// `None` when the counters do not tell.
    ///
    /// Each such block took one free and one allocation of the tag that are not those of a block known to be gone or
    /// new.
    fn possible_reuses(
        &self,
        gained: Option<(u64, u64)>,
        (gone, again, fresh): (u64, u64, u64),
        report: &mut CheckReport,
    ) -> Option<u64> {
        let (allocs, frees) = gained?;
        if frees == 0 {
            if again > 0 {
                // The log says freed, the counter says not: one of them is misread.
                report.notes.push(format!(
                    "{}: the log shows frees that its counter did not count; nothing is concluded from the counter",
                    Tag::from_key(self.tag).0
                ));
                return None;
            }
            return Some(0);
        }
        let difference = |now: u64, then: u64| i128::from(now) - i128::from(then);
        let balanced = difference(allocs, frees)
            == difference(self.live.blocks.len() as u64, self.marked.blocks.len() as u64)
            && self.then.complete
            && self.now.complete;
        if !balanced {
            // Small blocks, or an operation that was stopped half way: nothing can be subtracted.
            return Some(frees);
        }
        let by_frees = frees.checked_sub(gone + again)?;
        let by_allocs = allocs.checked_sub(fresh + again)?;
        Some(by_frees.min(by_allocs))
    }
}

fn evidence(first: Evidence, log: bool) -> Vec<Evidence> {
    let mut evidence = vec![first];
    if log {
        evidence.insert(0, Evidence::Log);
    }
    evidence
}

/// Gives each block its stack, or the reason why there is none.
fn name_stacks(
    mark: &Mark,
    now: &Snapshot,
    harvest: Option<&Harvest>,
    resolver: &mut Resolver<'_>,
    stacks: &mut Stacks,
    report: &mut CheckReport,
) -> Result<(), Fault> {
    let known: HashMap<(u64, u32), &Block> =
        mark.snapshot.blocks.iter().map(|block| ((block.address, block.tag), block)).collect();
    for block in &mut report.blocks {
        let own = known.get(&(block.address, block.tag.key()));
        let of_mark = !block.listed || matches!(block.verdict, Verdict::Still | Verdict::Freed);
        let records = harvest.map_or(&[][..], |harvest| harvest.at(block.address));
        let tells = |record: &&Record| !of_mark && harvest.is_some_and(|harvest| harvest.is_newest(record));
        let newest = newest_allocation(records).filter(tells);
        let caller = now.callers.get(&block.address);
        match (newest, caller, own) {
            (Some(record), ..) => {
                block.stack = Some(stacks.add(resolver.stack(&record.frames)?));
                block.stack_from = Some(StackFrom::Log);
            }
            (None, _, Some(own)) if of_mark || block.verdict == Verdict::Unknown => {
                (block.stack, block.stack_from, block.no_stack) = (own.stack, own.stack_from, own.no_stack);
            }
            (None, caller, _) => {
                if let Some(&caller) = caller {
                    block.stack = Some(stacks.add(resolver.stack(&[caller])?));
                    block.stack_from = Some(StackFrom::Verifier);
                }
                block.no_stack = match harvest {
                    None => Some(NoStack::NoLog),
                    // All that verified code did since is in the log, and this is not.
                    Some(harvest) if harvest.is_complete() => caller.is_none().then_some(NoStack::NotVerified),
                    Some(_) => Some(NoStack::Wrapped),
                };
            }
        }
    }
    Ok(())
}

/// What two marks of one life of a kernel differ in: their stacks, not single blocks.
pub fn compare(old: &Mark, new: &Mark) -> Result<CheckReport, Different> {
    let (then, now) = (&old.snapshot, &new.snapshot);
    old.identity.same(then.times, &new.identity, now.times, std::time::Duration::ZERO)?;
    let mut stacks = then.stacks.clone();
    stacks.merge(&now.stacks);
    let (stacks, unattributed) = group(&parts(then), &parts(now), &stacks);
    let named = |mark: &'_ Mark| -> Vec<String> {
        mark.snapshot.notes.iter().map(|note| format!("{}: {note}", mark.name)).collect()
    };
    let notes = named(old).into_iter().chain(named(new));
    let used = |module: &&Module| module.in_stack;
    let mut modules: Vec<Module> = new.modules.iter().filter(used).cloned().collect();
    modules.extend(old.modules.iter().filter(used).filter(|old| !new.modules.iter().any(|new| new == *old)).cloned());
    Ok(CheckReport {
        mark: format!("{} and {}", old.name, new.name),
        elapsed_ms: now.times.interrupt.saturating_sub(then.times.interrupt) / 10_000,
        stacks,
        unattributed,
        modules,
        notes: notes.collect(),
        ..CheckReport::default()
    })
}

/// What a mark holds, by stack, as if there had been nothing before.
pub fn contents(mark: &Mark) -> CheckReport {
    let snapshot = &mark.snapshot;
    let (stacks, unattributed) = group(&[], &parts(snapshot), &snapshot.stacks);
    CheckReport {
        mark: mark.name.clone(),
        stacks,
        unattributed,
        modules: mark.modules.iter().filter(|module| module.in_stack).cloned().collect(),
        notes: snapshot.notes.clone(),
        ..CheckReport::default()
    }
}

/// A block, as far as groups are concerned.
struct Part {
    stack: Option<StackId>,
    size: u64,
}

fn parts(snapshot: &Snapshot) -> Vec<Part> {
    snapshot.blocks.iter().map(|block| Part { stack: block.stack, size: block.size }).collect()
}

/// Puts blocks with the same stack together: most growth first, and those without a stack apart.
fn group(then: &[Part], now: &[Part], stacks: &Stacks) -> (Vec<Group>, Option<Group>) {
    let mut groups: BTreeMap<Option<StackId>, Group> = BTreeMap::new();
    for (parts, is_now) in [(then, false), (now, true)] {
        for Part { stack, size } in parts {
            let group = groups.entry(*stack).or_insert_with(|| Group {
                id: *stack,
                bytes: 0,
                count: 0,
                delta_bytes: 0,
                delta_count: 0,
                frames: stack.map(|id| stacks.get(id).to_vec()).unwrap_or_default(),
            });
            let signed = i64::try_from(*size).unwrap_or(i64::MAX);
            if is_now {
                group.bytes = group.bytes.saturating_add(*size);
                group.count += 1;
                group.delta_bytes = group.delta_bytes.saturating_add(signed);
                group.delta_count += 1;
            } else {
                group.delta_bytes = group.delta_bytes.saturating_sub(signed);
                group.delta_count -= 1;
            }
        }
    }
    let unattributed = groups.remove(&None);
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.delta_bytes, group.bytes, group.id)));
    (groups, unattributed)
}

/// Adds what is weak evidence, for the blocks that stayed open: their headers and first bytes are read again. It
/// decides nothing; who reads the report may weigh it.
pub fn weigh(kernel: &Kernel<'_>, mark: &Mark, report: &mut CheckReport) -> Result<(), Fault> {
    let known: HashMap<u64, &Block> = mark.snapshot.blocks.iter().map(|block| (block.address, block)).collect();
    let open = report.blocks.iter_mut().filter(|block| block.verdict == Verdict::Unknown && block.listed);
    let mut weighed = 0;
    for block in open {
        let Some(then) = known.get(&block.address).filter(|then| then.header.is_some() || then.content.is_some())
        else {
            continue;
        };
        if weighed == MAX_PRINTS {
            report.notes.push(format!("header and content of only {MAX_PRINTS} unknown blocks were compared"));
            break;
        }
        weighed += 1;
        if let Some(header) = &then.header
            && Header::read(kernel, header.address)?.as_ref() == Some(header)
        {
            block.evidence.insert(0, Evidence::Header);
        }
        if let Some(content) = &then.content
            && first_bytes(kernel, then)?.as_ref() == Some(content)
        {
            let at = block.evidence.iter().filter(|evidence| **evidence == Evidence::Header).count();
            block.evidence.insert(at, Evidence::Content);
        }
    }
    Ok(())
}
