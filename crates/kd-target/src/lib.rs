//! One attached kernel.
//!
//! [`attach`] puts a [`kd_link::Link`] and a KD session into a task of their own, which acknowledges packets at once,
//! whatever the user of this crate is doing: a target that is not acknowledged for a fraction of a second may give its
//! debugger up. What the user holds is a [`Target`] in one of two states, [`Halted`] or [`Running`]; only a halted one
//! has memory.
//!
//! The target is never left frozen by accident: dropping the handle, in whatever state and for whatever reason
//! (a panic included), removes breakpoints, lets the target run and waits until it does. Only
//! [`Target::leave`] with [`Leave::Halted`] leaves it standing.

mod actor;
mod cache;
mod continuing;
mod gate;
mod modules;
mod pace;
mod status;

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nt_memory::{Fault, Memory, PAGE_SIZE, Search, Spent};
use tokio::sync::{mpsc, oneshot};

use crate::cache::{Cache, Known};
use crate::gate::AtGate;
use crate::status::{Halt, KeptModules, Phase, Searching, Shared, lock};

pub use crate::gate::{Gate, LargeRead};
pub use crate::modules::{Module, Modules};
pub use crate::pace::Pace;
pub use crate::status::Interrupt;

/// What GetVersion answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// High byte: class of the debuggee; low byte: 0xF free, 0xC checked.
    pub major: u16,
    /// The build number.
    pub minor: u16,
    pub protocol: u8,
    pub flags: u16,
    /// PE machine: 0x014c, 0x8664, 0xaa64.
    pub machine: u16,
    pub kernel_base: u64,
    pub loaded_module_list: u64,
    pub debugger_data_list: u64,
}

impl Version {
    pub fn pointer_size(&self) -> u8 {
        if self.machine == 0x014c || self.machine == 0x01c4 { 4 } else { 8 }
    }

    pub fn is_multiprocessor(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// Why and where the target stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Exception code; 0x80000003 is a breakpoint or a break-in.
    pub code: u32,
    pub first_chance: bool,
    pub exception_address: u64,
    pub parameters: Vec<u64>,
    pub processor: u16,
    pub processors: u32,
    pub thread: u64,
    pub program_counter: u64,
    /// The bytes at the program counter that came with the stop.
    pub instructions: Vec<u8>,
    /// We asked for it: the break instruction is the target's answer to Ctrl+C, `.break` or `-bonc`.
    pub asked: bool,
    /// It is no exception but a driver that came or went and that was waited for ([`Halted::stop_at_loads`]).
    pub load: Option<Load>,
    /// The address of the breakpoint on data that was hit ([`Halted::set_data_breakpoint`]).
    pub data: Option<u64>,
}

/// What a breakpoint on data waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataAccess {
    /// Reads do not count.
    pub writes_only: bool,
    /// 1, 2, 4 or 8 bytes, which the address is a multiple of.
    pub size: u8,
}

/// A driver that was loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// As the kernel names it: `\SystemRoot\system32\drivers\x.sys`.
    pub path: String,
    pub base: u64,
    pub size: u32,
    pub unload: bool,
}

/// Says which loads and unloads the target stops at.
pub struct LoadStops(Box<dyn Fn(&Load) -> bool + Send>);

impl LoadStops {
    /// Stops where `wanted` is true.
    pub fn new(wanted: impl Fn(&Load) -> bool + Send + 'static) -> Self {
        Self(Box::new(wanted))
    }

    fn want(&self, load: &Load) -> bool {
        (self.0)(load)
    }
}

impl std::fmt::Debug for LoadStops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoadStops")
    }
}

/// What was asked of the target so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub requests: u64,
    /// Bytes of memory that came over the wire.
    pub bytes_read: u64,
    /// Bytes sent to the target, headers included.
    pub bytes_sent: u64,
    pub frozen: Duration,
}

/// What happens to the session on its own; the shell shows it when it sees fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Text that a driver printed (DbgPrint), untouched.
    Print(String),
    /// A prompt of the target (`DbgPrompt`) that was answered for it.
    Prompt {
        text: String,
        answer: String,
    },
    /// The transport is up: KDNET has keys with this peer, or a stream is open.
    Connected {
        peer: Option<std::net::SocketAddr>,
    },
    /// The target said that it reboots, or came back without saying so.
    Restarted {
        announced: bool,
    },
    /// The target stopped. [`Running::wait`] and [`Running::break_in`] return the stop itself.
    Stopped,
    /// Something that a person who wonders why it does not connect wants to know.
    Diagnostic(kd_wire::session::Diagnostic),
    /// A driver was loaded or unloaded while the target ran; it was continued at once.
    ModuleChange {
        path: String,
        base: u64,
        size: u32,
        unload: bool,
    },
    /// A lone break-in of before was answered only now; the target was continued at once.
    BreakInAbsorbed,
    /// The target was continued after a stop of its own and did not take this breakpoint of ours: its memory is gone.
    BreakpointMissed {
        address: u64,
        why: String,
    },
    /// The target stands and does not answer any more. It is asked until it does.
    Silent,
    AnswersAgain,
    Lost(String),
}

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("the target did not stop within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Nothing is heard of a target that is asked to stop.
    #[error("no answer for {} s: the target is gone, or its line is", .0.as_secs())]
    Gone(Duration),
    /// A target that stands did not answer a request.
    #[error("the target does not answer any more ({0})")]
    Silent(kd_wire::session::RequestFailure),
    #[error("{0}")]
    Refused(String),
}

/// How a session ended: what is known of the target that was left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    #[error("The target runs.")]
    Running,
    /// As was wished.
    #[error("The target stands still until a debugger comes.")]
    Halted,
    /// Nothing was ever heard of it.
    #[error("Break-ins were sent that nothing answered: a target that gets them later stands until a debugger comes.")]
    Unmet { break_ins: u32 },
    /// It was asked to stop and did not answer.
    #[error("The target did not answer the last break-in: it may stand. {LET_GO}")]
    Unanswered,
    #[error("The target did not acknowledge within {} s that it runs: it may still stand. {LET_GO}", .tried.as_secs())]
    Unacknowledged { tried: Duration },
    #[error(
        "The target stops again at {program_counter:016x} after each continue, as a kernel does after a bug check: it \
         stands, until it is reset."
    )]
    StopsAgain { program_counter: u64 },
    #[error("The link was lost ({why}) while the target was held: it may still stand. {LET_GO}")]
    LinkLost {
        why: String,
        /// It stood then, or was asked to.
        stood: bool,
        /// Something of ours was in it that stops it: a breakpoint, or memory changed for a while.
        changed: bool,
    },
    #[error("The target did not stop to have its breakpoints taken out: it stands at the next one. {LET_GO}")]
    Changed,
}

const LET_GO: &str = "Attach again and quit (q) to let it go, or reset it.";

impl Left {
    /// Whether the target may stand although nobody wanted that.
    pub fn may_stand(&self) -> bool {
        match self {
            Left::Running | Left::Halted => false,
            Left::Unmet { break_ins } => *break_ins > 0,
            Left::LinkLost { stood, changed, .. } => *stood || *changed,
            Left::Unanswered | Left::Unacknowledged { .. } | Left::StopsAgain { .. } | Left::Changed => true,
        }
    }
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// The target runs on.
    Running,
    /// The target stays frozen until another debugger comes.
    Halted,
}

/// What the handles ask of the session's task.
#[derive(Debug)]
enum Ask {
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
enum Answer {
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

#[derive(Debug)]
enum Command {
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

/// Ends a session from outside the thread that holds the target: signals use it, and whoever wants to know how it ended.
#[derive(Clone)]
pub struct Leaver {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

impl Leaver {
    /// Lets the target run and ends the session, if that is not done already.
    pub async fn leave(&self) -> Left {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Leave { leave: Leave::Running, done }).is_ok() {
            // The task may be gone already.
            let _ = is_done.await;
        }
        self.shared.status().left()
    }
}

/// Limits how long a command may hold the target: when the time is over the session's own task lets it run, whatever
/// the command is doing, and the command's next question to the target is answered with
/// [`Fault::Cancelled`].
#[derive(Clone)]
pub struct Holder {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

impl Holder {
    /// A command begins. The time counts while the target stands, and anew from each stop.
    pub fn begin(&self, limit: Duration) {
        self.shared.taken_away.store(false, Ordering::Relaxed);
        // A session that is over holds nothing.
        let _ = self.commands.send(Command::Hold(Some(limit)));
    }

    /// It is over; the target may stand as long as its user likes. Whether it was taken from the command.
    pub fn end(&self) -> bool {
        let _ = self.commands.send(Command::Hold(None));
        self.shared.taken_away.swap(false, Ordering::Relaxed)
    }
}

/// Looks at what a session costs while another thread works with the target.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Shared>);

impl Meter {
    pub fn cost(&self) -> Cost {
        self.0.status().cost()
    }

    /// How fast this link has been so far.
    pub fn pace(&self) -> Pace {
        *self.0.pace()
    }
}

/// The connection; it moves between the two states of [`Target`].
struct Session {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
}

/// Bytes of one write; a request of this size passes every carrier.
const WRITE_DATA: usize = 512;

impl Session {
    fn leave(&self, leave: Leave) -> Left {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Leave { leave, done }).is_ok() {
            // `blocking_recv` has no deadline; the task keeps one of its own (actor/leaving.rs).
            let _ = is_done.blocking_recv();
        }
        self.shared.status().left()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.leave(Leave::Running);
    }
}

/// A target in one of its two states. Commands that need the other state do not compile.
pub enum Target {
    Halted(Halted),
    Running(Running),
}

/// The target stands still: its memory can be read.
pub struct Halted {
    session: Session,
    halt: Arc<Halt>,
    cache: RefCell<Cache>,
    physical: RefCell<Cache>,
    modules: OnceCell<Modules>,
    /// Whose registers are meant: the one that stopped, until another one is chosen.
    processor: Cell<u16>,
}

/// The target runs, or is not connected yet: it can only be asked to stop.
pub struct Running {
    session: Session,
}

/// Starts a session on a link. The target counts as running until it says something else; with `break_in` it is asked
/// to stop as soon as it can be reached, without it the session only takes up what a halted target has to say.
pub fn attach(
    runtime: &tokio::runtime::Handle,
    link: Box<dyn kd_link::Link>,
    session: kd_wire::session::HostSession,
    break_in: bool,
    interrupt: Interrupt,
) -> (Running, Receiver<Event>) {
    let shared = Shared::new(interrupt);
    let (commands, orders) = mpsc::unbounded_channel();
    let (events, receiver) = std::sync::mpsc::channel();
    runtime.spawn(actor::run(link, session, break_in, shared.clone(), orders, events));
    (Running { session: Session { shared, commands } }, receiver)
}

impl Target {
    /// The state the target is in now: a halted one may have been reset, a running one may have stopped by itself.
    pub fn current(self) -> Self {
        match self {
            Self::Halted(halted) if !halted.is_current() => Self::Running(Running { session: halted.session }),
            Self::Running(running) => {
                let phase = running.session.shared.status().phase.clone();
                match phase {
                    Phase::Halted(halt) => Self::Halted(Halted::new(running.session, halt)),
                    Phase::Running | Phase::Over(_) => Self::Running(running),
                }
            }
            halted => halted,
        }
    }

    /// From now on `gate` looks at large reads.
    pub fn use_gate(&self, gate: Arc<dyn Gate>) {
        self.session().shared.gate().0 = Some(gate);
    }

    /// For whoever shows progress.
    pub fn meter(&self) -> Meter {
        Meter(self.session().shared.clone())
    }

    pub fn cost(&self) -> Cost {
        self.session().shared.status().cost()
    }

    /// Why the session is over, if it is.
    pub fn lost(&self) -> Option<String> {
        match &self.session().shared.status().phase {
            Phase::Over(why) => Some(why.clone()),
            Phase::Running | Phase::Halted(_) => None,
        }
    }

    /// Ends the session. Says what became of the target; [`Left::may_stand`] is what its user must hear of.
    pub fn leave(self, leave: Leave) -> Left {
        self.session().leave(leave)
    }

    /// For who limits how long commands may hold the target.
    pub fn holder(&self) -> Holder {
        let Session { shared, commands } = self.session();
        Holder { commands: commands.clone(), shared: shared.clone() }
    }

    fn session(&self) -> &Session {
        match self {
            Self::Halted(halted) => &halted.session,
            Self::Running(running) => &running.session,
        }
    }
}

impl Halted {
    fn new(session: Session, halt: Arc<Halt>) -> Self {
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

    fn is_current(&self) -> bool {
        match &self.session.shared.status().phase {
            Phase::Halted(halt) => halt.number == self.halt.number,
            // A lost session has no other state to go to; reads say that it is lost.
            Phase::Over(_) => true,
            Phase::Running => false,
        }
    }

    pub fn version(&self) -> &Version {
        &self.halt.version
    }

    /// Bytes of memory that one reply of this target carries, as far as that has shown itself.
    pub fn reply_data(&self) -> usize {
        self.session.shared.reply_data.load(Ordering::Relaxed).min(actor::MOST_READ_DATA)
    }

    pub fn stop(&self) -> &Stop {
        &self.halt.stop
    }

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

    /// Writes memory; returns how many bytes the target took. It ignores write protection.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<usize, Fault> {
        self.write_pieces(self.on_the_wire(address), data, false)
    }

    /// Writes physical memory.
    pub fn write_physical(&self, address: u64, data: &[u8]) -> Result<usize, Fault> {
        self.write_pieces(address, data, true)
    }

    fn write_pieces(&self, address: u64, data: &[u8], physical: bool) -> Result<usize, Fault> {
        // What is written changes memory that is known by other addresses as well.
        self.cache.take();
        self.physical.take();
        let mut done = 0;
        while done < data.len() {
            if self.session.shared.interrupt.take() {
                return Err(Fault::Cancelled);
            }
            let Some(at) = address.checked_add(done as u64) else { break };
            let length = (data.len() - done).min(WRITE_DATA).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let piece = Bytes::copy_from_slice(&data[done..done + length]);
            let written = match self.ask(Ask::Write { address: at, data: piece, physical }) {
                Ok(Answer::Count(written)) => (written as usize).min(length),
                Ok(other) => return Err(Fault::Lost(unexpected(&other).to_string())),
                Err(TargetError::Fault(fault)) => return Err(fault),
                Err(error) => return Err(Fault::Lost(error.to_string())),
            };
            done += written;
            if written < length {
                break;
            }
        }
        Ok(done)
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
        *status::lock(&self.session.shared.load_stops) = wanted;
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

    fn ask(&self, ask: Ask) -> Result<Answer, TargetError> {
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

    /// One request: as many of `length` bytes as a reply carries.
    fn fetch(&self, ask: impl FnOnce(usize) -> Ask, length: usize) -> Result<(Bytes, bool), Fault> {
        let shared = &self.session.shared;
        if shared.interrupt.take() {
            return Err(Fault::Cancelled);
        }
        let asked = length.min(shared.reply_data.load(Ordering::Relaxed));
        let started = Instant::now();
        let answer = self.ask(ask(asked));
        match answer {
            Ok(Answer::Bytes { bytes, ended }) => {
                shared.pace().add(bytes.len(), started.elapsed());
                Ok((bytes.slice(..bytes.len().min(asked)), ended))
            }
            Ok(other) => Err(Fault::Lost(unexpected(&other).to_string())),
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error) => Err(Fault::Lost(error.to_string())),
        }
    }

    /// Fills a gap of the cache, or marks where memory ends.
    fn fill(&self, address: u64, length: usize) -> Result<(), Fault> {
        let (bytes, ended) = self.fetch(|length| Ask::Read { address, length }, length)?;
        self.cache.borrow_mut().insert(address, &bytes);
        if !ended && !bytes.is_empty() {
            return Ok(());
        }
        let mut hole = address.wrapping_add(bytes.len() as u64);
        if !hole.is_multiple_of(PAGE_SIZE) && !bytes.is_empty() {
            // Memory ends at pages. A reply that ends elsewhere may only have been cut: ask once from there.
            let (rest, ended) = self.fetch(|length| Ask::Read { address: hole, length }, length - bytes.len())?;
            self.cache.borrow_mut().insert(hole, &rest);
            if !rest.is_empty() && !ended {
                return Ok(());
            }
            hole = hole.wrapping_add(rest.len() as u64);
        }
        self.cache.borrow_mut().mark_unreadable(hole);
        Ok(())
    }

    fn fill_physical(&self, address: u64, length: usize) -> Result<(), Fault> {
        // Targets read physical memory page by page.
        let length = length.min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        let (bytes, _) = self.fetch(|length| Ask::ReadPhysical { address, length }, length)?;
        let mut physical = self.physical.borrow_mut();
        physical.insert(address, &bytes);
        if bytes.is_empty() {
            physical.mark_unreadable(address);
        }
        Ok(())
    }
}

/// What the cache knows is copied from there; `fill` asks for the rest. Returns how far memory is readable.
fn read_through(
    cache: &RefCell<Cache>,
    address: u64,
    buffer: &mut [u8],
    fill: impl Fn(u64, usize) -> Result<(), Fault>,
) -> Result<usize, Fault> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(at) = address.checked_add(done as u64) else { break };
        let gap = match cache.borrow().at(at, buffer.len() - done) {
            Known::Bytes(bytes) => {
                buffer[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
                continue;
            }
            Known::Unreadable => break,
            Known::Gap(gap) => gap,
        };
        fill(at, gap)?;
    }
    Ok(done)
}

fn unexpected(answer: &Answer) -> TargetError {
    TargetError::Refused(format!("unexpected answer of the session: {answer:?}"))
}

impl Halted {
    /// An address as KD carries it: those of 32-bit targets are sign-extended.
    fn on_the_wire(&self, address: u64) -> u64 {
        if self.version().pointer_size() == 4 { i64::from(address as u32 as i32) as u64 } else { address }
    }
}

impl Memory for Halted {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let shared = &self.session.shared;
        let gate = AtGate::new(shared.gate().0.clone());
        read_through(&self.cache, self.on_the_wire(address), buffer, |at, gap| {
            let pace = *shared.pace();
            if !gate.passes(gap, self.reply_data(), pace) {
                return Err(Fault::Cancelled);
            }
            self.fill(at, gap)
        })
    }

    fn reply_size(&self) -> usize {
        self.reply_data()
    }

    fn spent(&self) -> Spent {
        let Cost { requests, bytes_read, frozen, .. } = self.cost();
        Spent { requests, bytes: bytes_read, time: frozen }
    }

    fn reread(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let address = self.on_the_wire(address);
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let (bytes, ended) = self.fetch(|length| Ask::Read { address: at, length }, buffer.len() - done)?;
            buffer[done..done + bytes.len()].copy_from_slice(&bytes);
            done += bytes.len();
            if ended || bytes.is_empty() {
                break;
            }
        }
        Ok(done)
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        read_through(&self.physical, address, buffer, |at, gap| self.fill_physical(at, gap))
    }

    fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        if self.session.shared.interrupt.take() {
            return Err(Fault::Cancelled);
        }
        if *lock(&self.session.shared.searching) == Searching::Refused {
            return Ok(Search::Unsupported);
        }
        let start = self.on_the_wire(address);
        let found = match self.search_once(start, length, pattern)? {
            // Told in the caller's own form.
            Search::Found(hit) => Search::Found(self.on_the_wire(hit).wrapping_sub(start).wrapping_add(address)),
            other => other,
        };
        self.learn_searching(found)?;
        Ok(found)
    }
}

impl Halted {
    fn search_once(&self, start: u64, length: u64, pattern: &[u8]) -> Result<Search, Fault> {
        match self.ask(Ask::Search { address: start, length, pattern: pattern.to_vec() }) {
            Ok(Answer::Search(search)) => Ok(search),
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error @ TargetError::Silent(_)) => Err(Fault::Lost(error.to_string())),
            Ok(_) | Err(_) => Ok(Search::Unsupported),
        }
    }

    /// A search that failed may have met a page that is not there. One where the kernel's image begins tells.
    fn learn_searching(&self, found: Search) -> Result<(), Fault> {
        let known = *lock(&self.session.shared.searching);
        let learned = match (found, known) {
            (_, Searching::Works) => return Ok(()),
            (Search::Found(_) | Search::NotFound, _) => Searching::Works,
            (Search::Unsupported, _) => {
                match self.search_once(self.on_the_wire(self.version().kernel_base), 4, b"PE\0\0")? {
                    Search::Unsupported => Searching::Refused,
                    _ => Searching::Works,
                }
            }
        };
        *lock(&self.session.shared.searching) = learned;
        Ok(())
    }
}

impl Running {
    /// For signal handlers.
    pub fn leaver(&self) -> Leaver {
        Leaver { commands: self.session.commands.clone(), shared: self.session.shared.clone() }
    }

    pub fn cost(&self) -> Cost {
        self.session.shared.status().cost()
    }

    /// Breaks in and waits for the stop. A target that was met before and is not heard of at all for some seconds is
    /// called gone, whatever patience is left; the break-in stays asked for.
    #[allow(clippy::result_large_err)] // The target comes back with the error: it still has to be let go.
    pub fn break_in(self, patience: Duration) -> Result<Halted, (Self, TargetError)> {
        // A closed channel shows below as a session that is over.
        let _ = self.session.commands.send(Command::BreakIn);
        if patience <= actor::GONE {
            return self.wait(Some(patience));
        }
        match self.wait(Some(actor::GONE)) {
            Err((running, TargetError::Timeout(_))) if running.is_gone() => {
                Err((running, TargetError::Gone(actor::GONE)))
            }
            Err((running, TargetError::Timeout(_))) => running.wait(Some(patience - actor::GONE)),
            result => result,
        }
    }

    fn is_gone(&self) -> bool {
        let met = self.session.shared.status().heard.is_some();
        met && !self.session.shared.was_heard_within(actor::GONE)
    }

    /// Waits until the target stops by itself, at most `patience` (for ever without one).
    #[allow(clippy::result_large_err)] // The target comes back with the error: it still has to be let go.
    pub fn wait(self, patience: Option<Duration>) -> Result<Halted, (Self, TargetError)> {
        match self.session.shared.wait_for_halt(patience) {
            Ok(Some(halt)) => Ok(Halted::new(self.session, halt)),
            Ok(None) => Err((self, TargetError::Timeout(patience.unwrap_or_default()))),
            Err(fault) => Err((self, fault.into())),
        }
    }
}
