//! Where the pool of Windows Vista to 10 1803 lies, and which of its blocks wait in lists.
//!
//! | version | nonpaged | paged | special |
//! |---|---|---|---|
//! | Vista to 8.1, x64 | `MmNonPagedPoolStart`, `MiNonPagedPoolEnd` | to `MmPagedPoolEnd` | `MiSpecialPool` |
//! | Vista to 8.1, x86 | `MiSystemVaType`: one byte per page directory entry | the same | the same |
//! | 8, 8.1, x64 | as above | as above | `MiDynamicBitMapSpecialPool`, or `MiSpecialPool` |
//! | 10 to 1511, x64 | `MiState`: `NonPagedPoolFirstVa` | `DynamicBitMapPagedPool` | `DynamicBitMapSpecialPool` |
//! | 10 1607 and later | `MiVisibleState`: `SystemVaRegions` | the same | the same |
//!
//! Where a variable has nothing to say, the version's fixed place is taken.
//!
//! Of these ranges the resident pages are read; each holds a chain of headers from its start to its end.

use std::ops::Range;

use nt_memory::{Fault, PAGE_SIZE, Sparse, read_sparse};

use crate::build::{WINDOWS_8, WINDOWS_10};
use crate::checks::Book;
use crate::kernel::{Variable, little_endian};
use crate::lists::{Head, note};
use crate::lookaside::{PoolLists, complaint, control_blocks};
use crate::page_tables::{PageTables, Resident};
use crate::record::Record;
use crate::segment_heap::Heaps;
use crate::small_blocks::{Area, Content, Kinds};
use crate::{Kernel, Notes, PoolError, PoolKind};

/// Fixed places of x64 kernels that have no variable for them (facts 4.1: Rekall; facts/peer-facts 5.1).
const PAGED_START_WINDOWS_7: u64 = 0xffff_f8a0_0000_0000;
const NONPAGED_START_WINDOWS_8: u64 = 0xffff_e000_0000_0000;
const PAGED_START_WINDOWS_8: u64 = 0xffff_c000_0000_0000;

/// The same from Windows 8 to 10 1511: where the next region begins. Page tables tell what is there.
const NONPAGED_END_WINDOWS_8: u64 = 0xffff_f000_0000_0000;
const PAGED_END_WINDOWS_8: u64 = 0xffff_cf80_0000_0000;

/// No pool is larger than all memory that x64 kernels of these versions can have addresses for.
const MAX_RANGE: u64 = 1 << 45;

/// Windows 7's stretch for what comes and goes, special pool among it, when `MiSpecialPool` does not say more (facts 4.1:
/// Rekall, and the blocks of the documentation's example).
const DYNAMIC_WINDOWS_7: Range<u64> = 0xffff_f980_0000_0000..0xffff_fa80_0000_0000;

/// The same of Windows 8 to 10 1511: between paged pool and what system page table entries map (facts 4.1: Rekall).
const SPECIAL_WINDOWS_8: Range<u64> = 0xffff_cf80_0000_0000..0xffff_d000_0000_0000;

/// Pages of that stretch that are read although the kernel counts none of special pool.
const MAX_UNCOUNTED: u64 = 0x1000;

/// Pool descriptors that are looked at; their array has 64 and one.
const MAX_DESCRIPTORS: u64 = 0x41;

/// One range of virtual memory that holds pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) range: Range<u64>,
    pub(crate) pool: PoolKind,
    pub(crate) special: bool,
    /// Other things lie in between.
    pub(crate) mixed: bool,
}

/// Looks for the resident pages of the wanted pools.
pub(crate) fn read(kernel: &Kernel<'_>, kinds: Kinds) -> Result<Heaps, PoolError> {
    let mut found = Heaps::default();
    let tables = PageTables::new(kernel)?;
    for region in regions(kernel, kinds, &mut found.notes)? {
        let resident = tables.resident(region.range.clone())?;
        found.notes.extend(resident.notes);
        if !region.special {
            found.out.extend(resident.out);
        }
        found.transition.extend(resident.transition);
        let content = match region {
            Region { mixed: true, .. } => Content::MixedPages,
            Region { special: true, .. } => Content::SpecialPages,
            Region { special: false, .. } => Content::Pages,
        };
        let pages: u64 = resident.runs.iter().map(|run| (run.end - run.start) / PAGE_SIZE).sum();
        if region.mixed && pages > MAX_UNCOUNTED && special_pages_in_use(kernel)? == Some(0) {
            continue;
        }
        found.areas.extend(resident.runs.into_iter().map(|run| Area {
            address: run.start,
            length: run.end - run.start,
            unit: PAGE_SIZE,
            pool: region.pool,
            content,
        }));
    }
    found.areas.sort_by_key(|area| area.address);
    found.transition.sort_by_key(|run| run.start);
    if kinds.nonpaged || kinds.paged {
        lookasides(kernel, &mut found)?;
        pending(kernel, &mut found)?;
    }
    Ok(found)
}

/// The pool's lists of freed blocks alone.
pub(crate) fn lists(kernel: &Kernel<'_>) -> Result<Heaps, PoolError> {
    let mut found = Heaps::default();
    lookasides(kernel, &mut found)?;
    pending(kernel, &mut found)?;
    Ok(found)
}

/// The resident pages of one range that no variable tells.
pub(crate) fn read_range(kernel: &Kernel<'_>, range: Range<u64>, pool: PoolKind) -> Result<Heaps, PoolError> {
    let resident = PageTables::new(kernel)?.resident(range)?;
    let areas = resident.runs.iter().map(|run| Area {
        address: run.start,
        length: run.end - run.start,
        unit: PAGE_SIZE,
        pool,
        content: Content::Pages,
    });
    let (areas, Resident { out, transition, notes, .. }) = (areas.collect(), resident);
    Ok(Heaps { areas, out, transition, notes, ..Heaps::default() })
}

/// The ranges of the wanted pools; a range that is not known is a note.
pub(crate) fn regions(kernel: &Kernel<'_>, kinds: Kinds, notes: &mut Notes) -> Result<Vec<Region>, PoolError> {
    let mut regions = match kernel.pointer_size {
        4 => by_directory_entry(kernel, notes)?,
        _ if kernel.build >= WINDOWS_10 => by_region_table(kernel, notes)?,
        _ => by_variables(kernel, notes)?,
    };
    regions.retain(|region| match region.special {
        true => kinds.special,
        false if region.pool.is_paged() => kinds.paged,
        false => kinds.nonpaged,
    });
    Ok(regions)
}

/// The values of variables by their names; 0 for what is missing, unreadable or no kernel address.
fn addresses<const N: usize>(kernel: &Kernel<'_>, names: [&str; N]) -> Result<[u64; N], Fault> {
    let variables: Vec<(usize, Variable)> = names
        .iter()
        .enumerate()
        .filter_map(|(index, name)| Some((index, kernel.pointer_variable(name).ok()?)))
        .collect();
    let asked: Vec<Variable> = variables.iter().map(|(_, variable)| *variable).collect();
    let mut values = [0; N];
    for ((index, _), value) in variables.iter().zip(kernel.gather(&asked)?) {
        values[*index] = value.unwrap_or(0);
    }
    Ok(values)
}

/// Vista to 8.1 on x64.
fn by_variables(kernel: &Kernel<'_>, notes: &mut Notes) -> Result<Vec<Region>, PoolError> {
    let [nonpaged, aligned, nonpaged_end, most, paged, paged_end, paged_size] = addresses(
        kernel,
        [
            "MmNonPagedPoolStart",
            "MiNonPagedPoolStartAligned",
            "MiNonPagedPoolEnd",
            "MmMaximumNonPagedPoolInBytes",
            "MiPagedPoolStart",
            "MmPagedPoolEnd",
            "MmSizeOfPagedPoolInBytes",
        ],
    )?;
    let windows_8 = kernel.build >= WINDOWS_8;
    let kernel_address = |address: u64| Some(address).filter(|address| kernel.is_kernel_address(*address));
    let mut regions = Vec::new();
    let mut add = |start: Option<u64>, end: Option<u64>, pool: PoolKind, notes: &mut Notes| {
        let start = start.map(|start| start & !(PAGE_SIZE - 1));
        // Some variables hold the last byte's address.
        let end = end.map(|end| end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(!(PAGE_SIZE - 1)));
        match (start, end) {
            (Some(start), Some(end)) if start < end && end - start <= MAX_RANGE => {
                regions.push(Region { range: start..end, pool, special: false, mixed: false });
            }
            _ => {
                let pool = pool.to_string().to_lowercase();
                notes.missing(format!("the kernel's variables do not say where {pool} lies; it was not searched"));
            }
        }
    };
    let start = kernel_address(nonpaged).into_iter().chain(kernel_address(aligned)).min();
    let start = start.or(windows_8.then_some(NONPAGED_START_WINDOWS_8));
    let end = kernel_address(nonpaged_end).or_else(|| start?.checked_add(most).filter(|_| most > 0));
    add(start, end, PoolKind::NonPaged, notes);
    let fixed = if windows_8 { PAGED_START_WINDOWS_8 } else { PAGED_START_WINDOWS_7 };
    let start = kernel_address(paged).unwrap_or(fixed);
    let end = kernel_address(paged_end).or_else(|| start.checked_add(paged_size).filter(|_| paged_size > 0));
    add(Some(start), end, PoolKind::Paged, notes);
    if windows_8 {
        regions.extend(special(kernel)?);
        return Ok(regions);
    }
    let special = special_by_bitmap(kernel)?;
    regions.push(special.unwrap_or(Region {
        range: DYNAMIC_WINDOWS_7,
        pool: PoolKind::NonPaged,
        special: true,
        mixed: true,
    }));
    Ok(regions)
}

/// Special pool of Windows 8 to 10 1511 on x64.
fn special(kernel: &Kernel<'_>) -> Result<Option<Region>, PoolError> {
    let dynamic = dynamic_bitmap(kernel, "DynamicBitMapSpecialPool")?;
    let dynamic = dynamic.map(|range| Region { range, pool: PoolKind::NonPaged, special: true, mixed: false });
    let region = match dynamic {
        Some(region) => Some(region),
        None => special_by_bitmap(kernel)?,
    };
    if region.is_some() {
        return Ok(region);
    }
    let pages = special_pages_in_use(kernel)?;
    // Where nothing says that there is special pool, only pages are taken which are whole.
    let region = Region { range: SPECIAL_WINDOWS_8, pool: PoolKind::NonPaged, special: true, mixed: pages.is_none() };
    Ok((pages != Some(0)).then_some(region))
}

/// Windows 10 up to 1511 on x64, which has no table of regions.
fn by_nodes(kernel: &Kernel<'_>) -> Result<Vec<Region>, PoolError> {
    let region = |range, pool| Region { range, pool, special: false, mixed: false };
    let nonpaged = first_node(kernel)?.unwrap_or(NONPAGED_START_WINDOWS_8..NONPAGED_END_WINDOWS_8);
    let paged = dynamic_bitmap(kernel, "DynamicBitMapPagedPool")?;
    let paged = paged.unwrap_or(PAGED_START_WINDOWS_8..PAGED_END_WINDOWS_8);
    let mut regions = vec![region(nonpaged, PoolKind::NonPaged), region(paged, PoolKind::Paged)];
    regions.extend(special(kernel)?);
    Ok(regions)
}

/// Nonpaged pool of all nodes: they share a region that begins where the first one's does.
fn first_node(kernel: &Kernel<'_>) -> Result<Option<Range<u64>>, PoolError> {
    let node = Record::new(kernel, "_MI_SYSTEM_NODE_INFORMATION").ok();
    let first = node.and_then(|node| node.find("NonPagedPoolFirstVa"));
    let (Some(nodes), Some(first)) = (in_state(kernel, "SystemNodeInformation"), first) else { return Ok(None) };
    let pointer = |address: u64| -> Result<u64, Fault> {
        let variable = Variable { address, size: kernel.pointer_size };
        Ok(kernel.gather(&[variable])?.remove(0).unwrap_or(0))
    };
    let nodes = pointer(nodes)?;
    if !kernel.is_kernel_address(nodes) {
        return Ok(None);
    }
    let start = pointer(nodes.wrapping_add(first.offset as u64))? & !(PAGE_SIZE - 1);
    let end = if start < NONPAGED_END_WINDOWS_8 { NONPAGED_END_WINDOWS_8 } else { start.saturating_add(MAX_RANGE) };
    Ok(kernel.is_kernel_address(start).then_some(start..end))
}

/// Where a member of `MiState` lies, or of its `SystemVa` or `Hardware`, as the version has it.
fn in_state(kernel: &Kernel<'_>, path: &str) -> Option<u64> {
    let state = Record::large(kernel, "_MI_SYSTEM_INFORMATION").ok()?;
    let prefixes = ["SystemVa.", "Hardware.", ""];
    let member = prefixes.iter().find_map(|prefix| state.find(&format!("{prefix}{path}")))?;
    Some(kernel.find_symbol("MiState")?.wrapping_add(member.offset as u64))
}

/// What a `_MI_DYNAMIC_BITMAP` manages: one of `MiState`, or a variable of its own in Windows 8, whose symbols do not
/// have the type; its first members are those of Windows 10's.
fn dynamic_bitmap(kernel: &Kernel<'_>, name: &str) -> Result<Option<Range<u64>>, PoolError> {
    const MEMBERS: [(&str, u64); 2] = [("BaseVa", 0x20), ("MaximumSize", 0x10)];
    let bitmap = Record::new(kernel, "_MI_DYNAMIC_BITMAP").ok();
    let places: Option<Vec<u64>> = match kernel.find_symbol(&format!("Mi{name}")) {
        Some(address) => {
            let offset = |member, known| match &bitmap {
                Some(bitmap) => bitmap.find(member).map(|member| member.offset as u64),
                None => Some(known),
            };
            MEMBERS.iter().map(|&(member, known)| Some(address.wrapping_add(offset(member, known)?))).collect()
        }
        None => MEMBERS.iter().map(|(member, _)| in_state(kernel, &format!("{name}.{member}"))).collect(),
    };
    let Some(places) = places else { return Ok(None) };
    let variables: Vec<Variable> =
        places.into_iter().map(|address| Variable { address, size: kernel.pointer_size }).collect();
    let mut values = kernel.gather(&variables)?.into_iter().map(|value| value.unwrap_or(0));
    let (start, pages) = (values.next().unwrap_or(0), values.next().unwrap_or(0));
    // In pages (facts 4.2: Rekall).
    let length = pages.saturating_mul(PAGE_SIZE);
    let plausible = start % PAGE_SIZE == 0 && length <= MAX_RANGE && kernel.is_kernel_range(start, length);
    Ok((plausible && length > 0).then(|| start..start.saturating_add(length)))
}

/// What the kernel counts of special pool.
fn special_pages_in_use(kernel: &Kernel<'_>) -> Result<Option<u64>, Fault> {
    let Ok(variable) = kernel.u32_variable("MmSpecialPagesInUse") else { return Ok(None) };
    Ok(kernel.gather(&[variable])?.remove(0).ok())
}

/// `MiSpecialPool`: the first page table entry (from Windows 8 on in the heads of its lists of free ones), and a bit per
/// page directory entry.
fn special_by_bitmap(kernel: &Kernel<'_>) -> Result<Option<Region>, PoolError> {
    const BITS: &str = "SpecialPoolPdes.SizeOfBitMap";
    const BASES: [&str; 3] = ["PteBase", "NonPaged.PteBase", "Paged.PteBase"];
    let (Some(address), Ok(record)) = (kernel.find_symbol("MiSpecialPool"), Record::new(kernel, "_MI_SPECIAL_POOL"))
    else {
        return Ok(None);
    };
    let Some(bits) = record.find(BITS) else { return Ok(None) };
    let member = |member: crate::record::Member| Variable {
        address: kernel.wrap(address.wrapping_add(member.offset as u64)),
        size: member.size as u8,
    };
    let members: Vec<Variable> =
        std::iter::once(bits).chain(BASES.iter().filter_map(|name| record.find(name))).map(member).collect();
    let mut values = kernel.gather(&members)?.into_iter().map(|value| value.unwrap_or(0));
    let bits = values.next().unwrap_or(0);
    let Some(pte) = values.filter(|base| *base != 0).min() else { return Ok(None) };
    let Some(start) = PageTables::new(kernel)?.mapped_by(pte) else { return Ok(None) };
    let length = bits.saturating_mul(2 << 20).min(MAX_RANGE);
    let end = start.checked_add(length).filter(|end| *end > start);
    // The pool of a block is in its own header.
    Ok(end.map(|end| Region { range: start..end, pool: PoolKind::NonPaged, special: true, mixed: false }))
}

/// `_MI_VISIBLE_STATE.SystemVaRegions`, 10 1607 and later.
fn by_region_table(kernel: &Kernel<'_>, notes: &mut Notes) -> Result<Vec<Region>, PoolError> {
    const ENUM: &str = "_MI_ASSIGNED_REGION_TYPES";
    let state = kernel.layout("_MI_VISIBLE_STATE").ok().filter(|state| state.field("SystemVaRegions").is_some());
    let Some(state) = state else { return by_nodes(kernel) };
    let assignment = Record::new(kernel, "_MI_SYSTEM_VA_ASSIGNMENT")?;
    let (base, bytes) = (assignment.member("BaseAddress")?, assignment.member("NumberOfBytes")?);
    let table = state.field("SystemVaRegions").and_then(|field| Some((field.offset, field.array?.0)));
    let Some((offset, count)) = table.filter(|(_, count)| *count <= 64) else {
        notes.missing("this version's table of regions is not known; small blocks were not searched");
        return Ok(Vec::new());
    };
    let pointer = kernel.gather(&[kernel.pointer_variable("MiVisibleState")?])?.remove(0)?;
    let address = kernel.wrap(pointer.wrapping_add(offset));
    let table = read_sparse(kernel.memory, address, count as usize * assignment.size)?;
    let mut regions = Vec::new();
    for (name, pool, special) in [
        ("AssignedRegionNonPagedPool", PoolKind::NonPaged, false),
        ("AssignedRegionPagedPool", PoolKind::Paged, false),
        ("AssignedRegionSpecialPool", PoolKind::NonPaged, true),
        ("AssignedRegionSpecialPoolNonPaged", PoolKind::NonPaged, true),
        ("AssignedRegionSpecialPoolPaged", PoolKind::Paged, true),
    ] {
        let index = kernel.symbols.enum_value(ENUM, name).and_then(|index| usize::try_from(index).ok());
        let Some(index) = index.filter(|index| *index < count as usize) else {
            if !special {
                notes.missing(format!("the symbols of nt do not say which region is {name}; it was not searched"));
            }
            continue;
        };
        let Some(region) = table.get(index * assignment.size, assignment.size) else {
            notes.missing(format!("nt!MiVisibleState's entry of {name} is unreadable; it was not searched"));
            continue;
        };
        let (start, length) = (base.get(region) & !(PAGE_SIZE - 1), bytes.get(region) & !(PAGE_SIZE - 1));
        if length == 0 && special {
            continue;
        }
        if !kernel.is_kernel_range(start, length) || length > MAX_RANGE {
            notes.missing(format!(
                "nt!MiVisibleState gives {name} {length:#x} bytes at {start:016x}, which cannot be; it was not searched"
            ));
            continue;
        }
        regions.push(Region { range: start..start.wrapping_add(length), pool, special, mixed: false });
    }
    Ok(regions)
}

/// x86: the type of each page directory entry's range.
fn by_directory_entry(kernel: &Kernel<'_>, notes: &mut Notes) -> Result<Vec<Region>, PoolError> {
    const ENUM: &str = "_MI_SYSTEM_VA_TYPE";
    let pae = Record::new(kernel, "_MMPTE_HARDWARE").is_ok_and(|entry| entry.size == 8);
    let reach: u64 = if pae { 2 << 20 } else { 4 << 20 };
    let [start] = addresses(kernel, ["MmSystemRangeStart"])?;
    let start = if kernel.is_kernel_address(start) { start } else { 0x8000_0000 };
    let count = ((1u64 << 32) - start) / reach;
    let types = match kernel.find_symbol("MiSystemVaType") {
        Some(address) => Some(address),
        None => {
            let field = kernel.layout("_MI_VISIBLE_STATE").ok();
            let offset = field.and_then(|state| state.field("SystemVaType").map(|field| field.offset));
            match (offset, kernel.pointer_variable("MiVisibleState")) {
                (Some(offset), Ok(variable)) => {
                    let state = kernel.gather(&[variable])?.remove(0)?;
                    Some(kernel.wrap(state.wrapping_add(offset)))
                }
                _ => None,
            }
        }
    };
    let Some(types) = types else {
        notes.missing("the symbols of nt have no MiSystemVaType; small blocks were not searched");
        return Ok(Vec::new());
    };
    let bytes = read_sparse(kernel.memory, types, count as usize)?;
    if !bytes.is_complete() {
        notes.missing("a part of nt!MiSystemVaType is unreadable; what lies there was not searched");
    }
    let value = |name: &str, known: u8| {
        kernel.symbols.enum_value(ENUM, name).and_then(|value| u8::try_from(value).ok()).unwrap_or(known)
    };
    let kinds = [
        (value("MiVaNonPagedPool", 5), PoolKind::NonPaged, false),
        (value("MiVaPagedPool", 6), PoolKind::Paged, false),
        (value("MiVaSpecialPoolNonPaged", 13), PoolKind::NonPaged, true),
        (value("MiVaSpecialPoolPaged", 7), PoolKind::Paged, true),
    ];
    let mut regions: Vec<Region> = Vec::new();
    for (index, kind) in bytes.bytes.iter().enumerate() {
        let Some(&(_, pool, special)) = kinds.iter().find(|(value, ..)| value == kind) else { continue };
        let from = start + index as u64 * reach;
        match regions.last_mut() {
            Some(last) if last.range.end == from && last.pool == pool && last.special == special => {
                last.range.end = from + reach;
            }
            _ => regions.push(Region { range: from..from + reach, pool, special, mixed: false }),
        }
    }
    Ok(regions)
}

/// The pool's own lookaside lists: each processor's, and those that all share.
fn lookasides(kernel: &Kernel<'_>, found: &mut Heaps) -> Result<(), PoolError> {
    let Ok(prcb) = kernel.layout("_KPRCB") else {
        found.notes.missing("the symbols of nt have no type _KPRCB; blocks in lookaside lists look allocated");
        return Ok(());
    };
    let lists = match PoolLists::new(kernel, &prcb) {
        Ok(lists) => lists,
        Err(error) => return Ok(note(&mut found.notes, "blocks in lookaside lists look allocated", error)?),
    };
    let start = lists.arrays.iter().map(|array| array.offset).min();
    let end = lists.arrays.iter().map(|array| array.offset + array.bytes()).max();
    let (Some(start), Some(end)) = (start, end) else { return Ok(()) };
    if end - start > 0x1_0000 {
        return Ok(());
    }
    let blocks = match control_blocks(kernel) {
        Ok(blocks) => blocks,
        Err(error) => return Ok(note(&mut found.notes, "blocks in lookaside lists look allocated", error)?),
    };
    let mut implausible = Vec::new();
    for pointer in blocks.into_iter().filter(|pointer| *pointer != 0) {
        let address = kernel.wrap(pointer.wrapping_add(start));
        if !kernel.is_kernel_range(address, end - start) {
            found.notes.missing(format!("nt!KiProcessorBlock leads to {pointer:016x}, which is no kernel address"));
            continue;
        }
        let bytes = read_sparse(kernel.memory, address, (end - start) as usize)?;
        if !bytes.is_complete() {
            found.notes.missing(format!(
                "lookaside lists of the processor at {pointer:016x} are unreadable; their blocks look allocated"
            ));
        }
        for array in &lists.arrays {
            let offset = (array.offset - start) as usize;
            let part = bytes.bytes[offset..offset + array.bytes() as usize].to_vec();
            let at = kernel.wrap(pointer.wrapping_add(array.offset));
            let part = Sparse { address: at, bytes: part, holes: bytes.holes.clone() };
            let elements = lists.elements(array, at, &part)?;
            found.resting.extend(lists.heads(&elements));
            implausible.extend(elements.implausible);
        }
    }
    found.notes.extend(complaint(&implausible, "blocks in them look allocated"));
    Ok(())
}

/// `_POOL_DESCRIPTOR.PendingFrees`: blocks freed together later still look allocated.
fn pending(kernel: &Kernel<'_>, found: &mut Heaps) -> Result<(), PoolError> {
    let descriptor = match Record::large(kernel, "_POOL_DESCRIPTOR") {
        Ok(descriptor) => descriptor,
        Err(error) => return Ok(note(&mut found.notes, "blocks on deferred-free lists look allocated", error)?),
    };
    let Ok(place) = descriptor.place("PendingFrees") else { return Ok(()) };
    let mut descriptors: Vec<u64> = kernel.find_symbol("NonPagedPoolDescriptor").into_iter().collect();
    let width = u64::from(kernel.pointer_size);
    // As many as there is room for: the number of nonpaged pools does not count those that are not executable, and one
    // paged descriptor more than there are paged pools is for the pool as a whole.
    for name in ["PoolVector", "ExpNonPagedPoolDescriptor", "ExpPagedPoolDescriptor"] {
        let Some(address) = kernel.find_symbol(name) else { continue };
        let count = kernel.room(name).map_or(1, |room| room / width).min(MAX_DESCRIPTORS);
        let pointers = read_sparse(kernel.memory, address, (count * width) as usize)?;
        descriptors.extend(pointers.bytes.chunks_exact(width as usize).map(little_endian));
    }
    descriptors.retain(|address| kernel.is_kernel_address(*address));
    descriptors.sort_unstable();
    descriptors.dedup();
    // Its depth lies near, where the version has one.
    let depth = descriptor.find("PendingFreeDepth");
    let at = |address: &u64, offset: usize| kernel.wrap(address.wrapping_add(offset as u64));
    let first = |address| Variable { address: at(address, place), size: kernel.pointer_size };
    let depths = |address| depth.map(|depth| Variable { address: at(address, depth.offset), size: depth.size as u8 });
    let heads: Vec<Variable> =
        descriptors.iter().flat_map(|address| std::iter::once(first(address)).chain(depths(address))).collect();
    let values = kernel.gather(&heads)?;
    for (descriptor, head) in descriptors.iter().zip(values.chunks(1 + usize::from(depth.is_some()))) {
        if let [Ok(first), Ok(depth)] = head {
            found.books.hold(Book::PendingFrees, (*first == 0) == (*depth == 0), *descriptor);
        }
        match head {
            [Ok(0), ..] => {}
            // The kernel counts a block before or after it is in the list: its depth need not be the list's.
            [Ok(first), ..] => found.resting.push(Head { first: *first, depth: None }),
            _ => found.notes.missing(format!(
                "the pool descriptor at {descriptor:016x} is unreadable; blocks on its deferred-free list look allocated"
            )),
        }
    }
    Ok(())
}
