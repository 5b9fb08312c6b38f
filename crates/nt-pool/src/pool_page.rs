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

use crate::kernel::{Variable, little_endian};
use crate::record::Record;
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
    pub protected: bool,
    /// Not given back to the page. A block that waits on a lookaside or deferred-free list still counts as allocated.
    pub allocated: bool,
    pub paged: bool,
    /// The header's byte as it is: 1 paged, 2 in use, 4 cache-aligned, 8 quota, 0x20 session, 0x40 tracked by Driver
    /// Verifier.
    pub pool_type: u8,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPage {
    pub address: u64,
    /// From the page's start up to its end, or to where the chain of headers breaks.
    pub blocks: Vec<Block>,
    /// Where and how the chain breaks; `None` for a page that is pool from end to end.
    pub problem: Option<String>,
}

const QUOTA: u8 = 8;

/// The first build that stores a block's process encoded.
const ENCODED_PROCESS: u16 = 9200;

/// The page that `address` lies in.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<PoolPage, PoolError> {
    let address = address & !(PAGE_SIZE - 1);
    let mut page = vec![0; PAGE_SIZE as usize];
    kernel.memory.read_exact(address, &mut page)?;
    decode(kernel, address, &page)
}

/// A page's bytes that the caller has read already. Reads no more than the cookie that hides a block's process.
pub fn decode(kernel: &Kernel<'_>, address: u64, page: &[u8]) -> Result<PoolPage, PoolError> {
    let header = Record::new(kernel, "_POOL_HEADER")?;
    let unit = header.size;
    let previous_size = header.member("PreviousSize")?;
    let block_size = header.member("BlockSize")?;
    let pool_type = header.member("PoolType")?;
    let pool_index = header.find("PoolIndex");
    let tag = header.member("PoolTag")?;
    let process_billed = header.find("ProcessBilled");
    let mut cookie = None;
    let mut found = PoolPage { address, blocks: Vec::new(), problem: None };
    let mut offset = 0;
    let mut before = 0u64;
    while offset < page.len() {
        let at = address.wrapping_add(offset as u64);
        let Some(bytes) = page.get(offset..offset + unit) else {
            found.problem = Some(format!("the block before {at:016x} leaves no room for a header"));
            break;
        };
        let size = block_size.get(bytes) as usize * unit;
        let previous = previous_size.get(bytes) * unit as u64;
        if previous != before {
            found.problem = Some(format!(
                "the header at {at:016x} gives {previous:#x} bytes to the block before it, which has {before:#x}"
            ));
            break;
        }
        let Some(block) = page.get(offset..offset + size).filter(|block| !block.is_empty()) else {
            found.problem = Some(format!("the header at {at:016x} gives its block {size:#x} bytes"));
            break;
        };
        let kind = pool_type.get(bytes) as u8;
        let stored = match process_billed {
            _ if kind & QUOTA == 0 => 0,
            Some(member) => member.get(bytes),
            // No room in the header: the block's last pointer.
            None => little_endian(&block[block.len().saturating_sub(kernel.pointer_size.into())..]),
        };
        let process = if process_billed.is_some() && kernel.build >= ENCODED_PROCESS && stored != 0 {
            let key = match cookie {
                Some(key) => key,
                None => *cookie.insert(read_cookie(kernel)?),
            };
            key.map(|key| stored ^ at ^ key)
        } else {
            Some(stored)
        };
        let (tag, protected) = Tag::from_key(tag.get(bytes) as u32);
        found.blocks.push(Block {
            header: at,
            address: at.wrapping_add(unit as u64),
            size: (size - unit) as u64,
            block_size: size as u64,
            previous_size: previous,
            tag,
            protected,
            allocated: kind != 0,
            paged: kind & 1 != 0,
            pool_type: kind,
            pool_index: pool_index.map_or(0, |member| member.get(bytes) as u8),
            process: process.filter(|process| kernel.is_kernel_address(*process)),
        });
        before = size as u64;
        offset += size;
    }
    Ok(found)
}

/// `nt!ExpPoolQuotaCookie`; `None` if it cannot be read.
fn read_cookie(kernel: &Kernel<'_>) -> Result<Option<u64>, PoolError> {
    let Some(address) = kernel.find_symbol("ExpPoolQuotaCookie") else { return Ok(None) };
    Ok(kernel.gather(&[Variable { address, size: kernel.pointer_size }])?.remove(0).ok())
}
