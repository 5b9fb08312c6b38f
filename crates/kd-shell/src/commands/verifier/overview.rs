//! `!verifier [flags [image]]`: settings, statistics, verified drivers and what they have allocated.
//!
//! The layout is today's debugger's, whatever the target is; with `-old` it is that of Windows 7's:
//!
//! ```text
//! Verify Level 9bb ... enabled options are:
//!     Special pool
//!
//! Summary of All Verifier Statistics
//!
//! RaiseIrqls                             0x0
//!
//! Driver Verification List
//!
//! Entry     State           NonPagedPool   PagedPool   Module
//!
//! fffffa8003b6f670 Loaded           000000a0       00000854    videoprt.sys
//! ```
//!
//! Today's:
//!
//! ```text
//! Verify Flags Level 0x000209bb
//!
//!   STANDARD FLAGS:
//!     [X] (0x00000000) Automatic Checks
//!
//! Driver Verification List
//! ------------------------
//!
//!   nt!_VF_TARGET_DRIVER 0x84226b28: MyDriver.sys (Loaded)
//! ```

use std::collections::BTreeMap;
use std::fmt;

use nt_pool::checks::{Book, Books};
use nt_pool::verifier::{self, Counters, Settings};
use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::stacks::{Name, Stacks};
use super::{ALLOCATIONS, DRIVERS, Known, LOGS, POOL_LOG, logs, pool_log, watch};
use crate::answer::{Reply, Text};
use crate::commands::pool::balance::Balance;
use crate::error::CommandError;
use crate::session::Context;
use crate::text::{Hex, Width, visible_name};

#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Overview {
    level: u32,
    flags: Vec<Flag>,
    /// `nt!VfOptionFlags`, Windows 7 and later.
    option_flags: Option<u32>,
    kernel_verified: Option<bool>,
    #[serde(serialize_with = "map")]
    #[schemars(with = "BTreeMap<String, u64>")]
    statistics: Counters,
    #[serde(skip_serializing_if = "Option::is_none")]
    drivers: Option<Vec<Driver>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log>,
    /// What was counted twice of the drivers, and whether it agrees.
    checks: Vec<Balance>,
    #[serde(skip)]
    old_layout: bool,
    #[serde(skip)]
    width: Width,
}

/// Books of what is shown.
const SHOWN: [Book; 3] = [Book::DriverCounters, Book::TrackedAllocations, Book::TrackedBytes];

#[derive(Debug, JsonSchema, Serialize)]
struct Flag {
    bit: u32,
    name: &'static str,
    standard: bool,
    enabled: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
enum Log {
    Entries(logs::EntryLog),
    Pool(Box<pool_log::PoolLogAnswer>),
}

#[derive(Debug, JsonSchema, Serialize)]
struct Driver {
    entry: Hex,
    name: String,
    #[serde(serialize_with = "lower")]
    #[schemars(with = "String")]
    state: &'static str,
    loads: u32,
    unloads: u32,
    /// Unknown for a driver of which the kernel keeps only the name.
    image: Option<Image>,
    #[serde(serialize_with = "map")]
    #[schemars(with = "BTreeMap<String, u64>")]
    counters: Counters,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocations: Option<Vec<Allocation>>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Image {
    start: Hex,
    end: Hex,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Allocation {
    address: Hex,
    size: u64,
    tag: String,
    caller: Hex,
    symbol: Option<Name>,
}

/// Counters by the kernel's own names, in its order.
fn map<S: Serializer>(counters: &Counters, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (name, value) in counters.iter() {
        map.serialize_entry(name, &value)?;
    }
    map.end()
}

fn lower<S: Serializer>(state: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&state.to_ascii_lowercase())
}

pub(super) fn reply(
    context: &mut Context<'_>,
    flags: u64,
    image: &str,
    old_layout: bool,
) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let (width, build) = (kernel.width(), kernel.version().minor);
    let mut known = Known::default();
    let mut settings = context.pool(verifier::settings)?;
    match watch::remark(context, settings.level) {
        Ok(remark) => known.remarks.extend(remark),
        Err(error) => known.missing("what is not being watched", error)?,
    }
    known.notes.append(&mut settings.notes);
    let mut checks = Books::default();
    let flag = |flag: verifier::Flag| {
        let verifier::Flag { bit, name, standard, enabled } = flag;
        Flag { bit, name, standard, enabled }
    };
    let drivers = match flags & DRIVERS {
        0 => None,
        _ => Some(drivers(context, flags & ALLOCATIONS != 0, image, &settings, &mut checks, &mut known)?),
    };
    let checks = Balance::all(&checks.checks(), &SHOWN, &mut known.notes);
    let mut logs = Vec::new();
    for flag in LOGS.into_iter().filter(|log| flags & log != 0) {
        let log = match flag {
            POOL_LOG => pool_log::read(context, &Default::default(), &mut known).map(|log| Log::Pool(Box::new(log))),
            _ => logs::read(context, flag, None, &mut known).map(Log::Entries),
        };
        match log {
            Ok(log) => logs.push(log),
            Err(error) => known.missing(&format!("the log {flag:#x}"), error)?,
        }
    }
    let overview = Overview {
        level: settings.level,
        flags: verifier::flags(settings.level, build).into_iter().map(flag).collect(),
        option_flags: settings.option_flags,
        kernel_verified: settings.kernel_verified,
        statistics: settings.counters,
        drivers,
        logs,
        checks,
        old_layout,
        width,
    };
    Ok(known.reply(overview))
}

/// The verified drivers, or the one named.
fn drivers(
    context: &mut Context<'_>,
    allocations: bool,
    image: &str,
    settings: &Settings,
    checks: &mut Books,
    known: &mut Known,
) -> Result<Vec<Driver>, CommandError> {
    let width = context.width();
    let found = match context.pool(verifier::drivers) {
        Ok(found) => found,
        Err(error) => {
            known.missing("the verified drivers", error)?;
            return Ok(Vec::new());
        }
    };
    if found.notes.is_complete() {
        checks.add_known(verifier::check_counters(settings, &found.drivers));
    }
    known.notes.extend(found.notes);
    let all: Vec<String> = found.drivers.iter().map(|driver| visible_name(&driver.name)).collect();
    let named = |driver: &verifier::Driver| {
        let stem = driver.name.rsplit_once('.').map_or(driver.name.as_str(), |(stem, _)| stem);
        image.is_empty() || driver.name.eq_ignore_ascii_case(image) || stem.eq_ignore_ascii_case(image)
    };
    let wanted: Vec<verifier::Driver> = found.drivers.into_iter().filter(named).collect();
    if wanted.is_empty() && !image.is_empty() {
        let verified = if all.is_empty() { "none".into() } else { all.join(", ") };
        return Err(CommandError::Failed(format!("{image} is not verified; verified drivers: {verified}")));
    }
    let mut outstanding = Vec::new();
    for driver in &wanted {
        outstanding.push(match allocations {
            true => {
                let tracked = context.pool(|kernel| {
                    let tracked = verifier::allocations(kernel, driver)?;
                    checks.extend(verifier::check(kernel, driver, &tracked));
                    Ok(tracked)
                })?;
                known.notes.extend(tracked.notes);
                Some(tracked.allocations)
            }
            false => None,
        });
    }
    let mut stacks = Stacks::new(context, false)?;
    let mut any = false;
    let mut drivers = Vec::new();
    for (driver, outstanding) in wanted.into_iter().zip(outstanding) {
        let mut name = |allocation: nt_pool::verifier::Allocation| {
            any = true;
            let frame = stacks.frame(allocation.caller)?;
            Ok(Allocation {
                address: Hex(width.address(allocation.address)),
                size: allocation.size,
                tag: allocation.tag.to_string(),
                caller: frame.address,
                symbol: frame.symbol,
            })
        };
        let allocations = outstanding.map(|all| all.into_iter().map(&mut name).collect::<Result<_, CommandError>>());
        let (start, end) = driver.image.clone().map_or((0, 0), |image| (image.start, image.end));
        drivers.push(Driver {
            entry: Hex(width.address(driver.entry)),
            state: driver.state().words(),
            loads: driver.loads,
            unloads: driver.unloads,
            image: driver.image.map(|_| Image { start: Hex(width.address(start)), end: Hex(width.address(end)) }),
            name: visible_name(&driver.name),
            counters: driver.counters,
            allocations: allocations.transpose()?,
        });
    }
    if any {
        stacks.finish(known);
    }
    Ok(drivers)
}

impl Text for Overview {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.old_layout {
            true => self.windows_7(out)?,
            false => self.todays(out)?,
        }
        for log in &self.logs {
            writeln!(out)?;
            match log {
                Log::Entries(log) => log.text(out)?,
                Log::Pool(log) => log.text(out)?,
            }
        }
        Ok(())
    }
}

/// The lines between settings and drivers: name and counter. An empty name is an empty line.
const STATISTICS: [(&str, &str); 11] = [
    ("RaiseIrqls", "RaiseIrqls"),
    ("AcquireSpinLocks", "AcquireSpinLocks"),
    ("Synch Executions", "SynchronizeExecutions"),
    ("Trims", "Trims"),
    ("", ""),
    ("Pool Allocations Attempted", "AllocationsAttempted"),
    ("Pool Allocations Succeeded", "AllocationsSucceeded"),
    ("Pool Allocations Succeeded SpecialPool", "AllocationsSucceededSpecialPool"),
    ("Pool Allocations With NO TAG", "AllocationsWithNoTag"),
    ("Pool Allocations Failed", "AllocationsFailed"),
    ("Resource Allocations Failed Deliberately", "AllocationsFailedDeliberately"),
];

/// Name, number of allocations, bytes.
const IN_USE: [(&str, &str, &str); 4] = [
    ("Current paged pool allocations", "CurrentPagedPoolAllocations", "PagedBytes"),
    ("Peak paged pool allocations", "PeakPagedPoolAllocations", "PeakPagedBytes"),
    ("Current nonpaged pool allocations", "CurrentNonPagedPoolAllocations", "NonPagedBytes"),
    ("Peak nonpaged pool allocations", "PeakNonPagedPoolAllocations", "PeakNonPagedBytes"),
];

/// Name, counter of nonpaged pool, counter of paged pool.
const OF_DRIVER: [(&str, &str, &str); 4] = [
    ("Current Pool Allocations", "CurrentNonPagedPoolAllocations", "CurrentPagedPoolAllocations"),
    ("Current Pool Bytes", "NonPagedBytes", "PagedBytes"),
    ("Peak Pool Allocations", "PeakNonPagedPoolAllocations", "PeakPagedPoolAllocations"),
    ("Peak Pool Bytes", "PeakNonPagedBytes", "PeakPagedBytes"),
];

impl Overview {
    fn statistic(&self, name: &str) -> u64 {
        self.statistics.get(name).unwrap_or(0)
    }

    fn windows_7(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "\nVerify Level {:x} ... enabled options are:", self.level)?;
        for option in verifier::flags_windows_7(self.level) {
            writeln!(out, "    {option}")?;
        }
        for bit in verifier::unnamed_windows_7(self.level) {
            writeln!(out, "    Unknown option {bit:#x}")?;
        }
        writeln!(out, "\nSummary of All Verifier Statistics\n")?;
        for (name, counter) in STATISTICS {
            match name {
                "" => writeln!(out)?,
                // The one that is longer than the column.
                "Resource Allocations Failed Deliberately" => {
                    writeln!(out, "{name}   {:#x}", self.statistic(counter))?;
                }
                name => writeln!(out, "{name:<39}{:#x}", self.statistic(counter))?,
            }
        }
        writeln!(out)?;
        for (name, allocations, bytes) in IN_USE {
            let (allocations, bytes) = (self.statistic(allocations), self.statistic(bytes));
            writeln!(out, "{name:<39}{allocations:#x} for {bytes:08X} bytes")?;
        }
        let Some(drivers) = &self.drivers else { return Ok(()) };
        writeln!(out, "\nDriver Verification List\n")?;
        writeln!(out, "Entry     State           NonPagedPool   PagedPool   Module\n")?;
        for driver in drivers {
            let counter = |name| driver.counters.get(name).unwrap_or(0);
            let (nonpaged, paged) = (counter("NonPagedBytes"), counter("PagedBytes"));
            let (entry, name, state) = (self.width.pointer(driver.entry.0), &driver.name, driver.state);
            writeln!(out, "{entry} {state:<16} {nonpaged:08x}       {paged:08x}    {name}")?;
            let Some(allocations) = &driver.allocations else { continue };
            writeln!(out)?;
            for (name, nonpaged, paged) in OF_DRIVER {
                writeln!(out, "{name:<26}{:08x}    {:08x}", counter(nonpaged), counter(paged))?;
            }
            if !allocations.is_empty() {
                writeln!(out, "\nPoolAddress  SizeInBytes    Tag       CallersAddress")?;
            }
            for Allocation { address, size, tag, caller, .. } in allocations {
                let (address, caller) = (self.width.pointer(address.0), self.width.pointer(caller.0));
                writeln!(out, "{address}     0x{size:08x}     {tag}      {caller}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn todays(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "\nVerify Flags Level 0x{:08x}", self.level)?;
        for (title, standard) in [("STANDARD", true), ("ADDITIONAL", false)] {
            writeln!(out, "\n  {title} FLAGS:")?;
            for flag in self.flags.iter().filter(|flag| flag.standard == standard) {
                let mark = if flag.enabled { 'X' } else { ' ' };
                writeln!(out, "    [{mark}] (0x{:08x}) {}", flag.bit, flag.name)?;
            }
        }
        writeln!(out, "\n    [X] Indicates flag is enabled\n\n")?;
        writeln!(out, "Summary of All Verifier Statistics\n")?;
        for (at, (name, counter)) in STATISTICS.into_iter().enumerate() {
            match name {
                "" => writeln!(out)?,
                // This layout leaves it out.
                "Resource Allocations Failed Deliberately" => {}
                name => {
                    let column = if at < 4 { 21 } else { 39 };
                    writeln!(out, "  {name:<column$}{:#x}", self.statistic(counter))?;
                }
            }
        }
        writeln!(out)?;
        for (name, allocations, bytes) in IN_USE {
            let (allocations, bytes) = (self.statistic(allocations), self.statistic(bytes));
            writeln!(out, "  {name:<39}{allocations:#x} for {bytes:08x} bytes")?;
        }
        let Some(drivers) = &self.drivers else { return Ok(()) };
        writeln!(out, "\nDriver Verification List\n------------------------")?;
        for driver in drivers {
            let (entry, name, state) = (self.width.pointer(driver.entry.0), &driver.name, driver.state);
            writeln!(out, "\n  nt!_VF_TARGET_DRIVER 0x{entry}: {name} ({state})\n")?;
            writeln!(out, "    Pool Allocation Statistics: ( NonPagedPool / PagedPool )\n")?;
            let counter = |name| driver.counters.get(name).unwrap_or(0);
            for (name, nonpaged, paged) in OF_DRIVER {
                let name = format!("{name}:");
                writeln!(out, "      {name:<26}( 0x{:08x} / 0x{:08x} )", counter(nonpaged), counter(paged))?;
            }
            let contiguous = counter("ContiguousMemoryBytes");
            writeln!(out, "      Contiguous Memory Bytes:       0x{contiguous:08x}")?;
            writeln!(out, "      Peak Contiguous Memory Bytes:  0x{:08x}", counter("PeakContiguousMemoryBytes"))?;
            let Some(allocations) = &driver.allocations else { continue };
            if !allocations.is_empty() {
                let wide = 2 + 2 * self.width.bytes();
                writeln!(out, "\n    Pool Allocations:\n")?;
                writeln!(out, "      {:<wide$}  {:<10}  Tag   {:<wide$}", "Address", "Length", "Caller Address")?;
                writeln!(out, "      {:-<wide$}  {:-<10}  ----  {:-<wide$}", "", "", "")?;
            }
            for Allocation { address, size, tag, caller, symbol } in allocations {
                let (address, caller) = (self.width.pointer(address.0), self.width.pointer(caller.0));
                let symbol = symbol.as_deref().map_or(String::new(), |symbol| format!("  {symbol}"));
                writeln!(out, "      0x{address}  0x{size:08x}  {tag}  0x{caller}{symbol}")?;
            }
            if contiguous > 0 {
                writeln!(out, "\n    Contiguous allocations are not displayed with public symbols.")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(values: &[(&str, u64)]) -> Counters {
        values.iter().map(|&(name, value)| (name.to_string(), value)).collect()
    }

    fn overview(level: u32, statistics: &[(&str, u64)], driver: Driver, build: u16, width: Width) -> String {
        let flag = |flag: verifier::Flag| {
            let verifier::Flag { bit, name, standard, enabled } = flag;
            Flag { bit, name, standard, enabled }
        };
        let overview = Overview {
            level,
            flags: verifier::flags(level, build).into_iter().map(flag).collect(),
            option_flags: None,
            kernel_verified: None,
            statistics: counters(statistics),
            drivers: Some(vec![driver]),
            logs: Vec::new(),
            checks: Vec::new(),
            old_layout: build < nt_pool::build::WINDOWS_8,
            width,
        };
        let mut text = String::new();
        overview.text(&mut text).unwrap();
        text
    }

    fn allocation(address: u64, size: u64, tag: &str, caller: u64, symbol: &str) -> Allocation {
        let symbol = Some(symbol.to_string().into());
        Allocation { address: Hex(address), size, tag: tag.into(), caller: Hex(caller), symbol }
    }

    /// The sample of facts/kd-ux.md 3.9, layout A.
    #[test]
    fn windows_7() {
        let driver = Driver {
            entry: Hex(0xfffffa8003b6f670),
            name: "videoprt.sys".into(),
            state: "Loaded",
            loads: 1,
            unloads: 0,
            image: None,
            counters: counters(&[
                ("CurrentPagedPoolAllocations", 0x13),
                ("CurrentNonPagedPoolAllocations", 2),
                ("PeakPagedPoolAllocations", 0x14),
                ("PeakNonPagedPoolAllocations", 6),
                ("PagedBytes", 0x854),
                ("NonPagedBytes", 0xa0),
                ("PeakPagedBytes", 0x9c8),
                ("PeakNonPagedBytes", 0x8c0),
            ]),
            allocations: Some(vec![
                allocation(0xfffff9800157efc0, 0x3c, "Vprt", 0xfffff88002c62963, "videoprt+0x9963"),
                allocation(0xfffff9800146afc0, 0x34, "Vprt", 0xfffff88002c62963, "videoprt+0x9963"),
            ]),
        };
        let statistics = [
            ("AcquireSpinLocks", 0x362),
            ("Trims", 0xa34a),
            ("AllocationsAttempted", 0x7b058),
            ("AllocationsSucceeded", 0x7b058),
            ("AllocationsSucceededSpecialPool", 0x7b058),
            ("CurrentPagedPoolAllocations", 0x1a),
            ("PagedBytes", 0x950),
            ("PeakPagedPoolAllocations", 0x1b),
            ("PeakPagedBytes", 0xac4),
            ("CurrentNonPagedPoolAllocations", 0xe3),
            ("NonPagedBytes", 0x46110),
            ("PeakNonPagedPoolAllocations", 0x10f),
            ("PeakNonPagedBytes", 0x48e40),
        ];
        assert_eq!(
            overview(0x9bb, &statistics, driver, 7601, Width::Eight),
            "
Verify Level 9bb ... enabled options are:
    Special pool
    Special irql
    All pool allocations checked on unload
    Io subsystem checking enabled
    Deadlock detection enabled
    DMA checking enabled
    Security checks enabled
    Miscellaneous checks enabled

Summary of All Verifier Statistics

RaiseIrqls                             0x0
AcquireSpinLocks                       0x362
Synch Executions                       0x0
Trims                                  0xa34a

Pool Allocations Attempted             0x7b058
Pool Allocations Succeeded             0x7b058
Pool Allocations Succeeded SpecialPool 0x7b058
Pool Allocations With NO TAG           0x0
Pool Allocations Failed                0x0
Resource Allocations Failed Deliberately   0x0

Current paged pool allocations         0x1a for 00000950 bytes
Peak paged pool allocations            0x1b for 00000AC4 bytes
Current nonpaged pool allocations      0xe3 for 00046110 bytes
Peak nonpaged pool allocations         0x10f for 00048E40 bytes

Driver Verification List

Entry     State           NonPagedPool   PagedPool   Module

fffffa8003b6f670 Loaded           000000a0       00000854    videoprt.sys

Current Pool Allocations  00000002    00000013
Current Pool Bytes        000000a0    00000854
Peak Pool Allocations     00000006    00000014
Peak Pool Bytes           000008c0    000009c8

PoolAddress  SizeInBytes    Tag       CallersAddress
fffff9800157efc0     0x0000003c     Vprt      fffff88002c62963
fffff9800146afc0     0x00000034     Vprt      fffff88002c62963

"
        );
    }

    /// Layout B there.
    #[test]
    fn windows_8_1() {
        let driver = Driver {
            entry: Hex(0x84226b28),
            name: "MyDriver.sys".into(),
            state: "Loaded",
            loads: 1,
            unloads: 0,
            image: None,
            counters: counters(&[
                ("CurrentNonPagedPoolAllocations", 3),
                ("PeakNonPagedPoolAllocations", 0x13),
                ("NonPagedBytes", 0x1058),
                ("PeakNonPagedBytes", 0x4a4a0),
            ]),
            allocations: Some(vec![
                allocation(0x982a8fe0, 0x20, "VMdl", 0x9a3bf6ac, "MyDriver!DeviceControlDispatch"),
                allocation(0x8645a000, 0x1008, "mdrv", 0x9a3bf687, "MyDriver!DeviceControlDispatch"),
                allocation(0x9a836fd0, 0x30, "Vfwi", 0x9a3bf6ed, "MyDriver!GetNecessaryObjects"),
            ]),
        };
        let statistics = [
            ("AllocationsAttempted", 0x2db1a),
            ("AllocationsSucceeded", 0x2db1a),
            ("AllocationsSucceededSpecialPool", 0x2db1a),
            ("CurrentNonPagedPoolAllocations", 3),
            ("NonPagedBytes", 0x1058),
            ("PeakNonPagedPoolAllocations", 0x13),
            ("PeakNonPagedBytes", 0x4a4a0),
        ];
        let text = overview(0x209bb, &statistics, driver, 9600, Width::Four);
        assert_eq!(
            text,
            "
Verify Flags Level 0x000209bb

  STANDARD FLAGS:
    [X] (0x00000000) Automatic Checks
    [X] (0x00000001) Special pool
    [X] (0x00000002) Force IRQL checking
    [X] (0x00000008) Pool tracking
    [X] (0x00000010) I/O verification
    [X] (0x00000020) Deadlock detection
    [X] (0x00000080) DMA checking
    [X] (0x00000100) Security checks
    [X] (0x00000800) Miscellaneous checks
    [X] (0x00020000) DDI compliance checking

  ADDITIONAL FLAGS:
    [ ] (0x00000004) Randomized low resources simulation
    [ ] (0x00000200) Force pending I/O requests
    [ ] (0x00000400) IRP logging
    [ ] (0x00002000) Invariant MDL checking for stack
    [ ] (0x00004000) Invariant MDL checking for driver
    [ ] (0x00008000) Power framework delay fuzzing
    [ ] (0x00040000) Systematic low resources simulation
    [ ] (0x00080000) DDI compliance checking (additional)
    [ ] (0x00200000) NDIS/WIFI verification
    [ ] (0x00800000) Kernel synchronization delay fuzzing
    [ ] (0x01000000) VM switch verification

    [X] Indicates flag is enabled


Summary of All Verifier Statistics

  RaiseIrqls           0x0
  AcquireSpinLocks     0x0
  Synch Executions     0x0
  Trims                0x0

  Pool Allocations Attempted             0x2db1a
  Pool Allocations Succeeded             0x2db1a
  Pool Allocations Succeeded SpecialPool 0x2db1a
  Pool Allocations With NO TAG           0x0
  Pool Allocations Failed                0x0

  Current paged pool allocations         0x0 for 00000000 bytes
  Peak paged pool allocations            0x0 for 00000000 bytes
  Current nonpaged pool allocations      0x3 for 00001058 bytes
  Peak nonpaged pool allocations         0x13 for 0004a4a0 bytes

Driver Verification List
------------------------

  nt!_VF_TARGET_DRIVER 0x84226b28: MyDriver.sys (Loaded)

    Pool Allocation Statistics: ( NonPagedPool / PagedPool )

      Current Pool Allocations: ( 0x00000003 / 0x00000000 )
      Current Pool Bytes:       ( 0x00001058 / 0x00000000 )
      Peak Pool Allocations:    ( 0x00000013 / 0x00000000 )
      Peak Pool Bytes:          ( 0x0004a4a0 / 0x00000000 )
      Contiguous Memory Bytes:       0x00000000
      Peak Contiguous Memory Bytes:  0x00000000

    Pool Allocations:

      Address     Length      Tag   Caller Address
      ----------  ----------  ----  ----------
      0x982a8fe0  0x00000020  VMdl  0x9a3bf6ac  MyDriver!DeviceControlDispatch
      0x8645a000  0x00001008  mdrv  0x9a3bf687  MyDriver!DeviceControlDispatch
      0x9a836fd0  0x00000030  Vfwi  0x9a3bf6ed  MyDriver!GetNecessaryObjects
"
        );
    }
}
