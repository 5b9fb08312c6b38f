//! A writer of PDB 7.0 files with public symbols and types, as the public PDBs of Windows have them.

mod hash;
mod msf;
mod publics;
mod sections;
mod types;

pub use self::msf::container;
use self::publics::Publics;
pub use self::sections::{LINKER_SIZE, Section, sections};
use self::types::Types;
use crate::isf::{Identity, Isf, IsfError};

const TYPE_HASHES: u16 = 5;
const ID_HASHES: u16 = 6;
const NAMES: u16 = 7;
const GLOBALS: u16 = 8;
const PUBLICS: u16 = 9;
const SYMBOLS: u16 = 10;
const SECTIONS: u16 = 11;

/// The PDB of a kernel, with [`sections`] as its section headers.
///
/// Every type of `isf` is in it, and every symbol from the first section on. Errors: a type that refers to one that
/// is missing.
pub fn from_isf(isf: &Isf, identity: &Identity) -> Result<Vec<u8>, IsfError> {
    let sections = sections(isf);
    let types = Types::new(isf)?;
    let ids = Types::default();
    let publics = Publics::new(isf, &sections);
    let headers = sections.iter().flat_map(|section| section.header()).collect();
    // In the order of the numbers above; 0 is the directory of the file's last version, of which there is none.
    let streams = [
        Vec::new(),
        info(identity),
        types.stream(TYPE_HASHES),
        debug_information(identity.age, isf.machine.number(), &sections),
        ids.stream(ID_HASHES),
        types.hash_stream(),
        ids.hash_stream(),
        names(),
        publics::no_globals(),
        publics.index,
        publics.records,
        headers,
    ];
    Ok(container(&streams, msf::BLOCK))
}

/// Version, signature, age, GUID; the table of named streams; the features.
fn info(identity: &Identity) -> Vec<u8> {
    let mut bytes = Vec::new();
    let signature = u32::from_le_bytes([identity.guid[0], identity.guid[1], identity.guid[2], identity.guid[3]]);
    for value in [20_000_404, signature, identity.age] {
        bytes.extend(u32::to_le_bytes(value));
    }
    bytes.extend(identity.guid);
    // The names, then a hash table from name to stream, with one entry in one slot.
    let text = b"/names\0";
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text);
    for value in [1, 1, 1, 1, 0, 0, u32::from(NAMES), 0, 20_140_508] {
        bytes.extend(u32::to_le_bytes(value));
    }
    bytes
}

/// The table of strings that other streams refer to: it holds the empty string only.
fn names() -> Vec<u8> {
    [0xeffe_effe, 1, 1]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .chain([0])
        .chain([1, 0, 0].into_iter().flat_map(u32::to_le_bytes))
        .collect()
}

/// The DBI stream: no modules, no sources; a section map, and where the other streams are.
fn debug_information(age: u32, machine: u16, sections: &[Section]) -> Vec<u8> {
    let contributions = 0xeffe_0000u32.wrapping_add(19_970_605).to_le_bytes();
    let map = section_map(sections);
    let mut streams = [u16::MAX; 11];
    streams[5] = SECTIONS;

    let mut bytes = Vec::new();
    for value in [u32::MAX, 19_990_903, age] {
        bytes.extend(value.to_le_bytes());
    }
    // Global symbols, the linker's version (9.0), public symbols, version of the PDB library, symbol records.
    for value in [GLOBALS, 0x8900, PUBLICS, 0, SYMBOLS, 0] {
        bytes.extend(value.to_le_bytes());
    }
    // Bytes of: modules, contributions, section map, sources, type servers; then MFC's type server.
    let sources = [0; 4];
    for value in [0, contributions.len(), map.len(), sources.len(), 0, 0] {
        bytes.extend((value as u32).to_le_bytes());
    }
    bytes.extend((2 * streams.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(contributions);
    bytes.extend(map);
    bytes.extend(sources);
    bytes.extend(streams.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

/// A segment for each section, and one for absolute symbols.
fn section_map(sections: &[Section]) -> Vec<u8> {
    let count = sections.len() as u16 + 1;
    let mut bytes: Vec<u8> = [count, count].into_iter().flat_map(u16::to_le_bytes).collect();
    // Readable, 32-bit, a selector; then writable or executable as the section is.
    let segments = sections.iter().map(|section| {
        let write = if section.characteristics & 0x8000_0000 != 0 { 2 } else { 0 };
        let execute = if section.is_code() { 4 } else { 0 };
        (0x109 | write | execute, section.size)
    });
    for (frame, (flags, size)) in (1u16..).zip(segments.chain([(0x208, u32::MAX)])) {
        for value in [flags, 0, 0, frame, u16::MAX, u16::MAX] {
            bytes.extend(u16::to_le_bytes(value));
        }
        bytes.extend([0; 4]);
        bytes.extend(size.to_le_bytes());
    }
    bytes
}
