//! Captures of each kind, and pooltag.txt.

use std::net::SocketAddr;

use kd_wire::kdnet::{Key, Offer, Sealed, seal};
use kd_wire::message::Direction;
use kd_wire::packet::{INITIAL_ID, Packet, PacketType};

use super::{Seed, words};

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = captures();
    seeds.push(Seed::new("pooltag", "small", POOLTAG));
    seeds.push(Seed::new("pooltag", "marked", [b"\xef\xbb\xbf", POOLTAG].concat()));
    seeds.push(Seed::new("pooltag", "wide", POOLTAG.iter().flat_map(|byte| [*byte, 0]).collect::<Vec<u8>>()));
    seeds
}

/// Our own words, in the form of Microsoft's file: comments, a driver and a line, wildcards, short tags, a blank name.
const POOLTAG: &[u8] = b"\r
rem  what a driver calls its pool\r
rem\r
Leak - myfault.sys  - Leaked by a button\r
Fz?? - fuzz.sys     - Anything of the fuzzer's\r
Fzz* - fuzz.sys\r
Ab   - <unknown>    - A short tag \r
8042 - i8042prt.sys - Mouse and keyboard\r
no line of a table\r
'Qu' - q.sys - quoted - with - dashes\r
";

/// An IPv4 or IPv6 packet with a UDP datagram in it.
fn packet(version: u8, payload: &[u8]) -> Vec<u8> {
    let udp_length = 8 + payload.len() as u16;
    let udp = [&50000u16.to_be_bytes()[..], &50001u16.to_be_bytes(), &udp_length.to_be_bytes(), &[0, 0]].concat();
    let ip = match version {
        4 => {
            let length = (20 + udp_length).to_be_bytes();
            let head = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, 17, 0, 0];
            [&head[..], &[10, 0, 0, 2], &[10, 0, 0, 1]].concat()
        }
        _ => {
            let length = udp_length.to_be_bytes();
            let mut addresses = [0; 32];
            (addresses[15], addresses[31]) = (1, 1);
            [&[0x60, 0, 0, 0, length[0], length[1], 17, 64][..], &addresses].concat()
        }
    };
    [&ip[..], &udp, payload].concat()
}

/// What stands before an IP packet on each link type that is read.
fn links() -> Vec<(u32, Vec<u8>)> {
    let ethernet = [&[2; 12][..], &[8, 0]].concat();
    let tagged = [&[2; 12][..], &[0x81, 0, 0, 5, 8, 0]].concat();
    let cooked = [&[0, 0, 0, 1, 0, 6][..], &[2; 8], &[8, 0]].concat();
    let cooked_2 = [&[8, 0][..], &[0; 18]].concat();
    vec![
        (1, ethernet),
        (1, tagged),
        (0, vec![2, 0, 0, 0]),
        (108, vec![0, 0, 0, 2]),
        (12, vec![]),
        (101, vec![]),
        (228, vec![]),
        (113, cooked),
        (276, cooked_2),
        (105, vec![]),
    ]
}

/// A file of the old form: header, then each packet with its time and lengths.
fn pcap(magic: u32, link: u32, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = [words(&[magic]), vec![2, 0, 4, 0], words(&[0, 0, 0x4_0000, link])].concat();
    for packet in packets {
        let length = packet.len() as u32;
        file.extend(words(&[1_700_000_000, 5, length, length]));
        file.extend(packet);
    }
    file
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let length = body.len() as u32 + 12;
    [words(&[kind, length]), body, words(&[length])].concat()
}

/// A file of the new form: a section, its interfaces, packets with their direction, and kinds that are passed over.
fn pcapng(datagrams: &[Vec<u8>], line: &[u8]) -> Vec<u8> {
    let section = [words(&[0x1a2b_3c4d]), vec![1, 0, 0, 0], vec![0xff; 8]].concat();
    let mut file = block(0x0a0d_0d0a, &section);
    // Nanoseconds on the second, and an offset.
    let resolution = [&[9, 0, 1, 0, 9, 0, 0, 0][..], &[14, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[0; 4]].concat();
    file.extend(block(1, &words(&[101, 0])));
    file.extend(block(1, &[words(&[147, 0]), resolution].concat()));
    let enhanced = |interface, direction, packet: &[u8]| {
        let length = packet.len() as u32;
        let mut body = [words(&[interface, 0, 77, length, length]), packet.to_vec()].concat();
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend([vec![2, 0, 4, 0], words(&[direction, 0])].concat());
        block(6, &body)
    };
    for datagram in datagrams {
        file.extend(enhanced(0, 1, datagram));
    }
    file.extend(enhanced(1, 2, line));
    file.extend(block(3, &[words(&[datagrams[0].len() as u32]), datagrams[0].clone()].concat()));
    // Statistics, and an interface that there is not.
    file.extend(block(5, &words(&[0, 0, 0])));
    file.extend(enhanced(7, 1, line));
    file
}

fn captures() -> Vec<Seed> {
    let Ok(key) = "1.2.3.4".parse::<Key>() else { return Vec::new() };
    let place = SocketAddr::from(([10, 0, 0, 2], 50000));
    let offer = Offer { nonce: [5; 32], target: place, configured: place, connected: None }.encode();
    let from = Direction::TargetToHost;
    let sealed = seal(&key, Sealed { version: 4, data_key: None, from, sequence: 3, body: &offer });
    let line = Packet::control(PacketType::Reset, INITIAL_ID).encode_serial();
    let mut seeds = Vec::new();
    for (number, (link, head)) in links().into_iter().enumerate() {
        let whole = [head, packet(4, &sealed)].concat();
        seeds.push(Seed::new("capture", format!("link-{link}-{number}"), pcap(0xa1b2_c3d4, link, &[whole])));
    }
    let six = packet(6, &sealed);
    seeds.push(Seed::new("capture", "link-229", pcap(0xa1b2_3c4d, 229, std::slice::from_ref(&six))));
    seeds.push(Seed::new("capture", "line", pcap(0xd4c3_b2a1u32.swap_bytes(), 147, &[line.to_vec()])));
    seeds.push(Seed::new("capture", "new", pcapng(&[packet(4, &sealed), six], &line)));
    seeds
}
