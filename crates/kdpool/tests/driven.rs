//! kdpool as tools and people drive it: through pipes, at a terminal, with the options and variables that they bring
//! along. The target is a fake one in this process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kd_fake::kernel::article;
use kd_fake::{FakeOptions, FakeTarget, FakeTransport, Start};

const KEY: &str = "verysecret1.verysecret2.c.d";
/// Longer than a busy test machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running fake target and what a debugger needs of it.
struct Lab {
    fake: FakeTarget,
    connection: String,
    folder: tempfile::TempDir,
}

impl Lab {
    fn over_serial() -> Lab {
        Lab::over_serial_from(Start::Running)
    }

    fn over_serial_from(begin: Start) -> Lab {
        let fake = start(FakeTransport::TcpListen(([127, 0, 0, 1], 0).into()), begin);
        let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
        Lab::new(fake, connection)
    }

    fn over_kdnet() -> Lab {
        let port = kd_fake::free_port().unwrap();
        let fake = start(FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY), Start::Running);
        Lab::new(fake, format!("net:port={port}"))
    }

    fn new(fake: FakeTarget, connection: String) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        kd_fake::kernel::write_symbol_store(&folder.path().join("symbols")).unwrap();
        Lab { fake, connection, folder }
    }

    /// kdpool, stopped at once.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = kdpool();
        command.current_dir(self.folder.path()).env("KDPOOL_STATE", self.folder.path().join("state"));
        command.args(["-k", &self.connection, "-bonc"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(&[&["-y", "symbols"], arguments].concat()).output().unwrap()
    }

    fn is_running(&self) -> bool {
        !self.fake.stats().halted
    }
}

fn start(transport: FakeTransport, begin: Start) -> FakeTarget {
    let mut options = FakeOptions::new(transport, article());
    options.start = begin;
    options.offer_period = Duration::from_millis(100);
    FakeTarget::start(options).unwrap()
}

fn kdpool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
    let variables = [
        "_NT_SYMBOL_PATH",
        "_NT_ALT_SYMBOL_PATH",
        "_NT_SYMBOL_PROXY",
        "_NT_DEBUG_PORT",
        "_NT_DEBUG_BAUD_RATE",
        "KDPOOL_POOLTAG",
        "KDPOOL_KEY",
        "RUST_LOG",
    ];
    for name in variables {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A child whose output is read as it comes.
struct Driven {
    child: Child,
    input: Option<Box<dyn Write>>,
    output: Arc<Mutex<String>>,
    /// What was looked at already.
    seen: usize,
}

impl Driven {
    fn through_pipes(mut command: Command) -> Driven {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Driven { child, input: Some(Box::new(input)), output: collect(output), seen: 0 }
    }

    fn write(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).unwrap();
    }

    /// Waits until `part` comes; returns what came up to it.
    fn expect(&mut self, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.output.lock().unwrap().clone();
            if let Some(at) = output[self.seen..].find(part) {
                let start = self.seen;
                self.seen += at + part.len();
                return output[start..self.seen].to_owned();
            }
            assert!(Instant::now() < end, "{part:?} does not come:\n{}", &output[self.seen..]);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What has come since.
    fn more(&self) -> String {
        self.output.lock().unwrap()[self.seen..].to_owned()
    }

    #[cfg(unix)]
    fn interrupt(&self) {
        let process = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    }

    /// The end's status.
    fn end(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.more());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        // One that has ended is not there any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::<Mutex<String>>::default();
    let to = text.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    });
    text
}

/// As kd's own wrappers do it: a command, then nothing until the prompt; a break is an interrupt.
#[test]
#[cfg(unix)]
fn a_tool_drives_it_through_pipes() {
    let lab = Lab::over_serial();
    let mut kd = Driven::through_pipes(lab.command(&["-y", "symbols"]));
    let banner = kd.expect("0: kd> ");
    assert!(banner.contains("Kernel Debugger connection established."), "{banner}");
    kd.write("? 1+1\n");
    assert_eq!(kd.expect("0: kd> "), "Evaluate expression: 2 = 00000000`00000002\n0: kd> ");
    kd.write("!poolused 4 Leak\r\n");
    let answer = kd.expect("0: kd> ");
    assert!(answer.contains("\nLeak ") && answer.contains("23552000"), "{answer}");
    kd.write("g\n");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(kd.more(), "", "no prompt while it runs");
    assert!(lab.is_running());
    kd.interrupt();
    let stop = kd.expect("0: kd> ");
    assert!(stop.starts_with("Break instruction exception - code 80000003 (first chance)\n"), "{stop}");
    assert!(!stop.contains("You are seeing this message"), "the box comes once a session: {stop}");
    // Once more, with what is to be done then written ahead.
    kd.write("g\n? 6+6\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(kd.more(), "");
    kd.interrupt();
    assert!(kd.expect("Evaluate expression: 12").contains("Break instruction exception"));
    kd.expect("0: kd> ");
    kd.write("g\nq\n");
    assert_eq!(kd.end(), 0);
    assert!(lab.is_running());
}

#[test]
fn a_pipe_that_ends_lets_the_target_run() {
    let lab = Lab::over_serial();
    let mut kd = Driven::through_pipes(lab.command(&["-y", "symbols"]));
    kd.expect("0: kd> ");
    kd.write("nonsense; .echo not this\n? 2+2\ng\n");
    kd.input = None;
    assert_eq!(kd.end(), 1, "a command failed");
    assert!(kd.more().contains("Evaluate expression: 4"), "{}", kd.more());
    assert!(lab.is_running());
}

#[test]
fn the_second_at_a_target_is_told_who_holds_it() {
    let lab = Lab::over_serial();
    let mut kd = Driven::through_pipes(lab.command(&["-y", "symbols"]));
    kd.expect("0: kd> ");
    let second = lab.run(&["-c", "q"]);
    assert_eq!(second.status.code(), Some(3), "{}", stderr(&second));
    let told = format!("is held by another kdpool (process {}, since ", kd.child.id());
    assert!(stderr(&second).contains(&told), "{}", stderr(&second));
    // The first one has lost nothing by that.
    kd.write("? 2+2\nq\n");
    assert_eq!(kd.end(), 0);
    assert!(kd.more().contains("Evaluate expression: 4"), "{}", kd.more());
    assert!(lab.is_running());
    assert!(lab.run(&["-c", "q"]).status.success());
}

/// A kernel after a bug check breaks in for ever: nobody says that it runs.
#[test]
fn a_target_that_cannot_be_let_go_is_not_said_to_run() {
    let lab = Lab::over_serial_from(Start::BugcheckLoop);
    let output = lab.run(&["--format", "json", "-c", "? 1; q"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let last = stdout(&output).lines().last().map(str::to_owned).unwrap_or_default();
    assert!(last.contains("\"ok\":false") && last.contains("stops again"), "{last}");
    assert!(!lab.is_running());
}

#[test]
fn a_batch_has_its_answers_alone_on_standard_output() {
    let lab = Lab::over_serial();
    let output = lab.run(&["-c", "? 1+1; q"]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), "Evaluate expression: 2 = 00000000`00000002\n")
    );
    assert!(stderr(&output).contains("Kernel Debugger connection established."), "{}", stderr(&output));
    for quiet in ["-quiet", "-kqm", "--quiet"] {
        let output = lab.run(&[quiet, "-c", "? 1+1; q"]);
        assert_eq!(stdout(&output), "Evaluate expression: 2 = 00000000`00000002\n");
        assert_eq!(stderr(&output), "", "{quiet}");
    }
    // Lines on standard input are a batch's, too, once commands were given.
    let mut kd = Driven::through_pipes(lab.command(&["-y", "symbols", "-quiet", "-c", "? 3"]));
    assert_eq!(kd.expect("0: kd> "), "Evaluate expression: 3 = 00000000`00000003\n0: kd> ");
    kd.write("q\n");
    assert_eq!(kd.end(), 0);
}

#[test]
fn what_is_waited_for_is_said_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("kd.sock");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut cases = vec![
        (format!("com:ipport={closed},port=127.0.0.1,reconnect"), "nothing listens there".to_owned(), "TCP port"),
        (
            "com:ipport=4555,port=no-such-host.invalid,reconnect".into(),
            "cannot resolve the name `no-such-host.invalid`".into(),
            "TCP port 4555",
        ),
    ];
    if cfg!(unix) {
        let name = missing.display();
        cases.push((format!("com:pipe,port={name},reconnect"), format!("{name} does not exist"), "pipe"));
    }
    for (connection, why, what) in cases {
        let output = kdpool().args(["-k", &connection, "--connect-timeout", "2", "-c", "q"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{connection}");
        let text = stderr(&output);
        assert_eq!(text.matches(&why).count(), 2, "once when it is met, once at the end: {connection}: {text}");
        assert!(text.contains("; it is tried again.\nWaiting for ") && text.contains(what), "{text}");
        assert!(!text.contains("Opened") && !text.contains("silent"), "{text}");
    }
}

#[test]
#[cfg(unix)]
fn a_pipe_that_comes_later_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kd.sock");
    let mut command = kdpool();
    command.args(["-k", &format!("com:pipe,port={},reconnect", path.display()), "-bonc"]);
    let mut kd = Driven::through_pipes(command);
    kd.expect(&format!("Waiting for pipe {}...\n", path.display()));
    let _fake = start(FakeTransport::UnixListen(path.clone()), Start::Running);
    kd.expect(&format!("Opened {}\nWaiting to reconnect...\n", path.display()));
    kd.expect("0: kd> ");
    kd.write("q\n");
    assert_eq!(kd.end(), 0);
}

#[test]
fn without_anything_it_says_what_to_type() {
    let output = kdpool().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    for part in ["kdpool demo", "kdpool setup", "-k net:port=50000", "-y 'srv*'", "--help"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().count() < 15 && text.lines().all(|line| line.len() <= 80), "{text}");
    // As kd, when the variable says where.
    let output = kdpool().env("_NT_DEBUG_PORT", "/no/such/port").args(["-c", "q"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("/no/such/port does not exist"), "{}", stderr(&output));
}

#[test]
fn kds_options_are_taken_or_named() {
    let lab = Lab::over_serial();
    for arguments in [["/K", "-b"], ["\u{2013}k", "\u{2014}bonc"]] {
        let mut command = kdpool();
        command.current_dir(lab.folder.path()).args([arguments[0], &lab.connection, arguments[1]]);
        let output = command.args(["/y", "symbols", "-kqm", "-n", "/c", "? nt!PoolHitTag; q"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("DBGHELP: nt - public symbols"), "-n is noisy: {}", stdout(&output));
    }
    for (option, part) in [("-z", "crash dump"), ("-kl", "kdpool demo"), ("-d", "-bonc"), ("/x", "every one")] {
        let output = kdpool().arg(option).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{option}");
        assert!(stderr(&output).contains(part) && stderr(&output).lines().count() == 1, "{}", stderr(&output));
    }
}

#[test]
fn a_bad_element_of_a_variable_costs_nothing_but_itself() {
    let lab = Lab::over_serial();
    let command = ["-quiet", "-c", "x nt!PoolHitTag; q"];
    for (path, warning) in [
        ("foo*bar;symbols", "_NT_SYMBOL_PATH: symbol path element \"foo*bar\": "),
        ("\"symbols;cache*https://x\"", "_NT_SYMBOL_PATH: symbol path element \"cache*https://x\": "),
    ] {
        let output = lab.command(&command).env("_NT_SYMBOL_PATH", path).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{path}: {}", stderr(&output));
        assert!(
            stderr(&output).starts_with(warning) && stderr(&output).lines().count() == 1,
            "{path}: {}",
            stderr(&output)
        );
        assert!(stdout(&output).contains("nt!PoolHitTag"), "{path}");
    }
    let output = lab.command(&["-y", "symbols;foo*bar"]).args(command).output().unwrap();
    assert!(stderr(&output).starts_with("-y: symbol path element") && stdout(&output).contains("nt!PoolHitTag"));
    // Nothing at all is set: one line says to the letter what to add.
    let output = lab.command(&["-quiet", "-c", "? nt!PoolHitTag; q"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no symbol path is set; -y 'srv*' on the command line"), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[test]
fn pool_tags_of_any_editor() {
    let lab = Lab::over_serial();
    let text = "Leak\t-\tmydrv.sys\t-\tMine\r\nwhat is this\r\n";
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    std::fs::write(lab.folder.path().join("tags.txt"), wide).unwrap();
    let output = lab.run(&["--pooltag", "tags.txt", "-quiet", "-c", "!poolused 4 Leak; q"]);
    assert!(stdout(&output).contains("Mine , Binary: mydrv.sys"), "{}", stdout(&output));
    assert!(
        stderr(&output).starts_with("tags.txt: 1 line says nothing of any tag (the first is line 2)"),
        "{}",
        stderr(&output)
    );
}

/// The key comes from a file or the environment, and stands nowhere afterwards.
#[test]
fn a_key_is_written_nowhere() {
    let lab = Lab::over_kdnet();
    let folder = lab.folder.path();
    std::fs::write(folder.join("key.txt"), format!("{KEY}\n")).unwrap();
    let files = ["-v", "-v", "--trace-file", "trace.txt", "--capture", "c.pcapng", "-logo", "log.txt"];
    let line = ["-y", "symbols", "-c", ".sympath; !poolused 4 Leak; !leak mark Leak -file m.json; nonsense; q"];
    for way in 0..3 {
        let mut command = kdpool();
        command.current_dir(folder).env("KDPOOL_STATE", folder.join("state"));
        let connection = match way {
            0 => format!("{},key=@key.txt", lab.connection),
            1 => {
                command.env("KDPOOL_KEY", KEY);
                lab.connection.clone()
            }
            _ => format!("{},key={KEY}", lab.connection),
        };
        let output = command.args(["-k", &connection, "-bonc"]).args(files).args(line).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stdout(&output).contains("23552000"), "{}", stdout(&output));
        let mut texts = vec![output.stdout, output.stderr];
        for name in ["trace.txt", "c.pcapng", "log.txt", "m.json"] {
            texts.push(std::fs::read(folder.join(name)).unwrap());
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(folder.join(name)).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{name} is the user's alone");
            }
        }
        for text in texts {
            assert!(!text.windows(10).any(|part| part == b"verysecret"), "way {way}");
        }
    }
    let output = kdpool().args(["-k", "net:port=50000,key=@/no/such/file", "-c", "q"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot read the key's file /no/such/file"), "{}", stderr(&output));
    let output = kdpool().args(["-k", "net:port=50000", "-c", "q"]).output().unwrap();
    assert!(stderr(&output).contains("key=@FILE") && stderr(&output).contains("KDPOOL_KEY"), "{}", stderr(&output));
}

#[test]
fn a_word_that_is_none_has_its_neighbour_named() {
    let lab = Lab::over_serial();
    for (line, meant) in [
        ("!poolfnd Leak", "did you mean !poolfind?"),
        ("poolused 4", "did you mean !poolused?"),
        (".poolused", "did you mean !poolused?"),
        ("hepl", "did you mean .help?"),
        (".help pooltpo", "did you mean !pooltop?"),
        ("!leak wach Leak", "did you mean !leak watch?"),
        ("frobnicate", ".help lists them"),
    ] {
        let output = lab.run(&["-quiet", "-c", line, "-c", "q"]);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(stderr(&output).contains(meant) && stderr(&output).lines().count() == 1, "{line}: {}", stderr(&output));
    }
}

/// A line of somebody else's script may carry what a terminal obeys.
#[test]
fn what_was_typed_is_shown_and_not_obeyed() {
    let output = kdpool().args(["-k", "net:port=\u{1b}]0;mine\u{7},key=1.2.3.4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("port=^[]0;mine^G is not a number"), "{}", stderr(&output));
}

/// What cannot be carried out is refused before the target is touched.
#[test]
fn a_script_that_is_missing_stops_no_target() {
    let lab = Lab::over_serial();
    let output = lab.run(&["--cf", "none.txt"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--cf: cannot read the script none.txt: "), "{}", stderr(&output));
    assert_eq!(lab.fake.stats().stops, 0);
}

/// A terminal of 80 by 24.
#[cfg(unix)]
mod terminal {
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    impl Driven {
        fn at_a_terminal(mut command: Command) -> Driven {
            let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
            let pair = nix::pty::openpty(Some(&size), None).unwrap();
            let of = |end: &OwnedFd| Stdio::from(end.as_fd().try_clone_to_owned().unwrap());
            command.stdin(of(&pair.slave)).stdout(of(&pair.slave)).stderr(of(&pair.slave)).env("TERM", "xterm");
            let child = command.spawn().unwrap();
            // Its end shows only when nobody else holds the terminal.
            drop((command, pair.slave));
            let master = File::from(pair.master);
            let output = collect(master.try_clone().unwrap());
            Driven { child, input: Some(Box::new(master)), output, seen: 0 }
        }
    }

    #[test]
    fn lines_pasted_at_once_run_one_after_the_other() {
        let lab = Lab::over_serial();
        for paste in
            ["\x1b[200~.echo o\"\"ne\r\n? 1+1\n.echo t\"\"wo\n\x1b[201~\r", ".echo o\"\"ne\r? 1+1\r.echo t\"\"wo\r"]
        {
            let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
            kd.expect("0: kd> ");
            kd.write(paste);
            for part in ["o\"\"ne", "Evaluate expression: 2", "t\"\"wo"] {
                kd.expect(part);
            }
            kd.expect("0: kd> ");
            kd.write("q\r");
            assert_eq!(kd.end(), 0, "{}", kd.more());
            assert!(lab.is_running());
        }
    }

    /// What is typed while there is no target yet is kept for the first prompt.
    #[test]
    fn lines_typed_while_connecting_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kd.sock");
        let mut command = kdpool();
        command.args(["-k", &format!("com:pipe,port={},reconnect", path.display()), "-bonc"]);
        command.env("KDPOOL_STATE", folder.path());
        let mut kd = Driven::at_a_terminal(command);
        kd.expect("Waiting for pipe");
        kd.write("? 1+1\n? 2+2\nq\n");
        std::thread::sleep(Duration::from_millis(300));
        let fake = start(FakeTransport::UnixListen(path), Start::Running);
        kd.expect("Evaluate expression: 2");
        kd.expect("Evaluate expression: 4");
        assert_eq!(kd.end(), 0, "{}", kd.more());
        assert!(!fake.stats().halted);
    }

    /// While the target runs a line says so, and `q` or Ctrl+D leave it as it is.
    #[test]
    fn a_target_that_runs_is_left_running() {
        let lab = Lab::over_serial();
        for end in ["q\n", "\x04"] {
            let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
            kd.expect("0: kd> ");
            kd.write("g\r");
            kd.expect("The target runs since ");
            kd.expect("Ctrl+C breaks in; q leaves it running.");
            let stops = lab.fake.stats().stops;
            kd.write("\n");
            kd.expect("It runs. Ctrl+C breaks in");
            kd.write(end);
            assert_eq!(kd.end(), 0, "{}", kd.more());
            assert_eq!(lab.fake.stats().stops, stops, "leaving stopped it");
            assert!(lab.is_running());
        }
        // What needs a stop waits for it.
        let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
        kd.expect("0: kd> ");
        kd.write("g\r");
        kd.expect("The target runs since ");
        kd.write("? 5+5\n");
        kd.expect("That waits until the target stops");
        kd.interrupt();
        kd.expect("Break instruction exception");
        kd.expect("Evaluate expression: 10");
        kd.write("q\r");
        assert_eq!(kd.end(), 0);
    }

    #[test]
    fn history_is_the_users_own_and_without_keys() {
        use std::os::unix::fs::PermissionsExt;
        let lab = Lab::over_serial();
        let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
        for line in ["? 12345", "net:port=1,KEY=verysecret1.b.c.d"] {
            kd.expect("0: kd> ");
            kd.write(&format!("{line}\r"));
        }
        kd.expect("no such command");
        kd.expect("0: kd> ");
        kd.write("q\r");
        assert_eq!(kd.end(), 0);
        let file = lab.folder.path().join("state/history");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("? 12345") && !text.to_lowercase().contains("key"), "{text}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The next session has it: the arrow leads to `q`, and once more to the line before.
        let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
        kd.expect("0: kd> ");
        kd.write("\x1b[A\x1b[A\r");
        kd.expect("Evaluate expression: ");
        kd.write("q\r");
        assert_eq!(kd.end(), 0);
    }

    /// Names are needed and nothing is set: one question.
    #[test]
    fn who_has_no_symbols_is_asked_once() {
        let lab = Lab::over_serial();
        let mut kd = Driven::at_a_terminal(lab.command(&[]));
        kd.expect("0: kd> ");
        kd.write("? nt!PoolHitTag\r");
        kd.expect("Use Microsoft's symbol server, and keep what it sends in");
        kd.write("n\n");
        // Its line is as wide as the terminal, and ends between two words.
        kd.expect("no symbol path is");
        kd.expect("-y 'srv*'");
        kd.expect("0: kd> ");
        kd.write("? nt!PoolHitTag\r");
        let again = kd.expect("no symbol path is");
        assert!(!again.contains("Use Microsoft's"), "{again}");
        kd.write("q\r");
        assert_eq!(kd.end(), 0);
    }

    /// What runs by itself would keep its target for the answer: it is asked before, and nothing is drawn over the question.
    #[test]
    fn a_hunt_asks_before_it_stops_its_target() {
        let lab = Lab::over_serial();
        let mut command = kdpool();
        command.args(["leak", "--tag", "Leak", "-k", &lab.connection]).env("KDPOOL_STATE", lab.folder.path());
        let mut kd = Driven::at_a_terminal(command);
        kd.expect("Use Microsoft's symbol server");
        kd.expect("[y/N] ");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!((kd.more().as_str(), lab.fake.stats().stops), ("", 0));
        kd.write("n\n");
        kd.expect("no symbol path is");
        assert_eq!(kd.end(), 1, "{}", kd.more());
        assert!(lab.is_running());
    }

    #[test]
    fn tab_knows_tags_of_the_target() {
        let lab = Lab::over_serial();
        let mut kd = Driven::at_a_terminal(lab.command(&["-y", "symbols"]));
        kd.expect("0: kd> ");
        kd.write("? nt!PoolHitTag\r");
        kd.expect("Evaluate expression");
        kd.expect("0: kd> ");
        kd.write("!poolu\t 4 Lea\t\r");
        kd.expect("23552000");
        kd.expect("0: kd> ");
        kd.write("q\r");
        assert_eq!(kd.end(), 0);
    }
}
