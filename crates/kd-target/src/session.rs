//! The connection that both states of a target hold.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::order::Command;
use crate::status::Shared;
use crate::{Leave, Left};

/// The connection; it moves between the two states of [`Target`].
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
}

impl Session {
    pub(crate) fn leave(&self, leave: Leave) -> Left {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Leave { leave, done }).is_ok() {
            // `blocking_recv` has no deadline; the task keeps one of its own (actor/leaving.rs).
            let _ = is_done.blocking_recv();
        }
        self.shared.status().left()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.leave(Leave::Running);
    }
}
