//! Tag accounting: `!poolused`.
//!
//! The kernel counts per tag in `_POOL_TRACKER_TABLE` rows. Each processor has a table of its own
//! (`nt!ExPoolTagTables`); `nt!PoolTrackTable` is the master, usually the first of them. Tags that found no free row
//! are in `nt!PoolTrackTableExpansion`, a linear table that is normally not there, or in the last row (`Ovfl`).
//!
//! A block may be freed on another processor than it was allocated on, so a single table's differences mean nothing
//! and may be negative; only sums over all tables do, and they wrap in the field's own width (32 bits up to Windows
//! 10 1703, 64 bits later).

use std::collections::BTreeMap;

use nt_memory::{Fault, Sparse};

use crate::big_pages::BigPage;
use crate::build::WINDOWS_7;
use crate::checks::{Book, Check};
use crate::kernel::{Gather, Variable, little_endian};
use crate::record::{Member, Record};
use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, Notes, PoolError, Tag, page_counts, small_blocks};

/// One tag's use of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Since the machine started, as far as the counter's width goes.
    pub allocs: u64,
    /// As `allocs`.
    pub frees: u64,
    /// Outstanding allocations: `allocs - frees` in the counters' width. Negative only if a counter was torn.
    pub diff: i64,
    /// Outstanding bytes.
    pub bytes: u64,
}

impl Usage {
    /// A tag without blocks has no bytes, one with blocks has some, and none has more frees than allocations.
    fn makes_sense(&self) -> bool {
        self.diff >= 0 && (self.diff == 0) == (self.bytes == 0)
    }
}

/// One tag's counters, summed over all tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagUsage {
    /// The tag that is counted.
    pub tag: Tag,
    /// Of nonpaged pool, executable or not.
    pub nonpaged: Usage,
    /// Of paged pool.
    pub paged: Usage,
}

/// The counters of all tags that were wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagReport {
    /// Ordered by tag.
    pub tags: Vec<TagUsage>,
    /// What could not be read; empty when the report is complete.
    pub notes: Notes,
    /// Whether the counters make sense, those of other tags too, and their sum goes with the kernel's total; nothing when
    /// no more than a tag's rows were read.
    pub checks: Vec<Check>,
}

/// Rows of one table; a real one has some thousands.
const MAX_ROWS: u64 = 1 << 20;

/// Processors' tables: the most that any version has room for (`ExPoolTagTables` of Windows 11).
const MAX_TABLES: u64 = 2048;

/// Bytes of one row; every version has 0x28 to 0x50.
const MAX_ROW: usize = 0x100;

/// Bytes of all tables together; 64 processors with 0x8000 rows each have 168 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Rows read at once when a tag's row is looked for by its hash.
const PROBE_ROWS: usize = 8;

/// Rows looked at before the hash is given up.
const MAX_PROBES: usize = 32;

/// Sums the tag tables. `wanted` filters by tag.
pub fn read(kernel: &Kernel<'_>, wanted: &dyn Fn(Tag) -> bool) -> Result<TagReport, PoolError> {
    Ok(within(kernel, wanted, u64::MAX)?.0)
}

/// How many rows of each table were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) read: u64,
    pub(crate) all: u64,
    /// What all of them cost.
    pub(crate) requests: u64,
}

/// As [`read`]; of tables that cost more than so many requests the first rows, which are of the same tags in all of them,
/// for a quarter of that.
pub(crate) fn within(
    kernel: &Kernel<'_>,
    wanted: &dyn Fn(Tag) -> bool,
    requests: u64,
) -> Result<(TagReport, Rows), PoolError> {
    let places = Places::read(kernel)?;
    let mut sums = Sums::new(Row::new(kernel)?, wanted);
    let tables = places.tables(kernel, &mut sums.notes)?;
    let most = (MAX_BYTES / (places.rows * sums.row.size as u64)).max(1) as usize;
    if tables.len() > most {
        sums.notes.missing(format!(
            "{} tag tables of {:#x} rows are more than is plausible; the first {most} were read",
            tables.len(),
            places.rows
        ));
    }
    let tables: Vec<_> = tables.into_iter().take(most).collect();
    let size = sums.row.size as u64;
    let unread = |(_, address): &(String, u64)| kernel.memory.unread(*address, places.rows * size);
    let all = tables.iter().map(|table| small_blocks::requests(kernel.memory, unread(table))).sum();
    let some = (requests / 4).saturating_mul(kernel.memory.reply_size() as u64) / (tables.len() as u64 * size).max(1);
    let read = if all <= requests { places.rows } else { some.clamp(1, places.rows) };
    for (what, address) in tables {
        sums.add_table(kernel, &what, address, read)?;
    }
    let rows = Rows { read, all: places.rows, requests: all };
    if read < places.rows {
        return Ok((sums.report(None, false), rows));
    }
    sums.add_expansion(kernel, &places)?;
    places.check(kernel, &mut sums.notes)?;
    Ok((sums.report(page_counts::nonpaged_variable(kernel)?, true), rows))
}

/// Whether the tags' counters have as many blocks as the table of large allocations has of them. Blocks of tags that found
/// no row are in the row of all such.
pub fn large_counted(report: &TagReport, large: &[BigPage]) -> Option<Check> {
    let mut counts: BTreeMap<(Tag, bool), i64> = BTreeMap::new();
    for page in large.iter().filter(|page| !page.free && !page.kind.is_session()) {
        *counts.entry((page.tag, page.kind.is_paged())).or_default() += 1;
    }
    let counted: BTreeMap<Tag, [i64; 2]> =
        report.tags.iter().map(|row| (row.tag, [row.nonpaged.diff, row.paged.diff])).collect();
    let rows = counts.iter().filter_map(|((tag, paged), count)| Some(counted.get(tag)?[usize::from(*paged)] >= *count));
    let (good, all) = rows.fold((0, 0), |(good, all), holds| (good + u64::from(holds), all + 1));
    Check::most(Book::LargeCounted, all, good)
}

/// Sums one table (its address, its rows, and the most bytes that it can have) and an expansion table.
pub(crate) fn read_plain(
    kernel: &Kernel<'_>,
    what: &str,
    (address, rows, room): (u64, u64, u64),
    expansion: Option<(u64, u64)>,
    wanted: &dyn Fn(Tag) -> bool,
) -> Result<TagReport, PoolError> {
    let mut sums = Sums::new(Row::new(kernel)?, wanted);
    let rows = rows.min(room / sums.row.size as u64);
    if !kernel.is_kernel_address(address) || !(1..=MAX_ROWS).contains(&rows) {
        return Err(PoolError::Unlikely(format!(
            "{what} would lie at {address:016x} with {rows:#x} rows, which is not plausible"
        )));
    }
    sums.add_table(kernel, what, address, rows)?;
    let places = Places { master: address, rows, mask: None, expansion };
    sums.add_expansion(kernel, &places)?;
    Ok(TagReport { checks: Vec::new(), ..sums.report(None, false) })
}

/// One tag's sums, from its row alone where the tables' hash leads to it; else as [`read`].
pub fn read_one(kernel: &Kernel<'_>, tag: Tag) -> Result<TagReport, PoolError> {
    match read_row(kernel, tag)? {
        Some(report) => Ok(report),
        None => read(kernel, &|other| other.key() == tag.key()),
    }
}

fn read_row(kernel: &Kernel<'_>, tag: Tag) -> Result<Option<TagReport>, PoolError> {
    let places = Places::read(kernel)?;
    let plausible = |mask: &u64| mask.wrapping_add(1).is_power_of_two() && *mask < places.rows;
    let Some(mask) = places.mask.filter(plausible) else { return Ok(None) };
    let row = Row::new(kernel)?;
    let rows = find_rows(kernel, &row, places.master, mask, tag)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let wanted = |other: Tag| other.key() == tag.key();
    let mut sums = Sums::new(row, &wanted);
    for (what, address) in places.tables(kernel, &mut sums.notes)? {
        for index in &rows {
            let at = address.wrapping_add(index * sums.row.size as u64);
            let table = read_table(kernel, at, sums.row.size)?;
            let key = table.get(0, sums.row.size).map(|bytes| sums.row.key(bytes));
            if key.is_some_and(|key| key != 0 && !wanted(Tag::from_key(key).0)) {
                // This table keeps the tag in another row than the master does.
                return Ok(None);
            }
            sums.add(&what, &table);
        }
    }
    sums.add_expansion(kernel, &places)?;
    Ok(Some(TagReport { checks: Vec::new(), ..sums.report(None, false) }))
}

/// The rows that the kernel's hash leads to: one of the tag, and one of the tag with the protected bit, which is a key
/// of its own. None if that is not certain. The product is 64 bits wide on x64; 32 bits are tried too, and the row's
/// key decides.
fn find_rows(kernel: &Kernel<'_>, row: &Row, table: u64, mask: u64, tag: Tag) -> Result<Vec<u64>, Fault> {
    let mut found = Vec::new();
    let folds: [fn(u64) -> u64; 2] = [|product| product ^ product >> 32, |product| product & 0xffff_ffff];
    for fold in folds {
        let keys = [(tag.key(), MAX_PROBES), (u32::from_le_bytes(tag.protected_bytes()), 2 * PROBE_ROWS)];
        for (key, most) in keys {
            let mut slot = fold(u64::from(key) * 0x9E5F) & mask;
            let mut probed = 0;
            let before = found.len();
            'probe: loop {
                let count = PROBE_ROWS.min((mask - slot + 1) as usize);
                let window = read_table(kernel, table.wrapping_add(slot * row.size as u64), count * row.size)?;
                for (i, bytes) in entries(&window, row.size).enumerate() {
                    let Some(key) = bytes.map(|bytes| row.key(bytes)) else { return Ok(Vec::new()) };
                    if key == 0 {
                        break 'probe;
                    }
                    if Tag::from_key(key).0.key() == tag.key() {
                        found.push(slot + i as u64);
                    }
                }
                probed += count;
                // A crowded table has no empty row near. Few tags have a second row, and it stands near its place.
                if found.len() > before || probed >= most {
                    break;
                }
                slot = (slot + count as u64) & mask;
            }
            if probed >= MAX_PROBES && found.len() == before {
                return Ok(Vec::new());
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Where the tables lie, as the kernel's variables say.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    master: u64,
    rows: u64,
    /// Of the tables' hash.
    mask: Option<u64>,
    /// The expansion table and its rows; `None` if the kernel does not say.
    expansion: Option<(u64, u64)>,
}

impl Places {
    fn read(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let places = Self::variables(kernel, Kernel::gather)?;
        if !kernel.is_kernel_address(places.master) {
            return Err(PoolError::Unlikely(format!(
                "nt!PoolTrackTable holds {:016x}, which is no kernel address; pool tags are not counted, or the symbols \
                 are not this kernel's",
                places.master
            )));
        }
        if places.rows == 0 || places.rows > MAX_ROWS {
            return Err(PoolError::Unlikely(format!(
                "nt!PoolTrackTableSize holds {:#x} rows, at most {MAX_ROWS:#x} are plausible; are the symbols this \
                 kernel's?",
                places.rows
            )));
        }
        Ok(places)
    }

    fn variables<'k>(kernel: &Kernel<'k>, gather: Gather<'k>) -> Result<Self, PoolError> {
        let mut variables =
            vec![kernel.pointer_variable("PoolTrackTable")?, kernel.pointer_variable("PoolTrackTableSize")?];
        let optional = ["PoolTrackTableExpansion", "PoolTrackTableExpansionSize", "PoolTrackTableMask"];
        let optional = optional.map(|name| kernel.pointer_variable(name).ok());
        variables.extend(optional.iter().flatten());
        let mut values = gather(kernel, &variables)?.into_iter();
        let mut next = || values.next().unwrap_or(Ok(0));
        let (master, rows) = (next()?, next()?);
        let [table, table_rows, mask] = optional.map(|variable| variable.and_then(|_| next().ok()));
        Ok(Places { master, rows, mask, expansion: table.zip(table_rows) })
    }

    /// Says so when a table has moved or grown since: the rows read may be the old ones.
    fn check(&self, kernel: &Kernel<'_>, notes: &mut Notes) -> Result<(), PoolError> {
        if Self::variables(kernel, Kernel::gather_again)? != *self {
            notes.missing("the tag tables moved or grew while they were read; ask again");
        }
        Ok(())
    }

    /// The master and the processors' tables, each once, with what they are called in notes.
    fn tables(&self, kernel: &Kernel<'_>, notes: &mut Notes) -> Result<Vec<(String, u64)>, PoolError> {
        let mut tables = vec![("nt!PoolTrackTable".to_string(), self.master)];
        let Some(array) = kernel.find_symbol("ExPoolTagTables") else {
            notes.missing("the symbols of nt have no ExPoolTagTables; only the master table was read");
            return Ok(tables);
        };
        let pointer = usize::from(kernel.pointer_size);
        let room = kernel.room("ExPoolTagTables").map_or(MAX_TABLES, |room| room / pointer as u64);
        let room = room.clamp(1, MAX_TABLES);
        let count = match processors(kernel)? {
            Some(count) if (1..=room).contains(&count) => count,
            Some(0) | None => room,
            Some(count) => {
                notes.missing(format!(
                    "nt!KeNumberProcessors holds {count}, but nt!ExPoolTagTables has room for {room} tables; more were \
                     not read"
                ));
                room
            }
        };
        let pointers = read_table(kernel, array, count as usize * pointer)?;
        note_holes(notes, "nt!ExPoolTagTables", &pointers);
        for (i, bytes) in entries(&pointers, pointer).enumerate() {
            let Some(address) = bytes.map(little_endian) else { continue };
            if address == 0 || tables.iter().any(|(_, known)| *known == address) {
                continue;
            }
            if kernel.is_kernel_range(address, self.rows) {
                tables.push((format!("nt!ExPoolTagTables[{i}]"), address));
            } else {
                notes.missing(format!("nt!ExPoolTagTables[{i}] holds {address:016x}, which is no kernel address"));
            }
        }
        Ok(tables)
    }
}

/// The bytes that tags count of one pool.
pub fn sum(tags: &[TagUsage], of: fn(&TagUsage) -> Usage) -> u64 {
    tags.iter().fold(0, |sum, row| sum.saturating_add(of(row).bytes))
}

/// What tags count of a pool lies in its pages, and fills them never.
pub(crate) fn total(book: Book, allocated: u64, sum: u64) -> Check {
    Check { ok: sum <= allocated, ..Check::new(book, allocated, sum, 0) }
}

/// How many processors have a table. The variable is one byte up to Windows Vista and four later; no more is read
/// than there is room before the next symbol.
pub(crate) fn processors(kernel: &Kernel<'_>) -> Result<Option<u64>, Fault> {
    let Some(address) = kernel.find_symbol("KeNumberProcessors") else { return Ok(None) };
    let room = kernel.room("KeNumberProcessors").unwrap_or(4);
    let size = if kernel.build < WINDOWS_7 || room < 4 { 1 } else { 4 };
    Ok(kernel.gather(&[Variable { address, size }])?.remove(0).ok())
}

/// `_POOL_TRACKER_TABLE`, whose fields changed order and width at 16299.
struct Row {
    size: usize,
    key: Member,
    nonpaged: Counters,
    paged: Counters,
    missing: Vec<&'static str>,
}

struct Counters {
    allocs: Option<Member>,
    frees: Option<Member>,
    bytes: Option<Member>,
}

impl Row {
    fn new(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let record = Record::new(kernel, "_POOL_TRACKER_TABLE")?;
        if record.size > MAX_ROW {
            return Err(PoolError::Unlikely(format!(
                "type _POOL_TRACKER_TABLE has {:#x} bytes, at most {MAX_ROW:#x} are plausible; are the symbols this \
                 kernel's?",
                record.size
            )));
        }
        let mut missing = Vec::new();
        let mut find = |name| {
            let member = record.find(name);
            if member.is_none() {
                missing.push(name);
            }
            member
        };
        let nonpaged =
            Counters { allocs: find("NonPagedAllocs"), frees: find("NonPagedFrees"), bytes: find("NonPagedBytes") };
        let paged = Counters { allocs: find("PagedAllocs"), frees: find("PagedFrees"), bytes: find("PagedBytes") };
        Ok(Row { size: record.size, key: record.member("Key")?, nonpaged, paged, missing })
    }

    fn key(&self, row: &[u8]) -> u32 {
        self.key.get(row) as u32
    }
}

impl Counters {
    fn add(&self, sum: &mut Usage, row: &[u8]) {
        let add = |sum: &mut u64, member: &Option<Member>| {
            if let Some(member) = member {
                *sum = sum.wrapping_add(member.get(row)) & width_mask(member.size);
            }
        };
        add(&mut sum.allocs, &self.allocs);
        add(&mut sum.frees, &self.frees);
        add(&mut sum.bytes, &self.bytes);
    }

    fn finish(&self, mut sum: Usage) -> Usage {
        let width = self.allocs.map_or(8, |member| member.size);
        let unused = 64 - 8 * width as u32;
        sum.diff = (sum.allocs.wrapping_sub(sum.frees) << unused) as i64 >> unused;
        sum
    }
}

/// All bits of a number of one to eight bytes.
fn width_mask(size: usize) -> u64 {
    u64::MAX >> (64 - 8 * size as u32)
}

/// The tags' sums so far.
struct Sums<'w> {
    row: Row,
    wanted: &'w dyn Fn(Tag) -> bool,
    tags: BTreeMap<Tag, (Usage, Usage)>,
    notes: Notes,
}

impl<'w> Sums<'w> {
    fn new(row: Row, wanted: &'w dyn Fn(Tag) -> bool) -> Self {
        let mut notes = Notes::default();
        for name in &row.missing {
            notes.missing(format!("type _POOL_TRACKER_TABLE has no member {name}; it is counted as 0"));
        }
        Sums { row, wanted, tags: BTreeMap::new(), notes }
    }

    fn add_table(&mut self, kernel: &Kernel<'_>, what: &str, address: u64, rows: u64) -> Result<(), Fault> {
        let table = read_table(kernel, address, rows as usize * self.row.size)?;
        self.add(what, &table);
        Ok(())
    }

    fn add_expansion(&mut self, kernel: &Kernel<'_>, places: &Places) -> Result<(), Fault> {
        let Some((table, rows)) = places.expansion else {
            self.notes.missing("nt!PoolTrackTableExpansion is not known; tags that overflowed into it are missing");
            return Ok(());
        };
        if table == 0 || rows == 0 {
            return Ok(());
        }
        if !kernel.is_kernel_address(table) || rows > MAX_ROWS {
            self.notes.missing(format!(
                "nt!PoolTrackTableExpansion holds {table:016x} with {rows:#x} rows, which is not plausible; it was not \
                 read"
            ));
            return Ok(());
        }
        self.add_table(kernel, "nt!PoolTrackTableExpansion", table, rows)
    }

    fn add(&mut self, what: &str, table: &Sparse) {
        note_holes(&mut self.notes, what, table);
        for bytes in entries(table, self.row.size).flatten() {
            let key = self.row.key(bytes);
            let tag = Tag::from_key(key).0;
            if key == 0 {
                continue;
            }
            let (nonpaged, paged) = self.tags.entry(tag).or_default();
            self.row.nonpaged.add(nonpaged, bytes);
            self.row.paged.add(paged, bytes);
        }
    }

    /// `allocated`: bytes that the kernel has of nonpaged pool. `whole`: these are all rows.
    fn report(self, allocated: Option<u64>, whole: bool) -> TagReport {
        let usage = |(tag, (nonpaged, paged))| TagUsage {
            tag,
            nonpaged: self.row.nonpaged.finish(nonpaged),
            paged: self.row.paged.finish(paged),
        };
        let mut tags: Vec<TagUsage> = self.tags.into_iter().map(usage).collect();
        let mut checks = Vec::new();
        if self.notes.is_complete() {
            let counters = tags.iter().flat_map(|row| [(row.tag, row.nonpaged), (row.tag, row.paged)]);
            let used = counters.filter(|(_, usage)| usage.diff != 0 || usage.bytes != 0);
            let (good, odd): (Vec<_>, Vec<_>) = used.partition(|(tag, usage)| tag.is_typed() && usage.makes_sense());
            // A kernel whose tags have no blocks does not run.
            let none = whole.then(|| Check::new(Book::TagRows, 1, 0, 0));
            let (good, all) = (good.len() as u64, (good.len() + odd.len()) as u64);
            checks.extend(Check::most(Book::TagRows, all, good).or(none));
            let sum = sum(&tags, |row| row.nonpaged);
            checks.extend(allocated.map(|allocated| total(Book::NonPagedTotal, allocated, sum)));
        }
        tags.retain(|row| (self.wanted)(row.tag));
        TagReport { tags, notes: self.notes, checks }
    }
}
