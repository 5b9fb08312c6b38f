//! Symbol files, images, cabinets and unwind data, each as small as it can be with everything in it.

use std::io::Cursor;

use super::{Seed, put, words};

pub(super) fn all() -> Vec<Seed> {
    let mut packed = Vec::new();
    let unpacked = Cursor::new(ISF.as_bytes());
    lzma_rs::xz_compress(&mut { unpacked }, &mut packed).expect("memory can be written");
    let mut seeds = vec![Seed::new("isf", "small", ISF), Seed::new("isf", "small-packed", packed)];
    seeds.extend(pdbs());
    seeds.extend(cabinets());
    seeds.extend(images());
    seeds.extend(unwinding());
    seeds
}

/// Every kind of type that the format has.
const ISF: &str = r#"{"metadata": {"format": "6.2.0", "producer": {"name": "kdpool"},
  "windows": {"pdb": {"GUID": "000102030405060708090A0B0C0D0E0F", "age": 3, "database": "fuzz.pdb", "machine_type": 34404}}},
 "base_types": {"int": {"size": 4, "signed": true, "kind": "int", "endian": "little"},
  "pointer": {"size": 8, "signed": false, "kind": "int", "endian": "little"},
  "void": {"size": 0, "signed": false, "kind": "void", "endian": "little"}},
 "symbols": {"Foo": {"address": 4096}, "foo": {"address": 4112}, "Far": {"address": 99999999999}},
 "enums": {"_E": {"size": 4, "base": "int", "constants": {"A": -1, "B": 5}}},
 "user_types": {"_S": {"kind": "struct", "size": 48, "fields": {
   "In": {"offset": 0, "anonymous": true, "type": {"kind": "union", "name": "_U"}},
   "Next": {"offset": 8, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "_S"}}},
   "Bits": {"offset": 16, "type": {"kind": "bitfield", "bit_position": 3, "bit_length": 5, "type": {"kind": "base", "name": "int"}}},
   "Many": {"offset": 20, "type": {"kind": "array", "count": 2, "subtype": {"kind": "enum", "name": "_E"}}},
   "Call": {"offset": 32, "type": {"kind": "pointer", "subtype": {"kind": "function"}}}}},
  "_U": {"kind": "union", "size": 8, "fields": {
   "Low": {"offset": 0, "type": {"kind": "base", "name": "int"}},
   "Self": {"offset": 0, "anonymous": true, "type": {"kind": "struct", "name": "_S"}}}}}}"#;

/// A record of a PDB: its length, its kind, what it holds, padded to four bytes.
fn record(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut body = [&kind.to_le_bytes()[..], &parts.concat()].concat();
    while !(body.len() + 2).is_multiple_of(4) {
        body.push(0xf0 + (4 - (body.len() + 2) % 4) as u8);
    }
    [(body.len() as u16).to_le_bytes().to_vec(), body].concat()
}

/// Entries of a field list, each padded to four bytes.
fn entries(entries: &[Vec<u8>]) -> Vec<u8> {
    let padded = |entry: &Vec<u8>| {
        let mut entry = entry.clone();
        while !entry.len().is_multiple_of(4) {
            entry.push(0xf0 + (4 - entry.len() % 4) as u8);
        }
        entry
    };
    entries.iter().flat_map(padded).collect()
}

fn member(name: &str, kind: u32, offset: u16) -> Vec<u8> {
    [&[0x0d, 0x15, 3, 0][..], &kind.to_le_bytes(), &offset.to_le_bytes(), name.as_bytes(), b"\0"].concat()
}

/// Type records of each kind; the first has the index 1000.
fn types() -> Vec<u8> {
    let index = |n: u32| (0x1000 + n).to_le_bytes();
    let int = 0x74u32;
    let name = b"_S\0";
    let list = entries(&[
        member("First", int, 0),
        member("Pointer", 0x1001, 8),
        member("Bits", 0x1002, 16),
        member("Many", 0x1003, 0x20),
        // A static member, a method, a nested type, a base, a table of functions: passed over.
        [&[0x0e, 0x15, 3, 0][..], &int.to_le_bytes(), b"S\0"].concat(),
        [&[0x11, 0x15, 3, 0][..], &int.to_le_bytes(), b"M\0"].concat(),
        [&[0x10, 0x15, 0, 0][..], &int.to_le_bytes(), b"N\0"].concat(),
        [&[0x00, 0x14, 3, 0][..], &index(9), &[0, 0]].concat(),
        [&[0x09, 0x14, 0, 0][..], &index(1)].concat(),
        // It goes on in another record.
        [&[0x04, 0x14, 0, 0][..], &index(4)].concat(),
    ]);
    let values = entries(&[
        [&[0x02, 0x15, 3, 0, 5, 0][..], b"A\0"].concat(),
        [&[0x02, 0x15, 3, 0, 0, 0x80, 0xff][..], b"B\0"].concat(),
        [&[0x02, 0x15, 3, 0, 3, 0x80, 1, 2, 3, 4][..], b"C\0"].concat(),
        [&[0x02, 0x15, 3, 0, 9, 0x80, 1, 2, 3, 4, 5, 6, 7, 8][..], b"D\0"].concat(),
    ]);
    [
        record(0x1001, &[&int.to_le_bytes(), &[1, 0]]),
        record(0x1002, &[&index(0), &0x1_000cu32.to_le_bytes()]),
        record(0x1205, &[&int.to_le_bytes(), &[5, 3]]),
        record(0x1503, &[&index(1), &0x23u32.to_le_bytes(), &[16, 0], b"\0"]),
        record(0x1203, &[&entries(&[member("Last", 0x1006, 0x30)])]),
        record(0x1203, &[&list]),
        record(0x1506, &[&[1, 0, 0, 0], &index(4), &[8, 0], b"_U\0"]),
        record(0x1203, &[&values]),
        record(0x1507, &[&[4, 0, 0, 0], &int.to_le_bytes(), &index(7), b"_E\0"]),
        record(0x1505, &[&[0, 0, 0x80, 0], &[0; 14], name]),
        record(0x1505, &[&[9, 0, 0, 0], &index(5), &[0; 8], &[0x40, 0], name]),
        record(0x1609, &[&[9, 0, 0, 0], &index(5), &[0; 8], &[0, 0, 0x40, 0], b"_T\0"]),
        record(0x1008, &[&int.to_le_bytes(), &[0, 0, 0, 0], &index(0)]),
        record(0x1009, &[&int.to_le_bytes(), &index(0), &index(0), &[0; 12]]),
    ]
    .concat()
}

fn pdbs() -> Vec<Seed> {
    let public = |offset: u32, name: &str| {
        record(0x110e, &[&[2, 0, 0, 0], &offset.to_le_bytes(), &[1, 0], name.as_bytes(), b"\0"])
    };
    let symbols = [
        public(0x10, "Foo"),
        public(0x20, "?Foo@@YAXXZ"),
        public(0x30, "_foo@8"),
        record(0x1107, &[&[0; 8], &[1, 0], b"x\0"]),
    ]
    .concat();
    let function = |kind: u16| record(kind, &[&[0; 28], &0x40u32.to_le_bytes(), &[1, 0, 0], b"Static\0"]);
    let data = record(0x110c, &[&0x74u32.to_le_bytes(), &0x50u32.to_le_bytes(), &[1, 0], b"datum\0"]);
    let own = [vec![4, 0, 0, 0], function(0x110f), record(6, &[]), function(0x1110), data].concat();
    let mut module = vec![0; 64];
    put(&mut module, 34, &[7, 0]);
    put(&mut module, 36, &(own.len() as u32).to_le_bytes());
    module.extend(b"a.obj\0b\0");
    let mut sections = vec![0; 80];
    for (at, value) in [(8, 0x4000u32), (12, 0x1000), (36, 0x6000_0020), (48, 0x1000), (52, 0x5000)] {
        put(&mut sections, at, &value.to_le_bytes());
    }
    let map = words(&[0x1000, 0x2000, 0x1040, 0, 0x1080, 0x3000]);
    let parts: Vec<u8> = [types(), module, symbols, sections, map, own]
        .iter()
        .flat_map(|part| [(part.len() as u16).to_le_bytes().to_vec(), part.clone()].concat())
        .collect();
    let mut seeds: Vec<Seed> = [0u8, 2, 4, 6, 8]
        .into_iter()
        .map(|kind| Seed::new("pdb", format!("streams-{kind}"), [vec![kind], parts.clone()].concat()))
        .collect();
    // No linker writes a type that holds itself.
    let sane = ISF
        .replace(r#""name": "_S"}}}}}}"#, r#""name": "_V"}}}}, "_V": {"kind": "struct", "size": 1, "fields": {}}}}"#);
    let table = kd_fake::isf::Isf::from_json(sane.replace("4096", "8192").as_bytes()).expect("a table");
    let whole = kd_fake::pdb::from_isf(&table, &table.identity).expect("every type is there");
    seeds.push(Seed::new("pdb", "whole", [vec![1], whole].concat()));
    seeds
}

/// A cabinet with one file in one folder; `blocks` are what the folder holds and how much each expands to.
fn cabinet(compression: u16, size: u32, blocks: &[(Vec<u8>, u16)], reserved: bool) -> Vec<u8> {
    let extra: &[u8] = if reserved { &[2, 0, 1, 1, 0xaa, 0xaa] } else { &[] };
    let (folder_extra, block_extra): (&[u8], &[u8]) = if reserved { (&[0xbb], &[0xcc]) } else { (&[], &[]) };
    let files_at = 0x24 + extra.len() + 8 + folder_extra.len();
    let data_at = files_at + 0x10 + 6;
    let mut bytes = vec![0; 0x24];
    put(&mut bytes, 0, b"MSCF");
    put(&mut bytes, 0x10, &(files_at as u32).to_le_bytes());
    put(&mut bytes, 0x18, &[3, 1, 1, 0, 1, 0, if reserved { 4 } else { 0 }, 0]);
    bytes.extend(extra);
    bytes.extend(words(&[data_at as u32]));
    bytes.extend([blocks.len() as u16, compression].iter().flat_map(|value| value.to_le_bytes()));
    bytes.extend(folder_extra);
    bytes.extend(words(&[size, 0, 0, 0]));
    bytes.extend(b"x.pdb\0");
    for (block, expanded) in blocks {
        bytes.extend(words(&[0]));
        bytes.extend([block.len() as u16, *expanded].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(block_extra);
        bytes.extend(block);
    }
    let whole = bytes.len() as u32;
    put(&mut bytes, 8, &whole.to_le_bytes());
    bytes
}

fn cabinets() -> Vec<Seed> {
    let text = b"Microsoft C/C++ and so on, and so on, and so on".repeat(4);
    let length = text.len() as u16;
    let zip = |level| [b"CK".to_vec(), miniz_oxide::deflate::compress_to_vec(&text, level)].concat();
    // LZX without compression: no translation of calls, a block of kind 3 (bits 011) with its size, three offsets.
    let bits = 0b0011u32 << 28 | u32::from(length) << 4;
    let head = [((bits >> 16) as u16).to_le_bytes(), (bits as u16).to_le_bytes()].concat();
    let lzx = [head, words(&[1, 1, 1]), text.clone()].concat();
    let size = u32::from(length);
    let all = [
        ("stored", cabinet(0, size, &[(text.clone(), length)], false)),
        ("stored-reserved", cabinet(0, size, &[(text.clone(), length)], true)),
        ("zip", cabinet(1, size * 2, &[(zip(6), length), (zip(0), length)], false)),
        ("lzx", cabinet(0x0f03, size, &[(lzx.clone(), length)], false)),
        ("lzx-wide", cabinet(0x1503, size, &[(lzx, length)], true)),
        ("quantum", cabinet(2, size, &[(text, length)], false)),
    ];
    all.into_iter().map(|(name, bytes)| Seed::new("cabinet", name, bytes)).collect()
}

/// An image of 64 (or 32) bits as it lies in memory: headers, code, exports, the PDB's name, and functions with unwind
/// data when `functions` says where their table lies.
fn image(wide: bool) -> Vec<u8> {
    let mut image = vec![0; 0x600];
    let optional = 0x98;
    // Where the directories begin: after 112 bytes, or 96.
    let directories = optional + if wide { 0x70 } else { 0x60 };
    let section = directories + 16 * 8;
    let dwords: &[(usize, u32)] = &[
        (0x3c, 0x80),
        (0x88, 0x5ce7_7c41),
        (optional + 0x38, 0x600),
        (optional + 0x40, 0x1234),
        (directories - 4, 16),
        // Exports, and the debug directory.
        (directories, 0x400),
        (directories + 4, 0x100),
        (directories + 6 * 8, 0x300),
        (directories + 6 * 8 + 4, 2 * 0x1c),
        (section + 8, 0x400),
        (section + 12, 0x200),
        (section + 16, 0x400),
        (section + 20, 0x200),
        (section + 36, 0x6000_0020),
        // A debug entry of another kind first.
        (0x30c, 13),
        (0x31c + 12, 2),
        (0x31c + 16, 31),
        (0x31c + 20, 0x340),
        (0x31c + 24, 0x340),
        // Three functions from ordinal 7 on, two names, one of them forwarded.
        (0x410, 7),
        (0x414, 3),
        (0x418, 2),
        (0x41c, 0x428),
        (0x420, 0x434),
        (0x424, 0x43c),
        (0x428, 0x210),
        (0x42c, 0x220),
        (0x430, 0x460),
        (0x434, 0x450),
        (0x438, 0x456),
    ];
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x80, b"PE\0\0");
    put(&mut image, 0x84, &if wide { 0x8664u16 } else { 0x14c }.to_le_bytes());
    put(&mut image, 0x86, &[1, 0]);
    put(&mut image, 0x94, &((section - optional) as u16).to_le_bytes());
    put(&mut image, optional, &if wide { 0x20bu16 } else { 0x10b }.to_le_bytes());
    for (at, value) in dwords {
        put(&mut image, *at, &value.to_le_bytes());
    }
    put(&mut image, section, b".text\0\0\0");
    put(&mut image, 0x340, b"RSDS\x03\x02\x01\x00\x05\x04\x07\x06\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x02\0\0\0");
    put(&mut image, 0x358, b"x.pdb\0");
    put(&mut image, 0x43c, &[1, 0, 2, 0]);
    put(&mut image, 0x450, b"Alpha\0Beta\0");
    put(&mut image, 0x460, b"HAL.Gamma\0");
    image
}

fn images() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, wide) in [("x64", true), ("x86", false)] {
        let mut path = image(wide);
        put(&mut path, 0x358, b"C:\\b\\x.pdb\0");
        seeds.push(Seed::new("image", name, image(wide)));
        seeds.push(Seed::new("image_file", name, image(wide)));
        seeds.push(Seed::new("image", format!("{name}-path"), path));
    }
    seeds
}

/// An image whose functions have each kind of unwind code, and a stack behind them: see the target.
fn unwinding() -> Vec<Seed> {
    // push rbx; sub rsp,20h | push rbp; sub rsp,1000h; lea rbp,[rsp+20h]; mov [rsp+8],rsi | an interrupt with an error
    // code | far saves, a large frame | saved xmm registers, and version 2's epilog codes | a chain
    let codes: [&[u8]; 6] = [
        &[1, 6, 2, 0, 6, 0x32, 2, 0x30],
        &[1, 0x20, 6, 0x25, 0x20, 0x64, 1, 0, 0x10, 0x53, 8, 1, 0x20, 0, 1, 0x50],
        &[1, 0, 1, 0, 0, 0x1a],
        &[1, 9, 6, 0, 9, 0x65, 8, 0, 0, 0, 4, 0x11, 0x40, 0, 1, 0],
        &[2, 9, 5, 0, 9, 0x68, 2, 0, 8, 6, 0x10, 6, 2, 0x30],
        &[0x21, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x40, 3, 0, 0],
    ];
    let mut seeds = Vec::new();
    for (number, code) in codes.into_iter().enumerate() {
        let mut bytes = vec![0x90; 0x800];
        put(&mut bytes, 0, &[0; 0x200]);
        // The table's entries: begin, end, unwind data.
        for (entry, begin) in [0x500u32, 0x520, 0x540].into_iter().enumerate() {
            put(&mut bytes, 0x200 + entry * 12, &words(&[begin, begin + 0x20, 0x300]));
        }
        put(&mut bytes, 0x300, code);
        put(&mut bytes, 0x340, &[1, 4, 1, 0, 4, 0x42]);
        // Epilogs, of which the second is within a function.
        put(&mut bytes, 0x505, &[0x48, 0x83, 0xc4, 0x20, 0x5b, 0xc3]);
        put(&mut bytes, 0x525, &[0x48, 0x8d, 0x65, 0x20, 0x41, 0x5c, 0x5d, 0xf3, 0xc3]);
        for slot in 0..0x40u64 {
            put(&mut bytes, 0x600 + slot as usize * 8, &(0xffff_f800_0260_0500 + slot * 3).to_le_bytes());
        }
        for (name, place) in [("body", 0x10u16), ("epilog", 5), ("start", 0), ("second", 0x25)] {
            let mut seed = bytes.clone();
            put(&mut seed, 0x40, &(0x500 + place).to_le_bytes());
            put(&mut seed, 0x42, &0x600u16.to_le_bytes());
            seeds.push(Seed::new("unwind", format!("{number}-{name}"), seed));
        }
    }
    seeds
}
