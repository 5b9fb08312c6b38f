//! PDBs we write, read back by the `pdb` crate: every symbol and every type must be what the symbol table says.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::PathBuf;

use kd_fake::isf::{Identity, Isf, Type, UserKind};
use kd_fake::{kernel, pdb as writer};
use pdb::{FallibleIterator, PDB, SymbolData, TypeData, TypeFinder, TypeIndex};

fn check(isf: &Isf, identity: &Identity, bytes: Vec<u8>) {
    let mut pdb = PDB::open(Cursor::new(bytes)).expect("opens");
    let information = pdb.pdb_information().expect("information stream");
    assert_eq!(information.age, identity.age);
    assert_eq!(information.guid.to_bytes_le(), identity.guid);
    let debug = pdb.debug_information().expect("debug information");
    assert_eq!(debug.machine_type().expect("machine"), pdb::MachineType::Amd64);
    symbols(isf, &mut pdb);
    types(isf, &mut pdb);
}

fn symbols(isf: &Isf, pdb: &mut PDB<'_, Cursor<Vec<u8>>>) {
    let map = pdb.address_map().expect("address map");
    let table = pdb.global_symbols().expect("symbol records");
    let mut found = HashMap::new();
    let mut symbols = table.iter();
    while let Some(symbol) = symbols.next().expect("symbol") {
        let SymbolData::Public(public) = symbol.parse().expect("public") else { panic!("only publics") };
        let rva = public.offset.to_rva(&map).expect("in a section");
        found.insert(public.name.to_string().into_owned(), u64::from(rva.0));
    }
    for (name, symbol) in &isf.symbols {
        let name = symbol.linkage_name.as_ref().unwrap_or(name);
        assert_eq!(found.remove(name), Some(symbol.address), "{name}");
    }
    assert_eq!(found.len(), 0, "nothing but the table's symbols");
}

fn types(isf: &Isf, pdb: &mut PDB<'_, Cursor<Vec<u8>>>) {
    let table = pdb.type_information().expect("types");
    let mut finder = table.finder();
    let mut seen = (0, 0);
    let mut types = table.iter();
    while let Some(item) = types.next().expect("type") {
        finder.update(&types);
        let (name, kind, fields, size, forward) = match item.parse().expect("type record") {
            TypeData::Class(class) => {
                let forward = class.properties.forward_reference();
                (class.name, UserKind::Struct, class.fields, class.size, forward)
            }
            TypeData::Union(union) => {
                (union.name, UserKind::Union, Some(union.fields), union.size, union.properties.forward_reference())
            }
            TypeData::Enumeration(value) => {
                let mut constants = HashMap::new();
                each_field(&finder, value.fields, &mut |field| {
                    let TypeData::Enumerate(constant) = field else { panic!("only constants") };
                    let value = match constant.value {
                        // LF_CHAR is signed; the crate has it as U8, which nothing else becomes.
                        pdb::Variant::U8(value) => i64::from(value as i8),
                        pdb::Variant::U16(value) => value.into(),
                        pdb::Variant::U32(value) => value.into(),
                        pdb::Variant::U64(value) => value as i64,
                        pdb::Variant::I8(value) => value.into(),
                        pdb::Variant::I16(value) => value.into(),
                        pdb::Variant::I32(value) => value.into(),
                        pdb::Variant::I64(value) => value,
                    };
                    constants.insert(constant.name.to_string().into_owned(), value);
                });
                let truth = &isf.enums[&*value.name.to_string()];
                assert_eq!(constants, truth.constants.clone().into_iter().collect(), "{}", value.name);
                seen.0 += 1;
                continue;
            }
            _ => continue,
        };
        if forward {
            continue;
        }
        let truth = &isf.user_types[&*name.to_string()];
        assert_eq!((kind, size), (truth.kind, truth.size), "{name}");
        let mut members = HashMap::new();
        fields.into_iter().for_each(|fields| {
            each_field(&finder, fields, &mut |field| {
                let TypeData::Member(member) = field else { panic!("only members") };
                members.insert(member.name.to_string().into_owned(), (member.offset, member.field_type));
            });
        });
        assert_eq!(members.len(), truth.fields.len(), "{name}");
        for (field, truth) in &truth.fields {
            let (offset, ty) = members[field];
            assert_eq!(offset, truth.offset, "{name}.{field}");
            same_type(isf, &finder, ty, &truth.ty, &format!("{name}.{field}"));
        }
        seen.1 += 1;
    }
    assert_eq!(seen, (isf.enums.len(), isf.user_types.len()));
}

fn each_field(finder: &TypeFinder<'_>, index: TypeIndex, visit: &mut dyn FnMut(&TypeData<'_>)) {
    let TypeData::FieldList(list) = finder.find(index).expect("field list").parse().expect("field list") else {
        panic!("not a field list")
    };
    list.fields.iter().for_each(&mut *visit);
    list.continuation.into_iter().for_each(|next| each_field(finder, next, visit));
}

fn same_type(isf: &Isf, finder: &TypeFinder<'_>, index: TypeIndex, truth: &Type, place: &str) {
    let data = finder.find(index).expect("type").parse().expect("type record");
    match (truth, data) {
        (Type::Base { name }, TypeData::Primitive(primitive)) => {
            assert_eq!(primitive.indirection, None, "{place}");
            assert_eq!(primitive_size(primitive.kind), isf.base_types[name].size, "{place}");
        }
        (Type::Pointer { subtype }, TypeData::Primitive(primitive)) => {
            assert_eq!(primitive.indirection, Some(pdb::Indirection::Near64), "{place}");
            assert!(matches!(&**subtype, Type::Base { .. }), "{place}");
        }
        (Type::Pointer { subtype }, TypeData::Pointer(pointer)) => {
            assert_eq!(pointer.attributes.size(), 8, "{place}");
            same_type(isf, finder, pointer.underlying_type, subtype, place);
        }
        (Type::Array { count, subtype }, TypeData::Array(array)) => {
            let size = isf.size_of(subtype).expect("element");
            assert_eq!(u64::from(array.dimensions[0]), count * size, "{place}");
            same_type(isf, finder, array.element_type, subtype, place);
        }
        (Type::Struct { name }, TypeData::Class(class)) => assert_eq!(class.name.to_string(), *name, "{place}"),
        (Type::Union { name }, TypeData::Union(union)) => assert_eq!(union.name.to_string(), *name, "{place}"),
        (Type::Enum { name }, TypeData::Enumeration(value)) => assert_eq!(value.name.to_string(), *name, "{place}"),
        (Type::Bitfield { bit_position, bit_length, ty }, TypeData::Bitfield(bits)) => {
            assert_eq!((bits.position, bits.length), (*bit_position, *bit_length), "{place}");
            same_type(isf, finder, bits.underlying_type, ty, place);
        }
        (Type::Function, TypeData::Procedure(_)) => {}
        (truth, data) => panic!("{place}: {data:?} is not {truth:?}"),
    }
}

fn primitive_size(kind: pdb::PrimitiveKind) -> u64 {
    use pdb::PrimitiveKind as Kind;
    match kind {
        Kind::Void => 0,
        Kind::Char | Kind::UChar | Kind::RChar | Kind::Bool8 => 1,
        Kind::WChar | Kind::Short | Kind::UShort => 2,
        Kind::Long | Kind::ULong | Kind::I32 | Kind::U32 | Kind::F32 | Kind::HRESULT => 4,
        Kind::Quad | Kind::UQuad | Kind::F64 => 8,
        other => panic!("{other:?} is not written"),
    }
}

#[test]
fn the_article_s_pdb_is_in_the_store_and_complete() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = kernel::write_symbol_store(dir.path()).expect("written");
    let place = path.strip_prefix(dir.path()).expect("below the store");
    assert_eq!(place, PathBuf::from("ntkrnlmp.pdb/8F1D2C676B644F6F9C1A6B64706F6F6C1/ntkrnlmp.pdb"));
    let mut pdb = PDB::open(std::fs::File::open(&path).expect("file")).expect("opens");
    let map = pdb.address_map().expect("address map");
    let table = pdb.global_symbols().expect("symbols");
    let mut names = HashMap::new();
    let mut symbols = table.iter();
    while let Some(symbol) = symbols.next().expect("symbol") {
        let Ok(SymbolData::Public(public)) = symbol.parse() else { continue };
        names.insert(public.name.to_string().into_owned(), public.offset.to_rva(&map).expect("in a section").0);
    }
    assert_eq!(names.len(), 18_994);
    // Base fffff80001418000; the article's nt!VeAllocatePoolWithTagPriority+0x2b6 is fffff80001923cc6.
    assert_eq!(names["VeAllocatePoolWithTagPriority"] + 0x2b6, 0x50_bcc6);
}

/// Targets that share a store write it while a debugger of one of them reads: it must never find a part.
#[test]
fn a_store_that_is_read_meanwhile_has_whole_files() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = kernel::write_symbol_store(dir.path()).expect("written");
    let whole = std::fs::read(&path).expect("file");
    std::fs::write(&path, &whole[..5000]).expect("written");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut sizes = std::collections::HashSet::new();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                sizes.insert(std::fs::metadata(&path).expect("file").len());
            }
            sizes
        });
        for _ in 0..3 {
            kernel::write_symbol_store(dir.path()).expect("written");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let sizes = reader.join().expect("no panic");
        assert!(sizes.iter().all(|size| *size == 5000 || *size == whole.len() as u64), "{sizes:?}");
    });
    assert!(std::fs::read(&path).expect("file") == whole);
}

#[test]
fn the_kernels_at_hand_come_through() {
    let shared = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let carried = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data"));
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in [carried, shared.join("isf")] {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            println!("skipped: {} is not there", folder.display());
            continue;
        };
        files
            .extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.extension() == Some("xz".as_ref())));
    }
    assert!(!files.is_empty());
    for file in files {
        let isf = Isf::from_xz(&std::fs::read(&file).expect("file")).expect("symbol table");
        let bytes = writer::from_isf(&isf, &isf.identity).expect("PDB");
        check(&isf, &isf.identity, bytes);
    }
}
