//! What goes out, and when it goes out again.

use super::*;
use crate::packet::{BREAK_IN, SYNC};

/// How often a continue is met with silence before the silence is the answer. A target that stands would have said
/// something to one of so many packets, even where a third of all round trips fail.
const SILENCE_MEANS_RUNNING: u32 = 12;
/// Between two questions of those at most, where the target is not slower than that by itself: all of them have to be over
/// before a continue is given up, or each lost acknowledgement on a slow line is one of a target that may still stand.
const CONTINUE_WAITS_MOST: Duration = Duration::from_millis(250);
/// What is on the line meanwhile: a continue, and the state change of a target that has not got it.
const CONTINUE_AND_STOP: usize = 340;
/// How often it is asked after that.
const ASKED_AFTER_REST: u32 = 4;
/// How often a continue whose acknowledgement may be another's is asked about.
const CONFIRM_PROBES: u32 = 8;
/// The part of what an unknown line's reply may take that one of a known line is waited for.
const QUICKER: u32 = 6;
/// How often the answer to a long read comes damaged before it is done without.
const MOST_DAMAGED: u32 = 3;
/// How long something that the target works at has says nothing of how long the next will: a search of some megabytes
/// takes it some milliseconds, or a second. And an answer that was lost, and came when the target itself sent it again,
/// looks like one that took a second: whoever then waited so long for the next would have each loss cost that much. So it
/// is asked for soon, and twice as long after each time; too early that costs the answer twice, of a few bytes.
const WORK_ASKED_AFTER: Duration = Duration::from_millis(40);
/// The same of a line that nothing was measured on.
const WORK_UNKNOWN: Duration = Duration::from_millis(400);
/// What the waiting grows to.
const WORK_PAUSE: Duration = Duration::from_secs(2);
/// Silence after a continue says that the target runs only if it was not silent before.
const LIVELY: Duration = Duration::from_secs(3);
/// A target that the id rules have come apart with ignores us until a RESET.
const RESET_EVERY: u32 = 7;
/// Before that, one on a stream gets the time to notice that what it waits for the rest of has none: so many repetitions
/// in a row are not lost, where a quarter of all round trips fail, and each that went on would be swallowed too.
const REST_AT: u32 = RESET_EVERY - 1;

impl HostSession {
    pub(super) fn transmit(&mut self, packet: &Packet) {
        match &mut self.transport {
            Transport::Serial(_) => {
                let data = packet.encode_serial();
                self.out.transmits.push_back(Transmit { peer: None, data });
            }
            Transport::Kdnet(association) => self.out.transmits.extend(association.data(&packet.encode())),
        }
    }

    pub(super) fn transmit_break_in(&mut self) {
        self.out.break_ins = self.out.break_ins.wrapping_add(1);
        self.mark_probed();
        match &mut self.transport {
            Transport::Serial(_) => {
                let data = Bytes::from_static(&[BREAK_IN]);
                self.out.transmits.push_back(Transmit { peer: None, data });
            }
            Transport::Kdnet(association) => self.out.transmits.extend(association.data(&[BREAK_IN])),
        }
    }

    pub(super) fn transmit_reset(&mut self, now: Duration) {
        let id = if self.is_serial() { 0 } else { self.tx };
        self.reset_pending = true;
        self.last_reset = Some(now);
        self.mark_probed();
        self.transmit(&Packet::control(PacketType::Reset, id));
    }

    pub(super) fn transmit_resend(&mut self) {
        self.mark_probed();
        self.transmit(&Packet::control(PacketType::Resend, 0));
    }

    fn mark_probed(&mut self) {
        if let Some(sending) = &mut self.sending {
            sending.probed = true;
        }
    }

    /// Asks for the target's last packet; slowly, if it keeps coming in bad.
    pub(super) fn resend(&mut self, now: Duration) {
        let rested = self.last_resend.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1));
        self.troubles = self.troubles.saturating_add(1);
        if self.resends < RESEND_BURST || rested {
            self.resends = self.resends.saturating_add(1);
            self.last_resend = Some(now);
            self.transmit_resend();
        }
    }

    /// Something unusable came in.
    pub(super) fn ask_again(&mut self, now: Duration) {
        // Before the first packet it is boot text or a wrong baud rate, and nobody waits for an answer.
        if self.heard {
            self.resend(now);
        }
    }

    /// Something came that cannot be used: perhaps the answer that is waited for. Whoever sends it is there, and is asked
    /// for it again without ever longer waits; of a long one for less, where a line loses a byte of a thousand.
    pub(super) fn damaged(&mut self, now: Duration) {
        let pause = self.reply_wait(false, 0);
        let line = self.request.as_ref().map_or(0, |request| reply_size(&request.request.body));
        let next = now + pause + self.on_the_line(line);
        let numbered = self.is_serial() && self.rx_known;
        if let Some(Outstanding { request, stage: Stage::Awaiting(waiting), damaged, .. }) = &mut self.request {
            *damaged += 1;
            if *damaged >= MOST_DAMAGED && readable(&request.body) > LEAST_READ && numbered {
                return self.do_without(now);
            }
            (waiting.probes, waiting.next) = (0, waiting.next.min(next));
        }
        self.ask_again(now);
    }

    /// The answer is not asked for any more. The target is told that we have it: else it would go on saying it, and what it
    /// says next would have an id that we take for that of a repetition.
    fn do_without(&mut self, now: Duration) {
        self.transmit(&Packet::control(PacketType::Acknowledge, self.rx));
        self.rx ^= 1;
        self.resends = 0;
        self.in_step = false;
        self.fail(now, RequestFailure::Damaged);
    }

    pub(super) fn enqueue(&mut self, now: Duration, packet_type: PacketType, payload: Bytes, purpose: Purpose) {
        self.queue.push_back(Outgoing { packet_type, payload, purpose });
        self.send_next(now);
    }

    pub(super) fn send_next(&mut self, now: Duration) {
        if self.sending.is_some() || self.owed.is_some() {
            return;
        }
        self.held_until = self.queue.front().and_then(|next| self.echoes_of(next)).filter(|end| *end > now);
        if self.held_until.is_some() {
            return;
        }
        let Some(outgoing) = self.queue.pop_front() else { return };
        self.fresh_sent = self.fresh_sent.saturating_add(1);
        let deadline = now + self.on_the_line(2 * outgoing.payload.len());
        self.sending = Some(Sending {
            outgoing,
            id: self.tx,
            rounds: 1,
            waits: 0,
            deadline,
            probed: false,
            since: now,
            silent_waits: 0,
            called_for: 0,
        });
        let wait = self.ack_wait(0);
        if let Some(sending) = &mut self.sending {
            sending.deadline += wait;
        }
        self.transmit_sending();
    }

    /// How long the acknowledgement of what is in flight is waited for, after so many repetitions.
    fn ack_wait(&self, repetitions: u32) -> Duration {
        let least = match (self.sends_continue(), self.is_lossy()) {
            (false, _) => Duration::ZERO,
            (true, false) => CONTINUE_WAITS_AT_FIRST,
            (true, true) => CONTINUE_WAITS,
        };
        self.ack_time.after(repetitions).max(least)
    }

    /// Until when a late acknowledgement of another packet may be taken for that of this one, which nothing else would
    /// answer.
    fn echoes_of(&self, next: &Outgoing) -> Option<Duration> {
        let silent = self.request.as_ref().is_some_and(|request| !request.request.body.is_answered());
        let matters = silent && next.purpose == Purpose::Request && self.is_serial();
        let end = ECHOES_END.max(self.ack_time.timeout()) + self.on_the_line(512);
        self.repeated.filter(|_| matters).map(|at| at + end)
    }

    fn transmit_sending(&mut self) {
        if let Some(Sending { outgoing, id, .. }) = &self.sending {
            let packet = Packet::data(outgoing.packet_type, *id, outgoing.payload.clone());
            self.transmit(&packet);
        }
    }

    pub(super) fn answer_is_due(&mut self, now: Duration) {
        if let Transport::Kdnet(association) = &mut self.transport {
            association.answer_is_due(now);
        }
    }

    /// The same packet again: KD id unchanged, on KDNET with a new sequence number.
    pub(super) fn retransmit(&mut self, now: Duration) {
        self.answer_is_due(now);
        let Some(Sending { outgoing, silent_waits, .. }) = &self.sending else { return };
        // Whoever was heard just now is not slow: what is in flight was lost.
        let deadline = now + self.ack_wait(*silent_waits) + self.on_the_line(2 * outgoing.payload.len());
        let Some(sending) = &mut self.sending else { return };
        sending.rounds += 1;
        sending.deadline = deadline;
        self.troubles = self.troubles.saturating_add(1);
        self.out.diagnose(Diagnostic::Retransmit { count: sending.rounds });
        self.transmit_sending();
    }

    /// The same because of what the target said: it is not to be kept saying that. False: that was done often enough.
    pub(super) fn retransmit_called_for(&mut self, now: Duration) -> bool {
        let Some(sending) = self.sending.as_mut().filter(|sending| sending.called_for < RESEND_BURST) else {
            return false;
        };
        sending.called_for += 1;
        self.retransmit(now);
        true
    }

    /// Whether what is in flight is a request that ends with its acknowledgement: a continue and the like.
    fn sends_continue(&self) -> bool {
        let silent = self.request.as_ref().is_some_and(|request| !request.request.body.is_answered());
        silent && self.sending.as_ref().is_some_and(|sending| sending.outgoing.purpose == Purpose::Request)
    }

    pub(super) fn retransmit_by_clock(&mut self, now: Duration) {
        let (continues, is_serial) = (self.sends_continue(), self.is_serial());
        let limit = REQUEST_LIMIT + self.on_the_line(MAX_SERIAL);
        let Some(sending) = &mut self.sending else { return };
        sending.waits += 1;
        sending.silent_waits += 1;
        self.repeated = Some(now);
        let waits = sending.waits;
        if now.saturating_sub(sending.since) >= limit {
            self.give_up_sending(now);
        } else if continues {
            self.continue_by_clock(now);
        } else if is_serial && sending.silent_waits % RESET_EVERY == REST_AT {
            sending.deadline = now + STUB_GIVES_UP;
        } else {
            if waits.is_multiple_of(RESET_EVERY) {
                self.transmit_reset(now);
            }
            self.needless += 1;
            self.retransmit(now);
        }
    }

    /// An acknowledgement of a packet that has one already: a repetition of it arrived as well, so nothing was lost, and the
    /// target or the machine between had a slow moment, as virtual ones have. A line is not bad for that.
    pub(super) fn acknowledged_again(&mut self) {
        if let Some(needless) = self.needless.checked_sub(1) {
            self.needless = needless;
            self.troubles = self.troubles.saturating_sub(1);
        }
    }

    /// A continue is not acknowledged. Either it did not arrive, then the target stands and answers what it gets; or
    /// it did and the acknowledgement was lost, then the target runs and answers nothing any more.
    fn continue_by_clock(&mut self, now: Duration) {
        let Some(Sending { waits, silent_waits, since, .. }) = &self.sending else { return };
        let (waits, since) = (*waits, *since);
        let most = self.ack_time.timeout().max(CONTINUE_WAITS_MOST);
        let pause =
            self.ack_time.patiently(*silent_waits).clamp(CONTINUE_WAITS, most) + self.on_the_line(CONTINUE_AND_STOP);
        let mut silence = SILENCE_MEANS_RUNNING;
        if self.is_serial() {
            if *silent_waits == SILENCE_MEANS_RUNNING {
                if let Some(sending) = &mut self.sending {
                    sending.deadline = now + STUB_GIVES_UP;
                }
                return;
            }
            silence += ASKED_AFTER_REST;
        }
        let is_silent = *silent_waits >= silence;
        let lively = match &mut self.transport {
            Transport::Serial(_) => since.saturating_sub(self.heard_at) < LIVELY,
            // On KDNET the offers show that the target is still there, whether it runs or stands. It makes one every 3 s,
            // and when it is asked to.
            Transport::Kdnet(association) => {
                let heard = association.heard_since(since);
                if !heard && waits.is_multiple_of(3) {
                    association.ask_for_offer(&mut self.out);
                }
                heard
            }
        };
        if is_silent && lively {
            return self.runs_silently(now);
        }
        // A small packet asks as well as a large one, and what a target that runs does not read is in the way of the
        // next debugger's break-in. The continue itself goes out again when a state change shows that it is needed.
        if waits == 1 || waits.is_multiple_of(4) {
            self.retransmit(now);
        } else {
            self.transmit_resend();
        }
        if let Some(sending) = &mut self.sending {
            sending.deadline = now + pause;
        }
    }

    fn runs_silently(&mut self, now: Duration) {
        self.out.diagnose(Diagnostic::NotAcknowledged);
        self.in_step = false;
        self.sending = None;
        self.advance();
        self.continued();
        self.send_next(now);
    }

    fn give_up_sending(&mut self, now: Duration) {
        self.in_step = false;
        if self.sending.take().is_some_and(|sending| sending.outgoing.purpose == Purpose::Request) {
            self.fail(now, RequestFailure::NotAcknowledged);
        }
        self.send_next(now);
    }

    /// The outstanding request took longer than it may.
    pub(super) fn too_late(&mut self, now: Duration) {
        self.in_step = false;
        let reason = match self.request.as_ref().map(|request| (&request.stage, request.issues)) {
            Some((Stage::Sending, 1)) => RequestFailure::NotAcknowledged,
            _ => RequestFailure::NotAnswered,
        };
        self.fail(now, reason);
        self.send_next(now);
    }

    /// The outstanding request ends without an answer.
    pub(super) fn fail(&mut self, now: Duration, reason: RequestFailure) {
        let Some(request) = self.request.take() else { return };
        let none_comes = matches!(reason, RequestFailure::StoppedAnew | RequestFailure::Damaged);
        if let (Stage::Awaiting(_), false) = (&request.stage, none_comes) {
            self.owe(now, request.request);
        }
        self.leave_request();
        self.out.events.push_back(Event::RequestFailed { reason });
    }

    /// The request is over. What the target has not acknowledged of it must still be delivered, or the ids come
    /// apart; what was not sent yet must not be.
    pub(super) fn leave_request(&mut self) {
        self.queue.retain(|outgoing| outgoing.purpose != Purpose::Request);
        if let Some(sending) = &mut self.sending
            && sending.outgoing.purpose == Purpose::Request
        {
            sending.outgoing.purpose = Purpose::Leftover;
        }
    }

    fn owe(&mut self, now: Duration, request: ManipulateRequest) {
        let waiting = self.wait_for_reply(now, &request.body);
        // A target that answers at all repeats what it owes within a few round trips.
        let end = now + self.reply_time.after(8).max(Duration::from_secs(1)) + self.on_the_line(2 * MAX_SERIAL);
        self.owed = Some(Owed { request, waiting, end });
    }

    fn wait_for_reply(&self, now: Duration, request: &Request) -> Waiting {
        let next = now + self.reply_wait(is_work(request), 0) + self.on_the_line(reply_size(request));
        Waiting { since: now, probes: 0, probed: now, next }
    }

    /// How long a reply is waited for, after so many probes.
    fn reply_wait(&self, works: bool, probes: u32) -> Duration {
        let known = self.ack_time.is_measured();
        if works {
            let first = if known { self.ack_time.timeout().max(WORK_ASKED_AFTER) } else { WORK_UNKNOWN };
            return first.saturating_mul(1 << probes.min(8)).min(WORK_PAUSE);
        }
        let wait = self.reply_time.after(probes);
        // Of a line that was seen to be quick a first reply that is lost need not cost what an unknown one may take.
        let first = known && !self.reply_time.is_measured();
        if first { wait.min((wait / QUICKER).max(self.ack_time.after(probes))) } else { wait }
    }

    /// What should have come after an acknowledgement did not.
    pub(super) fn probe(&mut self, now: Duration) {
        let line = self.on_the_line(512);
        let confirming = matches!(&self.request, Some(Outstanding { stage: Stage::Confirming(_), .. }));
        let works = match (&self.request, &self.owed) {
            (Some(Outstanding { request, stage: Stage::Awaiting(_), .. }), _) | (_, Some(Owed { request, .. })) => {
                is_work(&request.body)
            }
            _ => false,
        };
        let Some(probes) = self.waiting().map(|waiting| waiting.probes + 1) else { return };
        if confirming && probes > CONFIRM_PROBES {
            self.continued();
            self.send_next(now);
            return;
        }
        let pause = match confirming {
            true => self.ack_time.patiently(probes).max(CONTINUE_WAITS),
            false => self.reply_wait(works, probes),
        };
        if let Some(waiting) = self.waiting() {
            (waiting.probes, waiting.probed, waiting.next) = (probes, now, now + pause + line);
        }
        self.troubles = self.troubles.saturating_add(u32::from(!confirming));
        self.repeated = Some(now);
        // Both ids came apart, or RESEND is not understood.
        if !confirming && probes.is_multiple_of(RESET_EVERY) {
            self.transmit_reset(now);
        } else {
            self.transmit_resend();
        }
    }

    /// Asks the same again, under the next id: the reply to the issue before is lost for good. False: often enough.
    pub(super) fn reissue(&mut self, now: Duration) -> bool {
        let Some(request) = &mut self.request else { return false };
        if request.issues >= MAX_ISSUES {
            return false;
        }
        request.issues += 1;
        request.twice = true;
        request.stage = Stage::Sending;
        let (count, payload) = (request.issues, request.payload.clone());
        self.out.diagnose(Diagnostic::Reissued { count });
        self.enqueue(now, PacketType::StateManipulate, payload, Purpose::Request);
        true
    }

    pub(super) fn advance(&mut self) {
        self.tx = if self.is_serial() { (self.tx & !SYNC) ^ 1 } else { self.tx.wrapping_add(2) };
    }

    /// The packet in flight arrived, as its acknowledgement says, or the answer to it. That took longer by itself, and
    /// on a slow line by much: it says how long an acknowledgement takes only where no better is known.
    pub(super) fn acknowledged(&mut self, now: Duration, by_answer: bool) {
        let Some(sending) = self.sending.take() else { return };
        self.advance();
        if by_answer && self.ack_time.is_measured() {
            // It came in time, whatever the acknowledgement did.
        } else if sending.rounds == 1 {
            self.needless = 0;
            let line = self.on_the_line(sending.outgoing.payload.len() + 33);
            self.ack_time.sample(now.saturating_sub(sending.since).saturating_sub(line));
        } else {
            self.ack_time.doubt();
        }
        match sending.outgoing.purpose {
            Purpose::Answer => {}
            Purpose::Leftover => {
                if let Ok(request) = ManipulateRequest::decode(&sending.outgoing.payload)
                    && request.body.is_answered()
                {
                    self.owe(now, request);
                }
            }
            Purpose::Request => self.request_acknowledged(now, sending.rounds),
        }
        self.send_next(now);
    }

    fn request_acknowledged(&mut self, now: Duration, rounds: u32) {
        let Some(request) = &self.request else { return };
        if request.request.body.is_answered() {
            let waiting = self.wait_for_reply(now, &request.request.body);
            if let Some(request) = &mut self.request {
                request.stage = Stage::Awaiting(waiting);
            }
        } else if rounds == 1 && self.in_step {
            self.continued();
        } else {
            // A target acknowledges a packet that it takes for a repetition as well, and then does nothing.
            let next = now + self.ack_time.timeout().max(CONTINUE_WAITS);
            if let Some(request) = &mut self.request {
                request.stage = Stage::Confirming(Waiting { since: now, probes: 0, probed: now, next });
            }
        }
    }

    /// The target runs.
    pub(super) fn continued(&mut self) {
        self.request = None;
        (self.stop, self.moved) = (None, None);
        self.out.events.push_back(Event::Sent);
    }
}
