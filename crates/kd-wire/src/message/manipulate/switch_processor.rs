//! SwitchProcessor, 0x3150.
//!
//! Moves the stop to the processor that the header names. Never answered: a new state change comes.
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
