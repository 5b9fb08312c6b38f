//! Driver Verifier's log of pool allocations and frees: `!verifier 0x80`.
//!
//! `nt!VfPoolTraces` is a ring of `_VF_POOL_TRACE` records (13 return addresses; 50 on Windows 11). Nothing in a record
//! says whether it is of an allocation or of a free; the functions on its stack do ([`operation`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use crate::checks::{Book, Check};
use crate::record::{Member, Record};
use crate::ring::{Names, Ring};
use crate::search::{Seek, Seeker, bulk_requests};
use crate::{Kernel, Missing, Notes, PoolError};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Counts since the log was made; stays with a record until it is overwritten.
    pub sequence: u32,
    /// What the allocation call returned, or was freed.
    pub address: u64,
    /// What was asked for (allocation), what the block could hold (free).
    pub size: u64,
    /// ETHREAD of whoever did it.
    pub thread: u64,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
}

impl Trace {
    /// kd's filter: the address is one of the block's bytes.
    pub fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.size.max(1))
    }
}

/// A block is no larger than pool can be.
const MOST_BYTES: u64 = 1 << 40;
const MOST_BYTES_32: u64 = 1 << 31;

/// How many of a log's records make sense: the block and its thread are where pool is, and a stack leads there.
pub fn check(kernel: &Kernel<'_>, traces: &[Trace]) -> Option<Check> {
    // An ETHREAD is a block of pool: two pointers are its header, and blocks' unit.
    let unit = 2 * u64::from(kernel.pointer_size);
    let most = if kernel.pointer_size == 4 { MOST_BYTES_32 } else { MOST_BYTES };
    let is_block = |address: u64, unit: u64| kernel.is_kernel_address(address) && address.is_multiple_of(unit);
    // What was being written when the target stopped may have an address, and nothing else yet.
    let written: Vec<&Trace> = traces.iter().filter(|trace| trace.size != 0 || !trace.frames.is_empty()).collect();
    let good = written.iter().filter(|trace| {
        is_block(trace.address, 8)
            && (1..most).contains(&trace.size)
            && is_block(trace.thread, unit)
            && !trace.frames.is_empty()
            && trace.frames.iter().all(|frame| kernel.is_kernel_address(*frame))
    });
    Check::most(Book::LogRecords, written.len() as u64, good.count() as u64)
}

/// Whether the newest of all records (newest first) is the one that the index names. Records that were being written when
/// the target stopped may not be there yet.
pub fn check_index(index: u32, traces: &[Trace]) -> Option<Check> {
    let newest = traces.first()?.sequence;
    let settled = index.wrapping_sub(newest) <= UNSETTLED;
    Some(Check::new(Book::LogIndex, index.into(), if settled { index } else { newest }.into(), 0))
}

/// Which records of the log are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that the ring holds.
    All,
    /// So many, the last ones.
    Newest(u32),
    /// Records whose block contains the address.
    Address(u64),
}

/// The log of allocations or of frees, or what of it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLog {
    /// Slots in the ring.
    pub length: u32,
    /// The newest record's sequence number.
    pub index: u32,
    /// Slots looked at; slots that were never written count, as in kd.
    pub parsed: u32,
    /// Newest first.
    pub traces: Vec<Trace>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// Requests that one way to search may take before a narrower one is tried; a part of the log that takes no more to
/// read is read.
const FEW: u64 = 8;

/// Reads the log. `Ok(None)`: the kernel keeps no such log now.
///
/// An address is looked for in every record, since a block that contains it may start anywhere before it; see
/// [`find`] for a cheaper way that says what it leaves out.
pub fn read(kernel: &Kernel<'_>, wanted: Wanted) -> Result<Option<PoolLog>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    Ok(Some(match wanted {
        Wanted::All => log.all(kernel, &|_| true)?,
        Wanted::Address(address) => log.all(kernel, &|trace| trace.contains(address))?,
        Wanted::Newest(count) => log.newest(kernel, count)?,
    }))
}

/// Records of one address, and which blocks were looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The records that were found.
    pub log: PoolLog,
    /// Blocks that start in this range were looked for; a block that starts lower and reaches up to the address was
    /// not. Starts at 0 when every record was read.
    pub starts: Range<u64>,
}

/// Records whose block contains the address, by letting the target search its own log for the upper bytes of the
/// blocks' addresses: some 20 small requests instead of the whole log.
///
/// How far below the address a block may start depends on what else the log holds: first all blocks that start in
/// the address's 16 MB region or the one below are looked for; where too many records have such blocks, those of the
/// 64 KB region and the one below; else those of the address's own page. [`Found::starts`] says which. Reads the
/// whole log where the target cannot search.
pub fn find(kernel: &Kernel<'_>, address: u64) -> Result<Option<Found>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let (log, lowest) = match log.search(kernel, address, log.ring.length)? {
        Some((traces, lowest)) => (log.finish(kernel, log.ring.length, traces, Notes::default())?, lowest),
        None => (log.all(kernel, &|trace| trace.contains(address))?, 0),
    };
    Ok(Some(Found { log, starts: lowest..address.saturating_add(1) }))
}

/// The records of blocks that start exactly at one of `addresses`: some three small requests for each. Reads the whole
/// log where the target cannot search or where that is cheaper.
pub fn find_starts(kernel: &Kernel<'_>, addresses: &[u64]) -> Result<Option<PoolLog>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let length = log.ring.length;
    let everything = bulk_requests(u64::from(length) * log.fields.size as u64);
    let searchable = log.fields.address.size == usize::from(kernel.pointer_size);
    let mut hunt = Hunt { log: &log, kernel, parts: log.ring.newest_slots(length), seen: Vec::new(), requests: 0 };
    if searchable && everything > addresses.len() as u64 && hunt.starts(addresses, everything)? {
        let mut seen = hunt.seen;
        seen.sort_by_key(|(slot, _)| log.ring.age(*slot));
        let traces = seen.into_iter().filter_map(|(_, trace)| trace);
        let traces = traces.filter(|trace| addresses.contains(&trace.address)).collect();
        return Ok(Some(log.finish(kernel, length, traces, Notes::default())?));
    }
    let wanted: HashSet<u64> = addresses.iter().copied().collect();
    Ok(Some(log.all(kernel, &|trace| wanted.contains(&trace.address))?))
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Slots in the ring.
    pub length: u32,
    /// The newest record's sequence number; 0 before the first.
    pub index: u32,
}

/// The newest records that may be half written when the target is stopped: the kernel counts a record first and writes it
/// then, and several processors may have been stopped while each wrote one; more than these are not expected to. Who
/// follows a log reads them again at the next look.
pub const UNSETTLED: u32 = 4;

/// How a log went on since it stood somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// It gained so many records, and has them all.
    Gained(u32),
    /// It gained so many, and does not have them all any more.
    WentRound(u32),
    /// It gave records back (Windows 11 does when it can take no stack), or is another log.
    Another,
}

impl Position {
    /// How the log went on since it stood at `then`.
    pub fn since(self, then: Position) -> Since {
        let written = self.index.wrapping_sub(then.index);
        match () {
            () if written > u32::MAX / 2 || self.length != then.length => Since::Another,
            () if written >= self.length => Since::WentRound(written),
            () => Since::Gained(written),
        }
    }
}

/// Reads where the log stands; costs one or two small reads. `Ok(None)`: the kernel keeps no such log now.
pub fn position(kernel: &Kernel<'_>) -> Result<Option<Position>, PoolError> {
    let log = Log::read(kernel)?;
    Ok(log.map(|Log { ring, .. }| Position { length: ring.length, index: ring.index }))
}

/// One record by its sequence number; `None` if it was overwritten since, or is still to come.
pub fn record(kernel: &Kernel<'_>, sequence: u32) -> Result<Option<Trace>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let slot = sequence & (log.ring.length - 1);
    if log.ring.sequence(slot) != sequence {
        return Ok(None);
    }
    log.slot(kernel, slot)
}

/// Every record written since the log's index was `index` ([`PoolLog::index`] of an earlier look).
pub fn read_since(kernel: &Kernel<'_>, index: u32) -> Result<Option<PoolLog>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let (count, lost) = log.written_since(index);
    let mut read = log.newest(kernel, count)?;
    read.notes.extend(lost);
    Ok(Some(read))
}

/// The newest records, of some only what they begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    /// The records, the newest first.
    pub log: PoolLog,
    /// Sequence numbers of those that may have more frames; at least [`LEADING`] are there. [`record`] reads the rest.
    pub cut: BTreeSet<u32>,
}

/// The newest `count` records in as few requests as that can be done; on Windows 11 they are long, and what tells
/// allocations from frees is at their beginning.
pub fn heads(kernel: &Kernel<'_>, count: u32) -> Result<Option<Heads>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let Log { ring, fields } = &log;
    let Some(stack) = fields.stack else { return Ok(Some(Heads { log: log.newest(kernel, count)?, cut: [].into() })) };
    let decode = |record: &[u8], sequence, known: usize| {
        let trace = fields.decode(record, sequence)?;
        let end = stack.offset + trace.frames.len() * stack.size;
        Some((end + stack.size > known && known < fields.size, trace))
    };
    let mut notes = Notes::default();
    let head = (stack.offset + LEADING * stack.size).min(fields.size);
    let read = ring.newest_heads(kernel, &mut notes, &decode, count, head)?;
    let cut = read.iter().filter(|(cut, _)| *cut).map(|(_, trace)| trace.sequence).collect();
    let traces = read.into_iter().map(|(_, trace)| trace).collect();
    Ok(Some(Heads { log: log.finish(kernel, count.min(ring.length), traces, notes)?, cut }))
}

/// [`find`] among the records written since the log's index was `index`.
pub fn find_since(kernel: &Kernel<'_>, address: u64, index: u32) -> Result<Option<Found>, PoolError> {
    let Some(log) = Log::read(kernel)? else { return Ok(None) };
    let (count, lost) = log.written_since(index);
    let (mut read, lowest) = match log.search(kernel, address, count)? {
        Some((traces, lowest)) => (log.finish(kernel, count, traces, Notes::default())?, lowest),
        None => {
            let mut read = log.newest(kernel, count)?;
            read.traces.retain(|trace| trace.contains(address));
            (read, 0)
        }
    };
    read.notes.extend(lost);
    Ok(Some(Found { log: read, starts: lowest..address.saturating_add(1) }))
}

/// `_VF_POOL_TRACE`
struct Fields {
    size: usize,
    address: Member,
    bytes: Option<Member>,
    thread: Option<Member>,
    stack: Option<Member>,
}

impl Fields {
    fn new(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let record = Record::new(kernel, "_VF_POOL_TRACE")?;
        Ok(Fields {
            size: record.size,
            address: record.member("Address")?,
            bytes: record.find("Size"),
            thread: record.find("Thread"),
            stack: record.find("StackTrace"),
        })
    }

    /// `None` for a slot that was never written.
    fn decode(&self, record: &[u8], sequence: u32) -> Option<Trace> {
        let get = |member: &Option<Member>| member.map_or(0, |member| member.get(record));
        let frames = self.stack.iter().flat_map(|stack| (0..stack.count).map(|i| stack.element(record, i)));
        let trace = Trace {
            sequence,
            address: self.address.get(record),
            size: get(&self.bytes),
            thread: get(&self.thread),
            frames: frames.take_while(|frame| *frame != 0).collect(),
        };
        (trace.address != 0 || !trace.frames.is_empty()).then_some(trace)
    }
}

const NAMES: Names = Names { table: "VfPoolTraces", index: "VfPoolTracesIndex", length: "VfPoolTracesLength" };

/// The ring and how its records are read.
struct Log {
    ring: Ring,
    fields: Fields,
}

impl Log {
    fn read(kernel: &Kernel<'_>) -> Result<Option<Self>, PoolError> {
        if kernel.find_symbol(NAMES.table).is_none() {
            return Ok(None);
        }
        let fields = Fields::new(kernel)?;
        Ok(Ring::read(kernel, &NAMES, fields.size)?.map(|ring| Log { ring, fields }))
    }

    /// Puts the records together with what they were taken from.
    fn finish(
        &self,
        kernel: &Kernel<'_>,
        parsed: u32,
        traces: Vec<Trace>,
        mut notes: Notes,
    ) -> Result<PoolLog, PoolError> {
        self.ring.check(kernel, &mut notes)?;
        Ok(PoolLog { length: self.ring.length, index: self.ring.index, parsed, traces, notes })
    }

    /// What one slot holds.
    fn slot(&self, kernel: &Kernel<'_>, slot: u32) -> Result<Option<Trace>, PoolError> {
        let mut record = vec![0; self.fields.size];
        let at = self.ring.address.wrapping_add(u64::from(slot) * self.fields.size as u64);
        kernel.memory.read_exact(at, &mut record)?;
        Ok(self.fields.decode(&record, self.ring.sequence(slot)))
    }

    /// Every record that `wanted` accepts.
    fn all(&self, kernel: &Kernel<'_>, wanted: &dyn Fn(&Trace) -> bool) -> Result<PoolLog, PoolError> {
        let mut notes = Notes::default();
        let decode = |record: &[u8], sequence| self.fields.decode(record, sequence);
        let traces = self.ring.all(kernel, &mut notes, &decode, wanted)?;
        self.finish(kernel, self.ring.length, traces, notes)
    }

    fn newest(&self, kernel: &Kernel<'_>, count: u32) -> Result<PoolLog, PoolError> {
        let mut notes = Notes::default();
        let decode = |record: &[u8], sequence| self.fields.decode(record, sequence);
        let traces = self.ring.newest(kernel, &mut notes, &decode, count)?;
        self.finish(kernel, count.min(self.ring.length), traces, notes)
    }

    /// How many records the log has gained since an earlier look, and what to say if some of them are gone again.
    fn written_since(&self, index: u32) -> (u32, Option<Missing>) {
        let written = self.ring.index.wrapping_sub(index);
        let lost = (written > self.ring.length).then(|| {
            let what = format!(
                "{written} records were written since, and the log holds {}; the older ones are lost",
                self.ring.length
            );
            Missing::new(what).count((written - self.ring.length).into())
        });
        (written.min(self.ring.length), lost)
    }

    /// Those of the newest `count` records whose blocks contain the address, and the lowest start of a block that was
    /// looked for; `None` if reading all of them is as cheap.
    fn search(&self, kernel: &Kernel<'_>, address: u64, count: u32) -> Result<Option<(Vec<Trace>, u64)>, PoolError> {
        let everything = bulk_requests(u64::from(count) * self.fields.size as u64);
        if everything <= FEW || self.fields.address.size != usize::from(kernel.pointer_size) {
            return Ok(None);
        }
        let mut hunt = Hunt { log: self, kernel, parts: self.ring.newest_slots(count), seen: Vec::new(), requests: 0 };
        let page = address & !0xfff;
        // (bytes of an address that are left off, lowest start)
        let ways = [(3, (address >> 24).saturating_sub(1) << 24), (2, (address >> 16).saturating_sub(1) << 16)];
        let mut lowest = None;
        for (skip, start) in ways {
            // Two bytes and less are found everywhere.
            if usize::from(kernel.pointer_size) < skip + 3 {
                continue;
            }
            let limit = hunt.requests + FEW;
            match hunt.regions(skip, start, address, limit)? {
                Seek::None => {
                    lowest = Some(start);
                    break;
                }
                Seek::Unsupported => return Ok(None),
                Seek::TooMany | Seek::Record(_) => {}
            }
        }
        if lowest.is_none() {
            let skip = usize::from(address != page);
            match hunt.regions(skip, page, address, everything)? {
                Seek::None => lowest = Some(page),
                _ => return Ok(None),
            }
        }
        hunt.seen.sort_by_key(|(slot, _)| self.ring.age(*slot));
        let traces = hunt.seen.into_iter().filter_map(|(_, trace)| trace);
        let traces = traces.filter(|trace| trace.contains(address)).collect();
        Ok(lowest.map(|lowest| (traces, lowest)))
    }
}

/// A search of the log by the target.
struct Hunt<'h> {
    log: &'h Log,
    kernel: &'h Kernel<'h>,
    /// The slots to be searched.
    parts: [Range<u32>; 2],
    /// Slots read so far, with what they hold.
    seen: Vec<(u32, Option<Trace>)>,
    requests: u64,
}

impl Hunt<'_> {
    /// Reads the records of all blocks that start between `start` and `address`, region by region of 256^`skip`
    /// bytes. `Seek::None`: there are no more.
    fn regions(&mut self, skip: usize, start: u64, address: u64, limit: u64) -> Result<Seek, PoolError> {
        let Log { ring, fields } = self.log;
        let size = fields.size as u64;
        let shift = 8 * skip;
        for region in (start >> shift..=address >> shift).rev() {
            let bytes = (region << shift).to_le_bytes();
            for part in self.parts.clone() {
                let mut seeker = Seeker {
                    table: ring.address.wrapping_add(u64::from(part.start) * size),
                    record: size,
                    count: part.len() as u64,
                    place: (fields.address.offset + skip) as u64,
                    bytes: bytes[skip..fields.address.size].to_vec(),
                    last: None,
                };
                let mut from = 0;
                loop {
                    match seeker.next(self.kernel.memory, from, &mut self.requests, limit)? {
                        Seek::Record(record) => {
                            self.read(part.start + record as u32)?;
                            from = record + 1;
                        }
                        Seek::None => break,
                        other => return Ok(other),
                    }
                }
            }
        }
        Ok(Seek::None)
    }

    /// Reads the records of all blocks that start at one of `addresses`; false where the target cannot search, or it
    /// takes too long. The target goes through its whole log for each search, so blocks that lie in one region of
    /// 16 MB are looked for together.
    fn starts(&mut self, addresses: &[u64], limit: u64) -> Result<bool, PoolError> {
        const REGION: usize = 3;
        let mut regions: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for &address in addresses {
            regions.entry(address >> (8 * REGION)).or_default().push(address);
        }
        for addresses in regions.values() {
            let few = self.requests + 4 * addresses.len() as u64 + FEW;
            let first = addresses[0];
            // Two bytes and less are found everywhere.
            let wide = self.log.fields.address.size >= REGION + 3;
            if wide && addresses.len() > 1 && self.regions(REGION, first, first, few.min(limit))? == Seek::None {
                continue;
            }
            for &address in addresses {
                if self.regions(0, address, address, limit)? != Seek::None {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn read(&mut self, slot: u32) -> Result<(), PoolError> {
        if self.seen.iter().any(|(seen, _)| *seen == slot) {
            return Ok(());
        }
        let trace = self.log.slot(self.kernel, slot)?;
        self.requests += 1;
        self.seen.push((slot, trace));
        Ok(())
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A block was allocated.
    Allocate,
    /// A block was freed.
    Free,
    /// Its stack does not tell which.
    Unknown,
}

impl Operation {
    /// As JSON has it.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Allocate => "allocate",
            Operation::Free => "free",
            Operation::Unknown => "unknown",
        }
    }
}

/// Frames that can still belong to the allocator.
pub const LEADING: usize = 4;

/// Beginnings of the functions that log an allocation, Vista to Windows 11.
const ALLOCATE: [&str; 8] = [
    "VeAllocatePool",
    "VfHandlePoolAlloc",
    "VfAllocPoolNotification",
    "VerifierExAllocatePool",
    "ViPostPoolAllocation",
    "IovAllocate",
    "ExAllocatePool",
    "VerifierIoAllocate",
];

/// Beginnings of the functions that log a free.
const FREE: [&str; 10] = [
    "VfFreePoolNotification",
    "VfPtFreePoolNotification",
    "VerifierExFreePool",
    "VerifierFreeTrackedPool",
    "ViFreeTrackedPool",
    "ExFreePool",
    "ExFreeHeapPool",
    "ExDeferredFreePool",
    "IovFree",
    "VerifierIoFree",
];

/// Tells allocations from frees by the first of the leading frames that is one of the allocator's own functions. A
/// stack that starts in a driver is of a free: Vista leaves the verifier's own frames out there, and only there.
/// `symbolize` gives `module!function+0xNN`.
pub fn operation(trace: &Trace, symbolize: &dyn Fn(u64) -> Option<String>) -> Operation {
    let mut first_is_driver = false;
    for (i, frame) in trace.frames.iter().take(LEADING).enumerate() {
        let Some(symbol) = symbolize(*frame) else { continue };
        let (module, function) = symbol.split_once('!').unwrap_or((symbol.as_str(), ""));
        if !module.eq_ignore_ascii_case("nt") && !module.eq_ignore_ascii_case("VerifierExt") {
            first_is_driver |= i == 0;
            continue;
        }
        let is = |names: &[&str]| names.iter().any(|name| function.starts_with(name));
        if is(&ALLOCATE) {
            return Operation::Allocate;
        }
        if is(&FREE) {
            return Operation::Free;
        }
    }
    if first_is_driver { Operation::Free } else { Operation::Unknown }
}
