//! A stub as the documents describe it, on a stream byte by byte: it knows nothing of the library it is tested with.

use std::time::Duration;

/// Whose habits it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// KDCOM: the next data packet counts as the acknowledgement of its own, another one is a repetition.
    Microsoft,
    /// Any data packet does.
    ReactOs,
    /// KDNET of Windows 8.1.
    Kdnet2,
    /// KDNET of Windows 10.
    Kdnet4,
}

impl Rules {
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Rules::Microsoft | Rules::ReactOs)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    /// Sends this until it is acknowledged.
    Sending {
        kind: u16,
        payload: Vec<u8>,
    },
    /// At its prompt.
    Idle,
}

pub(crate) struct Peer {
    rules: Rules,
    state: State,
    tx: u32,
    rx: u32,
    pending_break: bool,
    retry: Duration,
    deadline: Option<Duration>,
    /// Of a stream: what has come of a packet, and when the rest of it is given up.
    buffer: Vec<u8>,
    given_up: Option<Duration>,
    pub(crate) out: Vec<Vec<u8>>,
    pub(crate) continues: u32,
    frozen_since: Option<Duration>,
    frozen: Duration,
    pc: u64,
}

const INITIAL: u32 = 0x8080_0000;
const SYNC: u32 = 0x800;

pub(crate) fn memory(address: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (address + at).wrapping_mul(0x9e37_79b9).to_le_bytes()[2]).collect()
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| u32::from(*byte)).sum()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Peer {
    /// It was debugged before, and counts from there.
    pub(crate) fn running(rules: Rules) -> Self {
        let (tx, rx) = if rules.is_stream() { (INITIAL ^ 1, INITIAL ^ 1) } else { (0x926, 0x8000_0040) };
        Peer {
            rules,
            state: State::Running,
            tx,
            rx,
            pending_break: false,
            retry: Duration::from_millis(if rules.is_stream() { 1000 } else { 500 }),
            deadline: None,
            buffer: Vec::new(),
            given_up: None,
            out: Vec::new(),
            continues: 0,
            frozen_since: None,
            frozen: Duration::ZERO,
            pc: 0xffff_f800_0000_1000,
        }
    }

    /// Power was cut: it boots, and runs.
    pub(crate) fn restart(&mut self, now: Duration) {
        self.thaw(now);
        *self = Peer {
            tx: INITIAL | SYNC,
            rx: INITIAL,
            frozen: self.frozen,
            continues: self.continues,
            pc: self.pc + 0x10_0000,
            ..Peer::running(self.rules)
        };
    }

    pub(crate) fn runs(&self) -> bool {
        self.state == State::Running
    }

    pub(crate) fn frozen(&self) -> Duration {
        self.frozen
    }

    /// In the middle of a packet it does nothing but wait for the next byte.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.given_up.or(self.deadline)
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if self.timeout().is_none_or(|at| at > now) {
            return;
        }
        if self.given_up.take().is_some() {
            self.buffer.clear();
            self.control(5, 0);
        } else {
            self.repeat(now);
        }
    }

    fn thaw(&mut self, now: Duration) {
        if let Some(since) = self.frozen_since.take() {
            self.frozen += now - since;
        }
    }

    fn control(&mut self, kind: u16, id: u32) {
        let mut packet = vec![0x69; 4];
        packet.extend(kind.to_le_bytes());
        packet.extend([0, 0]);
        packet.extend(id.to_le_bytes());
        packet.extend([0; 4]);
        self.out.push(packet);
    }

    fn repeat(&mut self, now: Duration) {
        let State::Sending { kind, payload } = self.state.clone() else { return };
        let mut packet = vec![0x30; 4];
        packet.extend(kind.to_le_bytes());
        packet.extend((payload.len() as u16).to_le_bytes());
        packet.extend(self.tx.to_le_bytes());
        packet.extend(sum(&payload).to_le_bytes());
        packet.extend(payload);
        if self.rules.is_stream() {
            packet.push(0xaa);
        }
        self.out.push(packet);
        self.deadline = Some(now + self.retry);
    }

    fn send(&mut self, now: Duration, kind: u16, payload: Vec<u8>) {
        self.state = State::Sending { kind, payload };
        self.repeat(now);
    }

    fn stop(&mut self, now: Duration) {
        self.frozen_since.get_or_insert(now);
        let mut change = vec![0; 240 + 4];
        change[..4].copy_from_slice(&0x3030u32.to_le_bytes());
        change[4..6].copy_from_slice(&6u16.to_le_bytes());
        change[8..12].copy_from_slice(&1u32.to_le_bytes());
        change[16..24].copy_from_slice(&0xffff_fa80_0000_1000u64.to_le_bytes());
        change[24..32].copy_from_slice(&self.pc.to_le_bytes());
        change[32..36].copy_from_slice(&0x8000_0003u32.to_le_bytes());
        self.send(now, 7, change);
    }

    fn acknowledged(&mut self) {
        self.tx = if self.rules.is_stream() { (self.tx & !SYNC) ^ 1 } else { self.tx.wrapping_add(2) };
        self.state = State::Idle;
        self.deadline = None;
    }

    /// What it says anew when it is asked to.
    fn again(&mut self, now: Duration) {
        match self.state {
            State::Running => {}
            State::Sending { .. } => self.repeat(now),
            State::Idle => self.stop(now),
        }
    }

    fn break_in(&mut self, now: Duration) {
        if self.runs() {
            self.stop(now);
        } else {
            self.pending_break = true;
            self.again(now);
        }
    }

    /// A datagram's body, or bytes of a stream.
    pub(crate) fn receive(&mut self, now: Duration, bytes: &[u8]) {
        if !self.rules.is_stream() {
            return self.packet(now, bytes);
        }
        for byte in bytes {
            self.byte(now, *byte);
        }
    }

    /// It hunts for four equal bytes of a leader, believes the length that follows, and waits a second for each byte.
    fn byte(&mut self, now: Duration, byte: u8) {
        if self.runs() {
            self.buffer.clear();
            if byte == 0x62 {
                self.break_in(now);
            }
            return;
        }
        if self.buffer.len() < 4 {
            if self.buffer.first().is_some_and(|first| *first != byte) {
                self.buffer.clear();
            }
            match byte {
                0x30 | 0x69 => self.buffer.push(byte),
                0x62 => self.break_in(now),
                _ => {}
            }
        } else {
            self.buffer.push(byte);
        }
        self.given_up = (self.buffer.len() >= 4).then(|| now + Duration::from_secs(1));
        if self.buffer.len() < 16 {
            return;
        }
        let count = match (self.buffer[0], usize::from(u16::from_le_bytes([self.buffer[6], self.buffer[7]]))) {
            (0x30, count @ ..=4000) => count + 1,
            _ => 0,
        };
        if self.buffer.len() == 16 + count {
            self.given_up = None;
            let packet = std::mem::take(&mut self.buffer);
            match packet.last() {
                Some(0xaa) if count > 0 => self.packet(now, &packet[..packet.len() - 1]),
                _ if packet[0] == 0x30 => self.control(5, 0),
                _ => self.packet(now, &packet),
            }
        }
    }

    /// One packet, whole or not.
    fn packet(&mut self, now: Duration, bytes: &[u8]) {
        if bytes.first() == Some(&0x62) {
            return self.break_in(now);
        }
        if self.runs() || bytes.len() < 16 {
            return;
        }
        let kind = u16::from_le_bytes([bytes[4], bytes[5]]);
        let id = word(bytes, 8);
        match bytes[..4] {
            [0x69, 0x69, 0x69, 0x69] => match kind {
                4 if matches!(self.state, State::Sending { .. }) && id == self.tx & !self.sync() => self.acknowledged(),
                5 => self.again(now),
                6 => {
                    if self.rules.is_stream() {
                        (self.tx, self.rx) = (INITIAL, INITIAL);
                        self.control(6, 0);
                    } else {
                        self.rx = id;
                        self.control(6, self.tx);
                    }
                    self.again(now);
                }
                _ => {}
            },
            [0x30, 0x30, 0x30, 0x30] => self.data(now, kind, id, bytes),
            // Junk on a stream.
            _ if self.rules.is_stream() => {}
            _ => self.control(5, 0),
        }
    }

    fn sync(&self) -> u32 {
        if self.rules.is_stream() { SYNC } else { 0 }
    }

    fn data(&mut self, now: Duration, kind: u16, id: u32, bytes: &[u8]) {
        let legal = !self.rules.is_stream() || id & !1 == INITIAL;
        if matches!(self.state, State::Sending { .. }) {
            let implied = match self.rules {
                Rules::Microsoft | Rules::Kdnet2 => id == self.rx,
                Rules::ReactOs => true,
                Rules::Kdnet4 => id.wrapping_sub(self.rx) as i32 >= 0,
            };
            match (implied, self.rules) {
                (true, _) => {
                    self.control(5, 0);
                    self.acknowledged();
                }
                (false, Rules::Microsoft) if legal => self.control(4, id),
                (false, Rules::Kdnet2) => {
                    self.control(4, id);
                    self.repeat(now);
                }
                (false, Rules::Kdnet4) => self.repeat(now),
                (false, _) => {}
            }
            return;
        }
        let count = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let payload = bytes.get(16..16 + count).unwrap_or_default();
        if !legal {
            return self.control(5, 0);
        }
        if self.rules.is_stream() && id != self.rx {
            return self.control(4, id);
        }
        if payload.len() < 56 || sum(payload) != word(bytes, 12) || kind != 2 {
            return self.control(5, 0);
        }
        self.control(4, id);
        self.rx = match self.rules {
            Rules::Microsoft | Rules::ReactOs => self.rx ^ 1,
            Rules::Kdnet2 => self.rx.wrapping_add(2),
            Rules::Kdnet4 => self.rx.wrapping_add(2).max(id.wrapping_add(2)),
        };
        self.execute(now, payload.to_vec());
    }

    fn execute(&mut self, now: Duration, mut payload: Vec<u8>) {
        match word(&payload, 0) {
            0x3130 => {
                let address = u64::from_le_bytes(payload[16..24].try_into().unwrap());
                let count = word(&payload, 24) as usize;
                payload[28..32].copy_from_slice(&(count as u32).to_le_bytes());
                payload.extend(memory(address, count));
                self.send(now, 2, payload);
            }
            0x3136 | 0x313c => {
                self.continues += 1;
                self.state = State::Running;
                self.thaw(now);
                if std::mem::take(&mut self.pending_break) {
                    self.stop(now);
                }
            }
            other => panic!("the peer does not know {other:x}"),
        }
    }
}
