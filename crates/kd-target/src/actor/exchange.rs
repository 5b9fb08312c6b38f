//! One request to its end, whatever comes in between.

use kd_wire::message::manipulate::api_name;
use tracing::Instrument;

use super::*;

/// How long a request to a target that did not answer the last one may take.
const SILENT_LIMIT: Duration = Duration::from_secs(1);

/// How often a request is asked anew when stops come instead of its answer.
const MOST_ATTEMPTS: u32 = 4;

pub(super) enum Exchanged {
    Reply(ManipulateReply),
    Sent,
}

/// The reply to a request that has one.
pub(super) fn answered(exchanged: Exchanged) -> Result<ManipulateReply, TargetError> {
    match exchanged {
        Exchanged::Reply(reply) => Ok(reply),
        Exchanged::Sent => Err(TargetError::Refused("the target acknowledged but did not answer".into())),
    }
}

impl Actor {
    pub(super) async fn reply(&mut self, processor: u16, request: Request) -> Result<ManipulateReply, TargetError> {
        let exchanged = self.exchange(processor, request).await;
        answered(exchanged.map_err(|error| self.without_answer(error))?)
    }

    /// One request to its end. Prints, prompts and file requests that come in between are answered.
    pub(super) async fn exchange(&mut self, processor: u16, request: Request) -> Result<Exchanged, TargetError> {
        self.exchange_within(processor, request, None).await
    }

    /// The same, at most so long.
    pub(super) async fn exchange_within(
        &mut self,
        processor: u16,
        request: Request,
        limit: Option<Duration>,
    ) -> Result<Exchanged, TargetError> {
        let span = tracing::debug_span!("request", api = api_name(request.api()), processor);
        self.exchange_in_span(processor, request, limit).instrument(span).await
    }

    async fn exchange_in_span(
        &mut self,
        processor: u16,
        request: Request,
        limit: Option<Duration>,
    ) -> Result<Exchanged, TargetError> {
        // One that did not answer the last request is asked only whether it does again.
        let limit = if self.silent { Some(limit.unwrap_or(SILENT_LIMIT).min(SILENT_LIMIT)) } else { limit };
        for attempt in 0..MOST_ATTEMPTS {
            if self.ending.as_ref().is_some_and(|(_, done)| done.is_some()) {
                return Err(Fault::Cancelled.into());
            }
            let asked = match limit {
                Some(limit) => self.session.request_within(self.now(), processor, request.clone(), limit),
                None => self.session.request(self.now(), processor, request.clone()),
            };
            asked.map_err(|busy| TargetError::Refused(busy.to_string()))?;
            self.shared.status().cost.requests += 1;
            let failure = loop {
                match self.step(None).await {
                    Step::Event(session::Event::Reply(reply)) => {
                        self.answers_again();
                        self.asked_twice = attempt > 0 || self.session.was_asked_twice();
                        return Ok(Exchanged::Reply(reply));
                    }
                    Step::Event(session::Event::Sent) => return Ok(Exchanged::Sent),
                    Step::Event(session::Event::RequestFailed { reason }) => break reason,
                    Step::Event(event) => self.on_event(event),
                    Step::Lost(why) => {
                        self.lost(why.clone());
                        return Err(Fault::Lost(why).into());
                    }
                    // A continue is not called back.
                    Step::HeldTooLong if !request.is_answered() => self.hold = None,
                    Step::HeldTooLong => {
                        self.take_away();
                        self.session.cancel(self.now());
                    }
                    Step::Order(order @ Command::Leave { .. }) if request.is_answered() => {
                        self.put_off(order);
                        self.session.cancel(self.now());
                    }
                    Step::Order(order) => self.put_off(order),
                    Step::OrdersClosed => self.ending = Some((Leave::Running, None)),
                    Step::Deadline => {}
                }
            };
            match failure {
                // The stop we stand at, reported again: the request was lost.
                RequestFailure::StoppedAnew if self.still_stands() => self.next_stop = None,
                // Another stop: only a continue can have led to it, and then its acknowledgement was lost.
                RequestFailure::StoppedAnew if !request.is_answered() => return Ok(Exchanged::Sent),
                RequestFailure::StoppedAnew => return Err(Fault::Running.into()),
                RequestFailure::TooLong => return Err(TargetError::Refused(failure.to_string())),
                RequestFailure::TargetRestarted => return Err(Fault::Running.into()),
                RequestFailure::Cancelled => return Err(Fault::Cancelled.into()),
                RequestFailure::Damaged => return Err(TargetError::Silent(failure)),
                RequestFailure::NotAcknowledged | RequestFailure::NotAnswered => {
                    tracing::warn!(%failure);
                    return Err(TargetError::Silent(failure));
                }
            }
        }
        Err(TargetError::Refused("the target reports stop after stop instead of answering".into()))
    }

    /// An order that comes in the middle of an exchange waits for its end.
    pub(super) fn put_off(&mut self, order: Command) {
        match order {
            Command::Leave { leave, done } => self.ending = Some((leave, Some(done))),
            order => self.backlog.push_back(order),
        }
    }

    pub(super) fn answers_again(&mut self) {
        if std::mem::take(&mut self.silent) {
            self.session.stand_by();
            self.tell(Event::AnswersAgain);
        }
    }

    /// A target that stands and does not answer is asked for its state change until it does.
    pub(super) fn without_answer(&mut self, error: TargetError) -> TargetError {
        let TargetError::Silent(_) = error else { return error };
        if self.at.is_some() && self.ending.is_none() {
            if !std::mem::replace(&mut self.silent, true) {
                self.tell(Event::Silent);
            }
            self.session.synchronise(self.now(), false);
        }
        error
    }

    /// An exchange was broken off in the middle: what is still to be heard of it is nobody's.
    pub(super) fn forget_exchange(&mut self) {
        self.session.cancel(self.now());
        while let Some(event) = self.session.poll_event() {
            self.on_event(event);
        }
    }

    fn still_stands(&self) -> bool {
        match (&self.at, &self.next_stop) {
            (Some(at), Some(next)) => at.is_same_stop(next),
            (_, next) => next.is_none(),
        }
    }
}

pub(super) fn refused(status: u32, what: impl FnOnce() -> String) -> TargetError {
    TargetError::Refused(format!("the target did not {} (status {status:08x})", what()))
}

pub(super) fn accepted(status: u32, what: impl FnOnce() -> String) -> Result<(), TargetError> {
    if is_success(status) { Ok(()) } else { Err(refused(status, what)) }
}

/// NTSTATUS: the top bit is a failure or a warning.
pub(super) fn is_success(status: u32) -> bool {
    status & 0x8000_0000 == 0
}
