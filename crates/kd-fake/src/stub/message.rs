//! Messages the stub builds, at their wire offsets.

use crate::kernel::KernelFacts;
use crate::machine::Machine;

/// The fixed part of a request and of its reply.
pub(crate) const MANIPULATE: usize = 56;
const STATE_CHANGE: usize = 240;

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Zero where the bytes end early: a stub reads its own buffer, whatever the host sent.
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |slice| u16::from_le_bytes([slice[0], slice[1]]))
}

pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

pub(crate) fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get32(bytes, at)) | u64::from(get32(bytes, at + 4)) << 32
}

/// Why the target stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    Exception { code: u32, address: u64, first_chance: bool },
    Module { path: String, base: u64, size: u32, checksum: u32, process: u64, unload: bool },
}

impl Stop {
    pub(crate) fn breakpoint(address: u64) -> Stop {
        Stop::Exception { code: 0x8000_0003, address, first_chance: true }
    }

    /// The notice a kernel sends when the machine is about to restart.
    pub(crate) fn reboot_notice() -> Stop {
        Stop::Module { path: String::new(), base: u64::MAX, size: 0, checksum: 0, process: 0, unload: true }
    }
}

/// What the state change says about the processor that stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped<'a> {
    pub(crate) machine: Machine,
    pub(crate) processor: u16,
    pub(crate) processors: u32,
    pub(crate) thread: u64,
    pub(crate) pc: u64,
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    /// EFlags or Cpsr.
    pub(crate) status: u32,
    /// As many of the 16 bytes at the program counter as can be read.
    pub(crate) code: &'a [u8],
}

/// ```text
///   0 u32 state  4 u16 level  6 u16 processor  8 u32 processors  16 u64 thread  24 u64 pc
///  32     exception or load-symbols record
/// 192     control report
///           x64:   Dr6, Dr7, EFlags, code count, flags, 16 code bytes, CS DS ES FS
///           x86:   Dr6, Dr7, code count, flags, 16 code bytes, CS DS ES FS, EFlags
///           ARM64: Cpsr, code count, 16 code bytes
/// 240     path of the module
/// ```
/// A kernel builds it on its stack, each time that it tells of a stop, and fills in what has a meaning: the rest is what
/// was there before. `litter` says what that is this time.
pub(crate) fn state_change(stop: &Stop, at: &Stopped<'_>, litter: u64) -> Vec<u8> {
    let mut bytes = vec![0; STATE_CHANGE];
    let mut noise = litter.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let unused: &[std::ops::Range<usize>] = match stop {
        Stop::Exception { code: 0x8000_0003, .. } => &[12..16, 60..64, 72..184, 188..192],
        Stop::Exception { .. } => &[12..16, 60..64, 64..184, 188..192],
        Stop::Module { .. } => &[12..16, 36..40, 65..192],
    };
    for at in unused.iter().cloned().flatten() {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        bytes[at] = noise as u8;
    }
    put16(&mut bytes, 4, 6);
    put16(&mut bytes, 6, at.processor);
    put32(&mut bytes, 8, at.processors);
    put64(&mut bytes, 16, at.machine.extended(at.thread));
    put64(&mut bytes, 24, at.machine.extended(at.pc));
    let count = at.code.len();
    match at.machine {
        Machine::X64 => {
            put64(&mut bytes, 192, at.dr6);
            put64(&mut bytes, 200, at.dr7);
            put32(&mut bytes, 208, at.status);
            put16(&mut bytes, 212, count as u16);
            put16(&mut bytes, 214, 3);
            bytes[216..216 + count].copy_from_slice(at.code);
            for (field, selector) in [(232, 0x10), (234, 0x2b), (236, 0x2b), (238, 0x53)] {
                put16(&mut bytes, field, selector);
            }
        }
        Machine::X86 | Machine::X86Pae => {
            put32(&mut bytes, 192, at.dr6 as u32);
            put32(&mut bytes, 196, at.dr7 as u32);
            put16(&mut bytes, 200, count as u16);
            put16(&mut bytes, 202, 3);
            bytes[204..204 + count].copy_from_slice(at.code);
            for (field, selector) in [(220, 8), (222, 0x23), (224, 0x23), (226, 0x30)] {
                put16(&mut bytes, field, selector);
            }
            put32(&mut bytes, 228, at.status);
        }
        Machine::Arm64 => {
            put32(&mut bytes, 192, at.status);
            put32(&mut bytes, 196, count as u32);
            bytes[200..200 + count].copy_from_slice(at.code);
        }
    }
    match stop {
        Stop::Exception { code, address, first_chance } => {
            put32(&mut bytes, 0, 0x3030);
            put32(&mut bytes, 32, *code);
            put64(&mut bytes, 48, at.machine.extended(*address));
            put32(&mut bytes, 56, u32::from(*code == 0x8000_0003));
            put32(&mut bytes, 184, u32::from(*first_chance));
        }
        Stop::Module { path, base, size, checksum, process, unload } => {
            put32(&mut bytes, 0, 0x3031);
            put64(&mut bytes, 40, at.machine.extended(*base));
            put64(&mut bytes, 48, *process);
            put32(&mut bytes, 56, *checksum);
            put32(&mut bytes, 60, *size);
            bytes[64] = u8::from(*unload);
            if !path.is_empty() {
                bytes.extend(path.as_bytes());
                bytes.push(0);
                put32(&mut bytes, 32, path.len() as u32 + 1);
            }
        }
    }
    bytes
}

/// Fills the union of a GetVersion reply.
pub(crate) fn version(reply: &mut [u8], facts: &KernelFacts, machine: Machine) {
    put16(reply, 16, facts.major);
    put16(reply, 18, facts.build);
    // ProtocolVersion 6; KdSecondaryVersion 2 names x64's CONTEXT.
    reply[20] = 6;
    reply[21] = if machine == Machine::X64 { 2 } else { 0 };
    put16(reply, 22, facts.flags);
    put16(reply, 24, facts.machine);
    reply[26..30].copy_from_slice(&[0x0c, 3, 0x31, 0]);
    put16(reply, 30, 0);
    put64(reply, 32, machine.extended(facts.kernel_base));
    put64(reply, 40, machine.extended(facts.loaded_module_list));
    put64(reply, 48, machine.extended(facts.debugger_data_list));
}

pub(crate) fn print(text: &[u8], processor: u16) -> Vec<u8> {
    debug_io(0x3230, processor, text, 0)
}

/// A prompt that takes at most `room` bytes for an answer.
pub(crate) fn prompt(text: &[u8], processor: u16, room: u32) -> Vec<u8> {
    debug_io(0x3231, processor, text, room)
}

fn debug_io(api: u32, processor: u16, text: &[u8], room: u32) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    put32(&mut bytes, 0, api);
    put16(&mut bytes, 4, 6);
    put16(&mut bytes, 6, processor);
    put32(&mut bytes, 8, text.len() as u32);
    put32(&mut bytes, 12, room);
    bytes.extend(text);
    bytes
}

/// The request to open a file of the host for reading, as the loader makes it.
pub(crate) fn create_file(path: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    for (at, value) in [(0, 0x3430), (8, 0x0012_0089), (12, 0x80), (16, 1), (20, 1)] {
        put32(&mut bytes, at, value);
    }
    bytes.extend(path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    bytes
}
