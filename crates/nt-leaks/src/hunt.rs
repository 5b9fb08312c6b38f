//! The end of a hunt: what a watch came to, who it is, and how long the machine lasts. What `!leak watch` answers with,
//! and what a report's file keeps.

mod headline;

use nt_memory::ReadError;
use nt_pool::{Kernel, PoolError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{CheckReport, Growth};
use crate::stack::{Frame, Skip, StackId};
use crate::survey::{Grower, Untagged};
use crate::trails::Trails;
use crate::watch::Outcome;

/// One stop of a watch.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Stop {
    /// Since the mark, while the target ran.
    pub elapsed_ms: u64,
    /// For how long the target stood still.
    pub frozen_ms: f64,
    /// Requests of this stop.
    pub requests: u64,
    /// Bytes of memory that came.
    pub bytes_read: u64,
    /// In use, as the tag's counters say.
    pub outstanding: u64,
    /// In use, as the tag's counters say.
    pub bytes: u64,
    /// Blocks of the mark that are the same allocations still.
    pub still: u64,
    /// Blocks of the mark that are gone.
    pub freed: u64,
    /// Blocks of the mark whose addresses are other allocations.
    pub reused: u64,
    /// Blocks that were not there at the mark.
    pub new: u64,
    /// Blocks of which nothing is proved.
    pub unknown: u64,
    /// Records that the verifier's log gained since the last stop.
    pub log_records: Option<u32>,
    /// Records were overwritten between two looks.
    pub log_wrapped: bool,
}

/// What the mark had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct AtMark {
    /// Allocations in use, as the counters say.
    pub outstanding: u64,
    /// Bytes in use, as the counters say.
    pub bytes: u64,
    /// Blocks that are listed.
    pub blocks: u64,
}

/// How a watch ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// It ran its course.
    #[default]
    Done,
    /// By Ctrl+C.
    Interrupted,
    /// The target stopped by itself.
    Stopped,
    /// The connection died, or a look was not possible.
    Failed,
}

/// The place in a driver that allocates.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Culprit {
    /// The image's file name, or kd's short name where that is not known.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub module: String,
    /// Where the call returns to, from the image's base.
    pub offset: u64,
    /// `LeakPool+0x26`, where there are symbols.
    #[serde(default, deserialize_with = "crate::line::deserialize")]
    pub symbol: Option<String>,
    /// The stack that it was taken from.
    pub stack: StackId,
    /// Of the tag's growth (or, without growth, of its bytes), in percent.
    pub share: u64,
}

/// `myfault.sys+0x11f6`, `myfault.sys!LeakPool+0x26`
impl std::fmt::Display for Culprit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.symbol {
            Some(symbol) => write!(f, "{}!{symbol}", self.module),
            None => write!(f, "{}+{:#x}", self.module, self.offset),
        }
    }
}

/// What the survey before a watch saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Surveyed {
    /// How often all counters were read.
    pub readings: usize,
    /// From the first to the last, while the target ran.
    pub elapsed_ms: u64,
    /// Tags that were followed.
    pub tags: usize,
    /// Requests of all readings.
    pub requests: u64,
    /// How long the target stood still for them.
    pub frozen_ms: u64,
}

/// A watch of one tag, or a hunt through all of them: then this is of the tag that leaks most.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct WatchReport {
    /// The answer in one sentence.
    #[serde(default, deserialize_with = "crate::line::deserialize")]
    pub headline: String,
    /// `None`: nothing grew.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub tag: Option<String>,
    /// What the watch came to.
    pub outcome: Outcome,
    /// What that rests on, as sentences.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub reasons: Vec<String>,
    /// Whether it ran its course.
    #[serde(default)]
    pub ended: Ended,
    /// Where most of the growth is allocated.
    #[serde(default)]
    pub culprit: Option<Culprit>,
    /// Which pool the tag's blocks are mostly of.
    #[serde(default)]
    pub paged: Option<bool>,
    /// Blocks that were there at the first look and are at the last, for certain.
    pub survivors: u64,
    /// So old are they at least.
    pub survivors_age_ms: u64,
    /// Growth, over most of the time.
    pub bytes_per_minute: f64,
    /// Until the pool is full at this rate, from what its size allows at most.
    pub exhausted_in_minutes: Option<f64>,
    /// What the first look found.
    pub at_mark: AtMark,
    /// Every look after it.
    pub checks: Vec<Stop>,
    /// What each stack had in use at the mark and at the checks.
    #[serde(default, skip_serializing_if = "Trails::is_empty")]
    pub trails: Trails,
    /// The last check, as `!leak check` gives it.
    pub last: Option<CheckReport>,
    /// Where the watch left the target.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub target: String,
    /// `Windows 7 7601 x64`
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::line::deserialize")]
    pub windows: Option<String>,
    /// The machine's name, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::line::deserialize")]
    pub machine: Option<String>,
    /// When the watch ended, by the debugger's clock: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::line::deserialize")]
    pub ended_at: Option<String>,
    /// Of a hunt without a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survey: Option<Surveyed>,
    /// All tags that grew, those that leak first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub growers: Vec<Grower>,
    /// Growth that no tag explains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged: Option<Untagged>,
    /// The other tags that were watched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<WatchReport>,
}

impl WatchReport {
    /// In use at each look, of all tags that were watched.
    pub fn growth(&self) -> Vec<Growth> {
        let looks = self.all().map(|watch| watch.checks.len()).min().unwrap_or(0);
        let sum = |look: usize| {
            let bytes = self.all().filter_map(|watch| watch.checks.get(look)).map(|stop| stop.bytes);
            bytes.fold(0, u64::saturating_add)
        };
        let checks = self.checks.iter().take(looks).enumerate();
        checks.map(|(look, stop)| Growth { elapsed_ms: stop.elapsed_ms, bytes: sum(look) }).collect()
    }

    /// The outcome, and why; then those of the other tags.
    pub fn lines(&self) -> Vec<String> {
        let lines = |watch: &WatchReport| {
            std::iter::once(watch.headline.clone()).chain(watch.reasons.iter().cloned()).collect::<Vec<_>>()
        };
        self.all().flat_map(lines).collect()
    }

    /// The last checks of all tags that were watched, as one.
    pub fn whole(&self) -> Option<CheckReport> {
        let mut lasts = self.all().filter_map(|watch| watch.last.as_ref());
        let first = lasts.next()?.clone();
        Some(lasts.fold(first, |mut whole, last| {
            whole.merge(last);
            whole
        }))
    }

    /// The lines of all stacks.
    pub fn whole_trails(&self) -> Trails {
        self.others.iter().fold(self.trails.clone(), |mut whole, other| {
            whole.merge(&other.trails);
            whole
        })
    }

    /// All watches: the leader and the others.
    pub fn all(&self) -> impl Iterator<Item = &WatchReport> {
        std::iter::once(self).chain(&self.others)
    }
}

/// Images that allocate for others, or are the pool itself.
const KERNELS_OWN: [&str; 4] = ["nt", "hal", "VerifierExt", "verifier"];

fn is_kernels_own(frame: &Frame) -> bool {
    let module = frame.module.as_deref().unwrap_or_default();
    KERNELS_OWN.iter().any(|own| own.eq_ignore_ascii_case(module))
}

/// Who allocated most of the growth: the innermost frame that is neither the allocator's (`skip`) nor the kernel's own;
/// where all are the kernel's, the innermost that is not the allocator's. Without growth, who has most bytes.
pub fn culprit(report: &CheckReport, skip: &Skip) -> Option<Culprit> {
    let groups = || report.stacks.iter().chain(&report.unattributed);
    // A report may come from a file, with any numbers in it.
    let grown = groups().fold(0i64, |sum, group| sum.saturating_add(group.delta_bytes.max(0)));
    let by_growth = report.stacks.iter().filter(|group| group.delta_bytes > 0).max_by_key(|group| group.delta_bytes);
    let by_bytes = report.stacks.iter().filter(|group| group.bytes > 0).max_by_key(|group| group.bytes);
    let all = groups().fold(0u64, |sum, group| sum.saturating_add(group.bytes));
    let (group, part, whole) = match (by_growth, by_bytes) {
        (Some(group), _) => (group, group.delta_bytes.unsigned_abs(), grown.unsigned_abs()),
        (None, Some(group)) => (group, group.bytes, all),
        (None, None) => return None,
    };
    let frames = skip.fold(&group.frames);
    let frame = frames.iter().find(|frame| frame.module.is_some() && !is_kernels_own(frame));
    let frame = frame.or_else(|| frames.iter().find(|frame| frame.module.is_some()))?;
    let base = frame.address.wrapping_sub(frame.offset);
    let file = report.modules.iter().find(|module| module.base == base).and_then(|module| module.file.clone());
    Some(Culprit {
        module: file.or_else(|| frame.module.clone())?,
        offset: frame.offset,
        symbol: frame.symbol.clone(),
        stack: group.id?,
        share: u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(100),
    })
}

/// How much a pool may still grow by; `None` where the kernel has no variable for its size. `in_use`: what is used of
/// it, where that is known better than by the kernel's own count; `at_least`: what is known to be used in any case.
pub fn room(kernel: &Kernel<'_>, paged: bool, in_use: Option<u64>, at_least: u64) -> Result<Option<u64>, PoolError> {
    let name = if paged { "MmSizeOfPagedPoolInBytes" } else { "MmMaximumNonPagedPoolInBytes" };
    let Some(address) = kernel.find_symbol(name) else { return Ok(None) };
    let mut bytes = [0; 8];
    let width = usize::from(kernel.pointer_size).min(bytes.len());
    match kernel.memory.read_exact(address, &mut bytes[..width]) {
        Ok(()) => {}
        Err(ReadError::Fault(fault)) => return Err(fault.into()),
        Err(_) => return Ok(None),
    }
    let size = Some(u64::from_le_bytes(bytes)).filter(|size| *size > 0);
    Ok(size.and_then(|size| size.checked_sub(in_use.unwrap_or(0).max(at_least))))
}
