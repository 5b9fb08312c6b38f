//! Instructions that the machine can execute, and the unwind data that images have for them.
//!
//! ```text
//! RUNTIME_FUNCTION  u32 begin  u32 end  u32 unwind data       sorted by begin
//! UNWIND_INFO       1  size of prolog  count of codes  0      then u16 codes, padded to an even count
//! ```

use crate::kernel::builder::Builder;

const NOP: u8 = 0x90;
/// Bytes of a near call or jump.
const NEAR: usize = 5;
/// `_KTRAP_FRAME` up to what the processor itself pushed.
pub(crate) const TRAP_FRAME: u32 = 0x168;

/// What a function does to the stack.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Frame {
    /// `sub rsp,n`, n from 8 to 128.
    Small(u8),
    /// A `_KTRAP_FRAME` lies on the stack already.
    Trap,
}

/// An entry of an image's function table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    pub(crate) begin: u32,
    pub(crate) end: u32,
    pub(crate) frame: Frame,
}

/// The function table and the unwind data behind it, to be put at `rva`; also the table's size.
pub(crate) fn exception_directory(functions: &[Function], rva: u32) -> (Vec<u8>, u32) {
    let mut functions = functions.to_vec();
    functions.sort_unstable_by_key(|function| function.begin);
    let size = functions.len() as u32 * 12;
    let (mut table, mut unwind) = (Vec::new(), Vec::new());
    for Function { begin, end, frame } in functions {
        for value in [begin, end, rva + size + unwind.len() as u32] {
            table.extend(value.to_le_bytes());
        }
        match frame {
            // UWOP_ALLOC_SMALL, done when the four bytes of the instruction are.
            Frame::Small(bytes) => unwind.extend([1, 4, 1, 0, 4, (bytes / 8 - 1) << 4 | 2, 0, 0]),
            // UWOP_ALLOC_LARGE in units of 8, then UWOP_PUSH_MACHFRAME.
            Frame::Trap => unwind.extend([1, 0, 3, 0, 0, 1, (TRAP_FRAME / 8) as u8, 0, 0, 0x0a, 0, 0]),
        }
    }
    table.extend(unwind);
    (table, size)
}

/// One call on the way down a stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Where its function begins.
    pub(crate) function: u64,
    /// Where the next one returns to.
    pub(crate) return_address: u64,
    pub(crate) frame: Frame,
}

impl Builder {
    /// Writes functions that call each other, the outermost first, and in the end `last`, which returns at once. The
    /// outermost one leaves through `exit` to where the trap came from.
    pub(crate) fn calls(&mut self, calls: &[Call], last: u64, exit: u64) {
        for (at, Call { function, return_address, frame }) in calls.iter().enumerate() {
            let callee = calls.get(at + 1).map_or(last, |next| next.function);
            let mut code = match frame {
                Frame::Small(bytes) => vec![0x48, 0x83, 0xec, *bytes],
                Frame::Trap => Vec::new(),
            };
            let call = self::call(*return_address, callee);
            code.resize((return_address - function) as usize - call.len(), NOP);
            code.extend(call);
            match frame {
                Frame::Small(bytes) => code.extend([0x48, 0x83, 0xc4, *bytes, 0xc3]),
                Frame::Trap => code.extend(relative(0xe9, return_address + NEAR as u64, exit)),
            }
            self.memory.put(*function, &code);
        }
        self.memory.put(last, &[NOP, NOP, 0xc3]);
        let [a, b, c, d] = TRAP_FRAME.to_le_bytes();
        // add rsp,168h; iretq
        self.memory.put(exit, &[0x48, 0x81, 0xc4, a, b, c, d, 0x48, 0xcf]);
    }

    /// Puts one call more into a function, between the instructions that do nothing, to a function that returns at once.
    pub(crate) fn call_between(&mut self, at: u64, callee: u64) {
        self.memory.put(at, &relative(0xe8, at + NEAR as u64, callee));
        self.memory.put(callee, &[NOP, NOP, 0xc3]);
    }
}

/// A call that ends at `end`; to another image it goes through a register.
fn call(end: u64, callee: u64) -> Vec<u8> {
    if i32::try_from(callee.wrapping_sub(end) as i64).is_ok() {
        return relative(0xe8, end, callee).to_vec();
    }
    // mov rax,callee; call rax
    let mut code = vec![0x48, 0xb8];
    code.extend(callee.to_le_bytes());
    code.extend([0xff, 0xd0]);
    code
}

/// A near call or jump that ends at `end`.
fn relative(opcode: u8, end: u64, target: u64) -> [u8; NEAR] {
    let [a, b, c, d] = (target.wrapping_sub(end) as u32).to_le_bytes();
    [opcode, a, b, c, d]
}
