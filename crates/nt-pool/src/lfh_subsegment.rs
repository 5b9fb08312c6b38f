//! An LFH ("low fragmentation") subsegment of a segment heap: blocks of one size, and a bitmap that says which are in
//! use.
//!
//! ```text
//! _HEAP_LFH_SUBSEGMENT  BlockCount, FreeCount; WitheldBlockCount: blocks that would cross a page
//!                       BlockBitmap: one bit a block, or two of which the lower one says "in use"
//!                       BlockOffsets, encoded: BlockSize (2), FirstBlockOffset (2)
//!                       State.DelayFreeList (26100): freed blocks that are not in the bitmap yet
//! ```
//!
//! Slots of one size follow each other from the first block on. One that would cross a page is withheld: it is never
//! handed out, is marked as in use, and `BlockCount` does not count it.
//!
//! Folklore: the kernel of Windows 10 has two bits a block, that of 11 24H2 has one, and nobody knows where in between
//! this changed. Example: on an x64 26100 the reading of two bits found 173,649 blocks in use where there are 252,079.
//! So both are tried: the right one is where the bits in use, less the withheld ones, are `BlockCount - FreeCount`.

use std::cmp::Ordering;

use nt_memory::{PAGE_SIZE, Sparse};

use crate::kernel::little_endian;
use crate::readings::{Form, Votes};
use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

/// No block is smaller (facts: segment-heap-measured 5).
const SMALLEST: u64 = 8;

/// So many subsegments more must fit one form only before the others follow: some may be damaged.
const ENOUGH: u64 = 3;

pub(crate) struct LfhFormat {
    lfh_key: u64,
    header: usize,
    block_count: Member,
    free_count: Option<Member>,
    withheld: Option<Member>,
    /// First element (a slot's number and one), and how many there are.
    delayed: Option<(Member, Member)>,
    block_offsets: Member,
    bitmap: usize,
    block_size: Member,
    first_block_offset: Member,
    /// The form that this kernel's types suggest, for subsegments that fit both while none has fitted one only.
    likely: Form,
}

/// One block of a subsegment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// From the subsegment's start.
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) allocated: bool,
    /// In use by the bitmap, and in the list of freed ones in truth.
    pub(crate) delayed: bool,
}

/// Which readings the subsegments so far have had.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chosen {
    pub(crate) bits: Votes,
    pub(crate) offsets: Votes,
}

/// What is known of a subsegment before its blocks are looked at.
#[derive(Debug, Clone)]
pub(crate) struct Subsegment {
    sizes: Sizes,
    slots: u64,
    bits: Form,
    /// Blocks in use: by the counts, and by the bitmap.
    pub(crate) in_use: Option<(u64, u64)>,
    /// Slots that cross a page: by the count, and by their places.
    pub(crate) withheld: Option<(u64, u64)>,
    bitmap: Vec<u8>,
    /// Number of the first slot of the list of freed ones and one, and how many it has.
    delayed: Option<(u64, u64)>,
}

/// Why a subsegment is not decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Problem {
    Unreadable { at: u64 },
    Sizes { at: u64, slots: u64, size: u64, first: u64, room: u64 },
    Counts { at: u64, count: u64, free: u64 },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Unreadable { at } => write!(f, "the LFH subsegment at {at:016x} is unreadable"),
            Problem::Sizes { at, slots, size, first, room } => write!(
                f,
                "the LFH subsegment at {at:016x} says it has {slots:#x} blocks of {size:#x} bytes from offset \
                 {first:#x}; its range has {room:#x} bytes"
            ),
            Problem::Counts { at, count, free } => {
                write!(f, "the LFH subsegment at {at:016x} says that {free:#x} of its {count:#x} blocks are free")
            }
        }
    }
}

/// What a subsegment's header says as it is.
struct Counts {
    encoded: u32,
    count: u64,
    withheld: u64,
    /// Blocks that are not free.
    in_use: Option<u64>,
    /// Number of the first slot of the list of freed ones and one, and how many it has.
    delayed: Option<(u64, u64)>,
}

impl Counts {
    fn slots(&self) -> u64 {
        self.count + self.withheld
    }
}

/// A bitmap in one of its forms.
struct Reading<'a> {
    bitmap: &'a [u8],
    /// Blocks that it marks.
    in_use: u64,
    balances: bool,
}

/// A subsegment's sizes, decoded in one of two ways.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    size: u64,
    first: u64,
}

impl Sizes {
    /// How many of the slots cross a page: those with a page's start inside.
    fn crossing(&self, at: u64, slots: u64) -> u64 {
        let Some(length) = slots.checked_mul(self.size).filter(|_| self.size > 0) else { return 0 };
        let start = at.wrapping_add(self.first);
        let to_page = start.wrapping_neg() % PAGE_SIZE;
        let inside = (to_page..length).step_by(PAGE_SIZE as usize);
        inside.filter(|page| page % self.size != 0).count() as u64
    }
}

impl LfhFormat {
    pub(crate) fn new(kernel: &Kernel<'_>, lfh_key: u64) -> Result<Self, PoolError> {
        let subsegment = Record::new(kernel, "_HEAP_LFH_SUBSEGMENT")?;
        let offsets = Record::new(kernel, "_HEAP_LFH_SUBSEGMENT_ENCODED_OFFSETS")?;
        let find = |name: &str| subsegment.find(&format!("State.{name}")).or_else(|| subsegment.find(name));
        let newer = ["BitmapSearchWidth", "PrivateFormat", "HighWatermarkBlockIndex"];
        Ok(LfhFormat {
            lfh_key,
            header: subsegment.size,
            block_count: subsegment.member("BlockCount")?,
            free_count: subsegment.find("FreeCount"),
            withheld: subsegment.find("WitheldBlockCount"),
            delayed: find("DelayFreeList").zip(find("DelayFreeCount")),
            block_offsets: subsegment.member("BlockOffsets")?,
            bitmap: subsegment.place("BlockBitmap")?,
            block_size: offsets.member("BlockSize")?,
            first_block_offset: offsets.member("FirstBlockOffset")?,
            likely: if newer.iter().any(|name| find(name).is_some()) { Form::Newer } else { Form::Older },
        })
    }

    /// Bytes that the subsegment's own books have at most when it is so large: its header and the bitmap.
    pub(crate) fn books(&self, length: u64, unit: u64) -> u64 {
        (self.header as u64 + (length / unit).div_ceil(4)).min(length)
    }

    /// Lets a subsegment at the start of a range of `room` bytes speak for the forms that it fits. Returns whether it can
    /// be decoded now: what it says does not depend on a form that is not known well enough yet.
    pub(crate) fn weigh(&self, area: &Sparse, room: u64, chosen: &mut Chosen) -> bool {
        let Ok(Some(counts)) = self.counts(area) else { return true };
        let both = self.sizes(area.address, &counts, room);
        let same = (both[0].0.size, both[0].0.first) == (both[1].0.size, both[1].0.first);
        let [older, newer] = both.map(|(_, rank)| rank);
        chosen.offsets.add(older > 0 && older >= newer, newer > 0 && newer >= older);
        let sure = same || chosen.offsets.lead() >= ENOUGH || (older == 0) != (newer == 0);
        let sizes = both[self.form(chosen.offsets, [older, newer]) as usize].0;
        let [one, other] = [Form::Older, Form::Newer].map(|form| self.reading(area, &counts, &sizes, form));
        if counts.in_use.is_some() {
            chosen.bits.add(one.as_ref().is_some_and(|r| r.balances), other.as_ref().is_some_and(|r| r.balances));
        }
        let differ = || match (&one, &other) {
            (Some(one), Some(other)) => (0..counts.slots())
                .any(|slot| bit(Form::Older, one.bitmap, slot) != bit(Form::Newer, other.bitmap, slot)),
            _ => false,
        };
        sure && (chosen.bits.lead() >= ENOUGH || !differ())
    }

    /// The form of what has been voted on; before anything is known, the better one for this subsegment.
    fn form(&self, votes: Votes, [older, newer]: [u8; 2]) -> Form {
        votes.chosen().unwrap_or(match older.cmp(&newer) {
            Ordering::Greater => Form::Older,
            Ordering::Less => Form::Newer,
            Ordering::Equal => self.likely,
        })
    }

    /// What the header and the bitmap at the start of a range of `room` bytes say. `None`: the subsegment is not in use
    /// yet, which is no damage.
    pub(crate) fn subsegment(&self, area: &Sparse, room: u64, chosen: &Chosen) -> Result<Option<Subsegment>, Problem> {
        let at = area.address;
        let Some(counts) = self.counts(area)? else { return Ok(None) };
        let slots = counts.slots();
        let both = self.sizes(at, &counts, room);
        let (sizes, rank) = both[self.form(chosen.offsets, both.map(|(_, rank)| rank)) as usize];
        let impossible = Problem::Sizes { at, slots, size: sizes.size, first: sizes.first, room };
        if rank == 0 {
            return Err(impossible);
        }
        let readings = [Form::Older, Form::Newer].map(|form| self.reading(area, &counts, &sizes, form));
        let bits = self.form(
            chosen.bits,
            [0, 1].map(|form: usize| readings[form].as_ref().map_or(0, |reading| 1 + u8::from(reading.balances))),
        );
        let Some(reading) = &readings[bits as usize] else {
            return Err(match area.get(self.bitmap, bitmap_bytes(bits, slots) as usize) {
                None => Problem::Unreadable { at },
                Some(_) => impossible,
            });
        };
        let crossing = sizes.crossing(at, slots);
        let in_use = counts.in_use;
        Ok(Some(Subsegment {
            sizes,
            slots,
            bits,
            in_use: in_use.map(|in_use| (in_use, if reading.balances { in_use } else { reading.in_use })),
            withheld: self.withheld.map(|_| (counts.withheld, crossing)),
            bitmap: reading.bitmap.to_vec(),
            delayed: counts.delayed,
        }))
    }

    fn counts(&self, area: &Sparse) -> Result<Option<Counts>, Problem> {
        let at = area.address;
        let header = area.get(0, self.header).ok_or(Problem::Unreadable { at })?;
        let count = self.block_count.get(header);
        let encoded = self.block_offsets.get(header) as u32;
        // Committed, and not set up when the target stopped.
        if encoded == 0 && count == 0 {
            return Ok(None);
        }
        let in_use = match self.free_count.map(|free| free.get(header)) {
            Some(free) if free > count => return Err(Problem::Counts { at, count, free }),
            free => free.map(|free| count - free),
        };
        let delayed = self.delayed.map(|(first, count)| (first.get(header), count.get(header)));
        Ok(Some(Counts {
            encoded,
            count,
            withheld: self.withheld.map_or(0, |member| member.get(header)),
            in_use,
            delayed: delayed.filter(|(first, count)| *first > 0 && *count > 0),
        }))
    }

    /// The sizes decoded in both ways, each with its rank: 0 cannot be, 1 can be, 2 is right about what is withheld, too.
    fn sizes(&self, at: u64, counts: &Counts, room: u64) -> [(Sizes, u8); 2] {
        let slots = counts.slots();
        let bitmap = self.bitmap as u64 + bitmap_bytes(Form::Newer, slots);
        [at as u32 >> 12, (at >> 12) as u32].map(|shifted| {
            let decoded = (counts.encoded ^ self.lfh_key as u32 ^ shifted).to_le_bytes();
            let sizes = Sizes { size: self.block_size.get(&decoded), first: self.first_block_offset.get(&decoded) };
            let fits = (SMALLEST..=PAGE_SIZE).contains(&sizes.size)
                && sizes.first >= bitmap
                && sizes.first + slots * sizes.size <= room;
            (sizes, u8::from(fits) + u8::from(fits && sizes.crossing(at, slots) == counts.withheld))
        })
    }

    /// One reading of the bitmap; `None` where there is no room for it, or it cannot be read.
    fn reading<'a>(&self, area: &'a Sparse, counts: &Counts, sizes: &Sizes, form: Form) -> Option<Reading<'a>> {
        let slots = counts.slots();
        let bytes = bitmap_bytes(form, slots);
        // The first block begins behind the bitmap.
        let bitmap = area.get(self.bitmap, bytes as usize).filter(|_| self.bitmap as u64 + bytes <= sizes.first)?;
        let busy = busy(form, bitmap, slots);
        // Where a kernel counts what crosses a page among its blocks, the header's own number tells. Whether blocks in
        // the list of freed ones count as free nobody has seen.
        let taken = [counts.withheld, sizes.crossing(area.address, slots)].map(|less| busy.saturating_sub(less));
        let waiting = counts.delayed.map_or(0, |(_, count)| count);
        let balances = counts.in_use.is_some_and(|in_use| taken.iter().any(|b| *b == in_use || *b == in_use + waiting));
        Some(Reading { bitmap, in_use: taken[0], balances })
    }
}

/// The bitmap's bytes: whole words.
fn bitmap_bytes(form: Form, slots: u64) -> u64 {
    let bits = match form {
        Form::Older => 2 * slots,
        Form::Newer => slots,
    };
    bits.div_ceil(64) * 8
}

fn bit(form: Form, bitmap: &[u8], slot: u64) -> bool {
    let at = match form {
        Form::Older => 2 * slot,
        Form::Newer => slot,
    };
    bitmap.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) & 1 != 0)
}

/// How many of the slots are marked.
fn busy(form: Form, bitmap: &[u8], slots: u64) -> u64 {
    let (pattern, width) = match form {
        Form::Older => (0x5555_5555_5555_5555, 2),
        Form::Newer => (u64::MAX, 1),
    };
    let mut left = slots * width;
    let mut busy = 0;
    for word in bitmap.chunks(8).map(little_endian) {
        let mask = 1u64.checked_shl(left as u32).map_or(u64::MAX, |bit| bit - 1);
        busy += u64::from((word & pattern & if left >= 64 { u64::MAX } else { mask }).count_ones());
        left = left.saturating_sub(64);
    }
    busy
}

fn crosses(at: u64, size: u64) -> bool {
    at % PAGE_SIZE + size > PAGE_SIZE
}

impl Subsegment {
    /// Visits the subsegment's blocks in order. `next` reads the link in a freed block that waits, at such an address.
    /// Returns whether that list holds what it says.
    pub(crate) fn slots(&self, at: u64, next: impl FnMut(u64) -> Option<u64>, mut each: impl FnMut(Slot)) -> bool {
        let (waiting, whole) = self.waiting(at, next);
        for slot in 0..self.slots {
            let offset = self.sizes.first + slot * self.sizes.size;
            if crosses(at.wrapping_add(offset), self.sizes.size) {
                continue;
            }
            let allocated = bit(self.bits, &self.bitmap, slot);
            let delayed = allocated && waiting.contains(&slot);
            each(Slot { offset, size: self.sizes.size, allocated, delayed });
        }
        whole
    }

    /// The slots in the list of freed ones.
    fn waiting(&self, at: u64, mut next: impl FnMut(u64) -> Option<u64>) -> (Vec<u64>, bool) {
        let Some((mut element, count)) = self.delayed else { return (Vec::new(), true) };
        let mut waiting = Vec::new();
        while element > 0 && (waiting.len() as u64) < count.min(self.slots) {
            let slot = element - 1;
            if slot >= self.slots || waiting.contains(&slot) {
                return (waiting, false);
            }
            waiting.push(slot);
            let place = at.wrapping_add(self.sizes.first + slot * self.sizes.size);
            let Some(link) = next(place) else { return (waiting, false) };
            element = link;
        }
        let whole = waiting.len() as u64 == count;
        (waiting, whole)
    }

    /// Says with figures that no reading of the bitmap balances.
    pub(crate) fn imbalance(&self, at: u64) -> Option<String> {
        let (expected, found) = self.in_use.filter(|(expected, found)| expected != found)?;
        let bits = match self.bits {
            Form::Older => "two bits",
            Form::Newer => "one bit",
        };
        Some(format!(
            "the LFH subsegment at {at:016x} counts {expected} blocks in use, and its bitmap with {bits} a block has \
             {found} of {} slots; which of its blocks are in use is not sure",
            self.slots
        ))
    }
}
