//! Writes what passes into a pcapng file.
//!
//! A datagram is written as an IPv4 or IPv6 packet with a UDP header (link type RAW), so that Wireshark reads it. A
//! piece of a byte stream is written as one packet of link type USER0 holding just the bytes. In both, the
//! `epb_flags` option says the direction: inbound is from the target. [`CaptureReader`](crate::CaptureReader) reads
//! both back.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use etherparse::PacketBuilder;

use crate::pcap::{Direction, LINKTYPE_RAW, LINKTYPE_USER0};
use crate::{BoxFuture, Frame, Link, local_address_toward};

/// What a target's datagrams carry; the headers written here are made up, so any value does.
const TTL: u8 = 64;

/// Copies every frame to a pcapng file. A file that cannot be written any more is reported once, as a warning, and
/// the session goes on without it.
pub struct Capture {
    inner: Box<dyn Link>,
    writer: Option<Box<dyn Write + Send>>,
    /// The UDP port of this host; byte streams do not use it.
    port: u16,
    /// The peer last seen and this host's address toward it.
    route: Option<(IpAddr, IpAddr)>,
}

impl Capture {
    /// Starts a capture file. `port` is the UDP port that `inner` is bound to (0 for a byte stream).
    pub fn new(inner: Box<dyn Link>, mut writer: Box<dyn Write + Send>, port: u16) -> io::Result<Self> {
        let mut start = Vec::new();
        // Section header: byte order, version 1.0, length of the section not known.
        let section: Vec<u8> =
            [&0x1a2b_3c4d_u32.to_le_bytes()[..], &1u16.to_le_bytes(), &0u16.to_le_bytes(), &[0xff; 8]].concat();
        block(&mut start, 0x0a0d_0d0a, &section);
        // Interfaces 0 and 1; no snap length.
        for link_type in [LINKTYPE_RAW, LINKTYPE_USER0] {
            let interface = [&(link_type as u16).to_le_bytes()[..], &[0; 6]].concat();
            block(&mut start, 1, &interface);
        }
        writer.write_all(&start)?;
        Ok(Self { inner, writer: Some(writer), port, route: None })
    }

    fn record(&mut self, direction: Direction, frame: &Frame) {
        let (interface, packet) = match frame {
            Frame::Bytes(data) => (1, data.to_vec()),
            Frame::Datagram { peer, data } => (0, self.packet(direction, *peer, data)),
            Frame::Reopened => return,
        };
        let Some(writer) = &mut self.writer else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let length = (packet.len() as u32).to_le_bytes();
        let flags: u32 = match direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        let mut body = Vec::with_capacity(packet.len() + 40);
        for field in [interface, (now >> 32) as u32, now as u32] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(&length);
        body.extend_from_slice(&length);
        body.extend_from_slice(&packet);
        body.resize(body.len().next_multiple_of(4), 0);
        // Option epb_flags (code 2, length 4), then the end of the options.
        body.extend_from_slice(&[2, 0, 4, 0]);
        body.extend_from_slice(&flags.to_le_bytes());
        body.extend_from_slice(&[0; 4]);
        let mut whole = Vec::with_capacity(body.len() + 12);
        block(&mut whole, 6, &body);
        // Flushed at once: a capture is wanted most when the session ends badly.
        if let Err(error) = writer.write_all(&whole).and_then(|()| writer.flush()) {
            tracing::warn!(%error, "the capture file cannot be written; nothing more is captured");
            self.writer = None;
        }
    }

    fn packet(&mut self, direction: Direction, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        let host = match self.route {
            Some((known, host)) if known == peer.ip() => host,
            _ => {
                let unspecified: IpAddr =
                    if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let host = local_address_toward(peer.ip()).unwrap_or(unspecified);
                self.route = Some((peer.ip(), host));
                host
            }
        };
        let host = SocketAddr::new(host, self.port);
        let (from, to) = match direction {
            Direction::Inbound => (peer, host),
            Direction::Outbound => (host, peer),
        };
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
            (from, to) => PacketBuilder::ipv6(as_v6(from).octets(), as_v6(to).octets(), TTL),
        };
        let mut packet = Vec::with_capacity(data.len() + 48);
        // Fails only for a payload no UDP datagram can have; what was built so far is then a truncated packet.
        if let Err(error) = builder.udp(from.port(), to.port()).write(&mut packet, data) {
            tracing::warn!(%error, "a datagram does not fit into a capture packet");
        }
        packet
    }
}

fn as_v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Appends a pcapng block: type, length, body (already padded to four bytes), length.
fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = (body.len() as u32 + 12).to_le_bytes();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&length);
    out.extend_from_slice(body);
    out.extend_from_slice(&length);
}

impl Link for Capture {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async {
            let received = self.inner.recv().await?;
            if let Some(frame) = &received {
                self.record(Direction::Inbound, frame);
            }
            Ok(received)
        })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.record(Direction::Outbound, &frame);
            self.inner.send(frame).await
        })
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
