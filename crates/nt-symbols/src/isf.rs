//! Volatility's symbol tables (ISF): JSON made from a PDB, plain or compressed with xz.
//!
//! They hold what a public PDB holds, except the order in which members were declared and what functions return. A whole
//! table is read at once: the parts that a question needs are spread over all of the text.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::names::{Names, NamesBuilder};
use crate::{Enumeration, Field, Glob, Layout, PdbId, Symbol, SymbolError, SymbolFile, SymbolKind};

/// The largest kernel's table has 7 MB; all of a browser's would have a few hundred.
const MAX_TEXT: usize = 512 << 20;

/// Anonymous members nest a few levels deep.
const MAX_DEPTH: usize = 8;
/// Members of one type. The largest of a kernel have some 500.
const MAX_MEMBERS: usize = 0x10000;

#[derive(Deserialize)]
struct Document {
    metadata: Metadata,
    base_types: HashMap<String, BaseType>,
    #[serde(default)]
    user_types: HashMap<String, UserType>,
    #[serde(default)]
    enums: HashMap<String, EnumType>,
    #[serde(default)]
    symbols: Symbols,
}

#[derive(Deserialize)]
struct Metadata {
    windows: Option<Windows>,
}

#[derive(Deserialize)]
struct Windows {
    pdb: Option<PdbMetadata>,
}

#[derive(Deserialize)]
struct PdbMetadata {
    #[serde(rename = "GUID")]
    guid: String,
    /// Its file name.
    #[serde(default)]
    database: String,
    age: u32,
}

#[derive(Deserialize)]
struct BaseType {
    size: u64,
}

#[derive(Deserialize)]
struct UserType {
    size: u64,
    fields: HashMap<Box<str>, Member>,
}

#[derive(Deserialize)]
struct Member {
    offset: u64,
    #[serde(rename = "type")]
    kind: Type,
    /// The member has no name in the source; its own members are to be seen through it.
    #[serde(default)]
    anonymous: bool,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Type {
    Base {
        name: Box<str>,
    },
    Struct {
        name: Box<str>,
    },
    Class {
        name: Box<str>,
    },
    Union {
        name: Box<str>,
    },
    Enum {
        name: Box<str>,
    },
    Pointer {
        subtype: Box<Type>,
    },
    Array {
        count: u64,
        subtype: Box<Type>,
    },
    Bitfield {
        bit_position: u8,
        bit_length: u8,
        #[serde(rename = "type")]
        unit: Box<Type>,
    },
    Function,
}

#[derive(Deserialize)]
struct EnumType {
    size: u64,
    constants: HashMap<Box<str>, i64>,
}

#[derive(Default)]
struct Symbols(NamesBuilder);

impl<'de> Deserialize<'de> for Symbols {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Keeps each name as it is read, so that the names never exist one by one.
        struct Collect(NamesBuilder);

        #[derive(Deserialize)]
        struct Address {
            address: u64,
        }

        impl<'de> Visitor<'de> for Collect {
            type Value = Symbols;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("symbols and their addresses")
            }

            fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Symbols, A::Error> {
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    let Address { address } = map.next_value()?;
                    if let Ok(rva) = u32::try_from(address) {
                        self.0.push(&name, rva);
                    }
                }
                Ok(Symbols(self.0))
            }
        }

        deserializer.deserialize_map(Collect(NamesBuilder::default()))
    }
}

/// A loaded table.
pub struct Isf {
    path: PathBuf,
    id: Option<PdbId>,
    pdb_name: String,
    names: Names,
    base_types: HashMap<String, BaseType>,
    user_types: HashMap<String, UserType>,
    enums: HashMap<String, EnumType>,
    notes: Mutex<Vec<String>>,
}

impl fmt::Debug for Isf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isf").field("path", &self.path).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Isf {
    /// Reads a `.json` or `.json.xz` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Isf, SymbolError> {
        let path = path.as_ref();
        let io = |source| SymbolError::Io { path: path.to_owned(), source };
        let bytes = File::open(path).and_then(|file| heap_limit::read_whole(file, MAX_TEXT)).map_err(io)?;
        Isf::parse(path, bytes)
    }

    /// Parses a table; whether it is compressed is seen from its first bytes.
    pub fn parse(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Isf, SymbolError> {
        let path = path.into();
        let format = |why: String| SymbolError::Format { path: path.clone(), format: "ISF", why };
        let text = if bytes.starts_with(XZ_MAGIC) { unpacked(&bytes).map_err(format)? } else { bytes };
        let document: Document = serde_json::from_slice(&text).map_err(|e| format(e.to_string()))?;
        drop(text);
        let pdb = document.metadata.windows.and_then(|windows| windows.pdb);
        let id =
            pdb.as_ref().and_then(|pdb| Some(PdbId { guid: u128::from_str_radix(&pdb.guid, 16).ok()?, age: pdb.age }));
        let pdb_name = pdb.map(|pdb| pdb.database).unwrap_or_default();
        let names = document.symbols.0.build();
        Ok(Isf {
            path,
            id,
            pdb_name,
            names,
            base_types: document.base_types,
            user_types: document.user_types,
            enums: document.enums,
            notes: Mutex::default(),
        })
    }

    /// The PDB that the table was made from.
    pub fn id(&self) -> Option<PdbId> {
        self.id
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < 100 && !notes.contains(&text) {
            notes.push(text);
        }
    }

    fn size_of(&self, kind: &Type) -> u64 {
        match kind {
            Type::Base { name } => self.base_types.get(&**name).map_or(0, |base| base.size),
            Type::Struct { name } | Type::Class { name } | Type::Union { name } => {
                self.user_types.get(&**name).map_or(0, |user| user.size)
            }
            Type::Enum { name } => self.enums.get(&**name).map_or(4, |kind| kind.size),
            Type::Pointer { .. } => self.base_types.get("pointer").map_or(8, |base| base.size),
            Type::Array { count, subtype } => count.saturating_mul(self.size_of(subtype)),
            Type::Bitfield { unit, .. } => self.size_of(unit),
            Type::Function => 0,
        }
    }

    fn field(&self, name: &str, offset: u64, kind: &Type) -> Field {
        let mut field = Field {
            name: name.to_owned(),
            offset,
            size: self.size_of(kind),
            bits: None,
            array: None,
            pointers: 0,
            type_name: String::new(),
        };
        if let Type::Array { count, subtype } = kind {
            field.array = Some((*count, self.size_of(subtype)));
        }
        let mut kind = kind;
        loop {
            kind = match kind {
                Type::Pointer { subtype } => {
                    field.pointers = field.pointers.saturating_add(1);
                    subtype
                }
                Type::Array { subtype, .. } => subtype,
                Type::Bitfield { bit_position, bit_length, unit } => {
                    field.bits = Some((*bit_position, *bit_length));
                    unit
                }
                Type::Base { name }
                | Type::Struct { name }
                | Type::Class { name }
                | Type::Union { name }
                | Type::Enum { name } => {
                    field.type_name = name.clone().into();
                    return field;
                }
                Type::Function => {
                    field.type_name = "function".to_owned();
                    return field;
                }
            }
        }
    }

    /// `budget` bounds how many members are visited: a table can claim that a type holds itself many times.
    fn add_fields(&self, user: &UserType, base: u64, depth: usize, budget: &mut usize, fields: &mut Vec<Field>) {
        for (name, member) in &user.fields {
            let Some(left) = budget.checked_sub(1) else { return };
            *budget = left;
            let offset = base.wrapping_add(member.offset);
            let inner = match &member.kind {
                Type::Struct { name } | Type::Class { name } | Type::Union { name } if member.anonymous => {
                    self.user_types.get(&**name)
                }
                _ => None,
            };
            match inner {
                Some(inner) if depth < MAX_DEPTH => self.add_fields(inner, offset, depth + 1, budget, fields),
                _ => fields.push(self.field(name, offset, &member.kind)),
            }
        }
    }
}

/// A value by name, exact case first. The key that matched is returned because it is the type's true name.
fn look_up<'m, V>(map: &'m HashMap<String, V>, name: &str) -> Option<(&'m str, &'m V)> {
    let exact = map.get_key_value(name);
    let found =
        exact.or_else(|| map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).min_by_key(|(key, _)| *key));
    found.map(|(key, value)| (key.as_str(), value))
}

impl SymbolFile for Isf {
    fn kind(&self) -> SymbolKind {
        SymbolKind::PublicPdb
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> String {
        let name = self.pdb_name.as_str();
        name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned()
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        self.names.symbol(name)
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        self.names.around(rva)
    }

    fn matching(&self, pattern: &str) -> Vec<Symbol> {
        self.names.matching(pattern)
    }

    fn layout(&self, type_name: &str) -> Option<Arc<Layout>> {
        let (name, user) = look_up(&self.user_types, type_name)?;
        let mut fields = Vec::with_capacity(user.fields.len());
        let mut budget = MAX_MEMBERS;
        self.add_fields(user, 0, 0, &mut budget, &mut fields);
        if budget == 0 {
            self.note(format!("{name} has more than {MAX_MEMBERS} members; the rest is left out"));
        }
        // The table does not keep the order of declaration; by address is closest to it.
        fields.sort_by(|a, b| {
            (a.offset, a.bits.map(|bits| bits.0), &a.name).cmp(&(b.offset, b.bits.map(|bits| bits.0), &b.name))
        });
        Some(Arc::new(Layout { name: name.to_owned(), size: user.size, fields }))
    }

    fn enumeration(&self, enum_name: &str) -> Option<Arc<Enumeration>> {
        let (name, kind) = look_up(&self.enums, enum_name)?;
        let mut values: Vec<_> = kind.constants.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        values.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        Some(Arc::new(Enumeration { name: name.to_owned(), size: kind.size, values }))
    }

    fn types_matching(&self, pattern: &str) -> Vec<String> {
        let names = self.user_types.keys().chain(self.enums.keys());
        let glob = Glob::new(pattern);
        let mut names: Vec<_> = names.filter(|name| glob.matches(name)).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";

/// The text of an xz file. The decoder would keep whatever the file unpacks to, so the size is looked up first.
fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, String> {
    match unpacked_size(bytes) {
        None => return Err("its xz container is damaged".into()),
        Some(size) if size > MAX_TEXT as u64 => {
            return Err(format!("it unpacks to {size} bytes, and {MAX_TEXT} are allowed"));
        }
        Some(size) => heap_limit::room_for(size as usize).map_err(|full| full.to_string())?,
    }
    let mut text = Vec::new();
    let mut input = io::Cursor::new(bytes);
    // It adds numbers of the file up without a look at their size, and what overflows panics in builds that check that.
    // Nothing of it is used again after that.
    match catch_unwind(AssertUnwindSafe(|| lzma_rs::xz_decompress(&mut input, &mut text))) {
        Ok(Ok(())) => Ok(text),
        Ok(Err(error)) => Err(format!("xz: {error}")),
        Err(_) => Err("its xz container is damaged".into()),
    }
}

/// How much the chunks of an xz file say they unpack to, without unpacking them.
///
/// ```text
/// header 12 bytes, its byte 7 the kind of check | blocks | 00 index | footer
/// block: header of (first byte + 1) * 4 bytes | chunks | padding to 4 | check
/// chunk: 00 end | 01, 02 size-1 (u16be), data | 80.. bits 0-4 and u16be: unpacked size-1, u16be size-1, [properties], data
/// ```
fn unpacked_size(bytes: &[u8]) -> Option<u64> {
    let check = match bytes.get(7)? & 0xf {
        0 => 0,
        kind => 4usize << ((kind - 1) / 3),
    };
    let u16be = |at: usize| bytes.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)));
    let mut total = 0u64;
    let mut at = 12;
    loop {
        let start = at;
        match *bytes.get(at)? {
            0 => return Some(total),
            size => at += (usize::from(size) + 1) * 4,
        }
        loop {
            let control = *bytes.get(at)?;
            let (packed, size) = match control {
                0 => break,
                1 | 2 => {
                    let size = u16be(at + 1)? + 1;
                    (3 + size, size)
                }
                0x80.. => {
                    let size = (usize::from(control & 0x1f) << 16) + u16be(at + 1)? + 1;
                    let properties = usize::from(control >= 0xc0);
                    (5 + properties + u16be(at + 3)? + 1, size)
                }
                _ => return None,
            };
            total += size as u64;
            at += packed;
        }
        at = start + (at + 1 - start).next_multiple_of(4) + check;
    }
}
