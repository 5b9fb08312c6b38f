//! A line that carries KD packets: serial bytes or KDNET datagrams.

use super::packet::{self, Data, Event, Header};
use crate::faults::{Dice, Faults};
use crate::kdnet::{Arrival, Endpoint};
use crate::stats::Counters;
use crate::transport::{Carrier, LineState, Message};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How long a byte inside a packet may take.
const BYTE_LIMIT: Duration = Duration::from_secs(1);
/// A ping is repeated until the host has answered on the data channel.
const PING_PERIOD: Duration = Duration::from_secs(3);

pub(crate) enum Line {
    Serial(Serial),
    Kdnet(Box<Kdnet>),
}

impl Line {
    /// The KDNET version; 0 on a serial line.
    pub(crate) fn version(&self) -> u8 {
        match self {
            Line::Serial(_) => 0,
            Line::Kdnet(kdnet) => kdnet.version,
        }
    }

    pub(crate) fn send_data(&mut self, kind: u16, id: u32, payload: &[u8]) {
        let mut packet = packet::data(kind, id, payload);
        match self {
            Line::Serial(serial) => {
                packet.push(packet::TRAILER);
                serial.send(packet);
            }
            Line::Kdnet(kdnet) => kdnet.send(&packet),
        }
    }

    pub(crate) fn send_control(&mut self, kind: u16, id: u32) {
        let packet = packet::control(kind, id);
        match self {
            Line::Serial(serial) => serial.send(packet),
            Line::Kdnet(kdnet) => kdnet.send(&packet),
        }
    }

    /// The next event, or [`Event::Timeout`].
    pub(crate) async fn receive(&mut self, wait: Duration) -> Event {
        let deadline = Instant::now() + wait;
        match self {
            Line::Serial(serial) => serial.receive(deadline).await,
            Line::Kdnet(kdnet) => kdnet.receive(deadline).await,
        }
    }

    /// Waits for a break-in as a running kernel does, from its clock interrupt. `drain`: the kernel thinks that nobody
    /// is there and looks through everything at once.
    pub(crate) async fn poll_break_in(&mut self, drain: bool) {
        match self {
            Line::Serial(serial) => serial.poll_break_in(drain).await,
            Line::Kdnet(kdnet) => loop {
                if kdnet.receive(Instant::now() + Duration::from_secs(3600)).await == Event::BreakIn {
                    return;
                }
            },
        }
    }

    /// Forgets the session, as a machine that restarts does.
    pub(crate) fn restart(&mut self, nonce: [u8; 24]) {
        match self {
            Line::Serial(serial) => serial.buffer.clear(),
            Line::Kdnet(kdnet) => {
                kdnet.endpoint.restart(nonce);
                kdnet.next_offer = Instant::now();
                kdnet.sent = None;
            }
        }
    }
}

pub(crate) struct Serial {
    carrier: Carrier,
    counters: Counters,
    buffer: VecDeque<u8>,
    /// How long nothing must follow a break-in byte.
    silence: Duration,
    clock_tick: Duration,
}

impl Serial {
    pub(crate) fn new(carrier: Carrier, counters: Counters, silence: Duration, clock_tick: Duration) -> Serial {
        Serial { carrier, counters, buffer: VecDeque::new(), silence, clock_tick }
    }

    /// Raw bytes, as firmware prints before the kernel owns the port.
    pub(crate) fn send(&mut self, bytes: Vec<u8>) {
        self.counters.update(|stats| stats.bytes_sent += bytes.len() as u64);
        // A full line loses bytes, as a full transmitter does.
        let _ = self.carrier.outgoing.try_send(Message { bytes, peer: None, foreign: false });
    }

    async fn byte(&mut self, deadline: Instant) -> Option<u8> {
        loop {
            if let Some(byte) = self.buffer.pop_front() {
                return Some(byte);
            }
            match timeout_at(deadline, self.carrier.incoming.recv()).await {
                Ok(Some(message)) => {
                    self.counters.update(|stats| stats.bytes_received += message.bytes.len() as u64);
                    self.buffer.extend(message.bytes);
                }
                Ok(None) => {
                    sleep_until(deadline).await;
                    return None;
                }
                Err(_) => return None,
            }
        }
    }

    async fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte(Instant::now() + BYTE_LIMIT).await?;
        }
        Some(bytes)
    }

    async fn receive(&mut self, deadline: Instant) -> Event {
        let leader = match self.leader(deadline).await {
            Ok(leader) => leader,
            Err(event) => return event,
        };
        let broken = Event::Data(Data { kind: 0, id: 0, payload: Vec::new(), intact: false });
        let is_data = leader == 0x30;
        let incomplete = if is_data { broken.clone() } else { Event::Unknown };
        let Some(kind) = self.bytes::<2>().await else { return incomplete };
        if !is_data && u16::from_le_bytes(kind) == packet::RESEND {
            // Acted upon at once; the rest of it is hunted through as junk.
            return Event::Resend;
        }
        let Some(rest) = self.bytes::<10>().await else { return incomplete };
        let mut fields = [0; 12];
        fields[..2].copy_from_slice(&kind);
        fields[2..].copy_from_slice(&rest);
        let header = Header::parse(&fields);
        if !is_data {
            return header.control();
        }
        let mut data = Data { kind: header.kind, id: header.id, payload: Vec::new(), intact: false };
        if header.count > packet::SERIAL_LIMIT {
            return Event::Data(data);
        }
        for _ in 0..header.count {
            match self.byte(Instant::now() + BYTE_LIMIT).await {
                Some(byte) => data.payload.push(byte),
                None => return Event::Data(data),
            }
        }
        let trailer = self.bytes::<1>().await;
        data.intact = trailer == Some([packet::TRAILER]) && packet::checksum(&data.payload) == header.checksum;
        Event::Data(data)
    }

    /// Hunts for four equal leader bytes. A break-in byte counts only if a leader or silence follows it.
    async fn leader(&mut self, deadline: Instant) -> Result<u8, Event> {
        let (mut leader, mut run, mut broken_in) = (0, 0, false);
        loop {
            let until = if broken_in { Instant::now() + self.silence } else { deadline };
            match self.byte(until).await {
                None if broken_in => return Err(Event::BreakIn),
                None => return Err(Event::Timeout),
                Some(byte @ (0x30 | 0x69)) => {
                    if broken_in {
                        self.buffer.push_front(byte);
                        return Err(Event::BreakIn);
                    }
                    run = if byte == leader { run + 1 } else { 1 };
                    leader = byte;
                    if run == 4 {
                        return Ok(leader);
                    }
                }
                Some(byte) => {
                    broken_in = byte == packet::BREAK_IN;
                    run = 0;
                }
            }
        }
    }

    async fn poll_break_in(&mut self, drain: bool) {
        loop {
            // With an empty buffer the ticks find nothing: wait for bytes instead of counting ticks.
            let Some(byte) = self.byte(Instant::now() + Duration::from_secs(3600)).await else { continue };
            if byte == packet::BREAK_IN {
                return;
            }
            if !drain {
                sleep(self.clock_tick).await;
            }
        }
    }
}

pub(crate) struct Kdnet {
    carrier: Carrier,
    counters: Counters,
    endpoint: Endpoint,
    version: u8,
    host: SocketAddr,
    offer_period: Duration,
    next_offer: Instant,
    next_ping: Instant,
    /// The last data datagram, for the `old_sequence` fault.
    sent: Option<Message>,
    /// Another machine with the same key, for the `foreign_offer` fault.
    stranger: Endpoint,
    state: LineState,
    dice: Dice,
}

/// What a KDNET line is made of.
pub(crate) struct KdnetParts {
    pub(crate) endpoint: Endpoint,
    pub(crate) stranger: Endpoint,
    pub(crate) version: u8,
    pub(crate) host: SocketAddr,
    pub(crate) offer_period: Duration,
    pub(crate) state: LineState,
}

impl Kdnet {
    pub(crate) fn new(carrier: Carrier, counters: Counters, parts: KdnetParts) -> Kdnet {
        let KdnetParts { endpoint, stranger, version, host, offer_period, state } = parts;
        let (now, dice) = (Instant::now(), Dice::new(state.faults().seed ^ 0x6b64));
        Kdnet {
            carrier,
            counters,
            endpoint,
            version,
            host,
            offer_period,
            next_offer: now,
            next_ping: now,
            sent: None,
            stranger,
            state,
            dice,
        }
    }

    fn transmit(&mut self, message: Message) {
        self.counters.update(|stats| stats.bytes_sent += message.bytes.len() as u64);
        // A full queue is a lost datagram.
        let _ = self.carrier.outgoing.try_send(message);
    }

    fn faults(&self) -> Faults {
        self.state.faults()
    }

    /// One body on the data channel; without a data key nobody could read it and nothing is sent.
    fn send(&mut self, body: &[u8]) {
        let Some((peer, bytes)) = self.endpoint.data(body) else { return };
        let message = Message { bytes, peer: Some(peer), foreign: false };
        self.transmit(message.clone());
        let chance = self.faults().old_sequence;
        if self.dice.hit(chance)
            && let Some(old) = self.sent.take()
        {
            self.transmit(old);
        }
        self.sent = Some(message);
    }

    fn ping(&mut self) {
        self.next_ping = Instant::now() + PING_PERIOD;
        if let Some((peer, bytes)) = self.endpoint.ping() {
            self.transmit(Message { bytes, peer: Some(peer), foreign: false });
        }
    }

    fn offer(&mut self, to: SocketAddr) {
        let bytes = self.endpoint.offer();
        self.counters.update(|stats| stats.offers += 1);
        self.transmit(Message { bytes, peer: Some(to), foreign: false });
        let chance = self.faults().foreign_offer;
        if self.dice.hit(chance) {
            let bytes = self.stranger.offer();
            self.transmit(Message { bytes, peer: Some(to), foreign: true });
        }
    }

    async fn receive(&mut self, deadline: Instant) -> Event {
        loop {
            let ping_due = if self.endpoint.unproven() { self.next_ping } else { deadline };
            let until = deadline.min(self.next_offer).min(ping_due);
            match timeout_at(until, self.carrier.incoming.recv()).await {
                Ok(Some(message)) => {
                    if let Some(event) = self.arrived(message) {
                        return event;
                    }
                }
                Ok(None) => sleep_until(until).await,
                Err(_) => {}
            }
            let now = Instant::now();
            if now >= self.next_offer {
                self.next_offer = now + self.offer_period;
                self.offer(self.host);
                if let Some(peer) = self.endpoint.peer().filter(|peer| *peer != self.host) {
                    self.offer(peer);
                }
            }
            if self.endpoint.unproven() && now >= self.next_ping {
                self.ping();
            }
            if now >= deadline {
                return Event::Timeout;
            }
        }
    }

    fn arrived(&mut self, message: Message) -> Option<Event> {
        let from = message.peer?;
        self.counters.update(|stats| stats.bytes_received += message.bytes.len() as u64);
        match self.endpoint.arrived(&message.bytes, from) {
            Arrival::Nothing => {
                self.counters.update(|stats| stats.datagrams_refused += 1);
                // Windows 8.1 repeats itself after anything.
                (self.version == 2).then_some(Event::Scrap)
            }
            Arrival::Asked => {
                self.offer(from);
                None
            }
            Arrival::Connected => {
                self.counters.update(|stats| stats.connections += 1);
                tracing::debug!(%from, "a host has connected");
                self.sent = None;
                self.ping();
                Some(Event::Connected)
            }
            Arrival::Data(body) => Some(packet::parse_body(&body)),
        }
    }
}
