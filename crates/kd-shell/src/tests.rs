//! Commands on the article's machine, whose memory and PDB are kd-fake's. No wire is between: the numbers of reads are
//! the commands' own.

use std::cell::Cell;
use std::ops::Range;
use std::sync::LazyLock;

use kd_target::{Cost, Stop, TargetError, Version};
use nt_memory::{Fault, Memory, Search};
use proptest::prelude::*;
use serde_json::Value;

use crate::command::Action;
use crate::commands::{TABLE, commands};
use crate::grammar::line::{Statement, split};
use crate::output::{Output, show};
use crate::schema_check::check_record;
use crate::session::{Context, Debuggee, Format, Session};
use crate::{Driver, Drivers, Kernel, Log, PathSource, PoolTags, Symbols, banner};

mod symbols;
mod verifier;

static STORE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    kd_fake::kernel::write_symbol_store(directory.path()).unwrap();
    directory
});

/// All tests read the same machine: it takes a while to make.
static KERNEL: LazyLock<kd_fake::kernel::Kernel> = LazyLock::new(kd_fake::kernel::article);

struct Machine {
    kernel: &'static kd_fake::kernel::Kernel,
    version: Version,
    stop: Stop,
    reads: Cell<usize>,
    searches: bool,
    /// Paged out.
    hole: Range<u64>,
    zeros: Range<u64>,
}

impl Machine {
    fn new() -> Self {
        let kernel = &*KERNEL;
        let facts = kernel.facts().clone();
        let version = Version {
            major: facts.major,
            minor: facts.build,
            protocol: 6,
            flags: facts.flags,
            machine: kd_target::Machine::of(facts.machine),
            kernel_base: facts.kernel_base,
            loaded_module_list: facts.loaded_module_list,
            debugger_data_list: facts.debugger_data_list,
        };
        let stop = Stop {
            code: 0x80000003,
            first_chance: true,
            exception_address: facts.break_pc,
            parameters: vec![1],
            processor: 0,
            processors: facts.processors,
            thread: facts.thread,
            program_counter: facts.break_pc,
            instructions: vec![0xcc, 0xc3],
            asked: true,
            load: None,
            data: None,
        };
        Self { kernel, version, stop, reads: Cell::new(0), searches: true, hole: 0..0, zeros: 0..0 }
    }

    fn u64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.kernel.read_virtual(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

impl Memory for Machine {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.reads.set(self.reads.get() + 1);
        if self.hole.contains(&address) {
            return Ok(0);
        }
        let good = self.kernel.read_virtual(address, buffer);
        if self.zeros.contains(&address) {
            buffer.fill(0);
        }
        Ok(good)
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        if !self.searches {
            return Ok(Search::Unsupported);
        }
        self.reads.set(self.reads.get() + 1);
        Ok(self.kernel.search(address, length, pattern).map_or(Search::NotFound, Search::Found))
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.kernel.read_physical(address, buffer))
    }
}

impl Kernel for Machine {
    fn version(&self) -> &Version {
        &self.version
    }

    fn stop(&self) -> &Stop {
        &self.stop
    }

    fn drivers(&self) -> Result<Drivers, Fault> {
        let mut drivers = Drivers::default();
        let head = self.version.loaded_module_list;
        let mut entry = self.u64(head);
        while entry != head {
            let mut name = vec![0; self.u64(entry + 0x58) as u16 as usize];
            self.kernel.read_virtual(self.u64(entry + 0x60), &mut name);
            let name: Vec<u16> = name.chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            drivers.drivers.push(Driver {
                base: self.u64(entry + 0x30),
                size: self.u64(entry + 0x40) as u32,
                file: String::from_utf16(&name).unwrap(),
                checksum: self.u64(entry + 0x78) as u32,
                timestamp: (self.u64(entry + 0x98) >> 32) as u32,
            });
            entry = self.u64(entry);
        }
        Ok(drivers)
    }

    fn driver_path(&self, _: u64) -> Result<Option<String>, Fault> {
        Ok(None)
    }

    fn context(&self, _: u16) -> Result<Vec<u8>, TargetError> {
        Ok((0..=255).cycle().take(1232).collect())
    }

    fn memory(&self) -> &dyn Memory {
        self
    }

    /// KSPECIAL_REGISTERS as far as CR3 and CR4.
    fn read_control(&self, _: u16, _: u64, length: u32) -> Result<Vec<u8>, TargetError> {
        let mut special = vec![0; length as usize];
        special[0x10..0x18].copy_from_slice(&self.kernel.facts().cr3.to_le_bytes());
        Ok(special)
    }
}

#[derive(Default)]
struct Screen {
    text: String,
    errors: String,
    remarks: String,
}

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.errors.push_str(line);
    }

    fn remark(&mut self, line: &str) {
        self.remarks.push_str(line);
    }
}

fn session(path: &str) -> Session {
    let symbols = Symbols::new(Box::new(PathSource::new(path).unwrap()));
    Session::new(symbols, PoolTags::built_in(), Log::default())
}

fn store() -> String {
    STORE.path().display().to_string()
}

/// Runs commands that answer; returns what was shown.
fn run(session: &mut Session, debuggee: Debuggee<'_>, line: &str, format: Format) -> Screen {
    let mut screen = Screen::default();
    for statement in split(line).unwrap() {
        let Statement::Command(command) = statement else { panic!("{line} has a script") };
        let info = TABLE.find(&command.word).unwrap_or_else(|| panic!("no command {}", command.word));
        let answer = match info.action {
            Action::Answer(answer) => answer,
            _ => panic!("{} is for a live target", command.word),
        };
        let reply = answer(&mut Context {
            debuggee,
            session,
            word: &command.word,
            arguments: command.arguments,
            cost: Cost::default(),
            commands: &TABLE,
        });
        show(command.text, reply, Cost::default(), format, &mut screen);
    }
    screen
}

fn text(line: &str) -> String {
    let machine = Machine::new();
    let screen = run(&mut session(&store()), Debuggee::Halted(&machine), line, Format::Kd);
    assert_eq!(screen.errors, "", "{line}");
    screen.text
}

fn json(line: &str) -> Value {
    json_of(&mut session(&store()), line)
}

fn json_of(session: &mut Session, line: &str) -> Value {
    let machine = Machine::new();
    let screen = run(session, Debuggee::Halted(&machine), line, Format::Json);
    assert_eq!(screen.text.matches('\n').count(), 1, "{line}");
    let record = serde_json::from_str(&screen.text).unwrap();
    check_record(&record);
    record
}

fn error(line: &str) -> String {
    let machine = Machine::new();
    let screen = run(&mut session(&store()), Debuggee::Halted(&machine), line, Format::Kd);
    assert_eq!(screen.errors.lines().count(), 1, "{line}: {}", screen.errors);
    screen.errors.trim_end().into()
}

#[test]
fn the_articles_first_answer() {
    let text = text("!poolused 4");
    let expected = [
        "   Sorting by  Paged Pool Consumed",
        "",
        "  Pool Used:",
        "            NonPaged            Paged",
        " Tag    Allocs     Used    Allocs     Used",
        "Leak        0        0        23 23552000 UNKNOWN pooltag 'Leak', please update pooltag.txt",
        "CM31        0        0     20520 18514560 Internal Configuration manager allocations , Binary: nt!cm",
        "CIcr        0        0      2977  8511504 Code Integrity allocations for image integrity checking , Binary: ci.dll",
    ];
    assert_eq!(text.lines().take(expected.len()).collect::<Vec<_>>(), expected);
    let leak = json("!poolused 0 Leak");
    assert_eq!(leak["ok"], true);
    assert_eq!(leak["complete"], true);
    assert_eq!(leak["result"]["tags"].as_array().unwrap().len(), 1);
    assert_eq!(leak["result"]["tags"][0]["tag"], "Leak");
    assert_eq!(leak["result"]["tags"][0]["paged"]["diff"], 23);
    assert_eq!(leak["result"]["tags"][0]["paged"]["bytes"], 23552000);
    assert_eq!(leak["result"]["total"]["paged"]["bytes"], 23552000);
}

/// What the article prints for `!verifier 0x80 fffff8a005800000`.
pub(crate) const ARTICLES_THIRD_ANSWER: &str = "
Log of recent kernel pool Allocate and Free operations:

There are up to 0x10000 entries in the log.

Parsing 0x0000000000010000 log entries, searching for address 0xfffff8a005800000.


======================================================================
Pool block fffff8a005800000, Size 00000000000fa000, Thread fffffa8002be4060
fffff80001923cc6 nt!VeAllocatePoolWithTagPriority+0x2b6
fffff80001923d3d nt!VerifierExAllocatePoolEx+0x1d
fffff880042881f6 myfault+0x11f6
fffff8800428842f myfault+0x142f
fffff8000192e750 nt!IovCallDriver+0xa0
fffff800017a3a97 nt!IopXxxControlFile+0x607
fffff800017a42f6 nt!NtDeviceIoControlFile+0x56
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
======================================================================
Pool block fffff8a005800000, Size 0000000000001000, Thread fffffa8002187060
fffff8000192393a nt!VfFreePoolNotification+0x4a
fffff800015b6a6f nt!ExDeferredFreePool+0x107b
fffff800017273eb nt!HvFreeDirtyData+0x7f
fffff800017269bb nt!HvOptimizedSyncHive+0x53
fffff80001726303 nt!CmFlushKey+0xaf
fffff80001726b22 nt!NtFlushKey+0x142
fffff80001487ed3 nt!KiSystemServiceCopyEnd+0x13
Parsed entry 0000000000010000/0000000000010000...
Finished parsing all pool tracking information.
";

#[test]
fn the_articles_third_answer() {
    assert_eq!(text("!verifier 0x80 fffff8a005800000"), ARTICLES_THIRD_ANSWER);
    assert_eq!(text("!verifier 80 fffff8a0`05800000"), ARTICLES_THIRD_ANSWER);
    // The address of any byte of a block finds it.
    let inside = text("!verifier 0x80 fffff8a005880000");
    assert_eq!(inside.lines().filter(|line| line.starts_with("Pool block")).count(), 1, "{inside}");
    let mut machine = Machine::new();
    // Everything read, or searched by the target: the same records.
    let screen =
        run(&mut session(&store()), Debuggee::Halted(&machine), "!verifier 80 fffff8a005800000 -full", Format::Kd);
    assert_eq!(screen.text, ARTICLES_THIRD_ANSWER);
    machine.searches = false;
    let screen = run(&mut session(&store()), Debuggee::Halted(&machine), "!verifier 0x80 fffff8a005800000", Format::Kd);
    assert_eq!(screen.text, ARTICLES_THIRD_ANSWER);
    let json = json("!verifier 0x80 fffff8a005800000");
    assert_eq!(json["result"]["log_entries"], 0x10000);
    let entries = json["result"]["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["address"], "0xfffff8a005800000");
    assert_eq!(json["complete"], true);
    assert_ne!(json["result"]["searched_from"], serde_json::Value::Null);
    assert!(json["warnings"][0].as_str().unwrap().contains("-full"), "{json}");
    assert_eq!(entries[0]["size"], 0xfa000);
    assert_eq!(entries[0]["thread"], "0xfffffa8002be4060");
    assert_eq!(entries[0]["operation"], "allocate");
    assert_eq!(entries[0]["frames"][2]["address"], "0xfffff880042881f6");
    assert_eq!(entries[0]["frames"][2]["symbol"], "myfault+0x11f6");
    assert_eq!(entries[1]["operation"], "free");
}

/// The output of each `kd>` line of the article, without the blank lines that its web page put between all lines.
fn article() -> Option<Vec<(String, Vec<String>)>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let shared = std::env::var("KDPOOL_SHARED").unwrap_or(beside.into());
    let text = std::fs::read_to_string(format!("{shared}/article.md")).ok()?.replace('\u{a0}', " ");
    let mut commands = Vec::new();
    let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    while let Some(line) = lines.by_ref().find(|line| line.starts_with("kd> ")) {
        // Prose follows each output.
        let prose =
            |line: &&str| !line.starts_with("Next find") && !line.starts_with("Step") && !line.starts_with("Keep in");
        let output = lines.by_ref().take_while(prose).map(String::from).collect();
        commands.push((line["kd> ".len()..].to_string(), output));
    }
    Some(commands)
}

#[test]
fn the_articles_text_is_ours() {
    let Some(commands) = article() else { return println!("skipped: there is no shared/article.md") };
    assert_eq!(commands.len(), 3);
    // !poolfind lets a target go on while it searches; kdpool/tests/transcripts.rs has its answer.
    for (command, expected) in commands.into_iter().filter(|(command, _)| !command.starts_with("!poolfind")) {
        let ours = text(&command);
        let ours: Vec<&str> = ours.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        assert_eq!(ours[..expected.len()], expected, "{command}");
        // The article shows three rows of its table, and all of the other two answers.
        assert!(command.starts_with("!poolused") || ours.len() == expected.len(), "{command}");
    }
}

#[test]
fn quantities_and_addresses_are_told_apart() {
    let newest = json("!verifier 0x80 3");
    assert_eq!(newest["result"]["entries"].as_array().unwrap().len(), 3);
    assert!(error("!verifier 0x80 12345678`0").contains("neither a kernel address nor a quantity"));
    assert!(text("!verifier 0x80 fffff8a0ffffff00").contains("No entry of the log"));
}

#[test]
fn the_banner_and_the_stop_cost_few_reads() {
    let machine = Machine::new();
    let mut session = session(&store());
    let mut banner = banner::target(&machine, &mut session.symbols).unwrap();
    banner.push_str(&banner::stopped(&machine, &mut session.symbols, banner::Reason::Exception, true).unwrap());
    assert!(machine.reads.get() <= 10, "{} reads", machine.reads.get());
    let lines: Vec<&str> = banner.lines().collect();
    assert_eq!(lines[1], "************* Path validation summary **************");
    assert_eq!(lines[3], format!("{:<47}{}", "OK", store()));
    assert_eq!(lines[4], format!("Symbol search path is: {}", store()));
    assert_eq!(lines[5], "Executable search path is: ");
    assert!(lines[6].starts_with("Windows 7 Kernel Version 7601 "), "{}", lines[6]);
    assert!(lines.iter().any(|line| line.starts_with("Kernel base = 0xfffff800`")));
    let stop: Vec<&str> = lines.iter().skip_while(|line| !line.starts_with("Break instruction")).copied().collect();
    assert_eq!(stop[0], "Break instruction exception - code 80000003 (first chance)");
    assert_eq!(stop.len(), 1 + 14 + 2);
    assert!(stop[1..15].iter().all(|line| line.len() == 79 && line.starts_with('*') && line.ends_with('*')));
    assert_eq!(stop[15], "nt!RtlpBreakWithStatusInstruction:");
    assert!(stop[16].ends_with(" cc              int     3"));
}

#[test]
fn without_a_symbol_path_kd_shows_a_box() {
    let machine = Machine::new();
    let banner = banner::target(&machine, &mut session("").symbols).unwrap();
    assert!(banner.starts_with("Symbol search path is: *** Invalid ***\n****"));
    assert!(banner.lines().skip(1).take(5).all(|line| line.len() == 76));
    let screen = run(&mut session(""), Debuggee::Halted(&machine), "!poolused", Format::Kd);
    assert!(screen.errors.contains("no symbol path is set; -y 'srv*' on the command line"), "{}", screen.errors);
}

#[test]
fn a_path_that_does_not_exist_is_said_in_one_line() {
    assert!(error(".sympath /no/such/place").contains("/no/such/place"));
    assert!(text(&format!(".sympath \"/no/such/place;{}\"", store())).ends_with("does not exist: /no/such/place\n"));
    assert!(error("!poolused 0 TooLong").contains("four characters"));
    assert!(error("!poolused 6").contains("exclude each other"));
    let rows = |line: &str| json(line)["result"]["tags"].as_array().unwrap().clone();
    for (line, whole) in
        [("!poolused /t5 2", "!poolused 2"), ("!poolused 4 /t 5", "!poolused 4"), ("!poolused /t0n5", "!poolused")]
    {
        assert_eq!(rows(line), rows(whole)[..5], "{line}");
        assert_eq!(json(line)["result"]["total"], json(whole)["result"]["total"]);
    }
    assert!(
        error("!poolused /t 2 4 TooLong").contains("four characters")
            && error("!poolused /tx").contains("a number of rows")
    );
    assert!(error("!poolused zz").contains("the flags are a number"));
    assert!(error("!poolused 100").contains("unknown flags 0x100"));
    assert!(error("dq 0").contains("cannot read 00000000`00000000"));
    assert!(error("? nt!NoSuchSymbol").contains("Couldn't resolve error at 'nt!NoSuchSymbol'"));
    assert!(error("x nosuch!a*").contains("nosuch"));
}

#[test]
fn symbols_and_modules() {
    let machine = Machine::new();
    let mut session = session(&store());
    let mut show = |line: &str| {
        let screen = run(&mut session, Debuggee::Halted(&machine), line, Format::Kd);
        assert_eq!(screen.errors, "", "{line}");
        screen.text
    };
    let address = show("? nt!NtFlushKey+142");
    assert!(address.ends_with("= fffff800`01726b22\n"), "{address}");
    assert!(show("ln fffff800`01726b22").starts_with("(fffff800`017269e0)   nt!NtFlushKey+0x142   |  ("));
    assert!(show("ln nt!NtFlushKey").ends_with("Exact matches:\n    nt!NtFlushKey = <no type information>\n"));
    assert_eq!(show("x nt!ntflushke?"), "fffff800`017269e0 nt!NtFlushKey (<no parameter info>)\n");
    let modules = show("lm");
    assert_eq!(modules.lines().next(), Some("start             end                 module name"));
    assert!(modules.lines().any(|line| line.contains("   nt         (pdb symbols)          /")), "{modules}");
    assert!(modules.lines().any(|line| line.ends_with("   myfault    (deferred)             ")), "{modules}");
    assert_eq!(show("lm m myf*").lines().count(), 2);
    assert!(show("lmvm nt").contains("    Image name: ntoskrnl.exe\n"));
    assert!(show("dps nt!RtlpBreakWithStatusInstruction L1").starts_with("fffff800`"));
    assert!(show("db nt!RtlpBreakWithStatusInstruction L1").contains("  cc  "));
    let reloaded = show(".reload");
    assert!(reloaded.contains("Loading Kernel Symbols\n."), "{reloaded}");
    assert!(reloaded.contains("\nLoading unloaded module list\n"), "{reloaded}");
    assert!(show("vertarget").contains("Windows 7 Kernel Version 7601"));
}

#[test]
fn options_of_x_without_effect_are_told() {
    let (machine, mut session) = (Machine::new(), session(&store()));
    let idle = run(&mut session, Debuggee::Halted(&machine), "x /t /1 /z nt!NtFlushKey", Format::Kd);
    assert_eq!(idle.text, "nt!NtFlushKey\n");
    assert_eq!(idle.remarks, "/t /z changed nothing: public symbols have neither type nor size.\n");
}

#[test]
fn modules_are_listed_when_those_that_are_gone_cannot_be() {
    let (mut machine, mut session) = (Machine::new(), session(&store()));
    let variable = run(&mut session, Debuggee::Halted(&machine), "? nt!MmUnloadedDrivers", Format::Kd).text;
    let variable = variable.trim_end().rsplit(' ').next().unwrap().replace('`', "");
    let page = u64::from_str_radix(&variable, 16).unwrap() & !0xfff;
    machine.hole = page..page + 0x1000;
    let screen = run(&mut session, Debuggee::Halted(&machine), "lm", Format::Kd);
    assert!(screen.text.contains("   myfault    (deferred)             \n"), "{}", screen.text);
    assert!(screen.text.contains("WARNING: unloaded drivers: "), "{}", screen.text);
}

#[test]
fn types_and_values() {
    let shown = text("dt nt!_LIST_ENTRY");
    assert_eq!(
        shown,
        "   +0x000 Flink            : Ptr64 _LIST_ENTRY\n   +0x008 Blink            : Ptr64 _LIST_ENTRY\n"
    );
    assert!(text("dt _LIST_ENTRY").starts_with("nt!_LIST_ENTRY\n   +0x000 Flink "));
    let verbose = text("dt -v nt!_LIST_ENTRY");
    assert_eq!(verbose.lines().next().unwrap_or_default(), "struct _LIST_ENTRY, 2 elements, 0x10 bytes", "{verbose}");
    assert!(verbose.contains("Ptr64 to struct _LIST_ENTRY, 2 elements, 0x10 bytes"), "{verbose}");
    assert!(text("dt nt!_POOL_HEADER").contains("   +0x000 PreviousSize     : Pos 0, 8 Bits\n"));
    let at = text("dt nt!_LIST_ENTRY nt!PsLoadedModuleList");
    let machine = Machine::new();
    let head = machine.version.loaded_module_list;
    let first = machine.u64(head);
    assert!(
        at.starts_with(&format!("   +0x000 Flink            : 0x{} _LIST_ENTRY [ 0x", crate::text::tick(first))),
        "{at}"
    );
    // Field lists: a dot opens one, wildcards choose some.
    let opened = text("dt nt!_LIST_ENTRY Flink. nt!PsLoadedModuleList");
    assert_eq!(opened.lines().count(), 3, "{opened}");
    assert!(opened.lines().nth(1).unwrap_or_default().starts_with("      +0x000 Flink : 0x"), "{opened}");
    assert_eq!(text("dt nt!_LIST_ENTRY B*"), "   +0x008 Blink : Ptr64 _LIST_ENTRY\n");
    assert_eq!(text("dt -y nt!_LIST_ENTRY Bl"), "   +0x008 Blink : Ptr64 _LIST_ENTRY\n");
    let lists = text("dt nt!_POOL*");
    assert!(lists.lines().any(|line| line == "          ntkrnlmp!_POOL_HEADER"), "{lists}");
    assert!(text("dt nt!_POOL_TYPE").contains("   PagedPool = 0n1\n"));
    assert_eq!(error("dt nt!_FOO"), "Symbol nt!_FOO not found.");
    assert_eq!(error("dt nt!_LIST_ENTRY Nothing"), "Cannot find specified field members.");
    assert!(error("dt nt!_LIST_ENTRY 8").contains("Memory read error 00000000`00000008"));
    assert!(text("dt -r2 nt!_LIST_ENTRY").lines().count() > 6);
    assert!(text("dt nt!_UNICODE_STRING").contains("   +0x008 Buffer           : Ptr64 "));
    // What recursion would show is bounded.
    assert!(text("dt -r nt!_EPROCESS").lines().count() <= 16384 + 1);
    assert_eq!(text("?? sizeof(nt!_POOL_HEADER)"), "unsigned int64 0x10\n");
    assert_eq!(text("?? #FIELD_OFFSET(nt!_LIST_ENTRY, Blink)"), "long 0n8\n");
    assert_eq!(text("?? 12 + 1"), "int 0n13\n");
    let member = text("?? ((nt!_LIST_ENTRY*)@@masm(nt!PsLoadedModuleList))->Flink");
    assert!(member.starts_with(&format!("_LIST_ENTRY * 0x{}", crate::text::tick(first))), "{member}");
}

#[test]
fn code_memory_and_page_tables() {
    let code = text("u nt!RtlpBreakWithStatusInstruction L1");
    // Two names share this place.
    assert!(code.starts_with("nt!") && code.contains("WithStatus") && code.contains(":\nfffff800`"), "{code}");
    assert!(code.ends_with(" cc              int     3\n"), "{code}");
    let hits = text("s -b nt!RtlpBreakWithStatusInstruction L1 cc");
    assert!(hits.contains("  cc "), "{hits}");
    let all = json("s -a nt!NtBuildLab L40 7601");
    assert_eq!(all["ok"], true, "{all}");
    assert_eq!(error("s 1000"), "Numeric expression missing from ''");
    let entries = text("!pte nt!PsLoadedModuleList");
    assert!(entries.starts_with(&" ".repeat(43)), "{entries}");
    assert_eq!(entries.matches(" at FFFFF6").count(), 4, "{entries}");
    assert!(entries.lines().nth(3).unwrap_or_default().starts_with("pfn 1"), "{entries}");
    let json = json("!pte nt!PsLoadedModuleList");
    assert_eq!(json["result"]["page"], "present");
    // The physical page holds what the address does.
    let physical = json["result"]["physical"].as_str().unwrap_or_default().to_string();
    let values = |line: &str| self::json(line)["result"]["values"].clone();
    assert_eq!(values(&format!("dq /p {physical} L1")), values("dq nt!PsLoadedModuleList L1"));
    assert!(text("!pte 1000").contains("not valid"));
    assert!(text("!vm").contains("PagedPool Usage:"));
    assert!(text("r rip").starts_with("rip=fffff800"));
    assert!(error("r nosuch").starts_with("Bad register error at 'nosuch'"));
    assert_eq!(text("r $t3=5; ? @$t3 + 1"), "Evaluate expression: 6 = 00000000`00000006\n");
    assert!(error("r rax=1").contains(".allow_write on"));
    assert!(text("x /0 nt!NtFlushKey").ends_with("`017269e0\n"));
    assert_eq!(text("x /1 nt!NtFlushKey"), "nt!NtFlushKey\n");
    assert!(text("dW nt!NtBuildLab L8").contains("7.6.0.1.") || text("da nt!NtBuildLab").contains("7601"));
}

#[test]
fn every_command_answers_with_one_json_object() {
    let mut session = session(&store());
    for (line, fields) in [
        ("!poolused", &["tags", "total"][..]),
        ("!verifier 0x80 1", &["log_entries", "index", "entries"]),
        ("!verifier", &["level", "flags", "statistics"]),
        ("!verifier 3", &["drivers"]),
        ("!verifier 8", &["log", "log_entries", "entries"]),
        ("!verifier ?", &["usage", "details"]),
        ("? 1+1", &["value", "decimal"]),
        ("?? sizeof(nt!_POOL_HEADER)", &["type", "value", "text"]),
        (".formats 41", &["value", "octal", "binary", "chars", "time", "double"]),
        ("dt nt!_POOL_HEADER", &["type", "size", "address", "members"]),
        ("dt nt!_POOL_TYPE", &["type", "enumerators"]),
        ("dt nt!_POOL*", &["types"]),
        ("dt nt!_LIST_ENTRY nt!PsLoadedModuleList", &["type", "members", "address"]),
        ("r rip", &["processor", "registers"]),
        ("u nt!RtlpBreakWithStatusInstruction L2", &["instructions"]),
        ("s -b nt!RtlpBreakWithStatusInstruction L10 cc", &["hits"]),
        ("!pte nt!PsLoadedModuleList", &["address", "entries", "page", "physical"]),
        ("!vm", &["counts"]),
        (".process", &["what", "address"]),
        (".thread", &["what", "address"]),
        ("dd nt!NtFlushKey L4", &["address", "size", "values", "unreadable"]),
        ("dps nt!NtFlushKey L4", &["values", "symbols"]),
        ("da nt!NtFlushKey", &["text"]),
        ("ln nt!NtFlushKey", &["address", "before", "after", "exact"]),
        ("x nt!NtFlush*", &["symbols"]),
        ("lm", &["modules"]),
        ("vertarget", &["windows", "build", "kernel_base"]),
        ("version", &["windows", "debugger"]),
        (".time", &["time", "uptime_ms"]),
        (".stats", &["session", "last_command"]),
        (".sympath", &["path", "elements"]),
        (".reload", &["modules"]),
        (".echo a", &["text"]),
        (".help", &["commands"]),
        (".logclose", &["file"]),
    ] {
        let object = json_of(&mut session, line);
        assert_eq!(object["command"], line);
        assert_eq!(object["ok"], true, "{object}");
        assert_eq!(object["complete"], true, "{object}");
        assert_eq!(object["warnings"], Value::Array(Vec::new()));
        assert!(object.get("error").is_none());
        assert_eq!(object["cost"]["requests"], 0);
        for field in fields {
            assert!(object["result"].get(field).is_some(), "{line} has no {field}: {object}");
        }
    }
    let failed = json_of(&mut session, "!poolused 100");
    assert_eq!(failed["ok"], false);
    assert!(failed["error"].as_str().unwrap().contains("unknown flags"));
    assert_eq!(failed["result"], Value::Null);
}

#[test]
fn a_running_target_is_not_asked() {
    for line in ["!poolused", "!verifier 0x80", "dd 1000", "lm", "vertarget", "ln 1000", "x nt!a"] {
        let screen = run(&mut session(&store()), Debuggee::Running, line, Format::Kd);
        assert_eq!(screen.text, "");
        assert_eq!(screen.errors, "the target is running; break in first (Ctrl+C, or .break)\n", "{line}");
    }
    let screen = run(&mut session(&store()), Debuggee::Running, "? 1+1; .echo b", Format::Kd);
    assert_eq!(screen.text, "Evaluate expression: 2 = 00000000`00000002\nb\n");
}

/// ENTER stands for what was typed last; what the program runs by itself, as `.break` on Ctrl+C, is not that.
#[test]
fn enter_repeats_what_was_typed() {
    let mut shell = crate::Shell::new(session(&store()), Format::Kd, kd_target::Interrupt::default());
    assert_eq!(shell.typed(""), "");
    for (line, repeated) in [("lm", "lm"), ("db nt L20", "db"), ("? 1; db nt", "? 1; db nt")] {
        assert_eq!(shell.typed(line), line);
        shell.execute(line, &mut Screen::default());
        shell.execute(".break", &mut Screen::default());
        assert_eq!(shell.typed("  "), repeated);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_arguments_make_a_command_panic(arguments in "[0-9a-fLnt!*?'\"@$`() +-]{0,24}|\\PC{0,12}") {
        // The kernel's symbols are not at hand: what is tested is what people type.
        let machine = Machine::new();
        let mut session = session("");
        for info in commands() {
            let Action::Answer(answer) = info.action else { continue };
            // These write files, or look along a path.
            if info.names[0].starts_with(".log") || info.names[0].starts_with(".sym") {
                continue;
            }
            let reply = answer(&mut Context {
                debuggee: Debuggee::Halted(&machine),
                session: &mut session,
                word: info.names[0],
                arguments: arguments.trim(),
                cost: Cost::default(),
                commands: &TABLE,
            });
            let mut screen = Screen::default();
            show("", reply, Cost::default(), Format::Json, &mut screen);
            prop_assert!(serde_json::from_str::<Value>(&screen.text).is_ok());
        }
    }
}
