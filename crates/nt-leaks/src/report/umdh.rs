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
    // A report may come from a file, with any numbers in it.
    let groups = report.stacks.iter().chain(&report.unattributed);
    let total = groups.fold(0i64, |sum, group| sum.saturating_add(group.delta_bytes));
    let sign = if total < 0 { "-" } else { "" };
    writeln!(out, "Total increase == {sign}{}", number(total.unsigned_abs(), decimal))
}

/// Writes what there is by stack, most bytes first, as umdh lists one snapshot.
///
/// ```text
/// 00005320 bytes in 0x14 allocations by: BackTraceID
///         frames
/// ```
pub fn umdh_snapshot(report: &CheckReport, skip: &Skip, decimal: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    for group in report.stacks.iter().chain(&report.unattributed) {
        let name = name(group);
        match decimal {
            true => writeln!(out, "{} bytes in {} allocations by: {name}", group.bytes, group.count)?,
            false => writeln!(out, "{:08x} bytes in {:#x} allocations by: {name}", group.bytes, group.count)?,
        }
        write_frames(group, skip, out)?;
    }
    Ok(())
}

fn name(group: &Group) -> String {
    group.id.map_or("BackTrace unknown".into(), |id| id.to_string())
}

fn write_frames(group: &Group, skip: &Skip, out: &mut dyn fmt::Write) -> fmt::Result {
    for frame in skip.fold(&group.frames) {
        writeln!(out, "\t{frame}")?;
    }
    if group.id.is_none() {
        writeln!(out, "\tnot in the verifier's log")?;
    }
    writeln!(out)
}

fn number(value: u64, decimal: bool) -> String {
    if decimal { value.to_string() } else { format!("{value:x}") }
}

fn write_group(group: &Group, skip: &Skip, decimal: bool, out: &mut dyn fmt::Write) -> fmt::Result {
    let name = name(group);
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
    write_frames(group, skip, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, flame_graph, folded};
    use crate::stack::{Frame, Stacks};

    fn report() -> CheckReport {
        let frame = |module: &str, offset: u64, symbol: Option<&str>| Frame {
            address: offset,
            module: Some(module.into()),
            offset,
            symbol: symbol.map(String::from),
        };
        let frames = vec![
            frame("nt", 0x50bcc6, Some("VeAllocatePoolWithTagPriority+0x2b6")),
            frame("my<fault>", 0x11f6, None),
            frame("nt", 0x516750, Some("IovCallDriver+0xa0")),
        ];
        let id = Stacks::default().add(frames.clone());
        let group = |id, frames, bytes, count, delta_bytes, delta_count| Group {
            id,
            bytes,
            count,
            delta_bytes,
            delta_count,
            frames,
        };
        CheckReport {
            mark: "m<1>".into(),
            elapsed_ms: 5000,
            stacks: vec![group(Some(id), frames, 0xf110, 0x3a, 0x5320, 0x14)],
            unattributed: Some(group(None, Vec::new(), 0x10, 1, -0x20, -2)),
            ..CheckReport::default()
        }
    }

    #[test]
    fn the_format_is_umdhs() {
        let mut text = String::new();
        umdh(&report(), &Skip::default(), false, &mut text).unwrap();
        let id = report().stacks[0].id.unwrap();
        assert_eq!(
            text,
            format!(
                "+ 5320 (f110 - 9df0) 3a allocs {id}\n+ 14 (3a - 26) {id} allocations\n\tmy<fault>+0x11f6\n\
                 \tnt!IovCallDriver+0xa0\n\n- 20 (10 - 30) 1 allocs BackTrace unknown\n- 2 (1 - 3) BackTrace unknown \
                 allocations\n\tnot in the verifier's log\n\nTotal increase == 5300\n"
            )
        );
        let mut decimal = String::new();
        umdh(&report(), &Skip::default(), true, &mut decimal).unwrap();
        assert!(decimal.starts_with("+ 21280 (61712 - 40432) 58 allocs "), "{decimal}");
    }

    /// Names come from the target: in a picture they are text.
    #[test]
    fn graphs_quote_what_they_show() {
        let report = report();
        assert_eq!(
            folded(&report, Column::Bytes, &Skip::default()),
            "nt!IovCallDriver+0xa0;my<fault>+0x11f6 61712\n(not in the verifier's log) 16\n"
        );
        let svg = flame_graph(&report, Column::Difference, &Skip::default());
        assert!(svg.contains("my&lt;fault&gt;+0x11f6: 21280") && !svg.contains("<fault>"), "{svg}");
        assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
    }
}
