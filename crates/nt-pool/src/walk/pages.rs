//! Pages of the classic pool, end to end with headers.

use nt_memory::{Fault, PAGE_SIZE, Sparse};

use crate::pool_header::Break;
use crate::small_blocks::{Area, BlockKind, BlockState};
use crate::walk::{Large, Walk};

impl Walk<'_> {
    pub(super) fn pages(&mut self, area: &Area, bytes: &Sparse) -> Result<(), Fault> {
        let size = PAGE_SIZE as usize;
        for offset in (0..bytes.bytes.len()).step_by(size) {
            let at = bytes.address.wrapping_add(offset as u64);
            let range = at..at.saturating_add(PAGE_SIZE);
            // The table of large allocations is asked first only if it was read already.
            let asked = !matches!(self.large, Large::Unread);
            if asked && self.is_large(range.clone())? {
                continue;
            }
            let first = self.blocks.len();
            let problems = match bytes.get(offset, size) {
                Some(page) => self.page(area, at, page),
                None => vec![format!("the pool page at {at:016x} could not be read")],
            };
            self.pool_pages.0 += 1;
            if self.blocks.len() == first && problems.is_empty() {
                continue;
            }
            if !asked && self.is_large(range)? {
                self.blocks.truncate(first);
                continue;
            }
            for problem in problems {
                self.damaged.add(|| problem);
            }
        }
        Ok(())
    }

    /// One page of the classic pool; says what is damaged. Behind a damaged header the chain is taken up again where it
    /// can be.
    fn page(&mut self, area: &Area, at: u64, page: &[u8]) -> Vec<String> {
        let headers = &self.formats.headers;
        let paged = area.pool.is_paged();
        let first = self.blocks.len();
        let (mut decoded, mut plausible) = (0, true);
        // Headers of free blocks, of those in use, and of these with a tag that can be typed.
        let (mut free, mut in_use, mut typed) = (0, 0, 0);
        let mut all = 0;
        let (mut start, mut before) = (0, 0);
        let mut broken_at = Vec::new();
        // A page has no more places to break at than headers.
        'parts: while broken_at.len() < page.len() / headers.unit as usize {
            let mut last = None;
            for (offset, header) in headers.chain_from(page, start, before) {
                let broken = match header {
                    Ok(header) => {
                        decoded += 1;
                        let is_typed = header.tag().0.is_typed();
                        plausible &= is_typed && header.is_of(paged);
                        all += 1;
                        free += u64::from(header.pool_type == 0);
                        in_use += u64::from(header.is_in_use());
                        typed += u64::from(header.is_in_use() && is_typed);
                        last = Some((offset, self.blocks.len()));
                        let state = if header.pool_type != 0 { BlockState::Allocated } else { BlockState::Free };
                        self.add(area, at.wrapping_add(offset), header, state, BlockKind::Page);
                        continue;
                    }
                    Err(broken) => broken,
                };
                let what = broken.describe(at.wrapping_add(offset));
                // Only what it says of the block before may be wrong, or that block's size, or all of this header.
                let alone = match broken {
                    Break::PreviousSize { given, .. } => {
                        headers.whole(page, offset, given, paged).map(|count| (offset, given, count))
                    }
                    Break::NoRoom | Break::BlockSize(_) => None,
                };
                let resume = |damaged: u64| {
                    let (next, count) = headers.resume(page, damaged, paged)?;
                    Some((next, next - damaged, count))
                };
                let (damaged, resumed) = match (alone, last) {
                    (Some(alone), _) => (offset, Some(alone)),
                    (None, Some((before, kept))) if !matches!(broken, Break::BlockSize(0)) => match resume(before) {
                        Some(resumed) => {
                            self.blocks.truncate(kept);
                            decoded -= 1;
                            (before, Some(resumed))
                        }
                        None => (offset, resume(offset)),
                    },
                    (None, _) => (offset, resume(offset)),
                };
                // A damaged header that otherwise looks like one speaks for the page, too.
                let itself = headers.at(page, damaged).is_some_and(|header| header.is_plausible(paged));
                let resumed = resumed.filter(|(next, _, count)| {
                    plausible && decoded + count + usize::from(itself && *next != damaged) >= 2
                });
                let missing = match resumed {
                    Some((next, ..)) if next == damaged => "",
                    Some(_) => "; that block is missing",
                    None => "; the rest of its page is missing",
                };
                broken_at.push(format!("the header at {:016x} is damaged: {what}{missing}", at.wrapping_add(damaged)));
                let Some((next, size, _)) = resumed else { break 'parts };
                (start, before, decoded) = (next, size, decoded.max(2));
                continue 'parts;
            }
            break;
        }
        // Free pages and pages of other use can look like the start of a chain.
        if !broken_at.is_empty() && (decoded < 2 || !plausible) {
            self.blocks.truncate(first);
            return Vec::new();
        }
        self.pool_pages.1 += u64::from(decoded > 0);
        let types = &mut self.pool_types;
        *types = (types.0 + all, types.1 + free + in_use, types.2 + in_use);
        self.tags = (self.tags.0 + in_use, self.tags.1 + typed);
        broken_at
    }
}
