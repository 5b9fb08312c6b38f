//! What the system keeps: the list of modules, the tag tables, totals.

use std::collections::HashSet;

use nt_memory::PAGE_SIZE;

use super::{Part, SelfCheck, Subject, one};
use crate::checks::{Book, Books};
use crate::kernel::Variable;
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

/// Rows that make sense, and their sums against what the kernel has allocated for pool.
pub(super) fn tags(check: &mut SelfCheck, kernel: &Kernel<'_>) -> Result<(), PoolError> {
    let mut part = Part::new(Subject::Tags);
    let report = tags::read(kernel, &|_| true)?;
    part.lacks(&report.notes);
    let mut books = Books::default();
    let (mut nonpaged, mut paged) = (0u64, 0u64);
    for row in &report.tags {
        for usage in [row.nonpaged, row.paged] {
            // A tag without blocks has no bytes, and a block has some.
            let sound = usage.diff >= 0 && (usage.diff == 0) == (usage.bytes == 0) || usage.bytes > 0 && usage.diff > 0;
            books.hold(Book::TagRows, sound, 0);
        }
        nonpaged = nonpaged.saturating_add(row.nonpaged.bytes);
        paged = paged.saturating_add(row.paged.bytes);
    }
    part.balance(books);
    if report.notes.is_complete() {
        let totals = [(Book::NonPagedTotal, "MmAllocatedNonPagedPool", nonpaged)];
        for (book, variable, sum) in totals {
            match pages(kernel, variable)? {
                // A kernel without any pool does not run: the variable is not kept.
                None | Some(0) => part.limits.push(format!("this kernel has no nt!{variable} to compare with")),
                Some(pages) => {
                    let mut total = one(book, pages.saturating_mul(PAGE_SIZE), sum, 0);
                    // What tags count lies in these pages, and fills them never.
                    total.ok = total.found <= total.expected;
                    part.checks.push(total);
                }
            }
        }
    }
    check.parts.push(part);
    Ok(())
}

fn pages(kernel: &Kernel<'_>, name: &str) -> Result<Option<u64>, PoolError> {
    let Ok(variable) = kernel.pointer_variable(name) else { return Ok(None) };
    Ok(kernel.gather(&[variable])?.remove(0).ok())
}
