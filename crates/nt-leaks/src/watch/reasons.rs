//! What a verdict rests on, in words for people.

use std::fmt;

use crate::stack::StackId;
use crate::units;

#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    NoLook,
    /// The counters could not be read.
    NotCounted,
    Change {
        then: u64,
        now: u64,
        elapsed_ms: u64,
        looks: usize,
        grew: usize,
        fell: usize,
    },
    /// Proved of blocks that are listed.
    BlocksSurvived {
        at_least: u64,
        of: u64,
        looks: usize,
        elapsed_ms: u64,
    },
    /// Proved by the counters alone.
    CountedSurvived {
        at_least: u64,
        of: u64,
        looks: usize,
        elapsed_ms: u64,
    },
    Freed {
        frees: u64,
        allocs: u64,
    },
    StackKeeps {
        stack: StackId,
        blocks: u64,
    },
    Rate {
        bytes_per_minute: f64,
        minutes_left: Option<f64>,
    },
    TooFew {
        looks: usize,
        least: usize,
    },
    Seldom {
        grew: usize,
        of: usize,
    },
    Setback {
        bytes: u64,
    },
    Burst,
    Churn {
        allocs: u64,
        frees: u64,
    },
    /// A tag of which as much is freed as allocated may grow by as much for a while.
    Chance,
    NoSurvivor,
    Young {
        age_ms: u64,
        asked_ms: u64,
    },
    /// Blocks of the tag usually live for longer than it was watched.
    Usual {
        age_ms: u64,
        life_ms: u64,
    },
}

impl Reason {
    /// It keeps growth from being called a leak.
    pub fn is_doubt(&self) -> bool {
        use Reason::{BlocksSurvived, Change, CountedSurvived, Freed, Rate, StackKeeps};
        !matches!(
            self,
            Change { .. }
                | BlocksSurvived { .. }
                | CountedSurvived { .. }
                | Freed { .. }
                | StackKeeps { .. }
                | Rate { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |count: u64| units::bytes(count as f64);
        let time = |ms: u64| units::time(ms as f64);
        match *self {
            Reason::NoLook => write!(f, "no check was made"),
            Reason::NotCounted => write!(f, "the tag's counters could not be read"),
            Reason::Change { then, now, elapsed_ms, looks, grew, fell } => write!(
                f,
                "{} at the mark, {} after {}; of {looks} checks {grew} grew, {fell} fell",
                bytes(then),
                bytes(now),
                time(elapsed_ms)
            ),
            Reason::BlocksSurvived { at_least, of, looks, elapsed_ms } => write!(
                f,
                "at least {at_least} of the {of} blocks of the mark survived {looks} checks, {}",
                time(elapsed_ms)
            ),
            Reason::CountedSurvived { at_least, of, looks, elapsed_ms } => write!(
                f,
                "at least {at_least} of {of} allocations survived {looks} checks, {}, by the counters",
                time(elapsed_ms)
            ),
            Reason::Freed { frees: 0, .. } => write!(f, "nothing of this tag was freed since the mark"),
            Reason::Freed { frees, allocs } => {
                write!(f, "since the mark {allocs} allocations of this tag and {frees} frees were counted")
            }
            Reason::StackKeeps { stack, blocks } => {
                write!(f, "all blocks of {stack} are still there, {blocks} of them new")
            }
            Reason::Rate { bytes_per_minute, minutes_left } => {
                write!(f, "it grows by {}/min", units::bytes(bytes_per_minute))?;
                match minutes_left {
                    Some(minutes) => {
                        write!(f, "; at this rate the pool is exhausted in {}", units::time(minutes * 60_000.0))
                    }
                    None => Ok(()),
                }
            }
            Reason::TooFew { looks, least } => {
                write!(f, "{looks} checks are too few for a verdict (at least {least})")
            }
            Reason::Seldom { grew, of } => {
                write!(f, "it grew in {grew} of {of} intervals only: longer ones tell more (-every)")
            }
            Reason::Setback { bytes: fallen } => write!(f, "in between it fell by {}", bytes(fallen)),
            Reason::Burst => write!(f, "nearly all of the growth came at once"),
            Reason::Churn { allocs, frees } => {
                write!(
                    f,
                    "of {allocs} allocations since the mark, or others, {frees} were freed: what stays is not proved"
                )
            }
            Reason::Chance => {
                write!(
                    f,
                    "it grew by no more than a tag that is allocated and freed as often as this one may by chance"
                )
            }
            Reason::NoSurvivor => write!(f, "no block is proved to have survived"),
            Reason::Young { age_ms, asked_ms } => {
                write!(f, "no survivor is as old as -min-age {} yet ({})", time(asked_ms), time(age_ms))
            }
            Reason::Usual { age_ms, life_ms } => write!(
                f,
                "its blocks may live for {} and be freed then; it was watched for {} (-for, -min-age)",
                time(life_ms),
                time(age_ms)
            ),
        }
    }
}
