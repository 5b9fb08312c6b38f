//! Verifier's logs other than that of the pool: rings with random records.

use std::collections::BTreeMap;

use super::places::Map;
use super::stacks::Stacks;
use crate::isf::IsfError;
use crate::kernel::builder::Builder;
use crate::kernel::random::Random;
use crate::kernel::truth::{Ring, RingRecord};

/// An integer of a record: its name, its place, its width and how large it gets.
type Integer = (&'static str, usize, usize, u64);

/// A log: the variables that lead to it, and its record. Sources: the types in the PDBs where there is one, and
/// pool-internals 7.2 for the two without.
struct Log {
    table: &'static str,
    index: &'static str,
    length: &'static str,
    size: usize,
    integers: &'static [Integer],
    stack: usize,
    depth: u64,
}

const THREAD: u64 = u64::MAX;
const IRP: u64 = u64::MAX - 1;

const LOGS: [Log; 5] = [
    Log {
        table: "ViFaultTraces",
        index: "ViFaultTracesIndex",
        length: "ViFaultTracesLength",
        size: 0x48,
        integers: &[("Thread", 0, 8, THREAD)],
        stack: 8,
        depth: 8,
    },
    Log {
        table: "ViTrackIrqlQueue",
        index: "ViTrackIrqlIndex",
        length: "ViTrackIrqlQueueLength",
        size: 0x38,
        integers: &[
            ("Thread", 0, 8, THREAD),
            ("OldIrql", 8, 1, 16),
            ("NewIrql", 9, 1, 16),
            ("Processor", 0xa, 2, 64),
            ("TickCount", 0xc, 4, 1 << 32),
        ],
        stack: 0x10,
        depth: 5,
    },
    Log {
        table: "VfKeCriticalRegionTraces",
        index: "VfKeCriticalRegionTracesIndex",
        length: "VfKeCriticalRegionTracesLength",
        size: 0x40,
        integers: &[("Thread", 0, 8, THREAD)],
        stack: 8,
        depth: 7,
    },
    Log {
        table: "IovIrpTraces",
        index: "IovIrpTracesIndex",
        length: "IovIrpTracesLength",
        size: 0x80,
        integers: &[
            ("Irp", 0, 8, IRP),
            ("Thread", 8, 8, THREAD),
            ("ApcDisable", 0x10, 4, 1 << 32),
            ("Irql", 0x14, 1, 16),
        ],
        stack: 0x18,
        depth: 13,
    },
    Log {
        table: "VfForcedPendingLog",
        index: "VfForcedPendingIrps",
        length: "VfForcedPendingLogLength",
        size: 0x200,
        integers: &[("Irp", 0, 8, IRP)],
        stack: 0x10,
        depth: 62,
    },
];

const WATCHED: &str = "VfWdIrpListHead";

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    stacks: &Stacks,
    threads: &[u64],
) -> Result<Vec<Ring>, IsfError> {
    let mut rings = Vec::new();
    for log in &LOGS {
        // This version does not have it, or this setting does not fill it.
        if builder.symbol(log.table).is_err() || random.once_in(5) {
            builder.set_known(log.table, &[0; 8]);
            continue;
        }
        let length = 16u32 << random.below(4);
        let index = match random.below(4) {
            0 => 0,
            1 => random.below(length.into()) as u32,
            2 => random.below(1 << 20) as u32 + length,
            _ => u32::MAX - random.below(8) as u32,
        };
        let table = map.room(u64::from(length) * log.size as u64);
        builder.memory.map(table, u64::from(length) * log.size as u64);
        let mut records = Vec::new();
        for age in 0..length.min(index) {
            let at = index - age;
            let mut bytes = vec![0; log.size];
            let mut values = BTreeMap::new();
            for &(name, offset, width, limit) in log.integers {
                let value = match limit {
                    THREAD => *random.pick(threads),
                    IRP => map.nonpaged.start + 16 * random.below(0x100_0000),
                    _ => random.below(limit),
                };
                bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
                values.insert(name.to_owned(), value);
            }
            let frames = stacks.callers(1 + random.below(log.depth), random);
            for (frame, value) in frames.iter().enumerate() {
                bytes[log.stack + frame * 8..log.stack + frame * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            builder.memory.put(table + u64::from(at & (length - 1)) * log.size as u64, &bytes);
            records.push(RingRecord { index: at, values, frames });
        }
        builder.set_u64(log.table, table)?;
        builder.set_u32(log.index, index)?;
        builder.set_u32(log.length, length)?;
        rings.push(Ring { name: log.table.to_owned(), index, length, records });
    }
    rings.push(watched(builder, map, random)?);
    Ok(rings)
}

/// Verifier is off: the lists are empty.
pub(crate) fn off(builder: &mut Builder) -> Result<Vec<Ring>, IsfError> {
    let head = builder.symbol(WATCHED)?;
    builder.link(&[head]);
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
            ("Irp", map.nonpaged.start + 16 * random.below(0x100_0000)),
            ("DueTickCount", random.below(1 << 32)),
            ("Inserted", 1),
            ("TrackedStackLocation", random.below(8)),
            ("CancelTimeoutTicks", random.below(0x10000)),
        ];
        let mut entry = builder.object("_VF_WATCHDOG_IRP")?;
        builder.fields(&mut entry, &values)?;
        let place = at + size * u64::from(number);
        builder.store(place, &entry);
        links.push(place);
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        records.push(RingRecord { index: number, values, frames: Vec::new() });
    }
    builder.link(&links);
    Ok(Ring { name: WATCHED.to_owned(), index: count, length: count, records })
}
