//! Where one operating system is told from another. What differs is asked for in few places, and each says why here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Whose business it is: carriers, and the program's own words and terminal.
const THEIRS: [&str; 5] =
    ["kd-link/src/", "kdpool/src/host.rs", "kdpool/src/keys.rs", "kdpool/src/signals.rs", "kdpool/src/terminal.rs"];

/// Everything else that does it, and why.
const EXCUSED: [(&str, &str); 10] = [
    ("kd-fake/examples/serve.rs", "offers the fake target's carriers"),
    ("kd-fake/src/server.rs", "Unix sockets and pseudo terminals are carriers of the fake target"),
    ("kd-fake/src/transport.rs", "the same; it shares nothing with kd-link on purpose"),
    ("kdpool/src/demo.rs", "chooses among the fake target's carriers"),
    ("kdpool/src/fake.rs", "the same"),
    ("kdpool/src/options.rs", "the same: --over has those that are there"),
    ("nt-leaks/src/private_file.rs", "files that only the user reads have modes on Unix"),
    ("nt-symbols/src/http.rs", "a word of advice about certificates"),
    ("nt-symbols/src/path.rs", "symbol paths are written in each system's own way, and that is what it is about"),
    ("nt-symbols/src/search.rs", "files of a store, which others read, have modes on Unix"),
];
const MARKS: [&str; 5] = ["cfg(unix", "cfg(windows", "cfg!(unix", "cfg!(windows", "target_os"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("tests") || path.ends_with("benches") => {}
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// What is only compiled for tests comes last in a file.
fn code(text: &str) -> &str {
    let end =
        ["#[cfg(test)]\nmod tests", "#[cfg(all(test, unix))]\nmod tests"].iter().filter_map(|mark| text.find(mark));
    &text[..end.min().unwrap_or(text.len())]
}

#[test]
fn few_places_tell_systems_apart() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut files = Vec::new();
    sources(&crates, &mut files);
    let excused = BTreeMap::from(EXCUSED);
    let mut used = 0;
    for file in files {
        let name = file.strip_prefix(&crates).unwrap().to_str().unwrap().replace('\\', "/");
        let text = fs::read_to_string(&file).unwrap();
        let line = code(&text).lines().find(|line| MARKS.iter().any(|mark| line.contains(mark)));
        if let Some(line) = line.filter(|_| !THEIRS.iter().any(|place| name.starts_with(place))) {
            assert!(excused.contains_key(name.as_str()), "{name} tells systems apart: {}", line.trim());
            used += 1;
        }
    }
    assert_eq!(used, excused.len(), "an excuse is not needed any more");
}
