//! The few instructions that a processor of the machine executes: those of [`crate::kernel`]'s functions.

use super::Stub;
use super::message::get64;
use crate::kernel::{SystemCall, TRAP_FRAME};
use crate::machine::Machine;

/// What a processor of an idle machine does is not there, and counts as one byte.
const OTHER: u64 = 1;
/// A system call that takes longer went wrong.
const LONGEST_CALL: u32 = 1 << 16;

/// What processor 0 did before a system call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pc: u64,
    sp: u64,
    thread: u64,
}

impl Stub {
    fn pointer(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        let kernel = self.options.kernel.lock();
        kernel.read_virtual(address, &mut bytes[..kernel.machine().pointer()]);
        get64(&bytes, 0)
    }

    /// The stack pointer below a value that was pushed.
    fn push(&self, sp: u64, value: u64) -> u64 {
        let mut kernel = self.options.kernel.lock();
        let width = kernel.machine().pointer();
        let pushed = sp.wrapping_sub(width as u64);
        kernel.write_virtual(pushed, &value.to_le_bytes()[..width]);
        pushed
    }

    /// One instruction of a processor.
    pub(crate) fn step(&mut self, number: usize) {
        let (pc, sp) = (self.cpus[number].pc(), self.cpus[number].sp());
        let mut code = [0; 10];
        self.options.kernel.lock().read_virtual(pc, &mut code);
        let machine = self.options.kernel.lock().machine();
        if machine == Machine::Arm64 {
            return self.cpus[number].set_pc(pc.wrapping_add(4));
        }
        let near = |length: u64| {
            let displacement = i32::from_le_bytes([code[1], code[2], code[3], code[4]]);
            pc.wrapping_add(length).wrapping_add(i64::from(displacement) as u64)
        };
        let imm32 = u64::from(u32::from_le_bytes([code[3], code[4], code[5], code[6]]));
        let (pc, sp) = match code {
            [0xc3, ..] => (self.pointer(sp), sp.wrapping_add(machine.pointer() as u64)),
            [0xe8, ..] => (near(5), self.push(sp, pc.wrapping_add(5))),
            // What follows is x64's: mov rax,imm64; call rax
            [0x48, 0xb8, imm @ ..] => {
                self.cpus[number].set_ax(u64::from_le_bytes(imm));
                (pc.wrapping_add(10), sp)
            }
            [0xff, 0xd0, ..] => (self.cpus[number].ax(), self.push(sp, pc.wrapping_add(2))),
            [0xe9, ..] => (near(5), sp),
            [0x48, 0x83, 0xec, imm, ..] => (pc.wrapping_add(4), sp.wrapping_sub(imm.into())),
            [0x48, 0x83, 0xc4, imm, ..] => (pc.wrapping_add(4), sp.wrapping_add(imm.into())),
            [0x48, 0x81, 0xc4, ..] => (pc.wrapping_add(7), sp.wrapping_add(imm32)),
            // iretq: rip, cs, eflags, rsp, ss
            [0x48, 0xcf, ..] => (self.pointer(sp), self.pointer(sp.wrapping_add(0x18))),
            _ => (pc.wrapping_add(OTHER), sp),
        };
        self.cpus[number].set_pc(pc);
        self.cpus[number].set_sp(sp);
    }

    /// A thread enters the kernel on processor 0.
    pub(crate) fn enter(&mut self, call: &SystemCall) {
        let cpu = &mut self.cpus[0];
        self.idle = Some(Idle { pc: cpu.pc(), sp: cpu.sp(), thread: cpu.thread });
        let pushed = call.stack - 0x28;
        let mut kernel = self.options.kernel.lock();
        for (slot, value) in (0..).zip([call.user.0, 0x33, 0x246, call.user.1, 0x2b]) {
            kernel.write_virtual(pushed + slot * 8, &value.to_le_bytes());
        }
        kernel.write_virtual(cpu.kprcb + 8, &call.thread.to_le_bytes());
        cpu.thread = call.thread;
        cpu.set_pc(call.entry);
        cpu.set_sp(pushed - u64::from(TRAP_FRAME));
    }

    /// Executes the system call up to a breakpoint (true) or to its end.
    pub(crate) fn run_call(&mut self) -> bool {
        for _ in 0..LONGEST_CALL {
            if self.idle.is_none() || self.at_int3() {
                return self.idle.is_some();
            }
            self.step(0);
            let is_user = self.cpus[0].pc() >> 63 == 0;
            if is_user {
                break;
            }
        }
        if let Some(Idle { pc, sp, thread }) = self.idle.take() {
            let cpu = &mut self.cpus[0];
            cpu.set_pc(pc);
            cpu.set_sp(sp);
            cpu.thread = thread;
            self.options.kernel.lock().write_virtual(cpu.kprcb + 8, &thread.to_le_bytes());
        }
        false
    }
}
