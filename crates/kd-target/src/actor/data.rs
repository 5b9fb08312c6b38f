//! Breakpoints on data: the debug registers of all processors.
//!
//! ```text
//! KSPECIAL_REGISTERS   x64: Dr0 to Dr3 at 0x20, 8 bytes each     x86: at 0x10, 4 bytes each
//! Dr7                  bit 2n: register n is on; 16 + 4n: 1 writes, 3 reads and writes; 18 + 4n: length
//! Dr6                  bit n: register n was hit
//! ```
//!
//! A kernel takes Dr7 from each continue and writes it into every processor, so these are on only while the target runs
//! for us: a continue that leaves it turns them off.

use kd_wire::message::manipulate::write_control_space;

use super::*;
use crate::DataAccess;

/// A breakpoint of ours on data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Data {
    /// Which debug register.
    number: u8,
    access: DataAccess,
}

/// Debug registers for addresses.
const NUMBERS: u8 = 4;
/// Dr7 without what it turns on; bit 10 is always set.
const DR7_OFF: u64 = 0x400;
/// The build from which `_KPROCESSOR_STATE` of x86 is aligned, for XCR0 in it.
const WINDOWS_8: u16 = 9200;
const DR7_BREAKPOINTS: u64 = 0xffff_00ff;

impl Actor {
    pub(super) async fn set_data_breakpoint(&mut self, address: u64, access: DataAccess) -> Result<(), TargetError> {
        let Some(at) = self.at.clone() else { return Err(Fault::Running.into()) };
        let machine = self.machine();
        let is_x86 = machine == Machine::X86;
        if !matches!(machine, Machine::X86 | Machine::X64) || access.size == 8 && is_x86 {
            return Err(TargetError::Refused("this machine has no such breakpoint on data".into()));
        }
        if self.breakpoints.iter().any(|known| known.address == address) {
            return Err(TargetError::Refused(format!("there is a breakpoint of ours at {address:016x} already")));
        }
        let used =
            |number: &u8| self.breakpoints.iter().any(|known| known.data.is_some_and(|data| data.number == *number));
        let Some(number) = (0..NUMBERS).find(|number| !used(number)) else {
            return Err(TargetError::Refused(format!(
                "the processors have {NUMBERS} registers for data, all of them in use"
            )));
        };
        // Behind CONTEXT in KPROCESSOR_STATE on x86.
        let build = self.version.as_ref().map_or(0, |version| version.minor);
        let (selector, first, width) = match is_x86 {
            true => (if build < WINDOWS_8 { 0x2cc } else { 0x2d0 }, 0x10, 4),
            false => (2, 0x20, 8),
        };
        let place = first + usize::from(number) * width;
        for processor in 0..at.processors().min(u16::MAX.into()) as u16 {
            let length = (place + width) as u32;
            let Answer::Bytes { bytes, .. } = self.read_control(processor, selector, length).await? else {
                return Err(TargetError::Refused("the target gives no control registers".into()));
            };
            let mut registers = bytes.to_vec();
            let Some(register) = registers.get_mut(place..place + width) else {
                return Err(TargetError::Refused("the target gives too few control registers".into()));
            };
            register.copy_from_slice(&address.to_le_bytes()[..width]);
            let request = write_control_space::Request {
                target_base_address: selector,
                transfer_count: length,
                data: registers.into(),
            };
            let reply = self.reply(processor, Request::WriteControlSpace(request)).await?;
            accepted(reply.return_status, || format!("take debug registers of processor {processor}"))?;
        }
        let data = Some(Data { number, access });
        self.breakpoints.push(Breakpoint { address, handle: None, refused: false, data });
        Ok(())
    }

    /// Dr7 for a continue: what is planted is on, and nothing else.
    pub(super) fn dr7(&self, reported: u64) -> u64 {
        let planted = self.breakpoints.iter().filter(|known| known.handle.is_some()).filter_map(|known| known.data);
        planted.fold(reported & !DR7_BREAKPOINTS | DR7_OFF, |dr7, Data { number, access }| {
            let kind = if access.writes_only { 1u64 } else { 3 };
            let length = match access.size {
                1 => 0,
                2 => 1,
                8 => 2,
                _ => 3,
            };
            dr7 | 1 << (2 * number) | (kind | length << 2) << (16 + 4 * number)
        })
    }

    /// The breakpoint on data that a stop is of.
    pub(super) fn data_hit(&self, change: &StateChange, machine: Machine) -> Option<u64> {
        let Report::Exception(exception) = &change.report else { return None };
        let is_step =
            DEBUGGER_STOPS.contains(&exception.exception_code) && exception.exception_code != STATUS_BREAKPOINT;
        let dr6 = match machine {
            Machine::X86 => change.x86().dr6.into(),
            Machine::X64 => change.x64().dr6,
            Machine::Arm64 | Machine::Other(_) => 0,
        };
        let is_hit = |known: &&Breakpoint| known.data.is_some_and(|data| dr6 >> data.number & 1 != 0);
        self.breakpoints.iter().find(is_hit).filter(|_| is_step).map(|known| known.address)
    }
}
