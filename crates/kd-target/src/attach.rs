//! From a connection string to an attached kernel: the one place that knows which session a carrier takes.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use kd_link::{KdSpec, Link, OpenError, SpecError, Waiting};
use kd_wire::kdnet::KeyError;
use kd_wire::session::{HostSession, KdnetConfig, SerialConfig};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;

use crate::session::Session;
use crate::status::Shared;
use crate::{Event, Halted, Interrupt, Running, TargetError, actor};

/// How long [`open`] waits for the target to stop. KDNET's offers come every few seconds, and a machine that boots takes
/// longer than one that runs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Attaches to the kernel that `spec` names, as kd's `-k` takes it, and breaks in: what is returned stands still until
/// it is dropped, and then runs on.
///
/// `spec` is `net:port=N,key=w.x.y.z` or `com:port=DEVICE,baud=N`, with the options of [`KdSpec`]. Waits up to a minute
/// for the target to stop. [`Attach`] is for everything else: another patience, a target that is not to be stopped, the
/// session's events, layers around the carrier.
///
/// ```
/// # let target = kd_fake::FakeTarget::start(kd_fake::FakeOptions::new(
/// #     kd_fake::FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()),
/// #     kd_fake::kernel::article(),
/// # ))?;
/// # let port = target.address().expect("it listens on TCP").port();
/// # let spec = format!("com:ipport={port},port=127.0.0.1");
/// let kernel = kd_target::open(&spec)?;
/// assert_eq!(kernel.version().minor, 7601);
/// assert!(kernel.modules()?.modules.iter().any(|module| module.file == "myfault.sys"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// What is wrong with the string, with the carrier, or that the target did not stop in time.
///
/// # Panics
///
/// As every blocking call, within an asynchronous task: use `spawn_blocking` there.
pub fn open(spec: &str) -> Result<Halted, AttachError> {
    let (running, _) = Attach::to(KdSpec::parse(spec)?).break_in(true).start()?;
    running.wait(Some(PATIENCE)).map_err(|(_, error)| AttachError::Stop(error))
}

/// Why nothing was attached to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The connection string is none.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its key cannot be one of KDNET's.
    #[error("key: {0}")]
    Key(KeyError),
    /// The name behind `target=` has no address.
    #[error("target=: {0}")]
    Target(OpenError),
    /// The carrier did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A layer that was to be put around the carrier failed ([`Attach::layer`]).
    #[error(transparent)]
    Layer(io::Error),
    /// The system has no random numbers to make session keys of, or no thread for the session.
    #[error("{0}")]
    System(String),
    /// The carrier is open, and the target did not stop.
    #[error(transparent)]
    Stop(TargetError),
}

type Layer<'a> = Box<dyn FnOnce(Box<dyn Link>) -> io::Result<Box<dyn Link>> + 'a>;

/// An attachment that is being prepared. [`Attach::start`] makes it.
pub struct Attach<'a> {
    spec: KdSpec,
    runtime: Option<Handle>,
    break_in: bool,
    interrupt: Interrupt,
    waiting: Waiting,
    layer: Layer<'a>,
}

impl<'a> Attach<'a> {
    /// To the target at the other end of this carrier, without stopping it.
    pub fn to(spec: KdSpec) -> Self {
        Attach {
            spec,
            runtime: None,
            break_in: false,
            interrupt: Interrupt::default(),
            waiting: Box::new(|_| {}),
            layer: Box::new(Ok),
        }
    }

    /// With true the target is asked to stop as soon as it can be reached; else the session only takes up what a halted
    /// target has to say.
    pub fn break_in(self, break_in: bool) -> Self {
        Attach { break_in, ..self }
    }

    /// Raising it ends a wait or a read that is under way.
    pub fn interrupt(self, interrupt: Interrupt) -> Self {
        Attach { interrupt, ..self }
    }

    /// Where the session's task runs; without it on a thread of this crate's own.
    pub fn on(self, runtime: &Handle) -> Self {
        Attach { runtime: Some(runtime.clone()), ..self }
    }

    /// Is told why a carrier with `reconnect` does not open yet.
    pub fn waiting(self, waiting: Waiting) -> Self {
        Attach { waiting, ..self }
    }

    /// Is called once with the open carrier, and returns it, or a layer around it: a capture, a trace, faults.
    pub fn layer(self, layer: impl FnOnce(Box<dyn Link>) -> io::Result<Box<dyn Link>> + 'a) -> Self {
        Attach { layer: Box::new(layer), ..self }
    }

    /// Opens the carrier and starts the session. The target counts as running until it says something else. The events
    /// may be dropped by whoever does not want them.
    ///
    /// # Errors
    ///
    /// The carrier does not open, or the key or the target's name is wrong.
    ///
    /// # Panics
    ///
    /// As every blocking call, within an asynchronous task.
    pub fn start(self) -> Result<(Running, Receiver<Event>), AttachError> {
        let runtime = match self.runtime {
            Some(runtime) => runtime,
            None => own_runtime()?,
        };
        let session = runtime.block_on(host_session(&self.spec))?;
        let link = runtime.block_on(kd_link::open_reporting(&self.spec, self.waiting))?;
        let link = (self.layer)(link).map_err(AttachError::Layer)?;
        Ok(attach(&runtime, link, session, self.break_in, self.interrupt))
    }
}

/// What speaks KD over a carrier: KDNET seals its datagrams, a real line is slow, a pipe may want few RESETs.
async fn host_session(spec: &KdSpec) -> Result<HostSession, AttachError> {
    Ok(match spec {
        KdSpec::Net(net) => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| AttachError::System(format!("no random numbers: {error}")))?;
            let targets = net.target_addresses().await.map_err(AttachError::Target)?;
            let key = net.key.expose().parse().map_err(AttachError::Key)?;
            HostSession::kdnet(KdnetConfig { key, targets, seed })
        }
        KdSpec::Serial(serial) => HostSession::serial(SerialConfig { baud: Some(serial.baud), resets: 0 }),
        KdSpec::Pipe(pipe) => HostSession::serial(SerialConfig { baud: None, resets: pipe.resets.unwrap_or_default() }),
        KdSpec::Tcp(_) => HostSession::serial(SerialConfig::default()),
    })
}

/// For programs without a runtime of their own. It lives as long as the process: a session's task must outlast every
/// handle, or dropping one could not let its target run.
fn own_runtime() -> Result<Handle, AttachError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle().clone());
    }
    let made =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("kd-target").enable_all().build();
    let made = made.map_err(|error| AttachError::System(format!("no thread for the session: {error}")))?;
    // Another thread may have been first; a runtime that nothing runs on ends at once.
    Ok(RUNTIME.get_or_init(|| made).handle().clone())
}

/// Starts a session on a link that is open already, one of the caller's own making for example. What [`Attach`] does
/// for every carrier that a connection string can name.
pub fn attach(
    runtime: &Handle,
    link: Box<dyn Link>,
    session: HostSession,
    break_in: bool,
    interrupt: Interrupt,
) -> (Running, Receiver<Event>) {
    let shared = Shared::new(interrupt);
    let (commands, orders) = mpsc::unbounded_channel();
    let (events, receiver) = std::sync::mpsc::channel();
    runtime.spawn(actor::run(link, session, break_in, shared.clone(), orders, events));
    (Running { session: Session { shared, commands } }, receiver)
}
