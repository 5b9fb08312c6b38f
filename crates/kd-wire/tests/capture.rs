//! The whole recorded session between WinDbg and a boot debugger, when it is there.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kd_wire::dissect::{Content, Dissection, Dissector};
use kd_wire::kdnet::{Channel, DataKey, Key, Sealed, open, seal};
use kd_wire::message::state_change::{REBOOTING, Report};
use kd_wire::message::{Direction, FileIoRequest, Message};
use kd_wire::packet::{Packet, PacketType};
use kd_wire::session::{Diagnostic, Event, HostSession, KdnetConfig};

struct Recorded {
    time: Duration,
    direction: Direction,
    payload: Vec<u8>,
}

fn recorded() -> Option<Vec<Recorded>> {
    let root = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = root.join("capture/kd-cap1-replay.tsv");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is missing", path.display());
        return None;
    };
    let parse = |line: &str| {
        let columns: Vec<_> = line.split('\t').collect();
        Recorded {
            time: Duration::from_secs_f64(columns[1].parse().unwrap()),
            direction: if columns[2] == "H>T" { Direction::HostToTarget } else { Direction::TargetToHost },
            payload: hex::decode(columns[3]).unwrap(),
        }
    };
    Some(text.lines().map(parse).collect())
}

fn dissect(recorded: &[Recorded]) -> Vec<Dissection> {
    let mut dissector = Dissector::new("8.8.8.8".parse().unwrap());
    recorded.iter().map(|datagram| dissector.datagram(&datagram.payload)).collect()
}

#[test]
fn every_datagram_is_authentic_and_every_message_known() {
    let Some(recorded) = recorded() else { return };
    assert_eq!(recorded.len(), 955);
    let mut counts = BTreeMap::new();
    for (index, (datagram, dissection)) in recorded.iter().zip(dissect(&recorded)).enumerate() {
        assert_eq!(dissection.rejection, None, "{index}");
        assert_eq!(dissection.direction, Some(datagram.direction), "{index}");
        assert!(!matches!(dissection.content, Content::Malformed { .. }), "{index}: {:?}", dissection.content);
        if let Content::Data { message, .. } = &dissection.content {
            assert!(!message.is_unknown(), "{index}: {message:?}");
        }
        let arrow = if datagram.direction == Direction::HostToTarget { ">" } else { "<" };
        *counts.entry(format!("{arrow}{}", dissection.name())).or_insert(0) += 1;
    }
    let expected: BTreeMap<String, i32> = EXPECTED.iter().map(|(name, count)| (name.to_string(), *count)).collect();
    assert_eq!(counts, expected);
    assert_eq!(counts.values().sum::<i32>(), 955);
}

/// What WinDbg and Windows leave in unused bytes is the only thing that encoding may change.
#[test]
fn messages_survive_decoding_and_encoding() {
    let Some(recorded) = recorded() else { return };
    for (index, dissection) in dissect(&recorded).into_iter().enumerate() {
        let Content::Data { packet_type, id, message } = dissection.content else { continue };
        let (encoded_type, bytes) = message.encode();
        assert_eq!(encoded_type, packet_type, "{index}");
        let packet = Packet::data(packet_type, id, bytes.clone());
        assert_eq!(Packet::parse(&packet.encode()).unwrap(), packet, "{index}");
        let again = Message::decode(packet_type, dissection.direction.unwrap(), &bytes.into()).unwrap();
        assert_eq!(again, message, "{index}");
    }
}

/// Packet ids: each side's data packets count by 2, acknowledgements repeat the id.
#[test]
fn packet_ids_follow_the_rules_that_the_session_keeps() {
    let Some(recorded) = recorded() else { return };
    let mut last = BTreeMap::new();
    let mut data = 0;
    let mut acknowledged = 0;
    for (index, dissection) in dissect(&recorded).into_iter().enumerate() {
        let host = dissection.direction == Some(Direction::HostToTarget);
        match dissection.content {
            Content::Data { id, .. } => {
                let step = last.insert(host, id).map_or(0, |before: u32| id.wrapping_sub(before));
                assert!(matches!(step, 0 | 2), "{index}: step {step}");
                data += 1;
            }
            Content::Control { packet_type: PacketType::Acknowledge, id } => {
                assert_eq!(last.get(&!host), Some(&id), "{index}");
                acknowledged += 1;
            }
            _ => {}
        }
    }
    assert_eq!((data, acknowledged), (263, 259));
}

#[test]
fn the_reboot_notice_is_recognised() {
    let Some(recorded) = recorded() else { return };
    let all = dissect(&recorded);
    let Content::Data { message: Message::StateChange(change), .. } = &all[951].content else { panic!() };
    let Report::LoadSymbols(report) = &change.report else { panic!("{change:?}") };
    assert_eq!((report.base_of_dll, report.path_name_length, report.unload_symbols), (REBOOTING, 0, 1));
    let Content::Data { message: Message::StateChange(change), .. } = &all[7].content else { panic!() };
    let Report::LoadSymbols(report) = &change.report else { panic!("{change:?}") };
    assert_eq!((report.base_of_dll, report.path().as_str()), (0x96f000, "winload.efi"));
}

#[test]
fn refusing_a_file_gives_windbgs_bytes() {
    let Some(recorded) = recorded() else { return };
    let all = dissect(&recorded);
    let mut pending = None;
    let mut compared = 0;
    for dissection in all {
        let Content::Data { message, .. } = dissection.content else { continue };
        match message {
            Message::FileIoRequest(request) => {
                let FileIoRequest::Create(create) = &request else { panic!("{request:?}") };
                let path = create.path().to_ascii_lowercase();
                assert!(path.contains("windows") || path.contains("system32"), "{path}");
                pending = Some(request);
            }
            Message::FileIoReply(reply) => {
                assert_eq!(pending.take().unwrap().refuse(), reply);
                compared += 1;
            }
            _ => {}
        }
    }
    assert_eq!(compared, 33);
}

#[test]
fn offers_come_every_three_seconds_and_grow_by_three() {
    let Some(recorded) = recorded() else { return };
    let all = dissect(&recorded);
    let offers: Vec<_> = recorded
        .iter()
        .zip(&all)
        .filter_map(|(datagram, dissection)| {
            let Content::Offer(offer) = &dissection.content else { return None };
            let envelope = dissection.envelope.as_ref()?;
            assert_eq!(envelope.channel, Channel::Control);
            Some((datagram.time, envelope.sequence?, offer.clone()))
        })
        .collect();
    assert_eq!(offers.len(), 427);
    for pair in offers.windows(2) {
        assert_eq!(pair[1].1 - pair[0].1, 3);
        assert_eq!(pair[1].2.boot(), pair[0].2.boot());
    }
    assert_eq!(offers[0].2.connected, None);
    assert_eq!(offers[1].2.connected, Some("192.168.2.1:51111".parse().unwrap()));
}

/// What the recorded target said, under a key that a host session agreed on: every message arrives once, in order.
#[test]
fn a_host_session_takes_what_the_target_said() {
    let Some(recorded) = recorded() else { return };
    let (key, peer, from): (Key, SocketAddr, _) =
        ("8.8.8.8".parse().unwrap(), "192.168.2.72:51111".parse().unwrap(), Direction::TargetToHost);
    let mut reader = Recording::new(&key);
    let mut host = HostSession::kdnet(KdnetConfig { key: key.clone(), targets: Vec::new(), seed: [1; 32] });
    let mut data_key = None;
    let mut counts = BTreeMap::new();
    let mut sequence = 0;
    for datagram in &recorded {
        let Some((channel, body)) = reader.read(datagram) else { continue };
        match channel {
            Channel::Control => host.handle_datagram(datagram.time, peer, &datagram.payload),
            Channel::Data => {
                sequence += 1;
                let content = Sealed { version: 4, data_key: data_key.as_ref(), from, sequence, body: &body };
                host.handle_datagram(datagram.time, peer, &seal(&key, content));
            }
        }
        while let Some(transmit) = host.poll_transmit() {
            if let Ok(control) = open(&key, None, Direction::HostToTarget, &transmit.data) {
                assert!(data_key.is_none(), "a keep-alive was answered");
                data_key = Some(key.data_key(&control.body));
            }
        }
        while let Some(event) = host.poll_event() {
            let name = match event {
                Event::Connected { .. } => "connected",
                Event::Print { .. } => "print",
                Event::StateChange(_) => "stop",
                Event::FileIo(request) => {
                    host.answer_file(datagram.time, request.refuse());
                    "file"
                }
                Event::Diagnostic(Diagnostic::StaleReply { .. }) => "stale reply",
                Event::Diagnostic(_) => continue,
                other => panic!("{other:?}"),
            };
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    // The first of the 7 prints came twice under one id. So did one of the 92 replies, behind a RESET that WinDbg had
    // asked for.
    let expected = BTreeMap::from([("connected", 1), ("print", 6), ("stop", 3), ("file", 33), ("stale reply", 91)]);
    assert_eq!(counts, expected);
}

/// Opens the target's datagrams of the recording.
struct Recording {
    key: Key,
    data_key: Option<DataKey>,
}

impl Recording {
    fn new(key: &Key) -> Self {
        Recording { key: key.clone(), data_key: None }
    }

    fn read(&mut self, datagram: &Recorded) -> Option<(Channel, Bytes)> {
        let opened = open(&self.key, self.data_key.as_ref(), datagram.direction, &datagram.payload).unwrap();
        if datagram.direction == Direction::HostToTarget {
            if opened.channel == Channel::Control {
                self.data_key = Some(self.key.data_key(&opened.body));
            }
            return None;
        }
        Some((opened.channel, opened.body))
    }
}

const EXPECTED: &[(&str, i32)] = &[
    ("<ACKNOWLEDGE", 127),
    ("<CreateFile", 33),
    ("<Exception", 1),
    ("<GetContext", 5),
    ("<GetContextEx", 3),
    ("<GetVersion", 1),
    ("<LoadSymbols", 2),
    ("<Offer", 427),
    ("<Ping", 1),
    ("<PrintString", 7),
    ("<RESEND", 1),
    ("<RESET", 1),
    ("<ReadControlSpace", 3),
    ("<ReadVirtualMemory", 44),
    ("<RestoreBreakPoint", 32),
    ("<SetContext", 2),
    ("<WriteControlSpace", 2),
    (">ACKNOWLEDGE", 132),
    (">Continue", 1),
    (">Continue2", 2),
    (">CreateFile", 33),
    (">GetContext", 5),
    (">GetContextEx", 3),
    (">GetVersion", 1),
    (">RESEND", 1),
    (">RESET", 1),
    (">ReadControlSpace", 3),
    (">ReadVirtualMemory", 44),
    (">Response", 1),
    (">RestoreBreakPoint", 32),
    (">SetContext", 2),
    (">WriteControlSpace", 2),
];
