//! Recorded traffic, explained one datagram or packet at a time.
//!
//! For `kdpool decode` and for tests of the codec: a [`Dissector`] follows a KDNET conversation, learns the data keys
//! from the responses it sees, and describes everything with names and values.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::kdnet::{Channel, DataKey, Datagram, Key, Offer, Ping, Rejection, Response, open, peek};
use crate::message::layout::Field;
use crate::message::{Direction, Fields, Message, Value};
use crate::packet::{BREAK_IN, Body, Deframed, Deframer, HEADER_SIZE, Packet, PacketType};

/// Data keys tried, newest first. A conversation has one; each restart of the target adds one.
const MAX_KEYS: usize = 8;

/// One datagram, or one packet of a byte stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dissection {
    /// From the authenticated contents; `None` when they could not be read.
    pub direction: Option<Direction>,
    /// `None` for serial packets, and for what is no KDNET datagram.
    pub envelope: Option<Envelope>,
    /// Why the contents could not be read.
    pub rejection: Option<Rejection>,
    /// The message, or why there is none.
    pub content: Content,
}

/// The KDNET datagram around the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Of the protocol: 2 (Windows 8.1), 4 and 5 (Windows 10 and later) are known.
    pub version: u8,
    /// Control or data.
    pub channel: Channel,
    /// `None` if it did not authenticate.
    pub sequence: Option<u64>,
}

/// What a datagram or packet turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Not readable; see [`Dissection::rejection`].
    Opaque,
    /// A target offers itself.
    Offer(Offer),
    /// A host takes an offer: keys are agreed with it.
    Response(Response),
    /// A host asks for an offer.
    Poke,
    /// The target says that the new key works.
    Ping(Ping),
    /// The host asks a running target to stop.
    BreakIn,
    /// ACKNOWLEDGE, RESEND, RESET.
    Control {
        /// Which of the three.
        packet_type: PacketType,
        /// The id that it is about.
        id: u32,
    },
    /// A KD message.
    Data {
        /// Its kind.
        packet_type: PacketType,
        /// Its id, which the acknowledgement names.
        id: u32,
        /// Decoded.
        message: Message,
    },
    /// Authentic or well framed, but not what it should be.
    Malformed {
        /// What is wrong with it.
        reason: String,
        /// From its first byte to its last, as it came.
        bytes: Bytes,
    },
    /// Serial bytes that belong to no packet.
    Noise(usize),
}

/// Follows a KDNET conversation.
#[derive(Debug)]
pub struct Dissector {
    key: Key,
    data_keys: VecDeque<DataKey>,
}

impl Dissector {
    /// Follows one conversation that is sealed with `key`.
    pub fn new(key: Key) -> Self {
        Dissector { key, data_keys: VecDeque::new() }
    }

    /// Explains one UDP payload. Give them in the order in which they were sent.
    pub fn datagram(&mut self, payload: &[u8]) -> Dissection {
        let header = match peek(payload) {
            Ok(header) => header,
            Err(rejection) => {
                return Dissection {
                    direction: None,
                    envelope: None,
                    rejection: Some(rejection),
                    content: Content::Opaque,
                };
            }
        };
        let envelope = |sequence| Envelope { version: header.version, channel: header.channel, sequence };
        match self.open(header.channel, payload) {
            Ok((direction, datagram)) => Dissection {
                direction: Some(direction),
                envelope: Some(envelope(Some(datagram.sequence))),
                rejection: None,
                content: match header.channel {
                    Channel::Control => self.control(&datagram.body),
                    Channel::Data => data(direction, &datagram.body),
                },
            },
            Err(rejection) => Dissection {
                direction: None,
                envelope: Some(envelope(None)),
                rejection: Some(rejection),
                content: Content::Opaque,
            },
        }
    }

    fn open(&self, channel: Channel, payload: &[u8]) -> Result<(Direction, Datagram), Rejection> {
        match channel {
            Channel::Control => self.open_with(None, payload),
            Channel::Data => {
                let mut last = Rejection::NoDataKey;
                for data_key in &self.data_keys {
                    match self.open_with(Some(data_key), payload) {
                        Ok(opened) => return Ok(opened),
                        Err(rejection) => last = rejection,
                    }
                }
                Err(last)
            }
        }
    }

    fn open_with(&self, data_key: Option<&DataKey>, payload: &[u8]) -> Result<(Direction, Datagram), Rejection> {
        let from = Direction::TargetToHost;
        match open(&self.key, data_key, from, payload) {
            Ok(datagram) => Ok((from, datagram)),
            Err(Rejection::Direction) => {
                let from = Direction::HostToTarget;
                open(&self.key, data_key, from, payload).map(|datagram| (from, datagram))
            }
            Err(rejection) => Err(rejection),
        }
    }

    fn control(&mut self, body: &Bytes) -> Content {
        if body.is_empty() {
            return Content::Poke;
        }
        if let Some(offer) = Offer::decode(body) {
            return Content::Offer(offer);
        }
        if let Some(response) = Response::decode(body) {
            self.data_keys.truncate(MAX_KEYS - 1);
            self.data_keys.push_front(self.key.data_key(body));
            return Content::Response(response);
        }
        Content::Malformed { reason: "neither an offer nor a response".into(), bytes: body.clone() }
    }
}

fn data(direction: Direction, body: &Bytes) -> Content {
    if body[..] == [BREAK_IN] {
        return Content::BreakIn;
    }
    if body.len() < HEADER_SIZE
        && let Some(ping) = Ping::decode(body)
    {
        return Content::Ping(ping);
    }
    match Packet::parse(body) {
        Ok(packet) => from_packet(direction, packet),
        Err(error) => Content::Malformed { reason: error.to_string(), bytes: body.clone() },
    }
}

fn from_packet(direction: Direction, packet: Packet) -> Content {
    let Packet { packet_type, id, body } = packet;
    match body {
        Body::Control => Content::Control { packet_type, id },
        Body::Data(bytes) => match Message::decode(packet_type, direction, &bytes) {
            Ok(message) => Content::Data { packet_type, id, message },
            Err(error) => Content::Malformed { reason: error.to_string(), bytes },
        },
    }
}

/// Follows one direction of a serial conversation.
#[derive(Debug)]
pub struct SerialDissector {
    direction: Direction,
    deframer: Deframer,
}

impl SerialDissector {
    /// Follows one direction of a line.
    pub fn new(direction: Direction) -> Self {
        SerialDissector { direction, deframer: Deframer::new() }
    }

    /// Explains the packets that these bytes complete. A break-in byte shows as one byte of noise unless it comes
    /// alone.
    pub fn bytes(&mut self, bytes: &[u8]) -> Vec<Dissection> {
        let direction = self.direction;
        let of = |content| Dissection { direction: Some(direction), envelope: None, rejection: None, content };
        if bytes == [BREAK_IN] && !self.deframer.is_partial() && direction == Direction::HostToTarget {
            return vec![of(Content::BreakIn)];
        }
        let mut found = Vec::new();
        self.deframer.push(bytes, |deframed| {
            let malformed = |reason| Content::Malformed { reason, bytes: Bytes::new() };
            found.push(of(match deframed {
                Deframed::Packet(packet) => from_packet(direction, packet),
                Deframed::Bad(error) => malformed(error.to_string()),
                Deframed::BadTrailer { id, found } => {
                    malformed(format!("packet {id:#010x} ends with {found:#04x} instead of 0xaa"))
                }
                Deframed::TooLong { count } => malformed(format!("ByteCount {count} is too long")),
                Deframed::Noise(bytes) => Content::Noise(bytes),
            }));
        });
        found
    }
}

impl Dissection {
    /// `ReadVirtualMemory`, `Offer`, `ACKNOWLEDGE`...
    pub fn name(&self) -> &'static str {
        match &self.content {
            Content::Opaque => "opaque",
            Content::Offer(_) => "Offer",
            Content::Response(_) => "Response",
            Content::Poke => "Poke",
            Content::Ping(_) => "Ping",
            Content::BreakIn => "BreakIn",
            Content::Control { packet_type, .. } => packet_type.name(),
            Content::Data { message, .. } => message.name(),
            Content::Malformed { .. } => "malformed",
            Content::Noise(_) => "noise",
        }
    }

    /// What the message carries, in wire order.
    pub fn fields(&self) -> Fields {
        let text = |text: String| Value::Text(text);
        let bytes = |bytes: &[u8]| Value::Bytes(Bytes::copy_from_slice(bytes));
        match &self.content {
            Content::Opaque | Content::Poke | Content::BreakIn | Content::Control { .. } => Fields::new(),
            Content::Offer(offer) => vec![
                ("Nonce".into(), bytes(&offer.nonce)),
                ("Target".into(), text(offer.target.to_string())),
                ("Configured".into(), text(offer.configured.to_string())),
                ("Connected".into(), text(offer.connected.map_or("none".into(), |address| address.to_string()))),
            ],
            Content::Response(response) => {
                vec![("Nonce".into(), bytes(&response.nonce)), ("Random".into(), bytes(&response.random))]
            }
            Content::Ping(ping) => vec![
                ("LastSequence".into(), ping.last_sequence.value()),
                ("Host".into(), text(std::net::Ipv4Addr::from(ping.host).to_string())),
            ],
            Content::Data { message, .. } => message.fields(),
            Content::Malformed { reason, bytes } => {
                vec![("Reason".into(), text(reason.clone())), ("Bytes".into(), Value::Bytes(bytes.clone()))]
            }
            Content::Noise(count) => vec![("Bytes".into(), (*count as u64).value())],
        }
    }
}

impl fmt::Display for Value {
    /// Numbers in hexadecimal with their full width, text quoted, long byte strings cut with their length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 32;
        match self {
            Value::Number(number, 8) => write!(f, "{number:#018x}"),
            Value::Number(number, _) => write!(f, "{number:#x}"),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Bytes(bytes) => {
                bytes.iter().take(SHOWN).try_for_each(|byte| write!(f, "{byte:02x}"))?;
                if bytes.len() > SHOWN { write!(f, "... ({} bytes)", bytes.len()) } else { Ok(()) }
            }
            Value::List(list) => {
                f.write_str("[")?;
                for (index, number) in list.iter().enumerate() {
                    write!(f, "{}{number:#x}", if index == 0 { "" } else { " " })?;
                }
                f.write_str("]")
            }
        }
    }
}
