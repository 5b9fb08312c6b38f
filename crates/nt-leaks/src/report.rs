//! Reports for people and for other tools.

mod ci;
mod flame;
mod html;
mod parquet;
mod pprof;
mod umdh;

pub use ci::{junit, sarif};
pub use flame::{Column, flame_graph, folded};
pub use html::{Page, html};
pub use parquet::{ExportError, export_check, export_mark};
pub use pprof::pprof;
pub use umdh::{umdh, umdh_snapshot};
