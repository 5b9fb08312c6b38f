//! Searches that ask symbol servers. The servers are threads of the test, on loopback.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use nt_symbols::{
    Event, Found, Http, ImageKey, NotFound, Observer, Outcome, Patience, PdbId, Reach, Servers, SymbolPath,
};

/// What the server does when it is asked for a path.
#[derive(Clone)]
enum Answer {
    File(Vec<u8>),
    Status(u16),
    Redirect(String),
    /// The length that is told, and what comes before the connection is closed.
    Length(u64, Vec<u8>),
    /// No length: the file ends with the connection.
    Unsized(Vec<u8>),
    /// A byte at a time, with pauses.
    Slow(Vec<u8>),
    /// A first part, and then nothing.
    Stall(Vec<u8>),
    /// Packed as the first says it is.
    Packed(&'static str, Vec<u8>),
    /// Never an answer.
    Silence,
    Garbage,
}

#[derive(Clone, Default)]
struct Site {
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    address: String,
}

impl Site {
    fn start() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let site = Site { address: format!("http://{}", listener.local_addr().unwrap()), ..Site::default() };
        let serving = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = serving.clone();
                std::thread::spawn(move || site.serve(stream));
            }
        });
        site
    }

    fn put(&self, path: impl Into<String>, answer: Answer) {
        self.answers.lock().unwrap().insert(path.into(), answer);
    }

    /// How often a path was asked for.
    fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let mut stream = stream;
        loop {
            let request = lines.next()?.ok()?;
            while !lines.next()?.ok()?.is_empty() {}
            let path = request.split(' ').nth(1)?.to_owned();
            self.asked.lock().unwrap().push(path.clone());
            let answer = self.answers.lock().unwrap().get(&path).cloned().unwrap_or(Answer::Status(404));
            let ok = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            match answer {
                Answer::File(bytes) => {
                    stream.write_all(ok(bytes.len()).as_bytes()).ok()?;
                    stream.write_all(&bytes).ok()?;
                }
                Answer::Status(status) => {
                    let text = format!("HTTP/1.1 {status} Sorry\r\nContent-Length: 5\r\n\r\nsorry");
                    stream.write_all(text.as_bytes()).ok()?;
                }
                Answer::Redirect(to) => {
                    let text = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(text.as_bytes()).ok()?;
                }
                Answer::Packed(how, bytes) => {
                    let length = bytes.len();
                    let text =
                        format!("HTTP/1.1 200 OK\r\nContent-Encoding: {how}\r\nContent-Length: {length}\r\n\r\n");
                    stream.write_all(text.as_bytes()).ok()?;
                    stream.write_all(&bytes).ok()?;
                }
                Answer::Length(length, bytes) => {
                    stream.write_all(ok(length as usize).as_bytes()).ok()?;
                    stream.write_all(&bytes).ok()?;
                    return None;
                }
                Answer::Unsized(bytes) => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").ok()?;
                    stream.write_all(&bytes).ok()?;
                    return None;
                }
                Answer::Slow(bytes) => {
                    stream.write_all(ok(bytes.len()).as_bytes()).ok()?;
                    for byte in bytes {
                        stream.write_all(&[byte]).ok()?;
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                Answer::Stall(bytes) => {
                    stream.write_all(ok(bytes.len() + 1).as_bytes()).ok()?;
                    stream.write_all(&bytes).ok()?;
                    self.wait_for_the_end(&mut stream);
                    return None;
                }
                Answer::Silence => {
                    self.wait_for_the_end(&mut stream);
                    return None;
                }
                Answer::Garbage => {
                    stream.write_all(b"\x15\x03\x01 this is no HTTP\r\n\r\n").ok()?;
                    return None;
                }
            }
        }
    }

    /// Until the client hangs up.
    fn wait_for_the_end(&self, stream: &mut TcpStream) {
        let _ = stream.read(&mut [0]);
        self.asked.lock().unwrap().push("hung up".into());
    }
}

/// A PDB of the fake kernel, and what its image says of it.
static PDB: LazyLock<(Vec<u8>, PdbId, String)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = kd_fake::kernel::write_symbol_store(folder.path()).unwrap();
    let id = nt_symbols::Pdb::open(&path).unwrap().id();
    (std::fs::read(&path).unwrap(), id, path.file_name().unwrap().to_str().unwrap().to_owned())
});

fn cabinet(file: &[u8]) -> Vec<u8> {
    let mut builder = cab::CabinetBuilder::new();
    builder.add_folder(cab::CompressionType::MsZip).add_file("x");
    let mut writer = builder.build(std::io::Cursor::new(Vec::new())).unwrap();
    writer.next_file().unwrap().unwrap().write_all(file).unwrap();
    writer.finish().unwrap().into_inner()
}

/// One session: a server, a store on this machine, and what the session remembers.
struct Session {
    site: Site,
    store: tempfile::TempDir,
    servers: Servers,
}

impl Session {
    fn new() -> Session {
        // As long as a busy test machine may be late.
        let patience = Patience { connect: Duration::from_secs(5), silence: Duration::from_secs(5) };
        Session::with(patience)
    }

    fn with(patience: Patience) -> Session {
        let servers = Servers::new(Http::new(patience));
        Session { site: Site::start(), store: tempfile::tempdir().unwrap(), servers }
    }

    fn folder(&self) -> String {
        format!("/sym/{}/{}", PDB.2, PDB.1.store_key())
    }

    fn place(&self) -> String {
        format!("{}/{}", self.folder(), PDB.2)
    }

    fn squeezed(&self) -> String {
        format!("{}_", self.place().strip_suffix('b').unwrap())
    }

    fn find(&self) -> Result<Found, NotFound> {
        self.find_with(&())
    }

    fn find_with(&self, observer: &dyn Observer) -> Result<Found, NotFound> {
        self.find_along(&format!("srv*{}*{}/sym", self.store.path().display(), self.site.address), observer)
    }

    fn find_along(&self, path: &str, observer: &dyn Observer) -> Result<Found, NotFound> {
        let reach = Reach { servers: Some(&self.servers), observer, ..Reach::default() };
        SymbolPath::parse(path).unwrap().find(&PDB.2, PDB.1, &reach)
    }

    /// The last thing that was tried at the server.
    fn failure(&self) -> Outcome {
        let error = self.find().unwrap_err();
        error.tried.last().unwrap().outcome.clone()
    }

    fn kept(&self) -> PathBuf {
        self.store.path().join(&PDB.2).join(PDB.1.store_key()).join(&PDB.2)
    }

    /// Nothing half done lies about.
    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.store.path()).unwrap().next().is_none()
    }
}

#[test]
fn a_file_is_fetched_once_and_kept() {
    let session = Session::new();
    session.site.put(session.place(), Answer::File(PDB.0.clone()));
    let found = session.find().unwrap();
    assert_eq!(found.file.path(), session.kept());
    assert!(found.file.symbol("PoolBigPageTable").is_some());
    assert_eq!(std::fs::read(session.kept()).unwrap(), PDB.0);
    session.find().unwrap();
    assert_eq!(*session.site.asked.lock().unwrap(), [session.place()]);
    assert_eq!(std::fs::read_dir(session.store.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_search_without_servers_asks_nobody_and_says_so() {
    let session = Session::new();
    let path = SymbolPath::parse(&format!("srv*{}*{}/sym", session.store.path().display(), session.site.address));
    let error = path.unwrap().find(&PDB.2, PDB.1, &Reach::default()).unwrap_err();
    assert!(error.is_unasked());
    assert!(error.to_string().ends_with(&format!("{} - not asked yet", session.place())), "{error}");
    assert!(session.site.asked.lock().unwrap().is_empty());
}

#[test]
fn every_store_on_the_way_is_filled() {
    let session = Session::new();
    session.site.put(session.place(), Answer::File(PDB.0.clone()));
    let (cache, near) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let not_there_yet = near.path().join("made");
    let path = format!(
        "cache*{};srv*{}*{}*{}/sym/",
        cache.path().display(),
        not_there_yet.display(),
        session.store.path().display(),
        session.site.address
    );
    let below = |root: &Path| root.join(&PDB.2).join(PDB.1.store_key()).join(&PDB.2);
    session.find_along(&path, &()).unwrap();
    for root in [cache.path(), &not_there_yet, session.store.path()] {
        assert!(below(root).is_file(), "{}", root.display());
    }
    assert_eq!(session.find_along(&path, &()).unwrap().file.path(), below(cache.path()));
    assert_eq!(session.site.asked.lock().unwrap().len(), 1);
}

#[test]
fn the_second_server_is_asked_when_the_first_has_nothing() {
    let (first, second) = (Session::new(), Session::new());
    second.site.put(second.place(), Answer::File(PDB.0.clone()));
    let store = first.store.path().display();
    let path = format!("srv*{store}*{}/sym;srv*{store}*{}/sym", first.site.address, second.site.address);
    first.find_along(&path, &()).unwrap();
    assert_eq!(first.site.asked(&first.place()), 1);
}

#[test]
fn compressed_files_are_expanded_whatever_they_are_called() {
    for plain in [false, true] {
        let session = Session::new();
        let place = if plain { session.place() } else { session.squeezed() };
        session.site.put(place, Answer::File(cabinet(&PDB.0)));
        session.find().unwrap();
        assert_eq!(std::fs::read(session.kept()).unwrap(), PDB.0);
    }
    let session = Session::new();
    let mut damaged = cabinet(&PDB.0);
    damaged.truncate(damaged.len() / 2);
    session.site.put(session.squeezed(), Answer::File(damaged));
    let Outcome::Unusable(why) = session.failure() else { panic!("it is found") };
    assert_eq!(why, "not a usable cabinet: it ends too early");
    assert!(session.is_clean());
}

#[test]
fn a_two_tier_server_and_a_pointer() {
    let session = Session::new();
    session.site.put("/sym/index2.txt", Answer::File(b"\r\n".to_vec()));
    let place = session.place().replacen("/sym/", "/sym/nt/", 1);
    session.site.put(place, Answer::File(PDB.0.clone()));
    session.find().unwrap();
    assert_eq!(session.site.asked("/sym/index2.txt"), 1);

    let session = Session::new();
    session.site.put(format!("{}/file.ptr", session.folder()), Answer::File(br"PATH:\\evil\share\x.pdb".to_vec()));
    let error = session.find().unwrap_err().to_string();
    assert!(error.contains(r"add that place to the symbol path: PATH:\\\\evil\\share\\x.pdb"), "{error}");
}

#[test]
fn not_found_is_asked_once() {
    let session = Session::new();
    for _ in 0..3 {
        let error = session.find().unwrap_err();
        assert!(!error.may_pass());
        assert!(error.to_string().contains("none along srv*"), "{error}");
    }
    let asked = session.site.asked.lock().unwrap().clone();
    let pointer = format!("{}/file.ptr", session.folder());
    assert_eq!(asked, [session.place(), "/sym/index2.txt".into(), session.squeezed(), pointer]);
}

#[test]
fn a_fault_that_may_pass_is_asked_again() {
    let session = Session::new();
    session.site.put(session.place(), Answer::Status(500));
    let error = session.find().unwrap_err();
    assert!(error.may_pass());
    assert!(error.to_string().ends_with("the server answers with status 500"), "{error}");
    session.site.put(session.place(), Answer::File(PDB.0.clone()));
    session.find().unwrap();
    assert_eq!(session.site.asked(&session.place()), 2);
}

#[test]
fn lies_about_length_are_refused() {
    let half = PDB.0[..PDB.0.len() / 2].to_vec();
    let session = Session::new();
    for (answer, part) in [
        (Answer::Length(PDB.0.len() as u64, half.clone()), "disconnected"),
        (Answer::Unsized(half), "it ends early"),
        (Answer::Length(u64::MAX >> 1, Vec::new()), "bytes are more than a symbol file has"),
        (Answer::Garbage, ""),
    ] {
        session.site.put(session.place(), answer);
        match session.failure() {
            Outcome::Fault(why) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(session.is_clean());
    }
    // Less is told than comes.
    session.site.put(session.place(), Answer::Length(0x400, PDB.0.clone()));
    let Outcome::Fault(why) = session.failure() else { panic!("it is found") };
    assert!(why.starts_with("it ends early: 1024 bytes of "), "{why}");
    assert!(session.is_clean());
    // None of it is remembered.
    session.site.put(session.place(), Answer::Unsized(PDB.0.clone()));
    session.find().unwrap();
}

#[test]
fn what_is_not_the_file_is_not_kept() {
    let session = Session::new();
    session.site.put(session.place(), Answer::File(b"<html>Please log in".to_vec()));
    let Outcome::Unusable(why) = session.failure() else { panic!("it is found") };
    assert!(why.starts_with("not a usable PDB file"), "{why}");
    let other = PdbId { age: PDB.1.age + 1, ..PDB.1 };
    session.site.put(format!("/sym/{}/{}/{}", PDB.2, other.store_key(), PDB.2), Answer::File(PDB.0.clone()));
    let path = SymbolPath::parse(&format!("srv*{}*{}/sym", session.store.path().display(), session.site.address));
    let reach = Reach { servers: Some(&session.servers), ..Reach::default() };
    let error = path.unwrap().find(&PDB.2, other, &reach).unwrap_err();
    assert!(error.to_string().contains("mismatched pdb"), "{error}");
    assert!(session.is_clean());
}

#[test]
fn redirects_are_followed_within_bounds() {
    let (session, other) = (Session::new(), Session::new());
    other.site.put("/blob", Answer::File(PDB.0.clone()));
    session.site.put(session.place(), Answer::Redirect(format!("{}/blob", other.site.address)));
    session.find().unwrap();

    let session = Session::new();
    session.site.put(session.place(), Answer::Redirect(session.place()));
    let Outcome::Fault(why) = session.failure() else { panic!("it is found") };
    assert!(why.contains("redirect"), "{why}");
    assert!(session.site.asked(&session.place()) <= 6);
    session.site.put(session.place(), Answer::Redirect("file:///etc/passwd".into()));
    // Not to our own files.
    let local = session.store.path().join("local.pdb");
    std::fs::write(&local, &PDB.0).unwrap();
    session.site.put(session.place(), Answer::Redirect(format!("file://{}", local.display())));
    session.find().unwrap_err();
}

#[test]
fn a_host_that_does_not_answer_is_tried_once() {
    // Nobody listens there any more.
    let session = Session::new();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = format!("srv*{}*http://{gone}/sym", session.store.path().display());
    let started = Instant::now();
    let error = session.find_along(&path, &()).unwrap_err();
    assert!(error.may_pass());
    let again = session.find_along(&path, &()).unwrap_err();
    assert!(!again.may_pass());
    assert!(again.to_string().contains("not tried: its host could not be reached before"), "{again}");
    assert!(started.elapsed() < Duration::from_secs(5));

    let patience = Patience { connect: Duration::from_millis(300), silence: Duration::from_millis(300) };
    for answer in [Answer::Silence, Answer::Stall(PDB.0[..1000].to_vec()), Answer::Slow(PDB.0.clone())] {
        let session = Session::with(patience);
        session.site.put(session.place(), answer);
        let started = Instant::now();
        let error = session.find().unwrap_err();
        assert!(error.may_pass(), "{error}");
        assert!(session.find().unwrap_err().to_string().contains("not tried"));
        assert!(started.elapsed() < Duration::from_secs(10));
        assert_eq!(session.site.asked(&session.place()), 1);
        assert!(session.is_clean());
    }
}

/// Cancels when something has come, and remembers what it was told.
#[derive(Default)]
struct Impatient {
    cancelled: AtomicBool,
    bytes: AtomicU64,
    after: u64,
    told: Mutex<Vec<String>>,
}

impl Observer for Impatient {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Receiving { bytes, .. } => {
                self.bytes.store(bytes, Ordering::SeqCst);
                if bytes >= self.after {
                    self.cancelled.store(true, Ordering::SeqCst);
                }
            }
            Event::Asking { url } => self.told.lock().unwrap().push(format!("asking {url}")),
            Event::Tried(attempt) => self.told.lock().unwrap().push(attempt.to_string()),
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

#[test]
fn a_search_is_cancelled_at_any_moment() {
    // A long time of nothing: before an answer, and in the middle of a file.
    for (answer, after) in [(Answer::Silence, 0), (Answer::Stall(PDB.0[..0x5000].to_vec()), 0x5000)] {
        let session = Session::with(Patience::default());
        session.site.put(session.place(), answer);
        let observer = Impatient { after, ..Impatient::default() };
        let started = Instant::now();
        let error = session.find_with(&observer).unwrap_err();
        assert!(error.is_cancelled() && !error.may_pass(), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(session.is_clean());
        assert_eq!(
            *observer.told.lock().unwrap(),
            [
                format!("{} - file not found", session.kept().display()),
                format!("asking {}{}", session.site.address, session.place()),
                format!("{}{} - cancelled", session.site.address, session.place()),
            ][usize::from(!session.store.path().is_dir())..]
        );
        // Nothing of it is remembered.
        session.site.put(session.place(), Answer::File(PDB.0.clone()));
        session.find().unwrap();
    }
}

#[test]
fn many_searches_at_once_share_a_store() {
    let session = Session::new();
    session.site.put(session.place(), Answer::File(PDB.0.clone()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(session.find().unwrap().file.symbol("PoolHitTag").is_some()));
        }
    });
    assert_eq!(std::fs::read(session.kept()).unwrap(), PDB.0);
    assert_eq!(std::fs::read_dir(session.store.path()).unwrap().count(), 1);
}

#[test]
fn images_come_by_time_stamp_and_size() {
    let session = Session::new();
    let key = ImageKey { time_date_stamp: 0x5ce7_7c41, size_of_image: 0x4000 };
    // The start of an image is enough here: header, no sections.
    let mut image = vec![0; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x80;
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x88..0x8c].copy_from_slice(&key.time_date_stamp.to_le_bytes());
    image[0x98..0x9a].copy_from_slice(&0x20bu16.to_le_bytes());
    image[0xd0..0xd4].copy_from_slice(&key.size_of_image.to_le_bytes());
    session.site.put("/sym/my%20driver.sys/5CE77C414000/my%20driver.sy_", Answer::File(cabinet(&image)));
    let path = SymbolPath::parse(&format!("srv*{}*{}/sym", session.store.path().display(), session.site.address));
    let reach = Reach { servers: Some(&session.servers), ..Reach::default() };
    let path = path.unwrap();
    let found = path.find_image("my driver.sys", key, &reach).unwrap();
    assert_eq!(found.file.path(), session.store.path().join("my driver.sys/5CE77C414000/my driver.sys"));
    let other = ImageKey { size_of_image: 0x5000, ..key };
    session.site.put("/sym/my%20driver.sys/5CE77C415000/my%20driver.sys", Answer::File(image));
    assert!(path.find_image("my driver.sys", other, &reach).unwrap_err().to_string().contains("mismatched image"));
}

#[test]
fn no_name_leads_a_download_out_of_the_store() {
    let session = Session::new();
    let root = session.store.path().join("inner");
    let path = SymbolPath::parse(&format!("srv*{}*{}/sym", root.display(), session.site.address)).unwrap();
    let reach = Reach { servers: Some(&session.servers), ..Reach::default() };
    let long = "a".repeat(0x10000);
    for name in [r"..\..\x.pdb", "../x.pdb", "..", "NUL", "com1.pdb", "c:x.pdb", "x\0.pdb", "x.pdb/", long.as_str()] {
        let error = path.find(name, PDB.1, &reach).unwrap_err();
        assert!(error.to_string().contains("is not looked for"), "{error}");
    }
    assert!(session.site.asked.lock().unwrap().is_empty());
    assert!(session.is_clean());
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// Servers behind a content network send what they like packed.
#[test]
fn a_packed_answer_is_unpacked() {
    let session = Session::new();
    session.site.put(session.place(), Answer::Packed("gzip", packed(&PDB.0)));
    session.find().unwrap();
    assert_eq!(std::fs::read(session.kept()).unwrap(), PDB.0);
    // A cabinet in it, too.
    let session = Session::new();
    session.site.put(session.squeezed(), Answer::Packed("gzip", packed(&cabinet(&PDB.0))));
    session.find().unwrap();
    assert_eq!(std::fs::read(session.kept()).unwrap(), PDB.0);
}

#[test]
fn a_damaged_packing_and_an_unknown_one_are_told() {
    let whole = packed(&PDB.0);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2..].iter_mut().for_each(|byte| *byte ^= 0x55);
    for (answer, part) in [
        (Answer::Packed("gzip", whole[..whole.len() / 2].to_vec()), ""),
        (Answer::Packed("gzip", damaged), "gzip"),
        (Answer::Packed("gzip", PDB.0[..4096].to_vec()), "gzip"),
        (Answer::Packed("br", whole.clone()), "packed as 'br'"),
    ] {
        let session = Session::new();
        session.site.put(session.place(), answer);
        let Outcome::Fault(why) = session.failure() else { panic!("{:?}", session.failure()) };
        assert!(why.contains(part), "{why}");
        assert!(session.is_clean());
    }
}
