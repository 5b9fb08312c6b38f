//! The commit and the target that `kdpool --version` names.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=KDPOOL_COMMIT");
    // A release from a tarball has no repository; its recipe names the commit (docs/releasing.md).
    let commit = std::env::var("KDPOOL_COMMIT").ok().or_else(from_repository).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=KDPOOL_COMMIT={commit}");
    println!("cargo::rustc-env=KDPOOL_TARGET={}", std::env::var("TARGET").unwrap_or_default());
}

fn from_repository() -> Option<String> {
    // A tarball that was unpacked in somebody else's repository is none of its commits.
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != ours {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // The log of HEAD grows by a line with every commit and checkout, also in a worktree.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    Some(commit)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
