#![doc = include_str!("../README.md")]
//!
//! A fake Windows kernel that is being debugged.
//!
//! It speaks KD over KDNET (UDP) and over serial lines (pseudo terminal, Unix socket, TCP), and shares no code with the
//! debugger in this workspace: a mistake in one of the two cannot be hidden by the same mistake in the other.
//! [`FakeHandle::stats`] tells what really happened to the target, for tests to compare.
//!
//! The machine is a [`kernel::Kernel`]: that of the article ([`kernel::article`]), or one of any x64 kernel whose symbol
//! table there is, with a state that a seed decides ([`kernel::seeded`]). Its pool changes while it runs
//! ([`FakeOptions::evolve`], and [`kernel::demo`] for a hunt) or when a test says so ([`FakeHandle::with_kernel`]), its books are kept as the kernel keeps
//! them, and [`kernel::Kernel::truth`] says what is in it. [`kernel::Kernel::write_raw`] writes its physical memory as
//! Volatility 3 reads it: `vol -s SYMBOLS -f memory.raw windows.bigpools`, with the table of the same kernel in
//! `SYMBOLS/windows/ntkrnlmp.pdb`.

mod faults;
pub mod isf;
mod kdnet;
pub mod kernel;
mod machine;
pub mod pdb;
mod server;
mod stats;
mod stub;
mod transport;

pub use faults::Faults;
pub use kdnet::KeyError;
pub use machine::Machine;
pub use server::{Evolve, FakeHandle, FakeOptions, FakeTarget, ModuleLoad, Start, spawn};
pub use stats::Stats;
pub use transport::{FakeTransport, free_port};
