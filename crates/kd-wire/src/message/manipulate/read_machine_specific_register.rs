//! ReadMachineSpecificRegister, 0x3152.
//!
//! Reads an MSR. C000000E: it cannot be read.
//!
//! ```text
//! Request
//!  16  u32  Msr
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
