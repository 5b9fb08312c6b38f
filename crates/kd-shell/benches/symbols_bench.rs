//! What symbols cost: `cargo bench -p kd-shell --bench symbols_bench [-- TABLE.json.xz]`.
//!
//! Writes the PDB of a kernel from its ISF table (the one of ../shared/isf with the most symbols, if none is given), once
//! as it is and once with copies of its types until the file has 12 MB; then times this project's reader, the
//! `pdb` crate used plainly, and `llvm-pdbutil` if it is installed, on these files, and a session that starts with them.

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kd_fake::isf::Isf as Table;
use kd_fake::kernel::{self, SeededOptions};
use kd_fake::{FakeOptions, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Attach, Interrupt, Leave, Target};
use nt_symbols::{Isf, Pdb, SymbolFile};
use pdb::FallibleIterator;

type Failure = Box<dyn std::error::Error>;

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// The best of several runs: what the work costs when nothing else disturbs it.
fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    (0..20).map(|_| timed(|| black_box(work())).1).min().unwrap_or_default()
}

/// Resident memory of this process, where the system tells it.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

/// The same answers from the `pdb` crate in the way its documentation shows: all names as strings, sorted.
fn plain(path: &Path) -> pdb::Result<Vec<(u32, String)>> {
    let mut file = pdb::PDB::open(std::fs::File::open(path)?)?;
    let map = file.address_map()?;
    let records = file.global_symbols()?;
    let mut names = Vec::new();
    let mut iter = records.iter();
    while let Some(record) = iter.next()? {
        if let Ok(pdb::SymbolData::Public(public)) = record.parse()
            && let Some(rva) = public.offset.to_rva(&map)
        {
            names.push((rva.0, public.name.to_string().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn plain_type(path: &Path, name: &str) -> pdb::Result<usize> {
    let mut file = pdb::PDB::open(std::fs::File::open(path)?)?;
    let types = file.type_information()?;
    let mut finder = types.finder();
    let mut iter = types.iter();
    let mut fields = None;
    while let Some(item) = iter.next()? {
        finder.update(&iter);
        if let Ok(pdb::TypeData::Class(class)) = item.parse()
            && class.name.as_bytes() == name.as_bytes()
            && !class.properties.forward_reference()
        {
            fields = class.fields;
        }
    }
    let Some(fields) = fields else { return Ok(0) };
    match finder.find(fields)?.parse()? {
        pdb::TypeData::FieldList(list) => Ok(list.fields.len()),
        _ => Ok(0),
    }
}

/// The program's own argument: `cargo bench` adds one.
fn argument() -> Option<std::ffi::OsString> {
    std::env::args_os().skip(1).find(|argument| argument != "--bench")
}

fn table() -> Option<PathBuf> {
    if let Some(given) = argument() {
        return Some(given.into());
    }
    let shared = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let tables = std::fs::read_dir(shared.join("isf")).ok()?.flatten().map(|entry| entry.path());
    tables
        .filter(|path| path.extension().is_some_and(|e| e == "xz"))
        .max_by_key(|path| path.metadata().map(|data| data.len()).unwrap_or(0))
}

fn row(what: &str, ours: impl std::fmt::Debug, theirs: Option<Duration>, llvm: Option<Duration>) {
    let shown = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{time:.1?}"));
    println!("{what:<47} {:>12} {:>12} {:>13}", format!("{ours:.1?}"), shown(theirs), shown(llvm));
}

/// A whole dump: what there is of llvm-pdbutil that answers such a question.
fn llvm(what: &str, path: &Path) -> Option<Duration> {
    let run = || Command::new("llvm-pdbutil").args(["dump", what]).arg(path).stdout(Stdio::null()).status();
    let (status, time) = timed(run);
    status.is_ok_and(|status| status.success()).then_some(time)
}

/// First argument of the process that only opens a PDB and tells how much memory that took.
const HOLD: &str = "--hold";

fn hold(path: &Path) -> Result<(), Failure> {
    let before = resident();
    let pdb = Pdb::open(path)?;
    black_box((pdb.symbol("PoolBigPageTable"), pdb.around(0x12345), pdb.layout("_EPROCESS")));
    match resident().zip(before) {
        Some((after, before)) => println!("{:.1} MB", after.saturating_sub(before) as f64 / 1e6),
        None => println!("not told here"),
    }
    Ok(())
}

/// Types again under other names, until the PDB has 12 MB.
fn padded(table: &Table) -> Table {
    let mut padded = table.clone();
    for copy in 1..=18 {
        let copies = table.user_types.iter().map(|(name, kind)| (format!("{name}_COPY{copy}"), kind.clone()));
        padded.user_types.extend(copies);
    }
    padded
}

/// Shows nothing.
#[derive(Default)]
struct Screen(String);

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.0.push_str(line);
    }
}

/// A session on a fake target over TCP: from the connection to the stop, and from the stop to the first answer.
fn session(table: &Table, store: &Path, before: impl Fn() -> std::io::Result<()>) -> Result<[Duration; 2], Failure> {
    let (kernel, _) =
        kernel::seeded(table, 3, &SeededOptions { operations: 100, small_operations: 100, ..<_>::default() })?;
    let runtime = tokio::runtime::Runtime::new()?;
    let transport = FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0)));
    let fake = runtime.block_on(kd_fake::spawn(FakeOptions::new(transport, kernel)))?;
    let address = fake.address().ok_or("no address")?;
    before()?;
    let start = Instant::now();
    let spec = KdSpec::parse(&format!("com:ipport={},port={}", address.port(), address.ip()))?;
    let interrupt = Interrupt::default();
    let attach = Attach::to(spec).on(runtime.handle()).break_in(true).interrupt(interrupt.clone());
    let (running, _) = attach.start()?;
    let source = PathSource::new(&store.display().to_string())?;
    let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
    let mut shell = Shell::new(session, Format::Kd, interrupt);
    let mut screen = Screen::default();
    shell.set_target(Target::Running(running));
    shell.wait(Some(Duration::from_secs(60)), &mut screen)?;
    let connected = start.elapsed();
    shell.banner(true)?;
    shell.execute("x nt!PoolBigPageTable", &mut screen);
    let answered = start.elapsed();
    if !screen.0.contains("nt!PoolBigPageTable (") {
        return Err(screen.0.into());
    }
    if let Some(target) = shell.take_target() {
        target.leave(Leave::Running);
    }
    drop(fake);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok([connected, answered - connected])
}

/// Takes the file out of the system's cache, where that can be asked for.
fn forget(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

fn measure(table: &Table, isf: Option<&Path>) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let path = kernel::write_pdb(directory.path(), table)?;
    let publics = plain(&path)?;
    let types = table.user_types.len();
    println!("{} bytes, {} public symbols, {types} structures and unions", path.metadata()?.len(), publics.len());
    println!("{:<47} {:>12} {:>12} {:>13}", "", "kdpool", "pdb crate", "llvm-pdbutil");

    let cold = session(table, directory.path(), || forget(&path))?;
    row("session: stop to first symbol, file not cached", cold[1], None, None);
    let warm = session(table, directory.path(), || Ok(()))?;
    row("session: stop to first symbol, file cached", warm[1], None, None);
    row("session: connection to stop", warm[0], None, None);

    let open = || Pdb::open(&path);
    row("open", best(open), Some(best(|| pdb::PDB::open(std::fs::File::open(&path)?))), None);
    let first = || open().map(|pdb| pdb.symbol("PoolBigPageTable"));
    let plain_first = || plain(&path).map(|all| all.into_iter().find(|(_, name)| name == "PoolBigPageTable"));
    let uncached = (forget(&path)?, timed(first)).1;
    let plain_uncached = (forget(&path)?, timed(plain_first)).1;
    row("open to first symbol by name, file not cached", uncached.1, Some(plain_uncached.1), None);
    row("open to first symbol by name", best(first), Some(best(plain_first)), llvm("--publics", &path));
    row(
        "open to first symbol by address",
        best(|| open().map(|pdb| pdb.around(0x12345))),
        Some(best(|| plain(&path).map(|all| all.partition_point(|(rva, _)| *rva <= 0x12345)))),
        None,
    );
    row(
        "open to first structure",
        best(|| open().map(|pdb| pdb.layout("_EPROCESS"))),
        Some(best(|| plain_type(&path, "_EPROCESS"))),
        llvm("--types", &path),
    );
    if let Some(isf) = isf {
        row("the same from the ISF table", best(|| Isf::open(isf).map(|isf| isf.layout("_EPROCESS"))), None, None);
    }
    let pdb = open()?;
    row(
        "x nt!*Pool*",
        best(|| pdb.matching("*Pool*")),
        Some(best(|| publics.iter().filter(|(_, name)| name.to_lowercase().contains("pool")).count())),
        None,
    );
    let last = publics.last().map_or(1, |(rva, _)| *rva);
    let addresses: Vec<u32> = (0..100_000u64).map(|n| (n * 2_654_435_761 % u64::from(last)) as u32).collect();
    let ours = best(|| addresses.iter().map(|rva| pdb.around(*rva)).filter(|(before, _)| before.is_some()).count());
    let theirs = best(|| {
        let look = |rva: &u32| publics.get(publics.partition_point(|(at, _)| at <= rva).saturating_sub(1)).cloned();
        addresses.iter().filter_map(look).count()
    });
    row("100,000 addresses to names", ours, Some(theirs), None);
    println!("{:<47} {:>12.1}", "addresses a second, millions", 0.1 / ours.as_secs_f64());
    // In a process of its own, where nothing that was freed before is used again.
    let held = Command::new(std::env::current_exe()?).arg(HOLD).arg(&path).output()?;
    println!("{:<47} {:>12}\n", "memory held with names and types read", String::from_utf8_lossy(&held.stdout).trim());
    Ok(())
}

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some(HOLD) {
        return hold(&std::env::args_os().nth(2).map(PathBuf::from).ok_or("--hold takes a PDB")?);
    }
    let Some(path) = table() else {
        println!("skipped: there is no ../shared/isf; name a table (.json.xz)");
        return Ok(());
    };
    if Command::new("llvm-pdbutil").arg("--version").output().is_err() {
        println!("llvm-pdbutil is not installed");
    }
    println!("{}", path.display());
    let table = Table::from_xz(&std::fs::read(&path)?)?;
    measure(&table, Some(&path))?;
    measure(&padded(&table), None)
}
