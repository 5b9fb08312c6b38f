//! KD packets: the 16-byte header that serial lines and KDNET share.
//!
//! ```text
//!   0  u32  PacketLeader   0x30303030 data, 0x69696969 control
//!   4  u16  PacketType
//!   6  u16  ByteCount      bytes after the header; 0 in control packets
//!   8  u32  PacketId
//!  12  u32  Checksum       sum of the bytes after the header; 0 in control packets
//!  16  ...  message
//! ```
//!
//! On a serial line one byte 0xAA follows a data packet; KDNET has none.

mod deframer;

pub use deframer::{Deframed, Deframer};

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before a packet's payload.
pub const HEADER_SIZE: usize = 16;
/// `0000`, before packets that are acknowledged.
pub const DATA_LEADER: u32 = 0x3030_3030;
/// `iiii`, before packets that are not.
pub const CONTROL_LEADER: u32 = 0x6969_6969;
/// Follows a data packet on a serial line.
pub const TRAILER: u8 = 0xaa;
/// The one byte that stops a running target.
pub const BREAK_IN: u8 = 0x62;
/// The largest ByteCount on a serial line.
pub const MAX_SERIAL: usize = 4000;
/// The largest ByteCount that a KDNET target accepts.
pub const MAX_KDNET: usize = 0x580;

/// First packet id of either side on a serial line.
pub const INITIAL_ID: u32 = 0x8080_0000;
/// Set in the first id that a serial target sends after it started.
pub const SYNC: u32 = 0x800;

/// What a packet is, by the number in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketType {
    /// Of targets older than Windows XP.
    StateChange32,
    /// A request, or its reply.
    StateManipulate,
    /// Text of the target's, and answers to it.
    DebugIo,
    /// A data packet arrived.
    Acknowledge,
    /// The last data packet is to be sent again.
    Resend,
    /// Both sides begin anew.
    Reset,
    /// The target stopped.
    StateChange64,
    /// Trace data.
    TraceIo,
    /// A request of the target's.
    ControlRequest,
    /// The target wants a file of the host's.
    FileIo,
    /// A number that nobody has described.
    Unknown(u16),
}

impl From<u16> for PacketType {
    fn from(raw: u16) -> Self {
        match raw {
            1 => PacketType::StateChange32,
            2 => PacketType::StateManipulate,
            3 => PacketType::DebugIo,
            4 => PacketType::Acknowledge,
            5 => PacketType::Resend,
            6 => PacketType::Reset,
            7 => PacketType::StateChange64,
            9 => PacketType::TraceIo,
            10 => PacketType::ControlRequest,
            11 => PacketType::FileIo,
            other => PacketType::Unknown(other),
        }
    }
}

impl From<PacketType> for u16 {
    fn from(kind: PacketType) -> Self {
        match kind {
            PacketType::StateChange32 => 1,
            PacketType::StateManipulate => 2,
            PacketType::DebugIo => 3,
            PacketType::Acknowledge => 4,
            PacketType::Resend => 5,
            PacketType::Reset => 6,
            PacketType::StateChange64 => 7,
            PacketType::TraceIo => 9,
            PacketType::ControlRequest => 10,
            PacketType::FileIo => 11,
            PacketType::Unknown(other) => other,
        }
    }
}

impl PacketType {
    /// As Microsoft's headers call it.
    pub fn name(self) -> &'static str {
        match self {
            PacketType::StateChange32 => "STATE_CHANGE32",
            PacketType::StateManipulate => "STATE_MANIPULATE",
            PacketType::DebugIo => "DEBUG_IO",
            PacketType::Acknowledge => "ACKNOWLEDGE",
            PacketType::Resend => "RESEND",
            PacketType::Reset => "RESET",
            PacketType::StateChange64 => "STATE_CHANGE64",
            PacketType::TraceIo => "TRACE_IO",
            PacketType::ControlRequest => "CONTROL_REQUEST",
            PacketType::FileIo => "FILE_IO",
            PacketType::Unknown(_) => "UNKNOWN",
        }
    }
}

/// One packet, its checksum already verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Data or control, and of which kind.
    pub packet_type: PacketType,
    /// Its own, or of control packets the one that they are about.
    pub id: u32,
    /// With data, or without.
    pub body: Body,
}

/// What follows a packet's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    Control,
    /// A message, checked by the header's sum.
    Data(Bytes),
}

/// Why bytes are no packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// So few bytes hold no header.
    #[error("{0} bytes are shorter than a packet header")]
    Short(usize),
    /// They do not begin as packets do.
    #[error("{0:#010x} is no packet leader")]
    Leader(u32),
    /// The header's length cannot be right.
    #[error("ByteCount {count} but {available} bytes follow the header")]
    ByteCount {
        /// What the header says.
        count: usize,
        /// Bytes that there are.
        available: usize,
    },
    /// The payload was damaged on its way.
    #[error("checksum {expected:#x} in the header, {computed:#x} over the bytes")]
    Checksum {
        /// The packet's id, which may be damaged as well.
        id: u32,
        /// The header's sum.
        expected: u32,
        /// The payload's.
        computed: u32,
    },
}

/// The sum of all bytes.
pub fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) leader: u32,
    pub(crate) packet_type: u16,
    pub(crate) byte_count: u16,
    pub(crate) id: u32,
    pub(crate) checksum: u32,
}

impl Header {
    pub(crate) fn parse(raw: &[u8; HEADER_SIZE]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        Header { leader: u32_at(0), packet_type: u16_at(4), byte_count: u16_at(6), id: u32_at(8), checksum: u32_at(12) }
    }
}

impl Packet {
    /// A packet without a payload.
    pub fn control(packet_type: PacketType, id: u32) -> Self {
        Packet { packet_type, id, body: Body::Control }
    }

    /// A packet that carries a message.
    pub fn data(packet_type: PacketType, id: u32, payload: impl Into<Bytes>) -> Self {
        Packet { packet_type, id, body: Body::Data(payload.into()) }
    }

    /// A KDNET body: exactly one packet, no trailer. Bytes behind ByteCount are ignored.
    pub fn parse(bytes: &Bytes) -> Result<Self, PacketError> {
        let Some(raw) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Err(PacketError::Short(bytes.len()));
        };
        let header = Header::parse(raw);
        let packet_type = PacketType::from(header.packet_type);
        match header.leader {
            CONTROL_LEADER => Ok(Packet::control(packet_type, header.id)),
            DATA_LEADER => {
                let count = usize::from(header.byte_count);
                let available = bytes.len() - HEADER_SIZE;
                if count > available {
                    return Err(PacketError::ByteCount { count, available });
                }
                let payload = bytes.slice(HEADER_SIZE..HEADER_SIZE + count);
                let computed = checksum(&payload);
                if computed != header.checksum {
                    return Err(PacketError::Checksum { id: header.id, expected: header.checksum, computed });
                }
                Ok(Packet::data(packet_type, header.id, payload))
            }
            leader => Err(PacketError::Leader(leader)),
        }
    }

    /// As a KDNET body.
    pub fn encode(&self) -> Bytes {
        self.encode_with(&[])
    }

    /// As serial bytes, with the trailer where one belongs.
    pub fn encode_serial(&self) -> Bytes {
        match self.body {
            Body::Control => self.encode_with(&[]),
            Body::Data(_) => self.encode_with(&[TRAILER]),
        }
    }

    fn encode_with(&self, trailer: &[u8]) -> Bytes {
        let (leader, payload) = match &self.body {
            Body::Control => (CONTROL_LEADER, &[][..]),
            Body::Data(payload) => (DATA_LEADER, &payload[..]),
        };
        let mut bytes = BytesMut::with_capacity(HEADER_SIZE + payload.len() + trailer.len());
        bytes.put_u32_le(leader);
        bytes.put_u16_le(self.packet_type.into());
        bytes.put_u16_le(payload.len() as u16);
        bytes.put_u32_le(self.id);
        bytes.put_u32_le(checksum(payload));
        bytes.put_slice(payload);
        bytes.put_slice(trailer);
        bytes.freeze()
    }
}
