//! What every kernel has: the debugger's data block, processors, processes, and the page shared with user mode.

use crate::isf::{Isf, IsfError};
use crate::kernel::builder::Builder;
use crate::kernel::clock::TICK;
use crate::kernel::modules::utf16;
use crate::machine::Machine;

/// What tells one machine from another.
pub(crate) struct Particulars {
    pub(crate) build: u16,
    /// `NtBuildLab`, with a debugger's "Built by".
    pub(crate) lab: String,
    /// `CmNtCSDVersion`: the service pack times 0x100.
    pub(crate) service_pack: u32,
    pub(crate) version: (u32, u32),
    /// 100 ns since 1601.
    pub(crate) system_time: u64,
    /// 100 ns since boot.
    pub(crate) up_time: u64,
    /// KPCR of each processor.
    pub(crate) processors: Vec<u64>,
    /// Top of processor 0's idle stack; four pages below it are mapped.
    pub(crate) stack: u64,
}

/// A process, and the threads of it that are of interest.
#[derive(Clone, Copy)]
pub(crate) struct Process<'a> {
    pub(crate) address: u64,
    pub(crate) id: u64,
    pub(crate) name: &'a str,
    /// Address and id of each.
    pub(crate) threads: &'a [(u64, u64)],
}

impl Builder {
    /// Versions, times and the page at `fffff780'00000000`.
    pub(crate) fn versions(&mut self, machine: &Particulars) -> Result<(), IsfError> {
        let lab = [machine.lab.as_bytes(), &[0]].concat();
        self.set("NtBuildLab", &lab)?;
        self.set("NtBuildLabEx", &lab)?;
        self.set_u32("NtBuildNumber", 0xf000_0000 | u32::from(machine.build))?;
        self.set_u32("CmNtCSDVersion", machine.service_pack)?;
        self.set_u32("KeTimeIncrement", TICK as u32)?;
        self.set_u32("KeMaximumIncrement", TICK as u32)?;
        self.set_u64("KeBootTime", machine.system_time - machine.up_time)?;
        self.set("KdDebuggerEnabled", &[1])?;
        self.set("KdDebuggerNotPresent", &[0])?;
        self.set_u32("NtGlobalFlag", 0)?;
        let (highest, probe, system) = match self.isf.machine.is_x86() {
            true => (0x7ffe_ffff, 0x7fff_0000, 0x8000_0000),
            false => (0x7ff_fffe_ffff, 0x7ff_ffff_0000, 0xffff_8000_0000_0000),
        };
        self.set_pointer("PsNtosImageBase", self.base)?;
        self.set_pointer("MmHighestUserAddress", highest)?;
        self.set_pointer("MmUserProbeAddress", probe)?;
        self.set_pointer("MmSystemRangeStart", system)?;

        let (major, minor) = machine.version;
        let ticks = machine.up_time / TICK;
        let mut shared = self.object("_KUSER_SHARED_DATA")?;
        let values = [
            ("TickCountMultiplier", 0x0fa0_0000),
            ("InterruptTime.LowPart", machine.up_time & 0xffff_ffff),
            ("InterruptTime.High1Time", machine.up_time >> 32),
            ("InterruptTime.High2Time", machine.up_time >> 32),
            ("SystemTime.LowPart", machine.system_time & 0xffff_ffff),
            ("SystemTime.High1Time", machine.system_time >> 32),
            ("SystemTime.High2Time", machine.system_time >> 32),
            ("ImageNumberLow", self.isf.machine.number().into()),
            ("ImageNumberHigh", self.isf.machine.number().into()),
            // Workstation.
            ("NtProductType", 1),
            ("ProductTypeIsValid", 1),
            ("NtMajorVersion", u64::from(major)),
            ("NtMinorVersion", u64::from(minor)),
            // TerminalServer, SingleUserTS.
            ("SuiteMask", 0x110),
            ("KdDebuggerEnabled", 3),
            ("TickCount.LowPart", ticks & 0xffff_ffff),
            ("TickCount.High1Time", ticks >> 32),
            ("TickCount.High2Time", ticks >> 32),
            ("ActiveProcessorCount", machine.processors.len() as u64),
            ("ActiveGroupCount", 1),
        ];
        self.fields(&mut shared, &values)?;
        self.bytes(&mut shared, "NtSystemRoot", &utf16(r"C:\Windows"))?;
        self.store(self.isf.machine.shared_data(), &shared);
        Ok(())
    }

    /// KPCRs, KPRCBs and idle threads. The first processor's idle thread and process are the kernel's own variables.
    pub(crate) fn processors(&mut self, machine: &Particulars, idle_threads: &[u64]) -> Result<(), IsfError> {
        let root = self.memory.root();
        let idle = self.symbol("KiInitialProcess")?;
        let table = self.symbol("KiProcessorBlock")?;
        let inside = prcb(&self.isf)?;
        for (number, &kpcr) in machine.processors.iter().enumerate() {
            let thread = idle_threads[number];
            let prcb = kpcr + inside;
            let mut object = self.object("_KPCR")?;
            let values = [
                ("Self", kpcr),
                ("SelfPcr", kpcr),
                ("CurrentPrcb", prcb),
                ("MajorVersion", 1),
                ("MinorVersion", 1),
                ("Number", number as u64),
                ("GdtBase", kpcr + 0x9000),
                ("TssBase", kpcr + 0x9080),
                ("IdtBase", kpcr + 0xa000),
            ];
            self.known_fields(&mut object, &values);
            if self.isf.machine.is_x86() {
                let values = [("Prcb", prcb), ("GDT", kpcr + 0x9000), ("TSS", kpcr + 0x9080), ("IDT", kpcr + 0xa000)];
                self.fields(&mut object, &values)?;
            }
            self.store(kpcr, &object);
            let mut object = self.object("_KPRCB")?;
            let values = [
                ("CurrentThread", thread),
                ("IdleThread", thread),
                ("Number", number as u64),
                ("LegacyNumber", number as u64),
                ("MajorVersion", 1),
                ("MHz", 2394),
            ];
            self.fields(&mut object, &values)?;
            let values = [
                ("CpuType", 6),
                ("CpuID", 1),
                ("CpuStep", 0x1a05),
                ("ProcessorState.SpecialRegisters.Cr0", 0x8005_0031),
                ("ProcessorState.SpecialRegisters.Cr3", root),
                ("ProcessorState.SpecialRegisters.Cr4", 0x6f8),
                ("ProcessorState.ArchState.Ttbr0_El1", root),
                ("ProcessorState.ArchState.Ttbr1_El1", root),
            ];
            self.known_fields(&mut object, &values);
            if self.isf.offset("_KPRCB", "VendorString").is_ok() {
                self.bytes(&mut object, "VendorString", b"GenuineIntel\0")?;
            }
            self.store(prcb, &object);
            self.put_pointer(table + self.width() * number as u64, prcb);
            self.thread(thread, idle, (0, 0), 2)?;
        }
        let count = machine.processors.len() as u32;
        self.set_u32("KeMaximumProcessors", count)?;
        match machine.build {
            // One byte; what is behind it is another variable's.
            ..7600 => self.set("KeNumberProcessors", &[count as u8, 0xcc, 0xcc, 0xcc])?,
            _ => self.set_u32("KeNumberProcessors", count)?,
        }
        self.memory.map(machine.stack - 0x4000, 0x4000);
        let thread = idle_threads[0];
        for (path, value) in [
            ("InitialStack", machine.stack),
            ("StackBase", machine.stack),
            ("StackLimit", machine.stack - 0x6000),
            ("KernelStack", machine.stack - 0x80),
        ] {
            let at = thread + self.isf.offset("_KTHREAD", path)?;
            self.put_pointer(at, value);
        }
        Ok(())
    }

    /// The idle process, the system process and others, linked at `PsActiveProcessHead`; the first of `processes`
    /// is the system process. All share one set of page tables: user memory is not part of this kernel.
    pub(crate) fn processes(&mut self, processes: &[Process<'_>]) -> Result<(), IsfError> {
        let idle = Process { address: self.symbol("KiInitialProcess")?, id: 0, name: "Idle", threads: &[] };
        self.process(&idle)?;
        let links = self.isf.offset("_EPROCESS", "ActiveProcessLinks")?;
        let mut entries = vec![self.symbol("PsActiveProcessHead")?];
        for process in processes {
            self.process(process)?;
            entries.push(process.address + links);
        }
        self.link(&entries);
        self.set_pointer("PsInitialSystemProcess", processes[0].address)
    }

    fn process(&mut self, process: &Process<'_>) -> Result<(), IsfError> {
        let mut object = self.object("_EPROCESS")?;
        let values = [
            ("Pcb.Header.Type", 3),
            ("Pcb.DirectoryTableBase", self.memory.root()),
            ("UniqueProcessId", process.id),
            ("InheritedFromUniqueProcessId", if process.id > 4 { 4 } else { 0 }),
        ];
        self.fields(&mut object, &values)?;
        self.bytes(&mut object, "ImageFileName", process.name.as_bytes())?;
        self.store(process.address, &object);
        let mut threads = vec![process.address + self.isf.offset("_EPROCESS", "ThreadListHead")?];
        for &(thread, id) in process.threads {
            self.thread(thread, process.address, (process.id, id), 5)?;
            threads.push(thread + self.isf.offset("_ETHREAD", "ThreadListEntry")?);
        }
        self.link(&threads);
        Ok(())
    }

    /// `state`: 2 running, 5 waiting.
    fn thread(&mut self, thread: u64, process: u64, id: (u64, u64), state: u64) -> Result<(), IsfError> {
        let mut object = self.object("_ETHREAD")?;
        let values = [
            ("Tcb.Header.Type", 6),
            ("Tcb.State", state),
            ("Tcb.Process", process),
            ("Tcb.ApcState.Process", process),
            ("Cid.UniqueProcess", id.0),
            ("Cid.UniqueThread", id.1),
        ];
        self.fields(&mut object, &values)?;
        self.store(thread, &object);
        Ok(())
    }

    /// `KdDebuggerDataBlock` with its list head, and `KdVersionBlock`.
    pub(crate) fn debugger_data(&mut self, build: u16) -> Result<(), IsfError> {
        let block = self.symbol("KdDebuggerDataBlock")?;
        let head = self.symbol("KdpDebuggerDataListHead")?;
        let size: usize = match build {
            ..9200 => 0x340,
            9200..14393 => 0x360,
            14393..17763 => 0x368,
            _ => 0x380,
        };
        let mut bytes = vec![0; size];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x10, b"KDBG");
        put(0x14, &(size as u32).to_le_bytes());
        put(0x18, &self.base.to_le_bytes());
        put(0x138, &0x1000u64.to_le_bytes());
        for &(at, name) in DEBUGGER_DATA_SYMBOLS {
            // Not every kernel has every variable; the field stays zero then, as in the real block.
            if let Ok(address) = self.symbol(name) {
                put(at, &address.to_le_bytes());
            }
        }
        let (processor, selectors) = match self.isf.machine {
            Machine::X64 => (X64_OFFSETS, DEBUGGER_DATA_SELECTORS),
            Machine::X86 | Machine::X86Pae => (X86_OFFSETS, DEBUGGER_DATA_SELECTORS_X86),
            Machine::Arm64 => (ARM64_OFFSETS, &[][..]),
        };
        for &(at, ty, path) in DEBUGGER_DATA_OFFSETS.iter().chain(processor) {
            let value = if path.is_empty() { self.isf.size(ty)? } else { self.isf.offset(ty, path)? };
            put(at, &(value as u16).to_le_bytes());
        }
        for &(at, selector) in selectors {
            put(at, &selector.to_le_bytes());
        }
        if size > 0x360 {
            // The self map's base, for it lies elsewhere at each boot.
            bytes[0x360..0x368].copy_from_slice(&self.memory.page_tables().to_le_bytes());
        }
        self.memory.put(block, &bytes);
        // Its own list entry has 64 bits on every machine.
        self.link(&[head, block]);
        self.memory.put(block, &[head.to_le_bytes(), head.to_le_bytes()].concat());

        let machine = self.isf.machine;
        let mut version = self.object("_DBGKD_GET_VERSION64")?;
        let values = [
            ("MajorVersion", 15),
            ("MinorVersion", u64::from(build)),
            ("ProtocolVersion", 6),
            ("KdSecondaryVersion", if machine == Machine::X64 { 2 } else { 0 }),
            ("Flags", version_flags(machine).into()),
            ("MachineType", machine.number().into()),
            ("MaxPacketType", 0xc),
            ("MaxStateChange", 3),
            ("MaxManipulate", 0x31),
            ("KernBase", machine.extended(self.base)),
            ("PsLoadedModuleList", machine.extended(self.symbol("PsLoadedModuleList")?)),
            ("DebuggerDataList", machine.extended(head)),
        ];
        self.fields(&mut version, &values)?;
        let at = self.symbol("KdVersionBlock")?;
        self.store(at, &version);
        Ok(())
    }
}

/// Where the KPRCB is in its KPCR.
pub(crate) fn prcb(isf: &Isf) -> Result<u64, IsfError> {
    isf.offset("_KPCR", if isf.machine.is_x86() { "PrcbData" } else { "Prcb" })
}

/// `DBGKD_VERS_FLAG_*`: several processors (1), data block (2), and pointers of 64 bits (4).
pub(crate) fn version_flags(machine: Machine) -> u16 {
    if machine.is_x86() { 3 } else { 7 }
}

/// `KDDEBUGGER_DATA64`'s pointers: offset, and the variable or function whose address is there.
const DEBUGGER_DATA_SYMBOLS: &[(usize, &str)] = &[
    (0x020, "DbgBreakPointWithStatus"),
    (0x038, "KiCallUserMode"),
    (0x040, "KeUserCallbackDispatcher"),
    (0x048, "PsLoadedModuleList"),
    (0x050, "PsActiveProcessHead"),
    (0x058, "PspCidTable"),
    (0x060, "ExpSystemResourcesList"),
    (0x068, "ExpPagedPoolDescriptor"),
    (0x070, "ExpNumberOfPagedPools"),
    (0x078, "KeTimeIncrement"),
    (0x080, "KeBugCheckCallbackListHead"),
    (0x088, "KiBugCheckData"),
    (0x090, "IopErrorLogListHead"),
    (0x098, "ObpRootDirectoryObject"),
    (0x0a0, "ObpTypeObjectType"),
    (0x0b8, "MmSystemCacheWs"),
    (0x0c0, "MmPfnDatabase"),
    (0x0d8, "MmSubsectionBase"),
    (0x0e0, "MmNumberOfPagingFiles"),
    (0x0e8, "MmLowestPhysicalPage"),
    (0x0f0, "MmHighestPhysicalPage"),
    (0x0f8, "MmNumberOfPhysicalPages"),
    (0x100, "MmMaximumNonPagedPoolInBytes"),
    (0x110, "MmNonPagedPoolStart"),
    (0x118, "MiNonPagedPoolEnd"),
    (0x128, "MmPagedPoolEnd"),
    (0x130, "MmPagedPoolInfo"),
    (0x140, "MmSizeOfPagedPoolInBytes"),
    (0x148, "MmTotalCommitLimit"),
    (0x150, "MmTotalCommittedPages"),
    (0x158, "MmSharedCommit"),
    (0x160, "MmDriverCommit"),
    (0x168, "MmProcessCommit"),
    (0x170, "MmPagedPoolCommit"),
    (0x180, "MmZeroedPageListHead"),
    (0x188, "MmFreePageListHead"),
    (0x190, "MmStandbyPageListHead"),
    (0x198, "MmModifiedPageListHead"),
    (0x1a0, "MmModifiedNoWritePageListHead"),
    (0x1a8, "MmAvailablePages"),
    (0x1b0, "MmResidentAvailablePages"),
    (0x1b8, "PoolTrackTable"),
    (0x1c0, "NonPagedPoolDescriptor"),
    (0x1c8, "MmHighestUserAddress"),
    (0x1d0, "MmSystemRangeStart"),
    (0x1d8, "MmUserProbeAddress"),
    (0x1e0, "KdPrintDefaultCircularBuffer"),
    (0x1f0, "KdPrintWritePointer"),
    (0x1f8, "KdPrintRolloverCount"),
    (0x200, "MmLoadedUserImageList"),
    (0x208, "NtBuildLab"),
    (0x218, "KiProcessorBlock"),
    (0x220, "MmUnloadedDrivers"),
    (0x228, "MmLastUnloadedDriver"),
    (0x230, "VerifierTriageActionTaken"),
    (0x238, "MmSpecialPoolTag"),
    (0x240, "KernelVerifier"),
    (0x248, "MmVerifierData"),
    (0x250, "MmAllocatedNonPagedPool"),
    (0x258, "MmPeakCommitment"),
    (0x260, "MmTotalCommitLimitMaximum"),
    (0x268, "CmNtCSDVersion"),
    (0x270, "MmPhysicalMemoryBlock"),
    (0x2c8, "KdPrintCircularBuffer"),
    (0x2d0, "KdPrintBufferSize"),
    (0x2d8, "KeLoaderBlock"),
    (0x308, "IopNumTriageDumpDataBlocks"),
    (0x310, "IopTriageDumpDataBlocks"),
    (0x320, "MmBadPagesDetected"),
    (0x328, "MmZeroedPageSingleBitErrorsDetected"),
    (0x330, "EtwpDebuggerData"),
];

/// `KDDEBUGGER_DATA64`'s 16-bit fields: offset, type, and the member whose offset is there (or the type's size).
const DEBUGGER_DATA_OFFSETS: &[(usize, &str, &str)] = &[
    (0x298, "_KTHREAD", "NextProcessor"),
    (0x29a, "_KTHREAD", "Teb"),
    (0x29c, "_KTHREAD", "KernelStack"),
    (0x29e, "_KTHREAD", "InitialStack"),
    (0x2a0, "_KTHREAD", "ApcState.Process"),
    (0x2a2, "_KTHREAD", "State"),
    (0x2a8, "_EPROCESS", ""),
    (0x2aa, "_EPROCESS", "Peb"),
    (0x2ac, "_EPROCESS", "InheritedFromUniqueProcessId"),
    (0x2ae, "_EPROCESS", "Pcb.DirectoryTableBase"),
    (0x2b0, "_KPRCB", ""),
    (0x2b2, "_KPRCB", "DpcRoutineActive"),
    (0x2b4, "_KPRCB", "CurrentThread"),
    (0x2b6, "_KPRCB", "MHz"),
    (0x2bc, "_KPRCB", "ProcessorState.ContextFrame"),
    (0x2be, "_KPRCB", "Number"),
    (0x2c0, "_ETHREAD", ""),
    (0x2e0, "_KPCR", ""),
    (0x2f2, "_KPRCB", "ProcessorState.SpecialRegisters"),
    (0x338, "_KPRCB", "Context"),
];

const X64_OFFSETS: &[(usize, &str, &str)] = &[
    (0x2b8, "_KPRCB", "CpuType"),
    (0x2ba, "_KPRCB", "VendorString"),
    (0x2e2, "_KPCR", "Self"),
    (0x2e4, "_KPCR", "CurrentPrcb"),
    (0x2e6, "_KPCR", "Prcb"),
];

const X86_OFFSETS: &[(usize, &str, &str)] = &[
    (0x2b8, "_KPRCB", "CpuType"),
    (0x2ba, "_KPRCB", "VendorString"),
    (0x2e2, "_KPCR", "SelfPcr"),
    (0x2e4, "_KPCR", "Prcb"),
    (0x2e6, "_KPCR", "PrcbData"),
];

const ARM64_OFFSETS: &[(usize, &str, &str)] =
    &[(0x2e2, "_KPCR", "Self"), (0x2e4, "_KPCR", "CurrentPrcb"), (0x2e6, "_KPCR", "Prcb")];

/// R0 code, data and PCR; R3 code, data and TEB; LDT, TSS.
const DEBUGGER_DATA_SELECTORS_X86: &[(usize, u16)] =
    &[(0x2f4, 0x08), (0x2f6, 0x10), (0x2f8, 0x30), (0x2fa, 0x1b), (0x2fc, 0x23), (0x2fe, 0x3b), (0x302, 0x28)];

/// `KDDEBUGGER_DATA64`'s selectors, the same on every x64 kernel.
const DEBUGGER_DATA_SELECTORS: &[(usize, u16)] = &[
    (0x2f4, 0x10),
    (0x2f6, 0x18),
    (0x2fa, 0x33),
    (0x2fc, 0x2b),
    (0x2fe, 0x53),
    (0x302, 0x40),
    (0x304, 0x23),
    (0x306, 0x53),
];
