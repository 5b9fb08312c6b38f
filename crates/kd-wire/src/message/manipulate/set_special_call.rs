//! SetSpecialCall, 0x3140.
//!
//! Legacy watch-and-trace: adds a special call. Never answered.
//!
//! ```text
//! Request
//!  16  u64  SpecialCall
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 special_call: u64,
    }
}
