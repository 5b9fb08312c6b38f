//! Every kernel whose symbol table there is: a fake target built from it attaches, and what the symbol commands print is
//! what the table says. The expectations come from the table's JSON alone, and the answers from a PDB (written by
//! kd-fake) and from the table itself as the symbol file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, SeededOptions};
use serde_json::Value;
use target::Live;

mod target;

/// A table's JSON, read as nothing but JSON.
struct Table {
    json: Value,
    /// Names by address.
    symbols: BTreeMap<u64, BTreeSet<String>>,
}

impl Table {
    fn read(packed: &[u8]) -> Table {
        let mut text = Vec::new();
        lzma_rs::xz_decompress(&mut std::io::Cursor::new(packed), &mut text).unwrap();
        let json: Value = serde_json::from_slice(&text).unwrap();
        let mut symbols: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for (name, symbol) in json["symbols"].as_object().unwrap() {
            let address = symbol["address"].as_u64().unwrap();
            // What lies in the headers is in no section, and a PDB cannot hold it.
            if address >= 0x1000 {
                symbols.entry(address).or_default().insert(name.clone());
            }
        }
        Table { json, symbols }
    }

    fn address(&self, name: &str) -> u64 {
        self.json["symbols"][name]["address"].as_u64().unwrap()
    }

    fn has(&self, type_name: &str) -> bool {
        self.json["user_types"].get(type_name).is_some()
    }

    /// The lines of `dt`, in any order.
    fn members(&self, type_name: &str, base: u64, lines: &mut BTreeSet<String>) {
        for (name, field) in self.json["user_types"][type_name]["fields"].as_object().unwrap() {
            let offset = base + field["offset"].as_u64().unwrap();
            let kind = &field["type"];
            if field["anonymous"] == true && ["struct", "union"].contains(&kind["kind"].as_str().unwrap()) {
                self.members(kind["name"].as_str().unwrap(), offset, lines);
            } else {
                lines.insert(format!("   +{offset:#05x} {name:<16} : {}", type_text(kind)));
            }
        }
    }
}

/// kd's words for a type.
fn type_text(kind: &Value) -> String {
    let name = kind["name"].as_str().unwrap_or_default();
    let number = |key: &str| kind[key].as_u64().unwrap();
    match kind["kind"].as_str().unwrap() {
        "base" => match name {
            "void" => "Void",
            "char" => "Char",
            "unsigned char" => "UChar",
            "short" => "Int2B",
            "unsigned short" => "Uint2B",
            "long" | "int" => "Int4B",
            "unsigned long" | "unsigned int" => "Uint4B",
            "long long" => "Int8B",
            "unsigned long long" => "Uint8B",
            "wchar" => "Wchar",
            other => panic!("{other}"),
        }
        .into(),
        "pointer" if kind["subtype"]["kind"] == "function" => "Ptr64     void ".into(),
        "pointer" => format!("Ptr64 {}", type_text(&kind["subtype"])),
        "array" => format!("[{}] {}", number("count"), type_text(&kind["subtype"])),
        "bitfield" => {
            let (first, bits) = (number("bit_position"), number("bit_length"));
            format!("Pos {first}, {bits} Bit{}", if bits == 1 { "" } else { "s" })
        }
        _ if name.starts_with("__unnamed") => "<unnamed-tag>".into(),
        _ => name.into(),
    }
}

fn tick(address: u64) -> String {
    format!("{:08x}`{:08x}", address >> 32, address as u32)
}

/// The lines of an answer in any order: a table does not keep the order of declaration.
fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

const TYPES: [&str; 6] =
    ["_POOL_TRACKER_BIG_PAGES", "_VF_POOL_TRACE", "_SEGMENT_HEAP", "_POOL_HEADER", "_EPROCESS", "_KTHREAD"];

/// Asks everything of one symbol source and returns all that was printed.
fn check(live: &mut Live, base: u64, table: &Table) -> Vec<BTreeSet<String>> {
    let row = |(address, name): (u64, &str)| format!("{} nt!{name} (<no parameter info>)", tick(base + address));
    let mut answers = Vec::new();
    let mut ask = |line: &str| {
        let text = live.text(line);
        answers.push(lines(&text));
        text
    };

    let big_pages = table.address("PoolBigPageTable");
    assert_eq!(ask("x nt!PoolBigPageTable"), row((big_pages, "PoolBigPageTable")) + "\n");
    let pool = table.symbols.iter().flat_map(|(address, names)| names.iter().map(|name| (*address, name.as_str())));
    let pool: BTreeSet<String> = pool.filter(|(_, name)| name.to_lowercase().contains("pool")).map(row).collect();
    assert!(pool.len() > 200);
    assert_eq!(lines(&ask("x nt!*Pool*")), pool);

    for name in TYPES.iter().filter(|name| table.has(name)) {
        let mut wanted = BTreeSet::new();
        table.members(name, 0, &mut wanted);
        assert_eq!(lines(&ask(&format!("dt nt!{name}"))), wanted, "{name}");
        let size = table.json["user_types"][*name]["size"].as_u64().unwrap();
        assert_eq!(ask(&format!("?? sizeof(nt!{name})")), format!("unsigned int64 {size:#x}\n"), "{name}");
    }

    let places: Vec<(u64, u64)> = table.symbols.keys().copied().zip(table.symbols.keys().skip(1).copied()).collect();
    for (before, after) in places.iter().step_by(places.len() / 50) {
        for address in [*before, before + (after - before) / 2] {
            let text = ask(&format!("ln {}", tick(base + address)));
            // `(address)   nt!name+0xN   |  (address)   nt!name`
            let (left, right) = text.lines().next().unwrap().split_once("   |  ").unwrap();
            let near = |text: &str, place: u64, offset: u64| {
                let offset = if offset == 0 { String::new() } else { format!("+{offset:#x}") };
                let names = &table.symbols[&place];
                names.iter().any(|name| text == format!("({})   nt!{name}{offset}", tick(base + place)))
            };
            assert!(near(left, *before, address - before) && near(right, *after, 0), "{address:#x}: {text}");
            assert_eq!(text.contains("Exact matches:"), address == *before, "{text}");
        }
    }
    answers
}

fn kernel(path: &Path) {
    let packed = std::fs::read(path).unwrap();
    let isf = Isf::from_xz(&packed).unwrap();
    let table = Table::read(&packed);
    let store = tempfile::tempdir().unwrap();
    kernel::write_pdb(store.path(), &isf).unwrap();

    let small = SeededOptions { operations: 100, small_operations: 100, ..SeededOptions::default() };
    let (machine, _) = kernel::seeded(&isf, 3, &small).unwrap();
    let base = machine.facts().kernel_base;
    let mut live = Live::attach(machine, store, |_| {});
    let from_pdb = check(&mut live, base, &table);
    assert!(live.text("lm m nt").contains("(pdb symbols)") && live.text("lm m nt").contains("ntkrnlmp.pdb\n"));
    live.text(&format!(".sympath {}", path.parent().unwrap().display()));
    let from_isf = check(&mut live, base, &table);
    assert!(live.text("lm m nt").contains(path.file_name().unwrap().to_str().unwrap()));
    assert!(from_pdb == from_isf, "{}", path.display());
    println!("{}: {} answers", path.display(), from_pdb.len());
    live.leave();
}

#[test]
fn every_kernel_attaches_and_answers_as_its_table_says() {
    let tables = target::table_files();
    assert!(!tables.is_empty());
    std::thread::scope(|scope| tables.iter().for_each(|table| drop(scope.spawn(|| kernel(table)))));
}
