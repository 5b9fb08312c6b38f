//! `--max-memory`: whoever shows kdpool more than it may hold gets an error or the end of the session, and the target runs.
#![cfg(target_os = "linux")] // The peak of a process is read from /proc.
#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kd_fake::{FakeOptions, FakeTarget, FakeTransport};

struct Bench {
    fake: FakeTarget,
    place: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let transport = FakeTransport::UnixListen(place.path().join("kd.sock"));
        let fake = FakeTarget::start(FakeOptions::new(transport, kd_fake::kernel::article())).unwrap();
        Bench { fake, place }
    }

    /// What it came to, and the most that it held, in KiB.
    fn kdpool(&self, symbols: &Path, arguments: &[&str]) -> (Output, u64) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kdpool"))
            .args(["-k", &format!("com:pipe,port={}", self.place.path().join("kd.sock").display()), "--bonc", "-y"])
            .arg(symbols)
            .args(arguments)
            .env("KDPOOL_STATE", self.place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let watch = std::thread::spawn(move || {
            let mut most = 0;
            // Until it is gone.
            while let Ok(text) = std::fs::read_to_string(&status) {
                let Some(peak) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
                most = peak.trim().trim_end_matches(" kB").parse().unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        child.stdin.take();
        let output = child.wait_with_output().unwrap();
        (output, watch.join().unwrap())
    }

    fn runs(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.fake.stats().halted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        !self.fake.stats().halted
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_that_would_take_too_much_fails_and_the_next_one_works() {
    let bench = Bench::new();
    let symbols = bench.place.path().join("symbols");
    kd_fake::kernel::write_symbol_store(&symbols).unwrap();
    let lines = "db nt L?1000000; !poolused 4 Leak; q";
    let (output, most) = bench.kdpool(&symbols, &["--max-memory", "256m", "-c", lines]);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let told = "of the 256 MiB of memory that it may";
    assert!(errors.contains(told) && errors.contains("--max-memory allows more"), "{errors}");
    assert!(out.contains("Leak"), "{out}");
    assert!(most < 256 << 10, "{most} KiB");
    assert!(bench.runs());
}

/// A table of symbols for this kernel, as a server or a share may have it, that is small enough to be read and becomes
/// too large on the way.
fn hostile_symbols(folder: &Path) {
    // What kd-fake's kernel says that its PDB has.
    const GUID: &str = "8F1D2C676B644F6F9C1A6B64706F6F6C";
    let mut text = format!(
        r#"{{"metadata":{{"windows":{{"pdb":{{"GUID":"{GUID}","age":1,"database":"ntkrnlmp.pdb"}}}}}},"user_types":{{"#
    );
    for n in 0..400_000 {
        let field = r#"{"a":{"offset":0,"type":{"kind":"struct","name":"_B"}}}"#;
        write!(text, r#""_A{n:07}":{{"size":8,"fields":{field}}},"#).unwrap();
    }
    text += r#""_B":{"size":8,"fields":{}}},"symbols":{},"base_types":{},"enums":{}}"#;
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(format!("{GUID}-1.json")), text).unwrap();
}

#[test]
fn what_gets_past_that_ends_the_session_with_the_target_running() {
    let bench = Bench::new();
    let symbols = bench.place.path().join("symbols");
    hostile_symbols(&symbols);
    let (output, most) = bench.kdpool(&symbols, &["--max-memory", "128m", "-c", "!poolused; q"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("more than 128 MiB of memory (--max-memory)"), "{errors}");
    assert!(errors.contains("The target runs."), "{errors}");
    assert!(most < 160 << 10, "{most} KiB");
    assert!(bench.runs());
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    for nonsense in ["0", "1", "64m", "-1g", "lots", "99999999999g"] {
        let output = Command::new(env!("CARGO_BIN_EXE_kdpool"))
            .args(["demo", &format!("--max-memory={nonsense}"), "-c", "q"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{nonsense}: {output:?}");
        assert!(text(&output.stderr).contains("--max-memory <SIZE>"), "{nonsense}: {output:?}");
    }
}
