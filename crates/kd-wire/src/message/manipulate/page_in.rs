//! PageIn, 0x3151.
//!
//! Obsolete.
//!
//! ```text
//! Request
//!  16  u64  Address
//!  24  u32  ContinueStatus
//! Reply
//!  16  u64  Address
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 address: u64,
        24 continue_status: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 address: u64,
    }
}
