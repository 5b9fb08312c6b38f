//! Books of the kernel's that were balanced, in JSON.

use nt_pool::Notes;
use nt_pool::checks::{Book, Check, doubt};
use schemars::JsonSchema;
use serde::Serialize;

/// A book of the kernel's that was balanced: docs/selfcheck.md has the names.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub(in crate::commands) struct Balance {
    name: &'static str,
    expected: u64,
    found: u64,
    ok: bool,
}

impl Balance {
    /// Each book with its numbers. What differs is said in one line: by a proven rule it is missing from the answer, and
    /// the rules that nobody has proved are remarks where the answer itself shows their numbers (`shown`).
    pub(in crate::commands) fn all(checks: &[Check], shown: &[Book], notes: &mut Notes) -> Vec<Balance> {
        doubt(checks, notes);
        for check in checks.iter().filter(|check| !check.ok && shown.contains(&check.name)) {
            notes.remark(format!("the books do not balance, by a rule that nobody has proved: {check}"));
        }
        checks.iter().map(Balance::from).collect()
    }
}

impl From<&Check> for Balance {
    fn from(check: &Check) -> Self {
        Self { name: check.name.name(), expected: check.expected, found: check.found, ok: check.ok }
    }
}
