//! A PDB and an ISF table of the same kernel give the same answers. The PDBs are written from the tables by kd-fake.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use nt_symbols::{Enumeration, Isf, Layout, Pdb, Reach, SymbolFile, SymbolPath};

/// The table that kd-fake carries, and those of ../shared/isf where they are.
fn tables() -> Vec<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| manifest.join("../../../shared"), PathBuf::from);
    let own = manifest.join("../kd-fake/data");
    let folders = [own, shared.join("isf")];
    let mut tables: Vec<PathBuf> = Vec::new();
    for folder in folders {
        match std::fs::read_dir(&folder) {
            Ok(entries) => tables.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) => println!("skipped: {} is missing", folder.display()),
        }
    }
    tables.retain(|path| path.extension().is_some_and(|e| e == "xz"));
    let mut seen = std::collections::HashSet::new();
    tables.retain(|path| seen.insert(path.file_name().unwrap().to_owned()));
    tables
}

/// The order of members, which a table does not keep, made the same.
fn ordered(layout: &Layout) -> Layout {
    let mut layout = layout.clone();
    layout.fields.sort_by(|a, b| (a.offset, a.bits, &a.name).cmp(&(b.offset, b.bits, &b.name)));
    layout
}

fn ordered_values(kind: &Enumeration) -> Enumeration {
    let mut kind = kind.clone();
    kind.values.sort();
    kind
}

fn compare(name: &str, isf: &Isf, pdb: &Pdb) {
    let from_isf = isf.matching("*");
    let from_pdb = pdb.matching("*");
    // Symbols in the headers lie in no section, and a PDB cannot hold them.
    let headers = from_isf.iter().take_while(|symbol| symbol.rva < 0x1000).count();
    assert!(from_isf.len() > 15_000 && headers < 50, "{name}: {} symbols, {headers} in the headers", from_isf.len());
    assert!(from_isf[headers..] == from_pdb[..], "{name}: symbols differ");
    for symbol in from_isf[headers..].iter().step_by(97) {
        assert_eq!(isf.symbol(&symbol.name.to_lowercase()), pdb.symbol(&symbol.name.to_lowercase()), "{name}");
        for rva in [symbol.rva, symbol.rva + 1, symbol.rva.wrapping_add(0x777)] {
            assert_eq!(isf.around(rva).1, pdb.around(rva).1, "{name} {rva:#x}");
            assert_eq!(isf.around(rva).0, pdb.around(rva).0, "{name} {rva:#x}");
        }
    }
    for asked in ["PoolBigPageTable", "PoolTrackTable", "PoolHitTag"] {
        assert_eq!(pdb.symbol(asked).map(|symbol| symbol.name).as_deref(), Some(asked), "{name}");
    }
    let types = isf.types_matching("*");
    for asked in ["_POOL_TRACKER_BIG_PAGES", "_VF_POOL_TRACE", "_MMPTE", "_EPROCESS"] {
        assert!(types.iter().any(|kind| kind == asked), "{name} has no {asked}");
    }
    assert_eq!(types, pdb.types_matching("*"), "{name}");
    let (mut structures, mut enumerations) = (0, 0);
    for kind in &types {
        match (isf.layout(kind), pdb.layout(kind)) {
            (Some(a), Some(b)) => {
                assert_eq!(ordered(&a), ordered(&b), "{name} {kind}");
                structures += 1;
            }
            (None, None) => {
                let (a, b) = (isf.enumeration(kind).unwrap(), pdb.enumeration(kind).unwrap());
                assert_eq!(ordered_values(&a), ordered_values(&b), "{name} {kind}");
                enumerations += 1;
            }
            other => panic!("{name} {kind}: {other:?}"),
        }
    }
    assert_eq!(structures + enumerations, types.len());
    assert_eq!(pdb.notes(), [""; 0], "{name}");
    println!("{name}: {} symbols, {structures} structures, {enumerations} enumerations", from_pdb.len());
}

/// Writes a kernel's PDB into a store, finds it there, and compares.
fn kernel(table: &Path, store: &Path) {
    let packed = std::fs::read(table).unwrap();
    let source = kd_fake::isf::Isf::from_xz(&packed).unwrap();
    let file = kd_fake::pdb::from_isf(&source, &source.identity).unwrap();
    let folder = store.join(&source.identity.name).join(source.identity.store_key());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&source.identity.name), file).unwrap();

    let isf = Isf::parse(table, packed).unwrap();
    let path = SymbolPath::parse(store.to_str().unwrap()).unwrap();
    let found = path.find(&source.identity.name, isf.id().unwrap(), &Reach::default()).unwrap();
    let pdb = Pdb::open(found.file.path()).unwrap();
    compare(&table.display().to_string(), &isf, &pdb);
}

#[test]
fn every_kernel() {
    let store = tempfile::tempdir().unwrap();
    let tables = tables();
    assert!(!tables.is_empty());
    std::thread::scope(|scope| {
        for table in &tables {
            scope.spawn(|| kernel(table, store.path()));
        }
    });
}
