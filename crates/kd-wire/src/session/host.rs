//! The packet layer's rules as a host keeps them, for serial lines and KDNET.

mod receiving;
mod seeking;
mod sending;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::association::{Association, Received};
use super::timing::{Bounds, RoundTrip};
use super::{Busy, Diagnostic, Event, KdnetConfig, Output, RequestFailure, SerialConfig, Transmit};
use crate::message::debug_io::{self, DebugIo};
use crate::message::manipulate::Request;
use crate::message::{FileIoReply, ManipulateRequest, StateChange};
use crate::packet::{Deframed, Deframer, INITIAL_ID, MAX_KDNET, MAX_SERIAL, Packet, PacketError, PacketType};

/// How long one request may take, whatever the target does meanwhile: longer than somebody waits for a line that works.
const REQUEST_LIMIT: Duration = Duration::from_secs(8);
/// The same for what the target itself works at for long: it searches memory, or fills it.
const WORK_LIMIT: Duration = Duration::from_secs(60);
/// Issues of one request.
const MAX_ISSUES: u32 = 6;
/// RESENDs in a row, either way, before they are answered by the clock only.
const RESEND_BURST: u32 = 8;
/// How long after ours a RESET of the target still counts as its answer.
const RESET_PATIENCE: Duration = Duration::from_millis(500);
/// A stub waits for a packet as long as its header says, a second for each byte: one whose length was damaged swallows
/// everything that is asked, in silence, until nothing comes for that long. Then it says that it got none.
const STUB_GIVES_UP: Duration = Duration::from_millis(1200);

/// Reads of so many bytes are not worth being made shorter: their answers are asked for until they come whole.
pub const LEAST_READ: usize = 256;

const KDNET_HOST_ID: u32 = 0x8000_0000;

/// A request arrives in microseconds where the target is another process, in a quarter of a second through a tunnel.
const KDNET_TIMES: Bounds = Bounds {
    initial: Duration::from_millis(200),
    floor: Duration::from_millis(5),
    ceiling: Duration::from_millis(500),
};
/// A line is measured, and what comes with its rate is added; the least is for a target that is another process.
const SERIAL_TIMES: Bounds =
    Bounds { initial: Duration::from_millis(250), floor: Duration::from_millis(4), ceiling: Duration::from_secs(1) };

/// What a continue waits at least for its acknowledgement. Nothing else shows that it arrived, and what is sent to a
/// target that runs stands in the way of the next debugger's break-in.
const CONTINUE_WAITS: Duration = Duration::from_millis(12);
/// The same where nothing was lost so far. A target that is not scheduled for a moment is no bad line; what is sent again,
/// and then asked because of that, is some 360 bytes, and a kernel that runs reads one each clock tick: the next debugger's
/// break-in waited 4 s behind them.
const CONTINUE_WAITS_AT_FIRST: Duration = Duration::from_millis(100);

/// A stream has two ids: a packet that was repeated before it was lost leaves acknowledgements behind that fit the packet
/// after the next, and a continue was taken for acknowledged by such a one, and targets were left frozen. So long after a
/// repetition none goes out; what comes late comes to nobody then.
const ECHOES_END: Duration = Duration::from_millis(12);

/// What a repetition of ours makes a target say twice is no sign of a bad line so long.
const REPEATS_FOR: Duration = Duration::from_secs(1);

enum Transport {
    Serial(Serial),
    Kdnet(Box<Association>),
}

struct Serial {
    deframer: Deframer,
    config: SerialConfig,
    /// When the packet that is coming in counts as broken off, and since when it does.
    stalled: Option<Duration>,
    broken_since: Option<Duration>,
    /// Checksum and length of a SYNC packet, while it can be repeated because its acknowledgement was lost.
    last_sync: Option<Said>,
    /// The same of one that may be a flipped bit: it counts when it comes again.
    doubtful_sync: Option<Said>,
    /// The id of a RESET that may be a flipped bit.
    doubtful_reset: Option<u32>,
    /// The packet that was taken last, if it was a reply, and whether there was a RESET since: the target may say it again.
    last_reply: Option<Bytes>,
    is_renumbered: bool,
}

impl Serial {
    /// How long so many bytes are on the line.
    fn on_the_line(&self, bytes: usize) -> Duration {
        match self.config.baud {
            Some(baud) if baud > 0 => Duration::from_secs_f64(bytes as f64 * 10.0 / f64::from(baud)),
            _ => Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Request,
    /// A request that was answered, or given up, before the target acknowledged its last issue.
    Leftover,
    Answer,
}

struct Outgoing {
    packet_type: PacketType,
    payload: Bytes,
    purpose: Purpose,
}

/// The data packet that waits for its acknowledgement.
struct Sending {
    outgoing: Outgoing,
    id: u32,
    /// Transmissions of the packet itself.
    rounds: u32,
    /// Times that the clock had to help.
    waits: u32,
    deadline: Duration,
    /// Something went out since that makes a target that stands repeat its state change.
    probed: bool,
    since: Duration,
    /// Times that the clock had to help since the target was last heard.
    silent_waits: u32,
    /// Transmissions that the target asked for.
    called_for: u32,
}

/// How far the outstanding request is.
enum Stage {
    /// In the queue, or in flight.
    Sending,
    /// Acknowledged; its reply comes.
    Awaiting(Waiting),
    /// A continue that was acknowledged, perhaps not this one: a target that stands would answer the probes.
    Confirming(Waiting),
}

/// For what comes after the acknowledgement. A target that waits for an acknowledgement of its own repeats its packet
/// when it gets a RESEND, and one that sits in its command loop its state change; one that works at the request does
/// nothing. So the same small packet helps against every loss, and does no harm where nothing was lost.
struct Waiting {
    since: Duration,
    probes: u32,
    probed: Duration,
    next: Duration,
}

/// What a packet says, to be known again when it is sent anew: of a stop only what has a meaning.
#[derive(Debug)]
enum Said {
    Stop(Box<StateChange>),
    Other { checksum: u32, length: usize },
}

impl PartialEq for Said {
    fn eq(&self, other: &Said) -> bool {
        match (self, other) {
            (Said::Stop(a), Said::Stop(b)) => a.is_same_stop(b),
            (Said::Other { checksum: a, length: long }, Said::Other { checksum: b, length: wide }) => {
                (a, long) == (b, wide)
            }
            _ => false,
        }
    }
}

struct Outstanding {
    request: ManipulateRequest,
    payload: Bytes,
    stage: Stage,
    issues: u32,
    /// It went out under an id that the target had not seen it under, and may have been carried out before.
    twice: bool,
    /// What came after its acknowledgement and could not be used.
    damaged: u32,
    /// When it is given up.
    end: Duration,
}

/// A reply that the target still owes to a request that is over. Nothing is asked before it came: it might look like
/// the answer.
struct Owed {
    request: ManipulateRequest,
    waiting: Waiting,
    end: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Synchronise {
        break_in: bool,
    },
    BreakIn,
    /// The target stands and its ids are not known yet: it is to take ours, and say its state change again. What was
    /// aimed at before goes on when it does not.
    Align {
        break_in: bool,
    },
}

/// Working towards a state change.
struct Seek {
    aim: Aim,
    step: u32,
    resets: u32,
    /// `None` while there is nobody to talk to.
    next: Option<Duration>,
}

/// The host's end of one connection.
pub struct HostSession {
    transport: Transport,
    out: Output,
    /// Request to acknowledgement, and acknowledgement to reply.
    ack_time: RoundTrip,
    reply_time: RoundTrip,
    tx: u32,
    /// Serial: the target expects `tx`. One that was debugged before goes on where it was, and takes a packet with the
    /// other id for one that it has.
    tx_known: bool,
    /// It was asked to take our ids, and did not.
    aligned_in_vain: bool,
    rx: u32,
    /// Whether `rx` is what the target will send next. A fresh host takes any legal id.
    rx_known: bool,
    /// The last request was answered, so the next one will not be taken for a repetition.
    in_step: bool,
    /// When the clock had something sent or asked for again.
    repeated: Option<Duration>,
    /// A continue waits until then.
    held_until: Option<Duration>,
    /// Data packets with an id of their own that went out since the target's last one came in.
    fresh_sent: u32,
    /// Times that something had to be asked for or sent again.
    troubles: u32,
    /// Those of the last packet whose acknowledgements are still to come, if it was only late.
    needless: u32,
    /// Packets in a row that had an id nobody can explain, and ones that nobody can read.
    jumps: u32,
    garbled: u32,
    /// A packet of the target came in.
    heard: bool,
    heard_at: Duration,
    /// A RESET of ours was not answered yet.
    reset_pending: bool,
    /// When our last RESET went out.
    last_reset: Option<Duration>,
    sending: Option<Sending>,
    queue: VecDeque<Outgoing>,
    request: Option<Outstanding>,
    asked_twice: bool,
    owed: Option<Owed>,
    /// The state change of this stop; `None` while the target runs.
    stop: Option<StateChange>,
    /// Where its program counter was set to.
    moved: Option<u64>,
    seek: Option<Seek>,
    prompt: Option<debug_io::GetString>,
    file: bool,
    resends: u32,
    last_resend: Option<Duration>,
}

impl HostSession {
    /// A session over a byte stream: serial line, pipe or TCP.
    pub fn serial(config: SerialConfig) -> Self {
        let serial = Serial {
            deframer: Deframer::new(),
            config,
            stalled: None,
            broken_since: None,
            last_sync: None,
            doubtful_sync: None,
            doubtful_reset: None,
            last_reply: None,
            is_renumbered: false,
        };
        Self::new(Transport::Serial(serial), SERIAL_TIMES, INITIAL_ID, INITIAL_ID)
    }

    /// A session over KDNET.
    pub fn kdnet(config: KdnetConfig) -> Self {
        Self::new(Transport::Kdnet(Box::new(Association::new(config))), KDNET_TIMES, KDNET_HOST_ID, 0)
    }

    fn new(transport: Transport, times: Bounds, tx: u32, rx: u32) -> Self {
        HostSession {
            tx_known: matches!(transport, Transport::Kdnet(_)),
            aligned_in_vain: false,
            transport,
            out: Output::default(),
            ack_time: RoundTrip::new(times),
            reply_time: RoundTrip::new(times),
            tx,
            rx,
            rx_known: false,
            in_step: false,
            repeated: None,
            held_until: None,
            fresh_sent: 0,
            troubles: 0,
            needless: 0,
            jumps: 0,
            garbled: 0,
            heard: false,
            heard_at: Duration::ZERO,
            reset_pending: false,
            last_reset: None,
            sending: None,
            queue: VecDeque::new(),
            request: None,
            asked_twice: false,
            owed: None,
            stop: None,
            moved: None,
            seek: None,
            prompt: None,
            file: false,
            resends: 0,
            last_resend: None,
        }
    }

    /// Whether something went wrong on the wire so far: a packet was lost or damaged, or an answer was late.
    pub fn is_lossy(&self) -> bool {
        self.troubles > 0
    }

    /// Whether the request that was answered last may have been carried out more than once: its answer was lost, and it
    /// was asked again. That matters where the second time has another answer than the first.
    pub fn was_asked_twice(&self) -> bool {
        self.asked_twice
    }

    /// Whether it works towards a state change: it was asked to, or one came that cannot be taken yet.
    pub fn is_seeking(&self) -> bool {
        self.seek.is_some()
    }

    /// Asks for the target's last packet. A target that stands says something; one that runs does not hear it.
    pub fn nudge(&mut self) {
        self.transmit_resend();
    }

    /// Bytes of the stream.
    pub fn handle_bytes(&mut self, now: Duration, bytes: &[u8]) {
        let Transport::Serial(serial) = &mut self.transport else { return };
        let mut found = Vec::new();
        serial.deframer.push(bytes, |deframed| found.push(deframed));
        serial.broken_since = None;
        self.watch_the_stream(now);
        self.deframed(now, found);
    }

    fn deframed(&mut self, now: Duration, found: Vec<Deframed>) {
        for deframed in found {
            match deframed {
                Deframed::Packet(packet) => self.receive(now, packet),
                Deframed::Bad(error) => self.receive_bad(now, error),
                Deframed::BadTrailer { found, .. } => {
                    self.out.diagnose(Diagnostic::BadTrailer { found });
                    self.damaged(now);
                }
                Deframed::TooLong { count } => {
                    self.out.diagnose(Diagnostic::TooLong { count });
                    self.damaged(now);
                }
                Deframed::Noise(bytes) => self.out.diagnose(Diagnostic::SerialNoise { bytes }),
            }
        }
    }

    /// A packet that is coming in must go on; and as long as it does, nothing is asked for again.
    fn watch_the_stream(&mut self, now: Duration) {
        let pause = self.longest_pause();
        let Transport::Serial(serial) = &mut self.transport else { return };
        serial.stalled = serial.deframer.is_partial().then_some(now + pause);
        if serial.stalled.is_none() {
            return;
        }
        if let Some(waiting) = self.waiting() {
            waiting.next = waiting.next.max(now + pause);
        }
        // Only the acknowledgement was lost: the reply to what is sent again and again is coming in, and on a slow line
        // takes its time. Each repetition would be answered behind it.
        if let Some(sending) = &mut self.sending {
            sending.deadline = sending.deadline.max(now + pause);
        }
        if let Some(next) = self.seek.as_mut().and_then(|seek| seek.next.as_mut()) {
            *next = (*next).max(now + pause);
        }
    }

    fn longest_pause(&self) -> Duration {
        let Transport::Serial(serial) = &self.transport else { return Duration::ZERO };
        self.ack_time.timeout().max(Duration::from_millis(50)) + serial.on_the_line(64)
    }

    /// The timers of what is expected after an acknowledgement.
    fn waiting(&mut self) -> Option<&mut Waiting> {
        match &mut self.request {
            Some(Outstanding { stage: Stage::Awaiting(waiting) | Stage::Confirming(waiting), .. }) => Some(waiting),
            _ => self.owed.as_mut().map(|owed| &mut owed.waiting),
        }
    }

    /// A packet in the stream makes a pause that it should not make: bytes of it were lost. It is asked for again;
    /// after a second without a byte it is forgotten.
    fn stream_stalled(&mut self, now: Duration) {
        let pause = self.longest_pause();
        let Transport::Serial(serial) = &mut self.transport else { return };
        let known = serial.broken_since.is_some();
        let since = *serial.broken_since.get_or_insert(now);
        let mut found = Vec::new();
        serial.deframer.suspect(|deframed| found.push(deframed));
        if now.saturating_sub(since) >= Duration::from_secs(1) + serial.on_the_line(64) {
            serial.deframer.abandon();
        }
        let waited = now.saturating_sub(since);
        serial.stalled = serial.deframer.is_partial().then_some(now + pause.max(waited));
        self.deframed(now, found);
        let reason = "a packet broke off".to_owned();
        self.out.diagnose(Diagnostic::Malformed { reason });
        if known { self.ask_again(now) } else { self.damaged(now) }
    }

    /// One UDP payload.
    pub fn handle_datagram(&mut self, now: Duration, peer: SocketAddr, payload: &[u8]) {
        let Transport::Kdnet(association) = &mut self.transport else { return };
        match association.receive(now, peer, payload, &mut self.out) {
            Received::Nothing => {}
            // Whatever it was, it may have been what we wait for.
            Received::Damaged => self.ask_again(now),
            Received::Data(body) => self.receive_body(now, &body),
            Received::Established { again, body } => {
                let connected = association.connected();
                self.forget(now);
                self.tx = KDNET_HOST_ID;
                self.rx = 0;
                self.rx_known = false;
                if again {
                    self.out.events.push_back(Event::TargetRestarted);
                }
                self.out.events.push_back(connected);
                let wait = self.step(0);
                if let Some(seek) = &mut self.seek {
                    seek.step = 0;
                    seek.next = Some(now + if seek.aim == Aim::BreakIn { Duration::ZERO } else { wait });
                }
                self.receive_body(now, &body);
            }
            Received::Rekeyed(body) => {
                self.retransmit(now);
                self.receive_body(now, &body);
            }
            Received::Moved => {
                if let Some(peer) = association.peer() {
                    self.out.events.push_back(Event::PeerMoved { peer });
                }
                self.retransmit(now);
            }
        }
    }

    fn receive_body(&mut self, now: Duration, body: &Bytes) {
        if body.len() < crate::packet::HEADER_SIZE {
            // A ping: the target's key is new and it has not heard us. As WinDbg, ask for what it was sending.
            self.resend(now);
            return;
        }
        match Packet::parse(body) {
            Ok(packet) => self.receive(now, packet),
            Err(error) => self.receive_bad(now, error),
        }
    }

    fn receive_bad(&mut self, now: Duration, error: PacketError) {
        self.out.diagnose(match error {
            PacketError::Checksum { .. } => Diagnostic::BadChecksum,
            error => Diagnostic::Malformed { reason: error.to_string() },
        });
        self.damaged(now);
    }

    /// The time that [`HostSession::poll_timeout`] named has come. Called earlier it does nothing.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.transport {
            Transport::Kdnet(association) => association.handle_timeout(now, &mut self.out),
            Transport::Serial(serial) => {
                if serial.stalled.is_some_and(|at| at <= now) {
                    self.stream_stalled(now);
                }
            }
        }
        if self.sending.as_ref().is_some_and(|sending| sending.deadline <= now) {
            self.retransmit_by_clock(now);
        }
        if self.held_until.is_some_and(|at| at <= now) {
            self.send_next(now);
        }
        if self.owed.as_ref().is_some_and(|owed| owed.end <= now) {
            self.owed = None;
            self.send_next(now);
        }
        if self.waiting().is_some_and(|waiting| waiting.next <= now) {
            self.probe(now);
        }
        if self.request.as_ref().is_some_and(|request| request.end <= now) {
            self.too_late(now);
        }
        if self.seek.as_ref().is_some_and(|seek| seek.next.is_some_and(|at| at <= now)) {
            self.seek_step(now);
        }
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// When [`HostSession::handle_timeout`] wants to be called; `None`: nothing is due by the clock. It holds until the
    /// next call that changes the session ([how a session is driven](crate::session#how-a-session-is-driven)).
    pub fn poll_timeout(&self) -> Option<Duration> {
        let transport = match &self.transport {
            Transport::Serial(serial) => serial.stalled,
            Transport::Kdnet(association) => association.timeout(),
        };
        [
            transport,
            self.held_until,
            self.sending.as_ref().map(|sending| sending.deadline),
            self.owed.as_ref().map(|owed| owed.end.min(owed.waiting.next)),
            self.request.as_ref().map(|request| match &request.stage {
                Stage::Sending => request.end,
                Stage::Awaiting(waiting) | Stage::Confirming(waiting) => request.end.min(waiting.next),
            }),
            self.seek.as_ref().and_then(|seek| seek.next),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the session has to say next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Works towards a state change: listens briefly, then alternates break-in and RESET until one comes. Without
    /// `break_in` only RESETs are sent, which a running target ignores.
    pub fn synchronise(&mut self, now: Duration, break_in: bool) {
        let next = self.is_connected().then(|| now + self.step(0));
        (self.stop, self.moved) = (None, None);
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = break_in;
        } else {
            (self.rx_known, self.tx_known, self.aligned_in_vain) = (false, false, false);
        }
        self.seek = Some(Seek { aim: Aim::Synchronise { break_in }, step: 0, resets: 0, next });
    }

    /// Stops a running target: sends the break-in byte until a state change comes.
    pub fn break_in(&mut self, now: Duration) {
        let next = self.is_connected().then_some(now);
        (self.stop, self.moved) = (None, None);
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = true;
        }
        self.seek = Some(Seek { aim: Aim::BreakIn, step: 0, resets: 0, next });
        if next.is_some() {
            self.seek_step(now);
        }
    }

    /// How many break-ins were sent so far. One stop answers one of them; a target that has more of them in its
    /// buffer stops again as soon as it is continued.
    pub fn break_ins(&self) -> u32 {
        self.out.break_ins
    }

    /// Ends [`HostSession::synchronise`] and [`HostSession::break_in`] without a state change.
    pub fn stand_by(&mut self) {
        self.seek = None;
        if let Transport::Kdnet(association) = &mut self.transport {
            association.break_in = false;
        }
    }

    /// The program counter of the processor that stopped is about to be set to this. A target that tells of its stop once
    /// more may tell it from there; it is the same stop still.
    pub fn moves(&mut self, program_counter: u64) {
        self.moved = Some(program_counter);
    }

    /// Whether this is the stop that is known.
    fn repeats_stop(&self, change: &StateChange) -> bool {
        let Some(stop) = &self.stop else { return false };
        stop.is_same_stop(change) || self.moved.is_some_and(|to| stop.is_same_stop_moved(change, to))
    }

    /// Asks the stopped target. Ends with [`Event::Reply`], [`Event::Sent`] or [`Event::RequestFailed`], within eight
    /// seconds; within a minute where the target itself has much to do.
    pub fn request(&mut self, now: Duration, processor: u16, request: Request) -> Result<(), Busy> {
        let limit = if is_work(&request) { WORK_LIMIT } else { REQUEST_LIMIT };
        self.request_within(now, processor, request, limit)
    }

    /// The same with an end of the caller's choice. What a slow line takes to carry request and reply comes on top.
    pub fn request_within(
        &mut self,
        now: Duration,
        processor: u16,
        request: Request,
        limit: Duration,
    ) -> Result<(), Busy> {
        if self.request.is_some() {
            return Err(Busy);
        }
        let request = ManipulateRequest { processor, body: request };
        let payload = Bytes::from(request.encode());
        if payload.len() > self.max_payload() {
            self.out.events.push_back(Event::RequestFailed { reason: RequestFailure::TooLong });
            return Ok(());
        }
        let end = now + limit + 2 * self.on_the_line(payload.len() + reply_size(&request.body));
        let (stage, issues, twice, damaged) = (Stage::Sending, 1, false, 0);
        self.request = Some(Outstanding { request, payload: payload.clone(), stage, issues, twice, damaged, end });
        self.enqueue(now, PacketType::StateManipulate, payload, Purpose::Request);
        Ok(())
    }

    /// Gives the outstanding request up; [`Event::RequestFailed`] follows.
    pub fn cancel(&mut self, now: Duration) {
        self.fail(now, RequestFailure::Cancelled);
        self.send_next(now);
    }

    /// Answers the last [`Event::Prompt`].
    pub fn answer_prompt(&mut self, now: Duration, answer: &[u8]) {
        if let Some(prompt) = self.prompt.take() {
            let payload = DebugIo::Answer(prompt.answer(answer)).encode().into();
            self.enqueue(now, PacketType::DebugIo, payload, Purpose::Answer);
        }
    }

    /// Answers the last [`Event::FileIo`]; [`FileIoRequest::refuse`](crate::message::FileIoRequest::refuse) is WinDbg's answer without a file mapping.
    pub fn answer_file(&mut self, now: Duration, reply: FileIoReply) {
        if std::mem::take(&mut self.file) {
            let mut payload = reply.encode();
            payload.truncate(self.max_payload());
            self.enqueue(now, PacketType::FileIo, payload.into(), Purpose::Answer);
        }
    }

    /// The address of this host that the KDNET target says it is configured for.
    pub fn configured_host(&self) -> Option<IpAddr> {
        match &self.transport {
            Transport::Serial(_) => None,
            Transport::Kdnet(association) => association.configured,
        }
    }

    /// The longest message that fits into a packet; 56 bytes of it are a request's header.
    pub fn max_payload(&self) -> usize {
        match self.transport {
            Transport::Serial(_) => MAX_SERIAL,
            Transport::Kdnet(_) => MAX_KDNET,
        }
    }

    /// Whether there is somebody to send to: always on a stream, after the keys are agreed on KDNET.
    pub fn is_connected(&self) -> bool {
        match &self.transport {
            Transport::Serial(_) => true,
            Transport::Kdnet(association) => association.peer().is_some(),
        }
    }

    /// What is in flight gets another id, under which the target takes it for new.
    fn renumber(&mut self, id: u32) {
        let Some(sending) = &mut self.sending else { return };
        sending.id = id;
        if let (Purpose::Request, Some(request)) = (sending.outgoing.purpose, &mut self.request) {
            request.twice = true;
        }
    }

    fn is_serial(&self) -> bool {
        matches!(self.transport, Transport::Serial(_))
    }

    fn on_the_line(&self, bytes: usize) -> Duration {
        match &self.transport {
            Transport::Kdnet(_) => Duration::ZERO,
            Transport::Serial(serial) => serial.on_the_line(bytes),
        }
    }
}

/// Whether the target has more to do than to answer.
fn is_work(request: &Request) -> bool {
    matches!(
        request,
        Request::SearchMemory(_) | Request::FillMemory(_) | Request::CheckLowMemory(_) | Request::PageIn(_)
    )
}

/// How much is read, of memory that may as well be read in smaller pieces.
fn readable(request: &Request) -> usize {
    match request {
        Request::ReadVirtualMemory(read) => read.transfer_count as usize,
        Request::ReadPhysicalMemory(read) => read.transfer_count as usize,
        _ => 0,
    }
}

/// How much of a reply follows a request, with its headers.
fn reply_size(request: &Request) -> usize {
    const HEADERS: usize = 16 + 56 + 1;
    const CONTEXT: usize = 0x4d0;
    let data = match request {
        Request::ReadVirtualMemory(read) => read.transfer_count as usize,
        Request::ReadPhysicalMemory(read) => read.transfer_count as usize,
        Request::ReadControlSpace(read) => read.transfer_count as usize,
        Request::GetContext(_) => CONTEXT,
        _ => 0,
    };
    HEADERS + data.min(MAX_SERIAL)
}
