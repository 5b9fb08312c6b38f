//! Packets, messages and whole sessions.

use std::net::SocketAddr;

use bytes::Bytes;
use kd_wire::kdnet::{Offer, Ping, Response};
use kd_wire::packet::{INITIAL_ID, Packet, PacketType, SYNC};

use super::{Seed, put};

/// Numbers of the requests (`facts`: DBGKD_MANIPULATE_STATE64.ApiNumber), of the kinds of stops, of prints, of files.
const REQUESTS: std::ops::RangeInclusive<u32> = 0x3130..=0x3166;
const STOPS: std::ops::RangeInclusive<u32> = 0x3030..=0x3032;
const PRINTS: std::ops::RangeInclusive<u32> = 0x3230..=0x3233;
const FILES: std::ops::RangeInclusive<u32> = 0x3430..=0x3434;

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = messages();
    seeds.extend(streams());
    seeds.extend(sessions());
    seeds.extend(dissected());
    seeds
}

/// A body of `length` bytes with its number, and a few bytes that are not zero behind its fixed part.
fn body(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    put(&mut bytes, 0, &number.to_le_bytes());
    bytes
}

/// A stop with its exception code, at a place.
fn stop() -> Vec<u8> {
    let mut bytes = body(0x3030, 240);
    put(&mut bytes, 8, &1u32.to_le_bytes());
    put(&mut bytes, 24, &0xffff_f800_0260_1000u64.to_le_bytes());
    put(&mut bytes, 32, &0x8000_0003u32.to_le_bytes());
    bytes
}

/// A driver that loads: its name's length, and the name at the end.
fn load() -> Vec<u8> {
    let mut bytes = body(0x3031, 240);
    put(&mut bytes, 32, &9u32.to_le_bytes());
    bytes.extend_from_slice(b"fuzz.sys\0");
    bytes
}

fn print() -> Vec<u8> {
    let mut bytes = body(0x3230, 16);
    put(&mut bytes, 8, &5u32.to_le_bytes());
    bytes.extend_from_slice(b"hello");
    bytes
}

fn prompt() -> Vec<u8> {
    let mut bytes = body(0x3231, 16);
    put(&mut bytes, 8, &4u32.to_le_bytes());
    put(&mut bytes, 12, &64u32.to_le_bytes());
    bytes.extend_from_slice(b"bpor");
    bytes
}

fn messages() -> Vec<Seed> {
    let of = |packet_type: PacketType| u16::from(packet_type) as u8;
    let mut seeds = Vec::new();
    let mut add = |name: String, packet_type, bytes: Vec<u8>| {
        seeds.push(Seed::new("messages", name, [vec![of(packet_type)], bytes].concat()));
    };
    for number in REQUESTS {
        add(format!("request-{number:x}"), PacketType::StateManipulate, body(number, 120));
    }
    for number in STOPS {
        add(format!("stop-{number:x}"), PacketType::StateChange64, body(number, 240));
    }
    for number in PRINTS {
        add(format!("print-{number:x}"), PacketType::DebugIo, body(number, 48));
    }
    for number in FILES {
        add(format!("file-{number:x}"), PacketType::FileIo, body(number, 96));
    }
    add("stop".into(), PacketType::StateChange64, stop());
    add("load".into(), PacketType::StateChange64, load());
    add("text".into(), PacketType::DebugIo, print());
    add("prompt".into(), PacketType::DebugIo, prompt());
    add("trace".into(), PacketType::TraceIo, vec![0; 32]);
    add("control".into(), PacketType::ControlRequest, body(0x4300, 64));
    seeds
}

/// Packets of a line, whole, damaged, and with litter between.
fn packets() -> Vec<Vec<u8>> {
    let data = |packet_type, id, body: Vec<u8>| Packet::data(packet_type, id, body).encode_serial().to_vec();
    let control = |packet_type, id| Packet::control(packet_type, id).encode_serial().to_vec();
    let mut damaged = data(PacketType::DebugIo, INITIAL_ID, print());
    damaged[20] ^= 1;
    let mut trailer = data(PacketType::DebugIo, INITIAL_ID, print());
    *trailer.last_mut().expect("a packet has a trailer") = 0;
    let mut long = data(PacketType::DebugIo, INITIAL_ID, print());
    put(&mut long, 6, &0xffffu16.to_le_bytes());
    vec![
        control(PacketType::Reset, 0),
        data(PacketType::StateChange64, INITIAL_ID | SYNC, stop()),
        control(PacketType::Acknowledge, INITIAL_ID),
        b"litter".to_vec(),
        data(PacketType::DebugIo, INITIAL_ID ^ 1, print()),
        damaged,
        control(PacketType::Resend, 0),
        trailer,
        long,
        data(PacketType::FileIo, INITIAL_ID, body(0x3430, 72)),
    ]
}

fn streams() -> Vec<Seed> {
    let packets = packets();
    let mut seeds: Vec<Seed> = packets
        .iter()
        .enumerate()
        .map(|(n, packet)| Seed::new("deframer", format!("packet-{n}"), [vec![7], packet.clone()].concat()))
        .collect();
    seeds.push(Seed::new("deframer", "all", [vec![255], packets.concat()].concat()));
    // Pieces of up to 63 bytes, each with a step; an odd step asks, the upper bits let time pass.
    let pieces = |step: u8| -> Vec<u8> {
        let pieces = packets.iter().flat_map(|packet| packet.chunks(0x3e));
        pieces.flat_map(|piece| [vec![piece.len() as u8 | step], piece.to_vec()].concat()).collect()
    };
    seeds.push(Seed::new("session", "quick", pieces(0)));
    seeds.push(Seed::new("session", "slow", pieces(0x40)));
    seeds
}

/// A step of a played session: see `play`.
fn step(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![kind, bytes.len() as u8], bytes.to_vec()].concat()
}

/// The reply to each of the requests that a played session makes, by the request's number there.
fn reply(request: u8) -> Vec<u8> {
    let numbers = [0x3146, 0x3130, 0x3137, 0x3132, 0x3134, 0x3135, 0x3156, 0x3136];
    let mut bytes = body(numbers[usize::from(request)], 56);
    let (address, length) = (0xffff_f800_0000_1000u64, if request == 2 { 32u32 } else { 64 });
    match request {
        1 | 2 => {
            put(&mut bytes, 16, &(if request == 2 { 2 } else { address }).to_le_bytes());
            put(&mut bytes, 24, &length.to_le_bytes());
            put(&mut bytes, 28, &length.to_le_bytes());
            bytes.extend(vec![0x5a; length as usize]);
        }
        3 => bytes.extend(vec![0; 180]),
        4 => {
            put(&mut bytes, 16, &address.to_le_bytes());
            put(&mut bytes, 24, &1u32.to_le_bytes());
        }
        5 => put(&mut bytes, 16, &1u32.to_le_bytes()),
        6 => put(&mut bytes, 16, &(address + 8).to_le_bytes()),
        _ => {}
    }
    bytes
}

/// A stop, then each request with its acknowledgement and its reply, under each of the ids that it may have.
fn conversation(sync: u8, other: u8) -> Vec<u8> {
    let (data, acknowledge) = (|packet_type: u8, bits: u8| 1 | packet_type << 3 | bits, |bits: u8| 3 | bits);
    let mut steps = vec![step(data(0, sync), &stop()), step(acknowledge(sync), &[]), step(acknowledge(other), &[])];
    for request in 0..8u8 {
        steps.push(vec![6, request]);
        steps.extend([0, 0x80, 0x40, 0xc0].map(|bits| step(acknowledge(bits), &[])));
        let id = if request % 2 == 0 { other } else { other ^ 0x80 };
        steps.extend([step(data(1, id), &reply(request)), step(data(1, id ^ 0x80), &reply(request))]);
    }
    steps.push(step(data(2, other), &print()));
    steps.push(step(data(2, other ^ 0x80), &prompt()));
    steps.push(step(7 | 2 << 3, &[7, 0]));
    steps.push(step(data(3, other), &body(0x3430, 72)));
    steps.concat()
}

fn sessions() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let lost = [vec![7, 0xfe], vec![7, 0xf7], step(4, &[]), vec![7, 0xff], step(5, &[])].concat();
    let moments: Vec<u8> = (0..16u8).flat_map(|what| [7, what]).collect();
    for (target, first) in [("stream", 0u8), ("stream", 1), ("kdnet", 0), ("kdnet", 2), ("kdnet", 0x84)] {
        for (number, (sync, other)) in [(0x40, 0), (0x40, 0x80), (0, 0x80), (0xc0, 0)].into_iter().enumerate() {
            let steps = conversation(sync, other);
            seeds.push(Seed::new(target, format!("talk-{first:x}-{number}"), [vec![first], steps].concat()));
        }
        let steps = [step(1 | 0x40, &stop()), vec![6, 1], lost.clone(), moments.clone(), lost.clone()].concat();
        seeds.push(Seed::new(target, format!("lost-{first:x}"), [vec![first], steps].concat()));
    }
    // What a target says that starts anew: offers, on the control channel.
    let steps: Vec<u8> = [offer(5), offer(6), offer(7)].iter().flat_map(|body| step(1 << 3, body)).collect();
    seeds.push(Seed::new("kdnet", "offers", [vec![0], steps].concat()));
    let ping = Ping { last_sequence: 1, host: 0x0a00_0001 }.encode();
    seeds.push(Seed::new("kdnet", "pings", [vec![0], step(2 << 3, &ping), step(6 << 3, &ping)].concat()));
    seeds
}

fn offer(nonce: u8) -> Vec<u8> {
    let place = SocketAddr::from(([10, 0, 0, 2], 50000));
    Offer { nonce: [nonce; 32], target: place, configured: place, connected: None }.encode().to_vec()
}

/// Steps of the dissector. Bodies of more than 255 bytes count eights of them.
fn dissected() -> Vec<Seed> {
    let step = |kind: u8, bytes: &[u8]| match u8::try_from(bytes.len()) {
        Ok(length) => [vec![kind, length], bytes.to_vec()].concat(),
        Err(_) => {
            let mut bytes = bytes.to_vec();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            [vec![kind | 0x40, (bytes.len() / 8) as u8], bytes].concat()
        }
    };
    let response = Response { nonce: [5; 32], random: [6; 32] }.encode();
    let packet =
        |packet_type, body: Vec<u8>| Packet::data(packet_type, INITIAL_ID, Bytes::from(body)).encode().to_vec();
    let agreed = [step(1, &offer(5)), step(0x81, &response)].concat();
    let mut seeds = vec![Seed::new("dissect", "agreed", agreed.clone())];
    for (name, packet_type, body) in [
        ("stop", PacketType::StateChange64, stop()),
        ("print", PacketType::DebugIo, print()),
        ("reply", PacketType::StateManipulate, reply(1)),
        ("file", PacketType::FileIo, body(0x3430, 72)),
    ] {
        let said = [agreed.clone(), step(2, &packet(packet_type, body))].concat();
        seeds.push(Seed::new("dissect", format!("sealed-{name}"), said));
    }
    let line: Vec<u8> = packets().iter().flat_map(|packet| step(4, packet)).collect();
    seeds.push(Seed::new("dissect", "line", line));
    seeds
}
