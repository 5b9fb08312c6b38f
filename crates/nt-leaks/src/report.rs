//! Reports for people and for other tools.

mod flame;
mod html;
mod umdh;

pub use flame::{Column, flame_graph, folded};
pub use html::html;
pub use umdh::{umdh, umdh_snapshot};
