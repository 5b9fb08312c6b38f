//! The pool: tags, blocks, pages, lists.

pub(in crate::commands) mod balance;
mod cost;
pub(in crate::commands) mod lookaside;
pub(in crate::commands) mod pool_find;
pub(in crate::commands) mod pool_page;
pub(in crate::commands) mod pool_top;
pub(in crate::commands) mod pool_used;
pub(in crate::commands) mod pool_val;
mod pool_watch;
pub(in crate::commands) mod selfcheck;
pub(in crate::commands) mod tag_owner;
pub(in crate::commands) mod virtual_memory;
