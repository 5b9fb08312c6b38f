//! umdh's comparison.
//!
//! ```text
//! + BYTES_DELTA (NEW_BYTES - OLD_BYTES) NEW_COUNT allocs BackTraceID
//! + COUNT_DELTA (NEW_COUNT - OLD_COUNT) BackTraceID allocations
//!         frames
//!
//! Total increase == BYTES
//! ```

use std::fmt;

use crate::check::{CheckReport, Group};
use crate::stack::Skip;

/// Writes the groups, most growth first. Numbers are hexadecimal, as umdh's are, or decimal.
pub fn umdh(report: &CheckReport, skip: &Skip, decimal: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    for group in &report.stacks {
        write_group(group, skip, decimal, out)?;
    }
    if let Some(group) = &report.unattributed {
        write_group(group, skip, decimal, out)?;
    }
    let total: i64 = report.stacks.iter().chain(&report.unattributed).map(|group| group.delta_bytes).sum();
    let sign = if total < 0 { "-" } else { "" };
    writeln!(out, "Total increase == {sign}{}", number(total.unsigned_abs(), decimal))
}

fn number(value: u64, decimal: bool) -> String {
    if decimal { value.to_string() } else { format!("{value:x}") }
}

fn write_group(group: &Group, skip: &Skip, decimal: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    let name = group.id.map_or("BackTrace unknown".into(), |id| id.to_string());
    let change = |delta: i64, now: u64| {
        let sign = if delta < 0 { '-' } else { '+' };
        let old = i128::from(now) - i128::from(delta);
        let old = u64::try_from(old).unwrap_or(0);
        let shown = |value| number(value, decimal);
        format!("{sign} {} ({} - {})", shown(delta.unsigned_abs()), shown(now), shown(old))
    };
    let count = number(group.count, decimal);
    writeln!(out, "{} {count} allocs {name}", change(group.delta_bytes, group.bytes))?;
    writeln!(out, "{} {name} allocations", change(group.delta_count, group.count))?;
    for frame in skip.fold(&group.frames) {
        writeln!(out, "\t{frame}")?;
    }
    if group.id.is_none() {
        writeln!(out, "\tnot in the verifier's log")?;
    }
    writeln!(out)
}
