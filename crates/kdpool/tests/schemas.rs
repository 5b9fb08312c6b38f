//! The JSON Schemas of docs/schemas: made from the types, as they stand in the repository, and true of what is printed.
//!
//! `cargo run -p kdpool -- schemas docs/schemas` writes them anew; look at the difference before you commit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../kd-shell/tests/schema_check/mod.rs"]
mod schema_check;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use crate::schema_check::{Checked, check, check_record};

fn kdpool(arguments: &[&str], folder: &Path) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_kdpool"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env("KDPOOL_STATE", folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// The schemas by their files' names.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
        (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
    };
    entries.map(file).collect()
}

#[test]
fn the_schemas_are_not_stale() {
    let folder = tempfile::tempdir().unwrap();
    kdpool(&["schemas", "made"], folder.path());
    let (made, kept) = (files(&folder.path().join("made")), files(&schema_check::folder()));
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&made), names(&kept), "cargo run -p kdpool -- schemas docs/schemas");
    for (name, text) in &made {
        assert!(text == &kept[name], "docs/schemas/{name} is stale: cargo run -p kdpool -- schemas docs/schemas");
    }
    let page = fs::read_to_string(schema_check::folder().join("../json.md")).unwrap();
    for name in kept.keys() {
        assert!(page.contains(&format!("(schemas/{name})")), "docs/json.md does not name schemas/{name}");
    }
}

/// Sessions whose commands have answers of every shape.
fn sessions(folder: &Path) -> Vec<Vec<Value>> {
    let article = "vertarget; version; .time; .sympath; .symopt; !sym; lm m my*; lmvm myfault; !lmi myfault; x nt!PoolBig*; \
        ln fffff80001923cc6; .reload; .echo a; .printf \"%x\", 1; .logfile; .logopen a.log; .logclose; as /x u 5; al; ad u; \
        !gflag; .cls; n; ? 1; ?? sizeof(nt!_POOL_HEADER); ?? (nt!_LIST_ENTRY*)nt!PsLoadedModuleList; .formats 41; \
        dt nt!_LIST_ENTRY nt!PsLoadedModuleList; dt nt!_POOL_HEADER; dt nt!_POOL_TYPE; dt nt!_POOL*; \
        db nt!NtBuildLab L4; dps nt!PoolBigPageTable L2; da nt!NtBuildLab; dd 0 L2; s -sa nt!NtBuildLab L20; \
        !pte nt!PoolBigPageTable; !vm; r; r rax; ~; u nt!VerifierExAllocatePoolEx L2; ub nt!VerifierExAllocatePoolEx L2; \
        uf nt!VerifierExAllocatePoolEx; uf /c nt!VerifierExAllocatePoolEx; k; kv 2; .frame 0; .lastevent; .bugcheck; \
        !process 0 0; !process 0 1 NotMyfault.exe; !thread fffffa8002be4060; .process; .thread; !drvobj myfault; \
        !for_each_module .echo a; bp nt!ViPoolLogStackTrace; bl; bc *; sx; sxe ld:a; \
        !poolused 4; !poolused 8; !poolfind Leak; !poolfind Leak -small; !pool fffff8a005800000; !pool fffff8a005800000 1; \
        !poolval fffff8a005800000; !pooltop; !pooltop -small; !pooltop 5 -watch -every 300ms -times 2; .break; !lookaside; !pplookaside; !tagowner Leak; \
        .selfcheck; !verifier; !verifier 1; !verifier 3; !verifier 0x80 fffff8a005800000; !verifier 0x80 200 -group; \
        !verifier 0x80 -timeline fffff8a005800000; !verifier 8; !verifier 0x100; !verifier 0x109; !verifier ?; \
        .stats; .help; .help k; nonsense; q";
    let leaks = ".allow_write on; ed nt!PoolHitTag 0; !leak mark a Leak; !leak setup myfault.sys; g; .sleep 300; .break; \
        !leak check a -json check.json; !leak freed fffff8a005800000; !leak watch Leak -every 500ms -times 2 -json watch.json; \
        !leak watch -every 300ms -times 3; !leak trace Leak -hits 2 -for 5s; !leak report check.json; !leak report watch.json; \
        !leak compare check.json watch.json; t; q";
    // Each is a line of its own: on one line a command that fails is the last.
    let session = |windows: &str, commands: &str| {
        let lines = commands.split("; ").flat_map(|line| ["-c", line]);
        let arguments = ["demo", "--windows", windows, "--format", "json", "--yes"];
        kdpool(&arguments.into_iter().chain(lines).collect::<Vec<_>>(), folder)
    };
    let mut sessions = vec![session("7", article), session("7", leaks)];
    for windows in ["10", "11"] {
        let commands = "!poolused; !poolfind Leak; !poolfind Leak -small; !pooltop -small; .selfcheck; !verifier 3; !vm; \
            !leak mark; !leak check; !process 0 0; k; lm; q";
        sessions.push(session(windows, commands));
    }
    sessions
}

/// Every answer is as its schema says, and every schema was needed for one.
#[test]
fn answers_are_as_their_schemas_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::from(["record"]);
    let (mut records, mut answered) = (0, 0);
    for record in sessions(folder.path()).into_iter().flatten() {
        records += 1;
        if let Some(shape) = check_record(&record) {
            answered += 1;
            seen.insert(shape);
        }
    }
    for (file, shape) in [("check.json", "leak-check"), ("watch.json", "leak-watch")] {
        let text = fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(check(shape, &serde_json::from_str(&text).unwrap()), Checked::Valid, "{file}");
    }
    for (program, arguments) in [
        ("kdpool-setup", &["setup", "--format", "json"][..]),
        ("kdpool-setup", &["setup", "serial", "--qemu", "--format", "json"]),
        ("kdpool-doctor", &["doctor", "--format", "json", "-y", "."]),
    ] {
        let printed = kdpool(arguments, folder.path());
        assert_eq!(check(program, &printed[0]), Checked::Valid, "{arguments:?}: {}", printed[0]);
    }
    let known: BTreeSet<&str> = kd_shell::shapes().iter().map(|shape| shape.name).collect();
    // No fake has driver objects.
    let unseen: Vec<&&str> = known.difference(&seen).filter(|name| **name != "drvobj").collect();
    assert!(unseen.is_empty(), "no answer had these shapes: {unseen:?} ({answered} of {records} records had a result)");
}

/// The lines in docs that are JSON of kdpool's.
#[test]
fn the_documents_lines_are_as_their_schemas_say() {
    let mut checked = 0;
    let root = schema_check::folder().join("..");
    for page in ["json.md", "scripting.md", "nightly.md", "mcp.md", "leaks.md", "selfcheck.md", "report.md"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for line in text.lines().filter(|line| line.starts_with("{\"command\":")) {
            check_record(&serde_json::from_str(line).unwrap_or_else(|error| panic!("{page}: {line}: {error}")));
            checked += 1;
        }
    }
    assert!(checked > 0);
}

/// What differs from a schema is noticed: each member that is taken away or has another type, and one that is new.
#[test]
fn what_differs_from_a_schema_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let commands = "!poolfind Leak; !poolused 4; lm m nt; !verifier 0x80 fffff8a005800000; q";
    let mut noticed = 0;
    for record in kdpool(&["demo", "--format", "json", "-c", commands], folder.path()) {
        let Some(shape) = check_record(&record) else { continue };
        let Some(result) = record["result"].as_object().filter(|result| !result.is_empty()) else { continue };
        let differs = |what: &str, changed: Map<String, Value>| {
            assert_ne!(check(shape, &changed.into()), Checked::Valid, "{shape}: {what}");
        };
        let mut more = result.clone();
        more.insert("unheard_of".into(), 1.into());
        differs("a member more", more);
        for (name, value) in result {
            let mut other = result.clone();
            other.insert(name.clone(), if value.is_string() { 1.into() } else { "text".into() });
            differs(name, other);
            noticed += 1;
        }
        let required = schema_check::schema(shape)["required"].as_array().cloned().unwrap_or_default();
        for name in required {
            let mut less = result.clone();
            less.remove(name.as_str().unwrap());
            differs(&format!("no {name}"), less);
            noticed += 1;
        }
    }
    assert!(noticed > 10, "{noticed}");
}
