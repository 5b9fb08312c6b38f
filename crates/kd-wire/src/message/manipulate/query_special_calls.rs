//! QuerySpecialCalls, 0x313F.
//!
//! Asks for the calls that the legacy watch-and-trace treats specially.
//!
//! ```text
//! Request
//! nothing beyond the header
//! Reply
//!  16  u32  NumberOfSpecialCalls
//!  56  ...  One u64 per call
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 number_of_special_calls: u32,
    }
    +
    /// One u64 per call.
    data
}
