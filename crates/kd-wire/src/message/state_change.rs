//! STATE_CHANGE64 (packet type 7): the target stands still and says why.
//!
//! ```text
//!   0  u32    NewState          0x3030 exception, 0x3031 load symbols, 0x3032 command string; | 0x10000 alternate
//!   4  u16    ProcessorLevel
//!   6  u16    Processor
//!   8  u32    NumberProcessors
//!  16  u64    Thread
//!  24  u64    ProgramCounter
//!  32  160 B  per reason
//! 192  48 B   control report, per machine
//! 240  ...    path, command string or trace data
//! ```

use bytes::Bytes;

use super::layout::{Field, layout};
use super::{DecodeError, Fields, Layout, Value};

/// An exception: a breakpoint, a break-in, a fault.
pub const EXCEPTION: u32 = 0x3030;
/// A driver came or went.
pub const LOAD_SYMBOLS: u32 = 0x3031;
/// A command for the debugger to run.
pub const COMMAND_STRING: u32 = 0x3032;
/// May be added to any of them.
pub const ALTERNATE: u32 = 0x1_0000;

/// BaseOfDll of a target that is about to restart.
pub const REBOOTING: u64 = u64::MAX;
/// BaseOfDll of a target that is about to hibernate.
pub const HIBERNATING: u64 = u64::MAX - 1;

layout! {
    /// The part that all reasons share.
    struct Header [240] {
        0 new_state: u32,
        4 processor_level: u16,
        6 processor: u16,
        8 number_processors: u32,
        16 thread: u64,
        24 program_counter: u64,
    }
}

layout! {
    /// NewState 0x3030.
    struct Exception [240] {
        32 exception_code: u32,
        36 exception_flags: u32,
        40 exception_record: u64,
        48 exception_address: u64,
        /// At most 15; larger numbers occur only in damaged packets. Use [`Exception::parameters`].
        56 number_parameters: u32,
        64 exception_information: [u64; 15],
        /// 1: the target's handlers have not seen it yet.
        184 first_chance: u32,
    }
    +
    /// ReactOS adds trace data.
    data
}

layout! {
    /// NewState 0x3031.
    struct LoadSymbols [240] {
        /// Bytes of path, its NUL included.
        32 path_name_length: u32,
        /// [`REBOOTING`] and [`HIBERNATING`] are notices, not addresses.
        40 base_of_dll: u64,
        48 process_id: u64,
        56 check_sum: u32,
        60 size_of_image: u32,
        64 unload_symbols: u8,
    }
    +
    /// The path; use [`LoadSymbols::path`].
    data
}

layout! {
    /// NewState 0x3032.
    struct CommandString [240] {
        32 flags: u32,
    }
    +
    /// Name and command; use [`CommandString::strings`].
    data
}

layout! {
    /// Control report of x64.
    struct X64Report [240] {
        192 dr6: u64,
        200 dr7: u64,
        208 e_flags: u32,
        212 instruction_count: u16,
        /// Bit 0: the segments are valid; bit 1: they are the usual flat ones.
        214 report_flags: u16,
        216 instruction_stream: [u8; 16],
        232 seg_cs: u16,
        234 seg_ds: u16,
        236 seg_es: u16,
        238 seg_fs: u16,
    }
}

layout! {
    /// Control report of x86.
    struct X86Report [240] {
        192 dr6: u32,
        196 dr7: u32,
        200 instruction_count: u16,
        202 report_flags: u16,
        204 instruction_stream: [u8; 16],
        220 seg_cs: u16,
        222 seg_ds: u16,
        224 seg_es: u16,
        226 seg_fs: u16,
        228 e_flags: u32,
    }
}

layout! {
    /// Control report of arm64.
    struct Arm64Report [240] {
        192 cpsr: u32,
        196 instruction_count: u32,
        200 instruction_stream: [u8; 16],
    }
}

macro_rules! instructions {
    ($($report:ident),*) => {$(
        impl $report {
            /// The bytes at the program counter, as many as the target could read. Breakpoints of the target's
            /// own table were taken out of them.
            pub fn instructions(&self) -> &[u8] {
                &self.instruction_stream[..(self.instruction_count as usize).min(16)]
            }
        }
    )*};
}

instructions!(X64Report, X86Report, Arm64Report);

impl Exception {
    /// Those that `number_parameters` says are there.
    pub fn parameters(&self) -> &[u64] {
        &self.exception_information[..(self.number_parameters as usize).min(15)]
    }
}

impl LoadSymbols {
    /// The module's path: the last PathNameLength bytes, without their NUL.
    pub fn path(&self) -> String {
        let len = self.data.len().min(self.path_name_length as usize);
        let bytes = &self.data[self.data.len() - len..];
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }
}

impl CommandString {
    /// Name and command.
    pub fn strings(&self) -> (String, String) {
        let mut strings = self.data.split(|byte| *byte == 0).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        (strings.next().unwrap_or_default(), strings.next().unwrap_or_default())
    }
}

/// Why the target stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The processor met an exception.
    Exception(Exception),
    /// A driver was loaded or unloaded, or the machine starts anew.
    LoadSymbols(LoadSymbols),
    /// The target wants a command to be run.
    CommandString(CommandString),
    /// Of a kind that nobody has described.
    Unknown {
        /// Bytes 32 to 191: what a known report would have there.
        part: Bytes,
        /// What follows the fixed part.
        data: Bytes,
    },
}

impl Report {
    fn is_same(&self, other: &Report) -> bool {
        match (self, other) {
            (Report::Exception(a), Report::Exception(b)) => {
                (a.exception_code, a.exception_flags, a.exception_record, a.exception_address)
                    == (b.exception_code, b.exception_flags, b.exception_record, b.exception_address)
                    && (a.first_chance == 0) == (b.first_chance == 0)
                    && a.parameters() == b.parameters()
            }
            (Report::LoadSymbols(a), Report::LoadSymbols(b)) => {
                (a.base_of_dll, a.process_id, a.check_sum, a.size_of_image, a.unload_symbols != 0)
                    == (b.base_of_dll, b.process_id, b.check_sum, b.size_of_image, b.unload_symbols != 0)
                    && a.path() == b.path()
            }
            (Report::CommandString(a), Report::CommandString(b)) => a.strings() == b.strings(),
            // Which bytes of these have a meaning nobody knows.
            (Report::Unknown { .. }, Report::Unknown { .. }) => true,
            _ => false,
        }
    }
}

/// A target stands still; this says why and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// 0x3030 to 0x3032; decides what `report` is.
    pub new_state: u32,
    /// Of the processor's make.
    pub processor_level: u16,
    /// The one that stopped.
    pub processor: u16,
    /// 0 occurs and means "at least Processor + 1"; see [`StateChange::processors`].
    pub number_processors: u32,
    /// Its current thread's ETHREAD.
    pub thread: u64,
    /// Its next instruction.
    pub program_counter: u64,
    /// By `new_state`.
    pub report: Report,
    /// The control report's 48 bytes. Only the machine type, known from GetVersion, says what they are.
    pub control_report: [u8; 48],
}

impl StateChange {
    /// Reads all machines' forms: what differs is in `control_report`.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let header = Header::decode(bytes)?;
        let report = match header.new_state & !ALTERNATE {
            EXCEPTION => Report::Exception(Layout::decode(bytes)?),
            LOAD_SYMBOLS => Report::LoadSymbols(Layout::decode(bytes)?),
            COMMAND_STRING => Report::CommandString(Layout::decode(bytes)?),
            _ => Report::Unknown { part: bytes.slice(32..192), data: bytes.slice(240..) },
        };
        Ok(StateChange {
            new_state: header.new_state,
            processor_level: header.processor_level,
            processor: header.processor,
            number_processors: header.number_processors,
            thread: header.thread,
            program_counter: header.program_counter,
            report,
            control_report: Field::get(bytes, 192),
        })
    }

    /// As a packet carries it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = match &self.report {
            Report::Exception(report) => report.encode(),
            Report::LoadSymbols(report) => report.encode(),
            Report::CommandString(report) => report.encode(),
            Report::Unknown { part, data } => {
                let mut bytes = vec![0; 240];
                let len = part.len().min(160);
                bytes[32..32 + len].copy_from_slice(&part[..len]);
                bytes.extend_from_slice(data);
                bytes
            }
        };
        self.new_state.put(&mut bytes, 0);
        self.processor_level.put(&mut bytes, 4);
        self.processor.put(&mut bytes, 6);
        self.number_processors.put(&mut bytes, 8);
        self.thread.put(&mut bytes, 16);
        self.program_counter.put(&mut bytes, 24);
        self.control_report.put(&mut bytes, 192);
        bytes
    }

    /// Whether both tell of the same stop.
    ///
    /// A target tells of a stop again after a RESET, a RESEND or a break-in too many, and builds its packet anew for that:
    /// what no field uses is what its stack held, another each time. A WinDbg session shows the same of the host's
    /// packets. So only what has a meaning is compared, and of that only what says which stop it is: the registers of the
    /// control report change when somebody sets them.
    pub fn is_same_stop(&self, other: &StateChange) -> bool {
        (self.new_state, self.processor, self.thread, self.program_counter)
            == (other.new_state, other.processor, other.thread, other.program_counter)
            && self.report.is_same(&other.report)
    }

    /// The same, where the debugger has set the program counter meanwhile, as it does to get over a break instruction.
    ///
    /// Folklore: a target that tells of its stop again may build the packet from the registers that it has now. Example: the
    /// acknowledgement of a continue was lost, and the stop at `nt!DbgBreakPointWithStatus` came again from one byte further;
    /// it was told as a new one. ReactOS sends what it sent before.
    pub fn is_same_stop_moved(&self, other: &StateChange, program_counter: u64) -> bool {
        // Targets of 32 bits extend their addresses by the sign, or do not.
        let is_there = other.program_counter as u32 == program_counter as u32
            && other.program_counter >> 32 == self.program_counter >> 32;
        let is_alike = match (&self.report, &other.report) {
            (Report::Exception(a), Report::Exception(b)) => a.exception_code == b.exception_code,
            (a, b) => a.is_same(b),
        };
        let of = |change: &StateChange| (change.new_state, change.processor, change.thread);
        is_there && is_alike && of(self) == of(other)
    }

    /// How many processors the target has, at least.
    pub fn processors(&self) -> u32 {
        self.number_processors.max(u32::from(self.processor) + 1)
    }

    /// The control report of an x64 target.
    pub fn x64(&self) -> X64Report {
        self.control()
    }

    /// The control report of an x86 target.
    pub fn x86(&self) -> X86Report {
        self.control()
    }

    /// The control report of an arm64 target.
    pub fn arm64(&self) -> Arm64Report {
        self.control()
    }

    fn control<T: Layout + Default>(&self) -> T {
        let mut bytes = vec![0; 240];
        self.control_report.put(&mut bytes, 192);
        T::decode(&bytes.into()).unwrap_or_default()
    }

    /// For people: `Exception`, `LoadSymbols`.
    pub fn name(&self) -> &'static str {
        match self.report {
            Report::Exception(_) => "Exception",
            Report::LoadSymbols(_) => "LoadSymbols",
            Report::CommandString(_) => "CommandString",
            Report::Unknown { .. } => "UnknownStateChange",
        }
    }

    pub(crate) fn fields(&self, out: &mut Fields) {
        out.push(("NewState".into(), self.new_state.value()));
        out.push(("ProcessorLevel".into(), self.processor_level.value()));
        out.push(("Processor".into(), self.processor.value()));
        out.push(("NumberProcessors".into(), self.number_processors.value()));
        out.push(("Thread".into(), self.thread.value()));
        out.push(("ProgramCounter".into(), self.program_counter.value()));
        match &self.report {
            Report::Exception(report) => {
                report.fields(out);
                if let Some((_, value)) = out.iter_mut().find(|(name, _)| name == "ExceptionInformation") {
                    *value = Value::List(report.parameters().to_vec());
                }
            }
            Report::LoadSymbols(report) => {
                report.fields(out);
                out.retain(|(name, _)| name != "data");
                out.push(("PathName".into(), Value::Text(report.path())));
            }
            Report::CommandString(report) => {
                report.fields(out);
                out.retain(|(name, _)| name != "data");
                let (name, command) = report.strings();
                out.push(("Name".into(), Value::Text(name)));
                out.push(("Command".into(), Value::Text(command)));
            }
            Report::Unknown { part, data } => {
                out.push(("Bytes".into(), Value::Bytes(part.clone())));
                out.push(("data".into(), Value::Bytes(data.clone())));
            }
        }
        out.push(("ControlReport".into(), self.control_report.value()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(litter: u8) -> Vec<u8> {
        let mut bytes = vec![litter; 240];
        EXCEPTION.put(&mut bytes, 0);
        1_u16.put(&mut bytes, 6);
        4_u32.put(&mut bytes, 8);
        0xffff_8000_1234_5678_u64.put(&mut bytes, 16);
        0xffff_f800_0000_1000_u64.put(&mut bytes, 24);
        0x8000_0003_u32.put(&mut bytes, 32);
        0_u32.put(&mut bytes, 36);
        0_u64.put(&mut bytes, 40);
        0xffff_f800_0000_1000_u64.put(&mut bytes, 48);
        1_u32.put(&mut bytes, 56);
        0_u64.put(&mut bytes, 64);
        1_u32.put(&mut bytes, 184);
        bytes
    }

    fn decode(bytes: Vec<u8>) -> StateChange {
        StateChange::decode(&Bytes::from(bytes)).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_stop_told_again_is_known_whatever_its_unused_bytes_hold() {
        assert!(decode(stop(0)).is_same_stop(&decode(stop(0xa5))));
    }

    #[test]
    fn every_byte_that_says_which_stop_it_is_counts() {
        let of = decode(stop(0));
        for at in [0, 6, 16, 24, 32, 36, 40, 48, 56, 64] {
            let mut other = stop(0);
            other[at] ^= 2;
            assert!(!of.is_same_stop(&decode(other)), "byte {at}");
        }
    }

    #[test]
    fn two_drivers_that_come_at_one_place_are_two_stops() {
        let notice = |path: &str, litter| {
            let mut bytes = stop(litter);
            LOAD_SYMBOLS.put(&mut bytes, 0);
            (path.len() as u32 + 1).put(&mut bytes, 32);
            bytes[40..65].fill(0);
            bytes.extend(path.bytes().chain([0]));
            decode(bytes)
        };
        assert!(notice("a.sys", 1).is_same_stop(&notice("a.sys", 2)));
        assert!(!notice("a.sys", 1).is_same_stop(&notice("b.sys", 1)));
    }
}
