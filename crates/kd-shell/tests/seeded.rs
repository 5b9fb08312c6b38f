//! The pool commands over a live link, on machines that a seed decides, against what the machine says of itself. Every
//! kernel and every block is compared in nt-pool's tests; here it is what the user sees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kd_fake::isf::Isf;
use kd_fake::kernel::{Residence, SeededOptions, SmallState, Truth, seeded, seeded_identity, write_pdb};
use kd_fake::{FakeHandle, FakeOptions, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Interrupt, Leave, Target};
use kd_wire::session::{HostSession, SerialConfig};
use serde_json::Value;
use tokio::runtime::Runtime;

struct Live {
    shell: Shell,
    truth: Truth,
    fake: FakeHandle,
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

#[derive(Default)]
struct Screen(String);

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.0.push_str(line);
    }
}

impl Live {
    fn attach(table: &PathBuf, seed: u64) -> Self {
        let mut isf = Isf::from_xz(&std::fs::read(table).expect("a table")).expect("a table");
        isf.identity = seeded_identity(&isf, seed);
        let directory = tempfile::tempdir().expect("directory");
        write_pdb(directory.path(), &isf).expect("symbols");
        let (kernel, truth) = seeded(&isf, seed, &SeededOptions::default()).expect("a machine");
        let runtime = Runtime::new().expect("runtime");
        let transport = FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0)));
        let fake = runtime.block_on(kd_fake::spawn(FakeOptions::new(transport, kernel))).expect("fake target");
        let address = fake.address().expect("TCP");
        let spec = KdSpec::parse(&format!("com:ipport={},port={}", address.port(), address.ip())).expect("-k");
        let link = runtime.block_on(kd_link::open(&spec)).expect("link");
        let interrupt = Interrupt::default();
        let wire = HostSession::serial(SerialConfig::default());
        let (running, _) = kd_target::attach(runtime.handle(), link, wire, true, interrupt.clone());
        let source = PathSource::new(&directory.path().display().to_string()).expect("path");
        let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
        let mut shell = Shell::new(session, Format::Json, interrupt);
        shell.set_target(Target::Running(running));
        assert!(shell.wait(Some(Duration::from_secs(30)), &mut Screen::default()).expect("stop"));
        Live { shell, truth, fake, runtime, _directory: directory }
    }

    fn run(&mut self, line: &str) -> String {
        let mut screen = Screen::default();
        self.shell.execute(line, &mut screen);
        screen.0
    }

    fn json(&mut self, line: &str) -> Value {
        let text = self.run(line);
        let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(json["ok"], true, "{text}");
        json
    }

    fn leave(mut self) {
        self.shell.take_target().expect("target").leave(Leave::Running);
        drop(self.fake);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Kernels of three generations, as far as their tables are there.
fn tables() -> Vec<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| here.join("../../../shared"), PathBuf::from);
    let name = |name: &str| shared.join("isf").join(format!("{name}-1.json.xz"));
    let mut tables = vec![here.join("../kd-fake/data/339E74133576439CBCDF7E0229DA3773-1.json.xz")];
    let others = [name("74A8630BA8B84B1B972E72CF98536F2C"), name("C224C641D4E1FDFA0EEA8DB742B93EF8")];
    tables.extend(others.into_iter().filter(|path| path.exists()));
    if tables.len() == 1 {
        println!("skipped for all but Windows 7: {} is not there", shared.display());
    }
    tables
}

fn tag(key: u32) -> String {
    let bytes = (key & 0x7fff_ffff).to_le_bytes();
    bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect()
}

fn number(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hexadecimal"),
        None => value.as_u64().expect("a number"),
    }
}

#[test]
fn what_the_commands_say_is_what_the_machine_knows() {
    for table in tables() {
        let mut live = Live::attach(&table, 5);
        every_flag_of_poolused(&mut live);
        every_tag_of_poolfind(&mut live);
        live.leave();
    }
}

fn every_flag_of_poolused(live: &mut Live) {
    let wide = live.truth.build >= 16299;
    // Two tags that print alike are two rows; a tag with and without the protected bit is one.
    let mut sums: BTreeMap<u32, [u64; 6]> = BTreeMap::new();
    for usage in &live.truth.tags {
        let (n, p) = (usage.nonpaged, usage.paged);
        let sum = sums.entry(usage.tag & 0x7fff_ffff).or_default();
        for (index, value) in [n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes].into_iter().enumerate() {
            sum[index] = sum[index].wrapping_add(value) & if wide || index % 3 == 2 { u64::MAX } else { 0xffff_ffff };
        }
    }
    let mut wanted: Vec<(String, [u64; 6])> = sums.iter().map(|(key, sum)| (tag(*key), *sum)).collect();
    wanted.sort();
    for flags in [0, 1, 2, 3, 4, 5] {
        let json = live.json(&format!("!poolused {flags}"));
        assert_eq!(json["complete"], true);
        let rows = json["result"]["tags"].as_array().expect("rows");
        let mut found: Vec<(String, [u64; 6])> = rows
            .iter()
            .map(|row| {
                let of = |pool: &str, name: &str| row[pool][name].as_u64().expect("a number");
                let (n, p) = ("nonpaged", "paged");
                let values =
                    [of(n, "allocs"), of(n, "frees"), of(n, "bytes"), of(p, "allocs"), of(p, "frees"), of(p, "bytes")];
                (row["tag"].as_str().expect("a tag").to_owned(), values)
            })
            .collect();
        let order = |pool: &str| rows.iter().map(|row| row[pool]["bytes"].as_u64()).collect::<Vec<_>>();
        match flags & 6 {
            2 => assert!(order("nonpaged").is_sorted_by(|a, b| a >= b)),
            4 => assert!(order("paged").is_sorted_by(|a, b| a >= b)),
            _ => {}
        }
        found.sort();
        assert_eq!(found, wanted, "build {}, flags {flags}", live.truth.build);
    }
    // The verbose text has every counter of every row.
    live.shell.format = Format::Kd;
    let text = live.run("!poolused 1");
    live.shell.format = Format::Json;
    let mut rows: Vec<(String, [u64; 6])> = Vec::new();
    for line in text.lines().filter(|line| line.len() > 100 && !line.contains("Allocs")) {
        if line.starts_with("TOTAL") {
            break;
        }
        let numbers: Vec<&str> = line[5..].split_whitespace().take(8).collect();
        let value = |index: usize| numbers[index].parse().expect("a number");
        rows.push((line[1..5].to_owned(), [value(0), value(1), value(3), value(4), value(5), value(7)]));
    }
    rows.sort();
    assert_eq!(rows, wanted, "{text}");
}

/// Address, size, pool and kind of a block.
type Found = (u64, u64, &'static str, &'static str);

fn every_tag_of_poolfind(live: &mut Live) {
    let mut wanted: BTreeMap<u32, BTreeSet<Found>> = BTreeMap::new();
    let pool =
        |kind: kd_fake::kernel::PoolKind| if kind == kd_fake::kernel::PoolKind::Paged { "paged" } else { "nonpaged" };
    let mut out = BTreeSet::new();
    for block in live.truth.small.iter().filter(|block| block.state == SmallState::Live) {
        let key = block.tag & 0x7fff_ffff;
        if block.residence == Residence::PagedOut {
            out.insert(key);
            continue;
        }
        let (size, kind) = match block.carrier {
            kd_fake::kernel::Carrier::Special => (block.size, "special"),
            _ => (block.bytes - 16, "small"),
        };
        wanted.entry(key).or_default().insert((block.address, size, pool(block.kind), kind));
    }
    for life in &live.truth.large {
        let block = (life.address, life.bytes, pool(life.kind), "large");
        wanted.entry(life.tag & 0x7fff_ffff).or_default().insert(block);
    }
    let mut compare = |line: &str, wanted: BTreeSet<Found>| {
        let json = live.json(line);
        let blocks = json["result"]["blocks"].as_array().expect("blocks");
        let found: BTreeSet<Found> = blocks
            .iter()
            .map(|block| {
                assert_eq!(block["state"], "allocated");
                let word = |name: &str| {
                    let words = ["nonpaged", "paged", "session", "large", "small", "special"];
                    words.into_iter().find(|word| block[name] == *word).expect("a known word")
                };
                (number(&block["address"]), number(&block["size"]), word("pool"), word("kind"))
            })
            .collect();
        assert_eq!(found.len(), blocks.len(), "{line}: blocks twice");
        assert_eq!(found, wanted, "{line}");
    };
    // Special pool has tags of its own, of which a few will do.
    let mut special = 0;
    for (key, blocks) in &wanted {
        let alone = blocks.iter().all(|block| block.3 == "special");
        special += usize::from(alone);
        if !alone || special < 4 {
            compare(&format!("!poolfind 0x{key:x}"), blocks.clone());
        }
    }
    let all: BTreeSet<_> = wanted.values().flatten().copied().collect();
    compare("!poolfind *", all.clone());
    let of = |keep: &dyn Fn(&Found) -> bool| all.iter().filter(|block| keep(block)).copied().collect();
    compare("!poolfind * 0", of(&|block| block.2 == "nonpaged" && block.3 != "special"));
    compare("!poolfind * -paged", of(&|block| block.2 == "paged" && block.3 != "special"));
    compare("!poolfind * 2", of(&|block| block.3 == "special"));
    compare("!poolfind * -large", of(&|block| block.3 == "large"));
}
