//! The Windows program, run under Wine: `cargo build --target x86_64-pc-windows-gnu -p kdpool` makes it, or `KDPOOL_EXE`
//! names it. Without it, without Wine or without mingw (for the small parts in tests/wine) this is skipped, and says
//! so.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kd_fake::kernel::article;
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};

#[path = "wine/console.rs"]
mod console;

const KEY: &str = "1.2.3.4";

/// A folder with the program and what it needs, and a Wine to run it.
struct Wine {
    wine: PathBuf,
    folder: tempfile::TempDir,
    prefix: PathBuf,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn first(candidates: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    candidates.into_iter().find(|path| path.is_file())
}

fn program(name: &str) -> Option<PathBuf> {
    first(std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)))
}

impl Wine {
    fn find() -> Result<Wine, &'static str> {
        let target = root().join("target/x86_64-pc-windows-gnu");
        let exe = match std::env::var_os("KDPOOL_EXE") {
            Some(exe) => Some(PathBuf::from(exe)),
            None => first(["debug", "release"].map(|profile| target.join(profile).join("kdpool.exe"))),
        };
        let exe = exe.ok_or("no kdpool.exe")?;
        let wine = program("wine64").or_else(|| first([PathBuf::from("/usr/lib/wine/wine64")])).ok_or("no wine64")?;
        let compiler = program("x86_64-w64-mingw32-gcc").ok_or("no x86_64-w64-mingw32-gcc")?;
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(exe, folder.path().join("kdpool.exe")).unwrap();
        let sources = root().join("crates/kdpool/tests/wine");
        for (output, source, options) in [
            ("bcryptprimitives.dll", "bcryptprimitives.c", &["-shared"][..]),
            ("pipe.exe", "pipe.c", &[]),
            ("console.exe", "console.c", &[]),
        ] {
            let built = Command::new(&compiler)
                .args(options)
                .arg("-o")
                .arg(folder.path().join(output))
                .arg(sources.join(source))
                .args(["-ladvapi32", "-lws2_32"])
                .output()
                .unwrap();
            assert!(built.status.success(), "{source}: {}", String::from_utf8_lossy(&built.stderr));
        }
        kd_fake::kernel::write_symbol_store(&folder.path().join("symbols")).unwrap();
        // Making it takes seconds, so it is kept.
        let prefix = root().join("target/wine");
        std::fs::create_dir_all(&prefix).unwrap();
        Ok(Wine { wine, folder, prefix })
    }

    fn command(&self, exe: &str, arguments: &[&str]) -> Command {
        self.command_under(&["timeout", "120"], exe, arguments)
    }

    /// A command line that `wrapper` begins.
    fn command_under(&self, wrapper: &[&str], exe: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(&self.wine).arg(self.folder.path().join(exe)).args(arguments);
        command.current_dir(self.folder.path()).stdin(Stdio::null()).env("WINEPREFIX", &self.prefix);
        command.env("WINEDEBUG", "-all").env("WINEDLLOVERRIDES", "bcryptprimitives=n;mscoree=;mshtml=");
        command.env_remove("RUST_LOG").env_remove("_NT_SYMBOL_PATH").env_remove("DISPLAY");
        command
    }

    fn kdpool(&self, arguments: &[&str]) -> Output {
        self.command("kdpool.exe", arguments).output().unwrap()
    }

    /// The folder of symbols as Windows names it: Wine's Z: is the root.
    fn symbols(&self) -> String {
        format!("Z:{}", self.folder.path().join("symbols").display()).replace('/', "\\")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A fake target at a TCP port.
fn fake_over_tcp() -> FakeTarget {
    FakeTarget::start(FakeOptions::new(FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()), article())).unwrap()
}

/// Starts a fake target, asks it a question from Windows, and looks whether it runs afterwards.
fn ask(wine: &Wine, transport: FakeTransport, connection: impl FnOnce(&FakeTarget) -> String) {
    let mut options = FakeOptions::new(transport, article());
    options.offer_period = Duration::from_millis(100);
    let fake = FakeTarget::start(options).unwrap();
    let connection = connection(&fake);
    let output =
        wine.kdpool(&["-k", &connection, "-y", &wine.symbols(), "-bonc", "-c", "!poolfind Leak; ? nt!PoolHitTag; q"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{connection}: {text}");
    assert_eq!(text.matches("Tag  is Leak").count(), 23, "{connection}: {text}");
    assert!(text.contains("Evaluate expression:"), "{connection}: {text}");
    assert!(!fake.stats().halted, "{connection}");
}

#[test]
fn the_windows_program_under_wine() {
    let wine = match Wine::find() {
        Ok(wine) => wine,
        Err(why) => {
            println!("skipped: the Windows program under Wine ({why}); 8 checks were not made");
            return;
        }
    };
    // The demonstration, alone.
    let output = wine.kdpool(&["demo", "-c", "!poolused 4; !poolfind Leak; q"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("23552000"), "{}", said(&output));
    let version = wine.kdpool(&["--version"]);
    assert!(said(&version).contains("x86_64-pc-windows-gnu"), "{}", said(&version));

    // A target on this side of Wine, over datagrams and over a stream, with symbols behind a drive letter.
    let port = kd_fake::free_port().unwrap();
    ask(&wine, FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY), |_| format!("net:port={port},key={KEY}"));
    let tcp = || FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
    ask(&wine, tcp(), |fake| format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port()));

    // A named pipe, as a hypervisor on Windows has it.
    ask(&wine, tcp(), |fake| {
        let (name, port) = (r"\\.\pipe\kdpool-test", fake.address().unwrap().port().to_string());
        let mut bridge = wine.command("pipe.exe", &[name, &port]).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(bridge.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready.trim(), "ready");
        // It ends with its client.
        std::thread::spawn(move || bridge.wait());
        format!("com:pipe,port={name}")
    });
    let missing = wine.kdpool(&["-k", r"com:pipe,port=\\.\pipe\none", "-c", "q"]);
    assert_eq!(missing.status.code(), Some(3), "{}", said(&missing));
    assert!(said(&missing).contains("does not exist"), "{}", said(&missing));

    console::is_typed_at(&wine);
    console::ends_a_hunt(&wine);

    // The default store is the user's.
    let output = wine.kdpool(&["doctor", "--port", "50777", "-y", "srv*http://127.0.0.1:9/symbols"]);
    assert!(said(&output).contains(r"AppData\Local\kdpool\symbols: writable"), "{}", said(&output));
}
