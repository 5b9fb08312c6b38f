//! A page of special pool: one block per page, with a page behind it (or before it) that is not there.
//!
//! The header is eight bytes, in sixteen bytes' room on 64-bit Windows. It lies at the page's start when overruns are to
//! be caught (the block then ends at the page's end), or at the page's end when underruns are (the block then starts the
//! page; not on Windows 10 1903 and later).
//!
//! ```text
//! 0  size (13 bits), 0x2000 session, 0x4000 tracked by Driver Verifier, 0x8000 paged, fill byte (bits 16-23)
//! 4  tag
//! ```

use std::ops::Range;

use nt_memory::PAGE_SIZE;

use crate::build::{WINDOWS_10_1903, WINDOWS_11_24H2};
use crate::kernel::little_endian;
use crate::{Kernel, PoolError, PoolKind, Tag};

/// The block of a page of special pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialBlock {
    /// Where its header lies: at the page's start, or at its end.
    pub header: u64,
    /// What the allocation call returned.
    pub address: u64,
    /// What was asked for.
    pub size: u64,
    /// Its owner's.
    pub tag: Tag,
    /// Nonpaged when the version does not say (Windows 10 1903 and later).
    pub kind: PoolKind,
    /// Driver Verifier keeps an entry of the block.
    pub tracked: bool,
    /// What every byte of the page that is neither header nor block holds.
    pub fill: u8,
    /// Bytes between header and block, or behind the block, that hold something else: written past the block's end.
    pub overwritten: Vec<u64>,
}

/// Decodes the page that `address` lies in, if it is a page of special pool by the looks of its header.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<Option<SpecialBlock>, PoolError> {
    let address = address & !(PAGE_SIZE - 1);
    let mut page = vec![0; PAGE_SIZE as usize];
    kernel.memory.read_exact(address, &mut page)?;
    Ok(decode(kernel, address, &page))
}

/// A page's bytes that the caller has read already.
pub fn decode(kernel: &Kernel<'_>, address: u64, page: &[u8]) -> Option<SpecialBlock> {
    if page.len() != PAGE_SIZE as usize {
        return None;
    }
    let room = 2 * usize::from(kernel.pointer_size);
    let ends_page = block_at_end(kernel, address, page, room);
    let starts_page = (kernel.build < WINDOWS_10_1903).then(|| block_at_start(kernel, address, page, room)).flatten();
    // Where both could be, the one whose filling is whole is meant.
    match (ends_page, starts_page) {
        (Some(one), Some(other)) if other.overwritten.len() < one.overwritten.len() => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

/// Overruns are caught: header first, the block as far back as its alignment lets it.
fn block_at_end(kernel: &Kernel<'_>, address: u64, page: &[u8], room: usize) -> Option<SpecialBlock> {
    let header = Header::new(kernel, page, room)?;
    let data = (page.len() - header.size) & !(room - 1);
    let first = header.end(kernel, room);
    if data < first {
        return None;
    }
    Some(header.block(kernel, address, page, 0, data, &[first..data, data + header.size..page.len()]))
}

/// Underruns are caught: the block first, the header in the page's last bytes.
fn block_at_start(kernel: &Kernel<'_>, address: u64, page: &[u8], room: usize) -> Option<SpecialBlock> {
    let at = page.len() - room;
    let header = Header::new(kernel, &page[at..], room)?;
    // The verifier's pointer lies before the header here.
    let last = if header.tracked() { at - usize::from(kernel.pointer_size) } else { at };
    if header.size > last {
        return None;
    }
    Some(header.block(kernel, address, page, at, 0, std::slice::from_ref(&(header.size..last))))
}

struct Header {
    bits: u32,
    size: usize,
    tag: Tag,
}

impl Header {
    /// `None` where no header can be.
    fn new(kernel: &Kernel<'_>, bytes: &[u8], room: usize) -> Option<Self> {
        let bits = little_endian(&bytes[..4]) as u32;
        let (tag, _) = Tag::from_key(little_endian(&bytes[4..8]) as u32);
        let size = (bits & 0x1fff) as usize;
        // Before the segment heap the fill byte is odd, what is above it is not used, and neither are the header's last
        // eight bytes. Of later ones nobody has seen what these hold; there every page of the heap is one of special
        // pool, so that less has to be asked of it.
        let rest = &bytes[8..room.max(8)];
        let plausible = (1..=PAGE_SIZE as usize - room).contains(&size)
            && tag.key() != 0
            && (kernel.build >= WINDOWS_10_1903
                || bits & 0xff01_0000 == 0x1_0000 && rest.iter().all(|byte| *byte == 0));
        plausible.then_some(Header { bits, size, tag })
    }

    fn tracked(&self) -> bool {
        self.bits & 0x4000 != 0
    }

    /// Where the filling behind a header at the page's start begins.
    fn end(&self, kernel: &Kernel<'_>, room: usize) -> usize {
        if self.tracked() { room + usize::from(kernel.pointer_size) } else { room }
    }

    fn block(
        &self,
        kernel: &Kernel<'_>,
        address: u64,
        page: &[u8],
        header: usize,
        data: usize,
        filling: &[Range<usize>],
    ) -> SpecialBlock {
        let fill = (self.bits >> 16) as u8;
        let at = |offset: usize| address.wrapping_add(offset as u64);
        let overwritten = filling.iter().cloned().flatten().filter(|i| page[*i] != fill);
        // Windows 11 24H2 marks cache-aligned blocks with the bit that meant session.
        let session = kernel.build < WINDOWS_11_24H2 && self.bits & 0x2000 != 0;
        let pool_type = u32::from(self.bits & 0x8000 != 0) | if session { 0x20 } else { 0 };
        SpecialBlock {
            header: at(header),
            address: at(data),
            size: self.size as u64,
            tag: self.tag,
            kind: PoolKind::from_pool_type(pool_type),
            tracked: self.tracked(),
            fill,
            overwritten: overwritten.map(at).collect(),
        }
    }
}
