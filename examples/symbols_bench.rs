//! What symbols cost: `cargo run --release -p nt-symbols --example symbols_bench [TABLE.json.xz]`.
//!
//! Writes the PDB of a kernel from its ISF table (the one of ../shared/isf with the most symbols, if none is given), then
//! times this project's reader, the `pdb` crate used plainly, and `llvm-pdbutil` if it is installed, on that file.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    (0..7).map(|_| timed(|| black_box(work())).1).min().unwrap_or_default()
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

fn table() -> Option<PathBuf> {
    if let Some(given) = std::env::args_os().nth(1) {
        return Some(given.into());
    }
    let shared = std::env::var_os("KDPOOL_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let tables = std::fs::read_dir(shared.join("isf")).ok()?.flatten().map(|entry| entry.path());
    tables
        .filter(|path| path.extension().is_some_and(|e| e == "xz"))
        .max_by_key(|path| path.metadata().map(|data| data.len()).unwrap_or(0))
}

fn row(what: &str, ours: impl std::fmt::Debug, theirs: Option<Duration>) {
    let theirs = theirs.map_or("-".into(), |theirs| format!("{theirs:.1?}"));
    println!("{what:<44} {:>12} {theirs:>12}", format!("{ours:.1?}"));
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

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some(HOLD) {
        return hold(&std::env::args_os().nth(2).map(PathBuf::from).ok_or("--hold takes a PDB")?);
    }
    let Some(table) = table() else {
        println!("skipped: there is no ../shared/isf; name a table (.json.xz)");
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ntkrnlmp.pdb");
    {
        let source = kd_fake::isf::Isf::from_xz(&std::fs::read(&table)?)?;
        std::fs::write(&path, kd_fake::pdb::from_isf(&source, &source.identity)?)?;
    }
    let publics = plain(&path)?;
    println!("{}: {} bytes, {} public symbols\n", table.display(), path.metadata()?.len(), publics.len());
    println!("{:<44} {:>12} {:>12}", "", "kdpool", "pdb crate");

    let open = || Pdb::open(&path);
    row("open", best(open), Some(best(|| pdb::PDB::open(std::fs::File::open(&path)?))));
    row(
        "open to first symbol by name",
        best(|| open().map(|pdb| pdb.symbol("PoolBigPageTable"))),
        Some(best(|| plain(&path).map(|all| all.into_iter().find(|(_, name)| name == "PoolBigPageTable")))),
    );
    row(
        "open to first symbol by address",
        best(|| open().map(|pdb| pdb.around(0x12345))),
        Some(best(|| plain(&path).map(|all| all.partition_point(|(rva, _)| *rva <= 0x12345)))),
    );
    row(
        "open to first structure",
        best(|| open().map(|pdb| pdb.layout("_EPROCESS"))),
        Some(best(|| plain_type(&path, "_EPROCESS"))),
    );

    row("the same from the ISF table", best(|| Isf::open(&table).map(|isf| isf.layout("_EPROCESS"))), None);
    let pdb = open()?;
    row(
        "x nt!*Pool*",
        best(|| pdb.matching("*Pool*")),
        Some(best(|| publics.iter().filter(|(_, name)| name.to_lowercase().contains("pool")).count())),
    );
    let last = publics.last().map_or(1, |(rva, _)| *rva);
    let addresses: Vec<u32> = (0..100_000u64).map(|n| (n * 2_654_435_761 % u64::from(last)) as u32).collect();
    let ours = best(|| addresses.iter().map(|rva| pdb.around(*rva)).filter(|(before, _)| before.is_some()).count());
    let theirs = best(|| {
        let look = |rva: &u32| publics.get(publics.partition_point(|(at, _)| at <= rva).saturating_sub(1)).cloned();
        addresses.iter().filter_map(look).count()
    });
    row("100,000 addresses to names", ours, Some(theirs));
    println!("{:<44} {:>12.1}", "addresses a second, millions", 0.1 / ours.as_secs_f64());
    // In a process of its own, where nothing that was freed before is used again.
    let held = std::process::Command::new(std::env::current_exe()?).arg(HOLD).arg(&path).output()?;
    println!("{:<44} {:>12}", "memory held with names and types read", String::from_utf8_lossy(&held.stdout).trim());

    let llvm = timed(|| std::process::Command::new("llvm-pdbutil").args(["dump", "--publics"]).arg(&path).output());
    match llvm {
        (Ok(output), time) if output.status.success() => {
            println!("{:<44} {:>12.1?}", "llvm-pdbutil dump --publics", time)
        }
        _ => println!("llvm-pdbutil is not installed, or cannot read the file"),
    }
    Ok(())
}
