//! Processes and threads: `!process`, `!thread`, `.process`, `.thread`.
//!
//! ```text
//! **** NT ACTIVE PROCESS DUMP ****
//! PROCESS ffffe0007bbde900
//!     SessionId: 1  Cid: 0f34    Peb: 7ff72dfa7000  ParentCid: 0c64
//!     DirBase: 19c5fa000  ObjectTable: ffffc001d8c2f300  HandleCount:  31.
//!     Image: cmd.exe
//! ```

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use kd_target::Machine;
use nt_memory::{Fault, Memory, ReadError};
use nt_symbols::{Layout, SymbolFile};
use nt_unwind::State;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate, evaluate_all};
use crate::kernel::Kernel;
use crate::registers::{self, Registers};
use crate::session::Context;
use crate::stack;
use crate::symbols::Symbols;
use crate::text::{Hex, Width, visible_name};
use crate::translation::current_process;
use crate::typed::{Record, offset_of, read_pointer};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!process"],
    usage: "!process [address | id | -1 | 0 [flags [image]]]",
    help: "show processes",
    details: "!process 0 0 lists all of them, !process 0 0 name.exe those with that image; without an argument the current \
              one is shown,\nas with -1. An id is a process's number (!process 4). Flag 1 shows times, quotas and sizes, 4 threads, 2 threads with what they wait \
              for, 6 and 7\nalso their stacks (of waiting threads on x64).",
    action: Action::Answer(run),
};

pub(in crate::commands) const THREAD: CommandInfo = CommandInfo {
    names: &["!thread"],
    usage: "!thread [address]",
    help: "show a thread and its stack; without an address the current one",
    details: "The stack of a thread that does not run is shown on x64 only.",
    action: Action::Answer(thread),
};

pub(in crate::commands) const SET_PROCESS: CommandInfo = CommandInfo {
    names: &[".process"],
    usage: ".process [/p] [/r] [address]",
    help: "choose the process whose user memory is read",
    details: "d*, dt, da, s, u, poi() and e* read and write addresses of user memory through its\n\
              page tables; $proc and !pte mean it. /p and /r are accepted, and change nothing:\n\
              no translation is kept that would have to be dropped. 0 goes back to the\n\
              current process; so does letting the target run.",
    action: Action::Answer(set_process),
};

pub(in crate::commands) const SET_THREAD: CommandInfo = CommandInfo {
    names: &[".thread"],
    usage: ".thread [address]",
    help: "choose the thread whose stack k shows",
    details: "0 goes back to the current one; so does letting the target run.",
    action: Action::Answer(set_thread),
};

/// Processes and threads of one list; no machine has more.
const MAX_LIST: usize = 1 << 16;

#[derive(Serialize)]
struct Processes {
    processes: Vec<Process>,
    #[serde(skip)]
    all: bool,
    #[serde(skip)]
    width: Width,
}

#[derive(Serialize)]
struct Process {
    address: Hex,
    /// `null` for those of no session.
    session_id: Option<u64>,
    process_id: Option<u64>,
    parent_id: Option<u64>,
    peb: Option<Hex>,
    directory_base: Option<Hex>,
    object_table: Option<Hex>,
    handles: Option<u64>,
    image: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<(&'static str, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    threads: Vec<Thread>,
}

#[derive(Serialize)]
struct Thread {
    address: Hex,
    process_id: Option<u64>,
    thread_id: Option<u64>,
    teb: Option<Hex>,
    win32_thread: Option<Hex>,
    state: String,
    process: Option<Hex>,
    image: Option<String>,
    start: Option<Hex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<(&'static str, String)>,
    /// With flags 2 and 4 of `!process`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<stack::Stack>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_stack: Option<String>,
}

/// The kernel's types, and where they are read from.
struct Types<'a> {
    memory: &'a dyn Memory,
    symbols: Arc<dyn SymbolFile>,
    width: Width,
    /// The target's time, 100 ns since 1601.
    time: Option<u64>,
    /// The clock's interrupts since the start.
    ticks: Option<u64>,
    /// 100 ns between two of them.
    increment: Option<u64>,
}

impl Types<'_> {
    fn layout(&self, name: &str) -> Result<Arc<Layout>, CommandError> {
        let layout = self.symbols.layout(name);
        layout.ok_or_else(|| CommandError::Failed(format!("the symbols of nt have no type {name}")))
    }

    fn offset(&self, type_name: &str, path: &str) -> Result<u64, CommandError> {
        let offset = offset_of(self.symbols.as_ref(), type_name, path);
        offset.ok_or_else(|| CommandError::Failed(format!("type {type_name} has no member {path}")))
    }

    fn record(&self, type_name: &str, address: u64) -> Result<Record, CommandError> {
        Ok(Record::read(self.memory, self.layout(type_name)?, address)?)
    }

    fn get(&self, record: &Record, path: &str) -> Option<u64> {
        record.get(self.symbols.as_ref(), path)
    }

    fn first(&self, record: &Record, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.get(record, path))
    }

    /// The records of a circular list: the addresses that `Flink`s lead to, less `offset`.
    fn list(&self, head: u64, offset: u64, notes: &mut Vec<String>) -> Result<Vec<u64>, Fault> {
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
}

impl Types<'_> {
    /// The addresses of all processes.
    fn processes(&self, kernel: &dyn Kernel, notes: &mut Vec<String>) -> Result<Vec<u64>, CommandError> {
        let Some(head) = self.symbols.symbol("PsActiveProcessHead") else {
            return Err(CommandError::Failed("the symbols of nt have no PsActiveProcessHead".into()));
        };
        let head = self.width.address(kernel.base().wrapping_add(head.rva.into()));
        Ok(self.list(head, self.offset("_EPROCESS", "ActiveProcessLinks")?, notes)?)
    }

    /// The processes with this id: one, as long as the list is whole.
    fn with_id(&self, kernel: &dyn Kernel, id: u64, notes: &mut Vec<String>) -> Result<Vec<u64>, CommandError> {
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

fn types<'a>(context: &mut Context<'a>) -> Result<Types<'a>, CommandError> {
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

/// The registers that a thread will have when it runs again.
pub(in crate::commands) fn switched_out(context: &mut Context<'_>, thread: u64) -> Result<State, CommandError> {
    let kernel = context.kernel()?;
    if kernel.version().machine != Machine::X64 {
        return Err(CommandError::Failed("stacks of waiting threads are known for x64 only".into()));
    }
    let types = types(context)?;
    let at = thread.wrapping_add(types.offset("_KTHREAD", "KernelStack")?);
    let stack = read_pointer(types.memory, at, types.width)?;
    // KSWITCH_FRAME: five home places, ApcBypass, then Rbp and the return address.
    const RBP: u64 = 0x30;
    const RETURN: u64 = 0x38;
    let mut state = State { rip: types.memory.read_u64(stack.wrapping_add(RETURN))?, registers: [0; 16] };
    state.registers[4] = stack.wrapping_add(RETURN + 8);
    state.registers[5] = types.memory.read_u64(stack.wrapping_add(RBP))?;
    Ok(state)
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let (address, left) = match text {
        "" => (u64::MAX, ""),
        text => evaluate(text, &mut context.scope())?,
    };
    let mut words = left.split_whitespace();
    let flags = match words.next() {
        Some(word) => evaluate_all(word, &mut context.scope())?,
        // One process is shown with its threads, all of them without.
        None if address == 0 => 3,
        None => 1,
    };
    let image = words.next();
    let kernel = context.kernel()?;
    let width = context.width();
    let types = types(context)?;
    let mut notes = Vec::new();
    let all = address == 0;
    let addresses = match width.address(address) {
        0 => types.processes(kernel, &mut notes)?,
        _ if address == u64::MAX => vec![current_process(kernel, &mut context.session.symbols)?],
        // What is no address of the kernel's is a process's number.
        id if !width.is_kernel(id) => types.with_id(kernel, id, &mut notes)?,
        address => vec![address],
    };
    let mut processes = Vec::new();
    let mut remarks = Vec::new();
    for address in addresses {
        let Some(mut process) = process(&types, address, !all, flags, image, &mut notes)? else { continue };
        if flags & STACKS == STACKS {
            for thread in &mut process.threads {
                add_stack(context, thread, &mut notes, &mut remarks)?;
            }
        }
        processes.push(process);
    }
    remarks.dedup();
    let mut reply = Reply::with_notes(Processes { processes, all, width }, notes);
    reply.remarks = remarks;
    Ok(reply)
}

/// A process, and one of its threads when these are wanted.
type Running = (u64, Option<u64>);

/// All processes, and with `of_threads` all of their threads; notes on what is missing.
pub(in crate::commands) fn addresses(
    context: &mut Context<'_>,
    of_threads: bool,
) -> Result<(Vec<Running>, Vec<String>), CommandError> {
    let kernel = context.kernel()?;
    let types = types(context)?;
    let mut notes = Vec::new();
    let processes = types.processes(kernel, &mut notes)?;
    if !of_threads {
        return Ok((processes.into_iter().map(|process| (process, None)).collect(), notes));
    }
    let (head, link) = (types.offset("_EPROCESS", "ThreadListHead")?, types.offset("_ETHREAD", "ThreadListEntry")?);
    let mut found = Vec::new();
    for process in processes {
        let threads = types.list(process.wrapping_add(head), link, &mut notes)?;
        found.extend(threads.into_iter().map(|thread| (process, Some(thread))));
    }
    Ok((found, notes))
}

/// Threads (4) with more than a line (2).
const STACKS: u64 = 6;

/// Walks the stack of a thread, or says why it cannot be walked.
fn add_stack(
    context: &mut Context<'_>,
    thread: &mut Thread,
    notes: &mut Vec<String>,
    remarks: &mut Vec<String>,
) -> Result<(), CommandError> {
    if thread.details.iter().any(|(what, _)| *what == NOT_RESIDENT) {
        thread.no_stack = Some("Kernel stack not resident.".into());
        return Ok(());
    }
    let (address, width) = (thread.address.0, context.width());
    match state_of(context, address).and_then(|state| stack::of(context, state)) {
        Ok((stack, more, said)) => {
            thread.stack = Some(stack);
            notes.extend(more.into_iter().map(|note| format!("thread {}: {note}", width.pointer(address))));
            remarks.extend(said);
        }
        Err(CommandError::Fault(fault)) => return Err(fault.into()),
        Err(error) => thread.no_stack = Some(format!("no stack: {error}")),
    }
    Ok(())
}

/// The registers of a thread: those of the processor that stopped, or those that it will have when it runs again.
fn state_of(context: &mut Context<'_>, thread: u64) -> Result<State, CommandError> {
    let kernel = context.kernel()?;
    match thread == context.width().address(kernel.stop().thread) {
        true => Ok(registers::state(&Registers::read(kernel)?)),
        false => switched_out(context, thread),
    }
}

/// What is said of a thread whose stack is paged out.
const NOT_RESIDENT: &str = "Kernel stack not resident";

const WORKING_SET: &str = "Working Set Sizes (now,min,max)";

/// `00:00:00.052` of a time in units of 100 ns.
fn clock(time: u64) -> String {
    let milliseconds = time / 10_000;
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let time = format!("{:02}:{:02}:{:02}.{rest:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match seconds / 86400 {
        0 => time,
        days => format!("{days} Days {time}"),
    }
}

/// Types of dispatcher objects (`_KOBJECTS`).
const PROCESS_OBJECT: u64 = 3;
const THREAD_OBJECT: u64 = 6;

fn process(
    types: &Types<'_>,
    address: u64,
    check: bool,
    flags: u64,
    image: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Option<Process>, CommandError> {
    let width = types.width;
    let record = types.record("_EPROCESS", address)?;
    if check && types.get(&record, "Pcb.Header.Type").is_none_or(|kind| kind & 0x7f != PROCESS_OBJECT) {
        let address = width.pointer(address);
        return Err(CommandError::Failed(format!("TYPE mismatch for process object at {address}")));
    }
    if !record.is_readable() {
        notes.push(format!("the process at {} is not readable as a whole", width.pointer(address)));
    }
    let name = record.bytes("ImageFileName").unwrap_or_default();
    let name: String = name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as char).collect();
    let name = visible_name(&name);
    if image.is_some_and(|image| !image.eq_ignore_ascii_case(&name)) {
        return Ok(None);
    }
    let hex = |path: &str| types.get(&record, path).map(Hex);
    let object_table = hex("ObjectTable");
    let handles = match object_table {
        Some(Hex(0)) | None => object_table.map(|_| 0),
        Some(Hex(table)) => {
            let offset = offset_of(types.symbols.as_ref(), "_HANDLE_TABLE", "HandleCount");
            match offset.map(|offset| types.memory.read_u32(table.wrapping_add(offset))) {
                Some(Ok(count)) => Some(count.into()),
                Some(Err(ReadError::Fault(fault))) => return Err(fault.into()),
                _ => None,
            }
        }
    };
    let session_id = match types.get(&record, "Session") {
        None | Some(0) => None,
        Some(session) => {
            let offset = offset_of(types.symbols.as_ref(), "_MM_SESSION_SPACE", "SessionId").unwrap_or(8);
            match types.memory.read_u32(session.wrapping_add(offset)) {
                Ok(id) => Some(id.into()),
                Err(ReadError::Fault(fault)) => return Err(fault.into()),
                Err(_) => None,
            }
        }
    };
    let mut details = Vec::new();
    if flags & 1 != 0 {
        let get = |paths: &[&str]| types.first(&record, paths);
        let number = |paths: &[&str]| get(paths).map_or("?".into(), |value| value.to_string());
        let quota = |index: usize| {
            let pointer = width.bytes();
            let bytes = record.bytes("ProcessQuotaUsage").or_else(|| record.bytes("QuotaUsage"))?;
            let bytes = bytes.get(index * pointer..(index + 1) * pointer)?;
            Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
        };
        let mut add = |what: &'static str, value: Option<String>| details.extend(value.map(|value| (what, value)));
        let root = get(&["VadRoot.BalancedRoot.RightChild", "VadRoot.Root", "VadRoot"]);
        add(
            "VadRoot",
            root.map(|root| {
                format!(
                    "{} Vads {} Clone {:x} Private {}. Modified {}. Locked {}.",
                    width.pointer(root),
                    number(&["VadRoot.NumberGenericTableElements", "VadCount"]),
                    get(&["CloneRoot"]).unwrap_or(0),
                    number(&["NumberOfPrivatePages"]),
                    number(&["ModifiedPageCount"]),
                    number(&["NumberOfLockedPages"]),
                )
            }),
        );
        // The low bits of a fast reference count.
        let token = types.first(&record, &["Token.Object", "Token.Value"]).map(|token| token & !0xf);
        add("Token", token.map(|token| width.pointer(token)));
        let since = types.time.zip(get(&["CreateTime.QuadPart", "CreateTime"]).filter(|created| *created != 0));
        add("ElapsedTime", since.map(|(now, created)| clock(now.saturating_sub(created))));
        let spent = |path: &str| Some(clock(types.increment?.saturating_mul(get(&[path])?)));
        add("UserTime", spent("Pcb.UserTime"));
        add("KernelTime", spent("Pcb.KernelTime"));
        add("QuotaPoolUsage[PagedPool]", quota(1).map(|bytes| bytes.to_string()));
        add("QuotaPoolUsage[NonPagedPool]", quota(0).map(|bytes| bytes.to_string()));
        let vm = |name: &str| get(&[&format!("Vm.{name}"), &format!("Vm.Instance.{name}")]);
        let sizes = [vm("WorkingSetSize"), vm("MinimumWorkingSetSize"), vm("MaximumWorkingSetSize")];
        if let [Some(now), Some(least), Some(most)] = sizes {
            let kilobytes = |pages: u64| pages.saturating_mul(4);
            add(
                WORKING_SET,
                Some(format!(
                    "({now}, {least}, {most}) ({}KB, {}KB, {}KB)",
                    kilobytes(now),
                    kilobytes(least),
                    kilobytes(most)
                )),
            );
        }
        add("PeakWorkingSetSize", vm("PeakWorkingSetSize").map(|pages| pages.to_string()));
        add("VirtualSize", get(&["VirtualSize"]).map(|bytes| format!("{} Mb", bytes >> 20)));
        add("PeakVirtualSize", get(&["PeakVirtualSize"]).map(|bytes| format!("{} Mb", bytes >> 20)));
        add("PageFaultCount", vm("PageFaultCount").map(|count| count.to_string()));
        add("BasePriority", get(&["Pcb.BasePriority"]).map(|priority| (priority as i8).to_string()));
        add("CommitCharge", types.get(&record, "CommitCharge").map(|pages| pages.to_string()));
    }
    let mut threads = Vec::new();
    if flags & 6 != 0 {
        let head = address.wrapping_add(types.offset("_EPROCESS", "ThreadListHead")?);
        let offset = types.offset("_ETHREAD", "ThreadListEntry")?;
        for thread in types.list(head, offset, notes)? {
            threads.push(read_thread(types, thread, flags & 2 != 0)?);
        }
    }
    Ok(Some(Process {
        address: Hex(address),
        session_id,
        process_id: types.get(&record, "UniqueProcessId"),
        parent_id: types.get(&record, "InheritedFromUniqueProcessId"),
        peb: hex("Peb"),
        directory_base: hex("Pcb.DirectoryTableBase"),
        object_table,
        handles,
        image: name,
        details,
        threads,
    }))
}

/// `_KTHREAD_STATE`
const STATES: [&str; 9] =
    ["INITIALIZED", "READY", "RUNNING", "STANDBY", "TERMINATED", "WAIT", "TRANSITION", "DEFERREDREADY", "GATEWAIT"];

const WAITING: u64 = 5;

/// `WAIT: (UserRequest) UserMode Non-Alertable`
fn waiting(types: &Types<'_>, record: &Record) -> String {
    let Some(reason) = types.get(record, "Tcb.WaitReason") else { return "WAIT".into() };
    let names = types.symbols.enumeration("_KWAIT_REASON");
    let name = names.and_then(|names| {
        let (name, _) = names.values.iter().find(|(_, value)| *value == reason as i64)?;
        Some(name.clone())
    });
    let reason = name.unwrap_or_else(|| reason.to_string());
    let mode = if types.get(record, "Tcb.WaitMode") == Some(1) { "UserMode" } else { "KernelMode" };
    let alertable =
        if types.get(record, "Tcb.Alertable").unwrap_or(0) & 1 != 0 { "Alertable" } else { "Non-Alertable" };
    format!("WAIT: ({}) {mode} {alertable}", visible_name(&reason))
}

fn read_thread(types: &Types<'_>, address: u64, detailed: bool) -> Result<Thread, CommandError> {
    let record = types.record("_ETHREAD", address)?;
    let hex = |paths: &[&str]| types.first(&record, paths).map(Hex);
    let state = match types.get(&record, "Tcb.State") {
        Some(2) => match types.get(&record, "Tcb.NextProcessor") {
            Some(processor) => format!("RUNNING on processor {processor:x}"),
            None => "RUNNING".into(),
        },
        Some(WAITING) => waiting(types, &record),
        Some(state) => STATES.get(state as usize).map_or(format!("state {state}"), |name| name.to_string()),
        None => "???".into(),
    };
    let process = types.first(&record, &["Tcb.Process", "ThreadsProcess"]).filter(|process| *process != 0);
    let image = match process {
        Some(process) => {
            let record = types.record("_EPROCESS", process)?;
            let name = record.bytes("ImageFileName").unwrap_or_default();
            let name: String = name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as char).collect();
            Some(visible_name(&name)).filter(|name| !name.is_empty())
        }
        None => None,
    };
    let mut details = Vec::new();
    if detailed {
        let get = |path: &str| types.get(&record, path);
        let mut add = |what: &'static str, value: Option<String>| details.extend(value.map(|value| (what, value)));
        let impersonates = get("ActiveImpersonationInfo").map(|active| active & 1 != 0);
        add("Impersonating", impersonates.map(|active| if active { "yes" } else { "no" }.into()));
        let attached =
            get("Tcb.ApcStateIndex").filter(|index| index & 1 != 0).and_then(|_| get("Tcb.ApcState.Process"));
        add("Attached Process", attached.map(|process| types.width.pointer(process)));
        let resident = get("Tcb.KernelStackResident").is_none_or(|resident| resident != 0);
        add(NOT_RESIDENT, (!resident).then(String::new));
        add("Wait Start TickCount", get("Tcb.WaitTime").map(|tick| tick.to_string()));
        let since =
            types.ticks.zip(get("Tcb.WaitTime")).map(|(now, then)| u64::from((now as u32).wrapping_sub(then as u32)));
        add("Ticks", since.map(|ticks| ticks.to_string()));
        let time = since.filter(|ticks| *ticks != 0).zip(types.increment);
        add("Waited", time.map(|(ticks, increment)| clock(ticks.saturating_mul(increment))));
        add("Context Switch Count", get("Tcb.ContextSwitches").map(|count| count.to_string()));
        add("IdealProcessor", get("Tcb.IdealProcessor").map(|number| number.to_string()));
        let spent = |path: &str| Some(clock(types.increment?.saturating_mul(get(path)?)));
        add("UserTime", spent("Tcb.UserTime"));
        add("KernelTime", spent("Tcb.KernelTime"));
        for (what, path) in [
            ("Stack Init", "Tcb.InitialStack"),
            ("Current", "Tcb.KernelStack"),
            ("Base", "Tcb.StackBase"),
            ("Limit", "Tcb.StackLimit"),
        ] {
            add(what, get(path).map(|address| types.width.pointer(address)));
        }
        add("Priority", get("Tcb.Priority").map(|priority| (priority as i8).to_string()));
        add("BasePriority", get("Tcb.BasePriority").map(|priority| (priority as i8).to_string()));
    }
    Ok(Thread {
        address: Hex(address),
        process_id: types.get(&record, "Cid.UniqueProcess"),
        thread_id: types.get(&record, "Cid.UniqueThread"),
        teb: hex(&["Tcb.Teb"]),
        win32_thread: hex(&["Tcb.Win32Thread"]),
        state,
        process: process.map(Hex),
        image,
        start: hex(&["Win32StartAddress", "StartAddress"]),
        details,
        stack: None,
        no_stack: None,
    })
}

fn thread(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let address = match context.arguments.trim() {
        "" => u64::MAX,
        text => evaluate(text, &mut context.scope())?.0,
    };
    // -1 is the current one, as nothing is.
    let address = match address {
        u64::MAX => context.session.thread.unwrap_or(kernel.stop().thread),
        address => address,
    };
    let address = width.address(address);
    let types = types(context)?;
    let record = types.record("_ETHREAD", address)?;
    if types.get(&record, "Tcb.Header.Type").is_none_or(|kind| kind & 0x7f != THREAD_OBJECT) {
        let address = width.pointer(address);
        return Err(CommandError::Failed(format!("TYPE mismatch for thread object at {address}")));
    }
    let thread = read_thread(&types, address, true)?;
    let mut notes =
        if record.is_readable() { Vec::new() } else { vec!["the thread is not readable as a whole".into()] };
    let (stack, mut remarks) = match state_of(context, address).and_then(|state| stack::of(context, state)) {
        Ok((stack, more, remarks)) => {
            notes.extend(more);
            (Some(stack), remarks)
        }
        Err(CommandError::Fault(fault)) => return Err(fault.into()),
        Err(error) => (None, vec![format!("no stack: {error}")]),
    };
    let mut reply = Reply::with_notes(OneThread { thread, stack, width }, notes);
    reply.remarks.append(&mut remarks);
    Ok(reply)
}

#[derive(Serialize)]
struct OneThread {
    #[serde(flatten)]
    thread: Thread,
    #[serde(flatten)]
    stack: Option<stack::Stack>,
    #[serde(skip)]
    width: Width,
}

#[derive(Serialize)]
struct Implicit {
    what: &'static str,
    address: Hex,
    #[serde(skip)]
    width: Width,
}

fn set_process(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let mut text = context.arguments.trim();
    while let Some(option) = text.strip_prefix('/') {
        let (option, rest) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        match option {
            // Which translations the debugger uses, and user symbols: nothing is kept that would have to be dropped.
            "p" | "r" | "P" => {}
            other => return Err(usage(&SET_PROCESS, format!("unknown option '/{other}'"))),
        }
        text = rest.trim_start();
    }
    let width = context.width();
    if !text.is_empty() {
        let address = width.address(evaluate_all(text, &mut context.scope())?);
        context.session.process = (address != 0).then_some(address);
    }
    let address = match context.session.process {
        Some(address) => address,
        None => current_process(kernel, &mut context.session.symbols)?,
    };
    Ok(Reply::new(Implicit { what: "process", address: Hex(address), width }))
}

fn set_thread(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let running = width.address(kernel.stop().thread);
    match context.arguments.trim() {
        "" => {}
        text => {
            let address = width.address(evaluate_all(text, &mut context.scope())?);
            // The running thread's registers are the processor's.
            context.session.thread = (address != 0 && address != running).then_some(address);
            if address == 0 {
                return Ok(Reply::new(Done {}));
            }
        }
    }
    let address = context.session.thread.unwrap_or(running);
    Ok(Reply::new(Implicit { what: "thread", address: Hex(address), width }))
}

impl Text for Implicit {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Implicit {} is now {}", self.what, self.width.tick(self.address.0))
    }
}

fn number(value: Option<u64>, digits: usize) -> String {
    value.map_or("????".into(), |value| format!("{value:0digits$x}"))
}

impl Text for Processes {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if self.all {
            writeln!(out, "**** NT ACTIVE PROCESS DUMP ****")?;
        }
        for process in &self.processes {
            let session = process.session_id.map_or("none".into(), |id| id.to_string());
            let pointer = |value: Option<Hex>| value.map_or("????".into(), |value| self.width.pointer(value.0));
            let handles = process.handles.map_or("<Data Not Accessible>".into(), |count| format!("{count:>3}."));
            writeln!(out, "PROCESS {}", self.width.pointer(process.address.0))?;
            writeln!(
                out,
                "    SessionId: {session}  Cid: {}    Peb: {:0digits$x}  ParentCid: {}",
                number(process.process_id, 4),
                process.peb.map_or(0, |peb| peb.0),
                number(process.parent_id, 4),
                digits = 8,
            )?;
            writeln!(
                out,
                "    DirBase: {:08x}  ObjectTable: {}  HandleCount: {handles}",
                process.directory_base.map_or(0, |base| base.0),
                pointer(process.object_table),
            )?;
            writeln!(out, "    Image: {}", process.image)?;
            for (what, value) in &process.details {
                match *what {
                    "VadRoot" => writeln!(out, "    {what} {value}")?,
                    WORKING_SET => writeln!(out, "    {what}  {value}")?,
                    _ => writeln!(out, "    {what:<33} {value}")?,
                }
            }
            writeln!(out)?;
            for thread in &process.threads {
                write!(out, "        ")?;
                thread_line(out, thread, self.width)?;
                if !thread.details.is_empty() {
                    thread_lines(out, "        ", thread, self.width)?;
                }
                if let Some(why) = &thread.no_stack {
                    writeln!(out, "        {why}")?;
                }
                if let Some(stack) = &thread.stack {
                    let mut lines = String::new();
                    stack.text(&mut lines)?;
                    for line in lines.lines() {
                        writeln!(out, "        {line}")?;
                    }
                }
                if !thread.details.is_empty() {
                    writeln!(out)?;
                }
            }
        }
        Ok(())
    }
}

fn thread_line(out: &mut dyn fmt::Write, thread: &Thread, width: Width) -> fmt::Result {
    let pointer = |value: Option<Hex>| width.pointer(value.map_or(0, |value| value.0));
    writeln!(
        out,
        "THREAD {}  Cid {}.{}  Teb: {} Win32Thread: {} {}",
        width.pointer(thread.address.0),
        number(thread.process_id, 4),
        number(thread.thread_id, 4),
        pointer(thread.teb),
        pointer(thread.win32_thread),
        thread.state
    )
}

/// What is known of a thread besides its first line.
fn thread_lines(out: &mut dyn fmt::Write, indent: &str, thread: &Thread, width: Width) -> fmt::Result {
    let get = |wanted: &str| thread.details.iter().find(|(what, _)| *what == wanted).map(|(_, value)| value.as_str());
    match get("Impersonating") {
        Some("yes") => writeln!(out, "{indent}Impersonating")?,
        Some(_) => writeln!(out, "{indent}Not impersonating")?,
        None => {}
    }
    let process = thread.process.map_or("N/A".into(), |process| width.pointer(process.0));
    let image = thread.image.as_deref().unwrap_or("N/A");
    writeln!(out, "{indent}{:<26}{process}       Image:         {image}", "Owning Process")?;
    match get("Attached Process") {
        Some(process) => writeln!(out, "{indent}{:<26}{process}       Image:         ?", "Attached Process")?,
        None => writeln!(out, "{indent}{:<26}{:<15}Image:         N/A", "Attached Process", "N/A")?,
    }
    if let Some(start) = get("Wait Start TickCount") {
        let ticks = get("Ticks").map_or(String::new(), |ticks| format!("Ticks: {ticks}"));
        let time = get("Waited").map_or(String::new(), |time| format!(" ({time})"));
        writeln!(out, "{indent}{:<26}{start:<15}{ticks}{time}", "Wait Start TickCount")?;
    }
    if let Some(count) = get("Context Switch Count") {
        let ideal = get("IdealProcessor").unwrap_or("?");
        writeln!(out, "{indent}{:<26}{count:<15}IdealProcessor: {ideal:<14}", "Context Switch Count")?;
    }
    for what in ["UserTime", "KernelTime"] {
        if let Some(time) = get(what) {
            writeln!(out, "{indent}{what:<26}{time}")?;
        }
    }
    if let Some(Hex(start)) = thread.start {
        writeln!(out, "{indent}Win32 Start Address 0x{}", width.pointer(start))?;
    }
    if let (Some(init), Some(current), Some(base), Some(limit)) =
        (get("Stack Init"), get("Current"), get("Base"), get("Limit"))
    {
        writeln!(out, "{indent}Stack Init {init} Current {current} Base {base} Limit {limit}")?;
    }
    if let (Some(priority), Some(base)) = (get("Priority"), get("BasePriority")) {
        writeln!(out, "{indent}Priority {priority} BasePriority {base}")?;
    }
    Ok(())
}

impl Text for OneThread {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        thread_line(out, &self.thread, self.width)?;
        thread_lines(out, "", &self.thread, self.width)?;
        match &self.stack {
            Some(stack) => {
                writeln!(out)?;
                stack.text(out)
            }
            None => Ok(()),
        }
    }
}
