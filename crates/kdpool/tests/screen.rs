//! The recorded screen of the README: a hunt of the real program, at a terminal, against a fake target that leaks.
//!
//! `KDPOOL_BLESS=1 cargo test -p kdpool --test screen` writes docs/hunt.svg anew. Without it the test makes the screen
//! again and compares its words; figures differ from run to run.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kd_fake::kernel::{article, article_activity};
use kd_fake::{FakeOptions, FakeTarget, FakeTransport};

const ROWS: u16 = 34;
const COLUMNS: u16 = 104;

/// What is typed, as the picture shows it.
const TYPED: &str = "kdpool leak --every 300ms --times 4 -k net:port=50000,key=1.2.3.4 -y 'srv*'";

fn size(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// The terminal's last screen.
fn record() -> vt100::Parser {
    let folder = tempfile::tempdir().unwrap();
    kd_fake::kernel::write_symbol_store(&folder.path().join("symbols")).unwrap();
    let transport = FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
    let mut options = FakeOptions::new(transport, article());
    options.evolve = Some(Box::new(article_activity(Some(Duration::from_millis(100)), false)));
    let fake = FakeTarget::start(options).unwrap();
    let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
    let line = TYPED.replace("net:port=50000,key=1.2.3.4", &connection).replace("-y 'srv*'", "-y symbols");
    let line = line.replacen("kdpool", env!("CARGO_BIN_EXE_kdpool"), 1);
    let output = Command::new("script")
        .args(["-qec", &format!("stty rows {ROWS} cols {COLUMNS}; {line}"), "/dev/null"])
        .current_dir(folder.path())
        .env("TERM", "xterm-256color")
        .env("XDG_STATE_HOME", folder.path())
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut screen = vt100::Parser::new(size(ROWS), size(COLUMNS), 0);
    screen.process(format!("$ {TYPED}\r\n").as_bytes());
    screen.process(&output.stdout);
    assert!(output.status.success(), "{}", screen.screen().contents());
    screen
}

/// xterm's colours, as they are legible on a dark ground.
fn colour(colour: vt100::Color) -> String {
    const SIXTEEN: [&str; 16] = [
        "#000000", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d4d4d4", "#7f848e", "#ff7b86",
        "#b5e090", "#ffd68a", "#7cc4ff", "#dd9bef", "#6fd3de", "#ffffff",
    ];
    match colour {
        vt100::Color::Default => "#d4d4d4".into(),
        vt100::Color::Idx(index) => SIXTEEN.get(usize::from(index)).copied().unwrap_or("#d4d4d4").into(),
        vt100::Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A run of characters that look the same.
struct Run {
    column: u16,
    text: String,
    style: String,
}

fn runs(screen: &vt100::Screen, row: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for column in 0..COLUMNS {
        let Some(cell) = screen.cell(row, column) else { continue };
        let text = if cell.has_contents() { cell.contents() } else { " " };
        let weight = if cell.bold() { " font-weight=\"bold\"" } else { "" };
        let style = format!("fill=\"{}\"{weight}", colour(cell.fgcolor()));
        match runs.last_mut() {
            Some(last) if last.style == style => last.text.push_str(text),
            _ => runs.push(Run { column, text: text.into(), style }),
        }
    }
    if let Some(last) = runs.last_mut() {
        last.text.truncate(last.text.trim_end().len());
    }
    runs.retain(|run| !run.text.trim().is_empty());
    runs
}

fn svg(screen: &vt100::Screen) -> String {
    const CELL: f64 = 8.4;
    const LINE: f64 = 18.0;
    let rows: Vec<Vec<Run>> = (0..ROWS).map(|row| runs(screen, row)).collect();
    let used = rows.iter().rposition(|runs| !runs.is_empty()).map_or(0, |last| last + 1);
    let (width, height) = (CELL * f64::from(COLUMNS) + 24.0, LINE * used as f64 + 24.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"A terminal: {TYPED}\" font-family=\"ui-monospace, Menlo, Consolas, monospace\" font-size=\"14\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#1e1e1e\"/>\n"
    );
    for (number, runs) in rows.iter().take(used).enumerate() {
        let y = LINE * number as f64 + 26.0;
        for run in runs {
            // Each run says how wide it is: fonts differ.
            let length = run.text.chars().count() as f64 * CELL;
            let x = f64::from(run.column) * CELL + 12.0;
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y}\" textLength=\"{length:.1}\" xml:space=\"preserve\" {}>{}</text>",
                run.style,
                escaped(&run.text)
            );
        }
    }
    out + "</svg>\n"
}

/// Units: how large a figure is decides which one it has.
const UNITS: [&str; 12] = ["ms", "s", "min", "h", "d", "B", "KB", "MB", "GB", "bytes", "blocks", "MB/min"];

/// The words of a picture, a line for each of the screen's; figures, addresses and units are all the same. Of the date a
/// line says only that there is one, and how often the counters were read depends on the machine.
fn words(svg: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut at = String::new();
    for text in svg.lines().filter_map(|line| line.strip_prefix("<text ")) {
        let y = text.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let shown = text.split_once('>').map_or("", |(_, rest)| rest.trim_end_matches("</text>"));
        if y != at {
            lines.push(String::new());
            at = y.into();
        }
        let line = lines.last_mut().unwrap();
        for word in shown.split_whitespace() {
            let unit = word.trim_matches(|c: char| c.is_ascii_punctuation());
            let figure = word.chars().any(|c| c.is_ascii_digit()) || UNITS.contains(&unit);
            // A sign may come or go with its figure.
            let word = if figure { "0" } else { word };
            if word == "0" && line.ends_with(" 0") {
                continue;
            }
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.retain(|line| !line.starts_with(" Connected to ") && !line.starts_with(" Reading "));
    lines
}

#[test]
fn the_recorded_screen_is_what_the_program_shows() {
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: the recorded screen (no `script` here)");
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hunt.svg");
    let mut made = svg(record().screen());
    if std::env::var_os("KDPOOL_BLESS").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    // On a machine that is busy with other things the program says, rightly, that a question will take long.
    for _ in 0..2 {
        if words(&made) != words(&kept) {
            made = svg(record().screen());
        }
    }
    assert_eq!(words(&made), words(&kept), "docs/hunt.svg is stale: KDPOOL_BLESS=1 cargo test -p kdpool --test screen");
    assert!(kept.contains("myfault"), "the picture names who leaks");
}

/// poolmon's keys: the screen is sorted anew at once, and q ends it.
#[test]
fn a_screen_of_tags_is_sorted_by_keys() {
    let demo = format!("{} demo -c '!pooltop -watch -every 1s'", env!("CARGO_BIN_EXE_kdpool"));
    let mut child = Command::new("script")
        .args(["-qefc", &format!("stty rows 24 cols 80; {demo}"), "/dev/null"])
        .env("TERM", "xterm-256color")
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (send, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            // Nobody listens any more when the test has failed.
            let _ = send.send(bytes[..count].to_vec());
        }
    });
    let mut screen = vt100::Parser::new(size(24), size(80), 0);
    let mut wait = |what: &str| {
        let end = Instant::now() + Duration::from_secs(30);
        while !screen.screen().contents().contains(what) {
            match received.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => screen.process(&bytes),
                Err(_) => panic!("no {what:?}:\n{}", screen.screen().contents()),
            }
        }
        screen.screen().contents()
    };
    let first = wait("Sorted by bytes, both pools");
    assert!(first.contains(" Keys: b bytes, a allocs, f frees, d diff, g growth, t tag, p pool, q quit"), "{first}");
    keys.write_all(b"t").unwrap();
    let by_tag = wait("Sorted by tag, both pools");
    let tags: Vec<&str> = by_tag.lines().filter(|line| line.contains(" Paged ") || line.contains(" Nonp ")).collect();
    assert!(tags.len() == 18 && tags.is_sorted_by_key(|line| &line[..5]), "{by_tag}");
    keys.write_all(b"pp").unwrap();
    let paged = wait("Sorted by tag, paged");
    assert!(!paged.contains(" Nonp "), "{paged}");
    keys.write_all(b"Aq").unwrap();
    // The table stays, without the lines about keys.
    let last = wait("The target runs since");
    let most: Vec<u64> =
        last.lines().filter_map(|line| line.split(" Paged ").nth(1)?.split_whitespace().next()?.parse().ok()).collect();
    assert!(most.len() > 9 && most.is_sorted_by(|a, b| a >= b) && !last.contains("Keys: "), "{last}");
    keys.write_all(b"q\n").unwrap();
    assert!(child.wait().unwrap().success());
}
