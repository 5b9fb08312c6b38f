//! Packets out of a serial byte stream.
//!
//! Hunts for four equal leader bytes; any other byte restarts the hunt and counts as noise. A control packet's
//! RESEND is acted on without waiting for the rest of its header only by old targets; here the header is always
//! read whole. Memory is bounded by one packet of the largest legal size.

use bytes::Bytes;

use super::{
    Body, CONTROL_LEADER, DATA_LEADER, HEADER_SIZE, Header, MAX_SERIAL, Packet, PacketError, PacketType, TRAILER,
    checksum,
};

/// What the stream gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deframed {
    Packet(Packet),
    /// A packet that cannot be used: wrong checksum.
    Bad(PacketError),
    /// A data packet that does not end with 0xAA.
    BadTrailer {
        id: u32,
        found: u8,
    },
    /// A ByteCount above what the protocol allows.
    TooLong {
        count: usize,
    },
    /// So many bytes belonged to no packet: boot text, or a wrong baud rate.
    Noise(usize),
}

#[derive(Debug, Default)]
pub struct Deframer {
    /// The packet being collected, or the leader bytes found so far.
    buffer: Vec<u8>,
    noise: usize,
}

impl Deframer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes in pieces of any size, and hands out what is complete.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Deframed)) {
        for byte in bytes {
            self.byte(*byte, &mut found);
        }
        if self.noise > 0 {
            found(Deframed::Noise(std::mem::take(&mut self.noise)));
        }
    }

    /// Whether the stream stopped in the middle of a packet.
    pub fn is_partial(&self) -> bool {
        self.buffer.len() >= 4
    }

    /// Forgets a packet that never became complete.
    pub fn abandon(&mut self) {
        self.buffer.clear();
    }

    fn byte(&mut self, byte: u8, found: &mut impl FnMut(Deframed)) {
        if self.buffer.len() < 4 {
            if !matches!(byte, 0x30 | 0x69) {
                self.noise += self.buffer.len() + 1;
                self.buffer.clear();
                return;
            }
            if self.buffer.first().is_some_and(|first| *first != byte) {
                self.noise += self.buffer.len();
                self.buffer.clear();
            }
            self.buffer.push(byte);
            return;
        }
        self.buffer.push(byte);
        let Some(raw) = self.buffer.first_chunk::<HEADER_SIZE>() else { return };
        let header = Header::parse(raw);
        let packet_type = PacketType::from(header.packet_type);
        if header.leader == CONTROL_LEADER {
            self.buffer.clear();
            found(Deframed::Packet(Packet::control(packet_type, header.id)));
            return;
        }
        debug_assert_eq!(header.leader, DATA_LEADER);
        let count = usize::from(header.byte_count);
        if count > MAX_SERIAL {
            self.buffer.clear();
            found(Deframed::TooLong { count });
            return;
        }
        if self.buffer.len() < HEADER_SIZE + count + 1 {
            return;
        }
        let payload = Bytes::copy_from_slice(&self.buffer[HEADER_SIZE..HEADER_SIZE + count]);
        self.buffer.clear();
        let computed = checksum(&payload);
        found(if byte != TRAILER {
            Deframed::BadTrailer { id: header.id, found: byte }
        } else if computed != header.checksum {
            Deframed::Bad(PacketError::Checksum { id: header.id, expected: header.checksum, computed })
        } else {
            Deframed::Packet(Packet { packet_type, id: header.id, body: Body::Data(payload) })
        });
    }
}
