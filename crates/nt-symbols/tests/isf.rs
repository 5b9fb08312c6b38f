//! The article's kernel, from the ISF table that kd-fake carries. `equal.rs` compares all of every table.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use nt_symbols::{Isf, PdbId, Reach, SymbolFile, SymbolPath};

const ID: PdbId = PdbId { guid: 0x339e_7413_3576_439c_bcdf_7e02_29da_3773, age: 1 };

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kd-fake/data")
}

fn table() -> PathBuf {
    directory().join(format!("{}.json.xz", ID.isf_key()))
}

#[test]
fn a_table_is_found_by_its_id() {
    let path = SymbolPath::parse(directory().to_str().unwrap()).unwrap();
    let file = path.find("ntkrnlmp.pdb", ID, &Reach::default()).unwrap().file;
    assert_eq!(file.path(), table());
    let symbol = file.symbol("poolbigpagetable").unwrap();
    assert_eq!(symbol.name, "PoolBigPageTable");
    assert_eq!(file.around(symbol.rva).0, Some(symbol));
    assert!(path.find("ntkrnlmp.pdb", PdbId { age: 2, ..ID }, &Reach::default()).is_err());
}

#[test]
fn the_articles_kernel() {
    let isf = Isf::open(table()).unwrap();
    assert_eq!(isf.id(), Some(ID));
    let header = isf.layout("_pool_header").unwrap();
    assert_eq!((header.name.as_str(), header.size), ("_POOL_HEADER", 16));
    let previous = header.field("PreviousSize").unwrap();
    assert_eq!((previous.offset, previous.size, previous.bits), (0, 4, Some((0, 8))));
    let trace = isf.layout("_VF_POOL_TRACE").unwrap();
    let stack = trace.field("StackTrace").unwrap();
    assert_eq!((stack.array, stack.pointers, stack.type_name.as_str()), (Some((13, 8)), 1, "void"));
    let flink = isf.layout("_LIST_ENTRY").unwrap().field("Flink").unwrap().clone();
    assert_eq!((flink.size, flink.pointers, flink.type_name.as_str()), (8, 1, "_LIST_ENTRY"));
    assert_eq!(isf.enum_value("_POOL_TYPE", "PagedPool"), Some(1));
    assert_eq!(isf.symbol("__C_specific_handler").map(|symbol| symbol.name), Some("_C_specific_handler".into()));
}

#[test]
fn a_table_cut_short_is_an_error() {
    let good = std::fs::read(table()).unwrap();
    for length in [0, 5, 12, 100, 10_000, good.len() - 40] {
        let error = Isf::parse("t", good[..length].to_vec()).unwrap_err();
        assert!(error.to_string().contains("not a usable ISF file"), "{error}");
    }
}
