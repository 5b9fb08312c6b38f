//! What the memory manager counts in pages: pool, and pages that are of no pool.

use nt_memory::PAGE_SIZE;

use crate::kernel::Variable;
use crate::{Kernel, Notes, PoolError};

/// One count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCount {
    /// Whole pages, in bytes; never 0.
    pub bytes: u64,
    /// The kernel's variable that holds it, or that leads to it.
    pub source: &'static str,
}

/// The counts of one kernel; `None` where it has neither a variable nor members of a public name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Nonpaged pool in use.
    pub nonpaged: Option<PageCount>,
    /// Paged pool in use.
    pub paged: Option<PageCount>,
    /// Allocated by MmAllocatePagesForMdl.
    pub mdl: Option<PageCount>,
    /// What could not be read.
    pub notes: Notes,
}

/// Windows 10 and later keep their counts in one variable, an `_MI_SYSTEM_INFORMATION`.
const STATE: &str = "MiState";

/// A pointer to the part of [`STATE`] that others may see, a `_MI_VISIBLE_STATE`.
const VISIBLE: &str = "MiVisibleState";

/// Up to 8.1.
const NONPAGED: &str = "MmAllocatedNonPagedPool";

/// Bytes of nonpaged pool, where one request tells them: later kernels cost more, and a self-check asks for them.
pub(crate) fn nonpaged_variable(kernel: &Kernel<'_>) -> Result<Option<u64>, PoolError> {
    let count = PageCounts::default().variable(kernel, NONPAGED, &[])?;
    Ok(count.map(|count| count.bytes))
}

impl PageCounts {
    /// Reads them: a request for each variable that is not near another, and on Windows 10 and later up to four.
    ///
    /// Folklore: the variables of Windows 7 are gone in Windows 10 (10.0.14393 to 22000, by the public symbol tables of
    /// those kernels); the members have the variables' old names without `Mm`. Example: 19045's symbols place the later
    /// members of `MiState` 0x40 bytes too low (peer-facts 0, 10). What lies behind its first member is therefore read
    /// through `MiVisibleState`.
    ///
    /// # Errors
    ///
    /// The source is gone, or the user does not want to wait.
    pub fn read(kernel: &Kernel<'_>) -> Result<PageCounts, PoolError> {
        const PAGED: (&str, &str) = ("_MM_PAGED_POOL_INFO", "AllocatedPagedPool");
        let mut counts = PageCounts::default();
        counts.nonpaged = counts.variable(kernel, NONPAGED, &[])?;
        counts.paged = counts.variable(kernel, "MmPagedPoolInfo", &[PAGED])?;
        counts.mdl = counts.variable(kernel, "MmMdlPagesAllocated", &[])?;
        if counts.nonpaged.is_none() {
            let path = [("_MI_SYSTEM_INFORMATION", "Pools"), ("_MI_POOL_STATE", "AllocatedNonPagedPool")];
            counts.nonpaged = counts.variable(kernel, STATE, &path)?;
        }
        if counts.paged.is_some() && counts.mdl.is_some() {
            return Ok(counts);
        }
        let Ok(visible) = kernel.pointer_variable(VISIBLE) else { return Ok(counts) };
        let visible = match kernel.gather(&[visible])?.remove(0) {
            Ok(at) => kernel.wrap(at),
            Err(hole) => {
                counts.notes.missing(format!("{VISIBLE}: {hole}"));
                return Ok(counts);
            }
        };
        if !kernel.is_kernel_address(visible) {
            counts.notes.missing(format!("{VISIBLE} is {visible:016x}, where the kernel has no memory"));
            return Ok(counts);
        }
        if counts.paged.is_none() {
            counts.paged = counts.at(kernel, VISIBLE, visible, &[("_MI_VISIBLE_STATE", "PagedPoolInfo"), PAGED])?;
        }
        if counts.mdl.is_none() {
            counts.mdl = counts.at(kernel, VISIBLE, visible, &[("_MI_VISIBLE_STATE", "MdlPagesAllocated")])?;
        }
        Ok(counts)
    }

    fn variable(
        &mut self,
        kernel: &Kernel<'_>,
        name: &'static str,
        path: &[(&str, &str)],
    ) -> Result<Option<PageCount>, PoolError> {
        match kernel.find_symbol(name) {
            Some(start) => self.at(kernel, name, start, path),
            None => Ok(None),
        }
    }

    /// The count at the end of a path of members from `start`.
    fn at(
        &mut self,
        kernel: &Kernel<'_>,
        source: &'static str,
        start: u64,
        path: &[(&str, &str)],
    ) -> Result<Option<PageCount>, PoolError> {
        let step =
            |at: u64, (ty, member): &(&str, &str)| Some(at.wrapping_add(kernel.layout(ty).ok()?.field(member)?.offset));
        let Some(address) = path.iter().try_fold(start, step) else { return Ok(None) };
        let variable = Variable { address: kernel.wrap(address), size: kernel.pointer_size };
        match kernel.gather(&[variable])?.remove(0) {
            // A kernel without any pool does not run: 0 is kept by one that counts elsewhere.
            Ok(pages) => Ok(Some(PageCount { bytes: pages.saturating_mul(PAGE_SIZE), source }).filter(|_| pages > 0)),
            Err(hole) => {
                self.notes.missing(format!("{source}: {hole}"));
                Ok(None)
            }
        }
    }
}
