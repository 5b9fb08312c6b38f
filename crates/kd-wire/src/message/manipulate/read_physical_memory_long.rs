//! ReadPhysicalMemoryLong, 0x3162.
//!
//! Reads physical memory, run-length encoded; only the newest targets know it.
//!
//! ```text
//! Request
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  Caching
//! Reply
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  ActualBytesRead
//!  56  ...  Run-length encoded
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 target_base_address: u64,
        /// Bytes asked for.
        24 transfer_count: u32,
        /// 0 default, 1 cached, 2 uncached, 3 write-combined.
        28 caching: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 target_base_address: u64,
        /// Bytes asked for.
        24 transfer_count: u32,
        /// Bytes copied before the first fault, or before the target's packet was full.
        28 actual_bytes_read: u32,
    }
    +
    /// Run-length encoded.
    data
}
