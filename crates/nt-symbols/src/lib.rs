//! Symbols and types of Windows modules.

use std::sync::Arc;

/// One name of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    pub name: String,
    /// Offset from the module's base.
    pub rva: u32,
}

/// What kind of file the names came from; kd's `lm` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// A stripped ("public") PDB.
    PublicPdb,
    /// A PDB with private symbols.
    PrivatePdb,
    /// Only the image's export table.
    Exports,
}

/// Names and types of one module, whatever file holds them.
pub trait SymbolFile: Send + Sync {
    fn kind(&self) -> SymbolKind;
    /// The file, as shown by `lm`.
    fn path(&self) -> &std::path::Path;
    /// Exact name; kd ignores case, so an exact-case match is preferred and any other is accepted.
    fn symbol(&self, name: &str) -> Option<Symbol>;
    /// The last symbol at or before `rva`, and the first one after it.
    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>);
    /// All symbols that match kd's wildcards (`*`, `?`), ordered by address.
    fn matching(&self, pattern: &str) -> Vec<Symbol>;
    /// A structure or union by name, forward references resolved.
    fn layout(&self, type_name: &str) -> Option<Arc<Layout>>;
}

/// A structure or union as the compiler laid it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub name: String,
    pub size: u64,
    /// In declaration order. Members of anonymous structures and unions are lifted into their parent.
    pub fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub offset: u64,
    /// Size in bytes of the whole member (of the storage unit for a bit field).
    pub size: u64,
    /// (first bit, number of bits) of a bit field.
    pub bits: Option<(u8, u8)>,
    /// Number of elements and size of one when the member is an array.
    pub array: Option<(u64, u64)>,
    /// The member's type by name, without pointers or dimensions (`_LIST_ENTRY`, `unsigned long`).
    pub type_name: String,
}

impl Layout {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}
