//! Working towards a state change.

use super::*;

/// Between two break-ins on a stream. A byte that arrives beside a print may be lost for good: repeated at this pace it
/// is taken even of a target that prints 400 lines a second within some tenths of a second.
const BREAK_IN_PACE: Duration = Duration::from_millis(100);
/// On KDNET each is authenticated and counted, and none is lost beside a print.
const KDNET_PACE: Duration = Duration::from_millis(250);
/// RESETs are for a target that stands. One that runs has to read their bytes, one a clock tick, before the break-in
/// behind them.
const BREAK_INS_PER_RESET: u32 = 8;
/// So often nobody answered on a stream: perhaps the target waits for the rest of a packet, and swallows what it is sent.
/// It gets the time to notice that none comes.
const STEPS_TO_A_REST: u32 = 3 * BREAK_INS_PER_RESET;
/// How often a target is asked to take our ids before it is taken as it is.
const ALIGN_TRIES: u32 = 5;

impl HostSession {
    /// Between the steps of a synchronisation.
    pub(super) fn step(&self, step: u32) -> Duration {
        let answer = self.on_the_line(300);
        match (&self.transport, self.seek.as_ref().map(|seek| seek.aim)) {
            (_, Some(Aim::Align { .. })) => self.ack_time.after(step) + answer,
            (Transport::Kdnet(_), Some(Aim::BreakIn)) => KDNET_PACE,
            (Transport::Kdnet(_), _) if step == 0 => Duration::from_millis(500),
            (Transport::Kdnet(_), _) => KDNET_PACE,
            (Transport::Serial(_), Some(Aim::Synchronise { break_in: false })) => Duration::from_secs(1) + answer,
            (Transport::Serial(_), _) => BREAK_IN_PACE + answer,
        }
    }

    pub(super) fn seek(&mut self, aim: Aim) {
        self.seek = Some(Seek { aim, step: 0, resets: 0, next: None });
    }

    /// A stop came, and what the target expects of us is not known: it is told, and the stop is taken when it comes
    /// again. False: that was tried often enough.
    pub(super) fn align(&mut self, now: Duration) -> bool {
        match &self.seek {
            // Under way already; the target repeats itself.
            Some(Seek { aim: Aim::Align { .. }, .. }) => return true,
            _ if self.aligned_in_vain => return false,
            Some(Seek { aim: Aim::BreakIn | Aim::Synchronise { break_in: true }, .. }) => {
                self.seek(Aim::Align { break_in: true });
            }
            _ => self.seek(Aim::Align { break_in: false }),
        }
        self.seek_step(now);
        true
    }

    pub(super) fn seek_step(&mut self, now: Duration) {
        if let Some(Seek { aim: Aim::Align { break_in }, step: ALIGN_TRIES, .. }) = self.seek {
            // It is gone again, or does not know RESET: whatever it says next is taken as it is.
            self.aligned_in_vain = true;
            self.seek(Aim::Synchronise { break_in });
        }
        let serial = self.is_serial();
        let Some(seek) = &mut self.seek else { return };
        seek.step = seek.step.saturating_add(1);
        let step = seek.step;
        // A kernel that runs may only have to read what stands before the break-in; but where its stop was lost, as many
        // break-ins are left in it, and whoever leaves has to ask for the stop that they cause.
        if step > 1 {
            self.troubles = self.troubles.saturating_add(1);
        }
        if serial && step.is_multiple_of(STEPS_TO_A_REST) {
            seek.next = Some(now + STUB_GIVES_UP);
            return;
        }
        let limit = match &self.transport {
            Transport::Serial(serial) if serial.config.resets > 0 => serial.config.resets,
            _ => u32::MAX,
        };
        let stop = match seek.aim {
            Aim::BreakIn => !step.is_multiple_of(BREAK_INS_PER_RESET),
            Aim::Synchronise { break_in: true } if serial => !step.is_multiple_of(BREAK_INS_PER_RESET),
            Aim::Synchronise { break_in } => break_in && step % 2 == 1,
            Aim::Align { .. } => false,
        };
        let reset = !stop && (seek.resets < limit || matches!(seek.aim, Aim::Align { .. }));
        if reset {
            seek.resets = seek.resets.saturating_add(1);
        }
        let wait = self.step(step);
        if let Some(seek) = &mut self.seek {
            seek.next = Some(now + wait);
        }
        if stop {
            self.transmit_break_in();
            self.answer_is_due(now);
        } else if reset {
            self.transmit_reset(now);
        }
    }
}
