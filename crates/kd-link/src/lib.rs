#![doc = include_str!("../README.md")]
//!
//! Carriers of KD traffic, and layers that can be put around any of them.
//!
//! [`KdSpec::parse`] reads a `-k` string, [`open`] gives the [`Link`] it names. A layer ([`Trace`], [`Capture`],
//! [`Faults`], [`RateLimit`]) takes a link and is one.

mod capture;
mod delay;
mod error;
mod faults;
mod host;
mod pcap;
mod rate;
mod spec;
mod stream;
mod trace;
mod udp;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use bytes::Bytes;

pub use capture::Capture;
pub use error::OpenError;
pub use faults::{FaultRates, Faults};
pub use host::{local_address_toward, local_addresses, normalised, serial_devices};
pub use pcap::{CaptureError, CaptureReader, Captured, CapturedData, Direction, Skipped};
pub use rate::RateLimit;
pub use spec::{
    DEFAULT_BAUD, KEY_VARIABLE, KdSpec, KeyText, NetSpec, NetTarget, PipeSpec, SerialSpec, SpecError, TcpSpec,
};
pub use stream::{StreamLink, Waiting};
pub use trace::Trace;
pub use udp::UdpLink;

/// What a link's methods return, so that layers can hold any link in a box.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a carrier moves: a piece of a byte stream (serial, pipe, TCP) or one datagram (KDNET).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A piece of a stream, cut anywhere.
    Bytes(Bytes),
    /// One datagram, whole.
    Datagram {
        /// Whom it came from, or goes to.
        peer: SocketAddr,
        /// Its payload.
        data: Bytes,
    },
    /// Received only, from a stream with `reconnect`: it has just been opened, for the first time or again. Bytes
    /// sent before did not arrive, and half a received packet will not be completed.
    Reopened,
}

/// One carrier, or a layer around one. Cancelling `recv` loses nothing.
pub trait Link: Send {
    /// The next piece from the target. `Ok(None)` is the end of a stream that will not come back.
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>>;
    /// Hands a frame to the carrier; ready when that has taken it.
    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>>;
    /// One line for people: `UDP port 50000`, `/dev/ttyUSB0 at 115200 baud`.
    fn describe(&self) -> String;
}

/// Opens the carrier that `spec` names.
///
/// A stream with `reconnect` opens at once and connects in [`Link::recv`], which then gives [`Frame::Reopened`].
pub async fn open(spec: &KdSpec) -> Result<Box<dyn Link>, OpenError> {
    open_reporting(spec, Box::new(|_| {})).await
}

/// As [`open`]; `waiting` is told why a stream with `reconnect` does not open.
pub async fn open_reporting(spec: &KdSpec, waiting: Waiting) -> Result<Box<dyn Link>, OpenError> {
    Ok(match spec {
        KdSpec::Net(net) => Box::new(UdpLink::bind(net)?),
        KdSpec::Serial(serial) => Box::new(StreamLink::serial(serial.clone())?.reporting(waiting)),
        KdSpec::Pipe(pipe) => Box::new(StreamLink::pipe(pipe.clone()).await?.reporting(waiting)),
        KdSpec::Tcp(tcp) => Box::new(StreamLink::tcp(tcp.clone()).await?.reporting(waiting)),
    })
}

/// Every address of `host`, at `port`. Never empty.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, OpenError> {
    let unresolved = |source| OpenError::Resolve { name: host.to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?.collect();
    if addresses.is_empty() {
        return Err(unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(addresses)
}

fn wrong_frame(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
