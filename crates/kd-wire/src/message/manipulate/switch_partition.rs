//! SwitchPartition, 0x315D.
//!
//! Hypervisor root or child partition. Never answered.
//!
//! ```text
//! Request
//!  16  u32  Partition
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 partition: u32,
    }
}
