//! Books of the kernel's that were balanced, in JSON.

use nt_pool::Check;
use serde::Serialize;

/// A book of the kernel's that was balanced: docs/selfcheck.md has the names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::commands) struct Balance {
    name: &'static str,
    expected: u64,
    found: u64,
    ok: bool,
}

impl From<&Check> for Balance {
    fn from(check: &Check) -> Self {
        Self { name: check.name.name(), expected: check.expected, found: check.found, ok: check.ok }
    }
}
