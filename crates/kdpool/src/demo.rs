//! `kdpool demo`: the fake target and the debugger in one process, with a real carrier between them.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kd_fake::kernel::{self, Begin};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::KdSpec;

use crate::debug::{self, Plan};
use crate::options::{Carrier, DemoArgs, DemoWindows};

/// Each line fits 80 columns.
const SEVEN: &str = "\
A fake Windows 7, stopped: its driver myfault.sys leaks whenever it runs. Hunt:
  !leak watch                                   what leaks, how fast, and who?
  .allow_write on; !leak trace Leak -hits 3     stop at each allocation
  !poolused 4   !poolfind Leak   !verifier 0x80 fffff8a005800000   the article's
  g  lets it run, Ctrl+C stops it.   .help   q
";
const SEGMENT_HEAP: &str = "\
A fake Windows, stopped: when it runs, myfault.sys leaks, leaky.sys too. Hunt:
  !leak watch                                   what leaks, how fast, and who?
  !leak watch LkSm                              small blocks, by another driver
  .allow_write on; !leak trace Leak -hits 3     stop at each allocation
  !poolused 4   !poolfind Leak   !poolfind LkSm   !verifier 3
  g  lets it run, Ctrl+C stops it.   .help   q
";

/// How often it is looked whether the target has stopped.
pub(crate) const LOOK_AROUND: Duration = Duration::from_millis(5);

const KEY: &str = "1.2.3.4";

/// The fake target of the demonstration. It ends when this is dropped.
pub(crate) struct Demo {
    /// Holds its symbols, and its socket.
    folder: tempfile::TempDir,
    _target: Arc<FakeTarget>,
    pub(crate) spec: KdSpec,
}

impl Demo {
    pub(crate) fn start(over: Carrier, windows: DemoWindows) -> Result<Demo> {
        let folder = tempfile::Builder::new().prefix("kdpool-demo-").tempdir().context("no temporary folder")?;
        let store = folder.path().join("symbols");
        let kernel::Demo { kernel, symbols, call, activity, begin } =
            kernel::demo(windows.machine()).context("the fake target cannot be built")?;
        match &symbols {
            Some(table) => kernel::write_pdb(&store, table),
            None => kernel::write_symbol_store(&store),
        }
        .context("cannot write the fake target's symbols")?;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = kd_fake::free_port()?;
        let transport = match over {
            Carrier::Net => FakeTransport::kdnet(loopback(port), KEY),
            #[cfg(unix)]
            Carrier::Unix => FakeTransport::UnixListen(folder.path().join("kd.sock")),
            #[cfg(unix)]
            Carrier::Pty => FakeTransport::Pty,
            Carrier::Tcp => FakeTransport::TcpListen(loopback(0)),
        };
        let mut options = FakeOptions::new(transport, kernel);
        // Something for breakpoints to be hit in, and a leak that grows.
        options.call = Some(call);
        options.evolve = Some(activity);
        let target = Arc::new(FakeTarget::start(options).context("the fake target did not start")?);
        begin_at_first_stop(&target, begin);
        let connection = match over {
            Carrier::Net => format!("net:port={port},key={KEY}"),
            Carrier::Tcp => {
                let address = target.address().context("the fake target has no address")?;
                format!("com:ipport={},port={}", address.port(), address.ip())
            }
            #[cfg(unix)]
            Carrier::Unix => format!("com:pipe,port={}", target.path().context("no socket")?.display()),
            #[cfg(unix)]
            Carrier::Pty => format!("com:port={}", target.path().context("no terminal")?.display()),
        };
        let spec = KdSpec::parse(&connection)?;
        Ok(Demo { folder, _target: target, spec })
    }

    /// The symbol path of its kernel and drivers.
    pub(crate) fn symbols(&self) -> String {
        self.folder.path().join("symbols").display().to_string()
    }
}

/// What the first questions find is the machine as the README has it; from then on it leaks.
fn begin_at_first_stop(target: &Arc<FakeTarget>, begin: Begin) {
    let target = Arc::downgrade(target);
    std::thread::spawn(move || {
        while let Some(target) = target.upgrade() {
            if target.stats().stops > 0 {
                return begin.now();
            }
            drop(target);
            std::thread::sleep(LOOK_AROUND);
        }
    });
}

pub(crate) fn run(arguments: DemoArgs) -> Result<ExitCode> {
    let demo = Demo::start(arguments.over, arguments.windows)?;
    let mut session = arguments.session;
    if session.symbol_path.is_none() {
        session.symbol_path = Some(demo.symbols());
    }
    debug::attach_and_work(Plan {
        spec: demo.spec.clone(),
        break_on_connect: true,
        brief: false,
        connect_timeout: None,
        capture: arguments.capture,
        session,
        task: None,
        hint: match arguments.windows {
            DemoWindows::Seven => SEVEN,
            DemoWindows::Ten | DemoWindows::Eleven => SEGMENT_HEAP,
        },
    })
}
