//! FillMemory, 0x315B.
//!
//! Fills memory with a repeated pattern.
//!
//! ```text
//! Request
//!  16  u64  Address
//!  24  u32  Length
//!  28  u16  Flags
//!  30  u16  PatternLength
//!  56  ...  The pattern
//! Reply
//!  16  u64  Address
//!  24  u32  Length
//!  28  u16  Flags
//!  30  u16  PatternLength
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 address: u64,
        /// Reply: bytes filled.
        24 length: u32,
        /// 1 virtual, 2 physical.
        28 flags: u16,
        30 pattern_length: u16,
    }
    +
    /// The pattern.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 address: u64,
        /// Reply: bytes filled.
        24 length: u32,
        /// 1 virtual, 2 physical.
        28 flags: u16,
        30 pattern_length: u16,
    }
}
