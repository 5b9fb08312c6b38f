//! The Windows program at a console: Wine makes one of the terminal that it is started at.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{KEY, Wine, fake_over_tcp};

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;
/// Longer than Wine on a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program at a terminal of 80 by 24, whose screen is read.
struct AtConsole {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl AtConsole {
    fn start(wine: &Wine, arguments: &[&str]) -> AtConsole {
        let size = nix::pty::Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        let of = |end: &OwnedFd| Stdio::from(end.as_fd().try_clone_to_owned().unwrap());
        // Ctrl+C is the terminal's signal to the processes in its foreground, and Wine makes Windows' event of it.
        let foreground = ["setsid", "--ctty", "--wait", "timeout", "--foreground", "120"];
        let mut command = wine.command_under(&foreground, "console.exe", &[&["kdpool.exe"], arguments].concat());
        // The user's folders are Windows' alone.
        command
            .env_remove("KDPOOL_STATE")
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env("TERM", "xterm");
        let child = command.stdin(of(&pair.slave)).stdout(of(&pair.slave)).stderr(of(&pair.slave)).spawn().unwrap();
        drop((command, pair.slave));
        let keyboard = File::from(pair.master);
        let number = |number| NonZeroU16::new(number).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(number(ROWS), number(COLUMNS), 0)));
        let (shown, mut output) = (screen.clone(), keyboard.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..read]);
            }
        });
        AtConsole { child, keyboard, screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen is as it should be.
    fn shows(&self, what: &str, as_it_should: impl Fn(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !as_it_should(&self.text()) {
            assert!(Instant::now() < end, "{what} does not come:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a prompt with nothing behind it.
    fn prompt(&self) {
        self.shows("a prompt", |screen| screen.trim_end().ends_with("0: kd>"));
    }

    /// Waits for `part` in one of the last lines.
    fn says(&self, part: &str) {
        self.shows(part, |screen| screen.lines().rev().take(4).any(|line| line.contains(part)));
    }

    fn end(mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A whole session by hand: the prompt, a target that runs, both keys that stop it, and keys that count by themselves.
pub(super) fn is_typed_at(wine: &Wine) {
    let fake = fake_over_tcp();
    let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
    let mut kd = AtConsole::start(wine, &["-quiet", "-k", &connection, "-y", "symbols", "-bonc"]);
    kd.prompt();
    kd.types("? 21*2\r");
    kd.says("Evaluate expression: 66");

    kd.prompt();
    kd.types("g\r");
    kd.says("The target runs since");
    kd.types("\r");
    kd.says("It runs. Ctrl+C breaks in; q leaves it running.");
    // What was begun when the target stops is there at the prompt.
    kd.types("? 5+6\x7f5");
    kd.says("? 5+5");
    kd.types("\x03");
    kd.says("0: kd> ? 5+5");
    kd.types("\r");
    kd.says("Evaluate expression: 10");

    kd.prompt();
    kd.types("g\r");
    kd.says("The target runs since");
    std::fs::write(wine.folder.path().join("break"), "").unwrap();
    kd.prompt();

    kd.types("!pooltop -watch -every 1s\r");
    kd.shows("a table", |screen| screen.contains("q quit"));
    kd.types("q");
    kd.says("The target runs since");
    kd.types("q\r");
    assert_eq!(kd.end(), Some(0));
    assert!(!fake.stats().halted);

    let local = std::fs::read_dir(wine.prefix.join("drive_c/users"))
        .unwrap()
        .filter_map(|user| std::fs::read_to_string(user.unwrap().path().join("AppData/Local/kdpool/history")).ok());
    let history: String = local.collect();
    assert!(history.contains("? 21*2") && !history.contains(KEY), "%LOCALAPPDATA%\\kdpool\\history: {history}");
}

/// Ctrl+C ends a hunt with its report and leaves the target running; a window that is closed is not tried.
pub(super) fn ends_a_hunt(wine: &Wine) {
    let fake = fake_over_tcp();
    let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
    let hunt = ["leak", "--tag", "Leak", "--every", "1s", "-k", &connection, "-y", "symbols", "--json", "leak.json"];
    let kd = AtConsole::start(wine, &hunt);
    let end = Instant::now() + PATIENCE;
    while fake.stats().stops < 2 {
        assert!(Instant::now() < end, "no hunt:\n{}", kd.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(wine.folder.path().join("ctrl-c"), "").unwrap();
    assert_eq!(kd.end(), Some(130));
    assert!(!fake.stats().halted);
    assert!(wine.folder.path().join("leak.json").exists());
}
