//! Subsegments of a segment heap.

use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Sparse};

use crate::checks::{Book, Books};
use crate::kernel::little_endian;
use crate::lfh_subsegment::{LfhFormat, Problem, Slot, Subsegment};
use crate::page_tables;
use crate::pool_header::Header;
use crate::small_blocks::{Area, BlockKind, BlockState, LARGE_CHUNK};
use crate::vs_subsegment::{Cause, Chunk, PoolHeader};
use crate::walk::{Formats, Walk};

/// Subsegments that wait until the form of their bitmaps is known have no more bytes than this together.
const MOST_UNDECIDED: u64 = 16 << 20;

impl Walk<'_> {
    pub(super) fn vs(&mut self, area: &Area, places: &[Range<u64>]) -> Result<(), Fault> {
        let Formats { headers, vs: Some(format), .. } = self.formats else { return Ok(()) };
        let Some(last) = places.last() else { return Ok(()) };
        // Chunks follow each other from the start, and the last one's pool header may begin the page behind.
        let until = last.end - area.address;
        let most = area.chunks();
        let mut bytes = self.start(area, (until + headers.unit).min(most))?;
        let bounds = match format.bounds(&bytes, area.length) {
            Ok(bounds) => bounds,
            Err(problem) => {
                let unreadable = problem.cause == Cause::Unreadable;
                // What is not there says nothing against the picture of what is.
                if !unreadable {
                    self.books.hold(Book::VsSignatures, false, area.address);
                }
                if !unreadable || !self.lose(&problem.missing) {
                    self.damaged.add(|| problem.to_string());
                }
                return Ok(());
            }
        };
        self.books.hold(Book::VsSignatures, true, area.address);
        if until > most && bounds.end > most {
            bytes = self.start(area, bounds.end)?;
        }
        let mut chunks = Vec::new();
        let mut books = Books::default();
        let mut problems = format.chunks(&bytes, &bounds, until, &mut books, |chunk| chunks.push(chunk));
        if !problems.is_empty() && (bytes.bytes.len() as u64) < bounds.end && self.first == u64::MAX {
            // Where a chain goes on behind what is damaged can only be told from the rest of it.
            bytes = self.start(area, bounds.end)?;
            (chunks, books) = (Vec::new(), Books::default());
            problems = format.chunks(&bytes, &bounds, until, &mut books, |chunk| chunks.push(chunk));
        }
        let is_place = |at: u64| {
            let index = places.partition_point(|place| place.end <= at);
            places.get(index).is_some_and(|place| place.start <= at)
        };
        self.marks.0 += chunks.len() as u64;
        self.marks.1 += chunks.iter().filter(|chunk| chunk.marked).count() as u64;
        let mut headers = 0;
        for chunk in chunks.into_iter().filter(|chunk| chunk.allocated) {
            headers += u64::from(self.chunk(area, &bytes, chunk, &is_place)?);
        }
        books.count(Book::VsPoolHeaders, headers, headers, area.address);
        self.books.extend(books.checks());
        for problem in problems {
            if problem.cause != Cause::UnreadableChunk || !self.lose(&problem.missing) {
                self.damaged.add(|| problem.to_string());
            }
        }
        Ok(())
    }

    /// The first bytes of an area.
    fn start(&mut self, area: &Area, length: u64) -> Result<Sparse, Fault> {
        self.paged_out.clear();
        self.bytes(&(area.address..area.address + length))
    }

    /// A VS chunk in use; whether it has a pool header.
    fn chunk(
        &mut self,
        area: &Area,
        bytes: &Sparse,
        chunk: Chunk,
        is_place: &dyn Fn(u64) -> bool,
    ) -> Result<bool, Fault> {
        let Formats { headers, vs: Some(format), .. } = self.formats else { return Ok(false) };
        let at = area.address.wrapping_add(chunk.offset);
        let found = format.pool_header(headers, bytes, chunk);
        let plain = at.wrapping_add(format.unit);
        let concerns = match found {
            PoolHeader::Found { header, .. } => (self.wanted)(header.tag().0),
            _ => is_place(plain) || is_place(plain.next_multiple_of(PAGE_SIZE)),
        };
        if chunk.size >= LARGE_CHUNK && (!concerns || self.is_large(at..at.saturating_add(chunk.size))?) {
            return Ok(false);
        }
        match found {
            PoolHeader::Found { .. } if !concerns => {}
            PoolHeader::Found { offset, header } => {
                let place = area.address.wrapping_add(offset);
                if offset != chunk.offset + format.unit {
                    self.moved.insert(place, at);
                }
                self.add(area, place, header, BlockState::Allocated, BlockKind::Vs);
            }
            PoolHeader::Unreadable if concerns => self.tagless += 1,
            PoolHeader::None if concerns => self.headless.push(at),
            PoolHeader::Unreadable | PoolHeader::None => {}
        }
        Ok(matches!(found, PoolHeader::Found { .. }))
    }

    pub(super) fn lfh(&mut self, area: &Area, places: Vec<Range<u64>>) -> Result<(), Fault> {
        let Formats { headers, lfh: Some(format), .. } = self.formats else { return Ok(()) };
        if places.is_empty() {
            return Ok(());
        }
        // Which blocks are in use is written at the start.
        let books = area.address + format.books(area.length, headers.unit);
        let mut ranges: Vec<_> = std::iter::once(area.address..books).collect();
        for place in &places {
            match ranges.last_mut() {
                Some(last) if place.start <= last.end => last.end = last.end.max(place.end),
                _ => ranges.push(place.clone()),
            }
        }
        let bytes = self.parts(area, &ranges)?;
        let sure = format.weigh(&bytes, area.length, &mut self.chosen);
        if sure || self.undecided_bytes >= MOST_UNDECIDED {
            return self.lfh_blocks(format, area, &bytes, &places);
        }
        self.undecided_bytes += area.length;
        self.undecided.push((area.clone(), bytes, places));
        Ok(())
    }

    /// Decodes the subsegments that waited until others said which form they have. `stopped`: what a user has stopped
    /// needs no more reading.
    pub(super) fn decide(&mut self, stopped: bool) -> Result<(), Fault> {
        let Some(format) = &self.formats.lfh else { return Ok(()) };
        for (area, bytes, places) in std::mem::take(&mut self.undecided) {
            match self.lfh_blocks(format, &area, &bytes, &places) {
                Err(Fault::Cancelled) if stopped => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }

    fn lfh_blocks(
        &mut self,
        format: &LfhFormat,
        area: &Area,
        bytes: &Sparse,
        places: &[Range<u64>],
    ) -> Result<(), Fault> {
        let at = area.address;
        let subsegment = match format.subsegment(bytes, area.length, &self.chosen) {
            Ok(Some(subsegment)) => {
                self.subsegments.0 += 1;
                self.subsegments.1 += 1;
                subsegment
            }
            Ok(None) => {
                self.subsegments.0 += 1;
                return Ok(());
            }
            Err(problem) => {
                let unreadable = matches!(problem, Problem::Unreadable { .. });
                if !unreadable {
                    self.books.hold(Book::LfhOffsets, false, at);
                }
                if !unreadable || !self.lose(&(at..area.end())) {
                    self.damaged.add(|| problem.to_string());
                }
                return Ok(());
            }
        };
        self.books.hold(Book::LfhOffsets, true, at);
        for (book, counted) in [(Book::LfhBlocksInUse, subsegment.in_use), (Book::LfhWithheld, subsegment.withheld)] {
            if let Some((expected, found)) = counted {
                self.books.count(book, expected, found, at);
            }
        }
        if let Some(imbalance) = subsegment.imbalance(at) {
            self.damaged.add(|| imbalance);
        }
        self.slots(area, bytes, &subsegment, places)
    }

    /// The blocks of an LFH subsegment that lie in `places`.
    fn slots(
        &mut self,
        area: &Area,
        bytes: &Sparse,
        subsegment: &Subsegment,
        places: &[Range<u64>],
    ) -> Result<(), Fault> {
        let kernel = self.kernel;
        let whole = matches!(places, [all] if all.end - all.start == area.length);
        let mut fault = None;
        let link = |at: u64| {
            let offset = at.wrapping_sub(area.address) as usize;
            let link = bytes.get(offset, 2).map(little_endian);
            // The list may lead to blocks that nobody asked for.
            link.or_else(|| match page_tables::read(kernel, at, 2) {
                Ok(link) => link.is_complete().then(|| little_endian(&link.bytes)),
                Err(problem) => {
                    fault = Some(problem);
                    None
                }
            })
        };
        let (mut good, mut bad) = (0, None);
        let listed = subsegment.slots(area.address, link, |slot| {
            let at = area.address.wrapping_add(slot.offset);
            let index = places.partition_point(|place| place.end <= at);
            if !whole && places.get(index).is_none_or(|place| place.start > at) {
                return;
            }
            match self.slot(area, bytes, slot) {
                Some(true) => good += 1,
                Some(false) => _ = bad.get_or_insert(at),
                None => {}
            }
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        if !listed {
            let at = area.address;
            self.damaged.add(|| format!("the list of freed blocks of the LFH subsegment at {at:016x} is damaged"));
        }
        self.books.count(Book::LfhPoolHeaders, good, good, area.address);
        if let Some(at) = bad {
            self.books.hold(Book::LfhPoolHeaders, false, at);
        }
        Ok(())
    }

    /// One block of an LFH subsegment; whether its pool header is good, if it has to have one.
    fn slot(&mut self, area: &Area, bytes: &Sparse, slot: Slot) -> Option<bool> {
        let headers = &self.formats.headers;
        let at = area.address.wrapping_add(slot.offset);
        let bytes_at = |distance: u64| bytes.get((slot.offset + distance) as usize, headers.unit as usize);
        let Some(header) = bytes_at(0).map(|bytes| headers.get(bytes)) else {
            self.tagless += u64::from(slot.allocated && !slot.delayed);
            return None;
        };
        if slot.delayed {
            // The link lies in the header's first two bytes.
            let header = Header { previous_size: 0, ..header };
            if headers.is_block(&header, at, slot.size) {
                self.add(area, at, header, BlockState::Cached, BlockKind::Lfh);
            }
            return None;
        }
        if !headers.is_block(&header, at, slot.size) {
            // A block that was never handed out has no header.
            if slot.allocated {
                self.damaged.add(|| format!("the LFH block at {at:016x} is allocated, but its pool header is damaged"));
            }
            return slot.allocated.then_some(false);
        }
        let state = if slot.allocated { BlockState::Allocated } else { BlockState::Free };
        match headers.aligned(&header, at, bytes_at) {
            Some((distance, header)) => self.add(area, at.wrapping_add(distance), header, state, BlockKind::Lfh),
            None => self.add(area, at, header, state, BlockKind::Lfh),
        }
        slot.allocated.then_some(true)
    }
}
