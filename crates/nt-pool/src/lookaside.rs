//! Lookaside lists: blocks that drivers keep for themselves (`_GENERAL_LOOKASIDE`).

use crate::kernel::little_endian;
use crate::lists::{follow, note};
use crate::record::Record;
use crate::{Kernel, PoolError, Tag};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookaside {
    pub address: u64,
    pub tag: Tag,
    /// Of one block.
    pub size: u64,
    /// POOL_TYPE.
    pub pool_type: u32,
    /// Blocks that wait in the list now.
    pub current_depth: u64,
    /// How many may wait.
    pub depth: u64,
    pub maximum_depth: u64,
    pub total_allocates: u64,
    pub allocate_misses: u64,
    pub total_frees: u64,
    pub free_misses: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookasides {
    pub lists: Vec<Lookaside>,
    pub notes: Vec<String>,
}

/// The list at `address`.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<Lookaside, PoolError> {
    let record = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let bytes = record.read(address)?;
    decode(&record, address, &bytes)
}

/// Every list that is registered, nonpaged ones first.
pub fn all(kernel: &Kernel<'_>) -> Result<Lookasides, PoolError> {
    let record = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let entry = record.place("ListEntry")?;
    let width = usize::from(kernel.pointer_size);
    let mut found = Lookasides::default();
    for name in ["ExNPagedLookasideListHead", "ExPagedLookasideListHead"] {
        let head = kernel.pointer_variable(name)?;
        let first = match kernel.gather(&[head])?.remove(0) {
            Ok(first) => first,
            Err(error) => {
                note(&mut found.notes, name, error)?;
                continue;
            }
        };
        let Lookasides { lists, notes } = &mut found;
        follow(kernel, name, kernel.wrap(first), head.address, notes, &mut |at, _| {
            let address = kernel.wrap(at.wrapping_sub(entry as u64));
            let bytes = record.read(address)?;
            lists.push(decode(&record, address, &bytes)?);
            let next = bytes.get(entry..entry + width).unwrap_or_default();
            Ok(kernel.wrap(little_endian(next)))
        })?;
    }
    Ok(found)
}

fn decode(record: &Record<'_>, address: u64, bytes: &[u8]) -> Result<Lookaside, PoolError> {
    let number = |name: &str| record.member(name).map(|member| member.get(bytes));
    let head = record.place("ListHead")?;
    // The depth is behind the pointer in the 32-bit form of a list's head.
    let depth = if record.pointer_size() == 4 { head + 4 } else { head };
    Ok(Lookaside {
        address,
        tag: Tag::from_key(number("Tag")? as u32).0,
        size: number("Size")?,
        pool_type: number("Type")? as u32,
        current_depth: bytes.get(depth..depth + 2).map_or(0, little_endian),
        depth: number("Depth")?,
        maximum_depth: number("MaximumDepth")?,
        total_allocates: number("TotalAllocates")?,
        allocate_misses: number("AllocateMisses")?,
        total_frees: number("TotalFrees")?,
        free_misses: number("FreeMisses")?,
    })
}
