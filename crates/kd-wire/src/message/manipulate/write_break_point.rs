//! WriteBreakPoint, 0x3134.
//!
//! Plants a breakpoint and takes one of the target's 32 slots.
//!
//! C0000001: the table is full or the address has an entry already.
//!
//! ```text
//! Request
//!  16  u64  BreakPointAddress
//! Reply
//!  16  u64  BreakPointAddress
//!  24  u32  BreakPointHandle
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 break_point_address: u64,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 break_point_address: u64,
        /// 1 to 32.
        24 break_point_handle: u32,
    }
}
