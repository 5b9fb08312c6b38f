//! The pool commands over a live link, on machines that a seed decides, against what the machine says of itself. Every
//! kernel and every block is compared in nt-pool's tests; here it is what the user sees.

mod target;

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::isf::Isf;
use kd_fake::kernel::{
    Carrier, PoolKind, Residence, SeededOptions, SmallState, Truth, seeded, seeded_identity, write_pdb,
};
use serde_json::Value;
use target::{Live, tables};

/// A machine of one kernel, attached to.
fn attach(mut isf: Isf, seed: u64) -> (Live, Truth) {
    isf.identity = seeded_identity(&isf, seed);
    let directory = tempfile::tempdir().expect("directory");
    write_pdb(directory.path(), &isf).expect("symbols");
    let (kernel, truth) = seeded(&isf, seed, &SeededOptions::default()).expect("a machine");
    (Live::attach(kernel, directory, |_| {}), truth)
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

/// The first table is the oldest; of the others every third will do.
#[test]
fn what_the_commands_say_is_what_the_machine_knows() {
    for isf in tables().into_iter().step_by(3) {
        let (mut live, truth) = attach(isf, 5);
        every_flag_of_poolused(&mut live, &truth);
        every_tag_of_poolfind(&mut live, &truth);
        the_sessions_own_pools(&mut live, &truth);
        a_search_that_is_stopped_goes_on(&mut live, "*");
        a_search_that_is_stopped_goes_on(&mut live, "Leak");
        a_command_for_each_block(&mut live, &truth);
        live.leave();
    }
}

fn every_flag_of_poolused(live: &mut Live, truth: &Truth) {
    let wide = truth.build >= 16299;
    // Two tags that print alike are two rows; a tag with and without the protected bit is one.
    let mut sums: BTreeMap<u32, [u64; 6]> = BTreeMap::new();
    for usage in &truth.tags {
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
        assert_eq!(found, wanted, "build {}, flags {flags}", truth.build);
    }
    // The verbose text has every counter of every row.
    let text = live.text("!poolused 1");
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

fn every_tag_of_poolfind(live: &mut Live, truth: &Truth) {
    let mut wanted: BTreeMap<u32, BTreeSet<Found>> = BTreeMap::new();
    let pool = |kind: PoolKind| if kind == PoolKind::Paged { "paged" } else { "nonpaged" };
    let mut out = BTreeSet::new();
    for block in truth.small.iter().filter(|block| block.state == SmallState::Live) {
        let key = block.tag & 0x7fff_ffff;
        if block.residence == Residence::PagedOut {
            out.insert(key);
            continue;
        }
        let (size, kind) = match block.carrier {
            Carrier::Special => (block.size, "special"),
            _ => (block.bytes - 16, "small"),
        };
        wanted.entry(key).or_default().insert((block.address, size, pool(block.kind), kind));
    }
    for life in &truth.large {
        let block = (life.address, life.bytes, pool(life.kind), "large");
        wanted.entry(life.tag & 0x7fff_ffff).or_default().insert(block);
    }
    let mut compare = |line: &str, wanted: BTreeSet<Found>| {
        let json = live.json(line);
        let blocks = json["result"]["blocks"].as_array().expect("blocks");
        // Sessions have a test of their own.
        let blocks: Vec<&Value> = blocks.iter().filter(|block| block["session"].is_null()).collect();
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
            compare(&format!("!poolfind 0x{key:x} -bulk"), blocks.clone());
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

/// Counters and blocks of terminal sessions; each block with its session, for others have theirs at the same addresses.
fn the_sessions_own_pools(live: &mut Live, truth: &Truth) {
    assert_eq!(truth.sessions.len(), 2);
    let wide = truth.build >= 16299;
    let mut sums: BTreeMap<u32, [u64; 6]> = BTreeMap::new();
    for usage in truth.sessions.iter().flat_map(|session| &session.tags) {
        let (n, p) = (usage.nonpaged, usage.paged);
        let sum = sums.entry(usage.tag & 0x7fff_ffff).or_default();
        for (sum, value) in sum.iter_mut().zip([n.allocs, n.frees, n.bytes, p.allocs, p.frees, p.bytes]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut wanted: Vec<(String, [u64; 6])> = sums.into_iter().map(|(key, sum)| (tag(key), sum)).collect();
    let json = live.json("!poolused 8");
    assert_eq!(json["complete"], true, "{}", json["notes"]);
    let ids: Vec<u32> = truth.sessions.iter().map(|session| session.id).collect();
    assert_eq!(json["result"]["sessions"], serde_json::json!(ids));
    let of =
        |row: &Value, pool: &str| ["allocs", "frees", "bytes"].map(|name| row[pool][name].as_u64().expect("a number"));
    let rows = json["result"]["tags"].as_array().expect("rows").iter();
    let mut found: Vec<(String, [u64; 6])> = rows
        .map(|row| {
            let ([a, b, c], [d, e, f]) = (of(row, "nonpaged"), of(row, "paged"));
            (row["tag"].as_str().expect("a tag").to_owned(), [a, b, c, d, e, f])
        })
        .collect();
    // Each session's counters wrap by themselves; their sums are wider.
    let narrow = |rows: &mut Vec<(String, [u64; 6])>| {
        let counters = if wide { u64::MAX } else { 0xffff_ffff };
        rows.iter_mut().for_each(|(_, row)| [0, 1, 3, 4].iter().for_each(|index| row[*index] &= counters));
        rows.sort();
    };
    narrow(&mut found);
    narrow(&mut wanted);
    assert_eq!(found, wanted, "build {}", truth.build);

    // Session, address, size, tag, kind.
    let mut wanted: BTreeSet<(u32, u64, u64, String, &str)> = BTreeSet::new();
    for session in &truth.sessions {
        let live = session.small.iter().filter(|block| block.state == SmallState::Live);
        for block in live.filter(|block| block.residence != Residence::PagedOut) {
            let (size, kind) = match block.carrier {
                Carrier::Special => (block.size, "special"),
                _ => (block.bytes - 16, "small"),
            };
            wanted.insert((session.id, block.address, size, tag(block.tag), kind));
        }
        let large = session.large.iter().filter(|block| !block.freed);
        wanted.extend(large.map(|block| (session.id, block.address, block.bytes, tag(block.tag), "large")));
    }
    // What has the same address in both sessions is two blocks.
    let addresses: BTreeSet<u64> = wanted.iter().map(|block| block.1).collect();
    assert!(addresses.len() < wanted.len());
    let of_tag = |wanted: &BTreeSet<(u32, u64, u64, String, &'static str)>, name: &str| {
        wanted.iter().filter(|block| name == "*" || block.3 == name).cloned().collect::<BTreeSet<_>>()
    };
    for (name, options) in [("*", "-session"), ("Leak", "4"), ("Gh05", "-session")] {
        let json = live.json(&format!("!poolfind {name} {options}"));
        let blocks = json["result"]["blocks"].as_array().expect("blocks").iter();
        let mut found = BTreeSet::new();
        for block in blocks.filter(|block| !block["session"].is_null()) {
            assert_eq!((&block["pool"], &block["state"]), (&"session".into(), &"allocated".into()));
            let kind = ["small", "special", "large"].into_iter().find(|kind| block["kind"] == *kind).expect("a kind");
            let id = block["session"].as_u64().expect("a number") as u32;
            let name = block["tag"].as_str().expect("a tag").to_owned();
            assert!(found.insert((id, number(&block["address"]), number(&block["size"]), name, kind)));
        }
        assert_eq!(found, of_tag(&wanted, name), "build {}, {name} {options}", truth.build);
    }
    let text = live.text("!poolfind Leak -session -small");
    let lists = text.lines().filter(|line| line.contains("session pool of session")).count();
    assert_eq!(lists, 2, "{text}");
}

/// A search in pieces finds what one that is not stopped does.
fn a_search_that_is_stopped_goes_on(live: &mut Live, tag: &str) {
    let blocks = |json: &Value| -> Vec<Value> {
        let blocks = json["result"]["blocks"].as_array().expect("blocks");
        blocks.iter().filter(|block| block["kind"] != "large").cloned().collect()
    };
    let all = live.json(&format!("!poolfind {tag} -small -global"));
    assert!(all["result"]["estimate"]["bytes"].as_u64() > Some(0), "{all}");
    let mut pieces = Vec::new();
    // A budget that no time is left of reads the least there is.
    let mut json = live.json(&format!("!poolfind {tag} -small -global -budget 1ms"));
    while json["result"]["stopped"].is_string() {
        assert_eq!(json["complete"], false);
        pieces.extend(blocks(&json));
        let stopped = number(&json["result"]["stopped"]);
        json = live.json("!poolfind -resume");
        assert!(json["result"]["stopped"].is_null() || number(&json["result"]["stopped"]) > stopped);
    }
    pieces.extend(blocks(&json));
    assert_eq!(pieces, blocks(&all));
    assert!(live.run("!poolfind -resume").0.errors.contains("no search was stopped"));
}

/// `-x` runs its command with the block's address; `-process` leaves those that somebody pays for.
fn a_command_for_each_block(live: &mut Live, truth: &Truth) {
    let text = live.text("!poolfind -x \"? @$extret\" Irp -small -nonpaged");
    let rows = text.lines().filter(|line| line.contains("Irp ") && !line.contains("for ")).count();
    let values = text.lines().filter(|line| line.starts_with("Evaluate expression: ")).count();
    assert!(rows > 0 && rows == values, "{rows} rows, {values} values: {text}");

    let wanted: BTreeSet<(u64, u64)> = truth
        .small
        .iter()
        .chain(truth.sessions.iter().flat_map(|session| &session.small))
        .filter(|block| block.state == SmallState::Live && block.residence != Residence::PagedOut)
        .filter_map(|block| Some((block.address, block.process?)))
        .collect();
    let json = live.json("!poolfind * -small -process");
    let blocks = json["result"]["blocks"].as_array().expect("blocks");
    let found = blocks.iter().map(|block| (number(&block["address"]), number(&block["process"]))).collect();
    assert_eq!(wanted, found);
}
