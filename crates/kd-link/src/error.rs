//! Why a carrier could not be opened, in words for people.

use std::io;

/// Why [`open`](crate::open) failed. Every text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("UDP port {port} is already in use: another debugger (or kdpool) holds it; end that or use another port")]
    PortTaken {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error(
        "not allowed to bind UDP port {port}: use a port from 49152 to 65535 (kd's documents recommend 50000-50039)"
    )]
    PortForbidden {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("{what} does not exist{hint}")]
    NotFound {
        what: String,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("no permission to open {what}{hint}")]
    Permission {
        what: String,
        hint: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{what} is in use by another program")]
    Busy {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what} refuses the connection: nothing listens there (is the VM running?)")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what} did not answer within {seconds} s")]
    TimedOut { what: String, seconds: u64 },
    #[error("{what} is not a serial device; for a VM's socket use com:pipe,port=PATH")]
    NotSerial {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what} is not a socket; for a serial device use com:port=PATH")]
    NotSocket {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot resolve the name `{name}`: {source}")]
    Resolve {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open {what}: {source}")]
    Other {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// The cause's kind, for those who decide by it.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::PortTaken { source, .. }
            | Self::PortForbidden { source, .. }
            | Self::NotFound { source, .. }
            | Self::Permission { source, .. }
            | Self::Busy { source, .. }
            | Self::Refused { source, .. }
            | Self::NotSerial { source, .. }
            | Self::NotSocket { source, .. }
            | Self::Resolve { source, .. }
            | Self::Other { source, .. } => source.kind(),
            Self::TimedOut { .. } => io::ErrorKind::TimedOut,
        }
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        io::Error::new(error.kind(), error)
    }
}
