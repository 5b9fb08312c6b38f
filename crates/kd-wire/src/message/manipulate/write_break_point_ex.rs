//! WriteBreakPointEx, 0x3147.
//!
//! Plants several breakpoints.
//!
//! ```text
//! Request
//!  16  u32  BreakPointCount
//!  20  u32  ContinueStatus
//!  56  ...  Per breakpoint: address u64, handle u32, padding u32
//! Reply
//!  16  u32  BreakPointCount
//!  20  u32  ContinueStatus
//!  56  ...  The same array with handles
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
    /// Per breakpoint: address u64, handle u32, padding u32.
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
    /// The same array with handles.
    data
}
