//! WriteCustomBreakpointEx, 0x3161.
//!
//! WriteCustomBreakpoint under its Windows 10 number.
//!
//! ```text
//! Request
//!  16  u64  BreakPointAddress
//!  24  u64  BreakPointInstruction
//!  32  u32  BreakPointHandle
//!  36  u8   BreakPointInstructionSize
//!  37  u8   BreakPointInstructionAlignment
//! Reply
//!  16  u64  BreakPointAddress
//!  24  u64  BreakPointInstruction
//!  32  u32  BreakPointHandle
//!  36  u8   BreakPointInstructionSize
//!  37  u8   BreakPointInstructionAlignment
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target.
    struct Request [56] {
        16 break_point_address: u64,
        24 break_point_instruction: u64,
        32 break_point_handle: u32,
        36 break_point_instruction_size: u8,
        37 break_point_instruction_alignment: u8,
    }
}

layout! {
    /// Target to host.
    struct Reply [56] {
        16 break_point_address: u64,
        24 break_point_instruction: u64,
        32 break_point_handle: u32,
        36 break_point_instruction_size: u8,
        37 break_point_instruction_alignment: u8,
    }
}
