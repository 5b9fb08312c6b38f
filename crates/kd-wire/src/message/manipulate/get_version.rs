//! GetVersion, 0x3146.
//!
//! Who the target is.
//!
//! ```text
//! Request
//! nothing beyond the header
//! Reply
//!  16  u16  MajorVersion
//!  18  u16  MinorVersion
//!  20  u8   ProtocolVersion
//!  21  u8   KdSecondaryVersion
//!  22  u16  Flags
//!  24  u16  MachineType
//!  26  u8   MaxPacketType
//!  27  u8   MaxStateChange
//!  28  u8   MaxManipulate
//!  29  u8   Simulation
//!  32  u64  KernBase
//!  40  u64  PsLoadedModuleList
//!  48  u64  DebuggerDataList
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
        /// High byte: class of the debuggee; low byte: 0xF free, 0xC checked.
        16 major_version: u16,
        /// The build number.
        18 minor_version: u16,
        20 protocol_version: u8,
        /// 2 on x64.
        21 kd_secondary_version: u8,
        /// 1 MP, 2 DATA, 4 PTR64, 8 NOMM, 0x10 HSS, 0x20 PARTITIONS, 0x40 HAL_IN_NTOS.
        22 flags: u16,
        /// PE machine: 014C, 8664, AA64, 01C4.
        24 machine_type: u16,
        26 max_packet_type: u8,
        27 max_state_change: u8,
        28 max_manipulate: u8,
        29 simulation: u8,
        32 kern_base: u64,
        40 ps_loaded_module_list: u64,
        48 debugger_data_list: u64,
    }
}
