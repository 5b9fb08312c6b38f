#![doc = include_str!("../README.md")]
//!
//! Symbols and types of Windows modules.
//!
//! [`SymbolFile`] is what the rest of kdpool knows: names, addresses and layouts of one module, whatever file holds
//! them. Three kinds of file do: a PDB ([`Pdb`]), Volatility's JSON tables made from one ([`Isf`]), and the image's own
//! export table ([`Exports`]). [`rsds`] reads from a mapped image which PDB belongs to it, and [`SymbolPath`] finds that
//! file along a path in kd's syntax, and fetches it from the path's
//! [`Servers`] when the caller lends them ([`Reach`]); the feature `http` has the client.
//!
//! Everything read here is untrusted. A damaged file gives an error or a partial answer that says so in
//! [`SymbolFile::notes`].

use std::sync::Arc;

mod bytes;
mod cab;
mod exports;
mod fetch;
mod glob;
#[cfg(feature = "http")]
mod http;
mod id;
mod image;
mod image_file;
mod isf;
mod names;
mod path;
mod pdb;
mod search;
#[cfg(test)]
mod testing;
mod tpi;

pub use cab::{CabError, expand as expand_cabinet};
pub use exports::Exports;
pub use fetch::{Event, Fetch, FetchError, MAX_FILE, Observer, Servers};
pub use glob::{Glob, matches_glob};
#[cfg(feature = "http")]
pub use http::{Http, Patience};
pub use id::{BadPdbName, PdbId, safe_file_name};
pub use image::{Image, ImageError, ImageIdentity, Section, rsds, rsds_at};
pub use image_file::ImageFile;
pub use isf::Isf;
pub use names::undecorated;
pub use path::{Element, PathError, SymbolPath, default_store};
pub use pdb::Pdb;
pub use search::{Attempt, Found, FoundImage, ImageKey, NotFound, Outcome, Reach, Wanted};

/// One name of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// As the linker writes it, decorated.
    pub name: String,
    /// Offset from the module's base.
    pub rva: u32,
}

/// What kind of file the names came from; kd's `lm` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// A stripped ("public") PDB, or an ISF table made from one.
    PublicPdb,
    /// A PDB with private symbols.
    PrivatePdb,
    /// Only the image's export table.
    Exports,
}

/// Names and types of one module, whatever file holds them.
pub trait SymbolFile: Send + Sync {
    /// What kind of file it is: full symbols, public ones, or exports.
    fn kind(&self) -> SymbolKind;
    /// The file, as shown by `lm`.
    fn path(&self) -> &std::path::Path;
    /// What the linker called it, without its extension (`ntkrnlmp`).
    fn name(&self) -> String {
        self.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
    /// Exact name; kd ignores case, so an exact-case match is preferred and any other is accepted.
    fn symbol(&self, name: &str) -> Option<Symbol>;
    /// The last symbol at or before `rva`, and the first one after it.
    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>);
    /// All symbols that match kd's wildcards (`*`, `?`), ordered by address.
    fn matching(&self, pattern: &str) -> Vec<Symbol>;
    /// A structure or union by name, forward references resolved.
    fn layout(&self, type_name: &str) -> Option<Arc<Layout>>;
    /// The enumerators of an enumeration.
    fn enumeration(&self, _enum_name: &str) -> Option<Arc<Enumeration>> {
        None
    }
    /// The value of one enumerator (`_MI_ASSIGNED_REGION_TYPES`, `AssignedRegionPagedPool`).
    fn enum_value(&self, enum_name: &str, enumerator: &str) -> Option<i64> {
        self.enumeration(enum_name)?.value(enumerator)
    }
    /// Names of structures, unions and enumerations that match kd's wildcards, in alphabetical order.
    fn types_matching(&self, _pattern: &str) -> Vec<String> {
        Vec::new()
    }
    /// What of this file could not be read so far; an answer that is missing may be missing because of it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why a symbol file cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a usable {format} file: {why}")]
    Format {
        /// Which file.
        path: std::path::PathBuf,
        /// What it was read as: `PDB`, `ISF`.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// A structure or union as the compiler laid it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// As the PDB spells it: `_POOL_HEADER`.
    pub name: String,
    /// Bytes of one.
    pub size: u64,
    /// In declaration order. Members of anonymous structures and unions are lifted into their parent.
    pub fields: Vec<Field>,
}

/// A member of a structure or union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// As the PDB spells it: `PoolTag`.
    pub name: String,
    /// Bytes from the structure's beginning.
    pub offset: u64,
    /// Size in bytes of the whole member (of the storage unit for a bit field).
    pub size: u64,
    /// (first bit, number of bits) of a bit field.
    pub bits: Option<(u8, u8)>,
    /// Number of elements and size of one when the member is an array.
    pub array: Option<(u64, u64)>,
    /// How many pointers lead to `type_name`; an array of pointers has 1 here and its dimension in `array`.
    pub pointers: u8,
    /// The member's type by name, without pointers or dimensions (`_LIST_ENTRY`, `unsigned long`). A type without a name
    /// gets one that [`SymbolFile::layout`] understands (`__unnamed_1047`).
    pub type_name: String,
}

/// Names for numbers, as a PDB has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enumeration {
    /// As the PDB spells it: `_POOL_TYPE`.
    pub name: String,
    /// Size in bytes of a variable of this type.
    pub size: u64,
    /// Enumerators and their values, in the file's order.
    pub values: Vec<(String, i64)>,
}

impl Enumeration {
    /// What an enumerator stands for.
    pub fn value(&self, enumerator: &str) -> Option<i64> {
        self.values.iter().find(|(name, _)| name == enumerator).map(|(_, value)| *value)
    }
}

impl Layout {
    /// The member of this name, if there is one.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}
