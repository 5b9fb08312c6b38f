//! What a self-check found, as a screen and as a file that goes with a bug report (docs/selfcheck.md).
//!
//! The file has sizes, offsets, counts and a few header words. It has no contents of blocks, no tags, no names of the
//! target's, no key; addresses only when they are asked for, and then as distances from the kernel's image.

use std::fmt;
use std::path::Path;

use nt_pool::selfcheck::{Part, SelfCheck};
use nt_pool::{Check, Kernel, Lack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::answer::Text;
use crate::text::visible_name;

/// The file's form; a reader of another one says so.
const FORMAT: u32 = 1;

/// Types whose layouts the decoders rest on.
const TYPES: [&str; 22] = [
    "_POOL_HEADER",
    "_POOL_TRACKER_TABLE",
    "_POOL_TRACKER_BIG_PAGES",
    "_POOL_DESCRIPTOR",
    "_EX_POOL_HEAP_MANAGER_STATE",
    "_EX_HEAP_POOL_NODE",
    "_RTLP_HP_HEAP_GLOBALS",
    "_SEGMENT_HEAP",
    "_HEAP_SEG_CONTEXT",
    "_HEAP_PAGE_SEGMENT",
    "_HEAP_PAGE_RANGE_DESCRIPTOR",
    "_HEAP_VS_CONTEXT",
    "_HEAP_VS_AFFINITY_SLOT",
    "_HEAP_VS_SUBSEGMENT",
    "_HEAP_VS_CHUNK_HEADER",
    "_HEAP_LFH_CONTEXT",
    "_HEAP_LFH_SUBSEGMENT",
    "_RTL_DYNAMIC_LOOKASIDE",
    "_RTL_LOOKASIDE",
    "_MM_DRIVER_VERIFIER_DATA",
    "_VF_POOL_TRACE",
    "_VI_POOL_ENTRY",
];

/// Members of one type that are written.
const MEMBERS: usize = 256;

/// The whole report.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct SelfCheckReport {
    format: u32,
    kdpool: String,
    windows: String,
    build: u16,
    machine: String,
    pointer_size: u8,
    /// Somebody has measured a kernel as new as this one.
    measured: bool,
    /// `ok`, `differs` or `cannot know`.
    pub(crate) state: String,
    requests: u64,
    limit: u64,
    frozen_ms: u64,
    parts: Vec<PartReport>,
    readings: Vec<String>,
    /// Small blocks that were met, by what holds them and their size.
    sizes: Vec<SizeReport>,
    words: Vec<WordReport>,
    layouts: Vec<LayoutReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct PartReport {
    part: String,
    /// In words.
    what: String,
    state: String,
    checks: Vec<CheckReport>,
    limits: Vec<String>,
    /// What was missing, by its reason.
    missing: Vec<MissingReport>,
    /// The same in words, with addresses and names; on the screen only.
    #[serde(skip)]
    lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct CheckReport {
    name: String,
    what: String,
    expected: u64,
    found: u64,
    ok: bool,
    /// Where the first difference is, from the kernel's image on; only when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct MissingReport {
    why: String,
    places: u64,
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct SizeReport {
    holder: String,
    up_to: u64,
    blocks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct WordReport {
    structure: String,
    encoded: String,
    decoded: String,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct LayoutReport {
    r#type: String,
    size: u64,
    members: Vec<MemberReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
struct MemberReport {
    name: String,
    offset: u64,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<(u8, u8)>,
}

/// What the target calls itself.
pub(crate) struct About {
    pub(crate) windows: &'static str,
    pub(crate) build: u16,
    pub(crate) machine: &'static str,
}

impl SelfCheckReport {
    pub(crate) fn new(about: &About, check: &SelfCheck, limit: u64, kernel: &Kernel<'_>, addresses: bool) -> Self {
        let spent = check.spent();
        let base = addresses.then_some(kernel.base);
        SelfCheckReport {
            format: FORMAT,
            kdpool: env!("CARGO_PKG_VERSION").into(),
            windows: about.windows.into(),
            build: about.build,
            machine: about.machine.into(),
            pointer_size: kernel.pointer_size,
            measured: !nt_pool::build::is_unproven(about.build),
            state: check.state().name().into(),
            requests: spent.requests,
            limit,
            frozen_ms: u64::try_from(spent.time.as_millis()).unwrap_or(u64::MAX),
            parts: check.parts.iter().map(|part| PartReport::new(part, base)).collect(),
            readings: check.readings.lines(),
            sizes: check
                .sizes
                .iter()
                .map(|((holder, up_to), blocks)| SizeReport {
                    holder: (*holder).into(),
                    up_to: *up_to,
                    blocks: *blocks,
                })
                .collect(),
            words: check
                .words
                .iter()
                .map(|word| WordReport {
                    structure: word.structure.into(),
                    encoded: format!("{:#x}", word.encoded),
                    decoded: format!("{:#x}", word.decoded),
                })
                .collect(),
            layouts: TYPES.iter().filter_map(|name| layout(kernel, name)).collect(),
        }
    }

    /// Reads a report's file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is none of ours: a line for the user.
    pub fn read(path: &Path) -> Result<Self, String> {
        const MOST: usize = 16 << 20;
        let failed = |why: String| format!("cannot read {}: {why}", path.display());
        let file = std::fs::File::open(path).and_then(|file| heap_limit::read_whole(file, MOST));
        let text = String::from_utf8(file.map_err(|error| failed(error.to_string()))?)
            .map_err(|error| failed(error.utf8_error().to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    /// The same of a file's text.
    ///
    /// # Errors
    ///
    /// It is none of ours: why, for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut value =
            serde_json::from_str(text).map_err(|error| format!("it is no self-check of kdpool's: {error}"))?;
        clean(&mut value);
        let report: SelfCheckReport =
            serde_json::from_value(value).map_err(|error| format!("it is no self-check of kdpool's: {error}"))?;
        match report.format {
            FORMAT => Ok(report),
            other => Err(format!("it has form {other}, and this version reads {FORMAT}")),
        }
    }

    /// Writes the report's file: whole, or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let failed = |why: String| format!("cannot write {}: {why}", path.display());
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.to_string()))?;
        nt_leaks::write_private(path, text).map_err(|error| failed(error.to_string()))
    }

    /// A table by area, for one screen of 80 columns.
    #[must_use]
    pub fn screen(&self) -> String {
        let mut text = String::new();
        // Writing to a text does not fail.
        let _ = self.text(&mut text);
        text
    }
}

/// A file is somebody else's. Each of its texts stays on the line where it is shown: a line end in one would forge a row,
/// `Result: ok` for example.
fn clean(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = visible_name(text),
        serde_json::Value::Array(list) => list.iter_mut().for_each(clean),
        serde_json::Value::Object(members) => members.values_mut().for_each(clean),
        _ => {}
    }
}

fn layout(kernel: &Kernel<'_>, name: &str) -> Option<LayoutReport> {
    let layout = kernel.layout(name).ok()?;
    let members = layout.fields.iter().take(MEMBERS).map(|field| MemberReport {
        name: field.name.clone(),
        offset: field.offset,
        size: field.size,
        bits: field.bits,
    });
    Some(LayoutReport { r#type: name.into(), size: layout.size, members: members.collect() })
}

impl PartReport {
    fn new(part: &Part, base: Option<u64>) -> Self {
        let mut missing: Vec<MissingReport> = Vec::new();
        for lack in &part.missing {
            let why = match lack.why {
                Lack::Unread => "unread",
                Lack::PagedOut => "paged out",
                Lack::Damaged => "damaged",
                Lack::Stopped => "stopped",
            };
            let count = lack.count.unwrap_or(1);
            match missing.iter_mut().find(|known| known.why == why) {
                Some(known) => (known.places, known.count) = (known.places + 1, known.count.saturating_add(count)),
                None => missing.push(MissingReport { why: why.into(), places: 1, count }),
            }
        }
        PartReport {
            part: part.subject.name().into(),
            what: part.subject.to_string(),
            state: part.state().name().into(),
            checks: part.checks.iter().map(|check| CheckReport::new(check, base)).collect(),
            limits: part.limits.clone(),
            missing,
            lines: part.missing.iter().map(|lack| lack.what.clone()).collect(),
        }
    }
}

impl CheckReport {
    fn new(check: &Check, base: Option<u64>) -> Self {
        let at = check.place.zip(base).filter(|(place, _)| *place != 0);
        CheckReport {
            name: check.name.name().into(),
            what: check.name.to_string(),
            expected: check.expected,
            found: check.found,
            ok: check.ok,
            at: at.map(|(place, base)| relative(place, base)),
        }
    }
}

/// `nt+1f40`, `nt-3e0000`.
fn relative(place: u64, base: u64) -> String {
    match place.checked_sub(base) {
        Some(distance) => format!("nt+{distance:x}"),
        None => format!("nt-{:x}", base - place),
    }
}

/// Lines of one part that are shown; the file has counts of all.
const SHOWN: usize = 4;

impl Text for SelfCheckReport {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Self { windows, build, machine, requests, limit, frozen_ms, kdpool, .. } = self;
        writeln!(out, "Self-check of kdpool {kdpool} on {windows} {build} {machine}")?;
        writeln!(out, "{requests} requests of at most {limit}, the target stood still for {frozen_ms} ms")?;
        if !self.measured {
            writeln!(out, "Nobody has measured a kernel as new as this one: it is read by its types alone.")?;
        }
        writeln!(out)?;
        for part in &self.parts {
            let compared: u64 = part.checks.iter().fold(0, |sum, check| sum.saturating_add(check.expected));
            let books = if part.checks.len() == 1 { "book" } else { "books" };
            let what = match part.checks.len() {
                0 => String::new(),
                count => format!("{count} {books}, {compared} counted"),
            };
            writeln!(out, "{:<20}{:<13}{what}", part.what, part.state)?;
            for check in part.checks.iter().filter(|check| !check.ok) {
                let at = check.at.as_ref().map(|at| format!(", first at {at}")).unwrap_or_default();
                writeln!(out, "    {}: {} expected, {} found{at}", check.what, check.expected, check.found)?;
            }
            let said = part.limits.iter().chain(&part.lines);
            for line in said.clone().take(SHOWN) {
                writeln!(out, "    {line}")?;
            }
            if let more @ 1.. = said.count().saturating_sub(SHOWN) {
                writeln!(out, "    and {more} more")?;
            }
            if part.lines.is_empty() {
                for MissingReport { why, places, count } in &part.missing {
                    writeln!(out, "    missing, {why}: {count} in {places} notes")?;
                }
            }
        }
        for reading in &self.readings {
            writeln!(out, "read as: {reading}")?;
        }
        let blocks = self.sizes.iter().fold(0u64, |sum, size| sum.saturating_add(size.blocks));
        writeln!(out, "\n{blocks} small blocks were met; {} layouts are known.", self.layouts.len())?;
        writeln!(
            out,
            "Result: {}. docs/selfcheck.md says what a line means; -file FILE writes what a bug report needs.",
            self.state
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Found by fuzzing: a text with a line end made a row of its own, and counts that no machine has were added up.
    #[test]
    fn a_file_neither_forges_rows_nor_counts_too_far() {
        let size = json!({"holder": "vs", "up_to": 32, "blocks": u64::MAX});
        let part = json!({
            "part": "tags", "what": "tags\r\nResult: ok.", "state": "differs\u{7f}", "checks": [], "missing": [],
            "limits": ["one\u{1b}[2J", "two\nthree"],
        });
        let file = json!({
            "format": FORMAT, "kdpool": "0.1.0", "windows": "Windows 7", "build": 7601, "machine": "x64",
            "pointer_size": 8, "measured": true, "state": "differs", "requests": 1, "limit": 2, "frozen_ms": 3,
            "parts": [part], "readings": [], "sizes": [size.clone(), size], "words": [], "layouts": [],
        });
        let screen = SelfCheckReport::parse(&file.to_string()).unwrap().screen();
        assert!(screen.contains("18446744073709551615 small blocks were met"), "{screen}");
        assert_eq!(screen.lines().filter(|line| line.starts_with("Result:")).count(), 1, "{screen}");
        assert!(screen.contains("    two three\n") && !screen.contains(['\u{1b}', '\u{7f}', '\r']), "{screen:?}");
    }
}
