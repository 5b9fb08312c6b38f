//! TRACE_IO (packet type 9): event-trace data from the target. Acknowledged, never answered.
//!
//! ```text
//!   0  u32  ApiNumber (0x3330)
//!   4  u16  ProcessorLevel
//!   6  u16  Processor
//!   8  u32  LengthOfData
//!  12  ...  reserved
//!  64  ...  data
//! ```

use super::layout::layout;

layout! {
    /// Target to host.
    struct TraceIo [64] {
        /// 0x3330.
        0 api_number: u32,
        4 processor_level: u16,
        6 processor: u16,
        8 length_of_data: u32,
    }
    +
    /// The trace data.
    data
}
