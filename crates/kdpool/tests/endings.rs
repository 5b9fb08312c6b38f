//! The program over bad wires, and every way to end it: the fake target says afterwards whether it runs.
//!
//! Quick as it stands. For long, with the release build, and as many targets at a time as `KDPOOL_BENCHES` says for each
//! carrier (they mostly wait); `KDPOOL_SEED` plays other moments and other faults:
//!
//! ```sh
//! KDPOOL_PROGRAM=$PWD/target/release/kdpool KDPOOL_SESSIONS=200 KDPOOL_ENDINGS=10000 KDPOOL_BENCHES=4 KDPOOL_SEED=2 \
//!     cargo test -p kdpool --test endings -- --nocapture
//! ```
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kd_fake::{FakeOptions, FakeTarget, FakeTransport, Faults};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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

/// What a session has to get over.
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

/// What it ends on: bad enough, and soon over.
fn wire(seed: u64) -> Faults {
    Faults { drop: 0.05, duplicate: 0.03, corrupt: 0.01, ..bad(seed) }
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
        let port = kd_fake::free_port().unwrap();
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

    fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var_os("KDPOOL_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_kdpool").into());
        let mut command = Command::new(program);
        command.args(["-k", &self.connection, "--bonc", "-y"]).arg(self.store.path());
        command.args(arguments).env("KDPOOL_STATE", self.store.path());
        command
    }

    fn kdpool(&self, arguments: &[&str]) -> Command {
        self.command(&[&["--format", "json"], arguments].concat())
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

    /// What was sent last may still be on its way, and the machine be busy.
    fn runs(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.fake.stats().halted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        !self.fake.stats().halted
    }
}

/// On every carrier at the same time, in as many benches as are asked for. The test gets the number of its bench and how
/// many of `total` rounds are its.
fn everywhere(total: u64, test: impl Fn(Carrier, u64, u64) + Sync) {
    let benches = count("KDPOOL_BENCHES", 1).max(1);
    std::thread::scope(|scope| {
        for carrier in CARRIERS {
            for bench in 0..benches {
                let test = &test;
                scope.spawn(move || test(carrier, bench, total / benches + u64::from(bench < total % benches)));
            }
        }
    });
}

/// One number for everything that a bench draws.
fn seed(carrier: Carrier, bench: u64, part: u64) -> u64 {
    let mut state = count("KDPOOL_SEED", 1) << 48 ^ (carrier as u64) << 40 ^ bench << 32 ^ part;
    random(&mut state)
}

#[test]
fn questions_over_a_bad_wire_are_answered_right() {
    let sessions = count("KDPOOL_SESSIONS", 1);
    let all: Mutex<Vec<(Carrier, Duration)>> = Mutex::default();
    everywhere(sessions, |carrier, number, rounds| {
        let (truth, _) = Bench::new(carrier, Faults::default()).questions();
        for session in 0..rounds {
            let bench = Bench::new(carrier, bad(seed(carrier, number, session)));
            let (results, frozen) = bench.questions();
            assert!(results == truth, "{carrier:?}, bench {number}, session {session}: another answer");
            let limit = if carrier == Carrier::Net { 12 } else { 20 };
            assert!(frozen < Duration::from_secs(limit), "{carrier:?}, {number}, {session}: frozen for {frozen:?}");
            all.lock().unwrap().push((carrier, frozen));
        }
    });
    let all = all.into_inner().unwrap();
    for carrier in CARRIERS {
        let mut times: Vec<_> = all.iter().filter(|(of, _)| *of == carrier).map(|(_, time)| *time).collect();
        times.sort();
        let (median, longest) = (times.get(times.len() / 2), times.last());
        println!(
            "{carrier:?}: bad wire, {} sessions answered right, frozen {median:?}, longest {longest:?}",
            times.len()
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Quit,
    EndOfInput,
    Interrupt,
    Terminate,
    HangUp,
    /// Nobody reads its answers any more.
    OutputClosed,
    /// Nor what it has to say beside, of which there is much.
    ErrorsClosed,
    /// The window of its terminal is closed.
    TerminalLost,
    /// The same where the terminal was not its own: nobody tells it, and reads and writes fail.
    TerminalGone,
    /// Followed by an attach.
    Kill,
}

const ENDINGS: [Ending; 10] = [
    Ending::Quit,
    Ending::EndOfInput,
    Ending::Interrupt,
    Ending::Terminate,
    Ending::HangUp,
    Ending::OutputClosed,
    Ending::ErrorsClosed,
    Ending::TerminalLost,
    Ending::TerminalGone,
    Ending::Kill,
];

fn signal(child: &Child, signal: Signal) {
    // It may be gone already.
    let _ = i32::try_from(child.id()).map(|id| kill(Pid::from_raw(id), signal));
}

/// What gives a program a terminal of its own; util-linux has it.
fn has_setsid() -> bool {
    Command::new("setsid").arg("--version").output().is_ok()
}

/// What is asked until it ends: few questions where all that was typed is answered first. Ctrl+C ends one of them.
fn typed(ending: Ending) -> String {
    let times = if matches!(ending, Ending::Quit | Ending::EndOfInput | Ending::Interrupt) { 2 } else { 20 };
    QUESTIONS.repeat(times).join("\n") + "\n"
}

/// One session that ends at a random moment.
fn end(bench: &Bench, ending: Ending, after: Duration) -> Output {
    if let Ending::TerminalLost | Ending::TerminalGone = ending {
        return end_at_a_terminal(bench, ending == Ending::TerminalLost && has_setsid(), after);
    }
    let mut command = bench.kdpool(&["--connect-timeout", "20"]);
    if ending == Ending::ErrorsClosed {
        command.args(["-v", "-v"]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (mut said, mut errors) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // It may be gone before all is written.
        let _ = input.write_all(typed(ending).as_bytes());
        let drain = |from: Option<&mut (dyn std::io::Read + Send)>| {
            let mut text = Vec::new();
            if let Some(from) = from {
                let _ = from.read_to_end(&mut text);
            }
            text
        };
        if ending == Ending::OutputClosed || ending == Ending::ErrorsClosed {
            std::thread::sleep(after / 4);
            said = None;
        }
        if ending == Ending::ErrorsClosed {
            errors = None;
        }
        let said = scope.spawn(move || drain(said.as_mut().map(|out| out as _)));
        let errors = scope.spawn(move || drain(errors.as_mut().map(|out| out as _)));
        std::thread::sleep(after);
        match ending {
            Ending::Quit => drop(writeln!(input, "q")),
            Ending::Interrupt => signal(&child, Signal::SIGINT),
            Ending::Terminate => signal(&child, Signal::SIGTERM),
            Ending::HangUp => signal(&child, Signal::SIGHUP),
            Ending::Kill => signal(&child, Signal::SIGKILL),
            _ => {}
        }
        drop(input);
        let status = wait(&mut child);
        Output { status, stdout: said.join().unwrap(), stderr: errors.join().unwrap() }
    })
}

/// Both ends of a terminal, which no child inherits: a window that another bench's child holds open is never lost.
fn terminal() -> (nix::pty::PtyMaster, File) {
    use nix::fcntl::OFlag;
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let name = nix::pty::ptsname_r(&master).unwrap();
    let slave = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name).unwrap();
    (master, slave)
}

/// At a terminal that nobody reads, as in a window that hangs, until it is closed.
fn end_at_a_terminal(bench: &Bench, own: bool, after: Duration) -> Output {
    let (master, slave) = terminal();
    let of = |end: &File| Stdio::from(end.as_fd().try_clone_to_owned().unwrap());
    let plain = bench.command(&["--connect-timeout", "20"]);
    let mut command = if own { Command::new("setsid") } else { Command::new(plain.get_program()) };
    if own {
        command.arg("-c").arg(plain.get_program());
    }
    command.args(plain.get_args()).env("TERM", "xterm").env("KDPOOL_STATE", bench.store.path());
    command.stdin(of(&slave)).stdout(of(&slave)).stderr(of(&slave));
    let mut child = command.spawn().unwrap();
    drop((command, slave));
    let mut window = File::from(OwnedFd::from(master));
    let _ = window.write_all(typed(Ending::TerminalLost).as_bytes());
    std::thread::sleep(after);
    drop(window);
    Output { status: wait(&mut child), stdout: Vec::new(), stderr: Vec::new() }
}

/// Longer than leaving may take on a busy machine; a session that does not end is one more that went wrong.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + ENDS_WITHIN;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                return child.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(30)),
        }
    }
}

/// How one session ended that did not end well.
fn wrong(bench: &Bench, ending: Ending, after: Duration, clean: bool, told: &mut u64) -> Option<String> {
    let output = end(bench, ending, after);
    if ending == Ending::Kill {
        let output = bench.kdpool(&["-c", "!poolused 4 Leak; q"]).stdin(Stdio::null()).output().unwrap();
        let well = output.status.success() && bench.runs();
        return (!well).then(|| format!("the next attach: {output:?}"));
    }
    let is_said = output.status.code() == Some(4);
    if output.status.signal() == Some(9) {
        return Some(format!("did not end: {output:?}"));
    }
    // One that had not begun yet ends by the signal itself; nothing was on the line.
    if bench.runs() {
        // On a clean wire nothing is doubtful.
        return (clean && is_said).then(|| format!("said to stand, and runs: {output:?}"));
    }
    *told += u64::from(is_said);
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.contains("stand") || !matches!(ending, Ending::Quit | Ending::EndOfInput | Ending::Terminate);
    (clean || !is_said || !line).then(|| format!("left frozen: {:?} {errors}", output.status))
}

/// When the machine kept a thread waiting that wanted to run, and for how long.
static AWAY: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

/// Silence of some two seconds is what a session takes for a target that runs when its continue is not acknowledged. A
/// fake that is not scheduled for a good part of that is as silent, and what it does afterwards is no fault of the session.
/// That it was away proves nothing either: the same ending is tried again.
fn too_long_away(clean: bool) -> Duration {
    // Where nothing is lost, all of the silence has to be the machine's.
    Duration::from_millis(if clean { 1200 } else { 700 })
}

/// How often an ending is tried that the machine was away in.
const TRIES: u32 = 4;

/// Looks at how busy the machine is, for as long as the test runs.
fn watch_the_machine() {
    const NAP: Duration = Duration::from_millis(20);
    std::thread::spawn(|| {
        loop {
            let slept = Instant::now();
            std::thread::sleep(NAP);
            let late = slept.elapsed().saturating_sub(NAP);
            if late > too_long_away(false) / 2 {
                AWAY.lock().unwrap().push((slept, late));
            }
        }
    });
}

/// The longest time that the machine was away since then.
fn away_since(began: Instant) -> Duration {
    AWAY.lock()
        .unwrap()
        .iter()
        .filter(|(at, late)| *at + *late > began)
        .map(|(_, late)| *late)
        .max()
        .unwrap_or_default()
}

/// Endings of one bench before it is made anew, with other faults.
const ENDINGS_A_BENCH: u64 = 50;

#[test]
fn however_it_ends_the_target_runs() {
    if !has_setsid() {
        println!("skipped: a terminal of its own that is lost (no `setsid` here)");
    }
    let bad: Mutex<Vec<String>> = Mutex::default();
    // Of each bench: endings, those that told of a target that may stand, and those that were tried again.
    let sums: Mutex<Vec<(Carrier, bool, [u64; 3])>> = Mutex::default();
    watch_the_machine();
    let one_bench = |carrier, clean, number, rounds| {
        let (mut told, mut excused) = (0, 0);
        let mut bench = None;
        for round in 0..rounds {
            let mut state = seed(carrier, number, round << 1 | u64::from(clean));
            if round % ENDINGS_A_BENCH == 0 {
                bench = Some(Bench::new(carrier, if clean { Faults::default() } else { wire(state) }));
            }
            let Some(bench) = &bench else { break };
            let ending = ENDINGS[((round + number) % ENDINGS.len() as u64) as usize];
            // Most of what can go wrong does so while it attaches.
            let within = [150, 500, 1500][(random(&mut state) % 3) as usize];
            let after = Duration::from_millis(random(&mut state) % within);
            for again in 1..=TRIES {
                let began = Instant::now();
                let Some(what) = wrong(bench, ending, after, clean, &mut told) else { break };
                let away = away_since(began);
                let what = format!("{carrier:?} {number} {round} clean {clean} {ending:?} after {after:?}: {what}");
                println!("{what} (try {again}; the machine was away for up to {away:?})");
                // That it stands is not the next one's fault.
                bench.questions();
                if away < too_long_away(clean) || again == TRIES {
                    bad.lock().unwrap().push(what);
                    break;
                }
                excused += 1;
            }
        }
        sums.lock().unwrap().push((carrier, clean, [rounds, told, excused]));
    };
    everywhere(count("KDPOOL_ENDINGS", 10), |carrier, number, rounds| {
        std::thread::scope(|scope| {
            for clean in [true, false] {
                let one_bench = &one_bench;
                scope.spawn(move || one_bench(carrier, clean, number, rounds));
            }
        });
    });
    for carrier in CARRIERS {
        for clean in [true, false] {
            let sums = sums.lock().unwrap();
            let of = || sums.iter().filter(|sum| (sum.0, sum.1) == (carrier, clean));
            let [rounds, told, excused] = [0, 1, 2].map(|n| of().map(|sum| sum.2[n]).sum::<u64>());
            println!("{carrier:?}, clean {clean}: {rounds} endings, {told} told of, {excused} tried again");
        }
    }
    let bad = bad.into_inner().unwrap();
    assert!(bad.is_empty(), "{} ended wrong:\n{}", bad.len(), bad.join("\n"));
}

/// What is written while the process is killed is the old file or the new one, whole; and of what grows, everything up to
/// the last entry can be read.
#[test]
fn what_is_written_while_it_is_killed_is_whole() {
    let bench = Bench::new(Carrier::Unix, Faults::default());
    let folder = tempfile::tempdir().unwrap();
    let kdpool = |arguments: &[&str]| {
        let mut command = bench.kdpool(arguments);
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let write = "!leak mark m Leak -file mark.json; !leak check m -json check.json -html page.html -svg flame.svg";
    let all = format!(".logopen log.txt; {}; q", [write; 40].join("; "));
    assert!(kdpool(&["-c", &format!("{write}; q")]).status().unwrap().success());
    let mut state = seed(Carrier::Unix, 0, 99);
    for round in 0..count("KDPOOL_KILLS", 12) {
        let mut child = kdpool(&["--capture", "wire.pcapng", "-c", &all]).spawn().unwrap();
        let _ = std::fs::remove_file(folder.path().join("log.txt"));
        let deadline = Instant::now() + ENDS_WITHIN;
        // From the moment on that it writes.
        while !folder.path().join("log.txt").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(random(&mut state) % 300_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for name in ["mark.json", "check.json"] {
            serde_json::from_str::<Value>(&read(name)).unwrap_or_else(|error| panic!("{round}, {name}: {error}"));
        }
        assert!(read("page.html").trim_end().ends_with("</html>"), "{round}: page.html");
        assert!(read("flame.svg").trim_end().ends_with("</svg>"), "{round}: flame.svg");
        assert!(read("log.txt").is_empty() || read("log.txt").ends_with('\n'), "{round}: {:?}", read("log.txt"));
        let decoded = Command::new(bench.kdpool(&[]).get_program())
            .args(["decode", "wire.pcapng"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(decoded.status.success(), "{round}: {}", String::from_utf8_lossy(&decoded.stderr));
        assert!(!decoded.stdout.is_empty());
        // The mark's checksum holds: it can be compared with.
        let checked = kdpool(&["-c", "!leak check -file mark.json; q"]).status().unwrap();
        assert!(checked.success(), "{round}: the mark");
    }
}
