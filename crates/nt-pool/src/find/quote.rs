//! What an answer will cost.

use std::time::Duration;

use nt_memory::{Memory, Spent, Through};

use super::large::Found;
use super::{Bounds, Place, Pool, Question, Sizes};
use crate::allowance::Allowance;
use crate::small_blocks::{self, Cost, Plan};
use crate::{Kernel, PoolError, Tag};

/// What a question costs in all that the kernel's counters have answered already: small blocks are looked for as long as
/// it stays within.
const QUICK: Cost = Cost { requests: 60, bytes: 16 << 10 };

/// Requests without which it is not even begun to ask where small blocks can be: no pool is so small.
const LEAST_PLAN: u64 = 8;

/// What a walk costs, from what was measured on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Requests to the target.
    pub requests: u64,
    /// Bytes that come for them.
    pub bytes: u64,
    /// How long the target will stand still.
    pub time: Duration,
}

impl Estimate {
    /// `measured`: what requests took just now, for a memory that does not measure its reads.
    pub fn new(memory: &dyn Memory, cost: Cost, measured: Spent) -> Self {
        let Cost { requests, bytes } = cost;
        // The time of a question is not its requests' alone: where the answers were kept, it was spent on thinking.
        let time = memory.takes(requests, bytes).unwrap_or_else(|| {
            let each = measured.time.as_micros() / u128::from(measured.requests.max(1));
            Duration::from_micros(u64::try_from(each.saturating_mul(requests.into())).unwrap_or(u64::MAX))
        });
        Estimate { requests, bytes, time }
    }
}

/// How small blocks are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The target looks for the tag's bytes itself, and what it finds is read.
    Search(Tag),
    /// All of the pool is read.
    Bulk,
}

/// A question whose cheap part is answered.
#[derive(Debug)]
pub struct Quote {
    pub(super) question: Question,
    pub(super) since: Spent,
    pub(super) found: Found,
    /// Where small blocks can be; `None` when they are not looked for.
    pub(super) plan: Option<Plan>,
    pub(super) way: Way,
    /// The kernel's counters have answered already.
    pub(super) counted: bool,
    pub(super) reply: u64,
    /// Bytes of pool where the machine's small blocks can be, from where the search begins.
    pub covers: u64,
    /// What looking for them is expected to cost; `None` when they are not looked for.
    pub expected: Option<Estimate>,
    /// What reading all of it would cost, when the target searches itself instead.
    pub bulk: Option<Estimate>,
}

impl Quote {
    /// Answers what is cheap. `since`: what the memory had cost before the question was put; what was spent then and
    /// now tells how fast this connection is.
    pub fn new(kernel: &Kernel<'_>, question: Question, since: Spent) -> Result<Quote, PoolError> {
        let mut found = Found::default();
        found.read_large(kernel, &question)?;
        let mut quote = Quote {
            counted: question.wants_small()
                && question.sizes == Sizes::All
                && question.pool != Some(Pool::Special)
                && found.has_all(&question),
            question,
            since,
            found,
            plan: None,
            way: Way::Bulk,
            reply: (kernel.memory.reply_size() as u64).max(1),
            covers: 0,
            expected: None,
            bulk: None,
        };
        quote.plan(kernel)?;
        quote.estimate(kernel)?;
        Ok(quote)
    }

    fn plan(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        if !self.question.wants_small() {
            return Ok(());
        }
        self.plan = match self.counted {
            true => self.quick_plan(kernel)?,
            false => {
                let place = Place { session: None, address: self.question.start() };
                self.found.piece("small blocks are missing", place, Plan::read(kernel, self.question.kinds()))?
            }
        };
        Ok(())
    }

    /// What is left of [`QUICK`].
    pub(super) fn quick(&self, kernel: &Kernel<'_>) -> Cost {
        let spent = kernel.memory.spent().since(self.since);
        Cost { requests: QUICK.requests.saturating_sub(spent.requests), bytes: QUICK.bytes.saturating_sub(spent.bytes) }
    }

    /// Where small blocks can be, if that and looking there costs no more than is left.
    fn quick_plan(&self, kernel: &Kernel<'_>) -> Result<Option<Plan>, PoolError> {
        let left = self.quick(kernel);
        if left.requests < LEAST_PLAN {
            return Ok(None);
        }
        let memory = Through(Allowance::new(kernel.memory, left));
        let plan = match Plan::read(&Kernel { memory: &memory, ..*kernel }, self.question.kinds()) {
            Ok(plan) => plan,
            Err(_) if memory.0.is_exhausted() => return Ok(None),
            Err(error) => {
                error.local()?;
                return Ok(None);
            }
        };
        let left = memory.0.left();
        let from = self.question.start();
        let fits = |cost: Cost| cost.requests <= left.requests && cost.bytes <= left.bytes;
        let searches = self.question.tag.exact().is_some() && !self.question.bulk;
        // To read everything the table of large allocations would be read in whole.
        let quick = plan.cost(&memory, from) == Cost::default()
            || searches && fits(plan.search_cost(&memory, from, 0)) && small_blocks::is_searchable(kernel)?;
        Ok(quick.then_some(plan))
    }

    /// Says what the plan costs, and chooses the way.
    fn estimate(&mut self, kernel: &Kernel<'_>) -> Result<(), PoolError> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let (from, reply, hits) = (self.question.start(), self.reply, self.found.expected());
        let table = &self.found.table;
        let table = kernel.memory.unread(table.start, table.end.wrapping_sub(table.start));
        let with_table =
            |cost: Cost| Cost { requests: cost.requests + table.div_ceil(reply), bytes: cost.bytes + table };
        let mut bulk = plan.cost(kernel.memory, from);
        // What is read in whole needs the table of large allocations in whole.
        if self.found.whole.is_none() {
            bulk = with_table(bulk);
        }
        let mut search = None;
        if let Some(tag) = self.question.tag.exact().filter(|_| !self.question.bulk) {
            let mut cost = plan.search_cost(kernel.memory, from, hits);
            if hits > 0 && !plan.segment_heap {
                cost = with_table(cost);
            }
            let cheaper = self.counted || cost.requests < bulk.requests;
            if cheaper && small_blocks::is_searchable(kernel)? {
                search = Some(cost);
                self.way = Way::Search(tag);
            }
        }
        let measured = kernel.memory.spent().since(self.since);
        let all = Estimate::new(kernel.memory, bulk, measured);
        self.covers = plan.bytes(from);
        self.expected = Some(search.map_or(all, |cost| Estimate::new(kernel.memory, cost, measured)));
        self.bulk = search.map(|_| all);
        Ok(())
    }

    /// Bytes of pool that may be read, or the requests that carry them be spent otherwise: as many as the bounds allow
    /// where the rest takes as long as what was asked until now.
    pub fn allowed(&self, kernel: &Kernel<'_>, bounds: Bounds) -> u64 {
        let Some(budget) = bounds.budget else { return bounds.bytes };
        let spent = kernel.memory.spent().since(self.since);
        let left = budget.saturating_sub(spent.time).as_micros();
        let requests = match kernel.memory.takes(1, self.reply) {
            Some(each) => left / each.as_micros().max(1),
            None => left.saturating_mul(spent.requests.max(1).into()) / spent.time.as_micros().max(1),
        };
        let bytes = u64::try_from(requests.saturating_mul(self.reply.into())).unwrap_or(u64::MAX).max(0x1000);
        bounds.bytes.min(bytes)
    }
}
