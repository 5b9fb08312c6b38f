//! Lookaside lists: blocks that drivers keep for themselves (`_GENERAL_LOOKASIDE`), and those that each processor keeps
//! for the pool and for the system.
//!
//! ```text
//! ExNPagedLookasideListHead, ExPagedLookasideListHead     the registered ones, drivers' and the kernel's
//! KiProcessorBlock[] -> _KPRCB
//!   PPLookasideList[]                                     P: this processor's, L: what all processors fall back to
//!   PPNPagedLookasideList[], PPNxPagedLookasideList[], PPPagedLookasideList[]
//!                                                         the pool's own, one for each small size
//! ```

use std::collections::HashSet;

use nt_memory::read_sparse;
use nt_symbols::Layout;

use crate::kernel::{Variable, little_endian};
use crate::lists::{follow, note};
use crate::record::Record;
use crate::tags::processors;
use crate::{Kernel, Notes, PoolError, Tag};

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
    pub place: Place,
}

/// Where a list was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At an address that was given.
    Given,
    Registered,
    /// `_KPRCB.member[index]`: the pool's own, for blocks of `index` + 1 allocation units.
    Pool {
        processor: u32,
        member: &'static str,
        index: u32,
    },
    /// `_KPRCB.PPLookasideList[index]`: that processor's own, or the one that all of them share.
    System {
        processor: u32,
        index: u32,
        shared: bool,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookasides {
    pub lists: Vec<Lookaside>,
    pub notes: Notes,
}

/// The list at `address`.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<Lookaside, PoolError> {
    let record = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let bytes = record.read(address)?;
    decode(&record, address, &bytes, Place::Given)
}

/// Where members of a list lie in it, and how wide they are.
pub fn members<const N: usize>(kernel: &Kernel<'_>, names: [&str; N]) -> Result<[(u64, usize); N], PoolError> {
    let record = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let mut places = [(0, 0); N];
    for (place, name) in places.iter_mut().zip(names) {
        let member = record.member(name)?;
        *place = (member.offset as u64, member.size);
    }
    Ok(places)
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
            lists.push(decode(&record, address, &bytes, Place::Registered)?);
            let next = bytes.get(entry..entry + width).unwrap_or_default();
            Ok(kernel.wrap(little_endian(next)))
        })?;
    }
    Ok(found)
}

/// An array of lists in `_KPRCB`.
pub(crate) struct Array {
    pub(crate) member: &'static str,
    pub(crate) offset: u64,
    pub(crate) count: u64,
    /// Bytes of one list.
    pub(crate) size: u64,
}

/// The pool's own lists that this version has.
pub(crate) fn pool_arrays(prcb: &Layout) -> Vec<Array> {
    const LISTS: [&str; 3] = ["PPNPagedLookasideList", "PPPagedLookasideList", "PPNxPagedLookasideList"];
    let array = |member: &&'static str| {
        let field = prcb.field(member)?;
        let (count, size) = field.array?;
        Some(Array { member, offset: field.offset, count, size })
    };
    let plausible = |array: &Array| array.count <= 64 && (16..=0x100).contains(&array.size) && array.offset < 1 << 20;
    LISTS.iter().filter_map(array).filter(plausible).collect()
}

/// Windows takes no more processors.
const MAX_PROCESSORS: u64 = 2048;

/// The `_KPRCB` of each processor, by number; 0 for one that is not there.
pub(crate) fn control_blocks(kernel: &Kernel<'_>) -> Result<Vec<u64>, PoolError> {
    let block = kernel.symbol("KiProcessorBlock")?;
    let count = processors(kernel)?.unwrap_or(1).min(MAX_PROCESSORS);
    let width = usize::from(kernel.pointer_size);
    let pointers = read_sparse(kernel.memory, block, count as usize * width)?;
    Ok(pointers.bytes.chunks_exact(width).map(little_endian).collect())
}

/// The lists of one processor, or of every one: the pool's and the system's.
pub fn per_processor(kernel: &Kernel<'_>, wanted: Option<u32>) -> Result<Lookasides, PoolError> {
    let prcb = kernel.layout("_KPRCB")?;
    let pool = Record::new(kernel, "_GENERAL_LOOKASIDE_POOL")?;
    let general = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let arrays = pool_arrays(&prcb);
    let width = u64::from(kernel.pointer_size);
    // P and L: two pointers in every version.
    let system = prcb.field("PPLookasideList").and_then(|field| Some((field.offset, field.array?.0.min(64))));
    let mut found = Lookasides::default();
    let mut seen = HashSet::new();
    for (number, prcb) in control_blocks(kernel)?.into_iter().enumerate() {
        let processor = number as u32;
        if prcb == 0 || wanted.is_some_and(|wanted| wanted != processor) {
            continue;
        }
        for Array { member, offset, count, size } in &arrays {
            let start = kernel.wrap(prcb.wrapping_add(*offset));
            if !kernel.is_kernel_range(start, count * size) {
                found.notes.missing(format!("nt!KiProcessorBlock leads to {prcb:016x}, which is no kernel address"));
                break;
            }
            let bytes = read_sparse(kernel.memory, start, (count * size) as usize)?;
            if !bytes.is_complete() {
                found.notes.missing(format!("{member} of processor {processor} cannot be read"));
            }
            for index in 0..*count {
                let Some(list) = bytes.get((index * size) as usize, pool.size) else { continue };
                let place = Place::Pool { processor, member, index: index as u32 };
                found.lists.push(decode(&pool, kernel.wrap(start.wrapping_add(index * size)), list, place)?);
            }
        }
        let Some((offset, count)) = system else { continue };
        let start = kernel.wrap(prcb.wrapping_add(offset));
        let pointers: Vec<Variable> = (0..2 * count)
            .map(|index| Variable {
                address: kernel.wrap(start.wrapping_add(index * width)),
                size: kernel.pointer_size,
            })
            .collect();
        for (at, pointer) in kernel.gather(&pointers)?.into_iter().enumerate() {
            let place = Place::System { processor, index: at as u32 / 2, shared: at % 2 == 1 };
            let address = match pointer {
                Ok(pointer) => kernel.wrap(pointer),
                Err(error) => {
                    note(&mut found.notes, &format!("PPLookasideList of processor {processor}"), error)?;
                    break;
                }
            };
            if !kernel.is_kernel_address(address) || !seen.insert(address) {
                continue;
            }
            match general.read(address) {
                Ok(bytes) => found.lists.push(decode(&general, address, &bytes, place)?),
                Err(error) => note(&mut found.notes, "a list of the system", error)?,
            }
        }
    }
    Ok(found)
}

fn decode(record: &Record<'_>, address: u64, bytes: &[u8], place: Place) -> Result<Lookaside, PoolError> {
    let number = |name: &str| record.member(name).map(|member| member.get(bytes));
    let head = record.place("ListHead")?;
    // The depth is behind the pointer in the 32-bit form of a list's head.
    let depth = if record.pointer_size() == 4 { head + 4 } else { head };
    let (total_allocates, total_frees) = (number("TotalAllocates")?, number("TotalFrees")?);
    let (allocates, frees) = (number("AllocateMisses")?, number("FreeMisses")?);
    // One place for two counters (AllocateHits, AllocateMisses): the pool counts hits in its own lists (as ReactOS does),
    // all others count misses.
    let (allocate_misses, free_misses) = match place {
        Place::Pool { .. } => (total_allocates.saturating_sub(allocates), total_frees.saturating_sub(frees)),
        _ => (allocates, frees),
    };
    Ok(Lookaside {
        address,
        tag: Tag::from_key(number("Tag")? as u32).0,
        size: number("Size")?,
        pool_type: number("Type")? as u32,
        current_depth: bytes.get(depth..depth + 2).map_or(0, little_endian),
        depth: number("Depth")?,
        maximum_depth: number("MaximumDepth")?,
        total_allocates,
        allocate_misses,
        total_frees,
        free_misses,
        place,
    })
}
