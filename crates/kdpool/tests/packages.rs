//! What a release is made of, as packaging/dist.sh packs it. A small script stands for the program, so that nothing is
//! built; everything else is the program's own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn ran(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: Output) -> String {
    String::from_utf8(output.stdout).unwrap()
}

/// The archive that dist.sh makes in a folder, with the modes that somebody's `umask` gives.
fn pack(folder: &Path, umask: &str) -> PathBuf {
    let program = folder.join("program");
    fs::write(&program, format!("#!/bin/sh\nexec '{}' \"$@\"\n", env!("CARGO_BIN_EXE_kdpool"))).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!(
        "umask {umask}; exec '{}' --program '{}'",
        root().join("packaging/dist.sh").display(),
        program.display()
    );
    // With a commit's time, which a folder that is no repository does not have.
    ran(Command::new("sh")
        .args(["-c", &script])
        .env("DIST", folder.join("dist"))
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // The .deb needs a tool that few have, and the whole program.
        .env("KDPOOL_ONLY_TARBALL", "1"));
    let mut archives = fs::read_dir(folder.join("dist")).unwrap().map(|entry| entry.unwrap().path());
    archives.find(|path| path.to_str().unwrap().ends_with(".tar.gz")).unwrap()
}

#[test]
fn a_release_has_all_parts_and_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (pack(one.path(), "022"), pack(two.path(), "077"));
    // The script names the same program, so nothing may differ.
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "two packings of one commit differ");

    ran(Command::new("tar").arg("xzf").arg(&first).current_dir(one.path()));
    let name = first.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap().to_owned();
    let unpacked = one.path().join(&name);
    let listed: BTreeSet<String> = text(ran(Command::new("find").args([".", "-type", "f"]).current_dir(&unpacked)))
        .lines()
        .map(String::from)
        .collect();
    for part in [
        "./kdpool",
        "./LICENSE",
        "./LICENSE-tables.md",
        "./README.md",
        "./CHANGELOG.md",
        "./pooltag.txt",
        "./man/kdpool.1",
        "./man/kdpool-leak.1",
        "./schemas/poolused.json",
        "./completions/kdpool.bash",
        "./completions/kdpool.zsh",
        "./completions/kdpool.fish",
        "./completions/kdpool.powershell",
    ] {
        assert!(listed.contains(part), "{part} is missing: {listed:?}");
    }
    // It runs where it was unpacked, and takes the tags that lie beside it.
    let version = text(ran(Command::new(unpacked.join("kdpool")).arg("--version")));
    assert!(version.starts_with(&format!("kdpool {}", env!("CARGO_PKG_VERSION"))), "{version}");

    // The Debian package's manifest names nothing that is not there.
    let manifest = fs::read_to_string(root().join("crates/kdpool/Cargo.toml")).unwrap();
    let sources = manifest.lines().filter_map(|line| line.trim().strip_prefix("[\"../../dist/deb/")?.split('"').next());
    let mut assets = 0;
    for source in sources {
        let (folder, ending) = source.split_once('*').unwrap_or((source, ""));
        let found = listed.iter().any(|file| file[2..].starts_with(folder) && file.ends_with(ending));
        assert!(found, "Cargo.toml's asset {source} is not packed");
        assets += 1;
    }
    assert!(assets > 8, "{assets}");
    pages_are_read_without_complaint(&unpacked);
    bash_completes(&unpacked);
    fish_completes(&unpacked);
    zsh_completes(&unpacked);
}

fn pages_are_read_without_complaint(unpacked: &Path) {
    if Command::new("man").arg("--version").output().is_err() {
        println!("skipped: man is not installed; the pages were not formatted");
        return;
    }
    for page in fs::read_dir(unpacked.join("man")).unwrap().map(|entry| entry.unwrap().path()) {
        let output = ran(Command::new("man").args(["--warnings", "-P", "cat", "-l"]).arg(&page).env("MANWIDTH", "80"));
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complaints.is_empty(), "{}: {complaints}", page.display());
        assert!(text(output).contains("kdpool"), "{}", page.display());
    }
}

fn bash_completes(unpacked: &Path) {
    let complete = "source completions/kdpool.bash; COMP_WORDS=(kdpool le); COMP_CWORD=1; _kdpool kdpool le kdpool; echo \"${COMPREPLY[@]}\"";
    let output = ran(Command::new("bash").args(["--norc", "-c", complete]).current_dir(unpacked));
    assert_eq!(text(output).trim(), "leak");
}

/// Whether a shell is here; says so where it is not.
fn is_here(shell: &str) -> bool {
    let here = Command::new(shell).args(["-c", "exit 0"]).output().is_ok();
    if !here {
        println!("skipped: {shell} is not installed; its completions were not tried");
    }
    here
}

fn fish_completes(unpacked: &Path) {
    if !is_here("fish") {
        return;
    }
    let ask = "source completions/kdpool.fish; complete -C 'kdpool le'; complete -C 'kdpool demo --windows '";
    let output = ran(Command::new("fish").args(["--no-config", "-c", ask]).current_dir(unpacked).env("HOME", unpacked));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = text(output);
    let words: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["leak", "7", "10", "11"], "{text}");
}

/// Only a zsh that believes in a terminal completes: one zsh types into another.
fn zsh_completes(unpacked: &Path) {
    if !is_here("zsh") {
        return;
    }
    ran(Command::new("zsh").args(["-n", "completions/kdpool.zsh"]).current_dir(unpacked));
    let script = r#"
        zmodload zsh/zpty
        zpty inner "TERM=dumb PS1='% ' zsh -f -i"
        zpty -w inner 'autoload -U compinit; compinit -u -D; source completions/kdpool.zsh; echo re""ady'
        zpty -r inner line '*ready*'
        zpty -w -n inner $'kdpool le\t'
        zpty -r inner line '*kdpool leak*'
        zpty -w -n inner $'--until-c\t'
        zpty -r inner line '*--until-confirmed*'
        print -r -- completed
    "#;
    let output = ran(Command::new("timeout")
        .args(["60", "zsh", "-f", "-c", script])
        .current_dir(unpacked)
        .env("HOME", unpacked));
    assert!(text(output).contains("completed"));
}
