//! SetContext, 0x3133.
//!
//! Replaces a processor's CONTEXT. Fails with C0000001 unless GetContext came first in this stop.
//!
//! ```text
//! Request
//!  16  u32  ContextFlags
//!  56  ...  The whole CONTEXT record
//! Reply
//! nothing beyond the header
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 context_flags: u32,
    }
    +
    /// The whole CONTEXT record.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
    }
}
