//! Where in the pool the blocks of one tag can be: the target looks for the tag's four bytes itself.
//!
//! A tag lies at one place of a header, headers lie at multiples of their size, and no header crosses a page. So a page
//! without these bytes at such a place holds no block of the tag, and is not read. What is found is no more than a
//! place to look at: freed blocks keep their tags, and the bytes can be anybody's.
//!
//! The target is asked only about pages that are mapped, one run of them at a time: whether its search goes on behind
//! a page that is not there is its own affair. What is in transition or in a page file it cannot see; such pages are
//! read as they are without a search.

use std::ops::Range;

use nt_memory::{Fault, Memory, PAGE_SIZE};

use crate::page_tables::{PageTables, Resident};
use crate::pool_header::Headers;
use crate::search::{Seek, Seeker};
use crate::small_blocks::Area;
use crate::{Kernel, Tag};

/// Areas that lie no further apart are looked up in the page tables together: two requests' worth of entries.
const STRETCH_GAP: u64 = 256 * PAGE_SIZE;

/// Requests that may be spent in vain, on pool that is full of the tag, before it is read without a search.
const PATIENCE: i64 = 64;

/// Asks the target for a tag's bytes.
pub(crate) struct Scout<'s> {
    memory: &'s dyn Memory,
    /// With and without the protected bit.
    keys: [[u8; 4]; 2],
    unit: u64,
    place: u64,
    /// Bytes of memory that one reply carries.
    reply: u64,
    supported: bool,
    /// Requests that searching has saved, less those that it has cost.
    gain: i64,
    /// Requests for the target's search so far.
    pub(crate) requests: u64,
}

impl<'s> Scout<'s> {
    pub(crate) fn new(memory: &'s dyn Memory, headers: &Headers, tag: Tag, reply: u64) -> Self {
        Scout {
            memory,
            keys: [tag.key().to_le_bytes(), tag.protected_bytes()],
            unit: headers.unit,
            place: headers.tag_place(),
            reply: reply.max(1),
            supported: true,
            gain: 0,
            requests: 0,
        }
    }

    /// Whether searching helps at all on this target, for this tag.
    pub(crate) fn is_worth_it(&self) -> bool {
        self.supported && self.gain > -PATIENCE
    }

    /// The pages of a mapped run that have the tag's bytes where a header has its tag. `None`: reading them all is
    /// cheaper, as far as it was searched.
    pub(crate) fn pages(&mut self, run: Range<u64>) -> Result<Option<Vec<u64>>, Fault> {
        let length = run.end - run.start;
        let bulk = length.div_ceil(self.reply);
        if !self.is_worth_it() || bulk <= self.keys.len() as u64 {
            return Ok(None);
        }
        let (count, page_cost) = (length / self.unit, PAGE_SIZE.div_ceil(self.reply));
        let mut seekers = self.keys.map(|key| Seeker {
            table: run.start,
            record: self.unit,
            count,
            place: self.place,
            bytes: key.to_vec(),
            last: None,
        });
        let (mut pages, mut requests, mut from) = (Vec::new(), 0, 0);
        let found = 'search: loop {
            let mut next = None;
            for seeker in &mut seekers {
                match seeker.next(self.memory, from, &mut requests, bulk)? {
                    Seek::None => {}
                    Seek::Record(record) => next = Some(next.map_or(record, |next: u64| next.min(record))),
                    Seek::TooMany => break 'search None,
                    Seek::Unsupported => {
                        self.supported = false;
                        break 'search None;
                    }
                }
            }
            let Some(record) = next else { break Some(pages) };
            let page = (run.start + record * self.unit) & !(PAGE_SIZE - 1);
            pages.push(page);
            if requests + pages.len() as u64 * page_cost >= bulk {
                break None;
            }
            from = (page + PAGE_SIZE).saturating_sub(run.start) / self.unit;
            if from >= count {
                break Some(pages);
            }
        };
        let reads = found.as_ref().map_or(bulk, |pages| pages.len() as u64 * page_cost);
        self.gain = self.gain.saturating_add_unsigned(bulk).saturating_sub_unsigned(requests + reads);
        self.requests += requests;
        Ok(found)
    }
}

/// A run of pages, and whether all of it is mapped; what is neither mapped nor in memory nor in a page file is in none.
pub(crate) type Part = (Range<u64>, bool);

/// Which pages of the places of pool are mapped.
pub(crate) enum Mapping<'m> {
    /// All that there is of the places, but for these runs, which are in transition.
    But(&'m [Range<u64>]),
    /// The page tables are asked about one stretch after the other; `None`: they did not tell.
    Asked { tables: Box<PageTables<'m>>, stretches: Vec<Range<u64>>, last: Option<(Range<u64>, Option<Resident>)> },
}

impl<'m> Mapping<'m> {
    /// For places that a heap's own books tell; they are in the order of their addresses.
    pub(crate) fn asked<'a>(
        kernel: &'m Kernel<'m>,
        areas: impl Iterator<Item = &'a Area>,
    ) -> Result<Option<Mapping<'m>>, Fault> {
        let tables = match PageTables::new(kernel) {
            Ok(tables) => Box::new(tables),
            Err(error) => {
                error.local()?;
                return Ok(None);
            }
        };
        Ok(Some(Mapping::Asked { tables, stretches: stretches(areas), last: None }))
    }

    /// The parts of a range as far as they are known without asking.
    pub(crate) fn of(&self, range: &Range<u64>) -> Vec<Part> {
        match self {
            Mapping::But(transition) => split(std::slice::from_ref(range), transition, &[], range),
            Mapping::Asked { .. } => vec![(range.clone(), true)],
        }
    }

    /// The parts of a range that lies in one place, in order. `None`: not known.
    pub(crate) fn parts(&mut self, range: &Range<u64>) -> Result<Option<Vec<Part>>, Fault> {
        let (tables, stretches, last) = match self {
            Mapping::But(_) => return Ok(Some(self.of(range))),
            Mapping::Asked { tables, stretches, last } => (tables, stretches, last),
        };
        let index = stretches.partition_point(|stretch| stretch.end <= range.start);
        let Some(stretch) = stretches.get(index).filter(|stretch| stretch.start <= range.start) else {
            return Ok(None);
        };
        if last.as_ref().is_none_or(|(known, _)| known != stretch) {
            let resident = tables.resident(stretch.clone())?;
            *last = Some((stretch.clone(), Some(resident).filter(|resident| resident.notes.is_complete())));
        }
        let Some((_, Some(resident))) = last else { return Ok(None) };
        Ok(Some(split(&resident.runs, &resident.transition, &resident.out, range)))
    }
}

/// Areas in runs that the page tables are asked about together.
pub(crate) fn stretches<'a>(areas: impl Iterator<Item = &'a Area>) -> Vec<Range<u64>> {
    let mut stretches: Vec<Range<u64>> = Vec::new();
    for area in areas {
        match stretches.last_mut() {
            Some(last) if area.address.saturating_sub(last.end) <= STRETCH_GAP => last.end = last.end.max(area.end()),
            _ => stretches.push(area.address..area.end()),
        }
    }
    stretches
}

fn split(runs: &[Range<u64>], transition: &[Range<u64>], out: &[Range<u64>], range: &Range<u64>) -> Vec<Part> {
    let mut parts = Vec::new();
    for run in within(runs, range) {
        let mut at = run.start;
        for moved in within(transition, &run) {
            parts.push((at..moved.start, true));
            at = moved.end;
            parts.push((moved, false));
        }
        parts.push((at..run.end, true));
    }
    parts.extend(within(out, range).map(|run| (run, false)));
    parts.retain(|(part, _)| !part.is_empty());
    parts.sort_by_key(|(part, _)| part.start);
    parts
}

/// What of ascending runs lies in a range.
fn within<'r>(runs: &'r [Range<u64>], range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'r> {
    let range = range.clone();
    let first = runs.partition_point(|run| run.end <= range.start);
    let inside = runs[first..].iter().take_while({
        let end = range.end;
        move |run| run.start < end
    });
    inside.map(move |run| run.start.max(range.start)..run.end.min(range.end))
}
