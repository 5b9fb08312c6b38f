//! The hunt as a script runs it: the binary, a fake target in this process, and real datagrams and streams between.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kd_fake::kernel::{
    self, Article, Demo, DemoWindows, FREE_STACK, FREEING_THREAD, Kernel, LEAK_BYTES, LEAK_STACK, LEAK_TAG, LEAK_THREAD,
};
use kd_fake::kernel::{PoolKind, article, article_activity};
use kd_fake::{Evolve, FakeOptions, FakeTarget, FakeTransport};
use serde_json::Value;

#[path = "../../kd-shell/tests/schema_check/mod.rs"]
mod schema_check;

use schema_check::check_record;

const KEY: &str = "1.2.3.4";

/// A running fake target and what a debugger needs of it.
struct Lab {
    fake: FakeTarget,
    connection: String,
    directory: tempfile::TempDir,
}

impl Lab {
    fn over_kdnet(kernel: Kernel, evolve: Option<Evolve>) -> Lab {
        let port = kd_fake::free_port().unwrap();
        let transport = FakeTransport::kdnet(([127, 0, 0, 1], port).into(), KEY);
        Lab::start(kernel, evolve, transport, |_| format!("net:port={port},key={KEY}"))
    }

    fn over_serial(kernel: Kernel, evolve: Option<Evolve>) -> Lab {
        let transport = FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
        Lab::start(kernel, evolve, transport, |fake| {
            format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port())
        })
    }

    fn start(
        kernel: Kernel,
        evolve: Option<Evolve>,
        transport: FakeTransport,
        connection: impl FnOnce(&FakeTarget) -> String,
    ) -> Lab {
        let directory = tempfile::tempdir().unwrap();
        kd_fake::kernel::write_symbol_store(&directory.path().join("symbols")).unwrap();
        let mut options = FakeOptions::new(transport, kernel);
        options.offer_period = Duration::from_millis(100);
        options.evolve = evolve;
        let fake = FakeTarget::start(options).unwrap();
        let connection = connection(&fake);
        Lab { fake, connection, directory }
    }

    /// Runs kdpool on this target.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        command.args(arguments).args(["-k", &self.connection, "-y", "symbols"]);
        command.current_dir(self.directory.path()).env_remove("RUST_LOG").stdin(Stdio::null());
        command.env("KDPOOL_STATE", self.directory.path().join("state"));
        command
    }

    /// Where a mark is kept that nobody gave a file.
    fn mark(&self, name: &str) -> String {
        self.file(&format!("state/marks/{name}.leak.json"))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn is_running(&self) -> bool {
        !self.fake.stats().halted
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The results of `--format json`, one for each command.
fn results(output: &Output) -> Vec<Value> {
    let records = text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    for record in &records {
        check_record(record);
    }
    records
}

/// From attach to report: one command, one screen.
#[test]
fn the_articles_leak_in_one_command() {
    let lab = Lab::over_kdnet(article(), None);
    let output = lab.run(&["leak", "--tag", "Leak", "--every", "200ms", "--times", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let text = text(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 120), "no screen:\n{text}");
    for part in [
        "Watching Leak: 23 in use, 22 MB, 23 blocks listed",
        "23 blocks: 23 still, 0 freed, 0 reused, 0 new, 0 unknown",
        "Stacks by growth:\n  +0 bytes, +0 blocks (22 MB in 23)  BackTrace",
        "\n\tmyfault+0x11f6\n\tmyfault+0x142f\n\tnt!IovCallDriver+0xa0\n",
        "\n  22 MB at the mark, 22 MB after ",
        "at least 23 of the 23 blocks of the mark survived 3 checks",
        "nothing of this tag was freed since the mark",
        "\nno leak seen: tag Leak stood at 22 MB in 3 checks, ",
        "\nThe target is running.\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    // One stack, and its first line names the driver.
    assert_eq!(text.matches("BackTrace").count(), 1, "{text}");
    assert!(lab.is_running());
}

#[test]
fn the_status_tells_a_leak() {
    let leaking = || -> Option<Evolve> { Some(Box::new(article_activity(Some(Duration::from_millis(100)), false))) };
    let lab = Lab::over_kdnet(article(), leaking());
    let watch = ["leak", "--tag", "Leak", "--every", "250ms", "--times", "4"];
    let files = ["--html", "r.html", "--json", "r.json", "--svg-count", "c.svg", "--svg-diff", "d.svg"];
    let more = ["--folded-diff", "d.folded", "--mark", "m.json", "--pprof", "p.pb.gz", "--machine", "lab-7"];
    let output = lab.run(&[&watch[..], &["--fail-on", "confirmed"], &files, &more].concat());
    assert_eq!(output.status.code(), Some(5), "{}{}", text(&output), errors(&output));
    let headline = "\nmyfault.sys+0x11f6 leaks ";
    let sure = "/min (tag Leak, paged pool), confirmed by 4 checks; about ";
    assert!(text(&output).contains(headline) && text(&output).contains(sure), "{}", text(&output));
    assert!(lab.is_running());
    let saved: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
    assert_eq!(saved["outcome"], "confirmed");
    documented("!leak watch", &saved);
    let grown = saved["last"]["stacks"][0]["delta_bytes"].as_i64().unwrap();
    assert!(grown >= 8 * 0xfa000 && grown % 0xfa000 == 0, "{grown}");
    assert!(lab.file("c.svg").contains("blocks in use") && lab.file("d.svg").contains("growth in bytes"));
    assert!(lab.file("d.folded").trim_end().ends_with(&format!(" {grown}")));
    let page = lab.file("r.html");
    assert!(page.contains("confirmed by 4 checks; about "), "{page}");
    assert!(page.contains("<span>lab-7</span><span>Windows 7 7601 x64</span><span>20"), "{page}");
    // Each stack has a point for the mark and one for each check, in both.
    let trail = &saved["trails"]["stacks"][0];
    assert_eq!(trail["stack"], saved["last"]["stacks"][0]["id"]);
    let bytes: Vec<u64> = serde_json::from_value(trail["bytes"].clone()).unwrap();
    assert!(bytes.len() == 5 && bytes.is_sorted() && bytes[4] - bytes[0] == grown as u64, "{trail}");
    assert!(page.contains(&format!("\"trail\":{}", trail["bytes"])), "{page}");
    let profile = std::fs::read(lab.directory.path().join("p.pb.gz")).unwrap();
    assert_eq!(profile[..2], [0x1f, 0x8b]);

    // A report of the file shows every check, and makes the same page: of then, not of now.
    let report = ["report", "r.json", "-y", "symbols", "--html", "again.html", "--pprof", "again.pb.gz"];
    let again = Command::new(env!("CARGO_BIN_EXE_kdpool")).args(report).current_dir(lab.directory.path()).output();
    let again = self::text(&again.unwrap());
    assert_eq!(again.split("Checks:\n").nth(1).unwrap().lines().skip(1).take(4).count(), 4, "{again}");
    assert!(again.contains("\nlab-7, Windows 7 7601 x64, 20"), "{again}");
    assert_eq!(lab.file("again.html"), page);
    assert_eq!(std::fs::read(lab.directory.path().join("again.pb.gz")).unwrap(), profile);

    // What cannot come to anything is refused before anybody waits for it, and the target is left alone.
    let stops = lab.fake.stats().stops;
    for (bad, why) in [
        (&["--every", "soon"][..], "'soon' is no time"),
        (&["--times", "0"], "-times: '0' is no number above 0"),
        (&["--html", "none/r.html"], "cannot write none/r.html: there is no folder none"),
        (&["--mark", "none/m.json"], "cannot write none/m.json: there is no folder none"),
        (&["--tag", "longer"], "a tag is four characters"),
    ] {
        let tag = if bad[0] == "--tag" { &[][..] } else { &["--tag", "Leak"] };
        let output = lab.run(&[&["leak"], tag, bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(errors(&output).contains(why), "{}", errors(&output));
    }
    assert_eq!(lab.fake.stats().stops, stops);

    // The same without a threshold, or with one that is not reached, is no failure.
    assert_eq!(lab.run(&watch).status.code(), Some(0));
    let stable = lab.run(&["leak", "--tag", "CM31", "--every", "100ms", "--times", "3", "--fail-on", "growing"]);
    assert_eq!(stable.status.code(), Some(0), "{}", text(&stable));
    // Nobody allocates with that tag: a job that watches it would stay green for ever.
    let none = lab.run(&["leak", "--tag", "leak", "--every", "100ms", "--times", "1", "--fail-on", "confirmed"]);
    let why = "nothing was ever allocated with the tag leak (tags are case-sensitive); did you mean Leak?";
    assert_eq!(none.status.code(), Some(6));
    assert!(errors(&none).contains(why), "{}", errors(&none));
    assert!(lab.is_running());
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Every member of a command's result is in docs/json.md.
fn documented(command: &str, result: &Value) {
    let row = |command: &str| -> &str {
        let start = format!("| [`{command}`](");
        include_str!("../../../docs/json.md").lines().find(|line| line.starts_with(&start)).expect("a row")
    };
    let members = result.as_object().into_iter().flatten();
    let (own, check) = (row(command), row("!leak check"));
    for (name, value) in members {
        assert!(own.contains(&format!("`{name}`")), "{name} of {command} is not in docs/json.md");
        let inside = if name == "last" { check } else { own };
        let mut values = vec![value];
        while let Some(value) = values.pop() {
            values.extend(value.as_array().into_iter().flatten());
            for (name, value) in value.as_object().into_iter().flatten() {
                assert!(inside.contains(&format!("`{name}`")), "{name} in {command} is not in docs/json.md");
                values.push(value);
            }
        }
    }
}

/// Nobody knows which tag: the counters tell, and the headline says who.
#[test]
fn a_leak_is_found_without_its_tag() {
    let lab = Lab::over_kdnet(article(), Some(Box::new(article_activity(Some(Duration::from_millis(300)), true))));
    let started = Instant::now();
    let output = lab.run(&["leak", "--json", "r.json"]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output), errors(&output));
    let text = text(&output);
    let headline = text.lines().find(|line| line.contains(" leaks ")).unwrap();
    assert!(headline.starts_with("myfault.sys+0x11f6 leaks "), "{text}");
    assert!(headline.contains("(tag Leak, paged pool), confirmed by 4 checks; about "), "{text}");
    assert!(headline.ends_with(" h left"), "{text}");
    assert!(text.contains("\nWritten: r.json\n") && lab.is_running());
    let saved: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
    documented("!leak watch", &saved);
    assert_eq!(
        (&saved["tag"], &saved["outcome"], &saved["paged"]),
        (&"Leak".into(), &"confirmed".into(), &true.into())
    );
    assert_eq!((&saved["culprit"]["module"], &saved["culprit"]["offset"]), (&"myfault.sys".into(), &0x11f6.into()));
    assert_eq!(saved["growers"][0]["tag"], "Leak");
    assert_eq!(saved["headline"], headline);
    // What another driver borrows and gives back is no leak.
    let all = saved["others"].as_array().cloned().unwrap_or_default();
    assert!(all.iter().all(|other| other["outcome"] != "confirmed"), "{saved}");

    // The file has all of it.
    let mut report = Command::new(env!("CARGO_BIN_EXE_kdpool"));
    report.args(["report", "r.json", "-v", "-y", "symbols"]).current_dir(lab.directory.path()).stdin(Stdio::null());
    let shown = self::text(&report.output().unwrap());
    assert_eq!(shown.lines().next(), Some(headline), "{shown}");
    let reasons: Vec<String> = serde_json::from_value(saved["reasons"].clone()).unwrap();
    assert!(reasons.iter().all(|reason| shown.contains(reason.as_str())), "{shown}");
    let checks = shown.split("Checks:\n").nth(1).unwrap().lines().skip(1).take(4);
    assert_eq!(checks.filter(|line| line.ends_with(char::is_numeric)).count(), 4, "{shown}");
}

/// Where this machine counts the pages of nonpaged pool.
fn nonpaged_count(demo: &Demo) -> u64 {
    let facts = demo.kernel.facts();
    match &demo.symbols {
        Some(table) => {
            let pools = table.offset("_MI_SYSTEM_INFORMATION", "Pools").unwrap();
            let count = table.offset("_MI_POOL_STATE", "AllocatedNonPagedPool").unwrap();
            facts.kernel_base + table.symbol("MiState").unwrap() + pools + count
        }
        None => {
            let pointer = |address| {
                let mut bytes = [0; 8];
                assert_eq!(demo.kernel.read_virtual(address, &mut bytes), 8);
                u64::from_le_bytes(bytes)
            };
            // KDDEBUGGER_DATA64.MmAllocatedNonPagedPool
            pointer(pointer(facts.debugger_data_list) + 0x250)
        }
    }
}

/// Page ranges, contiguous memory: nonpaged pool grows and none of its tags does. Each kind of kernel counts it elsewhere.
#[test]
fn a_leak_that_no_tag_shows_is_told() {
    for windows in [DemoWindows::Seven, DemoWindows::Ten] {
        let demo = kernel::demo(windows).unwrap();
        let place = nonpaged_count(&demo);
        let mut pages = 5000_f64;
        let evolve: Evolve = Box::new(move |kernel, passed| {
            // 32 MB a second.
            pages += passed.as_secs_f64() * 8192.0;
            assert_eq!(kernel.write_virtual(place, &(pages as u64).to_le_bytes()), 8);
        });
        let symbols = demo.symbols;
        let lab = Lab::over_kdnet(demo.kernel, Some(evolve));
        if let Some(table) = symbols {
            kernel::write_pdb(&lab.directory.path().join("symbols"), &table).unwrap();
        }
        let output =
            lab.run(&["leak", "--every", "300ms", "--fail-on", "growing", "--json", "r.json", "--junit", "r.xml"]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(5), "{text}{}", errors(&output));
        let saved: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
        let headline =
            text.lines().find(|line| line.contains(" that no pool tag shows: ")).unwrap_or_else(|| panic!("{text}"));
        assert!(headline.starts_with("nonpaged memory grew by 1.") && headline.contains(" GB/min"), "{headline}");
        assert_eq!(
            (&saved["outcome"], &saved["tag"], &saved["headline"]),
            (&"growing".into(), &Value::Null, &headline.into())
        );
        assert!(saved["untagged"]["nonpaged"].as_u64().unwrap() > 20 << 20, "{saved}");
        assert!(lab.file("r.xml").contains(r#"failures="1""#) && lab.is_running());
        let shown = Command::new(env!("CARGO_BIN_EXE_kdpool"))
            .args(["report", "r.json"])
            .current_dir(lab.directory.path())
            .output();
        assert_eq!(self::text(&shown.unwrap()).lines().next(), Some(headline));
    }
}

/// Two drivers leak: both answers come first, and all of it is on one screen.
#[test]
fn two_leaks_are_on_one_screen() {
    let demo = kernel::demo(DemoWindows::Eleven).unwrap();
    let lab = Lab::over_serial(demo.kernel, Some(demo.activity));
    kernel::write_pdb(&lab.directory.path().join("symbols"), &demo.symbols.unwrap()).unwrap();
    demo.begin.now();
    let output = lab.run(&["leak", "--every", "600ms"]);
    let text = text(&output);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| line.contains(" leaks ")).unwrap_or_else(|| panic!("{text}"));
    assert!(lines[first].starts_with("myfault.sys+0x11f6 leaks "), "{text}");
    assert!(lines[first + 1].starts_with("tag LkSm leaks ") && lines[first + 1].ends_with("not known"), "{text}");
    // The headlines are wrapped at a terminal.
    let rows: usize = lines[first..].iter().map(|line| line.chars().count().div_ceil(76)).sum();
    assert!(rows <= 23, "{rows} rows:\n{text}");
    assert!(lines[first + 2..].iter().all(|line| line.chars().count() <= 80), "{text}");
    for part in ["\n\tmyfault+0x11f6\n", "\n  LkSm: ", "\n  who: !tagowner LkSm ", "\nThe target is running.\n"] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
}

/// Ctrl+C before anything was compared: nothing is said that was not found out.
#[cfg(unix)]
#[test]
fn an_interrupted_survey_has_no_verdict() {
    let lab = Lab::over_kdnet(article(), Some(Box::new(article_activity(Some(Duration::from_millis(100)), true))));
    let watch = ["leak", "--every", "1s", "--json", "r.json", "--junit", "r.xml"];
    let child = lab.command(&watch).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while lab.fake.stats().stops < 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    assert!(text(&output).contains("\ninterrupted: no verdict"), "{}", text(&output));
    let saved: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
    assert_eq!(saved["outcome"], "unknown", "{saved}");
    assert!(lab.file("r.xml").contains(r#"errors="1""#) && lab.is_running());
}

/// The command line of a file of examples/nightly, with the lab's connection and symbols, and in seconds.
fn nightly(file: &str) -> Vec<String> {
    let line = file.lines().find(|line| line.contains("kdpool leak ")).unwrap();
    let words = line.split("kdpool ").last().unwrap().split_whitespace();
    let words: Vec<&str> = words.map(|word| word.trim_matches(['"', '\''])).collect();
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "-k" | "-y" => drop(words.next().unwrap()),
            "--for" => kept.extend([word, words.next().map(|_| "6s").unwrap()]),
            word => kept.push(word),
        }
    }
    kept.into_iter().map(String::from).collect()
}

/// The unit, the workflow and the pipeline of examples/nightly tell a leak by their status and their files; and a fix by
/// comparing two of them.
#[test]
fn the_nightly_examples_run() {
    let leaking =
        || Lab::over_serial(article(), Some(Box::new(article_activity(Some(Duration::from_millis(100)), false))));
    let unit = include_str!("../../../examples/nightly/kdpool-leak.service");
    let workflow = include_str!("../../../examples/nightly/github-actions.yml");
    let pipeline = include_str!("../../../examples/nightly/Jenkinsfile");
    let labs = std::thread::scope(|scope| {
        let run = |file| {
            move || {
                let lab = leaking();
                let line = nightly(file);
                let output = lab.run(&line.iter().map(String::as_str).collect::<Vec<_>>());
                assert_eq!(output.status.code(), Some(5), "{line:?}: {}{}", text(&output), errors(&output));
                assert!(lab.is_running(), "{line:?}");
                let stops = text(&output).lines().filter(|line| line.contains(" in use ")).count();
                assert!(stops >= 3, "no line a stop: {}", text(&output));
                assert!(lab.file("leak.html").contains("myfault.sys+0x11f6"));
                lab
            }
        };
        let runs = [scope.spawn(run(unit)), scope.spawn(run(workflow)), scope.spawn(run(pipeline))];
        runs.map(|run| run.join().unwrap())
    });
    let [unit, workflow, pipeline] = &labs;
    assert!(unit.directory.path().join("looks/tags/machine=lab-1").is_dir());
    for lab in [workflow, pipeline] {
        let junit = lab.file("leak.xml");
        assert!(junit.contains(r#"failures="1""#) && junit.contains("myfault.sys+0x11f6 leaks "), "{junit}");
    }
    let sarif: Value = serde_json::from_str(&workflow.file("leak.sarif")).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"], "myfault.sys+0x11f6", "{sarif}");

    // The next build frees what it allocates.
    let fixed = Lab::over_serial(article(), None);
    let output = fixed.run(&["leak", "--tag", "Leak", "--every", "100ms", "--times", "3", "--json", "fixed.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    std::fs::write(fixed.directory.path().join("leak.json"), unit.file("leak.json")).unwrap();
    let compare = |before: &str, after: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        command.args(["compare", before, after, "-y", "symbols"]).current_dir(fixed.directory.path());
        command.stdin(Stdio::null()).output().unwrap()
    };
    let good = compare("leak.json", "fixed.json");
    assert_eq!(good.status.code(), Some(0), "{}{}", text(&good), errors(&good));
    assert!(text(&good).starts_with("fixed: 1 stack that grew before grows no more\n"), "{}", text(&good));
    assert!(text(&good).contains("\n\tmyfault+0x11f6\n"), "{}", text(&good));
    let bad = compare("fixed.json", "leak.json");
    assert_eq!(bad.status.code(), Some(5));
    assert!(text(&bad).starts_with("1 stack grows that did not before\n"), "{}", text(&bad));
    let same = compare("leak.json", "leak.json");
    assert_eq!(same.status.code(), Some(5));
    assert!(text(&same).starts_with("not fixed: 1 stack still grows\n"), "{}", text(&same));
}

/// 500 requests for the whole hunt of four checks, with the article's 23 blocks and a driver that goes on.
#[test]
fn what_a_hunt_costs() {
    let lab = Lab::over_kdnet(article(), Some(Box::new(article_activity(Some(Duration::from_millis(900)), false))));
    let output = lab.run(&["leak", "--every", "1s", "--times", "4", "--format", "json"]);
    let hunt = &results(&output)[0];
    assert_eq!(hunt["result"]["outcome"], "confirmed", "{hunt}");
    let requests = lab.fake.stats().requests.values().sum::<u64>();
    println!("{requests} requests, {} of them for the command", hunt["cost"]["requests"]);
    // A machine that is slow has let the driver go on: two requests for each block more at the mark, one at a check.
    let number = |value: &Value| value.as_u64().unwrap();
    let checks = hunt["result"]["checks"].as_array().unwrap();
    let new = checks.iter().zip(2..).map(|(check, usual)| number(&check["new"]).saturating_sub(usual));
    let late = 2 * number(&hunt["result"]["at_mark"]["blocks"]).saturating_sub(24) + new.sum::<u64>();
    assert!(requests <= 500 + late, "{requests} requests: {hunt}");
    // 0.25 ms from a request to its reply, and 1 Gbit/s.
    let modelled = requests as f64 * 0.25 + hunt["cost"]["bytes_read"].as_f64().unwrap() / 100_000.0;
    assert!(modelled < 250.0, "{modelled} ms");
}

/// The line of the issue, over both carriers: mark, run, break in, check.
fn mark_and_check(lab: &Lab, sleep: &str) {
    let commands = format!("!leak mark m1 Leak; g; .sleep {sleep}; .break; !leak check m1; q");
    let mut child =
        lab.command(&["--format", "json", "--bonc", "-c", &commands]).stdout(Stdio::piped()).spawn().unwrap();
    // What happens in between: one is freed, one is freed and allocated again by other code, two are new.
    let (freed, again) = (0xffff_f8a0_06a0_0000, 0xffff_f8a0_0620_0000);
    let started = Instant::now();
    while lab.fake.stats().stops == 0 || lab.fake.stats().halted {
        assert!(started.elapsed() < Duration::from_secs(60), "the target was not marked");
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.fake.with_kernel(|kernel| {
        let mut other = LEAK_STACK;
        other[2] += 0x40;
        let leak = |kernel: &mut Kernel, address| {
            kernel.allocate_large_at(address, LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD).unwrap();
        };
        kernel.free_large(freed, &FREE_STACK, FREEING_THREAD).unwrap();
        kernel.free_large(again, &FREE_STACK, FREEING_THREAD).unwrap();
        kernel.allocate_large_at(again, LEAK_TAG, LEAK_BYTES, PoolKind::Paged, &other, LEAK_THREAD).unwrap();
        leak(kernel, 0xffff_f8a0_0a00_0000);
        leak(kernel, 0xffff_f8a0_0b00_0000);
    });
    let status = child.wait().unwrap();
    let mut output = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut output).unwrap();
    assert_eq!(status.code(), Some(0), "{output}");
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6, "{output}");
    assert_eq!(lines[0]["result"]["blocks"], 23);
    let check = &lines[4]["result"];
    documented("!leak mark", &lines[0]["result"]);
    documented("!leak check", check);
    let fields = keys(check);
    for field in ["mark", "elapsed_ms", "blocks", "stacks", "summary", "log_wrapped"] {
        assert!(fields.contains(&field), "{field} is missing: {fields:?}");
    }
    assert_eq!(check["mark"], "m1");
    assert!(check["elapsed_ms"].is_u64() && check["log_wrapped"] == false);
    assert_eq!(check["summary"], serde_json::json!({"still": 21, "freed": 1, "reused": 1, "new": 2, "unknown": 0}));
    assert_eq!(keys(&check["summary"]), ["freed", "new", "reused", "still", "unknown"]);
    let blocks = check["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 25);
    let stacks: Vec<&str> =
        check["stacks"].as_array().unwrap().iter().map(|stack| stack["id"].as_str().unwrap()).collect();
    for block in blocks {
        assert!(block["address"].as_str().unwrap().starts_with("0xfffff8a0"), "{block}");
        assert_eq!((&block["size"], &block["tag"]), (&LEAK_BYTES.into(), &"Leak".into()));
        let evidence = block["evidence"].as_array().unwrap();
        let known = ["log", "counters", "header", "content", "address"];
        assert!(!evidence.is_empty() && evidence.iter().all(|word| known.contains(&word.as_str().unwrap())), "{block}");
        assert!(stacks.contains(&block["stack"].as_str().unwrap()), "{block}");
    }
    let verdict = |address: u64| {
        let address = format!("{address:#x}");
        blocks.iter().find(|block| block["address"] == address.as_str()).unwrap()["verdict"].clone()
    };
    assert_eq!((verdict(freed), verdict(again)), ("freed".into(), "reused".into()));
    for stack in check["stacks"].as_array().unwrap() {
        for field in ["id", "bytes", "count", "delta_bytes", "delta_count", "frames"] {
            assert!(!stack[field].is_null(), "{field} is missing");
        }
        assert_eq!(keys(&stack["frames"][0]), ["address", "module", "offset", "symbol"]);
    }
    assert!(lab.is_running());
}

#[test]
fn a_script_over_kdnet() {
    mark_and_check(&Lab::over_kdnet(article(), None), "0n5000");
}

#[test]
fn a_script_over_serial() {
    mark_and_check(&Lab::over_serial(article(), None), "0n1500");
}

/// Another process, and no target: names come from the symbol path.
#[test]
fn files_are_read_without_their_target() {
    let lab = Lab::over_serial(article(), None);
    // Nobody has the kernel's symbols but the script: names are left out of what is compared.
    let output = lab.run(&["--bonc", "-c", "!leak mark a Leak; g; .sleep 0n300; .break; !leak mark b Leak; q"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output), errors(&output));
    let report = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        command.arg("report").args(arguments).current_dir(lab.directory.path()).stdin(Stdio::null());
        command.env("KDPOOL_STATE", lab.directory.path().join("state"));
        command.output().unwrap()
    };
    let one = text(&report(&["a", "-y", "symbols"]));
    assert!(one.contains("01676000 bytes in 0x17 allocations by: BackTrace"), "{one}");
    assert!(one.contains("\n\tmyfault+0x11f6\n") && one.contains("\n\tnt!IovCallDriver+0xa0\n"), "{one}");
    let two = text(&report(&["state/marks/a.leak.json", "b", "-d", "-y", "symbols"]));
    assert!(two.contains("+ 0 (23552000 - 23552000) 23 allocs BackTrace") && two.contains("Total increase == 0"));

    // A mark whose names were never known gets them.
    let nameless = signed(&lab.mark("a").replace("\"symbol\":\"IovCallDriver+0xa0\"", "\"symbol\":null"));
    std::fs::write(lab.directory.path().join("n.leak.json"), nameless).unwrap();
    let without = text(&report(&["n.leak.json", "-y", "nowhere"]));
    assert!(!without.contains("IovCallDriver"), "{without}");
    let with = text(&report(&["n.leak.json", "-y", "symbols"]));
    assert!(with.contains("\n\tnt!IovCallDriver+0xa0\n"), "{with}");

    // What cannot be read is named, with what is wrong with it and what helps.
    let good = lab.mark("a");
    let deep = "{\"result\":".repeat(100_000) + &"}".repeat(100_000);
    for (text, what) in [
        ("{\"blocks\":3}", "x.json is neither a mark of kdpool nor a report: "),
        ("{\"result\":{\"last\":null}}", "is neither a mark of kdpool nor a report: missing field `mark`"),
        ("MZ\0", "is neither a mark of kdpool nor a report: "),
        (deep.as_str(), "is neither a mark of kdpool nor a report: "),
        ("", "x.json is truncated"),
        (&good[..good.len() / 2], "x.json is truncated: it ends in the middle; copy it again"),
        (&good.replacen("\"name\":\"a\"", "\"name\":\"b\"", 1), "its checksum does not match; copy it again"),
        (&good.replacen("\"version\":", "\"version\":1", 1), "written by a newer kdpool"),
    ] {
        std::fs::write(lab.directory.path().join("x.json"), text).unwrap();
        let bad = report(&["x.json"]);
        assert_eq!(bad.status.code(), Some(1));
        assert!(errors(&bad).contains(what), "{what:?}: {}", errors(&bad));
    }
    assert_eq!(report(&["symbols/ntkrnlmp.pdb", "-y", "symbols"]).status.code(), Some(1));
    // Whatever names it has, they move no cursor.
    let check = serde_json::json!({"mark": "m\u{1b}[2J", "elapsed_ms": 1, "blocks": [], "log_wrapped": false,
        "summary": {"still": 0, "freed": 0, "reused": 0, "new": 0, "unknown": 0},
        "stacks": [{"id": "BackTrace00000001", "bytes": 1, "count": 1, "delta_bytes": 1, "delta_count": 1,
            "frames": [{"address": "0x1", "symbol": "a\u{202e}!b\n", "module": "a\u{202e}", "offset": 1}]}]});
    std::fs::write(lab.directory.path().join("x.json"), check.to_string()).unwrap();
    let shown = text(&report(&["x.json"]));
    assert!(shown.contains("Mark m\u{fffd}[2J, ") && shown.contains("\n\ta\u{fffd}!b\u{fffd}\n"), "{shown:?}");
}

/// A mark with the checksum that what it says has now.
fn signed(mark: &str) -> String {
    use sha2::Digest;
    let body = mark.find("\"body\":").unwrap() + 7;
    let digest = sha2::Sha256::digest(&mark.as_bytes()[body..mark.trim_end().len() - 1]);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let at = mark.find("\"sha256\":\"").unwrap() + 10;
    format!("{}{digest}{}", &mark[..at], &mark[at + 64..])
}

/// A mark that is not of this kernel, or not of this life of it.
#[test]
fn marks_of_others_are_refused() {
    let lab = Lab::over_serial(article(), None);
    let output = lab.run(&["--bonc", "-c", "!leak mark m1 Leak; q"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let mark = lab.mark("m1");
    for (from, to, why) in [
        (
            "\"pdb\":\"8F1D",
            "\"pdb\":\"9F1D",
            "the mark is of another kernel (build 7601, PDB 9F1D2C676B644F6F9C1A6B64706F6F6C",
        ),
        ("\"build\":7601", "\"build\":9600", "the mark is of another kernel (build 9600, PDB "),
        ("\"boot_time\":1", "\"boot_time\":2", "the target was restarted since the mark"),
    ] {
        assert!(mark.contains(from), "{mark}");
        std::fs::write(lab.directory.path().join("x.json"), signed(&mark.replacen(from, to, 1))).unwrap();
        let output = lab.run(&["--bonc", "-c", "!leak check m1 -file x.json; q"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(errors(&output).contains(why), "{}", errors(&output));
        assert!(lab.is_running());
    }
}

/// A log of 1,024 records that gets some thousand a second: the stops come closer until nothing is lost.
#[test]
fn a_watch_keeps_up_with_a_busy_log() {
    let mut other = LEAK_STACK;
    other[2] = 0xffff_f880_0164_2d31;
    let evolve: Evolve = Box::new(move |kernel, passed| {
        for _ in 0..passed.as_millis() {
            kernel.allocate_large_at(
                0xffff_fa80_0500_0000,
                0x4270_6354,
                0x1000,
                PoolKind::NonPaged,
                &other,
                LEAK_THREAD,
            );
            kernel.free_large(0xffff_fa80_0500_0000, &FREE_STACK, FREEING_THREAD);
        }
    });
    let lab = Lab::over_serial(Article { log_length: 0x400 }.build(), Some(evolve));
    let output = lab.run(&["leak", "--tag", "Leak", "--every", "400ms", "--times", "5", "--format", "json"]);
    let watched = &results(&output)[0]["result"];
    let checks = watched["checks"].as_array().unwrap();
    let written: Vec<u64> = checks.iter().map(|check| check["log_records"].as_u64().unwrap()).collect();
    assert!(written[0] > 0x200, "{written:?}");
    // Half of the log is what a stop is meant to find; a loaded test machine may be late.
    assert!(*written.last().unwrap() < written[0], "{written:?}");
    let elapsed: Vec<u64> = checks.iter().map(|check| check["elapsed_ms"].as_u64().unwrap()).collect();
    assert!(elapsed[4] - elapsed[3] < elapsed[0], "{elapsed:?}");
    assert_eq!(watched["last"]["summary"]["still"], 23, "{}", watched["reasons"]);
}

/// Runs a watch of many stops and does something to its target after some.
fn disturbed(lab: &Lab, what: impl FnOnce(&FakeTarget)) -> (Output, Value) {
    let watch =
        ["leak", "--tag", "Leak", "--every", "150ms", "--times", "1000", "--json", "r.json", "--html", "r.html"];
    let child = lab.command(&watch).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while lab.fake.stats().stops < 4 {
        assert!(started.elapsed() < Duration::from_secs(60), "the watch did not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    what(&lab.fake);
    let output = child.wait_with_output().unwrap();
    let saved = serde_json::from_str(&lab.file("r.json")).unwrap();
    (output, saved)
}

fn kept(lab: &Lab, output: &Output, saved: &Value) {
    assert!(!saved["checks"].as_array().unwrap().is_empty());
    assert_eq!(saved["last"]["summary"]["still"], 23);
    assert!(lab.file("r.html").contains("myfault+0x11f6"));
    assert!(text(output).contains("23 blocks: 23 still"), "{}", text(output));
}

#[test]
fn a_watch_whose_target_crashes() {
    let lab = Lab::over_kdnet(article(), None);
    let (output, saved) = disturbed(&lab, |fake| fake.bugcheck(0xc4));
    kept(&lab, &output, &saved);
    assert!(text(&output).contains("the target stopped by itself"), "{}", text(&output));
    assert!(lab.is_running(), "the crashed target was not let go");
}

#[test]
fn a_watch_whose_target_reboots() {
    let lab = Lab::over_kdnet(article(), None);
    let (output, saved) = disturbed(&lab, |fake| fake.reboot());
    kept(&lab, &output, &saved);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("restarted since the mark"), "{}", errors(&output));
    assert!(lab.is_running());
}

#[test]
fn a_watch_whose_target_vanishes() {
    let lab = Lab::over_kdnet(article(), None);
    let (output, saved) = disturbed(&lab, |fake| fake.hang(true));
    kept(&lab, &output, &saved);
    assert_ne!(output.status.code(), Some(0));
    assert!(!errors(&output).is_empty());
}

/// Ctrl+C at a watch: the report is kept, and the target runs.
#[cfg(unix)]
#[test]
fn a_watch_that_is_interrupted() {
    let lab = Lab::over_kdnet(article(), None);
    let watch = ["leak", "--tag", "Leak", "--every", "150ms", "--json", "r.json", "--times", "1000"];
    let child = lab.command(&watch).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while lab.fake.stats().stops < 4 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    assert!(text(&output).contains("\ninterrupted: no leak seen: tag Leak stood at 22 MB in "), "{}", text(&output));
    assert!(
        text(&output).contains("The target is running.") && Path::new(&lab.directory.path().join("r.json")).exists()
    );
    assert!(lab.is_running());
}

/// What Parquet files hold: of a table's files, newest look last, the rows, by column.
fn tables(directory: &Path, table: &str, machine: &str) -> Vec<(String, Vec<Value>)> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    let value = |field: &Field| match field {
        Field::Null => Value::Null,
        Field::Str(text) => text.as_str().into(),
        Field::ULong(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::TimestampMillis(time) => serde_json::json!({"ms": time}),
        other => panic!("{other:?} is in no column"),
    };
    let mut files = Vec::new();
    for day in std::fs::read_dir(directory.join(table).join(format!("machine={machine}"))).unwrap() {
        let day = day.unwrap();
        assert_eq!(day.file_name(), "date=2020-01-14");
        files.extend(std::fs::read_dir(day.path()).unwrap().map(|file| file.unwrap().path()));
    }
    files.sort();
    let rows = |file: &Path| {
        let reader = SerializedFileReader::new(std::fs::File::open(file).unwrap()).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
        rows.map(|row| row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()).collect()
    };
    files.iter().map(|file| (file.file_name().unwrap().to_str().unwrap().to_string(), rows(file))).collect()
}

fn named<'t>(tables: &'t [(String, Vec<Value>)], start: &str) -> Vec<&'t (String, Vec<Value>)> {
    tables.iter().filter(|(name, _)| name.starts_with(start)).collect()
}

/// Row by row what the JSON says, in files that only ever come in addition.
#[test]
fn every_look_becomes_rows_of_parquet() {
    let lab = Lab::over_serial(article(), Some(Box::new(article_activity(Some(Duration::from_millis(100)), false))));
    let looks = lab.directory.path().join("lab/looks");
    let watch = ["leak", "--tag", "Leak", "--every", "250ms", "--times", "3", "--json", "r.json"];
    // The name of a machine is no path.
    let export = ["--parquet", "lab/looks", "--machine", "../../b 1"];
    let output = lab.run(&[&watch[..], &export].concat());
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let machine = "..%2F..%2Fb%201";
    let watched: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
    let last = &watched["last"];
    let by_look = |table: &str| tables(&looks, table, machine);
    for table in ["blocks", "stacks", "tags"] {
        let tables = by_look(table);
        assert_eq!((named(&tables, "mark-").len(), named(&tables, "check-").len()), (1, 3), "{tables:?}");
        let folders = |at: &Path| std::fs::read_dir(at).unwrap().count();
        assert_eq!((folders(&looks), folders(&looks.join(table))), (3, 1));
        for row in tables.iter().flat_map(|(_, rows)| rows) {
            let time = row["time"]["ms"].as_i64().unwrap();
            let day = 1_578_960_000_000;
            assert!((day..day + 86_400_000).contains(&time), "{row}");
            assert_eq!((&row["mark"], &row["build"]), (&"watch".into(), &7601.into()));
            assert!(row["kernel_pdb"].as_str().unwrap().len() > 32);
        }
    }
    let same = |row: &Value, of: &Value, columns: &[&str]| {
        for column in columns {
            assert_eq!(row[column], of.get(column).cloned().unwrap_or_default(), "{column} of {row} and {of}");
        }
    };

    let blocks = by_look("blocks");
    let (_, rows) = named(&blocks, "check-")[2];
    let listed = last["blocks"].as_array().unwrap();
    assert_eq!(rows.len(), listed.len());
    for (row, block) in rows.iter().zip(listed) {
        same(row, block, &["tag", "size", "verdict", "stack", "stack_from", "no_stack"]);
        assert_eq!(format!("{:#x}", row["address"].as_u64().unwrap()), block["address"]);
        let evidence: Vec<&str> = row["evidence"].as_str().unwrap().split(' ').collect();
        assert_eq!(serde_json::json!(evidence), block["evidence"]);
        assert_eq!((&row["look"], &row["elapsed_ms"]), (&"check".into(), &last["elapsed_ms"]));
    }
    let (_, marked) = named(&blocks, "mark-")[0];
    assert_eq!(watched["at_mark"]["blocks"], marked.len());
    assert!(marked.iter().all(|row| row["verdict"].is_null() && row["look"] == "mark" && row["size"] == LEAK_BYTES));

    let stacks = by_look("stacks");
    let (_, rows) = named(&stacks, "check-")[2];
    let (stack, group) = (&rows[0], &last["stacks"][0]);
    same(stack, group, &["bytes", "count", "delta_bytes", "delta_count"]);
    assert_eq!(stack["stack"], group["id"]);
    let frames: Vec<&str> = stack["frames"].as_str().unwrap().split(';').collect();
    let symbols: Vec<&Value> = group["frames"].as_array().unwrap().iter().map(|frame| &frame["symbol"]).collect();
    assert_eq!(serde_json::json!(frames), serde_json::json!(symbols));
    assert!(named(&stacks, "mark-")[0].1[0]["delta_bytes"].is_null());

    let tags = by_look("tags");
    let (_, rows) = named(&tags, "check-")[2];
    assert_eq!(rows.len(), 1);
    same(&rows[0], &last["tags"][0], &["tag", "allocs", "frees", "at_least", "bytes"]);
    assert_eq!(rows[0]["blocks"], watched["checks"][2]["outstanding"]);
    assert_eq!(named(&tags, "mark-")[0].1[0]["blocks"], watched["at_mark"]["outstanding"]);

    // A file that is there is never written again, even at the same time of the target's.
    let (name, _) = named(&tags, "mark-")[0];
    let commands = "!leak mark m Leak -parquet lab/looks; !leak mark m Leak -parquet lab/looks; \
                    !leak check m -parquet lab/looks; q";
    let output = lab.run(&["--bonc", "-c", commands]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(by_look("tags").len(), 4);
    let unnamed = tables(&looks, "blocks", "unnamed");
    let names: Vec<&str> = unnamed.iter().map(|(name, _)| name.as_str()).collect();
    let stem = names.iter().find_map(|name| name.strip_prefix("mark-")?.strip_suffix("-1.parquet")).unwrap();
    assert!(names.contains(&format!("mark-{stem}.parquet").as_str()), "{names:?}");
    assert_eq!((names.len(), named(&unnamed, "check-").len()), (3, 1));
    assert_ne!(name, names[1]);

    // What stands in the way is named, and the target goes on.
    std::fs::write(lab.directory.path().join("file"), "").unwrap();
    let output = lab.run(&[&watch[..], &["--parquet", "file"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(errors(&output).contains("cannot write file"), "{}", errors(&output));
    assert!(lab.is_running());
}

/// What the page shows is what the JSON says; how it behaves in a browser is nt-leaks' own test.
#[test]
fn the_page_has_the_reports_numbers() {
    let lab = Lab::over_serial(article(), Some(Box::new(article_activity(Some(Duration::from_millis(100)), false))));
    lab.run(&["leak", "--tag", "Leak", "--every", "250ms", "--times", "3", "--html", "r.html", "--json", "r.json"]);
    let report: Value = serde_json::from_str(&lab.file("r.json")).unwrap();
    let (last, page) = (&report["last"], lab.file("r.html"));
    let data = page.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let blocks = last["blocks"].as_array().unwrap();
    assert!(last["summary"]["new"].as_u64().unwrap() > 0 && blocks.len() > 23);
    let addresses = |rows: &Value, of: &dyn Fn(&Value) -> String| -> Vec<String> {
        rows.as_array().unwrap().iter().map(of).collect()
    };
    let of_page = addresses(&data["blocks"], &|row| format!("0x{}", row[0].as_str().unwrap()));
    let of_report = addresses(&last["blocks"], &|row| row["address"].as_str().unwrap().replace('`', ""));
    assert_eq!(of_page, of_report);
    assert_eq!(data["growth"].as_array().unwrap().len(), 4, "the mark and three checks");
    assert_eq!(data["stacks"][0]["growth"], last["stacks"][0]["delta_bytes"]);
    assert!(page.contains("myfault+0x11f6"));
}

/// A machine whose driver allocates all the time: while `nt!PoolHitTag` holds its tag, the kernel breaks in.
struct HitTag<'a> {
    lab: &'a Lab,
    variable: u64,
    code: u64,
    before: u32,
}

impl HitTag<'_> {
    fn of(lab: &Lab) -> HitTag<'_> {
        let places = "? nt!PoolHitTag; ? nt!ExAllocatePoolWithTag; q";
        let places = results(&lab.run(&["--bonc", "--format", "json", "-c", places]));
        let value = |at: usize| {
            u64::from_str_radix(places[at]["result"]["value"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
        };
        let code = value(1) + 0x40;
        lab.fake.with_kernel(|kernel| kernel.write_virtual(code, &[0xcc, 0x90, 0xc3]));
        let mut tag = HitTag { lab, variable: value(0), code, before: 0 };
        tag.before = tag.value();
        assert_ne!(tag.before, LEAK_TAG);
        tag
    }

    fn value(&self) -> u32 {
        let mut bytes = [0; 4];
        assert_eq!(self.lab.fake.with_kernel(|kernel| kernel.read_virtual(self.variable, &mut bytes)), 4);
        u32::from_le_bytes(bytes)
    }

    /// Lets the driver allocate until `end`.
    fn allocate(&self, mut end: impl FnMut() -> bool) {
        let started = Instant::now();
        while !end() {
            assert!(started.elapsed() < Duration::from_secs(60), "the trace does not end");
            if self.value() == LEAK_TAG && !self.lab.fake.stats().halted {
                self.lab.fake.stop_at(0x8000_0003, self.code);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a trace has begun.
    fn armed(&self) {
        let started = Instant::now();
        while self.value() != LEAK_TAG || self.lab.fake.stats().halted {
            assert!(started.elapsed() < Duration::from_secs(60), "the trace does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn trace(&self, arguments: &str) -> Command {
        let mut command =
            self.lab.command(&["--bonc", "--allow-write", "--format", "json", "-c", arguments, "-c", "q"]);
        command.env("KDPOOL_STATE", self.lab.directory.path().join("state")).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        command
    }

    fn notes(&self) -> usize {
        // Who holds a target is noted there, too.
        let entries = std::fs::read_dir(self.lab.directory.path().join("state")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("changed-")).count()
    }
}

#[test]
fn a_trace_takes_stacks_and_puts_the_variable_back() {
    let lab = Lab::over_serial(article(), None);
    let tag = HitTag::of(&lab);
    let refused = lab.run(&["--bonc", "-c", "!leak trace Leak; q"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).contains("changing the target is off"), "{}", errors(&refused));
    assert_eq!(tag.value(), tag.before);

    let mut child = tag.trace("!leak trace Leak -hits 3 -rate 20").spawn().unwrap();
    tag.allocate(|| child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    let traced = &results(&output)[0]["result"];
    assert_eq!(
        (&traced["hits"], &traced["ended"]),
        (&3.into(), &"hits".into()),
        "{}{}",
        text(&output),
        errors(&output)
    );
    assert_eq!((&traced["restored"], &traced["target"]), (&true.into(), &"running".into()));
    assert_eq!(traced["stacks"][0]["operation"], "allocate");
    assert_eq!(traced["stacks"][0]["frames"][0]["symbol"], "nt!ExAllocatePoolWithTag+0x40");
    assert_eq!((tag.value(), tag.notes()), (tag.before, 0));
    assert!(lab.is_running());

    // A time without a hit.
    let output = tag.trace("!leak trace Leak -for 300ms").output().unwrap();
    assert_eq!(results(&output)[0]["result"]["ended"], "time", "{}", text(&output));
    assert_eq!((tag.value(), tag.notes()), (tag.before, 0));
}

/// Ctrl+C ends a trace, and a link that is lost: the next session puts the variable back.
#[cfg(unix)]
#[test]
fn a_trace_that_is_interrupted_or_cut_off_is_undone() {
    let lab = Lab::over_serial(article(), None);
    let tag = HitTag::of(&lab);
    let child = tag.trace("!leak trace Leak").spawn().unwrap();
    tag.armed();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let traced = &results(&output)[0]["result"];
    assert_eq!((&traced["ended"], &traced["restored"]), (&"cancelled".into(), &true.into()), "{}", text(&output));
    assert_eq!((tag.value(), tag.notes()), (tag.before, 0));
    assert!(lab.is_running());

    let child = tag.trace("!leak trace Leak -for 3s").spawn().unwrap();
    tag.armed();
    lab.fake.hang(true);
    let output = child.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(0), "{}", text(&output));
    lab.fake.hang(false);
    assert_eq!((tag.value(), tag.notes()), (LEAK_TAG, 1));
    let output = tag.trace("vertarget").output().unwrap();
    assert!(errors(&output).contains("An earlier session had set nt!PoolHitTag to 0x6b61654c"), "{}", errors(&output));
    assert_eq!((tag.value(), tag.notes()), (tag.before, 0));
    assert!(lab.is_running());
}

#[cfg(unix)]
#[test]
fn a_trace_that_is_killed_is_undone() {
    let lab = Lab::over_serial(article(), None);
    let tag = HitTag::of(&lab);
    let armed = || tag.armed();
    let kill = |child: &std::process::Child, signal: &str| {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    // The session's end puts it back.
    let mut child = tag.trace("!leak trace Leak").spawn().unwrap();
    armed();
    kill(&child, "-TERM");
    assert!(!child.wait().unwrap().success());
    assert_eq!(tag.value(), tag.before);
    assert!(lab.is_running());

    // Nobody does, and the next session finds the note.
    let mut child = tag.trace("!leak trace Leak").spawn().unwrap();
    armed();
    kill(&child, "-KILL");
    child.wait().unwrap();
    assert_eq!(tag.value(), LEAK_TAG);
    let output = tag.trace("vertarget").output().unwrap();
    assert!(errors(&output).contains("An earlier session had set nt!PoolHitTag to 0x6b61654c"), "{}", errors(&output));
    assert_eq!(tag.value(), tag.before);
    // That of the first one says nothing that is still so, and is kept until it is old: another machine of the same
    // kernel may have written it.
    assert_eq!(tag.notes(), 1);
    assert!(lab.is_running());
}
