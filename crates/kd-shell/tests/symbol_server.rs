//! A session whose symbols come from a server, which is a thread of the test, on loopback.

mod target;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kd_shell::{Log, Monitor, PathSource, PoolTags, Session, Symbols};
use target::{Live, Screen};

/// What the server says of any file that it has.
#[derive(Clone, Copy)]
enum Mood {
    Good,
    Broken,
    /// As good, but it takes its time.
    Slow,
    /// Never an answer.
    Silent,
}

/// How long a slow server takes for each answer.
const SLOW: Duration = Duration::from_millis(1500);

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
            if let Mood::Slow = mood {
                std::thread::sleep(SLOW);
            }
            let (status, body) = match (mood, self.files.get(request.split(' ').nth(1)?)) {
                (Mood::Silent, _) => {
                    let _ = stream.read(&mut [0]);
                    return None;
                }
                (Mood::Broken, _) => (500, &[][..]),
                (Mood::Good | Mood::Slow, Some(file)) => (200, &file[..]),
                (Mood::Good | Mood::Slow, None) => (404, &[][..]),
            };
            let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(body).ok()?;
        }
    }
}

struct Served {
    live: Live,
    server: Server,
    /// What `!sym noisy` said.
    noise: Arc<Mutex<String>>,
}

impl Served {
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

        let noise = Arc::<Mutex<String>>::default();
        let lines = noise.clone();
        let monitor = Monitor::new(Box::new(move |text| lines.lock().expect("noise").push_str(text)), None);
        let path = format!("srv*{}*http://{address}/sym", directory.path().join("near").display());
        let source = PathSource::new(&path).expect("path").watched(monitor);
        let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
        let live = Live::with_session(kd_fake::kernel::article(), directory, session, |_| {});
        Self { live, server, noise }
    }

    fn run(&mut self, line: &str) -> Screen {
        self.live.run(line).0
    }

    fn set(&self, mood: Mood) {
        *self.server.mood.lock().expect("mood") = mood;
    }

    fn requests(&self) -> usize {
        self.server.requests.load(Ordering::SeqCst)
    }
}

#[test]
fn attaching_waits_for_no_server_and_a_command_fetches_once() {
    let mut served = Served::attach();
    served.set(Mood::Silent);
    let started = Instant::now();
    let banner = served.live.shell.banner(true).expect("banner");
    assert!(!banner.contains("ERROR"), "{banner}");
    served.live.shell.stop_lines().expect("stop lines");
    let modules = served.run("lm m nt").text;
    assert!(modules.contains("   nt         (deferred)"), "{modules}");
    assert_eq!(served.requests(), 0);
    assert!(started.elapsed() < Duration::from_secs(20));

    served.set(Mood::Good);
    assert_eq!(served.run("!sym noisy").text, "noisy mode - symbol prompts on\n");
    assert!(served.run("ln nt!PoolBigPageTable").text.contains("nt!PoolBigPageTable"));
    served.run("? nt!PoolHitTag");
    assert_eq!(served.requests(), 1);
    assert!(served.run("lm m nt").text.contains("(pdb symbols)"));
    let noise = served.noise.lock().expect("noise").clone();
    assert!(noise.contains("SYMSRV:  HTTPGET: http://127.0.0.1:"), "{noise}");
    assert!(noise.contains("DBGHELP: nt - public symbols\n         "), "{noise}");
    // It is kept.
    served.run(".reload; ? nt!PoolHitTag");
    assert_eq!(served.requests(), 1);
    assert_eq!(served.run("!sym quiet").text, "quiet mode - symbol prompts on\n");
    assert!(served.run(".reload /u nt").text.contains("Unloaded nt\n"));
    assert!(served.run("lm m nt").text.contains("(deferred)"));
    served.live.leave();
}

/// Nothing of a hunt can be read without the kernel's symbols: the target runs until they are there.
#[test]
fn a_hunt_waits_for_a_server_with_the_target_running() {
    let mut served = Served::attach();
    served.set(Mood::Slow);
    let watched = served.live.json("!leak watch Leak -every 200ms -times 1");
    assert_eq!(watched["ok"], true, "{watched}");
    assert!(watched["result"]["at_mark"]["blocks"].as_u64().is_some_and(|blocks| blocks > 0), "{watched}");
    assert_eq!(served.requests(), 1);
    let frozen = watched["cost"]["frozen_ms"].as_u64().expect("a time");
    assert!(u128::from(frozen) < SLOW.as_millis(), "{frozen} ms");
    served.live.leave();
}

#[test]
fn ctrl_c_ends_a_download_and_the_command_only() {
    let mut served = Served::attach();
    served.set(Mood::Silent);
    let (interrupt, requests) = (served.live.interrupt.clone(), served.server.requests.clone());
    std::thread::spawn(move || {
        while requests.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        interrupt.raise();
    });
    let started = Instant::now();
    let screen = served.run("ln nt!PoolHitTag; .echo not run");
    assert_eq!(screen.text, "");
    assert!(screen.errors.ends_with("interrupted\n"), "{}", screen.errors);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // The session goes on, and so does the search when it is asked for again.
    served.set(Mood::Good);
    assert!(served.run("ln nt!PoolHitTag").text.contains("nt!PoolHitTag"));
    served.live.leave();
}

#[test]
fn a_server_with_a_fault_is_asked_again_after_reload() {
    let mut served = Served::attach();
    served.set(Mood::Broken);
    let screen = served.run(".reload /f nt");
    assert!(screen.text.contains("************* Symbol Loading Error Summary **************\n"), "{}", screen.text);
    assert!(screen.text.contains("\nnt                     no symbol file for "), "{}", screen.text);
    assert!(screen.errors.contains("the server answers with status 500"), "{}", screen.errors);
    assert!(served.run("lm m nt").text.contains("(export symbols)"));
    // Not again by every command, so that a slow server does not make all of them slow.
    served.run("? nt!PoolHitTag");
    assert_eq!(served.requests(), 1);
    served.set(Mood::Good);
    assert_eq!(served.run(".reload /f nt").errors, "");
    assert_eq!(served.requests(), 2);
    assert!(served.run("lm m nt").text.contains("(pdb symbols)"));
    assert!(served.live.directory.path().join("near").is_dir());
    served.live.leave();
}
