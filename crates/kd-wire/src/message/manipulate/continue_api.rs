//! Continue, 0x3136.
//!
//! Lets the target run. Acknowledged, never answered.
//!
//! ```text
//! Request
//!  16  u32  ContinueStatus
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        /// 0x00010002 DBG_CONTINUE, 0x00010001 DBG_EXCEPTION_HANDLED, 0x80010001 DBG_EXCEPTION_NOT_HANDLED.
        16 continue_status: u32,
    }
}
