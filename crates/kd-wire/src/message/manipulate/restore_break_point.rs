//! RestoreBreakPoint, 0x3135.
//!
//! Removes a breakpoint and frees its slot. C0000001: the slot is empty.
//!
//! ```text
//! Request
//!  16  u32  BreakPointHandle
//! Reply
//!  16  u32  BreakPointHandle
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 break_point_handle: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 break_point_handle: u32,
    }
}
