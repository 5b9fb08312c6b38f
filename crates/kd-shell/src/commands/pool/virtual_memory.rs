//! `!vm`: how much memory, and how much of it is pool.
//!
//! ```text
//! Physical Memory:          1601266 (    6405064 Kb)
//! NonPagedPool Usage:           227 (        908 Kb)
//! ```
//!
//! Kernels up to 8.1 count in variables that have public names, most newer ones in members that have. Where neither is
//! known, a pool's usage is the sum over all tags.

use std::fmt;

use nt_memory::{PAGE_SIZE, ReadError};
use nt_pool::page_counts::{PageCount, PageCounts};
use nt_pool::tags;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo};
use crate::error::CommandError;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::typed::read_pointer;

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

/// Where a count stands.
enum Place {
    /// A variable of pages.
    Pages(&'static str),
    Bytes(&'static str),
    NonPaged,
    Paged,
}

const LINES: [(&str, Place); 9] = [
    ("Physical Memory", Place::Pages("MmNumberOfPhysicalPages")),
    ("Available Pages", Place::Pages("MmAvailablePages")),
    ("NonPagedPool Usage", Place::NonPaged),
    ("NonPagedPool Max", Place::Pages("MmMaximumNonPagedPoolInPages")),
    ("NonPagedPool Max", Place::Bytes("MmMaximumNonPagedPoolInBytes")),
    ("PagedPool Usage", Place::Paged),
    ("PagedPool Maximum", Place::Bytes("MmSizeOfPagedPoolInBytes")),
    ("PagedPool Commit", Place::Pages("MmPagedPoolCommit")),
    ("Special Pool", Place::Pages("MmSpecialPagesInUse")),
];

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let pool = context.pool(PageCounts::read)?;
    let mut notes = pool.notes.clone();
    let (mut nonpaged, mut paged) = (pool.nonpaged, pool.paged);
    if nonpaged.is_none() || paged.is_none() {
        let report = context.pool(|kernel| tags::read(kernel, &|_| true))?;
        let sum = |of| Some(PageCount { bytes: tags::sum(&report.tags, of), source: "pool tags" });
        nonpaged = nonpaged.or_else(|| sum(|tag| tag.nonpaged));
        paged = paged.or_else(|| sum(|tag| tag.paged));
        notes.extend(report.notes.iter().cloned());
    }
    let kernel = context.kernel()?;
    let width = context.width();
    let symbols = context.session.symbols.nt(kernel)?;
    let mut counts: Vec<Count> = Vec::new();
    for (name, place) in LINES {
        let (variable, unit) = match place {
            Place::Pages(variable) => (variable, PAGE_SIZE),
            Place::Bytes(variable) => (variable, 1),
            Place::NonPaged => {
                counts.extend(nonpaged.map(|count| Count::new(name, count)));
                continue;
            }
            Place::Paged => {
                counts.extend(paged.map(|count| Count::new(name, count)));
                continue;
            }
        };
        let Some(symbol) = symbols.symbol(variable) else { continue };
        let place = width.address(kernel.base().wrapping_add(symbol.rva.into()));
        let value = match read_pointer(kernel.memory(), place, width) {
            Ok(value) => value,
            Err(ReadError::Fault(fault)) => return Err(fault.into()),
            Err(hole) => {
                notes.missing(format!("{variable}: {hole}"));
                continue;
            }
        };
        // One limit in two variables, of which a kernel may keep only one.
        let is_other = value == 0 || counts.iter().any(|count| count.name == name);
        if name != "NonPagedPool Max" || !is_other {
            counts.push(Count::new(name, PageCount { bytes: value.saturating_mul(unit), source: variable }));
        }
    }
    Ok(Reply::with_notes(Usage { counts }, notes))
}

impl Count {
    fn new(name: &'static str, PageCount { bytes, source }: PageCount) -> Self {
        Count { name, pages: bytes.div_ceil(PAGE_SIZE), bytes, source }
    }
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
