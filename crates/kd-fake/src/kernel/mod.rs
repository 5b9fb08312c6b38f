//! The memory of a simulated kernel.

use std::io;
use std::path::{Path, PathBuf};

/// What a target says about itself, and where its parts lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// KD's major version: 15 on every NT kernel.
    pub major: u16,
    /// `NtBuildNumber` without its free/checked mark.
    pub build: u16,
    /// `IMAGE_FILE_MACHINE_*`.
    pub machine: u16,
    /// `DBGKD_VERS_FLAG_*`.
    pub flags: u16,
    /// Where ntoskrnl.exe is loaded.
    pub kernel_base: u64,
    /// Its `SizeOfImage`.
    pub kernel_size: u32,
    /// `nt!PsLoadedModuleList`.
    pub loaded_module_list: u64,
    /// `nt!KdpDebuggerDataListHead`.
    pub debugger_data_list: u64,
    /// `nt!DbgBreakPointWithStatus`, where a `cc` byte is.
    pub break_pc: u64,
    /// The ETHREAD that runs on processor 0.
    pub thread: u64,
    /// Number of processors.
    pub processors: u32,
    /// Directory table base.
    pub cr3: u64,
    /// KPRCB of processor 0.
    pub kprcb: u64,
    /// KPCR of processor 0.
    pub kpcr: u64,
    /// A place in the idle loop.
    pub break_return: u64,
    /// Stack pointer of processor 0.
    pub stack: u64,
}

/// A kernel's memory, virtual and physical.
pub struct Kernel {
    facts: KernelFacts,
}

impl Kernel {
    /// Copies the readable prefix; returns its length (stops at the first unmapped page).
    pub fn read_virtual(&self, address: u64, buffer: &mut [u8]) -> usize {
        let _ = (address, buffer);
        0
    }

    /// Writes the mapped prefix; returns its length.
    pub fn write_virtual(&mut self, address: u64, bytes: &[u8]) -> usize {
        let _ = (address, bytes);
        0
    }

    /// As [`Kernel::read_virtual`], of physical memory.
    pub fn read_physical(&self, address: u64, buffer: &mut [u8]) -> usize {
        let _ = (address, buffer);
        0
    }

    /// First match, skipping unreadable memory, as `nt!KdpSearchMemory` does.
    pub fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Option<u64> {
        let _ = (address, length, pattern);
        None
    }

    /// What the target says about itself.
    pub fn facts(&self) -> &KernelFacts {
        &self.facts
    }
}

/// The Windows 7 SP1 x64 machine of the article.
pub fn article() -> Kernel {
    Kernel { facts: KernelFacts::default() }
}

/// Writes `ntkrnlmp.pdb` in symbol-store layout below `dir`; returns the file's path.
pub fn write_symbol_store(dir: &Path) -> io::Result<PathBuf> {
    Ok(dir.join("ntkrnlmp.pdb"))
}
