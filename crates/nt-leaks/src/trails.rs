//! What each stack had in use at the looks of a watch: the lines beside the stacks of a page.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::CheckReport;
use crate::stack::StackId;

/// Points that are kept of a line. A watch that goes on for hours keeps every second, fourth, eighth look, and the last.
const MOST: usize = 64;

/// Bytes in use by stack, look by look.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Trails {
    /// When was looked, of the target's running time since the mark, which is the first point.
    pub elapsed_ms: Vec<u64>,
    /// In the order in which they were seen.
    pub stacks: Vec<Trail>,
    #[serde(skip)]
    pace: Pace,
}

/// One stack's line.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Trail {
    /// Its name, as the check's groups have it.
    pub stack: StackId,
    /// As many as [`Trails::elapsed_ms`].
    pub bytes: Vec<u64>,
}

/// Which looks are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pace {
    looks: usize,
    /// Every so many looks one stays.
    stride: usize,
    /// The last point goes when the next one comes.
    is_passing: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { looks: 0, stride: 1, is_passing: false }
    }
}

impl Trails {
    /// No check had a stack.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }

    /// Adds what one more check found.
    pub fn add(&mut self, report: &CheckReport) {
        if self.elapsed_ms.is_empty() {
            self.elapsed_ms.push(0);
        }
        if self.pace.is_passing {
            self.elapsed_ms.pop();
            self.stacks.iter_mut().for_each(|trail| trail.bytes.truncate(self.elapsed_ms.len()));
        }
        let mut places: BTreeMap<StackId, usize> =
            self.stacks.iter().enumerate().map(|(place, trail)| (trail.stack, place)).collect();
        for group in &report.stacks {
            let Some(stack) = group.id else { continue };
            let place = *places.entry(stack).or_insert(self.stacks.len());
            if place == self.stacks.len() {
                let mut bytes = vec![0; self.elapsed_ms.len()];
                // What it had at the mark, by what it grew by since.
                bytes[0] = group.bytes.saturating_add_signed(group.delta_bytes.saturating_neg());
                self.stacks.push(Trail { stack, bytes });
            }
            self.stacks[place].bytes.push(group.bytes);
        }
        self.elapsed_ms.push(report.elapsed_ms);
        // A stack that the check has no more has nothing in use.
        self.stacks.iter_mut().for_each(|trail| trail.bytes.resize(self.elapsed_ms.len(), 0));
        self.pace.looks += 1;
        self.pace.is_passing = !self.pace.looks.is_multiple_of(self.pace.stride);
        if !self.pace.is_passing && self.elapsed_ms.len() > MOST {
            self.thin();
        }
    }

    /// Drops every second point, and neither the first nor the last.
    fn thin(&mut self) {
        let halved = |points: &[u64]| -> Vec<u64> { points.iter().copied().step_by(2).collect() };
        self.elapsed_ms = halved(&self.elapsed_ms);
        self.stacks.iter_mut().for_each(|trail| trail.bytes = halved(&trail.bytes));
        self.pace.stride *= 2;
    }

    /// One stack's points; `None`: no check had it.
    pub fn of(&self, stack: StackId) -> Option<&[u64]> {
        self.stacks.iter().find(|trail| trail.stack == stack).map(|trail| &trail.bytes[..])
    }

    /// Adds the lines of another tag, which was watched at the same looks.
    pub(crate) fn merge(&mut self, other: &Trails) {
        if self.elapsed_ms != other.elapsed_ms {
            return;
        }
        for trail in &other.stacks {
            match self.stacks.iter_mut().find(|known| known.stack == trail.stack) {
                None => self.stacks.push(trail.clone()),
                Some(known) => {
                    let sums = known.bytes.iter().zip(&trail.bytes).map(|(a, b)| a.saturating_add(*b));
                    known.bytes = sums.collect();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Group;
    use crate::stack::{Frame, Stacks};

    fn stack(name: &str) -> StackId {
        Stacks::default().add(vec![Frame { address: 1, module: Some(name.into()), offset: 1, symbol: None }])
    }

    fn report(elapsed_ms: u64, groups: &[(StackId, u64, i64)]) -> CheckReport {
        let group = |&(id, bytes, delta_bytes): &(StackId, u64, i64)| Group {
            id: Some(id),
            bytes,
            count: 1,
            delta_bytes,
            delta_count: 1,
            frames: Vec::new(),
        };
        CheckReport { elapsed_ms, stacks: groups.iter().map(group).collect(), ..CheckReport::default() }
    }

    #[test]
    fn each_stack_has_a_point_at_each_look() {
        let (a, b) = (stack("a"), stack("b"));
        let mut trails = Trails::default();
        trails.add(&report(1000, &[(a, 300, 200)]));
        trails.add(&report(2000, &[(a, 400, 300), (b, 50, 50)]));
        trails.add(&report(3000, &[(b, 70, 70)]));
        assert_eq!(trails.elapsed_ms, [0, 1000, 2000, 3000]);
        assert_eq!(trails.of(a), Some(&[100, 300, 400, 0][..]));
        assert_eq!(trails.of(b), Some(&[0, 0, 50, 70][..]));
        assert_eq!(trails.of(stack("c")), None);
        let mut both = trails.clone();
        both.merge(&trails);
        assert_eq!(both.of(b), Some(&[0, 0, 100, 140][..]));
    }

    /// A night has thousands of looks.
    #[test]
    fn a_long_watch_keeps_few_points_the_first_and_the_last() {
        let a = stack("a");
        let mut trails = Trails::default();
        for look in 1..=5000 {
            trails.add(&report(look, &[(a, look, look as i64)]));
            let points = trails.of(a).unwrap();
            assert!(points.len() == trails.elapsed_ms.len() && points.len() <= MOST + 1);
            assert_eq!((points[0], points.last()), (0, Some(&look)));
            assert!(trails.elapsed_ms.is_sorted_by(|a, b| a < b) && trails.elapsed_ms == points);
        }
    }
}
