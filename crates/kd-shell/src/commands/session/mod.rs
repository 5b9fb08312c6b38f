//! The session itself.

pub(in crate::commands) mod alias;
pub(in crate::commands) mod each;
pub(in crate::commands) mod echo;
pub(in crate::commands) mod global_flags;
pub(in crate::commands) mod help;
pub(in crate::commands) mod log;
pub(in crate::commands) mod print_formatted;
pub(in crate::commands) mod stats;
pub(in crate::commands) mod time;
pub(in crate::commands) mod vertarget;
