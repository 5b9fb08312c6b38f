//! What lies around one address: its page's blocks, or the one allocation that it belongs to.

use nt_memory::PAGE_SIZE;

use crate::big_pages::{self, BigPage};
use crate::checks::{Book, Books, Check};
use crate::classic_pool;
use crate::kernel::little_endian;
use crate::lfh_subsegment::{Chosen, Problem};
use crate::lists::note;
use crate::page_tables;
use crate::pool_header::Headers;
use crate::pool_page::{self, Block};
use crate::segment_heap;
use crate::sessions::{self, Sessions};
use crate::small_blocks::{Area, Content, Kinds, LARGE_CHUNK};
use crate::special_page::{self, SpecialBlock};
use crate::vs_subsegment::{Cause, PoolHeader};
use crate::walk::Formats;
use crate::{Kernel, Notes, PoolError, PoolKind, Tag};

/// The page around an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// Where the page starts.
    pub page: u64,
    /// The pool that the page belongs to, as far as the kernel's books say.
    pub pool: Option<PoolKind>,
    /// What the page holds.
    pub contents: Contents,
    /// The session whose table has the large allocation.
    pub session: Option<u32>,
    /// Where the headers of the page make no sense.
    pub problem: Option<String>,
    /// Whether all of the page could be read.
    pub readable: bool,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
    /// What was counted twice of the page, or of the subsegment that it is part of.
    pub checks: Vec<Check>,
}

/// What a page of pool holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// The blocks whose headers lie in the page, and the one that the address lies in.
    Blocks(Vec<Block>),
    /// One block of special pool, which has the page for itself.
    Special(SpecialBlock),
    /// A part of a large allocation.
    Large(BigPage),
    /// No block that the kernel's books know.
    Nothing,
}

/// Looks at the page that `address` lies in.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<Around, PoolError> {
    let page = address & !(PAGE_SIZE - 1);
    let mut around = Around {
        page,
        pool: None,
        contents: Contents::Nothing,
        session: None,
        problem: None,
        readable: true,
        notes: Notes::default(),
        checks: Vec::new(),
    };
    let bytes = page_tables::read(kernel, page, PAGE_SIZE as usize)?;
    around.readable = bytes.is_complete();
    match segment_heap::is_segment_heap(kernel)? {
        true => in_heap(kernel, address, &mut around)?,
        false => in_classic_pool(kernel, &bytes.bytes, &mut around)?,
    }
    if around.contents == Contents::Nothing {
        match big_pages::entry_containing(kernel, address) {
            Ok(Some(large)) => {
                around.pool = Some(large.kind);
                around.contents = Contents::Large(large);
                around.problem = None;
            }
            Ok(None) => {}
            Err(error) => note(&mut around.notes, "the table of large allocations", error)?,
        }
    }
    if around.contents == Contents::Nothing
        && let Err(error) = in_sessions(kernel, address, &mut around)
    {
        note(&mut around.notes, "sessions' large allocations", error)?;
    }
    if let (None, Some(block)) = (around.pool, around.block(address)) {
        // No variable says where sessions' pools are; their blocks do.
        around.pool = (block.pool_type & SESSION != 0).then_some(match block.paged {
            true => PoolKind::PagedSession,
            false => PoolKind::NonPagedSession,
        });
    }
    Ok(around)
}

/// Of a header's PoolType.
const SESSION: u8 = 0x20;

/// The dwords from `address` on, as far as they are in memory.
pub fn dwords(kernel: &Kernel<'_>, address: u64, count: usize) -> Result<Vec<Option<u32>>, PoolError> {
    let bytes = page_tables::read(kernel, address, 4 * count)?;
    let dword = |index| bytes.get(4 * index, 4)?.try_into().ok().map(u32::from_le_bytes);
    Ok((0..count).map(dword).collect())
}

/// The large allocation of a session that the address lies in.
fn in_sessions(kernel: &Kernel<'_>, address: u64, around: &mut Around) -> Result<(), PoolError> {
    let Sessions { sessions, notes } = sessions::all(kernel)?;
    around.notes.extend(notes);
    for session in sessions {
        let pages = sessions::big_pages(kernel, &session, &|_| true)?;
        if let Some(large) = pages.blocks.into_iter().find(|block| block.contains(address)) {
            around.pool = Some(large.kind);
            around.contents = Contents::Large(large);
            around.session = Some(session.id);
            around.problem = None;
            break;
        }
    }
    Ok(())
}

fn in_classic_pool(kernel: &Kernel<'_>, bytes: &[u8], around: &mut Around) -> Result<(), PoolError> {
    let mut notes = Notes::default();
    let regions = match classic_pool::regions(kernel, Kinds::ALL, &mut notes) {
        Ok(regions) => regions,
        Err(error) => {
            note(&mut around.notes, "which pool the page is of", error)?;
            Vec::new()
        }
    };
    let region = regions.iter().find(|region| region.range.contains(&around.page));
    around.pool = region.map(|region| region.pool);
    if !around.readable {
        return Ok(());
    }
    if region.is_some_and(|region| region.special)
        && let Some(block) = special_page::decode(kernel, around.page, bytes)
    {
        around.pool = Some(block.kind);
        around.contents = Contents::Special(block);
        return Ok(());
    }
    let page = pool_page::decode(kernel, around.page, bytes)?;
    // A start that is whole is no accident.
    let is_pool = page.problem.is_none() || page.blocks.len() >= 2;
    if is_pool {
        let good = page.blocks.len() as u64;
        let all = good + u64::from(page.problem.is_some());
        let broken = page.blocks.last().map_or(around.page, |last| last.header.wrapping_add(last.block_size));
        around.checks.push(Check::new(Book::PageHeaders, all, good, broken));
    }
    match page.problem {
        None => around.contents = Contents::Blocks(page.blocks),
        Some(problem) => {
            around.problem = Some(problem);
            if is_pool {
                around.contents = Contents::Blocks(page.blocks);
            }
        }
    }
    Ok(())
}

fn in_heap(kernel: &Kernel<'_>, address: u64, around: &mut Around) -> Result<(), PoolError> {
    let Some((area, keys)) = segment_heap::locate(kernel, address, &mut around.notes)? else { return Ok(()) };
    around.pool = Some(area.pool);
    let formats = Formats::new(kernel, keys)?;
    match area.content {
        Content::Vs => vs(kernel, &formats, &area, address, around)?,
        Content::Lfh => lfh(kernel, &formats, &area, address, around)?,
        Content::SpecialRange => {
            let bytes = page_tables::read(kernel, area.address, PAGE_SIZE as usize)?;
            let block = special_page::decode(kernel, area.address, &bytes.bytes);
            if bytes.is_complete() {
                let good = u64::from(block.is_some());
                around.checks.push(Check::new(Book::SpecialPages, 1, good, area.address));
            }
            around.contents = block.map_or(Contents::Nothing, Contents::Special);
        }
        Content::Range | Content::Pages | Content::SpecialPages | Content::MixedPages => {}
    }
    Ok(())
}

fn vs(kernel: &Kernel<'_>, formats: &Formats, area: &Area, address: u64, around: &mut Around) -> Result<(), PoolError> {
    let Some(format) = &formats.vs else { return Ok(()) };
    let mut bytes = page_tables::read(kernel, area.address, area.chunks() as usize)?;
    let bounds = match format.bounds(&bytes, area.length) {
        Ok(bounds) => bounds,
        Err(problem) => {
            if problem.cause != Cause::Unreadable {
                around.checks.push(Check::new(Book::VsSignatures, 1, 0, area.address));
            }
            around.problem = Some(problem.to_string());
            return Ok(());
        }
    };
    let mut books = Books::default();
    books.hold(Book::VsSignatures, true, area.address);
    if bounds.end > bytes.bytes.len() as u64 {
        bytes = page_tables::read(kernel, area.address, bounds.end as usize)?;
    }
    let mut places = Vec::new();
    let mut headless = false;
    let (mut marked, mut all) = (0, 0);
    let problems = format.chunks(&bytes, &bounds, bounds.end, &mut books, |chunk| {
        (marked, all) = (marked + u64::from(chunk.marked), all + 1);
        let at = area.address.wrapping_add(chunk.offset);
        let inside = address.wrapping_sub(at) < chunk.size;
        if !chunk.allocated {
            // kd shows a free chunk from its own header on.
            if inside || at & !(PAGE_SIZE - 1) == around.page {
                places.push((at, at, chunk.offset, None, chunk.size));
            }
            return;
        }
        match format.pool_header(&formats.headers, &bytes, chunk) {
            PoolHeader::Found { offset, header } => {
                let (start, at) = (at, area.address.wrapping_add(offset));
                if inside || at & !(PAGE_SIZE - 1) == around.page {
                    places.push((start, at, offset, Some(header), chunk.size));
                }
            }
            PoolHeader::Unreadable | PoolHeader::None => headless |= inside && chunk.size >= LARGE_CHUNK,
        }
    });
    around.problem = problems.first().map(ToString::to_string);
    books.add_known(Check::most(Book::VsMarks, all, marked));
    around.checks.extend(books.checks());
    if headless {
        return Ok(());
    }
    let mut blocks = Vec::new();
    let mut cookie = None;
    for (chunk, at, offset, header, size) in places {
        // What lies in a large allocation, which begins with a page, may look like a header.
        if header.is_some()
            && size >= LARGE_CHUNK
            && let Some(start) = at.checked_next_multiple_of(PAGE_SIZE)
            && let Ok(Some(large)) = big_pages::lookup(kernel, start)
            && !large.free
        {
            if large.contains(address) {
                return Ok(());
            }
            continue;
        }
        let block = match header {
            Some(header) => {
                let block = bytes.get(offset as usize, formats.headers.unit as usize).unwrap_or_default();
                let block = pool_page::block(kernel, &formats.headers, at, header, block, &mut cookie)?;
                Block { chunk: Some(chunk), ..block }
            }
            None => free_chunk(&formats.headers, at, size, bytes.get(offset as usize, 8)),
        };
        blocks.push(block);
    }
    around.contents = Contents::Blocks(blocks);
    Ok(())
}

/// The tag is what kd shows there: the bytes where a pool header would have it.
fn free_chunk(headers: &Headers, at: u64, size: u64, bytes: Option<&[u8]>) -> Block {
    let key = bytes.and_then(|bytes| bytes.get(4..8)?.try_into().ok()).map_or(0, u32::from_le_bytes);
    Block {
        header: at,
        address: at.wrapping_add(headers.unit),
        size: size.saturating_sub(headers.unit),
        block_size: size,
        previous_size: 0,
        tag: Tag::from_key(key).0,
        protected: false,
        allocated: false,
        chunk: None,
        paged: false,
        pool_type: 0,
        pool_index: 0,
        process: None,
    }
}

fn lfh(
    kernel: &Kernel<'_>,
    formats: &Formats,
    area: &Area,
    address: u64,
    around: &mut Around,
) -> Result<(), PoolError> {
    let Some(format) = &formats.lfh else { return Ok(()) };
    let bytes = page_tables::read(kernel, area.address, area.length as usize)?;
    let mut chosen = Chosen::default();
    format.weigh(&bytes, area.length, &mut chosen);
    let subsegment = match format.subsegment(&bytes, area.length, &chosen) {
        Ok(Some(subsegment)) => subsegment,
        Ok(None) => return Ok(()),
        Err(problem) => {
            if !matches!(problem, Problem::Unreadable { .. }) {
                around.checks.push(Check::new(Book::LfhOffsets, 1, 0, area.address));
            }
            around.problem = Some(problem.to_string());
            return Ok(());
        }
    };
    let mut books = Books::default();
    books.hold(Book::LfhOffsets, true, area.address);
    for (book, counted) in [(Book::LfhBlocksInUse, subsegment.in_use), (Book::LfhWithheld, subsegment.withheld)] {
        if let Some((expected, found)) = counted {
            books.count(book, expected, found, area.address);
        }
    }
    around.problem = subsegment.imbalance(area.address);
    let mut places = Vec::new();
    let link = |at: u64| bytes.get(at.wrapping_sub(area.address) as usize, 2).map(little_endian);
    subsegment.slots(area.address, link, |slot| {
        let at = area.address.wrapping_add(slot.offset);
        if address.wrapping_sub(at) < slot.size || at & !(PAGE_SIZE - 1) == around.page {
            places.push((at, slot));
        }
    });
    let mut blocks = Vec::new();
    let mut cookie = None;
    for (at, slot) in places {
        let Some(block) = bytes.get(slot.offset as usize, slot.size as usize) else { continue };
        let Some(header) = formats.headers.at(block, 0) else { continue };
        let unit = formats.headers.unit;
        let second = |distance: u64| bytes.get((slot.offset + distance) as usize, unit as usize);
        let is_block = formats.headers.is_block(&header, at, slot.size);
        if slot.allocated && !slot.delayed {
            books.hold(Book::LfhPoolHeaders, is_block, at);
        }
        let (distance, header) = match is_block || slot.delayed {
            true => formats.headers.aligned(&header, at, second).map_or((0, Some(header)), |(at, two)| (at, Some(two))),
            false => (0, None),
        };
        let mut block = match header.filter(|header| (unit..=slot.size - distance).contains(&header.block_size)) {
            Some(header) => {
                let block = &block[distance as usize..];
                pool_page::block(kernel, &formats.headers, at + distance, header, block, &mut cookie)?
            }
            None => free_chunk(&formats.headers, at, slot.size, Some(block)),
        };
        block.allocated = slot.allocated && !slot.delayed;
        blocks.push(block);
    }
    around.checks.extend(books.checks());
    around.contents = Contents::Blocks(blocks);
    Ok(())
}

/// Single bits of a page's headers that would make the chain whole if they were turned over: (address of the byte, bit).
pub fn single_bit_errors(kernel: &Kernel<'_>, address: u64) -> Result<Vec<(u64, u8)>, PoolError> {
    let page = address & !(PAGE_SIZE - 1);
    let mut bytes = page_tables::read(kernel, page, PAGE_SIZE as usize)?.bytes;
    let headers = Headers::new(kernel)?;
    let chain: Vec<_> = headers.chain(&bytes).map(|(offset, header)| (offset, header.is_ok())).collect();
    if chain.iter().all(|(_, whole)| *whole) {
        return Ok(Vec::new());
    }
    // The header where the chain breaks, or the one before it, is wrong.
    let mut found = Vec::new();
    for (offset, _) in &chain[chain.len().saturating_sub(2)..] {
        for place in *offset..(*offset + 4).min(PAGE_SIZE) {
            for bit in 0..8 {
                bytes[place as usize] ^= 1 << bit;
                if headers.chain(&bytes).all(|(_, header)| header.is_ok()) {
                    found.push((page.wrapping_add(place), bit));
                }
                bytes[place as usize] ^= 1 << bit;
            }
        }
    }
    Ok(found)
}

impl Around {
    /// The block that the address lies in.
    pub fn block(&self, address: u64) -> Option<&Block> {
        match &self.contents {
            Contents::Blocks(blocks) => blocks.iter().find(|block| block.contains(address)),
            Contents::Special(_) | Contents::Large(_) | Contents::Nothing => None,
        }
    }
}
