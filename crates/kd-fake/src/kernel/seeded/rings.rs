//! Verifier's logs other than that of the pool: rings with random records.

use std::collections::BTreeMap;

use super::places::Map;
use super::stacks::Stacks;
use crate::isf::{Isf, IsfError};
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::truth::{Ring, RingRecord};

/// An integer of a record: its name, its place on 64 and on 32 bits, its width (0: a pointer's) and how large it gets.
type Integer = (&'static str, [usize; 2], usize, u64);

/// Functions that write a record, each with what it then says; those that the version has are used.
type Writers = &'static [(&'static str, &'static str)];

/// A log: the variables that lead to it, and its record on 64 and on 32 bits, by the PDB's type where it has one, else by
/// pool-internals 7.2.
struct Log {
    table: &'static str,
    index: &'static str,
    length: &'static str,
    ty: &'static str,
    size: [usize; 2],
    integers: &'static [Integer],
    stack: [usize; 2],
    depth: [u64; 2],
    writers: Writers,
}

impl Log {
    /// With the variables' names in Vista, where it had others.
    fn of_version(&self, builder: &Builder) -> Log {
        let old = [
            ("VfForcedPendingLog", "IovForcePendingLog"),
            ("VfForcedPendingIrps", "IovForcedPendingIrps"),
            ("VfForcedPendingLogLength", "IovForcedPendingLogLength"),
        ];
        let name = |new: &'static str| match old.into_iter().find(|(name, _)| *name == new) {
            Some((_, old)) if builder.symbol(new).is_err() => old,
            _ => new,
        };
        Log { table: name(self.table), index: name(self.index), length: name(self.length), ..*self }
    }
}

const THREAD: u64 = u64::MAX;
const IRP: u64 = u64::MAX - 1;

const LOGS: [Log; 5] = [
    Log {
        table: "ViFaultTraces",
        index: "ViFaultTracesIndex",
        length: "ViFaultTracesLength",
        ty: "_VI_FAULT_TRACE",
        size: [0x48, 0x24],
        integers: &[("Thread", [0, 0], 0, THREAD)],
        stack: [8, 4],
        depth: [8, 8],
        writers: &[],
    },
    Log {
        table: "ViTrackIrqlQueue",
        index: "ViTrackIrqlIndex",
        length: "ViTrackIrqlQueueLength",
        ty: "_VI_TRACK_IRQL",
        size: [0x38, 0x20],
        integers: &[
            ("Thread", [0, 0], 0, THREAD),
            ("OldIrql", [8, 4], 1, 16),
            ("NewIrql", [9, 5], 1, 16),
            ("Processor", [0xa, 6], 2, 64),
            ("TickCount", [0xc, 8], 4, 1 << 32),
        ],
        stack: [0x10, 0xc],
        depth: [5, 5],
        writers: &[],
    },
    Log {
        table: "VfKeCriticalRegionTraces",
        index: "VfKeCriticalRegionTracesIndex",
        length: "VfKeCriticalRegionTracesLength",
        ty: "_VF_KE_CRITICAL_REGION_TRACE",
        size: [0x40, 0x20],
        integers: &[("Thread", [0, 0], 0, THREAD)],
        stack: [8, 4],
        depth: [7, 7],
        writers: &[
            ("VerifierKeEnterCriticalRegion", "enter"),
            ("VerifierKeLeaveCriticalRegion", "leave"),
            ("VerifierKeEnterGuardedRegion", "enter"),
            ("VerifierKeLeaveGuardedRegion", "leave"),
            ("VerifierExEnterCriticalRegionAndAcquireResourceShared", "enter"),
            ("VerifierExReleaseResourceAndLeaveCriticalRegion", "leave"),
        ],
    },
    Log {
        table: "IovIrpTraces",
        index: "IovIrpTracesIndex",
        length: "IovIrpTracesLength",
        ty: "_IOV_IRP_TRACE",
        size: [0x80, 0x40],
        integers: &[
            ("Irp", [0, 0], 0, IRP),
            ("Thread", [8, 4], 0, THREAD),
            ("CombinedApcDisable", [0x10, 8], 4, 1 << 32),
            ("Irql", [0x14, 0xc], 1, 16),
        ],
        stack: [0x18, 0x10],
        depth: [13, 12],
        writers: &[
            ("IovAllocateIrp", "allocate"),
            ("VerifierIoAllocateIrp", "allocate"),
            ("IovCompleteRequest", "complete"),
            ("IovpCompleteRequest2", "complete"),
            ("IovCancelIrp", "cancel"),
        ],
    },
    Log {
        table: "VfForcedPendingLog",
        index: "VfForcedPendingIrps",
        length: "VfForcedPendingLogLength",
        ty: "_IOV_FORCED_PENDING_TRACE",
        size: [0x200, 0x100],
        integers: &[("Irp", [0, 0], 0, IRP)],
        stack: [0x10, 8],
        depth: [62, 62],
        writers: &[],
    },
];

/// Where a record's parts lie.
struct Layout {
    size: usize,
    /// Offset and width of each integer.
    integers: Vec<(usize, usize)>,
    stack: usize,
    depth: u64,
}

impl Layout {
    fn of(isf: &Isf, log: &Log) -> Result<Layout, IsfError> {
        let pointer = isf.machine.pointer();
        let narrow = usize::from(pointer == 4);
        if !isf.user_types.contains_key(log.ty) {
            let width = |width| if width == 0 { pointer } else { width };
            let integers = log.integers.iter().map(|(_, place, bytes, _)| (place[narrow], width(*bytes))).collect();
            return Ok(Layout { size: log.size[narrow], integers, stack: log.stack[narrow], depth: log.depth[narrow] });
        }
        let member = |name| isf.member(log.ty, name).and_then(|(at, ty)| Ok((at as usize, isf.size_of(ty)? as usize)));
        let (stack, bytes) = member("StackTrace")?;
        let integers = log.integers.iter().map(|(name, ..)| member(name)).collect::<Result<_, _>>()?;
        Ok(Layout { size: isf.size(log.ty)? as usize, integers, stack, depth: (bytes / pointer) as u64 })
    }
}

const WATCHED: &str = "VfWdIrpListHead";

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    stacks: &Stacks,
    threads: &[u64],
) -> Result<Vec<Ring>, IsfError> {
    let mut rings = Vec::new();
    let pointer = builder.isf.machine.pointer();
    for log in &LOGS {
        let log = &log.of_version(builder);
        // This version does not have it, or this setting does not fill it.
        if builder.symbol(log.table).is_err() || random.once_in(5) {
            builder.set_known_pointer(log.table, 0);
            continue;
        }
        let length = 16u32 << random.below(4);
        let index = match random.below(4) {
            0 => 0,
            1 => random.below(length.into()) as u32,
            2 => random.below(1 << 20) as u32 + length,
            _ => u32::MAX - random.below(8) as u32,
        };
        let layout = Layout::of(&builder.isf, log)?;
        let table = map.room(u64::from(length) * layout.size as u64);
        builder.memory.map(table, u64::from(length) * layout.size as u64);
        let writers: Vec<(u64, &str)> =
            log.writers.iter().filter_map(|(function, word)| Some((builder.inside(function)?, *word))).collect();
        let mut records = Vec::new();
        for age in 0..length.min(index) {
            let at = index - age;
            let mut bytes = vec![0; layout.size];
            let mut values = BTreeMap::new();
            for (&(name, _, _, limit), &(offset, width)) in log.integers.iter().zip(&layout.integers) {
                let value = match limit {
                    THREAD => *random.pick(threads),
                    IRP => map.irp(random),
                    _ => random.below(limit),
                };
                bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
                values.insert(name.to_owned(), value);
            }
            let writer = (!writers.is_empty()).then(|| *random.pick(&writers));
            let mut frames: Vec<u64> = writer.iter().map(|(function, _)| *function).collect();
            let more = 1 + random.below(layout.depth - frames.len() as u64);
            frames.extend(stacks.mixed(more, random));
            for (frame, value) in frames.iter().enumerate() {
                bytes[layout.stack + frame * pointer..][..pointer].copy_from_slice(&value.to_le_bytes()[..pointer]);
            }
            builder.memory.put(table + u64::from(at & (length - 1)) * layout.size as u64, &bytes);
            records.push(RingRecord { index: at, operation: writer.map(|(_, word)| word), values, frames });
        }
        builder.set_pointer(log.table, table)?;
        builder.set_u32(log.index, index)?;
        builder.set_u32(log.length, length)?;
        rings.push(Ring { name: log.table.to_owned(), index, length, records });
    }
    // From Windows 7 on.
    if builder.symbol(WATCHED).is_ok() {
        rings.push(watched(builder, map, random)?);
    }
    Ok(rings)
}

/// Verifier is off: the lists are empty.
pub(crate) fn off(builder: &mut Builder) -> Result<Vec<Ring>, IsfError> {
    if let Ok(head) = builder.symbol(WATCHED) {
        builder.link(&[head]);
    }
    Ok(Vec::new())
}

/// The cancelled IRPs that Verifier waits for: a list, in whose order the records are.
fn watched(builder: &mut Builder, map: &mut Map, random: &mut Random) -> Result<Ring, IsfError> {
    let count = random.below(6) as u32;
    let size = builder.isf.size("_VF_WATCHDOG_IRP")?;
    let at = map.room(size * 6);
    let mut links = vec![builder.symbol(WATCHED)?];
    let mut records = Vec::new();
    for number in 0..count {
        let values = [
            ("Irp", map.irp(random)),
            ("DueTickCount", random.below(1 << 32)),
            ("Inserted", 1),
            ("TrackedStackLocation", random.below(8)),
            ("CancelTimeoutTicks", random.below(0x10000)),
        ];
        let mut entry = builder.object("_VF_WATCHDOG_IRP")?;
        builder.fields(&mut entry, &values)?;
        let place = at + size * u64::from(number);
        builder.store(place, &entry);
        links.push(place + builder.isf.offset("_VF_WATCHDOG_IRP", "ListEntry")?);
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        records.push(RingRecord { index: number, operation: None, values, frames: Vec::new() });
    }
    builder.link(&links);
    Ok(Ring { name: WATCHED.to_owned(), index: count, length: count, records })
}
