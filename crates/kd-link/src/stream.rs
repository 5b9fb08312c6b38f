//! Byte-stream carriers: serial devices, a VM's serial pipe, serial over TCP.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use serial2_tokio::{CharSize, FlowControl, Parity, SerialPort, Settings, StopBits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{BoxFuture, Frame, Link, OpenError, PipeSpec, SerialSpec, TcpSpec};

/// Larger than any KD packet (16 + 4000 + 1 bytes).
const READ_SIZE: usize = 8192;
/// How often a pipe that is away is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One byte stream, opened again when its specification says so.
pub struct StreamLink {
    source: Source,
    /// `None` while a stream with `reconnect` is away.
    stream: Option<Stream>,
    buffer: Vec<u8>,
    /// Why the last attempt to open failed; said once, not at every attempt.
    complaint: String,
    /// Who wants to know of it.
    waiting: Option<Waiting>,
}

/// Told why a stream with `reconnect` cannot be opened: the first time, and whenever the reason is another one.
pub type Waiting = Box<dyn Fn(&OpenError) + Send + Sync>;

enum Source {
    Serial(SerialSpec),
    Pipe(PipeSpec),
    Tcp(TcpSpec),
}

enum Stream {
    Serial(SerialPort),
    Tcp(TcpStream),
    #[cfg(unix)]
    Pipe(tokio::net::UnixStream),
    #[cfg(windows)]
    Pipe(tokio::net::windows::named_pipe::NamedPipeClient),
}

impl StreamLink {
    /// Opens a serial device: raw, 8 data bits, no parity, one stop bit, no flow control.
    pub fn serial(spec: SerialSpec) -> Result<Self, OpenError> {
        let stream = open_serial(&spec)?;
        Ok(Self::new(Source::Serial(spec), Some(stream)))
    }

    /// Connects to a VM's serial pipe. With `reconnect` this cannot fail: [`Link::recv`] waits for the pipe.
    pub async fn pipe(spec: PipeSpec) -> Result<Self, OpenError> {
        if spec.reconnect {
            return Ok(Self::new(Source::Pipe(spec), None));
        }
        let stream = open_pipe(&spec).await?;
        Ok(Self::new(Source::Pipe(spec), Some(stream)))
    }

    /// Connects to a serial port exported over TCP. With `reconnect` this cannot fail: [`Link::recv`] waits.
    pub async fn tcp(spec: TcpSpec) -> Result<Self, OpenError> {
        if spec.reconnect {
            return Ok(Self::new(Source::Tcp(spec), None));
        }
        let stream = open_tcp(&spec).await?;
        Ok(Self::new(Source::Tcp(spec), Some(stream)))
    }

    fn new(source: Source, stream: Option<Stream>) -> Self {
        Self { source, stream, buffer: vec![0; READ_SIZE], complaint: String::new(), waiting: None }
    }

    /// Somebody is told why it does not open.
    pub fn reporting(self, waiting: Waiting) -> Self {
        Self { waiting: Some(waiting), ..self }
    }

    fn reconnects(&self) -> bool {
        match &self.source {
            Source::Serial(_) => false,
            Source::Pipe(spec) => spec.reconnect,
            Source::Tcp(spec) => spec.reconnect,
        }
    }

    async fn reopen(&self) -> Result<Stream, OpenError> {
        match &self.source {
            Source::Serial(spec) => open_serial(spec),
            Source::Pipe(spec) => open_pipe(spec).await,
            Source::Tcp(spec) => open_tcp(spec).await,
        }
    }

    async fn recv_bytes(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let Some(stream) = &mut self.stream else {
                match self.reopen().await {
                    Ok(stream) => {
                        tracing::info!(link = self.describe(), "open");
                        self.stream = Some(stream);
                        self.complaint.clear();
                        return Ok(Some(Frame::Reopened));
                    }
                    Err(error) => {
                        let complaint = error.to_string();
                        if complaint != self.complaint {
                            tracing::info!("waiting: {complaint}");
                            if let Some(waiting) = &self.waiting {
                                waiting(&error);
                            }
                            self.complaint = complaint;
                        }
                        tokio::time::sleep(REOPEN_INTERVAL).await;
                        continue;
                    }
                }
            };
            let ended = match stream.read(&mut self.buffer).await {
                Ok(0) => None,
                Ok(length) => return Ok(Some(Frame::Bytes(Bytes::copy_from_slice(&self.buffer[..length])))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_hangup(&error) => Some(error),
                Err(error) => return Err(error),
            };
            tracing::info!(link = self.describe(), error = ended.map(|e| e.to_string()), "the other end is gone");
            if !self.reconnects() {
                return Ok(None);
            }
            self.stream = None;
            // A server that accepts and closes at once must not be tried in a tight loop.
            tokio::time::sleep(REOPEN_INTERVAL).await;
        }
    }

    async fn send_bytes(&mut self, data: &[u8]) -> io::Result<()> {
        // What is sent while the pipe is away is lost, as on a cable that is not plugged in.
        let Some(stream) = &mut self.stream else { return Ok(()) };
        match stream.write_all(data).await {
            Err(error) if is_hangup(&error) && self.reconnects() => {
                self.stream = None;
                Ok(())
            }
            result => result,
        }
    }
}

impl Link for StreamLink {
    fn recv(&mut self) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(self.recv_bytes())
    }

    fn send(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            match frame {
                Frame::Bytes(data) => self.send_bytes(&data).await,
                Frame::Datagram { .. } | Frame::Reopened => Err(crate::wrong_frame("a serial link sends bytes")),
            }
        })
    }

    fn describe(&self) -> String {
        match &self.source {
            Source::Serial(spec) => format!("{} at {} baud", spec.port, spec.baud),
            Source::Pipe(spec) => spec.port.clone(),
            Source::Tcp(spec) => format!("TCP {}", at(&spec.host, spec.port)),
        }
    }
}

impl Stream {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Serial(port) => port.read(buffer).await,
            Self::Tcp(stream) => {
                acknowledge_at_once(stream);
                stream.read(buffer).await
            }
            Self::Pipe(pipe) => pipe.read(buffer).await,
        }
    }

    async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Serial(port) => port.write_all(data).await,
            Self::Tcp(stream) => stream.write_all(data).await,
            Self::Pipe(pipe) => pipe.write_all(data).await,
        }
    }
}

fn open_serial(spec: &SerialSpec) -> Result<Stream, OpenError> {
    let configure = |mut settings: Settings| {
        settings.set_raw();
        settings.set_baud_rate(spec.baud)?;
        settings.set_char_size(CharSize::Bits8);
        settings.set_parity(Parity::None);
        settings.set_stop_bits(StopBits::One);
        settings.set_flow_control(FlowControl::None);
        Ok(settings)
    };
    let what = spec.port.clone();
    // serial2 puts the device namespace in front itself.
    let path = if cfg!(windows) { spec.port.trim_start_matches(r"\\.\") } else { &spec.port };
    SerialPort::open(path, configure).map(Stream::Serial).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { what, hint: DEVICE_HINT, source },
        io::ErrorKind::PermissionDenied if cfg!(windows) => OpenError::Busy { what, source },
        io::ErrorKind::PermissionDenied => OpenError::Permission { what, hint: DEVICE_PERMISSION_HINT, source },
        io::ErrorKind::ResourceBusy => OpenError::Busy { what, source },
        // ENOTTY, ENXIO and EISDIR: something is there, but it is no terminal.
        _ if cfg!(unix) && matches!(source.raw_os_error(), Some(25 | 6 | 21)) => OpenError::NotSerial { what, source },
        _ => OpenError::Other { what, source },
    })
}

const DEVICE_HINT: &str = if cfg!(target_os = "linux") {
    "; serial devices are named /dev/ttyS0, /dev/ttyUSB0 or /dev/ttyACM0 here (see `ls /dev/serial/by-id`)"
} else if cfg!(windows) {
    "; see the ports in Device Manager"
} else {
    "; serial devices are named /dev/cu.* here"
};

const DEVICE_PERMISSION_HINT: &str = if cfg!(target_os = "linux") {
    ": add yourself to the dialout group (`sudo usermod -aG dialout $USER`) and log in again"
} else {
    ""
};

#[cfg(unix)]
async fn open_pipe(spec: &PipeSpec) -> Result<Stream, OpenError> {
    let what = spec.port.clone();
    tokio::net::UnixStream::connect(&spec.port).await.map(Stream::Pipe).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound { what, hint: pipe_hint(spec), source },
        io::ErrorKind::PermissionDenied => OpenError::Permission { what, hint: SOCKET_PERMISSION_HINT, source },
        io::ErrorKind::ConnectionRefused => {
            let is_socket = std::fs::metadata(&spec.port)
                .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
            if is_socket { OpenError::Refused { what, source } } else { OpenError::NotSocket { what, source } }
        }
        _ => OpenError::Other { what, source },
    })
}

#[cfg(unix)]
const SOCKET_PERMISSION_HINT: &str = ": the socket belongs to the user that runs the VM";

/// Whoever waits for it already needs no advice to do so.
fn pipe_hint(spec: &PipeSpec) -> &'static str {
    if spec.reconnect { " (is the VM running?)" } else { " (is the VM running?); `reconnect` waits for it" }
}

#[cfg(windows)]
async fn open_pipe(spec: &PipeSpec) -> Result<Stream, OpenError> {
    /// ERROR_PIPE_BUSY: every instance of the pipe has a client.
    const PIPE_BUSY: i32 = 231;
    let what = spec.port.clone();
    let opened = tokio::net::windows::named_pipe::ClientOptions::new().open(&spec.port);
    opened.map(Stream::Pipe).map_err(|source| match source.kind() {
        _ if source.raw_os_error() == Some(PIPE_BUSY) => OpenError::Busy { what, source },
        io::ErrorKind::NotFound => OpenError::NotFound { what, hint: pipe_hint(spec), source },
        io::ErrorKind::PermissionDenied => {
            OpenError::Permission { what, hint: ": run as administrator to open a VM's pipe", source }
        }
        _ => OpenError::Other { what, source },
    })
}

async fn open_tcp(spec: &TcpSpec) -> Result<Stream, OpenError> {
    let what = format!("TCP {}", at(&spec.host, spec.port));
    let addresses = crate::resolve(&spec.host, spec.port).await?;
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&addresses[..])).await;
    let connected = connecting
        .map_err(|_| OpenError::TimedOut { what: what.clone(), seconds: CONNECT_TIMEOUT.as_secs() })?
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    connected.map(Stream::Tcp).map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => OpenError::Refused { what, source },
        _ => OpenError::Other { what, source },
    })
}

/// QEMU, ser2net and VMware leave Nagle's algorithm on at their end: the reply that follows the target's acknowledgement
/// waits there until our system has acknowledged that one in TCP, which it puts off for 40 ms as long as it has nothing to
/// send: 44 ms a request instead of a third of one. Linux falls back to that by itself, so it is asked at each read.
/// Other systems do not let a program choose; there the other end's `nodelay` helps.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn acknowledge_at_once(stream: &TcpStream) {
    // Without it everything works as well, only slower.
    let _ = socket2::SockRef::from(stream).set_tcp_quickack(true);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn acknowledge_at_once(_: &TcpStream) {}

/// `host:port`, with an IPv6 address in brackets.
fn at(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Errors that mean the other end went away: a reset, a broken pipe, or EIO of a pty or an unplugged adapter.
fn is_hangup(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected)
        || (cfg!(unix) && matches!(error.raw_os_error(), Some(5 | 6)))
}
