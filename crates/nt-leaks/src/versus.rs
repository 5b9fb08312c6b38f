//! Two builds of a driver, stack by stack: what grew before, and what grows now.
//!
//! Addresses differ between two machines, and offsets between two builds. So a stack is known by its functions; where a
//! frame has no symbol, by module and offset if both sides have the same build of the module, else by its module alone.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::check::CheckReport;
use crate::saved::Saved;
use crate::stack::{Frame, Module, Skip};

/// Growth that differs by less than this share is the same.
const ALIKE: f64 = 0.2;

/// What became of a stack's growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It did not grow before.
    New,
    /// It grows faster.
    More,
    /// It grows as fast, within what chance makes.
    Same,
    /// It grows more slowly.
    Less,
    /// It grows no more.
    Gone,
}

impl Change {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Change::New => "new",
            Change::More => "more",
            Change::Same => "same",
            Change::Less => "less",
            Change::Gone => "gone",
        }
    }
}

/// One stack on both sides.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize)]
pub struct StackChange {
    /// Which way.
    pub change: Change,
    /// Bytes a minute of the target's running time.
    pub before: f64,
    /// And in the second report.
    pub after: f64,
    /// Innermost first, as both sides have them.
    pub frames: Vec<String>,
}

/// What two reports differ in.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize)]
pub struct Versus {
    /// The answer in one sentence.
    pub headline: String,
    /// Nothing grows in the second that grew in the first, and nothing else does.
    pub fixed: bool,
    /// Those that grew on one side at least; what is worse comes first.
    pub stacks: Vec<StackChange>,
}

/// The checks of a file; a mark alone has not grown.
fn checks(saved: &Saved) -> Option<Vec<&CheckReport>> {
    match saved {
        Saved::Report(report) => Some(vec![report]),
        Saved::Watch(watch) => Some(watch.all().filter_map(|watch| watch.last.as_ref()).collect()),
        Saved::Mark(_) => None,
    }
}

/// Compares two reports, of whatever machines; `None` when one of them is no report.
pub fn versus(before: &Saved, after: &Saved, skip: &Skip) -> Option<Versus> {
    let (before, after) = (checks(before)?, checks(after)?);
    let same = same_modules(&before, &after);
    let (mut old, mut new) = (growth(&before, &same, skip), growth(&after, &same, skip));
    let keys: BTreeSet<Vec<String>> = old.keys().chain(new.keys()).cloned().collect();
    let mut stacks: Vec<StackChange> = Vec::new();
    for frames in keys {
        let (before, after) = (old.remove(&frames).unwrap_or(0.0), new.remove(&frames).unwrap_or(0.0));
        let change = match (before > 0.0, after > 0.0) {
            (false, false) => continue,
            (false, true) => Change::New,
            (true, false) => Change::Gone,
            (true, true) if after > before * (1.0 + ALIKE) => Change::More,
            (true, true) if after < before * (1.0 - ALIKE) => Change::Less,
            (true, true) => Change::Same,
        };
        stacks.push(StackChange { change, before, after, frames });
    }
    stacks
        .sort_by(|a, b| a.change.cmp(&b.change).then(b.after.total_cmp(&a.after)).then(b.before.total_cmp(&a.before)));
    let count = |change: Change| stacks.iter().filter(|stack| stack.change == change).count();
    let (new, gone) = (count(Change::New), count(Change::Gone));
    let left = stacks.len() - new - gone;
    let plural = |count: usize| if count == 1 { format!("{count} stack") } else { format!("{count} stacks") };
    let headline = match (left, new, gone) {
        (0, 0, 0) => "neither grows".into(),
        (0, 0, gone) => format!("fixed: {} that grew before grows no more", plural(gone)),
        (left, 0, _) => format!("not fixed: {} still grows", plural(left)),
        (0, new, _) => format!("{} grows that did not before", plural(new)),
        (left, new, _) => format!("not fixed: {} still grows, and {} that did not before", plural(left), plural(new)),
    };
    Some(Versus { headline, fixed: left + new == 0, stacks })
}

/// Modules of which both sides have the same build.
fn same_modules(before: &[&CheckReport], after: &[&CheckReport]) -> BTreeSet<String> {
    let build = |module: &Module| (module.name.to_ascii_lowercase(), module.size, module.timestamp, module.checksum);
    let all = |reports: &[&CheckReport]| -> BTreeSet<(String, u32, u32, u32)> {
        reports.iter().flat_map(|report| report.modules.iter().map(build)).collect()
    };
    all(before).intersection(&all(after)).map(|build| build.0.clone()).collect()
}

/// Bytes a minute by stack.
fn growth(reports: &[&CheckReport], same: &BTreeSet<String>, skip: &Skip) -> BTreeMap<Vec<String>, f64> {
    let mut sums = BTreeMap::new();
    for report in reports.iter().filter(|report| report.elapsed_ms > 0) {
        for group in report.stacks.iter().chain(&report.unattributed) {
            let mut frames: Vec<String> = skip.fold(&group.frames).iter().map(|frame| label(frame, same)).collect();
            // What has no offsets says nothing more the second time.
            frames.dedup();
            let rate = group.delta_bytes as f64 * 60_000.0 / report.elapsed_ms as f64;
            *sums.entry(frames).or_insert(0.0) += rate;
        }
    }
    sums
}

fn label(frame: &Frame, same: &BTreeSet<String>) -> String {
    let Some(module) = &frame.module else { return "outside all modules".into() };
    match &frame.symbol {
        Some(symbol) => format!("{module}!{}", symbol.split('+').next().unwrap_or(symbol)),
        None if same.contains(&module.to_ascii_lowercase()) => format!("{module}+{:#x}", frame.offset),
        None => module.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Group;
    use crate::stack::Stacks;

    fn frame(module: &str, offset: u64, symbol: Option<&str>) -> Frame {
        Frame { address: offset, module: Some(module.into()), offset, symbol: symbol.map(Into::into) }
    }

    /// A report of one minute: stacks and what they grew by.
    fn report(timestamp: u32, stacks: &[(Vec<Frame>, i64)]) -> Saved {
        let group = |(frames, delta_bytes): &(Vec<Frame>, i64)| Group {
            id: Some(Stacks::default().add(frames.clone())),
            bytes: 0,
            count: 0,
            delta_bytes: *delta_bytes,
            delta_count: 1,
            frames: frames.clone(),
        };
        Saved::Report(Box::new(CheckReport {
            elapsed_ms: 60_000,
            stacks: stacks.iter().map(group).collect(),
            modules: vec![Module { timestamp, ..Module::new(0, 0x1000, "driver") }],
            ..CheckReport::default()
        }))
    }

    fn changes(before: &Saved, after: &Saved) -> Vec<(Change, f64, f64, String)> {
        let found = versus(before, after, &Skip::none()).unwrap();
        found
            .stacks
            .into_iter()
            .map(|stack| (stack.change, stack.before, stack.after, stack.frames.join(" ")))
            .collect()
    }

    #[test]
    fn builds_are_compared_by_their_functions() {
        let take = |offset: u64| vec![frame("driver", offset, Some("Take+0x20")), frame("nt", 5, Some("Call+0x1"))];
        let open = |offset: u64| vec![frame("driver", offset, Some("Open+0x8"))];
        let before = report(1, &[(take(0x10), 600), (open(0x50), 100)]);
        let after = report(2, &[(take(0x18), 0), (open(0x58), 110)]);
        assert_eq!(
            changes(&before, &after),
            [
                (Change::Same, 100.0, 110.0, "driver!Open".into()),
                (Change::Gone, 600.0, 0.0, "driver!Take nt!Call".into())
            ]
        );
        let found = versus(&before, &after, &Skip::none()).unwrap();
        assert_eq!((found.fixed, found.headline.as_str()), (false, "not fixed: 1 stack still grows"));
        let quiet = report(2, &[(take(0x18), -5)]);
        let found = versus(&before, &quiet, &Skip::none()).unwrap();
        assert!(found.fixed && found.headline.starts_with("fixed: 2 stacks"), "{found:?}");
        assert_eq!(changes(&quiet, &after)[0].0, Change::New);
        assert_eq!(changes(&report(1, &[(open(1), 100)]), &report(2, &[(open(1), 300)]))[0].0, Change::More);
        assert_eq!(changes(&report(1, &[(open(1), 100)]), &report(2, &[(open(1), 30)]))[0].0, Change::Less);
    }

    /// Without symbols offsets mean something in one build only.
    #[test]
    fn without_symbols_two_builds_have_modules_in_common() {
        let at = |offset| vec![frame("driver", offset, None)];
        let before = report(1, &[(at(0x10), 60), (at(0x20), 60)]);
        assert_eq!(changes(&before, &report(1, &[(at(0x20), 60)])).len(), 2);
        assert_eq!(changes(&before, &report(2, &[(at(0x24), 60)])), [(Change::Less, 120.0, 60.0, "driver".into())]);
    }
}
