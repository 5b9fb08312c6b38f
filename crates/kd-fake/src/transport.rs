//! What carries the bytes: a UDP socket, a pseudo terminal, a Unix socket, a TCP connection.
//!
//! A task owns the socket and passes messages to and from the stub, through the fault gates. A serial line with nobody
//! at the other end swallows what is sent, as a real one does.

use crate::faults::{Faults, Gate};
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

/// How long a peer that does not read may hold up the line before its bytes are thrown away.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// How often a machine that is paused looks whether it still is.
const PAUSE_STEP: Duration = Duration::from_millis(5);

/// Where the fake target is reached.
#[derive(Debug, Clone)]
pub enum FakeTransport {
    /// UDP: offers go to `host`.
    Kdnet {
        /// The debugger's address, as `bcdedit /dbgsettings` would have it.
        host: SocketAddr,
        /// `w.x.y.z`, base 36.
        key: String,
        /// The target's own address; an ephemeral port by default.
        bind: Option<SocketAddr>,
        /// The protocol version it speaks: 2 (Windows 8.1), 4 or 5.
        version: u8,
    },
    /// Serial over a Unix socket, which the target makes.
    #[cfg(unix)]
    UnixListen(PathBuf),
    /// Serial over a Unix socket somebody else made.
    #[cfg(unix)]
    UnixConnect(PathBuf),
    /// Serial over TCP; port 0 takes a free one.
    TcpListen(SocketAddr),
    /// Connects to a debugger that listens there.
    TcpConnect(SocketAddr),
    /// Serial on a pseudo terminal, whose path the handle tells.
    #[cfg(unix)]
    Pty,
}

impl FakeTransport {
    /// KDNET version 5 from an ephemeral port.
    pub fn kdnet(host: SocketAddr, key: impl Into<String>) -> FakeTransport {
        FakeTransport::Kdnet { host, key: key.into(), bind: None, version: 5 }
    }
}

/// The running line's faults, which a test may change at any time.
#[derive(Clone)]
pub(crate) struct LineState {
    faults: Arc<Mutex<Faults>>,
    /// Nothing passes in either direction.
    pub(crate) dead: Arc<AtomicBool>,
    /// Nothing passes until it is over; then all of it does.
    pub(crate) paused: Arc<AtomicBool>,
}

impl LineState {
    pub(crate) fn new(faults: Faults) -> LineState {
        LineState { faults: Arc::new(Mutex::new(faults)), dead: Arc::default(), paused: Arc::default() }
    }

    pub(crate) fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }
}

/// A message on the line, and on UDP the other end's address.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) peer: Option<SocketAddr>,
    /// Sent from another machine's address (the `foreign_offer` fault).
    pub(crate) foreign: bool,
}

impl AsMut<Vec<u8>> for Message {
    fn as_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

/// What the stub holds of a line.
pub(crate) struct Carrier {
    pub(crate) outgoing: mpsc::Sender<Message>,
    pub(crate) incoming: mpsc::Receiver<Message>,
    /// Moves a UDP target to another port, as a NAT does.
    pub(crate) rebind: mpsc::Sender<()>,
    pub(crate) local: Option<SocketAddr>,
    /// Of the pty or socket.
    #[cfg(unix)]
    pub(crate) path: Option<PathBuf>,
}

/// The task's side of [`Carrier`].
struct Ends {
    outgoing: mpsc::Receiver<Message>,
    incoming: mpsc::Sender<Message>,
    rebind: mpsc::Receiver<()>,
    state: LineState,
    out_gate: Gate<Message>,
    in_gate: Gate<Message>,
}

impl Ends {
    fn push_out(&mut self, message: Message) {
        let faults = self.state.faults();
        if !self.state.dead.load(Ordering::Relaxed) {
            self.out_gate.push(message, faults.outbound.then_some(&faults));
        }
    }

    fn push_in(&mut self, bytes: Vec<u8>, peer: Option<SocketAddr>) {
        let faults = self.state.faults();
        if !self.state.dead.load(Ordering::Relaxed) {
            self.in_gate.push(Message { bytes, peer, foreign: false }, faults.inbound.then_some(&faults));
        }
    }

    fn is_paused(&self) -> bool {
        self.state.paused.load(Ordering::Relaxed)
    }

    /// What may leave now.
    fn outbound(&mut self) -> Option<Message> {
        if self.is_paused() { None } else { self.out_gate.pop() }
    }

    /// Passes on what is due; false once the stub is gone. A stub that does not keep up loses messages, as a small
    /// receive buffer would.
    fn deliver(&mut self) -> bool {
        if self.is_paused() {
            return !self.incoming.is_closed();
        }
        while let Some(message) = self.in_gate.pop() {
            if let Err(mpsc::error::TrySendError::Closed(_)) = self.incoming.try_send(message) {
                return false;
            }
        }
        true
    }

    fn due(&self) -> Option<Instant> {
        if self.is_paused() {
            return Some(Instant::now() + PAUSE_STEP);
        }
        match (self.out_gate.due(), self.in_gate.due()) {
            (Some(out), Some(inward)) => Some(out.min(inward)),
            (out, inward) => out.or(inward),
        }
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// A UDP port that nobody has, for a debugger that is to be found there. Not one of those that the system gives out: the
/// fake's own sockets take such, and one that was free a moment ago is taken where many run at once.
///
/// # Errors
///
/// None of 12,000 is free.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u32 = 12_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let of_this_process = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let number = of_this_process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (number % COUNT) as u16;
        if std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
}

/// Opens the transport and starts its task.
pub(crate) async fn open(transport: &FakeTransport, nagle: bool, state: LineState) -> io::Result<Carrier> {
    let (outgoing, out_receiver) = mpsc::channel(256);
    let (in_sender, incoming) = mpsc::channel(256);
    let (rebind, rebind_receiver) = mpsc::channel(4);
    let seed = state.faults().seed;
    let bordered = matches!(transport, FakeTransport::Kdnet { .. });
    let ends = Ends {
        outgoing: out_receiver,
        incoming: in_sender,
        rebind: rebind_receiver,
        state,
        out_gate: Gate::new(seed, true),
        in_gate: Gate::new(!seed, bordered),
    };
    let mut carrier = Carrier {
        outgoing,
        incoming,
        rebind,
        local: None,
        #[cfg(unix)]
        path: None,
    };
    match transport {
        FakeTransport::Kdnet { host, bind, .. } => {
            let socket = bind_udp(*host, *bind).await?;
            carrier.local = Some(socket.local_addr()?);
            tokio::spawn(run_udp(socket, *host, ends));
        }
        FakeTransport::TcpListen(address) => {
            let listener = TcpListener::bind(address).await?;
            carrier.local = Some(listener.local_addr()?);
            tokio::spawn(run_serial(Source::Tcp(listener, nagle), ends));
        }
        FakeTransport::TcpConnect(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(!nagle)?;
            carrier.local = Some(stream.local_addr()?);
            tokio::spawn(run_serial(Source::Once(Some(Box::pin(stream))), ends));
        }
        #[cfg(unix)]
        FakeTransport::UnixListen(path) => {
            let listener = unix::listen(path)?;
            carrier.path = Some(path.clone());
            tokio::spawn(run_serial(Source::Unix(listener), ends));
        }
        #[cfg(unix)]
        FakeTransport::UnixConnect(path) => {
            let stream = tokio::net::UnixStream::connect(path).await?;
            carrier.path = Some(path.clone());
            tokio::spawn(run_serial(Source::Once(Some(Box::pin(stream))), ends));
        }
        #[cfg(unix)]
        FakeTransport::Pty => {
            let (pty, path) = unix::open_pty()?;
            carrier.path = Some(path);
            tokio::spawn(run_serial(Source::Once(Some(Box::pin(pty))), ends));
        }
    }
    Ok(carrier)
}

async fn bind_udp(host: SocketAddr, bind: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let any = match host {
        _ if host.ip().is_loopback() => SocketAddr::new(host.ip(), 0),
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
    };
    UdpSocket::bind(bind.unwrap_or(any)).await
}

/// Another machine's address on the loopback network, where there is one.
async fn foreign_socket(host: SocketAddr) -> Option<UdpSocket> {
    let address = if host.ip().is_loopback() { SocketAddr::from(([127, 0, 0, 99], 0)) } else { return None };
    UdpSocket::bind(address).await.ok()
}

async fn run_udp(mut socket: UdpSocket, host: SocketAddr, mut ends: Ends) {
    let mut buffer = vec![0; 2048];
    let mut foreign = None;
    loop {
        while let Some(message) = ends.outbound() {
            let sender = if message.foreign {
                if foreign.is_none() {
                    foreign = foreign_socket(host).await;
                }
                foreign.as_ref()
            } else {
                Some(&socket)
            };
            // An unreachable host is silence to a target.
            if let (Some(sender), Some(peer)) = (sender, message.peer) {
                let _ = sender.send_to(&message.bytes, peer).await;
            }
        }
        if !ends.deliver() {
            return;
        }
        let due = ends.due();
        tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, peer)) => ends.push_in(buffer[..length].to_vec(), Some(peer)),
                // Windows reports a refused datagram here; the pause keeps a broken socket from spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            },
            message = ends.outgoing.recv() => match message {
                Some(message) => ends.push_out(message),
                None => return,
            },
            Some(()) = ends.rebind.recv() => {
                if let Ok(moved) = bind_udp(host, None).await {
                    socket = moved;
                }
            }
            () = wait_until(due) => {}
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}
type BoxStream = Pin<Box<dyn Stream>>;

/// Where a serial line's streams come from.
enum Source {
    /// With Nagle's algorithm or without.
    Tcp(TcpListener, bool),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
    Once(Option<BoxStream>),
}

impl Source {
    async fn next(&mut self) -> io::Result<BoxStream> {
        match self {
            Source::Tcp(listener, nagle) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(!*nagle)?;
                Ok(Box::pin(stream))
            }
            #[cfg(unix)]
            Source::Unix(listener) => Ok(Box::pin(listener.accept().await?.0)),
            Source::Once(stream) => match stream.take() {
                Some(stream) => Ok(stream),
                None => std::future::pending().await,
            },
        }
    }
}

async fn run_serial(mut source: Source, mut ends: Ends) {
    loop {
        let stream = tokio::select! {
            stream = source.next() => match stream {
                Ok(stream) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            // Nobody listens: what the target says now is lost.
            message = ends.outgoing.recv() => match message {
                Some(_) => continue,
                None => return,
            },
        };
        if !serve_stream(stream, &mut ends).await {
            return;
        }
    }
}

/// Serves one connection; false once the stub is gone.
async fn serve_stream(stream: BoxStream, ends: &mut Ends) -> bool {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buffer = vec![0; 4096];
    loop {
        while let Some(message) = ends.outbound() {
            match timeout(WRITE_LIMIT, writer.write_all(&message.bytes)).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return true,
            }
        }
        if !ends.deliver() {
            return false;
        }
        let due = ends.due();
        tokio::select! {
            received = reader.read(&mut buffer) => match received {
                Ok(length) if length > 0 => ends.push_in(buffer[..length].to_vec(), None),
                Ok(_) | Err(_) => return true,
            },
            message = ends.outgoing.recv() => match message {
                Some(message) => ends.push_out(message),
                None => return false,
            },
            () = wait_until(due) => {}
        }
    }
}

#[cfg(unix)]
mod unix {
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::pty::openpty;
    use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
    use nix::unistd::ttyname;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::net::UnixListener;
    use tokio::net::unix::pipe;

    /// Listens at `path`, after a socket that a dead target left there is taken away. A living one is left alone.
    pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
        match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match std::os::unix::net::UnixStream::connect(path) {
                    Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)
                    }
                    _ => Err(error),
                }
            }
            listening => listening,
        }
    }

    /// The master of a pseudo terminal. The slave stays open here, so that the master does not fail while no host has
    /// opened it.
    pub(super) struct Pty {
        reader: pipe::Receiver,
        writer: pipe::Sender,
        _slave: OwnedFd,
    }

    pub(super) fn open_pty() -> io::Result<(Pty, PathBuf)> {
        let pty = openpty(None, None)?;
        let mut settings = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
        let path = ttyname(&pty.slave)?;
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // A child of a test would keep the line open after its target is gone.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        // A pty master has a pipe's nature here: two directions, read and write, no seeking.
        let reader = pipe::Receiver::from_owned_fd_unchecked(pty.master.try_clone()?)?;
        let writer = pipe::Sender::from_owned_fd_unchecked(pty.master)?;
        Ok((Pty { reader, writer, _slave: pty.slave }, path))
    }

    impl AsyncRead for Pty {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.reader).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Pty {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.writer).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.writer).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.writer).poll_shutdown(cx)
        }
    }
}
