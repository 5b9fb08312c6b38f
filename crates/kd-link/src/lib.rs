//! Carriers of KD traffic.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a carrier moves: a piece of a byte stream (serial, pipe, TCP) or one datagram (KDNET).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Bytes(Bytes),
    Datagram { peer: SocketAddr, data: Bytes },
}

/// One carrier, or a layer around one. Cancelling `recv` loses nothing.
pub trait Link: Send {
    /// The next piece from the target. `Ok(None)` is the end of a stream that will not come back.
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>>;
    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>>;
    /// One line for people: `UDP port 50000`, `/dev/ttyUSB0 at 115200 baud`.
    fn describe(&self) -> String;
}
