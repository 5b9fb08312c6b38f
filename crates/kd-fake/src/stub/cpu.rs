//! One processor's registers: the x64 CONTEXT and KSPECIAL_REGISTERS a stub shows.

use super::message::{get32, get64, put16, put32, put64};
use crate::kernel::{Kernel, KernelFacts};

/// Size of the x64 CONTEXT.
pub(crate) const CONTEXT: usize = 0x4d0;
const CONTEXT_FLAGS: usize = 0x30;
const CS: usize = 0x38;
const EFLAGS: usize = 0x44;
const DR6: usize = 0x68;
const DR7: usize = 0x70;
const RAX: usize = 0x78;
const RCX: usize = 0x80;
const RSP: usize = 0x98;
const RIP: usize = 0xf8;

/// Dr7 with nothing enabled.
pub(crate) const IDLE_DR7: u64 = 0x400;
const SPECIAL_DR7: usize = 0x48;

#[derive(Debug, Clone)]
pub(crate) struct Cpu {
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
    const CURRENT_THREAD: u64 = 8;
    let pointer = |address: u64| {
        let mut bytes = [0; 8];
        (kernel.read_virtual(address, &mut bytes) == 8).then_some(u64::from_le_bytes(bytes))
    };
    let block = pointer(kernel.facts().debugger_data_list)?;
    let table = pointer(block.wrapping_add(KI_PROCESSOR_BLOCK))?;
    let kprcb = pointer(table.wrapping_add(u64::from(number) * 8))?;
    Some((kprcb, pointer(kprcb.wrapping_add(CURRENT_THREAD))?))
}

impl Cpu {
    /// A processor in the idle loop.
    pub(crate) fn new(kernel: &Kernel, number: u32) -> Cpu {
        let facts = kernel.facts();
        let first = (facts.kprcb, facts.thread);
        let (kprcb, thread) = if number == 0 { first } else { find_processor(kernel, number).unwrap_or(first) };
        // The KPRCB is a part of its KPCR.
        let kpcr = kprcb.wrapping_sub(facts.kprcb.wrapping_sub(facts.kpcr));
        let mut context = vec![0; CONTEXT];
        put32(&mut context, CONTEXT_FLAGS, 0x0010_001f);
        put32(&mut context, 0x34, 0x1f80);
        for (at, selector) in [(0, 0x10), (2, 0x2b), (4, 0x2b), (6, 0x53), (8, 0x2b), (10, 0x18)] {
            put16(&mut context, CS + at, selector);
        }
        put32(&mut context, EFLAGS, 0x202);
        put64(&mut context, DR6, 0xffff_0ff0);
        put64(&mut context, DR7, IDLE_DR7);
        put64(&mut context, RSP, facts.stack.wrapping_sub(u64::from(number) << 16));
        put64(&mut context, RIP, facts.break_return);

        let length = match facts.build {
            ..9200 => 0xd8,
            9200..17763 => 0xe0,
            _ => 0xf0,
        };
        let mut special = vec![0; length];
        for (at, value) in [(0, 0x8005_0031), (0x10, facts.cr3), (0x18, 0x6f8), (0x40, 0xffff_0ff0)] {
            put64(&mut special, at, value);
        }
        put64(&mut special, SPECIAL_DR7, IDLE_DR7);
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
        Cpu { context, special, kpcr, kprcb, thread }
    }

    /// Puts the processor at the breakpoint of `DbgBreakPointWithStatus(DBG_STATUS_CONTROL_C)`.
    pub(crate) fn break_in(&mut self, facts: &KernelFacts) {
        self.set_pc(facts.break_pc);
        put64(&mut self.context, RSP, facts.stack);
        put64(&mut self.context, RCX, 1);
    }

    pub(crate) fn pc(&self) -> u64 {
        get64(&self.context, RIP)
    }

    pub(crate) fn set_pc(&mut self, pc: u64) {
        put64(&mut self.context, RIP, pc);
    }

    pub(crate) fn sp(&self) -> u64 {
        get64(&self.context, RSP)
    }

    pub(crate) fn set_sp(&mut self, sp: u64) {
        put64(&mut self.context, RSP, sp);
    }

    pub(crate) fn ax(&self) -> u64 {
        get64(&self.context, RAX)
    }

    pub(crate) fn set_ax(&mut self, value: u64) {
        put64(&mut self.context, RAX, value);
    }

    pub(crate) fn eflags(&self) -> u32 {
        get32(&self.context, EFLAGS)
    }

    pub(crate) fn dr6(&self) -> u64 {
        get64(&self.special, 0x40)
    }

    pub(crate) fn dr7(&self) -> u64 {
        get64(&self.special, SPECIAL_DR7)
    }

    pub(crate) fn set_dr7(&mut self, value: u64) {
        put64(&mut self.special, SPECIAL_DR7, value);
        put64(&mut self.context, DR7, value);
    }
}
