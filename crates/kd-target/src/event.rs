//! What happens to a session on its own, and what goes wrong in it.

use std::time::Duration;

use nt_memory::Fault;

/// What happens to the session on its own; the shell shows it when it sees fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Text that a driver printed (DbgPrint), untouched.
    Print(String),
    /// A prompt of the target (`DbgPrompt`) that was answered for it.
    Prompt {
        /// What the target asked, untouched.
        text: String,
        /// What it was told: `i` to an assertion, else an empty line.
        answer: String,
    },
    /// The transport is up: KDNET has keys with this peer, or a stream is open.
    Connected {
        /// The target's address; none on a stream.
        peer: Option<std::net::SocketAddr>,
    },
    /// The target said that it reboots, or came back without saying so.
    Restarted {
        /// It said so before it went; else it was found to be another boot.
        announced: bool,
    },
    /// The target stopped. [`Running::wait`](crate::Running::wait) and [`Running::break_in`](crate::Running::break_in) return the stop itself.
    Stopped,
    /// Something that a person who wonders why it does not connect wants to know.
    Diagnostic(kd_wire::session::Diagnostic),
    /// A driver was loaded or unloaded while the target ran; it was continued at once.
    ModuleChange {
        /// As the kernel names it: `\SystemRoot\system32\drivers\x.sys`.
        path: String,
        /// Where its image lies.
        base: u64,
        /// Bytes of its image.
        size: u32,
        /// It went; else it came.
        unload: bool,
    },
    /// A lone break-in of before was answered only now; the target was continued at once.
    BreakInAbsorbed,
    /// The target was continued after a stop of its own and did not take this breakpoint of ours: its memory is gone.
    BreakpointMissed {
        /// Where it was to be.
        address: u64,
        /// What the target answered.
        why: String,
    },
    /// The target stands and does not answer any more. It is asked until it does.
    Silent,
    /// The target that did not answer does again; it stands where it stood.
    AnswersAgain,
    /// The session is over, for this reason.
    Lost(String),
}

/// Why the target did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Memory cannot be read, the target runs, or the session is over.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It did not stop; the break-in stays asked for.
    #[error("the target did not stop within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Nothing is heard of a target that is asked to stop.
    #[error("no answer for {} s: the target is gone, or its line is", .0.as_secs())]
    Gone(Duration),
    /// A target that stands did not answer a request.
    #[error("the target does not answer any more ({0})")]
    Silent(kd_wire::session::RequestFailure),
    /// The target answered with an error, or cannot do it; what and why, as a sentence.
    #[error("{0}")]
    Refused(String),
}
