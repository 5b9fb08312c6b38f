//! KDNET's carrier: one UDP port, over IPv4 and IPv6.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::host::normalised;
use crate::{BoxFuture, Frame, Link, NetSpec, NetTarget, OpenError};

/// What the kernel may queue while the session is busy; a target sends its debug prints in bursts.
const RECEIVE_BUFFER: usize = 1 << 20;
/// No UDP payload is longer.
const LARGEST_DATAGRAM: usize = 65_535;

/// A bound UDP port. Loss is normal here: ICMP complaints about a target that is away never end the link.
pub struct UdpLink {
    sockets: Sockets,
    port: u16,
    buffers: [Vec<u8>; 2],
}

enum Sockets {
    /// One socket for IPv4, IPv6, or both; `mapped` when IPv4 goes through an IPv6 socket.
    One { socket: UdpSocket, mapped: bool },
    /// A system without dual-stack sockets.
    Both { v4: UdpSocket, v6: UdpSocket },
}

impl UdpLink {
    /// Binds the port of `spec`, for the address family that `target=` forces, or for both.
    pub fn bind(spec: &NetSpec) -> Result<Self, OpenError> {
        let one = |socket| Sockets::One { socket, mapped: false };
        let sockets = match &spec.target {
            Some(NetTarget::AnyV4) => v4_socket(spec.port).map(one),
            Some(NetTarget::AnyV6) => v6_socket(spec.port, true).map(one),
            Some(NetTarget::Host(_)) | None => both_families(spec.port),
        };
        let sockets = sockets.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => OpenError::PortTaken { port: spec.port, source },
            io::ErrorKind::PermissionDenied => OpenError::PortForbidden { port: spec.port, source },
            _ => OpenError::Other { what: format!("UDP port {}", spec.port), source },
        })?;
        let buffers = match &sockets {
            Sockets::One { .. } => [vec![0; LARGEST_DATAGRAM], Vec::new()],
            Sockets::Both { .. } => [vec![0; LARGEST_DATAGRAM], vec![0; LARGEST_DATAGRAM]],
        };
        Ok(Self { sockets, port: spec.port, buffers })
    }

    async fn recv_datagram(&mut self) -> io::Result<Frame> {
        let [first, second] = &mut self.buffers;
        loop {
            let (result, buffer) = match &self.sockets {
                Sockets::One { socket, .. } => (socket.recv_from(first).await, &*first),
                Sockets::Both { v4, v6 } => tokio::select! {
                    result = v4.recv_from(first) => (result, &*first),
                    result = v6.recv_from(second) => (result, &*second),
                },
            };
            match result {
                Ok((length, peer)) => {
                    let data = Bytes::copy_from_slice(&buffer[..length]);
                    return Ok(Frame::Datagram { peer: normalised(peer), data });
                }
                Err(error) if is_network_weather(&error) => {
                    tracing::debug!(%error, port = self.port, "the network reports a datagram it could not deliver");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn send_datagram(&self, peer: SocketAddr, data: &[u8]) -> io::Result<()> {
        let (socket, address) = match (&self.sockets, peer) {
            (Sockets::One { socket, mapped: true }, SocketAddr::V4(v4)) => {
                (socket, SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into())
            }
            (Sockets::One { socket, .. }, _) => (socket, peer),
            (Sockets::Both { v4, .. }, SocketAddr::V4(_)) => (v4, peer),
            (Sockets::Both { v6, .. }, SocketAddr::V6(_)) => (v6, peer),
        };
        // A pending ICMP error is reported by the next call instead of sending, so once more is needed.
        for attempt in 0..2 {
            match socket.send_to(data, address).await {
                Ok(_) => return Ok(()),
                Err(error) if is_network_weather(&error) => {
                    tracing::debug!(%error, %peer, attempt, "the network refuses a datagram");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Link for UdpLink {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async { self.recv_datagram().await.map(Some) })
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            match frame {
                Frame::Datagram { peer, data } => self.send_datagram(peer, &data).await,
                Frame::Bytes(_) | Frame::Reopened => Err(crate::wrong_frame("a UDP link sends datagrams")),
            }
        })
    }

    fn describe(&self) -> String {
        format!("UDP port {}", self.port)
    }
}

impl NetSpec {
    /// The addresses to poke for `target=HOST`: every address of the name, at this port. Empty when the target is
    /// the one to speak first.
    pub async fn target_addresses(&self) -> Result<Vec<SocketAddr>, OpenError> {
        match &self.target {
            Some(NetTarget::Host(host)) => crate::resolve(host, self.port).await,
            _ => Ok(Vec::new()),
        }
    }
}

fn both_families(port: u16) -> io::Result<Sockets> {
    match v6_socket(port, false) {
        Ok(socket) => Ok(Sockets::One { socket, mapped: true }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            tracing::debug!(%error, "no dual-stack socket");
            let v4 = v4_socket(port)?;
            match v6_socket(port, true) {
                Ok(v6) => Ok(Sockets::Both { v4, v6 }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
                // A host without IPv6.
                Err(_) => Ok(Sockets::One { socket: v4, mapped: false }),
            }
        }
    }
}

fn v4_socket(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    bound(socket, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
}

fn v6_socket(port: u16, only_v6: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(only_v6)?;
    bound(socket, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
}

fn bound(socket: Socket, address: SocketAddr) -> io::Result<UdpSocket> {
    if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!(%error, "the receive buffer keeps its size");
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Errors that say "not delivered", which for a datagram is only loss.
fn is_network_weather(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
            | AddrNotAvailable
            | Interrupted
    )
}
