//! The verifier's logs: rings of records of one type.
//!
//! The writer counts first, so the newest record is in slot `Index & (Length - 1)`, and a record's sequence number is
//! the count it was written at.

use std::ops::Range;

use nt_memory::Fault;

use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, Notes, PoolError};

/// Records of the largest log that Windows can be told to keep.
const MAX_LENGTH: u32 = 0x80_0000;

/// Bytes of a log held at a time.
const PIECE: u64 = 4 << 20;

/// The variables that describe one log.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) table: &'static str,
    pub(crate) index: &'static str,
    pub(crate) length: &'static str,
}

/// Where a log lies, as the kernel's variables say.
pub(crate) struct Ring {
    names: &'static Names,
    pub(crate) address: u64,
    pub(crate) index: u32,
    pub(crate) length: u32,
    /// Of one record.
    pub(crate) size: usize,
}

/// A record's bytes and sequence number to what it says; `None` for a slot that was never written.
pub(crate) type Decode<'d, T> = &'d dyn Fn(&[u8], u32) -> Option<T>;

/// As [`Decode`], of a record of which only so many bytes are known.
pub(crate) type DecodeHead<'d, T> = &'d dyn Fn(&[u8], u32, usize) -> Option<T>;

impl Ring {
    /// `Ok(None)`: there is no such log now.
    pub(crate) fn read(kernel: &Kernel<'_>, names: &'static Names, size: usize) -> Result<Option<Self>, PoolError> {
        let (address, index, length) = Self::variables(kernel, names)?;
        if address == 0 {
            return Ok(None);
        }
        let bytes = u64::from(length) * size as u64;
        if !length.is_power_of_two() || length > MAX_LENGTH || !kernel.is_kernel_range(address, bytes) {
            return Err(PoolError::Unlikely(format!(
                "nt!{} holds {address:016x} and nt!{} {length:#x} records, which is no log in kernel memory (the \
                 length is a power of two up to {MAX_LENGTH:#x}); are the symbols this kernel's?",
                names.table, names.length
            )));
        }
        Ok(Some(Ring { names, address, index, length, size }))
    }

    fn variables(kernel: &Kernel<'_>, names: &Names) -> Result<(u64, u32, u32), PoolError> {
        let variables = [
            kernel.pointer_variable(names.table)?,
            kernel.u32_variable(names.index)?,
            kernel.u32_variable(names.length)?,
        ];
        let mut values = kernel.gather(&variables)?.into_iter();
        let mut next = || values.next().unwrap_or(Ok(0));
        Ok((next()?, next()? as u32, next()? as u32))
    }

    /// Says so when the log was written to, or replaced, since.
    pub(crate) fn check(&self, kernel: &Kernel<'_>, notes: &mut Notes) -> Result<(), PoolError> {
        let (address, index, length) = Self::variables(kernel, self.names)?;
        if (address, length) != (self.address, self.length) {
            notes.missing("the log was replaced while it was read; ask again");
        } else if index != self.index {
            let written = index.wrapping_sub(self.index);
            notes.missing(format!("{written} records were written while the log was read; the oldest may be mixed up"));
        }
        Ok(())
    }

    fn newest_slot(&self) -> u32 {
        self.index & (self.length - 1)
    }

    /// How many records are newer than the slot's.
    pub(crate) fn age(&self, slot: u32) -> u32 {
        self.index.wrapping_sub(slot) & (self.length - 1)
    }

    /// The count that a slot's record was written at.
    pub(crate) fn sequence(&self, slot: u32) -> u32 {
        self.index.wrapping_sub(self.age(slot))
    }

    /// The slots of the newest `count` records, the newer part first.
    pub(crate) fn newest_slots(&self, count: u32) -> [Range<u32>; 2] {
        let count = count.min(self.length);
        let end = self.newest_slot() + 1;
        let first = end.saturating_sub(count);
        let rest = count - (end - first);
        [first..end, self.length - rest..self.length]
    }

    /// Every record that `wanted` accepts, newest first.
    pub(crate) fn all<T>(
        &self,
        kernel: &Kernel<'_>,
        notes: &mut Notes,
        decode: Decode<'_, T>,
        wanted: &dyn Fn(&T) -> bool,
    ) -> Result<Vec<T>, Fault> {
        let mut records = Vec::new();
        let mut each = |record: T| {
            if wanted(&record) {
                records.push(record);
            }
        };
        let newest = self.newest_slot();
        self.slots(kernel, 0..newest + 1, notes, decode, &mut each)?;
        // A log that has not come round yet has nothing above the newest record; its last slot tells.
        let young = self.index < self.length && newest + 1 < self.length;
        let last = self.length - 1..self.length;
        if !(young && self.slots(kernel, last, &mut Notes::default(), decode, &mut |_| {})?) {
            self.slots(kernel, newest + 1..self.length, notes, decode, &mut each)?;
        }
        Ok(records)
    }

    /// The records of the newest `count` slots.
    pub(crate) fn newest<T>(
        &self,
        kernel: &Kernel<'_>,
        notes: &mut Notes,
        decode: Decode<'_, T>,
        count: u32,
    ) -> Result<Vec<T>, Fault> {
        let mut records = Vec::new();
        let [newer, older] = self.newest_slots(count);
        let unwritten = self.slots(kernel, newer, notes, decode, &mut |record| records.push(record))?;
        if !(unwritten && self.index < self.length) {
            self.slots(kernel, older, notes, decode, &mut |record| records.push(record))?;
        }
        Ok(records)
    }

    /// As [`Ring::newest`], of as many slots with a request as their first `head` bytes allow. The last record of each
    /// request may end before its end; `decode` is told how many bytes are known, the rest is zero.
    pub(crate) fn newest_heads<T>(
        &self,
        kernel: &Kernel<'_>,
        notes: &mut Notes,
        decode: DecodeHead<'_, T>,
        count: u32,
        head: usize,
    ) -> Result<Vec<T>, Fault> {
        let reply = kernel.memory.reply_size();
        let together = reply.saturating_sub(head) / self.size + 1;
        let count = count.min(self.length);
        // Where whole records take no more requests they are read.
        if reply < head || (count as usize * self.size).div_ceil(reply) <= (count as usize).div_ceil(together) {
            let whole = |record: &[u8], sequence: u32| decode(record, sequence, self.size);
            return self.newest(kernel, notes, &whole, count);
        }
        let mut records = Vec::new();
        for slots in self.newest_slots(count) {
            let mut part = Vec::new();
            for first in slots.clone().step_by(together) {
                let slots = first..slots.end.min(first.saturating_add(together as u32));
                let before = (slots.len() - 1) * self.size;
                // Whole pointers.
                let last = (reply - before).min(self.size) & !7;
                let at = self.address.wrapping_add(u64::from(first) * self.size as u64);
                let mut table = read_table(kernel, at, before + last)?;
                note_holes(notes, &format!("nt!{}", self.names.table), &table);
                table.bytes.resize(slots.len() * self.size, 0);
                for (i, slot) in slots.clone().enumerate() {
                    let known = if slot + 1 == slots.end { last } else { self.size };
                    if table.get(i * self.size, known).is_some() {
                        let record = &table.bytes[i * self.size..(i + 1) * self.size];
                        part.extend(decode(record, self.sequence(slot), known));
                    }
                }
            }
            records.extend(part.into_iter().rev());
        }
        Ok(records)
    }

    /// Reads slots and passes the written ones on, last slot first. Says whether one was never written.
    fn slots<T>(
        &self,
        kernel: &Kernel<'_>,
        slots: Range<u32>,
        notes: &mut Notes,
        decode: Decode<'_, T>,
        each: &mut dyn FnMut(T),
    ) -> Result<bool, Fault> {
        let piece = (PIECE / self.size as u64) as u32;
        let mut end = slots.end;
        let mut unwritten = false;
        while end > slots.start {
            let first = end.saturating_sub(piece).max(slots.start);
            let at = self.address.wrapping_add(u64::from(first) * self.size as u64);
            let table = read_table(kernel, at, (end - first) as usize * self.size)?;
            note_holes(notes, &format!("nt!{}", self.names.table), &table);
            let records: Vec<Option<&[u8]>> = entries(&table, self.size).collect();
            for (i, record) in records.iter().enumerate().rev() {
                let Some(record) = record else { continue };
                match decode(record, self.sequence(first + i as u32)) {
                    Some(record) => each(record),
                    None => unwritten = true,
                }
            }
            end = first;
        }
        Ok(unwritten)
    }
}
