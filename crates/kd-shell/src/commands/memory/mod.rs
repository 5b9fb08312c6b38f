//! Reading, searching and writing memory; numbers and types.

pub(in crate::commands) mod display_type;
pub(in crate::commands) mod dump;
pub(in crate::commands) mod edit;
pub(in crate::commands) mod evaluate;
pub(in crate::commands) mod evaluate_typed;
pub(in crate::commands) mod formats;
pub(in crate::commands) mod page_table;
pub(in crate::commands) mod radix;
pub(in crate::commands) mod search;
