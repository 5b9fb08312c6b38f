//! What the strongest peer gets wrong or cannot do with pool (../shared/facts/peer-facts.md 5.3 and 5.4), one test for each
//! row that no other test holds already:
//!
//! | row | held by |
//! |---|---|
//! | 1 expansion table | here; every counter of it in `nt-pool/tests/decode/tags.rs` |
//! | 2 Windows 7 and 8.1 large allocations | here; every kernel in `nt-pool/tests/truth.rs` |
//! | 3 nonpaged and paged told apart | here |
//! | 4 segment heap | `nt-pool/tests/truth.rs`, `nt-pool/tests/decode/segment_heap.rs` |
//! | 5 tags that cannot be printed | here |
//! | 6 TOTAL, Diff, descriptions, pool types, session pool | here; `-session` and flag 8 say whose pool it is |
//! | 7 flags of `!pool`, bits of `!poolval`, lists of `!lookaside` | `kd-shell/tests/seeded.rs`; `!poolval` here |
//! | 8 no types; a link that dies | here; `kdpool/tests/leak_program.rs` |
//! | 9 more than 255 processors | `nt-pool/tests/decode/tags.rs` |
//! | 10 marks, growth, stacks | `leaks.rs`, `kdpool/tests/leak_program.rs` |
//! | limits of 256 rows and 1,024 blocks | here |

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use kd_fake::isf::Isf;
use kd_fake::kernel::{
    Carrier, Kernel, PoolKind, Residence, SeededOptions, SmallState, Truth, seeded, seeded_identity, write_pdb,
};
use serde_json::Value;
use target::{Live, tables};

mod target;

/// Windows 7, which every clone has, or what `change` makes of its table.
fn windows_7(seed: u64, change: impl FnOnce(&mut Isf)) -> (Isf, Kernel, Truth) {
    let mut isf = tables().into_iter().find(|isf| !isf.symbols.contains_key("ExpPoolQuotaCookie")).unwrap();
    isf.identity = seeded_identity(&isf, seed);
    let options = SeededOptions { small_operations: 20_000, ..SeededOptions::default() };
    let (kernel, truth) = seeded(&isf, seed, &options).unwrap();
    change(&mut isf);
    (isf, kernel, truth)
}

fn attach(isf: &Isf, kernel: Kernel) -> Live {
    let directory = tempfile::tempdir().unwrap();
    write_pdb(directory.path(), isf).unwrap();
    Live::attach(kernel, directory, |_| {})
}

fn address(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn tag(key: u32) -> String {
    let bytes = (key & 0x7fff_ffff).to_le_bytes();
    bytes.iter().map(|byte| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' }).collect()
}

/// A variable of the kernel.
fn variable(isf: &Isf, kernel: &Kernel, name: &str) -> u64 {
    let mut bytes = [0; 8];
    kernel.read_virtual(kernel.facts().kernel_base + isf.symbols[name].address, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Row 1. A tag whose only row is in the expansion table is counted like any other.
#[test]
fn tags_of_the_expansion_table() {
    let machines = (1..20).map(|seed| windows_7(seed, |_| {}));
    let mut with_expansion =
        machines.filter(|(isf, kernel, _)| variable(isf, kernel, "PoolTrackTableExpansionSize") > 0);
    let (isf, kernel, truth) = with_expansion.next().unwrap();
    let table = variable(&isf, &kernel, "PoolTrackTableExpansion");
    let rows = variable(&isf, &kernel, "PoolTrackTableExpansionSize");
    let size = isf.size("_POOL_TRACKER_TABLE").unwrap();
    let mut tags = BTreeSet::new();
    for row in 0..rows {
        let mut key = [0; 4];
        kernel.read_virtual(table + row * size, &mut key);
        tags.insert(u32::from_le_bytes(key) & 0x7fff_ffff);
    }
    let mut live = attach(&isf, kernel);
    for key in tags {
        let same = truth.tags.iter().filter(|usage| usage.tag & 0x7fff_ffff == key);
        let allocs = same.fold(0u64, |sum, usage| sum.wrapping_add(usage.nonpaged.allocs)) & 0xffff_ffff;
        // Tags that print alike are several rows.
        let used = live.result("!poolused 1");
        let mut rows = used["tags"].as_array().unwrap().iter().filter(|row| row["tag"] == tag(key));
        assert!(rows.any(|row| row["nonpaged"]["allocs"] == allocs), "{:?}", tag(key));
    }
    live.leave();
}

/// Rows 2, 3 and 5, and the limits: every large allocation of a table without `Pattern`, one with a tag that cannot be
/// printed among them; blocks of both pools by their own words; as many rows as there are.
#[test]
fn every_block_of_windows_7_and_no_limit_on_rows() {
    let (isf, mut kernel, _) = windows_7(3, |_| {});
    assert!(isf.offset("_POOL_TRACKER_BIG_PAGES", "Pattern").is_err());
    let odd = kernel.allocate_large(0x0302_0101, 0x5000, PoolKind::Paged, &[], 0).unwrap();
    let truth = kernel.truth();
    let mut live = attach(&isf, kernel);

    let found = live.result("!poolfind * -large -global");
    let blocks = found["blocks"].as_array().unwrap();
    let found: BTreeSet<(u64, u64)> =
        blocks.iter().map(|block| (address(&block["address"]), block["size"].as_u64().unwrap())).collect();
    assert_eq!(found, truth.large.iter().map(|life| (life.address, life.bytes)).collect());
    let odd_one = live.result("!poolfind 0x03020101 -large")["blocks"].take();
    assert_eq!((address(&odd_one[0]["address"]), &odd_one[0]["tag"]), (odd, &"....".into()));
    assert!(live.text(&format!("!pool {odd:x}")).contains("Tag  is ...., size  is 0x5000 bytes"));

    let small = live.result("!poolfind * -small -global");
    let blocks = small["blocks"].as_array().unwrap();
    assert!(blocks.len() > 1024, "{}", blocks.len());
    let pools: BTreeMap<u64, &str> =
        blocks.iter().map(|block| (address(&block["address"]), block["pool"].as_str().unwrap())).collect();
    let headers = truth.small.iter().filter(|block| {
        block.carrier == Carrier::Page && block.state == SmallState::Live && block.residence == Residence::Present
    });
    for block in headers {
        let wanted = if block.kind == PoolKind::Paged { "paged" } else { "nonpaged" };
        assert_eq!(pools[&block.address], wanted, "{block:?}");
    }

    // Row 6, and more than 256 rows.
    let tags = live.result("!poolused 1")["tags"].as_array().unwrap().len();
    let text = live.text("!poolused 1");
    assert!(tags > 256 && text.lines().count() > tags, "{tags}: {text}");
    assert!(text.lines().last().unwrap().starts_with("TOTAL ") && text.contains(" Diff "), "{text}");
    live.leave();
}

/// Row 7. One bit of a header's size: the page is invalid, and the bit is named.
#[test]
fn a_bit_that_was_turned_over_is_found() {
    let (isf, mut kernel, truth) = windows_7(4, |_| {});
    let block = truth.small.iter().find(|block| {
        let first = block.header % 0x1000 == 0;
        first && block.carrier == Carrier::Page && block.residence == Residence::Present && block.bytes < 0x800
    });
    let header = block.unwrap().header;
    let mut byte = [0];
    kernel.read_virtual(header + 2, &mut byte);
    kernel.write_virtual(header + 2, &[byte[0] ^ 0x40]);
    let mut live = attach(&isf, kernel);
    let text = live.text(&format!("!poolval {header:x}"));
    let wanted = format!(
        "Validating Pool headers for pool page: {header:016x}\n\nPool page [ {header:016x} ] is INVALID.\n\n\
         Analyzing linked list...\n"
    );
    assert!(text.contains(&wanted) && text.contains("\nScanning for single bit errors...\n\n"), "{text}");
    let bits = live.result(&format!("!poolval {header:x}"))["bit_errors"].take();
    let bits = bits.as_array().unwrap();
    assert!(bits.iter().any(|bit| address(&bit["address"]) == header + 2 && bit["bit"] == 6), "{bits:?}");
    live.leave();
}

/// Row 8. Nothing that cannot be known looks like an answer.
#[test]
fn missing_types_are_a_failure() {
    const TYPES: [&str; 3] = ["_POOL_TRACKER_TABLE", "_POOL_TRACKER_BIG_PAGES", "_POOL_HEADER"];
    let (isf, kernel, truth) = windows_7(5, |isf| TYPES.iter().for_each(|name| drop(isf.user_types.remove(*name))));
    let mut live = attach(&isf, kernel);
    let block = truth.small[0].address;
    let lines = ["!poolused".into(), "!poolfind Leak".into(), "!pooltop".into(), format!("!pool {block:x}")];
    for line in &lines {
        let (screen, failed, _) = live.run(line);
        assert!(failed && screen.text.is_empty() && screen.errors.contains("no type _"), "{line}: {}", screen.errors);
        let json = live.json(line);
        assert_eq!((&json["ok"], &json["complete"], &json["result"]), (&false.into(), &false.into(), &Value::Null));
    }
    live.leave();
}
