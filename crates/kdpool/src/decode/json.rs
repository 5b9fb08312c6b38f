//! What `--format json` prints of a capture.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use kd_link::{Captured, CapturedData};
use kd_shell::ResultShape;
use kd_wire::dissect::Dissection;
use kd_wire::message::Value;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Map;

use super::{arrow, channel, packet};

/// A line: a datagram, or a packet of a serial line.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Line {
    /// From 0 on.
    index: u64,
    /// Seconds since 1970.
    time: f64,
    /// Seconds since the first line.
    elapsed: f64,
    /// `H>T` or `T>H`; null when it cannot be known.
    direction: Option<&'static str>,
    channel: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    datagram: Option<Datagram>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    envelope: Option<Envelope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<Packet>,
    #[serde(flatten)]
    content: Content,
}

/// Of a network's line.
#[derive(Debug, JsonSchema, Serialize)]
struct Datagram {
    #[schemars(with = "String")]
    source: SocketAddr,
    #[schemars(with = "String")]
    destination: SocketAddr,
    /// Of its payload, in bytes.
    length: usize,
}

/// Of a datagram that could be opened.
#[derive(Debug, JsonSchema, Serialize)]
struct Envelope {
    version: u8,
    /// null of a datagram whose inside cannot be read.
    sequence: Option<u64>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Packet {
    #[serde(rename = "type")]
    kind: &'static str,
    /// In hexadecimal.
    id: String,
}

#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
enum Content {
    Unreadable {
        /// Why, for people.
        unreadable: String,
    },
    Message {
        /// Its name.
        message: String,
        /// By their names: numbers, text for numbers of 64 bits and for bytes (both hexadecimal), or lists.
        fields: Map<String, serde_json::Value>,
    },
}

impl Line {
    pub(super) fn new(index: u64, elapsed: Duration, captured: &Captured, dissection: &Dissection) -> Line {
        let datagram = match &captured.data {
            CapturedData::Datagram { src, dst, payload } => {
                Some(Datagram { source: *src, destination: *dst, length: payload.len() })
            }
            CapturedData::Bytes(_) => None,
        };
        let envelope = dissection.envelope.as_ref();
        let content = match &dissection.rejection {
            Some(rejection) => Content::Unreadable { unreadable: rejection.to_string() },
            None => Content::Message {
                message: dissection.name().to_string(),
                fields: dissection.fields().into_iter().map(|(name, value)| (name, json_value(&value))).collect(),
            },
        };
        Line {
            index,
            time: captured.time.as_secs_f64(),
            elapsed: elapsed.as_secs_f64(),
            direction: arrow(dissection.direction),
            channel: channel(dissection),
            datagram,
            envelope: envelope.map(|envelope| Envelope { version: envelope.version, sequence: envelope.sequence }),
            packet: packet(&dissection.content).map(|(kind, id)| Packet { kind, id: format!("{id:#010x}") }),
            content,
        }
    }
}

/// 64-bit numbers do not fit a JSON number everywhere, so they are hexadecimal text.
fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Number(number, 8) => format!("{number:#x}").into(),
        Value::Number(number, _) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => {
            bytes.iter().fold(String::with_capacity(bytes.len() * 2), |hex, byte| hex + &format!("{byte:02x}")).into()
        }
        Value::List(numbers) => numbers.iter().map(|number| format!("{number:#x}")).collect::<Vec<_>>().into(),
    }
}

/// What was found in the whole file.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Total<'a> {
    pub(super) datagrams: u64,
    /// A datagram has one line, a piece of a serial stream as many as it completes packets.
    pub(super) lines: u64,
    pub(super) bad_tags: u64,
    /// Their key cannot be known: it was agreed before the first response in the file.
    pub(super) without_key: u64,
    pub(super) not_kdnet: u64,
    /// Readable, but not what they should be.
    pub(super) unparsed: u64,
    /// Of a kind without a name.
    pub(super) unknown: u64,
    /// Of other programs.
    pub(super) other_udp: u64,
    pub(super) skipped_packets: u64,
    /// How many of each.
    pub(super) messages: &'a BTreeMap<&'static str, u64>,
}

/// What is printed: a line each, and at the end, on standard error, what it comes to.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub(super) enum Decoded<'a> {
    Line(Line),
    Last { total: Total<'a> },
}

pub(crate) const SHAPE: ResultShape = ResultShape::of::<Decoded<'static>>("kdpool-decode");
