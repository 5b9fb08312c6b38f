//! ClearSpecialCalls, 0x3141.
//!
//! Legacy watch-and-trace: forgets the special calls. Never answered.
//!
//! ```text
//! Request
//! nothing beyond the header
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
    }
}
