//! Machines of every kernel there is a table of: what a reader with the table's offsets finds is what they say of
//! themselves.

#![allow(clippy::unwrap_used)]

mod mutations;
mod reader;
mod small;

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, Kernel, PoolKind, RingRecord, SeededOptions, Truth};
use reader::{Reader, tables};

impl Reader<'_> {
    fn name(&self, ty: &str, path: &str, address: u64) -> String {
        let (offset, _) = self.isf.member(ty, path).unwrap();
        let units = self.bytes(self.pointer(address + offset + 8), self.number(address + offset, 2) as usize);
        let units: Vec<u16> = units.chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        String::from_utf16(&units).unwrap()
    }

    /// NP allocs, frees, bytes, P allocs, frees, bytes of each tag; how many single values are negative.
    fn tags(&self) -> (BTreeMap<u32, [u64; 6]>, usize) {
        let ty = "_POOL_TRACKER_TABLE";
        let size = self.isf.size(ty).unwrap();
        let names = ["NonPagedAllocs", "NonPagedFrees", "NonPagedBytes", "PagedAllocs", "PagedFrees", "PagedBytes"];
        let rows = self.variable("PoolTrackTableSize");
        let mut arrays = Vec::new();
        for processor in 0..64 {
            match self.pointer(self.symbol("ExPoolTagTables") + 8 * processor) {
                0 => break,
                table => arrays.push((table, rows)),
            }
        }
        assert_eq!(arrays.len(), self.dword("KeNumberProcessors") as usize);
        assert_eq!(arrays[0].0, self.variable("PoolTrackTable"));
        arrays.push((self.variable("PoolTrackTableExpansion"), self.variable("PoolTrackTableExpansionSize")));
        let mut sums: BTreeMap<u32, [u64; 6]> = BTreeMap::new();
        let mut negative = 0;
        for (table, rows) in arrays {
            for row in 0..rows {
                let at = table + row * size;
                let key = self.field(ty, "Key", at) as u32;
                if key == 0 {
                    continue;
                }
                let sum = sums.entry(key).or_default();
                for (sum, name) in sum.iter_mut().zip(names) {
                    let value = self.field(ty, name, at);
                    negative += usize::from((value as i64) < 0);
                    *sum = sum.wrapping_add(value);
                }
            }
        }
        (sums, negative)
    }
}

fn compare(kernel: &Kernel, isf: &Isf, truth: &Truth) {
    let reader = Reader { kernel, isf };
    tags(&reader, truth);
    big_pages(&reader, truth);
    pool_log(&reader, truth);
    verifier(&reader, truth);
    rings(&reader, truth);
    modules(&reader, truth);
    small::compare(&reader, truth);
}

fn tags(reader: &Reader<'_>, truth: &Truth) {
    let expected: BTreeMap<u32, [u64; 6]> = truth
        .tags
        .iter()
        .map(|tag| {
            let (n, p) = (tag.nonpaged, tag.paged);
            (tag.tag, [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes])
        })
        .collect();
    let (found, negative) = reader.tags();
    // Up to 1703 allocs and frees have 32 bits.
    let (_, ty) = reader.isf.member("_POOL_TRACKER_TABLE", "NonPagedAllocs").unwrap();
    let counters = if reader.isf.size_of(ty).unwrap() == 4 { 0xffff_ffff } else { u64::MAX };
    let [found, expected] = [found, expected].map(|mut sums| {
        sums.values_mut().for_each(|sum| [0, 1, 3, 4].iter().for_each(|index| sum[*index] &= counters));
        sums
    });
    assert_eq!(found, expected);
    assert!(truth.processors == 1 || negative > 10, "{negative}");
}

fn big_pages(reader: &Reader<'_>, truth: &Truth) {
    let ty = "_POOL_TRACKER_BIG_PAGES";
    let size = reader.isf.size(ty).unwrap();
    let (table, slots) = (reader.variable("PoolBigPageTable"), reader.variable("PoolBigPageTableSize"));
    let mut live = BTreeMap::new();
    let mut freed = 0;
    for at in (0..slots).map(|slot| table + slot * size) {
        let va = reader.field(ty, "Va", at);
        if va == 0 || va & 1 == 1 {
            freed += usize::from(va > 1);
            continue;
        }
        let name = if reader.isf.offset(ty, "PoolType").is_ok() { "PoolType" } else { "PoolFlags" };
        let kind = match reader.field(ty, name, at) {
            0x40 => 0x200,
            0x80 => 0,
            0x100 => 1,
            kind => kind,
        };
        let bytes = reader.field(ty, "NumberOfBytes", at);
        if reader.isf.offset(ty, "SlushSize").is_ok() {
            assert_eq!((bytes + reader.field(ty, "SlushSize", at)) % 0x1000, 0);
        }
        if reader.isf.offset(ty, "ProcessBilled").is_ok() {
            assert_eq!(reader.field(ty, "ProcessBilled", at), va ^ reader.variable("ExpPoolQuotaCookie"));
        }
        assert_eq!(live.insert(va, (reader.field(ty, "Key", at) as u32, bytes, kind)), None);
    }
    let expected: BTreeMap<u64, (u32, u64, u64)> =
        truth.large.iter().map(|life| (life.address, (life.tag, life.bytes, life.kind.pool_type()))).collect();
    assert_eq!(live, expected);
    assert_eq!(reader.dword("ExpPoolBigEntriesInUse") as usize, live.len());
    probes(reader, truth, table, slots, size);
    // A table that has just been doubled has no freed slots yet.
    assert!(live.len() > 100 && (freed > 20 || slots > 0x400), "{} live, {freed} freed", live.len());
}

/// Each block is found from where its hash says, before a slot that was never used; some lie a slot or more behind.
fn probes(reader: &Reader<'_>, truth: &Truth, table: u64, slots: u64, size: u64) {
    let never = if truth.build < 26100 { 0 } else { 1 };
    let slots_reading = |value| (0..slots).filter(|slot| reader.pointer(table + slot * size) == value).count();
    assert!(slots_reading(never) > 0 && slots_reading(1 - never) == 0);
    let distance = |address: u64, whole: bool| {
        let page = if whole { address >> 12 } else { u64::from((address >> 12) as u32) };
        let product = page.wrapping_mul(0x9e5f);
        let first = (product ^ product >> 32) & (slots - 1);
        let slot = |step: u64| reader.pointer(table + ((first + step) & (slots - 1)) * size);
        (0..slots).find(|step| [address, never].contains(&slot(*step))).filter(|step| slot(*step) == address)
    };
    let found = |whole| -> Option<Vec<u64>> { truth.large.iter().map(|life| distance(life.address, whole)).collect() };
    let whole = match truth.build {
        ..20348 => vec![false],
        20348..26100 => vec![false, true],
        _ => vec![true],
    };
    let distances = whole.into_iter().find_map(found).unwrap();
    assert!(distances.iter().any(|distance| *distance > 0));
}

fn pool_log(reader: &Reader<'_>, truth: &Truth) {
    let ty = "_VF_POOL_TRACE";
    let Some(log) = &truth.pool_log else {
        assert_eq!(reader.variable("VfPoolTraces"), 0);
        return;
    };
    let (index, length) = (reader.dword("VfPoolTracesIndex"), reader.dword("VfPoolTracesLength"));
    assert_eq!((index, length), (log.index, log.length));
    let (size, stack) = (reader.isf.size(ty).unwrap(), reader.isf.offset(ty, "StackTrace").unwrap());
    let depth = (size - stack) / 8;
    assert_eq!(log.records.len(), length as usize, "wrapped");
    let mut longest = 0;
    for (record, age) in log.records.iter().zip(0..) {
        let slot = index.wrapping_sub(age) & (length - 1);
        assert_eq!(record.index, index.wrapping_sub(age));
        let at = reader.variable("VfPoolTraces") + u64::from(slot) * size;
        let frames: Vec<u64> =
            (0..depth).map(|frame| reader.pointer(at + stack + frame * 8)).take_while(|frame| *frame != 0).collect();
        let found = (reader.field(ty, "Address", at), reader.field(ty, "Size", at), reader.field(ty, "Thread", at));
        assert_eq!((found, &frames), ((record.address, record.size, record.thread), &record.frames));
        longest = longest.max(frames.len());
    }
    assert!(longest > 8 && longest as u64 <= depth);
}

fn verifier(reader: &Reader<'_>, truth: &Truth) {
    for (name, value) in &truth.verifier_settings {
        assert_eq!(reader.field("_MM_DRIVER_VERIFIER_DATA", name, reader.symbol("MmVerifierData")), *value, "{name}");
    }
    let suspect = "_VF_SUSPECT_DRIVER_ENTRY";
    let head = reader.symbol("VfSuspectDriversList");
    let mut entry = reader.pointer(head);
    for driver in &truth.verifier_drivers {
        assert_eq!(reader.name(suspect, "BaseName", entry), driver.name);
        let loads = (reader.field(suspect, "Loads", entry), reader.field(suspect, "Unloads", entry));
        assert_eq!(loads, (driver.loads, driver.unloads));
        entry = reader.pointer(entry);
    }
    assert_eq!(entry, head);

    let tree = reader.symbol("ViTargetDriversAvl");
    let count = reader.field("_VF_AVL_TREE", "TablesNo", tree);
    let size = reader.isf.size("_VF_AVL_TABLE").unwrap();
    let mut loaded = BTreeMap::new();
    for table in 0..count {
        let at = reader.field("_VF_AVL_TREE", "Tables", tree) + table * size;
        let mut nodes = vec![reader.pointer(at + 0x10)];
        while let Some(node) = nodes.pop() {
            if node == 0 {
                continue;
            }
            nodes.extend([reader.pointer(node + 8), reader.pointer(node + 0x10)]);
            let target = node + 0x20;
            let base = reader.pointer(target);
            assert_eq!((base >> 12) % count, table);
            let data = reader.field("_VF_TARGET_DRIVER", "VerifiedData", target);
            loaded.insert(base, (reader.pointer(target + 8), data));
        }
    }
    assert_eq!(loaded.len() as u64, reader.field("_VF_AVL_TREE", "NodeCount", tree));
    let data = "_VF_TARGET_VERIFIED_DRIVER_DATA";
    for driver in &truth.verifier_drivers {
        let Some((base, bytes)) = driver.image else {
            assert!(driver.allocations.is_empty());
            continue;
        };
        let (size, at) = loaded.remove(&base).unwrap();
        assert_eq!(size, bytes);
        assert_eq!(reader.name(suspect, "BaseName", reader.field(data, "SuspectDriverEntry", at)), driver.name);
        for (name, value) in &driver.counters {
            assert_eq!(reader.field(data, name, at), *value, "{name}");
        }
        let mut found = BTreeSet::new();
        let head = reader.isf.offset(data, "PoolPageHeaders").unwrap();
        let first = reader.pointer(at + head + 8) & !0xf;
        let chain = std::iter::successors(Some(first), |page| Some(reader.pointer(*page)).filter(|next| *next != 0));
        let pages: BTreeSet<u64> = chain.collect();
        let mut page = first;
        while page != 0 {
            assert_eq!(reader.pointer(page + 8), at);
            for entry in (1..128).map(|slot| page + slot * 0x20) {
                let bytes = reader.pointer(entry + 0x10);
                // A free entry leads to the next one, or nowhere.
                let next = reader.pointer(entry);
                if bytes & 1 == 0 || next != 0 && !pages.contains(&(next & !0xfff)) {
                    let caller = reader.pointer(entry + 8);
                    found.insert((reader.pointer(entry), bytes, reader.number(entry + 0x18, 4) as u32, caller));
                    assert!((base..base + size).contains(&caller));
                    let special = truth.small.iter().find(|block| block.address == next);
                    if let Some(block) = special {
                        let place = if block.header % 0x1000 == 0 { block.header + 0x10 } else { block.header - 8 };
                        assert_eq!(reader.pointer(place), entry, "the page points back");
                        assert_ne!(reader.number(block.header, 4) & 0x4000, 0);
                    } else if truth.verifier_settings["Level"] & 8 != 0 {
                        assert_eq!(reader.pointer(reader.pointer(entry) + bytes - 8), entry, "the block points back");
                    }
                }
            }
            page = reader.pointer(page);
        }
        let expected: BTreeSet<_> =
            driver.allocations.iter().map(|block| (block.address, block.bytes, block.tag, block.caller)).collect();
        assert_eq!(found, expected);
        let count = driver.counters["CurrentPagedPoolAllocations"] + driver.counters["CurrentNonPagedPoolAllocations"];
        assert_eq!(count as usize, found.len());
        let small = truth.small.iter().map(|block| block.address);
        let large: BTreeSet<u64> = truth.large.iter().map(|life| life.address).chain(small).collect();
        assert!(found.iter().all(|block| large.contains(&block.0)));
    }
    assert!(loaded.is_empty());
    let settings = &truth.verifier_settings;
    let counted = settings["CurrentPagedPoolAllocations"] + settings["CurrentNonPagedPoolAllocations"];
    let tracked: usize = truth.verifier_drivers.iter().map(|driver| driver.allocations.len()).sum();
    assert_eq!(counted as usize, tracked);
}

/// Table, index, length, bytes of a record, integers (name, place, width), place of the stack, frames.
type Log = (&'static str, &'static str, &'static str, u64, &'static [(&'static str, u64, usize)], u64, u64);

fn rings(reader: &Reader<'_>, truth: &Truth) {
    let logs: [Log; 5] = [
        ("ViFaultTraces", "ViFaultTracesIndex", "ViFaultTracesLength", 0x48, &[("Thread", 0, 8)], 8, 8),
        (
            "ViTrackIrqlQueue",
            "ViTrackIrqlIndex",
            "ViTrackIrqlQueueLength",
            0x38,
            &[("Thread", 0, 8), ("OldIrql", 8, 1), ("NewIrql", 9, 1), ("Processor", 10, 2), ("TickCount", 12, 4)],
            0x10,
            5,
        ),
        (
            "VfKeCriticalRegionTraces",
            "VfKeCriticalRegionTracesIndex",
            "VfKeCriticalRegionTracesLength",
            0x40,
            &[("Thread", 0, 8)],
            8,
            7,
        ),
        (
            "IovIrpTraces",
            "IovIrpTracesIndex",
            "IovIrpTracesLength",
            0x80,
            &[("Irp", 0, 8), ("Thread", 8, 8), ("CombinedApcDisable", 0x10, 4), ("Irql", 0x14, 1)],
            0x18,
            13,
        ),
        ("VfForcedPendingLog", "VfForcedPendingIrps", "VfForcedPendingLogLength", 0x200, &[("Irp", 0, 8)], 0x10, 62),
    ];
    let mut rings: BTreeMap<&str, &kernel::Ring> = truth.rings.iter().map(|ring| (ring.name.as_str(), ring)).collect();
    for (table, index, length, size, integers, stack, depth) in logs {
        let Some(ring) = rings.remove(table) else {
            assert_eq!(reader.variable(table), 0);
            continue;
        };
        assert_eq!((reader.dword(index), reader.dword(length)), (ring.index, ring.length));
        let records: Vec<RingRecord> = (0..ring.length.min(ring.index))
            .map(|age| {
                let index = ring.index - age;
                let at = reader.variable(table) + u64::from(index % ring.length) * size;
                let values = integers
                    .iter()
                    .map(|(name, place, width)| ((*name).to_owned(), reader.number(at + place, *width)))
                    .collect();
                let frames = (0..depth)
                    .map(|frame| reader.pointer(at + stack + frame * 8))
                    .take_while(|frame| *frame != 0)
                    .collect();
                RingRecord { index, operation: ring.records[age as usize].operation, values, frames }
            })
            .collect();
        assert_eq!(records, ring.records);
    }
    let head = reader.symbol("VfWdIrpListHead");
    let mut entry = reader.pointer(head);
    for record in rings.remove("VfWdIrpListHead").map(|ring| &ring.records).into_iter().flatten() {
        for (name, value) in &record.values {
            assert_eq!(reader.field("_VF_WATCHDOG_IRP", name, entry), *value, "{name}");
        }
        entry = reader.pointer(entry);
    }
    assert_eq!(entry, head);
    assert!(rings.is_empty());
}

fn modules(reader: &Reader<'_>, truth: &Truth) {
    let head = reader.symbol("PsLoadedModuleList");
    let mut entry = reader.pointer(head);
    for module in &truth.modules {
        assert_eq!((reader.pointer(entry + 0x30), reader.number(entry + 0x40, 4)), (module.base, module.size));
        assert_eq!(reader.bytes(module.base, 2), b"MZ");
        entry = reader.pointer(entry);
    }
    assert_eq!(entry, head);
    let slots = reader.variable("MmUnloadedDrivers");
    for (slot, driver) in (0..).zip(&truth.unloaded) {
        let at = slots + slot * 0x28;
        assert_eq!((reader.pointer(at + 0x10), reader.pointer(at + 0x18)), (driver.base, driver.base + driver.size));
        assert_eq!(reader.number(at, 2) as usize, 2 * driver.name.len());
    }
    // The debugger's data block leads to the processors.
    let block = reader.pointer(truth_list(reader));
    assert_eq!(reader.bytes(block + 0x10, 4), b"KDBG");
    let size = reader.number(block + 0x14, 4);
    assert_eq!(size > 0x360, truth.build >= 14393);
    if size > 0x360 {
        assert_eq!(reader.pointer(block + 0x360), reader.variable("MmPteBase"));
    }
    let processors = reader.pointer(block + 0x218);
    for number in 0..u64::from(truth.processors) {
        let prcb = reader.pointer(processors + 8 * number);
        assert_eq!(reader.field("_KPRCB", "LegacyNumber", prcb), number);
        assert_eq!(reader.pointer(prcb + 8), reader.field("_KPRCB", "IdleThread", prcb));
    }
    assert_eq!(reader.number(reader.symbol("NtBuildNumber"), 2), u64::from(truth.build));
}

fn truth_list(reader: &Reader<'_>) -> u64 {
    assert_eq!(reader.kernel.facts().debugger_data_list, reader.symbol("KdpDebuggerDataListHead"));
    reader.symbol("KdpDebuggerDataListHead")
}

#[test]
fn memory_holds_the_truth_for_every_kernel_and_seed() {
    for isf in tables() {
        for seed in 0..4 {
            let options = SeededOptions { verifier: seed != 3, paged_out: seed % 2 == 0, ..SeededOptions::default() };
            let (mut kernel, truth) = kernel::seeded(&isf, seed, &options).unwrap();
            println!("{} seed {seed}", truth.build);
            compare(&kernel, &isf, &truth);
            // It goes on as it began; with so many blocks the table doubles.
            for size in 0..600 {
                kernel.allocate_large(u32::from_le_bytes(*b"Test"), 0x1000 + size, PoolKind::Paged, &[], 0).unwrap();
            }
            let truth = kernel.truth();
            assert!(Reader { kernel: &kernel, isf: &isf }.variable("PoolBigPageTableSize") > 0x400);
            compare(&kernel, &isf, &truth);
        }
    }
}

#[test]
fn seeds_differ_and_repeat() {
    let isf = &tables()[0];
    let options = SeededOptions::default();
    let json = |seed| serde_json::to_string(&kernel::seeded(isf, seed, &options).unwrap().1).unwrap();
    assert_eq!(json(5), json(5));
    assert_ne!(json(5), json(6));
    assert_ne!(kernel::seeded_identity(isf, 5), kernel::seeded_identity(isf, 6));
}
