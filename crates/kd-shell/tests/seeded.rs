//! The pool commands over a live link, on machines that a seed decides, against what the machine says of itself. Every
//! kernel and every block is compared in nt-pool's tests; here it is what the user sees.

mod target;

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::isf::Isf;
use kd_fake::kernel::{
    Carrier, LookasidePlace, PoolKind, Residence, SeededOptions, SmallState, Truth, seeded, seeded_identity, write_pdb,
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

/// Every book that an answer has balances on a machine that is as it should be. Most tags' counters here are as large as
/// they come, and have no blocks.
fn balanced(live: &mut Live, line: &str) -> Value {
    let answer = live.json(line);
    let checks = answer["result"]["checks"].as_array().expect("books");
    let odd: Vec<&Value> = checks.iter().filter(|check| check["ok"] != true && check["name"] != "tag-rows").collect();
    assert!(odd.is_empty(), "{line}: {odd:?}");
    assert!(!answer["warnings"].to_string().contains("do not balance: "), "{line}: {}", answer["warnings"]);
    answer["result"].clone()
}

/// Each command that has books has some of this machine.
fn every_book(live: &mut Live, truth: &Truth) {
    let block = truth.small.iter().find(|block| {
        (block.state, block.residence) == (SmallState::Live, Residence::Present) && block.carrier != Carrier::Special
    });
    let address = block.expect("a small block").address;
    let lines = ["!poolused", "!pooltop", "!pooltop -small -limit 1000", "!verifier 3", "!verifier 80", "!lookaside"];
    let lines = lines.map(String::from).into_iter();
    for line in lines.chain([format!("!pool {address:x}"), format!("!poolval {address:x}"), "!pplookaside".into()]) {
        let result = balanced(live, &line);
        assert!(!result["checks"].as_array().expect("books").is_empty(), "{line}: {result}");
    }
}

/// The first table is the oldest; of the others every third will do.
#[test]
fn what_the_commands_say_is_what_the_machine_knows() {
    for isf in tables().into_iter().step_by(3) {
        let (mut live, truth) = attach(isf, 5);
        every_book(&mut live, &truth);
        every_flag_of_poolused(&mut live, &truth);
        every_tag_of_poolfind(&mut live, &truth);
        the_sessions_own_pools(&mut live, &truth);
        a_search_that_is_stopped_goes_on(&mut live, "*");
        a_search_that_is_stopped_goes_on(&mut live, "Leak");
        a_command_for_each_block(&mut live, &truth);
        every_flag_of_pool(&mut live, &truth);
        every_lookaside_list(&mut live, &truth);
        the_pool_on_one_screen(&mut live, &truth);
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
    // What was read in this stop costs nothing, and is not stopped by a budget.
    live.text("g");
    live.text(".break");
    let mut pieces = Vec::new();
    // A budget that no time is left of reads the least there is.
    let mut json = live.json(&format!("!poolfind {tag} -small -global -budget 1ms"));
    let first = json["result"]["estimate"]["bytes"].as_u64().expect("an estimate");
    assert!(first > 0, "{json}");
    while json["result"]["stopped"].is_string() {
        assert_eq!(json["complete"], false);
        pieces.extend(blocks(&json));
        let stopped = number(&json["result"]["stopped"]);
        json = live.json("!poolfind -resume");
        assert!(json["result"]["stopped"].is_null() || number(&json["result"]["stopped"]) > stopped);
    }
    pieces.extend(blocks(&json));
    let all = live.json(&format!("!poolfind {tag} -small -global"));
    // Nothing is read twice. What is estimated yet is what only the walk knows: pages of VS subsegments that are not
    // committed.
    let estimate = all["result"]["estimate"]["bytes"].as_u64().expect("an estimate");
    assert!(estimate < first, "{estimate} of {first}");
    assert!(all["cost"]["bytes_read"].as_u64() < Some(0x100), "{}", all["cost"]);
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

/// Small, large and special blocks: contents (1), only the block (2), no descriptions (0x80000000).
fn every_flag_of_pool(live: &mut Live, truth: &Truth) {
    let present = |carrier: &dyn Fn(Carrier) -> bool| {
        let mut blocks = truth.small.iter();
        let found = blocks.find(|block| {
            block.state == SmallState::Live && block.residence == Residence::Present && carrier(block.carrier)
        });
        found.map(|block| block.address)
    };
    let small = present(&|carrier| carrier != Carrier::Special).expect("a small block");
    let special = present(&|carrier| carrier == Carrier::Special);
    for address in [Some(small), special, Some(truth.large[0].address)].into_iter().flatten() {
        let mut bytes = Vec::new();
        for line in live.text(&format!("db {address:x} L20")).lines() {
            let values = line[19..66].split([' ', '-']);
            bytes.extend(values.filter_map(|byte| u8::from_str_radix(byte, 16).ok()));
        }
        let dwords: Vec<u32> = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let plain = live.text(&format!("!pool {address:x}"));
        assert!(plain.starts_with(&format!("Pool page {address:016x} region is ")), "{plain}");
        assert_eq!(plain.lines().filter(|line| line.starts_with('*')).count(), 1, "{plain}");
        assert!(plain.contains("\n\t\tPooltag ") || plain.contains("\n\t\tOwning component : Unknown"), "{plain}");
        let only = live.text(&format!("!pool {address:x} 2"));
        assert_eq!(only.lines().count(), 3, "{only}");
        assert!(only.lines().all(|line| plain.contains(line)), "{only}");
        let contents = live.text(&format!("!pool {address:x} 3"));
        let hex = |dwords: &[u32]| dwords.iter().map(|dword| format!(" {dword:08x}")).collect::<String>();
        let first = format!("\n {address:016x} {}", hex(dwords.get(..4).unwrap_or_default()));
        assert!(contents.starts_with(&only), "{contents} does not start with {only}");
        assert!(contents.contains(&first) && contents.ends_with("\n\n"), "{first} is not in {contents}");
        if dwords.len() == 8 {
            let second = format!("\n    {:016x} {}\n", address + 16, hex(&dwords[4..]));
            assert!(contents.contains(&second), "{second} is not in {contents}");
        }
        let bare = live.text(&format!("!pool {address:x} 80000002"));
        assert_eq!(bare.lines().collect::<Vec<_>>(), only.lines().skip(1).take(1).collect::<Vec<_>>());
        let all = live.result(&format!("!pool {address:x} 1"));
        let blocks = all["blocks"].as_array().expect("blocks");
        let block = blocks.iter().find(|block| block["contains"] == true).expect("the block");
        assert_eq!(block["contents"][0], dwords[0]);
    }
}

fn every_lookaside_list(live: &mut Live, truth: &Truth) {
    let registered = truth.lookasides.iter().filter(|list| list.place == LookasidePlace::Registered).count();
    assert_eq!(live.result("!lookaside")["lookasides"].as_array().expect("lists").len(), registered);
    let all = live.result("!lookaside -all");
    let all: BTreeMap<u64, &Value> =
        all["lookasides"].as_array().expect("lists").iter().map(|list| (number(&list["address"]), list)).collect();
    assert_eq!(all.len(), truth.lookasides.len());
    for list in &truth.lookasides {
        let found = all[&list.address];
        let wanted = [
            ("size", list.size),
            ("current_depth", list.current_depth),
            ("max_depth", list.depth),
            ("total_allocates", list.total_allocates),
            ("allocate_misses", list.allocate_misses),
            ("total_frees", list.total_frees),
            ("free_misses", list.free_misses),
        ];
        for (name, value) in wanted {
            assert_eq!(found[name], value, "{name} of {list:?}");
        }
        let place = (&found["processor"], &found["member"], &found["index"], &found["shared"]);
        match list.place {
            LookasidePlace::Registered => assert_eq!(place.0, &Value::Null),
            LookasidePlace::Pool { processor, member, index } => {
                assert_eq!(place, (&processor.into(), &member.into(), &index.into(), &false.into()));
            }
            LookasidePlace::System { processor, index, shared } => {
                assert_eq!(place, (&processor.into(), &"PPLookasideList".into(), &index.into(), &shared.into()));
            }
        }
    }
    // What was never used is counted, not shown.
    let text = live.text("!pplookaside 0");
    assert!(text.contains("of processor 0\" @ 0x") && text.contains("never used"), "{text}");
    assert!(live.run("!pplookaside 40").1);

    let list = &truth.lookasides[0];
    assert!(live.run(&format!("!lookaside {:x} 1", list.address)).0.errors.contains("allow_write"));
    live.text(".allow_write on");
    let changed = live.result(&format!("!lookaside {:x} 2 55", list.address));
    assert_eq!(changed["lookasides"][0]["max_depth"], 0x55);
    let changed = live.result(&format!("!lookaside {:x} 1", list.address));
    let counters = ["total_allocates", "allocate_misses", "total_frees", "free_misses"];
    assert!(counters.iter().all(|name| changed["lookasides"][0][name] == 0), "{changed}");
    assert_eq!(changed["lookasides"][0]["size"], list.size);
    live.text(".allow_write off");
    for wrong in ["-al", "0 1", "0 2 5", "fffff80000000000 2", "fffff80000000000 3", "fffff80000000000 1 2"] {
        let (screen, failed, _) = live.run(&format!("!lookaside {wrong}"));
        assert!(failed && screen.errors.contains("usage: !lookaside"), "{wrong}: {}", screen.errors);
    }
}

fn the_pool_on_one_screen(live: &mut Live, truth: &Truth) {
    let top = live.result("!pooltop 5 -small -limit 1000");
    for (name, paged) in [("nonpaged", false), ("paged", true)] {
        let large = truth.large.iter().filter(|life| (life.kind == PoolKind::Paged) == paged);
        let slack: u64 = large.clone().map(|life| life.bytes.next_multiple_of(0x1000) - life.bytes).sum();
        assert_eq!(top[name]["large_bytes"], large.clone().map(|life| life.bytes).sum::<u64>());
        assert_eq!((&top[name]["large_count"], &top[name]["large_slack"]), (&large.count().into(), &slack.into()));
        for (kind, carrier) in
            [("page", Carrier::Page), ("vs", Carrier::Vs), ("lfh", Carrier::Lfh), ("special", Carrier::Special)]
        {
            let of = |states: &'static [SmallState]| {
                truth.small.iter().filter(move |block| {
                    block.carrier == carrier
                        && (block.kind == PoolKind::Paged) == paged
                        && block.residence != Residence::PagedOut
                        && states.contains(&block.state)
                })
            };
            let live = of(&[SmallState::Live]);
            let bytes: u64 = live.clone().map(|block| if kind == "special" { block.size } else { block.bytes }).sum();
            // A VS chunk whose free is delayed has the list's link where its pool header was: it is no block any more.
            let kept: &'static [SmallState] = match kind {
                "vs" => &[SmallState::Lookaside],
                _ => &[SmallState::Lookaside, SmallState::Deferred],
            };
            let cached: u64 = of(kept).map(|block| block.bytes).sum();
            let mut carriers = top["small"]["carriers"].as_array().expect("carriers").iter();
            let Some(found) = carriers.find(|found| found["kind"] == kind && found["pool"] == name) else {
                assert_eq!((bytes, cached), (0, 0), "build {}: no {name} {kind}", truth.build);
                continue;
            };
            assert_eq!(found["count"], live.count(), "build {}: {name} {kind}", truth.build);
            assert_eq!(found["bytes"], bytes, "build {}: {name} {kind}", truth.build);
            assert!(
                found["cached_bytes"].as_u64().is_some_and(|found| found >= cached),
                "build {}: {cached} cached, {found}",
                truth.build
            );
            let held = found["held"].as_u64().expect("bytes");
            assert!(held % 0x1000 == 0 && (held >= bytes || kind == "special"), "{found}");
            assert_eq!(found["slack"], held.saturating_sub(bytes));
        }
    }
    assert_eq!(top["sizes"].as_array().expect("sizes").len(), 5);
    let text = live.text("!pooltop 3");
    assert!(text.lines().count() < 16 && text.contains(" Size ") && !text.contains("Small blocks"), "{text}");
    let (screen, failed, _) = live.run("!pooltop 3 -small -limit 0");
    assert!(!failed && screen.remarks.contains("Reading "), "{}", screen.remarks);
    assert!(screen.text.contains("...terminating - searched pool to "), "{}", screen.text);
}
