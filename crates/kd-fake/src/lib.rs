//! A fake Windows kernel that is being debugged.
//!
//! It speaks KD over KDNET (UDP) and over serial lines (pseudo terminal, Unix socket, TCP), and shares no code with the
//! debugger in this workspace: a mistake in one of the two cannot be hidden by the same mistake in the other.
//! [`FakeHandle::stats`] tells what really happened to the target, for tests to compare.

mod faults;
pub mod isf;
mod kdnet;
pub mod kernel;
pub mod pdb;
mod server;
mod stats;
mod stub;
mod transport;

pub use faults::Faults;
pub use kdnet::KeyError;
pub use server::{Evolve, FakeHandle, FakeOptions, FakeTarget, ModuleLoad, Start, spawn};
pub use stats::Stats;
pub use transport::FakeTransport;
