//! A shell that is attached to a fake target over serial on TCP, and what it writes.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kd_fake::isf::Isf;
use kd_fake::kernel::Kernel;
use kd_fake::{FakeHandle, FakeOptions, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Next, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Attach, Interrupt, Leave, Target};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

#[path = "../schema_check/mod.rs"]
mod schema_check;

use schema_check::check_record;

pub(crate) struct Live {
    pub(crate) shell: Shell,
    pub(crate) interrupt: Interrupt,
    pub(crate) fake: FakeHandle,
    /// Holds the connection's tasks; dropped last.
    runtime: Runtime,
    pub(crate) directory: TempDir,
}

#[derive(Default)]
pub(crate) struct Screen {
    pub(crate) text: String,
    pub(crate) remarks: String,
    pub(crate) errors: String,
}

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn remark(&mut self, line: &str) {
        self.remarks.push_str(line);
    }

    fn error(&mut self, line: &str) {
        self.errors.push_str(line);
    }
}

impl Live {
    /// The article's machine.
    pub(crate) fn article() -> Live {
        Live::article_with(|_| {})
    }

    pub(crate) fn article_with(change: impl FnOnce(&mut FakeOptions)) -> Live {
        Live::with_articles_symbols(kd_fake::kernel::article(), change)
    }

    /// A machine of the same kernel.
    pub(crate) fn with_articles_symbols(kernel: Kernel, change: impl FnOnce(&mut FakeOptions)) -> Live {
        let directory = TempDir::new().unwrap();
        kd_fake::kernel::write_symbol_store(directory.path()).unwrap();
        Live::attach(kernel, directory, change)
    }

    /// A machine whose symbols are in `directory`.
    pub(crate) fn attach(kernel: Kernel, directory: TempDir, change: impl FnOnce(&mut FakeOptions)) -> Live {
        let session = session(&directory);
        Live::with_session(kernel, directory, session, change)
    }

    pub(crate) fn with_session(
        kernel: Kernel,
        directory: TempDir,
        session: Session,
        change: impl FnOnce(&mut FakeOptions),
    ) -> Live {
        let runtime = Runtime::new().unwrap();
        let transport = FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut options = FakeOptions::new(transport, kernel);
        change(&mut options);
        let fake = runtime.block_on(kd_fake::spawn(options)).unwrap();
        let address = fake.address().unwrap();
        let spec = KdSpec::parse(&format!("com:ipport={},port={}", address.port(), address.ip())).unwrap();
        let interrupt = Interrupt::default();
        let attach = Attach::to(spec).on(runtime.handle()).break_in(true).interrupt(interrupt.clone());
        let (running, _) = attach.start().unwrap();
        let mut shell = Shell::new(session, Format::Kd, interrupt.clone());
        shell.set_target(Target::Running(running));
        assert!(shell.wait(Some(Duration::from_secs(30)), &mut Screen::default()).unwrap());
        Live { shell, interrupt, fake, runtime, directory }
    }

    pub(crate) fn run(&mut self, line: &str) -> (Screen, bool, Next) {
        let mut screen = Screen::default();
        let outcome = self.shell.execute(line, &mut screen);
        (screen, outcome.failed, outcome.next)
    }

    /// What a line that does not fail writes.
    pub(crate) fn text(&mut self, line: &str) -> String {
        let (screen, failed, _) = self.run(line);
        assert!(!failed, "{line}: {}", screen.errors);
        screen.text
    }

    /// The last command's object.
    pub(crate) fn json(&mut self, line: &str) -> Value {
        self.shell.format = Format::Json;
        let text = self.run(line).0.text;
        self.shell.format = Format::Kd;
        let mut last = Value::Null;
        for line in text.lines() {
            last = serde_json::from_str(line).unwrap();
            check_record(&last);
        }
        last
    }

    /// Its result.
    pub(crate) fn result(&mut self, line: &str) -> Value {
        let mut object = self.json(line);
        assert_eq!(object["ok"], true, "{line}: {object}");
        object["result"].take()
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn leave(mut self) {
        // `q` has let it go already.
        if let Some(target) = self.shell.take_target() {
            target.leave(Leave::Running);
        }
        drop(self.fake);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// A session that knows the symbols in `directory`, and nothing else.
pub(crate) fn session(directory: &TempDir) -> Session {
    let source = PathSource::new(&directory.path().display().to_string()).unwrap();
    Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default())
}

/// The table that kd-fake carries, and those of the shared folder where it is.
pub(crate) fn table_files() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| root.join("../../../shared"), PathBuf::from);
    let mut files = vec![root.join("../kd-fake/data/339E74133576439CBCDF7E0229DA3773-1.json.xz")];
    match std::fs::read_dir(shared.join("isf")) {
        Ok(entries) => {
            let all = entries.map(|entry| entry.unwrap().path());
            files = all.filter(|path| path.extension().is_some_and(|xz| xz == "xz")).collect();
        }
        Err(_) => println!("skipped for all but Windows 7: {} is not there", shared.display()),
    }
    files.sort();
    files
}

pub(crate) fn tables() -> Vec<Isf> {
    table_files().iter().map(|file| Isf::from_xz(&std::fs::read(file).unwrap()).unwrap()).collect()
}
