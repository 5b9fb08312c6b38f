//! An LFH ("low fragmentation") subsegment of a segment heap: blocks of one size, and a bitmap that says which are in
//! use.
//!
//! ```text
//! _HEAP_LFH_SUBSEGMENT  BlockCount, BlockBitmap (two bits per block, the lower one: in use)
//!                       BlockOffsets, encoded: BlockSize (2), FirstBlockOffset (2)
//! ```
//!
//! A block that would cross a page is never handed out.

use nt_memory::{PAGE_SIZE, Sparse};

use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

/// Windows 11 24H2 shifts the subsegment's address before it is cut to 32 bits, not after (facts: MemProcFS).
const WIDE_SHIFT: u16 = 26100;

pub(crate) struct LfhFormat {
    lfh_key: u64,
    wide_shift: bool,
    header: usize,
    block_count: Member,
    block_offsets: Member,
    bitmap: usize,
    block_size: Member,
    first_block_offset: Member,
}

/// One block of a subsegment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// From the subsegment's start.
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) allocated: bool,
}

impl LfhFormat {
    pub(crate) fn new(kernel: &Kernel<'_>, lfh_key: u64) -> Result<Self, PoolError> {
        let subsegment = Record::new(kernel, "_HEAP_LFH_SUBSEGMENT")?;
        let offsets = Record::new(kernel, "_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS")?;
        Ok(LfhFormat {
            lfh_key,
            wide_shift: kernel.build >= WIDE_SHIFT,
            header: subsegment.size,
            block_count: subsegment.member("BlockCount")?,
            block_offsets: subsegment.member("BlockOffsets")?,
            bitmap: subsegment.place("BlockBitmap")?,
            block_size: offsets.member("BlockSize")?,
            first_block_offset: offsets.member("FirstBlockOffset")?,
        })
    }

    /// Bytes that the subsegment's own books have at most when it is so large: its header and the bitmap.
    pub(crate) fn books(&self, length: u64, unit: u64) -> u64 {
        (self.header as u64 + (length / unit).div_ceil(4)).min(length)
    }

    /// Visits the subsegment's blocks in order.
    pub(crate) fn slots(&self, area: &Sparse, mut each: impl FnMut(Slot)) -> Result<(), String> {
        let at = area.address;
        let unreadable = || format!("the LFH subsegment at {at:016x} is unreadable");
        let header = area.get(0, self.header).ok_or_else(unreadable)?;
        let count = self.block_count.get(header);
        let shifted = if self.wide_shift { (at >> 12) as u32 } else { at as u32 >> 12 };
        let decoded = self.block_offsets.get(header) as u32 ^ self.lfh_key as u32 ^ shifted;
        let decoded = decoded.to_le_bytes();
        let size = self.block_size.get(&decoded);
        let first = self.first_block_offset.get(&decoded);
        let bitmap_bytes = count.div_ceil(4);
        let room = area.bytes.len() as u64;
        let fits = size > 0 && first >= self.bitmap as u64 + bitmap_bytes && first + count * size <= room;
        if !fits {
            return Err(format!(
                "the LFH subsegment at {at:016x} says it has {count:#x} blocks of {size:#x} bytes from offset \
                 {first:#x}; its range has {room:#x} bytes"
            ));
        }
        let bitmap = area.get(self.bitmap, bitmap_bytes as usize).ok_or_else(unreadable)?;
        for (index, offset) in (0..count as usize).zip((first..).step_by(size as usize)) {
            let in_page = at.wrapping_add(offset) % PAGE_SIZE;
            if in_page + size > PAGE_SIZE {
                continue;
            }
            let allocated = bitmap[index / 4] >> (index % 4 * 2) & 1 != 0;
            each(Slot { offset, size, allocated });
        }
        Ok(())
    }
}
