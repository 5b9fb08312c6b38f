//! FILE_IO (packet type 11): the target works with files of the host, and is blocked until it is answered.
//!
//! ```text
//!        create (0x3430)              read (0x3431), write (0x3432)   close (0x3433)
//!   0    ApiNumber u32                ApiNumber u32                   ApiNumber u32
//!   4    Status u32 (reply)           Status u32 (reply)              Status u32 (reply)
//!   8    DesiredAccess u32            Handle u64                      Handle u64
//!  12    FileAttributes u32
//!  16    ShareAccess u32              Offset u64
//!  20    CreateDisposition u32
//!  24    CreateOptions u32            Length u32
//!  32    Handle u64 (reply)
//!  40    Length u64 (reply)
//!  64    UTF-16 path, NUL (request)   bytes (write request, read reply)
//! ```

use bytes::Bytes;

use super::layout::{Field, layout};
use super::{DecodeError, Fields, Layout, Value};

/// Opens a file of the host's.
pub const CREATE_FILE: u32 = 0x3430;
/// Bytes of an open file are wanted.
pub const READ_FILE: u32 = 0x3431;
/// Bytes for an open file.
pub const WRITE_FILE: u32 = 0x3432;
/// A file's handle is given back.
pub const CLOSE_FILE: u32 = 0x3433;

/// STATUS_NO_SUCH_FILE, which is what WinDbg answers when no replacement file is mapped; the target then uses its own.
pub const NO_SUCH_FILE: u32 = 0xc000_000f;

const SIZE: usize = 64;

layout! {
    /// 0x3430.
    struct CreateFile [64] {
        4 status: u32,
        8 desired_access: u32,
        12 file_attributes: u32,
        16 share_access: u32,
        20 create_disposition: u32,
        24 create_options: u32,
        /// Reply.
        32 handle: u64,
        /// Reply: the file's size.
        40 length: u64,
    }
    +
    /// Request: the path.
    data
}

layout! {
    /// 0x3431 and 0x3432.
    struct Transfer [64] {
        4 status: u32,
        8 handle: u64,
        16 offset: u64,
        24 length: u32,
    }
    +
    /// What is read or written.
    data
}

layout! {
    /// 0x3433.
    struct CloseFile [64] {
        4 status: u32,
        8 handle: u64,
    }
}

impl CreateFile {
    /// The path that the target asks for, up to its NUL.
    pub fn path(&self) -> String {
        let units = self.data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
    }
}

macro_rules! file_io {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            /// Opens a file.
            Create(CreateFile),
            /// Reads of an open file.
            Read(Transfer),
            /// Writes to an open file.
            Write(Transfer),
            /// Gives the file's handle back.
            Close(CloseFile),
            /// A number that nobody has described.
            Unknown {
                /// The number.
                api: u32,
                /// The bytes behind it.
                bytes: Bytes,
            },
        }

        impl $name {
            /// Reads one, by its ApiNumber.
            pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
                if bytes.len() < SIZE {
                    return Err(DecodeError { what: "FILE_IO", needed: SIZE, got: bytes.len() });
                }
                Ok(match u32::get(bytes, 0) {
                    CREATE_FILE => $name::Create(Layout::decode(bytes)?),
                    READ_FILE => $name::Read(Layout::decode(bytes)?),
                    WRITE_FILE => $name::Write(Layout::decode(bytes)?),
                    CLOSE_FILE => $name::Close(Layout::decode(bytes)?),
                    api => $name::Unknown { api, bytes: bytes.slice(4..) },
                })
            }

            /// As a packet carries it.
            pub fn encode(&self) -> Vec<u8> {
                let (api, mut bytes) = match self {
                    $name::Create(message) => (CREATE_FILE, message.encode()),
                    $name::Read(message) => (READ_FILE, message.encode()),
                    $name::Write(message) => (WRITE_FILE, message.encode()),
                    $name::Close(message) => (CLOSE_FILE, message.encode()),
                    $name::Unknown { api, bytes } => (*api, [&[0; 4], &bytes[..]].concat()),
                };
                api.put(&mut bytes, 0);
                bytes
            }

            /// For people: `ReadFile`.
            pub fn name(&self) -> &'static str {
                match self {
                    $name::Create(_) => "CreateFile",
                    $name::Read(_) => "ReadFile",
                    $name::Write(_) => "WriteFile",
                    $name::Close(_) => "CloseFile",
                    $name::Unknown { .. } => "UnknownFileIo",
                }
            }

            pub(crate) fn fields(&self, out: &mut Fields) {
                match self {
                    $name::Create(message) => {
                        message.fields(out);
                        if !message.data.is_empty() {
                            out.retain(|(name, _)| name != "data");
                            out.push(("FileName".into(), Value::Text(message.path())));
                        }
                    }
                    $name::Read(message) | $name::Write(message) => message.fields(out),
                    $name::Close(message) => message.fields(out),
                    $name::Unknown { api, bytes } => {
                        out.push(("ApiNumber".into(), api.value()));
                        out.push(("Bytes".into(), Value::Bytes(bytes.clone())));
                    }
                }
            }
        }
    };
}

file_io! {
    /// Target to host.
    FileIoRequest
}

file_io! {
    /// Host to target.
    FileIoReply
}

impl FileIoRequest {
    /// WinDbg's answer without a file mapping: the same 64 bytes with a failure status and nothing behind them.
    pub fn refuse(&self) -> FileIoReply {
        match self.clone() {
            FileIoRequest::Create(message) => {
                FileIoReply::Create(CreateFile { status: NO_SUCH_FILE, data: Bytes::new(), ..message })
            }
            FileIoRequest::Read(message) => {
                FileIoReply::Read(Transfer { status: NO_SUCH_FILE, data: Bytes::new(), ..message })
            }
            FileIoRequest::Write(message) => {
                FileIoReply::Write(Transfer { status: NO_SUCH_FILE, data: Bytes::new(), ..message })
            }
            FileIoRequest::Close(message) => FileIoReply::Close(CloseFile { status: NO_SUCH_FILE, ..message }),
            FileIoRequest::Unknown { api, bytes } => {
                let mut echo = bytes.slice(..bytes.len().min(SIZE - 4)).to_vec();
                echo.resize(SIZE - 4, 0);
                NO_SUCH_FILE.put(&mut echo, 0);
                FileIoReply::Unknown { api, bytes: echo.into() }
            }
        }
    }
}
