//! The program over bad wires, and every way to end it: the fake target says afterwards whether it runs.
//!
//! Quick as it stands. For long, with the release build:
//!
//! ```sh
//! KDPOOL_SESSIONS=200 KDPOOL_ENDINGS=2500 cargo test --release -p kdpool --test endings -- --nocapture
//! ```
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kd_fake::{FakeOptions, FakeTarget, FakeTransport, Faults};
use serde_json::Value;

const KEY: &str = "1.2.3.4";
const QUESTIONS: [&str; 3] = ["!poolused 4 Leak", "!poolfind Leak", "!verifier 0x80 fffff8a005800000"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Net,
    Unix,
    Tcp,
    Pty,
}

const CARRIERS: [Carrier; 4] = [Carrier::Net, Carrier::Unix, Carrier::Tcp, Carrier::Pty];

fn count(variable: &str, quick: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(quick)
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn bad(seed: u64) -> Faults {
    Faults {
        seed,
        drop: 0.10,
        duplicate: 0.05,
        reorder: 0.05,
        corrupt: 0.02,
        delay: Duration::from_millis(5),
        ..Faults::default()
    }
}

struct Bench {
    fake: FakeTarget,
    connection: String,
    store: tempfile::TempDir,
    _place: tempfile::TempDir,
}

impl Bench {
    fn new(carrier: Carrier, faults: Faults) -> Self {
        let (place, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        kd_fake::kernel::write_symbol_store(store.path()).unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let transport = match carrier {
            Carrier::Net => FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY),
            Carrier::Unix => FakeTransport::UnixListen(place.path().join("kd.sock")),
            Carrier::Tcp => FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()),
            Carrier::Pty => FakeTransport::Pty,
        };
        let mut options = FakeOptions::new(transport, kd_fake::kernel::article());
        options.faults = faults;
        options.offer_period = Duration::from_millis(500);
        let fake = FakeTarget::start(options).unwrap();
        let path = || fake.path().unwrap_or(Path::new("")).display().to_string();
        let connection = match carrier {
            Carrier::Net => format!("net:port={port},key={KEY}"),
            Carrier::Unix => format!("com:pipe,port={}", path()),
            Carrier::Tcp => format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port()),
            Carrier::Pty => format!("com:port={}", path()),
        };
        Bench { fake, connection, store, _place: place }
    }

    fn kdpool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        command.args(["-k", &self.connection, "--bonc", "--format", "json", "-y"]).arg(self.store.path());
        command.args(arguments).env("KDPOOL_STATE", self.store.path());
        command
    }

    /// The three questions of the article; their results, and how long they froze the target.
    fn questions(&self) -> (Vec<Value>, Duration) {
        let before = self.fake.stats().frozen;
        let line = QUESTIONS.join("; ") + "; q";
        let output = self.kdpool(&["-c", &line]).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let results = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["result"].take()).collect();
        assert!(self.runs(), "left frozen\n{text}");
        (results, self.fake.stats().frozen - before)
    }

    /// What was sent last may still be on its way.
    fn runs(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.fake.stats().halted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        !self.fake.stats().halted
    }
}

/// On every carrier at the same time.
fn everywhere(test: impl Fn(Carrier) + Sync) {
    std::thread::scope(|scope| {
        for carrier in CARRIERS {
            let test = &test;
            scope.spawn(move || test(carrier));
        }
    });
}

#[test]
fn questions_over_a_bad_wire_are_answered_right() {
    let sessions = count("KDPOOL_SESSIONS", 1);
    everywhere(|carrier| {
        let clean = Bench::new(carrier, Faults::default());
        let (truth, clean_frozen) = clean.questions();
        let bench = Bench::new(carrier, bad(7));
        let mut times = Vec::new();
        for session in 0..sessions {
            let (results, frozen) = bench.questions();
            assert!(results == truth, "{carrier:?}, session {session}: another answer");
            let limit = if carrier == Carrier::Net { 12 } else { 20 };
            assert!(frozen < Duration::from_secs(limit), "{carrier:?}, session {session}: frozen for {frozen:?}");
            times.push(frozen);
        }
        times.sort();
        let one = Bench::new(carrier, Faults { seed: 3, drop: 0.01, ..Faults::default() });
        let lossy: Duration = (0..sessions.min(20)).map(|_| one.questions().1).sum();
        println!(
            "{carrier:?}: clean {clean_frozen:?}; at 1 % loss {:?}; bad wire, {sessions} sessions: median {:?}, longest {:?}",
            lossy / sessions.min(20) as u32,
            times[times.len() / 2],
            times[times.len() - 1]
        );
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Quit,
    EndOfInput,
    Interrupt,
    Terminate,
    HangUp,
    /// Followed by an attach.
    Kill,
}

const ENDINGS: [Ending; 6] =
    [Ending::Quit, Ending::EndOfInput, Ending::Interrupt, Ending::Terminate, Ending::HangUp, Ending::Kill];

fn signal(child: &Child, name: &str) {
    // The shell's own kill: no crate of the workspace sends signals.
    let _ = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
}

/// One session that ends at a random moment.
fn end(bench: &Bench, ending: Ending, after: Duration) -> ExitStatus {
    let mut child = bench
        .kdpool(&["--connect-timeout", "20"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // It may be gone before all is written.
    let _ = writeln!(input, "{}", [QUESTIONS; 20].concat().join("\n"));
    std::thread::sleep(after);
    match ending {
        Ending::Quit => drop(writeln!(input, "q")),
        Ending::EndOfInput => {}
        Ending::Interrupt => signal(&child, "INT"),
        Ending::Terminate => signal(&child, "TERM"),
        Ending::HangUp => signal(&child, "HUP"),
        Ending::Kill => signal(&child, "KILL"),
    }
    drop(input);
    child.wait().unwrap()
}

#[test]
fn however_it_ends_the_target_runs() {
    let endings = count("KDPOOL_ENDINGS", 6);
    everywhere(|carrier| {
        for faults in [Faults::default(), Faults { drop: 0.05, duplicate: 0.03, corrupt: 0.01, ..bad(11) }] {
            let is_clean = faults.drop == 0.0;
            let bench = Bench::new(carrier, faults);
            let (mut state, mut told) = (carrier as u64, 0);
            for number in 0..endings {
                let ending = ENDINGS[(number % 6) as usize];
                let after = Duration::from_millis(random(&mut state) % 1500);
                let status = end(&bench, ending, after);
                if ending == Ending::Kill {
                    bench.questions();
                } else if !bench.runs() {
                    assert!(status.code() == Some(4), "{carrier:?} {number} {ending:?} after {after:?}: {status}");
                    assert!(!is_clean, "{carrier:?} {number} {ending:?}: told on a clean wire");
                    told += 1;
                }
            }
            println!("{carrier:?}, clean {is_clean}: {endings} endings, 0 left frozen, {told} told of");
        }
    });
}
