//! WritePhysicalMemory, 0x313E.
//!
//! Writes physical memory.
//!
//! ```text
//! Request
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  Caching
//!  56  ...  The bytes to write
//! Reply
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  ActualBytesWritten
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 target_base_address: u64,
        /// Bytes of data that follow.
        24 transfer_count: u32,
        /// 0 default, 1 cached, 2 uncached, 3 write-combined.
        28 caching: u32,
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
}
