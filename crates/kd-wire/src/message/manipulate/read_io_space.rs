//! ReadIoSpace, 0x3139.
//!
//! Reads an I/O port.
//!
//! ```text
//! Request
//!  16  u64  IoAddress
//!  24  u32  DataSize
//! Reply
//!  16  u64  IoAddress
//!  24  u32  DataSize
//!  28  u32  DataValue
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 io_address: u64,
        /// 1, 2 or 4.
        24 data_size: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 io_address: u64,
        /// 1, 2 or 4.
        24 data_size: u32,
        28 data_value: u32,
    }
}
