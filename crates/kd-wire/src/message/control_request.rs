//! CONTROL_REQUEST (packet type 10): the target asks for a hardware breakpoint, or gives one back. The host answers
//! with the same packet.
//!
//! ```text
//!   0  u32  ApiNumber (0x4300 request, 0x4301 release)
//!   4  u32  HardwareBreakPointNumber
//!   8  u32  Available / Released
//! ```

use super::layout::layout;

/// ApiNumber of a request.
pub const REQUEST_HARDWARE_BREAKPOINT: u32 = 0x4300;
/// ApiNumber of a release.
pub const RELEASE_HARDWARE_BREAKPOINT: u32 = 0x4301;

layout! {
    /// Either direction.
    struct ControlRequest [12] {
        0 api_number: u32,
        4 hardware_break_point_number: u32,
        /// Available in a request, Released in a release.
        8 result: u32,
    }
}

impl ControlRequest {
    /// For people: `RequestHardwareBreakpoint`.
    pub fn name(&self) -> &'static str {
        match self.api_number {
            REQUEST_HARDWARE_BREAKPOINT => "RequestHardwareBreakpoint",
            RELEASE_HARDWARE_BREAKPOINT => "ReleaseHardwareBreakpoint",
            _ => "ControlRequest",
        }
    }
}
