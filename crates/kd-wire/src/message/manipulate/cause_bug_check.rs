//! CauseBugCheck, 0x3149.
//!
//! Crashes the target. Never answered; it dumps and restarts.
//!
//! ```text
//! Request
//!  16  u32  BugCheckCode
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        /// 0xE2 by convention.
        16 bug_check_code: u32,
    }
}
