//! The host's KDNET association: who the target is, and which key is in force.
//!
//! An answered offer gives a *candidate* key. It replaces the current key only when a data datagram authenticates
//! under it, so that a replayed offer cannot cost a working session. Until then the old session goes on, and the
//! candidate is probed with a RESEND, which targets answer or ignore without harm.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Diagnostic, Event, KdnetConfig, Output, Transmit};
use crate::kdnet::{Channel, DataKey, Datagram, Header, Key, Offer, Rejection, Response, Sealed, open, peek, seal};
use crate::message::Direction;
use crate::packet::{BREAK_IN, Packet, PacketType};

/// Between empty control datagrams and between probes.
const POKE_INTERVAL: Duration = Duration::from_millis(500);
/// An alive target offers every 3 s; after this time it is elsewhere or gone.
const SILENCE: Duration = Duration::from_secs(15);
/// How long only data of an unknown key may come, or none at all where an answer is due, before a keep-alive is answered
/// after all: keys have come apart.
///
/// Folklore: a target takes each answer to its newest two offers, also one that was held up and comes behind the newer
/// one. Example: both arrive, the older one last, and the only datagram that the target sends under that key, a ping, is
/// lost. Then each side has a key that the other one does not use; a target that runs sends nothing, and no break-in
/// reaches it. Its offers go on, and say that it is connected.
const KEY_LOST: Duration = Duration::from_secs(2);
/// Between two answers while a session exists.
const ANSWER_INTERVAL: Duration = Duration::from_millis(250);
/// Answered offers whose key nothing has proved yet.
const MAX_CANDIDATES: usize = 4;
const MAX_PROBES: u32 = 24;
/// Offer numbers grow by 3 per offer; a smaller step back is a late datagram, not a restart.
const REORDERED: u64 = 6;
/// Versions tried while the target's is unknown. No target accepts all of them, each accepts one.
const VERSIONS: [u8; 3] = [4, 2, 5];

struct Live {
    peer: SocketAddr,
    version: u8,
    data_key: DataKey,
    nonce: [u8; 32],
    boot: [u8; 24],
    /// Number of the newest offer.
    control_sequence: u64,
    /// Number of the newest data datagram.
    data_sequence: u64,
    heard: Duration,
    /// When data came that this key does not open, and none since that it does.
    unknown_data: Option<Duration>,
    /// Since when an answer is due, and nothing has come that this key opens.
    due: Option<Duration>,
    /// The offer was that of a target that has no session (any more), while we had one.
    anew: bool,
}

pub(super) enum Received {
    Nothing,
    /// A data-channel body of the current session.
    Data(Bytes),
    /// From the target's address, but it does not authenticate: damaged on its way, or somebody's nonsense.
    Damaged,
    /// A new key is in force; the body is the first one under it.
    Established {
        again: bool,
        body: Bytes,
    },
    /// The same with a target that goes on where it was: it took a later one of our answers.
    Rekeyed(Bytes),
    /// The target has a new address.
    Moved,
}

pub(super) struct Association {
    key: Key,
    seed: Zeroizing<[u8; 32]>,
    answers: u64,
    /// Where to ask for an offer: one target, which may have addresses of both families.
    targets: Vec<SocketAddr>,
    version: Option<u8>,
    current: Option<Live>,
    /// Newest first.
    candidates: VecDeque<Live>,
    /// One counter for everything this host numbers itself; it never goes back.
    sequence: u64,
    next_poke: Option<Duration>,
    pokes: usize,
    next_probe: Option<Duration>,
    probes: u32,
    last_answer: Option<Duration>,
    last_asked: Option<Duration>,
    /// Whether probes may stop the target.
    pub(super) break_in: bool,
    pub(super) configured: Option<IpAddr>,
}

impl Association {
    pub(super) fn new(config: KdnetConfig) -> Self {
        Association {
            next_poke: (!config.targets.is_empty()).then_some(Duration::ZERO),
            key: config.key,
            seed: Zeroizing::new(config.seed),
            answers: 0,
            targets: config.targets,
            version: None,
            current: None,
            candidates: VecDeque::new(),
            sequence: 0,
            pokes: 0,
            next_probe: None,
            probes: 0,
            last_answer: None,
            last_asked: None,
            break_in: false,
            configured: None,
        }
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.current.as_ref().map(|live| live.peer)
    }

    /// A datagram with this body for the target, once there is a session.
    pub(super) fn data(&mut self, body: &[u8]) -> Option<Transmit> {
        let live = self.current.as_ref()?;
        self.sequence += 1;
        Some(Self::sealed(&self.key, live, self.sequence, body))
    }

    /// What was sent wants an answer of any target, one that runs too.
    pub(super) fn answer_is_due(&mut self, now: Duration) {
        if let Some(live) = &mut self.current {
            live.due.get_or_insert(now);
        }
    }

    fn sealed(key: &Key, live: &Live, sequence: u64, body: &[u8]) -> Transmit {
        let (version, data_key, from) = (live.version, Some(&live.data_key), Direction::HostToTarget);
        let data = seal(key, Sealed { version, data_key, from, sequence, body });
        Transmit { peer: Some(live.peer), data }
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        [self.next_poke, self.next_probe].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Duration, out: &mut Output) {
        if self.next_poke.is_some_and(|at| at <= now) {
            self.next_poke = Some(now + POKE_INTERVAL);
            let silent = self.current.as_ref().is_none_or(|live| now.saturating_sub(live.heard) >= SILENCE);
            if silent && self.next_probe.is_none() {
                for target in self.targets.clone() {
                    self.poke(target, None, out);
                }
            }
        }
        if self.next_probe.is_some_and(|at| at <= now) {
            self.probes += 1;
            self.next_probe = (self.probes < MAX_PROBES).then_some(now + POKE_INTERVAL);
            if let Some(candidate) = self.candidates.front() {
                let resend = Packet::control(PacketType::Resend, 0).encode();
                let stop = self.break_in && self.current.is_none() && self.probes.is_multiple_of(2);
                let body = if stop { &[BREAK_IN][..] } else { &resend };
                out.break_ins = out.break_ins.wrapping_add(u32::from(stop));
                self.sequence += 1;
                out.transmits.push_back(Self::sealed(&self.key, candidate, self.sequence, body));
            }
            if self.next_probe.is_none() {
                self.candidates.clear();
            }
        }
    }

    /// Asks the target for a sign of life, which it gives whether it runs or stands.
    pub(super) fn ask_for_offer(&mut self, out: &mut Output) {
        if let Some((peer, version)) = self.current.as_ref().map(|live| (live.peer, live.version)) {
            self.poke(peer, Some(version), out);
        }
    }

    /// Asks a target for an offer: an empty control datagram.
    fn poke(&mut self, target: SocketAddr, version: Option<u8>, out: &mut Output) {
        let version = version.or(self.version).unwrap_or(VERSIONS[self.pokes % VERSIONS.len()]);
        self.pokes = self.pokes.wrapping_add(1);
        self.sequence += 1;
        let (data_key, from, sequence) = (None, Direction::HostToTarget, self.sequence);
        let data = seal(&self.key, Sealed { version, data_key, from, sequence, body: &[] });
        out.transmits.push_back(Transmit { peer: Some(target), data });
    }

    pub(super) fn receive(&mut self, now: Duration, peer: SocketAddr, payload: &[u8], out: &mut Output) -> Received {
        // A dual-stack socket shows IPv4 as mapped IPv6. Others keep what they have, a link-local scope too.
        let peer = match peer.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::from((ip, peer.port())),
            IpAddr::V6(_) => peer,
        };
        let header = match peek(payload) {
            Ok(header) => header,
            Err(rejection) => {
                self.reject(peer, payload.len(), rejection, out);
                return Received::Nothing;
            }
        };
        match header.channel {
            Channel::Control => match open(&self.key, None, Direction::TargetToHost, payload) {
                Ok(datagram) => self.control(now, peer, &datagram, out),
                Err(rejection) => {
                    self.reject(peer, payload.len(), rejection, out);
                    Received::Nothing
                }
            },
            Channel::Data => self.data_datagram(now, peer, header, payload, out),
        }
    }

    fn reject(&self, peer: SocketAddr, length: usize, rejection: Rejection, out: &mut Output) {
        out.diagnose(match rejection {
            Rejection::Tag | Rejection::Padding(_) => Diagnostic::AuthenticationFailed { peer },
            Rejection::Version(version) => Diagnostic::UnsupportedVersion { peer, version },
            Rejection::NoDataKey => Diagnostic::UnknownSession { peer },
            Rejection::Direction => Diagnostic::OwnDirection { peer },
            Rejection::Short(_) | Rejection::NotKdnet | Rejection::Length(_) | Rejection::Flags(_) => {
                Diagnostic::NotKdnet { peer, length }
            }
        });
    }

    fn data_datagram(
        &mut self,
        now: Duration,
        peer: SocketAddr,
        header: Header,
        payload: &[u8],
        out: &mut Output,
    ) -> Received {
        let from = Direction::TargetToHost;
        let (mut rejection, mut damaged) = (Rejection::NoDataKey, false);
        if let Some(live) = &mut self.current {
            match open(&self.key, Some(&live.data_key), from, payload) {
                Ok(datagram) => {
                    live.heard = now;
                    (live.unknown_data, live.due) = (None, None);
                    if datagram.sequence <= live.data_sequence {
                        out.diagnose(Diagnostic::Replayed { peer });
                        return Received::Nothing;
                    }
                    live.data_sequence = datagram.sequence;
                    return Received::Data(datagram.body);
                }
                Err(reason) => rejection = reason,
            }
        }
        for index in 0..self.candidates.len() {
            match open(&self.key, Some(&self.candidates[index].data_key), from, payload) {
                Ok(datagram) => {
                    let Some(mut live) = self.candidates.remove(index) else { break };
                    live.data_sequence = datagram.sequence;
                    live.heard = now;
                    live.peer = peer;
                    // A later answer may still be under way, and its key counts from its arrival on.
                    self.candidates.truncate(index);
                    self.next_probe = None;
                    self.version = Some(live.version);
                    let anew = live.anew;
                    let again = self.current.replace(live).is_some();
                    if again && !anew {
                        return Received::Rekeyed(datagram.body);
                    }
                    return Received::Established { again, body: datagram.body };
                }
                Err(reason) => rejection = reason,
            }
        }
        if let Some(live) = &mut self.current
            && rejection == Rejection::Tag
            && live.peer.ip() == peer.ip()
        {
            live.unknown_data.get_or_insert(now);
            damaged = live.peer == peer;
        }
        if self.current.is_some() || !self.candidates.is_empty() {
            // Late data of the session before, whose key is gone, or damage. It says nothing about our control key.
            let rejection = if rejection == Rejection::Tag { Rejection::NoDataKey } else { rejection };
            self.reject(peer, payload.len(), rejection, out);
        } else {
            out.diagnose(Diagnostic::UnknownSession { peer });
            if self.last_asked.is_none_or(|at| now.saturating_sub(at) >= POKE_INTERVAL) {
                self.last_asked = Some(now);
                self.poke(peer, Some(header.version), out);
            }
        }
        if damaged { Received::Damaged } else { Received::Nothing }
    }

    fn control(&mut self, now: Duration, peer: SocketAddr, datagram: &Datagram, out: &mut Output) -> Received {
        let Some(offer) = Offer::decode(&datagram.body) else { return Received::Nothing };
        if let Some(live) = &mut self.current {
            let silent = now.saturating_sub(live.heard) >= SILENCE;
            if live.peer.ip() != peer.ip() && !silent {
                out.diagnose(Diagnostic::ForeignHost { peer });
                return Received::Nothing;
            }
            if offer.boot() == live.boot && offer.connected.is_some() {
                if datagram.sequence > live.control_sequence {
                    live.control_sequence = datagram.sequence;
                    live.heard = now;
                    // It holds a key of ours, most likely the current one.
                    self.next_probe = None;
                    if live.peer != peer {
                        live.peer = peer;
                        return Received::Moved;
                    }
                    let long = |since: Option<Duration>| since.is_some_and(|at| now.saturating_sub(at) >= KEY_LOST);
                    if !long(live.unknown_data) && !long(live.due) {
                        return Received::Nothing;
                    }
                    (live.unknown_data, live.due) = (None, None);
                } else if datagram.sequence + REORDERED >= live.control_sequence {
                    return Received::Nothing;
                }
            }
            if self.last_answer.is_some_and(|at| now.saturating_sub(at) < ANSWER_INTERVAL) {
                return Received::Nothing;
            }
        }
        if self.candidates.iter().any(|candidate| candidate.nonce == offer.nonce && candidate.peer == peer) {
            return Received::Nothing;
        }
        self.answer(now, peer, &offer, datagram, out);
        Received::Nothing
    }

    fn answer(&mut self, now: Duration, peer: SocketAddr, offer: &Offer, datagram: &Datagram, out: &mut Output) {
        self.answers += 1;
        self.last_answer = Some(now);
        self.configured = Some(offer.configured.ip());
        let (configured, connected) = (offer.configured, offer.connected);
        out.diagnose(Diagnostic::Offer { peer, configured, connected });

        let random = Sha256::new()
            .chain_update(*self.seed)
            .chain_update(self.answers.to_le_bytes())
            .chain_update(offer.nonce)
            .finalize();
        let body = Response { nonce: offer.nonce, random: random.into() }.encode();
        let (version, sequence, from) = (datagram.version, datagram.sequence, Direction::HostToTarget);
        let data = seal(&self.key, Sealed { version, data_key: None, from, sequence, body: &body });
        out.transmits.push_back(Transmit { peer: Some(peer), data });

        self.candidates.truncate(MAX_CANDIDATES - 1);
        self.candidates.push_front(Live {
            peer,
            version,
            data_key: self.key.data_key(&body),
            nonce: offer.nonce,
            boot: offer.boot(),
            control_sequence: sequence,
            data_sequence: 0,
            heard: now,
            unknown_data: None,
            due: None,
            anew: self.current.as_ref().is_some_and(|live| live.boot != offer.boot() || connected.is_none()),
        });
        self.probes = 0;
        self.next_probe = Some(now + POKE_INTERVAL);
    }

    /// Whether anything authentic came from the target since then.
    pub(super) fn heard_since(&self, then: Duration) -> bool {
        self.current.as_ref().is_some_and(|live| live.heard > then)
    }

    /// A session's first event names the peer.
    pub(super) fn connected(&self) -> Event {
        Event::Connected { peer: self.peer() }
    }
}
