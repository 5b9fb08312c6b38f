//! A fake target, and a session with it.

#![allow(dead_code)] // Each test program uses what it needs.

pub(crate) mod lines;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::{KdSpec, Link};
use kd_target::{Attach, Event, Halted, Running};

pub(crate) const KEY: &str = "1.2.3.4";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Setup {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) fake: FakeTarget,
    pub(crate) spec: KdSpec,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Carrier {
    Net,
    #[cfg(unix)]
    Unix,
    #[cfg(unix)]
    Pty,
    Tcp,
}

#[cfg(unix)]
pub(crate) const CARRIERS: [Carrier; 4] = [Carrier::Net, Carrier::Unix, Carrier::Pty, Carrier::Tcp];
#[cfg(not(unix))]
pub(crate) const CARRIERS: [Carrier; 2] = [Carrier::Net, Carrier::Tcp];

pub(crate) fn set_up(carrier: Carrier, adjust: impl FnOnce(&mut FakeOptions)) -> Setup {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let port = kd_fake::free_port().unwrap();
    let transport = match carrier {
        Carrier::Net => FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY),
        #[cfg(unix)]
        Carrier::Unix => FakeTransport::UnixListen(std::env::temp_dir().join(format!("kd-target-{port}.sock"))),
        #[cfg(unix)]
        Carrier::Pty => FakeTransport::Pty,
        Carrier::Tcp => FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()),
    };
    let mut options = FakeOptions::new(transport, kd_fake::kernel::article());
    options.offer_period = Duration::from_millis(100);
    options.break_in_silence = Duration::from_millis(50);
    adjust(&mut options);
    let fake = FakeTarget::start(options).unwrap();
    let spec = match carrier {
        Carrier::Net => format!("net:port={port},key={KEY}"),
        #[cfg(unix)]
        Carrier::Unix => format!("com:pipe,port={}", fake.path().unwrap().display()),
        #[cfg(unix)]
        Carrier::Pty => format!("com:port={}", fake.path().unwrap().display()),
        Carrier::Tcp => format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port()),
    };
    Setup { runtime, fake, spec: KdSpec::parse(&spec).unwrap() }
}

/// What an action came to, and the longest time that the machine kept a thread waiting meanwhile which wanted to run: what
/// it adds to a figure is no fault of a session's.
pub(crate) fn with_noise<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    const NAP: Duration = Duration::from_millis(1);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let slept = Instant::now();
                std::thread::sleep(NAP);
                longest = longest.max(slept.elapsed().saturating_sub(NAP));
            }
            longest
        });
        let result = action();
        over.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

/// How often something is tried: few times as it stands, as often as the variable says for long.
pub(crate) fn count(variable: &str, quick: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(quick)
}

/// Runs a test over every carrier at the same time: they mostly wait.
pub(crate) fn everywhere(test: impl Fn(Carrier) + Sync) {
    std::thread::scope(|scope| {
        for carrier in CARRIERS {
            let test = &test;
            scope.spawn(move || test(carrier));
        }
    });
}

impl Setup {
    pub(crate) fn attach(&self, break_in: bool) -> (Running, Receiver<Event>) {
        self.attach_on(&self.runtime, break_in)
    }

    pub(crate) fn attach_on(&self, runtime: &tokio::runtime::Runtime, break_in: bool) -> (Running, Receiver<Event>) {
        Attach::to(self.spec.clone()).on(runtime.handle()).break_in(break_in).start().unwrap()
    }

    /// The same with something around the line.
    pub(crate) fn attach_through(&self, layer: impl Fn(Box<dyn Link>) -> Box<dyn Link>) -> (Running, Receiver<Event>) {
        let attach = Attach::to(self.spec.clone()).on(self.runtime.handle()).break_in(true);
        attach.layer(|link| Ok(layer(link))).start().unwrap()
    }

    pub(crate) fn assert_left_running(&self) {
        let stats = self.fake.stats();
        assert!(!stats.halted, "left frozen: {stats:?}");
        assert_eq!(stats.rebreaks, 0, "continued on a break instruction: {stats:?}");
        assert_eq!(stats.wrong_dr7, 0, "{stats:?}");
        assert_eq!(stats.breakpoints, [0u64; 0], "{stats:?}");
    }

    pub(crate) fn halted(&self) -> Halted {
        let (running, _events) = self.attach(true);
        running.wait(Some(PATIENCE)).unwrap_or_else(|(_, error)| panic!("{:?}: {error}", self.spec))
    }

    /// The fake needs a moment to get what was sent last.
    pub(crate) fn assert_runs_soon(&self) {
        self.assert_runs_within(Duration::from_secs(3));
    }

    pub(crate) fn assert_runs_within(&self, time: Duration) {
        let deadline = std::time::Instant::now() + time;
        while self.fake.stats().halted && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!self.fake.stats().halted, "left frozen: {:?}", self.fake.stats());
    }
}
