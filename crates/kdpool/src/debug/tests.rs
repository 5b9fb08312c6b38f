//! A panic while the target stands, in a process of its own: what `main` calls, with work that panics.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like tests.

use std::process::{Command, Stdio};
use std::time::Instant;

use kd_fake::{FakeOptions, FakeTarget, FakeTransport, Faults};

use super::*;

/// Where the child finds its target, and after how many milliseconds it panics.
const CONNECTION: &str = "KDPOOL_TEST_PANIC";

fn plan(connection: &str) -> Plan {
    Plan {
        spec: KdSpec::parse(connection).unwrap(),
        break_on_connect: true,
        brief: true,
        connect_timeout: None,
        capture: None,
        session: SessionArgs { commands: vec!["q".into()], ..SessionArgs::default() },
        task: None,
        hint: "",
    }
}

/// The child's part; nothing without its target.
#[test]
fn panics_while_the_target_stands() {
    let Ok(text) = std::env::var(CONNECTION) else { return };
    let (after, connection) = text.split_once(' ').unwrap();
    let after = Duration::from_millis(after.parse().unwrap());
    let ended = attach_and(plan(connection), |mut work, _, _, _| {
        let started = Instant::now();
        loop {
            work.line("db nt l1000; !poolused 4 Leak");
            assert!(started.elapsed() < after, "as it was told");
        }
    });
    unreachable!("{ended:?}");
}

#[test]
fn a_panic_lets_the_target_run() {
    let bad = Faults { drop: 0.05, duplicate: 0.03, corrupt: 0.01, seed: 5, ..Faults::default() };
    for faults in [Faults::default(), bad] {
        let is_clean = faults.drop == 0.0;
        let mut options =
            FakeOptions::new(FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()), kd_fake::kernel::article());
        options.faults = faults;
        let fake = FakeTarget::start(options).unwrap();
        let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
        let place = tempfile::tempdir().unwrap();
        for after in [0, 40, 90] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "debug::tests::panics_while_the_target_stands"])
                .env(CONNECTION, format!("{after} {connection}"))
                .env("KDPOOL_STATE", place.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(said.contains("as it was told"), "{said}{}", String::from_utf8_lossy(&child.stderr));
            let deadline = Instant::now() + Duration::from_secs(10);
            while fake.stats().halted && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let told = String::from_utf8_lossy(&child.stderr).contains("stand");
            assert!(!fake.stats().halted || told && !is_clean, "{after}: {said}");
            assert!(fake.stats().stops > 0);
        }
    }
}
