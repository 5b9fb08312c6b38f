//! How a target that stands goes on: over a hard-coded break, off a breakpoint of ours, one instruction or all.

use kd_wire::message::manipulate::{continue_api, continue2, get_version, set_context};

use super::*;

pub(super) const DBG_EXCEPTION_HANDLED: u32 = 0x0001_0001;

pub(super) const DBG_CONTINUE: u32 = 0x0001_0002;

const DBG_EXCEPTION_NOT_HANDLED: u32 = 0x8001_0001;

/// The acknowledgement of a continue may be lost, and a target that runs says nothing more. Its silence means that only
/// where it was heard not long before: after a prompt at which nobody typed for a minute it might as well be gone.
const HEARD_BEFORE: Duration = Duration::from_secs(2);

/// How long it gets for that.
const SHOWS_ITSELF_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stepping {
    OffBreakpoint,
    ForUser,
}

impl Actor {
    /// Lets the halted target run, or run one instruction.
    pub(super) async fn go(&mut self, single_step: bool, plant: Plant) -> Result<(), TargetError> {
        let Some(mut at) = self.at.clone() else { return Ok(()) };
        let status = match &at.report {
            Report::Exception(exception) if DEBUGGER_STOPS.contains(&exception.exception_code) => DBG_EXCEPTION_HANDLED,
            Report::Exception(_) => DBG_EXCEPTION_NOT_HANDLED,
            _ => DBG_CONTINUE,
        };
        let is_break = matches!(&at.report, Report::Exception(exception)
            if exception.exception_code == STATUS_BREAKPOINT);
        let went_on = is_break && self.step_over_break(&at).await?;
        let on_ours = !went_on && self.is_at_breakpoint(at.program_counter);
        if on_ours && !single_step {
            if !self.step_off_breakpoint(&at, plant).await? {
                self.resumed = Some(Instant::now());
                self.set_phase(Phase::Running);
                return Ok(());
            }
            if let Some(stepped) = self.at.clone() {
                at = stepped;
            }
        }
        let except = (on_ours && single_step).then_some(at.program_counter);
        self.plant_breakpoints(at.processor, except, plant).await?;
        if single_step {
            self.stepping = Some(Stepping::ForUser);
        }
        self.continue_with(&at, status, single_step).await?;
        self.at = None;
        self.resumed = Some(Instant::now());
        self.set_phase(Phase::Running);
        Ok(())
    }

    /// The request that lets a stop go on: all of the target, or one instruction of the processor that stopped.
    pub(super) async fn continue_with(
        &mut self,
        at: &StateChange,
        status: u32,
        single_step: bool,
    ) -> Result<(), TargetError> {
        if self.version.is_some() && !self.shared.was_heard_within(HEARD_BEFORE) {
            self.show_itself(at.processor).await?;
        }
        let trace_flag = u32::from(single_step);
        // Continue says the same to every machine; Continue2 is laid out for each.
        let request = if is_restart_notice(at) || self.version.is_none() {
            Request::Continue(continue_api::Request { continue_status: status })
        } else {
            Request::Continue2(match self.machine() {
                // SymStart 1 leaves the target's symbol range as it is; Dr7 is written into every processor.
                Machine::X86 => continue2::Request::new(
                    status,
                    &continue2::X86 {
                        trace_flag,
                        dr7: self.dr7(at.x86().dr7.into()) as u32,
                        current_symbol_start: 1,
                        ..Default::default()
                    },
                ),
                Machine::Arm64 => continue2::Request::new(
                    status,
                    &continue2::Arm64 { continue_flag: 1, trace_flag, current_symbol_start: 1, ..Default::default() },
                ),
                Machine::X64 | Machine::Other(_) => continue2::Request::new(
                    status,
                    &continue2::X64 {
                        trace_flag,
                        dr7: self.dr7(at.x64().dr7),
                        current_symbol_start: 1,
                        ..Default::default()
                    },
                ),
            })
        };
        let exchanged = self.exchange(at.processor, request).await;
        exchanged.map_err(|error| self.without_answer(error))?;
        Ok(())
    }

    /// A target that stands and was not heard for long says something. One that does not is asked to go on all the same.
    async fn show_itself(&mut self, processor: u16) -> Result<(), TargetError> {
        let request = Request::GetVersion(get_version::Request {});
        match self.exchange_within(processor, request, Some(SHOWS_ITSELF_WITHIN)).await {
            Ok(_) | Err(TargetError::Silent(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves the program counter behind a hard-coded break instruction; continuing on it would break again at once.
    /// False: there is none.
    async fn step_over_break(&mut self, at: &StateChange) -> Result<bool, TargetError> {
        let machine = self.machine();
        let Some(record) = machine.context() else { return Ok(false) };
        let mut instructions = instructions(at, machine);
        if instructions.len() < record.break_length()
            && let Answer::Bytes { bytes, .. } =
                self.read(at.processor, at.program_counter, record.break_length()).await?
        {
            instructions = bytes.to_vec();
        }
        let Some(behind) = record.behind_break(at.program_counter, &instructions) else { return Ok(false) };
        let context = self.context(at.processor).await?;
        let mut context = context.to_vec();
        record.fill_up(&mut context);
        let Some(context_flags) = record.set_program_counter(&mut context, behind) else {
            return Err(TargetError::Refused(format!("the target's CONTEXT has only {} bytes", context.len())));
        };
        let request = Request::SetContext(set_context::Request { context_flags, data: context.into() });
        self.session.moves(behind);
        let reply = self.reply(at.processor, request).await?;
        if !is_success(reply.return_status) {
            return Err(TargetError::Refused(format!(
                "the target did not take a program counter behind its break instruction (status {:08x})",
                reply.return_status
            )));
        }
        Ok(true)
    }
}
