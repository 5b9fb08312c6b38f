//! Running, stopping, registers, stacks, processes.

pub(in crate::commands) mod breakpoints;
pub(in crate::commands) mod bug_check;
pub(in crate::commands) mod control;
pub(in crate::commands) mod driver_object;
pub(in crate::commands) mod events;
pub(in crate::commands) mod filters;
pub(in crate::commands) mod process;
pub(in crate::commands) mod registers;
pub(in crate::commands) mod stack;
pub(in crate::commands) mod step;
pub(in crate::commands) mod unassemble;
