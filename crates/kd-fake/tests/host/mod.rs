//! A debugger's end of the line, as small as can be, for testing the fake target only.

use aes::Aes256;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Something a serial line runs over.
pub(crate) trait Wire: Read + Write {}
impl<W: Read + Write> Wire for W {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Control { kind: u16, id: u32 },
    Data { kind: u16, id: u32, payload: Vec<u8> },
}

/// A serial packet with a wrong checksum or trailer.
struct Damaged;

/// The target's side of a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) state: u32,
    pub(crate) processor: u16,
    pub(crate) pc: u64,
    pub(crate) code: u32,
    pub(crate) base: u64,
    pub dr7: u64,
    pub(crate) stream: Vec<u8>,
    pub(crate) path: String,
}

pub(crate) struct Reply {
    pub(crate) status: u32,
    pub(crate) header: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

pub(crate) enum Link {
    Serial { wire: Box<dyn Wire>, bytes: VecDeque<u8> },
    Kdnet(Kdnet),
}

pub(crate) struct Host {
    pub(crate) link: Link,
    pub(crate) transmit: u32,
    pub(crate) expected: Option<u32>,
    /// What was printed.
    pub(crate) prints: Vec<String>,
    queue: VecDeque<(u16, Vec<u8>)>,
    /// Every id a data packet of the target carried, repetitions included.
    pub(crate) seen: Vec<u32>,
    pub(crate) retry: Duration,
}

pub(crate) struct Kdnet {
    pub(crate) socket: UdpSocket,
    pub(crate) control: [u8; 32],
    pub(crate) data: Option<[u8; 32]>,
    pub(crate) version: u8,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) sent: u64,
    /// Last body of an offer, and its sequence.
    pub(crate) offers: Vec<(u64, Vec<u8>)>,
    pub(crate) pings: usize,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Kdnet {
    pub(crate) fn new(socket: UdpSocket, key: [u64; 4]) -> Kdnet {
        let mut control = [0; 32];
        for (bytes, part) in control.chunks_exact_mut(8).zip(key) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        Kdnet { socket, control, data: None, version: 5, peer: None, sent: 0, offers: Vec::new(), pings: 0 }
    }

    fn tag(&self, header: &[u8], plain: &[u8]) -> [u8; 16] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.control.map(|byte| !byte)).unwrap();
        mac.update(header);
        mac.update(plain);
        mac.finalize().into_bytes()[..16].try_into().unwrap()
    }

    pub(crate) fn seal(&self, control: bool, sequence: u64, body: &[u8]) -> Vec<u8> {
        let pad = (16 - (body.len() + 8) % 16) % 16;
        let header = [b'M', b'D', b'B', b'G', self.version, u8::from(control)];
        let mut plain = (sequence << 8 | 0x80 | pad as u64).to_be_bytes().to_vec();
        plain.extend(body);
        plain.extend(vec![0; pad]);
        let tag = self.tag(&header, &plain);
        let key = if control { self.control } else { self.data.expect("a session") };
        let length = plain.len();
        cbc::Encryptor::<Aes256>::new(&key.into(), &tag.into())
            .encrypt_padded::<NoPadding>(&mut plain, length)
            .unwrap();
        [&header[..], &plain, &tag].concat()
    }

    /// Sequence and body, if it is authentic.
    fn open(&self, datagram: &[u8]) -> Option<(bool, u64, Vec<u8>)> {
        let control = datagram[5] & 1 != 0;
        let key = if control { self.control } else { self.data? };
        let tag: [u8; 16] = datagram[datagram.len() - 16..].try_into().unwrap();
        let mut plain = datagram[6..datagram.len() - 16].to_vec();
        cbc::Decryptor::<Aes256>::new(&key.into(), &tag.into()).decrypt_padded::<NoPadding>(&mut plain).ok()?;
        if self.tag(&datagram[..6], &plain) != tag {
            return None;
        }
        let meta = u64::from_be_bytes(plain[..8].try_into().unwrap());
        assert_eq!(meta & 0x80, 0, "the target claims to be a host");
        Some((control, meta >> 8, plain[8..plain.len() - (meta & 15) as usize].to_vec()))
    }

    pub(crate) fn respond(&mut self, sequence: u64, offer: &[u8]) {
        let mut body = vec![1, 2];
        body.extend(&offer[2..34]);
        body.extend([0x5a; 32]);
        body.resize(322, 0);
        let datagram = self.seal(true, sequence, &body);
        self.data = Some(Sha256::new().chain_update(self.control).chain_update(&body).finalize().into());
        self.sent = 0;
        self.socket.send_to(&datagram, self.peer.unwrap()).unwrap();
    }

    pub(crate) fn send(&mut self, body: &[u8]) {
        self.sent += 1;
        let datagram = self.seal(false, self.sent, body);
        self.socket.send_to(&datagram, self.peer.unwrap()).unwrap();
    }

    /// One authentic datagram: whether of the control channel, sequence, body.
    fn datagram(&mut self, deadline: Instant) -> Option<(bool, u64, Vec<u8>)> {
        loop {
            let wait = deadline.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())?;
            self.socket.set_read_timeout(Some(wait)).unwrap();
            let mut buffer = [0; 2048];
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { continue };
            assert!(length >= 38 && (length - 6) % 16 == 0, "{length} bytes");
            // Another machine with the same key is not the one we talk to.
            if self.data.is_some() && self.peer.is_some_and(|peer| peer.ip() != from.ip()) {
                continue;
            }
            let Some(opened) = self.open(&buffer[..length]) else { continue };
            if opened.0 {
                self.offers.push((opened.1, opened.2.clone()));
            }
            self.peer = Some(from);
            return Some(opened);
        }
    }

    /// Waits for an offer and answers it.
    pub(crate) fn connect(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (control, sequence, body) = self.datagram(deadline).expect("an offer");
            if control {
                assert_eq!((body.len(), &body[..2]), (344, &[1, 1][..]));
                return self.respond(sequence, &body);
            }
        }
    }

    fn body(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        loop {
            let (control, _, body) = self.datagram(deadline)?;
            match (control, body.len()) {
                (true, _) => {}
                (false, 12) => self.pings += 1,
                (false, _) => return Some(body),
            }
        }
    }
}

impl Host {
    pub(crate) fn serial(wire: impl Wire + 'static) -> Host {
        Host::new(Link::Serial { wire: Box::new(wire), bytes: VecDeque::new() }, 0x8080_0000)
    }

    pub(crate) fn kdnet(kdnet: Kdnet) -> Host {
        Host::new(Link::Kdnet(kdnet), 0x8000_0000)
    }

    fn new(link: Link, transmit: u32) -> Host {
        let retry = Duration::from_millis(1000);
        Host { link, transmit, expected: None, prints: Vec::new(), queue: VecDeque::new(), seen: Vec::new(), retry }
    }

    pub(crate) fn net(&mut self) -> &mut Kdnet {
        match &mut self.link {
            Link::Kdnet(kdnet) => kdnet,
            Link::Serial { .. } => panic!("a serial line"),
        }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        match &mut self.link {
            Link::Serial { wire, .. } => wire.write_all(bytes).unwrap(),
            Link::Kdnet(kdnet) => kdnet.send(bytes),
        }
    }

    pub(crate) fn break_in(&mut self) {
        self.raw(b"b");
    }

    pub(crate) fn control(&mut self, kind: u16, id: u32) {
        let mut packet = b"iiii".to_vec();
        packet.extend(kind.to_le_bytes());
        packet.extend([0, 0]);
        packet.extend(id.to_le_bytes());
        packet.extend([0; 4]);
        self.raw(&packet);
    }

    pub(crate) fn data_packet(&self, kind: u16, id: u32, payload: &[u8]) -> Vec<u8> {
        let mut packet = b"0000".to_vec();
        packet.extend(kind.to_le_bytes());
        packet.extend((payload.len() as u16).to_le_bytes());
        packet.extend(id.to_le_bytes());
        packet.extend(payload.iter().map(|byte| u32::from(*byte)).sum::<u32>().to_le_bytes());
        packet.extend(payload);
        if let Link::Serial { .. } = self.link {
            packet.push(0xaa);
        }
        packet
    }

    fn byte(wire: &mut dyn Wire, bytes: &mut VecDeque<u8>, deadline: Instant) -> Option<u8> {
        loop {
            if let Some(byte) = bytes.pop_front() {
                return Some(byte);
            }
            if Instant::now() >= deadline {
                return None;
            }
            let mut buffer = [0; 4096];
            match wire.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => bytes.extend(&buffer[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next packet, as it is on the wire.
    pub(crate) fn packet(&mut self, deadline: Instant) -> Option<Packet> {
        match &mut self.link {
            Link::Kdnet(kdnet) => {
                let body = kdnet.body(deadline)?;
                let (kind, count, id) = (u16_at(&body, 4), usize::from(u16_at(&body, 6)), u32_at(&body, 8));
                Some(match &body[..4] {
                    b"iiii" => Packet::Control { kind, id },
                    b"0000" => Packet::Data { kind, id, payload: body[16..16 + count].to_vec() },
                    leader => panic!("leader {leader:x?}"),
                })
            }
            Link::Serial { .. } => loop {
                match self.serial_packet(deadline)? {
                    Ok(packet) => return Some(packet),
                    Err(Damaged) => self.control(5, 0),
                }
            },
        }
    }

    fn serial_packet(&mut self, deadline: Instant) -> Option<Result<Packet, Damaged>> {
        let Link::Serial { wire, bytes } = &mut self.link else { return None };
        let mut next = || Self::byte(wire.as_mut(), bytes, deadline);
        let (mut leader, mut run) = (0, 0);
        while run < 4 {
            let byte = next()?;
            run = match byte {
                0x30 | 0x69 if byte == leader => run + 1,
                0x30 | 0x69 => 1,
                _ => 0,
            };
            leader = byte;
        }
        let mut header = [0; 12];
        for byte in &mut header {
            *byte = next()?;
        }
        let (kind, count, id) = (u16_at(&header, 0), usize::from(u16_at(&header, 2)), u32_at(&header, 4));
        if leader == 0x69 {
            return Some(Ok(Packet::Control { kind, id }));
        }
        if count > 4000 {
            return Some(Err(Damaged));
        }
        let mut payload = Vec::new();
        for _ in 0..count {
            payload.push(next()?);
        }
        let sum = payload.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let sound = next()? == 0xaa && sum == u32_at(&header, 8);
        Some(if sound { Ok(Packet::Data { kind, id, payload }) } else { Err(Damaged) })
    }

    /// Acknowledges a data packet; whether it is new.
    fn accept(&mut self, id: u32) -> bool {
        self.seen.push(id);
        match self.link {
            Link::Serial { .. } => {
                self.control(4, id & !0x800);
                let plain = id & !0x800;
                if id & 0x800 != 0 {
                    self.transmit = 0x8080_0000;
                } else if self.expected.is_some_and(|expected| expected != id) {
                    return false;
                }
                self.expected = Some(plain ^ 1);
                true
            }
            Link::Kdnet(_) => {
                self.control(4, id);
                if self.expected.is_some_and(|expected| (id.wrapping_sub(expected) as i32) < 0) {
                    return false;
                }
                self.expected = Some(id.wrapping_add(2));
                true
            }
        }
    }

    /// Sends a data packet until it is acknowledged.
    pub(crate) fn send(&mut self, kind: u16, payload: &[u8]) {
        let packet = self.data_packet(kind, self.transmit, payload);
        for _ in 0..10 {
            self.raw(&packet);
            let deadline = Instant::now() + self.retry;
            while let Some(packet) = self.packet(deadline) {
                match packet {
                    Packet::Control { kind: 4, id } if id == self.transmit => {
                        self.transmit = match self.link {
                            Link::Serial { .. } => self.transmit ^ 1,
                            Link::Kdnet(_) => self.transmit.wrapping_add(2),
                        };
                        return;
                    }
                    Packet::Control { kind: 5, .. } => break,
                    Packet::Control { .. } => {}
                    Packet::Data { kind, id, payload } => {
                        if self.accept(id) {
                            self.queue.push_back((kind, payload));
                        }
                    }
                }
            }
        }
        panic!("not acknowledged");
    }

    /// The next message that is not a print.
    pub(crate) fn message(&mut self, wait: Duration) -> Option<(u16, Vec<u8>)> {
        let deadline = Instant::now() + wait;
        loop {
            let (kind, payload) = match self.queue.pop_front() {
                Some(message) => message,
                None => match self.packet(deadline)? {
                    Packet::Control { .. } => continue,
                    Packet::Data { kind, id, payload } if self.accept(id) => (kind, payload),
                    Packet::Data { .. } => continue,
                },
            };
            if kind == 3 && u32_at(&payload, 0) == 0x3230 {
                self.prints.push(String::from_utf8(payload[16..].to_vec()).unwrap());
            } else {
                return Some((kind, payload));
            }
        }
    }

    /// Collects prints until nothing came for this long.
    pub(crate) fn listen(&mut self, wait: Duration) {
        if let Some((kind, _)) = self.message(wait) {
            panic!("message of type {kind} while listening");
        }
    }

    pub(crate) fn try_stop(&mut self, wait: Duration) -> Option<Stop> {
        let (kind, payload) = self.message(wait)?;
        assert_eq!(kind, 7, "a state change");
        let length = u16_at(&payload, 212) as usize;
        let module = u32_at(&payload, 0) == 0x3031;
        Some(Stop {
            state: u32_at(&payload, 0),
            processor: u16_at(&payload, 6),
            pc: u64_at(&payload, 24),
            code: u32_at(&payload, 32),
            base: if module { u64_at(&payload, 40) } else { 0 },
            dr7: u64_at(&payload, 200),
            stream: payload[216..216 + length].to_vec(),
            path: String::from_utf8(payload[240..].to_vec()).unwrap().trim_end_matches('\0').to_owned(),
        })
    }

    pub(crate) fn stop(&mut self) -> Stop {
        self.try_stop(PATIENCE).expect("a stop")
    }

    /// A request with fields at their offsets and data behind them; and its reply.
    pub(crate) fn request(&mut self, api: u32, fields: &[(usize, u64)], extra: &[u8]) -> Reply {
        self.tell(api, fields, extra);
        self.reply(api)
    }

    fn reply(&mut self, api: u32) -> Reply {
        loop {
            let (kind, payload) = self.message(PATIENCE).expect("a reply");
            if kind == 2 && u32_at(&payload, 0) == api {
                let (header, data) = payload.split_at(56);
                return Reply { status: u32_at(header, 8), header: header.to_vec(), data: data.to_vec() };
            }
        }
    }

    /// A request that has no reply.
    pub(crate) fn tell(&mut self, api: u32, fields: &[(usize, u64)], extra: &[u8]) {
        let mut payload = vec![0; 56];
        payload[..4].copy_from_slice(&api.to_le_bytes());
        for (at, value) in fields {
            let bytes = value.to_le_bytes();
            // The processor's number stands alone in front of other fields.
            let room = if *at == 6 { 2 } else { (56 - at).min(8) };
            payload[*at..*at + room].copy_from_slice(&bytes[..room]);
        }
        payload.extend(extra);
        self.send(2, &payload);
    }

    pub(crate) fn read(&mut self, address: u64, count: u64) -> Reply {
        self.tell(0x3130, &[(16, address), (24, count)], &[]);
        // An idle target executes a repeated request again: the reply may be to the one before.
        loop {
            let reply = self.reply(0x3130);
            if u64_at(&reply.header, 16) == address {
                return reply;
            }
        }
    }

    /// Moves the program counter of processor 0.
    pub(crate) fn set_pc(&mut self, pc: u64) {
        let mut context = self.request(0x3132, &[], &[]).data;
        assert_eq!(context.len(), 0x4d0);
        context[0xf8..0x100].copy_from_slice(&pc.to_le_bytes());
        assert_eq!(self.request(0x3133, &[], &context).status, 0);
    }

    /// Continue2 with this Dr7.
    pub(crate) fn go(&mut self, dr7: u64) {
        self.tell(0x313c, &[(16, 0x0001_0002), (24, dr7), (32, 1)], &[]);
    }

    /// From a hard-coded breakpoint to running.
    pub(crate) fn leave(&mut self, stop: &Stop) {
        self.set_pc(stop.pc + 1);
        self.go(stop.dr7);
    }
}
