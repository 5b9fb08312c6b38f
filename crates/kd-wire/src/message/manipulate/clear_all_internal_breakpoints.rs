//! ClearAllInternalBreakpoints, 0x315A.
//!
//! Legacy watch-and-trace. Never answered.
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
