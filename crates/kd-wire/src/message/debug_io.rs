//! DEBUG_IO (packet type 3): text from the target, and questions that block it until they are answered.
//!
//! ```text
//!            print (0x3230)       prompt (0x3231)            answer to a prompt
//!   0  u32   ApiNumber            ApiNumber                  ApiNumber
//!   4  u16   ProcessorLevel       ProcessorLevel             echoed
//!   6  u16   Processor            Processor                  echoed
//!   8  u32   LengthOfString       LengthOfPromptString       echoed
//!  12  u32   unused               LengthOfStringRead (max)   bytes that follow
//!  16  ...   text, no NUL         prompt, no NUL             answer
//! ```

use bytes::Bytes;

use super::layout::{Field, layout};
use super::{DecodeError, Fields, Layout, Value};
use crate::packet::MAX_KDNET;

/// ApiNumber of a print.
pub const PRINT_STRING: u32 = 0x3230;
/// ApiNumber of a prompt and of its answer.
pub const GET_STRING: u32 = 0x3231;

layout! {
    /// DbgPrint's text.
    struct PrintString [16] {
        4 processor_level: u16,
        6 processor: u16,
        8 length_of_string: u32,
    }
    +
    /// The text; use [`PrintString::text`].
    data
}

layout! {
    /// DbgPrompt's question.
    struct GetString [16] {
        4 processor_level: u16,
        6 processor: u16,
        8 length_of_prompt_string: u32,
        /// The longest answer that the target takes.
        12 length_of_string_read: u32,
    }
    +
    /// The question; use [`GetString::prompt`].
    data
}

layout! {
    /// The host's answer. The first fields repeat the question's.
    struct GetStringAnswer [16] {
        4 processor_level: u16,
        6 processor: u16,
        8 length_of_prompt_string: u32,
        12 length_of_string_read: u32,
    }
    +
    /// The answer.
    data
}

impl PrintString {
    /// Its bytes, as far as the length says and the packet has.
    pub fn text(&self) -> Bytes {
        self.data.slice(..self.data.len().min(self.length_of_string as usize))
    }
}

impl GetString {
    /// Its bytes, as far as the length says and the packet has.
    pub fn prompt(&self) -> Bytes {
        self.data.slice(..self.data.len().min(self.length_of_prompt_string as usize))
    }

    /// The answer packet, cut at what the target takes and at what fits into any packet.
    pub fn answer(&self, text: &[u8]) -> GetStringAnswer {
        let len = text.len().min(self.length_of_string_read as usize).min(MAX_KDNET - Self::SIZE);
        GetStringAnswer {
            processor_level: self.processor_level,
            processor: self.processor,
            length_of_prompt_string: self.length_of_prompt_string,
            length_of_string_read: len as u32,
            data: Bytes::copy_from_slice(&text[..len]),
        }
    }
}

/// Text between a target and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugIo {
    /// DbgPrint: nothing is answered.
    Print(PrintString),
    /// DbgPrompt: the target waits for a line.
    Prompt(GetString),
    /// The line.
    Answer(GetStringAnswer),
    /// A number that nobody has described.
    Unknown {
        /// The number.
        api: u32,
        /// The packet's bytes.
        bytes: Bytes,
    },
}

impl DebugIo {
    /// What a target sent.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        Ok(match api(bytes)? {
            PRINT_STRING => DebugIo::Print(Layout::decode(bytes)?),
            GET_STRING => DebugIo::Prompt(Layout::decode(bytes)?),
            api => DebugIo::Unknown { api, bytes: bytes.slice(4..) },
        })
    }

    /// What a host sent.
    pub fn decode_answer(bytes: &Bytes) -> Result<Self, DecodeError> {
        Ok(match api(bytes)? {
            GET_STRING => DebugIo::Answer(Layout::decode(bytes)?),
            api => DebugIo::Unknown { api, bytes: bytes.slice(4..) },
        })
    }

    /// As a packet carries it.
    pub fn encode(&self) -> Vec<u8> {
        let (api, mut bytes) = match self {
            DebugIo::Print(message) => (PRINT_STRING, message.encode()),
            DebugIo::Prompt(message) => (GET_STRING, message.encode()),
            DebugIo::Answer(message) => (GET_STRING, message.encode()),
            DebugIo::Unknown { api, bytes } => (*api, [&[0; 4], &bytes[..]].concat()),
        };
        api.put(&mut bytes, 0);
        bytes
    }

    /// For people: `PrintString`.
    pub fn name(&self) -> &'static str {
        match self {
            DebugIo::Print(_) => "PrintString",
            DebugIo::Prompt(_) => "GetString",
            DebugIo::Answer(_) => "GetStringAnswer",
            DebugIo::Unknown { .. } => "UnknownDebugIo",
        }
    }

    pub(crate) fn fields(&self, out: &mut Fields) {
        let text = match self {
            DebugIo::Print(message) => {
                message.fields(out);
                message.text()
            }
            DebugIo::Prompt(message) => {
                message.fields(out);
                message.prompt()
            }
            DebugIo::Answer(message) => {
                message.fields(out);
                message.data.clone()
            }
            DebugIo::Unknown { api, bytes } => {
                out.push(("ApiNumber".into(), api.value()));
                out.push(("Bytes".into(), Value::Bytes(bytes.clone())));
                return;
            }
        };
        out.retain(|(name, _)| name != "data");
        out.push(("String".into(), Value::Text(String::from_utf8_lossy(&text).into_owned())));
    }
}

fn api(bytes: &Bytes) -> Result<u32, DecodeError> {
    if bytes.len() < 4 {
        return Err(DecodeError { what: "DEBUG_IO", needed: 4, got: bytes.len() });
    }
    Ok(u32::get(bytes, 0))
}
