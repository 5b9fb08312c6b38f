//! Every table in ../shared/isf loads, and answers with what the article and the tables themselves say.

use std::path::PathBuf;

use nt_symbols::{Isf, PdbId, SymbolFile, SymbolPath};

fn shared() -> Option<PathBuf> {
    let root = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let isf = root.join("isf");
    if !isf.is_dir() {
        println!("skipped: {} is missing", isf.display());
        return None;
    }
    Some(isf)
}

#[test]
fn every_table_is_found_by_its_id_and_answers() {
    let Some(dir) = shared() else { return };
    let path = SymbolPath::parse(dir.to_str().unwrap()).unwrap();
    let mut tables = 0;
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some((guid, age)) = name.strip_suffix(".json.xz").and_then(|stem| stem.split_once('-')) else { continue };
        let id = PdbId { guid: u128::from_str_radix(guid, 16).unwrap(), age: age.parse().unwrap() };
        let found = path.find("ntkrnlmp.pdb", id).unwrap();
        let file = found.file;
        assert!(file.path().ends_with(&name));
        let table = file.symbol("poolbigpagetable").unwrap();
        assert_eq!(table.name, "PoolBigPageTable");
        assert_eq!(file.around(table.rva).0.unwrap().rva, table.rva);
        assert!(file.matching("*Pool*").len() > 200);
        let layout = file.layout("_POOL_TRACKER_BIG_PAGES").unwrap();
        assert_eq!(layout.field("Va").map(|f| (f.offset, f.size, f.pointers.min(1))).unwrap().0, 0);
        let entry = file.layout("_LIST_ENTRY").unwrap();
        let flink = entry.field("Flink").unwrap();
        assert_eq!((flink.size, flink.pointers, flink.type_name.as_str()), (8, 1, "_LIST_ENTRY"));
        assert_eq!(file.enum_value("_POOL_TYPE", "PagedPool"), Some(1));
        tables += 1;
    }
    assert!(tables > 0);
}

#[test]
fn the_articles_kernel() {
    let Some(dir) = shared() else { return };
    let isf = Isf::open(dir.join("339E74133576439CBCDF7E0229DA3773-1.json.xz")).unwrap();
    let header = isf.layout("_POOL_HEADER").unwrap();
    assert_eq!(header.size, 16);
    let previous = header.field("PreviousSize").unwrap();
    assert_eq!((previous.offset, previous.size, previous.bits), (0, 4, Some((0, 8))));
    let trace = isf.layout("_VF_POOL_TRACE").unwrap();
    let stack = trace.field("StackTrace").unwrap();
    assert_eq!((stack.array, stack.pointers, stack.type_name.as_str()), (Some((13, 8)), 1, "void"));
}

#[test]
fn damage_is_an_error() {
    let Some(dir) = shared() else { return };
    let good = std::fs::read(dir.join("339E74133576439CBCDF7E0229DA3773-1.json.xz")).unwrap();
    for length in [0, 5, 12, 100, 10_000, good.len() - 40] {
        let error = Isf::parse("t", good[..length].to_vec()).unwrap_err();
        assert!(error.to_string().contains("not a usable ISF file"), "{error}");
    }
    for at in [7, 20, 24, 30, 5_000, 100_000] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let _ = Isf::parse("t", bad);
    }
}
