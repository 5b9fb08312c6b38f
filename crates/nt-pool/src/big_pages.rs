//! The table of large allocations, `nt!PoolBigPageTable`.
//!
//! Allocations of about a page and more have no header; each has an entry of type `_POOL_TRACKER_BIG_PAGES` here. The
//! table is a hash table by page number with linear probing; freeing sets bit 0 of the entry's `Va` and leaves the
//! rest, so recently freed blocks can still be seen. It may be replaced by a larger one while the machine runs.

use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Sparse};

use crate::checks::{Book, Books, Check};
use crate::kernel::Gather;
use crate::readings::{Form, Votes};
use crate::record::{Member, Record};
use crate::search::{Seek, Seeker, bulk_requests};
use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, Notes, PoolError, PoolKind, Tag};

/// One entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BigPage {
    /// What the allocation call returned: the start of a page.
    pub address: u64,
    /// A free entry keeps its last owner's.
    pub tag: Tag,
    /// `PROTECTED_POOL`, the top bit of the tag as it is stored: it must be given again to free the block.
    pub protected: bool,
    /// Bytes.
    pub size: u64,
    /// POOL_TYPE as it was requested (POOL_FLAGS on Windows 11 24H2).
    pub pool_type: u32,
    /// What `pool_type` says of the pool.
    pub kind: PoolKind,
    /// The block was freed, and its entry may be used again.
    pub free: bool,
    /// Windows 10 and later.
    pub pattern: Option<u8>,
    /// Bytes at the block's end that nobody asked for; Windows 10 and later.
    pub slush: Option<u16>,
    /// The quota's process as it is stored (encoded); Windows Server 2022 and later.
    pub process_billed: Option<u64>,
}

impl BigPage {
    /// Whether the address is one of the block's bytes.
    pub fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.size)
    }

    /// Whether an entry says what one can: what has about a page and more starts a page (measured: segment-heap-measured
    /// 3), and somebody chose its tag.
    fn makes_sense(&self) -> bool {
        self.address.is_multiple_of(PAGE_SIZE) && self.size > PAGE_SIZE - LEAST_ROOM && self.tag.is_typed()
    }
}

/// A smaller block and its header fit into a page.
const LEAST_ROOM: u64 = 0x20;

/// The table of large allocations, or what of it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BigPages {
    /// Where the table lies.
    pub table: Range<u64>,
    /// Slots in use, and slots freed that still hold their last allocation (`free`), in table order.
    pub blocks: Vec<BigPage>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
    /// Whether the blocks in use make sense, lie apart, and where the kernel's hash leads; nothing if no more than a part of
    /// the table was read.
    pub checks: Vec<Check>,
    /// The form of the hash that the blocks in use speak for.
    pub hash: Votes,
}

impl BigPages {
    pub(crate) fn new(table: Range<u64>) -> Self {
        BigPages { table, blocks: Vec::new(), notes: Notes::default(), checks: Vec::new(), hash: Votes::default() }
    }
}

/// Of `POOL_FLAGS`: nonpaged, nonpaged executable, paged.
const POOL_FLAGS: u32 = 0x1c0;

/// Entries of the table: 128 MB of them, enough for terabytes of pool.
const MAX_ENTRIES: u64 = 1 << 22;

/// Entries read at once around a place of interest.
const WINDOW: u64 = 8;

/// Entries looked at before the hash is given up.
const MAX_PROBES: u64 = 64;

/// Where the table lies; costs one or two small reads.
pub fn table(kernel: &Kernel<'_>) -> Result<Range<u64>, PoolError> {
    Ok(Table::read(kernel)?.range())
}

/// Reads the whole table. `wanted` filters by tag. Costs a request more than the table, for what the kernel counts of it.
pub fn read(kernel: &Kernel<'_>, wanted: &dyn Fn(Tag) -> bool) -> Result<BigPages, PoolError> {
    let table = Table::read(kernel)?;
    let mut found = BigPages::new(table.range());
    let slots = table.slots(kernel, 0, table.entries)?;
    table.take(kernel, &slots, wanted, &mut found);
    table.balance(kernel, &slots, &mut found)?;
    table.check(kernel, &mut found.notes)?;
    Ok(found)
}

/// The table's start, as much of it as so many requests carry, and how many entries that is: enough to tell whether they
/// are what they are taken for.
pub(crate) fn sample(kernel: &Kernel<'_>, requests: u64) -> Result<(BigPages, u64), PoolError> {
    let table = Table::read(kernel)?;
    let bytes = requests.saturating_mul(kernel.memory.reply_size() as u64);
    let count = (bytes / table.entry.size).min(table.entries);
    let mut found = BigPages::new(table.range());
    let slots = table.slots(kernel, 0, count)?;
    table.take(kernel, &slots, &|_| true, &mut found);
    table.balance(kernel, &slots, &mut found)?;
    Ok((found, count))
}

/// Reads a table that lies elsewhere: a session's own.
pub(crate) fn read_at(
    kernel: &Kernel<'_>,
    what: &str,
    address: u64,
    entries: u64,
    wanted: &dyn Fn(Tag) -> bool,
) -> Result<BigPages, PoolError> {
    let entry = Entry::new(kernel)?;
    let plausible = (1..=MAX_ENTRIES).contains(&entries) && kernel.is_kernel_range(address, entries * entry.size);
    if !plausible {
        return Err(PoolError::Unlikely(format!(
            "{what} would lie at {address:016x} with {entries:#x} entries, which is not plausible"
        )));
    }
    let table = Table { entry, address, entries };
    let mut found = BigPages::new(table.range());
    table.bulk(kernel, 0, wanted, &mut found)?;
    Ok(found)
}

/// The blocks of one tag. Lets the target search its own memory where it can, which costs two small requests per hit
/// instead of the whole table, and reads the rest in bulk as soon as that is cheaper.
pub fn find(kernel: &Kernel<'_>, tag: Tag) -> Result<BigPages, PoolError> {
    let table = Table::read(kernel)?;
    let mut found = BigPages::new(table.range());
    table.search(kernel, tag, &mut found)?;
    table.check(kernel, &mut found.notes)?;
    Ok(found)
}

/// The entry, in use or else freed, whose block starts at `address`.
pub fn lookup(kernel: &Kernel<'_>, address: u64) -> Result<Option<BigPage>, PoolError> {
    let table = Table::read(kernel)?;
    if let Some(page) = table.probe(kernel, address)? {
        return Ok(Some(page));
    }
    // Another version may hash otherwise, so a miss proves nothing.
    table.scan(kernel, address)
}

/// The entry of the block that `address` lies in; one in use is preferred.
pub fn entry_containing(kernel: &Kernel<'_>, address: u64) -> Result<Option<BigPage>, PoolError> {
    let table = Table::read(kernel)?;
    if let Some(page) = table.probe(kernel, address & !0xfff)?
        && page.contains(address)
        && !page.free
    {
        return Ok(Some(page));
    }
    let mut found = BigPages::new(table.range());
    table.bulk(kernel, 0, &|_| true, &mut found)?;
    found.blocks.retain(|page| page.contains(address));
    found.blocks.sort_by_key(|page| page.free);
    Ok(found.blocks.into_iter().next())
}

/// `_POOL_TRACKER_BIG_PAGES`: four fields up to Windows 8.1, the type's bits shared with pattern and slush size from
/// Windows 10 on, and the quota's process from Server 2022 on.
struct Entry {
    size: u64,
    va: Member,
    key: Member,
    bytes: Member,
    pool_type: Option<Member>,
    pool_flags: Option<Member>,
    pattern: Option<Member>,
    slush: Option<Member>,
    process_billed: Option<Member>,
}

impl Entry {
    fn new(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let record = Record::new(kernel, "_POOL_TRACKER_BIG_PAGES")?;
        Ok(Entry {
            size: record.size as u64,
            va: record.member("Va")?,
            key: record.member("Key")?,
            bytes: record.member("NumberOfBytes")?,
            pool_type: record.find("PoolType"),
            pool_flags: record.find("PoolFlags"),
            pattern: record.find("Pattern"),
            slush: record.find("SlushSize"),
            process_billed: record.find("ProcessBilled"),
        })
    }

    /// `None` for a slot that never held a block.
    fn decode(&self, entry: &[u8]) -> Option<BigPage> {
        let va = self.va.get(entry);
        if va & !1 == 0 {
            return None;
        }
        let (tag, protected) = Tag::from_key(self.key.get(entry) as u32);
        let (pool_type, kind) = match (self.pool_type, self.pool_flags) {
            (None, Some(flags)) => {
                let flags = flags.get(entry) as u32;
                // Every POOL_FLAGS of an allocation names its pool; without one the value is a POOL_TYPE.
                let kind = match flags & POOL_FLAGS {
                    0 => PoolKind::from_pool_type(flags),
                    _ => PoolKind::from_pool_flags(flags),
                };
                (flags, kind)
            }
            (pool_type, _) => {
                let pool_type = pool_type.map_or(0, |member| member.get(entry) as u32);
                (pool_type, PoolKind::from_pool_type(pool_type))
            }
        };
        Some(BigPage {
            address: va & !1,
            tag,
            protected,
            size: self.bytes.get(entry),
            pool_type,
            kind,
            free: va & 1 != 0,
            pattern: self.pattern.map(|member| member.get(entry) as u8),
            slush: self.slush.map(|member| member.get(entry) as u16),
            process_billed: self.process_billed.map(|member| member.get(entry)),
        })
    }
}

/// The kernel's hash of a page number. The older form cuts the number to 32 bits before it is multiplied; the newer one
/// does not (measured: 18362 to 19041, and 26100 on x64 and ARM64). The product is as wide as a pointer.
fn hash(kernel: &Kernel<'_>, address: u64, form: Form) -> u64 {
    let page = address >> 12;
    let page = match form {
        Form::Older => u64::from(page as u32),
        Form::Newer => page,
    };
    let product = kernel.wrap(page.wrapping_mul(0x9E5F));
    product ^ product >> 32
}

struct Table {
    entry: Entry,
    address: u64,
    entries: u64,
}

impl Table {
    fn read(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let entry = Entry::new(kernel)?;
        let (address, entries) = Self::variables(kernel, Kernel::gather)?;
        let plausible = (1..=MAX_ENTRIES).contains(&entries) && kernel.is_kernel_range(address, entries * entry.size);
        if !plausible {
            return Err(PoolError::Unlikely(format!(
                "nt!PoolBigPageTable holds {address:016x} and nt!PoolBigPageTableSize {entries:#x} entries, which is no \
                 table in kernel memory (at most {MAX_ENTRIES:#x} entries are plausible); are the symbols this \
                 kernel's?"
            )));
        }
        Ok(Table { entry, address, entries })
    }

    fn variables<'k>(kernel: &Kernel<'k>, gather: Gather<'k>) -> Result<(u64, u64), PoolError> {
        let variables =
            [kernel.pointer_variable("PoolBigPageTable")?, kernel.pointer_variable("PoolBigPageTableSize")?];
        let mut values = gather(kernel, &variables)?.into_iter();
        let mut next = || values.next().unwrap_or(Ok(0));
        Ok((next()?, next()?))
    }

    /// Says so when the table has been replaced since.
    fn check(&self, kernel: &Kernel<'_>, notes: &mut Notes) -> Result<(), PoolError> {
        if Self::variables(kernel, Kernel::gather_again)? != (self.address, self.entries) {
            notes.missing("the table of large allocations moved or grew while it was read; ask again");
        }
        Ok(())
    }

    fn range(&self) -> Range<u64> {
        self.address..self.at(self.entries)
    }

    fn at(&self, slot: u64) -> u64 {
        self.address.wrapping_add(slot * self.entry.size)
    }

    fn slots(&self, kernel: &Kernel<'_>, first: u64, count: u64) -> Result<Sparse, Fault> {
        read_table(kernel, self.at(first), (count * self.entry.size) as usize)
    }

    /// Every wanted entry from slot `first` on.
    fn bulk(
        &self,
        kernel: &Kernel<'_>,
        first: u64,
        wanted: &dyn Fn(Tag) -> bool,
        found: &mut BigPages,
    ) -> Result<(), Fault> {
        let slots = self.slots(kernel, first, self.entries - first)?;
        self.take(kernel, &slots, wanted, found);
        Ok(())
    }

    /// The wanted ones of some slots.
    fn take(&self, kernel: &Kernel<'_>, slots: &Sparse, wanted: &dyn Fn(Tag) -> bool, found: &mut BigPages) {
        note_holes(&mut found.notes, "nt!PoolBigPageTable", slots);
        let pages = entries(slots, self.entry.size as usize).flatten().filter_map(|entry| self.entry.decode(entry));
        let (good, damaged): (Vec<_>, Vec<_>) = pages
            .filter(|page| wanted(page.tag))
            .partition(|page| page.free || page.size > 0 && kernel.is_kernel_range(page.address, page.size));
        if let Some(page) = damaged.first() {
            found.notes.missing(format!(
                "nt!PoolBigPageTable: {} entries are damaged and left out; the first is of {:#x} bytes at {:016x}",
                damaged.len(),
                page.size,
                page.address
            ));
        }
        found.blocks.extend(good);
    }

    fn seeker(&self, place: usize, bytes: &[u8]) -> Seeker {
        Seeker {
            table: self.address,
            record: self.entry.size,
            count: self.entries,
            place: place as u64,
            bytes: bytes.to_vec(),
            last: None,
        }
    }

    /// Finds a tag's entries by its bytes, with and without the protected bit, in table order.
    fn search(&self, kernel: &Kernel<'_>, tag: Tag, found: &mut BigPages) -> Result<(), Fault> {
        let wanted = |other: Tag| other.key() == tag.key();
        let keys = [tag.key().to_le_bytes(), tag.protected_bytes()];
        let mut seekers = keys.map(|key| self.seeker(self.entry.key.offset, &key));
        // Never more than twice the price of reading the whole table.
        let limit = bulk_requests(self.entries * self.entry.size);
        let mut requests = 0;
        let mut hits = 0;
        let mut slot = 0;
        while slot < self.entries {
            let rest = self.entries - slot;
            // As many hits as there were so far, spread evenly; the first few say little about the rest.
            let expected = hits * rest / (slot + self.entries / 8).max(1);
            if 2 * expected + 1 > bulk_requests(rest * self.entry.size) {
                return self.bulk(kernel, slot, &wanted, found);
            }
            let mut next = self.entries;
            for seeker in &mut seekers {
                match seeker.next(kernel.memory, slot, &mut requests, limit)? {
                    Seek::Unsupported | Seek::TooMany => return self.bulk(kernel, slot, &wanted, found),
                    Seek::None => {}
                    Seek::Record(hit) => next = next.min(hit),
                }
            }
            if next == self.entries {
                break;
            }
            let count = WINDOW.min(self.entries - next);
            let window = self.slots(kernel, next, count)?;
            requests += 1;
            hits += 1;
            self.take(kernel, &window, &wanted, found);
            slot = next + count;
        }
        // A target searches what it can read, and does not say what it left out: no hit in a table that is not there is
        // no answer.
        if hits == 0 && self.entries > 0 && !self.slots(kernel, 0, 1)?.is_complete() {
            return self.bulk(kernel, 0, &wanted, found);
        }
        Ok(())
    }

    /// Counts of the blocks in use, tags of all kinds, how many make sense, lie apart, and where the kernel's hash leads.
    fn balance(&self, kernel: &Kernel<'_>, slots: &Sparse, found: &mut BigPages) -> Result<(), PoolError> {
        if !slots.is_complete() {
            return Ok(());
        }
        let mut books = Books::default();
        let pages = entries(slots, self.entry.size as usize).flatten().filter_map(|entry| self.entry.decode(entry));
        let mut live: Vec<BigPage> = pages.filter(|page| !page.free).collect();
        let good = live.iter().filter(|page| page.makes_sense()).count() as u64;
        books.add_known(Check::most(Book::LargeEntries, live.len() as u64, good));
        let (count, slush) = (live.len() as u64, live.iter().filter_map(|page| Some((page.size, page.slush?))));
        let filled = slush.clone().filter(|(size, slush)| size.wrapping_add(u64::from(*slush)) % PAGE_SIZE == 0);
        books.add_known(Check::most(Book::LargeSlush, slush.clone().count() as u64, filled.count() as u64));
        if slots.bytes.len() as u64 == self.entries * self.entry.size
            && let Ok(variable) = kernel.u32_variable("ExpPoolBigEntriesInUse")
            && let Ok(counted) = kernel.gather(&[variable])?.remove(0)
        {
            books.count(Book::LargeInUse, counted, count, self.address);
        }
        // No two allocations share a page.
        live.sort_by_key(|page| page.address);
        for pair in live.windows(2) {
            let [one, next] = pair else { continue };
            books.hold(Book::LargeApart, one.address.saturating_add(one.size) <= next.address, next.address);
        }
        self.hashed(kernel, slots, &mut found.hash, &mut books);
        found.checks = books.checks();
        Ok(())
    }

    /// Which of the blocks in use lie where the kernel's hash leads: at its slot, or behind it with no slot in between that
    /// was never used.
    fn hashed(&self, kernel: &Kernel<'_>, slots: &Sparse, hash_form: &mut Votes, books: &mut Books) {
        if !self.entries.is_power_of_two() {
            return;
        }
        let places = entries(slots, self.entry.size as usize);
        let places: Vec<u64> = places.map(|entry| entry.map_or(0, |entry| self.entry.va.get(entry))).collect();
        let used = |place: &u64| place & !1 != 0;
        let mask = self.entries - 1;
        // Slots up to here without one that was never used between them; the table is a ring, of which the end may not
        // be here.
        let whole = places.len() as u64 == self.entries;
        let skipped = if whole { 0 } else { places.iter().take_while(|place| used(place)).count() };
        let mut run = if whole { places.iter().rev().take_while(|place| used(place)).count() as u64 } else { 0 };
        for (slot, place) in places.iter().enumerate().skip(skipped) {
            run = if used(place) { run + 1 } else { 0 };
            if run == 0 || place & 1 != 0 {
                continue;
            }
            let leads = |form| (slot as u64).wrapping_sub(hash(kernel, *place, form)) & mask < run;
            let [older, newer] = [Form::Older, Form::Newer].map(leads);
            hash_form.add(older, newer);
            books.hold(Book::LargeHash, older || newer, self.at(slot as u64));
        }
    }

    /// By the kernel's hash, in the form that the entries' type goes with first: a miss costs a request.
    fn probe(&self, kernel: &Kernel<'_>, address: u64) -> Result<Option<BigPage>, Fault> {
        if !self.entries.is_power_of_two() {
            return Ok(None);
        }
        let [older, newer] = [Form::Older, Form::Newer].map(|form| hash(kernel, address, form) & (self.entries - 1));
        let slots = if self.entry.pool_flags.is_some() { [newer, older] } else { [older, newer] };
        let first = self.probe_from(kernel, address, slots[0])?;
        match first {
            None if older != newer => self.probe_from(kernel, address, slots[1]),
            found => Ok(found),
        }
    }

    /// The slot where a hash leads, and its neighbours, up to one that was never used.
    fn probe_from(&self, kernel: &Kernel<'_>, address: u64, slot: u64) -> Result<Option<BigPage>, Fault> {
        let mask = self.entries - 1;
        let mut slot = slot;
        let mut probed = 0;
        let mut freed = None;
        while probed < MAX_PROBES.min(self.entries) {
            let count = WINDOW.min(self.entries - slot);
            let window = self.slots(kernel, slot, count)?;
            for entry in entries(&window, self.entry.size as usize) {
                let Some(page) = entry.and_then(|entry| self.entry.decode(entry)) else { return Ok(freed) };
                if page.address == address && !page.free {
                    return Ok(Some(page));
                }
                if page.address == address {
                    // The address may have been handed out again since, with another slot.
                    freed.get_or_insert(page);
                }
            }
            probed += count;
            slot = (slot + count) & mask;
        }
        Ok(None)
    }

    /// The entry of a block that starts at `address`: by the target's search, or in bulk.
    fn scan(&self, kernel: &Kernel<'_>, address: u64) -> Result<Option<BigPage>, PoolError> {
        // Bit 0 is the freed mark, so the search is for the bytes after the first.
        let bytes = &address.to_le_bytes()[1..usize::from(kernel.pointer_size)];
        let mut seeker = self.seeker(self.entry.va.offset + 1, bytes);
        let mut requests = 0;
        let mut slot = 0;
        let mut freed = None;
        while let Seek::Record(hit) = seeker.next(kernel.memory, slot, &mut requests, MAX_PROBES)? {
            let entry = self.slots(kernel, hit, 1)?;
            let page = entries(&entry, self.entry.size as usize).flatten().find_map(|entry| self.entry.decode(entry));
            if let Some(page) = page.filter(|page| page.address == address) {
                if !page.free {
                    return Ok(Some(page));
                }
                freed.get_or_insert(page);
            }
            slot = hit + 1;
        }
        if seeker.last == Some(Seek::None) {
            return Ok(freed);
        }
        let mut found = BigPages::new(self.range());
        self.bulk(kernel, 0, &|_| true, &mut found)?;
        found.blocks.retain(|page| page.address == address);
        Ok(found.blocks.into_iter().min_by_key(|page| page.free))
    }
}
