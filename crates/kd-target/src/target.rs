//! A target in its two states, and what a running one can be asked.

use std::sync::Arc;
use std::time::Duration;

use crate::order::Command;
use crate::session::Session;
use crate::status::Phase;
use crate::{Cost, Gate, Halted, Holder, Leave, Leaver, Left, Meter, TargetError, actor};

/// A target in one of its two states. Commands that need the other state do not compile.
pub enum Target {
    /// It stands still.
    Halted(Halted),
    /// It runs, or was not met yet.
    Running(Running),
}

impl Target {
    /// The state the target is in now: a halted one may have been reset, a running one may have stopped by itself.
    pub fn current(self) -> Self {
        match self {
            Self::Halted(halted) if !halted.is_current() => Self::Running(Running { session: halted.session }),
            Self::Running(running) => {
                let phase = running.session.shared.status().phase.clone();
                match phase {
                    Phase::Halted(halt) => Self::Halted(Halted::new(running.session, halt)),
                    Phase::Running | Phase::Over(_) => Self::Running(running),
                }
            }
            halted => halted,
        }
    }

    /// From now on `gate` looks at large reads.
    pub fn use_gate(&self, gate: Arc<dyn Gate>) {
        self.session().shared.gate().0 = Some(gate);
    }

    /// For whoever shows progress.
    pub fn meter(&self) -> Meter {
        Meter(self.session().shared.clone())
    }

    /// What the session has cost by now.
    pub fn cost(&self) -> Cost {
        self.session().shared.status().cost()
    }

    /// Why the session is over, if it is.
    pub fn lost(&self) -> Option<String> {
        match &self.session().shared.status().phase {
            Phase::Over(why) => Some(why.clone()),
            Phase::Running | Phase::Halted(_) => None,
        }
    }

    /// Ends the session. Says what became of the target; [`Left::may_stand`] is what its user must hear of.
    pub fn leave(self, leave: Leave) -> Left {
        self.session().leave(leave)
    }

    /// For who limits how long commands may hold the target.
    pub fn holder(&self) -> Holder {
        let Session { shared, commands } = self.session();
        Holder { commands: commands.clone(), shared: shared.clone() }
    }

    fn session(&self) -> &Session {
        match self {
            Self::Halted(halted) => &halted.session,
            Self::Running(running) => &running.session,
        }
    }
}

/// The target runs, or is not connected yet: it can only be asked to stop.
pub struct Running {
    pub(crate) session: Session,
}

impl Running {
    /// For signal handlers.
    pub fn leaver(&self) -> Leaver {
        Leaver { commands: self.session.commands.clone(), shared: self.session.shared.clone() }
    }

    /// What the session has cost by now.
    pub fn cost(&self) -> Cost {
        self.session.shared.status().cost()
    }

    /// Breaks in and waits for the stop. A target that was met before and is not heard of at all for some seconds is
    /// called gone, whatever patience is left; the break-in stays asked for.
    #[allow(clippy::result_large_err)] // The target comes back with the error: it still has to be let go.
    pub fn break_in(self, patience: Duration) -> Result<Halted, (Self, TargetError)> {
        // A closed channel shows below as a session that is over.
        let _ = self.session.commands.send(Command::BreakIn);
        if patience <= actor::GONE {
            return self.wait(Some(patience));
        }
        match self.wait(Some(actor::GONE)) {
            Err((running, TargetError::Timeout(_))) if running.is_gone() => {
                Err((running, TargetError::Gone(actor::GONE)))
            }
            Err((running, TargetError::Timeout(_))) => running.wait(Some(patience - actor::GONE)),
            result => result,
        }
    }

    fn is_gone(&self) -> bool {
        let met = self.session.shared.status().heard.is_some();
        met && !self.session.shared.was_heard_within(actor::GONE)
    }

    /// Waits until the target stops by itself, at most `patience` (for ever without one).
    #[allow(clippy::result_large_err)] // The target comes back with the error: it still has to be let go.
    pub fn wait(self, patience: Option<Duration>) -> Result<Halted, (Self, TargetError)> {
        match self.session.shared.wait_for_halt(patience) {
            Ok(Some(halt)) => Ok(Halted::new(self.session, halt)),
            Ok(None) => Err((self, TargetError::Timeout(patience.unwrap_or_default()))),
            Err(fault) => Err((self, fault.into())),
        }
    }
}
