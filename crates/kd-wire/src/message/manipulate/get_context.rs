//! GetContext, 0x3132.
//!
//! A processor's whole CONTEXT: 0x4D0 bytes on x64, 0x2CC on x86, 0x390 on arm64.
//!
//! ```text
//! Request
//!  16  u32  ContextFlags
//! Reply
//!  56  ...  The CONTEXT record
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        /// Ignored by targets.
        16 context_flags: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
    }
    +
    /// The CONTEXT record.
    data
}
