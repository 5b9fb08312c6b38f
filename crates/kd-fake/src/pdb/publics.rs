//! Public symbols: their records, and the two tables that find them by name and by address.

use super::hash;
use super::sections::Section;
use crate::isf::Isf;

const S_PUB32: u16 = 0x110e;
const FUNCTION: u32 = 2;
const BUCKETS: u32 = 4096;
/// Bytes of a hash record in the memory of Microsoft's implementation, which is what buckets count in.
const RECORD_IN_MEMORY: u32 = 12;

struct Public<'a> {
    name: &'a str,
    segment: u16,
    offset: u32,
    /// Where its record is.
    at: u32,
}

/// The streams of the public symbols.
pub(crate) struct Publics {
    /// S_PUB32 records.
    pub(crate) records: Vec<u8>,
    /// By name (GSI) and by address, one behind the other.
    pub(crate) index: Vec<u8>,
}

impl Publics {
    /// Publics of all symbols that lie in a section.
    pub(crate) fn new(isf: &Isf, sections: &[Section]) -> Publics {
        let mut records = Vec::new();
        let mut publics = Vec::new();
        for (plain, symbol) in &isf.symbols {
            let name = symbol.linkage_name.as_deref().unwrap_or(plain);
            let segment = sections.partition_point(|section| u64::from(section.rva) <= symbol.address);
            let Some(section) = segment.checked_sub(1).and_then(|index| sections.get(index)) else { continue };
            let offset = (symbol.address - u64::from(section.rva)) as u32;
            publics.push(Public { name, segment: segment as u16, offset, at: records.len() as u32 });
            let length = (2 + 4 + 4 + 2 + name.len() + 1 + 2).next_multiple_of(4) - 2;
            records.extend((length as u16).to_le_bytes());
            records.extend(S_PUB32.to_le_bytes());
            records.extend(if section.is_code() { FUNCTION } else { 0 }.to_le_bytes());
            records.extend(offset.to_le_bytes());
            records.extend((segment as u16).to_le_bytes());
            records.extend(name.as_bytes());
            records.push(0);
            records.resize(records.len().next_multiple_of(4), 0);
        }
        let by_name = hash_table(&mut publics);
        publics.sort_by(|a, b| (a.segment, a.offset, a.name).cmp(&(b.segment, b.offset, b.name)));
        let mut index = Vec::new();
        for value in [by_name.len() as u32, publics.len() as u32 * 4, 0, 0, 0, 0, 0] {
            index.extend(value.to_le_bytes());
        }
        index.extend(by_name);
        index.extend(publics.iter().flat_map(|public| public.at.to_le_bytes()));
        Publics { records, index }
    }
}

/// The hash table of a PDB without global symbols.
pub(crate) fn no_globals() -> Vec<u8> {
    hash_table(&mut [])
}

/// ```text
/// 0   i32 -1
/// 4   u32 version
/// 8   u32 bytes of records
/// 12  u32 bytes of bitmap and buckets
/// 16  records: u32 offset of the symbol + 1, u32 references; sorted by bucket
/// ..  bitmap of the buckets that are not empty, 4,097 bits in whole words
/// ..  u32 place of its first record, for each bucket that is not empty
/// ```
fn hash_table(publics: &mut [Public<'_>]) -> Vec<u8> {
    let bucket = |public: &Public<'_>| hash::name(public.name) % BUCKETS;
    // Within a bucket Microsoft's readers expect short names first, then the order of their small letters.
    publics
        .sort_by_cached_key(|public| (bucket(public), public.name.len(), public.name.to_ascii_lowercase(), public.at));
    let mut bitmap = vec![0u32; (BUCKETS as usize + 1).div_ceil(32)];
    let mut buckets = Vec::new();
    for (place, public) in (0..).zip(publics.iter()) {
        let bucket = bucket(public);
        let word = &mut bitmap[bucket as usize / 32];
        if *word & 1 << (bucket % 32) == 0 {
            *word |= 1 << (bucket % 32);
            buckets.push(place * RECORD_IN_MEMORY);
        }
    }
    let mut bytes = Vec::new();
    for value in [u32::MAX, 0xf12f_091a, publics.len() as u32 * 8, (bitmap.len() + buckets.len()) as u32 * 4] {
        bytes.extend(value.to_le_bytes());
    }
    for public in publics.iter() {
        bytes.extend((public.at + 1).to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
    }
    bytes.extend(bitmap.into_iter().chain(buckets).flat_map(u32::to_le_bytes));
    bytes
}
