//! What is not being watched: said before everything else.

use nt_pool::verifier::{self, POOL_TRACKING, SPECIAL_POOL};

use crate::error::CommandError;
use crate::kept_log as kept;
use crate::session::Context;

/// How to turn it on.
pub(super) const TURN_ON: &str = "on the target: verifier /flags 8 /driver NAME.sys, then restart it";

/// At most one line.
pub(super) fn remark(context: &mut Context<'_>, level: u32) -> Result<Option<String>, CommandError> {
    if !context.pool(verifier::any_driver)? {
        return Ok(Some(format!("No driver is verified ({TURN_ON}).")));
    }
    if level & (SPECIAL_POOL | POOL_TRACKING) == 0 {
        return Ok(Some(format!("Pool tracking and special pool are both off: no allocation is watched ({TURN_ON}).")));
    }
    match kept::position(context)? {
        None => Ok(Some("The kernel keeps no pool log.".into())),
        Some(position) if position.index == 0 => {
            Ok(Some("The pool log is empty: no verified driver has allocated or freed pool since it was made.".into()))
        }
        Some(position) => kept::wrapped(context, position),
    }
}
