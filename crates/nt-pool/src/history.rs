//! What a pool log's records say together.

use std::collections::{HashMap, HashSet};

use crate::pool_log::{Operation, Trace};

/// Allocations that the log shows no later free of, newest first. `traces` are newest first, as the log gives them.
///
/// What an address was last used for decides: if its newest record is of an allocation, that is outstanding as far as
/// the log goes. Blocks allocated before the log's oldest record are not in it.
pub fn outstanding<'t>(traces: &'t [Trace], operation: &dyn Fn(&Trace) -> Operation) -> Vec<&'t Trace> {
    let mut seen = HashSet::new();
    let newest = traces.iter().filter(|trace| seen.insert(trace.address));
    newest.filter(|trace| operation(trace) == Operation::Allocate).collect()
}

/// Records with the same stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
    /// Records.
    pub count: u64,
    /// What they asked for, in all.
    pub bytes: u64,
    /// The newest record's.
    pub sequence: u32,
}

/// Puts records with the same stack together: most bytes first, then most records, then the newest.
pub fn group<'t>(traces: impl IntoIterator<Item = &'t Trace>) -> Vec<Group> {
    let mut places: HashMap<&[u64], usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for trace in traces {
        let place = *places.entry(&trace.frames).or_insert_with(|| {
            groups.push(Group { frames: trace.frames.clone(), count: 0, bytes: 0, sequence: trace.sequence });
            groups.len() - 1
        });
        groups[place].count += 1;
        groups[place].bytes = groups[place].bytes.saturating_add(trace.size);
    }
    // Stable: groups come newest first, as their first records do.
    groups.sort_by_key(|group| std::cmp::Reverse((group.bytes, group.count)));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(sequence: u32, address: u64, size: u64, frames: &[u64]) -> Trace {
        Trace { sequence, address, size, thread: 0, frames: frames.to_vec() }
    }

    /// A stack that starts with 1 is of an allocation, with 2 of a free.
    fn operation(trace: &Trace) -> Operation {
        match trace.frames.first() {
            Some(1) => Operation::Allocate,
            Some(2) => Operation::Free,
            _ => Operation::Unknown,
        }
    }

    #[test]
    fn the_newest_record_of_an_address_decides() {
        let traces = [
            trace(9, 0x1000, 8, &[1]),
            trace(8, 0x2000, 8, &[2]),
            trace(7, 0x1000, 8, &[2]),
            trace(6, 0x3000, 8, &[3]),
            trace(5, 0x2000, 8, &[1]),
            trace(4, 0x3000, 8, &[1]),
            trace(3, 0x4000, 8, &[1]),
        ];
        let sequences: Vec<_> = outstanding(&traces, &operation).iter().map(|trace| trace.sequence).collect();
        assert_eq!(sequences, [9, 3]);
    }

    #[test]
    fn stacks_are_counted_by_bytes() {
        let traces = [
            trace(9, 0, 0x10, &[1, 5]),
            trace(8, 0, 0x20, &[1, 6]),
            trace(7, 0, 0x10, &[1, 5]),
            trace(6, 0, 0x20, &[1, 7]),
            trace(5, 0, u64::MAX, &[]),
            trace(4, 0, 1, &[]),
        ];
        let groups = group(&traces);
        let seen: Vec<_> = groups.iter().map(|g| (g.frames.len(), g.count, g.bytes, g.sequence)).collect();
        assert_eq!(seen, [(0, 2, u64::MAX, 5), (2, 2, 0x20, 9), (2, 1, 0x20, 8), (2, 1, 0x20, 6)]);
    }
}
