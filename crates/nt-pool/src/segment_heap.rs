//! The pool of Windows 10 1903 and later (and of 1809 when it is switched on): segment heaps.
//!
//! ```text
//! nt!ExPoolState  _EX_POOL_HEAP_MANAGER_STATE
//!   PoolNode[node].Heaps[0 nonpaged, 1 nonpaged NX, 2 and 3 paged], SpecialHeaps[]  -> _SEGMENT_HEAP
//!     SegContexts[2] (1 MB and 16 MB segments)  SegmentListHead -> _HEAP_PAGE_SEGMENT ...
//!       DescArray[256]: which runs of pages are VS subsegments, LFH subsegments, or one allocation each
//! ```
//!
//! One read per segment says where its blocks are; nothing else of it needs to be looked at to know that.

use std::collections::HashSet;
use std::ops::Range;

use nt_memory::{Fault, ReadError, Sparse, read_sparse};

use crate::build::{WINDOWS_10_1803, WINDOWS_10_1809, WINDOWS_10_1903};
use crate::checks::{Book, Books};
use crate::kernel::{Variable, little_endian};
use crate::lists::{Head, elements, links_at, note, slist_head};
use crate::page_tables;
use crate::readings::{Readings, VsLists};
use crate::record::{Member, Record};
use crate::small_blocks::{self, Area, Content, Kinds};
use crate::vs_lists::VsListsFormat;
use crate::{Kernel, Lack, Missing, Notes, PoolError, PoolKind};

/// `_SEGMENT_HEAP.Signature` (facts: MemProcFS; every build so far).
const HEAP_SIGNATURE: u64 = 0xddee_ddee;

/// `_HEAP_PAGE_RANGE_DESCRIPTOR.TreeSignature` of a run of pages in use.
const TREE_SIGNATURE: u64 = 0xccdd_ccdd;

/// A page segment's signature is its context's address, hidden by its own and the heap key, and by this in the older
/// form (measured: with it up to 19041, without it on 26100). Both are 64 bits wide, so that a false match is no risk,
/// and a build number that is wrong about it would cost every block: either is accepted.
const SEGMENT_SIGNATURE: u64 = 0xa2e6_4ead_a2e6_4ead;

/// `RangeFlags`: 1 in use (every unit), 2 first unit, 4 VS, 8 subsegment. A plain range may have other bits set, too; on
/// 32-bit Windows the byte's upper three bits are something else.
const FLAGS: u64 = 0xf;
const UNIT_IN_USE: u64 = 0x1;
const RANGE: u64 = 0x3;
const SUBSEGMENT: u64 = 0x8;
const LFH: u64 = 0xb;
const VS: u64 = 0xf;

/// The most that one allocation in a segment has, where the types do not say (facts: Bayet and Fariello).
const LARGEST_IN_SEGMENT: u64 = 0x7f_0000;

/// More pool nodes than any kernel's table has; a symbol file that says so is damaged.
const MAX_NODES: u64 = 256;
const MAX_DESCRIPTORS: u64 = 256;

/// Segments lie at multiples of their size.
const SEGMENT_SIZES: [u64; 2] = [1 << 20, 16 << 20];

/// Whether this kernel's pool is a segment heap.
pub fn is_segment_heap(kernel: &Kernel<'_>) -> Result<bool, PoolError> {
    match kernel.build {
        ..WINDOWS_10_1803 => Ok(false),
        WINDOWS_10_1803..WINDOWS_10_1809 => {
            let Some(address) = kernel.find_symbol("ExpHeapBackedPoolEnabled") else { return Ok(false) };
            Ok(kernel.gather(&[Variable { address, size: 1 }])?.remove(0)? != 0)
        }
        WINDOWS_10_1809..WINDOWS_10_1903 => {
            let Some(address) = kernel.find_symbol("ExpHeapBackedPoolEnabledState") else { return Ok(true) };
            Ok(kernel.gather(&[Variable { address, size: 4 }])?.remove(0)? != 0)
        }
        _ => Ok(true),
    }
}

/// What hides the heaps' own data.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Keys {
    pub(crate) heap: Option<u64>,
    pub(crate) lfh: Option<u64>,
}

/// One heap that the pool is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heap {
    pub(crate) address: u64,
    pub(crate) pool: PoolKind,
    pub(crate) special: bool,
}

/// What is known of the heaps before a block is looked at.
#[derive(Debug, Default)]
pub(crate) struct Heaps {
    pub(crate) keys: Keys,
    pub(crate) areas: Vec<Area>,
    /// The lists in which freed blocks wait to be handed out again.
    pub(crate) resting: Vec<Head>,
    /// Pages of the classic pool that are in a page file.
    pub(crate) out: Vec<Range<u64>>,
    /// Pages of its areas that are in transition.
    pub(crate) transition: Vec<Range<u64>>,
    /// What was counted of the heaps' own structures, and how they were read.
    pub(crate) books: Books,
    pub(crate) readings: Readings,
    /// The largest allocation that still lies in a segment.
    pub(crate) largest: u64,
    /// Pages that the segments' descriptors count as committed.
    pub(crate) committed: u64,
    /// Segments of which not all descriptors could be read.
    pub(crate) unknown: Vec<Range<u64>>,
    /// Whether there are more segments than were to be read.
    pub(crate) more: bool,
    /// Why the lists of freed chunks of a heap are not known, for each such heap.
    pub(crate) without_lists: Vec<String>,
    pub(crate) notes: Notes,
}

impl Heaps {
    fn finish(&mut self) {
        self.areas.sort_by_key(|area| area.address);
        self.areas.dedup_by_key(|area| area.address);
        if let Some(first) = self.without_lists.first() {
            let count = self.without_lists.len();
            self.notes.missing(format!(
                "lists of freed chunks of {count} heaps are not known ({first}); freed blocks may look allocated"
            ));
        }
    }
}

/// The run of pages that an address lies in, and what is needed to decode it; two reads per node and one per size of
/// segment.
pub(crate) fn locate(kernel: &Kernel<'_>, address: u64, notes: &mut Notes) -> Result<Option<(Area, Keys)>, PoolError> {
    let mut found = Heaps { keys: keys(kernel)?, ..Heaps::default() };
    let heaps = heaps(kernel, Kinds::ALL, &mut found)?;
    notes.append(&mut found.notes);
    let area = Reader::new(kernel, found.keys)?.locate(address, &heaps)?;
    Ok(area.map(|area| (area, found.keys)))
}

/// The lists of freed blocks of the heaps of a pool; two reads per node and some per heap.
pub(crate) fn lists(kernel: &Kernel<'_>, pool: Option<PoolKind>) -> Result<Heaps, PoolError> {
    let mut found = Heaps { keys: keys(kernel)?, ..Heaps::default() };
    let kinds = Kinds { special: false, ..Kinds::ALL };
    let reader = Reader::new(kernel, found.keys)?;
    for heap in heaps(kernel, kinds, &mut found)? {
        if pool.is_some_and(|pool| pool != heap.pool) {
            continue;
        }
        let what = format!("the lists of freed chunks of the heap at {:016x}", heap.address);
        match reader.heap.read(heap.address) {
            Ok(bytes) => {
                if let Err(error) = reader.lists(heap, &bytes, &mut found) {
                    note(&mut found.notes, &what, error)?;
                }
            }
            Err(error) => note(&mut found.notes, &what, error)?,
        }
    }
    Ok(found)
}

/// Reads the roots, the heaps and the segments' descriptors: of all segments, if about so many requests are enough for
/// that, else of the first ones of each size and heap.
pub(crate) fn read(kernel: &Kernel<'_>, kinds: Kinds, requests: u64) -> Result<Heaps, PoolError> {
    let mut found = Heaps { keys: keys(kernel)?, ..Heaps::default() };
    if found.keys.heap.is_none() || found.keys.lfh.is_none() {
        found.notes.missing(
            "the heap's keys (nt!RtlpHpHeapGlobals) could not be read; blocks in VS and LFH subsegments are missing",
        );
    }
    let mut reader = Reader::new(kernel, found.keys)?;
    let heaps = heaps(kernel, kinds, &mut found)?;
    let each = small_blocks::requests(kernel.memory, reader.segment_size as u64);
    reader.most = (requests / (each * reader.contexts.count * heaps.len() as u64).max(1)).max(1);
    let began = kernel.memory.spent();
    for heap in heaps {
        if kernel.memory.spent().since(began).requests > requests {
            found.more = true;
            break;
        }
        reader.heap(heap, &mut found)?;
    }
    found.finish();
    Ok(found)
}

/// As [`read`], of heaps that the pool's nodes do not lead to.
pub(crate) fn read_these(kernel: &Kernel<'_>, heaps: &[Heap]) -> Result<Heaps, PoolError> {
    let mut found = Heaps { keys: keys(kernel)?, ..Heaps::default() };
    let reader = Reader::new(kernel, found.keys)?;
    for heap in heaps.iter().filter(|heap| kernel.is_kernel_address(heap.address)) {
        reader.heap(*heap, &mut found)?;
    }
    found.finish();
    Ok(found)
}

fn keys(kernel: &Kernel<'_>) -> Result<Keys, PoolError> {
    // Where the symbols have no such type: the keys are its first two members in every build (facts 5.2).
    let width = usize::from(kernel.pointer_size);
    let globals = Record::new(kernel, "_RTLP_HP_HEAP_GLOBALS").ok();
    let place = |name: &str, known: usize| match &globals {
        Some(globals) => globals.place(name),
        None => Ok(known),
    };
    let (heap, lfh) = (place("HeapKey", 0)?, place("LfhKey", width)?);
    let address = match kernel.find_symbol("RtlpHpHeapGlobals") {
        Some(address) => address,
        // The heap manager's first member leads there.
        None => match kernel.gather(&[kernel.pointer_variable("ExPoolState")?])?.remove(0) {
            Ok(address) if kernel.is_kernel_address(address) => address,
            _ => return Ok(Keys::default()),
        },
    };
    let key = |offset: usize| Variable {
        address: kernel.wrap(address.wrapping_add(offset as u64)),
        size: kernel.pointer_size,
    };
    let mut values = kernel.gather(&[key(heap), key(lfh)])?.into_iter().map(Result::ok);
    let mut next = || values.next().flatten();
    Ok(Keys { heap: next(), lfh: next() })
}

/// Where an array lies in a structure that is too large to be read at once.
struct Array {
    offset: u64,
    count: u64,
    element: u64,
}

fn array(kernel: &Kernel<'_>, type_name: &str, member: &str) -> Result<Array, PoolError> {
    let layout = kernel.layout(type_name)?;
    let missing = || PoolError::NoField { type_name: type_name.into(), member: member.into() };
    let field = layout.field(member).ok_or_else(missing)?;
    let (count, element) = field.array.ok_or_else(missing)?;
    let inside = count.checked_mul(element).and_then(|size| size.checked_add(field.offset));
    if inside.is_none_or(|end| end > layout.size) || element == 0 {
        return Err(missing());
    }
    Ok(Array { offset: field.offset, count: count.min(MAX_NODES), element })
}

/// The heaps of the wanted kinds, each once; reads the roots.
fn heaps(kernel: &Kernel<'_>, kinds: Kinds, found: &mut Heaps) -> Result<Vec<Heap>, PoolError> {
    const STATE: &str = "_EX_POOL_HEAP_MANAGER_STATE";
    let state = kernel.symbol("ExPoolState")?;
    let at = |offset: u64| kernel.wrap(state.wrapping_add(offset));
    let nodes = array(kernel, STATE, "PoolNode")?;
    let node = Record::large(kernel, "_EX_HEAP_POOL_NODE")?;
    let heaps = node.member("Heaps")?;
    let layout = kernel.layout(STATE)?;
    let count = layout.field("NumberOfPools").map(|field| Variable { address: at(field.offset), size: 4 });
    let nodes_used = match count {
        Some(count) => match kernel.gather(&[count])?.remove(0) {
            Ok(count) if (1..=nodes.count).contains(&count) => count,
            count => {
                let count = count.map_or("cannot be read".into(), |count| format!("is {count:#x}"));
                found.notes.missing(format!(
                    "nt!ExPoolState.NumberOfPools {count}; all {} nodes were looked at instead",
                    nodes.count
                ));
                nodes.count
            }
        },
        None => nodes.count,
    };
    let mut seen = HashSet::new();
    let mut list = Vec::new();
    let mut add = |address: u64, index: usize, special: bool, notes: &mut Notes| {
        let (pool, wanted) = match index {
            0 => (PoolKind::NonPaged, kinds.nonpaged),
            1 => (PoolKind::NonPagedNx, kinds.nonpaged),
            _ => (PoolKind::Paged, kinds.paged),
        };
        let wanted = if special { kinds.special } else { wanted };
        if address == 0 || !wanted {
            return;
        }
        if !kernel.is_kernel_address(address) {
            notes.missing(format!("nt!ExPoolState leads to a heap at {address:016x}, which is no kernel address"));
        } else if seen.insert(address) {
            list.push(Heap { address, pool, special });
        }
    };
    if kinds.nonpaged || kinds.paged {
        let lookasides = match Lookasides::new(kernel) {
            Ok(lookasides) => Some(lookasides),
            Err(error) => {
                note(
                    &mut found.notes,
                    "the heaps' lookaside lists are not known; freed blocks may look allocated",
                    error,
                )?;
                None
            }
        };
        for index in 0..nodes_used {
            let address = at(nodes.offset + index * nodes.element);
            let bytes = read_sparse(kernel.memory, address, node.size)?;
            let Some(pointers) = bytes.get(heaps.offset, heaps.count * heaps.size) else {
                found
                    .notes
                    .missing(format!("pool node {index} at {address:016x} is unreadable; its heaps are missing"));
                continue;
            };
            for (kind, pointer) in pointers.chunks_exact(heaps.size).enumerate() {
                add(kernel.wrap(little_endian(pointer)), kind, false, &mut found.notes);
            }
            match &lookasides {
                Some(lookasides) if bytes.is_complete() => {
                    found.resting.extend(lookasides.heads(kernel, &bytes.bytes));
                    lookasides.balance(&bytes.bytes, address, &mut found.books);
                }
                Some(_) => found.notes.missing(format!(
                    "the lookaside lists of pool node {index} are unreadable; freed blocks may look allocated"
                )),
                None => {}
            }
        }
    }
    if kinds.special {
        let width = u64::from(kernel.pointer_size);
        let variables: Vec<Variable> = match array(kernel, STATE, "SpecialHeaps") {
            Ok(special) => (0..special.count)
                .map(|index| Variable { address: at(special.offset + index * width), size: kernel.pointer_size })
                .collect(),
            Err(error) => {
                note(&mut found.notes, "special heaps are missing", error)?;
                Vec::new()
            }
        };
        for (index, pointer) in kernel.gather(&variables)?.into_iter().enumerate() {
            match pointer {
                Ok(pointer) => add(kernel.wrap(pointer), index, true, &mut found.notes),
                Err(error) => note(&mut found.notes, "special heaps", error)?,
            }
        }
    }
    Ok(list)
}

/// `_EX_HEAP_POOL_NODE.Lookasides`: blocks freed to one keep their chunk's allocated mark.
struct Lookasides {
    lookasides: Array,
    buckets: Array,
    list_head: u64,
    /// Which of the lists are on, and how many.
    enabled: Option<(Member, Member)>,
}

impl Lookasides {
    fn new(kernel: &Kernel<'_>) -> Result<Self, PoolError> {
        let lists = Lookasides {
            lookasides: array(kernel, "_EX_HEAP_POOL_NODE", "Lookasides")?,
            buckets: array(kernel, "_RTL_DYNAMIC_LOOKASIDE", "Buckets")?,
            list_head: Record::new(kernel, "_RTL_LOOKASIDE").and_then(|list| list.place("ListHead")).unwrap_or(0)
                as u64,
            enabled: Record::large(kernel, "_RTL_DYNAMIC_LOOKASIDE")
                .ok()
                .and_then(|list| list.find("EnabledBucketBitmap").zip(list.find("ActiveBucketCount"))),
        };
        // The processor wants two pointers in one piece.
        let first = lists.lookasides.offset + lists.buckets.offset + lists.list_head;
        match first % (2 * u64::from(kernel.pointer_size)) {
            0 => Ok(lists),
            _ => Err(PoolError::Unlikely(format!(
                "the symbols of nt have the first list's head at {first:#x} of _EX_HEAP_POOL_NODE, where none can be"
            ))),
        }
    }

    /// Whether as many lists are on as each lookaside says.
    fn balance(&self, node: &[u8], address: u64, books: &mut Books) {
        let Some((enabled, active)) = self.enabled else { return };
        for lookaside in 0..self.lookasides.count {
            let at = (self.lookasides.offset + lookaside * self.lookasides.element) as usize;
            let Some(record) = node.get(at..).filter(|record| record.len() >= enabled.end().max(active.end())) else {
                continue;
            };
            books.count(Book::ActiveLists, active.get(record), enabled.get(record).count_ones().into(), address);
        }
    }

    /// The lists that are not empty.
    fn heads(&self, kernel: &Kernel<'_>, node: &[u8]) -> Vec<Head> {
        let Lookasides { lookasides, buckets, list_head, .. } = self;
        let lists = (0..lookasides.count).flat_map(|lookaside| {
            let at = lookasides.offset + lookaside * lookasides.element + buckets.offset + list_head;
            (0..buckets.count).map(move |bucket| at + bucket * buckets.element)
        });
        let head = |at: u64| slist_head(kernel, node, usize::try_from(at).ok()?).filter(|head| !head.is_empty());
        lists.filter_map(head).collect()
    }
}

/// What was counted of one segment.
#[derive(Debug, Default)]
struct Counted {
    /// First descriptors of runs in use, and those of them that make no sense.
    ranges: u64,
    damaged: u64,
    unreadable: u64,
    /// Units whose descriptor says that they are in use, and those that the runs have together.
    units_in_use: u64,
    units: u64,
    /// Pages.
    committed: u64,
}

/// What is needed of the heaps' types.
struct Reader<'k> {
    kernel: &'k Kernel<'k>,
    keys: Keys,
    heap: Record<'k>,
    heap_signature: Member,
    contexts: Array,
    vs_lists: Result<VsListsFormat, PoolError>,
    stats: Option<Member>,
    context: Record<'k>,
    unit_shift: Member,
    first_descriptor: Member,
    list_head: usize,
    list_entry: usize,
    segment_size: usize,
    segment_signature: Variable,
    descriptors: Array,
    tree_signature: Member,
    range_flags: Member,
    committed: Option<Member>,
    largest: Option<Member>,
    segment_count: Option<Member>,
    unit_size: Member,
    /// So many segments of a context are read.
    most: u64,
}

impl<'k> Reader<'k> {
    fn new(kernel: &'k Kernel<'k>, keys: Keys) -> Result<Self, PoolError> {
        let heap = Record::new(kernel, "_SEGMENT_HEAP")?;
        let context = Record::new(kernel, "_HEAP_SEG_CONTEXT")?;
        let segment = Record::large(kernel, "_HEAP_PAGE_SEGMENT")?;
        let descriptor = Record::new(kernel, "_HEAP_PAGE_RANGE_DESCRIPTOR")?;
        let descriptors = array(kernel, "_HEAP_PAGE_SEGMENT", "DescArray")?;
        let signature = segment.member("Signature")?;
        if descriptors.element < descriptor.size as u64 {
            return Err(PoolError::Unlikely(format!(
                "the symbols of nt give a descriptor of _HEAP_PAGE_SEGMENT {:#x} bytes, and its type {:#x}; the symbol \
                 file is damaged",
                descriptors.element, descriptor.size
            )));
        }
        Ok(Reader {
            kernel,
            keys,
            heap_signature: heap.member("Signature")?,
            contexts: array(kernel, "_SEGMENT_HEAP", "SegContexts")?,
            vs_lists: VsListsFormat::new(kernel, &heap),
            stats: heap.find("MemStats.TotalCommittedPages"),
            heap,
            unit_shift: context.member("UnitShift")?,
            first_descriptor: context.member("FirstDescriptorIndex")?,
            list_head: context.place("SegmentListHead")?,
            // First in every build so far, as the lists' heads are.
            list_entry: segment.place("ListEntry").unwrap_or(0),
            largest: context.find("MaxAllocationSize"),
            segment_count: context.find("SegmentCount"),
            context,
            segment_size: segment.size,
            segment_signature: Variable { address: signature.offset as u64, size: signature.size as u8 },
            descriptors,
            tree_signature: descriptor.member("TreeSignature")?,
            range_flags: descriptor.find("RangeFlags").map_or_else(|| descriptor.member("RangeFlagBits"), Ok)?,
            committed: descriptor.find("CommittedPageCount"),
            unit_size: descriptor.member("UnitSize")?,
            most: u64::MAX,
        })
    }

    fn heap(&self, heap: Heap, found: &mut Heaps) -> Result<(), Fault> {
        let what = format!("the heap at {:016x}", heap.address);
        let bytes = match self.heap.read(heap.address) {
            Ok(bytes) => bytes,
            Err(error) => return note(&mut found.notes, &format!("{what} is missing"), error),
        };
        let signature = self.heap_signature.get(&bytes);
        if signature != HEAP_SIGNATURE {
            found.books.hold(Book::HeapSignatures, false, heap.address);
            found
                .notes
                .missing(format!("{what} has the signature {signature:#x}, not {HEAP_SIGNATURE:#x}; it is missing"));
            return Ok(());
        }
        found.books.hold(Book::HeapSignatures, true, heap.address);
        match self.lists(heap, &bytes, found) {
            Ok(lists) => found.readings.merge(&Readings { vs_lists: lists, ..Readings::default() }),
            Err(error) => found.without_lists.push(error.local()?.to_string()),
        }
        let committed = found.committed;
        for index in 0..self.contexts.count {
            let offset = self.contexts.offset + index * self.contexts.element;
            let end = offset as usize + self.context.size;
            let Some(context) = bytes.get(offset as usize..end) else { continue };
            let largest = self.largest.map_or(LARGEST_IN_SEGMENT, |member| member.get(context));
            found.largest = found.largest.max(largest);
            self.context(heap, self.kernel.wrap(heap.address.wrapping_add(offset)), context, found)?;
        }
        // Large allocations have pages of their own, which no descriptor counts.
        let expected = self.stats.map_or(0, |stats| stats.get(&bytes));
        let counted = found.committed - committed;
        if expected > 0 && counted > 0 && !found.more {
            found.books.count(Book::HeapCommittedPages, expected, counted, heap.address);
        }
        Ok(())
    }

    /// Adds the lists of freed VS chunks.
    fn lists(&self, heap: Heap, bytes: &[u8], found: &mut Heaps) -> Result<VsLists, PoolError> {
        match &self.vs_lists {
            Ok(format) => format.heads(self.kernel, heap.address, bytes, &mut found.resting),
            Err(error) => Err(PoolError::Unlikely(error.to_string())),
        }
    }

    /// The segments of one size.
    fn context(&self, heap: Heap, address: u64, context: &[u8], found: &mut Heaps) -> Result<(), Fault> {
        let width = usize::from(self.kernel.pointer_size);
        let head = self.kernel.wrap(address.wrapping_add(self.list_head as u64));
        let first = context.get(self.list_head..self.list_head + width).map_or(0, little_endian);
        if first == 0 || first == head {
            return Ok(());
        }
        let unit_shift = self.unit_shift.get(context);
        if !self.is_size(unit_shift) {
            found.notes.missing(format!(
                "the segments of {address:016x} have {:#x} parts of 2^{unit_shift} bytes, which cannot be; they are missing",
                self.descriptors.count
            ));
            return Ok(());
        }
        let first_descriptor = self.first_descriptor.get(context);
        let what = format!("segments of {address:016x}");
        let Heaps { areas, notes, books, readings, committed, more, unknown, .. } = found;
        let mut taken = 0;
        let walked = elements(self.kernel, &what, head, notes, &mut |link, notes| {
            let segment = self.kernel.wrap(link.wrapping_sub(self.list_entry as u64));
            // A segment of paged pool may be in transition itself.
            let mut out = Vec::new();
            let bytes = page_tables::read_telling(self.kernel, segment, self.segment_size, &mut out)?;
            let whole = segment..segment.saturating_add(self.descriptors.count << unit_shift);
            if bytes.get(self.list_entry, 2 * width).is_none() {
                unknown.push(whole);
                return Err(PoolError::Unlikely(format!("the segment at {segment:016x} is unreadable")));
            }
            let mut links = links_at(self.kernel, &bytes.bytes, self.list_entry);
            taken += 1;
            if taken >= self.most && links[0] != head {
                *more = true;
                // As if the list ended here.
                links = [head; 2];
            }
            let signature = self.segment_signature;
            let signature = bytes.get(signature.address as usize, signature.size.into()).map_or(0, little_endian);
            let [older, newer] = self.signed(segment, signature).map(|context| context == Some(address));
            readings.segment_signature.add(older, newer);
            books.hold(Book::SegmentSignatures, self.keys.heap.is_none() || older || newer, segment);
            if self.keys.heap.is_some() && !older && !newer {
                notes.missing(format!(
                    "the segment at {segment:016x} does not have the signature of its heap; its blocks are missing"
                ));
                return Ok(((), links));
            }
            let counted = self.areas(heap, segment, &bytes, unit_shift, first_descriptor, areas);
            *committed += counted.committed;
            books.count(Book::RangeDescriptors, counted.ranges, counted.ranges - counted.damaged, segment);
            books.count(Book::RangeUnits, counted.units_in_use, counted.units, segment);
            if counted.unreadable > 0 {
                unknown.push(whole);
            }
            let (lost, damaged) = match out.is_empty() {
                true => (0, counted.damaged + counted.unreadable),
                false => (counted.unreadable, counted.damaged),
            };
            if lost > 0 {
                let what = format!(
                    "{lost} descriptors of the segment at {segment:016x} are in a page file; the blocks of the pages that \
                     they describe are missing"
                );
                notes.missing(Missing::because(Lack::PagedOut, what).at(segment).count(lost));
            }
            if damaged > 0 {
                let what = format!(
                    "{damaged} descriptors of the segment at {segment:016x} are damaged or unreadable; the pages that \
                     they describe are missing"
                );
                notes.missing(Missing::because(Lack::Damaged, what).at(segment).count(damaged));
            }
            Ok(((), links))
        });
        match walked {
            Ok(walked) => {
                if let Some(count) = self.segment_count.filter(|_| !*more) {
                    books.count(Book::Segments, count.get(context), walked.len() as u64, address);
                }
                Ok(())
            }
            Err(error) => note(notes, &what, error),
        }
    }

    /// Adds a segment's runs of pages in use.
    fn areas(
        &self,
        heap: Heap,
        segment: u64,
        bytes: &Sparse,
        unit_shift: u64,
        first: u64,
        areas: &mut Vec<Area>,
    ) -> Counted {
        let mut counted = Counted::default();
        let last = self.descriptors.count.min(MAX_DESCRIPTORS);
        // The end of the run that is being counted.
        let mut run = first;
        for descriptor in first..last {
            let offset = self.descriptors.offset + descriptor * self.descriptors.element;
            let Some(record) = bytes.get(offset as usize, self.descriptors.element as usize) else {
                counted.unreadable += 1;
                continue;
            };
            let flags = self.range_flags.get(record) & FLAGS;
            counted.units_in_use += flags & UNIT_IN_USE;
            counted.committed += self.committed.map_or(0, |member| member.get(record));
            if descriptor < run {
                continue;
            }
            let content = match flags {
                LFH => Content::Lfh,
                VS => Content::Vs,
                flags if flags & RANGE != RANGE || flags & SUBSEGMENT != 0 => continue,
                _ if heap.special => Content::SpecialRange,
                _ => Content::Range,
            };
            counted.ranges += 1;
            let units = self.unit_size.get(record);
            let fits = units > 0 && descriptor + units <= self.descriptors.count;
            if !fits || self.tree_signature.get(record) != TREE_SIGNATURE {
                counted.damaged += 1;
                continue;
            }
            run = descriptor + units;
            counted.units += units;
            areas.push(Area {
                address: self.kernel.wrap(segment.wrapping_add(descriptor << unit_shift)),
                length: units << unit_shift,
                unit: 1 << unit_shift,
                pool: heap.pool,
                content,
            });
        }
        counted
    }

    /// The run of pages that an address lies in, from the segment that must be below it.
    fn locate(&self, address: u64, heaps: &[Heap]) -> Result<Option<Area>, Fault> {
        let Some(owner) = self.context.find("Heap") else { return Ok(None) };
        for size in SEGMENT_SIZES {
            let segment = address & !(size - 1);
            let bytes = read_sparse(self.kernel.memory, segment, self.segment_size)?;
            let place = self.segment_signature;
            let Some(signature) = bytes.get(place.address as usize, place.size.into()).map(little_endian) else {
                continue;
            };
            let contexts = self.signed(segment, signature).into_iter().flatten();
            for context in contexts.filter(|context| self.kernel.is_kernel_address(*context)) {
                let context = match self.context.read(context) {
                    Ok(context) => context,
                    Err(ReadError::Fault(fault)) => return Err(fault),
                    Err(ReadError::Hole { .. }) => continue,
                };
                let unit_shift = self.unit_shift.get(&context);
                let owner = owner.get(&context);
                let Some(heap) = heaps.iter().find(|heap| heap.address == owner) else { continue };
                if !self.is_size(unit_shift) || self.descriptors.count << unit_shift != size {
                    continue;
                }
                let mut areas = Vec::new();
                self.areas(*heap, segment, &bytes, unit_shift, self.first_descriptor.get(&context), &mut areas);
                return Ok(areas.into_iter().find(|area| address.wrapping_sub(area.address) < area.length));
            }
        }
        Ok(None)
    }

    /// Whether segments whose parts have this size are of a size that segments have.
    fn is_size(&self, unit_shift: u64) -> bool {
        unit_shift <= 24 && SEGMENT_SIZES.contains(&(self.descriptors.count << unit_shift))
    }

    /// The context that a segment's signature hides, in the older form and in the newer one; nothing without the key.
    fn signed(&self, segment: u64, signature: u64) -> [Option<u64>; 2] {
        [SEGMENT_SIGNATURE, 0].map(|hidden| Some(self.kernel.wrap(signature ^ segment ^ self.keys.heap? ^ hidden)))
    }
}
