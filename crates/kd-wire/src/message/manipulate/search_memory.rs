//! SearchMemory, 0x3156.
//!
//! Searches for a pattern. Not found: 8000001A, or C0000001 from targets that cannot search.
//!
//! ```text
//! Request
//!  16  u64  SearchAddress
//!  24  u64  SearchLength
//!  32  u32  PatternLength
//!  56  ...  The pattern
//! Reply
//!  16  u64  FoundAddress
//!  24  u64  SearchLength
//!  32  u32  PatternLength
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 search_address: u64,
        24 search_length: u64,
        32 pattern_length: u32,
    }
    +
    /// The pattern.
    data
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 found_address: u64,
        24 search_length: u64,
        32 pattern_length: u32,
    }
}
