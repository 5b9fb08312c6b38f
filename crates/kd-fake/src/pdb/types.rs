//! The type stream: structures, unions, enumerations and what they are made of.

use std::collections::{BTreeMap, HashMap};

use super::hash;
use crate::isf::{Enum, Isf, IsfError, Type, UserKind, UserType};

const LF_POINTER: u16 = 0x1002;
const LF_PROCEDURE: u16 = 0x1008;
const LF_ARGLIST: u16 = 0x1201;
const LF_FIELDLIST: u16 = 0x1203;
const LF_BITFIELD: u16 = 0x1205;
const LF_INDEX: u16 = 0x1404;
const LF_ENUMERATE: u16 = 0x1502;
const LF_ARRAY: u16 = 0x1503;
const LF_STRUCTURE: u16 = 0x1505;
const LF_UNION: u16 = 0x1506;
const LF_ENUM: u16 = 0x1507;
const LF_MEMBER: u16 = 0x150d;

/// First type index that is not a simple type.
const FIRST: u32 = 0x1000;
const T_VOID: u32 = 0x03;
const T_UQUAD: u32 = 0x23;
/// A near pointer of 8 or 4 bytes to a simple type, when added to it.
const POINTER_64: u32 = 0x600;
const POINTER_32: u32 = 0x400;
/// A pointer of 8 bytes, of 4 bytes.
const ATTRIBUTES_64: u32 = 0x1_000c;
const ATTRIBUTES_32: u32 = 0x800a;
const PUBLIC: u16 = 3;
const FORWARD_REFERENCE: u16 = 0x80;
const BUCKETS: u32 = 0x3_ffff;
/// Longest field list before it goes on in another record.
const LONGEST: usize = 0xf000;

/// Type records in the order of their indices, and their hashes.
#[derive(Default)]
pub(crate) struct Types {
    records: Vec<u8>,
    hashes: Vec<u32>,
    /// Index and offset of a record in about every 8 KB.
    offsets: Vec<(u32, u32)>,
    /// Records that many others refer to.
    shared: HashMap<(u16, Vec<u8>), u32>,
    forward: BTreeMap<String, u32>,
    complete: BTreeMap<String, u32>,
}

impl Types {
    /// Records of all enumerations, structures and unions.
    pub(crate) fn new(isf: &Isf) -> Result<Types, IsfError> {
        let mut types = Types::default();
        for (name, value) in &isf.enums {
            types.enumeration(isf, name, value)?;
        }
        for (name, value) in &isf.user_types {
            types.user_type(isf, name, value)?;
        }
        Ok(types)
    }

    /// The type stream; its hashes are in stream `hash_stream`.
    pub(crate) fn stream(&self, hash_stream: u16) -> Vec<u8> {
        let hashes = self.hashes.len() as u32 * 4;
        let offsets = self.offsets.len() as u32 * 8;
        let mut bytes = Vec::new();
        for value in [20_040_203, 56, FIRST, FIRST + self.hashes.len() as u32, self.records.len() as u32] {
            bytes.extend(u32::to_le_bytes(value));
        }
        bytes.extend(hash_stream.to_le_bytes());
        bytes.extend(u16::MAX.to_le_bytes());
        // Hash values, index offsets and an empty list of adjustments, as offset and length in the hash stream.
        for value in [4, BUCKETS, 0, hashes, hashes, offsets, hashes + offsets, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(&self.records);
        bytes
    }

    /// What goes into the hash stream.
    pub(crate) fn hash_stream(&self) -> Vec<u8> {
        let hashes = self.hashes.iter().flat_map(|hash| (hash % BUCKETS).to_le_bytes());
        let offsets = self.offsets.iter().flat_map(|(index, offset)| [*index, *offset]).flat_map(u32::to_le_bytes);
        hashes.chain(offsets).collect()
    }

    fn enumeration(&mut self, isf: &Isf, name: &str, value: &Enum) -> Result<(), IsfError> {
        let mut items = Vec::new();
        for (constant, number) in &value.constants {
            let mut item = LF_ENUMERATE.to_le_bytes().to_vec();
            item.extend(PUBLIC.to_le_bytes());
            item.extend(numeric(*number));
            push_name(&mut item, constant);
            items.push(item);
        }
        let fields = self.field_list(items);
        let mut body = (value.constants.len() as u16).to_le_bytes().to_vec();
        body.extend(0u16.to_le_bytes());
        body.extend(simple(isf, &value.base)?.to_le_bytes());
        body.extend(fields.to_le_bytes());
        push_name(&mut body, name);
        let index = self.add(LF_ENUM, &body, Some(name));
        self.complete.insert(name.to_owned(), index);
        Ok(())
    }

    /// The index of a complete structure or union; those it holds by value come before it.
    fn user_type(&mut self, isf: &Isf, name: &str, value: &UserType) -> Result<u32, IsfError> {
        if let Some(&index) = self.complete.get(name) {
            return Ok(index);
        }
        let mut fields: Vec<_> = value.fields.iter().collect();
        fields.sort_by_key(|(_, field)| match field.ty {
            Type::Bitfield { bit_position, .. } => (field.offset, bit_position),
            _ => (field.offset, 0),
        });
        let mut items = Vec::new();
        for (member, field) in &fields {
            let mut item = LF_MEMBER.to_le_bytes().to_vec();
            item.extend(PUBLIC.to_le_bytes());
            item.extend(self.reference(isf, &field.ty)?.to_le_bytes());
            item.extend(numeric(field.offset as i64));
            push_name(&mut item, member);
            items.push(item);
        }
        let list = self.field_list(items);
        let body = udt(value.kind, fields.len() as u16, 0, list, value.size, name);
        let index = self.add(leaf(value.kind), &body, Some(name));
        self.complete.insert(name.to_owned(), index);
        Ok(index)
    }

    /// The index of a type that is used by value.
    fn reference(&mut self, isf: &Isf, ty: &Type) -> Result<u32, IsfError> {
        Ok(match ty {
            Type::Base { name } => simple(isf, name)?,
            Type::Pointer { subtype } => self.pointer(isf, subtype)?,
            Type::Array { subtype, .. } => {
                let mut body = self.reference(isf, subtype)?.to_le_bytes().to_vec();
                body.extend(T_UQUAD.to_le_bytes());
                body.extend(numeric(isf.size_of(ty)? as i64));
                push_name(&mut body, "");
                self.shared(LF_ARRAY, body)
            }
            Type::Struct { name } => self.user_or_forward(isf, name, UserKind::Struct)?,
            Type::Union { name } => self.user_or_forward(isf, name, UserKind::Union)?,
            Type::Enum { name } => *self.complete.get(name).ok_or_else(|| IsfError::NoType(name.clone()))?,
            Type::Bitfield { bit_position, bit_length, ty } => {
                let mut body = self.reference(isf, ty)?.to_le_bytes().to_vec();
                body.extend([*bit_length, *bit_position]);
                self.shared(LF_BITFIELD, body)
            }
            Type::Function => {
                let arguments = self.shared(LF_ARGLIST, vec![0; 4]);
                let mut body = T_VOID.to_le_bytes().to_vec();
                body.extend([0; 4]);
                body.extend(arguments.to_le_bytes());
                self.shared(LF_PROCEDURE, body)
            }
        })
    }

    fn user_or_forward(&mut self, isf: &Isf, name: &str, kind: UserKind) -> Result<u32, IsfError> {
        match isf.user_types.get(name) {
            Some(value) => self.user_type(isf, name, value),
            None => Ok(self.forward(name, kind)),
        }
    }

    /// A pointer refers to a forward reference: its target may hold the pointer.
    fn pointer(&mut self, isf: &Isf, target: &Type) -> Result<u32, IsfError> {
        let (simple_pointer, attributes) = match isf.machine.is_x86() {
            true => (POINTER_32, ATTRIBUTES_32),
            false => (POINTER_64, ATTRIBUTES_64),
        };
        let target = match target {
            Type::Base { name } => return Ok(simple_pointer + simple(isf, name)?),
            Type::Struct { name } => self.forward(name, UserKind::Struct),
            Type::Union { name } => self.forward(name, UserKind::Union),
            other => self.reference(isf, other)?,
        };
        let mut body = target.to_le_bytes().to_vec();
        body.extend(attributes.to_le_bytes());
        Ok(self.shared(LF_POINTER, body))
    }

    fn forward(&mut self, name: &str, kind: UserKind) -> u32 {
        if let Some(&index) = self.forward.get(name) {
            return index;
        }
        let index = self.add(leaf(kind), &udt(kind, 0, FORWARD_REFERENCE, 0, 0, name), None);
        self.forward.insert(name.to_owned(), index);
        index
    }

    /// One record, or several that each name the next; those at the end come first.
    fn field_list(&mut self, items: Vec<Vec<u8>>) -> u32 {
        let mut parts = vec![Vec::new()];
        for mut item in items {
            // LF_PAD3, LF_PAD2, LF_PAD1: a member starts at a multiple of 4.
            while !item.len().is_multiple_of(4) {
                item.push(0xf0 | (4 - item.len() % 4) as u8);
            }
            if parts.last().is_some_and(|part: &Vec<u8>| part.len() + item.len() > LONGEST) {
                parts.push(Vec::new());
            }
            parts.last_mut().into_iter().for_each(|part| part.extend(&item));
        }
        let mut next = None;
        for mut part in parts.into_iter().rev() {
            if let Some(index) = next {
                part.extend(LF_INDEX.to_le_bytes());
                part.extend([0; 2]);
                part.extend(u32::to_le_bytes(index));
            }
            next = Some(self.add(LF_FIELDLIST, &part, None));
        }
        next.unwrap_or_default()
    }

    fn shared(&mut self, leaf: u16, body: Vec<u8>) -> u32 {
        if let Some(&index) = self.shared.get(&(leaf, body.clone())) {
            return index;
        }
        let index = self.add(leaf, &body, None);
        self.shared.insert((leaf, body), index);
        index
    }

    /// Appends a record. Complete user types are hashed by name, everything else by its bytes.
    fn add(&mut self, leaf: u16, body: &[u8], name: Option<&str>) -> u32 {
        let index = FIRST + self.hashes.len() as u32;
        let start = self.records.len();
        if self.offsets.last().is_none_or(|(_, offset)| start - *offset as usize >= 0x2000) {
            self.offsets.push((index, start as u32));
        }
        self.records.extend([0; 2]);
        self.records.extend(leaf.to_le_bytes());
        self.records.extend(body);
        while !self.records.len().is_multiple_of(4) {
            self.records.push(0xf0 | (4 - self.records.len() % 4) as u8);
        }
        // The length field does not count itself.
        let length = (self.records.len() - start - 2) as u16;
        self.records[start..start + 2].copy_from_slice(&length.to_le_bytes());
        let record = &self.records[start..];
        self.hashes.push(name.map_or_else(|| hash::record(record), hash::name));
        index
    }
}

fn leaf(kind: UserKind) -> u16 {
    match kind {
        UserKind::Struct => LF_STRUCTURE,
        UserKind::Union => LF_UNION,
    }
}

/// ```text
/// 0  u16 members   2  u16 properties   4  u32 field list
/// 8  u32 derived-from, u32 virtual-table shape (structures only)
/// .. numeric size, name
/// ```
fn udt(kind: UserKind, members: u16, properties: u16, fields: u32, size: u64, name: &str) -> Vec<u8> {
    let mut body = members.to_le_bytes().to_vec();
    body.extend(properties.to_le_bytes());
    body.extend(fields.to_le_bytes());
    if kind == UserKind::Struct {
        body.extend([0; 8]);
    }
    body.extend(numeric(size as i64));
    push_name(&mut body, name);
    body
}

fn push_name(bytes: &mut Vec<u8>, name: &str) {
    bytes.extend(name.as_bytes());
    bytes.push(0);
}

/// A number as type records hold it: 16 bits where they do, else a leaf that says how wide it is, and the value.
fn numeric(value: i64) -> Vec<u8> {
    let (leaf, width): (u16, usize) = match value {
        0..=0x7fff => return (value as u16).to_le_bytes().to_vec(),
        -0x80..=-1 => (0x8000, 1),
        -0x8000..=-0x81 => (0x8001, 2),
        0x8000..=0xffff => (0x8002, 2),
        -0x8000_0000..=-0x8001 => (0x8003, 4),
        0x1_0000..=0xffff_ffff => (0x8004, 4),
        _ => (0x8009, 8),
    };
    [&leaf.to_le_bytes()[..], &value.to_le_bytes()[..width]].concat()
}

/// The simple type of a base type, by name and, for names that are not known, by what it is.
fn simple(isf: &Isf, name: &str) -> Result<u32, IsfError> {
    Ok(match name {
        "void" => T_VOID,
        "HRESULT" => 0x08,
        "long" => 0x12,
        "unsigned long" => 0x22,
        "wchar" => 0x71,
        "char" => 0x70,
        _ => {
            let base = isf.base_types.get(name).ok_or_else(|| IsfError::NoType(name.to_owned()))?;
            match (base.kind.as_str(), base.size, base.signed) {
                ("bool", ..) => 0x30,
                ("float", 4, _) => 0x40,
                ("float", ..) => 0x41,
                (_, 1, true) => 0x10,
                (_, 1, false) => 0x20,
                (_, 2, true) => 0x11,
                (_, 2, false) => 0x21,
                (_, 4, true) => 0x74,
                (_, 4, false) => 0x75,
                (_, _, true) => 0x13,
                (_, _, false) => T_UQUAD,
            }
        }
    })
}
