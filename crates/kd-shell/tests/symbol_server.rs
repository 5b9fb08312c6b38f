//! A session whose symbols come from a server, which is a thread of the test, on loopback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kd_fake::{FakeHandle, FakeOptions, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Monitor, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Interrupt, Leave, Target};
use kd_wire::session::{HostSession, SerialConfig};
use tokio::runtime::Runtime;

/// What the server says of any file that it has.
#[derive(Clone, Copy)]
enum Mood {
    Good,
    Broken,
    /// Never an answer.
    Silent,
}

#[derive(Clone)]
struct Server {
    files: Arc<HashMap<String, Vec<u8>>>,
    mood: Arc<Mutex<Mood>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        loop {
            let request = lines.next()?.ok()?;
            while !lines.next()?.ok()?.is_empty() {}
            self.requests.fetch_add(1, Ordering::SeqCst);
            let mood = *self.mood.lock().expect("mood");
            let (status, body) = match (mood, self.files.get(request.split(' ').nth(1)?)) {
                (Mood::Silent, _) => {
                    let _ = stream.read(&mut [0]);
                    return None;
                }
                (Mood::Broken, _) => (500, &[][..]),
                (Mood::Good, Some(file)) => (200, &file[..]),
                (Mood::Good, None) => (404, &[][..]),
            };
            let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(body).ok()?;
        }
    }
}

struct Live {
    shell: Shell,
    interrupt: Interrupt,
    server: Server,
    /// What `!sym noisy` said.
    noise: Arc<Mutex<String>>,
    fake: FakeHandle,
    directory: tempfile::TempDir,
    /// Holds the connection's tasks; dropped last.
    runtime: Runtime,
}

#[derive(Default)]
struct Screen {
    text: String,
    errors: String,
}

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.errors.push_str(line);
    }
}

impl Live {
    fn attach() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let far = directory.path().join("far");
        let pdb = kd_fake::kernel::write_symbol_store(&far).expect("store");
        let place = pdb.strip_prefix(&far).expect("below the store").to_str().expect("UTF-8").replace('\\', "/");
        let files = HashMap::from([(format!("/sym/{place}"), std::fs::read(&pdb).expect("PDB"))]);
        std::fs::remove_dir_all(&far).expect("removed");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let server =
            Server { files: Arc::new(files), mood: Arc::new(Mutex::new(Mood::Good)), requests: Arc::default() };
        let address = listener.local_addr().expect("address");
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });

        let runtime = Runtime::new().expect("runtime");
        let transport = FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0)));
        let options = FakeOptions::new(transport, kd_fake::kernel::article());
        let fake = runtime.block_on(kd_fake::spawn(options)).expect("fake target");
        let target = fake.address().expect("TCP");
        let spec = KdSpec::parse(&format!("com:ipport={},port={}", target.port(), target.ip())).expect("-k");
        let link = runtime.block_on(kd_link::open(&spec)).expect("link");
        let interrupt = Interrupt::default();
        let wire = HostSession::serial(SerialConfig::default());
        let (running, _) = kd_target::attach(runtime.handle(), link, wire, true, interrupt.clone());
        let noise = Arc::<Mutex<String>>::default();
        let lines = noise.clone();
        let monitor = Monitor::new(Box::new(move |text| lines.lock().expect("noise").push_str(text)), None);
        let path = format!("srv*{}*http://{address}/sym", directory.path().join("near").display());
        let source = PathSource::new(&path).expect("path").watched(monitor);
        let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
        let mut shell = Shell::new(session, Format::Kd, interrupt.clone());
        shell.set_target(Target::Running(running));
        assert!(shell.wait(Some(Duration::from_secs(30)), &mut Screen::default()).expect("stop"));
        Self { shell, interrupt, server, noise, fake, directory, runtime }
    }

    fn run(&mut self, line: &str) -> Screen {
        let mut screen = Screen::default();
        self.shell.execute(line, &mut screen);
        screen
    }

    fn set(&self, mood: Mood) {
        *self.server.mood.lock().expect("mood") = mood;
    }

    fn requests(&self) -> usize {
        self.server.requests.load(Ordering::SeqCst)
    }

    fn leave(mut self) {
        self.shell.take_target().expect("target").leave(Leave::Running);
        drop(self.fake);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

#[test]
fn attaching_waits_for_no_server_and_a_command_fetches_once() {
    let mut live = Live::attach();
    live.set(Mood::Silent);
    let started = Instant::now();
    let banner = live.shell.banner(true).expect("banner");
    assert!(!banner.contains("ERROR"), "{banner}");
    live.shell.stop_lines().expect("stop lines");
    let modules = live.run("lm m nt").text;
    assert!(modules.contains("   nt         (deferred)"), "{modules}");
    assert_eq!(live.requests(), 0);
    assert!(started.elapsed() < Duration::from_secs(20));

    live.set(Mood::Good);
    assert_eq!(live.run("!sym noisy").text, "noisy mode - symbol prompts on\n");
    assert!(live.run("ln nt!PoolBigPageTable").text.contains("nt!PoolBigPageTable"));
    live.run("? nt!PoolHitTag");
    assert_eq!(live.requests(), 1);
    assert!(live.run("lm m nt").text.contains("(pdb symbols)"));
    let noise = live.noise.lock().expect("noise").clone();
    assert!(noise.contains("SYMSRV:  HTTPGET: http://127.0.0.1:"), "{noise}");
    assert!(noise.contains("DBGHELP: nt - public symbols\n         "), "{noise}");
    // It is kept.
    live.run(".reload; ? nt!PoolHitTag");
    assert_eq!(live.requests(), 1);
    assert_eq!(live.run("!sym quiet").text, "quiet mode - symbol prompts on\n");
    assert!(live.run(".reload /u nt").text.contains("Unloaded nt\n"));
    assert!(live.run("lm m nt").text.contains("(deferred)"));
    live.leave();
}

#[test]
fn ctrl_c_ends_a_download_and_the_command_only() {
    let mut live = Live::attach();
    live.set(Mood::Silent);
    let (interrupt, requests) = (live.interrupt.clone(), live.server.requests.clone());
    std::thread::spawn(move || {
        while requests.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        interrupt.raise();
    });
    let started = Instant::now();
    let screen = live.run("ln nt!PoolHitTag; .echo not run");
    assert_eq!(screen.text, "");
    assert!(screen.errors.ends_with("interrupted\n"), "{}", screen.errors);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // The session goes on, and so does the search when it is asked for again.
    live.set(Mood::Good);
    assert!(live.run("ln nt!PoolHitTag").text.contains("nt!PoolHitTag"));
    live.leave();
}

#[test]
fn a_server_with_a_fault_is_asked_again_after_reload() {
    let mut live = Live::attach();
    live.set(Mood::Broken);
    let screen = live.run(".reload /f nt");
    assert!(screen.text.contains("************* Symbol Loading Error Summary **************\n"), "{}", screen.text);
    assert!(screen.text.contains("\nnt                     no symbol file for "), "{}", screen.text);
    assert!(screen.errors.contains("the server answers with status 500"), "{}", screen.errors);
    assert!(live.run("lm m nt").text.contains("(export symbols)"));
    // Not again by every command, so that a slow server does not make all of them slow.
    live.run("? nt!PoolHitTag");
    assert_eq!(live.requests(), 1);
    live.set(Mood::Good);
    assert_eq!(live.run(".reload /f nt").errors, "");
    assert_eq!(live.requests(), 2);
    assert!(live.run("lm m nt").text.contains("(pdb symbols)"));
    assert!(live.directory.path().join("near").is_dir());
    live.leave();
}
