//! `kdpool mcp` as a client meets it: a child process, the SDK's own client, and a fake target in this process that knows
//! whether it runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use kd_fake::kernel::article;
use kd_fake::{FakeHandle, FakeOptions, FakeTransport};
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequestParams, JsonObject};
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::TokioChildProcess;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

#[path = "../../kd-shell/tests/schema_check/mod.rs"]
mod schema_check;

use schema_check::check_tool;

/// A fake target and how it is reached.
struct Lab {
    fake: FakeHandle,
    connection: String,
    directory: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        kd_fake::kernel::write_symbol_store(&directory.path().join("symbols")).unwrap();
        let transport = FakeTransport::TcpListen(([127, 0, 0, 1], 0).into());
        let fake = kd_fake::spawn(FakeOptions::new(transport, article())).await.unwrap();
        let connection = format!("com:ipport={},port=127.0.0.1", fake.address().unwrap().port());
        Lab { fake, connection, directory }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
        command.args(["mcp", "-k", &self.connection, "-y", "symbols"]).args(arguments);
        command.current_dir(self.directory.path()).env("KDPOOL_STATE", self.directory.path()).env_remove("RUST_LOG");
        command
    }

    async fn client(&self, arguments: &[&str]) -> RunningService<RoleClient, ()> {
        ().serve(TokioChildProcess::new(self.command(arguments)).unwrap()).await.unwrap()
    }

    /// What `kdpool --format json` prints for a line.
    async fn batch(&self, line: &str) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_kdpool"))
            .args(["-k", &self.connection, "-y", "symbols", "-bonc", "--format", "json", "-c", &format!("{line}; q")])
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        serde_json::from_slice(output.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap()
    }

    fn runs(&self) -> bool {
        !self.fake.stats().halted
    }

    async fn until_it_runs(&self, patience: Duration, what: &str) {
        let end = Instant::now() + patience;
        while !self.runs() {
            assert!(Instant::now() < end, "{what}: the target still stands");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn call(client: &RunningService<RoleClient, ()>, tool: &str, arguments: Value) -> (bool, Value) {
    let arguments: JsonObject = arguments.as_object().unwrap().clone();
    let request = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
    let result = client.call_tool(request).await.unwrap_or_else(|error| panic!("{tool}: {error}"));
    let answer = result.structured_content.unwrap_or_default();
    // Arguments that are none have words alone.
    if !answer.is_null() {
        check_tool(&answer);
    }
    (result.is_error == Some(true), answer)
}

/// A tool's answer is the command line's, with `target` beside it; the first question stops the target, and `run` lets
/// it go.
#[tokio::test]
async fn answers_are_those_of_the_command_line() {
    let lab = Lab::new().await;
    let client = lab.client(&[]).await;
    let (_, status) = call(&client, "target", json!({})).await;
    assert_eq!(status["target"]["state"], "running", "{status}");
    assert!(lab.runs(), "being started stops nothing");
    let mut answers = Vec::new();
    for (tool, arguments, line) in [
        // First: what it says of symbols changes with what other questions needed.
        ("modules", json!({ "pattern": "my*" }), "lm m my*"),
        ("pool_tags", json!({ "sort": "paged", "tag": "Leak" }), "!poolused 4 \"Leak\""),
        ("pool_top", json!({ "count": 5 }), "!pooltop 0x5"),
        ("pool_find", json!({ "tag": "Leak" }), "!poolfind \"Leak\""),
        ("pool_block", json!({ "address": "fffff8a005800000" }), "!pool fffff8a005800000"),
        ("verifier", json!({ "allocations": true }), "!verifier 3"),
        ("verifier_log", json!({ "address": "fffff8a005800000" }), "!verifier 0x80 fffff8a005800000"),
        ("leak_freed", json!({ "address": "fffff8a005800000" }), "!leak freed fffff8a005800000"),
        ("symbol_near", json!({ "address": "fffff80001923cc6" }), "ln fffff80001923cc6"),
        ("symbols", json!({ "pattern": "nt!PoolBig*" }), "x nt!PoolBig*"),
        ("evaluate", json!({ "expression": "nt!PoolBigPageTable + 8" }), "? nt!PoolBigPageTable + 8"),
        ("memory", json!({ "address": "nt!PoolBigPageTable", "count": 2 }), "dq nt!PoolBigPageTable L0x2"),
        ("type", json!({ "name": "nt!_POOL_HEADER" }), "dt nt!_POOL_HEADER"),
        ("stack", json!({}), "k"),
        ("version", json!({}), "vertarget"),
    ] {
        let (failed, answer) = call(&client, tool, arguments).await;
        assert!(!failed, "{tool}: {answer}");
        assert_eq!(answer["command"], line);
        assert_eq!(answer["target"]["state"], "halted", "{tool}: {answer}");
        let left = answer["target"]["runs_in_ms"].as_u64().unwrap();
        assert!((20_000..=30_000).contains(&left), "{tool}: {left}");
        assert!(answer["cost"]["requests"].is_u64(), "{answer}");
        answers.push((line, answer));
    }
    assert!(!lab.runs());
    let (_, ran) = call(&client, "run", json!({})).await;
    assert_eq!(ran["target"]["state"], "running");
    assert!(lab.runs());
    client.cancel().await.unwrap();

    for (line, answer) in answers {
        let batch = lab.batch(line).await;
        for member in ["ok", "complete", "warnings"] {
            assert_eq!(answer[member], batch[member], "{line}: {member}");
        }
        // The clocks of the target went on.
        if line != "vertarget" {
            assert_eq!(answer["result"], batch["result"], "{line}");
        }
        // No question costs more than it does in a batch, whose banner has read some of the kernel's variables already.
        let requests = |answer: &Value| answer["cost"]["requests"].as_u64().unwrap();
        assert!(requests(&answer) <= requests(&batch) + 4, "{line}: {answer} {batch}");
    }
}

#[tokio::test]
async fn a_hunt_confirms_and_ends_running() {
    let lab = Lab::new().await;
    let client = lab.client(&[]).await;
    let (failed, watched) = call(&client, "leak_watch", json!({ "tag": "Leak", "times": 2, "every_seconds": 1 })).await;
    assert!(!failed, "{watched}");
    assert_eq!(
        (&watched["result"]["outcome"], &watched["result"]["last"]["summary"]["still"]),
        (&json!("stable"), &json!(23))
    );
    let (failed, marked) = call(&client, "leak_mark", json!({ "tag": "Leak" })).await;
    assert!(!failed && marked["result"]["blocks"] == 23, "{marked}");
    let (failed, checked) = call(&client, "leak_check", json!({})).await;
    assert!(!failed && checked["result"]["summary"]["still"] == 23, "{checked}");
    drop(client);
    lab.until_it_runs(Duration::from_secs(10), "the client is gone").await;
}

/// A target stands still for no longer than its lease, whoever forgot it.
#[tokio::test]
async fn the_lease_lets_the_target_go() {
    let lab = Lab::new().await;
    let client = lab.client(&["--lease", "1"]).await;
    let (failed, answer) = call(&client, "evaluate", json!({ "expression": "1" })).await;
    assert!(!failed && !lab.runs(), "{answer}");
    assert!(answer["target"]["runs_in_ms"].as_u64().unwrap() <= 1000, "{answer}");
    let asked = Instant::now();
    lab.until_it_runs(Duration::from_secs(3), "the lease is over").await;
    assert!(asked.elapsed() > Duration::from_millis(600), "{:?}", asked.elapsed());
    let (_, status) = call(&client, "target", json!({})).await;
    assert_eq!(status["target"]["state"], "running");
    // The next question stops it again.
    let (failed, answer) = call(&client, "evaluate", json!({ "expression": "2" })).await;
    assert!(!failed && !lab.runs(), "{answer}");
}

/// Nothing that writes is there, and nothing that is there can be talked into writing.
#[tokio::test]
async fn writing_has_to_be_allowed() {
    let lab = Lab::new().await;
    let client = lab.client(&[]).await;
    let tools = client.list_all_tools().await.unwrap();
    assert!(tools.iter().all(|tool| tool.annotations.as_ref().unwrap().read_only_hint == Some(true)));
    assert!(!tools.iter().any(|tool| tool.name == "command" || tool.name == "leak_trace"));
    let refused = client.call_tool(CallToolRequestParams::new("command")).await.unwrap_err();
    assert!(refused.to_string().contains("--allow-write"), "{refused}");
    for address in ["0; ed nt!PoolHitTag 1", "0\" ; ed nt!PoolHitTag 1", "0\ned nt!PoolHitTag 1"] {
        let (failed, _) = call(&client, "pool_block", json!({ "address": address })).await;
        assert!(failed, "{address:?}");
    }
    client.cancel().await.unwrap();
    let writing = lab.client(&["--allow-write"]).await;
    let (failed, answer) = call(&writing, "command", json!({ "line": "ed nt!PoolHitTag 12345678" })).await;
    assert!(!failed && answer["result"]["bytes"] == 4, "{answer}");
    // A line that would end a session at the prompt ends nothing here.
    call(&writing, "command", json!({ "line": "q" })).await;
    let (failed, answer) =
        call(&writing, "memory", json!({ "address": "nt!PoolHitTag", "view": "dwords", "count": 1 })).await;
    assert!(!failed && answer["result"]["values"][0] == "0x12345678", "{answer}");
}

/// A number generator that is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// A value for a member of a schema: mostly one that fits, sometimes not.
fn value(random: &mut Random, name: &str, schema: &Value) -> Value {
    if random.below(6) == 0 {
        let wrong =
            [json!(null), json!(-1), json!({ "a": [] }), json!("\u{0}; q"), json!(1e300), json!("x".repeat(2000))];
        return random.of(&wrong).clone();
    }
    let text = schema.to_string();
    match name {
        "tag" => random.of(&[json!("Leak"), json!("*"), json!("CM31"), json!("AB C"), json!("zzzz")]).clone(),
        "times" | "every_seconds" => json!(1),
        "address" => random
            .of(&[
                json!("fffff8a005800000"),
                json!("nt!PoolBigPageTable"),
                json!("0"),
                json!("ffffffffffffffff"),
                json!("@rsp"),
            ])
            .clone(),
        "pattern" => random.of(&[json!("nt!Pool*"), json!("*"), json!("my*"), json!("[")]).clone(),
        "expression" => random.of(&[json!("1+1"), json!("poi(nt!PoolBigPageTable)"), json!("("), json!("1/0")]).clone(),
        "name" => random.of(&[json!("nt!_POOL_HEADER"), json!("mark"), json!("nt!_*")]).clone(),
        "sort" | "pool" => random.of(&[json!("paged"), json!("nonpaged")]).clone(),
        "by" => random.of(&[json!("bytes"), json!("growth")]).clone(),
        "view" => random.of(&[json!("bytes"), json!("symbols"), json!("unicode")]).clone(),
        _ if text.contains("boolean") => json!(random.below(2) == 0),
        _ => json!(1 + random.below(40)),
    }
}

/// Right and wrong calls of the server's own schema: every one is answered, and the target runs afterwards.
#[tokio::test]
async fn random_calls_are_answered() {
    const CALLS: usize = 1000;
    let lab = Lab::new().await;
    let client = lab.client(&["--lease", "5"]).await;
    let tools = client.list_all_tools().await.unwrap();
    let mut random = Random(14);
    let (mut good, mut bad, mut refused, mut slow) = (0, 0, 0, 0);
    for _ in 0..CALLS {
        let tool = random.of(&tools);
        // A mark of all pool takes a second, a watch as long as it is told: a few of them are enough.
        if ["leak_watch", "leak_mark"].contains(&tool.name.as_ref()) {
            slow += 1;
            if slow > 8 {
                continue;
            }
        }
        let mut arguments = JsonObject::new();
        if tool.name == "leak_watch" {
            arguments.insert("times".into(), json!(1));
            arguments.insert("every_seconds".into(), json!(1));
        }
        let required = tool.input_schema.get("required").cloned().unwrap_or_default();
        for (name, schema) in tool.input_schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let needed = required.as_array().is_some_and(|names| names.iter().any(|needed| needed == name));
            let given = arguments.contains_key(name);
            if !given && if needed { random.below(10) > 0 } else { random.below(3) == 0 } {
                arguments.insert(name.clone(), value(&mut random, name, schema));
            }
        }
        if random.below(20) == 0 {
            arguments.insert("unheard_of".into(), json!(1));
        }
        let name = if random.below(30) == 0 { "no_such_tool".into() } else { tool.name.clone() };
        let told = format!("{name} {arguments:?}");
        let request = CallToolRequestParams::new(name).with_arguments(arguments);
        let answer = tokio::time::timeout(Duration::from_secs(30), client.call_tool(request)).await;
        match answer.unwrap_or_else(|_| panic!("no answer: {told}")) {
            Ok(result) => {
                match result.is_error {
                    Some(true) => bad += 1,
                    _ => good += 1,
                }
                if let Some(answer) = &result.structured_content {
                    check_tool(answer);
                }
            }
            Err(error) if error.to_string().contains("no such tool") => refused += 1,
            Err(error) => panic!("{told}: {error}"),
        }
    }
    assert!(good > CALLS / 3 && bad > CALLS / 10 && refused > 0, "{good} good, {bad} bad, {refused} refused");
    drop(client);
    lab.until_it_runs(Duration::from_secs(10), "after random calls").await;
}

/// A client by hand: lines of JSON, and pipes that can be closed at any moment.
struct Raw {
    server: Child,
}

impl Raw {
    fn start(lab: &Lab, arguments: &[&str]) -> Raw {
        let mut command = lab.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        Raw { server: command.spawn().unwrap() }
    }

    async fn send(&mut self, message: Value) {
        let line = format!("{message}\n");
        self.server.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
    }

    async fn handshake(&mut self) {
        let client = json!({ "name": "by hand", "version": "1" });
        let parameters = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
        self.send(json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": parameters })).await;
        self.answer().await;
        self.send(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    }

    async fn call(&mut self, tool: &str, arguments: Value) {
        let parameters = json!({ "name": tool, "arguments": arguments });
        self.send(json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": parameters })).await;
    }

    async fn answer(&mut self) -> Value {
        let mut line = String::new();
        BufReader::new(self.server.stdout.as_mut().unwrap()).read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The client dies: both pipes close at once.
    async fn die(mut self) {
        drop((self.server.stdin.take(), self.server.stdout.take()));
        let ended = tokio::time::timeout(Duration::from_secs(20), self.server.wait()).await;
        ended.expect("the server ends with its client").unwrap();
    }
}

/// In whatever state a client dies, the target runs soon.
#[tokio::test]
async fn a_client_that_dies_leaves_a_target_that_runs() {
    let lab = Lab::new().await;
    // Before a word, and with half a word.
    Raw::start(&lab, &[]).die().await;
    let mut half = Raw::start(&lab, &[]);
    half.server.stdin.as_mut().unwrap().write_all(b"{\"jsonrpc\":\"2.0\",\"id\":0,\"meth").await.unwrap();
    half.die().await;
    // After the handshake.
    let mut met = Raw::start(&lab, &[]);
    met.handshake().await;
    met.die().await;
    assert!(lab.runs());
    // With a target that stands.
    let mut standing = Raw::start(&lab, &[]);
    standing.handshake().await;
    standing.call("pool_top", json!({})).await;
    standing.answer().await;
    assert!(!lab.runs());
    standing.die().await;
    assert!(lab.runs(), "after an answer");
    // In the middle of a question, at several moments.
    for pause in [0, 3, 20, 60] {
        let mut asking = Raw::start(&lab, &[]);
        asking.handshake().await;
        asking.call("pool_find", json!({ "tag": "*", "small": true })).await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        asking.die().await;
        assert!(lab.runs(), "{pause} ms into a question");
    }
    // With half of a question on the line, while the target stands.
    let mut halfway = Raw::start(&lab, &[]);
    halfway.handshake().await;
    halfway.call("evaluate", json!({ "expression": "1" })).await;
    halfway.answer().await;
    halfway
        .server
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"tools/ca")
        .await
        .unwrap();
    halfway.die().await;
    assert!(lab.runs(), "half a question");
    // With more questions waiting than are answered.
    let mut crowded = Raw::start(&lab, &[]);
    crowded.handshake().await;
    for _ in 0..20 {
        crowded.call("pool_find", json!({ "tag": "*" })).await;
    }
    crowded.answer().await;
    crowded.die().await;
    assert!(lab.runs(), "questions waited");
    // One pipe closes before the other: nobody reads, or nobody asks.
    let mut deaf = Raw::start(&lab, &[]);
    deaf.handshake().await;
    drop(deaf.server.stdout.take());
    deaf.call("pool_tags", json!({})).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    deaf.die().await;
    assert!(lab.runs(), "nobody read");
    let mut mute = Raw::start(&lab, &[]);
    mute.handshake().await;
    mute.call("pool_tags", json!({})).await;
    drop(mute.server.stdin.take());
    tokio::time::sleep(Duration::from_millis(100)).await;
    mute.die().await;
    assert!(lab.runs(), "nobody asked");
    // While the target is let go.
    let mut parting = Raw::start(&lab, &[]);
    parting.handshake().await;
    parting.call("evaluate", json!({ "expression": "1" })).await;
    parting.answer().await;
    parting.call("run", json!({})).await;
    parting.die().await;
    assert!(lab.runs(), "while it was let go");
    // In a watch, which would take minutes.
    let mut watching = Raw::start(&lab, &[]);
    watching.handshake().await;
    watching.call("leak_watch", json!({ "tag": "Leak", "times": 100, "every_seconds": 60 })).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    watching.die().await;
    assert!(lab.runs(), "in a watch");
}

/// A client that is stopped, and not dead, keeps its pipes open.
#[tokio::test]
async fn a_client_that_hangs_holds_the_target_for_a_lease() {
    let lab = Lab::new().await;
    let mut hanging = Raw::start(&lab, &["--lease", "1"]);
    hanging.handshake().await;
    hanging.call("evaluate", json!({ "expression": "1" })).await;
    hanging.answer().await;
    lab.until_it_runs(Duration::from_secs(3), "nobody asks any more").await;
    hanging.die().await;
    assert!(lab.runs());
}

/// A target that cannot be had is an answer that says why, and no end of the server.
#[tokio::test]
async fn without_a_target_each_answer_says_why() {
    let lab = Lab::new().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
    command.args(["mcp", "-k", "com:ipport=9,port=127.0.0.1"]);
    let client = ().serve(TokioChildProcess::new(command).unwrap()).await.unwrap();
    let (failed, answer) = call(&client, "pool_top", json!({})).await;
    assert!(failed && answer["target"]["state"] == "not connected", "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("refuses the connection"), "{answer}");
    drop(lab);
}

/// `--fake` needs nothing beside it.
#[tokio::test]
async fn the_fake_answers_alone() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdpool"));
    command.args(["mcp", "--fake"]);
    let client = ().serve(TokioChildProcess::new(command).unwrap()).await.unwrap();
    let (failed, answer) = call(&client, "pool_find", json!({ "tag": "Leak" })).await;
    assert!(!failed && answer["result"]["blocks"].as_array().is_some_and(|blocks| blocks.len() >= 23), "{answer}");
    client.cancel().await.unwrap();
}

/// A target that another kdpool holds is not taken from it.
#[tokio::test]
async fn the_target_of_another_is_left_to_it() {
    let lab = Lab::new().await;
    let first = lab.client(&[]).await;
    let (failed, answer) = call(&first, "evaluate", json!({ "expression": "1" })).await;
    assert!(!failed, "{answer}");
    let second = lab.client(&[]).await;
    let (failed, answer) = call(&second, "evaluate", json!({ "expression": "1" })).await;
    assert!(failed && answer["error"].as_str().unwrap().contains("is held by another kdpool"), "{answer}");
    second.cancel().await.unwrap();
    let (failed, answer) = call(&first, "evaluate", json!({ "expression": "2" })).await;
    assert!(!failed, "{answer}");
    first.cancel().await.unwrap();
    lab.until_it_runs(Duration::from_secs(10), "after both").await;
}

/// The client is gone and the target cannot be reached: somebody may read standard error, or the status.
#[tokio::test]
async fn a_target_that_cannot_be_let_go_is_told_of() {
    let lab = Lab::new().await;
    let mut command = lab.command(&[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut asking = Raw { server: command.spawn().unwrap() };
    asking.handshake().await;
    asking.call("evaluate", json!({ "expression": "1" })).await;
    asking.answer().await;
    lab.fake.pause(true);
    drop((asking.server.stdin.take(), asking.server.stdout.take()));
    let ended = tokio::time::timeout(Duration::from_secs(40), asking.server.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(4) && said.contains("it may still stand"), "{} {said}", ended.status);
}
