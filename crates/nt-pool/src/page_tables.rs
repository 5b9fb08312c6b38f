//! Which pages of a range are there, from the page tables' own mapping of themselves.
//!
//! The tables of all of virtual memory lie in one stretch of it: the entry of a page is at `base + (address >> 12) *
//! entry size`, the entry of the table that this entry lies in is found by the same rule, and so on. Each table page is
//! read once, and only below an entry that says it is there.

use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, read_sparse};

use crate::kernel::{Variable, little_endian};
use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

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
}

/// What became known of a range.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    /// Ascending, without overlap.
    pub(crate) runs: Vec<Range<u64>>,
    pub(crate) notes: Vec<String>,
    tables: usize,
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
        })
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

    fn is_transition(&self, entry: &[u8]) -> bool {
        let bit = |member: Option<Member>, bit: u32| match member {
            Some(member) => member.get(entry) != 0,
            None => little_endian(entry) >> bit & 1 != 0,
        };
        !bit(self.prototype, 10) && bit(self.transition, 11)
    }

    /// The pages of `range` that are there.
    pub(crate) fn resident(&self, range: Range<u64>) -> Result<Resident, Fault> {
        let mut found = Resident::default();
        self.level(self.levels - 1, range, &mut found)?;
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
            found.notes.push(format!(
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
                .push(format!("the page table at {table:016x} could not be read; the pages below it are missing"));
        }
        for (index, entry) in bytes.bytes.chunks_exact(self.entry as usize).enumerate() {
            let from = first + ((index as u64) << shift);
            let part = from.max(range.start)..from.saturating_add(reach).min(range.end);
            if !self.is_valid(entry) {
                // On its way out of a working set, with its data still in physical memory: a target may read it.
                if level == 0 && self.is_transition(entry) {
                    found.add(part);
                }
                continue;
            }
            // A large page: 2 MB (4 MB on x86 without PAE), or 1 GB.
            let leaf = level == 0 || ((level == 1 || level == 2 && self.levels == 4) && self.is_large(entry));
            match leaf {
                true => found.add(part),
                false => self.level(level - 1, part, found)?,
            }
        }
        Ok(())
    }
}

impl Resident {
    fn add(&mut self, pages: Range<u64>) {
        match self.runs.last_mut() {
            Some(last) if last.end == pages.start => last.end = pages.end,
            _ => self.runs.push(pages),
        }
    }
}
