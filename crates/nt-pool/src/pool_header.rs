//! `_POOL_HEADER`, and chains of them; `pool_page` draws the layout.

use nt_memory::PAGE_SIZE;
use std::cell::Cell;

use crate::record::{Member, Record};
use crate::{Kernel, PoolError, Tag};

/// Of a header's PoolType: the block is in use, it was asked for at the start of a cache line.
const IN_USE: u8 = 2;
const CACHE_ALIGNED: u8 = 4;

/// Cache lines (`ExpCacheLineSize`) of x86 and x64, and of ARM64.
const CACHE_LINES: [u64; 2] = [0x40, 0x80];

/// A header's fields; sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) previous_size: u64,
    /// With the header.
    pub(crate) block_size: u64,
    pub(crate) pool_type: u8,
    /// With the protected bit.
    pub(crate) key: u32,
}

impl Header {
    pub(crate) fn tag(&self) -> (Tag, bool) {
        Tag::from_key(self.key)
    }

    /// Whether a block in use has such a PoolType (Vista and later).
    pub(crate) fn is_in_use(&self) -> bool {
        self.pool_type & IN_USE != 0
    }

    /// Whether it is of a free block, or of one of this kind of pool.
    pub(crate) fn is_of(&self, paged: bool) -> bool {
        self.pool_type == 0 || (self.pool_type & 1 != 0) == paged
    }

    /// Whether a block of this pool would have such a header: free, or in use and of the right kind, with a tag that
    /// somebody could have typed.
    pub(crate) fn is_plausible(&self, paged: bool) -> bool {
        self.is_of(paged) && self.tag().0.is_typed()
    }
}

/// Where the fields lie in this kernel's headers.
pub(crate) struct Headers {
    /// A header's size, in which sizes are counted.
    pub(crate) unit: u64,
    previous_size: Member,
    block_size: Member,
    pool_type: Member,
    pool_index: Option<Member>,
    tag: Member,
    process_billed: Option<Member>,
    /// See [`Headers::aligned_seen`].
    aligned: Cell<(u64, u64)>,
}

/// Why a chain of headers ends before its page does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Break {
    NoRoom,
    PreviousSize { given: u64, before: u64 },
    BlockSize(u64),
}

impl Break {
    pub(crate) fn describe(self, at: u64) -> String {
        match self {
            Break::NoRoom => format!("the block before {at:016x} leaves no room for a header"),
            Break::PreviousSize { given, before } => {
                format!("the header at {at:016x} gives {given:#x} bytes to the block before it, which has {before:#x}")
            }
            Break::BlockSize(size) => format!("the header at {at:016x} gives its block {size:#x} bytes"),
        }
    }

    /// As `!poolval` prints it (facts 8.4): sizes in units, as they stand in the headers.
    pub(crate) fn line(self, at: u64, headers: &Headers, digits: usize) -> String {
        let unit = headers.unit.max(1);
        match self {
            Break::NoRoom => self.describe(at),
            Break::PreviousSize { given, before } => {
                let (given, before) = (given / unit, before / unit);
                format!("[ {at:0digits$x} ]: invalid previous size [ {given:#x} ] should be [ {before:#x} ]")
            }
            Break::BlockSize(size) => format!("[ {at:0digits$x} ]: invalid size [ {:#x} ]", size / unit),
        }
    }
}

impl Headers {
    pub(crate) fn new(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let header = Record::new(kernel, "_POOL_HEADER")?;
        Ok(Headers {
            unit: header.size as u64,
            previous_size: header.member("PreviousSize")?,
            block_size: header.member("BlockSize")?,
            pool_type: header.member("PoolType")?,
            pool_index: header.find("PoolIndex"),
            tag: header.member("PoolTag")?,
            process_billed: header.find("ProcessBilled"),
            aligned: Cell::default(),
        })
    }

    /// Whether a block of a segment heap can have this header at `at`, where there are `room` bytes for it. No block
    /// crosses a page; a segment heap chains no headers, so what a header says of the block before it is 0, or the
    /// distance between the two headers of a cache-aligned block (measured: segment-heap-measured 3).
    ///
    /// Folklore: what an earlier block left at the place of a header can look like one. Example: a chunk at ...fe0 has
    /// its header at the next page's start, and the 0x10 bytes before it say "0xd90 bytes, tag MmLd", which would even
    /// fill the chunk better. A block of that size would cross the page, so these bytes are no header.
    pub(crate) fn is_block(&self, header: &Header, at: u64, room: u64) -> bool {
        let in_page = at % PAGE_SIZE;
        (self.unit..=room).contains(&header.block_size)
            && in_page + header.block_size <= PAGE_SIZE
            && in_page + self.unit < PAGE_SIZE
            && header.is_in_use()
            && (header.previous_size == 0 || header.pool_type & CACHE_ALIGNED != 0)
    }

    /// The second header of a cache-aligned block whose first one, at the address `at`, is `first`: how far behind the
    /// first it lies, and what it says. `bytes` gives what lies so many bytes behind the first header.
    ///
    /// The first header has the whole size and no sign of the alignment. The second lies right before the cache line
    /// that the caller got, with the same tag, the rest of the size, and the distance between the two.
    pub(crate) fn aligned<'b>(
        &self,
        first: &Header,
        at: u64,
        bytes: impl Fn(u64) -> Option<&'b [u8]>,
    ) -> Option<(u64, Header)> {
        if first.pool_type & CACHE_ALIGNED != 0 || first.block_size <= 2 * self.unit {
            return None;
        }
        let data = at.wrapping_add(self.unit);
        let mut places = CACHE_LINES.iter().map(|line| data.wrapping_neg() & (line - 1));
        places.find_map(|distance| {
            if distance < self.unit || distance + self.unit > first.block_size {
                return None;
            }
            let second = self.get(bytes(distance)?);
            let is_second = second.key == first.key
                && second.pool_type == first.pool_type | CACHE_ALIGNED
                && second.block_size == first.block_size - distance;
            if !is_second {
                return None;
            }
            let fits = second.previous_size == distance;
            let (seen, good) = self.aligned.get();
            self.aligned.set((seen + 1, good + u64::from(fits)));
            fits.then_some((distance, second))
        })
    }

    /// How many second headers of cache-aligned blocks were met, and how many of them say where they lie.
    pub(crate) fn aligned_seen(&self) -> (u64, u64) {
        self.aligned.get()
    }

    /// Where in a header its tag lies.
    pub(crate) fn tag_place(&self) -> u64 {
        self.tag.offset as u64
    }

    /// The header in the first bytes; there are at least `unit` of them.
    pub(crate) fn get(&self, bytes: &[u8]) -> Header {
        Header {
            previous_size: self.previous_size.get(bytes) * self.unit,
            block_size: self.block_size.get(bytes) * self.unit,
            pool_type: self.pool_type.get(bytes) as u8,
            key: self.tag.get(bytes) as u32,
        }
    }

    /// The header at `offset`, if all of it is there.
    pub(crate) fn at(&self, bytes: &[u8], offset: u64) -> Option<Header> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(self.unit as usize)?;
        bytes.get(start..end).map(|bytes| self.get(bytes))
    }

    pub(crate) fn pool_index(&self, bytes: &[u8]) -> u8 {
        self.pool_index.map_or(0, |member| member.get(bytes) as u8)
    }

    pub(crate) fn has_process(&self) -> bool {
        self.process_billed.is_some()
    }

    /// What a 64-bit header stores of the process that pays; 32-bit headers have no room for it.
    pub(crate) fn process_billed(&self, bytes: &[u8]) -> Option<u64> {
        self.process_billed.map(|member| member.get(bytes))
    }

    /// The headers of a page of the classic pool, with their offsets, up to its end or to where the chain breaks.
    pub(crate) fn chain<'p>(&'p self, page: &'p [u8]) -> Chain<'p> {
        self.chain_from(page, 0, 0)
    }

    /// The rest of a chain whose block before `offset` has `before` bytes.
    pub(crate) fn chain_from<'p>(&'p self, page: &'p [u8], offset: u64, before: u64) -> Chain<'p> {
        Chain { headers: self, page, offset, before }
    }

    /// Where the chain goes on behind a header that is damaged: the first header that gives the block before it just
    /// the room from there on, and from which a chain leads to the page's end. Returns how many headers that has, too.
    pub(crate) fn resume(&self, page: &[u8], damaged: u64, paged: bool) -> Option<(u64, usize)> {
        let end = page.len() as u64;
        let starts = (damaged + self.unit..end).step_by(self.unit as usize);
        let fits = |start: &u64| self.at(page, *start).is_some_and(|header| header.previous_size == start - damaged);
        starts.filter(fits).find_map(|start| Some((start, self.whole(page, start, start - damaged, paged)?)))
    }

    /// How many headers a chain has that leads from `offset` to the page's end without a break.
    pub(crate) fn whole(&self, page: &[u8], offset: u64, before: u64, paged: bool) -> Option<usize> {
        let mut count = 0;
        for (_, header) in self.chain_from(page, offset, before) {
            header.ok().filter(|header| header.is_plausible(paged))?;
            count += 1;
        }
        Some(count)
    }
}

pub(crate) struct Chain<'p> {
    headers: &'p Headers,
    page: &'p [u8],
    offset: u64,
    before: u64,
}

impl Iterator for Chain<'_> {
    type Item = (u64, Result<Header, Break>);

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.page.len() as u64;
        if self.offset >= end {
            return None;
        }
        let at = self.offset;
        // A chain that is broken has no next header.
        self.offset = end;
        let Some(header) = self.headers.at(self.page, at) else { return Some((at, Err(Break::NoRoom))) };
        let Header { previous_size, block_size, .. } = header;
        if previous_size != self.before {
            return Some((at, Err(Break::PreviousSize { given: previous_size, before: self.before })));
        }
        if block_size == 0 || block_size > end - at {
            return Some((at, Err(Break::BlockSize(block_size))));
        }
        self.before = block_size;
        self.offset = at + block_size;
        Some((at, Ok(header)))
    }
}
