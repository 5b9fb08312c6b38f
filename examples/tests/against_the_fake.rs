//! Every example is run as a program of its own, against a fake target on a serial line on TCP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use kd_fake::kernel::{self, Demo, DemoWindows};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
use kd_link::{Capture, KdSpec};
use serde_json::Value;
use tempfile::TempDir;

struct Machine {
    fake: FakeTarget,
    /// Its symbols, and room for files.
    folder: TempDir,
}

impl Machine {
    /// The article's machine, on which a driver leaks 1 MB three times a second.
    fn article() -> Machine {
        let demo = kernel::demo(DemoWindows::Seven).unwrap();
        demo.begin.now();
        Machine::start(demo)
    }

    /// A segment heap, on which nothing happens.
    fn heap() -> Machine {
        Machine::start(kernel::demo(DemoWindows::Ten).unwrap())
    }

    fn start(demo: Demo) -> Machine {
        let folder = TempDir::new().unwrap();
        match &demo.symbols {
            Some(table) => kernel::write_pdb(folder.path(), table),
            None => kernel::write_symbol_store(folder.path()),
        }
        .unwrap();
        let anywhere = FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
        let mut options = FakeOptions::new(anywhere, demo.kernel);
        options.evolve = Some(demo.activity);
        Machine { fake: FakeTarget::start(options).unwrap(), folder }
    }

    fn connection(&self) -> String {
        format!("com:ipport={},port=127.0.0.1", self.fake.address().unwrap().port())
    }

    fn symbols(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// What an example prints. It leaves the target running.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        let (out, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program}: {out}{errors}");
        // What was sent last may be on its way still.
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.fake.stats().halted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let stats = self.fake.stats();
        assert!(!stats.halted && stats.rebreaks == 0, "{program}: {stats:?}");
        out
    }
}

#[test]
fn version() {
    let machine = Machine::article();
    let out = machine.run(env!("CARGO_BIN_EXE_version"), &[&machine.connection()]);
    assert!(out.starts_with("Windows build 7601 on X64"), "{out}");
    assert!(out.contains(" ntoskrnl.exe\n") && out.ends_with("The target runs.\n"), "{out}");
}

#[test]
fn biggest_tags() {
    let machine = Machine::article();
    let out = machine.run(env!("CARGO_BIN_EXE_biggest_tags"), &[&machine.connection(), machine.symbols()]);
    let answer: Value = serde_json::from_str(&out).unwrap();
    let tags = answer["tags"].as_array().unwrap();
    assert_eq!((tags.len(), &answer["complete"]), (10, &Value::Bool(true)));
    let bytes = |tag: &Value| tag["paged"]["bytes"].as_u64().unwrap() + tag["nonpaged"]["bytes"].as_u64().unwrap();
    assert!(tags.is_sorted_by_key(|tag| std::cmp::Reverse(bytes(tag))), "{out}");
    assert!(tags.iter().any(|tag| tag["tag"] == "Leak"), "{out}");
}

#[test]
fn blocks_of_a_tag() {
    let machine = Machine::article();
    let arguments = [&machine.connection(), machine.symbols(), "Leak"];
    let out = machine.run(env!("CARGO_BIN_EXE_blocks_of_a_tag"), &arguments);
    let blocks: Vec<&str> = out.lines().filter(|line| line.contains(" Leak Paged")).collect();
    // The article's twenty, and those of the moment that it ran.
    assert!(blocks.len() >= 20 && !out.contains("note:"), "{out}");
    assert!(blocks[0].starts_with("fffff8a0"), "{out}");
}

#[test]
fn follow_a_tag() {
    let machine = Machine::article();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let hook = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut reader, mut length, mut line) = (BufReader::new(&stream), 0, String::new());
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        (&stream).write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
        body
    });
    let arguments = [&machine.connection(), machine.symbols(), "Leak", &url, "2", "1"];
    let out = machine.run(env!("CARGO_BIN_EXE_follow_a_tag"), &arguments);
    assert!(out.starts_with("look 1: "), "{out}");
    let posted: Value = serde_json::from_slice(&hook.join().unwrap()).unwrap();
    assert_eq!((&posted["tag"], &posted["look"]), (&Value::from("Leak"), &Value::from(1)));
    assert!(posted["grown"].as_u64() > Some(0), "{posted}");
}

#[test]
fn own_question() {
    let machine = Machine::heap();
    let tags = machine.run(env!("CARGO_BIN_EXE_biggest_tags"), &[&machine.connection(), machine.symbols()]);
    let tags: Value = serde_json::from_str(&tags).unwrap();
    let tag = tags["tags"][0]["tag"].as_str().unwrap();
    let arguments = [&machine.connection(), machine.symbols(), tag];
    let blocks = machine.run(env!("CARGO_BIN_EXE_blocks_of_a_tag"), &arguments);
    let blocks = blocks.lines().filter(|line| !line.starts_with("note:")).count();
    let out = machine.run(env!("CARGO_BIN_EXE_own_question"), &arguments);
    // Blocks that begin so, or that cannot be read.
    let first = |line: &str| line.trim_start_matches("note: ").split_whitespace().next()?.parse::<usize>().ok();
    assert!(blocks > 0 && out.lines().map_while(first).sum::<usize>() == blocks, "{tag}: {blocks}\n{out}");
}

#[test]
fn drive_a_session() {
    let machine = Machine::article();
    let address = machine.fake.address().unwrap().to_string();
    let out = machine.run(env!("CARGO_BIN_EXE_drive_a_session"), &[&address]);
    assert!(out.contains("Windows build 7601, machine 8664\n") && out.ends_with("it runs\n"), "{out}");
}

#[test]
fn decode_a_capture() {
    let machine = Machine::article();
    let path = machine.folder.path().join("session.pcapng");
    let file = std::fs::File::create(&path).unwrap();
    let attach = kd_target::Attach::to(KdSpec::parse(&machine.connection()).unwrap()).break_in(true);
    let attach = attach.layer(|link| Ok(Box::new(Capture::new(link, Box::new(file), 0)?)));
    let (running, _) = attach.start().unwrap();
    let halted = running.wait(Some(Duration::from_secs(20))).map_err(|(_, error)| error).unwrap();
    drop(halted);
    let out = machine.run(env!("CARGO_BIN_EXE_decode_a_capture"), &[path.to_str().unwrap(), "1.2.3.4"]);
    assert!(out.contains("--> GetVersion") && out.contains("<-- GetVersion"), "{out}");
    assert!(out.contains("MinorVersion=0x1db1"), "{out}");
}
