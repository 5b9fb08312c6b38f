#![doc = include_str!("../README.md")]
//!
//! Walking a stack of x64 Windows by the unwind data of its images.
//!
//! ```text
//! RUNTIME_FUNCTION   u32 BeginAddress  u32 EndAddress  u32 UnwindData        sorted, in the exception directory
//! UNWIND_INFO        u8 Version:3 Flags:5  u8 SizeOfProlog  u8 CountOfCodes  u8 FrameRegister:4 FrameOffset:4
//!                    u16 codes[]: u8 CodeOffset  u8 UnwindOp:4 OpInfo:4
//!                    with UNW_FLAG_CHAININFO (4): another RUNTIME_FUNCTION after an even number of codes
//! ```
//!
//! <https://learn.microsoft.com/cpp/build/exception-handling-x64>. All of it is the target's: every number is checked,
//! chains and codes are bounded.
//!
//! A kernel's table of functions has some 30,000 entries; to halve it with reads of 12 bytes took most of a stack's
//! requests, and the target is frozen while they are made. So [`Images`] reads pieces of a whole reply, guesses where in
//! the table an address must be, and keeps what it has read: images do not change while they are loaded, and the second
//! stack reads the stack alone. Where an image's file is at hand, all of it comes from there.

mod images;
mod unwinder;

pub use images::{ImageId, Images};
pub use unwinder::{Position, State, Stuck, Unwinder};
