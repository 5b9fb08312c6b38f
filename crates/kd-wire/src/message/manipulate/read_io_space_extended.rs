//! ReadIoSpaceExtended, 0x3144.
//!
//! Reads a port of a given bus.
//!
//! ```text
//! Request
//!  16  u32  DataSize
//!  20  u32  InterfaceType
//!  24  u32  BusNumber
//!  28  u32  AddressSpace
//!  32  u64  IoAddress
//! Reply
//!  16  u32  DataSize
//!  20  u32  InterfaceType
//!  24  u32  BusNumber
//!  28  u32  AddressSpace
//!  32  u64  IoAddress
//!  40  u32  DataValue
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 data_size: u32,
        20 interface_type: u32,
        24 bus_number: u32,
        28 address_space: u32,
        32 io_address: u64,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 data_size: u32,
        20 interface_type: u32,
        24 bus_number: u32,
        28 address_space: u32,
        32 io_address: u64,
        40 data_value: u32,
    }
}
