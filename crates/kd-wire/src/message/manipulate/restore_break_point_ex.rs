//! RestoreBreakPointEx, 0x3148.
//!
//! Removes several breakpoints.
//!
//! ```text
//! Request
//!  16  u32  BreakPointCount
//!  20  u32  ContinueStatus
//!  56  ...  One u32 handle per breakpoint
//! Reply
//!  16  u32  BreakPointCount
//!  20  u32  ContinueStatus
//!  56  ...  One u32 status per breakpoint
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 break_point_count: u32,
        /// A failure makes the target continue: send 0.
        20 continue_status: u32,
    }
    +
    /// One u32 handle per breakpoint.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 break_point_count: u32,
        /// A failure makes the target continue: send 0.
        20 continue_status: u32,
    }
    +
    /// One u32 status per breakpoint.
    data
}
