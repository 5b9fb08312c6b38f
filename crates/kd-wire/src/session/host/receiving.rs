//! What comes in.

use super::*;
use crate::message::{Direction, ManipulateReply, Message};
use crate::packet::{Body, SYNC, checksum};

/// How often in a row an id that nobody can explain, or a message that nobody can read, is asked for again before it is
/// taken as it is: a target that goes on so has to get on as well.
const MOST_REPAIRS: u32 = 6;

impl HostSession {
    pub(super) fn receive(&mut self, now: Duration, packet: Packet) {
        if !self.heard {
            self.heard = true;
            if self.is_serial() {
                self.out.events.push_back(Event::Connected { peer: None });
            }
        }
        self.heard_at = now;
        if let Some(sending) = &mut self.sending {
            sending.silent_waits = 0;
        }
        match (packet.body, packet.packet_type) {
            (Body::Control, PacketType::Acknowledge) => {
                let mask = if self.is_serial() { SYNC } else { 0 };
                if self.sending.as_ref().is_some_and(|sending| (sending.id ^ packet.id) & !mask == 0) {
                    if let Transport::Serial(serial) = &mut self.transport {
                        serial.last_sync = None;
                    }
                    self.acknowledged(now, false);
                } else if self.is_serial() {
                    self.acknowledged_again();
                }
            }
            (Body::Control, PacketType::Resend) => self.receive_resend(now),
            (Body::Control, PacketType::Reset) => self.receive_reset(now, packet.id),
            (Body::Control, other) => {
                self.out.diagnose(Diagnostic::UnexpectedPacket { packet_type: other.into() });
            }
            (Body::Data(payload), packet_type) => self.receive_data(now, packet_type, packet.id, payload),
        }
    }

    fn receive_resend(&mut self, now: Duration) {
        // One that was waiting for the rest of a packet, of a debugger that is dead perhaps, has given it up. It stands.
        let waited = self.last_reset.is_none_or(|at| now.saturating_sub(at) >= RESET_PATIENCE);
        if self.is_serial() && self.seek.is_some() && self.sending.is_none() && waited {
            return self.transmit_reset(now);
        }
        if !self.retransmit_called_for(now)
            && let Some(sending) = self.sending.as_mut().filter(|sending| sending.called_for == RESEND_BURST)
        {
            sending.called_for += 1;
            self.out.diagnose(Diagnostic::ResendStorm);
        }
    }

    /// Nothing protects a control packet: the acknowledgement that is waited for becomes a RESET by one flipped bit. No
    /// target is known to send one with such an id (Windows and ReactOS send 0), so it counts when it comes again.
    fn is_doubtful_reset(&mut self, id: u32) -> bool {
        let awaited = self.sending.as_ref().is_some_and(|sending| sending.id == id);
        match &mut self.transport {
            Transport::Serial(serial) if awaited && !self.reset_pending => {
                serial.doubtful_reset.replace(id) != Some(id)
            }
            _ => false,
        }
    }

    fn receive_reset(&mut self, now: Duration, id: u32) {
        if self.is_doubtful_reset(id) {
            return self.ask_again(now);
        }
        let knew = std::mem::replace(&mut self.rx_known, true);
        if let Transport::Serial(serial) = &mut self.transport {
            serial.last_sync = None;
            self.tx = INITIAL_ID;
            self.rx = INITIAL_ID;
            serial.doubtful_reset = None;
            serial.is_renumbered = true;
            (self.tx_known, self.aligned_in_vain) = (true, false);
            self.renumber(INITIAL_ID);
        } else if !knew || id.wrapping_add(2) != self.rx {
            // Else it repeats the packet we have; our acknowledgement is still under way.
            self.rx = id;
        }
        // The answer to our own is not answered, or two well-meaning ends would go on for ever: each answer makes the
        // target repeat its packet, and a packet that was under way when we asked hides that one answer is still due.
        let asked = self.last_reset.filter(|at| now.saturating_sub(*at) < RESET_PATIENCE);
        if std::mem::take(&mut self.reset_pending) {
            if let Some(at) = asked {
                self.ack_time.sample(now.saturating_sub(at).saturating_sub(self.on_the_line(32)));
            }
        } else if asked.is_none() {
            self.transmit_reset(now);
        }
        self.out.diagnose(Diagnostic::Resynchronised);
        if let Some(sending) = &mut self.sending {
            sending.probed = true;
            self.retransmit_called_for(now);
        }
    }

    fn receive_data(&mut self, now: Duration, packet_type: PacketType, id: u32, payload: Bytes) {
        let message = Message::decode(packet_type, Direction::TargetToHost, &payload);
        // On a serial line nothing protects the header, and a flipped bit in the type makes another message of it: a reply
        // became a request that waits for an answer of ours, which no target took.
        let usual = matches!(
            packet_type,
            PacketType::StateManipulate | PacketType::DebugIo | PacketType::StateChange64 | PacketType::FileIo
        );
        if (message.is_err() || !usual) && self.is_serial() && self.garbled < MOST_REPAIRS {
            self.garbled += 1;
            self.ask_again(now);
            return;
        }
        let fresh = match &self.transport {
            Transport::Serial(_) => self.serial_id(now, packet_type, id, &payload),
            Transport::Kdnet(_) => self.kdnet_id(now, packet_type, id),
        };
        let Some(fresh) = fresh else { return };
        let ack = if self.is_serial() { id & !SYNC } else { id };
        self.transmit(&Packet::control(PacketType::Acknowledge, ack));
        self.reset_pending = false;
        (self.resends, self.jumps, self.garbled) = (0, 0, 0);
        if !fresh {
            // A reply that comes again though it was not asked for twice: our acknowledgement of it was lost, or the target
            // never got the continue that we took for acknowledged. A stop is told again for other reasons.
            let ours = self.repeated.is_some_and(|at| now.saturating_sub(at) < REPEATS_FOR);
            let odd = packet_type == PacketType::StateManipulate && !ours;
            self.troubles = self.troubles.saturating_add(u32::from(odd));
            return;
        }
        self.fresh_sent = 0;
        let said_again = self.is_said_again(packet_type, &payload);
        match message {
            Ok(Message::Reply(reply)) if said_again => {
                self.out.diagnose(Diagnostic::StaleReply { api: reply.body.api() });
            }
            Ok(message) => self.deliver(now, message, packet_type, payload),
            Err(error) => self.out.diagnose(Diagnostic::Malformed { reason: error.to_string() }),
        }
        self.send_next(now);
    }

    /// A RESET makes a target say again what it said last, under an id that says nothing of whether we have it. Taken for
    /// the answer to the request that is on its way since, the find of one search was that of the next. Where it is the
    /// answer, and the same as before, it is asked for again: that costs a round trip.
    fn is_said_again(&mut self, packet_type: PacketType, payload: &Bytes) -> bool {
        let Transport::Serial(serial) = &mut self.transport else { return false };
        let reply = (packet_type == PacketType::StateManipulate).then(|| payload.clone());
        let again = std::mem::take(&mut serial.is_renumbered) && reply.is_some() && serial.last_reply == reply;
        serial.last_reply = reply;
        let arrived = matches!(&self.request, Some(request) if !matches!(request.stage, Stage::Sending));
        again && !arrived
    }

    /// `Some(true)`: new; `Some(false)`: seen before; `None`: not to be acknowledged.
    fn serial_id(&mut self, now: Duration, packet_type: PacketType, id: u32, payload: &Bytes) -> Option<bool> {
        // No target begins with a reply: there the bit is line noise, which no checksum of the header catches.
        let begins = id & SYNC != 0 && packet_type != PacketType::StateManipulate;
        let change = (begins && packet_type == PacketType::StateChange64).then(|| StateChange::decode(payload).ok());
        let change = change.flatten();
        let repeats_stop = change.as_ref().is_some_and(|change| self.repeats_stop(change));
        let Transport::Serial(serial) = &mut self.transport else { return None };
        let base = id & !SYNC;
        if base & !1 != INITIAL_ID {
            self.out.diagnose(Diagnostic::Malformed { reason: format!("packet id {id:#010x}") });
            self.resend(now);
            return None;
        }
        if begins {
            let said = Some(match change {
                Some(change) => Said::Stop(Box::new(change)),
                None => Said::Other { checksum: checksum(payload), length: payload.len() },
            });
            if serial.last_sync == said {
                return Some(false);
            }
            let restarted = self.rx_known && !repeats_stop;
            if restarted && serial.doubtful_sync != said {
                serial.doubtful_sync = said;
                self.resend(now);
                return None;
            }
            (serial.last_sync, serial.doubtful_sync) = (said, None);
            self.tx = INITIAL_ID;
            self.rx = base ^ 1;
            (self.rx_known, self.tx_known, self.in_step) = (true, true, true);
            if restarted {
                self.forget(now);
                self.out.events.push_back(Event::TargetRestarted);
            } else {
                self.renumber(INITIAL_ID);
            }
            return Some(true);
        }
        if self.rx_known && base != self.rx {
            return Some(false);
        }
        serial.last_sync = None;
        if packet_type == PacketType::StateChange64 && !self.tx_known {
            // It goes on counting from an earlier session. Which id it expects of us cannot be seen: with the wrong one
            // the first request would be acknowledged as a repetition, and never answered.
            if self.align(now) {
                return None;
            }
            self.tx_known = true;
        }
        self.rx = base ^ 1;
        self.rx_known = true;
        Some(true)
    }

    fn kdnet_id(&mut self, now: Duration, packet_type: PacketType, id: u32) -> Option<bool> {
        let ahead = id.wrapping_sub(self.rx) as i32;
        if !self.rx_known {
            self.rx_known = true;
            if id != self.rx && packet_type == PacketType::StateChange64 {
                // The target goes on counting from an earlier session. As WinDbg, tell it our own number first.
                self.transmit_reset(now);
                self.rx = id;
                return None;
            }
        } else if ahead == -2 {
            return Some(false);
        } else if ahead != 0 {
            self.out.diagnose(Diagnostic::Resynchronised);
            // A gap is what a target leaves that took a packet of ours for the acknowledgement of its own. Another
            // number is damaged, or hostile: the target is asked which one it means.
            let explained = ahead > 0 && ahead.unsigned_abs() <= self.fresh_sent.saturating_mul(2);
            if !explained && self.jumps < MOST_REPAIRS {
                self.jumps += 1;
                self.transmit_reset(now);
                return None;
            }
        }
        self.rx = id.wrapping_add(2);
        Some(true)
    }

    fn deliver(&mut self, now: Duration, message: Message, packet_type: PacketType, payload: Bytes) {
        if !matches!(message, Message::StateChange(_) | Message::Reply(_)) {
            self.speaks(now);
        }
        match message {
            Message::StateChange(change) => self.deliver_stop(now, change),
            Message::Reply(reply) => self.deliver_reply(now, reply),
            Message::DebugIo(DebugIo::Print(print)) => {
                self.out.events.push_back(Event::Print { processor: print.processor, text: print.text() });
            }
            Message::DebugIo(DebugIo::Prompt(prompt)) => {
                self.out.events.push_back(Event::Prompt { processor: prompt.processor, text: prompt.prompt() });
                self.prompt = Some(prompt);
            }
            Message::FileIoRequest(request) => {
                self.file = true;
                self.out.events.push_back(Event::FileIo(request));
            }
            // The target waits for the same packet back.
            Message::ControlRequest(_) => self.enqueue(now, packet_type, payload, Purpose::Answer),
            Message::TraceIo(_) => {}
            _ => self.out.diagnose(Diagnostic::UnexpectedPacket { packet_type: packet_type.into() }),
        }
    }

    /// The target says something that one in its command loop does not say by itself: a continue that is still asked
    /// about has arrived.
    fn speaks(&mut self, now: Duration) {
        if matches!(&self.request, Some(Outstanding { stage: Stage::Confirming(_), .. })) {
            self.continued();
            self.send_next(now);
        }
    }

    fn deliver_reply(&mut self, now: Duration, reply: ManipulateReply) {
        if self.owed.as_ref().is_some_and(|owed| reply.answers(&owed.request)) {
            self.owed = None;
            self.out.diagnose(Diagnostic::StaleReply { api: reply.body.api() });
            return;
        }
        let Some(request) = self.request.as_ref().filter(|request| reply.answers(&request.request)) else {
            self.out.diagnose(Diagnostic::StaleReply { api: reply.body.api() });
            return;
        };
        self.asked_twice = request.twice;
        // A reply to the only issue proves that the request arrived; one to a re-issued request may belong to an
        // earlier issue, so the last one is still waited for.
        if let (Stage::Sending, 1) = (&request.stage, request.issues) {
            self.troubles = self.troubles.saturating_add(1);
            self.acknowledged(now, true);
        }
        if let Some(Outstanding { request, stage: Stage::Awaiting(waiting), .. }) = self.request.take() {
            self.in_step = true;
            // One that comes sooner after a probe than an answer can was only slow.
            let slow = now.saturating_sub(waiting.probed) < self.ack_time.too_soon();
            let line = self.on_the_line(reply_size(&request.body));
            match waiting.probes == 0 || slow {
                _ if is_work(&request.body) => {}
                true => self.reply_time.sample(now.saturating_sub(waiting.since).saturating_sub(line)),
                false => self.reply_time.doubt(),
            }
        }
        self.leave_request();
        self.out.events.push_back(Event::Reply(reply));
    }

    fn deliver_stop(&mut self, now: Duration, change: StateChange) {
        self.stand_by();
        self.owed = None;
        let repeated = self.repeats_stop(&change);
        if !repeated {
            (self.stop, self.moved) = (Some(change.clone()), None);
        }
        let Some(request) = &self.request else {
            // Repeated although nobody let the target run: an answer to a RESET or a break-in too many.
            if !repeated {
                self.out.events.push_back(Event::StateChange(change));
            }
            return;
        };
        let answered = request.request.body.is_answered();
        let probed = self.sending.as_ref().is_some_and(|sending| sending.probed);
        let arrived = !matches!(request.stage, Stage::Sending);
        // The target is back in its command loop: an acknowledged request was carried out and its answer lost, or it took
        // the request for a repetition.
        if arrived && repeated {
            if self.reissue(now) {
                return;
            }
            if answered {
                self.in_step = false;
                return self.fail(now, RequestFailure::NotAnswered);
            }
        }
        match (arrived, repeated) {
            (false, true) if answered || probed => {
                // It stands, and has not got the request.
                if probed {
                    self.retransmit_called_for(now);
                }
                return;
            }
            _ if answered => self.fail(now, RequestFailure::StoppedAnew),
            // It ran and stopped again before we saw the acknowledgement; or it is another stop, or a continue that was
            // acknowledged again and again and did nothing: it may stop at the same place each time. Either way it stands
            // now, and who let it go has to hear that.
            _ => {
                if !arrived {
                    if self.sending.as_ref().is_some_and(|sending| sending.outgoing.purpose == Purpose::Request) {
                        self.sending = None;
                        self.advance();
                    }
                    self.queue.retain(|outgoing| outgoing.purpose != Purpose::Request);
                }
                self.continued();
                self.stop = Some(change.clone());
            }
        }
        self.out.events.push_back(Event::StateChange(change));
    }

    /// The target started anew, or took the link for lost: nothing of before is valid.
    pub(super) fn forget(&mut self, now: Duration) {
        self.sending = None;
        self.queue.clear();
        (self.stop, self.moved) = (None, None);
        self.prompt = None;
        self.file = false;
        self.reset_pending = false;
        self.resends = 0;
        self.fail(now, RequestFailure::TargetRestarted);
        self.owed = None;
    }
}
