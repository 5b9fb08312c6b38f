//! kd's prompt, from the first stop to the last.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use kd_shell::{Format, HuntEnd, Next, Outcome, Shell, leak};
use kd_target::{Leave, TargetError};
use nt_memory::Fault;

use crate::console::{Announcer, Console, complain, remark};
use crate::debug::{Plan, Task};
use crate::progress::Watch;
use crate::{COMMAND_FAILED, CONNECTION_LOST, INTERRUPTED, LEAK_FOUND, NO_SUCH_TAG};

pub(crate) struct Work {
    pub(crate) shell: Rc<RefCell<Shell>>,
    console: Console,
    restarted: Arc<AtomicBool>,
    /// A command of a script failed.
    failed: bool,
    /// The whole session was one task.
    tasked: bool,
    /// Somebody typed.
    pub(crate) talked: bool,
}

/// What a look at a running target came to.
pub(crate) enum Wait {
    Runs,
    /// It stands still, and was shown.
    Stopped,
    /// The session is over.
    End(Next),
}

impl Work {
    pub(crate) fn new(shell: Shell, restarted: Arc<AtomicBool>) -> Work {
        let shell = Rc::new(RefCell::new(shell));
        Work { shell, console: Console::default(), restarted, failed: false, tasked: false, talked: false }
    }

    /// `told` becomes true when the user has heard what became of the target.
    pub(crate) fn all(&mut self, plan: &Plan, announcer: &Announcer, told: &Cell<bool>) -> Result<ExitCode> {
        let json = self.shell.borrow().format == Format::Json;
        if !json && let Err(fault) = self.greet(plan) {
            complain(&fault.to_string());
            return Ok(self.leave(Next::Lost, told));
        }
        let undone = self.shell.borrow().undo_leftovers();
        undone.iter().for_each(|line| complain(line));
        let checked = self.shell.borrow().check_symbol_path();
        match checked {
            Ok(warning) => warning.iter().for_each(|warning| complain(warning)),
            Err(error) => {
                complain(&error.to_string());
                self.failed = true;
            }
        }
        if plan.session.noisy {
            self.shell.borrow().session.symbols.source().monitor().set_noisy(true);
        }
        let mut next = Next::Continue;
        if let Some(script) = &plan.session.script {
            let outcome = self.shell.borrow_mut().run_script(&script.display().to_string(), &mut self.console);
            next = self.scripted(outcome);
        }
        for line in &plan.session.commands {
            if next == Next::Continue {
                next = self.line(line);
            }
        }
        if let Some(task) = &plan.task {
            if next == Next::Continue {
                next = self.perform(task);
            }
        } else if next == Next::Continue {
            next = if io::stdin().is_terminal() && !json {
                remark(plan.hint, false);
                self.converse(announcer)?
            } else {
                self.read_lines(!json)?
            };
        }
        Ok(self.leave(next, told))
    }

    fn greet(&mut self, plan: &Plan) -> Result<(), Fault> {
        let mut shell = self.shell.borrow_mut();
        let text = match plan.brief {
            true => shell.connected()?,
            false if plan.session.quiet => String::new(),
            false => shell.banner(plan.break_on_connect)? + &shell.stop_lines()?,
        };
        shell.session.log.write(&text);
        remark(&text, plan.is_aside());
        Ok(())
    }

    pub(crate) fn execute(&mut self, line: &str) -> Outcome {
        let watch = self.progress();
        let mut shell = self.shell.borrow_mut();
        if self.restarted.swap(false, Ordering::Relaxed) {
            shell.forget_target();
        }
        let outcome = shell.execute(line, &mut self.console);
        drop(watch);
        // Nobody reads any more: the same as the end of input.
        if self.console.closed { Outcome { next: Next::Quit { halted: false }, ..outcome } } else { outcome }
    }

    /// The whole of a subcommand. The session ends with it.
    fn perform(&mut self, task: &Task) -> Next {
        self.tasked = true;
        let watch = self.progress();
        let outcome = leak::order(&mut self.shell.borrow_mut(), task.sub, &task.asked, &mut self.console);
        drop(watch);
        match self.scripted(outcome) {
            Next::Continue => Next::Quit { halted: false },
            next => next,
        }
    }

    /// Progress, for somebody who looks at it.
    fn progress(&self) -> Option<Watch> {
        let shell = self.shell.borrow();
        let consent = shell.session.consent.clone().filter(|_| io::stderr().is_terminal())?;
        (shell.format == Format::Kd).then_some(())?;
        Some(Watch::start(shell.meter()?, consent))
    }

    fn scripted(&mut self, outcome: Outcome) -> Next {
        self.failed |= outcome.failed;
        outcome.next
    }

    /// A line of a script: its failure is the program's.
    pub(crate) fn line(&mut self, line: &str) -> Next {
        let outcome = self.execute(line);
        self.scripted(outcome)
    }

    /// Looks at a target that runs for that long; an interrupt breaks in.
    pub(crate) fn wait(&mut self, patience: Duration) -> Wait {
        let waited = self.shell.borrow_mut().wait(Some(patience), &mut self.console);
        if let Some(end) = self.shell.borrow_mut().take_end() {
            return Wait::End(end);
        }
        let stopped = match waited {
            Ok(false) => return Wait::Runs,
            Ok(true) => self.shell.borrow_mut().stop_lines(),
            Err(TargetError::Fault(Fault::Cancelled)) => {
                if self.talked {
                    // The terminal has written ^C.
                    remark("\n", false);
                }
                return match self.line(".break") {
                    Next::Continue => Wait::Stopped,
                    next => Wait::End(next),
                };
            }
            Err(TargetError::Fault(fault)) => Err(fault),
            Err(error) => {
                complain(&error.to_string());
                return Wait::Stopped;
            }
        };
        match stopped {
            Ok(lines) => {
                let shell = self.shell.borrow();
                shell.session.log.write(&lines);
                if shell.format == Format::Kd {
                    remark(&lines, false);
                }
                Wait::Stopped
            }
            Err(fault @ Fault::Lost(_)) => {
                complain(&fault.to_string());
                Wait::End(Next::Lost)
            }
            // It was reset in the same moment.
            Err(_) => Wait::Stopped,
        }
    }

    fn leave(&mut self, next: Next, told: &Cell<bool>) -> ExitCode {
        // `q` let it go before it said that all went well.
        told.set(self.shell.borrow().left().is_some());
        let leave = if next == (Next::Quit { halted: true }) { Leave::Halted } else { Leave::Running };
        let left = self.shell.borrow_mut().leave(leave);
        if self.talked && next != Next::Lost && left.is_some_and(|left| !left.may_stand()) {
            remark(parting(leave), false);
        }
        let hunt = self.shell.borrow().session.hunt_end;
        match next {
            Next::Lost => ExitCode::from(CONNECTION_LOST),
            _ if hunt == HuntEnd::Found => ExitCode::from(LEAK_FOUND),
            _ if hunt == HuntEnd::NoSuchTag && self.tasked => ExitCode::from(NO_SUCH_TAG),
            _ if hunt == HuntEnd::Interrupted && self.tasked => ExitCode::from(INTERRUPTED),
            _ if self.failed => ExitCode::from(COMMAND_FAILED),
            _ => ExitCode::SUCCESS,
        }
    }
}

/// What to know of a target that was left; docs/leaving.md.
fn parting(leave: Leave) -> &'static str {
    match leave {
        Leave::Running => "The target runs. It may stall once, up to a minute, when it prints something.\n",
        Leave::Halted => "The target stands still until a debugger comes.\n",
    }
}
