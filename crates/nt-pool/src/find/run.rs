//! The dear part of a question: small blocks, in the machine's pool and in the sessions' own.

use nt_memory::Through;

use super::books::tag_counters;
use super::quote::Way;
use super::sessions::InSessions;
use super::{Block, Bounds, Findings, Place, Pool, Quote, Searched, Sizes, Skipped};
use crate::allowance::Allowance;
use crate::checks::{Check, doubt};
use crate::small_blocks::{self, Blocks, Cost, Limits};
use crate::{Kernel, PoolError, sessions};

/// Who wants to know how far a search is.
pub trait Observer {
    /// The pool of one more session is looked at.
    fn session(&mut self, id: u32);
}

/// For whoever does not want to know.
pub struct Silent;

impl Observer for Silent {
    fn session(&mut self, _: u32) {}
}

const EVERYTHING: Cost = Cost { requests: u64::MAX, bytes: u64::MAX };

impl Quote {
    /// Searches what is to be searched.
    pub fn run(
        mut self,
        kernel: &Kernel<'_>,
        bounds: Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Findings, PoolError> {
        let mut limits =
            Limits { bytes: self.allowed(kernel, bounds), from: self.question.start(), ..Limits::default() };
        let small = self.small(kernel, limits)?;
        let searched_machine = small.is_some();
        let small = small.unwrap_or_default();
        limits.bytes = limits.bytes.saturating_sub(small.read);
        limits.blocks = limits.blocks.saturating_sub(small.blocks.len());
        limits.from = 0;
        let skips_small = self.counted && self.plan.is_none();
        let mut skipped = Vec::new();
        let mut in_sessions = None;
        if self.question.wants_sessions() && !skips_small && self.found.stopped.is_none() {
            in_sessions = self.sessions(kernel, limits, observer)?;
            skipped.extend(in_sessions.is_none().then_some(Skipped::Sessions));
        }
        skipped.extend(skips_small.then_some(Skipped::Counted));
        let searched_small = searched_machine || in_sessions.is_some() && self.question.sizes != Sizes::Large;
        // A search that the user ended has an answer: how far it came.
        if !self.found.answered
            && self.found.stopped.is_none()
            && let Some(error) = self.found.failures.pop()
        {
            return Err(error);
        }
        let blocks = self.blocks(kernel, &small, &in_sessions.unwrap_or_default())?;
        let checks = self.checks(&small, searched_machine);
        Ok(self.findings(blocks, checks, skipped, searched_small))
    }

    /// The small blocks of the machine as a whole; `None` when they were not looked for, or there is no answer.
    fn small(&mut self, kernel: &Kernel<'_>, limits: Limits) -> Result<Option<Blocks>, PoolError> {
        let Some(plan) = &self.plan else { return Ok(None) };
        let tag = &self.question.tag;
        let blocks = match self.way {
            Way::Search(tag) => plan.search(kernel, tag, self.reply, limits),
            Way::Bulk => match self.found.whole(kernel) {
                Ok(whole) => plan.find(kernel, &|other| tag.matches(other), whole, limits),
                Err(error) => Err(error),
            },
        };
        let start = Place { session: None, address: limits.from };
        let blocks = self.found.piece("small blocks are missing", start, blocks)?;
        self.found.answered |= blocks.is_some();
        if let Some(blocks) = &blocks {
            self.found.stopped = blocks.stopped.map(|address| Place { session: None, address });
            self.found.notes.extend(blocks.notes.iter().cloned());
        }
        Ok(blocks)
    }

    /// The sessions' own pools; `None` where the counters had answered already and it would have cost too much.
    fn sessions(
        &mut self,
        kernel: &Kernel<'_>,
        limits: Limits,
        observer: &mut dyn Observer,
    ) -> Result<Option<InSessions>, PoolError> {
        let left = if self.counted { self.quick(kernel) } else { EVERYTHING };
        let notes = self.found.notes.clone();
        let memory = Through(Allowance::new(kernel.memory, left));
        let kernel = Kernel { memory: &memory, ..*kernel };
        let found = self.search_sessions(&kernel, limits, observer)?;
        if !memory.0.is_exhausted() {
            return Ok(Some(found));
        }
        self.found.notes = notes;
        self.found.stopped = None;
        Ok(None)
    }

    /// What is shown, in the order in which it was found: large, small, and then session by session the same.
    fn blocks(&self, kernel: &Kernel<'_>, small: &Blocks, in_sessions: &InSessions) -> Result<Vec<Block>, PoolError> {
        let question = &self.question;
        let mut blocks: Vec<Block> = self.found.large.iter().map(Block::large).collect();
        for block in &small.blocks {
            let mut shown = Block::small(block);
            if question.process && question.tag.matches(block.tag) {
                shown.process = small_blocks::process(kernel, block)?;
            }
            blocks.push(shown);
        }
        blocks.extend(in_sessions.large.iter().map(|(id, page)| Block::large(page).of_session(*id)));
        for (index, block) in &in_sessions.small {
            let Some(session) = in_sessions.sessions.get(*index) else { continue };
            let mut shown = Block::small(block).of_session(session.id);
            if question.process {
                shown.process = sessions::process(kernel, session, block)?;
            }
            blocks.push(shown);
        }
        blocks.retain(|block| question.shows(block));
        Ok(blocks)
    }

    /// What was counted twice: on the walk, and by the kernel's own counters of the tag.
    fn checks(&mut self, small: &Blocks, searched: bool) -> Vec<Check> {
        let mut checks = small.checks.clone();
        let all = self.question.wants_large() && searched && self.found.stopped.is_none();
        if let Some(counted) = self.found.counted.filter(|_| all) {
            let complete = self.found.notes.is_complete();
            checks.extend(tag_counters(counted, &self.found.large, &small.blocks, self.question.kinds(), complete));
        }
        doubt(&checks, &mut self.found.notes);
        checks
    }

    fn findings(self, blocks: Vec<Block>, checks: Vec<Check>, skipped: Vec<Skipped>, searched_small: bool) -> Findings {
        let question = &self.question;
        let only_small =
            question.sizes == Sizes::Small || question.resumed.is_some() || question.pool == Some(Pool::Special);
        Findings {
            table: self.found.table,
            ranges: self.plan.as_ref().map_or(Vec::new(), |plan| plan.ranges()),
            blocks,
            searched: match (searched_small, only_small) {
                (false, _) => Searched::Large,
                (true, true) => Searched::Small,
                (true, false) => Searched::All,
            },
            stopped: self.found.stopped,
            skipped,
            notes: self.found.notes,
            checks,
        }
    }
}
