//! Kernel symbol tables in Volatility 3's format (ISF), the form in which the true layouts are carried.

use std::collections::BTreeMap;
use std::io::Cursor;

use serde::Deserialize;
use thiserror::Error;

use crate::machine::Machine;

/// Why a symbol table could not be read, or does not hold what was asked for.
#[derive(Debug, Error)]
pub enum IsfError {
    /// Not an xz file.
    #[error("the symbol table is not valid xz: {0}")]
    Xz(String),
    /// Not ISF.
    #[error("the symbol table is not valid ISF: {0}")]
    Json(#[from] serde_json::Error),
    /// The PDB's GUID is not 32 hex digits.
    #[error("{0:?} is not a GUID of 32 hex digits")]
    Guid(String),
    /// A symbol that the table does not have.
    #[error("the symbol table has no symbol {0}")]
    NoSymbol(String),
    /// A structure or union that the table does not have.
    #[error("the symbol table has no type {0}")]
    NoType(String),
    /// A member that the type does not have.
    #[error("{0} has no member {1}")]
    NoField(String, String),
    /// A kernel for a processor that is not known here.
    #[error("kernels of machine {0:#06x} are not known; x86 (0x14c), x64 (0x8664) and ARM64 (0xaa64) are")]
    Machine(u16),
}

/// A scalar type.
#[derive(Debug, Clone, Deserialize)]
pub struct BaseType {
    /// Bytes.
    pub size: u64,
    /// Whether it is a signed type.
    pub signed: bool,
    /// `int`, `char`, `float`, `void` or `bool`.
    pub kind: String,
}

/// An enumeration, whose values are all that is asked of it.
#[derive(Debug, Clone, Deserialize)]
pub struct Enum {
    /// Bytes.
    pub size: u64,
    /// Name of the underlying base type.
    pub base: String,
    /// Values by the names of its enumerators.
    pub constants: BTreeMap<String, i64>,
}

/// A structure or a union.
#[derive(Debug, Clone, Deserialize)]
pub struct UserType {
    /// Which of the two.
    pub kind: UserKind,
    /// Bytes.
    pub size: u64,
    /// Its members.
    pub fields: BTreeMap<String, Field>,
}

/// Structure or union.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserKind {
    /// `struct`
    Struct,
    /// `union`
    Union,
}

/// A member of a structure or a union.
#[derive(Debug, Clone, Deserialize)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: u64,
    /// What its bytes are read as.
    #[serde(rename = "type")]
    pub ty: Type,
}

/// A reference to a type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Type {
    /// A scalar.
    Base {
        /// Its name, as in [`Isf::base_types`].
        name: String,
    },
    /// As wide as the table's `pointer`.
    Pointer {
        /// What it points to.
        subtype: Box<Type>,
    },
    /// So many of one type, without room between them.
    Array {
        /// Number of elements.
        count: u64,
        /// Type of an element.
        subtype: Box<Type>,
    },
    /// A structure; it may be missing from [`Isf::user_types`] when it is only pointed to.
    Struct {
        /// In [`Isf::user_types`].
        name: String,
    },
    /// Described in the same table as structures are.
    Union {
        /// In [`Isf::user_types`].
        name: String,
    },
    /// Read as the scalar that it is based on.
    Enum {
        /// In [`Isf::enums`].
        name: String,
    },
    /// Bits of a scalar.
    Bitfield {
        /// Lowest bit.
        bit_position: u8,
        /// Number of bits.
        bit_length: u8,
        /// The scalar.
        #[serde(rename = "type")]
        ty: Box<Type>,
    },
    /// A function of unknown signature.
    Function,
}

/// A public symbol.
#[derive(Debug, Clone, Deserialize)]
pub struct Symbol {
    /// Relative virtual address.
    pub address: u64,
    /// The decorated name, where it differs from the plain one.
    pub linkage_name: Option<String>,
}

/// What ties a PDB to its image: the RSDS record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The GUID in memory order.
    pub guid: [u8; 16],
    /// How often the PDB was written since it was linked.
    pub age: u32,
    /// File name of the PDB.
    pub name: String,
}

impl Identity {
    /// From the GUID as 32 hex digits, the way symbol stores write it.
    pub fn new(guid: &str, age: u32, name: &str) -> Result<Identity, IsfError> {
        let value = u128::from_str_radix(guid, 16)
            .ok()
            .filter(|_| guid.len() == 32)
            .ok_or_else(|| IsfError::Guid(guid.to_owned()))?;
        let mut bytes = value.to_be_bytes();
        // The first three members of a GUID are little-endian integers.
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        Ok(Identity { guid: bytes, age, name: name.to_owned() })
    }

    /// The directory of a symbol store: the GUID's digits and the age in hex.
    pub fn store_key(&self) -> String {
        let mut bytes = self.guid;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        format!("{:032X}{:X}", u128::from_be_bytes(bytes), self.age)
    }
}

/// A kernel's symbols and types.
#[derive(Debug, Clone)]
pub struct Isf {
    /// Of the PDB it was made from.
    pub identity: Identity,
    /// What the kernel runs on.
    pub machine: Machine,
    /// Scalars by name.
    pub base_types: BTreeMap<String, BaseType>,
    /// Enumerations by name.
    pub enums: BTreeMap<String, Enum>,
    /// Structures and unions by name.
    pub user_types: BTreeMap<String, UserType>,
    /// Public symbols by plain name.
    pub symbols: BTreeMap<String, Symbol>,
}

/// The carried tables of parts of kernels (`data/README.md`), by what `kdpool fake --arch` calls them.
pub const CARRIED: [(&str, &[u8]); 10] = [
    ("x86-vista", include_bytes!("../data/x86-6002.json")),
    ("x86", include_bytes!("../data/x86-7601.json")),
    ("x86-pae", include_bytes!("../data/x86-pae-7601.json")),
    ("x86-heap", include_bytes!("../data/x86-19041.json")),
    ("x64-heap", include_bytes!("../data/x64-19041.json")),
    ("x64-22631", include_bytes!("../data/x64-22631.json")),
    ("x64-26100", include_bytes!("../data/x64-26100.json")),
    ("x64-later", include_bytes!("../data/x64-later.json")),
    ("arm64", include_bytes!("../data/arm64-16299.json")),
    ("arm64-26100", include_bytes!("../data/arm64-26100.json")),
];

impl Isf {
    /// One of [`CARRIED`].
    pub fn carried(name: &str) -> Option<Result<Isf, IsfError>> {
        CARRIED.iter().find(|(known, _)| *known == name).map(|(_, json)| Isf::from_json(json))
    }

    /// Reads an ISF file compressed with xz.
    pub fn from_xz(bytes: &[u8]) -> Result<Isf, IsfError> {
        let mut json = Vec::new();
        lzma_rs::xz_decompress(&mut Cursor::new(bytes), &mut json).map_err(|error| IsfError::Xz(error.to_string()))?;
        Isf::from_json(&json)
    }

    /// Reads an ISF file.
    pub fn from_json(json: &[u8]) -> Result<Isf, IsfError> {
        let file: File = serde_json::from_slice(json)?;
        let pdb = file.metadata.windows.pdb;
        Ok(Isf {
            machine: Machine::new(pdb.machine_type, file.user_types.get("_MMPTE_HARDWARE").map(|entry| entry.size))?,
            identity: Identity::new(&pdb.guid, pdb.age, &pdb.database)?,
            base_types: file.base_types,
            enums: file.enums,
            user_types: file.user_types,
            symbols: file.symbols,
        })
    }

    /// RVA of a symbol.
    pub fn symbol(&self, name: &str) -> Result<u64, IsfError> {
        self.symbols.get(name).map(|symbol| symbol.address).ok_or_else(|| IsfError::NoSymbol(name.to_owned()))
    }

    /// A structure or union by name.
    pub fn user_type(&self, name: &str) -> Result<&UserType, IsfError> {
        self.user_types.get(name).ok_or_else(|| IsfError::NoType(name.to_owned()))
    }

    /// Bytes of a structure or union.
    pub fn size(&self, name: &str) -> Result<u64, IsfError> {
        Ok(self.user_type(name)?.size)
    }

    /// Offset and type of a member, which may be one of a nested structure: `Pcb.Header.Type`.
    pub fn member(&self, name: &str, path: &str) -> Result<(u64, &Type), IsfError> {
        let mut offset = 0;
        let mut inner = name;
        let mut parts = path.split('.').peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let field = self
                .user_type(inner)?
                .fields
                .get(part)
                .ok_or_else(|| IsfError::NoField(inner.to_owned(), part.to_owned()))?;
            offset += field.offset;
            if parts.peek().is_none() {
                return Ok((offset, &field.ty));
            }
            match &field.ty {
                Type::Struct { name } | Type::Union { name } => inner = name,
                _ => return Err(IsfError::NoField(inner.to_owned(), path.to_owned())),
            }
        }
    }

    /// Offset of a member.
    pub fn offset(&self, name: &str, path: &str) -> Result<u64, IsfError> {
        Ok(self.member(name, path)?.0)
    }

    /// Bytes of a value of a type.
    pub fn size_of(&self, ty: &Type) -> Result<u64, IsfError> {
        Ok(match ty {
            Type::Base { name } => self.base_types.get(name).ok_or_else(|| IsfError::NoType(name.clone()))?.size,
            Type::Pointer { .. } => self.machine.pointer() as u64,
            Type::Array { count, subtype } => count * self.size_of(subtype)?,
            Type::Struct { name } | Type::Union { name } => self.size(name)?,
            Type::Enum { name } => self.enums.get(name).ok_or_else(|| IsfError::NoType(name.clone()))?.size,
            Type::Bitfield { ty, .. } => self.size_of(ty)?,
            Type::Function => 0,
        })
    }
}

#[derive(Deserialize)]
struct File {
    metadata: Metadata,
    base_types: BTreeMap<String, BaseType>,
    enums: BTreeMap<String, Enum>,
    user_types: BTreeMap<String, UserType>,
    symbols: BTreeMap<String, Symbol>,
}

#[derive(Deserialize)]
struct Metadata {
    windows: Windows,
}

#[derive(Deserialize)]
struct Windows {
    pdb: Pdb,
}

#[derive(Deserialize)]
struct Pdb {
    #[serde(rename = "GUID")]
    guid: String,
    age: u32,
    database: String,
    #[serde(default = "amd64")]
    machine_type: u16,
}

fn amd64() -> u16 {
    Machine::X64.number()
}
