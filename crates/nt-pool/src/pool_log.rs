//! Driver Verifier's log of pool allocations and frees: `!verifier 0x80`.
//!
//! `nt!VfPoolTraces` is a ring of `_VF_POOL_TRACE` records (13 return addresses; 50 on Windows 11). The writer counts
//! first, so the newest record is in slot `VfPoolTracesIndex & (VfPoolTracesLength - 1)`, and a record's sequence
//! number is its count. Nothing in a record says whether it is of an allocation or of a free; the functions on its
//! stack do ([`operation`]).

use std::ops::Range;

use nt_memory::Fault;

use crate::record::{Member, Record};
use crate::search::{Seek, Seeker, bulk_requests};
use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, PoolError};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Counts since the log was made; stays with a record until it is overwritten.
    pub sequence: u32,
    pub address: u64,
    /// What was asked for (allocation), what the block could hold (free).
    pub size: u64,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    All,
    Newest(u32),
    /// Records whose block contains the address.
    Address(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLog {
    /// Slots in the ring.
    pub length: u32,
    pub index: u32,
    /// Slots looked at; slots that were never written count, as in kd.
    pub parsed: u32,
    /// Newest first.
    pub traces: Vec<Trace>,
    pub notes: Vec<String>,
}

/// Records of the largest log that Windows can be told to keep.
const MAX_LENGTH: u32 = 0x80_0000;

/// Bytes of the log held at a time.
const PIECE: u64 = 4 << 20;

/// Reads the log. `Ok(None)`: the kernel keeps no such log now.
///
/// An address is looked for in every record, since a block that contains it may start anywhere before it; see
/// [`find`] for a cheaper way that says what it leaves out.
pub fn read(kernel: &Kernel<'_>, wanted: Wanted) -> Result<Option<PoolLog>, PoolError> {
    let Some(ring) = Ring::read(kernel)? else { return Ok(None) };
    let mut log = ring.empty_log();
    match wanted {
        Wanted::All => ring.all(kernel, &mut log, &|_| true)?,
        Wanted::Address(address) => ring.all(kernel, &mut log, &|trace| trace.contains(address))?,
        Wanted::Newest(count) => ring.newest(kernel, &mut log, count)?,
    }
    ring.check(kernel, &mut log.notes)?;
    Ok(Some(log))
}

/// Records of one address, and which blocks were looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
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
    let Some(ring) = Ring::read(kernel)? else { return Ok(None) };
    let mut log = ring.empty_log();
    let starts = match ring.search(kernel, &mut log, address)? {
        Some(lowest) => lowest..address.saturating_add(1),
        None => {
            log = ring.empty_log();
            ring.all(kernel, &mut log, &|trace| trace.contains(address))?;
            0..address.saturating_add(1)
        }
    };
    ring.check(kernel, &mut log.notes)?;
    Ok(Some(Found { log, starts }))
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

/// Where the log lies, as the kernel's variables say.
struct Ring {
    fields: Fields,
    address: u64,
    index: u32,
    length: u32,
}

impl Ring {
    fn read(kernel: &Kernel<'_>) -> Result<Option<Self>, PoolError> {
        if kernel.find_symbol("VfPoolTraces").is_none() {
            return Ok(None);
        }
        let fields = Fields::new(kernel)?;
        let (address, index, length) = Self::variables(kernel)?;
        if address == 0 {
            return Ok(None);
        }
        let bytes = u64::from(length) * fields.size as u64;
        if !length.is_power_of_two() || length > MAX_LENGTH || !kernel.is_kernel_range(address, bytes) {
            return Err(PoolError::Unlikely(format!(
                "nt!VfPoolTraces holds {address:016x} and nt!VfPoolTracesLength {length:#x} records, which is no log in \
                 kernel memory (the length is a power of two up to {MAX_LENGTH:#x}); are the symbols this kernel's?"
            )));
        }
        Ok(Some(Ring { fields, address, index, length }))
    }

    fn variables(kernel: &Kernel<'_>) -> Result<(u64, u32, u32), PoolError> {
        let variables = [
            kernel.pointer_variable("VfPoolTraces")?,
            kernel.u32_variable("VfPoolTracesIndex")?,
            kernel.u32_variable("VfPoolTracesLength")?,
        ];
        let mut values = kernel.gather(&variables)?.into_iter();
        let mut next = || values.next().unwrap_or(Ok(0));
        Ok((next()?, next()? as u32, next()? as u32))
    }

    /// Says so when the log was written to, or replaced, since.
    fn check(&self, kernel: &Kernel<'_>, notes: &mut Vec<String>) -> Result<(), PoolError> {
        let (address, index, length) = Self::variables(kernel)?;
        if (address, length) != (self.address, self.length) {
            notes.push("the log was replaced while it was read; ask again".into());
        } else if index != self.index {
            let written = index.wrapping_sub(self.index);
            notes.push(format!("{written} records were written while the log was read; the oldest may be mixed up"));
        }
        Ok(())
    }

    fn empty_log(&self) -> PoolLog {
        PoolLog { length: self.length, index: self.index, parsed: 0, traces: Vec::new(), notes: Vec::new() }
    }

    fn newest_slot(&self) -> u32 {
        self.index & (self.length - 1)
    }

    /// The count that a slot's record was written at.
    fn sequence(&self, slot: u32) -> u32 {
        let age = self.index.wrapping_sub(slot) & (self.length - 1);
        self.index.wrapping_sub(age)
    }

    /// Reads the slots `first .. first + count` and passes the written ones on, last slot first, until `each` has
    /// enough. Says whether a slot was found that was never written.
    fn slots(
        &self,
        kernel: &Kernel<'_>,
        slots: Range<u32>,
        notes: &mut Vec<String>,
        each: &mut dyn FnMut(Trace),
    ) -> Result<bool, Fault> {
        let size = self.fields.size;
        let piece = (PIECE / size as u64) as u32;
        let mut end = slots.end;
        let mut unwritten = false;
        while end > slots.start {
            let first = end.saturating_sub(piece).max(slots.start);
            let at = self.address.wrapping_add(u64::from(first) * size as u64);
            let table = read_table(kernel, at, (end - first) as usize * size)?;
            note_holes(notes, "nt!VfPoolTraces", &table);
            let records: Vec<Option<&[u8]>> = entries(&table, size).collect();
            for (i, record) in records.iter().enumerate().rev() {
                let Some(record) = record else { continue };
                match self.fields.decode(record, self.sequence(first + i as u32)) {
                    Some(trace) => each(trace),
                    None => unwritten = true,
                }
            }
            end = first;
        }
        Ok(unwritten)
    }

    /// Every record, newest first.
    fn all(&self, kernel: &Kernel<'_>, log: &mut PoolLog, wanted: &dyn Fn(&Trace) -> bool) -> Result<(), Fault> {
        let PoolLog { traces, notes, .. } = log;
        let mut each = |trace: Trace| {
            if wanted(&trace) {
                traces.push(trace);
            }
        };
        let newest = self.newest_slot();
        self.slots(kernel, 0..newest + 1, notes, &mut each)?;
        // A log that has not come round yet has nothing above the newest record.
        let may_be_unwritten = self.index < self.length && newest + 1 < self.length;
        let last = self.length - 1;
        let unwritten = may_be_unwritten && self.slots(kernel, last..self.length, &mut Vec::new(), &mut |_| {})?;
        if !unwritten {
            self.slots(kernel, newest + 1..self.length, notes, &mut each)?;
        }
        log.parsed = self.length;
        Ok(())
    }

    /// The newest `count` records.
    fn newest(&self, kernel: &Kernel<'_>, log: &mut PoolLog, count: u32) -> Result<(), Fault> {
        let count = count.min(self.length);
        let newest = self.newest_slot();
        let first = (newest + 1).saturating_sub(count);
        let PoolLog { traces, notes, .. } = log;
        let mut each = |trace: Trace| traces.push(trace);
        let unwritten = self.slots(kernel, first..newest + 1, notes, &mut each)?;
        let rest = count - (newest + 1 - first);
        if rest > 0 && !(unwritten && self.index < self.length) {
            self.slots(kernel, self.length - rest..self.length, notes, &mut each)?;
        }
        log.parsed = count;
        Ok(())
    }

    /// Fills the log with the records of blocks that contain the address, and returns the lowest start of a block that
    /// was looked for; `None` if reading everything is as cheap.
    fn search(&self, kernel: &Kernel<'_>, log: &mut PoolLog, address: u64) -> Result<Option<u64>, PoolError> {
        if self.fields.address.size != usize::from(kernel.pointer_size) {
            return Ok(None);
        }
        let size = self.fields.size as u64;
        let mut hunt = Hunt { ring: self, kernel, seen: Vec::new(), requests: 0 };
        let page = address & !0xfff;
        let everything = bulk_requests(u64::from(self.length) * size);
        // (bytes of an address that are left off, lowest start, requests allowed)
        let ways = [(3, (address >> 24).saturating_sub(1) << 24, 8), (2, (address >> 16).saturating_sub(1) << 16, 8)];
        let mut lowest = None;
        for (skip, start, allowed) in ways {
            // Two bytes and less are found everywhere.
            if usize::from(kernel.pointer_size) < skip + 3 {
                continue;
            }
            let limit = hunt.requests + allowed;
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
        hunt.seen.sort_by_key(|(slot, _)| self.index.wrapping_sub(*slot) & (self.length - 1));
        let traces = hunt.seen.into_iter().filter_map(|(_, trace)| trace);
        log.traces = traces.filter(|trace| trace.contains(address)).collect();
        log.parsed = self.length;
        Ok(lowest)
    }
}

/// A search of the log by the target.
struct Hunt<'h> {
    ring: &'h Ring,
    kernel: &'h Kernel<'h>,
    /// Slots read so far, with what they hold.
    seen: Vec<(u32, Option<Trace>)>,
    requests: u64,
}

impl Hunt<'_> {
    /// Reads the records of all blocks that start between `start` and `address`, region by region of 256^`skip`
    /// bytes. `Seek::None`: there are no more.
    fn regions(&mut self, skip: usize, start: u64, address: u64, limit: u64) -> Result<Seek, PoolError> {
        let ring = self.ring;
        let shift = 8 * skip;
        for region in (start >> shift..=address >> shift).rev() {
            let bytes = (region << shift).to_le_bytes();
            let mut seeker = Seeker {
                table: ring.address,
                record: ring.fields.size as u64,
                count: u64::from(ring.length),
                place: (ring.fields.address.offset + skip) as u64,
                bytes: bytes[skip..ring.fields.address.size].to_vec(),
                last: None,
            };
            let mut from = 0;
            loop {
                match seeker.next(self.kernel.memory, from, &mut self.requests, limit)? {
                    Seek::Record(slot) => {
                        self.read(slot as u32)?;
                        from = slot + 1;
                    }
                    Seek::None => break,
                    other => return Ok(other),
                }
            }
        }
        Ok(Seek::None)
    }

    fn read(&mut self, slot: u32) -> Result<(), PoolError> {
        if self.seen.iter().any(|(seen, _)| *seen == slot) {
            return Ok(());
        }
        let size = self.ring.fields.size;
        let mut record = vec![0; size];
        let at = self.ring.address.wrapping_add(u64::from(slot) * size as u64);
        self.kernel.memory.read_exact(at, &mut record)?;
        self.requests += 1;
        self.seen.push((slot, self.ring.fields.decode(&record, self.ring.sequence(slot))));
        Ok(())
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Allocate,
    Free,
    Unknown,
}

/// Frames that can still belong to the allocator.
const LEADING: usize = 4;

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
