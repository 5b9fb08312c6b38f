//! `!poolused [flags [tag]]`
//!
//! Kernels before Windows 8 get the table of their debuggers, with the article's spacing:
//!
//! ```text
//!    Sorting by  Paged Pool Consumed
//!
//!   Pool Used:
//!             NonPaged            Paged
//!  Tag    Allocs     Used    Allocs     Used
//! Leak        0        0        23 23552000 UNKNOWN pooltag 'Leak', please update pooltag.txt
//! ```
//!
//! Newer ones get the current table, where a TAB stands before the description.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use nt_pool::build::WINDOWS_8;
use nt_pool::checks::Book;
use nt_pool::sessions::Sessions;
use nt_pool::tags::{TagReport, TagUsage, Usage};
use nt_pool::{PoolError, Tag};
use schemars::JsonSchema;
use serde::Serialize;

use super::balance::Balance;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::plain_number;
use crate::grammar::words::{pattern, unclosed};
use crate::schema::ResultShape;
use crate::session::Context;

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!poolused"],
    usage: "!poolused [/t rows] [flags [tag]]",
    help: "pool in use, by tag",
    details: "/t5 shows the first five rows. Flags: 1 allocations and frees too, 2 sort by nonpaged pool, 4 sort by paged pool, 8 the pool of \
              all sessions (win32k's)\nand not the system's. Allocs without flag 1 are the allocations that were not \
              freed yet. A tag may have wildcards (* ?). Tags with nothing in use are left \
              out of the\ntable unless flag 1 is given; JSON has them all.",
    results: &[ResultShape::of::<PoolUsed>("poolused")],
    action: Action::Answer(run),
};

const VERBOSE: u64 = 1;
const BY_NONPAGED: u64 = 2;
const BY_PAGED: u64 = 4;
const SESSION: u64 = 8;

/// Books of what the table shows.
const SHOWN: [Book; 2] = [Book::TagRows, Book::NonPagedTotal];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Tag,
    NonPaged,
    Paged,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
struct Pool {
    allocs: u64,
    frees: u64,
    /// Allocations that were not freed; negative in tables that were read while they changed, or are damaged.
    diff: i64,
    bytes: u64,
}

impl From<Usage> for Pool {
    fn from(usage: Usage) -> Self {
        let Usage { allocs, frees, diff, bytes } = usage;
        Self { allocs, frees, diff, bytes }
    }
}

impl Pool {
    fn add(&mut self, other: Pool) {
        self.allocs = self.allocs.wrapping_add(other.allocs);
        self.frees = self.frees.wrapping_add(other.frees);
        self.diff = self.diff.wrapping_add(other.diff);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }

    fn is_used(self) -> bool {
        self.diff != 0 || self.bytes != 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct Row {
    tag: String,
    nonpaged: Pool,
    paged: Pool,
    /// kd's words after the numbers.
    description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize)]
struct Total {
    nonpaged: Pool,
    paged: Pool,
}

#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
struct PoolUsed {
    tags: Vec<Row>,
    total: Total,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    /// Whose pool this is, when it is that of sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<Vec<u32>>,
    #[serde(skip)]
    order: Order,
    #[serde(skip)]
    verbose: bool,
    #[serde(skip)]
    new_layout: bool,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let (most, arguments) = top(context.arguments)?;
    let (flags, tag) = match arguments.split_once(char::is_whitespace) {
        Some((flags, tag)) => (flags, tag.trim()),
        None => (arguments.as_str(), ""),
    };
    let flags = match flags {
        "" => 0,
        text => plain_number(text).ok_or_else(|| {
            usage(&INFO, format!("the flags are a number, not '{text}' (a tag goes behind them: 0 {text})"))
        })?,
    };
    if flags & !(VERBOSE | BY_NONPAGED | BY_PAGED | SESSION) != 0 {
        return Err(usage(&INFO, format!("unknown flags {flags:#x}; there are 1, 2, 4 and 8")));
    }
    let order = match flags & (BY_NONPAGED | BY_PAGED) {
        0 => Order::Tag,
        BY_NONPAGED => Order::NonPaged,
        BY_PAGED => Order::Paged,
        _ => return Err(usage(&INFO, "flags 2 and 4 exclude each other")),
    };
    if let Some(mark) = unclosed(tag) {
        return Err(usage(&INFO, format!("the quote {mark} has no end")));
    }
    let pattern = match tag {
        "" => None,
        tag => Some(pattern(tag).map_err(|error| usage(&INFO, error))?),
    };
    let build = context.kernel()?.version().minor;
    let mut sessions = Vec::new();
    let TagReport { tags, mut notes, checks } = context.pool(|kernel| match &pattern {
        _ if flags & SESSION != 0 => {
            let wanted = |tag| pattern.as_ref().is_none_or(|pattern| pattern.matches(tag));
            in_sessions(kernel, &wanted, &mut sessions)
        }
        None => nt_pool::tags::read(kernel, &|_| true),
        Some(pattern) => match pattern.exact() {
            Some(tag) => nt_pool::tags::read_one(kernel, tag),
            None => nt_pool::tags::read(kernel, &|tag| pattern.matches(tag)),
        },
    })?;
    let describe = |usage: &TagUsage| context.session.pool_tags.poolused(usage.tag);
    let mut rows: Vec<Row> = tags
        .iter()
        .map(|usage| Row {
            tag: usage.tag.to_string(),
            nonpaged: usage.nonpaged.into(),
            paged: usage.paged.into(),
            description: describe(usage),
        })
        .collect();
    match order {
        Order::Tag => {}
        Order::NonPaged => rows.sort_by_key(|row| Reverse(row.nonpaged.bytes)),
        Order::Paged => rows.sort_by_key(|row| Reverse(row.paged.bytes)),
    }
    let mut total = Total::default();
    for row in &rows {
        total.nonpaged.add(row.nonpaged);
        total.paged.add(row.paged);
    }
    // The total is of all of them.
    if let Some(most) = most {
        rows.truncate(most);
    }
    let (verbose, new_layout) = (flags & VERBOSE != 0, build >= WINDOWS_8);
    let sessions = (flags & SESSION != 0).then_some(sessions);
    let checks = Balance::all(&checks, &SHOWN, &mut notes);
    let answer = PoolUsed { tags: rows, total, checks, sessions, order, verbose, new_layout };
    Ok(Reply::with_notes(answer, notes))
}

/// `/t5`, or `/t 5`, wherever it stands: how many rows are wanted; and the other arguments.
fn top(arguments: &str) -> Result<(Option<usize>, String), CommandError> {
    let (before, after) = match arguments.find("/t") {
        Some(at) if arguments[..at].is_empty() || arguments[..at].ends_with(char::is_whitespace) => {
            (&arguments[..at], arguments[at + 2..].trim_start())
        }
        _ => return Ok((None, arguments.into())),
    };
    let (number, rest) = after.split_at(after.find(char::is_whitespace).unwrap_or(after.len()));
    let most = plain_number(number).and_then(|most| usize::try_from(most).ok()).filter(|most| *most > 0);
    let most = most.ok_or_else(|| usage(&INFO, format!("/t takes a number of rows, not '{number}'")))?;
    Ok((Some(most), format!("{} {}", before.trim(), rest.trim()).trim().to_string()))
}

/// The sums of all sessions.
fn in_sessions(
    kernel: &nt_pool::Kernel<'_>,
    wanted: &dyn Fn(Tag) -> bool,
    numbers: &mut Vec<u32>,
) -> Result<TagReport, PoolError> {
    let Sessions { sessions, mut notes } = nt_pool::sessions::all(kernel)?;
    let mut sums: BTreeMap<Tag, TagUsage> = BTreeMap::new();
    for session in &sessions {
        let report = match nt_pool::sessions::tags(kernel, session, wanted) {
            Ok(report) => report,
            Err(error) => {
                notes.missing(format!("session {}: {}", session.id, error.local()?));
                continue;
            }
        };
        numbers.push(session.id);
        notes.extend(report.notes);
        for usage in report.tags {
            let TagUsage { tag, nonpaged, paged } = usage;
            let none = TagUsage { tag, nonpaged: Usage::default(), paged: Usage::default() };
            let sum = sums.entry(tag).or_insert(none);
            for (sum, usage) in [(&mut sum.nonpaged, nonpaged), (&mut sum.paged, paged)] {
                sum.allocs = sum.allocs.wrapping_add(usage.allocs);
                sum.frees = sum.frees.wrapping_add(usage.frees);
                sum.diff = sum.diff.wrapping_add(usage.diff);
                sum.bytes = sum.bytes.wrapping_add(usage.bytes);
            }
        }
    }
    if sessions.is_empty() {
        notes.missing("no process belongs to a session");
    }
    Ok(TagReport { tags: sums.into_values().collect(), notes, checks: Vec::new() })
}

impl Text for PoolUsed {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let order = match self.order {
            Order::Tag => "Tag",
            Order::NonPaged => "NonPaged Pool Consumed",
            Order::Paged => "Paged Pool Consumed",
        };
        if let Some(sessions) = &self.sessions {
            let numbers: Vec<String> = sessions.iter().map(u32::to_string).collect();
            writeln!(out, " Session pool of session {}", numbers.join(", "))?;
        }
        let rows = self.tags.iter().filter(|row| self.verbose || row.nonpaged.is_used() || row.paged.is_used());
        let Total { nonpaged, paged } = &self.total;
        match (self.new_layout, self.verbose) {
            (false, false) => {
                writeln!(out, "   Sorting by  {order}\n\n  Pool Used:")?;
                writeln!(out, "            NonPaged            Paged")?;
                writeln!(out, " Tag    Allocs     Used    Allocs     Used")?;
                for Row { tag, nonpaged, paged, description } in rows {
                    let (n, p) = (nonpaged, paged);
                    writeln!(out, "{tag} {:>8} {:>8} {:>9} {:>8} {description}", n.diff, n.bytes, p.diff, p.bytes)?;
                }
                let (n, p) = (nonpaged, paged);
                writeln!(out, "TOTAL {:>11} {:>9} {:>9} {:>8}", n.diff, n.bytes, p.diff, p.bytes)
            }
            (true, false) => {
                writeln!(out, " Sorting by {order}\n")?;
                writeln!(out, "               NonPaged                  Paged")?;
                writeln!(out, " Tag     Allocs         Used     Allocs         Used\n")?;
                for Row { tag, nonpaged, paged, description } in rows {
                    let (n, p) = (nonpaged, paged);
                    writeln!(
                        out,
                        " {tag} {:>9} {:>12} {:>10} {:>12}\t{description}",
                        n.diff, n.bytes, p.diff, p.bytes
                    )?;
                }
                let (n, p) = (nonpaged, paged);
                writeln!(out, "\nTOTAL {:>9} {:>12} {:>10} {:>12}", n.diff, n.bytes, p.diff, p.bytes)
            }
            (new, true) => {
                match new {
                    true => writeln!(out, " Sorting by {order}\n")?,
                    false => writeln!(out, "   Sorting by  {order}\n\n  Pool Used:")?,
                }
                let (gap, mark) = if new { ("\n", '\t') } else { ("", ' ') };
                writeln!(out, "{:28}NonPaged{:41}Paged", "", "")?;
                let pool = "Allocs       Frees      Diff         Used";
                writeln!(out, " Tag       {pool}       {pool}{gap}")?;
                for Row { tag, nonpaged, paged, description } in rows {
                    writeln!(out, " {tag}{}{mark}{description}", verbose(nonpaged, paged))?;
                }
                writeln!(out, "{gap}TOTAL{}", verbose(nonpaged, paged))
            }
        }
    }
}

/// Every column begins with a blank, however large its number is.
fn verbose(n: &Pool, p: &Pool) -> String {
    format!(
        " {:>11} {:>11} {:>9} {:>12} {:>12} {:>11} {:>9} {:>12}",
        n.allocs, n.frees, n.diff, n.bytes, p.allocs, p.frees, p.diff, p.bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tag: &[u8; 4], nonpaged: (u64, u64, u64), paged: (u64, u64, u64), description: &str) -> Row {
        let usage = |(allocs, frees, bytes)| Usage { allocs, frees, diff: (allocs - frees) as i64, bytes }.into();
        Row {
            tag: Tag(*tag).to_string(),
            nonpaged: usage(nonpaged),
            paged: usage(paged),
            description: description.into(),
        }
    }

    fn used(rows: Vec<Row>, order: Order, verbose: bool, new_layout: bool) -> String {
        let mut total = Total::default();
        for row in &rows {
            total.nonpaged.add(row.nonpaged);
            total.paged.add(row.paged);
        }
        let mut text = String::new();
        PoolUsed { tags: rows, total, checks: Vec::new(), sessions: None, order, verbose, new_layout }
            .text(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn the_articles_table() {
        let rows = vec![
            row(b"Leak", (0, 0, 0), (123, 100, 23552000), "UNKNOWN pooltag 'Leak', please update pooltag.txt"),
            row(b"CM31", (0, 0, 0), (20520, 0, 18514560), "Internal Configuration manager allocations , Binary: nt!cm"),
            row(
                b"CIcr",
                (0, 0, 0),
                (2977, 0, 8511504),
                "Code Integrity allocations for image integrity checking , Binary: ci.dll",
            ),
            row(b"Gone", (5, 5, 0), (0, 0, 0), ""),
        ];
        assert_eq!(
            used(rows, Order::Paged, false, false),
            "   Sorting by  Paged Pool Consumed

  Pool Used:
            NonPaged            Paged
 Tag    Allocs     Used    Allocs     Used
Leak        0        0        23 23552000 UNKNOWN pooltag 'Leak', please update pooltag.txt
CM31        0        0     20520 18514560 Internal Configuration manager allocations , Binary: nt!cm
CIcr        0        0      2977  8511504 Code Integrity allocations for image integrity checking , Binary: ci.dll
TOTAL           0         0     23520 50578064
"
        );
    }

    #[test]
    fn the_current_table() {
        let rows = vec![
            row(b"ConT", (535, 0, 5935104), (0, 0, 0), "UNKNOWN pooltag 'ConT', please update pooltag.txt"),
            row(b"EtwB", (148, 0, 5206272), (16, 0, 442368), "Etw Buffer , Binary: nt!etw"),
        ];
        assert_eq!(
            used(rows, Order::NonPaged, false, true),
            " Sorting by NonPaged Pool Consumed

               NonPaged                  Paged
 Tag     Allocs         Used     Allocs         Used

 ConT       535      5935104          0            0\tUNKNOWN pooltag 'ConT', please update pooltag.txt
 EtwB       148      5206272         16       442368\tEtw Buffer , Binary: nt!etw

TOTAL       683     11141376         16       442368
"
        );
    }

    #[test]
    fn the_verbose_table() {
        let rows = vec![
            row(b"-UMD", (2, 1, 48), (0, 0, 0), "UNKNOWN pooltag '-UMD', please update pooltag.txt"),
            row(b"ALPC", (4528, 2111, 1440624), (0, 0, 0), "ALPC port objects , Binary: nt!alpc"),
        ];
        let text = used(rows, Order::Tag, true, true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "                            NonPaged                                         Paged");
        assert_eq!(
            lines[3],
            " Tag       Allocs       Frees      Diff         Used       Allocs       Frees      Diff         Used"
        );
        assert_eq!(
            lines[5],
            " -UMD           2           1         1           48            0           0         0            0\tUNKNOWN pooltag '-UMD', please update pooltag.txt"
        );
        assert_eq!(
            lines[6],
            " ALPC        4528        2111      2417      1440624            0           0         0            0\tALPC port objects , Binary: nt!alpc"
        );
    }
}
