//! Packets out of a serial byte stream.
//!
//! Hunts for four equal leader bytes; any other byte counts as noise. What turns out to be damaged is searched again
//! from its second byte on: a flipped bit in a ByteCount makes a packet swallow those behind it, and one '0' of boot
//! text before a leader shifts its header. Inside damaged bytes only what is whole and right counts, because memory that
//! a reply carries may hold anything, leaders too.
//!
//! A control packet's RESEND is acted on without waiting for the rest of its header only by old targets; here the header
//! is always read whole. Memory is bounded by one packet of the largest legal size.

use bytes::Bytes;

use super::{
    Body, CONTROL_LEADER, HEADER_SIZE, Header, INITIAL_ID, MAX_SERIAL, Packet, PacketError, PacketType, TRAILER,
    checksum,
};

/// What the stream gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deframed {
    /// A whole one, whose sum is right.
    Packet(Packet),
    /// A packet that cannot be used: wrong checksum.
    Bad(PacketError),
    /// A data packet that does not end with 0xAA.
    BadTrailer {
        /// Of the packet before it, which is good.
        id: u32,
        /// What stood there instead of 0xaa.
        found: u8,
    },
    /// A ByteCount above what the protocol allows.
    TooLong {
        /// What the header claims.
        count: usize,
    },
    /// So many bytes belonged to no packet: boot text, or a wrong baud rate.
    Noise(usize),
}

/// Finds packets in a stream of bytes, however it was cut.
#[derive(Debug, Default)]
pub struct Deframer {
    /// From the first byte that may belong to a packet on.
    buffer: Vec<u8>,
    /// So many bytes at the buffer's start belong to a packet that was found damaged, and told.
    tainted: usize,
    /// The packet being collected broke off: one that is whole behind it goes before.
    suspect: bool,
    noise: usize,
}

/// What stands at one place of the buffer.
enum Candidate {
    Whole(Packet, usize),
    /// More bytes are needed.
    Incomplete,
    /// It cannot be right; so many bytes are spoiled.
    Damaged(Deframed, usize),
}

impl Deframer {
    /// At the start of a stream, or in the middle of one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes in pieces of any size, and hands out what is complete.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Deframed)) {
        self.buffer.extend_from_slice(bytes);
        self.take_out(&mut found);
    }

    /// Whether the stream stopped in the middle of a packet.
    pub fn is_partial(&self) -> bool {
        self.buffer.len() >= 4
    }

    /// The packet that is coming in made a pause that it should not make: bytes of it may be lost. It is still taken
    /// when it becomes whole, but one behind it that is whole before goes first.
    pub fn suspect(&mut self, mut found: impl FnMut(Deframed)) {
        self.suspect = true;
        self.take_out(&mut found);
    }

    /// Forgets a packet that never became complete.
    pub fn abandon(&mut self) {
        self.buffer.clear();
        self.tainted = 0;
        self.suspect = false;
    }

    fn take_out(&mut self, found: &mut impl FnMut(Deframed)) {
        let mut at = 0;
        loop {
            let start = at + leader(&self.buffer[at..]);
            self.noise += start.saturating_sub(at.max(self.tainted));
            at = start;
            if self.buffer.len() - at < HEADER_SIZE {
                break;
            }
            match candidate(&self.buffer[at..], at < self.tainted) {
                Candidate::Whole(packet, length) => {
                    found(Deframed::Packet(packet));
                    at += length;
                    self.suspect = false;
                }
                Candidate::Damaged(deframed, length) => {
                    // Of one that broke off it was told already.
                    if at >= self.tainted && !self.suspect {
                        found(deframed);
                    }
                    self.tainted = self.tainted.max(at + length);
                    self.suspect = false;
                    at += 1;
                }
                Candidate::Incomplete => {
                    let likely = !matches!(packet_type(&self.buffer[at..]), PacketType::Unknown(_));
                    if likely && !self.suspect && at >= self.tainted {
                        break;
                    }
                    let Some(next) = self.whole_behind(at) else { break };
                    self.tainted = self.tainted.max(next);
                    at = next;
                }
            }
        }
        self.buffer.drain(..at);
        self.tainted = self.tainted.saturating_sub(at);
        if self.noise > 0 {
            found(Deframed::Noise(std::mem::take(&mut self.noise)));
        }
    }

    /// Where a packet that is whole and right begins, behind the one at `at` that is not complete.
    fn whole_behind(&self, at: usize) -> Option<usize> {
        (at + 1..self.buffer.len().saturating_sub(HEADER_SIZE - 1))
            .find(|next| matches!(candidate(&self.buffer[*next..], true), Candidate::Whole(..)))
    }
}

fn packet_type(bytes: &[u8]) -> PacketType {
    bytes.get(4..6).map_or(PacketType::Unknown(0), |raw| u16::from_le_bytes([raw[0], raw[1]]).into())
}

/// How many bytes stand before the first place where a leader is or may begin.
fn leader(bytes: &[u8]) -> usize {
    let is_start = |at: usize| {
        let head = &bytes[at..bytes.len().min(at + 4)];
        matches!(head[0], 0x30 | 0x69) && head.iter().all(|byte| *byte == head[0])
    };
    (0..bytes.len()).find(|at| is_start(*at)).unwrap_or(bytes.len())
}

/// `strict`: among bytes that are known to be spoiled.
fn candidate(bytes: &[u8], strict: bool) -> Candidate {
    let Some(raw) = bytes.first_chunk::<HEADER_SIZE>() else { return Candidate::Incomplete };
    let header = Header::parse(raw);
    if !matches!(header.leader, super::DATA_LEADER | CONTROL_LEADER) {
        return Candidate::Damaged(Deframed::Noise(1), 1);
    }
    let packet_type = PacketType::from(header.packet_type);
    if header.leader == CONTROL_LEADER {
        // No checksum covers a control packet; what is always the same in one is all there is to check.
        let known = matches!(packet_type, PacketType::Acknowledge | PacketType::Resend | PacketType::Reset);
        let plain = header.byte_count == 0 && header.checksum == 0;
        let fits = !strict || packet_type != PacketType::Acknowledge || header.id & !1 == INITIAL_ID;
        return match known && plain && fits {
            true => Candidate::Whole(Packet::control(packet_type, header.id), HEADER_SIZE),
            false => {
                let (id, expected) = (header.id, header.checksum);
                let error = PacketError::Checksum { id, expected, computed: 0 };
                Candidate::Damaged(Deframed::Bad(error), HEADER_SIZE)
            }
        };
    }
    let count = usize::from(header.byte_count);
    if count > MAX_SERIAL {
        return Candidate::Damaged(Deframed::TooLong { count }, HEADER_SIZE);
    }
    let length = HEADER_SIZE + count + 1;
    let Some(packet) = bytes.get(..length) else { return Candidate::Incomplete };
    let payload = &packet[HEADER_SIZE..length - 1];
    let (trailer, computed) = (packet[length - 1], checksum(payload));
    if trailer != TRAILER {
        return Candidate::Damaged(Deframed::BadTrailer { id: header.id, found: trailer }, length);
    }
    if computed != header.checksum {
        let error = PacketError::Checksum { id: header.id, expected: header.checksum, computed };
        return Candidate::Damaged(Deframed::Bad(error), length);
    }
    let body = Body::Data(Bytes::copy_from_slice(payload));
    Candidate::Whole(Packet { packet_type, id: header.id, body }, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(payload: &[u8]) -> Vec<u8> {
        Packet::data(PacketType::DebugIo, INITIAL_ID, payload.to_vec()).encode_serial().to_vec()
    }

    fn packets(deframer: &mut Deframer, bytes: &[u8]) -> Vec<Packet> {
        let mut packets = Vec::new();
        deframer.push(bytes, |deframed| {
            if let Deframed::Packet(packet) = deframed {
                packets.push(packet);
            }
        });
        packets
    }

    /// A ByteCount with a flipped bit swallows what follows; it is found again inside.
    #[test]
    fn what_a_damaged_packet_swallowed_is_found() {
        let mut stream = data(b"first");
        stream[6] ^= 0x20;
        stream.extend(Packet::control(PacketType::Acknowledge, INITIAL_ID).encode_serial());
        stream.extend(data(b"second, which is long enough to make the first one complete"));
        let found = packets(&mut Deframer::new(), &stream);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], Packet::control(PacketType::Acknowledge, INITIAL_ID));
    }

    /// One that never becomes whole waits only until it made a pause.
    #[test]
    fn a_packet_behind_one_that_broke_off_goes_first() {
        let mut deframer = Deframer::new();
        let mut stream = data(&[7; 300]);
        stream.drain(100..200);
        assert!(packets(&mut deframer, &stream).is_empty());
        let mut found = Vec::new();
        deframer.suspect(|deframed| found.push(deframed));
        assert!(found.is_empty());
        assert_eq!(
            packets(&mut deframer, &data(b"next")),
            [Packet::data(PacketType::DebugIo, INITIAL_ID, &b"next"[..])]
        );
        // What is slow but whole is taken all the same.
        let whole = data(&[7; 300]);
        assert!(packets(&mut deframer, &whole[..150]).is_empty());
        deframer.suspect(|_| {});
        assert_eq!(packets(&mut deframer, &whole[150..]).len(), 1);
    }

    #[test]
    fn a_zero_before_a_leader_costs_nothing() {
        let stream = [b"0".to_vec(), data(b"x")].concat();
        assert_eq!(packets(&mut Deframer::new(), &stream).len(), 1);
    }

    #[test]
    fn an_absurd_length_is_told_and_passed() {
        let mut stream = data(b"x");
        stream[7] = 0xff;
        stream.extend(data(b"y"));
        let mut found = Vec::new();
        Deframer::new().push(&stream, |deframed| found.push(deframed));
        assert!(matches!(found[..2], [Deframed::TooLong { count: 0xff01 }, Deframed::Packet(_)]), "{found:?}");
    }
}
