//! How a target is let go, whatever the reason: `q`, end of input, a signal, a panic, a connection that took too long.
//!
//! Between the decision and the continue stands only what the target needs to run: our breakpoints that are in its table,
//! memory that was changed for a while, the step over a hard-coded break. The continue is repeated until it is
//! acknowledged; listening for what may stop the target once more is done with the target running.

use super::*;

/// How long the target is asked to run before it is said that it may stand.
const LONGEST_LEAVE: Duration = Duration::from_secs(10);

/// How long the line must be quiet before a target is left: with a break-in that may still come, and without.
const QUIET_AFTER_BREAK_IN: Duration = Duration::from_millis(1500);
const QUIET: Duration = Duration::from_millis(300);

/// The same on a line that loses packets, with a break-in that may still come. A stub takes one for real after a second of
/// silence, and tells of its stop once more a second after the first report was lost.
const QUIET_ON_BAD_LINE: Duration = Duration::from_millis(2600);

/// How often a target on a bad line is asked whether it stands: a third of all round trips may fail. And one on a line
/// that was good so far: on a serial port what it is asked stands in the way of the next debugger's break-in for as long
/// as the kernel needs to read it, a byte each clock tick.
/// They are spread over the time of listening: a stop that comes late is asked for as well.
const NUDGES: u32 = 10;
const FEW_NUDGES: u32 = 2;
const NUDGE_EVERY: Duration = Duration::from_millis(60);

/// How long a target may take to stop once more, so that breakpoints can be taken out.
const STOP_TO_LEAVE: Duration = Duration::from_secs(8);

/// How often a stop at the same place is continued before that is called pointless: a kernel that breaks after a bug
/// check does so for ever.
const MOST_STOPS_AGAIN: u32 = 4;

/// How long a target is waited for that is to tell its stop once more.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// What came while nothing more was to come.
#[allow(clippy::large_enum_variant)] // One at a time, on the stack.
enum After {
    Quiet,
    Stopped(StateChange),
    Lost(String),
}

/// How long it is listened before a target is called running, and how often it is asked meanwhile.
struct Quiet {
    /// The line is bad, or something was odd.
    doubtful: bool,
    nudges: u32,
    /// Between two of them.
    pause: Duration,
    end: Deadline,
}

impl Actor {
    /// Lets the target run, and stays until the line is quiet. Ends within a bounded time, and tells what is known.
    pub(super) async fn leave(&mut self) -> Left {
        self.ending = Some((Leave::Running, None));
        self.hold = None;
        self.session.stand_by();
        let broke_in = std::mem::take(&mut self.break_wanted) && self.break_ins_unanswered() > 0;
        // Nothing can have stopped for us that we never spoke to.
        if !self.heard && self.session.break_ins() == 0 {
            return Left::Unmet { break_ins: 0 };
        }
        let started = Instant::now();
        match tokio::time::timeout(LONGEST_LEAVE, self.let_go(broke_in, started)).await {
            Ok(left) => left,
            // It could be let go each time; it only never was quiet.
            Err(_) if self.at.is_none() && self.next_stop.is_none() && !self.has_changes() => Left::Running,
            Err(_) => Left::Unacknowledged { tried: started.elapsed() },
        }
    }

    async fn let_go(&mut self, broke_in: bool, started: Instant) -> Left {
        if self.at.is_none() && self.next_stop.is_none() && self.has_changes() {
            self.stop_to_leave().await;
        }
        if let Some(change) = self.next_stop.take() {
            self.at = Some(change);
        }
        let (mut again, mut was_at) = (0, None::<StateChange>);
        let mut quiet = self.quiet(broke_in);
        loop {
            if let Some(at) = self.at.clone() {
                if let Err(left) = self.continue_for_good().await {
                    return left;
                }
                // Notices of drivers all come from one place, and while a machine starts they come without pause: they
                // say nothing of a break-in that may still be on its way.
                if matches!(at.report, Report::Exception(_)) {
                    again = if was_at.as_ref().is_some_and(|was| was.is_same_stop(&at)) { again + 1 } else { 0 };
                    // Told again, it may not have got the continue that was acknowledged.
                    quiet = self.quiet(again > 0);
                } else {
                    quiet.nudges = 0;
                }
                was_at = Some(at);
            }
            match self.listen(&mut quiet).await {
                After::Stopped(change) => {
                    let late = self.break_ins_unanswered().min(8);
                    // On a line that loses packets a continue that did not arrive looks the same.
                    let lost = if self.session.is_lossy() { NUDGES } else { 0 };
                    if again >= MOST_STOPS_AGAIN + late + lost {
                        return Left::StopsAgain { program_counter: change.program_counter };
                    }
                    self.at = Some(change);
                }
                // Its stop may have been lost on the way here, and the break-in may still be on its way there.
                After::Lost(_) | After::Quiet if !self.heard => {
                    return Left::Unmet { break_ins: self.session.break_ins() };
                }
                // It runs, and nothing of ours is in it.
                After::Lost(_) if was_at.is_some() => return Left::Running,
                After::Lost(why) => {
                    return Left::LinkLost { why, stood: broke_in, changed: self.has_changes() };
                }
                After::Quiet if was_at.is_none() && self.has_changes() => return Left::Changed,
                // A break-in that it did not answer may reach it later. Who says something else meanwhile had a look.
                After::Quiet if was_at.is_none() && broke_in && !self.shared.was_heard_within(started.elapsed()) => {
                    return Left::Unanswered;
                }
                After::Quiet => return Left::Running,
            }
        }
    }

    /// Whether something of ours is in the target that must not stay there.
    fn has_changes(&self) -> bool {
        self.unknown_slots || !self.restore.is_empty() || self.breakpoints.iter().any(|ours| ours.handle.is_some())
    }

    /// Lets the target run from where it stands, however often that must be tried.
    async fn continue_for_good(&mut self) -> Result<(), Left> {
        let mut plain = false;
        loop {
            let result = match plain {
                false => self.continue_as_it_was().await,
                true => self.continue_anyhow().await,
            };
            match result {
                Ok(()) => {
                    self.at = None;
                    return Ok(());
                }
                Err(TargetError::Fault(Fault::Lost(why))) => {
                    return Err(Left::LinkLost { why, stood: true, changed: true });
                }
                // It does not give or take its registers: at least it is asked to go on.
                Err(TargetError::Refused(why)) => {
                    tracing::warn!(why, "continuing as it stands");
                    plain = true;
                }
                // It started anew, or stopped for another reason.
                Err(TargetError::Fault(_)) => {
                    let Some(change) = self.next_stop.take() else { return Ok(()) };
                    self.at = Some(change);
                }
                Err(error) => {
                    tracing::warn!(%error, "not let go yet");
                    self.tell_again().await?;
                }
            }
        }
    }

    async fn continue_as_it_was(&mut self) -> Result<(), TargetError> {
        if self.version.is_none() {
            self.ask_version().await?;
        }
        self.lift_breakpoints().await?;
        self.breakpoints.clear();
        self.write_back().await?;
        self.go(false, Plant::WhatCanBe).await
    }

    async fn continue_anyhow(&mut self) -> Result<(), TargetError> {
        let Some(at) = self.at.clone() else { return Ok(()) };
        self.continue_with(&at, DBG_CONTINUE, false).await
    }

    /// Asks for the stop once more, which a target that stands tells under ids that both sides know then.
    async fn tell_again(&mut self) -> Result<(), Left> {
        loop {
            self.session.synchronise(self.now(), false);
            let deadline = Deadline::now() + TELL_AGAIN;
            loop {
                if let Some(change) = self.next_stop.take() {
                    self.at = Some(change);
                    return Ok(());
                }
                match self.step(Some(deadline)).await {
                    Step::Event(event) => self.on_event(event),
                    Step::Lost(why) => return Err(Left::LinkLost { why, stood: true, changed: true }),
                    Step::Deadline => break,
                    Step::Order(_) | Step::OrdersClosed | Step::HeldTooLong => {}
                }
            }
        }
    }

    /// How long it is listened from now on. On a line that loses packets the report of a stop may be lost as well, and a
    /// target repeats it only after a second or more: it is asked for. One of which nothing was ever heard is asked
    /// little: it may be a kernel that starts, and reads a byte each clock tick. `in_doubt`: it was asked to
    /// stop, and no stop came, or to go on, and told the same stop again; on a line that is bad that may be, and what was
    /// heard so far says little of the line.
    fn quiet(&self, in_doubt: bool) -> Quiet {
        let doubtful = self.heard && (self.session.is_lossy() || in_doubt);
        let nudges = if doubtful { NUDGES } else { FEW_NUDGES };
        let least = match self.break_ins_unanswered() {
            0 => QUIET,
            _ if doubtful => QUIET_ON_BAD_LINE,
            _ => QUIET_AFTER_BREAK_IN,
        };
        let time = least.max(NUDGE_EVERY * (nudges + 3));
        Quiet { doubtful, nudges, pause: time / (nudges + 1), end: Deadline::now() + time }
    }

    /// Listens until nothing comes any more.
    async fn listen(&mut self, quiet: &mut Quiet) -> After {
        let soon = Deadline::now() + NUDGE_EVERY;
        let mut next = if quiet.nudges > 0 { soon } else { quiet.end.max(soon) };
        loop {
            if let Some(change) = self.next_stop.take() {
                return After::Stopped(change);
            }
            match self.step(Some(next)).await {
                Step::Event(event) => self.on_event(event),
                Step::Deadline if quiet.nudges > 0 => {
                    self.session.nudge();
                    quiet.nudges -= 1;
                    next = if quiet.nudges > 0 { Deadline::now() + quiet.pause } else { quiet.end };
                }
                // What came meanwhile was damaged, or what a target that stands repeats.
                Step::Deadline if !quiet.doubtful && self.heard && self.session.is_lossy() => {
                    *quiet = self.quiet(true);
                    next = Deadline::now() + NUDGE_EVERY;
                }
                // A stop was told under ids that have to be agreed on first: it stands.
                Step::Deadline if self.session.is_seeking() => next = Deadline::now() + NUDGE_EVERY,
                Step::Deadline => return After::Quiet,
                Step::Lost(why) => return After::Lost(why),
                Step::Order(_) | Step::OrdersClosed | Step::HeldTooLong => {}
            }
        }
    }

    /// Undoes what was changed for a while.
    async fn write_back(&mut self) -> Result<(), TargetError> {
        let Some(processor) = self.at.as_ref().map(|at| at.processor) else { return Ok(()) };
        while let Some((address, data)) = self.restore.first().cloned() {
            match self.write(processor, address, data, false).await {
                Err(TargetError::Refused(why)) => tracing::warn!(why, "{address:x} could not be restored"),
                result => drop(result?),
            }
            self.restore.remove(0);
        }
        Ok(())
    }

    /// Breakpoints can be taken out only of a target that stands still.
    async fn stop_to_leave(&mut self) {
        self.break_wanted = true;
        self.session.break_in(self.now());
        let deadline = Deadline::now() + STOP_TO_LEAVE;
        while self.at.is_none() {
            let stopped = match self.next_stop.take() {
                Some(change) => self.stopped(change).await,
                None => match self.step(Some(deadline)).await {
                    Step::Event(event) => {
                        self.on_event(event);
                        Ok(())
                    }
                    Step::Order(_) | Step::OrdersClosed | Step::HeldTooLong => Ok(()),
                    Step::Lost(why) => Err(why),
                    Step::Deadline => Err("it does not stop".into()),
                },
            };
            if let Err(why) = stopped {
                tracing::warn!(%why, "breakpoints stay in the target");
                break;
            }
        }
        self.session.stand_by();
        self.break_wanted = false;
    }
}
