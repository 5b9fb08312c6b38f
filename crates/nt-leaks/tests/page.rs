//! The report's page in a real browser: 10,000 blocks and 500 stacks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nt_leaks::{
    BlockReport, CheckReport, Evidence, Frame, Group, Growth, Page, Skip, Stacks, Summary, TagBooks, Trails, Verdict,
    html,
};
use nt_pool::Tag;
use serde_json::Value;

const BLOCKS: usize = 10_000;
const STACKS: usize = 500;

/// What is measured in the page: its rows, how long it took, what a sort, a filter and a zoom take and show.
const PROBE: &str = r#"<script>(function () {
  const out = { errors: [], loaded: performance.now() };
  onerror = (message) => out.errors.push(String(message));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const timed = (work) => { const begin = performance.now(); work(); document.body.offsetHeight; return performance.now() - begin; };
  const rows = (id) => all('#' + id + ' tbody tr').length;
  const cell = (id, column) => all('#' + id + ' tbody tr').map((row) => row.cells[column].textContent);
  const button = (id, column) => all('#' + id + ' thead th')[column].querySelector('button');
  out.stacks = rows('stacks'); out.groups = rows('blocks'); out.height = document.body.scrollHeight;
  out.sort = timed(() => button('blocks', 1).click());
  out.sizes = cell('blocks', 1);
  const filter = document.querySelector('#blocks input');
  out.filter = timed(() => { filter.value = 'tag0'; filter.dispatchEvent(new Event('input')); });
  out.tags = [...new Set(cell('blocks', 3))];
  document.querySelector('#stacks button.stack').click();
  out.opened = document.querySelector('#stacks pre.frames').textContent.split('\n').length;
  out.boxes = all('#flame button').length;
  const leaf = all('#flame button').find((box) => box.title.startsWith('driver'));
  out.zoom = timed(() => leaf.click());
  out.zoomed = all('#flame button').length; out.says = document.getElementById('flame-says').textContent;
  document.getElementById('flame-reset').click();
  document.getElementById('metric-blocks').click();
  out.metric = document.querySelector('#flame button').title;
  out.charts = document.querySelectorAll('#growth canvas').length;
  document.body.innerHTML = '';
  const pre = document.createElement('pre'); pre.id = 'probe'; pre.textContent = JSON.stringify(out);
  document.body.append(pre);
})()</script></body>"#;

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).find(|file| file.is_file())
}

fn frame(module: &str, offset: u64) -> Frame {
    let symbol = (module == "nt").then(|| format!("nt!Function{offset}+0x{:x}", offset % 97));
    Frame { address: 0xfffff880_00000000 + offset, module: Some(module.into()), offset, symbol }
}

fn report() -> CheckReport {
    report_of(STACKS, BLOCKS)
}

fn report_of(stack_count: usize, block_count: usize) -> CheckReport {
    let mut stacks = Stacks::default();
    let groups: Vec<Group> = (0..stack_count as u64)
        .map(|n| {
            let driver = format!("driver{}", n % 23);
            let mut frames = vec![frame(&driver, 0x1000 + n), frame(&driver, 0x9000 + n % 40)];
            frames.extend((0..14).map(|depth| frame("nt", depth * 50 + n % (15 - depth))));
            let id = stacks.add(frames.clone());
            let bytes = 20 * 256 * (1 + n % 7);
            Group { id: Some(id), bytes, count: 20, delta_bytes: bytes as i64 - 5000, delta_count: 3, frames }
        })
        .collect();
    let blocks = (0..block_count)
        .map(|n| BlockReport {
            address: 0xfffff8a0_00000000 + n as u64 * 0x1000,
            size: 256 * (1 + (n % stack_count) as u64 % 7) + (n as u64 % 3),
            tag: Tag([b'T', b'a', b'g', b'0' + (n % 10) as u8]),
            verdict: [Verdict::Still, Verdict::New, Verdict::Unknown][n % 3],
            evidence: vec![Evidence::Log, Evidence::Address],
            stack: groups[n % stack_count].id,
            stack_from: None,
            no_stack: None,
            listed: true,
        })
        .collect();
    let books = TagBooks {
        tag: Tag(*b"Tag0"),
        marked: 9_000,
        allocs: Some(1_000),
        frees: Some(0),
        at_least: 9_000,
        bytes: 12 << 20,
        bytes_marked: 10 << 20,
    };
    CheckReport {
        mark: "watch".into(),
        elapsed_ms: 60_000,
        blocks,
        stacks: groups,
        tags: vec![books],
        summary: Summary { still: 9000, freed: 40, reused: 12, new: 960, unknown: 0 },
        ..CheckReport::default()
    }
}

fn page(report: &CheckReport) -> String {
    let growth: Vec<Growth> =
        (1..=12u64).map(|n| Growth { elapsed_ms: n * 5000, bytes: (10 << 20) + n * 170_000 }).collect();
    let mut trails = Trails::default();
    for look in 1..=12u64 {
        let mut then = CheckReport { elapsed_ms: look * 5000, blocks: Vec::new(), ..report.clone() };
        for (group, place) in then.stacks.iter_mut().zip(1..) {
            // Some grow evenly, some at once, some late.
            let share = [look, if look > place % 12 { 12 } else { 0 }, look * look / 12][place as usize % 3];
            let missing = group.delta_bytes * (12 - share.min(12)) as i64 / 12;
            group.bytes = group.bytes.saturating_add_signed(-missing);
            group.delta_bytes -= missing;
        }
        trails.add(&then);
    }
    let outcome =
        ["driver3.sys+0x1003 leaks 2.0 MB/min (tag Tag0), confirmed by 12 checks".into(), "It grew each time.".into()];
    let facts = ["lab-7".into(), "Windows 7 Kernel Version 7601".into(), "2026-11-30 13:00".into()];
    let skip = Skip::none();
    html(&Page { last: report, growth: &growth, outcome: &outcome, trails: &trails, facts: &facts, skip: &skip })
}

/// The page's text when its scripts have run, and what the browser says of it.
fn shown(browser: &Path, folder: &Path, page: &str) -> (String, String) {
    let file = folder.join("page.html");
    std::fs::write(&file, page).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--enable-logging=stderr",
            "--window-size=1280,900",
        ])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", file.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (String::from_utf8_lossy(&output.stdout).into(), String::from_utf8_lossy(&output.stderr).into())
}

#[test]
fn a_large_page_is_quick_and_keeps_its_own_policy() {
    let Some(browser) = browser() else {
        println!("skipped: there is no chromium on this machine");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = page(&report());
    // As it is: the policy lets the page's own scripts run, and refuses nothing of it.
    let (dom, log) = shown(&browser, folder.path(), &page);
    assert!(dom.contains("aria-sort"), "the script did not run: {log}");
    assert!(!log.contains("Content Security Policy") && !log.contains("Uncaught"), "{log}");
    // With a probe, which the policy would refuse.
    let (start, end) = (page.find("<meta http-equiv").unwrap(), page.find("<meta name").unwrap());
    let probed = format!("{}{}", &page[..start], &page[end..]).replace("</body>", PROBE);
    let (dom, log) = shown(&browser, folder.path(), &probed);
    let found = dom.split("<pre id=\"probe\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let found: Value =
        serde_json::from_str(&found.unwrap_or_else(|| panic!("{dom}{log}")).replace("&gt;", ">")).unwrap();
    let number = |name: &str| found[name].as_f64().unwrap();
    for name in ["loaded", "sort", "filter", "zoom"] {
        println!("{name}: {:.0} ms", number(name));
    }
    assert_eq!(found["errors"], serde_json::json!([]));
    assert_eq!((&found["stacks"], &found["groups"]), (&25.into(), &50.into()), "a page of each");
    assert!(number("height") < 6000.0, "{found}");
    // The goals are 500 ms and 100 ms on an idle machine; beside this test others run.
    assert!(number("loaded") < 2500.0 && number("sort") < 500.0 && number("filter") < 500.0, "{found}");
    let sizes: Vec<u64> = found["sizes"].as_array().unwrap().iter().map(hex).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] == 256 * 7 + 2, "{found}");
    assert_eq!(found["tags"], serde_json::json!(["Tag0"]));
    assert_eq!(number("opened"), 16.0);
    assert!(number("zoomed") < number("boxes") && found["says"].as_str().unwrap().starts_with("driver"), "{found}");
    assert!(found["metric"].as_str().unwrap().starts_with("all: 10,000 blocks"), "{found}");
    assert_eq!(number("charts"), 1.0);
}

fn hex(cell: &Value) -> u64 {
    u64::from_str_radix(cell.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// What the page shows are the report's numbers.
#[test]
fn the_data_of_a_page_is_the_reports() {
    let report = report();
    let page = page(&report);
    let json = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
    let data: Value = serde_json::from_str(json).unwrap();
    assert_eq!(data["blocks"].as_array().unwrap().len(), report.blocks.len());
    let stacks = data["stacks"].as_array().unwrap();
    let sum = |key: &str| stacks.iter().map(|stack| stack[key].as_i64().unwrap()).sum::<i64>();
    assert_eq!(sum("bytes"), report.stacks.iter().map(|group| group.bytes as i64).sum::<i64>());
    assert_eq!(sum("growth"), report.stacks.iter().map(|group| group.delta_bytes).sum::<i64>());
}
