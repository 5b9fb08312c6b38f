//! What is being debugged: the lines of `vertarget` and of the banner.
//!
//! ```text
//! Windows 7 Kernel Version 7601 MP (2 procs) Free x64
//! Product: WinNt, suite: TerminalServer SingleUserTS
//! Built by: 7601.18247.amd64fre.win7sp1_gdr.130828-1532
//! Machine Name:
//! Kernel base = 0xfffff800`0161c000 PsLoadedModuleList = 0xfffff800`018596d0
//! Debug session time: Wed Feb 28 17:16:23.816 2018 (UTC - 8:00)
//! System Uptime: 0 days 0:00:02.169
//! ```

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use kd_target::{Machine, Version};
use nt_memory::{Fault, Memory};
use nt_pool::build::{
    WINDOWS_7, WINDOWS_8, WINDOWS_8_1, WINDOWS_10_1809, WINDOWS_10_PREVIEW, WINDOWS_2000, WINDOWS_SERVER_2003,
    WINDOWS_VISTA, WINDOWS_XP,
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Text;
use crate::kernel::Kernel;
use crate::symbols::{NoSymbols, Symbols};
use crate::text::{Hex, Width, time, visible_name};

/// What can be said about the target with at most two reads beyond finding the kernel's symbols.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct Vertarget {
    windows: &'static str,
    build: u16,
    processors: u32,
    multiprocessor: bool,
    checked: bool,
    machine: &'static str,
    product: Option<String>,
    /// `nt!NtBuildLabEx`; needs the kernel's symbols.
    build_lab: Option<String>,
    kernel_base: Hex,
    loaded_module_list: Hex,
    /// The target's clock, as text and not converted: RFC 3339, UTC.
    pub(crate) time: Option<Timestamp>,
    pub(crate) uptime_ms: Option<u64>,
    #[serde(skip)]
    width: Width,
}

/// The page that every Windows maps at the same place, `KUSER_SHARED_DATA` (ntddk.h).
struct SharedData {
    /// 100 ns since the start.
    interrupt_time: u64,
    /// 100 ns since 1601, UTC.
    system_time: u64,
    ticks: u64,
    product: Option<String>,
}

impl SharedData {
    const INTERRUPT_TIME: usize = 0x8;
    const SYSTEM_TIME: usize = 0x14;
    const PRODUCT_TYPE: usize = 0x264;
    const PRODUCT_TYPE_IS_VALID: usize = 0x268;
    const SUITE_MASK: usize = 0x2d0;
    const TICK_COUNT: usize = 0x320;
    const READ: usize = 0x328;

    /// `None` when the page is not readable.
    fn read(memory: &dyn Memory, width: Width) -> Result<Option<Self>, Fault> {
        let address = match width {
            Width::Four => 0xffdf_0000,
            Width::Eight => 0xffff_f780_0000_0000,
        };
        let mut page = [0; Self::READ];
        if memory.read(address, &mut page)? < page.len() {
            return Ok(None);
        }
        let u32_at = |offset: usize| {
            page.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let u64_at = |offset| u64::from(u32_at(offset)) | u64::from(u32_at(offset + 4)) << 32;
        let product = (page[Self::PRODUCT_TYPE_IS_VALID] != 0)
            .then(|| product(u32_at(Self::PRODUCT_TYPE), u32_at(Self::SUITE_MASK)))
            .flatten();
        Ok(Some(Self {
            interrupt_time: u64_at(Self::INTERRUPT_TIME),
            system_time: u64_at(Self::SYSTEM_TIME),
            ticks: u64_at(Self::TICK_COUNT),
            product,
        }))
    }
}

/// 100 ns since the start, by the target's own clock, which stands still with it; `None` when it is not readable.
pub(crate) fn interrupt_time(kernel: &dyn Kernel) -> Result<Option<u64>, Fault> {
    Ok(SharedData::read(kernel.memory(), kernel.width())?.map(|shared| shared.interrupt_time))
}

/// The target's time, 100 ns since 1601, UTC, and the clock's interrupts since the start; `None` when they are not
/// readable.
pub(crate) fn time_and_ticks(kernel: &dyn Kernel) -> Result<Option<(u64, u64)>, Fault> {
    let shared = SharedData::read(kernel.memory(), kernel.width())?;
    Ok(shared.map(|shared| (shared.system_time, shared.ticks)))
}

/// `NT_PRODUCT_TYPE` and the suite mask's bits, in kd's words.
fn product(product_type: u32, suites: u32) -> Option<String> {
    let product = match product_type {
        1 => "WinNt",
        2 => "LanManNt",
        3 => "Server",
        _ => return None,
    };
    const SUITES: [(u32, &str); 10] = [
        (0x1, "SmallBusiness"),
        (0x2, "Enterprise"),
        (0x4, "BackOffice"),
        (0x8, "CommunicationServer"),
        (0x10, "TerminalServer"),
        (0x20, "SmallBusinessRestricted"),
        (0x40, "EmbeddedNT"),
        (0x80, "DataCenter"),
        (0x100, "SingleUserTS"),
        (0x200, "Personal"),
    ];
    let suites: Vec<&str> = SUITES.iter().filter(|(bit, _)| suites & bit != 0).map(|(_, name)| *name).collect();
    Some(match suites.is_empty() {
        true => product.into(),
        false => format!("{product}, suite: {}", suites.join(" ")),
    })
}

/// Windows 11 calls itself 10 here too, as in kd.
pub(crate) fn windows(build: u16) -> &'static str {
    match build {
        ..WINDOWS_2000 => "Windows NT",
        WINDOWS_2000..WINDOWS_XP => "Windows 2000",
        WINDOWS_XP..WINDOWS_SERVER_2003 => "Windows XP",
        WINDOWS_SERVER_2003..WINDOWS_VISTA => "Windows Server 2003",
        WINDOWS_VISTA..WINDOWS_7 => "Windows Vista",
        WINDOWS_7..WINDOWS_8 => "Windows 7",
        WINDOWS_8..WINDOWS_8_1 => "Windows 8",
        WINDOWS_8_1..WINDOWS_10_PREVIEW => "Windows 8.1",
        WINDOWS_10_PREVIEW.. => "Windows 10",
    }
}

pub(crate) fn machine(version: &Version) -> &'static str {
    match version.machine {
        Machine::X64 => "x64",
        Machine::X86 => "x86 compatible",
        Machine::Arm64 => "ARM 64-bit (AArch64)",
        Machine::Other(0x01c4) => "ARM (NT)",
        Machine::Other(_) => "unknown machine",
    }
}

impl Vertarget {
    pub(crate) fn read(kernel: &dyn Kernel, symbols: &mut Symbols) -> Result<Self, Fault> {
        let version = kernel.version();
        let width = kernel.width();
        let shared = SharedData::read(kernel.memory(), width)?;
        let build_lab = match symbols.nt(kernel) {
            Ok(nt) => match nt.symbol("NtBuildLabEx").or_else(|| nt.symbol("NtBuildLab")) {
                Some(symbol) => text_at(kernel, kernel.base().wrapping_add(symbol.rva.into()))?,
                None => None,
            },
            Err(NoSymbols::Fault(fault)) => return Err(fault),
            Err(NoSymbols::Missing(_)) => None,
        };
        let interrupt_time = shared.as_ref().map_or(0, |shared| shared.interrupt_time);
        Ok(Self {
            windows: windows(version.minor),
            build: version.minor,
            processors: kernel.stop().processors,
            multiprocessor: version.is_multiprocessor(),
            checked: version.major & 0xff == 0xc,
            machine: machine(version),
            product: shared.as_ref().and_then(|shared| shared.product.clone()),
            build_lab,
            kernel_base: Hex(width.address(kernel.base())),
            loaded_module_list: Hex(width.address(version.loaded_module_list)),
            time: shared.and_then(|shared| timestamp(shared.system_time)),
            uptime_ms: (interrupt_time != 0).then_some(interrupt_time / 10_000),
            width,
        })
    }

    /// The banner's lines; kd shows the time only when it is asked.
    pub(crate) fn lines(&self, out: &mut dyn fmt::Write, with_time: bool) -> fmt::Result {
        let processors = match self.multiprocessor {
            true => format!("MP ({} procs)", self.processors),
            false => "UP".into(),
        };
        let kind = if self.checked { "Checked" } else { "Free" };
        writeln!(out, "{} Kernel Version {} {processors} {kind} {}", self.windows, self.build, self.machine)?;
        if let Some(product) = &self.product {
            writeln!(out, "Product: {product}")?;
        }
        if let Some(lab) = &self.build_lab {
            // The same text under the name that debuggers of the target's time gave it.
            let label = if self.build < WINDOWS_10_1809 { "Built by" } else { "Edition build lab" };
            writeln!(out, "{label}: {lab}")?;
        }
        writeln!(out, "Machine Name:")?;
        writeln!(
            out,
            "Kernel base = 0x{} PsLoadedModuleList = 0x{}",
            self.width.tick(self.kernel_base.0),
            self.width.tick(self.loaded_module_list.0)
        )?;
        if with_time {
            self.time_line(out)?;
        }
        self.uptime_line(out)
    }

    pub(crate) fn time_line(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.time {
            Some(when) => writeln!(out, "Debug session time: {}", time(&when.to_zoned(TimeZone::system()))),
            None => Ok(()),
        }
    }

    pub(crate) fn uptime_line(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Some(ms) = self.uptime_ms else { return writeln!(out, "System Uptime: not available") };
        let (seconds, ms) = (ms / 1000, ms % 1000);
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let (days, hours) = (hours / 24, hours % 24);
        writeln!(out, "System Uptime: {days} days {hours}:{minutes:02}:{seconds:02}.{ms:03}")
    }
}

/// 100 ns since 1601.
fn timestamp(system_time: u64) -> Option<Timestamp> {
    const EPOCH: i64 = -11_644_473_600;
    let start = Timestamp::from_second(EPOCH).ok()?;
    let ticks = i64::try_from(system_time).ok().filter(|ticks| *ticks != 0)?;
    let since = SignedDuration::new(ticks / 10_000_000, i32::try_from(ticks % 10_000_000).ok()? * 100);
    start.checked_add(since).ok()
}

/// A line of ASCII in the kernel's image.
fn text_at(kernel: &dyn Kernel, address: u64) -> Result<Option<String>, Fault> {
    let mut bytes = [0; 128];
    let read = kernel.read(address, &mut bytes)?;
    let text = bytes[..read.min(bytes.len())].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((!text.is_empty()).then(|| visible_name(&String::from_utf8_lossy(text))))
}

impl Text for Vertarget {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.lines(out, true)
    }
}

/// `Windows 7 7601 x64 target at (...), ptr64 TRUE`
pub(crate) fn connected(version: &Version, when: &jiff::Zoned) -> String {
    let ptr64 = if version.pointer_size() == 8 { "TRUE" } else { "FALSE" };
    format!("Connected to {} target at ({}), ptr64 {ptr64}", system(version), time(when))
}

/// `Windows 7 7601 x64`
pub(crate) fn system(version: &Version) -> String {
    format!("{} {} {}", windows(version.minor), version.minor, machine(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Vertarget {
        Vertarget {
            windows: "Windows 7",
            build: 7601,
            processors: 2,
            multiprocessor: true,
            checked: false,
            machine: "x64",
            product: product(1, 0x110),
            build_lab: Some("7601.18247.amd64fre.win7sp1_gdr.130828-1532".into()),
            kernel_base: Hex(0xfffff8000161c000),
            loaded_module_list: Hex(0xfffff800018596d0),
            time: None,
            uptime_ms: Some(2169),
            width: Width::Eight,
        }
    }

    #[test]
    fn the_banners_lines() {
        let mut text = String::new();
        target().lines(&mut text, false).unwrap();
        assert_eq!(
            text,
            "Windows 7 Kernel Version 7601 MP (2 procs) Free x64
Product: WinNt, suite: TerminalServer SingleUserTS
Built by: 7601.18247.amd64fre.win7sp1_gdr.130828-1532
Machine Name:
Kernel base = 0xfffff800`0161c000 PsLoadedModuleList = 0xfffff800`018596d0
System Uptime: 0 days 0:00:02.169
"
        );
    }

    #[test]
    fn a_uniprocessor_target_early_in_its_boot() {
        let target = Vertarget { multiprocessor: false, uptime_ms: None, build_lab: None, product: None, ..target() };
        let mut text = String::new();
        target.lines(&mut text, true).unwrap();
        assert_eq!(text.lines().next(), Some("Windows 7 Kernel Version 7601 UP Free x64"));
        assert_eq!(text.lines().last(), Some("System Uptime: not available"));
    }

    #[test]
    fn file_times() {
        assert_eq!(timestamp(130397325913710000).unwrap().to_string(), "2014-03-19T19:56:31.371Z");
        assert_eq!(timestamp(0), None);
        assert_eq!(timestamp(u64::MAX), None);
        assert_eq!(timestamp(i64::MAX as u64), None);
    }
}
