//! kd-fake

pub mod isf;
pub mod kernel;
pub mod pdb;
