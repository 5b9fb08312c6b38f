//! GetBusData, 0x3157.
//!
//! Reads bus configuration. A missing PCI device gives Length 2.
//!
//! ReactOS for amd64 stops itself on this request.
//!
//! ```text
//! Request
//!  16  u32  BusDataType
//!  20  u32  BusNumber
//!  24  u32  SlotNumber
//!  28  u32  Offset
//!  32  u32  Length
//! Reply
//!  16  u32  BusDataType
//!  20  u32  BusNumber
//!  24  u32  SlotNumber
//!  28  u32  Offset
//!  32  u32  Length
//!  56  ...  What was read
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        /// 4 is PCI configuration space.
        16 bus_data_type: u32,
        20 bus_number: u32,
        24 slot_number: u32,
        28 offset: u32,
        32 length: u32,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        /// 4 is PCI configuration space.
        16 bus_data_type: u32,
        20 bus_number: u32,
        24 slot_number: u32,
        28 offset: u32,
        32 length: u32,
    }
    +
    /// What was read.
    data
}
