//! What the system keeps: the list of modules, the tag tables, totals.

use std::collections::HashSet;

use super::{Part, SelfCheck, Subject};
use crate::checks::{Book, Books};
use crate::kernel::Variable;
use crate::page_counts::PageCounts;
use crate::tags::TagReport;
use crate::{Kernel, PoolError, tags};

/// Entries of the list of modules that are looked at.
const MODULES: usize = 1024;

/// Each link forward against the link back of the entry that it leads to.
pub(super) fn modules(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Modules);
    let head = kernel.symbol("PsLoadedModuleList")?;
    let width = u64::from(kernel.pointer_size);
    let pointer = |address| Variable { address: kernel.wrap(address), size: kernel.pointer_size };
    // A quarter of what is left is enough for this list.
    let most = (check.left(kernel) / 4).min(MODULES as u64) as usize;
    let (mut at, mut before, mut seen) = (head, None, HashSet::new());
    let mut books = Books::default();
    loop {
        let mut links = kernel.gather(&[pointer(at), pointer(at.wrapping_add(width))])?.into_iter();
        let next = kernel.wrap(links.next().unwrap_or(Ok(0))?);
        let back = kernel.wrap(links.next().unwrap_or(Ok(0))?);
        if let Some(before) = before {
            books.hold(Book::ModuleLinks, back == before, at);
        }
        if before.is_some() && at == head || !kernel.is_kernel_address(next) {
            break;
        }
        if seen.len() >= most || !seen.insert(at) {
            part.limits.push(format!("of the list the first {} entries were looked at", seen.len()));
            break;
        }
        (before, at) = (Some(at), next);
    }
    part.balance(books);
    check.parts.push(part);
    Ok(())
}

/// Counters that make sense, and their sums against what the kernel has allocated for pool.
pub(super) fn tags(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Tags);
    let (report, rows) = tags::within(kernel, &|_| true, check.left(kernel) / 2)?;
    part.lacks(&report.notes);
    if rows.read < rows.all {
        let tags::Rows { read, all, requests } = rows;
        part.limits.push(format!(
            "the first {read} of {all} rows of each processor's table were read; all of them cost {requests} requests"
        ));
    } else if report.notes.is_complete() {
        totals(&mut part, kernel, &report)?;
    }
    part.checks.extend(report.checks.into_iter().filter(|check| check.name != Book::NonPagedTotal));
    check.parts.push(part);
    Ok(())
}

/// The tags' sums against the memory manager's counts of pages.
fn totals(part: &mut Part, kernel: &Kernel<'_>, report: &TagReport) -> Result<(), PoolError> {
    let counts = PageCounts::read(kernel)?;
    part.lacks(&counts.notes);
    for (book, pool, count, sum) in [
        (Book::NonPagedTotal, "nonpaged", counts.nonpaged, tags::sum(&report.tags, |row| row.nonpaged)),
        (Book::PagedTotal, "paged", counts.paged, tags::sum(&report.tags, |row| row.paged)),
    ] {
        match count {
            Some(count) => part.checks.push(tags::total(book, count.bytes, sum)),
            None => part.limits.push(format!("where this kernel counts pages of {pool} pool is not known")),
        }
    }
    Ok(())
}
