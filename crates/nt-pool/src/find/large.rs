//! The machine's large allocations, and how many allocations of the tag the kernel counts.

use std::ops::Range;

use nt_memory::Fault;

use super::{Place, Question};
use crate::big_pages::{self, BigPage};
use crate::{Kernel, Lack, Missing, Notes, PoolError, tags};

/// What a search came upon so far. What cannot be read is a note, and the rest goes on.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) table: Range<u64>,
    pub(super) large: Vec<BigPage>,
    /// The whole table, if it was read.
    pub(super) whole: Option<Vec<BigPage>>,
    /// How many allocations of the tag the kernel counts, nonpaged and paged.
    pub(super) counted: Option<[i64; 2]>,
    pub(super) notes: Notes,
    /// Why a piece has no answer at all.
    pub(super) failures: Vec<PoolError>,
    /// Some piece has one.
    pub(super) answered: bool,
    pub(super) stopped: Option<Place>,
}

impl Found {
    /// Keeps a failed piece from failing the others; a source that is gone stays an error.
    fn take<T>(&mut self, what: &str, result: Result<T, PoolError>) -> Result<Option<T>, PoolError> {
        let taken = self.look(what, result)?;
        self.answered |= taken.is_some();
        Ok(taken)
    }

    /// The same for what helps with an answer and is none itself.
    fn look<T>(&mut self, what: &str, result: Result<T, PoolError>) -> Result<Option<T>, PoolError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let error = error.local()?;
                self.notes.missing(format!("{what}: {error}"));
                self.failures.push(error);
                Ok(None)
            }
        }
    }

    /// As [`Found::look`]; a piece that the user stops is where the search is stopped.
    pub(super) fn piece<T>(
        &mut self,
        what: &str,
        place: Place,
        result: Result<T, PoolError>,
    ) -> Result<Option<T>, PoolError> {
        match self.look(what, result) {
            Err(PoolError::Fault(Fault::Cancelled)) => {
                self.notes.missing(Missing::because(Lack::Stopped, "interrupted").at(place.address));
                self.stopped = Some(place);
                Ok(None)
            }
            taken => taken,
        }
    }

    /// Reads the table for the tag, or learns where it lies only.
    pub(super) fn read_large(&mut self, kernel: &Kernel<'_>, question: &Question) -> Result<(), PoolError> {
        let tag = &question.tag;
        if !question.wants_large() {
            let table = self.look("the table of large allocations is not known", big_pages::table(kernel))?;
            self.table = table.unwrap_or(0..0);
            return Ok(());
        }
        let read = match tag.exact() {
            Some(tag) => big_pages::find(kernel, tag),
            None => big_pages::read(kernel, &|_| true),
        };
        let Some(found) = self.take("large allocations are missing", read)? else { return Ok(()) };
        self.table = found.table;
        self.notes.extend(found.notes);
        if tag.exact().is_none() {
            self.whole = Some(found.blocks.clone());
        }
        self.large = found.blocks.into_iter().filter(|block| tag.matches(block.tag)).collect();
        self.counted = if question.free { None } else { counted(kernel, question)? };
        Ok(())
    }

    /// Whether the pools asked for have no more of the tag than the large allocations that were found.
    pub(super) fn has_all(&self, question: &Question) -> bool {
        let kinds = question.kinds();
        self.counted.is_some_and(|counted| {
            let all = |paged: bool| counted[usize::from(paged)] == self.live(paged);
            (!kinds.nonpaged || all(false)) && (!kinds.paged || all(true))
        })
    }

    /// Large allocations in use.
    fn live(&self, paged: bool) -> i64 {
        let live = self.large.iter().filter(|block| !block.free && block.kind.is_paged() == paged);
        i64::try_from(live.count()).unwrap_or(i64::MAX)
    }

    /// How many small blocks the tag has, as far as the kernel's count is known.
    pub(super) fn expected(&self) -> u64 {
        let small = |counted: [i64; 2]| {
            let [nonpaged, paged] = counted;
            nonpaged.saturating_sub(self.live(false)).saturating_add(paged.saturating_sub(self.live(true)))
        };
        self.counted.map_or(0, |counted| u64::try_from(small(counted)).unwrap_or(0))
    }

    /// What lies in large allocations has no headers.
    pub(super) fn whole(&mut self, kernel: &Kernel<'_>) -> Result<&[BigPage], PoolError> {
        if self.whole.is_none() {
            let read = big_pages::read(kernel, &|_| true);
            let pages = self.look("what belongs to large allocations is not known", read)?;
            self.whole = Some(pages.map_or(Vec::new(), |pages| {
                self.notes.extend(pages.notes);
                pages.blocks
            }));
        }
        Ok(self.whole.as_deref().unwrap_or_default())
    }
}

/// How many allocations of the tag the kernel counts, nonpaged and paged, if its counters can be read.
fn counted(kernel: &Kernel<'_>, question: &Question) -> Result<Option<[i64; 2]>, PoolError> {
    let counted = match question.tag.exact() {
        Some(tag) => tags::read_one(kernel, tag),
        None => tags::read(kernel, &|tag| question.tag.matches(tag)),
    };
    let counted = match counted {
        Ok(counted) if counted.notes.is_complete() && !counted.tags.is_empty() => counted,
        Ok(_) => return Ok(None),
        Err(error) => {
            error.local()?;
            return Ok(None);
        }
    };
    let sum = |paged: bool| {
        let usage = counted.tags.iter().map(|tag| if paged { tag.paged } else { tag.nonpaged });
        usage.map(|usage| usage.diff).fold(0, i64::wrapping_add)
    };
    Ok(Some([sum(false), sum(true)]))
}
