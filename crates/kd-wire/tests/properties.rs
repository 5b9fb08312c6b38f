//! Round trips of everything, and nonsense into everything.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use kd_wire::dissect::{Content, Dissector, SerialDissector};
use kd_wire::kdnet::{DataKey, Key, Offer, Ping, Rejection, Response, Sealed, open, peek, seal};
use kd_wire::message::manipulate::api_name;
use kd_wire::message::{Direction, Message, Value};
use kd_wire::packet::{Deframed, Deframer, MAX_SERIAL, Packet, PacketType};
use kd_wire::session::{HostSession, KdnetConfig, SerialConfig};
use proptest::collection::vec;
use proptest::prelude::*;

fn key() -> Key {
    "1.2.3.4".parse().unwrap()
}

fn peer() -> SocketAddr {
    "10.0.0.2:50000".parse().unwrap()
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::HostToTarget), Just(Direction::TargetToHost)]
}

fn packet_type() -> impl Strategy<Value = PacketType> {
    (0u16..14).prop_map(PacketType::from)
}

/// A payload that begins with a number that means something, for every kind of message.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        0x3030u32..0x3034,
        0x3130u32..0x3164,
        0x3230u32..0x3233,
        0x3330u32..0x3332,
        0x3430u32..0x3435,
        0x4300u32..0x4303,
        any::<u32>()
    ];
    (number, vec(any::<u8>(), 0..400)).prop_map(|(number, rest)| number.to_le_bytes().into_iter().chain(rest).collect())
}

fn packet() -> impl Strategy<Value = Packet> {
    prop_oneof![
        (4u16..7, any::<u32>()).prop_map(|(kind, id)| Packet::control(kind.into(), id)),
        (packet_type(), any::<u32>(), payload()).prop_map(|(kind, id, payload)| Packet::data(kind, id, payload)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn packets_survive_datagrams(packet in packet()) {
        prop_assert_eq!(Packet::parse(&packet.encode()).unwrap(), packet);
    }

    /// Noise between packets, in pieces of any size, costs nothing but a count.
    #[test]
    fn packets_survive_streams(
        packets in vec((packet(), vec(0u8..0x30, 0..20)), 0..6),
        piece in 1usize..64,
    ) {
        let mut stream = Vec::new();
        let mut noise = 0;
        for (packet, before) in &packets {
            noise += before.len();
            stream.extend_from_slice(before);
            stream.extend_from_slice(&packet.encode_serial());
        }
        let mut deframer = Deframer::new();
        let (mut found, mut noticed) = (Vec::new(), 0);
        for bytes in stream.chunks(piece) {
            deframer.push(bytes, |deframed| match deframed {
                Deframed::Packet(packet) => found.push(packet),
                Deframed::Noise(count) => noticed += count,
                other => panic!("{other:?}"),
            });
        }
        prop_assert_eq!(found, packets.into_iter().map(|(packet, _)| packet).collect::<Vec<_>>());
        prop_assert_eq!(noticed, noise);
    }

    /// Decoding keeps all that has a name: encoding and decoding again gives the same.
    #[test]
    fn messages_survive(kind in packet_type(), direction in direction(), payload in payload()) {
        if let Ok(message) = Message::decode(kind, direction, &payload.into()) {
            let (encoded_kind, bytes) = message.encode();
            prop_assert_eq!(encoded_kind, kind);
            prop_assert_eq!(Message::decode(kind, direction, &bytes.into()).unwrap(), message.clone());
            for (name, value) in message.fields() {
                prop_assert!(!name.is_empty());
                let empty = value.to_string().is_empty();
                prop_assert!(!empty || value == Value::Bytes(Bytes::new()), "{}", name);
            }
        }
    }

    #[test]
    fn datagrams_survive(
        version in prop_oneof![Just(2u8), 4u8..],
        data in any::<bool>(),
        from in direction(),
        sequence in 0u64..1 << 56,
        body in vec(any::<u8>(), 0..1500),
    ) {
        let data_key = key().data_key(b"a response");
        let data_key = data.then_some(&data_key);
        let raw = seal(&key(), Sealed { version, data_key, from, sequence, body: &body });
        let opened = open(&key(), data_key, from, &raw).unwrap();
        prop_assert_eq!((opened.version, opened.sequence), (version, sequence));
        prop_assert_eq!(&opened.body[..], &body[..]);
        prop_assert_eq!(raw.len(), 22 + (8 + body.len()).next_multiple_of(16));
    }

    /// No change of a datagram authenticates.
    #[test]
    fn no_altered_datagram_opens(body in vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let from = Direction::TargetToHost;
        let mut raw =
            seal(&key(), Sealed { version: 4, data_key: None, from, sequence: 1, body: &body }).to_vec();
        let at = at.index(raw.len());
        raw[at] ^= 1 << bit;
        prop_assert!(open(&key(), None, from, &raw).is_err());
    }

    #[test]
    fn control_bodies_survive(nonce in any::<[u8; 32]>(), random in any::<[u8; 32]>(), port in 1u16.., v6 in any::<u128>()) {
        let response = Response { nonce, random };
        prop_assert_eq!(Response::decode(&response.encode()), Some(response));
        let address = SocketAddr::new(std::net::Ipv6Addr::from(v6).to_canonical(), port);
        for connected in [None, Some(address)] {
            let offer = Offer { nonce, target: address, configured: peer(), connected };
            prop_assert_eq!(Offer::decode(&offer.encode()), Some(offer));
        }
        let ping = Ping { last_sequence: v6 as u64, host: port.into() };
        prop_assert_eq!(Ping::decode(&ping.encode()), Some(ping));
    }

    #[test]
    fn nonsense_into_the_decoders(kind in any::<u16>(), direction in direction(), bytes in vec(any::<u8>(), 0..600)) {
        let bytes = Bytes::from(bytes);
        if let Ok(message) = Message::decode(kind.into(), direction, &bytes) {
            message.fields();
        }
        let _ = Packet::parse(&bytes);
        let _ = (peek(&bytes), Offer::decode(&bytes), Response::decode(&bytes), Ping::decode(&bytes));
        prop_assert!(open(&key(), None, direction, &bytes).is_err());
        Dissector::new(key()).datagram(&bytes);
        for dissection in SerialDissector::new(direction).bytes(&bytes) {
            dissection.fields();
        }
    }

    /// Every byte is either in something found or noise, and no more than one packet is kept.
    #[test]
    fn nonsense_into_the_deframer(bytes in vec(prop_oneof![Just(0x30u8), Just(0x69u8), any::<u8>()], 0..9000)) {
        let mut deframer = Deframer::new();
        let (mut things, mut noise) = (0, 0);
        deframer.push(&bytes, |deframed| match deframed {
            Deframed::Noise(count) => noise += count,
            _ => things += 1,
        });
        prop_assert!(noise + 16 * things <= bytes.len());
        prop_assert!(bytes.len() - noise - 16 * things <= (things + 1) * (MAX_SERIAL + 1));
    }

    #[test]
    fn nonsense_into_a_serial_session(pieces in vec(stream_piece(), 0..40), asked in any::<bool>()) {
        let mut host = HostSession::serial(SerialConfig::default());
        host.synchronise(Duration::ZERO, true);
        let mut now = Duration::ZERO;
        if asked {
            host.request(now, 0, version()).unwrap();
        }
        for piece in pieces {
            now += Duration::from_millis(40);
            host.handle_bytes(now, &piece);
            bounded(&mut host, piece.len());
            if host.poll_timeout().is_some_and(|at| at <= now) {
                host.handle_timeout(now);
                bounded(&mut host, 16);
            }
        }
        ends(host, now);
    }

    /// Authentic datagrams whose contents mean harm.
    #[test]
    fn nonsense_into_a_kdnet_session(pieces in vec(datagram_piece(), 0..40), asked in any::<bool>()) {
        let (mut host, data_key) = connected();
        let mut now = Duration::from_secs(1);
        host.synchronise(now, true);
        if asked {
            host.request(now, 0, version()).unwrap();
        }
        for (sequence, (kind, body)) in pieces.into_iter().enumerate() {
            now += Duration::from_millis(40);
            let (data_key, from) = (Some(&data_key), Direction::TargetToHost);
            let sequence = sequence as u64 + 2;
            let raw = match kind {
                0 => Bytes::from(body),
                1 => seal(&key(), Sealed { version: 4, data_key: None, from, sequence, body: &body }),
                _ => seal(&key(), Sealed { version: 4, data_key, from, sequence, body: &body }),
            };
            host.handle_datagram(now, peer(), &raw);
            bounded(&mut host, raw.len());
            if host.poll_timeout().is_some_and(|at| at <= now) {
                host.handle_timeout(now);
                bounded(&mut host, 16);
            }
        }
        ends(host, now);
    }
}

fn version() -> kd_wire::message::manipulate::Request {
    use kd_wire::message::manipulate::{Request, get_version};
    Request::GetVersion(get_version::Request {})
}

fn legal_packet() -> impl Strategy<Value = Packet> {
    let id = prop_oneof![Just(0x8080_0000u32), Just(0x8080_0001), Just(0x8080_0800), 0u32..8, any::<u32>()];
    (packet(), id).prop_map(|(packet, id)| Packet { id, ..packet })
}

fn stream_piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        legal_packet().prop_map(|packet| packet.encode_serial().to_vec()),
        vec(any::<u8>(), 0..60),
        vec(prop_oneof![Just(0x30u8), Just(0x69u8)], 0..60),
    ]
}

fn datagram_piece() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let offer = (any::<[u8; 32]>(), any::<bool>()).prop_map(|(nonce, connected)| {
        let connected = connected.then(peer);
        (1, Offer { nonce, target: peer(), configured: peer(), connected }.encode().to_vec())
    });
    prop_oneof![
        4 => legal_packet().prop_map(|packet| (2, packet.encode().to_vec())),
        1 => (0u8..3, vec(any::<u8>(), 0..60)),
        1 => offer,
    ]
}

/// A host session with a data key, and that key.
fn connected() -> (HostSession, DataKey) {
    let mut host = HostSession::kdnet(KdnetConfig { key: key(), targets: Vec::new(), seed: [1; 32] });
    let from = Direction::TargetToHost;
    let offer = Offer { nonce: [5; 32], target: peer(), configured: peer(), connected: None }.encode();
    let raw = seal(&key(), Sealed { version: 4, data_key: None, from, sequence: 3, body: &offer });
    host.handle_datagram(Duration::ZERO, peer(), &raw);
    let response = host.poll_transmit().unwrap().data;
    let response = open(&key(), None, Direction::HostToTarget, &response).unwrap();
    let data_key = key().data_key(&response.body);
    let ping = Ping { last_sequence: 0, host: 1 }.encode();
    let raw = seal(&key(), Sealed { version: 4, data_key: Some(&data_key), from, sequence: 1, body: &ping });
    host.handle_datagram(Duration::ZERO, peer(), &raw);
    assert!(host.is_connected());
    (host, data_key)
}

/// What one input may cause.
fn bounded(host: &mut HostSession, input: usize) {
    let transmits = std::iter::from_fn(|| host.poll_transmit()).count();
    let events = std::iter::from_fn(|| host.poll_event()).count();
    assert!(transmits <= 6 + input / 4, "{transmits} transmissions after {input} bytes");
    assert!(events <= 8 + input / 2, "{events} events after {input} bytes");
}

/// Left alone, the session comes to rest: only the synchronisation, which the user ends, goes on.
fn ends(mut host: HostSession, mut now: Duration) {
    host.stand_by();
    for _ in 0..2000 {
        let Some(at) = host.poll_timeout() else { return };
        assert!(at >= now);
        now = at;
        host.handle_timeout(now);
        bounded(&mut host, 16);
    }
    panic!("still busy at {now:?}");
}

/// The byte sequences of the facts, read back.
#[test]
fn serial_vectors_read_back() {
    let read = |text: &str| SerialDissector::new(Direction::TargetToHost).bytes(&hex::decode(text).unwrap());
    let reset = read("69696969060000000000000000000000");
    assert_eq!(reset[0].content, Content::Control { packet_type: PacketType::Reset, id: 0 });
    let print = read("303030300300130000088080400100003032000000000000030000000000000068690aaa");
    let Content::Data { packet_type: PacketType::DebugIo, id: 0x8080_0800, message } = &print[0].content else {
        panic!("{print:?}")
    };
    assert_eq!(message.fields().last().unwrap().1.to_string(), "\"hi\\n\"");
}

#[test]
fn every_api_has_a_name() {
    let named = (0x3130..=0x3162).filter(|api| api_name(*api).is_some()).count();
    // 0x314A to 0x314F, 0x3154 and 0x3155 were never given to anything.
    assert_eq!(named, 0x33 - 8);
}

#[test]
fn a_padded_datagram_of_nonsense_is_only_rejected() {
    let raw = [&b"MDBG\x04\x00"[..], &[0; 32]].concat();
    assert_eq!(open(&key(), None, Direction::TargetToHost, &raw), Err(Rejection::NoDataKey));
}
