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
//!
//! ```
//! use nt_memory::{Fault, Memory};
//! use nt_unwind::{Images, Position, State, Unwinder};
//!
//! /// A stack on which every word is the address of the next.
//! struct Stack;
//!
//! impl Memory for Stack {
//!     fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
//!         for (index, word) in buffer.chunks_exact_mut(8).enumerate() {
//!             word.copy_from_slice(&(address + 8 * (index as u64 + 1)).to_le_bytes());
//!         }
//!         Ok(buffer.len())
//!     }
//! }
//!
//! let mut images = Images::default();
//! let mut state = State { rip: 0, registers: [0; 16] };
//! state.registers[4] = 0xfffff880_00001000;
//! // No image is there: a function without unwind data, whose caller is on top of the stack.
//! Unwinder::new(&Stack, &mut images).step(&mut state, None, Position::Interrupted).unwrap();
//! assert_eq!((state.rip, state.rsp()), (0xfffff880_00001008, 0xfffff880_00001008));
//! ```

mod images;
mod unwinder;

pub use images::{ImageId, Images};
pub use unwinder::{Position, State, Stuck, Unwinder};
