//! A target that stands still: what is known of it, its registers, breakpoints, and how it goes on.

mod memory;

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use nt_memory::{Fault, Memory};
use tokio::sync::oneshot;

use crate::cache::Cache;
use crate::order::{Answer, Ask, Command};
use crate::session::Session;
use crate::status::{Halt, KeptModules, Phase, lock};
use crate::{Cost, DataAccess, LoadStops, Modules, Running, Stop, TargetError, Version, actor, modules};

/// The target stands still: its memory can be read.
pub struct Halted {
    pub(crate) session: Session,
    pub(crate) halt: Arc<Halt>,
    pub(crate) cache: RefCell<Cache>,
    pub(crate) physical: RefCell<Cache>,
    pub(crate) modules: OnceCell<Modules>,
    /// Whose registers are meant: the one that stopped, until another one is chosen.
    pub(crate) processor: Cell<u16>,
}

impl Halted {
    pub(crate) fn new(session: Session, halt: Arc<Halt>) -> Self {
        let processor = Cell::new(halt.stop.processor);
        Self {
            session,
            halt,
            cache: RefCell::default(),
            physical: RefCell::default(),
            modules: OnceCell::new(),
            processor,
        }
    }

    pub(crate) fn is_current(&self) -> bool {
        match &self.session.shared.status().phase {
            Phase::Halted(halt) => halt.number == self.halt.number,
            // A lost session has no other state to go to; reads say that it is lost.
            Phase::Over(_) => true,
            Phase::Running => false,
        }
    }

    /// What the target says of itself, asked once a boot.
    pub fn version(&self) -> &Version {
        &self.halt.version
    }

    /// Bytes of memory that one reply of this target carries, as far as that has shown itself.
    pub fn reply_data(&self) -> usize {
        self.session.shared.reply_data.load(Ordering::Relaxed).min(actor::MOST_READ_DATA)
    }

    /// Why and where it stands.
    pub fn stop(&self) -> &Stop {
        &self.halt.stop
    }

    /// What the session has cost by now.
    pub fn cost(&self) -> Cost {
        self.session.shared.status().cost()
    }

    /// The loaded-module list; read once per stop, and at a later stop only if it has changed.
    pub fn modules(&self) -> Result<&Modules, Fault> {
        if self.modules.get().is_none() {
            let modules = self.read_modules()?;
            return Ok(self.modules.get_or_init(|| modules));
        }
        Ok(self.modules.get_or_init(Modules::default))
    }

    /// The target tells us when it loads or unloads a driver. What it could not tell, a driver loaded while nobody
    /// listened, is at the list's end.
    fn read_modules(&self) -> Result<Modules, Fault> {
        let version = self.version();
        let (head, pointer_size) = (version.loaded_module_list, version.pointer_size());
        let mut ends = vec![0; 2 * usize::from(pointer_size)];
        let known = self.read(head, &mut ends)? == ends.len();
        if let Some(kept) = self.session.shared.kept_modules().as_ref().filter(|kept| known && kept.ends == ends) {
            return Ok(kept.modules.clone());
        }
        let modules = modules::read(self, head, pointer_size)?;
        if known && modules.notes.is_empty() {
            *self.session.shared.kept_modules() = Some(KeptModules { ends, modules: modules.clone() });
        }
        Ok(modules)
    }

    /// One processor's CONTEXT record, raw.
    pub fn context(&self, processor: u16) -> Result<Bytes, TargetError> {
        match self.ask(Ask::Context { processor })? {
            Answer::Bytes { bytes, .. } => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Replaces one processor's CONTEXT record.
    pub fn set_context(&self, processor: u16, context: Vec<u8>) -> Result<(), TargetError> {
        self.ask(Ask::SetContext { processor, context: context.into() }).map(drop)
    }

    /// The processor whose registers are meant. Memory is always read through the one that stopped.
    pub fn processor(&self) -> u16 {
        self.processor.get()
    }

    /// Chooses another processor until the target runs. Its registers can be had without moving the stop to it.
    pub fn set_processor(&self, processor: u16) -> Result<(), TargetError> {
        let processors = self.stop().processors;
        if u32::from(processor) >= processors {
            return Err(TargetError::Refused(format!("the target has {processors} processors; the first is 0")));
        }
        self.processor.set(processor);
        Ok(())
    }

    /// A part of one processor's control space: KSPECIAL_REGISTERS and the like.
    pub fn read_control(&self, processor: u16, selector: u64, length: u32) -> Result<Bytes, TargetError> {
        match self.ask(Ask::ReadControl { processor, selector, length })? {
            Answer::Bytes { bytes, .. } => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    /// Before the target is left, however that comes about, these bytes are written here; empty ones take it back.
    pub fn restore_on_leave(&self, address: u64, data: &[u8]) -> Result<(), TargetError> {
        let (address, data) = (self.on_the_wire(address), Bytes::copy_from_slice(data));
        self.ask(Ask::RestoreOnLeave { address, data }).map(drop)
    }

    /// Adds a breakpoint, which is in the target's table while the target runs. Leaving takes all of them out.
    pub fn set_breakpoint(&self, address: u64) -> Result<(), TargetError> {
        self.ask(Ask::SetBreakpoint { address: self.on_the_wire(address) }).map(drop)
    }

    /// Adds a breakpoint on data, in a debug register of every processor: four at most, on x64 and x86. It is on while
    /// the target runs for us, and leaving turns it off.
    pub fn set_data_breakpoint(&self, address: u64, access: DataAccess) -> Result<(), TargetError> {
        self.ask(Ask::SetDataBreakpoint { address: self.on_the_wire(address), access }).map(drop)
    }

    /// Takes a breakpoint of ours out.
    pub fn clear_breakpoint(&self, address: u64) -> Result<(), TargetError> {
        self.ask(Ask::ClearBreakpoint { address: self.on_the_wire(address) }).map(drop)
    }

    /// Lets the target run. A hard-coded breakpoint at the program counter is stepped over first.
    #[allow(clippy::result_large_err)] // The target comes back with the error: it still has to be let go.
    pub fn go(self) -> Result<Running, (Self, TargetError)> {
        self.let_run(false)
    }

    /// Lets the processor that stopped run one instruction; the target stops again when that is done.
    #[allow(clippy::result_large_err)] // As above.
    pub fn step(self) -> Result<Running, (Self, TargetError)> {
        self.let_run(true)
    }

    /// Restarts the machine. It says so, and comes back as another boot of the same target.
    #[allow(clippy::result_large_err)] // As above.
    pub fn reboot(self) -> Result<Running, (Self, TargetError)> {
        self.end_run(false)
    }

    /// Makes the machine crash (bugcheck 0xE2). It writes its dump as it is set to, and stops once more before that.
    #[allow(clippy::result_large_err)] // As above.
    pub fn crash(self) -> Result<Running, (Self, TargetError)> {
        self.end_run(true)
    }

    /// From now on the target stops where it tells of a driver that `wanted` wants, until another one is given; with
    /// `None` at no driver.
    pub fn stop_at_loads(&self, wanted: Option<LoadStops>) {
        *lock(&self.session.shared.load_stops) = wanted;
    }

    #[allow(clippy::result_large_err)] // As above.
    fn end_run(self, crash: bool) -> Result<Running, (Self, TargetError)> {
        match self.ask(Ask::EndRun { crash }) {
            Ok(_) => Ok(Running { session: self.session }),
            Err(error) => Err((self, error)),
        }
    }

    #[allow(clippy::result_large_err)] // As above.
    fn let_run(self, single_step: bool) -> Result<Running, (Self, TargetError)> {
        match self.ask(Ask::Go { single_step }) {
            Ok(_) => Ok(Running { session: self.session }),
            Err(error) => Err((self, error)),
        }
    }

    pub(crate) fn ask(&self, ask: Ask) -> Result<Answer, TargetError> {
        let (answer, receiver) = oneshot::channel();
        let lost = || TargetError::Fault(Fault::Lost(self.why_lost()));
        self.session.commands.send(Command::Ask { halt: self.halt.number, ask, answer }).map_err(|_| lost())?;
        receiver.blocking_recv().unwrap_or_else(|_| Err(lost()))
    }

    fn why_lost(&self) -> String {
        match &self.session.shared.status().phase {
            Phase::Over(why) => why.clone(),
            Phase::Running | Phase::Halted(_) => "the session ended".into(),
        }
    }
}

fn unexpected(answer: &Answer) -> TargetError {
    TargetError::Refused(format!("unexpected answer of the session: {answer:?}"))
}
