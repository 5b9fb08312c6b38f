//! `!verifier` on live machines of every kernel that there is a table of: each answer, as JSON and as text, against
//! what the machine says of itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use kd_fake::isf::{Isf, Type};
use kd_fake::kernel::{self, PoolKind, Record, Ring, SeededOptions, TrackedBlock, Truth, VerifierDriver};
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
const FLAGS: [(u64, &str, bool); 24] = [
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
    (0x10000, "Port/miniport interface checking", false),
    (0x40000, "Systematic low resources simulation", false),
    (0x80000, "DDI compliance checking (additional)", false),
    (0x100000, "(not documented)", false),
    (0x200000, "NDIS/WIFI verification", false),
    (0x800000, "Kernel synchronization delay fuzzing", false),
    (0x1000000, "VM switch verification", false),
    (0x2000000, "Code integrity checks", false),
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
    let known = known_flags(truth.build).copied();
    let flags: Vec<Value> = known
        .chain(unnamed(level, truth.build))
        .map(|(bit, name, standard)| {
            serde_json::json!({"bit": bit, "name": name, "standard": standard, "enabled": level & bit == bit})
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
    // Without allocations fewer books are there to be compared.
    let mut whole = result.clone();
    for answer in [&mut list, &mut whole] {
        answer.as_object_mut().unwrap().remove("checks");
    }
    assert_eq!(list, whole);
    let alone = live.result("!verifier");
    assert_eq!((&alone["level"], &alone["statistics"]), (&result["level"], &result["statistics"]));
    assert!(alone.get("drivers").is_none());

    // Today's layout, whatever the target is; the old one where it is asked for.
    let mut text = live.text("!verifier 3");
    assert_eq!(text, overview(machine, &result, false));
    assert_eq!(live.text("!verifier 3 -old"), overview(machine, &result, true));
    for (number, driver) in truth.verifier_drivers.iter().enumerate() {
        let one = live.result(&format!("!verifier 3 {}", driver.name));
        assert_eq!(one["drivers"], Value::from(vec![result["drivers"][number].clone()]));
        text = live.text(&format!("!verifier 3 {}", driver.name.to_uppercase().replace(".SYS", "")));
        assert!(text.contains(&driver.name));
    }
}

/// The options that a version has.
fn known_flags(build: u16) -> impl Iterator<Item = &'static (u64, &'static str, bool)> {
    let first = |bit: u64| match bit {
        0x1_0000 | 0x10_0000 | 0x200_0000 => 10240,
        0x4_0000 | 0x8_0000 | 0x20_0000 | 0x80_0000 | 0x100_0000 => 9600,
        0x2000.. => 9200,
        _ => 0,
    };
    FLAGS.iter().filter(move |(bit, ..)| build >= first(*bit))
}

/// Those that are set and that no name is known for.
fn unnamed(level: u64, build: u16) -> impl Iterator<Item = (u64, &'static str, bool)> {
    let named = known_flags(build).fold(0, |named, (bit, ..)| named | bit);
    let bits = (0..32).map(|bit| 1 << bit).filter(move |bit| level & !named & bit != 0);
    bits.map(|bit| (bit, if bit == 0x40 { "Enhanced I/O verification (automatic)" } else { "Unknown option" }, false))
}

/// kd's text of the whole, in the layout of the version; the order of a driver's allocations, which is that of the
/// kernel's pages, is that of the answer as JSON.
fn overview(machine: &Machine<'_>, result: &Value, old: bool) -> String {
    use std::fmt::Write as _;

    let (truth, level) = (&machine.truth, machine.setting("Level"));
    let indent = if old { "" } else { "  " };
    let mut text = String::new();
    if old {
        writeln!(text, "\nVerify Level {level:x} ... enabled options are:").unwrap();
        for (_, name) in FLAGS_7.iter().filter(|(bit, _)| level & bit != 0) {
            writeln!(text, "    {name}").unwrap();
        }
        let named = FLAGS_7.iter().fold(0, |named, (bit, _)| named | bit);
        for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| level & !named & bit != 0) {
            writeln!(text, "    Unknown option {bit:#x}").unwrap();
        }
        text.push('\n');
    } else {
        write!(text, "\nVerify Flags Level 0x{level:08x}\n\n  STANDARD FLAGS:\n").unwrap();
        for (bit, name, standard) in known_flags(truth.build) {
            let (bit, standard) = (*bit, *standard);
            if bit == 4 {
                text.push_str("\n  ADDITIONAL FLAGS:\n");
            }
            assert!(standard == (bit != 4 && !text.contains("ADDITIONAL")));
            let mark = if level & bit == bit { 'X' } else { ' ' };
            writeln!(text, "    [{mark}] (0x{bit:08x}) {name}").unwrap();
        }
        for (bit, name, _) in unnamed(level, truth.build) {
            writeln!(text, "    [X] (0x{bit:08x}) {name}").unwrap();
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
            match old {
                true => writeln!(text, "{title:<39}{count:#x} for {bytes:08X} bytes").unwrap(),
                false => writeln!(text, "  {title:<39}{count:#x} for {bytes:08x} bytes").unwrap(),
            }
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
            writeln!(text, "\n  nt!_VF_TARGET_DRIVER 0x{entry:016x}: {name} ({state})\n").unwrap();
            writeln!(text, "    Pool Allocation Statistics: ( NonPagedPool / PagedPool )\n").unwrap();
            for (title, nonpaged, paged) in rows {
                let (nonpaged, paged) = (counter(nonpaged), counter(paged));
                writeln!(text, "      {:<26}( 0x{nonpaged:08x} / 0x{paged:08x} )", format!("{title}:")).unwrap();
            }
            writeln!(text, "      Contiguous Memory Bytes:       0x{:08x}", counter("ContiguousMemoryBytes")).unwrap();
            let peak = counter("PeakContiguousMemoryBytes");
            writeln!(text, "      Peak Contiguous Memory Bytes:  0x{peak:08x}").unwrap();
        }
        let blocks: HashMap<u64, &TrackedBlock> =
            driver.allocations.iter().map(|block| (block.address, block)).collect();
        if !blocks.is_empty() {
            text.push_str(match old {
                true => "\nPoolAddress  SizeInBytes    Tag       CallersAddress\n",
                false => {
                    "\n    Pool Allocations:\n\n      \
                     Address             Length      Tag   Caller Address    \n      \
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

/// A kernel of the same family: its structures are laid out in another way, and its records hold longer stacks.
fn relative(isf: &Isf, seed: u64) -> Isf {
    let mut isf = isf.clone();
    // Members of the same width change places; where it is in the image, a structure's size stays.
    for ty in [
        "_MM_DRIVER_VERIFIER_DATA",
        "_VF_TARGET_VERIFIED_DRIVER_DATA",
        "_VI_TRACK_IRQL",
        "_VI_POOL_ENTRY_INUSE",
        "_VF_AVL_TREE",
        "_VF_WATCHDOG_IRP",
    ] {
        let mut widths: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (name, field) in &isf.user_types[ty].fields {
            if matches!(field.ty, Type::Base { .. } | Type::Pointer { .. }) && name != "VirtualAddress" {
                widths.entry(isf.size_of(&field.ty).unwrap()).or_default().push(name.clone());
            }
        }
        let fields = &mut isf.user_types.get_mut(ty).unwrap().fields;
        for names in widths.values() {
            let places: Vec<u64> = names.iter().map(|name| fields[name].offset).collect();
            for (at, name) in names.iter().enumerate() {
                fields.get_mut(name).unwrap().offset = places[(at + 1 + seed as usize) % places.len()];
            }
        }
    }
    // Something new in front of a member and behind all: what follows moves.
    for (ty, first, more) in [
        ("_VF_POOL_TRACE", "Size", 8),
        ("_VF_SUSPECT_DRIVER_ENTRY", "Loads", 0x18),
        ("_VF_TARGET_DRIVER", "VerifiedData", 0x10),
        ("_VF_TARGET_VERIFIED_DRIVER_DATA", "PoolPageHeaders", 0x20),
        ("_VF_AVL_TABLE", "ReservedNode", 0x40),
        ("_VI_FAULT_TRACE", "StackTrace", 0x10),
        ("_VF_KE_CRITICAL_REGION_TRACE", "Thread", 0x20),
        ("_VF_WATCHDOG_IRP", "ListEntry", 0x10),
    ] {
        let record = isf.user_types.get_mut(ty).unwrap();
        let from = record.fields[first].offset;
        for field in record.fields.values_mut().filter(|field| field.offset >= from) {
            field.offset += more;
        }
        record.size += more + 8;
    }
    for (ty, more) in [("_VF_POOL_TRACE", 17), ("_VI_FAULT_TRACE", 5), ("_VI_TRACK_IRQL", 9)] {
        let record = isf.user_types.get_mut(ty).unwrap();
        let Type::Array { count, .. } = &mut record.fields.get_mut("StackTrace").unwrap().ty else { panic!("{ty}") };
        *count += more;
        record.size += 8 * more;
    }
    // A page holds fewer, larger entries.
    for ty in ["_VI_POOL_ENTRY", "_VI_POOL_ENTRY_INUSE"] {
        isf.user_types.get_mut(ty).unwrap().size += 0x10;
    }
    isf
}

#[test]
fn others_of_the_family_have_their_own_layouts() {
    for (seed, isf) in (500..).zip(&tables()) {
        let options = SeededOptions { log_length: 0x200, operations: 1000, ..SeededOptions::default() };
        let (mut live, isf, truth) = attach(&relative(isf, seed), seed, &options);
        let machine = Machine::new(&isf, truth);
        settings_and_drivers(&mut live, &machine);
        let whole = live.result("!verifier 0x80");
        entries(&machine, &whole["entries"], machine.records(), 0);
        let record = &machine.records()[machine.records().len() / 2];
        let address = record.address + record.size / 2;
        let wanted = machine.records().iter().filter(|record| contains(record, address));
        entries(&machine, &live.result(&format!("!verifier 0x80 {address:x}"))["entries"], wanted, 0);
        other_logs(&mut live, &machine);
        live.leave();
    }
}

/// A machine to be changed: writes to variables and structures of the stopped kernel.
struct Bench {
    live: Live,
    isf: Isf,
    truth: Truth,
}

impl Bench {
    fn new(seed: u64, index: usize, options: &SeededOptions) -> Bench {
        let tables = tables();
        let (live, isf, truth) = attach(&tables[index % tables.len()], seed, options);
        Bench { live, isf, truth }
    }

    fn symbol(&self, name: &str) -> u64 {
        self.truth.kernel_base + self.isf.symbol(name).unwrap()
    }

    fn member(&self, ty: &str, path: &str) -> u64 {
        self.isf.offset(ty, path).unwrap()
    }

    fn pointer(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.live.fake.with_kernel(|kernel| kernel.read_virtual(address, &mut bytes)), 8, "{address:x}");
        u64::from_le_bytes(bytes)
    }

    /// Changes memory while the machine runs for a moment.
    fn change(&mut self, writes: &[(u64, &[u8])]) {
        self.live.text("g");
        self.live.fake.with_kernel(|kernel| {
            for (address, bytes) in writes {
                assert_eq!(kernel.write_virtual(*address, bytes), bytes.len(), "{address:x}");
            }
        });
        self.live.text(".break");
    }

    fn set(&mut self, name: &str, bytes: &[u8]) {
        let at = self.symbol(name);
        self.change(&[(at, bytes)]);
    }

    /// The lines before the answer.
    fn remarks(&mut self, line: &str) -> String {
        let (screen, failed, _) = self.live.run(line);
        assert!(!failed, "{line}: {}", screen.errors);
        screen.remarks
    }

    /// The answer, and everything that is said about it.
    fn answer(&mut self, line: &str) -> (Value, String) {
        let mut object = self.live.json(line);
        assert_eq!(object["ok"], true, "{line}: {object}");
        let said: Vec<String> = serde_json::from_value(object["warnings"].take()).unwrap();
        (object["result"].take(), said.join("\n"))
    }
}

/// What is not being watched is said first, in one line, in the order of how much it leaves open.
#[test]
fn what_is_not_being_watched_is_said_first() {
    let options = SeededOptions { log_length: 0x200, operations: 1200, ..SeededOptions::default() };
    let mut bench = Bench::new(900, 3, &options);
    // The rate is known after two looks at different times.
    assert_eq!(bench.remarks("!verifier"), "");
    let before = bench.live.fake.with_kernel(|kernel| {
        let before = kernel.interrupt_time();
        let stack: Vec<u64> = bench.truth.pool_log.as_ref().unwrap().records[0].frames.clone();
        for _ in 0..64 {
            kernel.allocate_large(u32::from_le_bytes(*b"Test"), 0x1000, PoolKind::Paged, &stack, 0).unwrap();
        }
        before
    });
    let passed = Duration::from_secs(16);
    bench.live.text("g");
    bench.live.fake.with_kernel(|kernel| kernel.advance(passed));
    bench.live.text(".break");
    let after = bench.live.fake.with_kernel(|kernel| kernel.interrupt_time());
    let said = bench.remarks("!verifier");
    // 512 slots at 64 records in the time that passed.
    let ago = u64::from(bench.truth.pool_log.as_ref().unwrap().length) * (after - before) / 64 / 10_000_000;
    let number = said.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
    assert!(said.starts_with("The pool log wrapped about ") && said.lines().count() == 1, "{said}");
    assert!(number.abs_diff(ago) <= 2, "{said} {ago}");
    // Also by the command that shows the log.
    assert!(bench.remarks("!verifier 0x80 3").contains("The pool log wrapped about "));
    assert_eq!(bench.remarks("!verifier 0x81").matches("The pool log wrapped about ").count(), 1);

    bench.set("VfPoolTracesIndex", &[0; 4]);
    assert!(bench.remarks("!verifier").starts_with("The pool log is empty: "));
    bench.set("VfPoolTraces", &[0; 8]);
    assert_eq!(bench.remarks("!verifier"), "The kernel keeps no pool log.\n");
    let none = bench.live.text("!verifier 0x80");
    assert!(none.contains("The kernel keeps no such log: neither pool tracking nor special pool is on"), "{none}");
    let level = bench.symbol("MmVerifierData") + bench.member("_MM_DRIVER_VERIFIER_DATA", "Level");
    bench.change(&[(level, &0x9b2u32.to_le_bytes())]);
    let said = bench.remarks("!verifier 3");
    assert!(said.starts_with("Pool tracking and special pool are both off: no allocation is watched ("), "{said}");
    bench.change(&[(level, &1u32.to_le_bytes())]);
    assert_eq!(bench.remarks("!verifier 3"), "The kernel keeps no pool log.\n");
    let head = bench.symbol("VfSuspectDriversList");
    bench.change(&[(head, &head.to_le_bytes())]);
    for line in ["!verifier", "!verifier 1", "!verifier 3"] {
        let said = bench.remarks(line);
        assert!(said.starts_with("No driver is verified (") && said.lines().count() == 1, "{said}");
    }
    // In JSON it is the first warning.
    assert!(bench.answer("!verifier").1.starts_with("No driver is verified"));
    bench.live.leave();
}

/// A machine without the verifier: every command says so in a line, and nothing fails.
#[test]
fn without_the_verifier_every_command_has_an_answer() {
    for index in [0, 4, 7] {
        let options = SeededOptions { verifier: false, operations: 300, ..SeededOptions::default() };
        let mut bench = Bench::new(910, index, &options);
        assert!(bench.remarks("!verifier 3").starts_with("No driver is verified ("));
        assert_eq!(bench.live.result("!verifier 3")["drivers"].as_array().unwrap().len(), 0);
        for line in ["4", "8", "20", "40", "100", "200", "800"] {
            let result = bench.live.result(&format!("!verifier {line}"));
            assert!(result["unavailable"].as_str().is_some_and(|why| why.lines().count() == 1), "{line}: {result}");
        }
        assert_eq!(bench.live.result("!verifier 400")["entries"].as_array().unwrap().len(), 0);
        assert!(bench.live.result("!verifier 80")["unavailable"].is_string());
        bench.live.leave();
    }
}

/// Lists and trees that lead nowhere, come back or are not there: said, and the rest is shown.
#[test]
fn damaged_lists_and_trees_are_reported_and_the_rest_is_shown() {
    let options = SeededOptions { log_length: 0x200, operations: 1500, ..SeededOptions::default() };
    for index in [0, 2, 6, 7] {
        let mut bench = Bench::new(920, index, &options);
        let whole = bench.live.result("!verifier 3");
        let drivers = whole["drivers"].as_array().unwrap().clone();
        let names: Vec<&str> = drivers.iter().map(|driver| driver["name"].as_str().unwrap()).collect();
        assert!(names.len() > 4, "{names:?}");
        let head = bench.symbol("VfSuspectDriversList");
        let links: Vec<u64> = std::iter::successors(Some(bench.pointer(head)), |link| {
            Some(bench.pointer(*link)).filter(|next| *next != head)
        })
        .collect();
        assert_eq!(links.len(), names.len());

        // In the middle the list comes back to its start: what is behind is found from the other end.
        let middle = links[2];
        bench.change(&[(middle, &links[0].to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("nt!VfSuspectDriversList: the list comes back to"), "{said}");
        assert_eq!(result["drivers"], whole["drivers"], "the other end");
        // It leads to user memory, or into nothing.
        for stray in [0x7ff6_1234_5678u64, 0x1234_5678_9abc_def0, 0xffff_f6ff_ffff_f000] {
            bench.change(&[(middle, &stray.to_le_bytes())]);
            let (result, said) = bench.answer("!verifier 3");
            assert!(said.contains("nt!VfSuspectDriversList: "), "{said}");
            assert_eq!(result["drivers"], whole["drivers"]);
        }
        bench.change(&[(middle, &links[3].to_le_bytes())]);
        assert_eq!(bench.answer("!verifier 3").0, whole);

        // The page of one driver's entry is paged out: the others are there; what it has allocated as well.
        let loaded = drivers.iter().position(|driver| !driver["allocations"].as_array().unwrap().is_empty()).unwrap();
        let (before, after) = (if loaded == 0 { head } else { links[loaded - 1] }, 0xffff_f6ff_0000_0000u64);
        let target = hex(&drivers[loaded]["entry"]) + bench.member("_VF_TARGET_DRIVER", "VerifiedData");
        let suspect = bench.pointer(target) + bench.member("_VF_TARGET_VERIFIED_DRIVER_DATA", "SuspectDriverEntry");
        let right = [bench.pointer(before), bench.pointer(suspect)];
        bench.change(&[(before, &after.to_le_bytes()), (suspect, &after.to_le_bytes())]);
        let next = if loaded + 1 == links.len() { head } else { links[loaded + 1] };
        let back = bench.pointer(next + 8);
        bench.change(&[(next + 8, &after.to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("the rest of the list is missing: cannot read"), "{said}");
        let found = result["drivers"].as_array().unwrap();
        assert_eq!(found.len(), drivers.len(), "{said}");
        for (number, driver) in drivers.iter().enumerate() {
            match number == loaded {
                false => assert!(found.contains(driver), "{driver}"),
                true => {
                    let nameless = found.iter().find(|found| found["entry"] == driver["entry"]).unwrap();
                    assert_eq!(nameless["allocations"], driver["allocations"]);
                    assert_eq!(nameless["counters"], driver["counters"]);
                }
            }
        }
        bench.change(&[
            (before, &right[0].to_le_bytes()),
            (suspect, &right[1].to_le_bytes()),
            (next + 8, &back.to_le_bytes()),
        ]);
        assert_eq!(bench.answer("!verifier 3").0, whole);

        // A tree whose nodes lead to each other, and to no kernel address.
        let node = hex(&drivers[loaded]["entry"]) - bench.isf.size("_RTL_BALANCED_LINKS").unwrap();
        let left = node + bench.member("_RTL_BALANCED_LINKS", "LeftChild");
        let right = node + bench.member("_RTL_BALANCED_LINKS", "RightChild");
        let children = [bench.pointer(left), bench.pointer(right)];
        bench.change(&[(left, &node.to_le_bytes()), (right, &0xdead_beefu64.to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("nt!ViTargetDriversAvl: a tree leads to "), "{said}");
        assert_eq!(result["drivers"][loaded], drivers[loaded]);
        bench.change(&[(left, &children[0].to_le_bytes()), (right, &children[1].to_le_bytes())]);

        // Tracking pages that come back to the first one: everything before is shown once.
        let data = bench.pointer(target);
        let pages = data + bench.member("_VF_TARGET_VERIFIED_DRIVER_DATA", "PoolPageHeaders");
        let first = bench.pointer(pages + 8) & !0xf;
        let last =
            std::iter::successors(Some(first), |page| Some(bench.pointer(*page)).filter(|next| *next != 0)).last();
        bench.change(&[(last.unwrap(), &first.to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("comes back to"), "{said}");
        assert_eq!(result["drivers"], whole["drivers"]);
        // A page that is another driver's, and a page that is not there.
        bench.change(&[(last.unwrap(), &0u64.to_le_bytes()), (first + 8, &0u64.to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("is not one of this driver's"), "{said}");
        assert_eq!(result["drivers"][loaded]["allocations"].as_array().unwrap().len(), 0);
        assert_eq!(result["drivers"][loaded]["counters"], drivers[loaded]["counters"]);
        bench.change(&[(first + 8, &data.to_le_bytes()), (pages + 8, &0xffff_f6ff_0000_0001u64.to_le_bytes())]);
        assert!(bench.answer("!verifier 3").1.contains(&format!("tracking pages of {}", names[loaded])));
        // The driver's data itself is not there.
        bench.change(&[(pages + 8, &(first | 1).to_le_bytes()), (target, &0x1000u64.to_le_bytes())]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("its data would lie at 0000000000001000"), "{said}");
        assert_eq!(result["drivers"].as_array().unwrap().len(), drivers.len());
        bench.change(&[(target, &data.to_le_bytes())]);

        // The forest of trees: so many trees there are not.
        let trees = bench.symbol("ViTargetDriversAvl") + bench.member("_VF_AVL_TREE", "TablesNo");
        let count = bench.pointer(trees);
        bench.change(&[(trees, &u64::MAX.to_le_bytes()[..4])]);
        let (result, said) = bench.answer("!verifier 3");
        assert!(said.contains("the loaded drivers' counters are missing"), "{said}");
        assert_eq!(result["drivers"].as_array().unwrap().len(), drivers.len());
        bench.change(&[(trees, &count.to_le_bytes())]);
        assert_eq!(bench.answer("!verifier 3").0, whole);
        bench.live.leave();
    }
}

/// Logs whose variables are wrong, records that are damaged.
#[test]
fn damaged_logs_are_reported_and_the_rest_is_shown() {
    let options = SeededOptions { log_length: 0x200, operations: 1500, ..SeededOptions::default() };
    let mut bench = Bench::new(930, 5, &options);
    let log = bench.truth.pool_log.clone().unwrap();
    let table = bench.pointer(bench.symbol("VfPoolTraces"));
    let size = bench.isf.size("_VF_POOL_TRACE").unwrap();
    let slot = u64::from(log.index & (log.length - 1));
    let at = table + slot * size;
    let frames = at + bench.member("_VF_POOL_TRACE", "StackTrace");

    // Frames that are no addresses, of user memory, and of no module.
    let stack: Vec<u8> = [0x1234u64, 0x8000_1234_5678_9abc, 0xffff_f6ff_1234_0000, 0]
        .iter()
        .flat_map(|frame| frame.to_le_bytes())
        .collect();
    bench.change(&[(frames, &stack)]);
    let (result, said) = bench.answer("!verifier 0x80 2");
    assert!(said.contains("2 frames are outside kernel memory: the records that hold such are damaged."), "{said}");
    assert!(said.contains("1 frame is in no module that is loaded or was unloaded lately."), "{said}");
    let newest = result["entries"][0]["frames"].as_array().unwrap();
    assert_eq!(newest.len(), 3);
    assert!(newest.iter().all(|frame| frame["symbol"].is_null()));
    assert_eq!(result["entries"][0]["operation"], "unknown");
    assert_eq!(hex(&result["entries"][1]["address"]), log.records[1].address);
    assert!(bench.live.text("!verifier 0x80 1").contains("\n0000000000001234\n8000123456789abc\nfffff6ff12340000\n"));

    // A record of a block that has no size, or all of it.
    let bytes = at + bench.member("_VF_POOL_TRACE", "Size");
    bench.change(&[(bytes, &u64::MAX.to_le_bytes())]);
    let address = log.records[0].address;
    let (result, _) = bench.answer(&format!("!verifier 0x80 {address:x} -full"));
    assert_eq!(result["entries"][0]["size"], u64::MAX);
    let (groups, _) = bench.answer("!verifier 0x80 -group");
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["bytes"] == u64::MAX));

    // The index is beyond the ring: it counts all records ever written.
    let index = log.index.wrapping_add(1 << 31);
    bench.set("VfPoolTracesIndex", &index.to_le_bytes());
    let (result, _) = bench.answer("!verifier 0x80 3");
    assert_eq!(result["index"], index);
    assert_eq!(hex(&result["entries"][1]["address"]), log.records[1].address);

    // A length that cannot be, a table outside kernel memory: one line, and the other parts of an answer are there.
    for (name, bytes) in [
        ("VfPoolTracesLength", vec![3, 2, 0, 0]),
        ("VfPoolTracesLength", vec![0; 4]),
        ("VfPoolTracesLength", vec![0, 0, 0, 0x80]),
        ("VfPoolTraces", 0x1234_5000u64.to_le_bytes().to_vec()),
        ("VfPoolTraces", 0xffff_ffff_ffff_f000u64.to_le_bytes().to_vec()),
    ] {
        let at = bench.symbol(name);
        let right = bench.pointer(at).to_le_bytes();
        bench.change(&[(at, &bytes)]);
        let object = bench.live.json("!verifier 0x80");
        assert_eq!(object["ok"], false);
        assert!(object["error"].as_str().unwrap().contains("no log in kernel memory"), "{object}");
        let (result, said) = bench.answer("!verifier 0x83");
        assert!(said.contains("the log 0x80: nt!VfPoolTraces holds"), "{said}");
        assert_eq!(result["drivers"].as_array().unwrap().len(), bench.truth.verifier_drivers.len());
        assert_eq!(bench.live.json("!verifier 0x80")["complete"], false);
        bench.change(&[(at, &right[..bytes.len()])]);
    }
    // A log that is not in memory: a hole is said, and it is no empty log.
    bench.set("VfPoolTraces", &0xffff_f6ff_0000_0000u64.to_le_bytes());
    let (result, said) = bench.answer("!verifier 0x80");
    assert_eq!(result["entries"].as_array().unwrap().len(), 0);
    assert!(said.contains("nt!VfPoolTraces: ") && said.contains("could not be read"), "{said}");
    let (_, said) = bench.answer("!verifier 0x80 fffff6ff00000000");
    assert!(said.contains("could not be read"), "{said}");

    // The list of cancelled IRPs.
    let head = bench.symbol("VfWdIrpListHead");
    bench.change(&[(head, &0x1000u64.to_le_bytes())]);
    let (_, said) = bench.answer("!verifier 400");
    assert!(said.contains("nt!VfWdIrpListHead: the list leads to 0000000000001000"), "{said}");
    bench.live.leave();
}
