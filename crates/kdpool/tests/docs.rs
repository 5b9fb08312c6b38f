//! README and docs: links lead somewhere, every page is linked from another one, and what stands in a fence to be typed is typed.
//!
//! A fence of a shell (`sh`, `bat`, `powershell`) is run, or says behind its language why not: `sh not-run: needs a VM`.
//! `sh background` is started and ended by an interrupt; `sh status 0 or 1: why` allows a status beside 0. What a
//! command line names as a target is a fake one here: the line is typed otherwise as it is written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All pages: README and its kin, and everything below docs.
fn pages() -> Vec<PathBuf> {
    fn below(folder: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => below(&path, pages),
                false if path.extension().is_some_and(|extension| extension == "md") => pages.push(path),
                false => {}
            }
        }
    }
    let root = root();
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)).into();
    below(&root.join("docs"), &mut pages);
    pages.sort();
    pages
}

/// One fence: what stands behind its backticks, the line it begins in, and its lines.
struct Fence {
    info: String,
    line: usize,
    text: Vec<String>,
}

/// A page's fences, and its lines outside of them.
fn parts(text: &str) -> (Vec<Fence>, Vec<(usize, String)>) {
    let (mut fences, mut prose): (Vec<Fence>, Vec<(usize, String)>) = (Vec::new(), Vec::new());
    let mut open: Option<Fence> = None;
    for (number, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open.take()) {
            (Some(_), Some(fence)) => fences.push(fence),
            (Some(info), None) => open = Some(Fence { info: info.trim().into(), line: number + 1, text: Vec::new() }),
            (None, Some(mut fence)) => {
                fence.text.push(line.to_owned());
                open = Some(fence);
            }
            (None, None) => prose.push((number + 1, line.to_owned())),
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    (fences, prose)
}

/// A heading's name in a link, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The targets of a line's links, those in code left out.
fn links(line: &str) -> Vec<String> {
    let mut plain = String::new();
    for (part, text) in line.split('`').enumerate() {
        // Every second part stands between backticks; its place is kept.
        plain.push_str(if part % 2 == 0 { text } else { "code" });
    }
    plain.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (number, line) in parts(&text).1 {
            for link in links(&line) {
                if link.contains("://") {
                    continue;
                }
                let (file, wanted) = link.split_once('#').unwrap_or((&link, ""));
                let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
                assert!(target.exists(), "{}:{number}: {link} leads nowhere", page.display());
                if !wanted.is_empty() {
                    let there = fs::read_to_string(&target).unwrap();
                    let prose = parts(&there).1;
                    let mut headings = prose.iter().filter_map(|(_, line)| line.strip_prefix('#'));
                    let found = headings.any(|heading| anchor(heading.trim_start_matches('#')) == wanted);
                    assert!(found, "{}:{number}: {link}: no such heading", page.display());
                }
                checked += 1;
            }
        }
    }
    assert!(checked > 60, "{checked}");
}

/// Whoever begins at the README or the summary finds every page.
#[test]
fn every_page_is_reached() {
    let root = root();
    let mut left = vec![root.join("README.md"), root.join("docs/SUMMARY.md"), root.join("CHANGELOG.md")];
    let mut reached: BTreeSet<PathBuf> = left.iter().cloned().collect();
    while let Some(page) = left.pop() {
        let text = fs::read_to_string(&page).unwrap();
        for (_, line) in parts(&text).1 {
            let files = links(&line).into_iter().map(|link| link.split('#').next().unwrap_or_default().to_owned());
            for file in files.filter(|file| file.ends_with(".md") && !file.contains("://")) {
                let Ok(target) = page.parent().unwrap().join(file).canonicalize() else { continue };
                if reached.insert(target.clone()) {
                    left.push(target);
                }
            }
        }
    }
    for page in pages() {
        assert!(reached.contains(&page), "{} is in no other page's links", page.display());
    }
}

/// In bash an exclamation mark between double quotes means a line of before, and zsh refuses a bare star that names no
/// file.
#[test]
fn commands_and_stars_stand_in_single_quotes() {
    for page in pages() {
        for fence in parts(&fs::read_to_string(&page).unwrap()).0 {
            for line in fence.text.iter().filter(|_| fence.info.starts_with("sh")) {
                let place = format!("{}:{}: {line}", page.display(), fence.line);
                assert!(!line.contains("-c \"") && !line.contains(" srv*"), "{place}");
            }
        }
    }
}

/// The README's `cargo run` names no program, and so there may be one only among the members that it looks at.
#[test]
fn cargo_run_finds_one_program() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = std::process::Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let default = metadata["workspace_default_members"].as_array().unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().filter(|package| default.contains(&package["id"]));
    let targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
    let programs = targets.filter(|target| target["kind"][0] == "bin").map(|target| target["name"].as_str().unwrap());
    assert_eq!(programs.collect::<Vec<_>>(), ["kdpool"]);
}

#[cfg(unix)]
mod typed {
    use super::*;
    use kd_fake::kernel::{article, article_activity};
    use kd_fake::{FakeOptions, FakeTarget, FakeTransport};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    /// Runs a fence in a folder of its own, with a fake target for what it names.
    struct Lab {
        fake: FakeTarget,
        folder: tempfile::TempDir,
    }

    impl Lab {
        fn new() -> Lab {
            let folder = tempfile::tempdir().unwrap();
            kd_fake::kernel::write_symbol_store(&folder.path().join("symbols")).unwrap();
            let transport = FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
            let mut options = FakeOptions::new(transport, article());
            // A hunt without a tag goes on until something grows.
            options.evolve = Some(Box::new(article_activity(Some(Duration::from_millis(100)), false)));
            let fake = FakeTarget::start(options).unwrap();
            Lab { fake, folder }
        }

        /// The line with this target for the page's, its own symbols for Microsoft's, and no patience.
        fn line(&self, line: &str) -> String {
            let connection = format!("com:ipport={},port=127.0.0.1", self.fake.address().unwrap().port());
            let mut words: Vec<String> = Vec::new();
            let mut after = String::new();
            for word in line.split(' ') {
                words.push(match after.as_str() {
                    "-k" => connection.clone(),
                    "-y" => "symbols".into(),
                    "--every" => "200ms".into(),
                    _ => word.into(),
                });
                after = word.into();
            }
            words.join(" ").replace("cargo run --release --", "kdpool")
        }

        fn run(&self, script: &str) -> Output {
            let kdpool = Path::new(env!("CARGO_BIN_EXE_kdpool"));
            let path = format!("{}:{}", kdpool.parent().unwrap().display(), std::env::var("PATH").unwrap());
            let home = self.folder.path();
            Command::new("timeout")
                .args(["60", "sh", "-e", "-c", script])
                .current_dir(home)
                .env("PATH", path)
                .env("HOME", home)
                .env("XDG_STATE_HOME", home)
                .env("XDG_CACHE_HOME", home)
                .env_remove("RUST_LOG")
                .env_remove("_NT_SYMBOL_PATH")
                .stdin(Stdio::null())
                .output()
                .unwrap()
        }

        /// Starts it, and interrupts it when it has begun.
        fn start(&self, script: &str) {
            let kdpool = Path::new(env!("CARGO_BIN_EXE_kdpool"));
            let script = script.replace("50000", "50999");
            let mut words = script.split_whitespace();
            assert_eq!(words.next(), Some("kdpool"), "{script}");
            let output = Command::new("timeout")
                .args(["--signal=INT", "3"])
                .arg(kdpool)
                .args(words)
                .current_dir(self.folder.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("Attach with"), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    #[test]
    fn every_command_line_is_typed() {
        let lab = Lab::new();
        let (mut ran, mut excused) = (0, 0);
        for page in pages() {
            for fence in parts(&fs::read_to_string(&page).unwrap()).0 {
                let (language, rest) = fence.info.split_once(' ').unwrap_or((&fence.info, ""));
                if !["sh", "bash", "shell", "bat", "cmd", "powershell"].contains(&language) {
                    continue;
                }
                let place = format!("{}:{}", page.display(), fence.line);
                if let Some(why) = rest.strip_prefix("not-run:") {
                    assert!(!why.trim().is_empty(), "{place}: why is it not run?");
                    excused += 1;
                    continue;
                }
                assert_eq!(language, "sh", "{place}: this cannot be run here; say `{language} not-run: why`");
                let script: Vec<String> = fence.text.iter().map(|line| lab.line(line)).collect();
                if rest == "background" {
                    script.iter().for_each(|line| lab.start(line));
                    ran += 1;
                    continue;
                }
                let allowed: Vec<i32> = match rest.strip_prefix("status ").and_then(|rest| rest.split_once(':')) {
                    Some((statuses, _)) => statuses.split(" or ").map(|status| status.parse().unwrap()).collect(),
                    None => vec![0],
                };
                let output = lab.run(&script.join("\n"));
                let said = format!("{place}\n{}", String::from_utf8_lossy(&output.stderr));
                let status = output.status.code();
                assert!(status.is_some_and(|status| allowed.contains(&status)), "{status:?}: {said}");
                assert_eq!(output.status.signal(), None, "{said}");
                ran += 1;
            }
        }
        println!("{ran} fences were typed, {excused} say why they are not");
        assert!(ran > 25, "{ran}");
        // Nothing that was typed left its target standing.
        std::thread::sleep(Duration::from_millis(200));
        assert!(!lab.fake.stats().halted);
    }
}
