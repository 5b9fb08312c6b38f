//! WriteControlSpace, 0x3138.
//!
//! Writes KSPECIAL_REGISTERS (selector 2). ReactOS echoes the data, Windows does not.
//!
//! ```text
//! Request
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  56  ...  The bytes to write
//! Reply
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  ActualBytesWritten
//!  56  ...  Only ReactOS sends some
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 target_base_address: u64,
        /// Bytes of data that follow.
        24 transfer_count: u32,
    }
    +
    /// The bytes to write.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 target_base_address: u64,
        /// Bytes asked for.
        24 transfer_count: u32,
        28 actual_bytes_written: u32,
    }
    +
    /// Only ReactOS sends some.
    data
}
