//! Starting and steering a fake target.

use crate::faults::Faults;
use crate::kdnet::{Endpoint, Key};
use crate::kernel::{Kernel, SystemCall};
use crate::stats::{Counters, Stats};
use crate::stub::line::{Kdnet, KdnetParts, Line, Serial};
use crate::stub::{Command, Stub, Wiring};
use crate::transport::{self, FakeTransport, LineState};
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the machine is doing when its debugger comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It was booted long ago and runs.
    Running,
    /// It has just been switched on: a first print, then the kernel's load-symbols notice, at which it waits.
    WaitingAtBoot,
    /// An earlier debugger stopped it and went away.
    BrokenIn,
    /// It crashed, and breaks in again after every continue, for ever, as a kernel without a dump to write does.
    BugcheckLoop,
}

/// A driver that is loaded while the target runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLoad {
    /// As the kernel names it: `\SystemRoot\system32\drivers\x.sys`.
    pub path: String,
    /// Where its image is said to lie.
    pub base: u64,
    /// Bytes of its image.
    pub size: u32,
    /// It goes; else it comes.
    pub unload: bool,
}

/// What happens in the machine while it runs; see [`FakeOptions::evolve`].
pub type Evolve = Box<dyn FnMut(&mut Kernel, Duration) + Send>;

/// The machine, which the stub and the handle reach.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Kernel>>);

impl Shared {
    /// A closure that panicked in between has left a machine in some state, which is as good as another.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a fake target behaves. Times are those of real targets unless a test shortens them.
pub struct FakeOptions {
    /// How a debugger reaches it.
    pub transport: FakeTransport,
    pub(crate) kernel: Shared,
    /// Changes the machine while it runs: called at every clock tick with the running time since the last call. While
    /// the target is stopped it is not called.
    pub evolve: Option<Evolve>,
    /// What it does when it starts: runs, waits at boot, stands.
    pub start: Start,
    /// What it does after a restart.
    pub restart: Start,
    /// Most data bytes in one reply; by default what fits: 1352 on KDNET, 3944 on serial.
    pub max_data: Option<usize>,
    /// KDNET: time between two offers.
    pub offer_period: Duration,
    /// After this long without an acknowledgement a packet is sent again; by default 500 ms on KDNET, 1 s on serial.
    pub retransmit: Duration,
    /// KDNET: the first packet id. A target that was debugged before goes on counting, say from 0x926.
    pub first_id: u32,
    /// Serial: a break-in byte counts after this much silence.
    pub break_in_silence: Duration,
    /// The period of the clock interrupt; on a serial line a running kernel reads one byte in this time.
    pub clock_tick: Duration,
    /// Serial: what the firmware writes before the kernel's first packet.
    pub firmware_noise: Vec<u8>,
    /// A system call that processor 0 executes this often while the machine runs.
    pub call: Option<(SystemCall, Duration)>,
    /// A DbgPrint this often while it runs.
    pub print_every: Option<Duration>,
    /// What it prints, again and again, where printing is on.
    pub print_text: String,
    /// A DbgPrint after every continue.
    pub print_on_continue: Option<String>,
    /// A DbgPrint between every request and its reply.
    pub print_before_reply: Option<String>,
    /// A break-in that arrives while a print waits for its acknowledgement is lost, as on ReactOS.
    pub deaf_while_printing: bool,
    /// Every so many data packets, one goes out under a wrong id (xor 0x5000) first; repeated, it has the right one.
    pub wrong_id_every: Option<u32>,
    /// Any data packet counts as the acknowledgement of what was sent, as on ReactOS; by Microsoft's rules only the next
    /// one does.
    pub any_data_acknowledges: bool,
    /// TCP: leave Nagle's algorithm on, as QEMU, ser2net and VMware do.
    pub nagle: bool,
    /// Whether SearchMemory is answered; if not, it is refused with C0000001.
    pub search_memory: bool,
    /// Whether the Reboot request is followed by the notice that kernels send when they shut down.
    pub reboot_notice: bool,
    /// From reset to the first sign of life.
    pub reboot_time: Duration,
    /// How long a crashed machine writes its dump before it restarts.
    pub dump_time: Duration,
    /// What goes wrong on its line.
    pub faults: Faults,
}

impl FakeOptions {
    /// A machine that runs, on a line without faults.
    pub fn new(transport: FakeTransport, kernel: Kernel) -> FakeOptions {
        let retransmit = match transport {
            FakeTransport::Kdnet { .. } => Duration::from_millis(500),
            _ => Duration::from_secs(1),
        };
        FakeOptions {
            transport,
            kernel: Shared(Arc::new(Mutex::new(kernel))),
            evolve: None,
            start: Start::Running,
            restart: Start::WaitingAtBoot,
            max_data: None,
            offer_period: Duration::from_secs(3),
            retransmit,
            first_id: 0,
            break_in_silence: Duration::from_secs(1),
            clock_tick: Duration::from_millis(10),
            firmware_noise: Vec::new(),
            call: None,
            print_every: None,
            print_text: "kd-fake: still running\n".to_owned(),
            print_on_continue: None,
            print_before_reply: None,
            deaf_while_printing: false,
            wrong_id_every: None,
            any_data_acknowledges: false,
            nagle: false,
            search_memory: true,
            reboot_notice: true,
            reboot_time: Duration::from_millis(500),
            dump_time: Duration::from_secs(1),
            faults: Faults::default(),
        }
    }
}

/// Starts a target on the current tokio runtime.
pub async fn spawn(options: FakeOptions) -> io::Result<FakeHandle> {
    let line_state = LineState::new(options.faults);
    let counters = Counters::default();
    // The key is checked before anything is opened.
    let key = match &options.transport {
        FakeTransport::Kdnet { key, .. } => {
            Some(Key::parse(key).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?)
        }
        _ => None,
    };
    let carrier = transport::open(&options.transport, options.nagle, line_state.clone()).await?;
    let local = carrier.local;
    #[cfg(unix)]
    let path = carrier.path.clone();
    let rebind = carrier.rebind.clone();
    let fits = if key.is_some() { 1352 } else { 3944 };
    let line = match (&options.transport, key, local) {
        (FakeTransport::Kdnet { host, version, .. }, Some(key), Some(local)) => {
            let mut nonces = [0; 48];
            getrandom::fill(&mut nonces).map_err(io::Error::other)?;
            let (mut mine, mut other) = ([0; 24], [0; 24]);
            mine.copy_from_slice(&nonces[..24]);
            other.copy_from_slice(&nonces[24..]);
            let parts = KdnetParts {
                endpoint: Endpoint::new(key, *version, local, *host, mine),
                stranger: Endpoint::new(key, *version, local, *host, other),
                version: *version,
                host: *host,
                offer_period: options.offer_period,
                state: line_state.clone(),
            };
            Line::Kdnet(Box::new(Kdnet::new(carrier, counters.clone(), parts)))
        }
        _ => Line::Serial(Serial::new(carrier, counters.clone(), options.break_in_silence, options.clock_tick)),
    };
    let (commands, command_receiver) = mpsc::channel(64);
    let (resets, reset_receiver) = mpsc::channel(4);
    let wiring = Wiring {
        line,
        line_state: line_state.clone(),
        counters: counters.clone(),
        commands: command_receiver,
        resets: reset_receiver,
        max_data: options.max_data.unwrap_or(fits).min(fits),
    };
    #[cfg(unix)]
    let socket_file = match &options.transport {
        FakeTransport::UnixListen(path) => Some(path.clone()),
        _ => None,
    };
    let kernel = options.kernel.clone();
    let task = tokio::spawn(Stub::new(wiring, options).run());
    Ok(FakeHandle {
        kernel,
        local,
        #[cfg(unix)]
        path,
        #[cfg(unix)]
        socket_file,
        counters,
        line_state,
        commands,
        resets,
        rebind,
        task,
    })
}

/// A running fake target. Dropping it takes the machine away without a word.
pub struct FakeHandle {
    kernel: Shared,
    local: Option<SocketAddr>,
    #[cfg(unix)]
    path: Option<PathBuf>,
    #[cfg(unix)]
    socket_file: Option<PathBuf>,
    counters: Counters,
    line_state: LineState,
    commands: mpsc::Sender<Command>,
    resets: mpsc::Sender<()>,
    rebind: mpsc::Sender<()>,
    task: JoinHandle<()>,
}

impl FakeHandle {
    /// The target's own UDP or TCP address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The Unix socket, or the pseudo terminal a host is to open.
    #[cfg(unix)]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// Looks at the machine or changes it, at once and whether it runs or is stopped; the target does nothing meanwhile.
    pub fn with_kernel<T>(&self, action: impl FnOnce(&mut Kernel) -> T) -> T {
        action(&mut self.kernel.lock())
    }

    // A full queue means that the target has been halted through 64 commands; one more makes no difference.
    fn command(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// Prints, as soon as the target runs.
    pub fn print(&self, text: impl Into<String>) {
        self.command(Command::Print(text.into()));
    }

    /// Loads or unloads a driver, as soon as the target runs; it is halted until the host continues it.
    pub fn load_module(&self, module: ModuleLoad) {
        self.command(Command::LoadModule(module));
    }

    /// Asks the host for one of its files, as soon as the target runs.
    pub fn open_file(&self, path: impl Into<String>) {
        self.command(Command::OpenFile(path.into()));
    }

    /// Asks the host's user a question, as soon as the target runs.
    pub fn prompt(&self, text: impl Into<String>) {
        self.command(Command::Prompt(text.into()));
    }

    /// Stops by itself, with this exception at this address, as soon as the target runs.
    pub fn stop_at(&self, code: u32, address: u64) {
        self.command(Command::Stop(code, address));
    }

    /// Stops as a data breakpoint does: debug register `number` is what Dr6 names, at this address.
    pub fn hit_data(&self, number: u8, address: u64) {
        self.command(Command::HitData(number, address));
    }

    /// Prints the bug check, breaks in, and restarts once continued.
    pub fn bugcheck(&self, code: u32) {
        self.command(Command::Bugcheck(code));
    }

    /// Restarts with notice, as soon as the target runs.
    pub fn reboot(&self) {
        self.command(Command::Reboot);
    }

    /// Restarts at once and without a word, whatever it is doing.
    pub fn reset(&self) {
        let _ = self.resets.try_send(());
    }

    /// Nothing passes the line any more (`true`), or again.
    pub fn hang(&self, dead: bool) {
        self.line_state.dead.store(dead, Ordering::Relaxed);
    }

    /// The machine stands, as a VM that is paused: what comes in waits for it, and nothing goes out. Or it goes on.
    pub fn pause(&self, paused: bool) {
        self.line_state.paused.store(paused, Ordering::Relaxed);
    }

    /// Other faults from now on; the seed stays.
    pub fn set_faults(&self, faults: Faults) {
        self.line_state.set(faults);
    }

    /// KDNET: sends from another port from now on, as behind a NAT that forgot us.
    pub fn change_port(&self) {
        let _ = self.rebind.try_send(());
    }

    /// Switches the machine off and returns the last statistics.
    pub async fn stop(mut self) -> Stats {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.stats()
    }
}

impl Drop for FakeHandle {
    fn drop(&mut self) {
        self.task.abort();
        #[cfg(unix)]
        if let Some(path) = &self.socket_file {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A target with its own runtime thread, for callers that are not async.
pub struct FakeTarget {
    // Dropped before the runtime it lives on.
    handle: FakeHandle,
    _runtime: tokio::runtime::Runtime,
}

impl FakeTarget {
    /// Starts it on threads of its own; they end when it is dropped.
    pub fn start(options: FakeOptions) -> io::Result<FakeTarget> {
        // In the demonstration it is in the debugger's own process, whose limit must not stop it from being let go.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .on_thread_start(heap_limit::exempt_this_thread)
            .worker_threads(1)
            .thread_name("kd-fake")
            .enable_all()
            .build()?;
        let handle = runtime.block_on(spawn(options))?;
        Ok(FakeTarget { handle, _runtime: runtime })
    }
}

impl std::ops::Deref for FakeTarget {
    type Target = FakeHandle;

    fn deref(&self) -> &FakeHandle {
        &self.handle
    }
}
