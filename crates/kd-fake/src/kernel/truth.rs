//! Everything that a machine knows of itself, to compare a debugger's answers with.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::isf::Identity;
use crate::kernel::books::{Life, Record, TagUsage, VerifierDriver};
use crate::kernel::demo::Hunt;
use crate::kernel::{Kernel, KernelFacts};

/// The state of a machine at one moment. As JSON, addresses are numbers.
#[derive(Debug, Clone, Serialize)]
pub struct Truth {
    /// `NtBuildNumber`.
    pub build: u16,
    /// Where ntoskrnl.exe is loaded.
    pub kernel_base: u64,
    /// File name of its PDB.
    pub pdb: String,
    /// GUID and age as a symbol store has them.
    pub pdb_key: String,
    /// Number of processors.
    pub processors: u32,
    /// `InterruptTime` and `SystemTime`.
    pub interrupt_time: u64,
    /// 100 ns since 1601.
    pub system_time: u64,
    /// The loaded modules, in the order of the list.
    pub modules: Vec<LoadedModule>,
    /// The unloaded drivers, oldest first.
    pub unloaded: Vec<LoadedModule>,
    /// Every tag's counters, summed.
    pub tags: Vec<TagUsage>,
    /// The live large blocks.
    pub large: Vec<Life>,
    /// The addresses where a large block was freed: all lives there, oldest first.
    pub history: BTreeMap<u64, Vec<Life>>,
    /// Verifier's pool log; none when it is off.
    pub pool_log: Option<PoolLog>,
    /// The integers of `MmVerifierData`, by name.
    pub verifier_settings: BTreeMap<String, u64>,
    /// The drivers to be verified.
    pub verifier_drivers: Vec<VerifierDriver>,
    /// Verifier's other logs.
    pub rings: Vec<Ring>,
    /// The small blocks, by address.
    pub small: Vec<SmallBlock>,
    /// The terminal sessions.
    pub sessions: Vec<Session>,
    /// The lookaside lists.
    pub lookasides: Vec<Lookaside>,
}

/// A terminal session, with the pool that only its processes see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Its number.
    pub id: u32,
    /// Of its `_MM_SESSION_SPACE`; other sessions' may be at the same address.
    pub address: u64,
    /// Their EPROCESSes.
    pub processes: Vec<u64>,
    /// Every tag's counters, summed.
    pub tags: Vec<TagUsage>,
    /// The slots of its table of large blocks.
    pub large: Vec<LargeBlock>,
    /// Its small blocks, by address.
    pub small: Vec<SmallBlock>,
}

/// A slot of a table of large blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LargeBlock {
    /// Page aligned.
    pub address: u64,
    /// Bytes that the kernel keeps for it.
    pub bytes: u64,
    /// The tag, with its protected bit.
    pub tag: u32,
    /// It was freed, and its slot was not used again.
    pub freed: bool,
}

/// A lookaside list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lookaside {
    /// Of its `_GENERAL_LOOKASIDE`.
    pub address: u64,
    /// The tag of its blocks.
    pub tag: u32,
    /// Of its blocks: bit 0 paged, 0x200 not executable.
    pub pool_type: u32,
    /// Bytes of a block.
    pub size: u64,
    /// Blocks that wait in it.
    pub current_depth: u64,
    /// Blocks that it may keep now.
    pub depth: u64,
    /// Blocks that it may ever keep.
    pub maximum_depth: u64,
    /// Allocations asked of it.
    pub total_allocates: u64,
    /// Calls that the list could not serve.
    pub allocate_misses: u64,
    /// Frees given to it.
    pub total_frees: u64,
    /// Blocks that the list did not take.
    pub free_misses: u64,
    /// By what a debugger finds it.
    pub place: LookasidePlace,
}

/// Whose a lookaside list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LookasidePlace {
    /// In the kernel's circle of nonpaged or of paged lists.
    Registered,
    /// The pool's, in an array of a processor's `_KPRCB`.
    Pool {
        /// Its number.
        processor: u32,
        /// Of `_KPRCB`.
        member: &'static str,
        /// In the array.
        index: u32,
    },
    /// The system's, in `PPLookasideList`.
    System {
        /// Its number.
        processor: u32,
        /// In the array.
        index: u32,
        /// Behind the lists of all processors.
        shared: bool,
    },
}

/// A module of the list, or one that was unloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadedModule {
    /// Its file name.
    pub name: String,
    /// Where it is or was.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// Verifier's pool log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolLog {
    /// `VfPoolTracesIndex`.
    pub index: u32,
    /// `VfPoolTracesLength`.
    pub length: u32,
    /// Newest first.
    pub records: Vec<Record>,
}

/// One of Verifier's other logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ring {
    /// The variable that points to it, such as `ViFaultTraces`.
    pub name: String,
    /// Its running counter.
    pub index: u32,
    /// Its slots.
    pub length: u32,
    /// Newest first.
    pub records: Vec<RingRecord>,
}

/// A record of such a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RingRecord {
    /// The running counter when it was written.
    pub index: u32,
    /// What it is of, where the functions on its stack say so: `allocate`, `complete` or `cancel` an IRP, `enter` or
    /// `leave` a critical region.
    pub operation: Option<&'static str>,
    /// Its integers, by name; that of a log without a type in the PDB as the facts name them.
    pub values: BTreeMap<String, u64>,
    /// Return addresses, innermost first.
    pub frames: Vec<u64>,
}

/// What a small block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SmallState {
    /// Its program has it.
    Live,
    /// Freed to a lookaside list: its header looks as if it were in use.
    Lookaside,
    /// Freed, and waiting for the pool to take it back: its header looks as if it were in use.
    Deferred,
    /// Free, with the tag it had last.
    Free,
}

/// Whether the page of a block's header can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residence {
    /// In memory.
    Present,
    /// In transition: not mapped, but its page is still in memory.
    Transition,
    /// In a page file.
    PagedOut,
}

/// How a small block is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// On a page of chained headers.
    Page,
    /// Special pool: alone on its page.
    Special,
    /// A chunk of a variable-size subsegment.
    Vs,
    /// A block of a low-fragmentation subsegment.
    Lfh,
}

/// A block that is smaller than a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SmallBlock {
    /// What the allocation routine returned: the first byte behind the header.
    pub address: u64,
    /// Where its pool header lies.
    pub header: u64,
    /// Bytes from the header on, as the header says, the header included. Special pool: as asked for.
    pub bytes: u64,
    /// Bytes asked for.
    pub size: u64,
    /// The tag, with its protected bit.
    pub tag: u32,
    /// Paged or nonpaged.
    pub kind: crate::kernel::PoolKind,
    /// In use, free, or kept for the next.
    pub state: SmallState,
    /// The process that it is charged to.
    pub process: Option<u64>,
    /// How it is kept.
    pub carrier: Carrier,
    /// Whether it can be read.
    pub residence: Residence,
    /// A cache-aligned block may have another header before its own, and that one has the whole block.
    pub outer: Option<OuterHeader>,
}

/// The first header of a block with two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OuterHeader {
    /// Its address.
    pub header: u64,
    /// Bytes from it on, as it says.
    pub bytes: u64,
}

/// What does not change while the machine runs.
#[derive(Default)]
pub(crate) struct Fixed {
    pub(crate) modules: Vec<LoadedModule>,
    pub(crate) unloaded: Vec<LoadedModule>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) small: Vec<SmallBlock>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) lookasides: Vec<Lookaside>,
    /// What a demonstration needs to know of the machine.
    pub(crate) hunt: Option<Hunt>,
}

impl Kernel {
    /// All that the machine knows of itself now. A large thing; [`Kernel::large`], [`Kernel::history`],
    /// [`Kernel::tags`] and the like give single parts.
    pub fn truth(&self) -> Truth {
        let KernelFacts { build, kernel_base, processors, .. } = self.facts;
        let identity: &Identity = &self.identity;
        let pool_log = self.pool_log_position().map(|(index, length)| {
            let mut records = self.pool_log();
            records.reverse();
            PoolLog { index, length, records }
        });
        Truth {
            build,
            kernel_base,
            pdb: identity.name.clone(),
            pdb_key: identity.store_key(),
            processors,
            interrupt_time: self.interrupt_time(),
            system_time: self.system_time(),
            modules: self.fixed.modules.clone(),
            unloaded: self.fixed.unloaded.clone(),
            tags: self.tags(),
            large: self.large().cloned().collect(),
            history: self
                .histories()
                .into_iter()
                .map(|(address, lives)| (address, lives.into_iter().cloned().collect()))
                .collect(),
            pool_log,
            verifier_settings: self.verifier_settings(),
            verifier_drivers: self.verifier_drivers(),
            rings: self.fixed.rings.clone(),
            small: self.fixed.small.clone(),
            sessions: self.fixed.sessions.clone(),
            lookasides: self.fixed.lookasides.clone(),
        }
    }
}
