//! `!vm`: how much memory, and how much of it is pool.
//!
//! ```text
//! Physical Memory:          1601266 (    6405064 Kb)
//! NonPagedPool Usage:           227 (        908 Kb)
//! ```
//!
//! Kernels up to 8.1 count in variables that have public names. Newer ones keep these counts in structures without
//! public types: there the pool's usage is the sum over all tags.

use std::fmt;

use nt_memory::{PAGE_SIZE, ReadError};
use nt_pool::{Notes, tags};
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::typed::{offset_of, read_pointer};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!vm"],
    usage: "!vm [flags]",
    help: "show how much memory and pool is in use",
    details: "Only the lines about memory and pool: the flags, which choose among the others, change nothing. A pool \
              that uses more\nthan nine tenths of what it may is called excessive.",
    results: &[ResultShape::of::<Usage>("vm")],
    action: Action::Answer(run),
};

#[derive(JsonSchema, Serialize)]
struct Usage {
    counts: Vec<Count>,
}

#[derive(JsonSchema, Serialize)]
struct Count {
    name: &'static str,
    pages: u64,
    bytes: u64,
    /// The kernel's variable, or how else it was found.
    source: &'static str,
}

/// Label, variable, whether it counts bytes.
const VARIABLES: [(&str, &str, bool); 9] = [
    ("Physical Memory", "MmNumberOfPhysicalPages", false),
    ("Available Pages", "MmAvailablePages", false),
    ("NonPagedPool Usage", "MmAllocatedNonPagedPool", false),
    ("NonPagedPool Max", "MmMaximumNonPagedPoolInPages", false),
    ("NonPagedPool Max", "MmMaximumNonPagedPoolInBytes", true),
    ("PagedPool Usage", "MmPagedPoolInfo", false),
    ("PagedPool Maximum", "MmSizeOfPagedPoolInBytes", true),
    ("PagedPool Commit", "MmPagedPoolCommit", false),
    ("Special Pool", "MmSpecialPagesInUse", false),
];

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let kernel = context.kernel()?;
    let width = context.width();
    let symbols = context.session.symbols.nt(kernel)?;
    let mut notes = Notes::default();
    let mut totals = None;
    let mut counts = Vec::new();
    for (name, variable, in_bytes) in VARIABLES {
        let place = symbols.symbol(variable).map(|symbol| width.address(kernel.base().wrapping_add(symbol.rva.into())));
        let place = match variable {
            "MmPagedPoolInfo" => {
                let offset = offset_of(symbols.as_ref(), "_MM_PAGED_POOL_INFO", "AllocatedPagedPool");
                place.zip(offset).map(|(place, offset)| place.wrapping_add(offset))
            }
            _ => place,
        };
        let value = match place.map(|place| read_pointer(kernel.memory(), place, width)) {
            Some(Ok(value)) => Some(value),
            Some(Err(ReadError::Fault(fault))) => return Err(fault.into()),
            Some(Err(hole)) => {
                notes.missing(format!("{variable}: {hole}"));
                None
            }
            None => None,
        };
        let is_usage = matches!(name, "NonPagedPool Usage" | "PagedPool Usage");
        // One limit in two variables, of which a kernel may keep only one.
        if name == "NonPagedPool Max" && (value == Some(0) || counts.iter().any(|count: &Count| count.name == name)) {
            continue;
        }
        let count = match value {
            // A kernel without any pool does not run: the variable is not kept.
            Some(value) if value > 0 || !is_usage => {
                let bytes = if in_bytes { value } else { value.saturating_mul(PAGE_SIZE) };
                Some(Count { name, pages: bytes / PAGE_SIZE, bytes, source: variable })
            }
            _ if is_usage => {
                let (nonpaged, paged) = match totals {
                    Some(totals) => totals,
                    None => {
                        let report = context.pool(|kernel| tags::read(kernel, &|_| true))?;
                        let sum =
                            |of: fn(&tags::TagUsage) -> u64| report.tags.iter().map(of).fold(0, u64::saturating_add);
                        notes.extend(report.notes.iter().cloned());
                        *totals.insert((sum(|tag| tag.nonpaged.bytes), sum(|tag| tag.paged.bytes)))
                    }
                };
                let bytes = if name == "PagedPool Usage" { paged } else { nonpaged };
                Some(Count { name, pages: bytes.div_ceil(PAGE_SIZE), bytes, source: "pool tags" })
            }
            _ => None,
        };
        counts.extend(count);
    }
    Ok(Reply::with_notes(Usage { counts }, notes))
}

impl Text for Usage {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for Count { name, pages, bytes, .. } in &self.counts {
            let rest = 32 - name.len().min(31);
            writeln!(out, "{name}:{pages:>rest$} ({:>11} Kb)", bytes / 1024)?;
            for (_, usage, pool) in LIMITS.iter().filter(|(limit, ..)| limit == name) {
                let usage = self.counts.iter().find(|count| count.name == *usage);
                if usage.is_some_and(|usage| *bytes > 0 && usage.bytes / 9 > bytes / 10) {
                    writeln!(out, "********** Excessive {pool} Pool Usage *****")?;
                }
            }
        }
        Ok(())
    }
}

/// What a pool may use at most, what it uses, its name.
const LIMITS: [(&str, &str, &str); 2] =
    [("NonPagedPool Max", "NonPagedPool Usage", "NonPaged"), ("PagedPool Maximum", "PagedPool Usage", "Paged")];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(counts: &[(&'static str, u64)]) -> String {
        let count = |&(name, pages)| Count { name, pages, bytes: pages * PAGE_SIZE, source: "" };
        let mut text = String::new();
        Usage { counts: counts.iter().map(count).collect() }.text(&mut text).unwrap();
        text
    }

    /// kd-ux 3.6.
    #[test]
    fn the_samples() {
        assert_eq!(
            text(&[("Physical Memory", 1601266), ("NonPagedPool Usage", 227), ("NonPagedPoolNx Usage", 31727)]),
            "Physical Memory:          1601266 (    6405064 Kb)
NonPagedPool Usage:           227 (        908 Kb)
NonPagedPoolNx Usage:       31727 (     126908 Kb)
"
        );
    }

    #[test]
    fn a_pool_that_is_nearly_full_is_told() {
        let told = "********** Excessive NonPaged Pool Usage *****\n";
        assert!(text(&[("NonPagedPool Usage", 950), ("NonPagedPool Max", 1000)]).ends_with(told));
        assert!(!text(&[("NonPagedPool Usage", 890), ("NonPagedPool Max", 1000)]).contains("Excessive"));
        assert!(!text(&[("PagedPool Usage", 10), ("PagedPool Maximum", 0)]).contains("Excessive"));
    }
}
