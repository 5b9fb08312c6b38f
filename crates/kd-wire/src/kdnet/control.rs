//! What the two ends say to each other about the connection itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of an offer's body.
pub const OFFER_SIZE: usize = 344;
/// Bytes of a response's body.
pub const RESPONSE_SIZE: usize = 322;

/// Control channel, target to host, every 3 s.
///
/// ```text
///   0  01 01
///   2  u64   counter, one more per offer    \ the nonce
///  10  24 B  constant for one boot          /
///  34  16 B  target address    50  u16 BE  port
///  52  16 B  configured host   68  u16 BE  port
///  70  16 B  connected host    86  u16 BE  port, 0: no data channel
///  88  256 B zero
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// A counter, one more each offer, and 24 bytes that are constant for one boot.
    pub nonce: [u8; 32],
    /// Where the target believes to be.
    pub target: SocketAddr,
    /// The host of its boot configuration.
    pub configured: SocketAddr,
    /// The host it has a data channel with.
    pub connected: Option<SocketAddr>,
}

impl Offer {
    /// `None` when it is no offer.
    pub fn decode(body: &[u8]) -> Option<Self> {
        if body.len() != OFFER_SIZE || body[..2] != [1, 1] {
            return None;
        }
        let mut nonce = [0; 32];
        nonce.copy_from_slice(&body[2..34]);
        let connected = address(&body[70..88]);
        Some(Offer {
            nonce,
            target: address(&body[34..52]),
            configured: address(&body[52..70]),
            connected: (connected.port() != 0).then_some(connected),
        })
    }

    /// As it is sealed.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(OFFER_SIZE);
        body.put_slice(&[1, 1]);
        body.put_slice(&self.nonce);
        let none = SocketAddr::from(([0, 0, 0, 0], 0));
        for address in [self.target, self.configured, self.connected.unwrap_or(none)] {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            body.put_slice(&ip.octets());
            body.put_u16(address.port());
        }
        body.resize(OFFER_SIZE, 0);
        body.freeze()
    }

    /// What tells one boot of a target from another: the nonce without its counter.
    pub fn boot(&self) -> [u8; 24] {
        std::array::from_fn(|i| self.nonce[8 + i])
    }
}

fn address(bytes: &[u8]) -> SocketAddr {
    let octets: [u8; 16] = std::array::from_fn(|i| bytes[i]);
    SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), u16::from_be_bytes([bytes[16], bytes[17]]))
}

/// Control channel, host to target. Its whole body goes into the data key.
///
/// ```text
///   0  01 02
///   2  32 B  the offer's nonce
///  34  32 B  random
///  66  256 B zero
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// That of the offer that it answers.
    pub nonce: [u8; 32],
    /// The host's part of the session's data key.
    pub random: [u8; 32],
}

impl Response {
    /// `None` when it is no response.
    pub fn decode(body: &[u8]) -> Option<Self> {
        if body.len() != RESPONSE_SIZE || body[..2] != [1, 2] {
            return None;
        }
        Some(Response { nonce: std::array::from_fn(|i| body[2 + i]), random: std::array::from_fn(|i| body[34 + i]) })
    }

    /// As it is sealed.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(RESPONSE_SIZE);
        body.put_slice(&[1, 2]);
        body.put_slice(&self.nonce);
        body.put_slice(&self.random);
        body.resize(RESPONSE_SIZE, 0);
        body.freeze()
    }
}

/// Data channel, target to host: the new key works. Not a KD packet.
///
/// ```text
///   0  u64  last valid sequence of the host
///   8  u32  the host's IPv4 address
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// The last sequence number of the host that the target took.
    pub last_sequence: u64,
    /// The host's IPv4 address.
    pub host: u32,
}

impl Ping {
    /// Bytes of its body.
    pub const SIZE: usize = 12;

    /// `None` when it is no ping.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let body = <&[u8; Self::SIZE]>::try_from(body).ok()?;
        let (sequence, host) = body.split_at(8);
        Some(Ping {
            last_sequence: sequence.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)),
            host: host.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)),
        })
    }

    /// As it is sealed.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut body = [0; Self::SIZE];
        body[..8].copy_from_slice(&self.last_sequence.to_le_bytes());
        body[8..].copy_from_slice(&self.host.to_le_bytes());
        body
    }
}
