#![doc = include_str!("../README.md")]

mod actor;
mod aside;
mod attach;
mod cache;
mod event;
mod gate;
mod halted;
mod left;
mod machine;
mod modules;
mod order;
mod pace;
mod pieces;
mod session;
mod status;
mod stop;
mod target;

pub use crate::aside::{Cost, Holder, Leaver, Meter};
pub use crate::attach::{Attach, AttachError, attach, open};
pub use crate::event::{Event, TargetError};
pub use crate::gate::{Gate, LargeRead};
pub use crate::halted::Halted;
pub use crate::left::{Leave, Left};
pub use crate::machine::Machine;
pub use crate::modules::{Module, Modules};
pub use crate::pace::Pace;
pub use crate::status::Interrupt;
pub use crate::stop::{DataAccess, Load, LoadStops, Stop, Version};
pub use crate::target::{Running, Target};
