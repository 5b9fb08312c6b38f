//! CheckLowMemory, 0x3159.
//!
//! Checks physical memory below 4 GiB. ReactOS for amd64 stops itself on this request.
//!
//! ```text
//! Request
//! nothing beyond the header
//! Reply
//! nothing beyond the header
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
    }
}
