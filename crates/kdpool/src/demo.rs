//! `kdpool demo`: the fake target and the debugger in one process, with a real carrier between them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::KdSpec;

use crate::debug::{self, Plan};
use crate::options::{Carrier, DemoArgs};

const KEY: &str = "1.2.3.4";

/// How often the demonstration's driver is at the place where it leaks.
const LEAK_PERIOD: Duration = Duration::from_millis(100);

/// The fake target of the demonstration. It ends when this is dropped.
pub(crate) struct Demo {
    /// Holds its symbols, and its socket.
    folder: tempfile::TempDir,
    _target: FakeTarget,
    pub(crate) spec: KdSpec,
}

impl Demo {
    pub(crate) fn start(over: Carrier) -> Result<Demo> {
        let folder = tempfile::Builder::new().prefix("kdpool-demo-").tempdir().context("no temporary folder")?;
        let store = folder.path().join("symbols");
        kd_fake::kernel::write_symbol_store(&store).context("cannot write the fake target's symbols")?;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = UdpSocket::bind(loopback(0)).and_then(|socket| socket.local_addr()).context("no free port")?.port();
        let transport = match over {
            Carrier::Net => FakeTransport::kdnet(loopback(port), KEY),
            #[cfg(unix)]
            Carrier::Unix => FakeTransport::UnixListen(folder.path().join("kd.sock")),
            #[cfg(unix)]
            Carrier::Pty => FakeTransport::Pty,
            Carrier::Tcp => FakeTransport::TcpListen(loopback(0)),
        };
        let mut options = FakeOptions::new(transport, kd_fake::kernel::article());
        // Something for breakpoints to be hit in.
        options.call = Some((kd_fake::kernel::ARTICLE_CALL, LEAK_PERIOD));
        let target = FakeTarget::start(options).context("the fake target did not start")?;
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

pub(crate) fn run(arguments: DemoArgs) -> Result<ExitCode> {
    let demo = Demo::start(arguments.over)?;
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
        hint: "This is a fake Windows 7 with a leak. Try:  !poolused 4   !poolfind Leak   \
               !verifier 0x80 fffff8a005800000   .help   q\n",
    })
}
