//! Registers of the processor that stopped, by kd's names.
//!
//! They are read from the raw CONTEXT record (winnt.h): the program counter, which the stop carries, costs no request.

use crate::kernel::Kernel;

const AMD64: u16 = 0x8664;
const I386: u16 = 0x014c;

/// Name, offset, size.
type Register = (&'static str, usize, usize);

/// CONTEXT of x64.
const AMD64_CONTEXT: &[Register] = &[
    ("cs", 0x38, 2),
    ("ds", 0x3a, 2),
    ("es", 0x3c, 2),
    ("fs", 0x3e, 2),
    ("gs", 0x40, 2),
    ("ss", 0x42, 2),
    ("efl", 0x44, 4),
    ("rax", 0x78, 8),
    ("rcx", 0x80, 8),
    ("rdx", 0x88, 8),
    ("rbx", 0x90, 8),
    ("rsp", 0x98, 8),
    ("rbp", 0xa0, 8),
    ("rsi", 0xa8, 8),
    ("rdi", 0xb0, 8),
    ("r8", 0xb8, 8),
    ("r9", 0xc0, 8),
    ("r10", 0xc8, 8),
    ("r11", 0xd0, 8),
    ("r12", 0xd8, 8),
    ("r13", 0xe0, 8),
    ("r14", 0xe8, 8),
    ("r15", 0xf0, 8),
    ("rip", 0xf8, 8),
];

/// CONTEXT of x86.
const I386_CONTEXT: &[Register] = &[
    ("gs", 0x8c, 4),
    ("fs", 0x90, 4),
    ("es", 0x94, 4),
    ("ds", 0x98, 4),
    ("edi", 0x9c, 4),
    ("esi", 0xa0, 4),
    ("ebx", 0xa4, 4),
    ("edx", 0xa8, 4),
    ("ecx", 0xac, 4),
    ("eax", 0xb0, 4),
    ("ebp", 0xb4, 4),
    ("eip", 0xb8, 4),
    ("cs", 0xbc, 4),
    ("efl", 0xc0, 4),
    ("esp", 0xc4, 4),
    ("ss", 0xc8, 4),
];

/// `Ok(None)` when there is no such register.
pub(crate) fn value(kernel: &dyn Kernel, name: &str) -> Result<Option<u64>, String> {
    let stop = kernel.stop();
    let (registers, counter, stack, result) = match kernel.version().machine {
        AMD64 => (AMD64_CONTEXT, "rip", "rsp", "rax"),
        I386 => (I386_CONTEXT, "eip", "esp", "eax"),
        _ => (&[] as &[Register], "pc", "sp", "x0"),
    };
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "$ip" => counter,
        "$csp" => stack,
        "$retreg" => result,
        "$thread" => return Ok(Some(stop.thread)),
        name => name,
    };
    if name == counter {
        return Ok(Some(stop.program_counter));
    }
    let Some(&(_, offset, size)) = registers.iter().find(|register| register.0 == name) else { return Ok(None) };
    let context = kernel.context(stop.processor).map_err(|error| error.to_string())?;
    let mut bytes = [0; 8];
    let read = context.get(offset..offset + size).ok_or("the target's context record is too short")?;
    bytes[..size].copy_from_slice(read);
    Ok(Some(u64::from_le_bytes(bytes)))
}
