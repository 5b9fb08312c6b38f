//! The memory of a simulated kernel.

mod article;
mod books;
mod builder;
mod clock;
mod code;
mod demo;
mod image;
mod memory;
mod modules;
mod mutation;
mod pool;
mod random;
mod rules;
mod seeded;
mod segments;
mod system;
mod truth;
mod verifier;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use self::article::{
    ARTICLE_CALL, Article, FREE_STACK, FREEING_THREAD, LEAK_BYTES, LEAK_PROCESS, LEAK_STACK, LEAK_TAG, LEAK_THREAD,
    article_activity,
};
use self::books::Books;
pub use self::books::{Life, Operation, PoolKind, Record, TagUsage, TrackedBlock, Usage, VerifierDriver};
pub use self::builder::{Builder, Object};
use self::clock::Clock;
pub(crate) use self::code::TRAP_FRAME;
pub use self::demo::{Begin, Demo, DemoWindows, demo};
use self::memory::Memory;
pub use self::mutation::{Mutation, mutated_layout};
pub use self::seeded::{SeededOptions, seeded, seeded_identity};
use self::truth::Fixed;
pub use self::truth::{
    Carrier, LargeBlock, LoadedModule, Lookaside, LookasidePlace, OuterHeader, PoolLog, Residence, Ring, RingRecord,
    Session, SmallBlock, SmallState, Truth,
};
use crate::isf::{Identity, Isf, IsfError};
use crate::machine::Machine;
use crate::pdb;

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
    /// Its frame pointer, on machines that chain their stacks by one.
    pub frame: u64,
}

/// A system call that a thread of the machine makes: instructions that processor 0 executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemCall {
    /// The first instruction behind the one that the processor entered the kernel with.
    pub entry: u64,
    /// The ETHREAD.
    pub thread: u64,
    /// The end of its stack.
    pub stack: u64,
    /// Where it came from: program counter and stack pointer of its user code.
    pub user: (u64, u64),
}

/// A kernel's memory, virtual and physical, and what keeps it up while the machine runs.
pub struct Kernel {
    memory: Memory,
    facts: KernelFacts,
    clock: Clock,
    books: Books,
    identity: Identity,
    fixed: Fixed,
}

impl Kernel {
    fn new(builder: Builder, facts: KernelFacts, books: Books, fixed: Fixed) -> Result<Kernel, IsfError> {
        let clock = Clock::new(&builder)?;
        Ok(Kernel { clock, memory: builder.memory, facts, books, identity: builder.isf.identity, fixed })
    }

    /// Copies the readable prefix; returns its length (stops at the first unmapped page).
    pub fn read_virtual(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.memory.read(address, buffer)
    }

    /// Writes the mapped prefix; returns its length.
    pub fn write_virtual(&mut self, address: u64, bytes: &[u8]) -> usize {
        self.memory.write(address, bytes)
    }

    /// Moves a page to a page file: it is not in memory any more.
    pub fn page_out(&mut self, address: u64) {
        self.memory.page_out(address);
    }

    /// As [`Kernel::read_virtual`], of physical memory.
    pub fn read_physical(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.memory.read_physical(address, buffer)
    }

    /// As [`Kernel::write_virtual`], of physical memory.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) -> usize {
        self.memory.write_physical(address, bytes)
    }

    /// Writes physical memory from address 0 on, as a raw memory image has it.
    pub fn write_raw(&self, output: &mut impl io::Write) -> io::Result<()> {
        output.write_all(self.memory.physical())
    }

    /// First match, skipping unreadable memory, as `nt!KdpSearchMemory` does. The whole match lies within the range.
    pub fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Option<u64> {
        self.memory.search(address, length, pattern)
    }

    /// What it runs on.
    pub fn machine(&self) -> Machine {
        self.memory.machine()
    }

    /// What the target says about itself.
    pub fn facts(&self) -> &KernelFacts {
        &self.facts
    }
}

/// The Windows 7 SP1 x64 machine of the article.
///
/// # Panics
///
/// When the symbol table carried in this crate lacks something; the tests would not pass then.
pub fn article() -> Kernel {
    Article::default().build()
}

/// Writes the PDB of [`article`] below `dir` as a symbol store holds it; returns the file's path.
pub fn write_symbol_store(dir: &Path) -> io::Result<PathBuf> {
    write_pdb(dir, &article::symbols().map_err(io::Error::other)?)
}

/// Writes the PDB of a kernel, with its table's identity, below `dir` as a symbol store holds it,
/// `ntkrnlmp.pdb/<GUID and age>/ntkrnlmp.pdb`; returns the file's path. Where several targets share a store, whoever reads
/// it finds a whole file at any time.
pub fn write_pdb(dir: &Path, isf: &Isf) -> io::Result<PathBuf> {
    let identity = &isf.identity;
    let folder = dir.join(&identity.name).join(identity.store_key());
    fs::create_dir_all(&folder)?;
    let path = folder.join(&identity.name);
    let bytes = pdb::from_isf(isf, identity).map_err(io::Error::other)?;
    if fs::read(&path).is_ok_and(|there| there == bytes) {
        return Ok(path);
    }
    let mut part = tempfile::NamedTempFile::new_in(&folder)?;
    part.write_all(&bytes)?;
    part.persist(&path).map_err(|error| error.error)?;
    Ok(path)
}
