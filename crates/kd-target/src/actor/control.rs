//! What ends a machine's run by a request, and drivers that are waited for.

use kd_wire::message::manipulate::{cause_bug_check, reboot};
use kd_wire::message::state_change::LoadSymbols;

use super::*;
use crate::Load;

/// `MANUALLY_INITIATED_CRASH1`, which kd asks for as well.
const MANUAL_CRASH: u32 = 0xe2;

impl Actor {
    /// Restarts the machine, or makes it crash: requests that are acknowledged and never answered. It runs afterwards, to
    /// its end or into the stop that a bugcheck makes.
    pub(super) async fn end_run(&mut self, crash: bool) -> Result<Answer, TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Err(Fault::Running.into()) };
        let request = match crash {
            true => Request::CauseBugCheck(cause_bug_check::Request { bug_check_code: MANUAL_CRASH }),
            false => Request::Reboot(reboot::Request {}),
        };
        self.exchange(processor, request).await?;
        self.at = None;
        // The stop of a bugcheck is at the place of a break-in's, and no late answer to one.
        self.asked_at = None;
        self.resumed = Some(Instant::now());
        self.set_phase(Phase::Running);
        Ok(Answer::Done)
    }

    /// Whether a driver that came or went is one that the user waits for; then the target stays where it told of it.
    pub(super) fn halt_at_load(&mut self, change: &StateChange, report: &LoadSymbols) -> bool {
        let load = Load {
            path: report.path(),
            base: report.base_of_dll,
            size: report.size_of_image,
            unload: report.unload_symbols != 0,
        };
        let wanted = lock(&self.shared.load_stops).as_ref().is_some_and(|wanted| wanted.want(&load));
        let Some(version) = self.version.clone().filter(|_| wanted) else { return false };
        self.halts += 1;
        self.break_wanted = false;
        let stop = Stop {
            code: 0,
            first_chance: true,
            exception_address: change.program_counter,
            parameters: Vec::new(),
            processor: change.processor,
            processors: change.processors(),
            thread: change.thread,
            program_counter: change.program_counter,
            instructions: instructions(change, version.machine),
            asked: false,
            load: Some(load),
            data: None,
        };
        self.set_phase(Phase::Halted(Arc::new(Halt { number: self.halts, version, stop })));
        self.tell(Event::Stopped);
        true
    }
}
