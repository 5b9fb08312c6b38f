//! The decoders against kernels built by hand, byte by byte, from the facts' tables of layouts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod big_pages;
mod classic_pool;
mod find;
mod hostile;
mod isf;
mod lookaside;
mod measured;
mod page_counts;
mod pool_log;
mod pool_page;
mod segment_heap;
mod special_page;
mod support;
mod tags;
mod unloaded;
mod verifier;
