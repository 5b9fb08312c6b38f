//! ReadControlSpace, 0x3137.
//!
//! Control registers and processor blocks.
//!
//! On x64 and arm64 the address is a selector: 0 KPCR pointer, 1 KPRCB pointer, 2 KSPECIAL_REGISTERS,
//! 3 KTHREAD pointer. On x86 it is an offset into KPROCESSOR_STATE. ReactOS for amd64 stops itself on any
//! other selector.
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
