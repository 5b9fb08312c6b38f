//! WriteMachineSpecificRegister, 0x3153.
//!
//! Writes an MSR of the processor that stopped, whichever the header names.
//!
//! ```text
//! Request
//!  16  u32  Msr
//!  20  u32  DataValueLow
//!  24  u32  DataValueHigh
//! Reply
//!  16  u32  Msr
//!  20  u32  DataValueLow
//!  24  u32  DataValueHigh
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 msr: u32,
        20 data_value_low: u32,
        24 data_value_high: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 msr: u32,
        20 data_value_low: u32,
        24 data_value_high: u32,
    }
}
