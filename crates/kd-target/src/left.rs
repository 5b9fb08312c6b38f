//! How a session ends, and what is known then of the target that was left.

use std::time::Duration;

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The target runs on.
    Running,
    /// The target stays frozen until another debugger comes.
    Halted,
}

/// How a session ended: what is known of the target that was left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    /// It acknowledged a continue, and nothing of ours is left in it.
    #[error("The target runs.")]
    Running,
    /// As was wished.
    #[error("The target stands still until a debugger comes.")]
    Halted,
    /// Nothing was ever heard of it.
    #[error("Break-ins were sent that nothing answered: a target that gets them later stands until a debugger comes.")]
    Unmet {
        /// How many were sent.
        break_ins: u32,
    },
    /// It was asked to stop and did not answer.
    #[error("The target did not answer the last break-in: it may stand. {LET_GO}")]
    Unanswered,
    /// It was asked to run and did not acknowledge.
    #[error("The target did not acknowledge within {} s that it runs: it may still stand. {LET_GO}", .tried.as_secs())]
    Unacknowledged {
        /// How long that was tried.
        tried: Duration,
    },
    /// It runs into the same stop after every continue.
    #[error(
        "The target stops again at {program_counter:016x} after each continue, as a kernel does after a bug check: it \
         stands, until it is reset."
    )]
    StopsAgain {
        /// Where it stops.
        program_counter: u64,
    },
    /// The carrier ended before the target could be let go.
    #[error("The link was lost ({why}) while the target was held: it may still stand. {LET_GO}")]
    LinkLost {
        /// What the carrier said.
        why: String,
        /// It stood then, or was asked to.
        stood: bool,
        /// Something of ours was in it that stops it: a breakpoint, or memory changed for a while.
        changed: bool,
    },
    /// It runs with breakpoints of ours in it, or changed memory.
    #[error("The target did not stop to have its breakpoints taken out: it stands at the next one. {LET_GO}")]
    Changed,
}

const LET_GO: &str = "Attach again and quit (q) to let it go, or reset it.";

impl Left {
    /// Whether the target may stand although nobody wanted that.
    pub fn may_stand(&self) -> bool {
        match self {
            Left::Running | Left::Halted => false,
            Left::Unmet { break_ins } => *break_ins > 0,
            Left::LinkLost { stood, changed, .. } => *stood || *changed,
            Left::Unanswered | Left::Unacknowledged { .. } | Left::StopsAgain { .. } | Left::Changed => true,
        }
    }
}
