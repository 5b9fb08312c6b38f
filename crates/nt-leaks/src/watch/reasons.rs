//! What a verdict rests on, in words for people.

use std::fmt;

use crate::stack::StackId;
use crate::units;

#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    NoLook,
    /// What the survey of all tags saw before the mark.
    Before {
        grew: u64,
        readings: usize,
        elapsed_ms: u64,
    },
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
        use Reason::{Before, BlocksSurvived, Change, CountedSurvived, Freed, StackKeeps};
        !matches!(
            self,
            Before { .. }
                | Change { .. }
                | BlocksSurvived { .. }
                | CountedSurvived { .. }
                | Freed { .. }
                | StackKeeps { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |count: u64| units::bytes(count as f64);
        let time = |ms: u64| units::time(ms as f64);
        let checks = |looks: usize| units::count(looks as u64, "check");
        match *self {
            Reason::NoLook => write!(f, "no check was made"),
            Reason::Before { grew, readings, elapsed_ms } => {
                write!(f, "its counters grew by {} in {readings} readings, {}", bytes(grew), time(elapsed_ms))
            }
            Reason::NotCounted => write!(f, "the tag's counters could not be read"),
            Reason::Change { then, now, elapsed_ms, looks, grew, fell } => write!(
                f,
                "{} at the mark, {} after {}; of {} {grew} grew, {fell} fell",
                bytes(then),
                bytes(now),
                time(elapsed_ms),
                checks(looks)
            ),
            Reason::BlocksSurvived { at_least, of, looks, elapsed_ms } => write!(
                f,
                "at least {at_least} of the {of} blocks of the mark survived {}, {}",
                checks(looks),
                time(elapsed_ms)
            ),
            Reason::CountedSurvived { at_least, of, looks, elapsed_ms } => write!(
                f,
                "at least {at_least} of {of} allocations survived {}, {}, by the counters",
                checks(looks),
                time(elapsed_ms)
            ),
            Reason::Freed { frees: 0, .. } => write!(f, "nothing of this tag was freed since the mark"),
            Reason::Freed { frees, allocs } => {
                write!(f, "since the mark {allocs} allocations of this tag and {frees} frees were counted")
            }
            Reason::StackKeeps { stack, blocks } => {
                write!(f, "all blocks of {stack} are still there, {blocks} of them new")
            }
            Reason::TooFew { looks, least } => {
                let are = if looks == 1 { "is" } else { "are" };
                write!(f, "{} {are} too few for a verdict (at least {least})", checks(looks))
            }
            Reason::Seldom { grew, of } => {
                write!(f, "it grew in {grew} of {of} intervals only: longer ones tell more")
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
                write!(f, "no survivor is older than {}: {} were asked for", time(age_ms), time(asked_ms))
            }
            Reason::Usual { age_ms, life_ms } => write!(
                f,
                "its blocks may live for {} and be freed then; it was watched for {}",
                time(life_ms),
                time(age_ms)
            ),
        }
    }
}
