//! GetContextEx, 0x315F.
//!
//! Part of a CONTEXT (Windows 8 and later; C0000001 before).
//!
//! ```text
//! Request
//!  16  u32  Offset
//!  20  u32  ByteCount
//! Reply
//!  16  u32  Offset
//!  20  u32  ByteCount
//!  24  u32  BytesCopied
//!  56  ...  BytesCopied bytes
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 offset: u32,
        20 byte_count: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 offset: u32,
        20 byte_count: u32,
        24 bytes_copied: u32,
    }
    +
    /// BytesCopied bytes.
    data
}
