//! A machine of any x64 kernel whose symbol table there is, with a state that a seed decides.

mod hunt;
mod lookasides;
mod page_counts;
mod places;
mod rings;
mod sessions;
mod small;
mod stacks;
mod tags;

use std::ops::Range;

use self::places::Map;
pub(crate) use self::small::{Header, Headers, Owner};
use self::stacks::Stacks;
use crate::isf::{Identity, Isf, IsfError};
use crate::kernel::article::MYFAULT_FUNCTIONS;
use crate::kernel::books::{Books, Places, PoolKind};
use crate::kernel::builder::Builder;
use crate::kernel::modules::Module;
use crate::kernel::pool::big_page_slots;
use crate::kernel::random::Random;
use crate::kernel::rules::Rules;
use crate::kernel::system::{Particulars, Process, prcb, version_flags};
use crate::kernel::truth::{Carrier, Fixed, LoadedModule, SmallState, Truth};
use crate::kernel::verifier::VerifiedDriver;
use crate::kernel::{Kernel, KernelFacts, Mutation, mutated_layout};
use crate::machine::Machine;

/// How a seeded machine is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeededOptions {
    /// Whether Driver Verifier is on.
    pub verifier: bool,
    /// Slots of Verifier's pool log, a power of two.
    pub log_length: u32,
    /// First slots of the big-page table, a power of two; it doubles when it gets full.
    pub big_slots: u32,
    /// Allocations and frees of large blocks before the machine is handed over.
    pub operations: u32,
    /// Allocations and frees of small blocks before that.
    pub small_operations: u32,
    /// Small blocks in use in a pool, or a heap, from which on no more are allocated than freed.
    pub small_blocks: usize,
    /// Least and most bytes of a small block; mixed, mostly small ones without it.
    pub small_sizes: Option<(u64, u64)>,
    /// Number of processors; one to four without it.
    pub processors: Option<u32>,
    /// Whether some pages of paged pool are in a page file, so that nobody can read them.
    pub paged_out: bool,
    /// Whether a driver has a pool of its own, to whose heap no node leads; only kernels from 26100 on have any.
    pub private_pool: bool,
    /// Whether every tag's counters say what its blocks are. Else most tags have counters only, as large as they come.
    pub balanced: bool,
    /// Whether `myfault.sys` is there with the article's code, the only driver that is verified, and a thread that calls
    /// it; nothing else went on in the pool. For x64.
    pub hunt: bool,
    /// What is wrong with its pool.
    pub mutation: Option<Mutation>,
}

impl Default for SeededOptions {
    fn default() -> SeededOptions {
        SeededOptions {
            verifier: true,
            log_length: 0x400,
            big_slots: 0x400,
            operations: 2_000,
            small_operations: 6_000,
            small_blocks: 20_000,
            small_sizes: None,
            processors: None,
            paged_out: false,
            private_pool: false,
            balanced: false,
            hunt: false,
            mutation: None,
        }
    }
}

/// The identity of a seeded machine's kernel. It is nobody else's: a symbol cache shall not hold our PDB under
/// Microsoft's GUID.
pub fn seeded_identity(isf: &Isf, seed: u64) -> Identity {
    let mut random = Random::new(seed);
    let mut guid = [0; 16];
    for half in guid.chunks_mut(8) {
        half.copy_from_slice(&random.next().to_le_bytes());
    }
    // Kernels of different builds differ too.
    for (byte, own) in guid.iter_mut().zip(isf.identity.guid) {
        *byte ^= own;
    }
    Identity { guid, age: 1, name: isf.identity.name.clone() }
}

/// Builds a machine and says what is in it. `isf.identity` becomes the identity of the kernel's PDB; give the table
/// [`seeded_identity`] first where a cache may see it. Errors: the table lacks what every kernel has.
pub fn seeded(isf: &Isf, seed: u64, options: &SeededOptions) -> Result<(Kernel, Truth), IsfError> {
    let mut random = Random::new(seed ^ 0x6b64_706f_6f6c);
    let build = build_number(isf);
    let mut map = Map::new(isf.machine, build, &mut random);
    let layouts = match options.mutation {
        Some(Mutation::Layout(number)) => mutated_layout(isf, number).0,
        _ => isf.clone(),
    };
    let mut builder = Builder::zeroed(layouts, map.kernel, map.self_map);
    builder.rules = Rules::of(build, isf, options.mutation, &mut Random::new(seed ^ 0x7275_6c65));
    let machine = machine(&builder, build, options, &mut map, &mut random)?;
    let timestamp = 0x5000_0000 + random.below(0x1000_0000) as u32;
    let checksum = random.below(0x80_0000) as u32;
    let path = if options.hunt { Some(hunt::Path::of(&builder)?) } else { None };
    let functions = path.as_ref().map(|path| path.functions(builder.base)).unwrap_or_default();
    builder.kernel_image(isf.identity.clone(), (timestamp, checksum), &functions)?;
    let code: &[u8] =
        if isf.machine == Machine::Arm64 { &[0, 0, 0x3e, 0xd4, 0xc0, 3, 0x5f, 0xd6] } else { &[0xcc, 0xc3] };
    builder.set("DbgBreakPointWithStatus", code)?;
    builder.versions(&machine)?;
    let first = builder.symbol("KiInitialThread")?;
    let idle: Vec<u64> =
        (0..machine.processors.len()).map(|number| if number == 0 { first } else { map.room(0x1000) }).collect();
    builder.processors(&machine, &idle)?;
    let (processes, threads, in_sessions) = processes(&mut builder, &mut map, &mut random, options.hunt)?;
    builder.debugger_data(build)?;
    map.write(&mut builder, &mut random)?;

    let (modules, unloaded) =
        modules(&mut builder, &mut map, &mut random, (timestamp, checksum), &machine, options.hunt)?;
    let hunt = match &path {
        // The last thread is the leaking program's.
        Some(path) => Some(path.write(&mut builder, &mut map, &modules, threads[threads.len() - 1])?),
        None => None,
    };
    let rows = tags::write(&mut builder, &mut map, &mut random, machine.processors.len(), options.balanced)?;
    let table = map.room(u64::from(options.big_slots) * 0x20);
    // Kernels up to Windows 7 have none.
    builder.set_known("ExpPoolQuotaCookie", &random.next().to_le_bytes());
    let prcb = prcb(&builder.isf)?;
    let world = small::World {
        build,
        processes,
        processors: machine.processors.iter().map(|kpcr| kpcr + prcb).collect(),
        unit: 2 * builder.width(),
        crowd: options.small_blocks,
        sizes: options.small_sizes,
        operations: options.small_operations,
        paged_out: options.paged_out,
        private_pool: options.private_pool,
        balanced: options.balanced,
        hunt: options.hunt,
    };
    let small::Written { small, mut pages, heaps, room } = small::write(&mut builder, &mut map, &mut random, &world)?;
    let slots = big_page_slots(options.big_slots.into(), &mut pages);
    let table = if slots == u64::from(options.big_slots) { table } else { map.room(slots * 0x20) };
    builder.big_pages(table, slots, &pages)?;

    let mut drivers = Vec::new();
    if options.verifier {
        let size = builder.isf.size("_VF_POOL_TRACE")? * u64::from(options.log_length);
        let log = map.room(size);
        builder.pool_traces(
            log,
            random.below(1 << 32) as u32 & if random.once_in(4) { u32::MAX } else { 0 },
            options.log_length,
            &[],
        )?;
        drivers = verified(&mut builder, &modules, &unloaded, &mut random, options.hunt)?;
    }
    let at = map.room(0x2000 * (drivers.len() as u64 + 1));
    let trees = 1 + random.below(4) as u32;
    let verified = builder.verified_drivers(at, trees, &drivers)?;
    let stacks = Stacks::new(&builder, &modules, &unloaded, &drivers)?;
    let rings = match options.verifier {
        true => rings::write(&mut builder, &mut map, &mut random, &stacks, &threads)?,
        false => rings::off(&mut builder)?,
    };

    // What is in the lists shall not change what a seed means for the rest.
    let mut own = Random::new(seed ^ 0x6c6f_6f6b);
    let lookasides = lookasides::write(&mut builder, &mut map, &mut own, &world)?;

    let break_return = builder.symbol("KiIdleLoop")? + 0x10;
    builder.put_pointer(machine.stack - 0x80, break_return);
    // The frames of the idle loop's caller, each with the one before it and its return address.
    let start = builder.symbol("KiSystemStartup")? + 0x20;
    let frames = [(machine.stack - 0x60, machine.stack - 0x40, break_return), (machine.stack - 0x40, 0, start)];
    for (frame, caller, return_address) in frames {
        builder.put_pointer(frame, caller);
        builder.put_pointer(frame + builder.width(), return_address);
    }
    let kpcr = machine.processors[0];
    let facts = KernelFacts {
        major: 15,
        build,
        machine: isf.machine.number(),
        flags: version_flags(isf.machine),
        kernel_base: builder.base,
        kernel_size: builder.image_size(),
        loaded_module_list: builder.symbol("PsLoadedModuleList")?,
        debugger_data_list: builder.symbol("KdpDebuggerDataListHead")?,
        break_pc: builder.symbol("DbgBreakPointWithStatus")?,
        thread: idle[0],
        processors: machine.processors.len() as u32,
        cr3: builder.memory.root(),
        kprcb: kpcr + prcb,
        kpcr,
        break_return,
        stack: machine.stack - 0x80,
        frame: machine.stack - 0x60,
    };
    let page_counts = page_counts::places(&builder);
    let sessions = sessions::write(&mut builder, &mut map, &mut random, &world, &in_sessions)?;
    let places = Places {
        regions: [map.nonpaged_tables(), map.paged_tables()],
        pages: &pages,
        rows: &rows.main,
        overflow: &rows.expansion,
        log: &[],
        drivers: &drivers,
        verified: &verified,
    };
    let books = Books::open(&builder, facts.processors, places, heaps, room)?;
    let fixed = Fixed { modules, unloaded, rings, small, sessions, lookasides, hunt };
    let mut kernel = Kernel::new(builder, facts, books, fixed)?;
    kernel.count_standing_blocks();
    match kernel.fixed.hunt.clone() {
        Some(hunt) => hunt::before(&mut kernel, &hunt),
        None => live(&mut kernel, options.operations, &mut random, &stacks, &threads),
    }
    kernel.settle();
    if options.verifier && !options.hunt {
        special(&mut kernel, &mut random, &stacks, &threads);
    }
    // Where the tags' counters are random no count of pages fits them.
    if options.balanced {
        page_counts::write(&mut kernel, isf, page_counts);
    }
    if let Some(mutation) = options.mutation {
        kernel.spoil(isf, mutation);
    }
    let truth = kernel.truth();
    Ok((kernel, truth))
}

/// The build of the kernel whose layouts these are: those of the facts, and the oldest of its family for others.
fn build_number(isf: &Isf) -> u16 {
    let symbol = |name| isf.symbols.contains_key(name);
    let has = |ty, field| isf.offset(ty, field).is_ok();
    let wide = isf
        .member("_POOL_TRACKER_TABLE", "NonPagedAllocs")
        .and_then(|(_, ty)| isf.size_of(ty))
        .is_ok_and(|size| size == 8);
    match () {
        () if symbol("MiSuspectDriverList") => 6002,
        () if !symbol("ExpPoolQuotaCookie") => 7601,
        () if !symbol("MiState") => 9600,
        () if isf.machine == Machine::X64 && !has("_MI_VISIBLE_STATE", "SystemVaRegions") => 10586,
        () if !symbol("ExPoolState") && !wide => 14393,
        () if !symbol("ExPoolState") => 16299,
        () if has("_POOL_DESCRIPTOR", "ListHeads") => 17763,
        () if symbol("PoolVector") => 18362,
        () if !has("_POOL_TRACKER_BIG_PAGES", "ProcessBilled") => 19041,
        () if !symbol("VfHandlePoolAlloc") => 20348,
        // The build of the latest is not known; this is the latest that somebody measured.
        () if isf.user_types.contains_key("_EXP_POOL_MANAGER") => 29671,
        () if isf.user_types.contains_key("_HEAP_VS_AFFINITY_SLOT") => 26100,
        () if isf
            .enums
            .get("_MI_ASSIGNED_REGION_TYPES")
            .is_some_and(|kinds| kinds.constants.contains_key("AssignedRegionKasan")) =>
        {
            22631
        }
        () => 22000,
    }
}

fn machine(
    builder: &Builder,
    build: u16,
    options: &SeededOptions,
    map: &mut Map,
    random: &mut Random,
) -> Result<Particulars, IsfError> {
    let size = builder.isf.size("_KPCR")?.next_multiple_of(0x10000);
    let processors = 1 + random.below(4);
    let processors = options.processors.map_or(processors, u64::from);
    Ok(Particulars {
        build,
        lab: format!(
            "{build}.{}.{}fre.kd_fake.{:06}-{:04}",
            random.below(7000),
            match builder.isf.machine {
                Machine::X86 | Machine::X86Pae => "x86",
                Machine::X64 => "amd64",
                Machine::Arm64 => "arm64",
            },
            random.below(300_000),
            random.below(2400)
        ),
        service_pack: match build {
            ..7600 => 0x200,
            7600..9200 => 0x100,
            _ => 0,
        },
        version: match build {
            ..7600 => (6, 0),
            7600..9200 => (6, 1),
            9200..10240 => (6, 3),
            _ => (10, 0),
        },
        system_time: 132_000_000_000_000_000 + random.below(1 << 50),
        up_time: 10_000_000 + random.below(1 << 44),
        processors: (0..processors).map(|_| map.room(size)).collect(),
        stack: map.room(0x8000) + 0x8000,
    })
}

/// Processes, their threads, and the processes of each session.
type Processes = (Vec<u64>, Vec<u64>, Vec<Vec<u64>>);

/// A few processes with threads, and those of the sessions.
fn processes(builder: &mut Builder, map: &mut Map, random: &mut Random, hunt: bool) -> Result<Processes, IsfError> {
    let names = ["System", "smss.exe", "csrss.exe", "lsass.exe", "svchost.exe", "explorer.exe", "leaker.exe"];
    let count = 2 + random.below(names.len() as u64 - 1) as usize;
    let sessions = sessions::count(builder);
    let mut names: Vec<&str> = names.into_iter().take(count).chain(sessions::PROCESSES.repeat(sessions)).collect();
    if hunt {
        names.push("NotMyfault.exe");
    }
    let mut all = Vec::new();
    for number in 0..names.len() {
        let threads: Vec<(u64, u64)> =
            (0..1 + random.below(3)).map(|thread| (map.room(0x1000), number as u64 * 0x40 + 8 + thread * 4)).collect();
        all.push((map.room(0x1000), 4 + number as u64 * 0x40, threads));
    }
    let processes: Vec<Process<'_>> = all
        .iter()
        .zip(names)
        .map(|((address, id, threads), name)| Process { address: *address, id: *id, name, threads })
        .collect();
    builder.processes(&processes)?;
    let threads = all.iter().flat_map(|(_, _, threads)| threads.iter().map(|(thread, _)| *thread)).collect();
    let all: Vec<u64> = all.iter().map(|(process, ..)| *process).collect();
    let last = count + sessions * sessions::PROCESSES.len();
    let in_sessions = all[count..last].chunks(sessions::PROCESSES.len()).map(<[u64]>::to_vec).collect();
    Ok((all, threads, in_sessions))
}

const DRIVERS: [&str; 16] = [
    r"drivers\ACPI.sys",
    r"drivers\pci.sys",
    r"drivers\volmgr.sys",
    r"drivers\storport.sys",
    r"drivers\fltmgr.sys",
    r"drivers\Ntfs.sys",
    r"drivers\ndis.sys",
    r"drivers\NETIO.SYS",
    r"drivers\tcpip.sys",
    r"drivers\myfault.sys",
    r"drivers\leaky.sys",
    r"drivers\filter1.sys",
    r"drivers\usbxhci.sys",
    r"drivers\HTTP.sys",
    r"drivers\srv2.sys",
    r"drivers\mouclass.sys",
];

/// Some of the drivers are loaded, some were unloaded, some do not exist here.
fn modules(
    builder: &mut Builder,
    map: &mut Map,
    random: &mut Random,
    kernel: (u32, u32),
    machine: &Particulars,
    hunt: bool,
) -> Result<(Vec<LoadedModule>, Vec<LoadedModule>), IsfError> {
    let mut module = |path, random: &mut Random| {
        let size = 0x3000 + 0x1000 * random.below(0x60) as u32;
        Module {
            path,
            base: map.module(size.into(), random),
            size,
            timestamp: 0x5000_0000 + random.below(0x1000_0000) as u32,
            pdb: !random.once_in(3),
            functions: &[],
        }
    };
    let mut loaded = vec![module("hal.dll", random), module("kdcom.dll", random)];
    let mut unloaded = Vec::new();
    for path in DRIVERS {
        let mut module = module(path, random);
        let name = path.rsplit('\\').next().unwrap_or(path);
        if hunt && name == hunt::DRIVER {
            (module.size, module.pdb, module.functions) = (hunt::DRIVER_SIZE, false, &MYFAULT_FUNCTIONS);
        }
        match random.below(6) {
            _ if hunt && hunt::LOADED.contains(&name) => loaded.push(module),
            0 => {}
            1 => unloaded.push(LoadedModule { name: name.to_owned(), base: module.base, size: module.size.into() }),
            _ => loaded.push(module),
        }
    }
    let loaded = builder.modules(map.room(0x200 * (loaded.len() as u64 + 2)), kernel, &loaded)?;
    builder.unloaded_drivers(map.room(0x4000), &unloaded, machine.system_time - machine.up_time)?;
    Ok((loaded, unloaded))
}

/// Verifier's settings, and which drivers it watches: loaded ones, unloaded ones, and those that never came.
fn verified(
    builder: &mut Builder,
    modules: &[LoadedModule],
    unloaded: &[LoadedModule],
    random: &mut Random,
    hunt: bool,
) -> Result<Vec<VerifiedDriver>, IsfError> {
    let mut drivers = Vec::new();
    let named = |path: &'static str| {
        let name = path.rsplit('\\').next().unwrap_or(path);
        let find = |modules: &[LoadedModule]| {
            modules.iter().find(|module| module.name == name).map(|module| (module.base, module.size))
        };
        (name, find(modules), find(unloaded))
    };
    for path in DRIVERS {
        let (name, image, gone) = named(path);
        if hunt && name == hunt::DRIVER {
            drivers.push(VerifiedDriver { name, image, loads: 1, unloads: 0, counters: Vec::new(), live: Vec::new() });
        }
        if hunt || random.once_in(2) {
            continue;
        }
        // A driver that left allocations is still in the kernel's tree: the machine is on its way to bug check 0xc4.
        let image = image.or(gone.filter(|_| random.once_in(2)));
        let (loads, unloads) = match (image, gone) {
            (_, Some(_)) => (1, 1),
            (Some(_), None) => (1 + random.below(3), random.below(2)),
            (None, None) => (0, 0),
        };
        let mut counters = Vec::new();
        for counter in
            ["RaiseIrqls", "AcquireSpinLocks", "SynchronizeExecutions", "AllocationsWithNoTag", "AllocationsFailed"]
        {
            counters.push((counter, random.below(0x10000)));
        }
        drivers.push(VerifiedDriver { name, image, loads, unloads, counters, live: Vec::new() });
    }
    let fields = &builder.isf.user_type("_MM_DRIVER_VERIFIER_DATA")?.fields;
    let mut names: Vec<String> = if hunt { Vec::new() } else { fields.keys().cloned().collect() };
    names.retain(|name| !["Level", "PreviousBucketName"].contains(&name.as_str()));
    // The kernel keeps these up: they start at what the drivers have, which is nothing.
    names.retain(|name| !name.starts_with("Current") && !name.ends_with("Bytes") && !name.starts_with("Peak"));
    // Pool tracking (8) or special pool (1) makes the kernel keep the log; the rest is as it comes.
    let level = (random.next() & 0x12a_ffff) | if random.once_in(3) { 1 } else { 8 };
    let level = if hunt { hunt::LEVEL } else { level };
    let mut values = vec![("Level", level)];
    values.extend(names.iter().map(|name| (name.as_str(), random.below(0x10_0000))));
    builder.verifier_settings(&values)?;
    builder.set_known("VfOptionFlags", &[0; 4]);
    for name in ["VerifierIsTrackingPool", "ViVerifierEnabled"] {
        builder.set_known(name, &1u32.to_le_bytes());
    }
    Ok(drivers)
}

/// What happened before the debugger came: large blocks were allocated and freed.
fn live(kernel: &mut Kernel, operations: u32, random: &mut Random, stacks: &Stacks, threads: &[u64]) {
    let old = kernel.facts().build < 9200;
    let mut mine: Vec<u64> = Vec::new();
    let texts: [&[u8; 4]; 8] = [b"Leak", b"Ntff", b"MmSt", b"NDpp", b"EtwB", b"Cont", b"Pro\xe3", b"a  b"];
    for _ in 0..operations {
        kernel.advance(std::time::Duration::from_micros(random.below(50_000)));
        let thread = *random.pick(threads);
        if mine.len() > 300 || random.below(5) < 2 && !mine.is_empty() {
            let address = mine.swap_remove(random.below(mine.len() as u64) as usize);
            let stack = if random.once_in(4) { Vec::new() } else { stacks.free(random) };
            kernel.free_large(address, &stack, thread);
        } else {
            let kind = match random.below(3) {
                0 => PoolKind::Paged,
                1 if !old => PoolKind::NonPagedNx,
                _ => PoolKind::NonPaged,
            };
            let most = if random.once_in(4) { 0x40000 } else { 0x4000 };
            let size = 0x1000 + random.below(most);
            let stack = if random.once_in(4) { Vec::new() } else { stacks.allocation(random) };
            let tag = u32::from_le_bytes(**random.pick(&texts));
            mine.extend(kernel.allocate_large(tag, size, kind, &stack, thread));
        }
    }
}

/// Some blocks of special pool are verified drivers': of any size, odd ones too.
fn special(kernel: &mut Kernel, random: &mut Random, stacks: &Stacks, threads: &[u64]) {
    let blocks: Vec<_> = kernel.fixed.small.iter().filter(|block| block.carrier == Carrier::Special).cloned().collect();
    for block in blocks.iter().filter(|block| block.state == SmallState::Live) {
        if random.once_in(3) {
            kernel.track_special(block, &stacks.allocation(random), *random.pick(threads));
        }
    }
}

/// A range of so many bytes.
fn range(start: u64, bytes: u64) -> Range<u64> {
    start..start + bytes
}
