//! Stops as the user sees them: hits of breakpoints are counted, and run their commands.

use std::time::{Duration, Instant};

use kd_target::{Target, TargetError};
use nt_memory::Fault;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Next, Outcome, Shell, debuggee};
use crate::answer::{Reply, Text};
use crate::banner::{self, Reason};
use crate::breakpoint::{Breakpoint, Hit, clear};
use crate::command::{Action, Control};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::kernel::Kernel;
use crate::output::Output;
use crate::session::{Context, Format};
use crate::text::Hex;
use crate::translation::current_process;

/// What a stop turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The target runs again: the hit did not count, or its commands let it go.
    Runs,
    /// At a breakpoint of the session, or where a command left it.
    Breakpoint,
    Plain,
}

/// Where the target stands: the result of `.break`, `.wait`, `t` and `p`.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Stopped {
    processor: u16,
    program_counter: Hex,
    thread: Hex,
    /// By us, and not by an exception of the target's own.
    asked: bool,
    /// The breakpoint's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    breakpoint: Option<u32>,
    #[serde(skip)]
    lines: String,
}

impl Text for Stopped {
    fn text(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        out.write_str(&self.lines)
    }
}

impl Shell {
    /// Waits until the target stops for the user to see, at most `patience`. False: it still runs.
    pub fn wait(&mut self, patience: Option<Duration>, out: &mut dyn Output) -> Result<bool, TargetError> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.wait_for_any(left)? {
                return Ok(false);
            }
            match self.look_at_stop(out) {
                Ok(Seen::Runs) => {}
                Ok(Seen::Breakpoint | Seen::Plain) => return Ok(true),
                Err(CommandError::Fault(fault)) => return Err(fault.into()),
                Err(CommandError::Target(error)) => return Err(error),
                Err(error) => return Err(TargetError::Refused(error.to_string())),
            }
        }
    }

    fn wait_for_any(&mut self, patience: Option<Duration>) -> Result<bool, TargetError> {
        self.refresh();
        match self.target.take() {
            Some(Target::Running(running)) => match running.wait(patience) {
                Ok(halted) => {
                    self.target = Some(Target::Halted(halted));
                    Ok(true)
                }
                Err((running, error)) => {
                    self.target = Some(Target::Running(running));
                    match error {
                        TargetError::Timeout(_) => Ok(false),
                        error => Err(error),
                    }
                }
            },
            target => {
                self.target = target;
                Ok(self.halted().is_some())
            }
        }
    }

    /// Decides once for each stop what it is, and does what belongs to it.
    pub(super) fn look_at_stop(&mut self, out: &mut dyn Output) -> Result<Seen, CommandError> {
        if self.halted().is_none() {
            return Ok(Seen::Runs);
        }
        if let Some(reason) = self.reason {
            return Ok(if matches!(reason, Reason::Breakpoint(_)) { Seen::Breakpoint } else { Seen::Plain });
        }
        const SINGLE_STEP: u32 = 0x8000_0004;
        let code = self.halted().map(|halted| Kernel::stop(halted).code);
        let is_data = self.halted().is_some_and(|halted| Kernel::stop(halted).data.is_some());
        if self.stepping && code == Some(SINGLE_STEP) && !is_data {
            self.reason = Some(Reason::Step);
            return Ok(Seen::Plain);
        }
        // What makes no sense of it must not be asked again and again.
        self.reason = Some(Reason::Exception);
        let hit = {
            let lost = self.lost();
            let cost = self.cost();
            hit(&mut Context {
                debuggee: debuggee(self.target.as_ref(), lost.as_deref()),
                session: &mut self.session,
                word: "",
                arguments: "",
                cost,
                commands: self.commands,
            })?
        };
        match hit {
            None => Ok(Seen::Plain),
            Some(Hit::Pass) => {
                self.go()?;
                Ok(Seen::Runs)
            }
            Some(Hit::Stop { number, commands }) => {
                self.reason = Some(Reason::Breakpoint(number));
                if let Some(commands) = commands {
                    let Outcome { next, .. } =
                        self.nested("breakpoint", out, |shell, out| shell.run_line(&commands, out));
                    // They are a line of their own.
                    self.refused = false;
                    if next != Next::Continue {
                        self.ended = Some(next);
                    }
                }
                self.refresh();
                // It may have stopped once more since its commands let it go: that stop was not looked at yet.
                let stands = self.halted().is_some() && self.reason.is_some();
                Ok(if stands { Seen::Breakpoint } else { Seen::Runs })
            }
        }
    }

    /// Whether a line is meant for a target that runs: it ends or awaits the running, or has nothing to do with it. Others
    /// wait for the next stop, as kd's do.
    pub fn is_for_running(&self, line: &str) -> bool {
        const ANY_TIME: [&str; 5] = [".help", ".echo", ".stats", ".logclose", ".logfile"];
        let Some(command) = crate::grammar::line::command(line) else { return false };
        let action = self.commands.find(&command.word).map(|info| info.action);
        let controls =
            matches!(action, Some(Action::Control(Control::Break | Control::Wait | Control::Sleep | Control::Quit)));
        controls || ANY_TIME.contains(&&*command.word)
    }

    /// What the commands of a breakpoint made of the session.
    pub fn take_end(&mut self) -> Option<Next> {
        self.ended.take()
    }

    /// Whether the target stands where one instruction led it.
    pub(super) fn stopped_by_step(&self) -> bool {
        self.reason == Some(Reason::Step)
    }

    /// Before a command is run: a stop that came meanwhile is looked at first, and shown.
    pub(super) fn notice_stop(&mut self, out: &mut dyn Output) {
        self.refresh();
        if self.halted().is_none() || self.reason.is_some() {
            return;
        }
        // What fails here fails again in the command itself, which says so.
        if let Ok(Seen::Breakpoint) = self.look_at_stop(out)
            && self.format == Format::Kd
            && let Ok(lines) = self.stop_lines()
        {
            out.remark(&lines);
        }
    }

    /// Why the target stands still, and where.
    pub fn stop_lines(&mut self) -> Result<String, Fault> {
        let reason = self.reason.unwrap_or(Reason::Exception);
        let explain = !std::mem::replace(&mut self.explained_break, true);
        match &self.target {
            Some(Target::Halted(halted)) => {
                let stop = Kernel::stop(halted);
                // A stop that nobody asked for leaves the box to the first that somebody did ask for.
                self.explained_break = !explain || stop.asked && reason == Reason::Exception;
                self.session.symbols.offline(|symbols| banner::stopped(halted, symbols, reason, explain))
            }
            Some(Target::Running(_)) | None => Err(Fault::Running),
        }
    }

    pub(super) fn stopped(&mut self) -> Result<Stopped, CommandError> {
        let lines = self.stop_lines()?;
        let breakpoint = match self.reason {
            Some(Reason::Breakpoint(number)) => Some(number),
            _ => None,
        };
        let Some(halted) = self.halted() else { return Err(Fault::Running.into()) };
        let stop = Kernel::stop(halted);
        let width = halted.width();
        Ok(Stopped {
            processor: stop.processor,
            program_counter: Hex(width.address(stop.program_counter)),
            thread: Hex(width.address(stop.thread)),
            asked: stop.asked,
            breakpoint,
            lines,
        })
    }

    pub(super) fn stop_reply(&mut self) -> Result<Reply, CommandError> {
        Ok(Reply::new(self.stopped()?))
    }

    /// Lets the target run.
    pub(super) fn go(&mut self) -> Result<(), CommandError> {
        self.let_run(kd_target::Halted::go)?;
        self.stepping = false;
        Ok(())
    }

    /// Lets it run one instruction.
    pub(super) fn step(&mut self) -> Result<(), CommandError> {
        self.let_run(kd_target::Halted::step)?;
        self.stepping = true;
        Ok(())
    }

    pub(super) fn let_run(
        &mut self,
        run: fn(kd_target::Halted) -> Result<kd_target::Running, (kd_target::Halted, TargetError)>,
    ) -> Result<(), CommandError> {
        match self.target.take() {
            Some(Target::Halted(halted)) => match run(halted) {
                Ok(running) => {
                    self.target = Some(Target::Running(running));
                    self.session.forget_choices();
                    self.reason = None;
                    Ok(())
                }
                Err((halted, error)) => {
                    self.target = Some(Target::Halted(halted));
                    Err(error.into())
                }
            },
            Some(running) => {
                self.target = Some(running);
                Err(CommandError::Failed("the target is running already".into()))
            }
            None => Err(CommandError::NoTarget),
        }
    }

    /// Breaks in and waits for the stop.
    pub(super) fn break_in(&mut self) -> Result<(), CommandError> {
        match self.target.take() {
            Some(Target::Running(running)) => match running.break_in(self.patience) {
                Ok(halted) => {
                    self.target = Some(Target::Halted(halted));
                    Ok(())
                }
                Err((running, error)) => {
                    self.target = Some(Target::Running(running));
                    Err(error.into())
                }
            },
            target => {
                self.target = target;
                self.halted().map(drop).ok_or(CommandError::NoTarget)
            }
        }
    }
}

/// What the breakpoint is for that the target stands at; `None`: it does not stand at one.
fn hit(context: &mut Context<'_>) -> Result<Option<Hit>, CommandError> {
    const STATUS_BREAKPOINT: u32 = 0x8000_0003;
    let kernel = context.kernel()?;
    let (stop, width) = (kernel.stop(), kernel.width());
    let address = match stop.data {
        Some(address) => width.address(address),
        None if stop.code == STATUS_BREAKPOINT => width.address(stop.program_counter),
        None => return Ok(None),
    };
    let is_here =
        |known: &Breakpoint| known.enabled && known.data.is_some() == stop.data.is_some() && known.address.0 == address;
    let Some(at) = context.session.breakpoints.iter().position(is_here) else { return Ok(None) };
    let Breakpoint { thread, process, condition, .. } = context.session.breakpoints[at].clone();
    if thread.is_some_and(|thread| width.address(thread.0) != width.address(stop.thread)) {
        return Ok(Some(Hit::Pass));
    }
    if let Some(process) = process {
        let current = current_process(kernel, &mut context.session.symbols)?;
        if width.address(current) != width.address(process.0) {
            return Ok(Some(Hit::Pass));
        }
    }
    // A condition that makes no sense here stops: it would be missed for ever.
    if let Some(condition) = condition
        && let Ok(0) = evaluate_all(&condition, &mut context.scope())
    {
        return Ok(Some(Hit::Pass));
    }
    let breakpoint = &mut context.session.breakpoints[at];
    if breakpoint.passes_left > 1 {
        breakpoint.passes_left -= 1;
        return Ok(Some(Hit::Pass));
    }
    let (number, commands) = (breakpoint.number, breakpoint.commands.clone());
    if breakpoint.once {
        clear(kernel, address)?;
        context.session.breakpoints.remove(at);
    }
    Ok(Some(Hit::Stop { number, commands }))
}
