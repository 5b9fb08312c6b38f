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
    /// Another header before it, and its units.
    outer: Option<(u64, u64)>,
}

impl Found {
    /// Bytes from the first header on.
    fn bytes(&self) -> u64 {
        self.outer.map_or(self.units, |(_, units)| units) * 16
    }
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

    /// Bytes of one page, present or in transition.
    fn look(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let page = address & !0xfff;
        let (_, entry) = self.entries(page, page + 0x1000).pop()?;
        let at = (address % 0x1000) as usize;
        (entry & 0x801 != 0).then(|| self.physical(entry)[at..at + length].to_vec())
    }

    /// A circle whose links are XORed with their own addresses.
    fn xored_list(&self, head: u64) -> BTreeSet<u64> {
        let mut entries = BTreeSet::new();
        let mut at = self.pointer(head) ^ head;
        while at != head {
            assert!(entries.insert(at), "a list without an end");
            at = self.pointer(at) ^ at;
        }
        entries
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
    Found { header, units: bytes[2].into(), kind: bytes[3], tag, process, outer: None }
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
        outer: block.outer.map(|outer| (outer.header, outer.bytes / 16)),
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
    let state = "_EX_POOL_HEAP_MANAGER_STATE";
    let node = reader.symbol("ExPoolState") + reader.isf.offset(state, "PoolNode").unwrap();
    assert_eq!(reader.variable("ExPoolState"), reader.symbol("RtlpHpHeapGlobals"));
    let kinds = [PoolKind::NonPaged, PoolKind::NonPagedNx, PoolKind::Paged, PoolKind::Paged];
    let mut walk = Walk::new(truth);
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
    assert_eq!(walk.found.len(), wanted.len());
    let known = wanted.iter().map(|(block, (kind, _))| (*block, *kind)).collect::<BTreeMap<_, _>>();
    assert_eq!(walk.found, known);
    let gone = blocks.clone().filter(|block| block.residence == Residence::PagedOut);
    let gone: BTreeSet<u64> = gone
        .filter(|block| block.carrier == Carrier::Lfh)
        .map(|block| block.outer.map_or(block.header, |outer| outer.header))
        .collect();
    assert_eq!(walk.gone, gone);
    let deferred = blocks.clone().filter(|block| block.state == SmallState::Deferred);
    let deferred = deferred.map(|block| block.outer.map_or(block.header, |outer| outer.header));
    assert_eq!(walk.delayed, deferred.collect());
    assert!(!walk.delayed.is_empty() && walk.second > 10 && walk.late > 3, "{} {}", walk.second, walk.late);
    assert!(walk.withheld > 20 && walk.spares > 0, "{} {}", walk.withheld, walk.spares);

    // What is large and lies in a segment is in the table of big pages too.
    assert!(walk.large.len() > 5, "{}", walk.large.len());
    for (address, bytes) in &walk.large {
        assert!(walk.table[address] <= *bytes && *bytes < walk.table[address] + 0x10000, "{address:x}");
    }

    let mut lookaside = BTreeSet::new();
    let size = reader.isf.size("_RTL_DYNAMIC_LOOKASIDE").unwrap();
    for at in nodes.flat_map(|node| [node + 0x40, node + 0x40 + size]) {
        let enabled = reader.pointer(at);
        for bucket in (0..64).filter(|bucket| enabled >> bucket & 1 == 1) {
            let list = reader.singles(at + 0x40 + bucket * 0x40);
            for block in &list {
                let bytes = reader.number(block - 14, 1) * 16;
                let (first, step) = match bucket {
                    ..32 => (0x200 + bucket * 0x10, 0x10),
                    32..48 => (0x400 + (bucket - 32) * 0x40, 0x40),
                    _ => (0x800 + (bucket - 48) * 0x80, 0x80),
                };
                assert!((first..first + step).contains(&bytes), "{bytes:x} in bucket {bucket}");
            }
            lookaside.extend(list);
        }
    }
    let wanted: BTreeSet<u64> =
        blocks.filter(|block| block.state == SmallState::Lookaside).map(|block| block.address).collect();
    assert_eq!(lookaside, wanted);
    assert!(!lookaside.is_empty());
}

struct Walk {
    found: BTreeMap<Found, PoolKind>,
    /// Headers in pages that are in a page file.
    gone: BTreeSet<u64>,
    /// Address and room of what has no pool header.
    large: BTreeMap<u64, u64>,
    /// Elements of the lists of what waits to be given back, and the pool headers of those blocks.
    waiting: BTreeSet<u64>,
    delayed: BTreeSet<u64>,
    /// The big-page table: address and bytes.
    table: BTreeMap<u64, u64>,
    build: u16,
    /// Blocks with a second header, blocks at the start of the page behind their chunk's, LFH blocks that nobody gets,
    /// and committed units behind subsegments.
    second: usize,
    late: usize,
    withheld: usize,
    spares: usize,
}

/// A chunk's sizes in units: its own, of the one before, and whether it is in use.
type Sizes = (u64, u64, bool);

impl Walk {
    fn new(truth: &Truth) -> Walk {
        Walk {
            found: BTreeMap::new(),
            gone: BTreeSet::new(),
            large: BTreeMap::new(),
            waiting: BTreeSet::new(),
            delayed: BTreeSet::new(),
            table: truth.large.iter().map(|life| (life.address, life.bytes)).collect(),
            build: truth.build,
            second: 0,
            late: 0,
            withheld: 0,
            spares: 0,
        }
    }

    fn heap(&mut self, reader: &Reader<'_>, heap: u64, kind: PoolKind) {
        let ty = "_SEGMENT_HEAP";
        assert_eq!(reader.field(ty, "Signature", heap), 0xddee_ddee);
        let key = reader.variable("RtlpHpHeapGlobals");
        let constant = if self.build < 26100 { 0xa2e6_4ead_a2e6_4ead } else { 0 };
        let contexts = heap + reader.isf.offset(ty, "SegContexts").unwrap();
        let homes = self.homes(reader, heap + reader.isf.offset(ty, "VsContext").unwrap());
        let mut free = BTreeSet::new();
        let mut subsegments = BTreeSet::new();
        for context in [contexts, contexts + 0xc0] {
            let (shift, first) = (reader.number(context + 8, 1), reader.number(context + 10, 1));
            let segments = reader.list(context + 0x48);
            assert_eq!(segments.len() as u64, reader.number(context + 0x58, 8));
            let mut free_ranges = BTreeSet::new();
            for segment in segments {
                assert_eq!(segment % (256 << shift), 0);
                assert_eq!(reader.pointer(segment + 0x10) ^ segment ^ key ^ constant, context);
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
                        0xb => self.lfh(reader, address, units, kind),
                        0xf => {
                            subsegments.insert(address);
                            self.vs(reader, address, units, kind, &mut free);
                        }
                        flags if flags & 0xb == 3 => drop(self.large.insert(address, units << shift)),
                        2 => drop(free_ranges.insert(at)),
                        flags => panic!("RangeFlags {flags:x} at {at:x}"),
                    }
                    for inner in 1..if flags & 1 == 1 { units } else { 0 } {
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
        let (mut listed, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for (list, tree, xored) in homes {
            listed.extend(if xored { reader.xored_list(list) } else { reader.list(list) });
            let mut own = Vec::new();
            reader.tree(reader.pointer(tree), &mut own);
            let size = |node: &u64| (reader.pointer(node - 8) ^ (node - 8) ^ key) >> 16 & 0xffff;
            assert!(own.iter().map(size).is_sorted());
            nodes.extend(own.into_iter().map(|node| node - 8));
        }
        assert_eq!(listed, subsegments);
        assert_eq!(nodes, free);
    }

    /// The subsegment lists and the trees of a VS context: its own, or those of its affinity slots. Whether the links
    /// are XORed with their addresses.
    fn homes(&mut self, reader: &Reader<'_>, context: u64) -> Vec<(u64, u64, bool)> {
        let ty = "_HEAP_VS_CONTEXT";
        if reader.isf.offset(ty, "FreeChunkTree").is_ok() {
            self.waiting.extend(reader.singles(context + 0x40));
            return vec![(context + 0x20, context + 0x10, false)];
        }
        let map = context + (reader.number(context, 2) << 6);
        let entries = reader.number(context + 2, 1) + 1;
        let slots: BTreeSet<u64> = (0..entries).map(|entry| reader.number(map + 4 * entry, 2)).collect();
        let xored = reader.number(context + 5, 1) & 1 == 1;
        let mut homes = Vec::new();
        for reference in slots.into_iter().filter(|reference| *reference != 0) {
            let slot = context + (reference << 6);
            match reader.isf.offset("_HEAP_VS_AFFINITY_SLOT", "VsContext") {
                Ok(0) => assert_eq!(reader.pointer(slot), context),
                _ => assert_eq!(reader.number(slot, 4), slot - context),
            }
            self.waiting.extend(reader.singles(slot + 0x40));
            homes.push((slot + 0x20, slot + 0x10, xored));
        }
        assert!(!homes.is_empty());
        homes
    }

    fn sizes(reader: &Reader<'_>, at: u64) -> Option<Sizes> {
        let bytes = reader.look(at, 8)?;
        let sizes = u64::from_le_bytes(bytes.try_into().unwrap()) ^ at ^ reader.variable("RtlpHpHeapGlobals");
        Some((sizes >> 16 & 0xffff, sizes >> 32 & 0xffff, sizes >> 48 & 0xff != 0))
    }

    fn vs(&mut self, reader: &Reader<'_>, subsegment: u64, units: u64, kind: PoolKind, free: &mut BTreeSet<u64>) {
        let key = reader.variable("RtlpHpHeapGlobals");
        let size = reader.number(subsegment + 0x20, 2);
        let signature = reader.field("_HEAP_VS_SUBSEGMENT", "Signature", subsegment);
        assert_eq!((size ^ 0x2bed) & 0x7fff, signature);
        let (mut chunk, end, mut previous) = (subsegment + 0x30, subsegment + 0x30 + size * 16, Some(0));
        assert_eq!(end + 0x1000, subsegment + units * 0x1000, "a unit more");
        self.spares += usize::from(reader.look(end, 1).is_some());
        while chunk < end {
            let Some((units, before, used)) = Walk::sizes(reader, chunk) else {
                let Some(next) = Walk::resume(reader, chunk, end) else { return };
                (chunk, previous) = (next, None);
                continue;
            };
            assert!(units > 0);
            assert_eq!(before, previous.unwrap_or(before));
            if used {
                let page = (reader.look(chunk + 8, 1).unwrap()[0] as u64 ^ key ^ chunk) & 0xff;
                assert_eq!(subsegment + (page << 12), chunk & !0xfff);
                self.chunk(reader, chunk, units * 16, kind);
            } else {
                free.insert(chunk);
            }
            previous = Some(units);
            chunk += units * 16;
        }
        assert_eq!(chunk, end);
    }

    /// The next place from which a chain of chunks proves itself.
    fn resume(reader: &Reader<'_>, from: u64, end: u64) -> Option<u64> {
        let proves = |start: u64| {
            let (mut at, mut links) = (start, 0);
            while at < end && links < 8 {
                let Some((units, ..)) = Walk::sizes(reader, at) else { return links > 1 };
                let next = at + units * 16;
                if units == 0 || next > end {
                    return false;
                }
                match Walk::sizes(reader, next).filter(|_| next < end) {
                    Some((_, before, _)) if before != units => return false,
                    _ => links += 1,
                }
                at = next;
            }
            true
        };
        ((from | 0xfff) + 1..end).step_by(16).find(|at| Walk::sizes(reader, *at).is_some() && proves(*at))
    }

    fn chunk(&mut self, reader: &Reader<'_>, chunk: u64, bytes: u64, kind: PoolKind) {
        if self.waiting.contains(&(chunk + 0x10)) {
            assert!(bytes < 0x400);
            self.delayed.insert(chunk + if chunk % 0x1000 == 0xfe0 { 0x20 } else { 0x10 });
            return;
        }
        if let Some(large) = self.table.get(&(chunk + 0x20)).filter(|_| bytes >= 0x1000) {
            assert_eq!((chunk + 0x20) % 0x1000, 0);
            assert!(large + 0x20 <= bytes && bytes < large + 0x40);
            self.large.insert(chunk + 0x20, *large);
            return;
        }
        let lead = if chunk % 0x1000 == 0xfe0 { 0x20 } else { 0x10 };
        self.late += usize::from(lead == 0x20);
        let Some(block) = self.pool_block(reader, chunk + lead) else { return };
        assert!(block.bytes() + lead <= bytes && bytes < block.bytes() + lead + 0x20);
        self.found.insert(block, kind);
    }

    /// The block whose first header is at an address; what the second one says where there is one.
    fn pool_block(&mut self, reader: &Reader<'_>, header: u64) -> Option<Found> {
        let first = parse(reader, header, &reader.look(header, 16)?);
        assert!(header % 0x1000 + first.bytes() <= 0x1000, "crosses a page");
        assert_eq!(reader.look(header, 1)?, [0], "PreviousSize");
        for distance in 1..5u64.min(first.units) {
            let second = header + distance * 16;
            let bytes = reader.look(second, 16)?;
            let found = parse(reader, second, &bytes);
            let mine = u64::from(bytes[0]) == distance && found.tag == first.tag && bytes[3] & 4 != 0;
            if mine && (second + 16).is_multiple_of(64) && found.units + distance == first.units && first.kind & 4 == 0
            {
                self.second += 1;
                if distance > 1 {
                    let hidden = u64::from_le_bytes(reader.look(header + 16, 8)?.try_into().unwrap());
                    assert_eq!(hidden ^ reader.variable("ExpPoolQuotaCookie"), second);
                }
                return Some(Found { outer: Some((header, first.units)), kind: found.kind & !4, ..found });
            }
        }
        assert!(first.kind & 4 == 0 || (header + 16).is_multiple_of(64));
        Some(Found { kind: first.kind & !4, ..first })
    }

    fn lfh(&mut self, reader: &Reader<'_>, subsegment: u64, units: u64, kind: PoolKind) {
        let ty = "_HEAP_LFH_SUBSEGMENT";
        let lfh_key = reader.pointer(reader.symbol("RtlpHpHeapGlobals") + 8);
        let count = reader.field(ty, "BlockCount", subsegment) + reader.field(ty, "WitheldBlockCount", subsegment);
        let page = if self.build < 26100 { (subsegment as u32) >> 12 } else { (subsegment >> 12) as u32 };
        let offsets = reader.number(subsegment + 0x28, 4) as u32 ^ lfh_key as u32 ^ page;
        let (bytes, first) = (u64::from(offsets & 0xffff), u64::from(offsets >> 16));
        assert_eq!(count, (units * 0x1000 - first) / bytes);
        let (bits, bitmap) = (if self.build < 26100 { 2 } else { 1 }, reader.isf.offset(ty, "BlockBitmap").unwrap());
        let crosses = |block: u64| (first + bytes * block) % 0x1000 + bytes > 0x1000;
        let mut waiting = BTreeSet::new();
        if reader.isf.offset(ty, "State.DelayFreeList").is_ok() {
            let mut next = reader.field(ty, "State.DelayFreeList", subsegment);
            while next != 0 {
                waiting.insert(next - 1);
                next = reader.number(subsegment + first + bytes * (next - 1), 2);
            }
            assert_eq!(waiting.len() as u64, reader.field(ty, "State.DelayFreeCount", subsegment));
        }
        let (mut free, mut withheld) = (0, 0);
        for block in 0..count {
            let word = reader.pointer(subsegment + bitmap + block * bits / 64 * 8);
            let busy = word >> (block * bits % 64) & 1 == 1;
            let header = subsegment + first + bytes * block;
            if crosses(block) {
                assert!(busy);
                withheld += 1;
            } else if !busy {
                free += 1;
            } else if waiting.contains(&block) {
                self.delayed.insert(header);
            } else if reader.look(header, 1).is_none() {
                self.gone.insert(header);
            } else {
                let found = self.pool_block(reader, header).unwrap();
                assert_eq!(found.outer.map_or(found.units, |(_, units)| units) * 16, bytes);
                self.found.insert(found, kind);
            }
        }
        assert_eq!(reader.field(ty, "WitheldBlockCount", subsegment), withheld);
        assert_eq!(reader.field(ty, "FreeCount", subsegment), free);
        self.withheld += withheld as usize;
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
        assert!(first & 0x4000 == 0 || !data.contains(&pointer.start));
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
            let mut walk = Walk::new(truth);
            walk.heap(reader, reader.pointer(reader.symbol("ExPoolState") + heaps + 8 * slot), PoolKind::Paged);
            pages.extend(walk.large.into_keys());
        }
        let special = truth.small.iter().filter(|block| block.carrier == Carrier::Special);
        assert_eq!(pages, special.map(|block| block.header).collect());
    }
}
