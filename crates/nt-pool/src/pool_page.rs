//! A page of the classic pool: Windows Vista to 10 1803, where blocks with headers fill each page from end to end.
//!
//! ```text
//! 64 bits                                 32 bits
//! 0  PreviousSize (1)  PoolIndex (1)      0  PreviousSize (9 bits)  PoolIndex (7)
//! 2  BlockSize (1)     PoolType (1)       2  BlockSize (9 bits)     PoolType (7)
//! 4  PoolTag                              4  PoolTag
//! 8  ProcessBilled
//! ```
//!
//! Sizes are in headers (16 or 8 bytes) and count the header. Later versions put blocks into a segment heap, whose
//! pages have no such chain.

use nt_memory::PAGE_SIZE;

use crate::build::WINDOWS_8;
use crate::kernel::{Variable, little_endian};
use crate::pool_header::{Header, Headers};
use crate::{Kernel, PoolError, Tag};

/// One block of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where the header lies.
    pub header: u64,
    /// What the allocation call returned.
    pub address: u64,
    /// What the caller may use.
    pub size: u64,
    /// With the header.
    pub block_size: u64,
    /// Of the block before, as the header has it; 0 for a page's first.
    pub previous_size: u64,
    /// A free block keeps its last owner's.
    pub tag: Tag,
    /// The top bit of its stored tag is set: the tag must be given again to free it.
    pub protected: bool,
    /// Not given back to the page. A block that waits on a lookaside or deferred-free list still counts as allocated,
    /// until [`crate::freed::tell`] has looked there.
    pub allocated: bool,
    /// The chunk of a VS subsegment that it lies in.
    pub chunk: Option<u64>,
    /// Of paged pool, as its header says.
    pub paged: bool,
    /// The header's byte as it is: 1 paged, 2 in use, 4 cache-aligned, 8 quota, 0x20 session, 0x40 tracked by Driver
    /// Verifier.
    pub pool_type: u8,
    /// Which of several pools of its kind it is of.
    pub pool_index: u8,
    /// The process that pays for the block.
    pub process: Option<u64>,
}

impl Block {
    /// Whether the address is one of the block's, its header included.
    pub fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.header).is_some_and(|offset| offset < self.block_size)
    }
}

/// A page of the old pool, header by header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPage {
    /// Where the page starts.
    pub address: u64,
    /// From the page's start up to its end, or to where the chain of headers breaks.
    pub blocks: Vec<Block>,
    /// Where and how the chain breaks; `None` for a page that is pool from end to end.
    pub problem: Option<String>,
}

const QUOTA: u8 = 8;

/// The page that `address` lies in.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<PoolPage, PoolError> {
    let address = address & !(PAGE_SIZE - 1);
    let mut page = vec![0; PAGE_SIZE as usize];
    kernel.memory.read_exact(address, &mut page)?;
    decode(kernel, address, &page)
}

/// A page's bytes that the caller has read already. Reads no more than the cookie that hides a block's process.
pub fn decode(kernel: &Kernel<'_>, address: u64, page: &[u8]) -> Result<PoolPage, PoolError> {
    let headers = Headers::new(kernel)?;
    let mut cookie = None;
    let mut found = PoolPage { address, blocks: Vec::new(), problem: None };
    for (offset, header) in headers.chain(page) {
        let at = address.wrapping_add(offset);
        match header {
            Ok(header) => {
                let end = (offset + header.block_size) as usize;
                found.blocks.push(block(kernel, &headers, at, header, &page[offset as usize..end], &mut cookie)?);
            }
            Err(broken) => found.problem = Some(broken.line(at, &headers, 2 * usize::from(kernel.pointer_size))),
        }
    }
    Ok(found)
}

/// One block with everything its header says; `bytes` are the block's, header included. The quota's cookie is read when
/// it is needed, once.
pub(crate) fn block(
    kernel: &Kernel<'_>,
    headers: &Headers,
    at: u64,
    header: Header,
    bytes: &[u8],
    cookie: &mut Option<Option<u64>>,
) -> Result<Block, PoolError> {
    let kind = header.pool_type;
    let in_header = headers.process_billed(bytes);
    let stored = match in_header {
        _ if kind & QUOTA == 0 => 0,
        Some(stored) => stored,
        // No room in the header: the block's last pointer.
        None => little_endian(&bytes[bytes.len().saturating_sub(kernel.pointer_size.into())..]),
    };
    let process = if in_header.is_some() && kernel.build >= WINDOWS_8 && stored != 0 {
        let key = match *cookie {
            Some(key) => key,
            None => *cookie.insert(read_cookie(kernel)?),
        };
        key.map(|key| stored ^ at ^ key)
    } else {
        Some(stored)
    };
    let (tag, protected) = header.tag();
    Ok(Block {
        header: at,
        address: at.wrapping_add(headers.unit),
        size: header.block_size - headers.unit,
        block_size: header.block_size,
        previous_size: header.previous_size,
        tag,
        protected,
        allocated: kind != 0,
        chunk: None,
        paged: kind & 1 != 0,
        pool_type: kind,
        pool_index: headers.pool_index(bytes),
        process: process.filter(|process| kernel.is_kernel_address(*process)),
    })
}

/// `nt!ExpPoolQuotaCookie`; `None` if it cannot be read.
fn read_cookie(kernel: &Kernel<'_>) -> Result<Option<u64>, PoolError> {
    let Some(address) = kernel.find_symbol("ExpPoolQuotaCookie") else { return Ok(None) };
    Ok(kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0).ok())
}
