//! Requests a halted stub answers, one function per group of APIs.

use super::cpu::Cpu;
use super::cpu::context_size;
use super::message::{self, MANIPULATE, Stop, get16, get32, get64, put32, put64};
use super::packet::STATE_MANIPULATE;
use super::{Interrupt, Stub};
use crate::machine::Machine;

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const UNSUCCESSFUL: u32 = 0xc000_0001;
const INVALID_PARAMETER: u32 = 0xc000_000d;
const NO_SUCH_DEVICE: u32 = 0xc000_000e;
const NO_MORE_ENTRIES: u32 = 0x8000_001a;
const STATUS: usize = 8;

const READ_VIRTUAL: u32 = 0x3130;
const WRITE_VIRTUAL: u32 = 0x3131;
const GET_CONTEXT: u32 = 0x3132;
const SET_CONTEXT: u32 = 0x3133;
const WRITE_BREAKPOINT: u32 = 0x3134;
const RESTORE_BREAKPOINT: u32 = 0x3135;
const CONTINUE: u32 = 0x3136;
const READ_CONTROL_SPACE: u32 = 0x3137;
const WRITE_CONTROL_SPACE: u32 = 0x3138;
const REBOOT: u32 = 0x313b;
const CONTINUE2: u32 = 0x313c;
const READ_PHYSICAL: u32 = 0x313d;
const WRITE_PHYSICAL: u32 = 0x313e;
const SPECIAL_CALLS: std::ops::RangeInclusive<u32> = 0x3140..=0x3142;
const GET_VERSION: u32 = 0x3146;
const WRITE_BREAKPOINT_EX: u32 = 0x3147;
const RESTORE_BREAKPOINT_EX: u32 = 0x3148;
const CAUSE_BUGCHECK: u32 = 0x3149;
const SWITCH_PROCESSOR: u32 = 0x3150;
const READ_MSR: u32 = 0x3152;
const WRITE_MSR: u32 = 0x3153;
const SEARCH_MEMORY: u32 = 0x3156;
const CLEAR_ALL_INTERNAL_BREAKPOINTS: u32 = 0x315a;
const FILL_MEMORY: u32 = 0x315b;
const QUERY_MEMORY: u32 = 0x315c;
const GET_CONTEXT_EX: u32 = 0x315f;
const SET_CONTEXT_EX: u32 = 0x3160;

/// What a request does to the stop.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    Continue {
        trace: bool,
    },
    /// Another processor reports.
    Announce(Stop),
    Reboot,
    Bugcheck(u32),
}

/// A reply under construction: the request's own header, and what follows it.
struct Reply {
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Reply {
    fn status(&mut self, status: u32) {
        put32(&mut self.header, STATUS, status);
    }

    /// Success or `STATUS_UNSUCCESSFUL`.
    fn done(&mut self, good: bool) {
        self.status(if good { SUCCESS } else { UNSUCCESSFUL });
    }
}

impl Stub {
    /// Serves one intact request.
    pub(crate) async fn manipulate(&mut self, request: &[u8]) -> Result<Outcome, Interrupt> {
        let (header, extra) = request.split_at(MANIPULATE);
        let api = get32(header, 0);
        self.counters.update(|stats| *stats.requests.entry(api).or_default() += 1);
        let mut reply = Reply { header: header.to_vec(), data: Vec::new() };
        match api {
            CONTINUE => return Ok(self.continued(get32(header, 16), None)),
            CONTINUE2 => {
                // The control set: how to step, and Dr7.
                let control = match self.machine() {
                    Machine::X64 => (get32(header, 20), Some(get64(header, 24))),
                    Machine::X86 | Machine::X86Pae => (get32(header, 20), Some(get32(header, 24).into())),
                    Machine::Arm64 => (get32(header, 24), None),
                };
                return Ok(self.continued(get32(header, 16), Some(control)));
            }
            REBOOT => return Ok(Outcome::Reboot),
            CAUSE_BUGCHECK => return Ok(Outcome::Bugcheck(get32(header, 16))),
            SWITCH_PROCESSOR => return Ok(self.switch_processor(get16(header, 6))),
            CLEAR_ALL_INTERNAL_BREAKPOINTS => return Ok(Outcome::Answered),
            _ if SPECIAL_CALLS.contains(&api) => return Ok(Outcome::Answered),
            READ_VIRTUAL | READ_PHYSICAL => self.read_memory(api, &mut reply),
            WRITE_VIRTUAL | WRITE_PHYSICAL => {
                let (address, mut kernel) = (get64(header, 16), self.options.kernel.lock());
                let written = match api {
                    WRITE_VIRTUAL => kernel.write_virtual(address, extra),
                    _ => kernel.write_physical(address, extra),
                };
                drop(kernel);
                put32(&mut reply.header, 28, written as u32);
                reply.done(written == extra.len());
            }
            GET_CONTEXT | GET_CONTEXT_EX => self.get_context(api, &mut reply),
            SET_CONTEXT | SET_CONTEXT_EX => self.set_context(api, extra, &mut reply),
            READ_CONTROL_SPACE => self.read_control_space(&mut reply),
            WRITE_CONTROL_SPACE => self.write_control_space(extra, &mut reply),
            GET_VERSION => {
                let kernel = self.options.kernel.lock();
                message::version(&mut reply.header, kernel.facts(), kernel.machine());
                reply.status(SUCCESS);
            }
            WRITE_BREAKPOINT => {
                let handle = match self.line_state.faults().refuse_breakpoints {
                    true => None,
                    false => self.breakpoints.add(&mut self.options.kernel.lock(), get64(header, 16)),
                };
                put32(&mut reply.header, 24, handle.unwrap_or_default());
                reply.done(handle.is_some());
            }
            RESTORE_BREAKPOINT => {
                let good = self.breakpoints.remove(&mut self.options.kernel.lock(), get32(header, 16));
                reply.done(good);
            }
            WRITE_BREAKPOINT_EX => self.write_breakpoints(extra, &mut reply),
            RESTORE_BREAKPOINT_EX => self.restore_breakpoints(extra, &mut reply),
            READ_MSR => self.read_msr(&mut reply),
            WRITE_MSR => reply.status(SUCCESS),
            SEARCH_MEMORY if self.options.search_memory => self.search(extra, &mut reply),
            FILL_MEMORY => self.fill(extra, &mut reply),
            QUERY_MEMORY => query_memory(&mut reply),
            SEARCH_MEMORY => reply.status(UNSUCCESSFUL),
            _ => {
                let text = format!("KD: Received Unrecognized API 0x{api:x}\n");
                self.print(text.as_bytes()).await?;
                reply.status(UNSUCCESSFUL);
            }
        }
        self.counters.update(|stats| stats.breakpoints = self.breakpoints.addresses());
        self.answer(reply).await?;
        // A failing ContinueStatus in these two lets the target go.
        if matches!(api, WRITE_BREAKPOINT_EX | RESTORE_BREAKPOINT_EX) && get32(header, 20) & 0x8000_0000 != 0 {
            return Ok(Outcome::Continue { trace: false });
        }
        Ok(Outcome::Answered)
    }

    async fn answer(&mut self, reply: Reply) -> Result<(), Interrupt> {
        if let Some(text) = self.options.print_before_reply.clone() {
            self.print(text.as_bytes()).await?;
        }
        let payload = [reply.header, reply.data].concat();
        let chance = self.line_state.faults().stale_reply;
        if let Some(stale) = self.last_reply.take()
            && self.dice.hit(chance)
        {
            self.send_data(STATE_MANIPULATE, &stale, super::Patience::Endless).await?;
        }
        self.send_data(STATE_MANIPULATE, &payload, super::Patience::Endless).await?;
        self.last_reply = Some(payload);
        Ok(())
    }

    fn machine(&self) -> Machine {
        self.options.kernel.lock().machine()
    }

    fn continued(&mut self, status: u32, control: Option<(u32, Option<u64>)>) -> Outcome {
        let pc = self.cpus[0].pc();
        self.counters.update(|stats| stats.continue_pc = Some(pc));
        let Some((trace, dr7)) = control else { return Outcome::Continue { trace: false } };
        self.counters.update(|stats| {
            stats.continue_dr7 = dr7;
            if dr7.is_some_and(|dr7| dr7 & super::cpu::IDLE_DR7 == 0) {
                stats.wrong_dr7 += 1;
            }
        });
        // With a failure status the control set is not applied.
        if status & 0x8000_0000 != 0 {
            return Outcome::Continue { trace: false };
        }
        for cpu in &mut self.cpus {
            if let Some(dr7) = dr7 {
                cpu.set_dr7(dr7);
            }
        }
        Outcome::Continue { trace: trace != 0 }
    }

    fn switch_processor(&mut self, wanted: u16) -> Outcome {
        if usize::from(wanted) < self.cpus.len() {
            self.current = usize::from(wanted);
        }
        let address = self.cpus[self.current].pc();
        Outcome::Announce(Stop::Exception { code: 0x8000_0007, address, first_chance: true })
    }

    fn read_memory(&mut self, api: u32, reply: &mut Reply) {
        let (address, count) = (get64(&reply.header, 16), get32(&reply.header, 24));
        let mut data = vec![0; (count as usize).min(self.max_data)];
        let got = if api == READ_VIRTUAL {
            self.options.kernel.lock().read_virtual(address, &mut data)
        } else {
            self.options.kernel.lock().read_physical(address, &mut data)
        };
        reply.done(got == data.len());
        data.truncate(got);
        self.counters.update(|stats| stats.bytes_read += got as u64);
        put32(&mut reply.header, 28, got as u32);
        reply.data = data;
    }

    /// The Ex calls came with Windows 8.
    fn has_context_ex(&self) -> bool {
        self.options.kernel.lock().facts().build >= 9200
    }

    fn get_context(&mut self, api: u32, reply: &mut Reply) {
        let Some(cpu) = self.cpus.get(usize::from(get16(&reply.header, 6))) else {
            return reply.status(UNSUCCESSFUL);
        };
        if api == GET_CONTEXT {
            reply.data = cpu.context.clone();
        } else if self.has_context_ex() {
            let (offset, count) = (get32(&reply.header, 16) as usize, get32(&reply.header, 20) as usize);
            let rest = cpu.context.get(offset..).unwrap_or_default();
            reply.data = rest[..count.min(rest.len())].to_vec();
            put32(&mut reply.header, 24, reply.data.len() as u32);
        } else {
            return reply.status(UNSUCCESSFUL);
        }
        self.context_read = true;
        reply.status(SUCCESS);
    }

    fn set_context(&mut self, api: u32, extra: &[u8], reply: &mut Reply) {
        let size = context_size(self.machine());
        // A context that was never read in this stop is not taken.
        let staged = match api {
            SET_CONTEXT if extra.len() == size => Some(extra.to_vec()),
            SET_CONTEXT_EX if self.has_context_ex() => {
                let (offset, count) = (get32(&reply.header, 16) as usize, get32(&reply.header, 20) as usize);
                let total = get32(&reply.header, 24) as usize;
                let end = offset.saturating_add(count);
                if offset == 0 {
                    self.staged_context = Vec::new();
                }
                if count != extra.len() || total != size || end > size || self.staged_context.len() != offset {
                    return reply.status(UNSUCCESSFUL);
                }
                self.staged_context.extend(extra);
                put32(&mut reply.header, 24, count as u32);
                if end < size {
                    return reply.done(self.context_read);
                }
                Some(std::mem::take(&mut self.staged_context))
            }
            _ => None,
        };
        let processor = usize::from(get16(&reply.header, 6));
        match (staged, self.cpus.get_mut(processor), self.context_read) {
            (Some(context), Some(cpu), true) => {
                cpu.context = context;
                self.counters.update(|stats| stats.contexts_set += 1);
                reply.status(SUCCESS);
            }
            _ => reply.status(UNSUCCESSFUL),
        }
    }

    /// Selectors: 0 KPCR pointer, 1 KPRCB pointer, 2 KSPECIAL_REGISTERS, 3 KTHREAD pointer. On x86 it is a place in
    /// KPROCESSOR_STATE, CONTEXT and KSPECIAL_REGISTERS.
    fn read_control_space(&mut self, reply: &mut Reply) {
        let (selector, count) = (get64(&reply.header, 16), get32(&reply.header, 24) as usize);
        let cpu = self.cpus.get(usize::from(get16(&reply.header, 6)));
        let data = match (selector, cpu) {
            (at, Some(cpu)) if self.machine().is_x86() => {
                let state = processor_state(cpu);
                let range = usize::try_from(at).ok().and_then(|at| state.get(at..at.checked_add(count)?));
                let Some(data) = range else {
                    put32(&mut reply.header, 28, 0);
                    return reply.status(UNSUCCESSFUL);
                };
                data.to_vec()
            }
            (0, Some(cpu)) => cpu.kpcr.to_le_bytes().to_vec(),
            (1, Some(cpu)) => cpu.kprcb.to_le_bytes().to_vec(),
            (2, Some(cpu)) => cpu.special.clone(),
            (3, Some(cpu)) => cpu.thread.to_le_bytes().to_vec(),
            _ => {
                put32(&mut reply.header, 28, 0);
                return reply.status(UNSUCCESSFUL);
            }
        };
        reply.data = data[..count.min(data.len())].to_vec();
        put32(&mut reply.header, 28, reply.data.len() as u32);
        reply.status(SUCCESS);
    }

    fn write_control_space(&mut self, extra: &[u8], reply: &mut Reply) {
        let selector = get64(&reply.header, 16);
        let whole = match self.machine().is_x86() {
            true => self.cpus.first().map_or(0, |cpu| processor_state(cpu).len() - cpu.special.len()) as u64,
            false => 2,
        };
        match self.cpus.get_mut(usize::from(get16(&reply.header, 6))) {
            Some(cpu) if selector == whole && extra.len() <= cpu.special.len() => {
                cpu.special[..extra.len()].copy_from_slice(extra);
                put32(&mut reply.header, 28, extra.len() as u32);
                reply.status(SUCCESS);
            }
            _ => {
                put32(&mut reply.header, 28, 0);
                reply.status(UNSUCCESSFUL);
            }
        }
    }

    /// Array of {address u64, handle u32, pad u32}.
    fn write_breakpoints(&mut self, extra: &[u8], reply: &mut Reply) {
        let count = get32(&reply.header, 16) as usize;
        reply.data = extra.to_vec();
        let mut good = extra.len() / 16 >= count;
        for entry in reply.data.chunks_exact_mut(16).take(count) {
            let handle = self.breakpoints.add(&mut self.options.kernel.lock(), get64(entry, 0));
            good &= handle.is_some();
            put32(entry, 8, handle.unwrap_or_default());
        }
        reply.done(good);
    }

    /// Array of handles, answered by an array of statuses.
    fn restore_breakpoints(&mut self, extra: &[u8], reply: &mut Reply) {
        let count = get32(&reply.header, 16) as usize;
        reply.data = extra.to_vec();
        let mut good = extra.len() / 4 >= count;
        for entry in reply.data.chunks_exact_mut(4).take(count) {
            let removed = self.breakpoints.remove(&mut self.options.kernel.lock(), get32(entry, 0));
            good &= removed;
            put32(entry, 0, if removed { SUCCESS } else { UNSUCCESSFUL });
        }
        reply.done(good);
    }

    fn read_msr(&mut self, reply: &mut Reply) {
        let value = match get32(&reply.header, 16) {
            // EFER: SCE, LME, LMA, NXE.
            0xc000_0080 => 0xd01,
            // GS base, of the processor that stopped.
            0xc000_0101 => self.cpus[self.current].kpcr,
            _ => return reply.status(NO_SUCH_DEVICE),
        };
        put64(&mut reply.header, 20, value);
        reply.status(SUCCESS);
    }

    fn search(&mut self, extra: &[u8], reply: &mut Reply) {
        let (address, length) = (get64(&reply.header, 16), get64(&reply.header, 24));
        let pattern = extra.get(..get32(&reply.header, 32) as usize).filter(|pattern| !pattern.is_empty());
        match pattern.map(|pattern| self.options.kernel.lock().search(address, length, pattern)) {
            Some(Some(found)) => {
                put64(&mut reply.header, 16, self.machine().extended(found));
                reply.status(SUCCESS);
            }
            Some(None) => reply.status(NO_MORE_ENTRIES),
            None => reply.status(INVALID_PARAMETER),
        }
    }

    /// Flags 1: virtual. The pattern repeats from the start of the range.
    fn fill(&mut self, extra: &[u8], reply: &mut Reply) {
        let (address, length) = (get64(&reply.header, 16), get32(&reply.header, 24) as usize);
        let pattern = extra.get(..usize::from(get16(&reply.header, 30))).unwrap_or_default();
        if pattern.is_empty() || get16(&reply.header, 28) != 1 {
            return reply.status(INVALID_PARAMETER);
        }
        let mut filled = 0;
        while filled < length {
            let piece: Vec<u8> = pattern
                .iter()
                .cycle()
                .skip(filled % pattern.len())
                .take((length - filled).min(0x1000))
                .copied()
                .collect();
            let written = self.options.kernel.lock().write_virtual(address.wrapping_add(filled as u64), &piece);
            filled += written;
            if written < piece.len() {
                break;
            }
        }
        put32(&mut reply.header, 24, filled as u32);
        reply.done(filled == length);
    }
}

/// `_KPROCESSOR_STATE` of x86: the control registers from Windows 8 on are aligned to 8 bytes.
fn processor_state(cpu: &Cpu) -> Vec<u8> {
    let mut state = cpu.context.clone();
    if cpu.special.len() > 0x54 {
        state.resize(state.len().next_multiple_of(8), 0);
    }
    state.extend(&cpu.special);
    state
}

fn query_memory(reply: &mut Reply) {
    let address = get64(&reply.header, 16);
    if get32(&reply.header, 32) != 0 {
        return reply.status(INVALID_PARAMETER);
    }
    let region = match address {
        ..0x0000_8000_0000_0000 => 0,
        0xffff_f900_0000_0000..0xffff_f980_0000_0000 => 1,
        _ => 2,
    };
    put64(&mut reply.header, 24, 0);
    put32(&mut reply.header, 32, region);
    put32(&mut reply.header, 36, 7);
    reply.status(SUCCESS);
}
