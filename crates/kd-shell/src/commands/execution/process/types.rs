//! What `!process` and `!thread` read: the kernel's types, its lists, its clock.

use std::collections::HashSet;
use std::sync::Arc;

use nt_memory::{Fault, Memory, ReadError};
use nt_symbols::{Layout, SymbolFile};

use crate::error::CommandError;
use crate::kernel::Kernel;
use crate::session::Context;
use crate::symbols::Symbols;
use crate::text::{Width, visible_name};
use crate::typed::{Record, offset_of, read_pointer};

/// Processes and threads of one list; no machine has more.
const MAX_LIST: usize = 1 << 16;

/// The kernel's types, and where they are read from.
pub(super) struct Types<'a> {
    pub(super) memory: &'a dyn Memory,
    pub(super) symbols: Arc<dyn SymbolFile>,
    pub(super) width: Width,
    /// The target's time, 100 ns since 1601.
    pub(super) time: Option<u64>,
    /// The clock's interrupts since the start.
    pub(super) ticks: Option<u64>,
    /// 100 ns between two of them.
    pub(super) increment: Option<u64>,
}

impl Types<'_> {
    pub(super) fn layout(&self, name: &str) -> Result<Arc<Layout>, CommandError> {
        let layout = self.symbols.layout(name);
        layout.ok_or_else(|| CommandError::Failed(format!("the symbols of nt have no type {name}")))
    }

    pub(super) fn offset(&self, type_name: &str, path: &str) -> Result<u64, CommandError> {
        let offset = offset_of(self.symbols.as_ref(), type_name, path);
        offset.ok_or_else(|| CommandError::Failed(format!("type {type_name} has no member {path}")))
    }

    pub(super) fn record(&self, type_name: &str, address: u64) -> Result<Record, CommandError> {
        Ok(Record::read(self.memory, self.layout(type_name)?, address)?)
    }

    pub(super) fn get(&self, record: &Record, path: &str) -> Option<u64> {
        record.get(self.symbols.as_ref(), path)
    }

    pub(super) fn first(&self, record: &Record, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.get(record, path))
    }

    /// The records of a circular list: the addresses that `Flink`s lead to, less `offset`.
    pub(super) fn list(&self, head: u64, offset: u64, notes: &mut Vec<String>) -> Result<Vec<u64>, Fault> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let mut at = head;
        loop {
            at = match read_pointer(self.memory, at, self.width) {
                Ok(next) => next,
                Err(ReadError::Fault(fault)) => return Err(fault),
                Err(hole) => {
                    notes.push(format!("the list at {} ends early: {hole}", self.width.pointer(head)));
                    return Ok(found);
                }
            };
            if at == head {
                return Ok(found);
            }
            if !self.width.is_kernel(at) || !seen.insert(at) || found.len() >= MAX_LIST {
                let (head, at) = (self.width.pointer(head), self.width.pointer(at));
                notes.push(format!("the list at {head} ends early: its link {at} makes no sense"));
                return Ok(found);
            }
            found.push(self.width.address(at.wrapping_sub(offset)));
        }
    }

    /// `ImageFileName` of an `_EPROCESS`: 15 bytes at most, with what a terminal would obey made visible.
    pub(super) fn image(&self, process: &Record) -> String {
        let name = process.bytes("ImageFileName").unwrap_or_default();
        let name: String = name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as char).collect();
        visible_name(&name)
    }

    /// A number of 32 bits in a structure that `pointer` leads to; `None` where it cannot be read.
    pub(super) fn u32_at(&self, pointer: u64, offset: u64) -> Result<Option<u64>, Fault> {
        match self.memory.read_u32(pointer.wrapping_add(offset)) {
            Ok(value) => Ok(Some(value.into())),
            Err(ReadError::Fault(fault)) => Err(fault),
            Err(ReadError::Hole { .. }) => Ok(None),
        }
    }

    /// The addresses of all processes.
    pub(super) fn processes(&self, kernel: &dyn Kernel, notes: &mut Vec<String>) -> Result<Vec<u64>, CommandError> {
        let Some(head) = self.symbols.symbol("PsActiveProcessHead") else {
            return Err(CommandError::Failed("the symbols of nt have no PsActiveProcessHead".into()));
        };
        let head = self.width.address(kernel.base().wrapping_add(head.rva.into()));
        Ok(self.list(head, self.offset("_EPROCESS", "ActiveProcessLinks")?, notes)?)
    }

    /// The processes with this id: one, as long as the list is whole.
    pub(super) fn with_id(
        &self,
        kernel: &dyn Kernel,
        id: u64,
        notes: &mut Vec<String>,
    ) -> Result<Vec<u64>, CommandError> {
        let offset = self.offset("_EPROCESS", "UniqueProcessId")?;
        let mut found = Vec::new();
        for process in self.processes(kernel, notes)? {
            match read_pointer(self.memory, process.wrapping_add(offset), self.width) {
                Ok(known) if known == id => found.push(process),
                Ok(_) | Err(ReadError::Hole { .. }) => {}
                Err(ReadError::Fault(fault)) => return Err(fault.into()),
            }
        }
        match found.is_empty() {
            true => Err(CommandError::Failed(format!("no process has the id {id:#x} (!process 0 0 lists them)"))),
            false => Ok(found),
        }
    }
}

pub(super) fn types<'a>(context: &mut Context<'a>) -> Result<Types<'a>, CommandError> {
    let kernel = context.kernel()?;
    types_of(kernel, &mut context.session.symbols)
}

fn types_of<'a>(kernel: &'a dyn Kernel, symbols: &mut Symbols) -> Result<Types<'a>, CommandError> {
    let file = symbols.nt(kernel)?;
    let (memory, width) = (kernel.memory(), kernel.width());
    let increment = match file.symbol("KeMaximumIncrement") {
        Some(symbol) => match memory.read_u32(width.address(kernel.base().wrapping_add(symbol.rva.into()))) {
            Ok(increment) => Some(increment.into()),
            Err(ReadError::Fault(fault)) => return Err(fault.into()),
            Err(ReadError::Hole { .. }) => None,
        },
        None => None,
    };
    let (time, ticks) = crate::vertarget::time_and_ticks(kernel)?.unzip();
    Ok(Types { memory, symbols: file, width, time, ticks, increment })
}

/// `00:00:00.052` of a time in units of 100 ns.
pub(super) fn clock(time: u64) -> String {
    let milliseconds = time / 10_000;
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let time = format!("{:02}:{:02}:{:02}.{rest:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86400 {
        0 => time,
        days => format!("{days} Days {time}"),
    }
}
