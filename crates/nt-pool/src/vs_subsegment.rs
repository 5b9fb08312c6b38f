//! A VS ("variable size") subsegment of a segment heap: chunks of any size, end to end.
//!
//! ```text
//! _HEAP_VS_SUBSEGMENT   Size of the chunks (in chunk headers' sizes), Signature: Size ^ 0x2bed, 15 bits
//! _HEAP_VS_CHUNK_HEADER Sizes, encoded: xor the chunk's address xor HeapKey
//!   MemoryCost, UnsafeSize (in chunk headers' sizes), UnsafePrevSize, Allocated
//! _POOL_HEADER          behind the chunk's header; or at the next page's start, when it would end its page
//! ```
//!
//! `Size` leaves the subsegment's own header out, so the last chunk ends at the first one's place + Size; and the run of
//! pages has one unit more than the subsegment, in which no chunk lies (both measured: segment-heap-measured 1).
//!
//! A run of pages that was given back lies inside a free chunk, so that the chain crosses it. A page in a page file does
//! not: headers of chunks are lost with it.
//!
//! A chunk of a page and more usually holds one allocation that starts a page, has no pool header, and has an entry in
//! the table of large allocations.

use std::fmt;
use std::ops::Range;

use nt_memory::{PAGE_SIZE, Sparse};

use crate::checks::{Book, Books};
use crate::pool_header::{Header, Headers};
use crate::record::{Member, Record};
use crate::{Kernel, PoolError};

/// What hides a subsegment's size in its signature, in every build so far (facts: MemProcFS, 17763 to 26100).
const SIGNATURE: u64 = 0x2bed;
const SIGNATURE_BITS: u64 = 0x7fff;

/// Chunks that are looked at to take a broken chain up again; a subsegment has no more.
const MAX_STEPS: u32 = 1 << 17;

/// Bytes at a chunk's end that its block may leave unused and that may lie in the next page (facts: MemProcFS).
const UNUSED: u64 = 0x40;

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
    /// Whether its mark is one that a chunk can have.
    pub(crate) marked: bool,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.size
    }
}

/// Something that was not as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    /// The address of the header that is wrong.
    at: u64,
    pub(crate) cause: Cause,
    /// What cannot be told because of it, by address.
    pub(crate) missing: Range<u64>,
    /// Whether the walk went on behind it.
    resumed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The subsegment's header.
    Unreadable,
    Signature {
        size: u64,
        signature: u64,
    },
    Room {
        end: u64,
        room: u64,
    },
    /// A chunk's header.
    UnreadableChunk,
    Size {
        size: u64,
        left: u64,
    },
    /// What a chunk's header says of the chunk before it.
    PreviousSize {
        given: u64,
        before: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match self.cause {
            Cause::Unreadable => return write!(f, "the VS subsegment at {at:016x} is unreadable"),
            Cause::Signature { size, signature } => {
                return write!(
                    f,
                    "the VS subsegment at {at:016x} has the signature {signature:#x}, not that of its size {size:#x}"
                );
            }
            Cause::Room { end, room } => {
                return write!(
                    f,
                    "the VS subsegment at {at:016x} says its chunks end at {end:#x} bytes; its range has {room:#x}"
                );
            }
            Cause::UnreadableChunk => write!(f, "the VS chunk at {at:016x} is unreadable")?,
            Cause::Size { size, left } => {
                write!(f, "the VS chunk at {at:016x} says it has {size:#x} bytes of the {left:#x} left")?;
            }
            Cause::PreviousSize { given, before } => {
                write!(f, "the VS chunk at {at:016x} gives the one before it {given:#x} bytes, which has {before:#x}")?;
            }
        }
        match (self.resumed, self.missing.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => write!(f, "; what lies up to {:016x} is missing", self.missing.end),
            (false, _) => f.write_str("; the rest of its subsegment is missing"),
        }
    }
}

/// Where the pool header of a chunk in use is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PoolHeader {
    /// `header` is the one whose block the caller got: the second of a cache-aligned block. From the subsegment's start.
    Found {
        offset: u64,
        header: Header,
    },
    /// Where it has to be nothing could be read.
    Unreadable,
    None,
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

    /// Where the first chunk and the end of the last one are, from the start of a range of `room` bytes.
    pub(crate) fn bounds(&self, area: &Sparse, room: u64) -> Result<Range<u64>, Problem> {
        let at = area.address;
        let problem = |cause| Problem { at, cause, missing: at..at.wrapping_add(room), resumed: false };
        let header = area.get(0, self.header).ok_or_else(|| problem(Cause::Unreadable))?;
        let size = self.subsegment_size.get(header);
        let signature = self.subsegment_signature.get(header);
        if (size ^ SIGNATURE) & SIGNATURE_BITS != signature & SIGNATURE_BITS {
            return Err(problem(Cause::Signature { size, signature }));
        }
        let first = (self.header as u64).next_multiple_of(self.unit);
        let end = first + size * self.unit;
        if end > room {
            return Err(problem(Cause::Room { end, room }));
        }
        Ok(first..end)
    }

    /// Visits the chunks within `bounds` that begin before `until`, in order. Where a chunk's header is unreadable or
    /// damaged, what cannot be told from it is said, and the walk goes on behind it if a place to do so proves itself.
    pub(crate) fn chunks(
        &self,
        area: &Sparse,
        bounds: &Range<u64>,
        until: u64,
        books: &mut Books,
        mut each: impl FnMut(Chunk),
    ) -> Vec<Problem> {
        let (mut offset, end) = (bounds.start, bounds.end);
        let mut problems = Vec::new();
        // The last chunk waits here until the one behind it agrees that it has its size.
        let mut waiting: Option<Chunk> = None;
        let (mut joints, mut agreeing, mut differs) = (0, 0, area.address);
        while offset < end.min(until) {
            let at = area.address.wrapping_add(offset);
            let before = waiting.map(|chunk| chunk.size);
            let cause = match self.chunk(area, offset, end) {
                Ok((chunk, previous)) => {
                    let given = previous.filter(|given| before.is_some_and(|before| before != *given));
                    joints += u64::from(before.is_some());
                    // The rest is in step; or, where nothing else can be taken up instead, leads to the end at least.
                    let alone = given.is_some()
                        && (self.agree(area, chunk, end, &mut { MAX_STEPS }, 0)
                            || self.leads_to_end(area, chunk, end)
                                && self.resume(area, offset, end).is_none()
                                && waiting.is_none_or(|last| self.resume(area, last.offset, end).is_none()));
                    let cause = Cause::PreviousSize { given: given.unwrap_or(0), before: before.unwrap_or(0) };
                    if alone {
                        // All behind it is in step: no more than this one number is damaged.
                        problems.push(Problem { at, cause, missing: at..at, resumed: true });
                        differs = at;
                    }
                    if given.is_none() || alone {
                        agreeing += u64::from(before.is_some() && given.is_none());
                        waiting.replace(chunk).into_iter().for_each(&mut each);
                        offset = chunk.end();
                        continue;
                    }
                    cause
                }
                Err(None) => Cause::UnreadableChunk,
                Err(Some(size)) => {
                    joints += 1;
                    Cause::Size { size, left: end - offset }
                }
            };
            differs = at;
            // Either this header is wrong, or the size of the chunk before it, which led here.
            let next = self.resume(area, offset, end);
            let last = waiting.take();
            let instead = match (next, last) {
                (None, Some(last)) if cause != Cause::UnreadableChunk => {
                    self.resume(area, last.offset, end).map(|next| (last.offset, next))
                }
                _ => None,
            };
            let (broken, next) = instead.map_or((offset, next), |(broken, next)| (broken, Some(next)));
            last.filter(|_| instead.is_none()).into_iter().for_each(&mut each);
            let missing = area.address.wrapping_add(broken)..area.address.wrapping_add(next.unwrap_or(end));
            problems.push(Problem { at, cause, missing, resumed: next.is_some() });
            let Some(next) = next else { break };
            offset = next;
        }
        waiting.into_iter().for_each(&mut each);
        books.count(Book::VsChunkSizes, joints, agreeing, differs);
        problems
    }

    /// The chunk at `offset`, and how many bytes it gives the one before it. A size that cannot be is the error;
    /// without one the header is unreadable.
    fn chunk(&self, area: &Sparse, offset: u64, end: u64) -> Result<(Chunk, Option<u64>), Option<u64>> {
        let at = area.address.wrapping_add(offset);
        let bytes = area.get(offset as usize, self.unit as usize).ok_or(None)?;
        let decoded = self.sizes.get(bytes) ^ at ^ self.heap_key;
        let decoded = &decoded.to_le_bytes()[..self.sizes.size];
        let size = self.unsafe_size.get(decoded) * self.unit;
        if size == 0 || size > end - offset {
            return Err(Some(size));
        }
        let previous = self.unsafe_previous_size.map(|member| member.get(decoded) * self.unit);
        let allocated = self.allocated.get(decoded);
        Ok((Chunk { offset, size, allocated: allocated != 0, marked: allocated <= 1 }, previous))
    }

    /// The first chunk behind a broken one that proves itself: the one before it begins at the broken one, or where
    /// nothing can be read, and from it on every chunk agrees with the one before it.
    fn resume(&self, area: &Sparse, broken: u64, end: u64) -> Option<u64> {
        self.unsafe_previous_size?;
        let mut steps = MAX_STEPS;
        let starts = (broken + self.unit..end).step_by(self.unit as usize);
        let mut trusted = starts.filter(|start| {
            let Ok((chunk, Some(previous))) = self.chunk(area, *start, end) else { return false };
            let Some(before) = start.checked_sub(previous).filter(|before| previous > 0 && *before >= broken) else {
                return false;
            };
            let in_hole = || area.get(before as usize, self.unit as usize).is_none();
            match before == broken {
                true => self.agree(area, chunk, end, &mut steps, 0),
                // A number that points somewhere into a hole is no proof by itself.
                false => in_hole() && self.agree(area, chunk, end, &mut steps, 1),
            }
        });
        trusted.next()
    }

    /// Whether the sizes from `chunk` on lead just to the end, whatever headers say of the chunks before them.
    fn leads_to_end(&self, area: &Sparse, chunk: Chunk, end: u64) -> bool {
        let mut offset = chunk.end();
        while offset < end {
            match self.chunk(area, offset, end) {
                Ok((next, _)) => offset = next.end(),
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether all chunks from `chunk` to the end, `least` of them or more, or at least two to where nothing can be
    /// read, give the one before them the size that it has.
    fn agree(&self, area: &Sparse, mut chunk: Chunk, end: u64, steps: &mut u32, least: u32) -> bool {
        let mut links = 0;
        loop {
            let offset = chunk.end();
            if offset >= end {
                return links >= least;
            }
            let Some(left) = steps.checked_sub(1) else { return false };
            *steps = left;
            match self.chunk(area, offset, end) {
                Ok((next, Some(previous))) if previous == chunk.size => chunk = next,
                Err(None) => return links >= 2,
                Ok(_) | Err(Some(_)) => return false,
            }
            links += 1;
        }
    }

    /// Where the pool header of an allocated chunk lies, with what it holds.
    ///
    /// It is right behind the chunk's header, or at the next page's start: always when it would be the last thing in its
    /// page, and, as some readers of live systems have it, when the chunk reaches over the page by more than its block
    /// may leave unused. Where both places could be headers, the one is meant whose block fills the room it has.
    pub(crate) fn pool_header(&self, headers: &Headers, area: &Sparse, chunk: Chunk) -> PoolHeader {
        let (plain, end) = (chunk.offset + self.unit, chunk.end());
        let page = area.address.wrapping_add(plain).next_multiple_of(PAGE_SIZE).wrapping_sub(area.address);
        // What begins a page, ends before the next one, or would be alone at a page's end has one place only.
        let ends_page = plain + headers.unit == page;
        let places = match page {
            _ if page == plain || page >= end => &[plain][..],
            _ if ends_page => &[page][..],
            _ if end - page > UNUSED => &[page, plain][..],
            _ => &[plain, page][..],
        };
        let look = |place: u64| {
            let bytes = area.get(usize::try_from(place).ok()?, headers.unit as usize)?;
            let header = headers.get(bytes);
            let fits = headers.is_block(&header, area.address.wrapping_add(place), end - place);
            Some(fits.then_some((place, header)))
        };
        let found = |(place, header): (u64, Header)| {
            let bytes = |distance: u64| area.get((place + distance) as usize, headers.unit as usize);
            match headers.aligned(&header, area.address.wrapping_add(place), bytes) {
                Some((distance, header)) => PoolHeader::Found { offset: place + distance, header },
                None => PoolHeader::Found { offset: place, header },
            }
        };
        let mut second = None;
        for &place in places {
            if place + headers.unit > end {
                continue;
            }
            match look(place) {
                // What an earlier block left must not stand for a header that cannot be read.
                None => return PoolHeader::Unreadable,
                Some(Some((place, header))) => {
                    let room = if place < page && page < end { page } else { end };
                    if places.len() == 1 || room - place - header.block_size < 2 * self.unit {
                        return found((place, header));
                    }
                    second.get_or_insert((place, header));
                }
                Some(None) => {}
            }
        }
        second.map_or(PoolHeader::None, found)
    }
}
