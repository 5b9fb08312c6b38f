//! One processor's registers: the CONTEXT and KSPECIAL_REGISTERS a stub shows.

use super::message::{get32, get64, put16, put32, put64};
use crate::kernel::{Kernel, KernelFacts};
use crate::machine::Machine;

/// Where a machine's records have what a stub needs.
struct Layout {
    /// Bytes of CONTEXT.
    context: usize,
    /// ContextFlags: where, and all registers.
    flags: (usize, u32),
    program_counter: usize,
    stack: usize,
    /// Frame pointer, where stacks are chained by it.
    frame: Option<usize>,
    /// x64: EFlags; ARM64: Cpsr.
    status: usize,
    /// Dr6 and Dr7 of CONTEXT.
    debug: Option<(usize, usize)>,
    /// Dr6 and Dr7 of KSPECIAL_REGISTERS.
    special_debug: Option<(usize, usize)>,
}

const X64: Layout = Layout {
    context: 0x4d0,
    flags: (0x30, 0x0010_001f),
    program_counter: 0xf8,
    stack: 0x98,
    frame: None,
    status: 0x44,
    debug: Some((0x68, 0x70)),
    special_debug: Some((0x40, 0x48)),
};

const X86: Layout = Layout {
    context: 0x2cc,
    flags: (0, 0x0001_003f),
    program_counter: 0xb8,
    stack: 0xc4,
    frame: Some(0xb4),
    status: 0xc0,
    debug: Some((0x14, 0x18)),
    special_debug: Some((0x20, 0x24)),
};

const ARM64: Layout = Layout {
    context: 0x390,
    flags: (0, 0x0040_0007),
    program_counter: 0x108,
    stack: 0x100,
    frame: Some(0xf0),
    status: 4,
    debug: None,
    special_debug: None,
};

fn layout(machine: Machine) -> &'static Layout {
    match machine {
        Machine::X86 | Machine::X86Pae => &X86,
        Machine::X64 => &X64,
        Machine::Arm64 => &ARM64,
    }
}

/// Bytes of a machine's CONTEXT.
pub(crate) fn context_size(machine: Machine) -> usize {
    layout(machine).context
}

/// Of x64.
const RAX: usize = 0x78;

/// Dr7 with nothing enabled.
pub(crate) const IDLE_DR7: u64 = 0x400;
const IDLE_DR6: u64 = 0xffff_0ff0;

#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    machine: Machine,
    pub(crate) context: Vec<u8>,
    pub(crate) special: Vec<u8>,
    pub(crate) kpcr: u64,
    pub(crate) kprcb: u64,
    pub(crate) thread: u64,
}

/// KPRCB and current thread of a processor, as a debugger finds them: through `KiProcessorBlock`, which the debugger's
/// data block names.
fn find_processor(kernel: &Kernel, number: u32) -> Option<(u64, u64)> {
    const KI_PROCESSOR_BLOCK: u64 = 0x218;
    let width = kernel.machine().pointer();
    let read = |address: u64, width: usize| {
        let mut bytes = [0; 8];
        (kernel.read_virtual(address, &mut bytes[..width]) == width).then_some(u64::from_le_bytes(bytes))
    };
    let block = read(kernel.facts().debugger_data_list, width)?;
    // Pointers of the block have 64 bits on every machine.
    let table = read(block.wrapping_add(KI_PROCESSOR_BLOCK), 8)?;
    let kprcb = read(table.wrapping_add(u64::from(number) * width as u64), width)?;
    // CurrentThread is behind a word of versions.
    Some((kprcb, read(kprcb.wrapping_add(width as u64), width)?))
}

impl Cpu {
    /// A processor in the idle loop.
    pub(crate) fn new(kernel: &Kernel, number: u32) -> Cpu {
        let (facts, machine) = (kernel.facts(), kernel.machine());
        let first = (facts.kprcb, facts.thread);
        let (kprcb, thread) = if number == 0 { first } else { find_processor(kernel, number).unwrap_or(first) };
        // The KPRCB is a part of its KPCR.
        let kpcr = kprcb.wrapping_sub(facts.kprcb.wrapping_sub(facts.kpcr));
        let layout = layout(machine);
        let mut context = vec![0; layout.context];
        put32(&mut context, layout.flags.0, layout.flags.1);
        let special = match machine {
            Machine::X64 => x64(&mut context, facts, kpcr),
            Machine::X86 | Machine::X86Pae => x86(&mut context, facts, machine),
            Machine::Arm64 => {
                // EL1 with its own stack.
                put32(&mut context, layout.status, 0x6000_0345);
                vec![0; 0xa0]
            }
        };
        let mut cpu = Cpu { machine, context, special, kpcr, kprcb, thread };
        cpu.set_sp(facts.stack.wrapping_sub(u64::from(number) << 16));
        cpu.set_pc(facts.break_return);
        if let Some(frame) = layout.frame.filter(|_| number == 0) {
            cpu.put(frame, facts.frame);
        }
        cpu
    }

    /// Puts the processor at the breakpoint of `DbgBreakPointWithStatus(DBG_STATUS_CONTROL_C)`.
    pub(crate) fn break_in(&mut self, facts: &KernelFacts) {
        const RCX: usize = 0x80;
        const X0: usize = 8;
        const LR: usize = 0xf8;
        self.set_pc(facts.break_pc);
        self.set_sp(facts.stack);
        match self.machine {
            Machine::X64 => self.put(RCX, 1),
            // The argument is on the stack.
            Machine::X86 | Machine::X86Pae => {}
            Machine::Arm64 => {
                self.put(X0, 1);
                self.put(LR, facts.break_return);
            }
        }
    }

    fn get(&self, at: usize) -> u64 {
        if self.machine.is_x86() { get32(&self.context, at).into() } else { get64(&self.context, at) }
    }

    fn put(&mut self, at: usize, value: u64) {
        match self.machine.is_x86() {
            true => put32(&mut self.context, at, value as u32),
            false => put64(&mut self.context, at, value),
        }
    }

    pub(crate) fn pc(&self) -> u64 {
        self.get(layout(self.machine).program_counter)
    }

    pub(crate) fn set_pc(&mut self, pc: u64) {
        self.put(layout(self.machine).program_counter, pc);
    }

    pub(crate) fn sp(&self) -> u64 {
        self.get(layout(self.machine).stack)
    }

    pub(crate) fn set_sp(&mut self, sp: u64) {
        self.put(layout(self.machine).stack, sp);
    }

    pub(crate) fn ax(&self) -> u64 {
        get64(&self.context, RAX)
    }

    pub(crate) fn set_ax(&mut self, value: u64) {
        put64(&mut self.context, RAX, value);
    }

    /// EFlags or Cpsr.
    pub(crate) fn status(&self) -> u32 {
        get32(&self.context, layout(self.machine).status)
    }

    fn special(&self, at: usize) -> u64 {
        if self.machine.is_x86() { get32(&self.special, at).into() } else { get64(&self.special, at) }
    }

    pub(crate) fn dr6(&self) -> u64 {
        layout(self.machine).special_debug.map_or(0, |(dr6, _)| self.special(dr6))
    }

    pub(crate) fn dr7(&self) -> u64 {
        layout(self.machine).special_debug.map_or(0, |(_, dr7)| self.special(dr7))
    }

    /// Dr6 names a debug register until the host continues.
    pub(crate) fn hit_data(&mut self, number: u8) {
        let Some((dr6, _)) = layout(self.machine).special_debug else { return };
        let value = self.dr6() & !0xf | 1 << number;
        match self.machine.is_x86() {
            true => put32(&mut self.special, dr6, value as u32),
            false => put64(&mut self.special, dr6, value),
        }
    }

    pub(crate) fn set_dr7(&mut self, value: u64) {
        let layout = layout(self.machine);
        let (Some((_, special)), Some((_, dr7))) = (layout.special_debug, layout.debug) else { return };
        match self.machine.is_x86() {
            true => put32(&mut self.special, special, value as u32),
            false => put64(&mut self.special, special, value),
        }
        self.put(dr7, value);
    }
}

/// Fills the rest of CONTEXT; returns KSPECIAL_REGISTERS.
fn x64(context: &mut [u8], facts: &KernelFacts, kpcr: u64) -> Vec<u8> {
    put32(context, 0x34, 0x1f80);
    for (at, selector) in [(0, 0x10), (2, 0x2b), (4, 0x2b), (6, 0x53), (8, 0x2b), (10, 0x18)] {
        put16(context, 0x38 + at, selector);
    }
    put32(context, X64.status, 0x202);
    put64(context, 0x68, IDLE_DR6);
    put64(context, 0x70, IDLE_DR7);
    let length = match facts.build {
        ..9200 => 0xd8,
        9200..17763 => 0xe0,
        _ => 0xf0,
    };
    let mut special = vec![0; length];
    for (at, value) in [(0, 0x8005_0031), (0x10, facts.cr3), (0x18, 0x6f8), (0x40, IDLE_DR6), (0x48, IDLE_DR7)] {
        put64(&mut special, at, value);
    }
    put16(&mut special, 0x56, 0x7f);
    put64(&mut special, 0x58, kpcr.wrapping_sub(0x2000));
    put16(&mut special, 0x66, 0xfff);
    put64(&mut special, 0x68, kpcr.wrapping_sub(0x1000));
    put16(&mut special, 0x70, 0x40);
    put32(&mut special, 0x74, 0x1f80);
    put64(&mut special, 0xa8, kpcr);
    if length > 0xd8 {
        put64(&mut special, 0xd8, 7);
    }
    special
}

/// Fills the rest of CONTEXT; returns KSPECIAL_REGISTERS.
fn x86(context: &mut [u8], facts: &KernelFacts, machine: Machine) -> Vec<u8> {
    for (at, selector) in [(0x8c, 0), (0x90, 0x30), (0x94, 0x23), (0x98, 0x23), (0xbc, 8), (0xc8, 0x10)] {
        put32(context, at, selector);
    }
    put32(context, X86.status, 0x202);
    put32(context, 0x14, IDLE_DR6 as u32);
    put32(context, 0x18, IDLE_DR7 as u32);
    let mut special = vec![0; if facts.build < 9200 { 0x54 } else { 0x58 }];
    // Cr4's bit 5 is PAE.
    let cr4 = if machine == Machine::X86Pae { 0x6f9 } else { 0x6d9 };
    for (at, value) in [(0, 0x8001_003b), (8, facts.cr3 as u32), (0xc, cr4), (0x20, IDLE_DR6 as u32)] {
        put32(&mut special, at, value);
    }
    put32(&mut special, 0x24, IDLE_DR7 as u32);
    put16(&mut special, 0x38, 0x28);
    special
}
