//! Small blocks of one size that are allocated while the machine runs: slots of LFH subsegments that were made for them.

use crate::kernel::Kernel;
use crate::kernel::builder::Place;
use crate::kernel::seeded::{Header, Headers, Owner};
use crate::kernel::truth::{Carrier, Residence, SmallBlock, SmallState};

/// A block that nobody has: its subsegment, its number there, and its address.
pub(crate) type Slot = (u64, u64, u64);

/// The free blocks, and how they are taken.
pub(crate) struct SmallRoom {
    pub(crate) kind: crate::kernel::PoolKind,
    /// Bytes of a block, and its header's part of them.
    pub(crate) bytes: u64,
    pub(crate) unit: u64,
    /// The next one last.
    pub(crate) slots: Vec<Slot>,
    pub(crate) headers: Headers,
    pub(crate) free_count: Place,
    /// Of the subsegment's bitmap, and its bits for each block.
    pub(crate) bitmap: u64,
    pub(crate) bits: u64,
}

impl Kernel {
    /// Allocates a small block with this tag, as large as the room that was made for such. None on machines without any,
    /// or when it is used up.
    pub(crate) fn allocate_small(&mut self, tag: u32) -> Option<u64> {
        let room = self.books.small.as_mut()?;
        let (subsegment, number, header) = room.slots.pop()?;
        let (unit, kind, bytes) = (room.unit, room.kind, room.bytes);
        let memory = &mut self.memory;
        memory.map(header, bytes);
        let owner = Owner::plain(tag, bytes - unit);
        let values = Header { previous: 0, units: bytes / unit, index: 0, pool: kind, owner: Some(owner), tag };
        room.headers.write(memory, header, &values);
        memory.write(header + unit, &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let at = subsegment + room.bitmap + number * room.bits / 8;
        let mut byte = [0];
        memory.read(at, &mut byte);
        memory.write(at, &[byte[0] | 1 << (number * room.bits % 8)]);
        let free = room.free_count.load(memory, subsegment);
        room.free_count.store(memory, subsegment, free - 1);
        let id = self.books.life();
        let processor = id as u32 % self.books.processors;
        self.books.tags.charge(&mut self.memory, processor, tag, kind, 1, bytes);
        let address = header + unit;
        let block = SmallBlock {
            address,
            header,
            bytes,
            size: bytes - unit,
            tag,
            kind,
            state: SmallState::Live,
            process: None,
            carrier: Carrier::Lfh,
            residence: Residence::Present,
            outer: None,
        };
        let small = &mut self.fixed.small;
        let place = small.partition_point(|other| other.address < address);
        small.insert(place, block);
        Some(address)
    }
}
