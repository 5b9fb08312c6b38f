//! Return addresses with names.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::Arc;

use nt_memory::Fault;
use nt_pool::pool_log::{self, Operation, Trace};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::Known;
use crate::error::CommandError;
use crate::session::Context;
use crate::symbols::Names;
use crate::text::{Hex, Width};

/// A name that many frames have.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
pub(super) struct Name(#[schemars(with = "String")] Arc<str>);

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(super) struct Frame {
    pub(super) address: Hex,
    /// `null` outside all modules.
    pub(super) symbol: Option<Name>,
}

impl Frame {
    /// kd's line, without its end.
    pub(super) fn line(&self, width: Width) -> String {
        let address = width.pointer(self.address.0);
        match &self.symbol {
            Some(symbol) => format!("{address} {}", &**symbol),
            None => address,
        }
    }
}

/// Names the frames of one answer.
pub(super) struct Stacks<'a> {
    names: Names<'a>,
    width: Width,
    /// Show the calls and not where they return to.
    calls: bool,
    known: HashMap<u64, Option<Name>>,
    /// Frames outside kernel memory, and those in kernel memory that are in no module.
    strange: u64,
    nowhere: u64,
}

impl<'a> Stacks<'a> {
    pub(super) fn new(context: &'a mut Context<'_>, calls: bool) -> Result<Self, CommandError> {
        let width = context.width();
        Ok(Self { names: context.names()?, width, calls, known: HashMap::new(), strange: 0, nowhere: 0 })
    }

    fn name(&mut self, address: u64) -> Result<Option<Name>, Fault> {
        if let Some(name) = self.known.get(&address) {
            return Ok(name.clone());
        }
        let name = self.names.name_of_code(address)?.map(Name::from);
        self.known.insert(address, name.clone());
        Ok(name)
    }

    /// A frame's address, as modules' addresses are written.
    pub(super) fn address(&self, frame: u64) -> u64 {
        self.width.address(frame)
    }

    pub(super) fn frame(&mut self, address: u64) -> Result<Frame, Fault> {
        let address = self.width.address(address);
        if !self.width.is_kernel(address) {
            self.strange += 1;
        }
        // A byte of the call instruction, whatever its length.
        let address = self.width.address(address.wrapping_sub(u64::from(self.calls)));
        let symbol = self.name(address)?;
        self.nowhere += u64::from(symbol.is_none() && self.width.is_kernel(address));
        Ok(Frame { address: Hex(address), symbol })
    }

    pub(super) fn stack(&mut self, frames: &[u64]) -> Result<Vec<Frame>, Fault> {
        frames.iter().map(|&frame| self.frame(frame)).collect()
    }

    /// Whether a record of the pool log is of an allocation.
    pub(super) fn operation(&mut self, trace: &Trace) -> Result<Operation, Fault> {
        let leading: Vec<u64> = trace.frames.iter().take(pool_log::LEADING).copied().collect();
        for &frame in &leading {
            self.name(self.width.address(frame))?;
        }
        let symbol =
            |frame| self.known.get(&self.width.address(frame)).and_then(|name| Some(name.as_ref()?.to_string()));
        Ok(pool_log::operation(trace, &symbol))
    }

    /// Where the module of this name lies, or lay.
    pub(super) fn image(&mut self, name: &str) -> Result<Option<Range<u64>>, Fault> {
        self.names.image_named(name)
    }

    /// Adds what is to be known about the names.
    pub(super) fn finish(self, known: &mut Known) {
        known.notes.extend(self.names.notes().cloned());
        if self.strange > 0 {
            let (frames, are) = if self.strange == 1 { ("frame", "is") } else { ("frames", "are") };
            known.remarks.push(format!(
                "{} {frames} {are} outside kernel memory: the records that hold such are damaged.",
                self.strange
            ));
        }
        if self.nowhere > 0 {
            let (frames, are) = if self.nowhere == 1 { ("frame", "is") } else { ("frames", "are") };
            known
                .remarks
                .push(format!("{} {frames} {are} in no module that is loaded or was unloaded lately.", self.nowhere));
        }
    }
}
