//! Continue2, 0x313C.
//!
//! Lets the target run, or step, with a control set per machine. Acknowledged, never answered. On success the
//! target writes Dr7 into every processor, so send the one from the control report; SymStart 1 leaves the legacy
//! symbol range alone.
//!
//! ```text
//!       x64                x86                arm64
//!  16   ContinueStatus     ContinueStatus     ContinueStatus
//!  20   TraceFlag u32      TraceFlag u32      Continue u32
//!  24   Dr7 u64            Dr7 u32            TraceFlag u32
//!  28                      SymStart u32       SymStart u64
//!  32   SymStart u64       SymEnd u32
//!  36                                         SymEnd u64
//!  40   SymEnd u64
//! ```

use crate::message::layout::layout;

layout! {
    /// Host to target. The control set's meaning depends on the machine: [`X64`], [`X86`], [`Arm64`].
    struct Request [56] {
        16 continue_status: u32,
        20 control_set: [u8; 28],
    }
}

layout! {
    /// The control set of x64.
    struct X64 [28] {
        0 trace_flag: u32,
        4 dr7: u64,
        12 current_symbol_start: u64,
        20 current_symbol_end: u64,
    }
}

layout! {
    /// The control set of x86.
    struct X86 [28] {
        0 trace_flag: u32,
        4 dr7: u32,
        8 current_symbol_start: u32,
        12 current_symbol_end: u32,
    }
}

layout! {
    /// The control set of arm64.
    struct Arm64 [28] {
        0 continue_flag: u32,
        4 trace_flag: u32,
        8 current_symbol_start: u64,
        16 current_symbol_end: u64,
    }
}

impl Request {
    /// Lets a processor go on with `continue_status` and what its machine's control set says.
    pub fn new(continue_status: u32, control_set: &impl crate::message::Layout) -> Self {
        let mut set = [0; 28];
        let bytes = control_set.encode();
        let len = bytes.len().min(set.len());
        set[..len].copy_from_slice(&bytes[..len]);
        Request { continue_status, control_set: set }
    }
}
