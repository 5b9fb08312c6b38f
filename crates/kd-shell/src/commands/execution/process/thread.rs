//! Threads: `!thread`, `.thread`, and those that `!process` shows.

use std::fmt;

use kd_target::Machine;
use nt_unwind::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::types::{Types, clock, types};
use super::{Implicit, number};
use crate::answer::{Done, Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate, evaluate_all};
use crate::registers::{self, Registers};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::stack;
use crate::text::{Hex, Width, visible_name};
use crate::typed::{Record, read_pointer};

pub(in crate::commands) const THREAD: CommandInfo = CommandInfo {
    names: &["!thread"],
    usage: "!thread [address]",
    help: "show a thread and its stack; without an address the current one",
    details: "The stack of a thread that does not run is shown on x64 only.",
    results: &[ResultShape::of::<OneThread>("thread")],
    action: Action::Answer(thread),
};

pub(in crate::commands) const SET_THREAD: CommandInfo = CommandInfo {
    names: &[".thread"],
    usage: ".thread [address]",
    help: "choose the thread whose stack k shows",
    details: "0 goes back to the current one; so does letting the target run.",
    results: &[ResultShape::of::<Implicit>("context"), ResultShape::NOTHING],
    action: Action::Answer(set_thread),
};

#[derive(JsonSchema, Serialize)]
pub(super) struct Thread {
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
    /// Whether its stack is in memory.
    #[serde(skip)]
    is_resident: bool,
    /// With flags 2 and 4 of `!process`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stack: Option<stack::Stack>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_stack: Option<String>,
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

/// Walks the stack of a thread, or says why it cannot be walked.
pub(super) fn add_stack(
    context: &mut Context<'_>,
    thread: &mut Thread,
    notes: &mut Vec<String>,
    remarks: &mut Vec<String>,
) -> Result<(), CommandError> {
    if !thread.is_resident {
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

/// `_KOBJECTS`: the type of a dispatcher object.
const THREAD_OBJECT: u64 = 6;

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

pub(super) fn read_thread(types: &Types<'_>, address: u64, detailed: bool) -> Result<Thread, CommandError> {
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
        Some(process) => Some(types.image(&types.record("_EPROCESS", process)?)).filter(|name| !name.is_empty()),
        None => None,
    };
    let is_resident = types.get(&record, "Tcb.KernelStackResident").is_none_or(|resident| resident != 0);
    let details = if detailed { details(types, &record, is_resident) } else { Vec::new() };
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
        is_resident,
        stack: None,
        no_stack: None,
    })
}

/// What a thread's lines say behind the first, each by its name.
fn details(types: &Types<'_>, record: &Record, is_resident: bool) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    let get = |path: &str| types.get(record, path);
    let mut add = |what: &'static str, value: Option<String>| details.extend(value.map(|value| (what, value)));
    let impersonates = get("ActiveImpersonationInfo").map(|active| active & 1 != 0);
    add("Impersonating", impersonates.map(|active| if active { "yes" } else { "no" }.into()));
    let attached = get("Tcb.ApcStateIndex").filter(|index| index & 1 != 0).and_then(|_| get("Tcb.ApcState.Process"));
    add("Attached Process", attached.map(|process| types.width.pointer(process)));
    add("Kernel stack not resident", (!is_resident).then(String::new));
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
    details
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

#[derive(JsonSchema, Serialize)]
struct OneThread {
    #[serde(flatten)]
    thread: Thread,
    #[serde(flatten)]
    stack: Option<stack::Stack>,
    #[serde(skip)]
    width: Width,
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

impl Thread {
    /// As one of its process's.
    pub(super) fn text_below(&self, out: &mut dyn fmt::Write, width: Width) -> fmt::Result {
        write!(out, "        ")?;
        thread_line(out, self, width)?;
        if !self.details.is_empty() {
            thread_lines(out, "        ", self, width)?;
        }
        if let Some(why) = &self.no_stack {
            writeln!(out, "        {why}")?;
        }
        if let Some(stack) = &self.stack {
            let mut lines = String::new();
            stack.text(&mut lines)?;
            for line in lines.lines() {
                writeln!(out, "        {line}")?;
            }
        }
        if !self.details.is_empty() {
            writeln!(out)?;
        }
        Ok(())
    }
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
