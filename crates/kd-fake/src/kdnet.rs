//! KDNET as the target side sees it: keys, sealed datagrams, offers, and the sequence rules of one session.
//!
//! ```text
//!  0  4D 44 42 47   "MDBG"
//!  4  u8            protocol version
//!  5  u8            flags: bit 0 = control channel
//!  6  u56 BE        sequence number            ┐
//! 13  u8            bit 7 host→target, pad     │ AES-256-CBC, IV = tag
//! 14  ..            body, zero padded to 16    ┘
//! end 16            tag = HMAC-SHA256(!key, bytes 0..6 ‖ plain text)[..16]
//! ```

use aes::Aes256;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const MAGIC: [u8; 4] = *b"MDBG";
/// Header, metadata and tag around the body.
const SHORTEST: usize = 0x26;
const FROM_HOST: u8 = 0x80;
const CONTROL: u8 = 1;
/// Body of an offer.
const OFFER: usize = 344;
/// Body of a response.
const RESPONSE: usize = 322;

/// Why a key string is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It has so many parts instead of four.
    #[error("a KDNET key has four parts w.x.y.z, this one has {0}")]
    Parts(usize),
    /// This part is no base-36 number of 64 bits.
    #[error("key part {0:?} is not a base-36 number of 1 to 13 digits below 2^64")]
    Part(String),
    /// All of it is zero, which KDNET refuses.
    #[error("the all-zero key is not allowed")]
    Zero,
}

/// The 32 bytes behind `w.x.y.z`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl Key {
    pub(crate) fn parse(text: &str) -> Result<Key, KeyError> {
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() != 4 {
            return Err(KeyError::Parts(parts.len()));
        }
        let mut key = [0; 32];
        for (part, bytes) in parts.iter().zip(key.chunks_exact_mut(8)) {
            let refused = || KeyError::Part((*part).to_owned());
            if !part.bytes().all(|digit| digit.is_ascii_alphanumeric()) || !(1..=13).contains(&part.len()) {
                return Err(refused());
            }
            bytes.copy_from_slice(&u64::from_str_radix(part, 36).map_err(|_| refused())?.to_le_bytes());
        }
        if key == [0; 32] { Err(KeyError::Zero) } else { Ok(Key(key)) }
    }

    /// The key of the data channel that a response opens.
    pub(crate) fn data_key(&self, response: &[u8]) -> Key {
        Key(Sha256::new().chain_update(self.0).chain_update(response).finalize().into())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Data,
    Control,
}

/// What is inside a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) sequence: u64,
    pub(crate) body: Vec<u8>,
}

fn tag(control: &Key, header: &[u8], plain: &[u8]) -> [u8; 16] {
    let inverted = control.0.map(|byte| !byte);
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&inverted).expect("HMAC takes a key of any length");
    mac.update(header);
    mac.update(plain);
    let mut tag = [0; 16];
    tag.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    tag
}

/// A datagram from the target, or (`from_host`) one a host would send.
pub(crate) fn seal(
    control: &Key,
    cipher: &Key,
    version: u8,
    channel: Channel,
    from_host: bool,
    sequence: u64,
    body: &[u8],
) -> Vec<u8> {
    let pad = (16 - (8 + body.len()) % 16) % 16;
    let mut datagram = MAGIC.to_vec();
    datagram.extend([version, if channel == Channel::Control { CONTROL } else { 0 }]);
    datagram.extend(&sequence.to_be_bytes()[1..]);
    datagram.push(pad as u8 | if from_host { FROM_HOST } else { 0 });
    datagram.extend(body);
    datagram.resize(datagram.len() + pad, 0);
    let tag = tag(control, &datagram[..6], &datagram[6..]);
    let length = datagram.len() - 6;
    cbc::Encryptor::<Aes256>::new(&cipher.0.into(), &tag.into())
        .encrypt_padded::<NoPadding>(&mut datagram[6..], length)
        .expect("the text was padded to whole blocks");
    datagram.extend(tag);
    datagram
}

/// Header check of a datagram whose sender should be the host (`from_host`) or the target: its version and channel.
pub(crate) fn header(datagram: &[u8]) -> Option<(u8, Channel)> {
    if datagram.len() < SHORTEST
        || !(datagram.len() - 6).is_multiple_of(16)
        || datagram[..4] != MAGIC
        || datagram[5] > CONTROL
    {
        return None;
    }
    Some((datagram[4], if datagram[5] == CONTROL { Channel::Control } else { Channel::Data }))
}

/// Opens a datagram; `None` if it is damaged, forged, for another key or from the wrong side.
pub(crate) fn open(control: &Key, cipher: &Key, from_host: bool, datagram: &[u8]) -> Option<Opened> {
    header(datagram)?;
    let (text, sent) = datagram.split_at(datagram.len() - 16);
    let iv: [u8; 16] = sent.try_into().ok()?;
    let mut plain = text[6..].to_vec();
    cbc::Decryptor::<Aes256>::new(&cipher.0.into(), &iv.into()).decrypt_padded::<NoPadding>(&mut plain).ok()?;
    if tag(control, &text[..6], &plain) != iv {
        return None;
    }
    let flags = plain[7];
    let pad = usize::from(flags & 0x0f);
    if flags & 0x70 != 0 || (flags & FROM_HOST != 0) != from_host || pad > plain.len() - 8 {
        return None;
    }
    let sequence = plain[..7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(Opened { sequence, body: plain[8..plain.len() - pad].to_vec() })
}

/// What arrived, once the session has looked at it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Not ours, damaged, replayed, or of no consequence.
    Nothing,
    /// The empty control datagram: make an offer to its sender now.
    Asked,
    /// A response was accepted: new data key, new peer.
    Connected,
    /// One body of the data channel.
    Data(Vec<u8>),
}

/// One target's end of KDNET. It survives a change of host, and is replaced at a reboot.
pub(crate) struct Endpoint {
    key: Key,
    version: u8,
    local: SocketAddr,
    configured: SocketAddr,
    /// Counter in front of the nonce, +1 per offer.
    counter: u64,
    nonce: [u8; 24],
    /// The control sequence: +3 per offer, like a clock that ticks in seconds.
    offered: u64,
    session: Option<Session>,
}

struct Session {
    peer: SocketAddr,
    key: Key,
    sent: u64,
    /// The highest sequence a valid datagram of the host had: anything not above it is a replay.
    mark: u64,
}

fn wire_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Endpoint {
    pub(crate) fn new(key: Key, version: u8, local: SocketAddr, configured: SocketAddr, nonce: [u8; 24]) -> Endpoint {
        Endpoint { key, version, local, configured, counter: 0, nonce, offered: 0, session: None }
    }

    /// Where data goes: the host whose response was accepted last.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.session.as_ref().map(|session| session.peer)
    }

    /// Whether the host has not yet shown that it has the data key.
    pub(crate) fn unproven(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.mark == 0)
    }

    /// Forgets the data key, as a reboot does.
    pub(crate) fn restart(&mut self, nonce: [u8; 24]) {
        *self = Endpoint::new(self.key, self.version, self.local, self.configured, nonce);
    }

    /// The next offer.
    pub(crate) fn offer(&mut self) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(1);
        self.offered += 3;
        let unspecified = SocketAddr::new(IpAddr::V6(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()), 0);
        let unspecified = match self.configured {
            SocketAddr::V4(_) => unspecified,
            SocketAddr::V6(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        };
        let mut body = vec![1, 1];
        body.extend(self.counter.to_le_bytes());
        body.extend(self.nonce);
        for address in [self.local, self.configured, self.peer().unwrap_or(unspecified)] {
            body.extend(wire_address(address.ip()));
            body.extend(address.port().to_be_bytes());
        }
        body.resize(OFFER, 0);
        seal(&self.key, &self.key, self.version, Channel::Control, false, self.offered, &body)
    }

    /// A data datagram with the next sequence; `None` while there is no data key.
    pub(crate) fn data(&mut self, body: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let session = self.session.as_mut()?;
        session.sent += 1;
        let datagram = seal(&self.key, &session.key, self.version, Channel::Data, false, session.sent, body);
        Some((session.peer, datagram))
    }

    /// The 12-byte ping that follows a key change.
    pub(crate) fn ping(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let session = self.session.as_ref()?;
        let mut body = session.mark.to_le_bytes().to_vec();
        let address = wire_address(session.peer.ip());
        body.extend([address[15], address[14], address[13], address[12]]);
        self.data(&body)
    }

    /// Takes a datagram from the socket.
    pub(crate) fn arrived(&mut self, datagram: &[u8], from: SocketAddr) -> Arrival {
        let Some((version, channel)) = header(datagram) else { return Arrival::Nothing };
        match channel {
            Channel::Control => {
                // Windows 10 still takes the first version here.
                if version != self.version && version != 2 {
                    return Arrival::Nothing;
                }
                match open(&self.key, &self.key, true, datagram) {
                    Some(opened) if opened.body.is_empty() => Arrival::Asked,
                    Some(opened) => self.response(&opened, from),
                    None => Arrival::Nothing,
                }
            }
            Channel::Data => {
                let Some(session) = self.session.as_mut().filter(|_| version == self.version) else {
                    return Arrival::Nothing;
                };
                match open(&self.key, &session.key, true, datagram) {
                    Some(opened) if opened.sequence > session.mark => {
                        session.mark = opened.sequence;
                        // A host behind a NAT may change its port; only an authentic datagram moves us.
                        session.peer = from;
                        Arrival::Data(opened.body)
                    }
                    _ => Arrival::Nothing,
                }
            }
        }
    }

    fn response(&mut self, opened: &Opened, from: SocketAddr) -> Arrival {
        let body = &opened.body;
        let newest = self.offered.wrapping_sub(opened.sequence);
        if body.len() != RESPONSE || body[..2] != [1, 2] || body[10..34] != self.nonce || !matches!(newest, 0 | 3) {
            return Arrival::Nothing;
        }
        self.session = Some(Session { peer: from, key: self.key.data_key(body), sent: 0, mark: 0 });
        Arrival::Connected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "1a2b3c.z.kdnet2026.3w5e11264sgsf";
    const DATA_KEY: &str = "89146d3bb914153be6980b1966c5b3b34b930993ac2f4b935068e49146be9439";
    const BREAK_IN: &str = "4d4442470500cabba2056521b0f3077ce281e3817d44a966a997c09618041d11c4e5e2a28495";
    const POKE: &str = "4d4442470501e34758f4dfa2800332b08e1585911e0b2cbe7e28997dc15ce7a35d7faedc66e8";
    const PING: &str =
        "4d444247050038f4f9c8fe35f83cb37c8a980efe233c06e82e471c9fbbe6bf02bfb5cf45d88ec01108a6e3b4b28dc58d8753fea0e0a4";
    const PARTIAL: &str = "4d44424705003bcb4ce8001c3e3dde954b623a75030174fde86d1479e1619041b6a6a0781576c0eb461db5cca691fcf4274f863f1ca14795e0701641bf8e0da110eb30c14d0681e02ba2f7131ff8728bfe9e21c38ae30a4c591692119014f33f1c9198157189a056b473e93aad94d66dba6dedf4917c";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }

    fn key(hex: &str) -> Key {
        Key(bytes(hex).try_into().map_err(|_| "32 bytes").expect("key"))
    }

    #[test]
    fn keys() {
        let expected = key("a8929c04000000002300000000000000ce51e5df49340000ffffffffffffffff");
        assert!(Key::parse(KEY) == Ok(expected));
        assert!(Key::parse(&KEY.to_uppercase()) == Ok(expected));
        for bad in ["1.2.3", "1.2.3.4.5", "1..3.4", "1.2.3.!", "1.2.3.3w5e11264sgsg", "0.0.0.0", "+1.2.3.4"] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_data_key_of_the_generated_response() {
        let mut body = vec![1, 2];
        body.extend(0x40..0x60);
        body.extend(0xa0..0xc0);
        body.resize(RESPONSE, 0);
        assert!(Key::parse(KEY).expect("key").data_key(&body) == key(DATA_KEY));
    }

    #[test]
    fn generated_datagrams_seal_to_the_same_bytes() {
        let control = Key::parse(KEY).expect("key");
        let data = key(DATA_KEY);
        for (vector, channel, from_host) in [
            (BREAK_IN, Channel::Data, true),
            (POKE, Channel::Control, true),
            (PING, Channel::Data, false),
            (PARTIAL, Channel::Data, false),
        ] {
            let raw = bytes(vector);
            let cipher = if channel == Channel::Control { control } else { data };
            assert_eq!(header(&raw), Some((5, channel)));
            let opened = open(&control, &cipher, from_host, &raw).expect("opens");
            assert_eq!(seal(&control, &cipher, 5, channel, from_host, opened.sequence, &opened.body), raw);
            assert_eq!(open(&control, &cipher, !from_host, &raw), None, "wrong side");
            for at in [0, 5, 6, 13, raw.len() - 1] {
                let mut bad = raw.clone();
                bad[at] ^= 4;
                assert_eq!(open(&control, &cipher, from_host, &bad), None, "bit at {at}");
            }
            assert_eq!(open(&control, &cipher, from_host, &raw[..raw.len() - 1]), None);
        }
    }

    #[test]
    fn sizes() {
        let control = Key::parse(KEY).expect("key");
        for (body, datagram) in [(0, 38), (1, 38), (12, 54), (16, 54), (72, 102), (322, 358), (344, 374), (1304, 1334)]
        {
            let sealed = seal(&control, &control, 5, Channel::Data, false, 1, &vec![7; body]);
            assert_eq!(sealed.len(), datagram, "body of {body}");
        }
    }

    fn endpoint() -> (Key, Endpoint) {
        let key = Key::parse(KEY).expect("key");
        let local = "10.0.0.2:50001".parse().expect("address");
        let host = "10.0.0.1:50000".parse().expect("address");
        (key, Endpoint::new(key, 5, local, host, [9; 24]))
    }

    fn respond(key: &Key, offer: &[u8]) -> (Vec<u8>, Key) {
        let opened = open(key, key, false, offer).expect("an offer");
        let mut body = vec![1, 2];
        body.extend(&opened.body[2..34]);
        body.resize(RESPONSE, 0);
        (seal(key, key, 5, Channel::Control, true, opened.sequence, &body), key.data_key(&body))
    }

    #[test]
    fn a_response_connects_until_two_offers_later() {
        let (key, mut target) = endpoint();
        let from: SocketAddr = "10.0.0.1:50000".parse().expect("address");
        let offers: Vec<_> = (0..3).map(|_| target.offer()).collect();
        assert_eq!(open(&key, &key, false, &offers[2]).expect("offer").body[86..88], [0, 0]);
        assert_eq!(target.arrived(&respond(&key, &offers[0]).0, from), Arrival::Nothing);
        assert_eq!(target.arrived(&respond(&key, &offers[1]).0, from), Arrival::Connected);
        assert_eq!(target.peer(), Some(from));
        assert_eq!(open(&key, &key, false, &target.offer()).expect("offer").body[86..88], 50000u16.to_be_bytes());
    }

    #[test]
    fn replays_and_other_versions_are_dropped() {
        let (key, mut target) = endpoint();
        let from = "10.0.0.1:50000".parse().expect("address");
        let offer = target.offer();
        let (response, data) = respond(&key, &offer);
        assert_eq!(target.arrived(&response, from), Arrival::Connected);
        let sent = seal(&key, &data, 5, Channel::Data, true, 4, b"b");
        assert_eq!(target.arrived(&sent, from), Arrival::Data(b"b".to_vec()));
        assert_eq!(target.arrived(&sent, from), Arrival::Nothing);
        assert_eq!(target.arrived(&seal(&key, &data, 4, Channel::Data, true, 5, b"b"), from), Arrival::Nothing);
        assert_eq!(target.arrived(&seal(&key, &data, 5, Channel::Data, true, 3, b"b"), from), Arrival::Nothing);
        assert_eq!(target.arrived(&seal(&key, &key, 5, Channel::Control, true, 9, b""), from), Arrival::Asked);
    }

    /// Every datagram of the two real captures, where they are at hand.
    #[test]
    fn real_datagrams_seal_to_the_same_bytes() {
        #[derive(serde::Deserialize)]
        struct File {
            vectors: Vec<Vector>,
        }
        #[derive(serde::Deserialize)]
        struct Vector {
            name: String,
            key: String,
            aes_key: String,
            dir: String,
            version: u8,
            channel: String,
            seq: u64,
            raw: String,
            body: String,
        }
        let shared = std::env::var_os("KDPOOL_SHARED")
            .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into(), std::path::PathBuf::from);
        let Ok(text) = std::fs::read_to_string(shared.join("capture/kd-vectors.json")) else {
            println!("skipped: no {}", shared.display());
            return;
        };
        let file: File = serde_json::from_str(&text).expect("the vectors");
        assert!(!file.vectors.is_empty());
        for vector in file.vectors {
            let control = Key::parse(&vector.key).expect("key");
            let cipher = key(&vector.aes_key);
            let channel = if vector.channel == "control" { Channel::Control } else { Channel::Data };
            let from_host = vector.dir == "host->target";
            let (raw, body) = (bytes(&vector.raw), bytes(&vector.body));
            assert_eq!(header(&raw), Some((vector.version, channel)), "{}", vector.name);
            let opened = open(&control, &cipher, from_host, &raw);
            assert_eq!(opened, Some(Opened { sequence: vector.seq, body: body.clone() }), "{}", vector.name);
            let sealed = seal(&control, &cipher, vector.version, channel, from_host, vector.seq, &body);
            assert_eq!(sealed, raw, "{}", vector.name);
        }
    }
}
