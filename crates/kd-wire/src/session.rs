//! The two ends of a KD connection, without I/O: [`HostSession`] and [`TargetSession`].
//!
//! The caller owns the socket and the clock. Time is a [`Duration`](std::time::Duration) since any epoch that does
//! not change. After each call that takes `now`, drain [`HostSession::poll_transmit`] to the carrier and
//! [`HostSession::poll_event`], then arm one timer for [`HostSession::poll_timeout`] and call
//! [`HostSession::handle_timeout`] when it fires:
//!
//! ```text
//! bytes arrive  -> handle_bytes / handle_datagram  \
//! timer fires   -> handle_timeout                   > poll_transmit*, poll_event*, poll_timeout
//! user acts     -> request, synchronise, break_in  /
//! ```
//!
//! Acknowledgements are queued inside `handle_*`; send them before anything slow, because some targets give a
//! debugger up for lost after 0.7 s.

mod association;
mod host;
mod target;
mod timing;

use std::collections::VecDeque;
use std::net::SocketAddr;

pub use host::HostSession;
pub use target::{TargetConfig, TargetEvent, TargetSession};

use bytes::Bytes;

use crate::kdnet::Key;
use crate::message::{FileIoRequest, ManipulateReply, StateChange};

/// How a serial line behaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SerialConfig {
    /// Of a real line; sets how long a packet is on its way. `None` for pipes and TCP.
    pub baud: Option<u32>,
    /// How many RESET packets are sent while synchronising; 0 is no limit, as in WinDbg's `resets=`.
    pub resets: u32,
}

/// How a KDNET host behaves.
#[derive(Debug, Clone)]
pub struct KdnetConfig {
    pub key: Key,
    /// Where to ask for an offer instead of waiting for one (`target=`): the addresses of one target.
    pub targets: Vec<SocketAddr>,
    /// 32 random bytes; the host's part of every data key is derived from them.
    pub seed: [u8; 32],
}

/// Bytes to send. For streams one write, for KDNET one datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// `None` on a stream.
    pub peer: Option<SocketAddr>,
    pub data: Bytes,
}

/// What the session has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// KDNET: keys are agreed with this peer. Streams: the first packet came in.
    Connected { peer: Option<SocketAddr> },
    /// KDNET: the target is the same, its address is new.
    PeerMoved { peer: SocketAddr },
    /// The target started anew: breakpoints, modules and outstanding requests are gone.
    TargetRestarted,
    /// The target stands still.
    StateChange(StateChange),
    /// The answer to the outstanding request.
    Reply(ManipulateReply),
    /// The outstanding request, one that is never answered (Continue and the like), was acknowledged.
    Sent,
    /// The outstanding request is over without an answer.
    RequestFailed { reason: RequestFailure },
    /// DbgPrint.
    Print { processor: u16, text: Bytes },
    /// DbgPrompt: the target waits for [`HostSession::answer_prompt`].
    Prompt { processor: u16, text: Bytes },
    /// The target waits for [`HostSession::answer_file`].
    FileIo(FileIoRequest),
    /// What somebody who wonders why it does not work wants to know.
    Diagnostic(Diagnostic),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    #[error("the target did not acknowledge the request")]
    NotAcknowledged,
    #[error("the target acknowledged the request but did not answer it")]
    NotAnswered,
    #[error("the target restarted")]
    TargetRestarted,
    #[error("the target reported another stop instead of answering")]
    StoppedAnew,
    #[error("the request was given up")]
    Cancelled,
    #[error("the request is longer than a packet may be")]
    TooLong,
}

/// A request is outstanding already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another request is outstanding")]
pub struct Busy;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnostic {
    /// It looks like KDNET but does not authenticate: the key differs, or it was damaged.
    AuthenticationFailed {
        peer: SocketAddr,
    },
    /// Data sealed with a key that we do not have: of an earlier session, or damaged. An offer will come.
    UnknownSession {
        peer: SocketAddr,
    },
    /// Sent by a host, not by a target: our own datagram came back, or two debuggers talk to each other.
    OwnDirection {
        peer: SocketAddr,
    },
    /// Authentic, but seen before.
    Replayed {
        peer: SocketAddr,
    },
    /// Not a KDNET datagram.
    NotKdnet {
        peer: SocketAddr,
        length: usize,
    },
    /// KDNET of a version nobody has described.
    UnsupportedVersion {
        peer: SocketAddr,
        version: u8,
    },
    /// Another machine uses the same key and port; it is not answered.
    ForeignHost {
        peer: SocketAddr,
    },
    /// An offer, and whom the target is configured for and connected to.
    Offer {
        peer: SocketAddr,
        configured: SocketAddr,
        connected: Option<SocketAddr>,
    },
    /// Bytes between packets: boot text, or a wrong baud rate.
    SerialNoise {
        bytes: usize,
    },
    BadChecksum,
    BadTrailer {
        found: u8,
    },
    /// A packet longer than the protocol allows.
    TooLong {
        count: usize,
    },
    /// A packet that is not what its type promises.
    Malformed {
        reason: String,
    },
    /// A packet of a type that this host cannot use.
    UnexpectedPacket {
        packet_type: u16,
    },
    /// A request or answer is sent again, for the n-th time.
    Retransmit {
        count: u32,
    },
    /// A Continue (or the like) was never acknowledged, but the target went silent as one that runs does.
    NotAcknowledged,
    /// A request is asked anew, because its answer was lost.
    Reissued {
        count: u32,
    },
    /// The packet ids had come apart and are aligned again.
    Resynchronised,
    /// A reply to no outstanding request, dropped.
    StaleReply {
        api: u32,
    },
    /// The target asks again and again; it is answered more slowly from now on.
    ResendStorm,
}

/// What waits to be drained.
#[derive(Default)]
struct Output {
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    break_ins: u32,
}

impl Output {
    fn diagnose(&mut self, diagnostic: Diagnostic) {
        self.events.push_back(Event::Diagnostic(diagnostic));
    }
}
