#![doc = include_str!("../README.md")]
//!
//! The kernel's pool and Driver Verifier's books, decoded from memory.
//!
//! This crate knows no transport and no offsets: it reads through [`nt_memory::Memory`] and takes every place and
//! width from the target's own symbols ([`nt_symbols::SymbolFile`]). What cannot be read is said in the result's
//! `notes`; an error means that a question has no answer at all.
//!
//! Counts and pointers come from an untrusted target: each is checked against a documented bound before it is used.

mod allowance;
pub mod around;
pub mod big_pages;
pub mod bug_check;
pub mod build;
pub mod checks;
mod classic_pool;
pub mod find;
pub mod freed;
pub mod history;
mod kernel;
mod kind;
mod lfh_subsegment;
mod lists;
pub mod lookaside;
pub mod notes;
pub mod page_counts;
mod page_tables;
mod pool_header;
pub mod pool_log;
pub mod pool_page;
pub mod pooltag;
pub mod readings;
mod record;
mod ring;
mod search;
pub mod segment_heap;
pub mod selfcheck;
pub mod sessions;
pub mod small_blocks;
pub mod special_page;
mod table;
mod tag;
pub mod tag_owner;
mod tag_search;
pub mod tags;
pub mod unloaded;
pub mod verifier;
mod vs_lists;
mod vs_subsegment;
mod walk;

pub use checks::Check;
pub use kernel::{Kernel, PoolError};
pub use kind::PoolKind;
pub use notes::{Lack, Missing, Note, Notes};
pub use tag::{BadTag, Tag, TagPattern};
