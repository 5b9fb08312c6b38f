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

use nt_memory::{Fault, PAGE_SIZE, ReadError, Sparse, read_sparse};
use nt_symbols::Layout;

use crate::checks::{Book, Books, Check};
use crate::kernel::{Variable, little_endian};
use crate::lists::{Head, follow, links_at, note, slist_head};
use crate::record::Record;
use crate::tags::processors;
use crate::{Kernel, Lack, Missing, Notes, PoolError, Tag};

/// One lookaside list, `_GENERAL_LOOKASIDE`: freed blocks of one size that wait for the next allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookaside {
    /// Of its structure.
    pub address: u64,
    /// Of its blocks.
    pub tag: Tag,
    /// Of one block.
    pub size: u64,
    /// POOL_TYPE that its blocks are allocated with.
    pub pool_type: u32,
    /// Blocks that wait in the list now.
    pub current_depth: u64,
    /// How many may wait.
    pub depth: u64,
    /// The most that [`Lookaside::depth`] may grow to.
    pub maximum_depth: u64,
    /// Allocations asked of it, since the machine started.
    pub total_allocates: u64,
    /// Those that found it empty and went on to the pool.
    pub allocate_misses: u64,
    /// Frees given to it.
    pub total_frees: u64,
    /// Those that found it full and went on to the pool.
    pub free_misses: u64,
    /// How it was found.
    pub place: Place,
}

/// Where a list was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At an address that was given.
    Given,
    /// On the kernel's own list of the lists that drivers made.
    Registered,
    /// `_KPRCB.member[index]`: the pool's own, for blocks of `index` + 1 allocation units.
    Pool {
        /// Whose KPRCB.
        processor: u32,
        /// `PPNPagedLookasideList` and its like.
        member: &'static str,
        /// Which of the member's elements.
        index: u32,
    },
    /// `_KPRCB.PPLookasideList[index]`: that processor's own, or the one that all of them share.
    System {
        /// Whose KPRCB.
        processor: u32,
        /// Which element: the kind of object that it serves.
        index: u32,
        /// It is the one of all processors.
        shared: bool,
    },
}

/// The lookaside lists that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookasides {
    /// In the order in which they were found.
    pub lists: Vec<Lookaside>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
    /// Registered lists: whether their links back go with those forward. A processor's: whether they are plausible.
    pub checks: Vec<Check>,
}

/// The list at `address`.
pub fn read(kernel: &Kernel<'_>, address: u64) -> Result<Lookaside, PoolError> {
    let record = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
    let bytes = record.read(address)?;
    decode(kernel, &record, address, &bytes, Place::Given)
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
    let mut found = Lookasides::default();
    let mut books = Books::default();
    for name in ["ExNPagedLookasideListHead", "ExPagedLookasideListHead"] {
        let head = kernel.pointer_variable(name)?;
        let first = match kernel.gather(&[head])?.remove(0) {
            Ok(first) => first,
            Err(error) => {
                note(&mut found.notes, name, error)?;
                continue;
            }
        };
        let Lookasides { lists, notes, .. } = &mut found;
        let mut before = head.address;
        follow(kernel, name, kernel.wrap(first), head.address, notes, &mut |at, _| {
            let address = kernel.wrap(at.wrapping_sub(entry as u64));
            let bytes = record.read(address)?;
            lists.push(decode(kernel, &record, address, &bytes, Place::Registered)?);
            let [next, back] = links_at(kernel, &bytes, entry).map(|link| kernel.wrap(link));
            books.hold(Book::ListLinks, back == before, address);
            before = at;
            Ok(next)
        })?;
    }
    found.checks = books.checks();
    Ok(found)
}

/// An array of the pool's own lists in `_KPRCB`.
pub(crate) struct Array {
    pub(crate) member: &'static str,
    pub(crate) offset: u64,
    count: u64,
    /// Bytes of one element: the type's own size.
    size: u64,
    /// Each element is a pair of pointers to lists (`_PP_LOOKASIDE_LIST`).
    pairs: bool,
}

impl Array {
    pub(crate) fn bytes(&self) -> u64 {
        self.count * self.size
    }
}

/// What lists of the pool are made of, by this kernel's types.
pub(crate) struct PoolLists<'k> {
    kernel: &'k Kernel<'k>,
    /// An element of an array, and a list that a pointer leads to.
    pool: Record<'k>,
    general: Record<'k>,
    pub(crate) arrays: Vec<Array>,
}

/// The lists of one array that are plausible as a whole, and the others.
#[derive(Default)]
pub(crate) struct Elements {
    /// Index, address, bytes.
    lists: Vec<(u32, u64, Vec<u8>)>,
    /// Whether the lists are those that pointers led to.
    by_pointer: bool,
    pub(crate) implausible: Vec<u64>,
}

/// Blocks of the pool's own lists are smaller than a page, and the lists are not longer than this.
const MAX_DEPTH: u64 = 0x1000;

impl<'k> PoolLists<'k> {
    pub(crate) fn new(kernel: &'k Kernel<'k>, prcb: &Layout) -> Result<Self, PoolError> {
        const LISTS: [&str; 3] = ["PPNPagedLookasideList", "PPPagedLookasideList", "PPNxPagedLookasideList"];
        let pool = Record::new(kernel, "_GENERAL_LOOKASIDE_POOL")?;
        let general = Record::new(kernel, "_GENERAL_LOOKASIDE")?;
        let pair = 2 * u64::from(kernel.pointer_size);
        let array = |member: &'static str| {
            let field = prcb.field(member)?;
            let (count, element) = field.array?;
            let pairs = field.type_name == "_PP_LOOKASIDE_LIST" || element == pair;
            let size = if pairs { pair } else { pool.size as u64 };
            Some(Array { member, offset: field.offset, count, size, pairs })
        };
        let plausible = |array: &Array| array.count <= 64 && array.offset < 1 << 20;
        let arrays = LISTS.into_iter().filter_map(array).filter(plausible).collect();
        Ok(PoolLists { kernel, pool, general, arrays })
    }

    /// The lists of an array that lies at `start`, and whose bytes are `bytes`. Where hardly any element is a list, the
    /// elements may be pairs of pointers to lists after all.
    pub(crate) fn elements(&self, array: &Array, start: u64, bytes: &Sparse) -> Result<Elements, Fault> {
        if array.pairs {
            return self.by_pointers(array, bytes);
        }
        let mut found = Elements::default();
        for index in 0..array.count {
            let Some(list) = bytes.get((index * array.size) as usize, self.pool.size) else { continue };
            let address = self.kernel.wrap(start.wrapping_add(index * array.size));
            match self.is_list(&self.pool, list) {
                true => found.lists.push((index as u32, address, list.to_vec())),
                false => found.implausible.push(address),
            }
        }
        // What is all zeros was never set up, and is no sign of anything.
        let set_up = found.lists.iter().filter(|(.., list)| list.iter().any(|byte| *byte != 0)).count();
        if found.implausible.len() <= set_up {
            return Ok(found);
        }
        let instead = self.by_pointers(array, bytes)?;
        Ok(if instead.lists.len() > set_up { instead } else { found })
    }

    fn by_pointers(&self, array: &Array, bytes: &Sparse) -> Result<Elements, Fault> {
        let width = usize::from(self.kernel.pointer_size);
        let mut found = Elements { by_pointer: true, ..Elements::default() };
        for at in 0..2 * array.count as usize {
            let Some(pointer) = bytes.get(at * width, width).map(little_endian) else { continue };
            if !self.kernel.is_kernel_address(pointer) || found.lists.iter().any(|(_, known, _)| *known == pointer) {
                found.implausible.extend((pointer != 0 && !self.kernel.is_kernel_address(pointer)).then_some(pointer));
                continue;
            }
            match self.general.read(pointer) {
                Ok(list) if self.is_list(&self.general, &list) => found.lists.push((at as u32 / 2, pointer, list)),
                Ok(_) | Err(ReadError::Hole { .. }) => found.implausible.push(pointer),
                Err(ReadError::Fault(fault)) => return Err(fault),
            }
            // Nothing here is a list.
            if found.lists.is_empty() && found.implausible.len() > 4 {
                break;
            }
        }
        Ok(found)
    }

    /// Whether a list is plausible as a whole: its blocks' size, how many wait and may wait, and where the first is. One
    /// that was never set up is.
    fn is_list(&self, record: &Record<'_>, bytes: &[u8]) -> bool {
        let number = |name: &str| record.find(name).map_or(0, |member| member.get(bytes));
        let (size, depth, most) = (number("Size"), number("Depth"), number("MaximumDepth"));
        let head = head(self.kernel, record, bytes);
        let (first, waiting) = head.map_or((0, 0), |head| (head.first, head.depth.unwrap_or(0)));
        if (size, depth, most, first, waiting) == (0, 0, 0, 0, 0) {
            return true;
        }
        (1..=PAGE_SIZE).contains(&size)
            && depth <= MAX_DEPTH
            && most <= MAX_DEPTH
            && waiting <= MAX_DEPTH
            && (first == 0) == (waiting == 0)
            && (first == 0 || self.kernel.is_kernel_address(first))
    }

    /// Those of some lists in which blocks wait.
    pub(crate) fn heads(&self, elements: &Elements) -> Vec<Head> {
        let record = if elements.by_pointer { &self.general } else { &self.pool };
        let heads = elements.lists.iter().filter_map(|(.., bytes)| head(self.kernel, record, bytes));
        heads.filter(|head| !head.is_empty()).collect()
    }
}

/// A list's first block, and how many wait in it.
fn head(kernel: &Kernel<'_>, record: &Record<'_>, bytes: &[u8]) -> Option<Head> {
    slist_head(kernel, bytes, record.place("ListHead").ok()?)
}

/// Lists that make no sense, as one line for all of them.
pub(crate) fn complaint(implausible: &[u64], consequence: &str) -> Option<Missing> {
    let first = implausible.first()?;
    let count = implausible.len();
    let what = format!(
        "{count} of the pool's lookaside lists have a size, a depth or a link that cannot be (the first at \
         {first:016x}); {consequence}"
    );
    Some(Missing::because(Lack::Damaged, what).at(*first).count(count as u64))
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
    let pool = PoolLists::new(kernel, &prcb)?;
    let general = &pool.general;
    let width = u64::from(kernel.pointer_size);
    // P and L: two pointers in every version.
    let system = prcb.field("PPLookasideList").and_then(|field| Some((field.offset, field.array?.0.min(64))));
    let mut found = Lookasides::default();
    let mut seen = HashSet::new();
    let mut implausible = Vec::new();
    for (number, prcb) in control_blocks(kernel)?.into_iter().enumerate() {
        let processor = number as u32;
        if prcb == 0 || wanted.is_some_and(|wanted| wanted != processor) {
            continue;
        }
        for array in &pool.arrays {
            let start = kernel.wrap(prcb.wrapping_add(array.offset));
            if !kernel.is_kernel_range(start, array.bytes()) {
                found.notes.missing(format!("nt!KiProcessorBlock leads to {prcb:016x}, which is no kernel address"));
                break;
            }
            let member = array.member;
            let bytes = read_sparse(kernel.memory, start, array.bytes() as usize)?;
            if !bytes.is_complete() {
                found.notes.missing(format!("{member} of processor {processor} cannot be read"));
            }
            let elements = pool.elements(array, start, &bytes)?;
            let record = if elements.by_pointer { general } else { &pool.pool };
            implausible.extend(elements.implausible);
            for (index, address, list) in elements.lists {
                if !elements.by_pointer || seen.insert(address) {
                    let place = Place::Pool { processor, member, index };
                    found.lists.push(decode(kernel, record, address, &list, place)?);
                }
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
                Ok(bytes) => found.lists.push(decode(kernel, general, address, &bytes, place)?),
                Err(error) => note(&mut found.notes, "a list of the system", error)?,
            }
        }
    }
    let sound = found.lists.iter().filter(|list| matches!(list.place, Place::Pool { .. })).count() as u64;
    let all = sound + implausible.len() as u64;
    found.checks = vec![Check::new(Book::FreedLists, all, sound, implausible.first().copied().unwrap_or(0))];
    found.notes.extend(complaint(&implausible, "they are not shown"));
    Ok(found)
}

fn decode(
    kernel: &Kernel<'_>,
    record: &Record<'_>,
    address: u64,
    bytes: &[u8],
    place: Place,
) -> Result<Lookaside, PoolError> {
    let number = |name: &str| record.member(name).map(|member| member.get(bytes));
    record.place("ListHead")?;
    let waiting = head(kernel, record, bytes).and_then(|head| head.depth).unwrap_or(0);
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
        current_depth: waiting,
        depth: number("Depth")?,
        maximum_depth: number("MaximumDepth")?,
        total_allocates,
        allocate_misses,
        total_frees,
        free_misses,
        place,
    })
}
