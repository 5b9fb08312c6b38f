#![doc = include_str!("../README.md")]

mod check;
mod harvest;
mod hex;
mod hunt;
mod identity;
mod line;
mod mark;
mod print;
mod private_file;
mod report;
mod saved;
mod snapshot;
mod stack;
pub mod survey;
mod trails;
mod trend;
pub mod units;
mod versus;
pub mod watch;

pub use check::{
    BlockReport, CheckReport, Evidence, Group, Growth, Summary, TagBooks, Verdict, check, compare, contents, weigh,
};
pub use harvest::{Harvest, Operation, Record};
pub use hunt::{AtMark, Culprit, Ended, Stop, Surveyed, WatchReport, culprit, room};
pub use identity::{Different, Identity, Times};
pub use mark::{Mark, MarkError};
pub use private_file::{create_private_folder, open_private, open_private_as_it_is, write_private};
pub use report::{Column, Page, flame_graph, folded, html, junit, pprof, sarif, umdh, umdh_snapshot};
pub use report::{ExportError, export_check, export_mark};
pub use report::{FORMATS, Format, FormatError, Sheet};
pub use saved::{NameOf, Saved, name_mark, name_report};
pub use snapshot::{
    Block, Counters, Depth, LogPosition, LookError, NoStack, Scope, SmallPool, Snapshot, Source, StackFrom, look, mark,
    small_pool,
};
pub use stack::{Frame, Module, Modules, Namer, PdbName, Resolver, Skip, Stack, StackId, Stacks};
pub use trails::{Trail, Trails};
pub use versus::{Change, StackChange, Versus, versus};

#[cfg(test)]
mod model;
