//! Statements that steer: `g`, `.break`, `.wait`, `.sleep`, `q` and what leaves a block of a script.

use std::time::{Duration, Instant};

use kd_target::{Cost, Halted, Leave, Target, TargetError};
use nt_memory::Fault;

use super::{Leaving, Next, SLEEP_STEP, Seen, Shell, debuggee};
use crate::answer::{Done, Reply};
use crate::command::Control;
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::output::Output;
use crate::session::Context;

impl Shell {
    pub(super) fn control(
        &mut self,
        control: Control,
        arguments: &str,
        next: &mut Next,
        out: &mut dyn Output,
    ) -> Result<Reply, CommandError> {
        let is_running = matches!(self.target, Some(Target::Running(_)));
        match control {
            Control::Go => self.go()?,
            Control::Break if self.loops > 0 && !is_running => self.leaving = Some(Leaving::Loop),
            Control::Break => return self.break_in_and_look(out),
            Control::Leave if self.catches == 0 => {
                return Err(CommandError::Usage(".leave is for the inside of a .catch".into()));
            }
            Control::Leave => self.leaving = Some(Leaving::Catch),
            // The line does it itself, which knows what it begins with.
            Control::Repeat => return Err(CommandError::Usage("z repeats the line that it stands on".into())),
            Control::Continue if self.loops == 0 => {
                return Err(CommandError::Usage(".continue is for the body of a loop".into()));
            }
            Control::Continue => self.leaving = Some(Leaving::Round),
            Control::Wait => return self.wait_for_stop(arguments, out),
            Control::Sleep => self.sleep(arguments)?,
            Control::Reboot | Control::Crash => {
                self.session.check_writing()?;
                self.let_run(if control == Control::Crash { Halted::crash } else { Halted::reboot })?;
            }
            Control::Quit => self.quit(arguments, next)?,
        }
        Ok(Reply::new(Done {}))
    }

    /// Breaks in. A breakpoint may come first: its hit did not count, or its commands let the target go.
    fn break_in_and_look(&mut self, out: &mut dyn Output) -> Result<Reply, CommandError> {
        let end = Instant::now() + self.patience;
        loop {
            self.break_in()?;
            match self.look_at_stop(out)? {
                Seen::Runs if Instant::now() < end => {}
                Seen::Runs => return Err(TargetError::Timeout(self.patience).into()),
                Seen::Breakpoint | Seen::Plain => return self.stop_reply(),
            }
        }
    }

    fn wait_for_stop(&mut self, arguments: &str, out: &mut dyn Output) -> Result<Reply, CommandError> {
        if self.target.is_none() {
            return Err(CommandError::NoTarget);
        }
        let patience = match arguments {
            "" => None,
            text => Some(self.milliseconds(text)?),
        };
        match self.wait(patience, out)? {
            true => self.stop_reply(),
            false => Err(TargetError::Timeout(patience.unwrap_or_default()).into()),
        }
    }

    fn sleep(&mut self, arguments: &str) -> Result<(), CommandError> {
        if arguments.is_empty() {
            return Err(CommandError::Usage("no time; usage: .sleep milliseconds".into()));
        }
        let end = Instant::now() + self.milliseconds(arguments)?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.interrupt.take() {
                return Err(Fault::Cancelled.into());
            }
            if let Some(why) = self.lost() {
                return Err(Fault::Lost(why).into());
            }
            std::thread::sleep(left.min(SLEEP_STEP));
        }
    }

    fn quit(&mut self, arguments: &str, next: &mut Next) -> Result<(), CommandError> {
        if !self.ends_by_q {
            return Err(CommandError::Failed("this session ends when its client does; g lets the target run".into()));
        }
        let halted = match arguments {
            "" => false,
            "-halted" => true,
            other => return Err(CommandError::Usage(format!("unknown option '{other}'; usage: q [-halted]"))),
        };
        *next = Next::Quit { halted };
        // Before it is said that all went well, it has to.
        match self.leave(if halted { Leave::Halted } else { Leave::Running }) {
            Some(left) if left.may_stand() => Err(CommandError::Failed(left.to_string())),
            _ => Ok(()),
        }
    }

    fn milliseconds(&mut self, text: &str) -> Result<Duration, CommandError> {
        let lost = self.lost();
        let debuggee = debuggee(self.target.as_ref(), lost.as_deref());
        let (session, cost) = (&mut self.session, Cost::default());
        let mut context = Context { debuggee, session, word: "", arguments: "", cost, commands: self.commands };
        let value = evaluate_all(text, &mut context.scope())?;
        // Negative numbers are huge ones.
        match value {
            ..=0x7fff_ffff => Ok(Duration::from_millis(value)),
            _ => Err(CommandError::Usage(format!("{text} is too long a time"))),
        }
    }
}
