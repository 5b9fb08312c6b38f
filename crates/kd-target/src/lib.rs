//! One attached kernel.

use std::time::Duration;

use nt_memory::{Fault, Memory};

/// What GetVersion answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// High byte: class of the debuggee; low byte: 0xF free, 0xC checked.
    pub major: u16,
    /// The build number.
    pub minor: u16,
    pub protocol: u8,
    pub flags: u16,
    /// PE machine: 0x014c, 0x8664, 0xaa64.
    pub machine: u16,
    pub kernel_base: u64,
    pub loaded_module_list: u64,
    pub debugger_data_list: u64,
}

impl Version {
    pub fn pointer_size(&self) -> u8 {
        if self.machine == 0x014c || self.machine == 0x01c4 { 4 } else { 8 }
    }

    pub fn is_multiprocessor(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// Why and where the target stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub reason: StopReason,
    pub processor: u16,
    pub processors: u32,
    pub thread: u64,
    pub program_counter: u64,
    /// The bytes at the program counter that came with the stop.
    pub instructions: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    Exception { code: u32, first_chance: bool, address: u64, parameters: Vec<u64> },
    LoadSymbols { path: String, base: u64, size: u32, checksum: u32, unload: bool },
    Command { name: String, command: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    pub base: u64,
    pub size: u32,
    /// As the kernel spells it: `ntoskrnl.exe`, `myfault.sys`.
    pub file: String,
    pub path: String,
    pub checksum: u32,
    pub timestamp: Option<u32>,
}

/// The loaded-module list as far as it could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modules {
    pub modules: Vec<Module>,
    /// What is missing and why; empty when the list is complete.
    pub notes: Vec<String>,
}

/// What was asked of the target so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub requests: u64,
    /// Bytes of memory that came over the wire.
    pub bytes_read: u64,
    /// Bytes sent to the target, headers included.
    pub bytes_sent: u64,
    pub frozen: Duration,
}

/// What happens to the session on its own; the shell shows it when it sees fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Text that a driver printed (DbgPrint), untouched.
    Print(String),
    /// A prompt of the target (`DbgPrompt`) that was answered for it.
    Prompt {
        text: String,
        answer: String,
    },
    /// The transport is up: KDNET has keys with this peer, or a stream is open.
    Connected {
        peer: Option<std::net::SocketAddr>,
        local: Option<std::net::IpAddr>,
        port: Option<u16>,
    },
    /// The target said that it reboots, or came back without saying so.
    Restarted {
        announced: bool,
    },
    /// The target stopped. [`Running::wait`] and [`Running::break_in`] return the stop itself.
    Stopped,
    /// Something that a person who wonders why it does not connect wants to know.
    Diagnostic(String),
    /// A driver was loaded or unloaded while the target ran; it was continued at once.
    ModuleChange {
        path: String,
        base: u64,
        unload: bool,
    },
    Lost(String),
}

/// A target in one of its two states. Commands that need the other state do not compile.
pub enum Target {
    Halted(Halted),
    Running(Running),
}

/// The target stands still: its memory can be read.
pub struct Halted {}

/// The target runs: it can only be asked to stop.
pub struct Running {}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("the target did not stop within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("{0}")]
    Refused(String),
}

impl Halted {
    pub fn version(&self) -> &Version {
        unimplemented!()
    }

    pub fn stop(&self) -> &Stop {
        unimplemented!()
    }

    /// The loaded-module list; read once per stop.
    pub fn modules(&self) -> Result<Modules, Fault> {
        unimplemented!()
    }

    /// One processor's CONTEXT record, raw.
    pub fn context(&self, _processor: u16) -> Result<Vec<u8>, TargetError> {
        unimplemented!()
    }

    pub fn cost(&self) -> Cost {
        unimplemented!()
    }

    /// Lets the target run. A hard-coded breakpoint at the program counter is stepped over first.
    #[allow(clippy::result_large_err)]
    pub fn go(self) -> Result<Running, (Halted, TargetError)> {
        unimplemented!()
    }
}

impl Memory for Halted {
    fn read(&self, _address: u64, _buffer: &mut [u8]) -> Result<usize, Fault> {
        unimplemented!()
    }
}

impl Running {
    pub fn cost(&self) -> Cost {
        unimplemented!()
    }

    /// Breaks in and waits for the stop.
    #[allow(clippy::result_large_err)]
    pub fn break_in(self, _patience: Duration) -> Result<Halted, (Running, TargetError)> {
        unimplemented!()
    }

    /// Waits until the target stops by itself, at most `patience` (for ever without one).
    #[allow(clippy::result_large_err)]
    pub fn wait(self, _patience: Option<Duration>) -> Result<Halted, (Running, TargetError)> {
        unimplemented!()
    }
}
