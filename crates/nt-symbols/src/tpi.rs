//! Type records of a PDB (the TPI stream), decoded when a type is asked for.
//!
//! The `pdb` crate decodes the same records, but it asserts on some malformed ones, descends without limit into nested
//! field lists, and its readers cannot be kept in a `Send + Sync` value. Records here come from files that the target
//! names, so they are decoded with every read checked and every walk bounded.
//!
//! ```text
//! header  0 version  4 header size  8 first index  12 last index + 1  16 bytes of records
//! record  0 length (of what follows)  2 leaf  4 data, padded with f1..f3
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::names::folded_hash;
use crate::{Enumeration, Field, Glob, Layout};

const LF_MODIFIER: u16 = 0x1001;
const LF_POINTER: u16 = 0x1002;
const LF_PROCEDURE: u16 = 0x1008;
const LF_MFUNCTION: u16 = 0x1009;
const LF_BITFIELD: u16 = 0x1205;
const LF_FIELDLIST: u16 = 0x1203;
const LF_BCLASS: u16 = 0x1400;
const LF_VBCLASS: u16 = 0x1401;
const LF_IVBCLASS: u16 = 0x1402;
const LF_INDEX: u16 = 0x1404;
const LF_VFUNCTAB: u16 = 0x1409;
const LF_FRIENDCLS: u16 = 0x140a;
const LF_VFUNCOFF: u16 = 0x140c;
const LF_ENUMERATE: u16 = 0x1502;
const LF_ARRAY: u16 = 0x1503;
const LF_CLASS: u16 = 0x1504;
const LF_STRUCTURE: u16 = 0x1505;
const LF_UNION: u16 = 0x1506;
const LF_ENUM: u16 = 0x1507;
const LF_FRIENDFCN: u16 = 0x150b;
const LF_MEMBER: u16 = 0x150d;
const LF_STMEMBER: u16 = 0x150e;
const LF_METHOD: u16 = 0x150f;
const LF_NESTTYPE: u16 = 0x1510;
const LF_ONEMETHOD: u16 = 0x1511;
const LF_NESTTYPEEX: u16 = 0x1512;
const LF_INTERFACE: u16 = 0x1519;
const LF_BINTERFACE: u16 = 0x151a;
const LF_CLASS19: u16 = 0x1608;
const LF_STRUCTURE19: u16 = 0x1609;

const FORWARD_REFERENCE: u16 = 0x80;

/// Real types nest and chain a handful of times; more than this is a loop.
const MAX_STEPS: usize = 64;
/// Members of one type. The largest of a kernel have some 500.
const MAX_FIELDS: usize = 0x10000;

/// Reads little-endian values off the front of a record.
#[derive(Clone, Copy)]
struct Cursor<'b>(&'b [u8]);

impl<'b> Cursor<'b> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number stored in 16 bits if it is small, else after a leaf that says how wide it is.
    fn number(&mut self) -> Option<i64> {
        Some(match self.u16()? {
            small @ ..0x8000 => i64::from(small),
            0x8000 => i64::from(i8::from_le_bytes(self.take()?)),
            0x8001 => i64::from(i16::from_le_bytes(self.take()?)),
            0x8002 => i64::from(self.u16()?),
            0x8003 => i64::from(i32::from_le_bytes(self.take()?)),
            0x8004 => i64::from(self.u32()?),
            0x8009 => i64::from_le_bytes(self.take()?),
            0x800a => u64::from_le_bytes(self.take()?) as i64,
            _ => return None,
        })
    }

    fn size(&mut self) -> Option<u64> {
        u64::try_from(self.number()?).ok()
    }

    fn name(&mut self) -> Option<&'b [u8]> {
        let end = self.0.iter().position(|b| *b == 0)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(name)
    }
}

/// A structure, class, union or enumeration record.
struct Udt<'b> {
    leaf: u16,
    forward: bool,
    fields: u32,
    /// The size, or the underlying type of an enumeration.
    size: u64,
    name: &'b [u8],
}

fn udt(leaf: u16, data: &[u8]) -> Option<Udt<'_>> {
    let mut c = Cursor(data);
    let (properties, fields, size);
    match leaf {
        LF_CLASS | LF_STRUCTURE | LF_INTERFACE => {
            c.u16()?;
            properties = c.u16()?;
            fields = c.u32()?;
            c.take::<8>()?;
            size = c.size()?;
        }
        LF_CLASS19 | LF_STRUCTURE19 => {
            properties = c.u32()? as u16;
            fields = c.u32()?;
            c.take::<10>()?;
            size = c.size()?;
        }
        LF_UNION => {
            c.u16()?;
            properties = c.u16()?;
            fields = c.u32()?;
            size = c.size()?;
        }
        LF_ENUM => {
            c.u16()?;
            properties = c.u16()?;
            size = u64::from(c.u32()?);
            fields = c.u32()?;
        }
        _ => return None,
    }
    Some(Udt { leaf, forward: properties & FORWARD_REFERENCE != 0, fields, size, name: c.name()? })
}

/// A type without a name gets one from its index, the same that Volatility gives it.
fn shown_name(raw: &[u8], index: u32) -> String {
    let name = String::from_utf8_lossy(raw);
    let last = name.rsplit("::").next().unwrap_or(&name);
    if matches!(last, "<unnamed-tag>" | "<anonymous-tag>" | "__unnamed" | "") {
        format!("__unnamed_{index:x}")
    } else {
        name.into_owned()
    }
}

/// One entry of a field list.
enum Member<'b> {
    Data { type_index: u32, offset: u64, name: &'b [u8] },
    Base { type_index: u32, offset: u64 },
    Enumerate { value: i64, name: &'b [u8] },
}

/// A member's type, resolved.
#[derive(Debug, Clone, Default)]
struct Resolved {
    size: u64,
    bits: Option<(u8, u8)>,
    array: Option<(u64, u64)>,
    pointers: u8,
    name: String,
    /// Its record, if it is a structure or union itself (not a pointer to one nor an array).
    structure: Option<u32>,
}

pub(crate) struct Types {
    bytes: Vec<u8>,
    first: u32,
    /// Where each record's length field lies.
    offsets: Vec<u32>,
    /// (folded hash of the name, index) of every definition, ordered.
    by_name: Vec<(u32, u32)>,
    pointer_size: u64,
    layouts: Mutex<HashMap<String, Arc<Layout>>>,
    notes: Mutex<Vec<String>>,
}

impl Types {
    /// Finds the records' places; decodes no more than the names.
    pub(crate) fn parse(bytes: Vec<u8>, pointer_size: u64) -> Result<Types, String> {
        let mut header = Cursor(&bytes);
        let mut next = || header.u32().ok_or("the type stream is shorter than its header");
        let (_version, header_size, first, last, record_bytes) = (next()?, next()?, next()?, next()?, next()?);
        if !(20..=1024).contains(&header_size) || first < 0x1000 || last < first {
            return Err(format!(
                "the type stream's header is damaged (size {header_size}, types {first:#x} to {last:#x})"
            ));
        }
        let end = bytes.len().min(header_size as usize + record_bytes as usize);
        let mut at = header_size as usize;
        let mut offsets = Vec::new();
        while let Some(length) = bytes.get(at..end).and_then(|rest| Cursor(rest).u16()) {
            let next = at + 2 + usize::from(length);
            // The index space is 32 bits wide; a stream with more records than its header says is damaged.
            if length < 2 || next > end || offsets.len() as u32 >= last - first {
                break;
            }
            offsets.push(at as u32);
            at = next;
        }
        offsets.shrink_to_fit();
        let mut types = Types {
            bytes,
            first,
            offsets,
            by_name: Vec::new(),
            pointer_size,
            layouts: Mutex::default(),
            notes: Mutex::default(),
        };
        let (found, said) = (types.offsets.len(), last - first);
        if found as u64 != u64::from(said) {
            types.note(format!("type records end early: {found} of {said} could be found"));
        }
        let mut by_name: Vec<_> = (first..)
            .take(found)
            .filter_map(|index| {
                let udt = types.udt(index).filter(|udt| !udt.forward)?;
                Some((folded_hash(&shown_name(udt.name, index)), index))
            })
            .collect();
        by_name.sort_unstable();
        types.by_name = by_name;
        Ok(types)
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < 100 && !notes.contains(&text) {
            notes.push(text);
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, index: u32) -> Option<(u16, &[u8])> {
        let at = *self.offsets.get(index.checked_sub(self.first)? as usize)? as usize;
        let length = usize::from(Cursor(self.bytes.get(at..)?).u16()?);
        let mut record = Cursor(self.bytes.get(at + 2..at + 2 + length)?);
        let leaf = record.u16()?;
        Some((leaf, record.0))
    }

    fn udt(&self, index: u32) -> Option<Udt<'_>> {
        let (leaf, data) = self.record(index)?;
        udt(leaf, data)
    }

    /// The definition that a name stands for; the exact case is preferred.
    fn definition(&self, name: &str, wanted: fn(u16) -> bool) -> Option<u32> {
        let hash = folded_hash(name);
        let start = self.by_name.partition_point(|(h, _)| *h < hash);
        let mut folded = None;
        for (_, index) in self.by_name[start..].iter().take_while(|(h, _)| *h == hash) {
            let Some(udt) = self.udt(*index).filter(|udt| wanted(udt.leaf)) else { continue };
            let candidate = shown_name(udt.name, *index);
            if candidate == name {
                return Some(*index);
            }
            if folded.is_none() && candidate.eq_ignore_ascii_case(name) {
                folded = Some(*index);
            }
        }
        folded
    }

    /// The record that defines what `index` may only announce.
    fn defined(&self, index: u32) -> u32 {
        match self.udt(index) {
            Some(udt) if udt.forward => {
                let wanted = if udt.leaf == LF_ENUM { is_enum } else { is_structure };
                self.definition(&shown_name(udt.name, index), wanted).unwrap_or(index)
            }
            _ => index,
        }
    }

    /// Calls `each` with the members of a field list until it returns false. Continuations are followed.
    fn members<'s>(&'s self, list: u32, mut each: impl FnMut(Member<'s>) -> bool) {
        let mut list = list;
        for _ in 0..MAX_STEPS {
            // Index 0 is the list of a type without members.
            if list == 0 {
                return;
            }
            let Some((LF_FIELDLIST, data)) = self.record(list) else {
                return self.note(format!("type {list:#x} should be a field list and is not"));
            };
            let mut c = Cursor(data);
            let mut next = None;
            while !c.0.is_empty() && next.is_none() {
                if c.0[0] >= 0xf0 {
                    // Padding says how long it is.
                    let skip = usize::from(c.0[0] & 0xf).max(1);
                    c.0 = c.0.get(skip..).unwrap_or_default();
                    continue;
                }
                match member(&mut c) {
                    Some(Entry::Member(member)) => {
                        if !each(member) {
                            return;
                        }
                    }
                    Some(Entry::Other) => {}
                    Some(Entry::Continued(index)) => next = Some(index),
                    None => {
                        return self.note(format!("field list {list:#x} is damaged; its further members are left out"));
                    }
                }
            }
            match next {
                Some(index) => list = index,
                None => return,
            }
        }
        self.note(format!("field list {list:#x} continues too often; its further members are left out"));
    }

    fn resolve(&self, index: u32, depth: usize) -> Option<Resolved> {
        let mut index = index;
        let mut out = Resolved::default();
        // The size belongs to the outermost thing that has one: a pointer, an array, a bit field's unit.
        let mut sized = false;
        for _ in 0..MAX_STEPS {
            if index < 0x1000 {
                let (name, size, pointer) = primitive(index)?;
                out.name = name.to_owned();
                if pointer.is_some() {
                    out.pointers = out.pointers.saturating_add(1);
                }
                if !sized {
                    out.size = pointer.unwrap_or(size);
                }
                return Some(out);
            }
            let (leaf, data) = self.record(index)?;
            let mut c = Cursor(data);
            match leaf {
                LF_MODIFIER => index = c.u32()?,
                LF_POINTER => {
                    index = c.u32()?;
                    let attributes = c.u32()?;
                    out.pointers = out.pointers.saturating_add(1);
                    if !sized {
                        sized = true;
                        out.size = match (attributes >> 13) & 0x3f {
                            0 => self.pointer_size,
                            size => u64::from(size),
                        };
                    }
                }
                LF_ARRAY => {
                    let element = c.u32()?;
                    c.u32()?;
                    let size = c.size()?;
                    if !sized {
                        sized = true;
                        out.size = size;
                        let one = self.size_of(element, depth + 1)?;
                        out.array = Some((size.checked_div(one).unwrap_or(0), one));
                    }
                    index = element;
                }
                LF_BITFIELD => {
                    index = c.u32()?;
                    let [length, position] = c.take()?;
                    out.bits = Some((position, length));
                }
                LF_PROCEDURE | LF_MFUNCTION => {
                    out.name = "function".to_owned();
                    return Some(out);
                }
                leaf if is_structure(leaf) => {
                    let defined = self.defined(index);
                    let udt = self.udt(defined)?;
                    out.name = shown_name(udt.name, defined);
                    if !sized {
                        out.size = udt.size;
                        out.structure = Some(defined);
                    }
                    return Some(out);
                }
                LF_ENUM => {
                    let defined = self.defined(index);
                    let udt = self.udt(defined)?;
                    out.name = shown_name(udt.name, defined);
                    if !sized {
                        out.size = self.size_of(udt.size as u32, depth + 1)?;
                    }
                    return Some(out);
                }
                other => {
                    out.name = format!("<leaf {other:#06x}>");
                    return Some(out);
                }
            }
        }
        None
    }

    fn size_of(&self, index: u32, depth: usize) -> Option<u64> {
        // An array's element is an array only as often as the source says; a record can say it endlessly.
        if depth > 8 { None } else { self.resolve(index, depth).map(|resolved| resolved.size) }
    }

    /// `budget` bounds how many members are visited, which nesting could multiply without end.
    fn add_fields(&self, structure: u32, base: u64, depth: usize, budget: &mut usize, fields: &mut Vec<Field>) {
        let Some(udt) = self.udt(structure) else { return };
        if depth > 8 {
            return self.note(format!("type {structure:#x} holds itself; the inner one is left out"));
        }
        self.members(udt.fields, |member| {
            if *budget == 0 {
                self.note(format!("type {structure:#x} has more than {MAX_FIELDS} members; the rest is left out"));
                return false;
            }
            *budget -= 1;
            let (type_index, offset, name) = match member {
                Member::Data { type_index, offset, name } => (type_index, offset, name),
                Member::Base { type_index, offset } => (type_index, offset, &b""[..]),
                Member::Enumerate { .. } => return true,
            };
            let offset = base.wrapping_add(offset);
            let Some(resolved) = self.resolve(type_index, 0) else {
                let name = String::from_utf8_lossy(name);
                self.note(format!(
                    "member {name} of type {structure:#x} has a damaged type ({type_index:#x}); left out"
                ));
                return true;
            };
            match resolved.structure {
                Some(inner) if name.is_empty() => self.add_fields(inner, offset, depth + 1, budget, fields),
                _ => fields.push(Field {
                    name: String::from_utf8_lossy(name).into_owned(),
                    offset,
                    size: resolved.size,
                    bits: resolved.bits,
                    array: resolved.array,
                    pointers: resolved.pointers,
                    type_name: resolved.name,
                }),
            }
            true
        });
    }

    pub(crate) fn layout(&self, name: &str) -> Option<Arc<Layout>> {
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = layouts.get(name) {
            return Some(known.clone());
        }
        let index = self.definition(name, is_structure)?;
        let udt = self.udt(index)?;
        let mut fields = Vec::new();
        self.add_fields(index, 0, 0, &mut MAX_FIELDS.clone(), &mut fields);
        let layout = Arc::new(Layout { name: shown_name(udt.name, index), size: udt.size, fields });
        layouts.insert(name.to_owned(), layout.clone());
        Some(layout)
    }

    pub(crate) fn enumeration(&self, name: &str) -> Option<Arc<Enumeration>> {
        let index = self.definition(name, is_enum)?;
        let udt = self.udt(index)?;
        let mut values = Vec::new();
        self.members(udt.fields, |member| {
            if let Member::Enumerate { value, name } = member {
                values.push((String::from_utf8_lossy(name).into_owned(), value));
            }
            values.len() < MAX_FIELDS
        });
        let size = self.size_of(udt.size as u32, 0)?;
        Some(Arc::new(Enumeration { name: shown_name(udt.name, index), size, values }))
    }

    pub(crate) fn matching(&self, pattern: &str) -> Vec<String> {
        let names = self.by_name.iter().filter_map(|(_, index)| Some(shown_name(self.udt(*index)?.name, *index)));
        let glob = Glob::new(pattern);
        let mut names: Vec<_> = names.filter(|name| glob.matches(name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn is_structure(leaf: u16) -> bool {
    matches!(leaf, LF_CLASS | LF_STRUCTURE | LF_INTERFACE | LF_UNION | LF_CLASS19 | LF_STRUCTURE19)
}

fn is_enum(leaf: u16) -> bool {
    leaf == LF_ENUM
}

enum Entry<'b> {
    Member(Member<'b>),
    /// Functions, nested type names, static members: no part of the layout.
    Other,
    /// The list goes on in another record.
    Continued(u32),
}

fn member<'b>(c: &mut Cursor<'b>) -> Option<Entry<'b>> {
    let leaf = c.u16()?;
    let attributes = c.u16()?;
    Some(match leaf {
        LF_MEMBER => Entry::Member(Member::Data { type_index: c.u32()?, offset: c.size()?, name: c.name()? }),
        LF_BCLASS | LF_BINTERFACE => Entry::Member(Member::Base { type_index: c.u32()?, offset: c.size()? }),
        LF_ENUMERATE => Entry::Member(Member::Enumerate { value: c.number()?, name: c.name()? }),
        LF_INDEX => Entry::Continued(c.u32()?),
        LF_VBCLASS | LF_IVBCLASS => {
            c.take::<8>()?;
            c.number()?;
            c.number()?;
            Entry::Other
        }
        LF_STMEMBER | LF_METHOD | LF_NESTTYPE | LF_NESTTYPEEX | LF_FRIENDFCN => {
            c.u32()?;
            c.name()?;
            Entry::Other
        }
        LF_ONEMETHOD => {
            c.u32()?;
            // A function that is virtual for the first time has its place in the table.
            if matches!((attributes >> 2) & 7, 4 | 6) {
                c.u32()?;
            }
            c.name()?;
            Entry::Other
        }
        LF_VFUNCTAB | LF_FRIENDCLS => {
            c.u32()?;
            Entry::Other
        }
        LF_VFUNCOFF => {
            c.take::<8>()?;
            Entry::Other
        }
        _ => return None,
    })
}

/// Name, size, and the pointer's size if it is a pointer to that type. Names are those of Volatility's tables, so that a
/// PDB and an ISF of the same kernel read alike.
fn primitive(index: u32) -> Option<(&'static str, u64, Option<u64>)> {
    let pointer = match (index >> 8) & 0xf {
        0 => None,
        1 => Some(2),
        2..=4 => Some(4),
        5 => Some(6),
        6 => Some(8),
        7 => Some(16),
        _ => return None,
    };
    let (name, size) = match index & 0xff {
        0x00 | 0x03 => ("void", 0),
        0x08 => ("HRESULT", 4),
        0x10 | 0x70 => ("char", 1),
        0x20 => ("unsigned char", 1),
        0x68 => ("int8", 1),
        0x69 => ("uint8", 1),
        0x71 => ("wchar", 2),
        0x7a => ("char16", 2),
        0x7b => ("char32", 4),
        0x7c => ("char8", 1),
        0x11 | 0x72 => ("short", 2),
        0x21 | 0x73 => ("unsigned short", 2),
        0x12 => ("long", 4),
        0x22 => ("unsigned long", 4),
        0x74 => ("int", 4),
        0x75 => ("unsigned int", 4),
        0x13 | 0x76 => ("long long", 8),
        0x23 | 0x77 => ("unsigned long long", 8),
        0x14 | 0x78 => ("int128", 16),
        0x24 | 0x79 => ("uint128", 16),
        0x46 => ("f16", 2),
        0x40 => ("f32", 4),
        0x41 => ("double", 8),
        0x42 => ("f80", 10),
        0x43 => ("f128", 16),
        0x30 => ("bool", 1),
        0x31 => ("bool16", 2),
        0x32 => ("bool32", 4),
        0x33 => ("bool64", 8),
        _ => return None,
    };
    Some((name, size, pointer))
}
