//! Handles for whoever does not hold the target itself: signals, limits, progress.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::order::Command;
use crate::status::Shared;
use crate::{Leave, Left, Pace};

/// What was asked of the target so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Requests sent, each counted again when it is asked anew.
    pub requests: u64,
    /// Bytes of memory that came over the wire.
    pub bytes_read: u64,
    /// Bytes sent to the target, headers included.
    pub bytes_sent: u64,
    /// How long the target stood still in all, since the session began.
    pub frozen: Duration,
}

/// Ends a session from outside the thread that holds the target: signals use it, and whoever wants to know how it ended.
#[derive(Clone)]
pub struct Leaver {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) shared: Arc<Shared>,
}

impl Leaver {
    /// Lets the target run and ends the session, if that is not done already.
    pub async fn leave(&self) -> Left {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Leave { leave: Leave::Running, done }).is_ok() {
            // The task may be gone already.
            let _ = is_done.await;
        }
        self.shared.status().left()
    }
}

/// Limits how long a command may hold the target: when the time is over the session's own task lets it run, whatever
/// the command is doing, and the command's next question to the target is answered with
/// [`Fault::Cancelled`](nt_memory::Fault::Cancelled).
#[derive(Clone)]
pub struct Holder {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) shared: Arc<Shared>,
}

impl Holder {
    /// A command begins. The time counts while the target stands, and anew from each stop.
    pub fn begin(&self, limit: Duration) {
        self.shared.taken_away.store(false, Ordering::Relaxed);
        // A session that is over holds nothing.
        let _ = self.commands.send(Command::Hold(Some(limit)));
    }

    /// It is over; the target may stand as long as its user likes. Whether it was taken from the command.
    pub fn end(&self) -> bool {
        let _ = self.commands.send(Command::Hold(None));
        self.shared.taken_away.swap(false, Ordering::Relaxed)
    }
}

/// Looks at what a session costs while another thread works with the target.
#[derive(Debug, Clone)]
pub struct Meter(pub(crate) Arc<Shared>);

impl Meter {
    /// What the session has cost by now.
    pub fn cost(&self) -> Cost {
        self.0.status().cost()
    }

    /// How fast this link has been so far.
    pub fn pace(&self) -> Pace {
        *self.0.pace()
    }
}
