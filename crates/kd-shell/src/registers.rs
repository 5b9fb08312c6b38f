//! Registers of the target's processors, by kd's names.
//!
//! They are read from the raw CONTEXT record (winnt.h): the program counter, which the stop carries, costs no request.

use kd_target::TargetError;
use nt_unwind::State;

use crate::error::CommandError;
use crate::kernel::Kernel;

pub(crate) const AMD64: u16 = 0x8664;
pub(crate) const I386: u16 = 0x014c;
pub(crate) const ARM64: u16 = 0xaa64;

/// Name, offset, size.
pub(crate) type Register = (&'static str, usize, usize);

/// CONTEXT of x64, in the order in which `r` shows it.
const AMD64_CONTEXT: &[Register] = &[
    ("rax", 0x78, 8),
    ("rbx", 0x90, 8),
    ("rcx", 0x80, 8),
    ("rdx", 0x88, 8),
    ("rsi", 0xa8, 8),
    ("rdi", 0xb0, 8),
    ("rip", 0xf8, 8),
    ("rsp", 0x98, 8),
    ("rbp", 0xa0, 8),
    ("r8", 0xb8, 8),
    ("r9", 0xc0, 8),
    ("r10", 0xc8, 8),
    ("r11", 0xd0, 8),
    ("r12", 0xd8, 8),
    ("r13", 0xe0, 8),
    ("r14", 0xe8, 8),
    ("r15", 0xf0, 8),
    ("cs", 0x38, 2),
    ("ss", 0x42, 2),
    ("ds", 0x3a, 2),
    ("es", 0x3c, 2),
    ("fs", 0x3e, 2),
    ("gs", 0x40, 2),
    ("efl", 0x44, 4),
    ("dr0", 0x48, 8),
    ("dr1", 0x50, 8),
    ("dr2", 0x58, 8),
    ("dr3", 0x60, 8),
    ("dr6", 0x68, 8),
    ("dr7", 0x70, 8),
    ("mxcsr", 0x34, 4),
];

/// CONTEXT of x86.
const I386_CONTEXT: &[Register] = &[
    ("eax", 0xb0, 4),
    ("ebx", 0xa4, 4),
    ("ecx", 0xac, 4),
    ("edx", 0xa8, 4),
    ("esi", 0xa0, 4),
    ("edi", 0x9c, 4),
    ("eip", 0xb8, 4),
    ("esp", 0xc4, 4),
    ("ebp", 0xb4, 4),
    ("cs", 0xbc, 2),
    ("ss", 0xc8, 2),
    ("ds", 0x98, 2),
    ("es", 0x94, 2),
    ("fs", 0x90, 2),
    ("gs", 0x8c, 2),
    ("efl", 0xc0, 4),
    ("dr0", 0x4, 4),
    ("dr1", 0x8, 4),
    ("dr2", 0xc, 4),
    ("dr3", 0x10, 4),
    ("dr6", 0x14, 4),
    ("dr7", 0x18, 4),
];

/// CONTEXT of ARM64.
const ARM64_CONTEXT: &[Register] = &[
    ("x0", 0x8, 8),
    ("x1", 0x10, 8),
    ("x2", 0x18, 8),
    ("x3", 0x20, 8),
    ("x4", 0x28, 8),
    ("x5", 0x30, 8),
    ("x6", 0x38, 8),
    ("x7", 0x40, 8),
    ("x8", 0x48, 8),
    ("x9", 0x50, 8),
    ("x10", 0x58, 8),
    ("x11", 0x60, 8),
    ("x12", 0x68, 8),
    ("x13", 0x70, 8),
    ("x14", 0x78, 8),
    ("x15", 0x80, 8),
    ("x16", 0x88, 8),
    ("x17", 0x90, 8),
    ("x18", 0x98, 8),
    ("x19", 0xa0, 8),
    ("x20", 0xa8, 8),
    ("x21", 0xb0, 8),
    ("x22", 0xb8, 8),
    ("x23", 0xc0, 8),
    ("x24", 0xc8, 8),
    ("x25", 0xd0, 8),
    ("x26", 0xd8, 8),
    ("x27", 0xe0, 8),
    ("x28", 0xe8, 8),
    ("fp", 0xf0, 8),
    ("lr", 0xf8, 8),
    ("sp", 0x100, 8),
    ("pc", 0x108, 8),
    ("cpsr", 0x4, 4),
];

/// The registers of a machine and the names of its program counter, stack pointer and result.
fn of(machine: u16) -> (&'static [Register], [&'static str; 3]) {
    match machine {
        AMD64 => (AMD64_CONTEXT, ["rip", "rsp", "rax"]),
        I386 => (I386_CONTEXT, ["eip", "esp", "eax"]),
        ARM64 => (ARM64_CONTEXT, ["pc", "sp", "x0"]),
        _ => (&[], ["pc", "sp", "x0"]),
    }
}

/// One processor's registers.
pub(crate) struct Registers {
    machine: u16,
    context: Vec<u8>,
}

impl Registers {
    /// Of the current processor.
    pub(crate) fn read(kernel: &dyn Kernel) -> Result<Self, TargetError> {
        Ok(Self { machine: kernel.version().machine, context: kernel.context(kernel.processor())? })
    }

    /// By kd's name; `None` when there is none, or when the target's record is too short for it.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        let (_, offset, size) = find(self.machine, name)?;
        let read = self.context.get(offset..offset + size)?;
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(read);
        Some(u64::from_le_bytes(bytes))
    }

    /// The record with one register changed; `None` when there is no such register.
    pub(crate) fn set(mut self, name: &str, value: u64) -> Option<Vec<u8>> {
        let (_, offset, size) = find(self.machine, name)?;
        self.context.get_mut(offset..offset + size)?.copy_from_slice(&value.to_le_bytes()[..size]);
        Some(self.context)
    }
}

/// The registers that a stack begins with. x86 and ARM64 keep their frame pointer where x64 has rbp.
pub(crate) fn state(registers: &Registers) -> State {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let any = |names: &[&str]| names.iter().find_map(|name| registers.get(name)).unwrap_or(0);
    let mut state = State { rip: any(&["$ip"]), registers: NAMES.map(|name| any(&[name])) };
    state.registers[4] = any(&["$csp"]);
    state.registers[5] = any(&["rbp", "ebp", "fp"]);
    state
}

/// A register by its name or pseudo-name.
pub(crate) fn find(machine: u16, name: &str) -> Option<Register> {
    let (registers, [counter, stack, result]) = of(machine);
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "$ip" => counter,
        "$csp" => stack,
        "$retreg" => result,
        name => name,
    };
    registers.iter().find(|register| register.0 == name).copied()
}

/// `Ok(None)` when there is no such register.
pub(crate) fn value(kernel: &dyn Kernel, name: &str) -> Result<Option<u64>, CommandError> {
    let (stop, machine) = (kernel.stop(), kernel.version().machine);
    if name.eq_ignore_ascii_case("$thread") && kernel.processor() == stop.processor {
        return Ok(Some(stop.thread));
    }
    let Some((name, ..)) = find(machine, name) else { return Ok(None) };
    if name == of(machine).1[0] && kernel.processor() == stop.processor {
        return Ok(Some(stop.program_counter));
    }
    let registers = Registers::read(kernel)?;
    registers.get(name).map(Some).ok_or_else(|| CommandError::Failed("the target's context record is too short".into()))
}
