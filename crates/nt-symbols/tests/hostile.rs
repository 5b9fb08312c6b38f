//! Damaged files of real size: a kernel's PDB and its ISF table with bytes changed, cut short, or made up.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nt_symbols::{Isf, Pdb, SymbolError, SymbolFile};
use proptest::collection::vec;
use proptest::prelude::*;

const TABLE: &[u8] = include_bytes!("../../kd-fake/data/339E74133576439CBCDF7E0229DA3773-1.json.xz");

fn kernel_pdb() -> &'static [u8] {
    static PDB: OnceLock<Vec<u8>> = OnceLock::new();
    PDB.get_or_init(|| {
        let table = kd_fake::isf::Isf::from_xz(TABLE).unwrap();
        kd_fake::pdb::from_isf(&table, &table.identity).unwrap()
    })
}

/// Asks everything of a file, whatever became of it, and must be done soon.
fn question(file: Result<impl SymbolFile, SymbolError>) {
    let start = Instant::now();
    match file {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(file) => {
            let _ = (file.symbol("PoolBigPageTable"), file.around(0x12345), file.matching("*Pool*"));
            for kind in file.types_matching("*") {
                let _ = (file.layout(&kind), file.enumeration(&kind));
            }
            assert!(file.notes().len() <= 300);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

fn pdb(bytes: Vec<u8>) -> Result<Pdb, SymbolError> {
    Pdb::read("hostile.pdb", Cursor::new(bytes))
}

/// Places in the file as fractions of it, more of them near its ends, where the headers and the directory are.
fn changes() -> impl Strategy<Value = Vec<(f64, u8)>> {
    let place = prop_oneof![20 => 0.0..1.0f64, 1 => 0.0..0.01f64, 1 => 0.99..1.0f64];
    vec((place, any::<u8>()), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_kernels_pdb_with_changed_bytes(changes in changes()) {
        let mut bytes = kernel_pdb().to_vec();
        let length = bytes.len() as f64;
        for (place, byte) in changes {
            bytes[(place * length) as usize] = byte;
        }
        question(pdb(bytes));
    }

    #[test]
    fn a_kernels_pdb_cut_short(length in 0.0..1.0f64) {
        let whole = kernel_pdb();
        question(pdb(whole[..(length * whole.len() as f64) as usize].to_vec()));
    }

    #[test]
    fn bytes_that_only_start_like_a_pdb(tail in vec(any::<u8>(), 0..20_000)) {
        question(pdb([b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0", &tail[..]].concat()));
    }

    #[test]
    fn a_packed_table_with_changed_bytes(changes in changes()) {
        let mut bytes = TABLE.to_vec();
        let length = bytes.len() as f64;
        for (place, byte) in changes {
            bytes[(place * length) as usize] = byte;
        }
        question(Isf::parse("hostile.json.xz", bytes));
    }

    #[test]
    fn a_table_with_changed_text(places in vec((0usize..SMALL.len(), any::<u8>()), 1..4)) {
        let mut bytes = SMALL.to_vec();
        for (place, byte) in places {
            bytes[place] = byte;
        }
        question(Isf::parse("hostile.json", bytes));
    }
}

const SMALL: &[u8] = br#"{"metadata": {"windows": {"pdb": {"GUID": "000102030405060708090A0B0C0D0E0F", "age": 3}}},
    "base_types": {"int": {"size": 4}, "pointer": {"size": 8}}, "symbols": {"Foo": {"address": 16}},
    "enums": {"_E": {"size": 4, "constants": {"A": -1}}},
    "user_types": {"_S": {"kind": "struct", "size": 16, "fields": {
        "In": {"offset": 0, "anonymous": true, "type": {"kind": "struct", "name": "_S"}},
        "Next": {"offset": 8, "type": {"kind": "pointer", "subtype": {"kind": "base", "name": "int"}}}}}}}"#;

#[test]
fn a_table_whose_type_holds_itself() {
    let isf = Isf::parse("small.json", SMALL.to_vec()).unwrap();
    let layout = isf.layout("_S").unwrap();
    assert!(layout.fields.len() < 20);
    assert!(layout.field("Next").is_some());
}

/// Eight levels of a hundred anonymous members each would be visited 10^16 times.
#[test]
fn a_table_whose_types_multiply() {
    let member =
        |n: usize| format!(r#""m{n}": {{"offset": 0, "anonymous": true, "type": {{"kind": "struct", "name": "_S"}}}}"#);
    let members: Vec<_> = (0..100).map(member).collect();
    let text = format!(
        r#"{{"metadata": {{}}, "base_types": {{}}, "user_types": {{"_S": {{"size": 1, "fields": {{{}}}}}}}}}"#,
        members.join(",")
    );
    question(Isf::parse("many.json", text.into_bytes()));
}

#[test]
fn a_deeply_nested_table_is_refused() {
    let deep = [
        r#"{"user_types": {"_S": {"size": 1, "fields": {"A": {"offset": 0, "type": "#.to_owned(),
        r#"{"kind": "pointer", "subtype": "#.repeat(100_000),
    ];
    let error = Isf::parse("deep.json", deep.concat().into_bytes()).unwrap_err().to_string();
    assert!(error.contains("recursion limit"), "{error}");
}

/// Chunks that say they unpack to 2 MB of zeros each, over and over: 1 KB that would become 16 GB is never unpacked.
#[test]
fn a_packed_table_that_unpacks_to_gigabytes_is_refused() {
    let mut bomb = b"\xfd7zXZ\0\0\x00\xff\x12\xd9\x41\x02\0\x21\x01\x16\0\0\0\x74\x2f\xe5\xa3".to_vec();
    for _ in 0..8192 {
        bomb.extend(b"\xff\xff\xff\0\0\x5d\0");
    }
    bomb.extend([0; 16]);
    let error = Isf::parse("bomb.json.xz", bomb).unwrap_err().to_string();
    assert!(error.contains("unpacks to 17179869184 bytes"), "{error}");
}

/// Found by fuzzing: the footer says that the index is as long as a u32 can say, and one more word.
#[test]
fn a_packed_table_whose_footer_counts_too_far_is_refused() {
    let mut packed = Vec::new();
    lzma_rs::xz_compress(&mut std::io::Cursor::new(SMALL), &mut packed).unwrap();
    assert!(Isf::parse("packed.json.xz", packed.clone()).is_ok());
    let footer = packed.len() - 12;
    packed[footer + 4..footer + 8].fill(0xff);
    let error = Isf::parse("packed.json.xz", packed).unwrap_err().to_string();
    assert!(error.contains("xz"), "{error}");
}
