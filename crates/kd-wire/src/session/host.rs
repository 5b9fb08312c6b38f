//! The packet layer's rules as a host keeps them, for serial lines and KDNET.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::association::{Association, Received};
use super::{Busy, Diagnostic, Event, KdnetConfig, Output, RequestFailure, SerialConfig, Transmit};
use crate::message::debug_io::{self, DebugIo};
use crate::message::manipulate::Request;
use crate::message::{Direction, FileIoReply, ManipulateReply, ManipulateRequest, Message, StateChange};
use crate::packet::{
    BREAK_IN, Body, Deframed, Deframer, INITIAL_ID, MAX_KDNET, MAX_SERIAL, Packet, PacketError, PacketType, SYNC,
    checksum,
};

/// Transmissions of one packet.
const MAX_ROUNDS: u32 = 24;
/// Issues of one request.
const MAX_ISSUES: u32 = 6;
/// RESENDs in a row, either way, before they are answered by the clock only.
const RESEND_BURST: u32 = 8;
/// How long after ours a RESET of the target still counts as its answer.
const RESET_PATIENCE: Duration = Duration::from_millis(500);
const KDNET_HOST_ID: u32 = 0x8000_0000;

enum Transport {
    Serial(Serial),
    Kdnet(Box<Association>),
}

struct Serial {
    deframer: Deframer,
    config: SerialConfig,
    /// When the packet that is coming in counts as broken off.
    stalled: Option<Duration>,
    /// Checksum and length of a SYNC packet, while it can be repeated because its acknowledgement was lost.
    last_sync: Option<(u32, usize)>,
}

impl Serial {
    /// How long so many bytes are on the line.
    fn on_the_line(&self, bytes: usize) -> Duration {
        match self.config.baud {
            Some(baud) if baud > 0 => Duration::from_secs_f64(bytes as f64 * 10.0 / f64::from(baud)),
            _ => Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Request,
    /// A request that was answered, or given up, before the target acknowledged its last issue.
    Leftover,
    Answer,
}

struct Outgoing {
    packet_type: PacketType,
    payload: Bytes,
    purpose: Purpose,
}

/// The data packet that waits for its acknowledgement.
struct Sending {
    outgoing: Outgoing,
    id: u32,
    rounds: u32,
    deadline: Duration,
    /// A RESET went out since: a repeated state change says nothing about this packet.
    reset_since: bool,
    since: Duration,
    /// Transmissions since the target was last heard.
    silent_rounds: u32,
}

struct Outstanding {
    request: ManipulateRequest,
    payload: Bytes,
    acknowledged: bool,
    issues: u32,
    /// Of the reply, once acknowledged.
    deadline: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Synchronise { break_in: bool },
    BreakIn,
}

/// Working towards a state change.
struct Seek {
    aim: Aim,
    step: u32,
    resets: u32,
    /// `None` while there is nobody to talk to.
    next: Option<Duration>,
}

/// The host's end of one connection.
pub struct HostSession {
    transport: Transport,
    out: Output,
    tx: u32,
    rx: u32,
    /// Whether `rx` is what the target will send next. A fresh host takes any legal id.
    rx_known: bool,
    /// A packet of the target came in.
    heard: bool,
    /// A RESET of ours was not answered yet.
    reset_pending: bool,
    /// When our last RESET went out.
    last_reset: Option<Duration>,
    sending: Option<Sending>,
    queue: VecDeque<Outgoing>,
    request: Option<Outstanding>,
    /// A request that the target will carry out a second time: its reply is waited for and dropped.
    duplicate: Option<(ManipulateRequest, Duration)>,
    /// The first 32 bytes of the state change of this stop; `None` while the target runs.
    stop: Option<Bytes>,
    seek: Option<Seek>,
    prompt: Option<debug_io::GetString>,
    file: bool,
    resends: u32,
    last_resend: Option<Duration>,
}

impl HostSession {
    /// A session over a byte stream: serial line, pipe or TCP.
    pub fn serial(config: SerialConfig) -> Self {
        let deframer = Deframer::new();
        Self::new(
            Transport::Serial(Serial { deframer, config, stalled: None, last_sync: None }),
            INITIAL_ID,
            INITIAL_ID,
        )
    }

    /// A session over KDNET.
    pub fn kdnet(config: KdnetConfig) -> Self {
        Self::new(Transport::Kdnet(Box::new(Association::new(config))), KDNET_HOST_ID, 0)
    }

    fn new(transport: Transport, tx: u32, rx: u32) -> Self {
        HostSession {
            transport,
            out: Output::default(),
            tx,
            rx,
            rx_known: false,
            heard: false,
            reset_pending: false,
            last_reset: None,
            sending: None,
            queue: VecDeque::new(),
            request: None,
            duplicate: None,
            stop: None,
            seek: None,
            prompt: None,
            file: false,
            resends: 0,
            last_resend: None,
        }
    }

    /// Bytes of the stream.
    pub fn handle_bytes(&mut self, now: Duration, bytes: &[u8]) {
        let Transport::Serial(serial) = &mut self.transport else { return };
        let mut found = Vec::new();
        serial.deframer.push(bytes, |deframed| found.push(deframed));
        let patience = Duration::from_secs(1) + serial.on_the_line(64);
        serial.stalled = serial.deframer.is_partial().then_some(now + patience);
        for deframed in found {
            match deframed {
                Deframed::Packet(packet) => self.receive(now, packet),
                Deframed::Bad(error) => self.receive_bad(now, error),
                Deframed::BadTrailer { found, .. } => {
                    self.out.diagnose(Diagnostic::BadTrailer { found });
                    self.ask_again(now);
                }
                Deframed::TooLong { count } => {
                    self.out.diagnose(Diagnostic::TooLong { count });
                    self.ask_again(now);
                }
                Deframed::Noise(bytes) => self.out.diagnose(Diagnostic::SerialNoise { bytes }),
            }
        }
    }

    /// One UDP payload.
    pub fn handle_datagram(&mut self, now: Duration, peer: SocketAddr, payload: &[u8]) {
        let Transport::Kdnet(association) = &mut self.transport else { return };
        match association.receive(now, peer, payload, &mut self.out) {
            Received::Nothing => {}
            Received::Data(body) => self.receive_body(now, &body),
            Received::Established { again, body } => {
                let connected = association.connected();
                self.forget();
                self.tx = KDNET_HOST_ID;
                self.rx = 0;
                self.rx_known = false;
                if again {
                    self.out.events.push_back(Event::TargetRestarted);
                }
                self.out.events.push_back(connected);
                let wait = self.step(0);
                if let Some(seek) = &mut self.seek {
                    seek.step = 0;
                    seek.next = Some(now + if seek.aim == Aim::BreakIn { Duration::ZERO } else { wait });
                }
                self.receive_body(now, &body);
            }
            Received::Rekeyed(body) => {
                self.retransmit(now);
                self.receive_body(now, &body);
            }
            Received::Moved => {
                if let Some(peer) = association.peer() {
                    self.out.events.push_back(Event::PeerMoved { peer });
                }
                self.retransmit(now);
            }
        }
    }

    fn receive_body(&mut self, now: Duration, body: &Bytes) {
        if body.len() < crate::packet::HEADER_SIZE {
            // A ping: the target's key is new and it has not heard us. As WinDbg, ask for what it was sending.
            self.resend(now);
            return;
        }
        match Packet::parse(body) {
            Ok(packet) => self.receive(now, packet),
            Err(error) => self.receive_bad(now, error),
        }
    }

    fn receive_bad(&mut self, now: Duration, error: PacketError) {
        self.out.diagnose(match error {
            PacketError::Checksum { .. } => Diagnostic::BadChecksum,
            error => Diagnostic::Malformed { reason: error.to_string() },
        });
        self.ask_again(now);
    }

    /// The time that [`HostSession::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.transport {
            Transport::Kdnet(association) => association.handle_timeout(now, &mut self.out),
            Transport::Serial(serial) => {
                if serial.stalled.is_some_and(|at| at <= now) {
                    serial.stalled = None;
                    serial.deframer.abandon();
                    let reason = "a packet broke off".to_owned();
                    self.out.diagnose(Diagnostic::Malformed { reason });
                    self.ask_again(now);
                }
            }
        }
        if self.sending.as_ref().is_some_and(|sending| sending.deadline <= now) {
            self.retransmit_by_clock(now);
        }
        if self.duplicate.as_ref().is_some_and(|(_, deadline)| *deadline <= now) {
            self.duplicate = None;
            self.send_next(now);
        }
        if self.request.as_ref().is_some_and(|request| request.deadline.is_some_and(|at| at <= now)) {
            self.reissue(now);
        }
        if self.seek.as_ref().is_some_and(|seek| seek.next.is_some_and(|at| at <= now)) {
            self.seek_step(now);
        }
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// When [`HostSession::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let transport = match &self.transport {
            Transport::Serial(serial) => serial.stalled,
            Transport::Kdnet(association) => association.timeout(),
        };
        [
            transport,
            self.sending.as_ref().map(|sending| sending.deadline),
            self.duplicate.as_ref().map(|(_, deadline)| *deadline),
            self.request.as_ref().and_then(|request| request.deadline),
            self.seek.as_ref().and_then(|seek| seek.next),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Works towards a state change: listens briefly, then alternates break-in and RESET until one comes. Without
    /// `break_in` only RESETs are sent, which a running target ignores.
    pub fn synchronise(&mut self, now: Duration, break_in: bool) {
        let next = self.is_connected().then(|| now + self.step(0));
        self.stop = None;
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = break_in;
        } else {
            self.rx_known = false;
        }
        self.seek = Some(Seek { aim: Aim::Synchronise { break_in }, step: 0, resets: 0, next });
    }

    /// Stops a running target: sends the break-in byte until a state change comes.
    pub fn break_in(&mut self, now: Duration) {
        let next = self.is_connected().then_some(now);
        self.stop = None;
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = true;
        }
        self.seek = Some(Seek { aim: Aim::BreakIn, step: 0, resets: 0, next });
        if next.is_some() {
            self.seek_step(now);
        }
    }

    /// How many break-ins were sent so far. One stop answers one of them; a target that has more of them in its
    /// buffer stops again as soon as it is continued.
    pub fn break_ins(&self) -> u32 {
        self.out.break_ins
    }

    /// Ends [`HostSession::synchronise`] and [`HostSession::break_in`] without a state change.
    pub fn stand_by(&mut self) {
        self.seek = None;
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = false;
        }
    }

    /// Asks the stopped target. Ends with [`Event::Reply`], [`Event::Sent`] or [`Event::RequestFailed`].
    pub fn request(&mut self, now: Duration, processor: u16, request: Request) -> Result<(), Busy> {
        if self.request.is_some() {
            return Err(Busy);
        }
        let request = ManipulateRequest { processor, body: request };
        let payload = Bytes::from(request.encode());
        if payload.len() > self.max_payload() {
            self.out.events.push_back(Event::RequestFailed { reason: RequestFailure::TooLong });
            return Ok(());
        }
        self.request =
            Some(Outstanding { request, payload: payload.clone(), acknowledged: false, issues: 1, deadline: None });
        self.enqueue(now, PacketType::StateManipulate, payload, Purpose::Request);
        Ok(())
    }

    /// Gives the outstanding request up; [`Event::RequestFailed`] follows.
    pub fn cancel(&mut self, now: Duration) {
        if let Some(request) = self.request.as_ref().filter(|request| request.acknowledged) {
            self.duplicate = Some((request.request.clone(), now + self.reply_patience()));
        }
        self.fail(RequestFailure::Cancelled);
        self.send_next(now);
    }

    /// Answers the last [`Event::Prompt`].
    pub fn answer_prompt(&mut self, now: Duration, answer: &[u8]) {
        if let Some(prompt) = self.prompt.take() {
            let payload = DebugIo::Answer(prompt.answer(answer)).encode().into();
            self.enqueue(now, PacketType::DebugIo, payload, Purpose::Answer);
        }
    }

    /// Answers the last [`Event::FileIo`]; [`FileIoRequest::refuse`](crate::message::FileIoRequest::refuse) is WinDbg's answer without a file mapping.
    pub fn answer_file(&mut self, now: Duration, reply: FileIoReply) {
        if std::mem::take(&mut self.file) {
            let mut payload = reply.encode();
            payload.truncate(self.max_payload());
            self.enqueue(now, PacketType::FileIo, payload.into(), Purpose::Answer);
        }
    }

    /// The address of this host that the KDNET target says it is configured for.
    pub fn configured_host(&self) -> Option<IpAddr> {
        match &self.transport {
            Transport::Serial(_) => None,
            Transport::Kdnet(association) => association.configured,
        }
    }

    /// The longest message that fits into a packet; 56 bytes of it are a request's header.
    pub fn max_payload(&self) -> usize {
        match self.transport {
            Transport::Serial(_) => MAX_SERIAL,
            Transport::Kdnet(_) => MAX_KDNET,
        }
    }

    /// Whether there is somebody to send to: always on a stream, after the keys are agreed on KDNET.
    pub fn is_connected(&self) -> bool {
        match &self.transport {
            Transport::Serial(_) => true,
            Transport::Kdnet(association) => association.peer().is_some(),
        }
    }

    fn is_serial(&self) -> bool {
        matches!(self.transport, Transport::Serial(_))
    }

    // ---- timing ----

    fn ack_patience(&self, bytes: usize) -> Duration {
        match &self.transport {
            Transport::Kdnet(_) => Duration::from_millis(500),
            Transport::Serial(serial) => Duration::from_millis(1500) + serial.on_the_line(2 * bytes),
        }
    }

    /// Longer than the target's own retransmission interval, so that it repairs a lost reply by itself.
    fn reply_patience(&self) -> Duration {
        match &self.transport {
            Transport::Kdnet(_) => Duration::from_secs(1),
            Transport::Serial(serial) => Duration::from_secs(3) + serial.on_the_line(2 * MAX_SERIAL),
        }
    }

    /// Between the steps of a synchronisation.
    fn step(&self, step: u32) -> Duration {
        match (&self.transport, step) {
            (Transport::Kdnet(_), _) => Duration::from_millis(500),
            (Transport::Serial(_), 0) => Duration::from_secs(1),
            (Transport::Serial(serial), _) => Duration::from_secs(1) + serial.on_the_line(512),
        }
    }

    // ---- sending ----

    fn transmit(&mut self, packet: &Packet) {
        match &mut self.transport {
            Transport::Serial(_) => {
                let data = packet.encode_serial();
                self.out.transmits.push_back(Transmit { peer: None, data });
            }
            Transport::Kdnet(association) => self.out.transmits.extend(association.data(&packet.encode())),
        }
    }

    fn transmit_break_in(&mut self) {
        self.out.break_ins = self.out.break_ins.wrapping_add(1);
        match &mut self.transport {
            Transport::Serial(_) => {
                let data = Bytes::from_static(&[BREAK_IN]);
                self.out.transmits.push_back(Transmit { peer: None, data });
            }
            Transport::Kdnet(association) => self.out.transmits.extend(association.data(&[BREAK_IN])),
        }
    }

    fn transmit_reset(&mut self, now: Duration) {
        let id = if self.is_serial() { 0 } else { self.tx };
        self.reset_pending = true;
        self.last_reset = Some(now);
        if let Some(sending) = &mut self.sending {
            sending.reset_since = true;
        }
        self.transmit(&Packet::control(PacketType::Reset, id));
    }

    /// Asks for the target's last packet; slowly, if it keeps coming in bad.
    fn resend(&mut self, now: Duration) {
        let rested = self.last_resend.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1));
        if self.resends < RESEND_BURST || rested {
            self.resends = self.resends.saturating_add(1);
            self.last_resend = Some(now);
            self.transmit(&Packet::control(PacketType::Resend, 0));
        }
    }

    /// Something unusable came in.
    fn ask_again(&mut self, now: Duration) {
        // Before the first packet it is boot text or a wrong baud rate, and nobody waits for an answer.
        if self.heard {
            self.resend(now);
        }
    }

    fn enqueue(&mut self, now: Duration, packet_type: PacketType, payload: Bytes, purpose: Purpose) {
        self.queue.push_back(Outgoing { packet_type, payload, purpose });
        self.send_next(now);
    }

    fn send_next(&mut self, now: Duration) {
        if self.sending.is_some() || self.duplicate.is_some() {
            return;
        }
        let Some(outgoing) = self.queue.pop_front() else { return };
        let deadline = now + self.ack_patience(outgoing.payload.len());
        self.sending = Some(Sending {
            outgoing,
            id: self.tx,
            rounds: 1,
            deadline,
            reset_since: false,
            since: now,
            silent_rounds: 0,
        });
        self.transmit_sending();
    }

    fn transmit_sending(&mut self) {
        if let Some(Sending { outgoing, id, .. }) = &self.sending {
            let packet = Packet::data(outgoing.packet_type, *id, outgoing.payload.clone());
            self.transmit(&packet);
        }
    }

    /// The same packet again: KD id unchanged, on KDNET with a new sequence number.
    fn retransmit(&mut self, now: Duration) {
        let Some(bytes) = self.sending.as_ref().map(|sending| sending.outgoing.payload.len()) else { return };
        let deadline = now + self.ack_patience(bytes);
        let Some(sending) = &mut self.sending else { return };
        sending.rounds += 1;
        sending.deadline = deadline;
        self.out.diagnose(Diagnostic::Retransmit { count: sending.rounds });
        self.transmit_sending();
    }

    fn retransmit_by_clock(&mut self, now: Duration) {
        let Some(sending) = &mut self.sending else { return };
        sending.silent_rounds += 1;
        let rounds = sending.rounds;
        if rounds >= MAX_ROUNDS {
            self.give_up_sending(now);
            return;
        }
        if self.runs_already() {
            self.out.diagnose(Diagnostic::NotAcknowledged);
            self.acknowledged(now);
            return;
        }
        // A target that the id rules have come apart with ignores us until a RESET.
        if rounds.is_multiple_of(4) {
            self.transmit_reset(now);
        }
        self.retransmit(now);
    }

    /// A stopped target reacts to a request somehow; one that runs does not. If a Continue is met with silence its
    /// acknowledgement was lost, and the target runs. On KDNET the offers show that the target is still there.
    fn runs_already(&self) -> bool {
        let silent = self.request.as_ref().is_some_and(|request| !request.request.body.is_answered());
        let Some(sending) =
            self.sending.as_ref().filter(|sending| silent && sending.outgoing.purpose == Purpose::Request)
        else {
            return false;
        };
        match &self.transport {
            Transport::Serial(_) => sending.silent_rounds >= 4,
            Transport::Kdnet(association) => sending.silent_rounds >= 8 && association.heard_since(sending.since),
        }
    }

    fn give_up_sending(&mut self, now: Duration) {
        if self.sending.take().is_some_and(|sending| sending.outgoing.purpose == Purpose::Request) {
            self.fail(RequestFailure::NotAcknowledged);
        }
        self.send_next(now);
    }

    /// The outstanding request ends without an answer.
    fn fail(&mut self, reason: RequestFailure) {
        if self.request.take().is_some() {
            self.leave_request();
            self.out.events.push_back(Event::RequestFailed { reason });
        }
    }

    /// The request is over. What the target has not acknowledged of it must still be delivered, or the ids come
    /// apart; what was not sent yet must not be.
    fn leave_request(&mut self) {
        self.queue.retain(|outgoing| outgoing.purpose != Purpose::Request);
        if let Some(sending) = &mut self.sending
            && sending.outgoing.purpose == Purpose::Request
        {
            sending.outgoing.purpose = Purpose::Leftover;
        }
    }

    fn reissue(&mut self, now: Duration) {
        let Some(request) = &mut self.request else { return };
        if request.issues >= MAX_ISSUES {
            self.fail(RequestFailure::NotAnswered);
            return;
        }
        request.issues += 1;
        request.acknowledged = false;
        request.deadline = None;
        let (count, payload) = (request.issues, request.payload.clone());
        self.out.diagnose(Diagnostic::Reissued { count });
        if count > 2 {
            self.transmit_reset(now);
        }
        self.enqueue(now, PacketType::StateManipulate, payload, Purpose::Request);
    }

    /// The packet in flight arrived.
    fn acknowledged(&mut self, now: Duration) {
        let Some(sending) = self.sending.take() else { return };
        self.tx = if self.is_serial() { (self.tx & !SYNC) ^ 1 } else { self.tx.wrapping_add(2) };
        let patience = self.reply_patience();
        match sending.outgoing.purpose {
            Purpose::Answer => {}
            Purpose::Leftover => {
                if let Ok(request) = ManipulateRequest::decode(&sending.outgoing.payload)
                    && request.body.is_answered()
                {
                    self.duplicate = Some((request, now + patience));
                }
            }
            Purpose::Request => {
                if let Some(request) = &mut self.request {
                    if request.request.body.is_answered() {
                        request.acknowledged = true;
                        request.deadline = Some(now + patience);
                    } else {
                        self.request = None;
                        self.stop = None;
                        self.out.events.push_back(Event::Sent);
                    }
                }
            }
        }
        self.send_next(now);
    }

    // ---- receiving ----

    fn receive(&mut self, now: Duration, packet: Packet) {
        if !self.heard {
            self.heard = true;
            if self.is_serial() {
                self.out.events.push_back(Event::Connected { peer: None });
            }
        }
        if let Some(sending) = &mut self.sending {
            sending.silent_rounds = 0;
        }
        match (packet.body, packet.packet_type) {
            (Body::Control, PacketType::Acknowledge) => {
                let mask = if self.is_serial() { SYNC } else { 0 };
                if self.sending.as_ref().is_some_and(|sending| (sending.id ^ packet.id) & !mask == 0) {
                    if let Transport::Serial(serial) = &mut self.transport {
                        serial.last_sync = None;
                    }
                    self.acknowledged(now);
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
        let Some(rounds) = self.sending.as_ref().map(|sending| sending.rounds) else { return };
        if rounds < RESEND_BURST {
            self.retransmit(now);
        } else if rounds == RESEND_BURST {
            self.out.diagnose(Diagnostic::ResendStorm);
            if let Some(sending) = &mut self.sending {
                sending.rounds += 1;
            }
        }
    }

    fn receive_reset(&mut self, now: Duration, id: u32) {
        let knew = std::mem::replace(&mut self.rx_known, true);
        if let Transport::Serial(serial) = &mut self.transport {
            serial.last_sync = None;
            self.tx = INITIAL_ID;
            self.rx = INITIAL_ID;
            if let Some(sending) = &mut self.sending {
                sending.id = INITIAL_ID;
            }
        } else if !knew || id.wrapping_add(2) != self.rx {
            // Else it repeats the packet we have; our acknowledgement is still under way.
            self.rx = id;
        }
        // The answer to our own is not answered, or two well-meaning ends would go on for ever: each answer makes the
        // target repeat its packet, and a packet that was under way when we asked hides that one answer is still due.
        let recently = self.last_reset.is_some_and(|at| now.saturating_sub(at) < RESET_PATIENCE);
        if !std::mem::take(&mut self.reset_pending) && !recently {
            self.transmit_reset(now);
        }
        self.out.diagnose(Diagnostic::Resynchronised);
        if let Some(sending) = &mut self.sending {
            sending.reset_since = true;
            if sending.rounds < RESEND_BURST {
                self.retransmit(now);
            }
        }
    }

    fn receive_data(&mut self, now: Duration, packet_type: PacketType, id: u32, payload: Bytes) {
        let fresh = match &self.transport {
            Transport::Serial(_) => self.serial_id(now, packet_type, id, &payload),
            Transport::Kdnet(_) => self.kdnet_id(now, packet_type, id),
        };
        let Some(fresh) = fresh else { return };
        let ack = if self.is_serial() { id & !SYNC } else { id };
        self.transmit(&Packet::control(PacketType::Acknowledge, ack));
        self.reset_pending = false;
        self.resends = 0;
        if fresh {
            self.deliver(now, packet_type, payload);
            self.send_next(now);
        }
    }

    /// `Some(true)`: new; `Some(false)`: seen before; `None`: not to be acknowledged.
    fn serial_id(&mut self, now: Duration, packet_type: PacketType, id: u32, payload: &Bytes) -> Option<bool> {
        let Transport::Serial(serial) = &mut self.transport else { return None };
        let base = id & !SYNC;
        if base & !1 != INITIAL_ID {
            self.out.diagnose(Diagnostic::Malformed { reason: format!("packet id {id:#010x}") });
            self.resend(now);
            return None;
        }
        // No target begins with a reply: there the bit is line noise, which no checksum of the header catches.
        if id & SYNC != 0 && packet_type != PacketType::StateManipulate {
            let print = (checksum(payload), payload.len());
            if serial.last_sync == Some(print) {
                return Some(false);
            }
            serial.last_sync = Some(print);
            let repeats_stop = packet_type == PacketType::StateChange64 && self.stop.as_deref() == payload.get(..32);
            let restarted = self.rx_known && !repeats_stop;
            self.tx = INITIAL_ID;
            self.rx = base ^ 1;
            self.rx_known = true;
            if restarted {
                self.forget();
                self.out.events.push_back(Event::TargetRestarted);
            } else if let Some(sending) = &mut self.sending {
                sending.id = INITIAL_ID;
            }
            return Some(true);
        }
        if self.rx_known && base != self.rx {
            return Some(false);
        }
        serial.last_sync = None;
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
        } else if ahead < 0 {
            return Some(false);
        } else if ahead > 0 {
            self.out.diagnose(Diagnostic::Resynchronised);
        }
        self.rx = id.wrapping_add(2);
        Some(true)
    }

    fn deliver(&mut self, now: Duration, packet_type: PacketType, payload: Bytes) {
        let message = match Message::decode(packet_type, Direction::TargetToHost, &payload) {
            Ok(message) => message,
            Err(error) => {
                self.out.diagnose(Diagnostic::Malformed { reason: error.to_string() });
                return;
            }
        };
        match message {
            Message::StateChange(change) => self.deliver_stop(now, change, &payload),
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

    fn deliver_reply(&mut self, now: Duration, reply: ManipulateReply) {
        if self.duplicate.as_ref().is_some_and(|(request, _)| reply.answers(request)) {
            self.duplicate = None;
            self.out.diagnose(Diagnostic::StaleReply { api: reply.body.api() });
            return;
        }
        let Some(request) = self.request.as_ref().filter(|request| reply.answers(&request.request)) else {
            self.out.diagnose(Diagnostic::StaleReply { api: reply.body.api() });
            return;
        };
        // A reply to the only issue proves that the request arrived; one to a re-issued request may belong to an
        // earlier issue, so the last one is still waited for.
        if !request.acknowledged && request.issues == 1 {
            self.acknowledged(now);
        }
        self.request = None;
        self.leave_request();
        self.out.events.push_back(Event::Reply(reply));
    }

    fn deliver_stop(&mut self, now: Duration, change: StateChange, payload: &Bytes) {
        self.stand_by();
        self.duplicate = None;
        let print = payload.slice(..32);
        let repeated = self.stop.as_ref() == Some(&print);
        self.stop = Some(print);
        let Some(request) = &self.request else {
            // Repeated although nobody let the target run: an answer to a RESET or a break-in too many.
            if !repeated {
                self.out.events.push_back(Event::StateChange(change));
            }
            return;
        };
        if repeated && request.request.body.is_answered() {
            // The target is back in its command loop: an acknowledged request was carried out and its answer lost.
            if request.acknowledged {
                self.reissue(now);
            }
            return;
        }
        let continued = !request.request.body.is_answered()
            && self
                .sending
                .as_ref()
                .is_some_and(|sending| sending.outgoing.purpose == Purpose::Request && !sending.reset_since);
        if continued {
            // It ran and stopped again before we saw the acknowledgement.
            let stop = self.stop.take();
            self.acknowledged(now);
            self.stop = stop;
        } else if repeated {
            return;
        } else {
            self.fail(RequestFailure::StoppedAnew);
        }
        self.out.events.push_back(Event::StateChange(change));
    }

    /// The target started anew, or took the link for lost: nothing of before is valid.
    fn forget(&mut self) {
        self.sending = None;
        self.queue.clear();
        self.duplicate = None;
        self.stop = None;
        self.prompt = None;
        self.file = false;
        self.reset_pending = false;
        self.resends = 0;
        self.fail(RequestFailure::TargetRestarted);
    }

    // ---- synchronisation ----

    fn seek_step(&mut self, now: Duration) {
        let Some(seek) = &mut self.seek else { return };
        seek.step = seek.step.saturating_add(1);
        let step = seek.step;
        let limit = match &self.transport {
            Transport::Serial(serial) if serial.config.resets > 0 => serial.config.resets,
            _ => u32::MAX,
        };
        let stop = match seek.aim {
            Aim::BreakIn => true,
            Aim::Synchronise { break_in } => break_in && step % 2 == 1,
        };
        let reset = !stop && seek.resets < limit;
        if reset {
            seek.resets = seek.resets.saturating_add(1);
        }
        let wait = match (seek.aim, &self.transport) {
            (Aim::BreakIn, Transport::Serial(_)) => Duration::from_secs(2),
            _ => self.step(step),
        };
        if let Some(seek) = &mut self.seek {
            seek.next = Some(now + wait);
        }
        if stop {
            self.transmit_break_in();
        } else if reset {
            self.transmit_reset(now);
        }
    }
}
