//! The breakpoints that a session has set.

use kd_target::{DataAccess, TargetError};
use schemars::JsonSchema;
use serde::Serialize;

use crate::kernel::Kernel;
use crate::text::Hex;

/// A breakpoint of this session.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct Breakpoint {
    pub(crate) number: u32,
    pub(crate) address: Hex,
    pub(crate) enabled: bool,
    pub(crate) symbol: Option<String>,
    /// It stops at this hit, counted from 1.
    pub(crate) passes: u64,
    pub(crate) passes_left: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commands: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) thread: Option<Hex>,
    pub(crate) once: bool,
    /// What it waits for when it is one on data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<Data>,
}

/// `w 4`, `r 8`
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct Data {
    /// `w` writes, `r` reads and writes.
    pub(crate) access: char,
    pub(crate) size: u8,
}

/// Puts a breakpoint into the target.
pub(crate) fn plant(kernel: &dyn Kernel, address: u64, data: Option<Data>) -> Result<(), TargetError> {
    match data {
        None => kernel.set_breakpoint(address),
        Some(Data { access, size }) => {
            kernel.set_data_breakpoint(address, DataAccess { writes_only: access == 'w', size })
        }
    }
}

/// What a stop at a breakpoint of ours means.
pub(crate) enum Hit {
    /// It is not to be seen.
    Pass,
    Stop {
        number: u32,
        commands: Option<String>,
    },
}

/// What is not there any more is gone as well: the target was reset.
pub(crate) fn clear(kernel: &dyn Kernel, address: u64) -> Result<(), TargetError> {
    match kernel.clear_breakpoint(address) {
        Err(TargetError::Refused(_)) => Ok(()),
        done => done,
    }
}
