//! What the handles send to the session's task, and what they get back.

use std::time::Duration;

use bytes::Bytes;
use nt_memory::Search;
use tokio::sync::oneshot;

use crate::{DataAccess, Leave, TargetError};

#[derive(Debug)]
pub(crate) enum Command {
    Ask {
        halt: u64,
        ask: Ask,
        answer: oneshot::Sender<Result<Answer, TargetError>>,
    },
    BreakIn,
    /// A command begins that may hold the target so long, or ends.
    Hold(Option<Duration>),
    Leave {
        leave: Leave,
        done: oneshot::Sender<()>,
    },
}

/// What the handles ask of the session's task.
#[derive(Debug)]
pub(crate) enum Ask {
    Read {
        address: u64,
        length: usize,
    },
    ReadPhysical {
        address: u64,
        length: usize,
    },
    Write {
        address: u64,
        data: Bytes,
        physical: bool,
    },
    Search {
        address: u64,
        length: u64,
        pattern: Vec<u8>,
    },
    Context {
        processor: u16,
    },
    SetContext {
        processor: u16,
        context: Bytes,
    },
    ReadControl {
        processor: u16,
        selector: u64,
        length: u32,
    },
    SetBreakpoint {
        address: u64,
    },
    ClearBreakpoint {
        address: u64,
    },
    SetDataBreakpoint {
        address: u64,
        access: DataAccess,
    },
    /// Restart the machine, or make it crash.
    EndRun {
        crash: bool,
    },
    /// What is written back before the target is left; without data nothing any more.
    RestoreOnLeave {
        address: u64,
        data: Bytes,
    },
    Go {
        single_step: bool,
    },
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// Good bytes, and whether the target said that the next one is unreadable.
    Bytes {
        bytes: Bytes,
        ended: bool,
    },
    Search(Search),
    /// Bytes written.
    Count(u32),
    Done,
}
