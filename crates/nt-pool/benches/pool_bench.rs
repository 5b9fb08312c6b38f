//! How fast pool is decoded from memory, on one core: `cargo bench -p nt-pool --bench pool_bench [-- TABLE.json.xz]`.
//!
//! The old pool's pages are those of a seeded Windows 7 machine; VS and LFH subsegments those of a machine of the table
//! given, or of carried kernels of Windows 10 and 11. Each figure is the walk that `!poolfind Leak` makes without its reading from
//! a target: the machine's memory is copied out of this process.

use std::time::{Duration, Instant};

use kd_fake::isf::Isf as Table;
use kd_fake::kernel::{self, SeededOptions};
use nt_memory::{Fault, Memory};
use nt_pool::small_blocks::{Kinds, Limits, Plan};
use nt_pool::{Kernel, Tag};
use nt_symbols::Isf;

type Failure = Box<dyn std::error::Error>;

const WINDOWS_7: &[u8] = include_bytes!("../../kd-fake/data/339E74133576439CBCDF7E0229DA3773-1.json.xz");
const RUNS: usize = 9;
/// Some systems count a thread's time in ticks of 4 ms.
const WALKS: u32 = 10;

struct Machine<'m>(&'m kernel::Kernel);

impl Memory for Machine<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.0.read_virtual(address, buffer))
    }

    fn read_physical(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        Ok(self.0.read_physical(address, buffer))
    }
}

/// What this thread had of its processor, where the system tells it: others may have had the rest of the time.
fn processor_time(began: &Instant) -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = text.and_then(|text| text.split_whitespace().next()?.parse().ok());
    nanoseconds.map_or_else(|| began.elapsed(), Duration::from_nanos)
}

/// Megabytes of pool whose blocks have so many bytes.
fn measure(name: &str, symbols: &Isf, table: &Table, sizes: (u64, u64)) -> Result<(), Failure> {
    let blocks = (96 << 20) / (sizes.0 + sizes.1) as usize;
    let options = SeededOptions {
        small_operations: 12 * blocks as u32,
        small_blocks: blocks / 3,
        small_sizes: Some(sizes),
        ..SeededOptions::default()
    };
    let (machine, _) = kernel::seeded(table, 1, &options)?;
    let memory = Machine(&machine);
    let facts = machine.facts();
    let pointer_size = table.machine.pointer() as u8;
    let kernel = Kernel { memory: &memory, symbols, base: facts.kernel_base, pointer_size, build: facts.build };
    let kinds = Kinds { special: false, ..Kinds::ALL };
    let plan = Plan::read(&kernel, kinds)?;
    let large = nt_pool::big_pages::read(&kernel, &|_| true)?.blocks;
    let wanted = |tag: Tag| tag == Tag(*b"Leak");
    let mut best = Duration::MAX;
    let began = Instant::now();
    let mut found = 0;
    for _ in 0..RUNS {
        let start = processor_time(&began);
        for _ in 0..WALKS {
            found = plan.find(&kernel, &wanted, &large, Limits::default())?.blocks.len();
        }
        best = best.min((processor_time(&began) - start) / WALKS);
    }
    let bytes = plan.bytes(0) as f64;
    println!(
        "{name:<28} {:6.1} MB {found:8} hits {:8.2} ms {:6.2} GB/s",
        bytes / 1e6,
        best.as_secs_f64() * 1e3,
        bytes / best.as_secs_f64() / 1e9
    );
    Ok(())
}

/// The program's own argument: `cargo bench` adds one.
fn argument() -> Option<std::ffi::OsString> {
    std::env::args_os().skip(1).find(|argument| argument != "--bench")
}

fn main() -> Result<(), Failure> {
    let seven = Isf::parse("ntkrnlmp", WINDOWS_7.to_vec())?;
    let table = Table::from_xz(WINDOWS_7)?;
    measure("old pool, small blocks", &seven, &table, (1, 0x100))?;
    measure("old pool, all sizes", &seven, &table, (1, 0xf80))?;
    let mut heaps = Vec::new();
    match argument() {
        Some(path) => heaps.push(("segment heap", Isf::open(&path)?, Table::from_xz(&std::fs::read(&path)?)?)),
        None => {
            for name in ["x86-heap", "x64-heap", "x64-26100"] {
                let json = kd_fake::isf::CARRIED.iter().find(|(carried, _)| *carried == name).ok_or("not carried")?.1;
                heaps.push((name, Isf::parse(name, json.to_vec())?, Table::from_json(json)?));
            }
        }
    }
    for (name, symbols, table) in &heaps {
        measure(&format!("{name}, VS"), symbols, table, (0x210, 0xf80))?;
        measure(&format!("{name}, LFH"), symbols, table, (1, 0x1d0))?;
    }
    Ok(())
}
