//! What a target says of itself when it stands still: its version, and why it stopped.

use crate::Machine;

/// What GetVersion answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// High byte: class of the debuggee; low byte: 0xF free, 0xC checked.
    pub major: u16,
    /// The build number.
    pub minor: u16,
    /// Of KD: 6 since Windows XP.
    pub protocol: u8,
    /// 1 more than one processor, 2 `debugger_data_list` is there, 4 pointers of 64 bits.
    pub flags: u16,
    /// Its processors.
    pub machine: Machine,
    /// Where the kernel's own image begins, as the wire carries it (sign-extended on 32 bits).
    pub kernel_base: u64,
    /// Address of `nt!PsLoadedModuleList`.
    pub loaded_module_list: u64,
    /// Address of the list that leads to KDDEBUGGER_DATA64.
    pub debugger_data_list: u64,
}

impl Version {
    /// Bytes of a pointer: 4 or 8.
    pub fn pointer_size(&self) -> u8 {
        self.machine.pointer_size()
    }

    /// Whether its kernel is one for several processors.
    pub fn is_multiprocessor(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// Why and where the target stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Exception code; 0x80000003 is a breakpoint or a break-in.
    pub code: u32,
    /// The program's own handlers have not seen it yet.
    pub first_chance: bool,
    /// The instruction that raised it.
    pub exception_address: u64,
    /// What the exception carries: of an access violation, how and where.
    pub parameters: Vec<u64>,
    /// The processor that stopped.
    pub processor: u16,
    /// How many the machine has.
    pub processors: u32,
    /// The address of its ETHREAD.
    pub thread: u64,
    /// The next instruction; of a breakpoint the one that it stands on.
    pub program_counter: u64,
    /// The bytes at the program counter that came with the stop.
    pub instructions: Vec<u8>,
    /// We asked for it: the break instruction is the target's answer to Ctrl+C, `.break` or `-bonc`.
    pub asked: bool,
    /// It is no exception but a driver that came or went and that was waited for ([`Halted::stop_at_loads`](crate::Halted::stop_at_loads)).
    pub load: Option<Load>,
    /// The address of the breakpoint on data that was hit ([`Halted::set_data_breakpoint`](crate::Halted::set_data_breakpoint)).
    pub data: Option<u64>,
}

/// What a breakpoint on data waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataAccess {
    /// Reads do not count.
    pub writes_only: bool,
    /// 1, 2, 4 or 8 bytes, which the address is a multiple of.
    pub size: u8,
}

/// A driver that was loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// As the kernel names it: `\SystemRoot\system32\drivers\x.sys`.
    pub path: String,
    /// Where its image lies.
    pub base: u64,
    /// Bytes of its image.
    pub size: u32,
    /// It went; else it came.
    pub unload: bool,
}

/// Says which loads and unloads the target stops at.
pub struct LoadStops(Box<dyn Fn(&Load) -> bool + Send>);

impl LoadStops {
    /// Stops where `wanted` is true.
    pub fn new(wanted: impl Fn(&Load) -> bool + Send + 'static) -> Self {
        Self(Box::new(wanted))
    }

    pub(crate) fn want(&self, load: &Load) -> bool {
        (self.0)(load)
    }
}

impl std::fmt::Debug for LoadStops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoadStops")
    }
}
