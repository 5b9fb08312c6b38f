//! SetInternalBreakPoint, 0x3142.
//!
//! Legacy watch-and-trace: counts calls of an address. Never answered.
//!
//! ```text
//! Request
//!  16  u64  BreakPointAddress
//!  24  u32  Flags
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 break_point_address: u64,
        24 flags: u32,
    }
}
