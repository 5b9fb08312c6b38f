//! The target's end of a connection: what a stub does in KDCOM and in KDNET.
//!
//! For programs that stand in for a target, and as the partner of [`HostSession`](super::HostSession) in tests. It
//! keeps Microsoft's tables: a data packet that arrives while an acknowledgement is awaited counts as that
//! acknowledgement and is asked for again; RESEND, RESET and a break-in at the prompt ask for the state change.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::Transmit;
use crate::kdnet::{Channel, DataKey, Key, Offer, Ping, Response, Sealed, open, peek, seal};
use crate::message::state_change::{EXCEPTION, Report};
use crate::message::{DebugIo, Direction, FileIoRequest, Message};
use crate::packet::{BREAK_IN, Body, Deframed, Deframer, HEADER_SIZE, INITIAL_ID, MAX_KDNET, Packet, PacketType, SYNC};

const KDNET_HOST_ID: u32 = 0x8000_0000;
const OFFER_INTERVAL: Duration = Duration::from_secs(3);
/// Transmissions of a packet that nobody has to receive.
const RETRIES: u32 = 20;

/// A KDNET target's configuration.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// The key that both sides were told.
    pub key: Key,
    /// The target's own address, as it tells it.
    pub own: SocketAddr,
    /// Whom it was told to send to.
    pub host: SocketAddr,
    /// The protocol's version that it speaks.
    pub version: u8,
    /// Tells this boot from others.
    pub boot: [u8; 24],
    /// The id of the first packet; above 0 after an earlier debugging session.
    pub first_id: u32,
}

/// What the host did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetEvent {
    /// A request, a prompt's answer, a file's answer.
    Message(Box<Message>),
    /// Stop, if running.
    BreakIn,
    /// Send the state change of this stop again.
    StateChangeWanted,
    /// A debugger has the data channel.
    HostConnected {
        /// The host's address.
        host: SocketAddr,
    },
    /// Nobody acknowledges; the packet is dropped.
    GaveUp,
}

struct Kdnet {
    config: TargetConfig,
    host: SocketAddr,
    offers: u64,
    /// The seconds-like number of control datagrams.
    timer: u64,
    next_offer: Duration,
    data_key: Option<DataKey>,
    connected: bool,
    next_ping: Option<Duration>,
    sequence: u64,
    received: u64,
}

enum Transport {
    Serial {
        deframer: Deframer,
        /// When the packet that is coming in counts as broken off.
        stalled: Option<Duration>,
    },
    Kdnet(Box<Kdnet>),
}

struct Sending {
    packet: Packet,
    rounds: u32,
    deadline: Duration,
    /// Whether it is retransmitted for ever.
    vital: bool,
}

/// The target's end of one connection.
pub struct TargetSession {
    transport: Transport,
    tx: u32,
    rx: u32,
    stopped: bool,
    /// The prompt or file request that the target waits with.
    question: Option<Message>,
    retry: Duration,
    sending: Option<Sending>,
    queue: VecDeque<Message>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<TargetEvent>,
}

impl TargetSession {
    /// A stub on a serial line.
    pub fn serial() -> Self {
        let transport = Transport::Serial { deframer: Deframer::new(), stalled: None };
        Self::new(transport, INITIAL_ID | SYNC, INITIAL_ID, Duration::from_secs(1))
    }

    /// A stub on a network. It makes its first offer at once.
    pub fn kdnet(config: TargetConfig) -> Self {
        let first_id = config.first_id;
        let kdnet = Kdnet {
            host: config.host,
            config,
            offers: 0,
            timer: 0,
            next_offer: Duration::ZERO,
            data_key: None,
            connected: false,
            next_ping: None,
            sequence: 0,
            received: 0,
        };
        Self::new(Transport::Kdnet(Box::new(kdnet)), first_id, KDNET_HOST_ID, Duration::from_millis(500))
    }

    fn new(transport: Transport, tx: u32, rx: u32, retry: Duration) -> Self {
        TargetSession {
            transport,
            tx,
            rx,
            stopped: false,
            question: None,
            retry,
            sending: None,
            queue: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Sends a message after those before it. A state change means that the target stands still.
    pub fn send(&mut self, now: Duration, message: Message) {
        self.stopped |= matches!(message, Message::StateChange(_));
        if matches!(
            message,
            Message::DebugIo(DebugIo::Prompt(_)) | Message::FileIoRequest(_) | Message::ControlRequest(_)
        ) {
            self.question = Some(message.clone());
        }
        self.queue.push_back(message);
        self.send_next(now);
    }

    /// The target runs again.
    pub fn resume(&mut self) {
        self.stopped = false;
    }

    /// Whether it told a stop and was not let go.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What the host did next.
    pub fn poll_event(&mut self) -> Option<TargetEvent> {
        self.events.pop_front()
    }

    /// When [`TargetSession::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let transport = match &self.transport {
            Transport::Kdnet(kdnet) => [Some(kdnet.next_offer), kdnet.next_ping],
            Transport::Serial { stalled, .. } => [*stalled, None],
        };
        transport.into_iter().flatten().chain(self.sending.as_ref().map(|sending| sending.deadline)).min()
    }

    /// The time that [`TargetSession::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.transport {
            Transport::Kdnet(kdnet) => {
                if kdnet.next_offer <= now {
                    self.transmits.push_back(kdnet.offer(kdnet.host));
                    kdnet.next_offer = now + OFFER_INTERVAL;
                }
                if kdnet.next_ping.is_some_and(|at| at <= now) {
                    kdnet.next_ping = Some(now + OFFER_INTERVAL);
                    self.transmits.extend(kdnet.ping());
                }
            }
            Transport::Serial { deframer, stalled } => {
                if stalled.is_some_and(|at| at <= now) {
                    *stalled = None;
                    deframer.abandon();
                    self.control(PacketType::Resend, 0);
                }
            }
        }
        if self.sending.as_ref().is_some_and(|sending| sending.deadline <= now) {
            self.retry(now);
        }
    }

    /// Bytes of the stream.
    pub fn handle_bytes(&mut self, now: Duration, bytes: &[u8]) {
        let Transport::Serial { deframer, stalled } = &mut self.transport else { return };
        if !deframer.is_partial() && bytes == [BREAK_IN] {
            self.break_in(now);
            return;
        }
        let mut found = Vec::new();
        deframer.push(bytes, |deframed| found.push(deframed));
        *stalled = deframer.is_partial().then_some(now + Duration::from_secs(1));
        for deframed in found {
            match deframed {
                Deframed::Packet(packet) => self.receive(now, packet),
                Deframed::Noise(_) => {}
                _ => self.control(PacketType::Resend, 0),
            }
        }
    }

    /// A datagram that came from `peer`.
    pub fn handle_datagram(&mut self, now: Duration, peer: SocketAddr, payload: &[u8]) {
        let Transport::Kdnet(kdnet) = &mut self.transport else { return };
        let Ok(header) = peek(payload) else { return };
        let data_key = kdnet.data_key.as_ref();
        let Ok(datagram) = open(&kdnet.config.key, data_key, Direction::HostToTarget, payload) else { return };
        if header.channel == Channel::Control {
            if datagram.body.is_empty() {
                self.transmits.push_back(kdnet.offer(peer));
            } else if kdnet.accept(now, peer, datagram.sequence, &datagram.body) {
                self.transmits.extend(kdnet.ping());
                self.events.push_back(TargetEvent::HostConnected { host: peer });
                self.retransmit(now);
            }
            return;
        }
        if datagram.sequence <= kdnet.received {
            return;
        }
        kdnet.received = datagram.sequence;
        kdnet.next_ping = None;
        let body = datagram.body;
        if body.len() < HEADER_SIZE {
            if body.first() == Some(&BREAK_IN) {
                self.break_in(now);
            }
            return;
        }
        match Packet::parse(&body) {
            Ok(packet) => self.receive(now, packet),
            Err(_) => self.control(PacketType::Resend, 0),
        }
    }

    fn break_in(&mut self, now: Duration) {
        if self.sending.is_some() {
            self.retransmit(now);
        } else if self.stopped || self.question.is_some() {
            self.again(now);
        } else {
            self.events.push_back(TargetEvent::BreakIn);
        }
    }

    fn receive(&mut self, now: Duration, packet: Packet) {
        if !self.stopped && self.sending.is_none() && self.question.is_none() {
            // A running target looks for break-ins only.
            return;
        }
        let serial = matches!(self.transport, Transport::Serial { .. });
        match (packet.body, packet.packet_type) {
            (Body::Control, PacketType::Acknowledge) => {
                let mask = if serial { SYNC } else { 0 };
                if self.sending.is_some() && (self.tx ^ packet.id) & !mask == 0 {
                    self.acknowledged();
                    self.send_next(now);
                }
            }
            (Body::Control, PacketType::Resend) => self.again(now),
            (Body::Control, PacketType::Reset) => {
                if serial {
                    self.tx = INITIAL_ID;
                    self.rx = INITIAL_ID;
                    if let Some(sending) = &mut self.sending {
                        sending.packet.id = INITIAL_ID;
                    }
                    self.control(PacketType::Reset, 0);
                } else {
                    self.rx = packet.id;
                    self.control(PacketType::Reset, self.tx);
                }
                self.again(now);
            }
            (Body::Control, _) => {}
            (Body::Data(payload), packet_type) => self.data(now, serial, packet_type, packet.id, payload),
        }
    }

    fn data(&mut self, now: Duration, serial: bool, packet_type: PacketType, id: u32, payload: Bytes) {
        let expected = if serial { id == self.rx } else { id.wrapping_sub(self.rx) as i32 >= 0 };
        if self.sending.is_some() {
            if expected {
                self.acknowledged();
                self.control(PacketType::Resend, 0);
                self.send_next(now);
            } else if serial {
                self.control(PacketType::Acknowledge, id);
            } else {
                self.retransmit(now);
            }
            return;
        }
        // The header is not part of the checksum, so a damaged type gets this far.
        let wanted = self.question.as_ref().map_or(PacketType::StateManipulate, |question| question.encode().0);
        if serial && packet_type != wanted {
            self.control(PacketType::Acknowledge, id);
            return;
        }
        let message = Message::decode(packet_type, Direction::HostToTarget, &payload);
        let Some(message) = message.ok().filter(|_| packet_type == wanted && (serial || payload.len() <= MAX_KDNET))
        else {
            self.control(PacketType::Resend, 0);
            return;
        };
        self.control(PacketType::Acknowledge, id);
        if serial {
            if !expected {
                return;
            }
            self.rx ^= 1;
        } else {
            let next = id.wrapping_add(2);
            self.rx = self.rx.wrapping_add(2);
            if next.wrapping_sub(self.rx) as i32 > 0 {
                self.rx = next;
            }
        }
        self.question = None;
        self.events.push_back(TargetEvent::Message(Box::new(message)));
    }

    fn acknowledged(&mut self) {
        self.sending = None;
        self.tx = match self.transport {
            Transport::Serial { .. } => (self.tx & !SYNC) ^ 1,
            Transport::Kdnet(_) => self.tx.wrapping_add(2),
        };
    }

    /// The host wants the last thing again.
    fn again(&mut self, now: Duration) {
        if self.sending.is_some() {
            self.retransmit(now);
        } else if let Some(question) = self.question.clone() {
            self.send(now, question);
        } else {
            self.events.push_back(TargetEvent::StateChangeWanted);
        }
    }

    fn send_next(&mut self, now: Duration) {
        if self.sending.is_some() {
            return;
        }
        let Some(message) = self.queue.pop_front() else { return };
        let vital = match &message {
            Message::StateChange(change) => {
                matches!(change.report, Report::Exception(_)) || change.new_state == EXCEPTION
            }
            Message::DebugIo(DebugIo::Print(_)) | Message::FileIoRequest(FileIoRequest::Create(_)) => false,
            Message::TraceIo(_) => false,
            _ => true,
        };
        let (packet_type, payload) = message.encode();
        let packet = Packet::data(packet_type, self.tx, payload);
        self.sending = Some(Sending { packet, rounds: 1, deadline: now + self.retry, vital });
        self.transmit_sending();
    }

    fn retry(&mut self, now: Duration) {
        let Some(sending) = &mut self.sending else { return };
        if sending.rounds >= RETRIES && !sending.vital {
            self.sending = None;
            self.queue.clear();
            self.stopped = false;
            if matches!(self.transport, Transport::Serial { .. }) {
                self.tx = INITIAL_ID | SYNC;
                self.rx = INITIAL_ID;
            }
            self.events.push_back(TargetEvent::GaveUp);
            return;
        }
        sending.rounds = sending.rounds.saturating_add(1);
        self.retransmit(now);
    }

    fn retransmit(&mut self, now: Duration) {
        if let Some(sending) = &mut self.sending {
            sending.deadline = now + self.retry;
            self.transmit_sending();
        }
    }

    fn transmit_sending(&mut self) {
        if let Some(packet) = self.sending.as_ref().map(|sending| sending.packet.clone()) {
            self.transmit(&packet);
        }
    }

    fn control(&mut self, packet_type: PacketType, id: u32) {
        self.transmit(&Packet::control(packet_type, id));
    }

    fn transmit(&mut self, packet: &Packet) {
        match &mut self.transport {
            Transport::Serial { .. } => {
                self.transmits.push_back(Transmit { peer: None, data: packet.encode_serial() });
            }
            Transport::Kdnet(kdnet) => self.transmits.extend(kdnet.data(&packet.encode())),
        }
    }
}

impl Kdnet {
    fn nonce(&self) -> [u8; 32] {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&self.offers.to_le_bytes());
        nonce[8..].copy_from_slice(&self.config.boot);
        nonce
    }

    fn offer(&mut self, to: SocketAddr) -> Transmit {
        self.offers += 1;
        self.timer += 3;
        let connected = self.connected.then_some(self.host);
        let offer = Offer { nonce: self.nonce(), target: self.config.own, configured: self.config.host, connected };
        let content = Sealed {
            version: self.config.version,
            data_key: None,
            from: Direction::TargetToHost,
            sequence: self.timer,
            body: &offer.encode(),
        };
        Transmit { peer: Some(to), data: seal(&self.config.key, content) }
    }

    /// Takes a response's key, if it answers the newest offer or the one before.
    fn accept(&mut self, now: Duration, host: SocketAddr, sequence: u64, body: &[u8]) -> bool {
        let Some(response) = Response::decode(body) else { return false };
        let timely = matches!(self.timer.checked_sub(sequence), Some(0 | 3));
        if !timely || response.nonce[8..] != self.config.boot {
            return false;
        }
        self.data_key = Some(self.config.key.data_key(body));
        self.host = host;
        self.connected = true;
        self.sequence = 0;
        self.received = 0;
        self.next_ping = Some(now + OFFER_INTERVAL);
        true
    }

    fn ping(&mut self) -> Option<Transmit> {
        let host = match self.host {
            SocketAddr::V4(host) => u32::from(*host.ip()),
            SocketAddr::V6(_) => 0,
        };
        self.data(&Ping { last_sequence: self.received, host }.encode())
    }

    fn data(&mut self, body: &[u8]) -> Option<Transmit> {
        let data_key = Some(self.data_key.as_ref()?);
        self.sequence += 1;
        let (version, from, sequence) = (self.config.version, Direction::TargetToHost, self.sequence);
        let data = seal(&self.config.key, Sealed { version, data_key, from, sequence, body });
        Some(Transmit { peer: Some(self.host), data })
    }
}
