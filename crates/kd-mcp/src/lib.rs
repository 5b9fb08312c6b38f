#![doc = include_str!("../README.md")]

mod answer;
mod arguments;
mod server;
mod tools;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kd_shell::Shell;
use kd_target::Interrupt;
use rmcp::ServiceExt as _;
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::answer::ANSWER;
use crate::server::Server;
use crate::worker::Worker;

/// What a server may do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the target may stand still after a question began.
    pub lease: Duration,
    /// Tools that change the target are there as well.
    pub allow_write: bool,
    /// The program's version, as the client is told it.
    pub version: &'static str,
}

/// A session that is ready for questions; its target may still be on its way.
pub struct Session {
    /// Answers in JSON, and has a target, which may run.
    pub shell: Shell,
    /// What the shell's target was attached with.
    pub interrupt: Interrupt,
    /// Set when the target started anew.
    pub restarted: Arc<AtomicBool>,
    /// Says why the target does not stop, from what was seen on its line.
    pub explain: Box<dyn Fn() -> Vec<String>>,
    /// What is to be kept for as long as the session lasts.
    pub kept: Box<dyn std::any::Any>,
}

/// Makes the session, in the thread that will own it.
pub type Connect = Box<dyn FnOnce() -> Result<Session, String> + Send>;

/// Why serving ended before its client did.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What came was no beginning of a session.
    #[error("the client did not begin a session of the Model Context Protocol: {0}")]
    Handshake(String),
    /// The system gives no thread for the questions.
    #[error("the thread for the target could not be started: {0}")]
    Thread(std::io::Error),
}

/// Calls that are running get this long after their client closed its end, so that a client may write its questions,
/// close, and read. rmcp gives them 5 s.
const GRACE: Duration = Duration::from_secs(4);

/// Serves one client until it goes away. The target runs when this returns.
pub async fn serve<I, O>(options: Options, connect: Connect, input: I, output: O) -> Result<(), ServeError>
where
    I: AsyncRead + Send + Unpin + 'static,
    O: AsyncWrite + Send + Unpin + 'static,
{
    let worker = Worker::start(options.lease, connect).map_err(ServeError::Thread)?;
    let closed = Arc::new(Closed::default());
    let input = Watched { input, closed: closed.clone() };
    let server = Server::new(&options, worker.caller());
    let served = async {
        let service = server.serve((input, output)).await.map_err(|error| ServeError::Handshake(error.to_string()))?;
        // Whatever ended it, the client is gone.
        let _ = service.waiting().await;
        Ok(())
    };
    let gone = async {
        closed.wait().await;
        tokio::time::sleep(GRACE).await;
        worker.interrupt();
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = served => result,
        () = gone => Ok(()),
    };
    worker.end().await;
    result
}

/// The client has closed its end.
#[derive(Default)]
struct Closed {
    closed: AtomicBool,
    told: tokio::sync::Notify,
}

impl Closed {
    fn set(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.told.notify_one();
    }

    async fn wait(&self) {
        while !self.closed.load(Ordering::SeqCst) {
            self.told.notified().await;
        }
    }
}

/// Input whose end is noticed when it comes, and not when the answers that are under way are written.
struct Watched<I> {
    input: I,
    closed: Arc<Closed>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = std::pin::Pin::new(&mut self.input).poll_read(context, buffer);
        if let std::task::Poll::Ready(result) = &polled
            && (result.is_err() || (buffer.filled().len() == before && buffer.remaining() > 0))
        {
            self.closed.set();
        }
        polled
    }
}
