//! The commands that change the state of a target, on kd-fake over serial on TCP.

mod target;

use std::fs;
use std::time::{Duration, Instant};

use kd_shell::{Format, Next};
use kd_target::Leave;
use target::Live;

/// The article's machine, whose driver leaks by a system call that is executed.
fn leaking() -> Live {
    Live::article_with(|options| options.call = Some((kd_fake::kernel::ARTICLE_CALL, Duration::from_millis(20))))
}

#[test]
fn a_target_is_let_go_broken_into_and_asked() {
    let mut live = Live::article();
    assert_eq!(live.shell.prompt().as_deref(), Some("0: kd> "));
    // Its first line costs no request.
    let before = live.fake.stats().requests;
    let connected = live.shell.connected().unwrap();
    assert!(connected.starts_with("Connected to Windows 7 7601 x64 target at ("), "{connected}");
    assert_eq!(live.fake.stats().requests, before);
    let banner = live.shell.banner(true).unwrap();
    assert!(banner.contains("Kernel Debugger connection established.  (Initial Breakpoint requested)\n"));
    assert!(live.shell.stop_lines().unwrap().contains("nt!RtlpBreakWithStatusInstruction:\n"));

    // A failing command does not keep the others from running, and the line has failed.
    let (screen, failed, next) = live.run("dt nt!_NOTHING; g; .echo on");
    assert_eq!(screen.errors, "Symbol nt!_NOTHING not found.\n");
    assert_eq!((screen.text.as_str(), failed, next), ("on\n", true, Next::Continue));
    assert_eq!(live.shell.prompt(), None);
    assert!(live.run("g").0.errors.contains("running already"));
    assert!(live.run(".wait 40").0.errors.contains("did not stop"));

    let (screen, failed, _) = live.run(".sleep 1; .break");
    assert!(!failed, "{}", screen.errors);
    // The box that explains Ctrl+C comes once in a session, and the banner had it.
    assert!(screen.text.starts_with("Break instruction exception - code 80000003 (first chance)\n"), "{}", screen.text);
    assert!(!screen.text.contains("****") && screen.text.ends_with(" cc              int     3\n"), "{}", screen.text);

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
fn the_articles_second_answer() {
    let mut live = Live::article();
    let text = live.text("!poolfind Leak");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "Scanning large pool allocation table for Tag: Leak (fffffa8002e00000 : fffffa8002f80000)");
    assert_eq!(lines[3], "*fffff8a006a00000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
    assert_eq!(lines[25], "*fffff8a005800000 :large page allocation, Tag  is Leak, size  is 0xfa000 bytes");
    assert_eq!(lines.len(), 26);
    for (line, count) in [("!poolfind Leak 1", 23), ("!poolfind Leak 0", 0)] {
        let json = live.json(line);
        assert_eq!(json["result"]["blocks"].as_array().unwrap().len(), count, "{line}");
        assert_eq!((&json["complete"], &json["ok"]), (&true.into(), &true.into()), "{line}: {json}");
        for field in ["tag", "blocks", "table", "checks"] {
            assert!(json["result"].get(field).is_some(), "{line} has no {field}: {json}");
        }
    }
    // Every hint that is printed can be typed, its options in any order.
    let stopped = live.json("!poolfind Driv -small -global -limit 0");
    assert!(stopped["result"]["stopped"].is_string(), "{stopped}");
    let rest = live.json("!poolfind -limit 400 -resume Driv -small");
    assert_eq!((&rest["ok"], &rest["result"]["stopped"]), (&true.into(), &serde_json::Value::Null), "{rest}");
    assert!(live.run("!poolfind -resume").0.errors.contains("no search was stopped"));
    live.json("!poolfind Driv -small -global -limit 0");
    assert!(live.run("!poolfind Leak -resume").0.errors.contains("another tag"));
    assert!(live.run("!poolfind -resume -nonpaged").0.errors.contains("another pool type"));
    live.leave();
}

/// A search that looked in the wrong place finds nothing, and the tag's counters say so.
#[test]
fn blocks_that_are_counted_and_not_found_are_said() {
    let mut live = Live::article();
    // This machine has the article's counters, and of their blocks the large ones only.
    let wrong = live.json("!poolfind Driv -global");
    let checks = wrong["result"]["checks"].as_array().unwrap();
    let counted = checks.iter().find(|check| check["name"] == "tag-counters").unwrap();
    assert_eq!(counted["found"], 0, "{wrong}");
    assert!(counted["expected"].as_u64() > Some(0), "{wrong}");
    assert_eq!((&counted["ok"], &wrong["complete"], &wrong["ok"]), (&false.into(), &false.into(), &true.into()));
    let warnings = wrong["warnings"].as_array().unwrap();
    let said = "the books do not balance: blocks that the kernel counts of the tag: ";
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().starts_with(said), "{wrong}");
    let right = live.json("!poolfind Leak");
    assert_eq!((&right["complete"], &right["warnings"]), (&true.into(), &serde_json::json!([])), "{right}");
    live.leave();
}

/// What it costs, what it writes and what it does not, and that a target that ran runs afterwards.
#[test]
fn a_self_check_is_a_screen_and_a_file() {
    let mut live = Live::article();
    let file = live.file("self.json");
    let json = live.json(&format!(".selfcheck -file {file}"));
    let cost = json["cost"]["requests"].as_u64().unwrap();
    println!("{cost} requests: {}", live.text(".selfcheck"));
    assert!(cost <= 300, "{cost} requests");
    assert_eq!((&json["ok"], &json["result"]["build"]), (&true.into(), &7601.into()), "{json}");
    let part = |name: &str| {
        let parts = json["result"]["parts"].as_array().unwrap();
        parts.iter().find(|part| part["part"] == name).unwrap_or_else(|| panic!("no {name}: {json}")).clone()
    };
    for name in ["modules", "tags", "large", "small", "blocks", "verifier", "log"] {
        let part = part(name);
        let state = part["state"].as_str().unwrap();
        // Nothing that could not be compared is without its reason.
        let said = !part["limits"].as_array().unwrap().is_empty() || !part["missing"].as_array().unwrap().is_empty();
        assert!(state != "cannot know" || said, "{part}");
    }
    assert_eq!(part("modules")["state"], "ok", "{json}");
    let written = fs::read_to_string(&file).unwrap();
    for secret in ["fffff8", "fffffa", "Leak", "myfault", ".sys", "\"at\""] {
        assert!(!written.contains(secret), "{secret} is in {written}");
    }
    let read = kd_shell::SelfCheckReport::read(std::path::Path::new(&file)).unwrap();
    assert!(read.screen().contains("Windows 7 7601 x64") && read.screen().contains("module list"), "{}", read.screen());
    assert!(live.run(".selfcheck -what").0.errors.contains("unknown option"));
    live.run("g");
    assert!(!live.run(".selfcheck -requests 20").1);
    assert_eq!(live.shell.prompt(), None, "it runs again");
    live.leave();
}

#[test]
fn scripts_and_logs() {
    let mut live = Live::article();
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
fn loops_count_are_left_and_end() {
    let mut live = Live::article();
    assert_eq!(live.text(".for (r $t0 = 0; @$t0 < 3; r $t0 = @$t0 + 1) { .printf \"%d \", @$t0 }"), "0 1 2 ");
    let counted = "r $t0 = 0; .while (1) { r $t0 = @$t0 + 1; .if (@$t0 == 2) { .continue }; .printf \"%d \", @$t0; \
                   .if (@$t0 == 4) { .break; .echo never } }; .echo done";
    assert_eq!(live.text(counted), "1 3 4 done\n");
    assert_eq!(live.text(".foreach /s (x \"a b c\") { .if (1) { .echo x; .break } }; .echo out"), "a\nout\n");
    // Only the inner one of two is left, and the last step is made after .continue as well.
    let nested =
        ".for (r $t0 = 0; @$t0 < 2; r $t0 = @$t0 + 1) { .while (1) { .break }; .continue; .echo never }; ? @$t0";
    assert_eq!(live.text(nested), "Evaluate expression: 2 = 00000000`00000002\n");
    assert!(live.run(".continue").0.errors.contains("for the body of a loop"));
    let (screen, failed, _) = live.run(".while (nosuch!symbol) { .echo never }; .echo on");
    assert!(failed && screen.text.is_empty() && screen.errors.contains("nosuch"), "{}", screen.errors);
    // In a loop, too, .break stops a target that runs.
    let (screen, failed, _) = live.run("r $t0 = 0; .while (@$t0 == 0) { g; .break; r $t0 = 1 }; .echo stands");
    assert!(!failed && screen.text.ends_with("stands\n"), "{} {}", screen.text, screen.errors);

    let interrupt = live.interrupt.clone();
    let presser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        interrupt.raise();
    });
    let (screen, failed, _) = live.run(".while (1) { }; .echo not run");
    presser.join().unwrap();
    assert!(failed && screen.text.is_empty() && screen.errors == "interrupted\n", "{}", screen.errors);
    live.leave();
}

#[test]
fn ctrl_c_ends_a_command_and_its_line() {
    let mut live = Live::article();
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
    let mut live = Live::article();
    live.shell.format = Format::Json;
    let (screen, failed, _) = live.run("!poolused 0 Leak; dt nt!_NOTHING; g; .break");
    assert!(failed);
    assert_eq!(screen.errors, "");
    let objects: Vec<serde_json::Value> = screen.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 4);
    assert!(objects[0]["cost"]["requests"].as_u64().unwrap() > 0);
    assert!(objects[0]["cost"]["bytes_read"].as_u64().unwrap() > 0);
    assert_eq!(objects[1]["ok"], false);
    assert_eq!(objects[3]["result"]["asked"], true);
    live.leave();
}

#[test]
fn the_target_is_changed_only_when_that_is_allowed() {
    let mut live = Live::article();
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
    let mut live = Live::article();
    let (screen, failed, _) = live.run("bp nt!NtFlushKey; bp nt!NtFlushKey+4 3 \"k; g\"; bl");
    assert!(!failed, "{}", screen.errors);
    assert_eq!(
        screen.text,
        " 0 e fffff800`017269e0     0001 (0001) nt!NtFlushKey\n \
         1 e fffff800`017269e4     0003 (0003) nt!NtFlushKey+0x4 \"k; g\"\n"
    );
    assert_eq!(live.run("bp nt!NtFlushKey").0.remarks, "breakpoint 0 redefined\n");
    // They are in the target only while it runs.
    assert_eq!(live.fake.stats().breakpoints.len(), 0);
    live.run("g");
    assert_eq!(live.fake.stats().breakpoints.len(), 2);
    live.run(".break");
    let (screen, failed, _) = live.run("bd 0; bl; bc 1; be 0; bl");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with(" 0 d ") && screen.text.ends_with("nt!NtFlushKey\n"), "{}", screen.text);
    live.run("g");
    assert_eq!(live.fake.stats().breakpoints, [0xfffff800_017269e0]);
    live.run(".break");
    assert!(live.run("bc 7").1);
    assert!(!live.run("bp nt!NtFlushKey+8; bc 0-1").1);
    assert_eq!(live.run("bl").0.text, "");
    // Numbers of one's own.
    assert_eq!(live.text("bp7 nt!NtFlushKey; bl"), " 7 e fffff800`017269e0     0001 (0001) nt!NtFlushKey\n");
    assert!(live.run("bp2 nt!NtFlushKey").0.errors.contains("breakpoint 7 is at this address already"));
    let (screen, failed, _) = live.run("bp7 nt!NtFlushKey+4 3; bl; g");
    assert!(!failed && screen.remarks == "breakpoint 7 redefined\n", "{} {}", screen.errors, screen.remarks);
    assert_eq!(screen.text, " 7 e fffff800`017269e4     0003 (0003) nt!NtFlushKey+0x4\n");
    assert_eq!(live.fake.stats().breakpoints, [0xfffff800_017269e4]);
    assert!(!live.run(".break; bc 7").1);
    live.run("bp nt!NtFlushKey; g");
    // Left while it runs.
    live.shell.take_target().expect("target").leave(Leave::Running);
    assert_eq!(live.fake.stats().breakpoints, [0u64; 0]);
    assert!(!live.fake.stats().halted);
}

const LEAK_STACK: &str = "\
nt!ViPoolLogStackTrace
nt!VeAllocatePoolWithTagPriority+0x2b6
nt!VerifierExAllocatePoolEx+0x1d
myfault+0x11f6
myfault+0x142f
nt!IovCallDriver+0xa0
nt!IopXxxControlFile+0x607
nt!NtDeviceIoControlFile+0x56
nt!KiSystemServiceCopyEnd+0x13 (TrapFrame @ fffff880`06d2fe70)
";

#[test]
fn a_breakpoint_is_hit_and_the_articles_stack_is_unwound() {
    let mut live = leaking();
    let (screen, failed, _) = live.run("bp nt!ViPoolLogStackTrace; g; .wait 0n20000");
    assert!(!failed, "{}", screen.errors);
    let lines: Vec<&str> = screen.text.lines().collect();
    assert_eq!(lines[..2], ["Breakpoint 0 hit", "nt!ViPoolLogStackTrace:"], "{}", screen.text);
    assert!(lines[2].ends_with(" 90              nop"), "{}", screen.text);
    let requests = |live: &Live| live.fake.stats().requests.values().sum::<u64>();
    let before = requests(&live);
    let (screen, failed, _) = live.run("k");
    assert!(!failed, "{}", screen.errors);
    let first = requests(&live) - before;
    assert!(first <= 30, "{first} requests for the first stack");
    let mut lines = screen.text.lines();
    assert_eq!(lines.next(), Some(" # Child-SP          RetAddr           Call Site"));
    let names: String = lines.clone().map(|line| format!("{}\n", &line[39..])).collect();
    assert_eq!(names, LEAK_STACK);
    let returns: Vec<&str> = lines.map(|line| &line[21..38]).collect();
    assert_eq!(returns[0], "fffff800`01923cc6");
    assert_eq!(returns[8], "00000000`77a8138a", "the user code that called");
    assert_eq!(screen.remarks, "the frames of user code, from 00000000`77a8138a on, are not followed\n");
    let numbered = live.run("kn 2").0.text;
    assert_eq!(
        numbered,
        " # Child-SP          RetAddr           Call Site\n\
         00 fffff880`06d2fc28 fffff800`01923cc6 nt!ViPoolLogStackTrace\n\
         01 fffff880`06d2fc30 fffff800`01923d3d nt!VeAllocatePoolWithTagPriority+0x2b6\n"
    );
    let arguments = live.run("kb L1").0.text;
    assert!(arguments.starts_with(" # Child-SP          RetAddr           : Args to Child      "), "{arguments}");
    assert!(arguments.ends_with(" : nt!ViPoolLogStackTrace\n"), "{arguments}");
    assert_eq!(
        live.run("kc 2").0.text,
        " # Call Site\n00 nt!ViPoolLogStackTrace\n01 nt!VeAllocatePoolWithTagPriority+0x2b6\n"
    );
    // After another stop, images are known: the module list, the registers and the stack are read again.
    assert!(!live.run("g; .wait 0n20000").1);
    let before = requests(&live);
    assert!(!live.run("k").1);
    let second = requests(&live) - before;
    eprintln!("{first} requests for the first stack, {second} for one after another stop");
    assert!(second <= 12, "{second} requests for a stack after another stop");

    // The same stack wherever in its functions the thread is: in prologs, bodies and epilogs.
    let (screen, failed, _) = live.run("gu");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("nt!VeAllocatePoolWithTagPriority+0x2b6:\n"), "{}", screen.text);
    for _ in 0..15 {
        let names: String = live.run("k").0.text.lines().skip(1).map(|line| format!("{}\n", &line[39..])).collect();
        let rest = names.split_once('\n').unwrap().1;
        assert!(LEAK_STACK.ends_with(rest), "{names}");
        assert!(!live.run("t").1);
    }
    live.leave();
}

#[test]
fn passes_commands_conditions_and_steps() {
    let mut live = leaking();
    // The third hit; the next ones as well.
    let (screen, failed, _) = live.run("bp nt!ViPoolLogStackTrace 3; g; .wait 0n20000; bl");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.contains("Breakpoint 0 hit\n"), "{}", screen.text);
    assert!(screen.text.contains("     0001 (0003) nt!ViPoolLogStackTrace\n"), "{}", screen.text);
    let stops = live.fake.stats().stops;
    assert!(stops >= 4, "{stops}");
    assert!(live.run("g; .wait 0n20000").0.text.starts_with("Breakpoint 0 hit\n"));

    // Commands that let it go: it runs until the time is over.
    live.run("bc *; r $t0=0");
    let (screen, _, _) = live.run(
        "bp nt!ViPoolLogStackTrace \"r $t0=@$t0+1; .if (@$t0 < 3) { .echo again; g } .else { k 1 }\"; g; .wait 0n20000",
    );
    assert!(screen.text.starts_with("again\nagain\n # Child-SP"), "{}", screen.text);
    assert!(screen.text.contains("\nBreakpoint 0 hit\nnt!ViPoolLogStackTrace:\n"), "{}", screen.text);

    // Once; in another thread; where a condition holds.
    live.run("bc *; bp /1 nt!ViPoolLogStackTrace");
    assert!(live.run("g; .wait 0n20000").0.text.starts_with("Breakpoint 0 hit\n"));
    assert_eq!(live.run("bl").0.text, "");
    assert!(!live.run("bp /t fffffa80`02187060 nt!ViPoolLogStackTrace; g").1);
    assert!(live.run(".wait 0n300").0.errors.contains("did not stop"));
    live.run(".break; bc *; r $t1=1");
    assert!(!live.run("bp /w \"@$t1 == 2\" nt!ViPoolLogStackTrace; g").1);
    assert!(live.run(".wait 0n300").0.errors.contains("did not stop"));
    let (screen, failed, _) = live.run(".break; r $t1=2; g; .wait 0n20000");
    assert!(!failed && screen.text.contains("Breakpoint 0 hit\n"), "{} {}", screen.text, screen.errors);

    // A stop that came while nobody waited is shown before the next command.
    live.run("g");
    std::thread::sleep(Duration::from_millis(300));
    let (screen, failed, _) = live.run("r rip");
    assert!(!failed && screen.remarks.starts_with("Breakpoint 0 hit\nnt!ViPoolLogStackTrace:\n"), "{}", screen.errors);

    // p steps over a call, t into it.
    live.run("bc *");
    let call = "nt!VeAllocatePoolWithTagPriority+0x2b1";
    assert!(live.run(&format!("bp {call}; g; .wait 0n20000")).0.text.contains(" call    nt!ViPoolLogStackTrace ("));
    let (screen, failed, _) = live.run("p");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("nt!VeAllocatePoolWithTagPriority+0x2b6:\n"), "{}", screen.text);
    assert!(live.run("g; .wait 0n20000").0.text.starts_with("Breakpoint 0 hit\n"));
    let (screen, failed, _) = live.run("t 2");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("nt!ViPoolLogStackTrace:\n"), "{}", screen.text);
    assert!(screen.text.contains("\nnt!ViPoolLogStackTrace+0x1:\n"), "{}", screen.text);
    live.leave();
}

/// What of an image the target has paged out comes from its file, and without the file the stack ends where it must.
#[test]
fn unwind_data_that_is_paged_out_comes_from_the_images_file() {
    let mut live = leaking();
    live.run("bp nt!ViPoolLogStackTrace; g; .wait 0n20000");
    let base = 0xffff_f880_0428_7000;
    let mut image = vec![0; 0x8000];
    live.fake.with_kernel(|kernel| {
        assert_eq!(kernel.read_virtual(base, &mut image), image.len());
        kernel.page_out(base + 0x1000);
    });
    // Nothing is kept from one stop to the next.
    live.run("t");
    let (screen, _, _) = live.run("k");
    assert!(
        screen.text.contains("WARNING: frame 03: the target cannot read myfault.sys at fffff880`0428"),
        "{}",
        screen.text
    );
    let directory = live.directory.path().join("myfault.sys/4A671DED8000");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("myfault.sys"), &image).unwrap();
    let (screen, failed, _) = live.run(".reload; k");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.contains(" nt!KiSystemServiceCopyEnd+0x13 (TrapFrame @ "), "{}", screen.text);
    live.leave();
}

#[test]
fn everyday_commands_answer_on_a_live_target() {
    let mut live = Live::article();
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

/// User memory is that of the process which was chosen, read through its own page tables.
#[test]
fn a_chosen_process_is_what_user_addresses_mean() {
    let mut live = Live::article();
    assert!(live.run("du 12eff8").1, "not in the current process");
    let process = format!("{:x}", kd_fake::kernel::LEAK_PROCESS);
    let (screen, failed, _) = live.run(&format!(".process /p /r {process}"));
    assert_eq!((screen.text.as_str(), failed), ("Implicit process is now fffffa80`02c05060\n", false));
    // Across a page, and with the kernel's half as ever.
    assert_eq!(live.run("du 12eff8").0.text, "00000000`0012eff8  \"Leaks\"\n");
    assert_eq!(live.run("? wo(12f000)").0.text, "Evaluate expression: 115 = 00000000`00000073\n");
    assert!(live.run("s -a 12e000 L2000 \"Leak in\"").0.text.starts_with("00000000`0012f004  4c 65 61 6b "));
    assert_eq!(live.run(".printf \"%ma %mu\\n\", 12f004, 12eff8").0.text, "Leak in user memory Leaks\n");
    assert!(live.run("!pte 12f000").0.text.contains("PTE at FFFFF68000000978"));
    assert!(live.run("da nt!NtBuildLab").0.text.contains("7601"));
    let (screen, failed, _) = live.run(".allow_write on; ea 12f004 \"Hole\"; eb 12f008 5f; da 12f004");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.ends_with("00000000`0012f004  \"Hole_in user memory\"\n"), "{}", screen.text);
    assert!(live.run("dd 130000 L1").1);
    assert!(live.run(".process 0; du 12eff8").1);
    live.leave();
}

#[test]
fn searches_say_what_they_could_not_read() {
    let mut live = Live::article();
    let base = 0xffff_f880_0428_7000u64;
    live.run("g");
    live.fake.with_kernel(|kernel| {
        kernel.page_out(base + 0x3000);
        kernel.write_virtual(base + 0x5008, b"Needle");
        kernel.write_virtual(base + 0x6001, b"Needle");
    });
    live.run(".break");
    // The target searches; what it skipped is known from the page tables.
    let (screen, failed, _) = live.run("s -a myfault L8000 \"Needle\"");
    assert!(!failed, "{}", screen.errors);
    let lines: Vec<&str> = screen.text.lines().collect();
    assert_eq!(lines.len(), 3, "{}", screen.text);
    assert!(lines[0].starts_with("fffff880`0428c008  4e 65 65 64 6c 65 "), "{}", screen.text);
    assert_eq!(
        lines[2],
        "WARNING: 0x1000 bytes cannot be read and were not searched: fffff880`0428a000 - fffff880`0428afff"
    );
    // The same where it is read and compared.
    let (screen, _, _) = live.run("s -[1]sa myfault+2ff0 L1020");
    assert!(screen.text.contains("0x1000 bytes cannot be read and were not searched"), "{}", screen.text);
    // Saved hits; aligned numbers; addresses only, for .foreach.
    assert_eq!(live.run("s -[1s]b myfault L8000 4e 65").0.text.lines().count(), 3);
    assert_eq!(live.run("s -[1r]d 0 L1 6465654e").0.text.lines().count(), 2);
    let (screen, _, _) = live.run("s -[1]d myfault+5000 L400 6465654e");
    assert_eq!(screen.text, "0xfffff880`0428c008\n");
    let (screen, failed, _) = live.run(".foreach (hit { s -[1]a myfault+5000 L1000 \"Needle\" }) { db hit L6 }");
    assert!(!failed && screen.text.starts_with("fffff880`0428c008  4e 65 65 64 6c 65 "), "{}", screen.text);
    live.leave();
}

#[test]
fn control_flow_and_scripts_with_arguments() {
    let mut live = Live::article();
    let (screen, failed, _) =
        live.run(".if (1 == 2) { .echo a; bogus } .elsif (3) { .echo b; .echo c } .else { .echo d }; .echo e");
    assert_eq!((screen.text.as_str(), failed), ("b\nc\ne\n", false), "{}", screen.errors);
    let (screen, failed, _) = live.run(".foreach (x { .echo 1 2; .echo 3 }) { ? x + 1; .echo <${x}> }");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("Evaluate expression: 2 = 00000000`00000002\n<1>\n"), "{}", screen.text);
    assert!(screen.text.ends_with("<3>\n"), "{}", screen.text);
    assert!(live.run(".if (1) { bogus }").1);
    assert!(live.run(".if (1 { }").0.errors.starts_with("Syntax error at '"));
    // A script is one line of any length where it is condensed; every command explains itself.
    let long = live.file("long.txt");
    fs::write(&long, format!(".if (1)\n{{\n{}}}\n", ".echo a line of a script that is long\n".repeat(300))).unwrap();
    let (screen, failed, _) = live.run(&format!("$$><{long}; .echo after"));
    assert_eq!((screen.text.lines().count(), failed), (301, false), "{}", screen.errors);
    assert!(live.run(&format!("$<{long}")).1, "line by line it is no control flow");
    assert!(live.run("s -?").0.text.starts_with("s [-[[flags]]b|w|d|q|a|u|sa|su|v]"));
    assert_eq!(live.run(".logfile").0.text, "No log file open\n");
    let many = live.file("many.txt");
    fs::write(&many, "a ".repeat(70_000)).unwrap();
    let (screen, failed, _) = live.run(&format!("r $t0=0; .foreach /f (x \"{many}\") {{ r $t0=@$t0+1 }}; ? @$t0"));
    assert_eq!((screen.text.as_str(), failed), ("Evaluate expression: 70000 = 00000000`00011170\n", false));
    let script = live.file("b.txt");
    fs::write(&script, "* a comment\n.if (${$arg1} == 2)\n{\n  .echo two ${$arg2}\n}\n").unwrap();
    let (screen, failed, _) = live.run(&format!("$$>a<{script} 2 more; .echo after"));
    assert_eq!((screen.text.as_str(), failed), ("two more\nafter\n", false), "{}", screen.errors);
    let deep = ".if (1) { ".repeat(200);
    assert!(live.run(&format!("{deep} .echo x {}", "}".repeat(200))).0.errors.contains("nested more than"));
    let (screen, failed, _) = live.run(".printf \"%d %x %p %y\\n\", 0n10, 0n255, nt!NtFlushKey, nt!NtFlushKey");
    assert!(!failed, "{}", screen.errors);
    assert_eq!(screen.text, "10 ff fffff800017269e0 nt!NtFlushKey (fffff800`017269e0)\n");
    // The target is let go in this moment; what comes after has none.
    assert_eq!(live.run(".if (1) { q }").2, Next::Quit { halted: false });
    live.leave();
}

/// What a look at the pool log costs on the wire, without the list of modules that names the frames.
#[test]
fn a_second_look_at_the_pool_log_costs_what_is_new() {
    let mut live = Live::article();
    live.shell.format = Format::Json;
    let block = 0xffff_f8a0_0580_0000;
    // The list is read once per attach.
    live.run("lm");
    let look = |live: &mut Live| -> serde_json::Value {
        let (screen, failed, _) = live.run("!verifier 0x80 fffff8a005800000");
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

#[test]
fn words_are_completed_with_a_word_of_help() {
    let mut live = leaking();
    let found = |live: &Live, prefix: &str| -> Vec<String> {
        let found = live.shell.complete(prefix);
        found.into_iter().map(|found| format!("{}: {}", found.text, found.help)).collect()
    };
    let commands = found(&live, "!poolf");
    assert!(commands.len() == 1 && commands[0].starts_with("!poolfind: ") && commands[0].len() > 20, "{commands:?}");
    assert_eq!(found(&live, "MYF"), ["myfault: myfault.sys"]);
    live.run("x nt!PoolBigPageTable");
    assert_eq!(found(&live, "nt!poolbigpaget"), ["nt!PoolBigPageTable: ", "nt!PoolBigPageTableSize: "]);
    assert_eq!(found(&live, "_pool_head"), ["_POOL_HEADER: type"]);
    assert_eq!(found(&live, "nosuch!a"), [""; 0]);
    live.leave();
}

/// Each table is read once, in requests as large as replies carry; where the target searches itself, next to nothing of
/// tables and pool is read.
#[test]
fn what_questions_of_pool_cost() {
    for (max_data, search) in [(1352, true), (3944, true), (1352, false)] {
        let mut live = Live::article_with(|options| {
            options.max_data = Some(max_data);
            options.search_memory = search;
        });
        let full = max_data as u64 - 56;
        // The kernel's symbols are read once per attach.
        live.text("lm");
        let number = |live: &mut Live, expression: &str| {
            let text = live.text(&format!("? {expression}"));
            let value = text.trim().rsplit(' ').next().unwrap().replace('`', "");
            u64::from_str_radix(&value, 16).unwrap()
        };
        let (rows, processors) =
            (number(&mut live, "poi(nt!PoolTrackTableSize)"), number(&mut live, "by(nt!KeNumberProcessors)"));
        let ask = |live: &mut Live, line: &str| {
            // Nothing is known from the question before.
            live.run("g");
            live.run(".break");
            let answer = live.json(line);
            assert_eq!((&answer["ok"], &answer["complete"]), (&true.into(), &true.into()), "{line}: {answer}");
            let cost = |name: &str| answer["cost"][name].as_u64().unwrap();
            let cost = (cost("requests"), cost("bytes_read"));
            println!("{max_data}, search {search}: {line}: {cost:?}");
            (answer, cost)
        };
        let tables = rows * processors * 0x28;
        let (_, (requests, bytes)) = ask(&mut live, "!poolused 4");
        assert!((tables..=tables + 0x400).contains(&bytes), "{bytes} of {tables}");
        assert!(requests <= tables.div_ceil(full) + 10, "{requests} for {tables} bytes");

        let (answer, (requests, bytes)) = ask(&mut live, "!poolfind Leak");
        let hex =
            |name: &str| u64::from_str_radix(&answer["result"]["table"][name].as_str().unwrap()[2..], 16).unwrap();
        let table = hex("end") - hex("start");
        assert_eq!(answer["result"]["blocks"].as_array().unwrap().len(), 23);
        assert_eq!(table, 65_536 * 0x18);
        match search {
            true => assert!(requests <= 60 && bytes <= 16 << 10, "{requests} requests, {bytes} bytes"),
            false => assert!(
                requests <= table.div_ceil(full) + 20 && bytes <= table + 0x800,
                "{requests} requests, {bytes} bytes"
            ),
        }
        // Ten megabytes of resident pool, none of it in small blocks.
        let (answer, (requests, _)) = ask(&mut live, "!poolfind Leak -small");
        assert_eq!(answer["result"]["bulk"].is_object(), search, "{answer}");
        let estimate = answer["result"]["estimate"]["requests"].as_u64().unwrap();
        if search {
            // Where the pool's pages are is known before the estimate, and costs more than the search.
            assert!(requests <= 200 && estimate <= 60, "{requests} requests, {estimate} expected");
            let (_, (bulk, _)) = ask(&mut live, "!poolfind Leak -small -bulk");
            assert!(bulk > 20 * requests, "{bulk} requests in bulk, {requests} with a search");
        }
        live.leave();
    }
}

/// A search that a limit stops in one session's pool goes on there, and then in the next session's.
#[test]
fn a_search_goes_on_in_the_session_where_it_was_stopped() {
    const SCRATCH: u64 = 0xffff_fa80_0600_0000;
    const POOLS: [u64; 2] = [0xffff_f900_c000_0000, 0xffff_f900_d000_0000];
    const PAGES: u64 = 3;
    // facts 2.4 and the kernel's own types.
    const LINKS: u64 = 392;
    const SESSION: u64 = 728;
    let mut live = Live::article();
    let head = live.text("? nt!PsActiveProcessHead");
    let head = u64::from_str_radix(&head.trim().rsplit(' ').next().unwrap().replace('`', ""), 16).unwrap();
    live.fake.with_kernel(|kernel| {
        let root = kernel.facts().cr3;
        let places = [(SCRATCH, 0x8000), (POOLS[0], PAGES * 0x1000), (POOLS[1], PAGES * 0x1000)];
        for (place, length) in places {
            for page in (place..place + length).step_by(0x1000) {
                kernel.allocate_large_at(page, 0x6b72_6157, 0x1000, kd_fake::kernel::PoolKind::Paged, &[], 0).unwrap();
            }
            kernel.write_virtual(place, &vec![0; length as usize]);
        }
        let mut first = [0; 8];
        kernel.read_virtual(head, &mut first);
        let mut next = u64::from_le_bytes(first);
        for (number, pool) in [(2, POOLS[1]), (1, POOLS[0])] {
            let (space, process) = (SCRATCH + number * 0x2000, SCRATCH + number * 0x800);
            let pointers = [
                (space + 8, number),
                (space + 0x40, pool),
                (space + 0x48, pool + PAGES * 0x1000 - 1),
                (process + 0x28, root),
                (process + LINKS, next),
                (process + SESSION, space),
            ];
            for (at, value) in pointers {
                assert_eq!(kernel.write_virtual(at, &value.to_le_bytes()), 8);
            }
            next = process + LINKS;
            for page in (0..PAGES).map(|page| pool + page * 0x1000) {
                // Two blocks of paged session pool fill each page.
                for (at, header) in [(page, [0, 0, 0x80, 0x23]), (page + 0x800, [0x80, 0, 0x80, 0x23])] {
                    kernel.write_virtual(at, &[&header[..], b"Gh05"].concat());
                }
            }
        }
        kernel.write_virtual(head, &next.to_le_bytes());
    });
    live.run("g");
    live.run(".break");
    let blocks = |answer: &serde_json::Value| answer["result"]["blocks"].as_array().unwrap().clone();
    let all = live.json("!poolfind Gh05 -session");
    assert_eq!((blocks(&all).len() as u64, &all["complete"]), (4 * PAGES, &true.into()), "{all}");
    let mut pieces = Vec::new();
    let mut stopped = Vec::new();
    let mut answer = live.json("!poolfind Gh05 -session -limit 0");
    while answer["result"]["stopped"].is_string() {
        assert_eq!(answer["complete"], false);
        stopped.push(answer["result"]["stopped_session"].as_u64().unwrap());
        pieces.extend(blocks(&answer));
        assert!(stopped.len() < 20, "{answer}");
        answer = live.json("!poolfind -resume");
    }
    pieces.extend(blocks(&answer));
    assert_eq!(pieces, blocks(&all));
    assert!(stopped.contains(&1) && stopped.contains(&2) && stopped.is_sorted(), "{stopped:?}");
    live.leave();
}

/// A bugcheck of pool is told in words, and what it leads to is shown.
#[test]
fn a_bugcheck_of_pool_leads_to_its_block_and_to_its_driver() {
    let mut live = Live::article();
    let value = |live: &mut Live, expression: &str| {
        let text = live.text(expression);
        u64::from_str_radix(&text.split_whitespace().last().unwrap().replace('`', ""), 16).unwrap()
    };
    let place = value(&mut live, "? nt!KiBugCheckData");
    let crash = |live: &mut Live, values: [u64; 5]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        live.fake.with_kernel(|kernel| assert_eq!(kernel.write_virtual(place, &bytes), bytes.len()));
        live.text("g; .sleep 0n20; .break");
    };
    crash(&mut live, [0xc2, 7, 0x1097, 0, 0xffff_f8a0_06a0_0000]);
    let text = live.text(".bugcheck");
    let wanted = "Bugcheck code 000000C2\n\
                  Arguments 00000000`00000007 00000000`00001097 00000000`00000000 fffff8a0`06a00000\n\n\
                  BAD_POOL_CALLER: a block was freed that had been freed before\n";
    assert!(text.starts_with(wanted), "{text}");
    assert!(
        text.contains("\n!pool fffff8a006a00000\n") && text.contains("large page allocation, Tag  is Leak"),
        "{text}"
    );
    assert!(text.contains("Pool block fffff8a006a00000, Size"), "{text}");

    // A driver that was unloaded with blocks; its name, as UTF-16, in a page that is in memory.
    let name: Vec<u8> = "myfault.sys\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let at = value(&mut live, "? @rsp - 200");
    live.fake.with_kernel(|kernel| assert_eq!(kernel.write_virtual(at, &name), name.len()));
    crash(&mut live, [0xc4, 0x62, at, 0, 23]);
    let text = live.text(".bugcheck");
    assert!(text.contains("DRIVER_VERIFIER_DETECTED_VIOLATION: a driver was unloaded without freeing"), "{text}");
    assert!(text.contains("the driver is myfault.sys") && text.contains("\n!verifier 3 myfault.sys\n"), "{text}");

    // What is no file's name is not typed into a command.
    let evil: Vec<u8> = "x; ed nt!PoolHitTag 1\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    live.fake.with_kernel(|kernel| assert_eq!(kernel.write_virtual(at, &evil), evil.len()));
    crash(&mut live, [0xc4, 0x62, at, 0, 23]);
    let text = live.text(".bugcheck");
    assert!(!text.contains("the driver is") && !text.contains("PoolHitTag"), "{text}");
    // Another bugcheck has its numbers and no more.
    crash(&mut live, [0x7e, 1, 2, 3, 4]);
    assert_eq!(live.text(".bugcheck").lines().count(), 2);
    live.leave();
}

/// A target that refuses to search is asked once, by the first question that would have used it, and not by each.
#[test]
fn a_refused_search_is_asked_for_once() {
    const SEARCH: u32 = 0x3156;
    let mut live = Live::article_with(|options| options.search_memory = false);
    let searches = |live: &Live| live.fake.stats().requests_of(SEARCH);
    live.json("!poolfind Leak -global");
    let first = searches(&live);
    // The question's own, and one where the kernel's image begins, which tells a refusal from a missing page.
    assert!((1..=2).contains(&first), "{first}");
    for line in
        ["!poolfind Leak", "!poolfind Driv -small", "!verifier 80 fffff8a005800000", "g", ".break", "!poolfind Leak"]
    {
        live.run(line);
    }
    assert_eq!(searches(&live), first, "of all questions together");
    live.leave();
    let mut live = Live::article();
    live.json("!poolfind Leak -global");
    assert!(searches(&live) > 2, "{}: where it searches it is asked", searches(&live));
    live.leave();
}
