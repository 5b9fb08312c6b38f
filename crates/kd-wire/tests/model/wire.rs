//! One session from attach to leaving, over a wire with faults at known places.

use std::collections::VecDeque;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use kd_wire::kdnet::{DataKey, Key, Offer, Ping, Sealed, open, seal};
use kd_wire::message::Direction;
use kd_wire::message::manipulate::{ManipulateReply, Reply, Request, continue_api, read_virtual_memory};
use kd_wire::session::{Event, HostSession, KdnetConfig, LEAST_READ, RequestFailure, SerialConfig};

use crate::peer::{Peer, Rules, memory};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Lost,
    Twice,
    /// Behind the next of its direction.
    Late,
    /// A bit of what the checksum covers, or of the leader where there is nothing else.
    Payload,
    /// The lowest bit of the id, which nothing covers.
    Id,
    /// Any bit.
    Bit(usize),
    /// A break-in byte more reaches the target before it.
    BreakIn,
    /// The target loses its power before it.
    Reset,
}

/// How long a packet is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) transit: Duration,
    /// What a real line takes for each byte; the next packet of its direction waits for that.
    pub(crate) byte: Duration,
    /// What the host was told of its rate.
    pub(crate) baud: Option<u32>,
}

const LINE: Line = Line { transit: Duration::from_millis(1), byte: Duration::ZERO, baud: None };
/// What a request may take in all.
const LIMIT: Duration = Duration::from_secs(10);
/// Whoever leaves asks a last time, and a break-in that the line makes up then is answered into the void where the next
/// packets are lost too: among these many questions it makes up none.
const LAST: u32 = 4;

struct Flying {
    at: Duration,
    to_target: bool,
    bytes: Vec<u8>,
}

struct Net {
    data_key: DataKey,
    sent: u64,
    received: u64,
    offers: u64,
}

pub(crate) struct Run {
    now: Duration,
    host: HostSession,
    peer: Peer,
    net: Option<Net>,
    faults: Vec<(usize, Fault)>,
    packets: usize,
    /// Few more questions will be asked.
    nearly_gone: bool,
    flying: VecDeque<Flying>,
    held: [Option<Vec<u8>>; 2],
    events: VecDeque<Event>,
    story: String,
    is_told: bool,
    reset: bool,
    line: Line,
    /// When the line is free again, to the host and to the target.
    free: [Duration; 2],
    /// Reads that were done without because they came damaged.
    pub(crate) shortened: u32,
    /// How many of a hundred long packets are damaged, and what decides which.
    pub(crate) damage: (u64, u64),
    /// How many of a thousand packets are lost, and what decides which.
    loss: (u64, u64),
}

fn key() -> Key {
    "1.2.3.4".parse().unwrap()
}

fn address() -> SocketAddr {
    "192.168.2.72:50000".parse().unwrap()
}

/// SplitMix64
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// A tenth of the packets lost, and as many spoiled in other ways; few break-ins more.
pub(crate) fn random_faults(seed: u64, kinds: &[Fault]) -> Vec<(usize, Fault)> {
    let mut state = seed;
    let mut faults = Vec::new();
    for packet in 0..400 {
        let roll = random(&mut state) % 100;
        let kind = kinds[(random(&mut state) % kinds.len() as u64) as usize];
        match roll {
            0..10 => faults.push((packet, Fault::Lost)),
            // Of damage half is to the header.
            10..20 if kind == Fault::Payload && roll.is_multiple_of(2) => {
                faults.push((packet, Fault::Bit((random(&mut state) % 128) as usize)));
            }
            10..20 if kind != Fault::BreakIn || roll == 10 => faults.push((packet, kind)),
            _ => {}
        }
    }
    faults
}

impl Run {
    pub(crate) fn new(rules: Rules, faults: Vec<(usize, Fault)>) -> Self {
        let now = Duration::from_secs(100);
        let (host, net) = if rules.is_stream() {
            (HostSession::serial(SerialConfig::default()), None)
        } else {
            let (host, data_key) = connected(now);
            (host, Some(Net { data_key, sent: 1, received: 0, offers: 0 }))
        };
        Run {
            now,
            host,
            peer: Peer::running(rules),
            net,
            faults,
            packets: 0,
            nearly_gone: false,
            flying: VecDeque::new(),
            held: [None, None],
            events: VecDeque::new(),
            story: String::new(),
            is_told: false,
            reset: false,
            line: LINE,
            free: [Duration::ZERO; 2],
            shortened: 0,
            damage: (0, 0),
            loss: (0, 0),
        }
    }

    /// How long so many reads of `count` bytes take one after the other, with `thousandth` packets of a thousand lost.
    pub(crate) fn reads(rules: Rules, line: Line, reads: u64, count: usize, thousandth: u64, seed: u64) -> Duration {
        let mut run = Run { line, ..Run::new(rules, Vec::new()) };
        if rules.is_stream() {
            run.host = HostSession::serial(SerialConfig { baud: line.baud, resets: 0 });
        }
        run.host.synchronise(run.now, true);
        run.wait(LIMIT, is_stop).unwrap();
        run.loss = (thousandth, seed);
        let started = run.now;
        for read in 0..reads {
            run.read(0x1000 + read, count).unwrap();
        }
        run.now - started
    }

    pub(crate) fn packets(&self) -> usize {
        self.packets
    }

    pub(crate) fn frozen(&self) -> Duration {
        self.peer.frozen()
    }

    pub(crate) fn story(&self) -> &str {
        &self.story
    }

    /// With a story of what happened.
    pub(crate) fn told(mut self) -> Self {
        self.is_told = true;
        self
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.is_told {
            let _ = writeln!(self.story, "{:>9.3} {}", (self.now.as_secs_f64() - 100.0) * 1000.0, what());
        }
    }

    /// Attach, read twice, let it run, and look.
    pub(crate) fn session(&mut self) -> Result<(), String> {
        self.host.synchronise(self.now, true);
        let stopped = self.wait(LIMIT, |event| matches!(event, Event::StateChange(_)));
        if stopped.is_none() {
            return Err("it never stopped".into());
        }
        for (address, count) in [(0x1000, 32), (0x2000, 1000)] {
            self.read(address, count)?;
        }
        self.go()
    }

    fn read(&mut self, address: u64, count: usize) -> Result<(), String> {
        let request = read_virtual_memory::Request { target_base_address: address, transfer_count: count as u32 };
        self.host.request(self.now, 0, Request::ReadVirtualMemory(request)).map_err(|busy| busy.to_string())?;
        match self.wait(LIMIT, |event| matches!(event, Event::Reply(_) | Event::RequestFailed { .. })) {
            Some(Event::Reply(ManipulateReply { body: Reply::ReadVirtualMemory(reply), .. })) => {
                let right = reply.target_base_address == address && reply.prefix()[..] == memory(address, count);
                if right { Ok(()) } else { Err("a wrong answer".into()) }
            }
            Some(Event::RequestFailed { reason: RequestFailure::Damaged }) if count > LEAST_READ => {
                self.shortened += 1;
                self.read(address, count / 2)?;
                self.read(address + count as u64 / 2, count / 2)
            }
            Some(Event::RequestFailed { .. }) if self.may_fail() => Ok(()),
            Some(other) => Err(format!("a read ended with {other:?}")),
            None => Err("a read did not end".into()),
        }
    }

    /// A few faults are got over. Dozens of them can spoil every packet of one request, whose end is an error then.
    fn may_fail(&self) -> bool {
        self.reset || self.faults.len() > 8
    }

    /// As the one who leaves: again after each stop, and listening for one more; on a bad wire it is asked for.
    fn go(&mut self) -> Result<(), String> {
        for round in 0..40 {
            let request = continue_api::Request { continue_status: 0x0001_0002 };
            self.host.request(self.now, 0, Request::Continue(request)).map_err(|busy| busy.to_string())?;
            match self.wait(LIMIT, |event| matches!(event, Event::Sent | Event::RequestFailed { .. })) {
                Some(Event::Sent) => {}
                // Then it is said that it may stand.
                Some(Event::RequestFailed { .. }) if self.may_fail() => return Ok(()),
                Some(other) => return Err(format!("the continue ended with {other:?}")),
                None => return Err("the continue did not end".into()),
            }
            let doubtful = self.host.is_lossy() || round > 0;
            let mut stopped = self.listen(if doubtful { 10 } else { 2 });
            if stopped.is_none() && !doubtful && self.host.is_lossy() {
                stopped = self.listen(10);
            }
            if stopped.is_none() {
                return if self.peer.runs() { Ok(()) } else { Err("left frozen".into()) };
            }
        }
        Err("it stops again and again".into())
    }

    /// Asks so often, and listens, until it stops once more.
    fn listen(&mut self, nudges: u32) -> Option<Event> {
        let mut stopped = None;
        for left in (0..nudges).rev() {
            self.nearly_gone = left < if nudges > 2 { LAST } else { 1 };
            stopped = stopped.or_else(|| self.wait(Duration::from_millis(60), is_stop));
            if stopped.is_none() {
                self.host.nudge();
            }
        }
        stopped = stopped.or_else(|| self.wait(Duration::from_millis(180), is_stop));
        self.nearly_gone = false;
        stopped
    }

    /// Until such an event, at most so long.
    fn wait(&mut self, patience: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let end = self.now + patience;
        for _ in 0..100_000 {
            self.collect();
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Some(event);
                }
            }
            let timers = [self.host.poll_timeout(), self.peer.timeout(), self.flying.front().map(|it| it.at)];
            let next = timers.into_iter().flatten().min().filter(|next| *next <= end);
            let Some(next) = next else {
                self.now = end;
                return None;
            };
            self.now = self.now.max(next);
            self.deliver();
            if self.host.poll_timeout().is_some_and(|at| at <= self.now) {
                self.host.handle_timeout(self.now);
            }
            self.peer.handle_timeout(self.now);
        }
        panic!("nothing ends\n{}", self.story);
    }

    fn collect(&mut self) {
        while let Some(transmit) = self.host.poll_transmit() {
            self.put(true, transmit.data.to_vec());
        }
        for body in std::mem::take(&mut self.peer.out) {
            let bytes = match &mut self.net {
                None => body,
                Some(net) => {
                    net.sent += 1;
                    let (data_key, from) = (Some(&net.data_key), Direction::TargetToHost);
                    let sealed = Sealed { version: 4, data_key, from, sequence: net.sent, body: &body };
                    seal(&key(), sealed).to_vec()
                }
            };
            self.put(false, bytes);
        }
        while let Some(event) = self.host.poll_event() {
            if !matches!(event, Event::Diagnostic(_)) {
                self.note(|| format!("          {event:.60?}"));
            }
            self.events.push_back(event);
        }
    }

    fn put(&mut self, to_target: bool, mut bytes: Vec<u8>) {
        let number = self.packets;
        self.packets += 1;
        let fault = self.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault);
        let arrow = if to_target { "->" } else { "<-" };
        self.note(|| {
            let shown: String = bytes.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
            format!("{number:>3} {arrow} {shown} {fault:?}")
        });
        let (thousandth, dice) = &mut self.loss;
        if *thousandth > 0 && random(dice) % 1000 < *thousandth {
            return;
        }
        let (hundredth, dice) = &mut self.damage;
        if bytes.len() > 300 && random(dice) % 100 < *hundredth {
            bytes[20] ^= 4;
        }
        match fault {
            Some(Fault::Lost) => return,
            Some(Fault::Payload) => {
                let at = if bytes.len() > 16 { 20 } else { 0 };
                bytes[at] ^= 4;
            }
            Some(Fault::Bit(bit)) if bit / 8 < bytes.len() => bytes[bit / 8] ^= 1 << (bit % 8),
            Some(Fault::Id) if bytes.len() >= 16 => bytes[8] ^= 1,
            Some(Fault::BreakIn) if !self.nearly_gone => {
                self.flying.push_back(Flying { at: self.now, to_target: true, bytes: vec![0xff] })
            }
            Some(Fault::Reset) => self.flying.push_back(Flying { at: self.now, to_target: true, bytes: Vec::new() }),
            Some(Fault::Late) if self.held[usize::from(to_target)].is_none() => {
                self.held[usize::from(to_target)] = Some(bytes);
                return;
            }
            _ => {}
        }
        let copies = if fault == Some(Fault::Twice) { 2 } else { 1 };
        let held = self.held[usize::from(to_target)].take();
        for bytes in std::iter::repeat_n(bytes, copies).chain(held) {
            // What a line takes its time for comes bit by bit; the peer takes packets whole.
            let piece = if self.line.byte.is_zero() || to_target { bytes.len() } else { 64 };
            for bytes in bytes.chunks(piece.max(1)) {
                let free = &mut self.free[usize::from(to_target)];
                *free = (*free).max(self.now) + self.line.byte * bytes.len() as u32;
                self.flying.push_back(Flying { at: *free + self.line.transit, to_target, bytes: bytes.to_vec() });
            }
        }
    }

    fn deliver(&mut self) {
        self.flying.make_contiguous().sort_by_key(|flying| flying.at);
        while self.flying.front().is_some_and(|flying| flying.at <= self.now) {
            let Some(Flying { to_target, bytes, .. }) = self.flying.pop_front() else { return };
            match (to_target, &bytes[..]) {
                (false, bytes) if self.net.is_some() => self.host.handle_datagram(self.now, address(), bytes),
                (false, bytes) => self.host.handle_bytes(self.now, bytes),
                (true, []) => {
                    self.reset = true;
                    self.peer.restart(self.now);
                }
                (true, [0xff]) => self.peer.receive(self.now, b"b"),
                (true, bytes) => {
                    let Some(net) = &mut self.net else {
                        self.peer.receive(self.now, bytes);
                        continue;
                    };
                    if open(&key(), None, Direction::HostToTarget, bytes).is_ok() {
                        net.offers += 3;
                        let raw = offer(3 + net.offers);
                        self.put(false, raw);
                        continue;
                    }
                    let Ok(datagram) = open(&key(), Some(&net.data_key), Direction::HostToTarget, bytes) else {
                        continue;
                    };
                    if datagram.sequence > net.received {
                        net.received = datagram.sequence;
                        self.peer.receive(self.now, &datagram.body);
                    }
                }
            }
        }
    }
}

fn is_stop(event: &Event) -> bool {
    matches!(event, Event::StateChange(_))
}

/// A sign of life, which a target gives when it is asked, running or not.
fn offer(sequence: u64) -> Vec<u8> {
    let body = Offer { nonce: [5; 32], target: address(), configured: address(), connected: Some(address()) }.encode();
    let from = Direction::TargetToHost;
    seal(&key(), Sealed { version: 4, data_key: None, from, sequence, body: &body }).to_vec()
}

/// A KDNET session whose keys are agreed.
fn connected(now: Duration) -> (HostSession, DataKey) {
    let mut host = HostSession::kdnet(KdnetConfig { key: key(), targets: Vec::new(), seed: [1; 32] });
    let from = Direction::TargetToHost;
    host.handle_datagram(now, address(), &offer(3));
    let response = host.poll_transmit().unwrap().data;
    let response = open(&key(), None, Direction::HostToTarget, &response).unwrap();
    let data_key = key().data_key(&response.body);
    let ping = Ping { last_sequence: 0, host: 1 }.encode();
    let raw = seal(&key(), Sealed { version: 4, data_key: Some(&data_key), from, sequence: 1, body: &ping });
    host.handle_datagram(now, address(), &raw);
    while host.poll_transmit().is_some() {}
    (host, data_key)
}
