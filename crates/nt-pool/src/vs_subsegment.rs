//! A VS ("variable size") subsegment of a segment heap: chunks of any size, end to end.
//!
//! ```text
//! _HEAP_VS_SUBSEGMENT   Size (in chunk headers' sizes), Signature: Size ^ 0x2bed, 15 bits
//! _HEAP_VS_CHUNK_HEADER Sizes, encoded: xor the chunk's address xor HeapKey
//!   MemoryCost, UnsafeSize (in chunk headers' sizes), UnsafePrevSize, Allocated
//! _POOL_HEADER          behind the chunk's header; or at the next page's start, when the block would cross a page
//! ```
//!
//! A chunk of a page and more usually holds one allocation that starts a page, has no pool header, and has an entry in
//! the table of large allocations.

use nt_memory::{PAGE_SIZE, Sparse};

use crate::pool_header::{Header, Headers};
use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

/// What hides a subsegment's size in its signature, in every build so far (facts: MemProcFS, 17763 to 26100).
const SIGNATURE: u64 = 0x2bed;
const SIGNATURE_BITS: u64 = 0x7fff;

/// Chunks that are looked at to take a broken chain up again; a subsegment has no more.
const MAX_STEPS: u32 = 1 << 17;

pub(crate) struct VsFormat {
    heap_key: u64,
    header: usize,
    subsegment_size: Member,
    subsegment_signature: Member,
    sizes: Member,
    unsafe_size: Member,
    unsafe_previous_size: Option<Member>,
    allocated: Member,
    /// A chunk header's size.
    pub(crate) unit: u64,
}

/// One chunk of a subsegment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    /// From the subsegment's start.
    pub(crate) offset: u64,
    /// With its header.
    pub(crate) size: u64,
    pub(crate) allocated: bool,
}

impl VsFormat {
    pub(crate) fn new(kernel: &Kernel<'_>, heap_key: u64) -> Result<Self, PoolError> {
        let subsegment = Record::new(kernel, "_HEAP_VS_SUBSEGMENT")?;
        let chunk = Record::new(kernel, "_HEAP_VS_CHUNK_HEADER")?;
        let sizes = Record::new(kernel, "_HEAP_VS_CHUNK_HEADER_SIZE")?;
        Ok(VsFormat {
            heap_key,
            header: subsegment.size,
            subsegment_size: subsegment.member("Size")?,
            subsegment_signature: subsegment.member("Signature")?,
            sizes: chunk.member("Sizes")?,
            unsafe_size: sizes.member("UnsafeSize")?,
            unsafe_previous_size: sizes.find("UnsafePrevSize"),
            allocated: sizes.member("Allocated")?,
            unit: chunk.size as u64,
        })
    }

    /// Where the first chunk and the end are, if this is a subsegment.
    fn bounds(&self, area: &Sparse) -> Result<(u64, u64), String> {
        let at = area.address;
        let header = area.get(0, self.header).ok_or_else(|| format!("the VS subsegment at {at:016x} is unreadable"))?;
        let size = self.subsegment_size.get(header);
        let signature = self.subsegment_signature.get(header);
        if (size ^ SIGNATURE) & SIGNATURE_BITS != signature & SIGNATURE_BITS {
            return Err(format!(
                "the VS subsegment at {at:016x} has the signature {signature:#x}, not that of its size {size:#x}"
            ));
        }
        let first = (self.header as u64).next_multiple_of(self.unit);
        let end = size * self.unit;
        let room = area.bytes.len() as u64;
        if end > room || first > end {
            return Err(format!("the VS subsegment at {at:016x} says it has {end:#x} bytes; its range has {room:#x}"));
        }
        Ok((first, end))
    }

    /// Visits the subsegment's chunks that begin before `until`, in order. Where a chunk's header is unreadable or
    /// damaged, what cannot be told from it is said, and the walk goes on behind it if a place to do so is found.
    pub(crate) fn chunks(&self, area: &Sparse, until: u64, mut each: impl FnMut(Chunk)) -> Vec<String> {
        let (mut offset, end) = match self.bounds(area) {
            Ok(bounds) => bounds,
            Err(problem) => return vec![problem],
        };
        let mut problems = Vec::new();
        while offset < end.min(until) {
            let broken = match self.chunk(area, offset, end) {
                Ok((chunk, _)) => {
                    each(chunk);
                    offset += chunk.size;
                    continue;
                }
                Err(broken) => broken,
            };
            let next = self.resume(area, offset, end);
            let missing = match next {
                Some(next) => format!("what lies up to {:016x} is missing", area.address.wrapping_add(next)),
                None => "the rest of its subsegment is missing".into(),
            };
            let at = area.address.wrapping_add(offset);
            problems.push(match broken {
                None => format!("the VS chunk at {at:016x} is unreadable; {missing}"),
                Some(size) => format!(
                    "the VS chunk at {at:016x} says it has {size:#x} bytes of the {:#x} left; {missing}",
                    end - offset
                ),
            });
            let Some(next) = next else { break };
            offset = next;
        }
        problems
    }

    /// The chunk at `offset`, and how many bytes it gives the one before it. A size that cannot be is the error;
    /// without one the header is unreadable.
    fn chunk(&self, area: &Sparse, offset: u64, end: u64) -> Result<(Chunk, u64), Option<u64>> {
        let at = area.address.wrapping_add(offset);
        let bytes = area.get(offset as usize, self.unit as usize).ok_or(None)?;
        let decoded = self.sizes.get(bytes) ^ at ^ self.heap_key;
        let decoded = &decoded.to_le_bytes()[..self.sizes.size];
        let size = self.unsafe_size.get(decoded) * self.unit;
        if size == 0 || size > end - offset {
            return Err(Some(size));
        }
        let previous = self.unsafe_previous_size.map_or(0, |member| member.get(decoded) * self.unit);
        Ok((Chunk { offset, size, allocated: self.allocated.get(decoded) != 0 }, previous))
    }

    /// The first chunk behind a broken one that can be trusted: the one before it begins at the broken one, or where
    /// nothing can be read, and from it on every chunk agrees with the one before it.
    fn resume(&self, area: &Sparse, broken: u64, end: u64) -> Option<u64> {
        self.unsafe_previous_size?;
        let mut steps = MAX_STEPS;
        let starts = (broken + self.unit..end).step_by(self.unit as usize);
        let mut trusted = starts.filter(|start| {
            let Ok((chunk, previous)) = self.chunk(area, *start, end) else { return false };
            let before = start.checked_sub(previous).filter(|before| previous > 0 && *before >= broken);
            let behind = before
                .is_some_and(|before| before == broken || area.get(before as usize, self.unit as usize).is_none());
            behind && self.agree(area, chunk, end, &mut steps)
        });
        trusted.next()
    }

    /// Whether all chunks from `chunk` to the end, or at least two to where nothing can be read, give the one before
    /// them the size that it has.
    fn agree(&self, area: &Sparse, mut chunk: Chunk, end: u64, steps: &mut u32) -> bool {
        let mut links = 0;
        loop {
            let offset = chunk.offset + chunk.size;
            if offset >= end {
                return true;
            }
            let Some(left) = steps.checked_sub(1) else { return false };
            *steps = left;
            match self.chunk(area, offset, end) {
                Ok((next, previous)) if previous == chunk.size => chunk = next,
                Err(None) => return links >= 2,
                Ok(_) | Err(Some(_)) => return false,
            }
            links += 1;
        }
    }

    /// Where the pool header of an allocated chunk lies, with what it holds. Of the two possible places the one whose
    /// block fills the chunk better is meant.
    pub(crate) fn pool_header(&self, headers: &Headers, area: &Sparse, chunk: Chunk) -> Option<(u64, Header)> {
        let end = chunk.offset + chunk.size;
        let plain = chunk.offset + self.unit;
        let page = (area.address.wrapping_add(plain)).next_multiple_of(PAGE_SIZE).wrapping_sub(area.address);
        let places = [plain, page];
        let places = if page == plain { &places[..1] } else { &places[..] };
        let candidates = places.iter().filter_map(|&place| {
            let bytes = area.get(usize::try_from(place).ok()?, headers.unit as usize)?;
            let header = headers.get(bytes);
            let fits = place < end && header.block_size >= headers.unit && header.block_size <= end - place;
            (fits && header.pool_type != 0).then_some((place, header))
        });
        let rest = |(place, header): &(u64, Header)| end - place - header.block_size;
        let best = candidates.min_by_key(rest)?;
        // What an earlier block left must not stand for a header that cannot be read: the true one fills the chunk.
        let unreadable =
            |place: &u64| place + headers.unit <= end && area.get(*place as usize, headers.unit as usize).is_none();
        (rest(&best) < 2 * self.unit || !places.iter().any(unreadable)).then_some(best)
    }
}
