//! Single datagrams with known plaintext: the generated ones from the fixture, the recorded ones when they are there.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use kd_wire::dissect::{Content, Dissector};
use kd_wire::kdnet::{DataKey, Datagram, Key, Rejection, Sealed, open, seal};
use kd_wire::message::Direction;
use serde_json::Value;

fn shared(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = root.join(file);
    if !path.exists() {
        eprintln!("skipped: {} is missing", path.display());
        return None;
    }
    Some(path)
}

fn load(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn synthetic() -> Value {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/syn-vectors.json"))
}

struct Vector {
    name: String,
    key: Key,
    control: bool,
    from: Direction,
    version: u8,
    sequence: u64,
    pad: u8,
    raw: Vec<u8>,
    body: Vec<u8>,
}

fn vectors(file: &Value) -> Vec<Vector> {
    let text = |vector: &Value, field: &str| vector[field].as_str().unwrap().to_owned();
    let bytes = |vector: &Value, field: &str| hex::decode(vector[field].as_str().unwrap()).unwrap();
    file["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| Vector {
            name: text(vector, "name"),
            key: text(vector, "key").parse().unwrap(),
            control: vector["channel"] == "control",
            from: if vector["dir"] == "host->target" { Direction::HostToTarget } else { Direction::TargetToHost },
            version: vector["version"].as_u64().unwrap() as u8,
            sequence: vector["seq"].as_u64().unwrap(),
            pad: vector["pad"].as_u64().unwrap() as u8,
            raw: bytes(vector, "raw"),
            body: bytes(vector, "body"),
        })
        .collect()
}

/// The data key of the response in the same file that goes with this vector's key.
fn data_key(all: &[Vector], vector: &Vector) -> DataKey {
    let response = all.iter().find(|other| other.key == vector.key && other.body.starts_with(&[1, 2])).unwrap();
    vector.key.data_key(&response.body)
}

fn check(all: &[Vector]) {
    for vector in all {
        let data_key = data_key(all, vector);
        let data_key = (!vector.control).then_some(&data_key);
        let Datagram { version, sequence, pad, body, .. } =
            open(&vector.key, data_key, vector.from, &vector.raw).unwrap_or_else(|e| panic!("{}: {e}", vector.name));
        assert_eq!((version, sequence, pad), (vector.version, vector.sequence, vector.pad), "{}", vector.name);
        assert_eq!(body, vector.body, "{}", vector.name);

        let content = Sealed { version, data_key, from: vector.from, sequence, body: &body };
        assert_eq!(seal(&vector.key, content), vector.raw, "{}: sealed again", vector.name);
    }
}

#[test]
fn synthetic_vectors() {
    let all = vectors(&synthetic());
    assert_eq!(all.len(), 9);
    check(&all);
}

#[test]
fn all_vectors() {
    let Some(path) = shared("capture/kd-vectors.json") else { return };
    let all = vectors(&load(&path));
    assert_eq!(all.len(), 59);
    check(&all);
}

/// Every way to damage a datagram that the facts name, on every generated vector.
#[test]
fn damaged_datagrams_are_rejected() {
    let all = vectors(&synthetic());
    for vector in &all {
        let data_key = data_key(&all, vector);
        let data_key = (!vector.control).then_some(&data_key);
        let attempt = |raw: &[u8]| open(&vector.key, data_key, vector.from, raw).map(|_| ());
        for bit in [6 * 8, 14 * 8 + 3, (vector.raw.len() - 17) * 8 + 7, (vector.raw.len() - 1) * 8] {
            let mut raw = vector.raw.clone();
            raw[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(attempt(&raw), Err(Rejection::Tag), "{}: bit {bit}", vector.name);
        }
        assert_eq!(attempt(&vector.raw[..37]), Err(Rejection::Short(37)));
        let cut = &vector.raw[..vector.raw.len() - 1];
        let expected = if cut.len() < 38 { Rejection::Short(cut.len()) } else { Rejection::Length(cut.len()) };
        assert_eq!(attempt(cut), Err(expected));
        let mut raw = vector.raw.clone();
        raw[4] = 3;
        assert_eq!(attempt(&raw), Err(Rejection::Version(3)));
        let mut raw = vector.raw.clone();
        raw[5] |= 4;
        assert_eq!(attempt(&raw), Err(Rejection::Flags(raw[5])));
        let mut raw = vector.raw.clone();
        raw[0] = b'N';
        assert_eq!(attempt(&raw), Err(Rejection::NotKdnet));

        let other = match vector.from {
            Direction::HostToTarget => Direction::TargetToHost,
            Direction::TargetToHost => Direction::HostToTarget,
        };
        assert_eq!(open(&vector.key, data_key, other, &vector.raw).map(|_| ()), Err(Rejection::Direction));
        let wrong: Key = "1.2.3.4".parse().unwrap();
        assert_eq!(open(&wrong, data_key, vector.from, &vector.raw).map(|_| ()), Err(Rejection::Tag));
    }
}

#[test]
fn sizes() {
    let key: Key = "1.2.3.4".parse().unwrap();
    for (body, payload) in
        [(0, 38), (1, 38), (12, 54), (16, 54), (72, 102), (322, 358), (344, 374), (1304, 1334), (1424, 1462)]
    {
        let body = vec![0; body];
        let content = Sealed { version: 4, data_key: None, from: Direction::HostToTarget, sequence: 1, body: &body };
        assert_eq!(seal(&key, content).len(), payload);
    }
}

#[test]
fn the_dissector_learns_the_data_key_from_the_response() {
    let all = vectors(&synthetic());
    let mut dissector = Dissector::new(all[0].key.clone());
    let names: Vec<_> = all
        .iter()
        .map(|vector| {
            let dissection = dissector.datagram(&vector.raw);
            assert_eq!(dissection.direction, Some(vector.from), "{}", vector.name);
            assert_eq!(dissection.envelope.as_ref().unwrap().sequence, Some(vector.sequence));
            dissection.name()
        })
        .collect();
    assert_eq!(
        names,
        [
            "Offer",
            "Response",
            "Poke",
            "Ping",
            "BreakIn",
            "ReadVirtualMemory",
            "ReadVirtualMemory",
            "ReadVirtualMemory",
            "ACKNOWLEDGE"
        ]
    );
    let stranger = Dissector::new("1.2.3.4".parse().unwrap()).datagram(&all[0].raw);
    assert_eq!((stranger.rejection, stranger.content), (Some(Rejection::Tag), Content::Opaque));
}
