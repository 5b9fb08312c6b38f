//! Which kernel, and which of its lives.

use std::time::Duration;

use nt_memory::Fault;
use nt_pool::{Kernel, PoolError};
use nt_symbols::Image;
use serde::{Deserialize, Serialize};

/// What two looks must have in common to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 7601, 26100.
    pub build: u16,
    /// 4 or 8.
    pub pointer_size: u8,
    /// GUID and age of the kernel's PDB as a symbol store writes them; with it two builds cannot be confused.
    #[serde(default, deserialize_with = "crate::line::deserialize")]
    pub pdb: Option<String>,
    /// Where the image says so, as an RVA.
    #[serde(default)]
    pub pdb_at: Option<u32>,
    /// Time stamp and checksum from the image's header, where the PDB is not known.
    pub image: Option<(u32, u32)>,
    /// Where the kernel's image lies.
    #[serde(with = "crate::hex")]
    pub base: u64,
    /// `nt!KeBootTime` as it was at the start, in 100 ns since 1601; `None` where it cannot be read.
    pub boot_time: Option<u64>,
    /// `KUSER_SHARED_DATA.BootId` (Windows 8 and later): counts starts.
    pub boot_id: Option<u32>,
}

/// The target's clocks, in 100 ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Since the start; stands still with the target.
    pub interrupt: u64,
    /// Since 1601, UTC.
    pub system: u64,
}

/// Why two looks cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Different {
    /// It is another kernel.
    #[error("the mark is of another kernel ({mark}; this one is {now}): take a new mark")]
    Kernel {
        /// That of the mark, by build and PDB.
        mark: String,
        /// The kernel that is there now, the same way.
        now: String,
    },
    /// It is another boot of the same kernel.
    #[error("the target was restarted since the mark ({why}): no block of then is left, take a new mark")]
    Restarted {
        /// What tells.
        why: String,
    },
}

const SECOND: u64 = 10_000_000;

/// The kernel sets its clock again after each stop, and the boot time follows: by as much as the target stood still,
/// and this.
const CLOCK_SET: u64 = 60 * SECOND;

impl Identity {
    /// Reads what identifies the kernel: its image's header, the shared page and one variable. Where `known` is still
    /// what the image says, its header is not read.
    pub fn read(kernel: &Kernel<'_>, known: Option<&Identity>) -> Result<(Identity, Times), PoolError> {
        let (pdb, pdb_at, image) = match known {
            Some(known) if known.is_named(kernel)? => (known.pdb.clone(), known.pdb_at, known.image),
            _ => of_image(kernel)?,
        };
        let (times, boot_id) = shared_data(kernel)?;
        let identity = Identity {
            build: kernel.build,
            pointer_size: kernel.pointer_size,
            pdb,
            pdb_at,
            image,
            base: kernel.base,
            boot_time: boot_time(kernel)?,
            boot_id,
        };
        Ok((identity, times))
    }

    /// The kernel's image names the same PDB.
    fn is_named(&self, kernel: &Kernel<'_>) -> Result<bool, Fault> {
        let Some((pdb, at)) = self.pdb.as_ref().zip(self.pdb_at) else { return Ok(false) };
        let named = nt_symbols::rsds_at(kernel.memory, kernel.base, at)?;
        Ok(named.is_some_and(|named| named.store_key() == *pdb))
    }

    /// Whether `now` is the same kernel in the same life as `self` was. `frozen`: for how long we kept it stopped since.
    pub fn same(&self, at: Times, now: &Identity, then: Times, frozen: Duration) -> Result<(), Different> {
        let kernel = |identity: &Identity| {
            let pdb = identity.pdb.as_deref().map_or("PDB unknown".into(), |pdb| format!("PDB {pdb}"));
            format!("build {}, {pdb}", identity.build)
        };
        let pdb_differs = matches!((&self.pdb, &now.pdb), (Some(a), Some(b)) if a != b);
        let image_differs = matches!((self.image, now.image), (Some(a), Some(b)) if a != b);
        if (self.build, self.pointer_size) != (now.build, now.pointer_size) || pdb_differs || image_differs {
            return Err(Different::Kernel { mark: kernel(self), now: kernel(now) });
        }
        let restarted = |why: String| Err(Different::Restarted { why });
        if matches!((self.boot_id, now.boot_id), (Some(a), Some(b)) if a != b) {
            return restarted("its boot number is another".into());
        }
        if then.interrupt < at.interrupt {
            let seconds = |time: Times| time.interrupt / SECOND;
            return restarted(format!("it ran for {} s then and for {} s now", seconds(at), seconds(then)));
        }
        let clock = |time: Times| time.system.wrapping_sub(time.interrupt);
        let (a, b) = self.boot_time.zip(now.boot_time).unwrap_or((clock(at), clock(then)));
        let frozen = u64::try_from(frozen.as_nanos() / 100).unwrap_or(u64::MAX);
        if a.abs_diff(b) > CLOCK_SET.saturating_add(frozen) {
            let (a, b) = (date(a), date(b));
            return restarted(format!("it had started at {a}, and at {b} now: restarted, or its clock was set"));
        }
        if self.base != now.base {
            return restarted(format!("the kernel lay at {:016x} and lies at {:016x}", self.base, now.base));
        }
        Ok(())
    }
}

/// The PDB, where the image names it, and the image's stamp.
type OfImage = (Option<String>, Option<u32>, Option<(u32, u32)>);

fn of_image(kernel: &Kernel<'_>) -> Result<OfImage, Fault> {
    match nt_symbols::rsds(kernel.memory, kernel.base) {
        Ok(found) => return Ok((Some(found.pdb.store_key()), Some(found.record), Some(stamp(&found.image)))),
        Err(nt_symbols::ImageError::Fault(fault)) => return Err(fault),
        Err(_) => {}
    }
    match Image::read(kernel.memory, kernel.base) {
        Ok(image) => Ok((None, None, Some(stamp(&image)))),
        Err(nt_symbols::ImageError::Fault(fault)) => Err(fault),
        Err(_) => Ok((None, None, None)),
    }
}

/// 100 ns since 1601 as a date and a time of day, UTC.
fn date(time: u64) -> String {
    let seconds = time / SECOND;
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1601;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02} {:02}:{:02}:{:02}", month + 1, days + 1, rest / 3600, rest / 60 % 60, rest % 60)
}

fn stamp(image: &Image) -> (u32, u32) {
    (image.time_date_stamp, image.check_sum)
}

/// `KeBootTime` follows when the wall clock is set, and `KeBootTimeBias` says by how much.
fn boot_time(kernel: &Kernel<'_>) -> Result<Option<u64>, Fault> {
    let value = |name: &str| -> Result<Option<u64>, Fault> {
        let Some(address) = kernel.find_symbol(name) else { return Ok(None) };
        let mut bytes = [0; 8];
        let read = kernel.memory.read(address, &mut bytes)?;
        Ok((read == bytes.len()).then(|| u64::from_le_bytes(bytes)))
    };
    let Some(time) = value("KeBootTime")?.filter(|time| *time != 0) else { return Ok(None) };
    Ok(Some(time.wrapping_sub(value("KeBootTimeBias")?.unwrap_or(0))))
}

/// The structure is no larger, up to what is read here.
const SHARED_DATA: usize = 0x800;

/// `KUSER_SHARED_DATA` lies at the same place in every Windows.
///
/// ```text
/// 08 InterruptTime (low, high)   14 SystemTime   2c4 BootId (as the symbols say)
/// ```
fn shared_data(kernel: &Kernel<'_>) -> Result<(Times, Option<u32>), PoolError> {
    let page = if kernel.pointer_size == 4 { 0xffdf_0000 } else { 0xffff_f780_0000_0000 };
    let layout = kernel.symbols.layout("_KUSER_SHARED_DATA");
    let boot_id = layout.and_then(|layout| layout.field("BootId").map(|field| field.offset as usize));
    let boot_id = boot_id.filter(|offset| (0x1c..SHARED_DATA).contains(offset));
    let mut bytes = vec![0; boot_id.map_or(0x1c, |offset| offset + 4)];
    kernel.memory.read_exact(page, &mut bytes)?;
    let number = |from: usize, size: usize| {
        bytes[from..from + size].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    let times = Times { interrupt: number(8, 8), system: number(0x14, 8) };
    Ok((times, boot_id.map(|offset| number(offset, 4) as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            build: 7601,
            pointer_size: 8,
            pdb: Some("ABC1".into()),
            pdb_at: None,
            image: Some((1, 2)),
            base: 0xfffff80001418000,
            boot_time: Some(1000 * SECOND),
            boot_id: None,
        }
    }

    fn at(interrupt: u64, system: u64) -> Times {
        Times { interrupt: interrupt * SECOND, system: system * SECOND }
    }

    #[test]
    fn the_same_life_is_recognised_whatever_the_wall_clock_does() {
        let then = at(10, 1010);
        assert_eq!(identity().same(then, &identity(), then, NEVER), Ok(()));
        assert_eq!(identity().same(then, &identity(), at(20, 9_000_000), NEVER), Ok(()));
        let unknown = Identity { boot_time: None, ..identity() };
        assert_eq!(unknown.same(then, &unknown, at(20, 1020 + 30), NEVER), Ok(()));
        // The clock was set again after a stop, and the boot time followed.
        let moved =
            |seconds: u64| Identity { boot_time: Some((1000 + seconds) * SECOND), boot_id: Some(7), ..identity() };
        assert_eq!(moved(0).same(then, &moved(30), at(20, 1050), NEVER), Ok(()));
        let stopped = Duration::from_secs(600);
        assert_eq!(moved(0).same(then, &moved(630), at(20, 1650), stopped), Ok(()));
        let error = moved(0).same(then, &moved(630), at(20, 1650), NEVER).unwrap_err().to_string();
        assert!(error.contains("1601-01-01 00:16:40") && error.contains("or its clock was set"), "{error}");
        assert_eq!(date(132_234_768_000_000_000), "2020-01-14 12:00:00");
    }

    const NEVER: Duration = Duration::ZERO;

    #[test]
    fn another_life_is_another_boot() {
        let then = at(10, 1010);
        let boots = [
            (Identity { boot_time: Some(1100 * SECOND), ..identity() }, at(30, 1130)),
            (identity(), at(9, 1130)),
            (Identity { base: 0xfffff80001618000, ..identity() }, at(30, 1130)),
        ];
        for (now, time) in boots {
            let error = identity().same(then, &now, time, NEVER).unwrap_err();
            assert!(matches!(error, Different::Restarted { .. }), "{error}");
        }
        let (a, b) = (Identity { boot_id: Some(7), ..identity() }, Identity { boot_id: Some(8), ..identity() });
        assert!(matches!(a.same(then, &b, at(30, 1030), NEVER), Err(Different::Restarted { .. })));
    }

    #[test]
    fn another_kernel_is_named() {
        let other = Identity { pdb: Some("DEF1".into()), ..identity() };
        let error = identity().same(at(1, 1), &other, at(2, 2), NEVER).unwrap_err();
        assert!(error.to_string().contains("PDB ABC1") && error.to_string().contains("PDB DEF1"), "{error}");
        let other = Identity { build: 9600, ..identity() };
        assert!(matches!(identity().same(at(1, 1), &other, at(2, 2), NEVER), Err(Different::Kernel { .. })));
    }
}
