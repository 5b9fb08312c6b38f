//! The host's end of a KD connection, without I/O.
//!
//! The caller owns the socket and the clock. Time is a [`Duration`] since any epoch that does not change. After each
//! call that takes `now`, drain [`HostSession::poll_transmit`] to the carrier and [`HostSession::poll_event`], then
//! arm one timer for [`HostSession::poll_timeout`] and call [`HostSession::handle_timeout`] when it fires:
//!
//! ```text
//! bytes arrive  -> handle_bytes / handle_datagram  \
//! timer fires   -> handle_timeout                   > poll_transmit*, poll_event*, poll_timeout
//! user acts     -> request, synchronise, break_in  /
//! ```
//!
//! Acknowledgements are queued inside `handle_*`; send them before anything slow, because some targets give a
//! debugger up for lost after 0.7 s.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use crate::kdnet::Key;
use crate::message::manipulate::{ManipulateReply, Request};
use crate::message::{FileIoReply, FileIoRequest, StateChange};

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
    /// Where to ask for an offer instead of waiting for one (`target=`).
    pub target: Option<SocketAddr>,
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
    /// Data of a session whose key we do not have; an offer will come.
    UnknownSession {
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

/// The host's end of one connection.
pub struct HostSession {}

impl HostSession {
    /// A session over a byte stream: serial line, pipe or TCP.
    pub fn serial(_config: SerialConfig) -> Self {
        unimplemented!()
    }

    /// A session over KDNET.
    pub fn kdnet(_config: KdnetConfig) -> Self {
        unimplemented!()
    }

    /// Bytes of the stream.
    pub fn handle_bytes(&mut self, _now: Duration, _bytes: &[u8]) {
        unimplemented!()
    }

    /// One UDP payload.
    pub fn handle_datagram(&mut self, _now: Duration, _peer: SocketAddr, _payload: &[u8]) {
        unimplemented!()
    }

    /// The time that [`HostSession::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, _now: Duration) {
        unimplemented!()
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        unimplemented!()
    }

    /// When [`HostSession::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        unimplemented!()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }

    /// Works towards a state change: listens briefly, then alternates break-in and RESET until one comes. Without
    /// `break_in` only RESETs are sent, which a running target ignores.
    pub fn synchronise(&mut self, _now: Duration, _break_in: bool) {
        unimplemented!()
    }

    /// Stops a running target: sends the break-in byte until a state change comes.
    pub fn break_in(&mut self, _now: Duration) {
        unimplemented!()
    }

    /// Ends [`HostSession::synchronise`] and [`HostSession::break_in`] without a state change.
    pub fn stand_by(&mut self) {
        unimplemented!()
    }

    /// Asks the stopped target. Ends with [`Event::Reply`], [`Event::Sent`] or [`Event::RequestFailed`].
    pub fn request(&mut self, _now: Duration, _processor: u16, _request: Request) -> Result<(), Busy> {
        unimplemented!()
    }

    /// Gives the outstanding request up; [`Event::RequestFailed`] follows.
    pub fn cancel(&mut self, _now: Duration) {
        unimplemented!()
    }

    /// Answers the last [`Event::Prompt`].
    pub fn answer_prompt(&mut self, _now: Duration, _answer: &[u8]) {
        unimplemented!()
    }

    /// Answers the last [`Event::FileIo`]; [`FileIoRequest::refuse`] is WinDbg's answer without a file mapping.
    pub fn answer_file(&mut self, _now: Duration, _reply: FileIoReply) {
        unimplemented!()
    }

    /// The address of this host that the KDNET target says it is configured for.
    pub fn configured_host(&self) -> Option<IpAddr> {
        unimplemented!()
    }
}
