//! `!verifier` on live machines of every kernel that there is a table of: each answer, as JSON and as text, against
//! what the machine says of itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, Record, Ring, SeededOptions, TrackedBlock, Truth, VerifierDriver};
use serde_json::Value;
use target::{Live, tables};

/// A machine's truth with what follows from it.
struct Machine<'a> {
    truth: Truth,
    isf: &'a Isf,
    /// RVAs of symbols, and the names that each has.
    symbols: BTreeMap<u64, Vec<&'a str>>,
    /// What the records of the log are of.
    operations: HashMap<u32, &'static str>,
}

fn printable(tag: u32) -> String {
    let bytes = (tag & 0x7fff_ffff).to_le_bytes();
    bytes.iter().map(|&byte| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '.' }).collect()
}

impl<'a> Machine<'a> {
    fn new(isf: &'a Isf, truth: Truth) -> Self {
        let mut symbols: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for (name, symbol) in &isf.symbols {
            symbols.entry(symbol.address).or_default().push(name);
        }
        let word = |record: &Record| if record.free { "free" } else { "allocate" };
        let records = truth.pool_log.iter().flat_map(|log| &log.records);
        let operations = records.map(|record| (record.index, word(record))).collect();
        Machine { truth, isf, symbols, operations }
    }

    /// A frame's names: the kernel has functions with several.
    fn names(&self, address: u64) -> Vec<String> {
        let offset = |base: u64| match address - base {
            0 => String::new(),
            offset => format!("+{offset:#x}"),
        };
        let within = |module: &&kernel::LoadedModule| (module.base..module.base + module.size).contains(&address);
        if let Some(module) = self.truth.modules.iter().find(within) {
            if module.base == self.truth.kernel_base {
                let rva = address - module.base;
                let (at, names) = self.symbols.range(..=rva).next_back().unwrap();
                return names.iter().map(|name| format!("nt!{name}{}", offset(module.base + at))).collect();
            }
            let stem = module.name.rsplit_once('.').map_or(module.name.as_str(), |(stem, _)| stem);
            return vec![format!("{stem}{}", offset(module.base))];
        }
        let gone = self.truth.unloaded.iter().rev().find(within);
        gone.map(|module| format!("<Unloaded_{}>{}", module.name, offset(module.base))).into_iter().collect()
    }

    fn is_named(&self, address: u64, name: Option<&str>) -> bool {
        let names = self.names(address);
        match name {
            None => names.is_empty(),
            Some(name) => names.iter().any(|known| known == name),
        }
    }

    /// Frames as JSON has them, with `back` taken off each address.
    fn frames(&self, found: &Value, frames: &[u64], back: u64) {
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), frames.len());
        for (found, frame) in found.iter().zip(frames) {
            assert_eq!(hex(&found["address"]), frame - back);
            assert!(self.is_named(frame - back, found["symbol"].as_str()), "{found} {:?}", self.names(frame - back));
        }
    }

    /// Frames as text has them.
    fn frame_lines<'t>(&self, lines: &mut impl Iterator<Item = &'t str>, indent: usize, frames: &[u64]) {
        for frame in frames {
            let line = lines.next().unwrap();
            let (blanks, line) = line.split_at(indent);
            assert!(blanks.bytes().all(|byte| byte == b' '));
            let (address, name) = line.split_once(' ').map_or((line, None), |(address, name)| (address, Some(name)));
            assert_eq!(address, format!("{frame:016x}"));
            assert!(self.is_named(*frame, name), "{line} {:?}", self.names(*frame));
        }
    }

    fn setting(&self, name: &str) -> u64 {
        self.truth.verifier_settings.get(name).copied().unwrap_or(0)
    }

    fn records(&self) -> &[Record] {
        &self.truth.pool_log.as_ref().unwrap().records
    }

    fn ring(&self, name: &str) -> Option<&Ring> {
        self.truth.rings.iter().find(|ring| ring.name == name)
    }
}

fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
}

fn state(driver: &VerifierDriver) -> &'static str {
    match (driver.loads, driver.unloads) {
        (0, _) => "Never Loaded",
        (_, 0) => "Loaded",
        (loads, unloads) if loads > unloads => "Loaded and Unloaded",
        _ => "Unloaded",
    }
}

/// pool-internals 7.3: bit, words of 8.1's debugger, standard; what is beyond 0x1000 is newer than Windows 7.
const FLAGS: [(u64, &str, bool); 21] = [
    (0x0, "Automatic Checks", true),
    (0x1, "Special pool", true),
    (0x2, "Force IRQL checking", true),
    (0x8, "Pool tracking", true),
    (0x10, "I/O verification", true),
    (0x20, "Deadlock detection", true),
    (0x80, "DMA checking", true),
    (0x100, "Security checks", true),
    (0x800, "Miscellaneous checks", true),
    (0x20000, "DDI compliance checking", true),
    (0x4, "Randomized low resources simulation", false),
    (0x200, "Force pending I/O requests", false),
    (0x400, "IRP logging", false),
    (0x2000, "Invariant MDL checking for stack", false),
    (0x4000, "Invariant MDL checking for driver", false),
    (0x8000, "Power framework delay fuzzing", false),
    (0x40000, "Systematic low resources simulation", false),
    (0x80000, "DDI compliance checking (additional)", false),
    (0x200000, "NDIS/WIFI verification", false),
    (0x800000, "Kernel synchronization delay fuzzing", false),
    (0x1000000, "VM switch verification", false),
];

/// The same, in the words of Windows 7's debugger.
const FLAGS_7: [(u64, &str); 9] = [
    (0x1, "Special pool"),
    (0x2, "Special irql"),
    (0x4, "Inject random low-resource API failures"),
    (0x8, "All pool allocations checked on unload"),
    (0x10, "Io subsystem checking enabled"),
    (0x20, "Deadlock detection enabled"),
    (0x80, "DMA checking enabled"),
    (0x100, "Security checks enabled"),
    (0x800, "Miscellaneous checks enabled"),
];

/// `!verifier`, `!verifier 1`, `!verifier 3` and `!verifier 3 driver`.
fn settings_and_drivers(live: &mut Live, machine: &Machine<'_>) {
    let truth = &machine.truth;
    let level = machine.setting("Level");
    let result = live.result("!verifier 3");
    assert_eq!(result["level"], level);
    let known = FLAGS.iter().filter(|(bit, ..)| truth.build >= 9200 || *bit < 0x1000);
    let flags: Vec<Value> = known
        .map(|(bit, name, standard)| {
            serde_json::json!({"bit": bit, "name": name, "standard": standard, "enabled": level & bit == *bit})
        })
        .collect();
    assert_eq!(result["flags"], Value::from(flags));
    let statistics: BTreeMap<String, u64> = serde_json::from_value(result["statistics"].clone()).unwrap();
    assert_eq!(statistics, truth.verifier_settings);
    assert_eq!(result["drivers"].as_array().unwrap().len(), truth.verifier_drivers.len());
    for (found, driver) in result["drivers"].as_array().unwrap().iter().zip(&truth.verifier_drivers) {
        assert_eq!(found["name"], driver.name);
        assert_eq!(found["state"], state(driver).to_lowercase());
        assert_eq!((&found["loads"], &found["unloads"]), (&driver.loads.into(), &driver.unloads.into()));
        let image = driver.image.map(|(base, size)| (base, base + size));
        assert_eq!(found["image"].is_null(), image.is_none());
        if let Some(image) = image {
            assert_eq!((hex(&found["image"]["start"]), hex(&found["image"]["end"])), image);
        }
        let counters: BTreeMap<String, u64> = serde_json::from_value(found["counters"].clone()).unwrap();
        assert_eq!(counters, driver.counters);
        let mut allocations: Vec<&Value> = found["allocations"].as_array().unwrap().iter().collect();
        allocations.sort_by_key(|one| hex(&one["address"]));
        assert_eq!(allocations.len(), driver.allocations.len());
        for (found, block) in allocations.iter().zip(&driver.allocations) {
            let TrackedBlock { address, bytes, tag, caller } = block;
            assert_eq!((hex(&found["address"]), &found["size"]), (*address, &(*bytes).into()));
            assert_eq!((hex(&found["caller"]), &found["tag"]), (*caller, &printable(*tag).into()));
            assert!(machine.is_named(*caller, found["symbol"].as_str()), "{found}");
        }
    }
    let mut list = live.result("!verifier 1");
    assert!(list["drivers"].as_array().unwrap().iter().all(|driver| driver.get("allocations").is_none()));
    for driver in list["drivers"].as_array_mut().unwrap() {
        let whole = result["drivers"].as_array().unwrap().iter().find(|whole| whole["name"] == driver["name"]).unwrap();
        driver["allocations"] = whole["allocations"].clone();
    }
    assert_eq!(list, result);
    let alone = live.result("!verifier");
    assert_eq!((&alone["level"], &alone["statistics"]), (&result["level"], &result["statistics"]));
    assert!(alone.get("drivers").is_none());

    let mut text = live.text("!verifier 3");
    assert_eq!(text, overview(machine, &result));
    for (number, driver) in truth.verifier_drivers.iter().enumerate() {
        let one = live.result(&format!("!verifier 3 {}", driver.name));
        assert_eq!(one["drivers"], Value::from(vec![result["drivers"][number].clone()]));
        text = live.text(&format!("!verifier 3 {}", driver.name.to_uppercase().replace(".SYS", "")));
        assert!(text.contains(&driver.name));
    }
}

/// kd's text of the whole, in the layout of the version; the order of a driver's allocations, which is that of the
/// kernel's pages, is that of the answer as JSON.
fn overview(machine: &Machine<'_>, result: &Value) -> String {
    use std::fmt::Write as _;

    let (truth, level) = (&machine.truth, machine.setting("Level"));
    let old = truth.build < 9200;
    let indent = if old { "" } else { "  " };
    let mut text = String::new();
    if old {
        writeln!(text, "\nVerify Level {level:x} ... enabled options are:").unwrap();
        for (_, name) in FLAGS_7.iter().filter(|(bit, _)| level & bit != 0) {
            writeln!(text, "    {name}").unwrap();
        }
        text.push('\n');
    } else {
        write!(text, "\nVerify Flags Level 0x{level:08x}\n\n  STANDARD FLAGS:\n").unwrap();
        for (bit, name, standard) in FLAGS {
            if bit == 4 {
                text.push_str("\n  ADDITIONAL FLAGS:\n");
            }
            assert!(standard == (bit != 4 && !text.contains("ADDITIONAL")));
            let mark = if level & bit == bit { 'X' } else { ' ' };
            writeln!(text, "    [{mark}] (0x{bit:08x}) {name}").unwrap();
        }
        text.push_str("\n    [X] Indicates flag is enabled\n\n\n");
    }
    text.push_str("Summary of All Verifier Statistics\n\n");
    for (name, counter) in [
        ("RaiseIrqls", "RaiseIrqls"),
        ("AcquireSpinLocks", "AcquireSpinLocks"),
        ("Synch Executions", "SynchronizeExecutions"),
        ("Trims", "Trims"),
    ] {
        let column = if old { 39 } else { 21 };
        writeln!(text, "{indent}{name:<column$}{:#x}", machine.setting(counter)).unwrap();
    }
    text.push('\n');
    for (name, counter) in [
        ("Attempted", "AllocationsAttempted"),
        ("Succeeded", "AllocationsSucceeded"),
        ("Succeeded SpecialPool", "AllocationsSucceededSpecialPool"),
        ("With NO TAG", "AllocationsWithNoTag"),
        ("Failed", "AllocationsFailed"),
    ] {
        writeln!(text, "{indent}Pool Allocations {name:<22}{:#x}", machine.setting(counter)).unwrap();
    }
    if old {
        let failed = machine.setting("AllocationsFailedDeliberately");
        writeln!(text, "Resource Allocations Failed Deliberately   {failed:#x}").unwrap();
    }
    text.push('\n');
    for (pool, name) in [("Paged", "paged"), ("NonPaged", "nonpaged")] {
        for (when, prefix) in [("Current", ""), ("Peak", "Peak")] {
            let title = format!("{when} {name} pool allocations");
            let count = machine.setting(&format!("{when}{pool}PoolAllocations"));
            let bytes = machine.setting(&format!("{prefix}{pool}Bytes"));
            writeln!(text, "{indent}{title:<39}{count:#x} for {bytes:08X} bytes").unwrap();
        }
    }
    text.push_str("\nDriver Verification List\n");
    text.push_str(if old {
        "\nEntry     State           NonPagedPool   PagedPool   Module\n\n"
    } else {
        "------------------------\n"
    });
    for (driver, json) in truth.verifier_drivers.iter().zip(result["drivers"].as_array().unwrap()) {
        let counter = |name: &str| driver.counters.get(name).copied().unwrap_or(0);
        let (entry, name, state) = (hex(&json["entry"]), &driver.name, state(driver));
        let rows = [
            ("Current Pool Allocations", "CurrentNonPagedPoolAllocations", "CurrentPagedPoolAllocations"),
            ("Current Pool Bytes", "NonPagedBytes", "PagedBytes"),
            ("Peak Pool Allocations", "PeakNonPagedPoolAllocations", "PeakPagedPoolAllocations"),
            ("Peak Pool Bytes", "PeakNonPagedBytes", "PeakPagedBytes"),
        ];
        if old {
            let (nonpaged, paged) = (counter("NonPagedBytes"), counter("PagedBytes"));
            writeln!(text, "{entry:016x} {state:<16} {nonpaged:08x}       {paged:08x}    {name}\n").unwrap();
            for (title, nonpaged, paged) in rows {
                writeln!(text, "{title:<26}{:08x}    {:08x}", counter(nonpaged), counter(paged)).unwrap();
            }
        } else {
            writeln!(text, "\n  MODULE: 0x{entry:016x} {name} ({state})\n").unwrap();
            writeln!(text, "    Pool Allocation Statistics: ( NonPagedPool / PagedPool )\n").unwrap();
            for (title, nonpaged, paged) in rows {
                let (nonpaged, paged) = (counter(nonpaged), counter(paged));
                writeln!(text, "      {:<26}( 0x{nonpaged:08X} / 0x{paged:08X} )", format!("{title}:")).unwrap();
            }
            writeln!(text, "      Contiguous Memory Bytes:       0x{:08X}", counter("ContiguousMemoryBytes")).unwrap();
            let peak = counter("PeakContiguousMemoryBytes");
            writeln!(text, "      Peak Contiguous Memory Bytes:  0x{peak:08X}").unwrap();
        }
        let blocks: HashMap<u64, &TrackedBlock> =
            driver.allocations.iter().map(|block| (block.address, block)).collect();
        if !blocks.is_empty() {
            text.push_str(match old {
                true => "\nPoolAddress  SizeInBytes    Tag       CallersAddress\n",
                false => {
                    "\n    Pool Allocations:\n\n      \
                     Address             Length      Tag   Caller            \n      \
                     ------------------  ----------  ----  ------------------\n"
                }
            });
        }
        for json in json["allocations"].as_array().unwrap() {
            let TrackedBlock { address, bytes, tag, caller } = blocks[&hex(&json["address"])];
            let tag = printable(*tag);
            if old {
                writeln!(text, "{address:016x}     0x{bytes:08x}     {tag}      {caller:016x}").unwrap();
            } else {
                let name = json["symbol"].as_str().map_or(String::new(), |name| format!("  {name}"));
                writeln!(text, "      0x{address:016x}  0x{bytes:08x}  {tag}  0x{caller:016x}{name}").unwrap();
            }
        }
        if old {
            text.push('\n');
        } else if counter("ContiguousMemoryBytes") > 0 {
            text.push_str("\n    Contiguous allocations are not displayed with public symbols.\n");
        }
    }
    text
}

/// Entries as JSON has them.
fn entries<'r>(machine: &Machine<'_>, found: &Value, wanted: impl IntoIterator<Item = &'r Record>, back: u64) {
    let found = found.as_array().unwrap();
    let wanted: Vec<&Record> = wanted.into_iter().collect();
    assert_eq!(found.len(), wanted.len());
    for (entry, record) in found.iter().zip(wanted) {
        let Record { index, address, size, thread, frames, .. } = record;
        assert_eq!((hex(&entry["address"]), hex(&entry["thread"])), (*address, *thread));
        assert_eq!((&entry["size"], &entry["sequence"]), (&(*size).into(), &(*index).into()));
        assert_eq!(entry["operation"], machine.operations[index], "{entry}");
        machine.frames(&entry["frames"], frames, back);
    }
}

/// The whole answer as text.
fn pool_log_text<'r>(
    machine: &Machine<'_>,
    text: &str,
    asked: &str,
    wanted: impl IntoIterator<Item = &'r Record>,
    parsed: u32,
) {
    let length = machine.truth.pool_log.as_ref().unwrap().length;
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap();
    assert_eq!([next(), next(), next()], ["", "Log of recent kernel pool Allocate and Free operations:", ""]);
    assert_eq!([next(), next()], [format!("There are up to {length:#x} entries in the log."), String::new()]);
    assert_eq!([next(), next(), next()], [format!("Parsing 0x{length:016x} log entries{asked}.").as_str(), "", ""]);
    let mut any = false;
    for Record { address, size, thread, frames, .. } in wanted {
        any = true;
        assert_eq!(lines.next().unwrap(), "=".repeat(70));
        let block = format!("Pool block {address:016x}, Size {size:016x}, Thread {thread:016x}");
        assert_eq!(lines.next().unwrap(), block);
        machine.frame_lines(&mut lines, 0, frames);
    }
    if !any {
        lines.next().unwrap();
    }
    assert_eq!(lines.next().unwrap(), format!("Parsed entry {parsed:016x}/{length:016x}..."));
    assert_eq!(lines.next().unwrap(), "Finished parsing all pool tracking information.");
    assert_eq!(lines.next(), None);
}

fn contains(record: &Record, address: u64) -> bool {
    (record.address..record.address + record.size.max(1)).contains(&address)
}

/// The newest record of each address, if it is of an allocation.
fn outstanding<'m>(machine: &'m Machine<'_>) -> Vec<&'m Record> {
    let mut seen = HashSet::new();
    let newest = machine.records().iter().filter(|record| seen.insert(record.address));
    newest.filter(|record| machine.operations[&record.index] == "allocate").collect()
}

/// Groups by stack: (count, bytes, sequence of the newest, frames), most bytes first.
fn groups<'m>(records: &[&'m Record]) -> Vec<(u64, u64, u32, &'m [u64])> {
    let mut groups: Vec<(u64, u64, u32, &[u64])> = Vec::new();
    for record in records {
        match groups.iter_mut().find(|group| group.3 == record.frames) {
            Some(group) => (group.0, group.1) = (group.0 + 1, group.1 + record.size),
            None => groups.push((1, record.size, record.index, &record.frames)),
        }
    }
    groups.sort_by(|a, b| (b.1, b.0, b.2.wrapping_sub(a.2) as i32).cmp(&(a.1, a.0, 0)));
    groups
}

/// `!verifier 0x80` and its options.
fn pool_log(live: &mut Live, machine: &Machine<'_>) {
    let log = machine.truth.pool_log.as_ref().unwrap();
    let records = machine.records();
    let whole = live.result("!verifier 0x80");
    assert_eq!((&whole["log_entries"], &whole["index"]), (&log.length.into(), &log.index.into()));
    assert_eq!((&whole["parsed"], whole["searched_from"].is_null()), (&log.length.into(), true));
    entries(machine, &whole["entries"], records, 0);
    pool_log_text(machine, &live.text("!verifier 0x80"), "", records, log.length);

    let newest = &records[..records.len().min(7)];
    let result = live.result("!verifier 0x80 7");
    entries(machine, &result["entries"], newest, 0);
    let asked = ", displaying the most recent 0x0000000000000007";
    pool_log_text(machine, &live.text("!verifier 0x80 7"), asked, newest, 7);

    // Blocks found by their start and by what is inside, of the newest, the oldest and a record in the middle.
    for record in [&records[0], &records[records.len() / 2], &records[records.len() - 1]] {
        for address in [record.address, record.address + record.size / 2, record.address + record.size - 1] {
            let wanted: Vec<&Record> = records.iter().filter(|record| contains(record, address)).collect();
            let result = live.result(&format!("!verifier 0x80 {address:x}"));
            entries(machine, &result["entries"], wanted.iter().copied(), 0);
            let asked = format!(", searching for address 0x{address:016x}");
            let text = live.text(&format!("!verifier 0x80 {address:x}"));
            pool_log_text(machine, &text, &asked, wanted.iter().copied(), log.length);
            entries(machine, &live.result(&format!("!verifier 0x80 {address:x} -full"))["entries"], wanted, 0);
        }
    }
    let address = records[0].address + records[0].size;
    let wanted: Vec<&Record> = records.iter().filter(|record| contains(record, address)).collect();
    entries(machine, &live.result(&format!("!verifier 0x80 {address:x}"))["entries"], wanted, 0);

    let since = log.index.wrapping_sub(40);
    let written: Vec<&Record> = records.iter().filter(|record| log.index.wrapping_sub(record.index) < 40).collect();
    entries(machine, &live.result(&format!("!verifier 0x80 -since {since:#x}"))["entries"], written, 0);
    let none = live.result(&format!("!verifier 0x80 -since {:#x}", log.index));
    assert_eq!(none["entries"], Value::from(Vec::<Value>::new()));

    for (option, word) in [("alloc", "allocate"), ("free", "free")] {
        let wanted = records.iter().filter(|record| machine.operations[&record.index] == word);
        entries(machine, &live.result(&format!("!verifier 0x80 -op {option}"))["entries"], wanted, 0);
    }
    let calls = live.result("!verifier 0x80 9 -calls");
    entries(machine, &calls["entries"], &records[..records.len().min(9)], 1);

    for module in machine.truth.modules.iter().skip(1).step_by(4).chain(&machine.truth.unloaded) {
        let image = module.base..module.base + module.size;
        let wanted = records.iter().filter(|record| record.frames.iter().any(|frame| image.contains(frame)));
        entries(machine, &live.result(&format!("!verifier 0x80 -driver {}", module.name))["entries"], wanted, 0);
    }

    let leaks = outstanding(machine);
    entries(machine, &live.result("!verifier 0x80 -outstanding")["entries"], leaks.iter().copied(), 0);
    for (line, records) in [("-outstanding -group", &leaks), ("-group", &records.iter().collect())] {
        let found = live.result(&format!("!verifier 0x80 {line}"));
        let (found, wanted) = (found["groups"].as_array().unwrap(), groups(records));
        assert_eq!(found.len(), wanted.len());
        for (found, (count, bytes, sequence, frames)) in found.iter().zip(&wanted) {
            assert_eq!((&found["count"], &found["bytes"]), (&(*count).into(), &(*bytes).into()));
            assert_eq!(found["sequence"], *sequence);
            assert_eq!(found["operation"], machine.operations[sequence]);
            machine.frames(&found["frames"], frames, 0);
        }
        let text = live.text(&format!("!verifier 0x80 {line}"));
        let mut lines = text.lines().skip(8);
        for (count, bytes, sequence, frames) in wanted {
            assert_eq!(lines.next().unwrap(), "=".repeat(70));
            let what = match (machine.operations[&sequence], count) {
                ("allocate", 1) => "allocation",
                ("allocate", _) => "allocations",
                (_, 1) => "free",
                _ => "frees",
            };
            assert_eq!(lines.next().unwrap(), format!("{bytes:#x} bytes in {count:#x} {what} by:"));
            machine.frame_lines(&mut lines, 0, frames);
        }
        assert!(lines.next().unwrap().starts_with("Parsed entry "));
    }
    timelines(live, machine);
    tags(live, machine);
}

fn timelines(live: &mut Live, machine: &Machine<'_>) {
    let mut by_address: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in machine.records() {
        by_address.entry(record.address).or_default().push(record);
    }
    let mut busiest: Vec<(usize, u64)> = by_address.iter().map(|(address, all)| (all.len(), *address)).collect();
    busiest.sort_unstable();
    for (_, address) in busiest.iter().rev().take(4) {
        let wanted: Vec<&Record> = machine.records().iter().rev().filter(|record| contains(record, *address)).collect();
        let found = live.result(&format!("!verifier 0x80 -timeline {address:x}"));
        let found = found["timeline"].as_array().unwrap();
        assert_eq!(found.len(), wanted.len());
        let mut before: Option<&Record> = None;
        for (moment, record) in found.iter().zip(&wanted) {
            assert_eq!((hex(&moment["address"]), hex(&moment["thread"])), (record.address, record.thread));
            assert_eq!((&moment["size"], &moment["sequence"]), (&record.size.into(), &record.index.into()));
            let operation = machine.operations[&record.index];
            assert_eq!(moment["operation"], operation);
            let kernel = |frame: &u64| machine.names(*frame).iter().any(|name| name.starts_with("nt!"));
            let by = record.frames.iter().find(|frame| !kernel(frame)).or(record.frames.first()).copied();
            assert_eq!(by.map(|_| hex(&moment["by"]["address"])), by);
            // The same thing twice: a record between them is missing.
            let gap = before.is_some_and(|before| {
                before.address == record.address && machine.operations[&before.index] == operation
            });
            assert_eq!(moment["gap"], gap, "{moment}");
            before = Some(record);
        }
        let text = live.text(&format!("!verifier 0x80 -timeline {address:x}"));
        let lines: Vec<&str> = text.lines().filter(|line| moment(line)).collect();
        assert_eq!(lines.len(), wanted.len(), "{text}");
        for (line, record) in lines.iter().zip(&wanted) {
            let Record { index, address, size, thread, .. } = record;
            let operation = machine.operations[index];
            let start = format!("{index:08x}  {operation:<9}  {address:016x}  {size:016x}  {thread:016x}  ");
            assert!(line.starts_with(&start), "{line}");
        }
    }
}

/// A line of a timeline that is of a record.
fn moment(line: &str) -> bool {
    line.split_once("  ").is_some_and(|(sequence, _)| sequence.len() == 8 && u32::from_str_radix(sequence, 16).is_ok())
}

/// The log holds no tags: `-tag` is of addresses.
fn tags(live: &mut Live, machine: &Machine<'_>) {
    let truth = &machine.truth;
    for tag in ["Leak", "Ntff", "NDpp", "MmSt"] {
        let mut addresses: BTreeSet<u64> =
            truth.large.iter().filter(|life| printable(life.tag) == tag).map(|life| life.address).collect();
        let tracked = truth.verifier_drivers.iter().flat_map(|driver| &driver.allocations);
        addresses.extend(tracked.filter(|block| printable(block.tag) == tag).map(|block| block.address));
        // An entry of the table keeps what it says when its block is freed; then its address is odd.
        addresses.extend(live.fake.with_kernel(|kernel| freed(kernel, machine.isf, tag)));
        let wanted = machine.records().iter().filter(|record| addresses.contains(&record.address));
        entries(machine, &live.result(&format!("!verifier 0x80 -tag {tag}"))["entries"], wanted, 0);
    }
}

/// Where blocks with the tag were, by the table of large allocations.
fn freed(kernel: &kernel::Kernel, isf: &Isf, tag: &str) -> Vec<u64> {
    let number = |address: u64, width: usize| {
        let mut bytes = [0; 8];
        assert_eq!(kernel.read_virtual(address, &mut bytes[..width]), width);
        u64::from_le_bytes(bytes)
    };
    let variable = |name| number(kernel.facts().kernel_base + isf.symbol(name).unwrap(), 8);
    let entry = "_POOL_TRACKER_BIG_PAGES";
    let (va, key) = (isf.offset(entry, "Va").unwrap(), isf.offset(entry, "Key").unwrap());
    let (table, size) = (variable("PoolBigPageTable"), isf.size(entry).unwrap());
    let slots = (0..variable("PoolBigPageTableSize")).map(|slot| table + slot * size);
    let freed = slots.filter(|slot| number(slot + va, 8) & 1 == 1 && printable(number(slot + key, 4) as u32) == tag);
    freed.map(|slot| number(slot + va, 8) - 1).filter(|address| *address != 0).collect()
}

/// The logs beside the pool's.
fn other_logs(live: &mut Live, machine: &Machine<'_>) {
    for (flag, table, default) in [
        (0x4, "ViFaultTraces", 4),
        (0x8, "ViTrackIrqlQueue", 4),
        (0x40, "VfForcedPendingLog", usize::MAX),
        (0x100, "IovIrpTraces", usize::MAX),
        (0x200, "VfKeCriticalRegionTraces", usize::MAX),
        (0x400, "VfWdIrpListHead", usize::MAX),
    ] {
        let Some(ring) = machine.ring(table) else {
            let result = live.result(&format!("!verifier {flag:#x}"));
            let why = match machine.isf.symbols.contains_key(table) {
                true => "The kernel keeps no ",
                false => "This version of Windows has no ",
            };
            assert!(result["unavailable"].as_str().unwrap().starts_with(why), "{result}");
            assert_eq!((&result["log_entries"], result["entries"].as_array().unwrap().len()), (&0.into(), 0));
            let text = live.text(&format!("!verifier {flag:#x}"));
            assert!(text.ends_with(&format!("{}\n", result["unavailable"].as_str().unwrap())));
            continue;
        };
        let all = ring.records.len();
        let two = format!(" {:x}", 2);
        for (quantity, shown) in [("", default.min(all)), (two.as_str(), 2.min(all)), (" 1000", all)] {
            let line = format!("!verifier {flag:#x}{quantity}");
            let result = live.result(&line);
            assert_eq!(result["log_entries"], ring.length, "{line}");
            other_entries(machine, &result["entries"], ring, &ring.records[..shown]);
            other_text(machine, flag, &live.text(&line), ring, shown);
        }
        if flag < 0x100 {
            continue;
        }
        let of = if flag == 0x200 { "Thread" } else { "Irp" };
        for record in ring.records.iter().take(2) {
            let address = record.values[of];
            let wanted: Vec<_> = ring
                .records
                .iter()
                .filter(|record| record.values.values().any(|value| *value == address))
                .cloned()
                .collect();
            let result = live.result(&format!("!verifier {flag:#x} {address:x}"));
            other_entries(machine, &result["entries"], ring, &wanted);
        }
        let result = live.result(&format!("!verifier {flag:#x} fffff6f000000010"));
        assert_eq!(result["entries"].as_array().unwrap().len(), 0);
    }
    for (flag, words) in [(0x20, "driver hang"), (0x800, "systematic low resources")] {
        let text = live.text(&format!("!verifier {flag:#x}"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(words), "{text}");
    }
}

fn other_entries(machine: &Machine<'_>, found: &Value, ring: &Ring, wanted: &[kernel::RingRecord]) {
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), wanted.len(), "{}", ring.name);
    let list = ring.name == "VfWdIrpListHead";
    for (entry, record) in found.iter().zip(wanted) {
        assert_eq!(entry.get("sequence").and_then(Value::as_u64), (!list).then_some(record.index.into()));
        let value = |name: &str| record.values.get(name).copied();
        for (field, name) in [("thread", "Thread"), ("irp", "Irp")] {
            assert_eq!(entry.get(field).map(hex), value(name), "{entry}");
        }
        for (field, name) in [
            ("old_irql", "OldIrql"),
            ("new_irql", "NewIrql"),
            ("processor", "Processor"),
            ("tick_count", "TickCount"),
            ("irql", "Irql"),
            ("due_tick_count", "DueTickCount"),
        ] {
            assert_eq!(entry.get(field).map(|found| found.as_u64().unwrap()), value(name), "{entry}");
        }
        let apc = value("CombinedApcDisable");
        assert_eq!(
            entry.get("kernel_apc_disable").map(|found| found.as_i64().unwrap()),
            apc.map(|both| (both as i16).into())
        );
        let special = apc.map(|both| ((both >> 16) as i16).into());
        assert_eq!(entry.get("special_apc_disable").map(|found| found.as_i64().unwrap()), special);
        let told = matches!(ring.name.as_str(), "IovIrpTraces" | "VfKeCriticalRegionTraces");
        assert_eq!(entry.get("operation").and_then(Value::as_str), record.operation, "{entry}");
        assert_eq!(record.operation.is_some(), told);
        machine.frames(&entry["frames"], &record.frames, 0);
    }
}

fn other_text(machine: &Machine<'_>, flag: u32, text: &str, ring: &Ring, shown: usize) {
    let records = &ring.records[..shown];
    let mut lines = text.lines();
    match flag {
        0x4 | 0x8 => {
            let title = if flag == 4 { "Fault injection trace log" } else { "Track irql trace log" };
            let boxed = [format!("{} ", "-".repeat(47)), format!("{title:<48}"), format!("{} ", "-".repeat(47))];
            assert!(boxed.iter().all(|line| lines.next().unwrap() == line), "{text}");
            assert_eq!(lines.next().unwrap(), "");
            if flag == 4 && records.is_empty() {
                assert_eq!(lines.next().unwrap(), "Driver Verifier didn't inject any faults.");
                return;
            }
            let words = if flag == 4 { "fault injection" } else { "IRQL transition" };
            let count = format!("Displaying most recent 0x{shown:016x} entries from the {words} log.");
            assert_eq!(lines.next().unwrap(), count);
            assert_eq!(lines.next().unwrap(), format!("There are up to {:#x} entries in the log.", ring.length));
        }
        0x40 => assert_eq!(lines.next().unwrap(), format!("Size of the log is {:#x}", ring.length)),
        _ => {
            let count = format!("There are up to {:#x} entries in the log.", ring.length);
            assert!(lines.any(|line| line == count), "{text}");
            assert_eq!(lines.nth(1).unwrap(), format!("Displaying the most recent {shown:#x} entries."));
            assert_eq!(lines.next().unwrap(), "");
        }
    }
    for record in records {
        let value = |name: &str| record.values[name];
        match flag {
            0x4 | 0x8 => {
                assert_eq!(lines.next().unwrap(), "");
                let names = [
                    ("Thread:", "Thread"),
                    ("Old irql:", "OldIrql"),
                    ("New irql:", "NewIrql"),
                    ("Processor:", "Processor"),
                    ("Time stamp:", "TickCount"),
                ];
                for (title, name) in &names[..if flag == 4 { 1 } else { 5 }] {
                    assert_eq!(lines.next().unwrap(), format!("{title:<20}{:016x}", value(name)));
                }
                assert_eq!(lines.next().unwrap(), "");
                machine.frame_lines(&mut lines, 4, &record.frames);
            }
            0x40 => {
                assert_eq!(lines.next().unwrap(), "=".repeat(56));
                let line = format!("IRP: {:016x} - forced pending from stack trace:", value("Irp"));
                assert_eq!([lines.next().unwrap(), lines.next().unwrap()], [line.as_str(), ""]);
                machine.frame_lines(&mut lines, 5, &record.frames);
                assert_eq!(lines.next().unwrap(), "");
            }
            _ => {
                assert_eq!(lines.next().unwrap(), "=".repeat(70));
                let line = match flag {
                    0x100 => format!(
                        "IRP {:016x}, Thread {:016x}, IRQL = {}, KernelApcDisable = {}, SpecialApcDisable = {}",
                        value("Irp"),
                        value("Thread"),
                        value("Irql"),
                        value("CombinedApcDisable") as i16,
                        (value("CombinedApcDisable") >> 16) as i16
                    ),
                    0x200 => format!("Thread {:016x}", value("Thread")),
                    _ => format!("IRP {:016x}, watched until tick {:#x}", value("Irp"), value("DueTickCount")),
                };
                assert_eq!(lines.next().unwrap(), line);
                machine.frame_lines(&mut lines, 0, &record.frames);
            }
        }
    }
    if records.is_empty() {
        assert_eq!(lines.next().unwrap(), "The log is empty.");
    }
    assert_eq!(lines.next(), None);
}

fn attach(isf: &Isf, seed: u64, options: &SeededOptions) -> (Live, Isf, Truth) {
    let directory = tempfile::tempdir().unwrap();
    let mut isf = isf.clone();
    isf.identity = kernel::seeded_identity(&isf, seed);
    kernel::write_pdb(directory.path(), &isf).unwrap();
    let (kernel, truth) = kernel::seeded(&isf, seed, options).unwrap();
    println!("{} seed {seed}", truth.build);
    (Live::attach(kernel, directory, |_| {}), isf, truth)
}

#[test]
fn every_command_says_what_is_there() {
    for (number, isf) in (0..).zip(&tables()) {
        for seed in [number, number + 100] {
            let options = SeededOptions { log_length: 0x200 << (seed % 2), ..SeededOptions::default() };
            let (mut live, isf, truth) = attach(isf, seed, &options);
            let machine = Machine::new(&isf, truth);
            settings_and_drivers(&mut live, &machine);
            pool_log(&mut live, &machine);
            other_logs(&mut live, &machine);
            live.leave();
        }
    }
}
