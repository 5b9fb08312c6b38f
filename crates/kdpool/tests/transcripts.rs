//! Whole sessions of the binary, compared with the transcripts in golden.
//!
//! `KDPOOL_BLESS=1 cargo test -p kdpool --test transcripts` writes them anew; look at the difference before you commit.

use std::path::Path;
use std::process::{Command, Output, Stdio};

#[path = "../../kd-shell/tests/schema_check/mod.rs"]
mod schema_check;

use schema_check::check_record;

fn kdpool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kdpool"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("kdpool starts")
}

/// Replaces what differs from run to run.
fn steady(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        let line = match () {
            () if line.starts_with("Connected to target 127.0.0.1 on port ") => {
                "Connected to target 127.0.0.1 on port N on local IP 127.0.0.1."
            }
            () if line.starts_with("Connected to Windows 7 7601 x64 target at (") => {
                "Connected to Windows 7 7601 x64 target at (NOW), ptr64 TRUE"
            }
            () if line.starts_with("System Uptime: 0 days 2:17:") => "System Uptime: 0 days 2:17:SECONDS",
            () if line.starts_with("Debug session time: ") => "Debug session time: THEN",
            () if line.trim_start().starts_with("Wait Start TickCount ") => "Wait Start TickCount",
            () if line.trim_start().starts_with("ElapsedTime ") => "ElapsedTime",
            () => line,
        };
        let words = line.split(' ').map(|word| if word.contains("kdpool-demo-") { "STORE" } else { word });
        lines.push(words.collect::<Vec<_>>().join(" "));
    }
    lines.join("\n") + "\n"
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = steady(text);
    if std::env::var_os("KDPOOL_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the transcript is written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    for (number, (ours, theirs)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(ours, theirs, "{name}, line {}", number + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{name}: number of lines");
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

const ARTICLE: &str = "!poolused 4; !poolfind Leak; !verifier 0x80 fffff8a005800000; q";

#[test]
fn the_article_over_kdnet() {
    let output = kdpool(&["demo", "-c", ARTICLE]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    compare("article.txt", &stdout(&output));
    // A batch keeps its answers apart from the banner.
    let said = stderr(&output);
    compare("banner.txt", said.strip_suffix(after_banner(&said)).unwrap_or(&said));
}

/// What the article prints is printed over every carrier, line by line.
#[test]
fn the_article_over_serial_lines() {
    let wanted = kdpool(&["demo", "-c", ARTICLE]);
    let answers = |output: &Output| {
        let text = stdout(output);
        let start = text.find("   Sorting by  Paged Pool Consumed").expect("the first answer");
        text[start..].to_owned()
    };
    let carriers: &[&str] = if cfg!(unix) { &["tcp", "unix", "pty"] } else { &["tcp"] };
    for carrier in carriers {
        let output = kdpool(&["demo", "--over", carrier, "-c", ARTICLE]);
        assert_eq!(output.status.code(), Some(0), "{carrier}: {}", stderr(&output));
        assert_eq!(answers(&output), answers(&wanted), "{carrier}");
    }
}

#[test]
fn the_everyday_commands() {
    let commands = "? nt!PoolBigPageTable; lm m nt; ln fffff80001923cc6; x nt!PoolBigPage*; dps nt!PoolBigPageTable L1; \
                    dd 0 L4; db nt!NtBuildLab L20; foo; .echo never";
    // What follows an unknown word on its line is dropped.
    let output = kdpool(&["demo", "-c", commands, "-c", "!foo; .echo never", "-c", ".echo done; q"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    compare("everyday.txt", &stdout(&output));
    compare("everyday.err.txt", after_banner(&stderr(&output)));
}

/// What was said behind the banner and the first stop.
fn after_banner(text: &str) -> &str {
    text.split_once("int     3\n").map_or(text, |(_, rest)| rest)
}

/// What a session's commands print.
fn answers(commands: &str, status: i32) -> String {
    let output = kdpool(&["demo", "-c", commands]);
    assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn breakpoints_stacks_and_steps() {
    let commands = "bp nt!ViPoolLogStackTrace 2; bl; g; .wait 0n20000; bl; k; kn 3; kb 2; kc 2; r; gu; t; p 2; \
                    u nt!VerifierExAllocatePoolEx L3; bc *; \
                    bp nt!VerifierExAllocatePoolEx \".printf \\\"caller %y\\\\n\\\", poi(@rsp); g\"; bl; q";
    compare("stacks.txt", &answers(commands, 0));
}

#[test]
fn processes_threads_and_pages() {
    let commands = "!process 0 0; !process 0 1 NotMyfault.exe; !process fffffa8002c05060 4; !thread fffffa8002be4060; \
                    !pte nt!PoolBigPageTable; .process /p fffffa8002c05060; du 12eff8; !pte 12eff8; !pte 130000; \
                    !vm; !gflag; q";
    compare("processes.txt", &answers(commands, 0));
}

#[test]
fn numbers_texts_and_control_flow() {
    let commands = ".formats 1c407e62; ? 80000000; ? 0`80000000; ?? sizeof(nt!_POOL_HEADER); n 10; ? 10; n 16; \
                    r $t0=5; .if (@$t0 == 5) { .echo five } .else { .echo other }; \
                    .foreach (x { .echo a b }) { .echo <${x}> }; .printf \"%08I64x|%-6d|%ma|\\n\", 12, 0n34, nt!NtBuildLab; \
                    dt nt!_LIST_ENTRY Flink nt!PsLoadedModuleList; dd nt!PoolHitTag L1; dps nt!PsActiveProcessHead L2; \
                    da nt!NtBuildLab; db ffffffff`fffffff8 L10; s -[1]a nt!NtBuildLab L40 \"7601\"; s -sa nt!NtBuildLab L20; \
                    .logfile; .cls; .echo -?; q";
    // Memory that is not there is a failure.
    compare("values.txt", &answers(commands, 1));
}

/// Attaching reads what the banner shows and nothing else.
#[test]
fn attaching_costs_at_most_40_requests() {
    let output = kdpool(&["demo", "-c", ".stats; q"]);
    let text = stdout(&output);
    let line = text.lines().find(|line| line.starts_with("Session ")).expect(".stats");
    let requests = line.split_whitespace().nth(1).and_then(|number| number.parse::<u32>().ok()).expect("a number");
    assert!(requests <= 40, "{line}");
}

#[test]
fn json_is_one_object_per_command() {
    let output = kdpool(&["demo", "--format", "json", "-c", "!poolfind Leak; nonsense", "-c", "q"]);
    assert_eq!(output.status.code(), Some(1));
    let objects: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(objects.len(), 3);
    for object in &objects {
        check_record(object);
    }
    assert_eq!(objects[0]["result"]["blocks"].as_array().map(Vec::len), Some(23));
    assert_eq!(objects[0]["result"]["blocks"][22]["address"], "0xfffff8a005800000");
    assert_eq!(objects[0]["result"]["blocks"][22]["size"], 0xfa000);
    assert_eq!(objects[0]["complete"], true);
    let cost = &objects[0]["cost"];
    assert!(cost["requests"].as_u64().is_some_and(|requests| requests <= 60), "{cost}");
    assert!(cost["bytes_read"].as_u64().is_some_and(|bytes| bytes <= 16 * 1024), "{cost}");
    assert_eq!(objects[1]["ok"], false);
    assert!(objects[1]["error"].as_str().is_some_and(|error| error.contains("nonsense")));
}

/// A folder of the symbol path that is missing is a warning; a path of which nothing is there is a failure.
#[test]
fn a_missing_folder_of_the_symbol_path() {
    for (path, status) in [("/no/such/place;.", 0), ("/no/such/place", 1)] {
        let output = kdpool(&["demo", "-y", path, "-c", ".echo done; q"]);
        assert_eq!(output.status.code(), Some(status), "{path}: {}", stderr(&output));
        assert!(stderr(&output).contains("does not exist: /no/such/place"), "{path}: {}", stderr(&output));
    }
}

#[test]
fn usage_errors_are_one_line_and_status_2() {
    for (connection, part) in [
        ("net:port=50000,key=1.2.3", "four"),
        ("net:port=50000,key=!", "four"),
        ("net:port=50000", "key"),
        ("net:port=0x,key=1.2.3.4", "port"),
        ("usb:targetname=x", "usb"),
        ("com:port=com1,parity=odd", "parity"),
    ] {
        let output = kdpool(&["-k", connection, "-c", "q"]);
        assert_eq!(output.status.code(), Some(2), "{connection}");
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{connection}: {text}");
        assert!(text.contains(part), "{connection}: {text}");
    }
}

#[test]
fn no_connection_is_status_3_and_says_why() {
    let taken = std::net::UdpSocket::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let output = kdpool(&["-k", &format!("net:port={port},key=1.2.3.4"), "-c", "q"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("already in use"), "{}", stderr(&output));
    drop(taken);

    let output = kdpool(&["-k", &format!("net:port={port},key=1.2.3.4"), "-bonc", "--connect-timeout", "1", "-c", "q"]);
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    assert!(text.contains("Nothing arrived"), "{text}");
    assert!(
        text.contains(&format!("port:{port} key:KEY")) && !text.contains("1.2.3.4"),
        "the line to type on the target: {text}"
    );

    let output = kdpool(&["-k", "com:pipe,port=/nonexistent/kd.sock", "-c", "q"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("does not exist"), "{}", stderr(&output));
}
