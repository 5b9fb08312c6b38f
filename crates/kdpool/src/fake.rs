//! `kdpool fake`: the fake target alone, and what `kdpool demo` needs of it.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kd_fake::isf::Isf;
use kd_fake::kernel::{self, Begin, Kernel, Mutation, SeededOptions, SystemCall};
use kd_fake::{Evolve, FakeHandle, FakeOptions, FakeTransport, Faults, Start};
use tokio::runtime::Handle;

use crate::demo::LOOK_AROUND;
use crate::options::DemoWindows;
use crate::signals::Signals;
use crate::{debug, host};

/// A fake Windows with a leak, for any debugger to attach to.
#[derive(Debug, Args)]
pub(crate) struct FakeArgs {
    /// KDNET: the debugger's address and port; the target speaks first
    #[arg(long, value_name = "HOST:PORT", requires = "key", group = "carrier")]
    net: Option<SocketAddr>,
    /// KDNET key, w.x.y.z
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Serial over a Unix-domain socket that the target makes
    #[cfg(unix)]
    #[arg(long, value_name = "PATH", group = "carrier")]
    unix: Option<PathBuf>,
    /// Serial over TCP, the target listens
    #[arg(long, value_name = "ADDRESS:PORT", group = "carrier")]
    tcp: Option<SocketAddr>,
    /// Serial on a pseudo terminal
    #[cfg(unix)]
    #[arg(long, group = "carrier")]
    pty: bool,
    /// Write the target's symbols to this folder, in symbol-store layout, and keep them there
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// What the target is doing when the debugger comes
    #[arg(long, value_enum, default_value_t = StartArg::Running)]
    start: StartArg,
    /// Most data bytes of one reply
    #[arg(long, value_name = "BYTES")]
    max_data: Option<usize>,
    /// Refuse the target-side search, as some stubs do
    #[arg(long)]
    no_search: bool,
    /// Print something this often while running
    #[arg(long, value_name = "SECONDS")]
    print_every: Option<f64>,
    /// A break-in that arrives beside a print is lost
    #[arg(long)]
    deaf: bool,
    /// Every so many data packets, one comes under a wrong id first
    #[arg(long, value_name = "COUNT")]
    wrong_id_every: Option<u32>,
    /// Send a packet again after this time without an acknowledgement
    #[arg(long, value_name = "MS")]
    retransmit: Option<u64>,
    /// TCP: leave Nagle's algorithm on, as QEMU and ser2net do
    #[arg(long, requires = "tcp")]
    nagle: bool,
    /// Which Windows with the leak it is; the leak grows while it runs, once a debugger has stopped it
    #[arg(long, value_enum, default_value_t = DemoWindows::Seven, conflicts_with_all = ["isf", "arch"])]
    windows: DemoWindows,
    /// Nothing goes on in it
    #[arg(long, conflicts_with_all = ["leak_every", "churn"])]
    still: bool,
    /// Instead, its driver leaks one block more after this much running time (Windows 7)
    #[arg(long, value_name = "MS", conflicts_with_all = ["isf", "arch", "windows"])]
    leak_every: Option<u64>,
    /// Instead, another driver allocates and frees all the time (Windows 7)
    #[arg(long, conflicts_with_all = ["isf", "arch", "windows"])]
    churn: bool,
    /// Lose this share of all packets, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    loss: f64,
    /// Send this share of all packets twice
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    duplicate: f64,
    /// Hold this share of all packets until the next one passed
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    reorder: f64,
    /// Flip a bit in this share of all packets
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    corrupt: f64,
    /// Delay every packet by up to this time
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay: u64,
    /// Seed of the losses, and of the machine with --isf or --arch
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Another machine than the article's: of the kernel whose symbol table (.json or .json.xz) this is, with a state
    /// that the seed decides
    #[arg(long, value_name = "FILE")]
    isf: Option<PathBuf>,
    /// Another machine than the article's, of a kernel that is carried, with a state that the seed decides
    #[arg(long, value_enum, conflicts_with = "isf")]
    arch: Option<Arch>,
    /// With --isf or --arch: some pages of paged pool are in a page file, where no debugger can read them
    #[arg(long)]
    paged_out: bool,
    /// With --isf or --arch: a rule of its pool is broken on purpose, to try what a debugger makes of it
    #[arg(long, value_name = "RULE", hide = true)]
    mutate: Option<Mutation>,
    /// Write the machine's physical memory to this file, for tools that read raw memory images; without --store its
    /// kernel has the identity of the --isf table, so that they find their symbols by it
    #[arg(long, value_name = "FILE")]
    export_raw: Option<PathBuf>,
    /// Write what is in the machine to this file, as JSON
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Arch {
    /// Windows Vista, page-table entries of 4 bytes
    X86Vista,
    /// Windows 7, page-table entries of 4 bytes
    X86,
    /// Windows 7, page-table entries of 8 bytes
    X86Pae,
    /// Windows 10 2004, whose pool is a segment heap
    X86Heap,
    /// The same on x64
    X64Heap,
    /// Windows 11 23H2
    #[value(name = "x64-22631")]
    X64Windows11,
    /// Windows 11 24H2 and Server 2025
    #[value(name = "x64-26100")]
    X64Windows1124h2,
    /// A build after 24H2
    X64Later,
    /// Windows 10 1709
    Arm64,
    /// Windows 11 24H2 on ARM64
    #[value(name = "arm64-26100")]
    Arm64Windows1124h2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StartArg {
    /// It was booted long ago
    Running,
    /// It waits for its debugger at boot
    Boot,
    /// An earlier debugger stopped it and went away
    Halted,
    /// It crashed, and breaks in again after every continue
    Bugcheck,
}

pub(crate) fn run(arguments: &FakeArgs) -> Result<ExitCode> {
    let transport = transport(arguments);
    if transport.is_none() && !arguments.writes() {
        return Ok(debug::usage(
            "say what carries the session, --net HOST:PORT --key K, --unix PATH, --tcp ADDRESS:PORT or --pty, or what to \
             write: --store, --truth or --export-raw. For example:\n  kdpool fake --net 127.0.0.1:50000 --key 1.2.3.4",
        ));
    }
    let machine = machine(arguments)?;
    write_files(arguments, &machine)?;
    let Some(transport) = transport else { return Ok(ExitCode::SUCCESS) };
    let symbols = Symbols::of(arguments, &machine)?;
    let Machine { kernel, table, hunt } = machine;
    let build = kernel.facts().build;
    let mut options = options(arguments, FakeOptions::new(transport, kernel))?;
    let mut begin = None;
    if arguments.leak_every.is_some() || arguments.churn {
        let period = arguments.leak_every.map(Duration::from_millis);
        options.evolve = Some(Box::new(kernel::article_activity(period, arguments.churn)));
    } else if let Some((call, activity, begins)) = hunt.filter(|_| !arguments.still) {
        options.call = Some(call);
        options.evolve = Some(activity);
        begin = Some(begins);
    }
    crate::runtime()?.block_on(async {
        let target = kd_fake::spawn(options).await.context("the fake target did not start")?;
        match &table {
            Some(table) => println!("A fake Windows {} of build {build} is running. Attach with:", name(table.machine)),
            None => println!("A fake Windows 7 x64 of build {build} is running. Attach with:"),
        }
        let line = attach_line(arguments, &target);
        println!("  kdpool {line}{symbols} -bonc");
        println!("or hunt what leaks in it:\n  kdpool leak {line}{symbols}");
        let signals = Signals::listen(&Handle::current());
        println!("Ctrl+C ends it.");
        let begins = async {
            if let Some(begin) = begin {
                while target.stats().stops == 0 {
                    tokio::time::sleep(LOOK_AROUND).await;
                }
                begin.now();
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = signals.any_end() => {}
            () = begins => {}
        }
        let stats = target.stop().await;
        println!(
            "It was {}; stopped {} times, {} ms in all; {} requests, {} bytes read.",
            if stats.halted { "left halted" } else { "left running" },
            stats.stops,
            stats.frozen.as_millis(),
            stats.requests.values().sum::<u64>(),
            stats.bytes_read
        );
        Ok(ExitCode::SUCCESS)
    })
}

/// Where the target's symbols are: in the folder that was asked for, else in one that goes with the target.
enum Symbols {
    Kept(PathBuf),
    Passing(tempfile::TempDir),
    /// Whoever reads the machine's memory brings the table that it was made of.
    None,
}

impl Symbols {
    fn of(arguments: &FakeArgs, machine: &Machine) -> Result<Symbols> {
        match &arguments.store {
            Some(folder) => Ok(Symbols::Kept(std::path::absolute(folder).context("--store")?)),
            None if arguments.export_raw.is_some() => Ok(Symbols::None),
            None => {
                let folder =
                    tempfile::Builder::new().prefix("kdpool-fake-").tempdir().context("no temporary folder")?;
                write_symbols(folder.path(), machine)?;
                Ok(Symbols::Passing(folder))
            }
        }
    }
}

/// The option that names them.
impl fmt::Display for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = match self {
            Symbols::Kept(folder) => folder,
            Symbols::Passing(folder) => folder.path(),
            Symbols::None => return Ok(()),
        };
        write!(f, " -y {}", host::HERE.typed(&folder.display().to_string()))
    }
}

fn write_symbols(folder: &Path, machine: &Machine) -> Result<()> {
    let written = match &machine.table {
        Some(table) => kernel::write_pdb(folder, table),
        None => kernel::write_symbol_store(folder),
    };
    written.map(drop).with_context(|| format!("cannot write the symbols to {}", folder.display()))
}

impl FakeArgs {
    /// Whether anything is asked for instead of a session, or besides one.
    fn writes(&self) -> bool {
        self.truth.is_some() || self.export_raw.is_some() || self.store.is_some()
    }
}

/// Writes it: truth, memory, symbols.
fn write_files(arguments: &FakeArgs, machine: &Machine) -> Result<()> {
    if let Some(file) = &arguments.truth {
        let truth = serde_json::to_vec_pretty(&machine.kernel.truth())?;
        fs::write(file, truth).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(path) = &arguments.export_raw {
        fs::File::create(path)
            .and_then(|mut file| machine.kernel.write_raw(&mut file))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    arguments.store.as_ref().map_or(Ok(()), |folder| write_symbols(folder, machine))
}

/// How the target stands, and what its line does to what it carries.
fn options(arguments: &FakeArgs, mut options: FakeOptions) -> Result<FakeOptions> {
    options.start = match arguments.start {
        StartArg::Running => Start::Running,
        StartArg::Boot => Start::WaitingAtBoot,
        StartArg::Halted => Start::BrokenIn,
        StartArg::Bugcheck => Start::BugcheckLoop,
    };
    options.max_data = arguments.max_data;
    options.search_memory = !arguments.no_search;
    options.print_every = match arguments.print_every {
        Some(seconds) => Some(Duration::try_from_secs_f64(seconds).context("--print-every")?),
        None => None,
    };
    options.deaf_while_printing = arguments.deaf;
    options.wrong_id_every = arguments.wrong_id_every;
    options.nagle = arguments.nagle;
    if let Some(milliseconds) = arguments.retransmit {
        options.retransmit = Duration::from_millis(milliseconds);
    }
    options.faults = Faults {
        seed: arguments.seed,
        drop: arguments.loss,
        duplicate: arguments.duplicate,
        reorder: arguments.reorder,
        corrupt: arguments.corrupt,
        delay: Duration::from_millis(arguments.delay),
        ..Faults::default()
    };
    Ok(options)
}

fn name(machine: kd_fake::Machine) -> &'static str {
    match machine {
        kd_fake::Machine::X86 => "x86",
        kd_fake::Machine::X86Pae => "x86 (PAE)",
        kd_fake::Machine::X64 => "x64",
        kd_fake::Machine::Arm64 => "ARM64",
    }
}

/// The machine, its symbol table when it is not the article's, and what goes on in it.
struct Machine {
    kernel: Kernel,
    table: Option<Isf>,
    hunt: Option<((SystemCall, Duration), Evolve, Begin)>,
}

fn machine(arguments: &FakeArgs) -> Result<Machine> {
    let (mut table, name) = match (&arguments.isf, arguments.arch) {
        (Some(file), _) => {
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let packed = file.extension().is_some_and(|extension| extension == "xz");
            let table = if packed { Isf::from_xz(&bytes) } else { Isf::from_json(&bytes) };
            (table.with_context(|| format!("{} is not a symbol table", file.display()))?, file.display().to_string())
        }
        (None, Some(arch)) => {
            let name = arch.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            let table = Isf::carried(&name).context("no table is carried for it")??;
            (table, name)
        }
        (None, None) => {
            let kernel::Demo { kernel, symbols, call, activity, begin } = kernel::demo(arguments.windows.machine())?;
            return Ok(Machine { kernel, table: symbols, hunt: Some((call, activity, begin)) });
        }
    };
    // An image that is read with the table itself must name the table's PDB.
    if arguments.export_raw.is_none() || arguments.store.is_some() {
        table.identity = kernel::seeded_identity(&table, arguments.seed);
    }
    let options = SeededOptions {
        paged_out: arguments.paged_out,
        mutation: arguments.mutate,
        balanced: true,
        ..SeededOptions::default()
    };
    let (kernel, _) = kernel::seeded(&table, arguments.seed, &options)
        .with_context(|| format!("{name} does not describe a kernel that can be built"))?;
    Ok(Machine { kernel, table: Some(table), hunt: None })
}

fn transport(arguments: &FakeArgs) -> Option<FakeTransport> {
    if let (Some(host), Some(key)) = (arguments.net, &arguments.key) {
        return Some(FakeTransport::kdnet(host, key.clone()));
    }
    if let Some(address) = arguments.tcp {
        return Some(FakeTransport::TcpListen(address));
    }
    #[cfg(unix)]
    if let Some(path) = &arguments.unix {
        return Some(FakeTransport::UnixListen(path.clone()));
    }
    #[cfg(unix)]
    if arguments.pty {
        return Some(FakeTransport::Pty);
    }
    None
}

fn attach_line(arguments: &FakeArgs, target: &FakeHandle) -> String {
    if let Some(host) = arguments.net {
        return format!("-k net:port={},key={}", host.port(), arguments.key.as_deref().unwrap_or_default());
    }
    #[cfg(unix)]
    if let Some(path) = target.path() {
        let carrier = if arguments.pty { "com:port=" } else { "com:pipe,port=" };
        return format!("-k {}", host::HERE.typed(&format!("{carrier}{}", path.display())));
    }
    let address = target.address().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    format!("-k com:ipport={},port={}", address.port(), address.ip())
}
