//! Folded stacks, and the flame graph made of them.
//!
//! One line for each stack, outermost frame first, as Brendan Gregg's tools read them:
//!
//! ```text
//! nt!KiSystemServiceCopyEnd+0x13;nt!NtDeviceIoControlFile+0x56;myfault+0x11f6 23552000
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::check::{CheckReport, Group};
use crate::line::is_dangerous;
use crate::stack::Skip;

/// Which number of a group a graph is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// By bytes in use.
    Bytes,
    /// By blocks in use.
    Count,
    /// Growth since the mark; what shrank is blue.
    Difference,
}

impl Column {
    fn of(self, group: &Group) -> i64 {
        let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
        match self {
            Column::Bytes => signed(group.bytes),
            Column::Count => signed(group.count),
            Column::Difference => group.delta_bytes,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Column::Bytes => "bytes in use",
            Column::Count => "blocks in use",
            Column::Difference => "growth in bytes since the mark",
        }
    }
}

fn path(group: &Group, skip: &Skip) -> Vec<String> {
    match group.id {
        Some(_) => skip.fold(&group.frames).iter().rev().map(|frame| frame.to_string().replace(';', ":")).collect(),
        None => vec!["(not in the verifier's log)".into()],
    }
}

/// The stacks as text.
pub fn folded(report: &CheckReport, column: Column, skip: &Skip) -> String {
    let mut text = String::new();
    for group in report.stacks.iter().chain(&report.unattributed) {
        let value = column.of(group);
        if value != 0 {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {value}", path(group, skip).join(";"));
        }
    }
    text
}

#[derive(Default)]
struct Node {
    /// What decides about the width.
    weight: u64,
    value: i64,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn add(&mut self, path: &[String], value: i64) {
        self.weight = self.weight.saturating_add(value.unsigned_abs());
        self.value = self.value.saturating_add(value);
        if let Some((first, rest)) = path.split_first() {
            self.children.entry(first.clone()).or_default().add(rest, value);
        }
    }

    fn depth(&self) -> usize {
        1 + self.children.values().map(Node::depth).max().unwrap_or(0)
    }
}

const WIDTH: f64 = 1200.0;
const ROW: usize = 18;
const TOP: usize = 30;
/// Narrower boxes are not drawn.
const NARROWEST: f64 = 0.3;

pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What would turn the rest of the line around is shown as what it is.
            c if is_dangerous(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// One SVG file that needs nothing else. Boxes have their whole text as a tooltip.
pub fn flame_graph(report: &CheckReport, column: Column, skip: &Skip) -> String {
    let mut root = Node::default();
    for group in report.stacks.iter().chain(&report.unattributed) {
        let value = column.of(group);
        if value != 0 {
            root.add(&path(group, skip), value);
        }
    }
    let height = TOP + ROW * root.depth() + 10;
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"monospace\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"8\" \
         y=\"18\" font-size=\"14\">{}: {}</text>\n",
        escaped(&report.mark),
        column.title()
    );
    if root.weight == 0 {
        let _ = writeln!(svg, "<text x=\"8\" y=\"{}\">nothing</text>", TOP + ROW);
    } else {
        draw(&root, "all", (0.0, WIDTH), height - ROW - 5, root.weight, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(node: &Node, name: &str, (x, width): (f64, f64), y: usize, all: u64, svg: &mut String) {
    let share = 100.0 * node.weight as f64 / all as f64;
    let colour = if node.value < 0 { "#7fa7d9" } else { colour(name) };
    let label = escaped(name);
    let _ = write!(
        svg,
        "<g><title>{label}: {} ({share:.1}%)</title><rect x=\"{x:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{}\" \
         fill=\"{colour}\" rx=\"1\"/>",
        node.value,
        (width - 0.5).max(0.1),
        ROW - 1
    );
    let room = (width / 7.5) as usize;
    if room >= 3 {
        let short: String = name.chars().take(room).collect();
        let _ = write!(svg, "<text x=\"{:.2}\" y=\"{}\">{}</text>", x + 3.0, y + ROW - 5, escaped(&short));
    }
    svg.push_str("</g>\n");
    let Some(above) = y.checked_sub(ROW) else { return };
    let mut left = x;
    for (name, child) in &node.children {
        let wide = width * child.weight as f64 / node.weight.max(1) as f64;
        if wide >= NARROWEST {
            draw(child, name, (left, wide), above, all, svg);
        }
        left += wide;
    }
}

/// The kernel's frames are pale, so that drivers stand out.
fn colour(name: &str) -> &'static str {
    match name.split(['!', '+']).next() {
        Some("nt" | "all" | "hal") => "#e8d9b0",
        _ => "#e8743b",
    }
}
