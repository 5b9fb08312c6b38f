//! Why a carrier could not be opened, in words for people.

use std::io;

/// Why [`open`](crate::open) failed. Every text is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another program has the UDP port.
    #[error("UDP port {port} is already in use: another debugger (or kdpool) holds it; end that or use another port")]
    PortTaken {
        /// The port that was to be bound.
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system does not give this UDP port to a program without privileges.
    #[error(
        "not allowed to bind UDP port {port}: use a port from 49152 to 65535 (kd's documents recommend 50000-50039)"
    )]
    PortForbidden {
        /// The port that was to be bound.
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is no such device, pipe or socket.
    #[error("{what} does not exist{hint}")]
    NotFound {
        /// What was to be opened, with its name.
        what: String,
        /// What to do about it, as the end of the sentence.
        hint: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// This user may not open it.
    #[error("no permission to open {what}{hint}")]
    Permission {
        /// What was to be opened, with its name.
        what: String,
        /// What to do about it, as the end of the sentence.
        hint: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Another program has it.
    #[error("{what} is in use by another program")]
    Busy {
        /// What was to be opened, with its name.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Nobody listens at the other end.
    #[error("{what} refuses the connection: nothing listens there (is the VM running?)")]
    Refused {
        /// What was to be opened, with its name.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The other end does not answer at all.
    #[error("{what} did not answer within {seconds} s")]
    TimedOut {
        /// What was to be opened, with its name.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// `com:port=` leads to something that has no baud rate.
    #[error("{what} is not a serial device; for a VM's socket use com:pipe,port=PATH")]
    NotSerial {
        /// What was to be opened, with its name.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// `com:pipe` leads to something that is no socket.
    #[error("{what} is not a socket; for a serial device use com:port=PATH")]
    NotSocket {
        /// What was to be opened, with its name.
        what: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A host's name has no address.
    #[error("cannot resolve the name `{name}`: {source}")]
    Resolve {
        /// As the connection string has it.
        name: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Any other fault.
    #[error("cannot open {what}: {source}")]
    Other {
        /// What was to be opened, with its name.
        what: String,
        /// What the system says.
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
