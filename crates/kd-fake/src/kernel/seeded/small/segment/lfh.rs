//! Low-fragmentation subsegments: blocks of one size, and a bitmap of the busy ones.

use super::super::PAGE;
use super::super::heap::{COMMIT_STATE, Heap, Lfh};
use super::{Writer, stale};
use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::Builder;
use crate::kernel::seeded::places::Map;
use crate::kernel::truth::{Carrier, Residence, SmallState};

const BUCKET: &str = "_HEAP_LFH_BUCKET";
const SUBSEGMENT: &str = "_HEAP_LFH_SUBSEGMENT";
/// In what `CommitStateOffset` is counted where it is one byte.
const COMMIT_UNIT: u64 = 8;

impl Writer<'_> {
    /// A bucket for each size, with the list of its subsegments.
    pub(super) fn buckets(
        &mut self,
        builder: &mut Builder,
        map: &mut Map,
        heap: &Heap,
        context: u64,
    ) -> Result<(), IsfError> {
        let buckets = context + builder.isf.offset("_HEAP_LFH_CONTEXT", "Buckets")?;
        let mut sizes: Vec<u64> = heap.lfh.iter().map(|lfh| lfh.bytes).filter(|bytes| *bytes != 0).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for bytes in sizes {
            let bucket = map.room(builder.isf.size(BUCKET)?);
            let same: Vec<&Lfh> = heap.lfh.iter().filter(|lfh| lfh.bytes == bytes).collect();
            let mut object = builder.object(BUCKET)?;
            let blocks: usize = same.iter().map(|lfh| lfh.usable()).sum();
            let values = [
                ("State.IsBucket", 1),
                ("State.BucketIndex", bytes / self.format.unit),
                ("State.AvailableSubsegmentCount", same.len() as u64),
                ("TotalBlockCount", blocks as u64),
                ("TotalSubsegmentCount", same.len() as u64),
            ];
            builder.fields(&mut object, &values)?;
            builder.store(bucket, &object);
            let mut links = vec![bucket + builder.isf.offset(BUCKET, "State.AvailableSubsegmentList")?];
            for lfh in same {
                self.lfh(builder, heap.kind, lfh, bucket)?;
                links.push(lfh.address);
            }
            builder.link(&links);
            builder.link(&[bucket + builder.isf.offset(BUCKET, "State.FullSubsegmentList")?]);
            builder.put_pointer(buckets + builder.width() * (bytes / self.format.unit), bucket);
        }
        Ok(())
    }

    fn lfh(&mut self, builder: &mut Builder, kind: PoolKind, lfh: &Lfh, owner: u64) -> Result<(), IsfError> {
        stale(builder, lfh.address, lfh.pages * PAGE, self.random);
        let mut pages = vec![false; lfh.pages as usize];
        let mine = self.small.len();
        for (number, block) in lfh.blocks.iter().enumerate() {
            let Some(block) = block else { continue };
            let at = lfh.block(number);
            pages[((at - lfh.address) / PAGE) as usize] = true;
            let state = if lfh.delayed.contains(&number) { SmallState::Deferred } else { SmallState::Live };
            self.block(builder, at, *block, kind, state, Carrier::Lfh);
        }
        // Each waiting block's first bytes are the number of the next one, counted from 1.
        for pair in lfh.delayed.windows(2) {
            builder.memory.put(lfh.block(pair[1]), &(pair[0] as u16 + 1).to_le_bytes());
        }
        if let Some(first) = lfh.delayed.first() {
            builder.memory.put(lfh.block(*first), &[0, 0]);
        }
        self.lfh_header(builder, lfh, owner)?;
        let words: Vec<u8> = self.bitmap(lfh).into_iter().flat_map(u64::to_le_bytes).collect();
        let bitmap = lfh.address + self.format.bitmap;
        builder.memory.put(bitmap, &words);
        // What is behind it is not zero: a bitmap read with too many bits goes on there.
        let state: Vec<u8> = (0..COMMIT_STATE * lfh.pages).map(|_| self.random.next() as u8 | 1).collect();
        builder.memory.put(bitmap + words.len() as u64, &state);
        self.trim_lfh(builder, kind, lfh, &pages, mine);
        Ok(())
    }

    fn lfh_header(&mut self, builder: &mut Builder, lfh: &Lfh, owner: u64) -> Result<(), IsfError> {
        let offsets = lfh.bytes | lfh.first << 16;
        let other = if self.rules.breaks(Mutation::LfhKey) { 0x0400_0010 } else { 0 };
        let page = match self.rules.lfh_key_shifted_first {
            true => (lfh.address >> 12) as u32,
            false => (lfh.address as u32) >> 12,
        };
        let mut object = builder.object(SUBSEGMENT)?;
        let values = [
            ("FreeCount", lfh.free() as u64 + u64::from(self.rules.breaks(Mutation::LfhFreeCount))),
            ("BlockCount", lfh.usable() as u64),
            ("BlockOffsets.EncodedData", u64::from(offsets as u32 ^ self.lfh_key as u32 ^ page ^ other)),
            ("CommitUnitShift", 12),
        ];
        builder.fields(&mut object, &values)?;
        let behind = self.format.bitmap + self.bitmap(lfh).len() as u64 * 8;
        let narrow = builder.isf.member(SUBSEGMENT, "CommitStateOffset").and_then(|(_, ty)| builder.isf.size_of(ty));
        let behind = if narrow.is_ok_and(|size| size == 1) { behind / COMMIT_UNIT } else { behind };
        let counted = !self.rules.breaks(Mutation::LfhWithheld);
        let withheld = if counted { (lfh.blocks.len() - lfh.usable()) as u64 } else { 0 };
        let known = [
            ("Owner", owner),
            ("WitheldBlockCount", withheld),
            ("CommitStateOffset", behind),
            ("CommitUnitCount", lfh.pages),
            ("HighWatermarkBlockIndex", lfh.blocks.len() as u64),
            ("State.DelayFreeList", lfh.delayed.last().map_or(0, |block| *block as u64 + 1)),
            ("State.DelayFreeCount", lfh.delayed.len() as u64),
        ];
        builder.known_fields(&mut object, &known);
        builder.store(lfh.address, &object);
        Ok(())
    }

    fn bitmap(&self, lfh: &Lfh) -> Vec<u64> {
        let bits = self.format.lfh_bits;
        // As many words as the subsegment would have blocks without its header.
        let most = lfh.pages * PAGE / lfh.bytes;
        let mut words = vec![0u64; (bits * most).div_ceil(64) as usize];
        let mut set = |at: u64, value: u64| words[(at / 64) as usize] |= value << (at % 64);
        for (number, block) in lfh.blocks.iter().enumerate() {
            let busy = match block {
                None if lfh.is_withheld(number) => 1,
                None => 0,
                // The pair's upper bit: not all of the block was asked for.
                Some(block) if bits == 2 && block.size % self.format.unit != 0 => 3,
                Some(_) => 1,
            };
            set(number as u64 * bits, busy);
        }
        if bits == 1 {
            // What is behind the last block is nobody's.
            (lfh.blocks.len() as u64..words.len() as u64 * 64)
                .for_each(|at| words[(at / 64) as usize] |= 1 << (at % 64));
        }
        if self.rules.breaks(Mutation::LfhShiftedBitmap) {
            words.iter_mut().for_each(|word| *word = word.rotate_left(bits as u32));
        }
        words
    }

    /// The first page has the header and stays; so do those with blocks that wait.
    fn trim_lfh(&mut self, builder: &mut Builder, kind: PoolKind, lfh: &Lfh, pages: &[bool], mine: usize) {
        let waits = |page: u64| lfh.delayed.iter().any(|block| lfh.block(*block) & !(PAGE - 1) == page);
        for (page, used) in (lfh.address..).step_by(PAGE as usize).zip(pages).skip(1) {
            if !used {
                if self.random.once_in(2) {
                    builder.memory.unmap(page, PAGE);
                }
                continue;
            }
            let residence = if waits(page) { Residence::Present } else { self.residence(kind) };
            match residence {
                Residence::Present => {}
                Residence::Transition => builder.memory.trim(page),
                Residence::PagedOut => builder.memory.page_out(page),
            }
            for block in &mut self.small[mine..] {
                if block.header & !(PAGE - 1) == page {
                    block.residence = residence;
                }
            }
        }
    }
}
