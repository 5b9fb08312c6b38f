//! A peer that means harm, or is broken.

use std::time::Duration;

use kd_wire::kdnet::{DataKey, Key, Sealed, open, seal};
use kd_wire::message::Direction;
use kd_wire::message::Message;
use kd_wire::message::manipulate::{ManipulateReply, Reply, read_virtual_memory};
use kd_wire::packet::{Packet, PacketType};
use kd_wire::session::{Diagnostic, Event, HostSession, SerialConfig};

use crate::network::*;

const SECOND: Duration = Duration::from_secs(1);

/// A target that answers everything with RESEND gets a bounded number of packets.
#[test]
fn a_resend_storm_is_bounded() {
    let mut host = HostSession::serial(SerialConfig::default());
    host.request(Duration::ZERO, 0, read(0x1000, 4)).unwrap();
    let resend = Packet::control(PacketType::Resend, 0).encode_serial();
    let mut sent = 0;
    for _ in 0..10_000 {
        host.handle_bytes(Duration::ZERO, &resend);
        while host.poll_transmit().is_some() {
            sent += 1;
        }
    }
    assert!(sent <= 10, "{sent}");
    let events: Vec<_> = std::iter::from_fn(|| host.poll_event()).collect();
    assert!(events.contains(&Event::Diagnostic(Diagnostic::ResendStorm)));
    assert!(events.len() < 20);
    // The clock goes on, and ends the request.
    while let Some(now) = host.poll_timeout() {
        host.handle_timeout(now);
        host.handle_bytes(now, &resend);
        assert!(now < 120 * SECOND);
    }
    let events: Vec<_> = std::iter::from_fn(|| host.poll_event()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::RequestFailed { .. })));
}

/// Damaged packets without end are asked for a few times, then once a second.
#[test]
fn damaged_packets_without_end_are_not_echoed_without_end() {
    let mut host = HostSession::serial(SerialConfig::default());
    host.handle_bytes(Duration::ZERO, &Packet::control(PacketType::Resend, 0).encode_serial());
    let (packet_type, payload) = print("x").encode();
    let mut bytes = Packet::data(packet_type, 0x8080_0000, payload).encode_serial().to_vec();
    bytes[20] ^= 1;
    let mut sent = 0;
    for _ in 0..10_000 {
        host.handle_bytes(Duration::ZERO, &bytes);
        while host.poll_transmit().is_some() {
            sent += 1;
        }
    }
    assert!(sent <= 10, "{sent}");
}

/// A reply that was owed to another debugger must not answer this one's request.
#[test]
fn a_stale_reply_is_dropped() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    let now = pair.now;
    let stale = read_virtual_memory::Reply {
        target_base_address: 0xdead_0000,
        transfer_count: 4,
        actual_bytes_read: 4,
        data: vec![1, 2, 3, 4].into(),
    };
    for (processor, body) in [(0, Reply::ReadVirtualMemory(stale.clone())), (3, Reply::ReadVirtualMemory(stale))] {
        pair.target.send(now, Message::Reply(ManipulateReply { processor, return_status: 0, body }));
    }
    assert_eq!(pair.read(0x1000, 4), memory(0x1000, 4));
    pair.run_for(SECOND);
    assert_eq!(pair.count(|event| matches!(event, Event::Diagnostic(Diagnostic::StaleReply { api: 0x3130 }))), 2);
}

/// Our own datagrams, sent back to us.
#[test]
fn a_reflector_is_recognised() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    for raw in pair.host_sent.clone() {
        pair.inject(target_address(), &raw);
    }
    pair.run_for(SECOND);
    assert!(pair.has_diagnostic(|diagnostic| matches!(diagnostic, Diagnostic::OwnDirection { .. })));
    assert_eq!(pair.read(0x1000, 4), memory(0x1000, 4));
}

/// The host's numbers only grow, over retransmissions and new keys alike.
#[test]
fn sequence_numbers_only_grow() {
    let mut pair = Pair::kdnet(4);
    pair.faults = Faults { lose: 20, ..Faults::default() };
    pair.attach(60 * SECOND);
    for index in 0..10 {
        pair.read(0x1000 + index, 4);
    }
    let key: Key = key();
    let mut keys: Vec<DataKey> = Vec::new();
    let mut last = 0;
    for raw in &pair.host_sent {
        if let Ok(control) = open(&key, None, Direction::HostToTarget, raw) {
            keys.push(key.data_key(&control.body));
            continue;
        }
        let sequence = keys
            .iter()
            .find_map(|data_key| open(&key, Some(data_key), Direction::HostToTarget, raw).ok())
            .unwrap()
            .sequence;
        assert!(sequence > last, "{sequence} after {last}");
        last = sequence;
    }
}

/// Authentic datagrams with nonsense inside.
#[test]
fn authentic_nonsense_does_not_end_the_session() {
    let mut pair = Pair::kdnet(1);
    pair.attach(3 * SECOND);
    let key: Key = key();
    let data_key = pair
        .host_sent
        .iter()
        .filter_map(|raw| open(&key, None, Direction::HostToTarget, raw).ok())
        .map(|control| key.data_key(&control.body))
        .next_back()
        .unwrap();
    let bodies: [&[u8]; 6] = [
        &[],
        &[0x62],
        &[0xff; 20],
        b"00000000000000000000",
        &[0x30, 0x30, 0x30, 0x30, 7, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x69, 0x69, 0x69, 0x69, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for (index, body) in bodies.iter().enumerate() {
        let content = Sealed {
            version: 4,
            data_key: Some(&data_key),
            from: Direction::TargetToHost,
            sequence: 20 + index as u64,
            body,
        };
        let raw = seal(&key, content);
        pair.inject(target_address(), &raw);
    }
    pair.run_for(Duration::from_millis(100));
    // The target's own numbers must pass those used here before it is heard again.
    for index in 0..20 {
        let now = pair.now;
        pair.host.request(now, 0, read(0x1000 + index, 4)).ok();
        pair.run_for(2 * SECOND);
    }
    pair.events.clear();
    assert_eq!(pair.read(0x9000, 4), memory(0x9000, 4));
}
