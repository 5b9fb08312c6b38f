//! The machine of the article "Call Stacks for Pool Allocations": Windows 7 SP1 x64, where `myfault.sys` leaks paged
//! pool under Driver Verifier.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

use crate::isf::{Identity, Isf, IsfError};
use crate::kernel::books::{Books, Places, PoolKind, Usage};
use crate::kernel::builder::Builder;
use crate::kernel::code::{Call, Frame, Function};
use crate::kernel::demo::{Hit, Hunt};
use crate::kernel::modules::Module;
use crate::kernel::pool::{BigPage, TagRow, TagTables, share, tag};
use crate::kernel::random::Random;
use crate::kernel::system::{Particulars, Process};
use crate::kernel::truth::Fixed;
use crate::kernel::verifier::{LiveBlock, Trace, VerifiedDriver};
use crate::kernel::{Kernel, KernelFacts, SystemCall};

/// The symbol table of 6.1.7601.24540; see `data/README.md`.
const ISF: &[u8] = include_bytes!("../../data/339E74133576439CBCDF7E0229DA3773-1.json.xz");
/// Unpacking takes longer than all the rest; a test builds many machines.
static CARRIED: LazyLock<Isf> = LazyLock::new(|| Isf::from_xz(ISF).expect("the carried symbol table is valid"));

/// With this base most of the article's frames are within a page of where 24540 has the same functions.
const BASE: u64 = 0xffff_f800_0141_8000;

/// Frames of the article in `nt`: return address, function, distance from its start. The article's kernel is
/// another build than 24540, so these functions are moved to where they must have been.
const FRAMES: [(u64, &str, u64); 12] = [
    (0xffff_f800_0192_3cc6, "VeAllocatePoolWithTagPriority", 0x2b6),
    (0xffff_f800_0192_3d3d, "VerifierExAllocatePoolEx", 0x1d),
    (0xffff_f800_0192_e750, "IovCallDriver", 0xa0),
    (0xffff_f800_017a_3a97, "IopXxxControlFile", 0x607),
    (0xffff_f800_017a_42f6, "NtDeviceIoControlFile", 0x56),
    (0xffff_f800_0148_7ed3, "KiSystemServiceCopyEnd", 0x13),
    (0xffff_f800_0192_393a, "VfFreePoolNotification", 0x4a),
    (0xffff_f800_015b_6a6f, "ExDeferredFreePool", 0x107b),
    (0xffff_f800_0172_73eb, "HvFreeDirtyData", 0x7f),
    (0xffff_f800_0172_69bb, "HvOptimizedSyncHive", 0x53),
    (0xffff_f800_0172_6303, "CmFlushKey", 0xaf),
    (0xffff_f800_0172_6b22, "NtFlushKey", 0x142),
];

const MYFAULT: u64 = 0xffff_f880_0428_7000;
const MYFAULT_SIZE: u32 = 0x8000;
/// Return addresses of the allocation's record, innermost first.
pub const LEAK_STACK: [u64; 8] = [
    0xffff_f800_0192_3cc6,
    0xffff_f800_0192_3d3d,
    MYFAULT + 0x11f6,
    MYFAULT + 0x142f,
    0xffff_f800_0192_e750,
    0xffff_f800_017a_3a97,
    0xffff_f800_017a_42f6,
    0xffff_f800_0148_7ed3,
];
/// Return addresses of the free's record, innermost first.
pub const FREE_STACK: [u64; 7] = [
    0xffff_f800_0192_393a,
    0xffff_f800_015b_6a6f,
    0xffff_f800_0172_73eb,
    0xffff_f800_0172_69bb,
    0xffff_f800_0172_6303,
    0xffff_f800_0172_6b22,
    0xffff_f800_0148_7ed3,
];
/// The ETHREAD of NotMyfault.exe that leaks.
pub const LEAK_THREAD: u64 = 0xffff_fa80_02be_4060;
/// The ETHREAD of the system process that frees.
pub const FREEING_THREAD: u64 = 0xffff_fa80_0218_7060;

const fn call(function: u64, return_address: u64, frame: Frame) -> Call {
    Call { function, return_address, frame }
}

/// How the leak comes about: the article's stack as calls, outermost first. The driver's two functions begin where
/// they please; the frames' sizes are made up.
const LEAK_CALLS: [Call; 8] = [
    call(LEAK_STACK[7] - 0x13, LEAK_STACK[7], Frame::Trap),
    call(LEAK_STACK[6] - 0x56, LEAK_STACK[6], Frame::Small(0x68)),
    call(LEAK_STACK[5] - 0x607, LEAK_STACK[5], Frame::Small(0x78)),
    call(LEAK_STACK[4] - 0xa0, LEAK_STACK[4], Frame::Small(0x28)),
    call(MYFAULT + 0x1400, LEAK_STACK[3], Frame::Small(0x58)),
    call(MYFAULT + 0x11c0, LEAK_STACK[2], Frame::Small(0x38)),
    call(LEAK_STACK[1] - 0x1d, LEAK_STACK[1], Frame::Small(0x28)),
    call(LEAK_STACK[0] - 0x2b6, LEAK_STACK[0], Frame::Small(0x48)),
];
/// Bytes behind a call: the rest of its function.
const AFTER_CALL: u32 = 5;

const fn function(call: Call, base: u64) -> Function {
    let begin = (call.function - base) as u32;
    let end = (call.return_address - base) as u32 + AFTER_CALL;
    Function { begin, end, frame: call.frame }
}

pub(crate) const MYFAULT_FUNCTIONS: [Function; 2] =
    [function(LEAK_CALLS[4], MYFAULT), function(LEAK_CALLS[5], MYFAULT)];

fn kernel_functions(exit: u64) -> Vec<Function> {
    let begin = (exit - BASE) as u32;
    let mut functions = vec![Function { begin, end: begin + 9, frame: Frame::Trap }];
    functions.extend(LEAK_CALLS.iter().filter(|call| call.function < MYFAULT).map(|call| function(*call, BASE)));
    functions
}

/// The end of the kernel stack of [`LEAK_THREAD`].
const LEAK_KERNEL_STACK: u64 = 0xffff_f880_06d3_0000;
/// The leaking thread's system call, for [`FakeOptions::call`](crate::FakeOptions::call). In its innermost function,
/// `nt!ViPoolLogStackTrace`, its stack is the article's.
pub const ARTICLE_CALL: SystemCall = SystemCall {
    entry: LEAK_STACK[7] - 0x13,
    thread: LEAK_THREAD,
    stack: LEAK_KERNEL_STACK,
    user: (0x77a8_138a, 0x12_e2f8),
};

/// The block whose history the article looks up.
const BLOCK: u64 = 0xffff_f8a0_0580_0000;
/// Bytes of a leaked block.
pub const LEAK_BYTES: u64 = 0xf_a000;
/// Their tag.
pub const LEAK_TAG: u32 = tag(b"Leak");
/// The leaked blocks in the article's order, which is that of the table.
const LEAKED: [u64; 23] = [
    0xffff_f8a0_06a0_0000,
    0xffff_f8a0_058f_a000,
    0xffff_f8a0_0620_0000,
    0xffff_f8a0_068f_a000,
    0xffff_f8a0_060f_a000,
    0xffff_f8a0_05a0_0000,
    0xffff_f8a0_06c0_0000,
    0xffff_f8a0_0640_0000,
    0xffff_f8a0_062f_a000,
    0xffff_f8a0_05af_a000,
    0xffff_f8a0_05c0_0000,
    0xffff_f8a0_06e0_0000,
    0xffff_f8a0_0660_0000,
    0xffff_f8a0_064f_a000,
    0xffff_f8a0_05cf_a000,
    0xffff_f8a0_06af_a000,
    0xffff_f8a0_05e0_0000,
    0xffff_f8a0_0680_0000,
    0xffff_f8a0_066f_a000,
    0xffff_f8a0_05ef_a000,
    0xffff_f8a0_06cf_a000,
    0xffff_f8a0_0600_0000,
    BLOCK,
];

/// `fffffa80'02e00000 : fffffa80'02f80000`, as the article prints it.
const BIG_PAGE_TABLE: u64 = 0xffff_fa80_02e0_0000;
const BIG_PAGE_SLOTS: u64 = 0x10000;
const LOG: u64 = 0xffff_fa80_0300_0000;
const LOG_LENGTH: usize = 0x10000;
/// The log's running counter: it went round the ring three times and some.
const LOG_INDEX: u32 = 0x0003_b2a7;

/// Where the machine puts large blocks while it runs.
const ROOM: Range<u64> = 0xffff_fa80_0480_0000..0xffff_fa80_0580_0000;
const PAGED_ROOM: Range<u64> = 0xffff_f8a0_0800_0000..0xffff_f8a0_4000_0000;

const SYSTEM: u64 = 0xffff_fa80_0180_6040;
const MODULE_ENTRIES: u64 = 0xffff_fa80_0183_0000;
const TAG_TABLES: [u64; 2] = [0xffff_fa80_0190_0000, 0xffff_fa80_0192_0000];
const TAG_SLOTS: u64 = 0x800;
const EXPANSION: u64 = 0xffff_fa80_0194_0000;
const VERIFIED_DRIVER: u64 = 0xffff_fa80_0195_0000;
const SECOND_KPCR: u64 = 0xffff_f880_009b_2000;
const SECOND_IDLE_THREAD: u64 = 0xffff_f880_009b_cfc0;
const STACK: u64 = 0xffff_f800_00b9_f000;

/// The PDB that belongs to this kernel. It is not Microsoft's, so it has an identity of its own: nobody's symbol
/// cache shall hold our PDB under Microsoft's GUID.
pub(crate) fn identity() -> Result<Identity, IsfError> {
    Identity::new("8F1D2C676B644F6F9C1A6B64706F6F6C", 1, "ntkrnlmp.pdb")
}

/// The symbol table of 24540 with the article's functions moved. A symbol between a moved one and its frame takes
/// the room that the moved function left, so that every name stays.
pub(crate) fn symbols() -> Result<Isf, IsfError> {
    let mut isf = CARRIED.clone();
    isf.identity = identity()?;
    for (frame, name, distance) in FRAMES {
        let last = frame - BASE;
        let first = last - distance;
        let left = isf.symbol(name)?;
        for (other, symbol) in &mut isf.symbols {
            let article = FRAMES.iter().any(|(_, name, _)| name == other);
            if !article && (first..=last).contains(&symbol.address) {
                let moved = left + (symbol.address - first);
                // A function that moved by little left no room behind its start.
                symbol.address = if (first..=last).contains(&moved) { left } else { moved };
            }
        }
        if let Some(symbol) = isf.symbols.get_mut(name) {
            symbol.address = first;
        }
    }
    Ok(isf)
}

/// How the article's machine is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Article {
    /// Slots of Verifier's pool log, a power of two. In a short one the oldest of the article's records are
    /// overwritten already.
    pub log_length: u32,
}

impl Default for Article {
    fn default() -> Article {
        Article { log_length: 0x10000 }
    }
}

impl Article {
    /// Builds the machine.
    ///
    /// # Panics
    ///
    /// When `log_length` is not a power of two, or the symbol table carried in this crate lacks something; the tests
    /// would not pass then.
    pub fn build(self) -> Kernel {
        assert!(self.log_length.is_power_of_two(), "the ring's slots are found with a mask");
        kernel(self).expect("the carried symbol table has what the article needs")
    }
}

fn kernel(article: Article) -> Result<Kernel, IsfError> {
    let mut builder = Builder::new(symbols()?, BASE);
    let kpcr = builder.symbol("KiInitialPCR")?;
    let idle_thread = builder.symbol("KiInitialThread")?;
    let machine = Particulars {
        build: 7601,
        lab: "7601.24540.amd64fre.win7sp1_ldr_escrow.191210-0900".to_owned(),
        service_pack: 0x100,
        version: (6, 1),
        // 2020-01-14 12:00:00, 2 hours 17 minutes after boot.
        system_time: 132_234_768_000_000_000,
        up_time: 82_245_312_500,
        processors: vec![kpcr, SECOND_KPCR],
        stack: STACK,
    };
    let exit = builder.symbol("KiSystemServiceExit")?;
    let functions = kernel_functions(exit);
    builder.kernel_image(identity()?, (KERNEL_TIMESTAMP, KERNEL_CHECKSUM), &functions)?;
    builder.set("DbgBreakPointWithStatus", &[0xcc, 0xc3])?;
    builder.versions(&machine)?;
    builder.processors(&machine, &[idle_thread, SECOND_IDLE_THREAD])?;
    builder.processes(PROCESSES)?;
    builder.debugger_data(machine.build)?;
    let modules = builder.modules(MODULE_ENTRIES, (KERNEL_TIMESTAMP, KERNEL_CHECKSUM), MODULES)?;
    builder.memory.map(MYFAULT, MYFAULT_SIZE.into());
    let log_routine = builder.symbol("ViPoolLogStackTrace")?;
    builder.calls(&LEAK_CALLS, log_routine, exit);
    // On the way to the log, the verifier calls the allocator, which may stop for its debugger.
    let allocator = builder.symbol("ExAllocatePoolWithTagPriority")?;
    builder.call_between(LEAK_CALLS[7].function + 0x180, allocator);
    let hunt = Hunt {
        call: ARTICLE_CALL,
        stack: LEAK_STACK.to_vec(),
        // tcpip.sys instead of myfault.sys.
        honest: vec![LEAK_STACK[0], LEAK_STACK[1], 0xffff_f880_0164_2d31, LEAK_STACK[4], LEAK_STACK[7]],
        free: (FREE_STACK.to_vec(), FREEING_THREAD),
        hit: Hit { tag: builder.symbol("PoolHitTag")?, instruction: allocator + 1 },
    };
    builder.memory.map(LEAK_KERNEL_STACK - 0x6000, 0x6000);

    let (rows, overflow, pages) = (tag_rows(), overflow(), big_pages());
    let count = TAG_TABLES.len() as u64;
    let part = |row: &TagRow, processor| {
        let [nonpaged, paged] = [row.nonpaged, row.paged].map(|total| share(total, processor, count));
        Some(TagRow { tag: row.tag, nonpaged, paged })
    };
    let tables = TagTables { tables: &TAG_TABLES, slots: TAG_SLOTS, expansion: EXPANSION };
    builder.pool_tags(&tables, &rows, None, &overflow, part)?;
    builder.big_pages(BIG_PAGE_TABLE, BIG_PAGE_SLOTS, &pages)?;
    for (name, value) in [
        ("MmNonPagedPoolStart", 0xffff_fa80_0180_0000),
        ("MiNonPagedPoolStartAligned", 0xffff_fa80_0180_0000),
        ("MiNonPagedPoolEnd", 0xffff_fa80_0580_0000),
        ("MmMaximumNonPagedPoolInBytes", 0x400_0000),
        ("MmPagedPoolEnd", 0xffff_f8bf_ffff_ffff),
        ("MmSizeOfPagedPoolInBytes", 0x20_0000_0000),
        ("MmPfnDatabase", 0xffff_fa80_0000_0000),
        ("MmNumberOfPhysicalPages", 0x7ff6e),
        ("MmAvailablePages", 0x5_13a2),
        ("MmTotalCommitLimit", 0xf_f8d0),
        ("MmTotalCommittedPages", 0x3_d5c1),
    ] {
        builder.set_u64(name, value)?;
    }

    let mut log = log(&builder)?;
    log.drain(..log.len().saturating_sub(article.log_length as usize));
    builder.pool_traces(LOG, LOG_INDEX, article.log_length, &log)?;
    let live: Vec<LiveBlock> = LEAKED
        .iter()
        .map(|&address| LiveBlock { address, bytes: LEAK_BYTES, tag: LEAK_TAG, caller: LEAK_STACK[2] })
        .collect();
    let count = live.len() as u64;
    let bytes = count * LEAK_BYTES;
    builder.verifier_settings(&[
        // `verifier /flags 1 /driver myfault.sys`: special pool.
        ("Level", 1),
        ("AcquireSpinLocks", 0x2b4),
        ("AllocationsAttempted", 0x1c7),
        ("AllocationsSucceeded", 0x1c7),
        // A block as large as a leaked one does not fit special pool.
        ("AllocationsSucceededSpecialPool", 0x1c7 - count),
        ("Loads", 1),
        ("CurrentPagedPoolAllocations", count),
        ("PeakPagedPoolAllocations", count),
        ("PagedBytes", bytes),
        ("PeakPagedBytes", bytes),
    ])?;
    builder.set_u32("VfOptionFlags", 0)?;
    let driver = VerifiedDriver {
        name: "myfault.sys",
        image: Some((MYFAULT, MYFAULT_SIZE.into())),
        loads: 1,
        unloads: 0,
        counters: vec![("AcquireSpinLocks", 0x2b4)],
        live,
    };
    let drivers = vec![driver];
    let verified = builder.verified_drivers(VERIFIED_DRIVER, 1, &drivers)?;

    let break_return = builder.symbol("KiIdleLoop")? + 0x10d;
    let stack = STACK - 0x80;
    builder.memory.put(stack, &break_return.to_le_bytes());
    let facts = KernelFacts {
        major: 15,
        build: machine.build,
        machine: 0x8664,
        flags: 7,
        kernel_base: BASE,
        kernel_size: builder.image_size(),
        loaded_module_list: builder.symbol("PsLoadedModuleList")?,
        debugger_data_list: builder.symbol("KdpDebuggerDataListHead")?,
        break_pc: builder.symbol("DbgBreakPointWithStatus")?,
        thread: idle_thread,
        processors: machine.processors.len() as u32,
        cr3: builder.memory.root(),
        kprcb: kpcr + builder.isf.offset("_KPCR", "Prcb")?,
        kpcr,
        break_return,
        stack,
        frame: 0,
    };
    let places = Places {
        regions: [ROOM, PAGED_ROOM],
        pages: &pages,
        rows: &rows,
        overflow: &overflow,
        log: &log,
        drivers: &drivers,
        verified: &verified,
    };
    let space = builder.memory.address_space(&USER_MEMORY);
    let directory = LEAK_PROCESS + builder.isf.offset("_KPROCESS", "DirectoryTableBase")?;
    builder.memory.put(directory, &space.to_le_bytes());
    let books = Books::open(&builder, facts.processors, places, None, None)?;
    Kernel::new(builder, facts, books, Fixed { modules, hunt: Some(hunt), ..Fixed::default() })
}

/// What goes on in the article's machine, for [`FakeOptions::evolve`](crate::FakeOptions::evolve): every `leak_every`
/// of running time its driver leaks one block more; with `churn`, another driver allocates a block at every clock tick
/// and frees it at the next one.
pub fn article_activity(
    leak_every: Option<Duration>,
    churn: bool,
) -> impl FnMut(&mut Kernel, Duration) + Send + 'static {
    let mut since = Duration::ZERO;
    let mut borrowed = None;
    let mut ticks = 0;
    // tcpip.sys instead of myfault.sys.
    let stack = [LEAK_STACK[0], LEAK_STACK[1], 0xffff_f880_0164_2d31, LEAK_STACK[4], LEAK_STACK[7]];
    move |kernel, passed| {
        since += passed;
        while let Some(period) = leak_every.filter(|period| !period.is_zero() && since >= *period) {
            since -= period;
            // When the pool is exhausted the driver leaks no more.
            kernel.allocate_large(LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD);
        }
        if churn {
            if let Some(address) = borrowed.take() {
                kernel.free_large(address, &FREE_STACK, FREEING_THREAD);
            }
            ticks += 1;
            let size = 0x1000 * (1 + ticks % 7);
            borrowed = kernel.allocate_large(tag(b"TcpB"), size, PoolKind::NonPaged, &stack, FREEING_THREAD);
        }
    }
}

const KERNEL_TIMESTAMP: u32 = 0x5def_9b43;
const KERNEL_CHECKSUM: u32 = 0x0055_2e3a;

/// The EPROCESS of NotMyfault.exe.
pub const LEAK_PROCESS: u64 = 0xffff_fa80_02c0_5060;
/// What its own address space holds: a text of 16 bits at the end of a page, and what is behind it in the next.
const USER_MEMORY: [(u64, &[u8]); 2] = [(0x12_eff8, b"L\0e\0a\0k\0"), (0x12_f000, b"s\0\0\0Leak in user memory\0")];

const PROCESSES: &[Process<'_>] = &[
    Process { address: SYSTEM, id: 4, name: "System", threads: &[(FREEING_THREAD, 0x38)] },
    Process { address: 0xffff_fa80_0264_3040, id: 0xf4, name: "smss.exe", threads: &[] },
    Process { address: 0xffff_fa80_02a1_b060, id: 0x154, name: "csrss.exe", threads: &[] },
    Process { address: 0xffff_fa80_02a4_e060, id: 0x1d0, name: "services.exe", threads: &[] },
    Process { address: 0xffff_fa80_02ab_7b30, id: 0x5e8, name: "explorer.exe", threads: &[] },
    Process { address: LEAK_PROCESS, id: 0x8ec, name: "NotMyfault.exe", threads: &[(LEAK_THREAD, 0x8f0)] },
];

const fn module(path: &'static str, base: u64, size: u32, timestamp: u32) -> Module {
    Module { path, base, size, timestamp, pdb: true, functions: &[] }
}

const MODULES: &[Module] = &[
    module("hal.dll", 0xffff_f800_013c_f000, 0x4_9000, 0x4ce7_c669),
    module("kdcom.dll", 0xffff_f800_00ba_d000, 0xa000, 0x4d4d_8061),
    module("mcupdate_GenuineIntel.dll", 0xffff_f880_00c2_4000, 0x4_f000, 0x4ce7_c737),
    module("PSHED.dll", 0xffff_f880_00c7_3000, 0x1_4000, 0x4a5b_e027),
    module("CLFS.SYS", 0xffff_f880_00c8_7000, 0x5_e000, 0x4a5b_c11d),
    module("CI.dll", 0xffff_f880_00ce_5000, 0xc_0000, 0x4ce7_c944),
    module(r"drivers\Wdf01000.sys", 0xffff_f880_00e2_d000, 0xa_4000, 0x4a5b_c19f),
    module(r"drivers\WDFLDR.SYS", 0xffff_f880_00ed_1000, 0xf000, 0x4a5b_c11a),
    module(r"drivers\ACPI.sys", 0xffff_f880_00ee_0000, 0x5_7000, 0x4ce7_9294),
    module(r"drivers\WMILIB.SYS", 0xffff_f880_00f3_7000, 0x9000, 0x4a5b_c117),
    module(r"drivers\msisadrv.sys", 0xffff_f880_00f4_0000, 0xa000, 0x4a5b_c0fe),
    module(r"drivers\pci.sys", 0xffff_f880_00f4_a000, 0x3_3000, 0x4ce7_928f),
    module(r"drivers\partmgr.sys", 0xffff_f880_00f7_d000, 0x1_5000, 0x4f64_1bc1),
    module(r"drivers\volmgr.sys", 0xffff_f880_00f9_2000, 0x1_5000, 0x4ce7_92a0),
    module(r"drivers\mountmgr.sys", 0xffff_f880_00fa_7000, 0x1_a000, 0x4ce7_9299),
    module(r"drivers\atapi.sys", 0xffff_f880_00fc_1000, 0x9000, 0x4a5b_c113),
    module(r"drivers\ataport.SYS", 0xffff_f880_00fc_a000, 0x2_a000, 0x51fe_fd15),
    module(r"drivers\fltmgr.sys", 0xffff_f880_0100_0000, 0x4_c000, 0x4ce7_929c),
    module(r"drivers\Ntfs.sys", 0xffff_f880_0121_3000, 0x1a_3000, 0x5167_f5fc),
    module(r"drivers\ksecdd.sys", 0xffff_f880_013b_6000, 0x1_b000, 0x4fc9_76de),
    module(r"drivers\ndis.sys", 0xffff_f880_0144_7000, 0xf_3000, 0x5034_f6b2),
    module(r"drivers\tcpip.sys", 0xffff_f880_0160_0000, 0x1f_f000, 0x5230_3a1e),
    module(r"DRIVERS\HTTP.sys", 0xffff_f880_02c6_d000, 0xc_9000, 0x4ce7_93a8),
    module(r"DRIVERS\srv2.sys", 0xffff_f880_0420_0000, 0x6_9000, 0x4dba_2aff),
    Module {
        path: r"Drivers\myfault.sys",
        base: MYFAULT,
        size: MYFAULT_SIZE,
        timestamp: 0x4a67_1ded,
        pdb: false,
        functions: &MYFAULT_FUNCTIONS,
    },
    module(r"DRIVERS\spsys.sys", 0xffff_f880_0429_0000, 0x7_1000, 0x49f3_4c2a),
];

fn usage(allocs: u32, frees: u32, bytes: u64) -> Usage {
    Usage { allocs: allocs.into(), frees: frees.into(), bytes }
}

/// Set on the tags of blocks that only their owner may free.
const PROTECTED: u32 = 0x8000_0000;

/// The article's three rows, and then those it does not show, each with less paged pool.
fn tag_rows() -> Vec<TagRow> {
    let none = Usage::default();
    let mut rows = vec![
        TagRow { tag: LEAK_TAG, nonpaged: none, paged: usage(23, 0, 23 * LEAK_BYTES) },
        TagRow { tag: tag(b"CM31"), nonpaged: none, paged: usage(20_520 + 1_874, 1_874, 18_514_560) },
        TagRow { tag: tag(b"CIcr"), nonpaged: none, paged: usage(2_977 + 41, 41, 8_511_504) },
    ];
    let mut random = Random::from_state(0x6b64_706f_6f6c);
    for (rank, text) in PAGED_TAGS.iter().enumerate() {
        let bytes = (7_400_000 / (rank as u64 + 1)) & !0xf;
        let live = 1 + random.below(bytes / 48 + 1) as u32;
        let frees = random.below(60_000) as u32;
        rows.push(TagRow { tag: tag(text), nonpaged: none, paged: usage(live + frees, frees, bytes) });
    }
    for (rank, text) in NONPAGED_TAGS.iter().enumerate() {
        let bytes = (11_000_000 / (rank as u64 + 1)) & !0xf;
        let live = 1 + random.below(bytes / 64 + 1) as u32;
        let frees = random.below(90_000) as u32;
        // Some tags use both kinds of pool.
        let paged = if rank % 5 == 0 { usage(17 + rank as u32, 4, 4_096 + 160 * rank as u64) } else { none };
        rows.push(TagRow { tag: tag(text), nonpaged: usage(live + frees, frees, bytes), paged });
    }
    for (rank, text) in OBJECT_TAGS.iter().enumerate() {
        let live = 40 + random.below(700) as u32;
        let frees = random.below(20_000) as u32;
        let nonpaged = usage(live + frees, frees, u64::from(live) * (0x60 + 0x90 * rank as u64));
        rows.push(TagRow { tag: tag(text) | PROTECTED, nonpaged, paged: none });
    }
    // Everything of these was freed again.
    for text in [b"MmLd", b"PnpB", b"CMVa"] {
        rows.push(TagRow { tag: tag(text), nonpaged: usage(31, 31, 0), paged: usage(1_204, 1_204, 0) });
    }
    rows
}

/// Rows of the expansion table: one tag that has no other row, and one that has.
fn overflow() -> [TagRow; 2] {
    let none = Usage::default();
    [
        TagRow { tag: tag(b"Wsop"), nonpaged: usage(12, 3, 0x1200), paged: none },
        TagRow { tag: tag(b"NtFs"), nonpaged: none, paged: usage(5, 1, 0x400) },
    ]
}

const PAGED_TAGS: [&[u8; 4]; 44] = [
    b"MmSt", b"Ntff", b"NtFs", b"CM25", b"CM16", b"FMfn", b"Toke", b"NtfB", b"ObNm", b"MmSm", b"CIha", b"PfFK",
    b"Gla1", b"Usqu", b"Ttfd", b"SeAt", b"NtFI", b"IoNm", b"Key ", b"Sect", b"ObDi", b"Ppcs", b"CMDa", b"CMpb",
    b"AlMs", b"SeSd", b"FIcs", b"Gh05", b"Uspi", b"LBxh", b"NtfF", b"SeTl", b"IopX", b"CcVp", b"ScPp", b"PpPp",
    b"Ussy", b"Wmin", b"ObSq", b"RxM4", b"SmMs", b"PcwC", b"Dxgk", b"WPAD",
];

const NONPAGED_TAGS: [&[u8; 4]; 44] = [
    b"Pool", b"MmCa", b"EtwB", b"File", b"NDpp", b"Cont", b"Ntfr", b"Irp ", b"Vi12", b"Vad ", b"VadS", b"FMsl",
    b"ALPC", b"MmCi", b"Devi", b"Io  ", b"Vepp", b"MmPb", b"Even", b"ReTa", b"Ntf0", b"NtxF", b"Fatx", b"TcpE",
    b"UdpA", b"AfdE", b"AfdX", b"HTab", b"HidC", b"usbp", b"UsbS", b"NVRM", b"AcpS", b"AcpD", b"IoEr", b"Mdl ",
    b"DEag", b"Dcdd", b"FSim", b"WmiR", b"Ndwr", b"PnpD", b"KSoh", b"VoSm",
];

const OBJECT_TAGS: [&[u8; 4]; 9] = [b"Proc", b"Thre", b"Sema", b"Muta", b"Time", b"Driv", b"IoCo", b"Job ", b"Tmrm"];

/// The leaked blocks first, so that no other block takes a slot of theirs.
fn big_pages() -> Vec<BigPage> {
    let mut pages: Vec<BigPage> = LEAKED
        .iter()
        .map(|&address| BigPage { address, tag: LEAK_TAG, kind: PoolKind::Paged, bytes: LEAK_BYTES, freed: false })
        .collect();
    pages.push(BigPage {
        address: BIG_PAGE_TABLE,
        tag: tag(b"Pool"),
        kind: PoolKind::NonPaged,
        bytes: 0x18_0000,
        freed: false,
    });
    pages.push(BigPage { address: LOG, tag: tag(b"Pool"), kind: PoolKind::NonPaged, bytes: 0x80_0000, freed: false });
    let mut random = Random::from_state(0x6269_6770_6167_6573);
    let paged = [b"CM31", b"CM31", b"CM31", b"CIcr", b"MmSt", b"Ntff", b"PfFK"];
    for slot in 0..300 {
        let address = 0xffff_f8a0_0001_0000 + slot * 0x4_0000;
        let tag = tag(paged[random.below(paged.len() as u64) as usize]);
        let bytes = 0x1000 * (1 + random.below(8));
        pages.push(BigPage { address, tag, kind: PoolKind::Paged, bytes, freed: random.below(5) == 0 });
    }
    let nonpaged = [b"MmCa", b"EtwB", b"Cont", b"NDpp"];
    for slot in 0..120 {
        let address = 0xffff_fa80_0400_1000 + slot * 0x1_0000;
        let tag = tag(nonpaged[random.below(nonpaged.len() as u64) as usize]);
        let bytes = 0x1000 * (1 + random.below(6));
        pages.push(BigPage { address, tag, kind: PoolKind::NonPaged, bytes, freed: random.below(6) == 0 });
    }
    pages
}

/// The whole log, oldest record first.
fn log(builder: &Builder) -> Result<Vec<Trace>, IsfError> {
    let stacks = Stacks::new(builder)?;
    let mut random = Random::from_state(0x7665_7269_6669_6572);
    let mut log = Vec::with_capacity(LOG_LENGTH);
    let mut live: Vec<(u64, u64)> = Vec::new();
    let mut next = 0;
    for position in 0..LOG_LENGTH {
        let newer = LOG_LENGTH - 1 - position;
        // The leak of the last minutes, newest block last; the article's block is the newest.
        let leaked = newer.checked_sub(170).filter(|at| at % 97 == 0).map(|at| LEAKED.len().wrapping_sub(1 + at / 97));
        if let Some(&address) = leaked.and_then(|index| LEAKED.get(index)) {
            let frames = LEAK_STACK.to_vec();
            log.push(Trace { free: false, address, size: LEAK_BYTES, thread: LEAK_THREAD, frames });
            continue;
        }
        if newer == 41_233 {
            log.push(Trace {
                free: true,
                address: BLOCK,
                size: 0x1000,
                thread: FREEING_THREAD,
                frames: FREE_STACK.to_vec(),
            });
            continue;
        }
        let thread = THREADS[random.below(THREADS.len() as u64) as usize];
        if live.len() > 64 && random.below(2) == 0 {
            let (address, size) = live.swap_remove(random.below(live.len() as u64) as usize);
            // A free's record has the block's usable size.
            let size = size.next_multiple_of(0x10);
            log.push(Trace { free: true, address, size, thread, frames: stacks.free(&mut random) });
        } else {
            // Special pool: a page for each block, its end at the page's end; every second page is a guard.
            let size = 0x18 + random.below(0xe00);
            let address = 0xffff_f980_0000_0000 + next * 0x2000 + ((0x1000 - size) & !0xf);
            next = (next + 1) % 0x10_0000;
            live.push((address, size));
            log.push(Trace { free: false, address, size, thread, frames: stacks.allocation(&mut random) });
        }
    }
    Ok(log)
}

const THREADS: [u64; 6] = [
    LEAK_THREAD,
    FREEING_THREAD,
    0xffff_fa80_0183_d680,
    0xffff_fa80_0264_8b60,
    0xffff_fa80_02ab_a060,
    0xffff_fa80_02b1_1400,
];

/// Makes call stacks of the functions that are there.
struct Stacks {
    /// Return addresses in functions of the I/O manager, registry, object manager and their like.
    callers: Vec<u64>,
    free_pool: u64,
}

impl Stacks {
    fn new(builder: &Builder) -> Result<Stacks, IsfError> {
        let mut symbols: Vec<(u64, &str)> =
            builder.isf.symbols.iter().map(|(name, symbol)| (symbol.address, name.as_str())).collect();
        symbols.sort_unstable();
        let callers = symbols
            .windows(2)
            .filter(|pair| pair[1].0 - pair[0].0 >= 0x180)
            .filter(|pair| {
                let (prefix, rest) = pair[0].1.split_at_checked(2).unwrap_or_default();
                matches!(prefix, "Nt" | "Io" | "Cm" | "Ob" | "Se" | "Fs" | "Ps")
                    && rest.starts_with(|letter: char| letter.is_ascii_uppercase() || letter == 'p')
            })
            .filter(|pair| {
                let section = builder.sections.iter().rfind(|section| u64::from(section.rva) <= pair[0].0);
                section.is_some_and(|section| section.is_code())
            })
            .enumerate()
            .map(|(index, pair)| builder.base + pair[0].0 + 0x25 + (index as u64 * 7) % 0x150)
            .collect();
        Ok(Stacks { callers, free_pool: builder.symbol("ExDeferredFreePool")? + 0x107b })
    }

    fn allocation(&self, random: &mut Random) -> Vec<u64> {
        let mut frames = LEAK_STACK[..2].to_vec();
        self.rest(&mut frames, random);
        frames
    }

    fn free(&self, random: &mut Random) -> Vec<u64> {
        let mut frames = vec![FREE_STACK[0], self.free_pool];
        self.rest(&mut frames, random);
        frames
    }

    fn rest(&self, frames: &mut Vec<u64>, random: &mut Random) {
        // The driver's own code is beyond its first page, which is all of it that is not headers.
        let driver = &MODULES[random.below(MODULES.len() as u64) as usize];
        frames.push(driver.base + 0x1000 + random.below(u64::from(driver.size) - 0x1000));
        for _ in 0..2 + random.below(7) {
            frames.push(self.callers[random.below(self.callers.len() as u64) as usize]);
        }
        frames.push(LEAK_STACK[7]);
    }
}
