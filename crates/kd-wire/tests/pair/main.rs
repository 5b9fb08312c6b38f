//! A host and a target session over a network that loses, repeats, reorders and damages, with a clock of its own.

#![allow(clippy::unwrap_used)]

mod attach;
mod hostile;
mod loss;
mod network;
mod script;
mod serial;
