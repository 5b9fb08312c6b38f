//! ReadVirtualMemory, 0x3130.
//!
//! Reads through the page tables of the processor that stopped.
//!
//! A capped read succeeds: status 0 with ActualBytesRead below TransferCount. A fault part-way is
//! C0000001 with the bytes before it.
//!
//! ```text
//! Request
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//! Reply
//!  16  u64  TargetBaseAddress
//!  24  u32  TransferCount
//!  28  u32  ActualBytesRead
//!  56  ...  The bytes read
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 target_base_address: u64,
        /// Bytes asked for.
        24 transfer_count: u32,
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
    /// The bytes read; use [`Reply::prefix`].
    data
}

impl Reply {
    /// What was read: the data, cut at ActualBytesRead. Good bytes even when ReturnStatus is a failure.
    pub fn prefix(&self) -> bytes::Bytes {
        self.data.slice(..self.data.len().min(self.actual_bytes_read as usize))
    }
}
