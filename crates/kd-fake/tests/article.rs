//! The article's answers, read out of the machine's memory with nothing but the offsets of the facts and the PDB.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kd_fake::kernel::{self, Kernel};
use pdb::{FallibleIterator, PDB, SymbolData};

/// All tests read the same machine.
static READER: LazyLock<Reader> = LazyLock::new(Reader::new);

struct Reader {
    kernel: Kernel,
    /// By name, and sorted by address.
    names: BTreeMap<String, u64>,
    addresses: BTreeMap<u64, String>,
}

impl Reader {
    fn new() -> Reader {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = kernel::write_symbol_store(dir.path()).expect("store");
        let mut pdb = PDB::open(std::fs::File::open(path).expect("file")).expect("PDB");
        let map = pdb.address_map().expect("address map");
        let table = pdb.global_symbols().expect("symbols");
        let kernel = kernel::article();
        let base = kernel.facts().kernel_base;
        let mut names = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        let mut symbols = table.iter();
        while let Some(symbol) = symbols.next().expect("symbol") {
            let Ok(SymbolData::Public(public)) = symbol.parse() else { continue };
            let address = base + u64::from(public.offset.to_rva(&map).expect("rva").0);
            let name = public.name.to_string().into_owned();
            addresses.insert(address, name.clone());
            names.insert(name, address);
        }
        Reader { kernel, names, addresses }
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        assert_eq!(self.kernel.read_virtual(address, &mut bytes), length, "{address:x}");
        bytes
    }

    fn u64(&self, address: u64) -> u64 {
        u64_at(&self.bytes(address, 8), 0)
    }

    fn u32(&self, address: u64) -> u32 {
        u32_at(&self.bytes(address, 4), 0)
    }

    fn variable(&self, name: &str) -> u64 {
        self.u64(self.names[name])
    }

    /// Base, size and name of every module.
    fn modules(&self) -> Vec<(u64, u64, String)> {
        let head = self.kernel.facts().loaded_module_list;
        assert_eq!(head, self.names["PsLoadedModuleList"]);
        let mut modules = Vec::new();
        let (mut entry, mut previous) = (self.u64(head), head);
        while entry != head {
            assert_eq!(self.u64(entry + 8), previous, "Blink");
            let raw = self.bytes(entry, 0xa0);
            let name = self.bytes(u64_at(&raw, 0x60), u16_at(&raw, 0x58).into());
            let name: Vec<u16> = name.chunks(2).map(|unit| u16_at(unit, 0)).collect();
            let name = String::from_utf16(&name).expect("UTF-16");
            modules.push((u64_at(&raw, 0x30), u32_at(&raw, 0x40).into(), name));
            previous = entry;
            entry = u64_at(&raw, 0);
        }
        modules
    }

    /// As a debugger prints it: `nt!Name+0x10`, or the module's name where it has no PDB.
    fn resolve(&self, modules: &[(u64, u64, String)], address: u64) -> String {
        let (base, _, module) = modules
            .iter()
            .find(|(base, size, _)| (*base..base + size).contains(&address))
            .unwrap_or_else(|| panic!("{address:x} is in no module"));
        if module == "ntoskrnl.exe" {
            let (at, name) = self.addresses.range(..=address).next_back().expect("symbol");
            format!("{address:016x} nt!{name}+{:#x}", address - at)
        } else {
            let stem = module.split('.').next().expect("name");
            format!("{address:016x} {stem}+{:#x}", address - base)
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

#[test]
fn the_paged_tags_are_the_article_s() {
    let reader = &*READER;
    let master = reader.variable("PoolTrackTable");
    let count = reader.variable("PoolTrackTableSize");
    let tables = reader.names["ExPoolTagTables"];
    let processors = u64::from(reader.u32(reader.names["KeNumberProcessors"]));
    assert_eq!(processors, 2);
    assert_eq!(reader.u64(tables), master);
    assert_eq!(reader.u64(tables + 8 * processors), 0);
    let mut rows: BTreeMap<u32, [u64; 6]> = BTreeMap::new();
    let mut add = |row: &[u8]| {
        let sum = rows.entry(u32_at(row, 0)).or_default();
        let sign = |at| u32_at(row, at) as i32 as i64 as u64;
        let values = [sign(4), sign(8), u64_at(row, 0x10), sign(0x18), sign(0x1c), u64_at(row, 0x20)];
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
    };
    let mut negative = 0;
    for processor in 0..processors {
        for row in reader.bytes(reader.u64(tables + 8 * processor), count as usize * 0x28).chunks(0x28) {
            negative += u32::from((u64_at(row, 0x20) as i64) < 0);
            add(row);
        }
    }
    assert!(negative > 10, "a processor may free more than it allocates");
    let expansion = reader.variable("PoolTrackTableExpansionSize") as usize;
    reader.bytes(reader.variable("PoolTrackTableExpansion"), expansion * 0x28).chunks(0x28).for_each(&mut add);
    rows.remove(&0);
    assert!(rows.len() > 95);
    for (tag, row) in &rows {
        assert!(row[0] >= row[1] && row[3] >= row[4], "{tag:x}: more frees than allocations");
        assert!(row[2] < 1 << 30 && row[5] < 1 << 30, "{tag:x}: {row:?}");
    }
    let mut paged: Vec<(u64, u64, [u8; 4])> =
        rows.iter().map(|(tag, row)| (row[5], row[3] - row[4], (tag & 0x7fff_ffff).to_le_bytes())).collect();
    paged.sort_unstable_by(|a, b| b.cmp(a));
    let article = [(23_552_000, 23, *b"Leak"), (18_514_560, 20_520, *b"CM31"), (8_511_504, 2_977, *b"CIcr")];
    assert_eq!(paged[..3], article);
    assert!(rows.contains_key(&0xe36f_7250), "Proc with its protected bit");
}

const POOLFIND: &str = "6a00000 58fa000 6200000 68fa000 60fa000 5a00000 6c00000 6400000 62fa000 5afa000 5c00000 \
                        6e00000 6600000 64fa000 5cfa000 6afa000 5e00000 6800000 66fa000 5efa000 6cfa000 6000000 \
                        5800000";

#[test]
fn a_scan_of_the_big_pages_prints_the_article_s_order() {
    let reader = &*READER;
    let table = reader.variable("PoolBigPageTable");
    let slots = reader.variable("PoolBigPageTableSize");
    assert_eq!((table, table + slots * 24), (0xffff_fa80_02e0_0000, 0xffff_fa80_02f8_0000));
    let bytes = reader.bytes(table, slots as usize * 24);
    let mut found = String::new();
    let (mut live, mut freed) = (0, 0);
    for (slot, entry) in bytes.chunks(24).enumerate() {
        let va = u64_at(entry, 0);
        if va == 0 {
            continue;
        }
        // From the hashed slot on there is no empty one before the page's own.
        let product = 0x9e5f * (va >> 12 & 0xffff_ffff);
        let mut probe = ((product ^ product >> 32) & (slots - 1)) as usize;
        while probe != slot {
            assert_ne!(u64_at(&bytes, probe * 24), 0, "{va:x} cannot be found by its hash");
            probe = (probe + 1) % slots as usize;
        }
        if va & 1 == 1 {
            freed += 1;
            continue;
        }
        live += 1;
        if &entry[8..12] == b"Leak" {
            assert_eq!((u32_at(entry, 12), u64_at(entry, 16)), (1, 0xf_a000));
            found += &format!("{:x} ", va - 0xffff_f8a0_0000_0000);
        }
    }
    assert_eq!(found.trim(), POOLFIND);
    assert!(live > 300 && freed > 50, "{live} live, {freed} freed");
    assert_eq!(reader.u32(reader.names["ExpPoolBigEntriesInUse"]), live);
}

const RECORDS: &str = "\
fffff8a005800000 fa000 fffffa8002be4060
fffff80001923cc6 nt!VeAllocatePoolWithTagPriority+0x2b6
fffff80001923d3d nt!VerifierExAllocatePoolEx+0x1d
fffff880042881f6 myfault+0x11f6
fffff8800428842f myfault+0x142f
fffff8000192e750 nt!IovCallDriver+0xa0
fffff800017a3a97 nt!IopXxxControlFile+0x607
fffff800017a42f6 nt!NtDeviceIoControlFile+0x56
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
fffff8a005800000 1000 fffffa8002187060
fffff8000192393a nt!VfFreePoolNotification+0x4a
fffff800015b6a6f nt!ExDeferredFreePool+0x107b
fffff800017273eb nt!HvFreeDirtyData+0x7f
fffff800017269bb nt!HvOptimizedSyncHive+0x53
fffff80001726303 nt!CmFlushKey+0xaf
fffff80001726b22 nt!NtFlushKey+0x142
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
";

#[test]
fn the_log_has_the_article_s_two_records() {
    let reader = &*READER;
    let modules = reader.modules();
    let length = reader.u32(reader.names["VfPoolTracesLength"]);
    let index = reader.u32(reader.names["VfPoolTracesIndex"]);
    assert_eq!(length, 0x10000);
    assert!(index > length, "the ring went round");
    let log = reader.bytes(reader.variable("VfPoolTraces"), length as usize * 0x80);
    let block = 0xffff_f8a0_0580_0000;
    let mut records = String::new();
    let (mut allocations, mut frees) = (0, 0);
    for age in 0..length {
        let slot = ((index - age) & (length - 1)) as usize;
        let record = &log[slot * 0x80..(slot + 1) * 0x80];
        let (address, size) = (u64_at(record, 0), u64_at(record, 8));
        assert_ne!(address, 0, "every record is in use");
        let frames: Vec<u64> =
            (0..13).map(|at| u64_at(record, 0x18 + at * 8)).take_while(|frame| *frame != 0).collect();
        match reader.resolve(&modules, frames[0]) {
            name if name.contains("nt!VeAllocatePoolWithTagPriority+0x2b6") => allocations += 1,
            name if name.contains("nt!VfFreePoolNotification+0x4a") => frees += 1,
            name => panic!("{name}"),
        }
        if (address..address + size).contains(&block) {
            records += &format!("{address:016x} {size:x} {:016x}\n", u64_at(record, 0x10));
            frames.iter().for_each(|frame| records += &(reader.resolve(&modules, *frame) + "\n"));
        } else if age % 97 == 0 {
            // The others' frames are in modules too, and in functions.
            frames.iter().for_each(|frame| drop(reader.resolve(&modules, *frame)));
        }
    }
    assert_eq!(records, RECORDS);
    assert!(allocations > 20_000 && frees > 20_000, "{allocations} allocations, {frees} frees");
    // What a search on the target finds is the same: two records with this address.
    let pattern = u64::to_le_bytes(block);
    let start = reader.variable("VfPoolTraces");
    let first = reader.kernel.search(start, log.len() as u64, &pattern).expect("one");
    let rest = start + log.len() as u64 - first - 8;
    let second = reader.kernel.search(first + 8, rest, &pattern).expect("two");
    assert_eq!(reader.kernel.search(second + 8, start + log.len() as u64 - second - 8, &pattern), None);
}

#[test]
fn modules_have_headers_and_the_kernel_its_pdb() {
    let reader = &*READER;
    let modules = reader.modules();
    assert!(modules.len() >= 22);
    assert_eq!(modules[0].2, "ntoskrnl.exe");
    assert_eq!(modules[1].2, "hal.dll");
    let mut ranges: Vec<(u64, u64)> = modules.iter().map(|(base, size, _)| (*base, base + size)).collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "no two modules overlap");
    for (base, size, name) in &modules {
        let header = reader.bytes(*base, 0x400);
        assert_eq!(&header[..2], b"MZ", "{name}");
        let pe = u32_at(&header, 0x3c) as usize;
        assert_eq!(&header[pe..pe + 6], b"PE\0\0\x64\x86", "{name}");
        assert_eq!(u16_at(&header, pe + 24), 0x20b, "{name}");
        assert_eq!(u64::from(u32_at(&header, pe + 24 + 56)), *size, "{name}");
        let directory = u32_at(&header, pe + 24 + 112 + 6 * 8);
        if name == "myfault.sys" {
            assert_eq!((directory, *base), (0, 0xffff_f880_0428_7000));
            continue;
        }
        let directory = reader.bytes(base + u64::from(directory), 28);
        assert_eq!(u32_at(&directory, 12), 2, "CodeView");
        let record = reader.bytes(base + u64::from(u32_at(&directory, 20)), u32_at(&directory, 16) as usize);
        assert_eq!(&record[..4], b"RSDS");
        if name == "ntoskrnl.exe" {
            assert_eq!(&record[24..], b"ntkrnlmp.pdb\0");
            let guid: Vec<u8> = vec![0x67, 0x2c, 0x1d, 0x8f, 0x64, 0x6b, 0x6f, 0x4f, 0x9c, 0x1a];
            assert_eq!(record[4..14], guid);
            assert_eq!(u32_at(&record, 20), 1);
        }
    }
    // An export by its tables.
    let nt = modules[0].0;
    let header = reader.bytes(nt, 0x400);
    let exports = reader.bytes(nt + u64::from(u32_at(&header, 0xe8 + 24 + 112)), 40);
    let (functions, names) = (nt + u64::from(u32_at(&exports, 28)), nt + u64::from(u32_at(&exports, 32)));
    let ordinals = nt + u64::from(u32_at(&exports, 36));
    let mut found = BTreeMap::new();
    for at in 0..u64::from(u32_at(&exports, 24)) {
        let text = reader.bytes(nt + u64::from(reader.u32(names + at * 4)), 0x40);
        let name: Vec<u8> = text.into_iter().take_while(|byte| *byte != 0).collect();
        let ordinal = u64::from(u16_at(&reader.bytes(ordinals + at * 2, 2), 0));
        let function = nt + u64::from(reader.u32(functions + ordinal * 4));
        found.insert(String::from_utf8(name).expect("ASCII"), function);
    }
    assert!(found.len() > 30);
    assert!(found.iter().all(|(name, function)| reader.names[name] == *function));
}

#[test]
fn the_debugger_s_data_block_leads_to_the_variables() {
    let reader = &*READER;
    let facts = reader.kernel.facts().clone();
    let block = reader.u64(facts.debugger_data_list);
    assert_eq!(block, reader.names["KdDebuggerDataBlock"]);
    assert_eq!(reader.u64(block), facts.debugger_data_list);
    let bytes = reader.bytes(block, 0x340);
    assert_eq!(&bytes[0x10..0x18], b"KDBG\x40\x03\0\0");
    assert_eq!(u64_at(&bytes, 0x18), facts.kernel_base);
    assert_eq!(u64_at(&bytes, 0x48), facts.loaded_module_list);
    assert_eq!(u64_at(&bytes, 0x1b8), reader.names["PoolTrackTable"]);
    assert_eq!(u64_at(&bytes, 0x248), reader.names["MmVerifierData"]);
    assert_eq!(u16_at(&bytes, 0x2ae), 0x28, "DirectoryTableBase");
    let lab = reader.bytes(u64_at(&bytes, 0x208), 11);
    assert_eq!(lab, b"7601.24540.");
    assert_eq!(reader.u32(reader.names["NtBuildNumber"]), 0xf000_1db1);
    assert_eq!(reader.bytes(facts.break_pc, 2), [0xcc, 0xc3]);
    // KiProcessorBlock -> KPRCB -> CurrentThread, and back from the KPCR.
    let prcb = reader.u64(u64_at(&bytes, 0x218));
    assert_eq!(prcb, facts.kprcb);
    assert_eq!(reader.u64(prcb + u64::from(u16_at(&bytes, 0x2b4))), facts.thread);
    assert_eq!(reader.u64(facts.kpcr + 0x20), prcb);
    let system = reader.variable("PsInitialSystemProcess");
    assert_eq!(reader.u64(system + 0x28), facts.cr3);
    assert_eq!(&reader.bytes(system + 0x2e0, 7), b"System\0");
    let shared = reader.bytes(0xffff_f780_0000_0000, 0x320);
    assert_eq!((u32_at(&shared, 0x26c), u32_at(&shared, 0x270)), (6, 1));
    assert_eq!(reader.u64(facts.stack), facts.break_return);
}

#[test]
fn page_tables_in_physical_memory_lead_to_the_same_bytes() {
    let reader = &*READER;
    let physical = |address: u64| {
        let mut bytes = [0; 8];
        assert_eq!(reader.kernel.read_physical(address, &mut bytes), 8);
        u64::from_le_bytes(bytes)
    };
    let addresses =
        [reader.kernel.facts().kernel_base, reader.variable("VfPoolTraces") + 0x7f_fff8, reader.kernel.facts().stack];
    for address in addresses {
        let mut table = reader.kernel.facts().cr3;
        for shift in [39, 30, 21, 12] {
            let entry = physical(table + (address >> shift & 0x1ff) * 8);
            assert_eq!(entry & 0x81, 1, "present, and not large");
            table = entry & 0x000f_ffff_ffff_f000;
        }
        assert_eq!(physical(table + (address & 0xfff)), reader.u64(address));
    }
    let mut bytes = [0; 8];
    assert_eq!(reader.kernel.read_physical(u64::MAX - 3, &mut bytes), 0);
}

#[test]
fn reads_end_where_memory_does_and_writes_stay() {
    let mut kernel = kernel::article();
    let end = kernel.facts().kernel_base + u64::from(kernel.facts().kernel_size);
    let mut bytes = [0; 64];
    assert_eq!(kernel.read_virtual(end - 10, &mut bytes), 10);
    assert_eq!(kernel.read_virtual(end, &mut bytes), 0);
    let place = kernel.facts().break_pc;
    assert_eq!(kernel.write_virtual(place, &[0x90]), 1);
    assert_eq!(kernel.read_virtual(place, &mut bytes[..1]), 1);
    assert_eq!(bytes[0], 0x90);
    // The machine is the same every time, but not the same object.
    assert_eq!(kernel::article().read_virtual(place, &mut bytes[..1]), 1);
    assert_eq!(bytes[0], 0xcc);
}

#[test]
fn the_verified_driver_has_the_leaked_blocks() {
    let reader = &*READER;
    assert_eq!(reader.u32(reader.names["MmVerifierData"]), 1);
    // The list of drivers to verify: BaseName is at 0x18.
    let head = reader.names["VfSuspectDriversList"];
    let suspect = reader.u64(head);
    assert_eq!(reader.u64(suspect), head);
    let name = reader.bytes(reader.u64(suspect + 0x20), 22);
    assert_eq!(name, "myfault.sys".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    // The tree of loaded ones: Tables at 0x20; the node's data are behind its links.
    let tree = reader.names["ViTargetDriversAvl"];
    let node = reader.u64(reader.u64(tree + 0x20) + 0x10);
    assert_eq!(reader.u64(node + 0x20), 0xffff_f880_0428_7000);
    let verified = reader.u64(node + 0x48);
    assert_eq!((reader.u64(verified), reader.u64(verified + 0x28)), (suspect, 0x9876_1940));
    let page = reader.bytes(reader.u64(verified + 0x38) & !0xf, 0x1000);
    assert_eq!((u64_at(&page, 0), u64_at(&page, 8), u64_at(&page, 0x10)), (0, verified, 0x2132_1345));
    let live: Vec<&[u8]> = page.chunks(0x20).skip(1).filter(|entry| u64_at(entry, 0x10) & 1 == 0).collect();
    assert_eq!(live.len(), 23);
    assert!(live.iter().all(|entry| u64_at(entry, 8) == 0xffff_f880_0428_81f6 && &entry[0x18..0x1c] == b"Leak"));
    assert_eq!(live.iter().map(|entry| u64_at(entry, 0x10)).sum::<u64>(), reader.u64(verified + 0x60));
}
