//! Segments of a heap, and the ranges of pages in them: the descriptors in memory, which change while the machine runs.

use crate::isf::IsfError;
use crate::kernel::Mutation;
use crate::kernel::books::PoolKind;
use crate::kernel::builder::{Builder, Place};
use crate::kernel::memory::Memory;
use crate::kernel::rules::Rules;

/// Bits of a unit's size, by context: 1 MiB of 4 KiB units, or 16 MiB of 64 KiB units.
pub(crate) const SHIFT: [u32; 2] = [12, 16];
pub(crate) const SEGMENT_UNITS: u64 = 256;
/// Largest block of each context.
pub(crate) const MOST: [u64; 2] = [0x7_f000, 0x7f_0000];

const CONTEXT: &str = "_HEAP_SEG_CONTEXT";
const DESCRIPTOR: &str = "_HEAP_PAGE_RANGE_DESCRIPTOR";
const ALLOCATED: u64 = 0xccdd_ccdd;
/// Of `RangeFlags`: in use, the first unit of its range, and what is in it.
const USED: u64 = 1;
const FIRST: u64 = 2;
const VS: u64 = 0xc;
const LFH: u64 = 8;

/// What a range of a segment's units holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Free,
    /// One block of so many bytes; further bits of its flags, which say nothing about what it is.
    User {
        bytes: u64,
        flags: u8,
    },
    /// A subsegment.
    Vs,
    Lfh,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) units: u64,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) context: usize,
    pub(crate) ranges: Vec<Range>,
    /// No free range has more units.
    most_free: u64,
}

/// Address space for segments.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) next: u64,
    pub(crate) end: u64,
}

impl Room {
    fn segment(&mut self, context: usize) -> Option<u64> {
        let size = SEGMENT_UNITS << SHIFT[context];
        let at = self.next.next_multiple_of(size);
        if at + size > self.end {
            return None;
        }
        self.next = at + size;
        Some(at)
    }
}

/// The segments of a heap.
#[derive(Debug, Clone)]
pub(crate) struct Segments {
    all: Vec<Segment>,
    /// Units that a segment's own header takes, by context.
    first_unit: [u64; 2],
}

/// A range that changed: its segment, and its place in it.
type At = (usize, usize);

impl Segments {
    pub(crate) fn new(first_unit: [u64; 2]) -> Segments {
        Segments { all: Vec::new(), first_unit }
    }

    pub(crate) fn of(&self, context: usize) -> impl Iterator<Item = &Segment> {
        self.all.iter().filter(move |segment| segment.context == context)
    }

    fn address(&self, (segment, slot): At) -> u64 {
        let segment = &self.all[segment];
        segment.base + (segment.ranges[slot].first << SHIFT[segment.context])
    }

    /// The first free range that is large enough, or one of a new segment; none when the address space is used up.
    pub(crate) fn take(&mut self, context: usize, units: u64, content: Content, room: &mut Room) -> Option<u64> {
        self.take_at(context, units, content, room).map(|at| self.address(at))
    }

    fn take_at(&mut self, context: usize, units: u64, content: Content, room: &mut Room) -> Option<At> {
        let fits = |segment: &mut Segment| {
            if segment.context != context || segment.most_free < units {
                return None;
            }
            let fit = |range: &Range| range.content == Content::Free && range.units >= units;
            let slot = segment.ranges.iter().position(fit);
            if slot.is_none() {
                segment.most_free = units - 1;
            }
            slot
        };
        let found = self.all.iter_mut().enumerate().find_map(|(at, segment)| Some((at, fits(segment)?)));
        let (at, slot) = match found {
            Some(found) => found,
            None => {
                let first = self.first_unit[context];
                let free = Range { first, units: SEGMENT_UNITS - first, content: Content::Free };
                if free.units < units {
                    return None;
                }
                let base = room.segment(context)?;
                self.all.push(Segment { base, context, ranges: vec![free], most_free: free.units });
                (self.all.len() - 1, 0)
            }
        };
        let segment = &mut self.all[at];
        let free = segment.ranges[slot];
        let mut new = vec![Range { first: free.first, units, content }];
        if free.units > units {
            new.push(Range { first: free.first + units, units: free.units - units, content: Content::Free });
        }
        segment.ranges.splice(slot..=slot, new);
        Some((at, slot))
    }

    /// Which range starts at an address.
    fn find(&self, address: u64) -> Option<At> {
        self.all.iter().enumerate().find_map(|(at, segment)| {
            let unit = address.wrapping_sub(segment.base) >> SHIFT[segment.context];
            if unit >= SEGMENT_UNITS {
                return None;
            }
            Some((at, segment.ranges.iter().position(|range| range.first == unit)?))
        })
    }

    /// Whether an address lies in one of them.
    fn holds(&self, address: u64) -> bool {
        self.all.iter().any(|segment| address.wrapping_sub(segment.base) < SEGMENT_UNITS << SHIFT[segment.context])
    }

    /// Gives a range back, and joins it with its neighbours.
    pub(crate) fn release(&mut self, address: u64) {
        if let Some(at) = self.find(address) {
            self.release_at(at);
        }
    }

    /// Returns where the free range is that came of it.
    fn release_at(&mut self, (at, mut slot): At) -> At {
        let Segment { ranges, most_free, .. } = &mut self.all[at];
        ranges[slot].content = Content::Free;
        if ranges.get(slot + 1).is_some_and(|range| range.content == Content::Free) {
            ranges[slot].units += ranges.remove(slot + 1).units;
        }
        if slot > 0 && ranges[slot - 1].content == Content::Free {
            slot -= 1;
            ranges[slot].units += ranges.remove(slot + 1).units;
        }
        *most_free = ranges[slot].units.max(*most_free);
        (at, slot)
    }
}

/// How segments are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentLayout {
    header: u64,
    descriptor: u64,
    flags: Place,
    committed: Place,
    /// The size of a range in its first unit, the distance from that in the others.
    units: Place,
    tree_signature: Place,
    unused: Place,
    signature: u64,
    list: u64,
    count: Place,
    tree: u64,
    heap_key: u64,
    rules: Rules,
}

impl SegmentLayout {
    /// The heap's key is in memory already.
    pub(crate) fn of(builder: &Builder) -> Result<SegmentLayout, IsfError> {
        let isf = &builder.isf;
        let place = |name| Place::of(isf, DESCRIPTOR, name);
        Ok(SegmentLayout {
            header: isf.size("_HEAP_PAGE_SEGMENT")?,
            descriptor: isf.size(DESCRIPTOR)?,
            flags: place("RangeFlags")?,
            committed: place("CommittedPageCount")?,
            units: place("UnitSize")?,
            tree_signature: place("TreeSignature")?,
            unused: place("UnusedBytes")?,
            signature: isf.offset("_HEAP_PAGE_SEGMENT", "Signature")?,
            list: isf.offset(CONTEXT, "SegmentListHead")?,
            count: Place::of(isf, CONTEXT, "SegmentCount")?,
            tree: isf.offset(CONTEXT, "FreePageRanges")?,
            heap_key: builder.pointer(builder.symbol("RtlpHpHeapGlobals")?),
            rules: builder.rules,
        })
    }

    /// Units that a segment's own header takes, by context.
    pub(crate) fn first_unit(&self) -> [u64; 2] {
        SHIFT.map(|shift| (self.descriptor * SEGMENT_UNITS).div_ceil(1 << shift))
    }

    /// A segment's header and all its descriptors.
    pub(crate) fn segment(&self, memory: &mut Memory, segment: &Segment, context: u64) {
        memory.map(segment.base, self.header);
        let signature = segment.base ^ context ^ self.heap_key ^ self.rules.segment_constant;
        memory.put_pointer(segment.base + self.signature, signature);
        for range in &segment.ranges {
            self.range(memory, segment, range);
        }
    }

    /// The descriptors of a range. Of a free one only the first means anything, but no other is in use.
    fn range(&self, memory: &mut Memory, segment: &Segment, range: &Range) {
        let (vs, lfh) = if self.rules.breaks(Mutation::RangeFlags) { (LFH, VS) } else { (VS, LFH) };
        let (kind, more, unused) = match range.content {
            Content::Free => (0, 0, 0),
            Content::User { bytes, flags } => (USED, flags, (range.units << SHIFT[segment.context]) - bytes),
            Content::Vs => (USED | vs, 0, 0),
            Content::Lfh => (USED | lfh, 0, 0),
        };
        let size = self.descriptor as usize;
        let mut bytes = vec![0; size * range.units as usize];
        for (unit, descriptor) in (0..).zip(bytes.chunks_mut(size)) {
            let first = if unit == 0 { FIRST } else { 0 };
            self.flags.put(descriptor, kind | first | u64::from(more));
            self.committed.put(descriptor, if kind == 0 { 0 } else { 1 << (SHIFT[segment.context] - 12) });
            self.units.put(descriptor, if unit == 0 { range.units } else { unit });
            if unit == 0 && kind != 0 {
                self.tree_signature.put(descriptor, ALLOCATED);
                self.unused.put(descriptor, unused);
            }
        }
        memory.write(segment.base + self.descriptor * range.first, &bytes);
    }

    /// The list and the number of a context's segments, and the tree of their free ranges.
    pub(crate) fn index(&self, memory: &mut Memory, context: u64, segments: &[&Segment]) {
        let mut links = vec![context + self.list];
        links.extend(segments.iter().map(|segment| segment.base));
        memory.link(&links);
        let surplus = u64::from(self.rules.breaks(Mutation::SegmentCount));
        self.count.store(memory, context, segments.len() as u64 + surplus);
        let mut free: Vec<(u64, u64)> = Vec::new();
        for segment in segments {
            let ranges = segment.ranges.iter().filter(|range| range.content == Content::Free);
            free.extend(ranges.map(|range| (range.units, segment.base + self.descriptor * range.first)));
        }
        free.sort_unstable();
        let nodes: Vec<u64> = free.iter().map(|(_, node)| *node).collect();
        memory.tree(context + self.tree, &nodes);
    }
}

/// A heap of a running machine.
pub(crate) struct RunningHeap {
    pub(crate) kind: PoolKind,
    /// Of its `_HEAP_SEG_CONTEXT`s.
    pub(crate) contexts: [u64; 2],
    pub(crate) segments: Segments,
}

/// The heaps of a running machine: large blocks are ranges of pages in them.
pub(crate) struct RunningHeaps {
    pub(crate) layout: SegmentLayout,
    /// Nonpaged and paged.
    pub(crate) rooms: [Room; 2],
    pub(crate) heaps: Vec<RunningHeap>,
    /// Contexts whose lists and trees wait to be written.
    pub(crate) stale: Vec<(usize, usize)>,
    /// Whether they wait: before the machine is handed over nobody looks.
    pub(crate) lazy: bool,
}

impl RunningHeaps {
    /// A range of pages for something; none when it is too large for a range, or there is no room.
    pub(crate) fn allocate(
        &mut self,
        memory: &mut Memory,
        kind: PoolKind,
        content: Content,
        bytes: u64,
    ) -> Option<u64> {
        let context = MOST.iter().position(|most| bytes <= *most)?;
        let units = bytes.div_ceil(1 << SHIFT[context]);
        let heap = self.heaps.iter().position(|heap| heap.kind == kind)?;
        let room = &mut self.rooms[usize::from(kind.is_paged())];
        let RunningHeap { contexts, segments, .. } = &mut self.heaps[heap];
        let before = segments.all.len();
        let (at, slot) = segments.take_at(context, units, content, room)?;
        let segment = &segments.all[at];
        if segments.all.len() > before {
            self.layout.segment(memory, segment, contexts[context]);
        } else {
            for range in segment.ranges[slot..].iter().take(2) {
                self.layout.range(memory, segment, range);
            }
        }
        let address = segments.address((at, slot));
        self.changed(memory, heap, context);
        Some(address)
    }

    /// Gives a range back; false when none of theirs starts there.
    pub(crate) fn free(&mut self, memory: &mut Memory, address: u64) -> bool {
        let found = self.heaps.iter().enumerate().find_map(|(heap, all)| Some((heap, all.segments.find(address)?)));
        let Some((heap, at)) = found else { return false };
        let segments = &mut self.heaps[heap].segments;
        let (at, slot) = segments.release_at(at);
        let segment = &segments.all[at];
        self.layout.range(memory, segment, &segment.ranges[slot]);
        let context = segment.context;
        self.changed(memory, heap, context);
        true
    }

    /// Whether an address is inside a range that other blocks share: it is not one of its own.
    pub(crate) fn is_shared(&self, address: u64) -> bool {
        self.heaps.iter().any(|heap| heap.segments.holds(address) && heap.segments.find(address).is_none())
    }

    fn changed(&mut self, memory: &mut Memory, heap: usize, context: usize) {
        if !self.stale.contains(&(heap, context)) {
            self.stale.push((heap, context));
        }
        if !self.lazy {
            self.settle(memory);
        }
    }

    /// Writes what waits to be written.
    pub(crate) fn settle(&mut self, memory: &mut Memory) {
        for (heap, context) in std::mem::take(&mut self.stale) {
            let heap = &self.heaps[heap];
            let segments: Vec<&Segment> = heap.segments.of(context).collect();
            self.layout.index(memory, heap.contexts[context], &segments);
        }
    }
}
