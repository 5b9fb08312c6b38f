//! The commands that change the state of a target, on kd-fake over serial on TCP.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kd_fake::{FakeHandle, FakeOptions, FakeTransport};
use kd_link::KdSpec;
use kd_shell::{Format, Log, Next, Output, PathSource, PoolTags, Session, Shell, Symbols};
use kd_target::{Interrupt, Leave, Target};
use kd_wire::session::{HostSession, SerialConfig};
use tokio::runtime::Runtime;

struct Live {
    shell: Shell,
    interrupt: Interrupt,
    fake: FakeHandle,
    /// Holds the connection's tasks; dropped last.
    runtime: Runtime,
    directory: tempfile::TempDir,
}

#[derive(Default)]
struct Screen {
    text: String,
    errors: String,
}

impl Output for Screen {
    fn write(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn error(&mut self, line: &str) {
        self.errors.push_str(line);
    }
}

impl Live {
    fn attach() -> Self {
        let runtime = Runtime::new().expect("runtime");
        let directory = tempfile::tempdir().expect("directory");
        kd_fake::kernel::write_symbol_store(directory.path()).expect("store");
        let transport = FakeTransport::TcpListen(SocketAddr::from(([127, 0, 0, 1], 0)));
        let options = FakeOptions::new(transport, kd_fake::kernel::article());
        let fake = runtime.block_on(kd_fake::spawn(options)).expect("fake target");
        let address = fake.address().expect("TCP");
        let spec = KdSpec::parse(&format!("com:ipport={},port={}", address.port(), address.ip())).expect("-k");
        let link = runtime.block_on(kd_link::open(&spec)).expect("link");
        let interrupt = Interrupt::default();
        let wire = HostSession::serial(SerialConfig::default());
        let (running, _) = kd_target::attach(runtime.handle(), link, wire, true, interrupt.clone());
        let source = PathSource::new(&directory.path().display().to_string()).expect("path");
        let session = Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default());
        let mut shell = Shell::new(session, Format::Kd, interrupt.clone());
        shell.set_target(Target::Running(running));
        assert!(shell.wait(Some(Duration::from_secs(30))).expect("stop"));
        Self { shell, interrupt, fake, runtime, directory }
    }

    fn run(&mut self, line: &str) -> (Screen, bool, Next) {
        let mut screen = Screen::default();
        let outcome = self.shell.execute(line, &mut screen);
        (screen, outcome.failed, outcome.next)
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn leave(mut self) {
        self.shell.take_target().expect("target").leave(Leave::Running);
        drop(self.fake);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

#[test]
fn a_target_is_let_go_broken_into_and_asked() {
    let mut live = Live::attach();
    assert_eq!(live.shell.prompt().as_deref(), Some("0: kd> "));
    let banner = live.shell.banner(true).unwrap();
    assert!(banner.contains("Kernel Debugger connection established.  (Initial Breakpoint requested)\n"));
    assert!(live.shell.stop_lines().unwrap().contains("nt!RtlpBreakWithStatusInstruction:\n"));

    // A failing command does not keep the others from running, and the line has failed.
    let (screen, failed, next) = live.run("g; dd 1000; .echo on");
    assert_eq!(screen.errors, "the target is running; break in first (Ctrl+C, or .break)\n");
    assert_eq!((screen.text.as_str(), failed, next), ("on\n", true, Next::Continue));
    assert_eq!(live.shell.prompt(), None);
    assert!(live.run("g").0.errors.contains("running already"));
    assert!(live.run(".wait 40").0.errors.contains("did not stop"));

    let (screen, failed, _) = live.run(".sleep 1; .break");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("Break instruction exception - code 80000003 (first chance)\n****"));
    assert!(screen.text.ends_with(" cc              int     3\n"));

    let (screen, failed, _) = live.run("!poolfind Leak; .stats");
    assert!(!failed, "{}", screen.errors);
    assert_eq!(screen.text.matches(":large page allocation, Tag  is Leak").count(), 23);
    assert!(screen.text.contains("Last command: !poolfind Leak\n"));

    assert_eq!(live.run("q -halted").2, Next::Quit { halted: true });
    assert_eq!(live.run("q; .echo not run").2, Next::Quit { halted: false });
    assert!(live.run("q -what").1);
    live.leave();
}

#[test]
fn scripts_and_logs() {
    let mut live = Live::attach();
    let (script, log) = (live.file("a.txt"), live.file("log.txt"));
    fs::write(&script, ".echo one\n* a comment\nbogus\n\n.echo two; .echo three\n").unwrap();
    assert_eq!(live.run(&format!(".logopen {log}")).0.text, format!("Opened log file '{log}'\n"));
    let (screen, failed, _) = live.run(&format!("$$<{script}; .echo four"));
    assert_eq!(screen.text, "one\ntwo\nthree\nfour\n");
    assert!(failed);
    assert_eq!(screen.errors, "Couldn't resolve error at 'bogus' (no such command; .help lists them)\n");
    assert_eq!(live.run(".logclose").0.text, format!("Closing open log file {log}\n"));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains(&format!("0: kd> $$<{script}; .echo four\none\nCouldn't resolve error at 'bogus'")), "{log}");

    // A script that reads itself ends.
    fs::write(&script, format!("$<{script}\n")).unwrap();
    let (screen, failed, _) = live.run(&format!("$<{script}"));
    assert!(failed && screen.errors.contains("nested more than"), "{}", screen.errors);
    assert!(live.run("$</no/such/file").0.errors.starts_with("cannot read the script /no/such/file: "));
    live.leave();
}

#[test]
fn ctrl_c_ends_a_command_and_its_line() {
    let mut live = Live::attach();
    let interrupt = live.interrupt.clone();
    let start = Instant::now();
    let presser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        interrupt.raise();
    });
    let (screen, failed, next) = live.run(".sleep 7fffffff; .echo not run");
    presser.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!((screen.text.as_str(), screen.errors.as_str()), ("", "interrupted\n"));
    assert_eq!((failed, next), (true, Next::Continue));
    assert_eq!(live.run(".echo again").0.text, "again\n");
    live.leave();
}

#[test]
fn json_is_one_object_for_each_command() {
    let mut live = Live::attach();
    live.shell.format = Format::Json;
    let (screen, failed, _) = live.run("!poolused 0 Leak; g; vertarget; .break");
    assert!(failed);
    assert_eq!(screen.errors, "");
    let objects: Vec<serde_json::Value> = screen.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 4);
    assert!(objects[0]["cost"]["requests"].as_u64().unwrap() > 0);
    assert!(objects[0]["cost"]["bytes_read"].as_u64().unwrap() > 0);
    assert_eq!(objects[2]["ok"], false);
    assert_eq!(objects[3]["result"]["asked"], true);
    live.leave();
}

#[test]
fn the_target_is_changed_only_when_that_is_allowed() {
    let mut live = Live::attach();
    assert!(live.run("ed nt!PoolHitTag ' cbA'").0.errors.contains(".allow_write on"));
    assert!(live.run("r rax=5").0.errors.contains(".allow_write on"));
    assert_eq!(live.run(".allow_write on").0.text, "Changing the target is allowed.\n");
    let (screen, failed, _) = live.run("ed nt!PoolHitTag ' cbA'; da nt!PoolHitTag L4; r rax=5; r rax; ~0s; ~");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.contains("  \"Abc \"\nrax=0000000000000005\nprocessor 0 of "), "{}", screen.text);
    assert!(live.run("eb 1000 1").0.errors.contains("cannot write 00000000`00001000"));
    assert!(live.run("~99s").1);
    live.leave();
}

#[test]
fn breakpoints_are_listed_and_taken_out() {
    let mut live = Live::attach();
    let (screen, failed, _) = live.run("bp nt!NtFlushKey; bp nt!NtFlushKey+4; bl");
    assert!(!failed, "{}", screen.errors);
    assert_eq!(
        screen.text,
        " 0 e fffff800`017269e0     0001 (0001) nt!NtFlushKey\n \
         1 e fffff800`017269e4     0001 (0001) nt!NtFlushKey+0x4\n"
    );
    assert!(live.run("bp nt!NtFlushKey").0.errors.contains("breakpoint 0 is there already"));
    assert_eq!(live.fake.stats().breakpoints.len(), 2);
    let (screen, failed, _) = live.run("bd 0; bl; bc 1; be 0; bl");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with(" 0 d ") && screen.text.ends_with("nt!NtFlushKey\n"), "{}", screen.text);
    assert_eq!(live.fake.stats().breakpoints, [0xfffff800_017269e0]);
    assert!(live.run("bc 7").1);
    live.leave();
}

#[test]
fn everyday_commands_answer_on_a_live_target() {
    let mut live = Live::attach();
    let (screen, failed, _) = live.run("r");
    assert!(!failed, "{}", screen.errors);
    let lines: Vec<&str> = screen.text.lines().collect();
    assert!(lines[0].starts_with("rax=") && lines[2].starts_with("rip=fffff800"), "{}", screen.text);
    assert!(lines[3].starts_with(" r8=") && lines[6].starts_with("iopl=0         nv up ei "), "{}", screen.text);
    assert!(lines[7].ends_with("gs=002b             efl=00000202"), "{}", screen.text);
    assert_eq!(lines[8], "nt!RtlpBreakWithStatusInstruction:");
    assert!(lines[9].ends_with(" cc              int     3"));
    let (screen, failed, _) = live.run("kn");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with(" # Child-SP          RetAddr           Call Site\n00 fffff"), "{}", screen.text);
    let (screen, failed, _) = live.run("!process 0 0");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("**** NT ACTIVE PROCESS DUMP ****\nPROCESS fffffa80"), "{}", screen.text);
    assert!(screen.text.contains("    Image: System\n"), "{}", screen.text);
    let (screen, failed, _) = live.run(".process; .thread; !thread");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.contains("Implicit process is now fffff"), "{}", screen.text);
    assert!(screen.text.contains("\nImplicit thread is now fffff"), "{}", screen.text);
    assert!(screen.text.contains("\nTHREAD fffff"), "{}", screen.text);
    live.leave();
}

#[test]
fn control_flow_and_scripts_with_arguments() {
    let mut live = Live::attach();
    let (screen, failed, _) =
        live.run(".if (1 == 2) { .echo a; bogus } .elsif (3) { .echo b; .echo c } .else { .echo d }; .echo e");
    assert_eq!((screen.text.as_str(), failed), ("b\nc\ne\n", false), "{}", screen.errors);
    let (screen, failed, _) = live.run(".foreach (x { .echo 1 2; .echo 3 }) { ? x + 1; .echo <${x}> }");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("Evaluate expression: 2 = 00000000`00000002\n<1>\n"), "{}", screen.text);
    assert!(screen.text.ends_with("<3>\n"), "{}", screen.text);
    assert_eq!(live.run(".if (1) { q }").2, Next::Quit { halted: false });
    assert!(live.run(".if (1) { bogus }").1);
    assert!(live.run(".if (1 { }").0.errors.starts_with("Syntax error at '"));
    let script = live.file("b.txt");
    fs::write(&script, "* a comment\n.if (${$arg1} == 2)\n{\n  .echo two ${$arg2}\n}\n").unwrap();
    let (screen, failed, _) = live.run(&format!("$$>a<{script} 2 more; .echo after"));
    assert_eq!((screen.text.as_str(), failed), ("two more\nafter\n", false), "{}", screen.errors);
    let deep = ".if (1) { ".repeat(200);
    assert!(live.run(&format!("{deep} .echo x {}", "}".repeat(200))).0.errors.contains("nested more than"));
    let (screen, failed, _) = live.run(".printf \"%d %x %p %y\\n\", 0n10, 0n255, nt!NtFlushKey, nt!NtFlushKey");
    assert!(!failed, "{}", screen.errors);
    assert_eq!(screen.text, "10 ff fffff800017269e0 nt!NtFlushKey (fffff800`017269e0)\n");
    live.leave();
}

/// What a look at the pool log costs on the wire, without the list of modules that names the frames.
#[test]
fn a_second_look_at_the_pool_log_costs_what_is_new() {
    let mut live = Live::attach();
    live.shell.format = Format::Json;
    let block = 0xffff_f8a0_0580_0000;
    let look = |live: &mut Live| -> serde_json::Value {
        let (screen, failed, _) = live.run("lm; !verifier 0x80 fffff8a005800000");
        assert!(!failed, "{}", screen.text);
        serde_json::from_str(screen.text.lines().last().unwrap()).unwrap()
    };
    let first = look(&mut live);
    println!("first look: {}", first["cost"]);
    assert_eq!(first["result"]["entries"].as_array().unwrap().len(), 2);
    assert!(first["cost"]["requests"].as_u64().unwrap() <= 30, "{}", first["cost"]);
    assert!(first["cost"]["bytes_read"].as_u64().unwrap() <= 8 << 10, "{}", first["cost"]);

    assert!(!live.run("g").1);
    live.fake.with_kernel(|kernel| {
        use kd_fake::kernel::{FREE_STACK, FREEING_THREAD, LEAK_STACK, LEAK_TAG, LEAK_THREAD, PoolKind};
        kernel.free_large(block, &FREE_STACK, FREEING_THREAD).unwrap();
        for _ in 0..49 {
            let place = kernel.allocate_large(LEAK_TAG, 0x2000, PoolKind::NonPaged, &LEAK_STACK, LEAK_THREAD).unwrap();
            kernel.free_large(place, &FREE_STACK, FREEING_THREAD).unwrap();
        }
        kernel.allocate_large_at(block, LEAK_TAG, 0x3000, PoolKind::Paged, &LEAK_STACK, LEAK_THREAD).unwrap();
    });
    assert!(!live.run(".break").1);
    let second = look(&mut live);
    println!("second look: {}", second["cost"]);
    let entries = second["result"]["entries"].as_array().unwrap();
    let operations: Vec<&str> = entries.iter().map(|entry| entry["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["allocate", "free", "allocate", "free"]);
    assert_eq!(entries[0]["size"], 0x3000);
    assert_eq!(entries[2..], first["result"]["entries"].as_array().unwrap()[..]);
    assert!(second["cost"]["requests"].as_u64().unwrap() <= 10, "{}", second["cost"]);
    live.leave();
}
