//! Driver Verifier's settings, drivers and logs: `!verifier`.

mod allocations;
mod drivers;
mod flags;
mod logs;
mod settings;

pub use allocations::{Allocation, Allocations, allocations, check, check_counters};
pub use drivers::{Driver, Drivers, State, any_driver, drivers};
pub use flags::{Flag, flags, flags_windows_7, unnamed_windows_7};
pub use logs::{Entry, EntryLog, LogKind, log};
pub use settings::{Settings, settings};

use crate::record::Record;

/// Bits of the level: either makes the kernel track pool.
pub const SPECIAL_POOL: u32 = 0x1;
/// Every allocation of a verified driver is tracked, and must be free when it is unloaded.
pub const POOL_TRACKING: u32 = 0x8;

/// The numbers of a structure by the names that the target's own symbols give them, in the structure's order. A
/// version that lacks one does not have it here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(Vec<(String, u64)>);

impl FromIterator<(String, u64)> for Counters {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(counters: I) -> Self {
        Counters(counters.into_iter().collect())
    }
}

impl Counters {
    fn new(record: &Record<'_>, bytes: &[u8]) -> Self {
        Counters(record.numbers().into_iter().map(|(name, member)| (name, member.get(bytes))).collect())
    }

    /// The counter, or `None` if this version has none of that name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// Names and values, in the structure's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}
