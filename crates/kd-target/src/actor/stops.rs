//! What a stop means: the user's, a driver that came, our own step, the late answer to a break-in, another boot.

use kd_wire::message::manipulate::get_version;
use kd_wire::message::state_change::{HIBERNATING, LoadSymbols, REBOOTING};

use super::*;

/// Stops that a debugger causes, and that are therefore handled when it goes on: breakpoint, single step, the same two
/// from 32-bit code, and a processor that was switched to.
pub(super) const DEBUGGER_STOPS: [u32; 5] = [STATUS_BREAKPOINT, 0x8000_0004, 0x4000_001f, 0x4000_001e, 0x8000_0007];

/// A break-in that was sent once too often stops the target again, at the same place, within this time of a continue.
const LATE_BREAK_IN: Duration = Duration::from_secs(2);

impl Actor {
    pub(super) fn restarted(&mut self) {
        *self.shared.kept_modules() = None;
        self.breakpoints.clear();
        self.restore.clear();
        self.stepping = None;
        self.version = None;
        self.at = None;
        self.next_stop = None;
        self.asked_at = None;
        self.released = false;
        self.unknown_slots = false;
        self.silent = false;
        // One that was on its way may have reached the machine only after it started anew.
        if !self.break_wanted {
            self.break_ins_answered = self.session.break_ins();
        }
        self.shared.reply_data.store(usize::MAX, Ordering::Relaxed);
        *lock(&self.shared.searching) = Searching::Unknown;
        self.set_phase(Phase::Running);
        if !std::mem::take(&mut self.reboot_announced) {
            self.tell(Event::Restarted { announced: false });
        }
        self.session.synchronise(self.now(), self.break_wanted);
    }

    pub(super) fn break_in(&mut self) {
        if self.at.is_some() {
            return;
        }
        self.break_wanted = true;
        if self.version.is_some() {
            self.session.break_in(self.now());
        } else {
            // Not connected yet: the target may as well stand still already and need a RESET.
            self.session.synchronise(self.now(), true);
        }
    }

    /// Decides what a stop means. An error is the end of the link.
    pub(super) async fn stopped(&mut self, change: StateChange) -> Result<(), String> {
        let again = self.at.as_ref().is_some_and(|at| at.is_same_stop(&change));
        self.at = Some(change.clone());
        self.answers_again();
        if again {
            return Ok(());
        }
        if self.version.is_none() && !is_restart_notice(&change) {
            match self.ask_version().await {
                Ok(()) => {}
                Err(TargetError::Fault(fault)) => return self.ended_by(fault),
                Err(_) => {
                    // A stop that cannot be talked to: let the target report it again.
                    self.at = None;
                    self.session.synchronise(self.now(), self.break_wanted);
                    return Ok(());
                }
            }
        }
        let stepped = if is_step(&change) { self.stepping.take() } else { None };
        let lifted = match self.released {
            true => self.lift_breakpoints().await,
            false => self.release_leftovers().await,
        };
        if let Err(TargetError::Fault(fault)) = lifted {
            return self.ended_by(fault);
        }
        match &change.report {
            Report::Exception(exception) => {
                self.stopped_by_exception(&change, exception.exception_code == STATUS_BREAKPOINT, stepped).await
            }
            Report::LoadSymbols(report) => self.told_of_driver(&change, report).await,
            Report::CommandString(_) | Report::Unknown { .. } => self.resume_and_break_again().await,
        }
    }

    /// Whether it is the user's, ours, or one that a break-in of before made.
    async fn stopped_by_exception(
        &mut self,
        change: &StateChange,
        is_break: bool,
        stepped: Option<Stepping>,
    ) -> Result<(), String> {
        let is_ours = self.is_at_breakpoint(change.program_counter);
        // Without a break-in on its way it is a stop of the target's own, whatever we were about to do.
        let asked = is_break && self.break_wanted && !is_ours && self.break_ins_unanswered() > 0;
        // The step off a breakpoint, which something else came before.
        if stepped == Some(Stepping::OffBreakpoint) {
            return self.resume().await;
        }
        if is_break && !asked && self.is_late_break_in(change.program_counter) {
            self.break_ins_answered += 1;
            self.tell(Event::BreakInAbsorbed);
            return self.resume().await;
        }
        self.break_wanted = false;
        if asked && self.break_ins_unanswered() > 0 {
            self.break_ins_answered += 1;
        }
        self.asked_at = asked.then_some(change.program_counter);
        self.halt(change, asked);
        Ok(())
    }

    /// A driver came or went, or the machine says that it starts anew.
    async fn told_of_driver(&mut self, change: &StateChange, report: &LoadSymbols) -> Result<(), String> {
        *self.shared.kept_modules() = None;
        if is_restart_notice(change) {
            self.reboot_announced = report.base_of_dll == REBOOTING;
            self.version = None;
            self.tell(Event::Restarted { announced: true });
        } else {
            self.tell(Event::ModuleChange {
                path: report.path(),
                base: report.base_of_dll,
                size: report.size_of_image,
                unload: report.unload_symbols != 0,
            });
            if self.halt_at_load(change, report) {
                return Ok(());
            }
        }
        self.resume_and_break_again().await
    }

    pub(super) async fn ask_version(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        let Exchanged::Reply(reply) = self.exchange(processor, Request::GetVersion(get_version::Request {})).await?
        else {
            return Err(TargetError::Refused("the target acknowledged but did not answer".into()));
        };
        let Reply::GetVersion(version) = reply.body else {
            return Err(refused(reply.return_status, || "tell its version".into()));
        };
        accepted(reply.return_status, || "tell its version".into())?;
        self.version = Some(Version {
            major: version.major_version,
            minor: version.minor_version,
            protocol: version.protocol_version,
            flags: version.flags,
            machine: Machine::of(version.machine_type),
            kernel_base: version.kern_base,
            loaded_module_list: version.ps_loaded_module_list,
            debugger_data_list: version.debugger_data_list,
        });
        Ok(())
    }

    /// What a fault in the middle of the session's own work means: the end of the link, or nothing but that the work is
    /// not finished, when another stop came or the session is to end.
    fn ended_by(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Lost(why) => Err(why),
            Fault::Running | Fault::Cancelled | Fault::Full(_) => Ok(()),
        }
    }

    /// Continues a stop that is no business of the user's.
    pub(super) async fn resume(&mut self) -> Result<(), String> {
        match self.go(false, Plant::WhatCanBe).await {
            Ok(()) => Ok(()),
            Err(TargetError::Fault(fault)) => self.ended_by(fault),
            Err(error) => {
                tracing::warn!(%error, "could not continue; asking the target to report again");
                self.at = None;
                self.session.synchronise(self.now(), self.break_wanted);
                Ok(())
            }
        }
    }

    async fn resume_and_break_again(&mut self) -> Result<(), String> {
        self.resume().await?;
        if self.break_wanted && self.at.is_none() {
            self.session.break_in(self.now());
        }
        Ok(())
    }

    pub(super) fn break_ins_unanswered(&self) -> u32 {
        self.session.break_ins().saturating_sub(self.break_ins_answered)
    }

    fn is_late_break_in(&self, program_counter: u64) -> bool {
        self.asked_at == Some(program_counter)
            && self.break_ins_unanswered() > 0
            && self.resumed.is_some_and(|resumed| resumed.elapsed() < LATE_BREAK_IN)
    }

    fn halt(&mut self, change: &StateChange, asked: bool) {
        let Some(version) = self.version.clone() else { return };
        let Report::Exception(exception) = &change.report else { return };
        let instructions = instructions(change, version.machine);
        self.halts += 1;
        let stop = Stop {
            code: exception.exception_code,
            first_chance: exception.first_chance != 0,
            exception_address: exception.exception_address,
            parameters: exception.parameters().to_vec(),
            processor: change.processor,
            processors: change.processors(),
            thread: change.thread,
            program_counter: change.program_counter,
            instructions,
            asked,
            load: None,
            data: self.data_hit(change, version.machine),
        };
        self.set_phase(Phase::Halted(Arc::new(Halt { number: self.halts, version, stop })));
        self.tell(Event::Stopped);
    }
}

/// The bytes at the program counter that came with a stop; where they lie depends on the machine.
pub(super) fn instructions(change: &StateChange, machine: Machine) -> Vec<u8> {
    match machine {
        Machine::X86 => change.x86().instructions().to_vec(),
        Machine::Arm64 => change.arm64().instructions().to_vec(),
        Machine::X64 | Machine::Other(_) => change.x64().instructions().to_vec(),
    }
}

/// Whether an instruction was run for us.
pub(super) fn is_step(change: &StateChange) -> bool {
    matches!(&change.report, Report::Exception(exception)
        if DEBUGGER_STOPS.contains(&exception.exception_code) && exception.exception_code != STATUS_BREAKPOINT)
}

pub(super) fn is_restart_notice(change: &StateChange) -> bool {
    matches!(&change.report, Report::LoadSymbols(report)
        if report.unload_symbols != 0 && [REBOOTING, HIBERNATING].contains(&report.base_of_dll))
}
