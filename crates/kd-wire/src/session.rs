//! The two ends of a KD connection, without I/O: [`HostSession`] and [`TargetSession`].
//!
//! The caller owns the socket and the clock. Time is a [`Duration`](std::time::Duration) since any epoch that does
//! not change, and never goes backwards.
//!
//! # How a session is driven
//!
//! ```text
//! bytes arrive  -> handle_bytes / handle_datagram  \
//! timer fires   -> handle_timeout                   > poll_transmit*, poll_event*, poll_timeout
//! user acts     -> request, synchronise, break_in  /
//! ```
//!
//! * **After every call that changes the session** (all that take `&mut self` and are no `poll_`), first
//!   [`HostSession::poll_transmit`] until it is `None`, each to the carrier, then [`HostSession::poll_event`] until it is
//!   `None`. Both only hand out what is there; neither makes anything new. Acknowledgements are among what is sent: send
//!   before anything slow, because some targets give a debugger up for lost after 0.7 s.
//! * **[`HostSession::poll_timeout`]** is the time of the next thing that is due by the clock. It changes with every call
//!   of the first kind, to an earlier time as well as to a later one or none, and only with them: not by time that passes,
//!   and not by a poll. So it is asked once after the polls above, and what it said before is forgotten. `None` says that
//!   only bytes or the user can bring this on: wait for those without a limit.
//! * **[`HostSession::handle_timeout`]** belongs to that time. Too early it does nothing; late it does once what is due.
//!   A time in the past is no fault of the caller's: call it at once, and poll again.
//! * **First** comes [`HostSession::synchronise`]: with `break_in` it stops a running target, without it only takes up one
//!   that stands. It is called again after [`Event::TargetRestarted`], and when a stream was closed and opened again.
//!   Over KDNET nothing is sent before the target's first datagram came, unless [`KdnetConfig::targets`] names it.
//! * **After [`Event::StateChange`]** the target stands, and can be asked: one [`HostSession::request`] at a time, the next
//!   only after the end of the one before ([`Busy`] else). It ends with exactly one of [`Event::Reply`], [`Event::Sent`]
//!   (of a continue, which is never answered: it runs from then on) and [`Event::RequestFailed`]. Time limits are the
//!   session's own.
//! * **[`Event::Prompt`] and [`Event::FileIo`]** hold the target until they are answered, and come at any time, in the
//!   middle of a request too.
//! * **To stop a target that runs**, [`HostSession::break_in`]; it is repeated until a state change comes, or until
//!   [`HostSession::stand_by`].
//!
//! Both ends in one program, on a clock that is only counted:
//!
//! ```
//! use std::time::Duration;
//! use kd_wire::message::Message;
//! use kd_wire::session::{Event, HostSession, SerialConfig, TargetEvent, TargetSession};
//! # use kd_wire::message::StateChange;
//! # use kd_wire::message::state_change::{EXCEPTION, Exception, Report};
//! # let stop = StateChange {
//! #     new_state: EXCEPTION,
//! #     processor_level: 6,
//! #     processor: 0,
//! #     number_processors: 1,
//! #     thread: 0xffff_fa80_0000_1000,
//! #     program_counter: 0xffff_f800_0000_1000,
//! #     report: Report::Exception(Exception { exception_code: 0x8000_0003, ..Exception::default() }),
//! #     control_report: [0; 48],
//! # };
//!
//! let mut host = HostSession::serial(SerialConfig::default());
//! let mut target = TargetSession::serial();
//! let mut now = Duration::ZERO;
//! host.synchronise(now, true);
//! let stopped = 'stopped: loop {
//!     // What the last call queued goes to the other end ...
//!     while let Some(transmit) = host.poll_transmit() {
//!         target.handle_bytes(now, &transmit.data);
//!     }
//!     while let Some(event) = target.poll_event() {
//!         if event == TargetEvent::BreakIn {
//!             target.send(now, Message::StateChange(stop.clone()));
//!         }
//!     }
//!     while let Some(transmit) = target.poll_transmit() {
//!         host.handle_bytes(now, &transmit.data);
//!     }
//!     // ... what the session has to say is taken ...
//!     while let Some(event) = host.poll_event() {
//!         if let Event::StateChange(change) = event {
//!             break 'stopped change;
//!         }
//!     }
//!     // ... and then it is waited for whatever is due first.
//!     let timers = [host.poll_timeout(), target.poll_timeout()];
//!     now = timers.into_iter().flatten().min().expect("a host that synchronises has a timer");
//!     host.handle_timeout(now);
//!     target.handle_timeout(now);
//! };
//! assert_eq!(stopped.program_counter, 0xffff_f800_0000_1000);
//! // It listened for a moment before it sent the break-in: the target might have stood already.
//! assert!(now >= Duration::from_millis(100) && host.break_ins() == 1);
//! ```
//!
//! With a socket and requests: `examples/drive_a_session.rs`; with all that a debugger needs: `kd-target`.

mod association;
mod host;
mod target;
mod timing;

use std::collections::VecDeque;
use std::net::SocketAddr;

pub use host::{HostSession, LEAST_READ};
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
    /// What the target was told; it seals all that is no data.
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
    /// For the carrier, as it is.
    pub data: Bytes,
}

/// What the session has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// KDNET: keys are agreed with this peer. Streams: the first packet came in.
    Connected {
        /// None on a stream.
        peer: Option<SocketAddr>,
    },
    /// KDNET: the target is the same, its address is new.
    PeerMoved {
        /// The new one.
        peer: SocketAddr,
    },
    /// The target started anew: breakpoints, modules and outstanding requests are gone.
    TargetRestarted,
    /// The target stands still.
    StateChange(StateChange),
    /// The answer to the outstanding request.
    Reply(ManipulateReply),
    /// The outstanding request, one that is never answered (Continue and the like), was acknowledged.
    Sent,
    /// The outstanding request is over without an answer.
    RequestFailed {
        /// Why.
        reason: RequestFailure,
    },
    /// DbgPrint.
    Print {
        /// Who printed.
        processor: u16,
        /// Untouched: the target's code page, no line end added.
        text: Bytes,
    },
    /// DbgPrompt: the target waits for [`HostSession::answer_prompt`].
    Prompt {
        /// Who asks.
        processor: u16,
        /// Untouched: the target's code page, no line end added.
        text: Bytes,
    },
    /// The target waits for [`HostSession::answer_file`].
    FileIo(FileIoRequest),
    /// What somebody who wonders why it does not work wants to know.
    Diagnostic(Diagnostic),
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// It was sent again and again, and nothing was heard.
    #[error("the target did not acknowledge the request")]
    NotAcknowledged,
    /// It reached the target, which said nothing more.
    #[error("the target acknowledged the request but did not answer it")]
    NotAnswered,
    /// Of a read of more than [`LEAST_READ`] bytes over a stream: its answer came, damaged each time. A shorter one may
    /// come whole; the next request need not wait for anything.
    #[error("the target's answer was damaged on its way again and again")]
    Damaged,
    /// The target is another boot by now.
    #[error("the target restarted")]
    TargetRestarted,
    /// A stop was reported while it was under way; the answer will not come.
    #[error("the target reported another stop instead of answering")]
    StoppedAnew,
    /// [`HostSession::cancel`] was called.
    #[error("the request was given up")]
    Cancelled,
    /// It was not sent.
    #[error("the request is longer than a packet may be")]
    TooLong,
}

/// A request is outstanding already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another request is outstanding")]
pub struct Busy;

/// What somebody who wonders why it does not work wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Diagnostic {
    /// It looks like KDNET but does not authenticate: the key differs, or it was damaged.
    AuthenticationFailed {
        /// Its sender.
        peer: SocketAddr,
    },
    /// Data sealed with a key that we do not have: of an earlier session, or damaged. An offer will come.
    UnknownSession {
        /// Its sender.
        peer: SocketAddr,
    },
    /// Sent by a host, not by a target: our own datagram came back, or two debuggers talk to each other.
    OwnDirection {
        /// Its sender.
        peer: SocketAddr,
    },
    /// Authentic, but seen before.
    Replayed {
        /// Its sender.
        peer: SocketAddr,
    },
    /// Not a KDNET datagram.
    NotKdnet {
        /// Its sender.
        peer: SocketAddr,
        /// Its bytes.
        length: usize,
    },
    /// KDNET of a version nobody has described.
    UnsupportedVersion {
        /// Its sender.
        peer: SocketAddr,
        /// As the datagram's header has it.
        version: u8,
    },
    /// Another machine uses the same key and port; it is not answered.
    ForeignHost {
        /// Its sender.
        peer: SocketAddr,
    },
    /// An offer, and whom the target is configured for and connected to.
    Offer {
        /// Its sender.
        peer: SocketAddr,
        /// The host that the target was told.
        configured: SocketAddr,
        /// The debugger that it has, if any.
        connected: Option<SocketAddr>,
    },
    /// Bytes between packets: boot text, or a wrong baud rate.
    SerialNoise {
        /// How many.
        bytes: usize,
    },
    /// A serial packet was damaged; it is asked for again.
    BadChecksum,
    /// A serial data packet does not end as it should; it is asked for again.
    BadTrailer {
        /// What stood there instead of 0xaa.
        found: u8,
    },
    /// A packet longer than the protocol allows.
    TooLong {
        /// What the header claims.
        count: usize,
    },
    /// A packet that is not what its type promises.
    Malformed {
        /// In what way.
        reason: String,
    },
    /// A packet of a type that this host cannot use.
    UnexpectedPacket {
        /// As the header has it.
        packet_type: u16,
    },
    /// A request or answer is sent again, for the n-th time.
    Retransmit {
        /// Which time it is.
        count: u32,
    },
    /// A Continue (or the like) was never acknowledged, but the target went silent as one that runs does.
    NotAcknowledged,
    /// A request is asked anew, because its answer was lost.
    Reissued {
        /// Which time it is.
        count: u32,
    },
    /// The packet ids had come apart and are aligned again.
    Resynchronised,
    /// A reply to no outstanding request, dropped.
    StaleReply {
        /// The request that it would answer.
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
