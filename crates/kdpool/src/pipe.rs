//! Commands from a pipe or a file, as the tools that drive kd write them: a command, then nothing until the prompt comes.
//!
//! The prompt is written before each line is taken, as kd writes it. While the target runs there is none, and lines wait
//! for the next stop, but for those that are meant for a target that runs. An interrupt breaks in.

use std::io::{self, BufRead};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result};
use kd_shell::Next;

use crate::console::remark;
use crate::work::{Wait, Work};

/// How often a running target is looked at.
const STEP: Duration = Duration::from_millis(30);
/// Lines that are read ahead.
const AHEAD: usize = 64;

/// Lines of standard input, read by a thread of their own: a pipe cannot be waited for together with the target.
struct Lines {
    coming: Receiver<io::Result<String>>,
    /// Read, and not run yet.
    next: Option<String>,
    ended: bool,
}

impl Lines {
    fn start() -> Lines {
        let (lines, coming) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            let mut input = io::stdin().lock();
            loop {
                let mut bytes = Vec::new();
                let line = match input.read_until(b'\n', &mut bytes) {
                    Ok(0) => return,
                    // What is no UTF-8 costs that character.
                    Ok(_) => Ok(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned()),
                    Err(error) => Err(error),
                };
                let failed = line.is_err();
                // With nobody listening the session is over.
                if lines.send(line).is_err() || failed {
                    return;
                }
            }
        });
        Lines { coming, next: None, ended: false }
    }

    /// Waits for a line for that long at most.
    fn look(&mut self, patience: Duration) -> Result<()> {
        if self.next.is_some() || self.ended {
            return Ok(());
        }
        let line = match patience.is_zero() {
            true => self.coming.try_recv().map_err(|error| error == TryRecvError::Disconnected),
            false => self.coming.recv_timeout(patience).map_err(|error| error == RecvTimeoutError::Disconnected),
        };
        match line {
            Ok(line) => self.next = Some(line.context("cannot read standard input")?),
            Err(ended) => self.ended = ended,
        }
        Ok(())
    }
}

impl Work {
    /// Runs what comes, and ends where it ends.
    pub(crate) fn read_lines(&mut self, prompts: bool) -> Result<Next> {
        let mut lines = Lines::start();
        let mut prompted = false;
        loop {
            let prompt = self.shell.borrow_mut().prompt();
            let next = match prompt {
                Some(prompt) => self.halted(&mut lines, prompts.then_some(&*prompt), &mut prompted)?,
                None => {
                    prompted = false;
                    self.running(&mut lines)?
                }
            };
            if next != Next::Continue {
                return Ok(next);
            }
        }
    }

    fn halted(&mut self, lines: &mut Lines, prompt: Option<&str>, prompted: &mut bool) -> Result<Next> {
        // No prompt for who has nothing to say: the end of a script is known at once.
        lines.look(STEP)?;
        if !lines.ended
            && let Some(prompt) = prompt
            && !std::mem::replace(prompted, true)
        {
            remark(prompt, false);
        }
        match lines.next.take() {
            Some(line) => {
                *prompted = false;
                Ok(self.line(&line))
            }
            None if lines.ended => Ok(Next::Quit { halted: false }),
            None => Ok(Next::Continue),
        }
    }

    fn running(&mut self, lines: &mut Lines) -> Result<Next> {
        lines.look(Duration::ZERO)?;
        if let Some(line) = lines.next.take_if(|line| self.shell.borrow().is_for_running(line)) {
            return Ok(self.line(&line));
        }
        // With nothing more to be done nobody waits for a stop.
        if lines.ended && lines.next.is_none() {
            return Ok(Next::Quit { halted: false });
        }
        Ok(match self.wait(STEP) {
            Wait::Stopped | Wait::Runs => Next::Continue,
            Wait::End(next) => next,
        })
    }
}
