//! What a verdict rests on, in words for people.

use std::fmt;

use crate::stack::StackId;
use crate::units;

/// What a verdict rests on, or what keeps it from being a better one.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// Nothing was looked at.
    NoLook,
    /// What the survey of all tags saw before the mark.
    Before {
        /// Bytes.
        grew: u64,
        /// How often the counters were read.
        readings: usize,
        /// From the first to the last.
        elapsed_ms: u64,
    },
    /// The counters could not be read.
    NotCounted,
    /// How the bytes in use went.
    Change {
        /// At the mark.
        then: u64,
        /// At the last look.
        now: u64,
        /// Between the two.
        elapsed_ms: u64,
        /// Looks since the mark.
        looks: usize,
        /// How many of them found more than the one before.
        grew: usize,
        /// How many found less.
        fell: usize,
    },
    /// Proved of blocks that are listed.
    BlocksSurvived {
        /// So many of them, for certain.
        at_least: u64,
        /// Blocks of the mark.
        of: u64,
        /// Looks since the mark.
        looks: usize,
        /// Since the mark.
        elapsed_ms: u64,
    },
    /// Proved by the counters alone.
    CountedSurvived {
        /// So many of them, for certain.
        at_least: u64,
        /// Allocations at the mark.
        of: u64,
        /// Looks since the mark.
        looks: usize,
        /// Since the mark.
        elapsed_ms: u64,
    },
    /// What the counters say of freeing.
    Freed {
        /// Since the mark.
        frees: u64,
        /// Since the mark.
        allocs: u64,
    },
    /// One stack allocates, and nothing of it goes.
    StackKeeps {
        /// The place that allocates.
        stack: StackId,
        /// Of those that are there, the ones that the mark did not have.
        blocks: u64,
    },
    /// Too few looks to tell growth from chance.
    TooFew {
        /// How many there were.
        looks: usize,
        /// How many it takes.
        least: usize,
    },
    /// It grew now and then only.
    Seldom {
        /// Intervals in which it grew.
        grew: usize,
        /// All intervals.
        of: usize,
    },
    /// It shrank on the way.
    Setback {
        /// By so much at once.
        bytes: u64,
    },
    /// Nearly all of it came between two looks.
    Burst,
    /// Much of what is allocated is freed again.
    Churn {
        /// Since the mark.
        allocs: u64,
        /// Since the mark.
        frees: u64,
    },
    /// A tag of which as much is freed as allocated may grow by as much for a while.
    Chance,
    /// Of no block is it proved that it stayed.
    NoSurvivor,
    /// The survivors are younger than was asked for.
    Young {
        /// Of the oldest.
        age_ms: u64,
        /// The age that was asked for.
        asked_ms: u64,
    },
    /// Blocks of the tag usually live for longer than it was watched.
    Usual {
        /// For how long it was watched.
        age_ms: u64,
        /// How old blocks of the tag may become.
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
