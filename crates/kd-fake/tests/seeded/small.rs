//! Small blocks as the pool's own books have them, against the allocator's list.

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::kernel::{Carrier, PoolKind, Residence, SmallBlock, SmallState, Truth};

use crate::reader::Reader;

/// What the walk finds: header, units of 16 bytes, PoolType, tag, process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    header: u64,
    units: u64,
    kind: u8,
    tag: u32,
    process: u64,
}

pub(crate) fn compare(reader: &Reader<'_>, truth: &Truth) {
    let count = |state| truth.small.iter().filter(|block| block.state == state).count();
    assert!(count(SmallState::Live) > 300, "{}", count(SmallState::Live));
    if truth.build < 17763 {
        pages(reader, truth);
    } else {
        heaps(reader, truth);
    }
    special(reader, truth);
}

impl Reader<'_> {
    /// Level-1 entries of a range that are not zero: page and entry.
    fn entries(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let entry = |at: u64| {
            let mut bytes = [0; 8];
            assert_eq!(self.kernel.read_physical(at, &mut bytes), 8);
            u64::from_le_bytes(bytes)
        };
        let mut found = Vec::new();
        let mut page = start;
        'pages: while page < end {
            let mut table = self.kernel.facts().cr3;
            for level in (0..4).rev() {
                let value = entry(table + (page >> (12 + 9 * level) & 0x1ff) * 8);
                let span = 0x1000u64 << (9 * level);
                if level == 0 {
                    found.extend((value != 0).then_some((page, value)));
                } else if value & 1 == 1 {
                    table = value & 0x000f_ffff_ffff_f000;
                    continue;
                }
                page = (page & !(span - 1)) + span;
                continue 'pages;
            }
        }
        found
    }

    fn physical(&self, entry: u64) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        assert_eq!(self.kernel.read_physical(entry & 0x000f_ffff_ffff_f000, &mut bytes), 0x1000);
        bytes
    }

    /// The process of a header's third word.
    fn process(&self, header: u64, kind: u8, stored: u64) -> u64 {
        match kind & 8 {
            0 => 0,
            _ if self.kernel.facts().build < 9200 => stored,
            _ => stored ^ header ^ self.variable("ExpPoolQuotaCookie"),
        }
    }

    fn list(&self, head: u64) -> BTreeSet<u64> {
        let mut entries = BTreeSet::new();
        let mut at = self.pointer(head);
        while at != head {
            assert!(entries.insert(at), "a list without an end");
            at = self.pointer(at);
        }
        entries
    }

    /// An SLIST: depth and elements agree.
    fn singles(&self, head: u64) -> BTreeSet<u64> {
        let mut elements = BTreeSet::new();
        let mut at = self.pointer(head + 8) & !0xf;
        while at != 0 {
            elements.insert(at);
            at = self.pointer(at);
        }
        assert_eq!(self.number(head, 2) as usize, elements.len());
        elements
    }

    /// The nodes of a tree of RTL_BALANCED_NODEs in order.
    fn tree(&self, node: u64, nodes: &mut Vec<u64>) {
        if node != 0 {
            self.tree(self.pointer(node), nodes);
            nodes.push(node);
            self.tree(self.pointer(node + 8), nodes);
        }
    }
}

fn parse(reader: &Reader<'_>, header: u64, bytes: &[u8]) -> Found {
    let tag = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let stored = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    let process = reader.process(header, bytes[3], stored);
    Found { header, units: bytes[2].into(), kind: bytes[3], tag, process }
}

fn expected(block: &SmallBlock) -> Found {
    let paged = u8::from(block.kind == PoolKind::Paged);
    let quota = if block.process.is_some() { 8 } else { 0 };
    Found {
        header: block.header,
        units: block.bytes / 16,
        kind: if block.state == SmallState::Free { 0 } else { 2 | paged | quota },
        tag: block.tag,
        process: block.process.unwrap_or_default(),
    }
}

/// Pages of chained headers, found by the page tables.
fn pages(reader: &Reader<'_>, truth: &Truth) {
    let blocks: Vec<&SmallBlock> = truth.small.iter().filter(|block| block.carrier == Carrier::Page).collect();
    let start = |paged: bool| {
        let same = blocks.iter().filter(|block| (block.kind == PoolKind::Paged) == paged);
        same.map(|block| block.header).min().unwrap() & !0xffff_ffff
    };
    let mut found = BTreeMap::new();
    let mut out = 0;
    for region in [start(false), start(true)] {
        for (page, entry) in reader.entries(region, region + (1 << 32)) {
            let residence = match entry {
                entry if entry & 1 == 1 => Residence::Present,
                entry if entry & 0x800 != 0 => Residence::Transition,
                _ => {
                    out += 1;
                    continue;
                }
            };
            let bytes = reader.physical(entry);
            let (mut at, mut previous) = (0, 0);
            while at < 0x1000 {
                let block = parse(reader, page + at as u64, &bytes[at..at + 16]);
                assert_eq!(bytes[at], previous, "PreviousSize at {:x}", page + at as u64);
                assert!(block.units > 0);
                previous = bytes[at + 2];
                at += block.units as usize * 16;
                found.insert(block, residence);
            }
            assert_eq!(at, 0x1000);
        }
    }
    let resident = blocks.iter().filter(|block| block.residence != Residence::PagedOut);
    let wanted: BTreeMap<Found, Residence> = resident.map(|block| (expected(block), block.residence)).collect();
    assert_eq!(found, wanted);
    let gone: BTreeSet<u64> = blocks
        .iter()
        .filter(|block| block.residence == Residence::PagedOut)
        .map(|block| block.header & !0xfff)
        .collect();
    assert_eq!(out, gone.len());

    // Free lists, deferred frees and lookaside lists have the blocks that they should.
    let of = |state, present: bool| -> BTreeSet<u64> {
        let same = blocks.iter().filter(|block| block.state == state);
        let same = same.filter(|block| !present || block.residence == Residence::Present);
        same.map(|block| block.address).collect()
    };
    let mut descriptors = vec![reader.symbol("NonPagedPoolDescriptor")];
    if truth.build >= 9200 {
        descriptors.push(reader.pointer(reader.symbol("ExpNonPagedPoolDescriptor") + 8));
    }
    let paged = u64::from(reader.dword("ExpNumberOfPagedPools"));
    descriptors.extend((0..=paged).map(|index| reader.pointer(reader.symbol("ExpPagedPoolDescriptor") + 8 * index)));
    let offset = |name| reader.isf.offset("_POOL_DESCRIPTOR", name).unwrap();
    let mut deferred = BTreeSet::new();
    for descriptor in descriptors {
        let mut at = reader.pointer(descriptor + offset("PendingFrees"));
        let before = deferred.len();
        while at != 0 {
            deferred.insert(at);
            at = reader.pointer(at);
        }
        assert_eq!(deferred.len() - before, reader.field("_POOL_DESCRIPTOR", "PendingFreeDepth", descriptor) as usize);
        for units in 2..256 {
            // A list may lead through a page in transition; a reader of virtual memory ends there.
            let head = descriptor + offset("ListHeads") + 16 * units;
            let mut at = reader.pointer(head);
            let mut bytes = [0; 8];
            while at != head && reader.kernel.read_virtual(at, &mut bytes) == 8 {
                assert_eq!(reader.number(at - 14, 2), units, "BlockSize, and PoolType 0");
                at = u64::from_le_bytes(bytes);
            }
        }
    }
    assert_eq!(deferred, of(SmallState::Deferred, true));
    let mut lookaside = BTreeSet::new();
    let size = reader.isf.size("_GENERAL_LOOKASIDE_POOL").unwrap();
    for processor in 0..u64::from(truth.processors) {
        let prcb = reader.pointer(reader.symbol("KiProcessorBlock") + 8 * processor);
        for array in ["PPNPagedLookasideList", "PPNxPagedLookasideList", "PPPagedLookasideList"] {
            let Ok(array) = reader.isf.offset("_KPRCB", array) else { continue };
            for list in 0..32 {
                for block in reader.singles(prcb + array + list * size) {
                    assert_eq!(reader.number(block - 14, 1), list + 1, "BlockSize");
                    lookaside.insert(block);
                }
            }
        }
    }
    assert_eq!(lookaside, of(SmallState::Lookaside, true));
    // Not more than 31 of a pool wait.
    assert!(lookaside.len() > 10 && !deferred.is_empty() && of(SmallState::Free, false).len() > 50);
}

/// Segment heaps, walked from `ExPoolState` with the constants of the facts.
fn heaps(reader: &Reader<'_>, truth: &Truth) {
    let node = reader.symbol("ExPoolState") + reader.isf.offset("_EX_POOL_HEAP_MANAGER_STATE", "PoolNode").unwrap();
    assert_eq!(reader.variable("ExPoolState"), reader.symbol("RtlpHpHeapGlobals"));
    let kinds = [PoolKind::NonPaged, PoolKind::NonPagedNx, PoolKind::Paged, PoolKind::Paged];
    let mut walk = Walk::default();
    let state = "_EX_POOL_HEAP_MANAGER_STATE";
    let nodes = reader.field(state, "NumberOfPools", reader.symbol("ExPoolState")) & 0xffff_ffff;
    let stride = reader.isf.size("_EX_HEAP_POOL_NODE").unwrap();
    let nodes = (0..nodes).map(|number| node + stride * number);
    for node in nodes.clone() {
        for (slot, kind) in (0..).zip(kinds) {
            walk.heap(reader, reader.pointer(node + 8 * slot), kind);
        }
    }
    let blocks = truth.small.iter().filter(|block| matches!(block.carrier, Carrier::Vs | Carrier::Lfh));
    let wanted: BTreeMap<Found, (PoolKind, Residence)> = blocks
        .clone()
        .filter(|block| block.residence != Residence::PagedOut && block.state != SmallState::Deferred)
        .map(|block| (expected(block), (block.kind, block.residence)))
        .collect();
    assert_eq!(walk.found, wanted);
    let gone: BTreeSet<u64> =
        blocks.clone().filter(|block| block.residence == Residence::PagedOut).map(|block| block.header).collect();
    assert_eq!(walk.gone, gone);
    // Some of what waits was large, and is no block any more.
    let mut deferred = blocks.clone().filter(|block| block.state == SmallState::Deferred).map(|block| block.header);
    assert!(walk.delayed.len() == walk.waiting.len() && deferred.all(|header| walk.delayed.contains(&header)));
    assert!(!walk.delayed.is_empty());

    // What is large and lies in a segment is in the table of big pages too.
    let large: BTreeMap<u64, u64> = truth.large.iter().map(|life| (life.address, life.bytes)).collect();
    assert!(walk.large.len() > 5, "{}", walk.large.len());
    for (address, bytes) in &walk.large {
        assert!(large[address] <= *bytes && *bytes < large[address] + 0x10000, "{address:x}");
    }

    let mut lookaside = BTreeSet::new();
    let size = reader.isf.size("_RTL_DYNAMIC_LOOKASIDE").unwrap();
    for at in nodes.flat_map(|node| [node + 0x40, node + 0x40 + size]) {
        let enabled = reader.pointer(at);
        for bucket in (0..64).filter(|bucket| enabled >> bucket & 1 == 1) {
            lookaside.extend(reader.singles(at + 0x40 + bucket * 0x40));
        }
    }
    let wanted: BTreeSet<u64> =
        blocks.filter(|block| block.state == SmallState::Lookaside).map(|block| block.address).collect();
    assert_eq!(lookaside, wanted);
    assert!(!lookaside.is_empty());
}

#[derive(Default)]
struct Walk {
    found: BTreeMap<Found, (PoolKind, Residence)>,
    /// Headers in pages that are in a page file.
    gone: BTreeSet<u64>,
    /// Address and room of what has no pool header.
    large: BTreeMap<u64, u64>,
    /// Elements of `DelayFreeContext`, and the places of pool headers in the chunks that wait there.
    waiting: BTreeSet<u64>,
    delayed: BTreeSet<u64>,
}

impl Walk {
    fn heap(&mut self, reader: &Reader<'_>, heap: u64, kind: PoolKind) {
        let ty = "_SEGMENT_HEAP";
        assert_eq!(reader.field(ty, "Signature", heap), 0xddee_ddee);
        let key = reader.variable("RtlpHpHeapGlobals");
        let contexts = heap + reader.isf.offset(ty, "SegContexts").unwrap();
        let mut free = BTreeSet::new();
        let mut subsegments = BTreeSet::new();
        let delayed = reader.isf.offset(ty, "VsContext.DelayFreeContext.ListHead").unwrap();
        self.waiting.extend(reader.singles(heap + delayed));
        for context in [contexts, contexts + 0xc0] {
            let (shift, first) = (reader.number(context + 8, 1), reader.number(context + 10, 1));
            let segments = reader.list(context + 0x48);
            assert_eq!(segments.len() as u64, reader.number(context + 0x58, 8));
            let mut free_ranges = BTreeSet::new();
            for segment in segments {
                assert_eq!(segment % (256 << shift), 0);
                assert_eq!(reader.pointer(segment + 0x10) ^ segment ^ key ^ 0xa2e6_4ead_a2e6_4ead, context);
                let mut unit = first;
                while unit < 256 {
                    let at = segment + 0x20 * unit;
                    let (flags, units) = (reader.number(at + 0x18, 1), reader.number(at + 0x1f, 1));
                    let address = segment + (unit << shift);
                    assert!(units > 0 && unit + units <= 256);
                    if flags & 1 == 1 {
                        assert_eq!(reader.number(at, 4), 0xccdd_ccdd);
                    }
                    match flags {
                        3 => drop(self.large.insert(address, units << shift)),
                        0xb => self.lfh(reader, address, kind),
                        0xf => {
                            subsegments.insert(address);
                            self.vs(reader, address, kind, &mut free);
                        }
                        2 => drop(free_ranges.insert(at)),
                        flags => panic!("RangeFlags {flags:x} at {at:x}"),
                    }
                    for inner in 1..units {
                        assert_eq!(reader.number(at + 0x20 * inner + 0x1f, 1), inner, "UnitOffset");
                        assert_eq!(reader.number(at + 0x20 * inner + 0x18, 1), flags & !2);
                    }
                    unit += units;
                }
            }
            let mut nodes = Vec::new();
            reader.tree(reader.pointer(context + 0x60), &mut nodes);
            assert_eq!(nodes.into_iter().collect::<BTreeSet<u64>>(), free_ranges);
        }
        let vs = heap + reader.isf.offset(ty, "VsContext").unwrap();
        assert_eq!(reader.list(vs + 0x20), subsegments);
        let mut nodes = Vec::new();
        reader.tree(reader.pointer(vs + 0x10), &mut nodes);
        let sizes: Vec<u64> =
            nodes.iter().map(|node| (reader.pointer(node - 8) ^ (node - 8) ^ key) >> 16 & 0xffff).collect();
        assert!(sizes.is_sorted());
        assert_eq!(nodes.into_iter().map(|node| node - 8).collect::<BTreeSet<u64>>(), free);
    }

    fn vs(&mut self, reader: &Reader<'_>, subsegment: u64, kind: PoolKind, free: &mut BTreeSet<u64>) {
        let key = reader.variable("RtlpHpHeapGlobals");
        let size = reader.number(subsegment + 0x20, 2);
        assert_eq!((size ^ 0x2bed) & 0x7fff, reader.number(subsegment + 0x22, 2) & 0x7fff);
        let (mut chunk, mut previous) = (subsegment + 0x30, 0);
        while chunk < subsegment + size * 16 {
            let sizes = reader.pointer(chunk) ^ chunk ^ key;
            let (units, before, used) = (sizes >> 16 & 0xffff, sizes >> 32 & 0xffff, sizes >> 48 & 0xff);
            assert!(units > 0);
            assert_eq!(before, previous);
            let header = chunk + 16;
            if used == 0 {
                free.insert(chunk);
            } else {
                let page = (reader.number(chunk + 8, 1) ^ key ^ chunk) & 0xff;
                assert_eq!(subsegment + (page << 12), chunk & !0xfff);
                if self.waiting.contains(&header) || self.waiting.contains(&(header + 16)) {
                    self.delayed.insert(header);
                } else if units * 16 >= 0x1000 || self.is_large(reader, header) {
                    assert_eq!(header % 0x1000, 0);
                    self.large.insert(header, units * 16 - 16);
                } else {
                    let block = parse(reader, header, &reader.bytes(header, 16));
                    assert!(header % 0x1000 + block.units * 16 <= 0x1000, "crosses a page");
                    self.found.insert(block, (kind, Residence::Present));
                }
            }
            previous = units;
            chunk += units * 16;
        }
        assert_eq!(chunk, subsegment + size * 16);
    }

    fn is_large(&self, reader: &Reader<'_>, address: u64) -> bool {
        reader.kernel.large().any(|life| life.address == address)
    }

    fn lfh(&mut self, reader: &Reader<'_>, subsegment: u64, kind: PoolKind) {
        let lfh_key = reader.pointer(reader.symbol("RtlpHpHeapGlobals") + 8);
        let count = reader.number(subsegment + 0x22, 2);
        let key = lfh_key as u32 ^ (subsegment as u32) >> 12;
        let offsets = reader.number(subsegment + 0x28, 4) as u32 ^ key;
        let (bytes, first) = (u64::from(offsets & 0xffff), u64::from(offsets >> 16));
        let mut free = 0;
        for block in 0..count {
            let word = reader.pointer(subsegment + 0x30 + block / 32 * 8);
            if word >> (block % 32 * 2) & 1 == 0 {
                free += 1;
                continue;
            }
            let header = subsegment + first + bytes * block;
            assert!(header % 0x1000 + bytes <= 0x1000);
            let page = header & !0xfff;
            let entries = reader.entries(page, page + 0x1000);
            let entry = entries.first().unwrap().1;
            let residence = match entry {
                entry if entry & 1 == 1 => Residence::Present,
                entry if entry & 0x800 != 0 => Residence::Transition,
                _ => {
                    self.gone.insert(header);
                    continue;
                }
            };
            let content = reader.physical(entry);
            let at = (header % 0x1000) as usize;
            let found = parse(reader, header, &content[at..at + 16]);
            assert_eq!(found.units * 16, bytes);
            self.found.insert(found, (kind, residence));
        }
        assert_eq!(reader.number(subsegment + 0x20, 2), free);
    }
}

/// A page for each block, and nothing behind it.
fn special(reader: &Reader<'_>, truth: &Truth) {
    let blocks: Vec<&SmallBlock> = truth.small.iter().filter(|block| block.carrier == Carrier::Special).collect();
    assert!(blocks.len() > 20, "{}", blocks.len());
    for block in blocks {
        let page = block.header & !0xfff;
        let first = reader.number(block.header, 4);
        assert_eq!((first & 0x1fff, reader.number(block.header + 4, 4)), (block.size, block.tag.into()));
        assert_eq!(first & 0x8000 != 0, block.kind == PoolKind::Paged && truth.build < 17763);
        let pattern = (first >> 16) as u8;
        let bytes = reader.bytes(page, 0x1000);
        let data = (block.address - page) as usize..(block.address - page + block.size) as usize;
        let header = (block.header - page) as usize;
        assert!(data.end <= 0x1000 && (0x1000 - data.end < 16 || data.start == 0));
        // Verifier's pointer lies behind the header, or before one at the page's end.
        let pointer = if header == 0 { 16..24 } else { header - 8..header };
        let pointer = if first & 0x4000 == 0 { 0..0 } else { pointer };
        let rest =
            (0..0x1000).filter(|at| !data.contains(at) && !(header..header + 16).contains(at) && !pointer.contains(at));
        assert!(rest.into_iter().all(|at| bytes[at] == pattern));
        assert_eq!(reader.kernel.read_virtual(page + 0x1000, &mut [0]), 0, "the guard");
    }
    if truth.build >= 17763 {
        let heaps = reader.isf.offset("_EX_POOL_HEAP_MANAGER_STATE", "SpecialHeaps").unwrap();
        let mut pages = BTreeSet::new();
        for slot in 0..3 {
            let mut walk = Walk::default();
            walk.heap(reader, reader.pointer(reader.symbol("ExPoolState") + heaps + 8 * slot), PoolKind::Paged);
            pages.extend(walk.large.into_keys());
        }
        let special = truth.small.iter().filter(|block| block.carrier == Carrier::Special);
        assert_eq!(pages, special.map(|block| block.header).collect());
    }
}
