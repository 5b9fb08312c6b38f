//! How a session ends, seen from the command line: one way for `q`, the end of input, a connection that took too long,
//! and a panic. Signals end in signals.rs, with the same words.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use kd_target::Left;

use crate::console::{complain, remark_json};
use crate::{CONNECTION_LOST, signals};

/// Longer than letting go may take.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(30);

/// What the session came to, once its target is let go. `told`: the user heard already what became of the target.
pub(crate) fn conclude(
    worked: std::thread::Result<Result<ExitCode>>,
    left: &Left,
    told: bool,
    json: bool,
) -> Result<ExitCode> {
    // A signal's own status is what a shell expects.
    if signals::is_ending() {
        std::thread::sleep(SIGNAL_PATIENCE);
    }
    let may_stand = left.may_stand();
    if may_stand && !told {
        complain(&left.to_string());
        if json {
            remark_json(&left.to_string());
        }
    }
    // Nothing was held then, and the status says already that there was no connection.
    let unmet = matches!(left, Left::Unmet { .. });
    match worked {
        Ok(status) if !may_stand || unmet => status,
        Err(panic) if !may_stand => std::panic::resume_unwind(panic),
        _ => Ok(ExitCode::from(CONNECTION_LOST)),
    }
}
