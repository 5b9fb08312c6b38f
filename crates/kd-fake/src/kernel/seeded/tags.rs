//! Tag tables with random rows.

use std::collections::BTreeSet;

use super::places::Map;
use crate::isf::IsfError;
use crate::kernel::books::Usage;
use crate::kernel::builder::Builder;
use crate::kernel::pool::{TagRow, TagTables, tag};
use crate::kernel::random::Random;

/// Rows of the tables, summed over the processors; the row of what found no place is the last of `main`.
pub(crate) struct Rows {
    pub(crate) main: Vec<TagRow>,
    pub(crate) expansion: Vec<TagRow>,
}

pub(crate) fn write(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    processors: usize,
    balanced: bool,
) -> Result<Rows, IsfError> {
    // Allocs and frees have 32 bits, with a sign, up to 1703.
    let (_, counter) = builder.isf.member("_POOL_TRACKER_TABLE", "NonPagedAllocs")?;
    let wide = builder.isf.size_of(counter)? == 8;
    let rows = 256 << random.below(3);
    // Every block's tag finds a place: what is counted elsewhere does not balance.
    let slots = if balanced { 2048 } else { rows };
    let mut used = BTreeSet::new();
    let mut main = Vec::new();
    for _ in 0..rows / 2 + random.below(rows / 4) {
        let name = name(random);
        if used.insert(name) {
            main.push(row(name, wide, balanced, random));
        }
    }
    let count = if random.once_in(2) { 0 } else { 1 + random.below(20) };
    let expansion: Vec<TagRow> = (0..count)
        .map(|_| {
            // Half of them have a row in the tables too.
            let name = if random.once_in(2) { random.pick(&main).tag } else { name(random) };
            row(name, wide, balanced, random)
        })
        .collect();
    let last = row(tag(b"Ovfl"), wide, balanced, random);
    let size = builder.isf.size("_POOL_TRACKER_TABLE")? * (slots + 1);
    let tables: Vec<u64> = (0..processors).map(|_| map.room(size)).collect();
    let place = TagTables { tables: &tables, slots, expansion: map.room(0x2000) };
    // A processor's part of a row must be known when the master's is written, which has the rest.
    let mut all: Vec<&TagRow> = main.iter().collect();
    all.push(&last);
    let parts: Vec<(u32, Vec<Option<TagRow>>)> =
        all.into_iter().map(|row| (row.tag, split(row, processors, random))).collect();
    let part = |row: &TagRow, processor: u64| {
        let (_, parts) = parts.iter().find(|(tag, _)| *tag == row.tag)?;
        parts[processor as usize]
    };
    builder.pool_tags(&place, &main, Some(&last), &expansion, part)?;
    main.push(last);
    Ok(Rows { main, expansion })
}

/// Mostly letters, as drivers choose them; some protected, some with blanks or with what cannot be printed.
pub(crate) fn name(random: &mut Random) -> u32 {
    let letters = b"ABCDEFGHIKLMNOPRSTUVWabcdefghiklmnoprstuvw0123456789";
    let mut name: [u8; 4] = std::array::from_fn(|_| *random.pick(letters));
    match random.below(12) {
        0 => name[3] = b' ',
        1 => name[1] = random.below(0x20) as u8 + 1,
        2 => name[3] |= 0x80,
        _ => {}
    }
    u32::from_le_bytes(name)
}

/// `balanced`: all that was allocated is freed, for there are no blocks of it.
pub(crate) fn row(tag: u32, wide: bool, balanced: bool, random: &mut Random) -> TagRow {
    let mut usage = || {
        if random.once_in(3) {
            return Usage::default();
        }
        let limit = 1 << if wide { 4 + random.below(34) } else { 4 + random.below(26) };
        let frees = random.below(limit);
        let live = if random.once_in(5) || balanced { 0 } else { random.below(limit) };
        // Counters of 32 bits have wrapped on a machine that runs for long.
        let frees = if !wide && random.once_in(6) { frees + 0xffff_ff80 } else { frees };
        Usage { allocs: frees + live, frees, bytes: live * 16 * (1 + random.below(64)) }
    };
    TagRow { tag, nonpaged: usage(), paged: usage() }
}

/// Each processor's part; the first has the rest, so that a part may be below zero.
fn split(row: &TagRow, processors: usize, random: &mut Random) -> Vec<Option<TagRow>> {
    let mut first = *row;
    let mut parts = vec![None; processors];
    for part in parts.iter_mut().skip(1) {
        if random.once_in(3) {
            continue;
        }
        let mut take = |rest: &mut Usage| {
            let usage = Usage {
                allocs: random.below(row.nonpaged.allocs.max(row.paged.allocs) + 1),
                frees: random.below(row.nonpaged.frees.max(row.paged.frees) + 1),
                bytes: random.below(1 << 30).wrapping_sub(1 << 29),
            };
            rest.allocs = rest.allocs.wrapping_sub(usage.allocs);
            rest.frees = rest.frees.wrapping_sub(usage.frees);
            rest.bytes = rest.bytes.wrapping_sub(usage.bytes);
            usage
        };
        *part = Some(TagRow { tag: row.tag, nonpaged: take(&mut first.nonpaged), paged: take(&mut first.paged) });
    }
    parts[0] = Some(first);
    parts
}
