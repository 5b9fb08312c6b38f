//! KD messages: what travels in data packets.
//!
//! The same on serial lines and KDNET. Decoding is by offset, keeps what it does not know as bytes, and never
//! looks at unused bytes; encoding zeroes them.

pub mod control_request;
pub mod debug_io;
pub mod file_io;
pub(crate) mod layout;
pub mod manipulate;
pub mod state_change;
pub mod trace_io;

pub use control_request::ControlRequest;
pub use debug_io::DebugIo;
pub use file_io::{FileIoReply, FileIoRequest};
pub use layout::{DecodeError, Fields, Layout, Value};
pub use manipulate::{ManipulateReply, ManipulateRequest};
pub use state_change::StateChange;
pub use trace_io::TraceIo;

use bytes::Bytes;

use crate::packet::PacketType;

/// Who sent a message. Requests and replies share their packet types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the debugger.
    HostToTarget,
    /// From the debuggee.
    TargetToHost,
}

/// One decoded data packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Why and where the target stands.
    StateChange(StateChange),
    /// What a stopped target is asked to do.
    Request(ManipulateRequest),
    /// What it answers.
    Reply(ManipulateReply),
    /// Text that the target prints or asks for.
    DebugIo(DebugIo),
    /// The target wants a file of the host's.
    FileIoRequest(FileIoRequest),
    /// What the host answers.
    FileIoReply(FileIoReply),
    /// Trace data, which nothing here reads.
    TraceIo(TraceIo),
    /// A request of the target's to its host.
    ControlRequest(ControlRequest),
    /// A packet type without a known message, STATE_CHANGE32 among them.
    Unknown {
        /// Its kind.
        packet_type: PacketType,
        /// From its first byte to its last, as it came.
        bytes: Bytes,
    },
}

impl Message {
    /// What a packet of this kind, in this direction, says.
    pub fn decode(packet_type: PacketType, direction: Direction, bytes: &Bytes) -> Result<Self, DecodeError> {
        use Direction::{HostToTarget, TargetToHost};
        Ok(match (packet_type, direction) {
            (PacketType::StateChange64, _) => Message::StateChange(StateChange::decode(bytes)?),
            (PacketType::StateManipulate, HostToTarget) => Message::Request(ManipulateRequest::decode(bytes)?),
            (PacketType::StateManipulate, TargetToHost) => Message::Reply(ManipulateReply::decode(bytes)?),
            (PacketType::DebugIo, HostToTarget) => Message::DebugIo(DebugIo::decode_answer(bytes)?),
            (PacketType::DebugIo, TargetToHost) => Message::DebugIo(DebugIo::decode(bytes)?),
            (PacketType::FileIo, HostToTarget) => Message::FileIoReply(FileIoReply::decode(bytes)?),
            (PacketType::FileIo, TargetToHost) => Message::FileIoRequest(FileIoRequest::decode(bytes)?),
            (PacketType::TraceIo, _) => Message::TraceIo(TraceIo::decode(bytes)?),
            (PacketType::ControlRequest, _) => Message::ControlRequest(ControlRequest::decode(bytes)?),
            _ => Message::Unknown { packet_type, bytes: bytes.clone() },
        })
    }

    /// The packet's kind and its bytes.
    pub fn encode(&self) -> (PacketType, Vec<u8>) {
        match self {
            Message::StateChange(message) => (PacketType::StateChange64, message.encode()),
            Message::Request(message) => (PacketType::StateManipulate, message.encode()),
            Message::Reply(message) => (PacketType::StateManipulate, message.encode()),
            Message::DebugIo(message) => (PacketType::DebugIo, message.encode()),
            Message::FileIoRequest(message) => (PacketType::FileIo, message.encode()),
            Message::FileIoReply(message) => (PacketType::FileIo, message.encode()),
            Message::TraceIo(message) => (PacketType::TraceIo, message.encode()),
            Message::ControlRequest(message) => (PacketType::ControlRequest, message.encode()),
            Message::Unknown { packet_type, bytes } => (*packet_type, bytes.to_vec()),
        }
    }

    /// The message's name, as a dissector prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Message::StateChange(message) => message.name(),
            Message::Request(message) => manipulate::api_name(message.body.api()).unwrap_or("UnknownApi"),
            Message::Reply(message) => manipulate::api_name(message.body.api()).unwrap_or("UnknownApi"),
            Message::DebugIo(message) => message.name(),
            Message::FileIoRequest(message) => message.name(),
            Message::FileIoReply(message) => message.name(),
            Message::TraceIo(_) => "TraceIo",
            Message::ControlRequest(message) => message.name(),
            Message::Unknown { .. } => "Unknown",
        }
    }

    /// Whether some part of it is one this crate has no name for.
    pub fn is_unknown(&self) -> bool {
        match self {
            Message::StateChange(message) => matches!(message.report, state_change::Report::Unknown { .. }),
            Message::Request(message) => matches!(message.body, manipulate::Request::Unknown(_)),
            Message::Reply(message) => matches!(message.body, manipulate::Reply::Unknown(_)),
            Message::DebugIo(message) => matches!(message, DebugIo::Unknown { .. }),
            Message::FileIoRequest(message) => matches!(message, FileIoRequest::Unknown { .. }),
            Message::FileIoReply(message) => matches!(message, FileIoReply::Unknown { .. }),
            Message::TraceIo(_) | Message::ControlRequest(_) => false,
            Message::Unknown { .. } => true,
        }
    }

    /// The fields, in wire order.
    pub fn fields(&self) -> Fields {
        let mut out = Fields::new();
        match self {
            Message::StateChange(message) => message.fields(&mut out),
            Message::Request(message) => message.fields(&mut out),
            Message::Reply(message) => message.fields(&mut out),
            Message::DebugIo(message) => message.fields(&mut out),
            Message::FileIoRequest(message) => message.fields(&mut out),
            Message::FileIoReply(message) => message.fields(&mut out),
            Message::TraceIo(message) => Layout::fields(message, &mut out),
            Message::ControlRequest(message) => Layout::fields(message, &mut out),
            Message::Unknown { bytes, .. } => out.push(("Bytes".into(), Value::Bytes(bytes.clone()))),
        }
        out
    }
}
