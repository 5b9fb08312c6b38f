//! Registers of the target's processors, by kd's names.
//!
//! They are read from the raw CONTEXT record (winnt.h): the program counter, which the stop carries, costs no request.

use kd_target::{Machine, TargetError};
use nt_unwind::State;

use crate::error::CommandError;
use crate::kernel::Kernel;

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

/// `_ARM64_NT_CONTEXT`, from X0 to Pc.
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

/// What the registers of a machine are called.
pub(crate) fn names(machine: Machine) -> impl Iterator<Item = &'static str> {
    of(machine).0.iter().map(|(name, _, _)| *name)
}

/// The registers of a machine and the names of its program counter, stack pointer and result.
fn of(machine: Machine) -> (&'static [Register], [&'static str; 3]) {
    match machine {
        Machine::X64 => (AMD64_CONTEXT, ["rip", "rsp", "rax"]),
        Machine::X86 => (I386_CONTEXT, ["eip", "esp", "eax"]),
        Machine::Arm64 => (ARM64_CONTEXT, ["pc", "sp", "x0"]),
        _ => (&[], ["pc", "sp", "x0"]),
    }
}

/// Parts of x64's and x86's registers: the whole ones, and the names of 4, 2 and 1 bytes, and of the second byte.
const PARTS: [(&str, [&str; 4]); 17] = [
    ("rax", ["eax", "ax", "al", "ah"]),
    ("rbx", ["ebx", "bx", "bl", "bh"]),
    ("rcx", ["ecx", "cx", "cl", "ch"]),
    ("rdx", ["edx", "dx", "dl", "dh"]),
    ("rsi", ["esi", "si", "sil", ""]),
    ("rdi", ["edi", "di", "dil", ""]),
    ("rbp", ["ebp", "bp", "bpl", ""]),
    ("rsp", ["esp", "sp", "spl", ""]),
    ("rip", ["eip", "ip", "", ""]),
    ("r8", ["r8d", "r8w", "r8b", ""]),
    ("r9", ["r9d", "r9w", "r9b", ""]),
    ("r10", ["r10d", "r10w", "r10b", ""]),
    ("r11", ["r11d", "r11w", "r11b", ""]),
    ("r12", ["r12d", "r12w", "r12b", ""]),
    ("r13", ["r13d", "r13w", "r13b", ""]),
    ("r14", ["r14d", "r14w", "r14b", ""]),
    ("r15", ["r15d", "r15w", "r15b", ""]),
];

/// Flags of x64 and x86: the first bit, and how many.
const FLAGS: [(&str, u32, u32); 10] = [
    ("cf", 0, 1),
    ("pf", 2, 1),
    ("af", 4, 1),
    ("zf", 6, 1),
    ("sf", 7, 1),
    ("tf", 8, 1),
    ("if", 9, 1),
    ("df", 10, 1),
    ("of", 11, 1),
    ("iopl", 12, 2),
];

/// KSPECIAL_REGISTERS of x64.
const AMD64_SPECIAL: &[Register] = &[
    ("cr0", 0x0, 8),
    ("cr2", 0x8, 8),
    ("cr3", 0x10, 8),
    ("cr4", 0x18, 8),
    ("gdtl", 0x56, 2),
    ("gdtr", 0x58, 8),
    ("idtl", 0x66, 2),
    ("idtr", 0x68, 8),
    ("tr", 0x70, 2),
    ("ldtr", 0x72, 2),
    ("cr8", 0xa0, 8),
];

/// KSPECIAL_REGISTERS of x86.
const I386_SPECIAL: &[Register] = &[
    ("cr0", 0x0, 4),
    ("cr2", 0x4, 4),
    ("cr3", 0x8, 4),
    ("cr4", 0xc, 4),
    ("gdtl", 0x2a, 2),
    ("gdtr", 0x2c, 4),
    ("idtl", 0x32, 2),
    ("idtr", 0x34, 4),
    ("tr", 0x38, 2),
    ("ldtr", 0x3a, 2),
];

/// Where KSPECIAL_REGISTERS are in the control space, as its requests name it. On x64 that is a selector; on x86 they
/// are behind CONTEXT in KPROCESSOR_STATE, and from Windows 8 on XCR0 makes that aligned.
pub(crate) fn special_registers(kernel: &dyn Kernel) -> u64 {
    match kernel.version().machine {
        Machine::X86 if kernel.version().minor < nt_pool::build::WINDOWS_8 => 0x2cc,
        Machine::X86 => 0x2d0,
        _ => 2,
    }
}

/// One processor's registers.
pub(crate) struct Registers {
    machine: Machine,
    context: Vec<u8>,
}

impl Registers {
    /// Of the current processor.
    pub(crate) fn read(kernel: &dyn Kernel) -> Result<Self, TargetError> {
        Ok(Self { machine: kernel.version().machine, context: kernel.context(kernel.processor())? })
    }

    /// By kd's name; `None` when there is none, or when the target's record is too short for it.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        if let Some((first, count)) = flag(self.machine, name) {
            return Some(self.get("efl")? >> first & ((1 << count) - 1));
        }
        let (_, offset, size) = find(self.machine, name)?;
        Some(little_endian(self.context.get(offset..offset + size)?))
    }

    /// The record with one register changed; `None` when there is no such register.
    pub(crate) fn set(mut self, name: &str, value: u64) -> Option<Vec<u8>> {
        if let Some((first, count)) = flag(self.machine, name) {
            let mask = ((1 << count) - 1) << first;
            let flags = self.get("efl")? & !mask | value << first & mask;
            return self.set("efl", flags);
        }
        let (_, offset, size) = find(self.machine, name)?;
        self.context.get_mut(offset..offset + size)?.copy_from_slice(&value.to_le_bytes()[..size]);
        Some(self.context)
    }
}

/// At most eight bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
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
pub(crate) fn find(machine: Machine, name: &str) -> Option<Register> {
    let (registers, [counter, stack, result]) = of(machine);
    let name = name.to_ascii_lowercase();
    let name = match name.as_str() {
        "$ip" => counter,
        "$csp" => stack,
        "$retreg" => result,
        name => name,
    };
    registers.iter().find(|register| register.0 == name).copied().or_else(|| part(machine, name))
}

/// `edx`, `r8d`, `al` on x64; `dx`, `dl` on x86; `w0` on ARM64.
fn part(machine: Machine, name: &str) -> Option<Register> {
    let (registers, _) = of(machine);
    let whole = |name: &str| registers.iter().find(|register| register.0 == name);
    match machine {
        Machine::X64 => {
            let (of, parts) = PARTS.iter().find(|(_, parts)| parts.contains(&name))?;
            let at = parts.iter().position(|part| *part == name)?;
            let (_, offset, _) = whole(of)?;
            let [place, size] = [[0, 4], [0, 2], [0, 1], [1, 1]][at];
            Some((parts[at], offset + place, size)).filter(|part| !part.0.is_empty())
        }
        Machine::X86 => {
            let (_, parts) = PARTS[..9].iter().find(|(_, parts)| parts[1..].contains(&name))?;
            let at = parts.iter().position(|part| *part == name)?;
            let (_, offset, _) = whole(parts[0])?;
            let [place, size] = [[0, 4], [0, 2], [0, 1], [1, 1]][at];
            Some((parts[at], offset + place, size)).filter(|part| !part.0.is_empty())
        }
        Machine::Arm64 => match name {
            "x29" => whole("fp").copied(),
            "x30" => whole("lr").copied(),
            _ => {
                let number = name.strip_prefix('w').filter(|number| !number.is_empty())?;
                let (name, offset, _) = registers.iter().find(|known| known.0.strip_prefix('x') == Some(number))?;
                Some((name, *offset, 4))
            }
        },
        _ => None,
    }
}

/// A flag's first bit, and how many bits it has.
fn flag(machine: Machine, name: &str) -> Option<(u32, u32)> {
    let known = FLAGS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))?;
    matches!(machine, Machine::X64 | Machine::X86).then_some((known.1, known.2))
}

/// Bytes of a register, a flag or a control register; `None` when there is none of this name.
pub(crate) fn size(machine: Machine, name: &str) -> Option<usize> {
    let control = || special(machine, name).map(|(_, _, size)| size);
    find(machine, name).map(|(_, _, size)| size).or_else(control).or(flag(machine, name).map(|_| 1))
}

fn special(machine: Machine, name: &str) -> Option<Register> {
    let registers = match machine {
        Machine::X64 => AMD64_SPECIAL,
        Machine::X86 => I386_SPECIAL,
        _ => &[],
    };
    registers.iter().find(|register| register.0.eq_ignore_ascii_case(name)).copied()
}

/// Whether a register can be shown and not set: the target takes it from its hardware.
pub(crate) fn is_special(machine: Machine, name: &str) -> bool {
    special(machine, name).is_some()
}

/// A register of the current processor, in its own width. `Ok(None)` when there is no such register.
pub(crate) fn value(kernel: &dyn Kernel, name: &str) -> Result<Option<u64>, CommandError> {
    let (stop, machine) = (kernel.stop(), kernel.version().machine);
    if name.eq_ignore_ascii_case("$thread") && kernel.processor() == stop.processor {
        return Ok(Some(stop.thread));
    }
    if let Some((_, offset, size)) = special(machine, name) {
        let base = special_registers(kernel);
        // What is asked for begins at the structure on x64, and at any byte of it on x86.
        let (at, skipped) = if machine == Machine::X86 { (base + offset as u64, 0) } else { (base, offset) };
        let bytes = kernel.read_control(kernel.processor(), at, (skipped + size) as u32)?;
        return match bytes.get(skipped..skipped + size) {
            Some(bytes) => Ok(Some(little_endian(bytes))),
            None => Err(CommandError::Failed(format!("the target does not tell its {name}"))),
        };
    }
    if flag(machine, name).is_none() {
        let Some((name, _, size)) = find(machine, name) else { return Ok(None) };
        if name == of(machine).1[0] && kernel.processor() == stop.processor {
            let counter = stop.program_counter;
            return Ok(Some(if size == 4 { counter & 0xffff_ffff } else { counter }));
        }
    }
    let registers = Registers::read(kernel)?;
    registers.get(name).map(Some).ok_or_else(|| CommandError::Failed("the target's context record is too short".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_in_their_registers() {
        for (machine, name, expected) in [
            (Machine::X64, "edx", Some(("edx", 0x88, 4))),
            (Machine::X64, "r8d", Some(("r8d", 0xb8, 4))),
            (Machine::X64, "al", Some(("al", 0x78, 1))),
            (Machine::X64, "AH", Some(("ah", 0x79, 1))),
            (Machine::X64, "sil", Some(("sil", 0xa8, 1))),
            (Machine::X64, "eip", Some(("eip", 0xf8, 4))),
            (Machine::X86, "dx", Some(("dx", 0xa8, 2))),
            (Machine::X86, "ah", Some(("ah", 0xb1, 1))),
            (Machine::X86, "rdx", None),
            (Machine::X86, "r8d", None),
            (Machine::Arm64, "w3", Some(("x3", 0x20, 4))),
            (Machine::Arm64, "x30", Some(("lr", 0xf8, 8))),
            (Machine::Arm64, "w", None),
            (Machine::X64, "", None),
            (Machine::X86, "", None),
        ] {
            assert_eq!(find(machine, name), expected, "{name}");
        }
    }

    #[test]
    fn flags_are_bits() {
        let mut context = vec![0; 0x100];
        context[0x44..0x48].copy_from_slice(&0x3046u32.to_le_bytes());
        let registers = Registers { machine: Machine::X64, context };
        let get = |name| registers.get(name);
        assert_eq!((get("zf"), get("pf"), get("cf"), get("iopl")), (Some(1), Some(1), Some(0), Some(3)));
        let changed = registers.set("zf", 0).unwrap();
        assert_eq!(changed[0x44..0x46], 0x3006u16.to_le_bytes());
    }
}
