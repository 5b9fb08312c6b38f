//! Bytes as a mark's or a report's file, and what is made of them: pages, flame graphs, profiles, tables.
//!
//! The first byte: 0 the whole file; 1 the body of a mark, whose checksum is made right; else a report.

use nt_leaks::{CheckReport, FORMATS, Saved, Sheet, Skip, Trails, culprit, folded, umdh, umdh_snapshot, versus};
use sha2::{Digest, Sha256};

/// One input.
pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let text = match kind % 4 {
        1 => {
            let sum = hex::encode(Sha256::digest(text));
            format!(r#"{{"format":"kdpool leak mark","version":2,"sha256":"{sum}","body":{text}}}"#)
        }
        _ => text.to_owned(),
    };
    let Ok(mut saved) = Saved::parse(&text, "fuzz.json") else { return };
    let named = saved.name(&mut |pdb, rva| (rva % 3 > 0).then(|| format!("{}+{rva:x}", pdb.file)));
    assert!(named <= text.len());
    let _ = saved.modules().len();
    match &saved {
        Saved::Mark(mark) => {
            let written = mark.to_json().expect("what was read can be written");
            assert!(matches!(Saved::parse(&written, "again"), Ok(Saved::Mark(again)) if again == *mark));
        }
        Saved::Report(report) => show(Some(report), None),
        Saved::Watch(watch) => show(watch.last.as_ref(), Some(watch)),
    }
    let _ = versus(&saved, &saved, &Skip::default());
}

fn show(last: Option<&CheckReport>, watch: Option<&nt_leaks::WatchReport>) {
    let (trails, skip) = (Trails::default(), Skip::default());
    let sheet = Sheet {
        last,
        watch,
        growth: &[],
        outcome: &[],
        trails: &trails,
        facts: &[],
        skip: &skip,
        strict: true,
        answer: &|| Ok(String::new()),
    };
    for format in FORMATS {
        if let Ok(Some(content)) = format.content(&sheet)
            && matches!(format.name, "html" | "svg" | "svg-count" | "svg-diff")
        {
            let text = String::from_utf8(content).expect("a page is text");
            assert!(!text.contains("<evil>"), "what a file says is in a page as it is");
        }
    }
    if let Some(last) = last {
        let mut text = String::new();
        let _ = umdh(last, &skip, false, &mut text);
        let _ = umdh_snapshot(last, &skip, true, &mut text);
        let _ = culprit(last, &skip);
        // Each stack is a line: no frame makes another.
        let lines = folded(last, nt_leaks::Column::Bytes, &Skip::none()).lines().count();
        assert!(lines <= last.stacks.len() + 2, "{lines} lines of {} stacks", last.stacks.len());
    }
}
