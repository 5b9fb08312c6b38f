//! Which pages of a range are there, from the page tables' own mapping of themselves.
//!
//! The tables of all of virtual memory lie in one stretch of it: the entry of a page is at `base + (address >> 12) *
//! entry size`, the entry of the table that this entry lies in is found by the same rule, and so on. Each table page is
//! read once, and only below an entry that says it is there.
//!
//! A page in transition has left a working set and is still in physical memory. A debugger's stub does not read it at
//! its virtual address, but its entry says where it is.

use std::cell::OnceCell;
use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Sparse, read_sparse};

use crate::kernel::{Variable, little_endian};
use crate::record::{Member, Record};
use crate::{Kernel, Notes, PoolError};

/// Where the mapping lies when no variable says so: x64 before 10 1607, and x86 with and without PAE.
const FIXED_64: u64 = 0xffff_f680_0000_0000;
const FIXED_32: u64 = 0xc000_0000;

/// Table pages read for one range; more than a terabyte of pool has.
const MAX_TABLES: usize = 1 << 20;

pub(crate) struct PageTables<'k> {
    kernel: &'k Kernel<'k>,
    base: u64,
    entry: u64,
    levels: u32,
    valid: Option<Member>,
    large: Option<Member>,
    /// ARM64 marks what is not a large page.
    not_large: Option<Member>,
    prototype: Option<Member>,
    transition: Option<Member>,
    frame: Option<Member>,
    swizzled: Option<Member>,
    page_file_offset: Option<Member>,
    invalid_mask: OnceCell<u64>,
}

/// What an entry says of its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Present,
    /// In physical memory at this address.
    Transition(u64),
    /// In a page file.
    Out,
    /// Never touched, given back, or not to be told.
    Nothing,
}

/// What became known of a range.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    /// Ascending, without overlap.
    pub(crate) runs: Vec<Range<u64>>,
    /// Of these, what is in transition.
    pub(crate) transition: Vec<Range<u64>>,
    /// What is in a page file.
    pub(crate) out: Vec<Range<u64>>,
    pub(crate) notes: Notes,
    tables: usize,
    tables_out: usize,
}

impl<'k> PageTables<'k> {
    pub(crate) fn new(kernel: &'k Kernel<'k>) -> Result<Self, PoolError> {
        let hardware = Record::new(kernel, "_MMPTE_HARDWARE").ok();
        let software = Record::new(kernel, "_MMPTE_TRANSITION").ok();
        let entry = match (&hardware, kernel.pointer_size) {
            (Some(record), _) if matches!(record.size, 4 | 8) => record.size as u64,
            (_, 4) => 4,
            _ => 8,
        };
        let base = match kernel.find_symbol("MmPteBase") {
            Some(address) => {
                let base = kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0)?;
                if !kernel.is_kernel_address(base) {
                    return Err(PoolError::Unlikely(format!(
                        "nt!MmPteBase holds {base:016x}, which is no kernel address; which pages are resident is not known"
                    )));
                }
                base
            }
            None if kernel.pointer_size == 4 => FIXED_32,
            None => FIXED_64,
        };
        let levels = match kernel.pointer_size {
            // With PAE there are four directories, one behind the other in the mapping.
            4 => 2,
            _ => 4,
        };
        let of = |record: &Option<Record<'_>>, name: &str| record.as_ref().and_then(|record| record.find(name));
        Ok(PageTables {
            kernel,
            base,
            entry,
            levels,
            valid: of(&hardware, "Valid"),
            large: of(&hardware, "LargePage"),
            not_large: of(&hardware, "NotLargePage"),
            prototype: of(&software, "Prototype"),
            transition: of(&software, "Transition"),
            frame: of(&software, "PageFrameNumber"),
            swizzled: of(&software, "SwizzleBit"),
            page_file_offset: Record::new(kernel, "_MMPTE_SOFTWARE").ok().and_then(|pte| pte.find("PageFileHigh")),
            invalid_mask: OnceCell::new(),
        })
    }

    /// The bits that this kernel sets in the entries of pages that are not there, so that no processor takes the rest
    /// for an address of memory (Windows 10 since 2018).
    fn invalid_mask(&self) -> Result<u64, Fault> {
        if let Some(mask) = self.invalid_mask.get() {
            return Ok(*mask);
        }
        let offset = |ty: &str, member: &str| Some(self.kernel.layout(ty).ok()?.field(member)?.offset);
        let place = offset("_MI_SYSTEM_INFORMATION", "Hardware").zip(offset("_MI_HARDWARE_STATE", "InvalidPteMask"));
        let address = self.kernel.find_symbol("MiState").zip(place);
        let address = address.map(|(state, (hardware, mask))| state.wrapping_add(hardware).wrapping_add(mask));
        let mask = match address {
            Some(address) => self.kernel.gather(&[Variable { address, size: 8 }])?.remove(0).unwrap_or(0),
            None => 0,
        };
        // It is above all memory there is; where it is not, the symbols have it in another place.
        let mask = if mask.trailing_zeros() < 36 { 0 } else { mask };
        Ok(*self.invalid_mask.get_or_init(|| mask))
    }

    /// What a last-level entry says.
    fn page(&self, entry: &[u8]) -> Result<Page, Fault> {
        if self.is_valid(entry) {
            return Ok(Page::Present);
        }
        let value = little_endian(entry);
        let bit = |member: Option<Member>, bit: u32| match member {
            Some(member) => member.get(entry) != 0,
            None => value >> bit & 1 != 0,
        };
        if value == 0 || bit(self.prototype, 10) {
            return Ok(Page::Nothing);
        }
        let swizzled = self.swizzled.is_none_or(|member| member.get(entry) != 0);
        if bit(self.transition, 11) {
            let mask = if swizzled { 0 } else { self.invalid_mask()? };
            let bytes = (value & !mask).to_le_bytes();
            let frame = self.frame.map_or(value >> 12 & 0xf_ffff_ffff, |member| member.get(&bytes[..entry.len()]));
            return Ok(Page::Transition(frame.saturating_mul(PAGE_SIZE)));
        }
        let offset = |value: u64| match self.page_file_offset {
            Some(member) => member.get(&value.to_le_bytes()[..entry.len()]),
            None if self.entry == 4 => value >> 12,
            None => value >> 32,
        };
        if offset(value) == 0 {
            return Ok(Page::Nothing);
        }
        // What a kernel sets in entries of pages that were never written is no place in a page file.
        let mask = if swizzled { 0 } else { self.invalid_mask()? };
        Ok(if offset(value & !mask) != 0 { Page::Out } else { Page::Nothing })
    }

    /// Reads what is there behind `read` bytes that are; adds to `out` what is in a page file.
    fn read_behind(&self, read: usize, sparse: &mut Sparse, out: &mut Vec<Range<u64>>) -> Result<(), Fault> {
        let memory = self.kernel.memory;
        let (address, length) = (sparse.address, sparse.bytes.len());
        // Nothing lies in the last byte of all.
        let end = address.saturating_add(length as u64);
        let bad = address.wrapping_add(read as u64);
        let first = bad & !(PAGE_SIZE - 1);
        let pages = end.wrapping_sub(first).div_ceil(PAGE_SIZE);
        let entries = read_sparse(memory, self.entry_of(first, 0), (pages * self.entry) as usize)?;
        let mut hole = |part: Range<u64>| match sparse.holes.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => sparse.holes.push(part),
        };
        // Pages that are there are read together.
        let mut waiting: Option<Range<u64>> = None;
        for index in 0..=pages {
            let page = first.wrapping_add(index * PAGE_SIZE);
            let entry = (index < pages).then(|| entries.get((index * self.entry) as usize, self.entry as usize));
            let state = match entry {
                None => Page::Nothing,
                // Without its table's word, the page is asked itself.
                Some(None) => Page::Present,
                Some(Some(entry)) => self.page(entry)?,
            };
            let part = page.max(bad)..page.saturating_add(PAGE_SIZE).min(end);
            if state == Page::Present {
                let start = waiting.as_ref().map_or(part.start, |waiting| waiting.start);
                waiting = Some(start..part.end);
                continue;
            }
            if let Some(run) = waiting.take() {
                let offset = run.start.wrapping_sub(address) as usize;
                let found = read_sparse(memory, run.start, (run.end - run.start) as usize)?;
                sparse.bytes[offset..offset + found.bytes.len()].copy_from_slice(&found.bytes);
                for part in found.holes {
                    let index = (part.start.wrapping_sub(first) / PAGE_SIZE * self.entry) as usize;
                    if entries.get(index, self.entry as usize).is_none() && self.has_table_out(part.start)? {
                        add(out, part.clone());
                    }
                    hole(part);
                }
            }
            if index == pages {
                break;
            }
            if state == Page::Out {
                add(out, part.clone());
            }
            let offset = part.start.wrapping_sub(address) as usize;
            let wanted = (part.end - part.start) as usize;
            let read = match state {
                Page::Transition(physical) => {
                    let physical = physical.wrapping_add(part.start % PAGE_SIZE);
                    memory.read_physical(physical, &mut sparse.bytes[offset..offset + wanted])?
                }
                Page::Present | Page::Out | Page::Nothing => 0,
            };
            if read < wanted {
                sparse.bytes[offset..offset + wanted].fill(0);
                hole(part);
            }
        }
        Ok(())
    }

    /// Whether a page that has no readable entry is one of a table that is not in memory. A target without any tables says
    /// nothing of its pages: what is not there was given back, for all that is known.
    fn has_table_out(&self, address: u64) -> Result<bool, Fault> {
        for level in 1..self.levels {
            let entry = read_sparse(self.kernel.memory, self.entry_of(address, level), self.entry as usize)?;
            if let Some(entry) = entry.get(0, self.entry as usize) {
                return Ok(matches!(self.page(entry)?, Page::Out | Page::Transition(_)));
            }
        }
        Ok(false)
    }

    /// The entry of `address` at a level: 0 for the page itself.
    fn entry_of(&self, address: u64, level: u32) -> u64 {
        let mut at = address;
        for _ in 0..=level {
            // The upper 16 bits of a 64-bit address say nothing.
            let bits = if self.kernel.pointer_size == 4 { 32 } else { 48 };
            let page = (at & ((1 << bits) - 1)) / PAGE_SIZE;
            at = self.kernel.wrap(self.base.wrapping_add(page * self.entry));
        }
        at
    }

    /// The address whose page's entry lies at `entry`.
    pub(crate) fn mapped_by(&self, entry: u64) -> Option<u64> {
        let offset = entry.checked_sub(self.base)?;
        let page = (offset / self.entry).checked_mul(PAGE_SIZE)?;
        let address = if self.kernel.pointer_size == 4 { page } else { ((page << 16) as i64 >> 16) as u64 };
        self.kernel.is_kernel_address(address).then_some(address)
    }

    fn is_valid(&self, entry: &[u8]) -> bool {
        self.valid.map_or(entry[0] & 1, |member| member.get(entry) as u8) != 0
    }

    fn is_large(&self, entry: &[u8]) -> bool {
        match (self.large, self.not_large) {
            (_, Some(member)) => member.get(entry) == 0,
            (Some(member), None) => member.get(entry) != 0,
            (None, None) => entry[0] & 0x80 != 0,
        }
    }

    /// The pages of `range` that are there.
    pub(crate) fn resident(&self, range: Range<u64>) -> Result<Resident, Fault> {
        let mut found = Resident::default();
        self.level(self.levels - 1, range, &mut found)?;
        if found.tables_out > 0 {
            found.notes.missing(format!(
                "{} page tables of the pool are not in memory themselves; the pages below them are missing",
                found.tables_out
            ));
        }
        Ok(found)
    }

    /// Reads the entries of `range`, which lies below one table, and goes down where they lead.
    fn level(&self, level: u32, range: Range<u64>, found: &mut Resident) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let per_table = (PAGE_SIZE / self.entry).trailing_zeros();
        let shift = 12 + per_table * level;
        let reach = 1u64 << shift;
        let first = range.start & !(reach - 1);
        let last = (range.end - 1) & !(reach - 1);
        let count = ((last - first) >> shift) + 1;
        if found.tables >= MAX_TABLES {
            return Ok(());
        }
        found.tables += 1;
        if found.tables == MAX_TABLES {
            found.notes.missing(format!(
                "more than {MAX_TABLES} page tables describe the pool; what lies above {first:016x} is missing"
            ));
            return Ok(());
        }
        let entries = count.min(4 * PAGE_SIZE / self.entry);
        let table = self.entry_of(first, level);
        let bytes = read_sparse(self.kernel.memory, table, (entries * self.entry) as usize)?;
        if !bytes.is_complete() {
            found
                .notes
                .missing(format!("the page table at {table:016x} could not be read; the pages below it are missing"));
        }
        for (index, entry) in bytes.bytes.chunks_exact(self.entry as usize).enumerate() {
            let from = first + ((index as u64) << shift);
            let part = from.max(range.start)..from.saturating_add(reach).min(range.end);
            if !self.is_valid(entry) {
                match self.page(entry)? {
                    Page::Transition(_) if level == 0 => {
                        add(&mut found.transition, part.clone());
                        add(&mut found.runs, part);
                    }
                    Page::Out if level == 0 => add(&mut found.out, part),
                    Page::Transition(_) | Page::Out => found.tables_out += 1,
                    Page::Present | Page::Nothing => {}
                }
                continue;
            }
            // A large page: 2 MB (4 MB on x86 without PAE), or 1 GB.
            let leaf = level == 0 || ((level == 1 || level == 2 && self.levels == 4) && self.is_large(entry));
            match leaf {
                true => add(&mut found.runs, part),
                false => self.level(level - 1, part, found)?,
            }
        }
        Ok(())
    }
}

/// Reads pool: what is mapped, and what is in transition from where it is in physical memory. The page tables are asked
/// only behind the first page that cannot be read.
pub(crate) fn read(kernel: &Kernel<'_>, address: u64, length: usize) -> Result<Sparse, Fault> {
    read_telling(kernel, address, length, &mut Vec::new())
}

/// As [`read`]; adds to `out` the holes that are in a page file, or whose tables are, so that what was never there, or was
/// given back, is told apart from what is lost.
pub(crate) fn read_telling(
    kernel: &Kernel<'_>,
    address: u64,
    length: usize,
    out: &mut Vec<Range<u64>>,
) -> Result<Sparse, Fault> {
    let mut sparse = Sparse::zeroed(address, length)?;
    let read = kernel.memory.read(address, &mut sparse.bytes)?;
    if read >= length {
        return Ok(sparse);
    }
    match PageTables::new(kernel) {
        Ok(tables) => tables.read_behind(read, &mut sparse, out)?,
        // Without them, what can be read at its address is all there is.
        Err(error) => {
            error.local()?;
            return read_sparse(kernel.memory, address, length);
        }
    }
    Ok(sparse)
}

/// Adds what lies behind all that is there already.
pub(crate) fn add(runs: &mut Vec<Range<u64>>, pages: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == pages.start => last.end = pages.end,
        _ => runs.push(pages),
    }
}
