//! One page with everything, which opens without a network.
//!
//! The page's data is JSON in it, and its script (page/page.js) makes tables and graphs of that as text: names come from
//! a target that nobody vouches for, and none of them is ever markup. Its policy lets nothing run but the two scripts
//! that are in the page, by their hashes. The chart is drawn by uPlot (MIT, page/LICENSE-uPlot).

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::flame::escaped;
use crate::check::{BlockReport, CheckReport, Evidence, Group, Growth, Verdict};
use crate::line::Line;
use crate::stack::{Skip, StackId};
use crate::trails::Trails;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");
const CHART_STYLE: &str = include_str!("page/uplot.min.css");
const CHART_SCRIPT: &str = include_str!("page/uplot.min.js");
const CHART_LICENCE: &str = include_str!("page/LICENSE-uPlot");

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What its tables and its flame graph are made of.
    pub last: &'a CheckReport,
    /// What it and the checks before it found in use, oldest first.
    pub growth: &'a [Growth],
    /// The answer in one line, and what it rests on.
    pub outcome: &'a [String],
    /// Bytes in use by stack at each check, as far as that is known: the lines beside the stacks.
    pub trails: &'a Trails,
    /// Machine, Windows, time, program: one fact each, in the order in which they are shown.
    pub facts: &'a [String],
    /// Which frames above the driver's are left out.
    pub skip: &'a Skip,
}

/// One file without links to others, which opens offline.
pub fn html(page: &Page<'_>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(page, &mut text);
    text
}

fn write_page(page: &Page<'_>, out: &mut String) -> std::fmt::Result {
    let last = page.last;
    let mark = format!("Pool since the mark {}", last.mark);
    let (headline, reasons) = match page.outcome.split_first() {
        Some((headline, reasons)) => (headline.as_str(), reasons),
        None => (mark.as_str(), &[][..]),
    };
    let title = escaped(headline);
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{CHART_STYLE}</style>\n<style>{STYLE}</style></head>\n<body>",
        policy()
    )?;
    writeln!(out, "<header><h1 id=\"outcome\">{title}</h1>\n<p class=\"facts\">")?;
    let elapsed = format!("{:.1} s of the target's time", last.elapsed_ms as f64 / 1000.0);
    for fact in page.facts.iter().chain([&elapsed]) {
        write!(out, "<span>{}</span>", escaped(fact))?;
    }
    writeln!(out, "</p></header>\n<main>")?;
    write_outcome(last, reasons, out)?;
    write_sections(last, out)?;
    writeln!(
        out,
        "</main>\n<footer class=\"quiet\"><p>Made by kdpool. The page needs no network. The chart is drawn by uPlot:</p>\
         <details><summary>its licence</summary><pre>{}</pre></details></footer>",
        escaped(CHART_LICENCE)
    )?;
    // Between script tags nothing ends the text but a tag, and JSON can do without its first character.
    let data = data(page).to_string().replace('<', "\\u003c");
    writeln!(out, "<script type=\"application/json\" id=\"data\">{data}</script>")?;
    writeln!(out, "<script>{CHART_SCRIPT}</script>\n<script>{SCRIPT}</script>\n</body></html>")
}

/// Nothing is loaded, nothing runs but what was in the program.
fn policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
    format!(
        "default-src 'none'; base-uri 'none'; form-action 'none'; script-src {} {}; style-src {} {}",
        hash(CHART_SCRIPT),
        hash(SCRIPT),
        hash(CHART_STYLE),
        hash(STYLE)
    )
}

fn write_outcome(last: &CheckReport, reasons: &[String], out: &mut String) -> std::fmt::Result {
    if !reasons.is_empty() {
        writeln!(out, "<ul id=\"reasons\">")?;
        for reason in reasons {
            writeln!(out, "<li>{}</li>", escaped(reason))?;
        }
        writeln!(out, "</ul>")?;
    }
    let s = &last.summary;
    writeln!(
        out,
        "<p id=\"summary\">{} still there, {} freed, {} reused, {} new, {} unknown.{}</p>",
        s.still,
        s.freed,
        s.reused,
        s.new,
        s.unknown,
        if last.log_wrapped { " The verifier's log went round in between." } else { "" }
    )?;
    for tag in &last.tags {
        writeln!(out, "<p class=\"quiet\">{}</p>", escaped(&tag.to_string()))?;
    }
    for note in last.notes.iter() {
        writeln!(out, "<p class=\"open\">{}</p>", escaped(&note.to_string()))?;
    }
    Ok(())
}

fn write_sections(last: &CheckReport, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Growth</h2>\n<div id=\"growth\" role=\"img\" aria-label=\"bytes in use at each stop; the table below has the \
         numbers\"></div>\n<details><summary>Stops as a table</summary><div class=\"wide\"><table><thead><tr><th \
         class=\"n\">Running time</th><th class=\"n\">In use</th><th class=\"n\">Since the stop before</th></tr></thead>\
         <tbody id=\"growth-table\"></tbody></table></div></details>\n\
         <h2>Stacks</h2>\n<div id=\"stacks\"></div>\n\
         <h2>Flame graph</h2>\n<div class=\"tools\"><fieldset aria-label=\"what the width shows\">\
         <label><input type=\"radio\" name=\"metric\" value=\"growth\" id=\"metric-growth\" checked> growth</label>\
         <label><input type=\"radio\" name=\"metric\" value=\"bytes\" id=\"metric-bytes\"> bytes</label>\
         <label><input type=\"radio\" name=\"metric\" value=\"blocks\" id=\"metric-blocks\"> blocks</label></fieldset>\
         <input type=\"search\" id=\"flame-search\" placeholder=\"Find a frame\" aria-label=\"Find a frame\">\
         <button type=\"button\" id=\"flame-reset\">Reset</button></div>\n\
         <p id=\"flame-says\" class=\"says\" role=\"status\"></p>\n<div id=\"flame\" class=\"flame\"></div>\n\
         <p class=\"quiet\">A click on a frame shows it and what it called alone, narrow ones too; the \
         kernel's frames are pale, what shrank is blue.</p>\n<h2>Blocks</h2>\n<div id=\"blocks\"></div>"
    )?;
    let mut seen: Vec<Evidence> = last.blocks.iter().flat_map(|block| block.evidence.iter().copied()).collect();
    seen.sort_unstable();
    seen.dedup();
    if !seen.is_empty() {
        writeln!(out, "<h2>What the evidence is</h2>\n<dl>")?;
        for evidence in seen {
            writeln!(out, "<dt>{}</dt><dd>{}</dd>", evidence.word(), meaning(evidence))?;
        }
        writeln!(out, "</dl>")?;
    }
    Ok(())
}

fn meaning(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Log => "Driver Verifier's log shows what happened to the block, or that nothing did.",
        Evidence::Counters => "The kernel's counts of the tag's allocations and frees leave no other possibility.",
        Evidence::Header => {
            "The pool header is as it was at the mark. Weak: the next block of the same size and tag gets the same."
        }
        Evidence::Content => {
            "The first bytes are as they were at the mark. Weak: a driver may fill each block alike, or never write to it."
        }
        Evidence::Address => "The kernel's own list of blocks has the address, or has it no more.",
    }
}

/// Words that many rows share, each once.
#[derive(Default)]
struct Words {
    list: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Words {
    fn place(&mut self, word: String) -> usize {
        let next = self.list.len();
        let place = *self.places.entry(word.clone()).or_insert(next);
        if place == next {
            self.list.push(word);
        }
        place
    }
}

fn data(page: &Page<'_>) -> Value {
    let mut frames = Words::default();
    let groups: Vec<&Group> = page.last.stacks.iter().chain(&page.last.unattributed).collect();
    let trails: BTreeMap<StackId, &[u64]> =
        page.trails.stacks.iter().map(|trail| (trail.stack, &trail.bytes[..])).collect();
    let stacks: Vec<Value> = groups.iter().map(|group| stack(group, page, &trails, &mut frames)).collect();
    let places: BTreeMap<StackId, usize> =
        groups.iter().enumerate().filter_map(|(place, group)| Some((group.id?, place))).collect();
    let (mut tags, mut why) = (Words::default(), Words::default());
    let blocks: Vec<Value> = page.last.blocks.iter().map(|found| block(found, &places, &mut tags, &mut why)).collect();
    let growth: Vec<(f64, u64)> = start(page.last)
        .into_iter()
        .chain(page.growth.iter().map(|check| (check.elapsed_ms as f64 / 1000.0, check.bytes)))
        .collect();
    json!({
        "growth": growth,
        "frames": frames.list,
        "looks": page.trails.elapsed_ms,
        "stacks": stacks,
        "blocks": blocks,
        "words": {
            "tags": tags.list,
            "verdicts": VERDICTS.map(Verdict::word),
            "evidence": EVIDENCE.map(Evidence::word),
            "why": why.list,
        },
    })
}

/// What was in use at the mark.
fn start(last: &CheckReport) -> Option<(f64, u64)> {
    let marked = last.tags.iter().fold(0u64, |sum, tag| sum.saturating_add(tag.bytes_marked));
    (!last.tags.is_empty()).then_some((0.0, marked))
}

const VERDICTS: [Verdict; 5] = [Verdict::Still, Verdict::Freed, Verdict::Reused, Verdict::New, Verdict::Unknown];
const EVIDENCE: [Evidence; 5] =
    [Evidence::Log, Evidence::Counters, Evidence::Header, Evidence::Content, Evidence::Address];

fn stack(group: &Group, page: &Page<'_>, trails: &BTreeMap<StackId, &[u64]>, frames: &mut Words) -> Value {
    let shown = match group.id {
        Some(_) => page.skip.fold(&group.frames),
        None => &[],
    };
    let shown: Vec<usize> = shown.iter().map(|frame| frames.place(frame.to_string().cleaned())).collect();
    json!({
        "id": group.id.map_or(String::new(), |id| id.to_string()),
        "bytes": group.bytes,
        "count": group.count,
        "growth": group.delta_bytes,
        "more": group.delta_count,
        "frames": shown,
        "trail": group.id.and_then(|id| trails.get(&id)),
    })
}

/// Address, size, and the places of tag, verdict, evidence, stack and why there is none; -1 is none.
fn block(block: &BlockReport, stacks: &BTreeMap<StackId, usize>, tags: &mut Words, why: &mut Words) -> Value {
    let verdict = VERDICTS.iter().position(|verdict| *verdict == block.verdict);
    let evidence: Vec<String> = block
        .evidence
        .iter()
        .filter_map(|evidence| EVIDENCE.iter().position(|known| known == evidence))
        .map(|place| place.to_string())
        .collect();
    let place = |place: Option<usize>| place.map_or(-1, |place| i64::try_from(place).unwrap_or(-1));
    json!([
        format!("{:016x}", block.address),
        block.size,
        tags.place(block.tag.to_string().cleaned()),
        place(verdict),
        evidence.join(" "),
        place(block.stack.and_then(|id| stacks.get(&id).copied())),
        place(block.no_stack.map(|reason| why.place(reason.why().into()))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Summary, TagBooks};
    use crate::stack::{Frame, Stacks};

    fn report(names: &[&str]) -> CheckReport {
        let frames: Vec<Frame> = names
            .iter()
            .enumerate()
            .map(|(at, name)| Frame {
                address: 0x1000 + at as u64,
                module: Some("myfault".into()),
                offset: at as u64,
                symbol: Some((*name).into()),
            })
            .collect();
        let id = Stacks::default().add(frames.clone());
        let group = Group { id: Some(id), bytes: 300, count: 3, delta_bytes: 200, delta_count: 2, frames };
        let block = BlockReport {
            address: 0xfffff8a0_06200000,
            size: 100,
            tag: nt_pool::Tag(*b"Leak"),
            verdict: Verdict::Still,
            evidence: vec![Evidence::Log],
            stack: Some(id),
            stack_from: None,
            no_stack: None,
            listed: true,
        };
        let books = TagBooks {
            tag: nt_pool::Tag(*b"Leak"),
            marked: 1,
            allocs: Some(2),
            frees: Some(0),
            at_least: 1,
            bytes: 300,
            bytes_marked: 100,
        };
        CheckReport {
            mark: "</title><script>alert(1)</script>".into(),
            elapsed_ms: 1500,
            blocks: vec![block],
            stacks: vec![group],
            unattributed: None,
            summary: Summary { still: 1, freed: 0, reused: 0, new: 2, unknown: 0 },
            tags: vec![books],
            log_wrapped: false,
            is_counted: true,
            modules: Vec::new(),
            notes: Default::default(),
        }
    }

    fn page(report: &CheckReport) -> String {
        let growth = [report.growth()];
        let outcome = ["myfault+0x11f6 <leaks>".into(), "because & so".into()];
        let mut trails = Trails::default();
        trails.add(report);
        let facts = ["Windows 7 <7601>".into()];
        html(&Page {
            last: report,
            growth: &growth,
            outcome: &outcome,
            trails: &trails,
            facts: &facts,
            skip: &Skip::none(),
        })
    }

    fn data_of(page: &str) -> Value {
        let json = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn nothing_that_a_target_says_is_markup() {
        let page = page(&report(&["</script><img src=x onerror=alert(1)>", "a\u{202e}b\nc"]));
        assert_eq!(page.matches("<script").count(), 3);
        assert_eq!(page.matches("</script>").count(), 3);
        assert!(!page.contains("<img") && !page.contains('\u{202e}'));
        assert!(page.contains("myfault+0x11f6 &lt;leaks&gt;") && page.contains("Windows 7 &lt;7601&gt;"));
        assert_eq!(data_of(&page)["frames"][0], "myfault!</script><img src=x onerror=alert(1)>");
    }

    #[test]
    fn the_numbers_are_the_reports() {
        let report = report(&["f"]);
        let data = data_of(&page(&report));
        assert_eq!(data["growth"], json!([[0.0, 100], [1.5, 300]]));
        assert_eq!(data["stacks"][0]["growth"], 200);
        assert_eq!((&data["looks"], &data["stacks"][0]["trail"]), (&json!([0, 1500]), &json!([100, 300])));
        assert_eq!(data["blocks"][0], json!(["fffff8a006200000", 100, 0, 0, "0", 0, -1]));
        assert_eq!(data["words"]["tags"], json!(["Leak"]));
    }

    /// The hashes of the policy are those of the text between the tags, or no browser runs the page.
    #[test]
    fn the_policy_names_what_is_in_the_page() {
        let page = page(&report(&["f"]));
        for tag in ["style", "script"] {
            let (opened, closed) = (format!("<{tag}>"), format!("</{tag}>"));
            let texts: Vec<&str> = page.split(&opened).skip(1).filter_map(|rest| rest.split(&closed).next()).collect();
            assert_eq!(texts.len(), 2);
            for text in texts {
                let hash = STANDARD.encode(Sha256::digest(text.as_bytes()));
                assert!(page.contains(&format!("'sha256-{hash}'")), "{tag}");
            }
        }
    }
}
