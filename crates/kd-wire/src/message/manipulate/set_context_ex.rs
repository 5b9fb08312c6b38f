//! SetContextEx, 0x3160.
//!
//! Part of a CONTEXT. Windows commits when Offset + ByteCount reaches the total.
//!
//! ```text
//! Request
//!  16  u32  Offset
//!  20  u32  ByteCount
//!  24  u32  BytesCopied
//!  56  ...  The piece
//! Reply
//!  16  u32  Offset
//!  20  u32  ByteCount
//!  24  u32  BytesCopied
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 offset: u32,
        /// Bytes of this piece.
        20 byte_count: u32,
        /// Request: size of the whole CONTEXT.
        24 bytes_copied: u32,
    }
    +
    /// The piece.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 offset: u32,
        20 byte_count: u32,
        24 bytes_copied: u32,
    }
}
