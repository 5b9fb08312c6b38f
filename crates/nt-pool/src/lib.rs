//! The kernel's pool and Driver Verifier's books.

use nt_memory::{Fault, Memory, ReadError};
use nt_symbols::SymbolFile;

/// One kernel to be decoded: its memory, its names, where it is loaded.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    pub memory: &'a dyn Memory,
    pub symbols: &'a dyn SymbolFile,
    pub base: u64,
    /// 4 or 8.
    pub pointer_size: u8,
    pub build: u16,
}

/// Four characters that name an allocation's owner, in memory order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub [u8; 4]);

/// Why a question has no answer at all. Partial answers are results with notes.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("the symbols of nt have no {0}; check the symbol path (.sympath) and .reload")]
    NoSymbol(String),
    #[error("the symbols of nt have no type {0}; check the symbol path (.sympath) and .reload")]
    NoType(String),
    #[error("type {type_name} has no member {member}")]
    NoField { type_name: String, member: String },
    #[error("{0}")]
    Unlikely(String),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// `!poolused`
pub mod tags {
    use super::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Usage {
        pub allocs: u64,
        pub frees: u64,
        pub bytes: u64,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct TagUsage {
        pub tag: Tag,
        pub nonpaged: Usage,
        pub paged: Usage,
    }

    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    pub struct TagReport {
        /// Ordered by tag.
        pub tags: Vec<TagUsage>,
        /// What could not be read; empty when the report is complete.
        pub notes: Vec<String>,
    }

    /// Sums the tag tables. `wanted` filters by tag.
    pub fn read(_kernel: &Kernel<'_>, _wanted: &dyn Fn(Tag) -> bool) -> Result<TagReport, PoolError> {
        unimplemented!()
    }
}

/// The table of large allocations.
pub mod big_pages {
    use super::*;
    use std::ops::Range;

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct BigPage {
        pub address: u64,
        pub tag: Tag,
        pub protected: bool,
        pub size: u64,
        /// POOL_TYPE as it was requested.
        pub pool_type: u32,
        pub free: bool,
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct BigPages {
        /// Where the table lies.
        pub table: Range<u64>,
        /// Slots in use, and slots freed that still hold their last allocation (`free`), in table order.
        pub blocks: Vec<BigPage>,
        pub notes: Vec<String>,
    }

    /// Where the table lies; costs two small reads.
    pub fn table(_kernel: &Kernel<'_>) -> Result<Range<u64>, PoolError> {
        unimplemented!()
    }

    pub fn read(_kernel: &Kernel<'_>, _wanted: &dyn Fn(Tag) -> bool) -> Result<BigPages, PoolError> {
        unimplemented!()
    }
}

/// `!verifier 0x80`
pub mod pool_log {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Trace {
        /// Counts since the log was made; stays with a record until it is overwritten.
        pub sequence: u32,
        pub address: u64,
        pub size: u64,
        pub thread: u64,
        /// Return addresses, innermost first.
        pub frames: Vec<u64>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Wanted {
        All,
        Newest(u32),
        /// Records whose block contains the address.
        Address(u64),
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PoolLog {
        /// Slots in the ring.
        pub length: u32,
        pub index: u32,
        /// Slots looked at.
        pub parsed: u32,
        /// Newest first.
        pub traces: Vec<Trace>,
        pub notes: Vec<String>,
    }

    /// `Ok(None)`: the kernel keeps no such log now.
    pub fn read(_kernel: &Kernel<'_>, _wanted: Wanted) -> Result<Option<PoolLog>, PoolError> {
        unimplemented!()
    }
}
