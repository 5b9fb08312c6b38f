//! KD packets: header, types, ids.
//!
//! ```text
//!  0 u32 leader   30303030 data, 69696969 control
//!  4 u16 type
//!  6 u16 bytes that follow the header (0 for control)
//!  8 u32 id
//! 12 u32 checksum: sum of those bytes
//! 16     the bytes; a serial data packet ends with one more byte, AA
//! ```

pub(crate) const TRAILER: u8 = 0xaa;
pub(crate) const BREAK_IN: u8 = 0x62;
/// Largest payload of a serial packet.
pub(crate) const SERIAL_LIMIT: usize = 4000;
/// Largest payload of a KDNET packet.
pub(crate) const KDNET_LIMIT: usize = 0x580;

pub(crate) const STATE_MANIPULATE: u16 = 2;
pub(crate) const DEBUG_IO: u16 = 3;
pub(crate) const ACKNOWLEDGE: u16 = 4;
pub(crate) const RESEND: u16 = 5;
pub(crate) const RESET: u16 = 6;
pub(crate) const STATE_CHANGE64: u16 = 7;
pub(crate) const FILE_IO: u16 = 11;

/// A data packet as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) kind: u16,
    pub(crate) id: u32,
    pub(crate) payload: Vec<u8>,
    /// Whole, of a legal size, with the right checksum and trailer.
    pub(crate) intact: bool,
}

/// What a line delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Acknowledge(u32),
    Resend,
    Reset(u32),
    Data(Data),
    BreakIn,
    /// KDNET: a body too short to be a packet. The stub repeats what it said last.
    Scrap,
    /// KDNET: a packet with an unknown leader or control type.
    Unknown,
    /// KDNET: a host has a new data key.
    Connected,
    Timeout,
}

pub(crate) fn checksum(payload: &[u8]) -> u32 {
    payload.iter().fold(0, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

pub(crate) fn data(kind: u16, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x30; 4];
    packet.extend(kind.to_le_bytes());
    packet.extend((payload.len() as u16).to_le_bytes());
    packet.extend(id.to_le_bytes());
    packet.extend(checksum(payload).to_le_bytes());
    packet.extend(payload);
    packet
}

pub(crate) fn control(kind: u16, id: u32) -> Vec<u8> {
    let mut packet = vec![0x69; 4];
    packet.extend(kind.to_le_bytes());
    packet.extend([0, 0]);
    packet.extend(id.to_le_bytes());
    packet.extend([0; 4]);
    packet
}

/// The fields behind the leader.
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) count: usize,
    pub(crate) id: u32,
    pub(crate) checksum: u32,
}

impl Header {
    /// From the twelve bytes behind the leader.
    pub(crate) fn parse(bytes: &[u8; 12]) -> Header {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Header { kind: word(0) as u16, count: (word(0) >> 16) as usize, id: word(4), checksum: word(8) }
    }

    /// The event of a control packet.
    pub(crate) fn control(&self) -> Event {
        match self.kind {
            ACKNOWLEDGE => Event::Acknowledge(self.id),
            RESEND => Event::Resend,
            RESET => Event::Reset(self.id),
            _ => Event::Unknown,
        }
    }
}

/// The body of a KDNET data datagram.
pub(crate) fn parse_body(body: &[u8]) -> Event {
    let Some((leader, rest)) = body.split_first_chunk::<4>() else {
        return if body.first() == Some(&BREAK_IN) { Event::BreakIn } else { Event::Scrap };
    };
    let Some((fields, payload)) = rest.split_first_chunk::<12>() else {
        return if leader[0] == BREAK_IN { Event::BreakIn } else { Event::Scrap };
    };
    let header = Header::parse(fields);
    match leader {
        [0x69, 0x69, 0x69, 0x69] => header.control(),
        [0x30, 0x30, 0x30, 0x30] => {
            let whole = payload.get(..header.count);
            let payload = whole.unwrap_or_default().to_vec();
            let intact = whole.is_some() && header.count <= KDNET_LIMIT && checksum(&payload) == header.checksum;
            Event::Data(Data { kind: header.kind, id: header.id, payload, intact })
        }
        _ => Event::Unknown,
    }
}

const INITIAL: u32 = 0x8080_0000;
const SYNC: u32 = 0x800;

/// The packet ids of one direction each, by the rules of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    Serial { transmit: u32, expected: u32 },
    Kdnet { transmit: u32, expected: u32 },
}

impl Ids {
    /// A stub that starts, or that gave its debugger up.
    pub(crate) fn serial() -> Ids {
        Ids::Serial { transmit: INITIAL | SYNC, expected: INITIAL }
    }

    pub(crate) fn kdnet(first: u32) -> Ids {
        Ids::Kdnet { transmit: first, expected: 0x8000_0000 }
    }

    pub(crate) fn transmit(&self) -> u32 {
        match self {
            Ids::Serial { transmit, .. } | Ids::Kdnet { transmit, .. } => *transmit,
        }
    }

    /// The id an ACK of my packet carries.
    pub(crate) fn awaited(&self) -> u32 {
        match self {
            Ids::Serial { transmit, .. } => transmit & !SYNC,
            Ids::Kdnet { transmit, .. } => *transmit,
        }
    }

    /// My packet was acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        match self {
            Ids::Serial { transmit, .. } => *transmit = (*transmit & !SYNC) ^ 1,
            Ids::Kdnet { transmit, .. } => *transmit = transmit.wrapping_add(2),
        }
    }

    /// I took a packet with this id.
    pub(crate) fn accepted(&mut self, id: u32) {
        match self {
            Ids::Serial { expected, .. } => *expected ^= 1,
            Ids::Kdnet { expected, .. } => {
                let next = expected.wrapping_add(2);
                let after = id.wrapping_add(2);
                *expected = if after.wrapping_sub(next) as i32 > 0 { after } else { next };
            }
        }
    }

    /// A RESET came in; returns the id that the answering RESET carries.
    pub(crate) fn reset(&mut self, id: u32) -> u32 {
        match self {
            Ids::Serial { transmit, expected } => {
                (*transmit, *expected) = (INITIAL, INITIAL);
                0
            }
            Ids::Kdnet { transmit, expected } => {
                *expected = id;
                *transmit
            }
        }
    }

    /// Whether a data packet that comes instead of an ACK shows that the host goes on.
    pub(crate) fn implies_acknowledge(&self, id: u32, version: u8) -> bool {
        match self {
            Ids::Serial { expected, .. } => id == *expected,
            Ids::Kdnet { expected, .. } if version == 2 => id == *expected,
            Ids::Kdnet { expected, .. } => id.wrapping_sub(*expected) as i32 >= 0,
        }
    }

    pub(crate) fn standing(&self, id: u32) -> Standing {
        match self {
            Ids::Serial { expected, .. } if id == *expected => Standing::Expected,
            Ids::Serial { .. } if id & !1 == INITIAL => Standing::Duplicate,
            Ids::Serial { .. } => Standing::Illegal,
            // An idle KDNET stub does not look at the id.
            Ids::Kdnet { .. } => Standing::Expected,
        }
    }
}

/// What an idle stub thinks of a packet's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Expected,
    Duplicate,
    Illegal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_vectors() {
        let mut ids = Ids::serial();
        let print = data(DEBUG_IO, ids.transmit(), b"\x30\x32\0\0\0\0\0\0\x03\0\0\0\0\0\0\0hi\n");
        assert_eq!(print[..16], *b"\x30\x30\x30\x30\x03\0\x13\0\0\x08\x80\x80\x40\x01\0\0");
        assert_eq!(ids.awaited(), 0x8080_0000);
        ids.acknowledged();
        assert_eq!(ids.transmit(), 0x8080_0001);
        assert_eq!(control(ACKNOWLEDGE, 0x8080_0000), *b"iiii\x04\0\0\0\0\0\x80\x80\0\0\0\0");
        assert_eq!(control(RESEND, 0), *b"iiii\x05\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn kdnet_ids_count() {
        let mut ids = Ids::kdnet(0x926);
        ids.acknowledged();
        assert_eq!(ids.awaited(), 0x928);
        assert_eq!(ids.reset(0x8000_0060), 0x928);
        assert!(ids.implies_acknowledge(0x8000_0062, 4) && !ids.implies_acknowledge(0x8000_0062, 2));
        assert!(!ids.implies_acknowledge(0x8000_005e, 4));
        ids.accepted(0x8000_0064);
        assert_eq!(ids, Ids::Kdnet { transmit: 0x928, expected: 0x8000_0066 });
        ids.accepted(0x8000_0000);
        assert_eq!(ids, Ids::Kdnet { transmit: 0x928, expected: 0x8000_0068 });
    }

    #[test]
    fn bodies() {
        assert_eq!(parse_body(b"b"), Event::BreakIn);
        assert_eq!(parse_body(&[0; 12]), Event::Scrap);
        assert_eq!(parse_body(&control(RESET, 7)), Event::Reset(7));
        assert_eq!(parse_body(&[1; 16]), Event::Unknown);
        let mut packet = data(2, 5, &[1, 2, 3]);
        assert_eq!(parse_body(&packet), Event::Data(Data { kind: 2, id: 5, payload: vec![1, 2, 3], intact: true }));
        packet.truncate(18);
        assert!(matches!(parse_body(&packet), Event::Data(Data { intact: false, .. })));
    }
}
