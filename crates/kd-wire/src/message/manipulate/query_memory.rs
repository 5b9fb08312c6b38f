//! QueryMemory, 0x315C.
//!
//! Which region an address lies in; says nothing about presence.
//!
//! ```text
//! Request
//!  16  u64  Address
//!  24  u64  Reserved
//!  32  u32  AddressSpace
//!  36  u32  Flags
//! Reply
//!  16  u64  Address
//!  24  u64  Reserved
//!  32  u32  AddressSpace
//!  36  u32  Flags
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 address: u64,
        24 reserved: u64,
        /// Request: 0. Reply: 0 process, 1 session, 2 kernel.
        32 address_space: u32,
        36 flags: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 address: u64,
        24 reserved: u64,
        /// Request: 0. Reply: 0 process, 1 session, 2 kernel.
        32 address_space: u32,
        36 flags: u32,
    }
}
