//! `t`, `p`, `gu`: one instruction, one instruction or call, the rest of a function.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Done, Reply, Text};
use crate::breakpoint::Breakpoint;
use crate::command::{Action, CommandInfo, usage};
use crate::disassembly::call_length;
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::kernel::Kernel;
use crate::registers::{self, Registers};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::shell::Stopped;
use crate::shell::{Drive, Seen, is_cancelled};
use crate::stack;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["t", "p"],
    usage: "t|p [count]",
    help: "execute one instruction (p: a call is one instruction)",
    details: "The processor that stopped executes it; the others run meanwhile. It ends early\n\
              at a breakpoint and at anything else that stops the target.",
    results: &[ResultShape::of::<Stopped>("stop"), ResultShape::NOTHING],
    action: Action::Drive(step),
};

pub(in crate::commands) const UP: CommandInfo = CommandInfo {
    names: &["gu"],
    usage: "gu",
    help: "let the target run until the current function has returned",
    details: "The return address is where k sees it. Ctrl+C breaks in.",
    results: &[ResultShape::of::<Stopped>("stop"), ResultShape::NOTHING],
    action: Action::Drive(up),
};

const MAX_STEPS: u64 = 0x10000;
/// One instruction takes no longer.
const STEP: Duration = Duration::from_secs(10);

/// Where the target stands after a step.
#[derive(JsonSchema, Serialize)]
struct Place {
    #[serde(flatten)]
    stopped: Stopped,
}

impl Text for Place {
    fn text(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        self.stopped.text(out)
    }
}

fn step(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let over = drive.word == "p";
    let count = match drive.arguments.trim() {
        "" => 1,
        text => drive.with(|context| evaluate_all(text, &mut context.scope()))?,
    };
    if !(1..=MAX_STEPS).contains(&count) {
        return Err(usage(&INFO, format!("1 to {MAX_STEPS:#x} instructions")));
    }
    for done in 1..=count {
        let call = match over {
            true => drive.with(call)?,
            false => None,
        };
        let as_wanted = match call {
            Some(behind) => drive.run_to(behind)?,
            None => drive.step(STEP)?,
        };
        if !as_wanted || done == count {
            break;
        }
        let lines = drive.stop_lines()?;
        drive.say(&lines);
    }
    place(drive)
}

fn place(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    // The commands of a breakpoint may have let it run.
    match drive.is_halted() {
        true => Ok(Reply::new(Place { stopped: drive.stopped()? })),
        false => Ok(Reply::new(Done {})),
    }
}

/// Where the target is to come by, with a stack that has at least this been emptied to, on the same thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) address: u64,
    pub(crate) lowest_stack: u64,
    pub(crate) thread: u64,
}

impl Goal {
    /// Whether the target stands there.
    pub(crate) fn is_reached(&self, kernel: &dyn Kernel) -> Result<bool, CommandError> {
        let (stop, width) = (kernel.stop(), kernel.width());
        let stack = Registers::read(kernel)?.get("$csp").unwrap_or(0);
        Ok(width.address(stop.program_counter) == self.address
            && width.address(stop.thread) == self.thread
            && width.address(stack) >= self.lowest_stack)
    }

    fn here(kernel: &dyn Kernel, address: u64, lowest_stack: u64) -> Self {
        let width = kernel.width();
        Self {
            address: width.address(address),
            lowest_stack: width.address(lowest_stack),
            thread: width.address(kernel.stop().thread),
        }
    }
}

/// Behind the current instruction if that is a call.
fn call(context: &mut Context<'_>) -> Result<Option<Goal>, CommandError> {
    let kernel = context.kernel()?;
    let stop = kernel.stop();
    let Some(length) = call_length(kernel.version().machine, &stop.instructions) else { return Ok(None) };
    let stack = Registers::read(kernel)?.get("$csp").unwrap_or(0);
    Ok(Some(Goal::here(kernel, stop.program_counter.wrapping_add(length as u64), stack)))
}

fn up(drive: &mut Drive<'_>) -> Result<Reply, CommandError> {
    let goal = drive.with(|context| {
        let kernel = context.kernel()?;
        let state = registers::state(&Registers::read(kernel)?);
        let (address, stack) = stack::caller(kernel, context.session, state)?;
        Ok::<_, CommandError>(Goal::here(kernel, address, stack))
    })?;
    match drive.run_to(goal) {
        Err(error) if is_cancelled(&error) => {
            drive.break_in()?;
            place(drive)
        }
        reached => {
            reached?;
            place(drive)
        }
    }
}

impl Drive<'_> {
    /// Lets the target run to a place. False: it stopped elsewhere.
    fn run_to(&mut self, goal: Goal) -> Result<bool, CommandError> {
        // One of the user's own may be there already; then it is not ours to take out.
        let ours = self.with(|context| {
            let enabled = |known: &Breakpoint| known.enabled && known.address.0 == goal.address;
            match context.session.breakpoints.iter().any(enabled) {
                true => Ok(false),
                false => context.kernel()?.set_breakpoint(goal.address).map(|()| true).map_err(CommandError::from),
            }
        })?;
        let reached = self.run_until(goal);
        if ours && self.is_halted() {
            // A target that was reset has none any more.
            let _ = self.with(|context| context.kernel().map(|kernel| kernel.clear_breakpoint(goal.address)));
        }
        reached
    }

    fn run_until(&mut self, goal: Goal) -> Result<bool, CommandError> {
        loop {
            self.go()?;
            let seen = self.wait_for_stop()?;
            let at_goal = self.with(|context| {
                let kernel = context.kernel()?;
                Ok::<_, CommandError>((
                    kernel.width().address(kernel.stop().program_counter) == goal.address,
                    goal.is_reached(kernel)?,
                ))
            });
            match (seen, at_goal?) {
                (seen, (_, true)) => {
                    if seen == Seen::Plain {
                        self.as_wanted();
                    }
                    return Ok(true);
                }
                // Another thread, or a deeper call of the same function.
                (Seen::Plain, (true, false)) => {}
                _ => return Ok(false),
            }
        }
    }
}
