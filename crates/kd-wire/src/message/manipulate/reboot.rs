//! Reboot, 0x313B.
//!
//! Restarts the machine. Acknowledged, never answered.
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
