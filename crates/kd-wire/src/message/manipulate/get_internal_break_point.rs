//! GetInternalBreakPoint, 0x3143.
//!
//! Legacy watch-and-trace: reads the counters of an address.
//!
//! ```text
//! Request
//!  16  u64  BreakPointAddress
//! Reply
//!  16  u64  BreakPointAddress
//!  24  u32  Flags
//!  28  u32  Calls
//!  32  u32  MaxCallsPerPeriod
//!  36  u32  MinInstructions
//!  40  u32  MaxInstructions
//!  44  u32  TotalInstructions
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
        24 flags: u32,
        28 calls: u32,
        32 max_calls_per_period: u32,
        36 min_instructions: u32,
        40 max_instructions: u32,
        44 total_instructions: u32,
    }
}
