//! What fingers and scripts bring along from kd: statements, expressions, scripts, aliases, on kd-fake over serial on
//! TCP.

mod target;

use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use target::Live;

/// WriteVirtualMemory.
const WRITE: u32 = 0x3131;

/// One write, wherever it stands.
const W: &str = "eb nt!PoolHitTag 41";

fn echoed(live: &mut Live, line: &str) -> (String, String) {
    let (screen, _, _) = live.run(line);
    (screen.text, screen.errors)
}

#[test]
fn what_is_refused_takes_the_rest_of_its_line_along() {
    let mut live = Live::article();
    live.text(".allow_write on");
    let writes = |live: &Live| live.fake.stats().requests_of(WRITE);
    let before = writes(&live);
    // The line that began it: the branch of a j was run as a statement of its own.
    assert_eq!(echoed(&mut live, &format!("j (0) '.echo a; {W}; .echo RAN'; '.echo no'")).0, "no\n");
    assert_eq!(echoed(&mut live, "j (poi(nt!PoolBigPageTable) != 0) '.echo a; .echo b'; '.echo c'").0, "a\nb\n");
    assert_eq!(echoed(&mut live, "j @eax == @eax .echo yes; .echo no; .echo on").0, "yes\non\n");
    for line in [
        "foo; .echo hi".to_string(),
        "!foo; .echo hi".into(),
        format!("j (0 '.echo a; {W}'; 'gc'"),
        format!("? nosuch; {W}"),
        format!("bm nt!Ex*; {W}"),
        format!(".if (1) {{ foo; {W} }}; {W}"),
        format!("bp nt!NtFlushKey \"{W}; foo\"; {W}"),
        format!("bp nt!NtFlushKey \"j (1) '{W}; {W}\"; {W}"),
        format!("!for_each_module \"foo; {W}\"; .foo; {W}"),
        format!("!poolfind Leak -x \"{W}; foo\"; .foo; {W}"),
    ] {
        let (text, errors) = echoed(&mut live, &line);
        assert!(text.is_empty() && errors.lines().count() >= 1, "{line}: {text} {errors}");
    }
    assert_eq!((writes(&live) - before, live.text("bl").as_str()), (0, ""));
    // What makes sense and cannot be done is no reason to stop.
    assert_eq!(echoed(&mut live, "dq 10 L1; dt nt!_NOTHING; .echo on").0, "00000000`00000010  ????????`????????\non\n");
    // In a block and in a loop of a script each line is for itself.
    let script = live.file("lines.txt");
    fs::write(&script, "foo; .echo a\n.echo b\n").unwrap();
    assert_eq!(echoed(&mut live, &format!("$$<{script}; .echo c")).0, "b\nc\n");
    assert_eq!(echoed(&mut live, &format!("$$><{script}; .echo c")).0, "");
    live.leave();
}

/// A line, and how many writes it makes: none of a refused statement, and none behind it.
fn lines() -> impl Strategy<Value = (String, u64)> {
    let good = prop_oneof![
        Just((W.to_string(), 1)),
        Just((format!(".if (1) {{ {W}; {W} }} .else {{ {W} }}"), 2)),
        Just((format!("j (0) '{W}; {W}' ; '{W}'"), 1)),
        Just((format!("j (1) '{W}; {W}'; 'foo'"), 2)),
        Just((format!(".echo \"; {W}\""), 0)),
        Just((format!(".echo '; {W}' {{ ; .echo }}"), 0)),
        Just((format!(".for (r $t0=0; $t0<2; r $t0=$t0+1) {{ {W} }}"), 2)),
        Just((format!(".foreach /s (v \"a b\") {{ {W}; .echo ${{v}} }}"), 2)),
        Just((format!(".catch {{ foo; {W} }}"), 0)),
        Just((format!(".block {{ {W} }}"), 1)),
        Just((format!("$$ it's; {W}"), 1)),
        Just(("r $t3=5; ? $t3".to_string(), 0)),
    ];
    let inner = prop_oneof![
        Just(String::new()),
        Just(format!("; {W}")),
        Just(format!("{{ {W}; {W} }}")),
        Just(format!("\"a; {W}\" ; {W}")),
        Just(format!("'a; {W}' $t0; {W}")),
        Just(format!("\"a; {W}")),
        Just(format!("'; {W}")),
        Just(format!("({W}) {{ {W} }}; $$ ; {W}")),
        Just(format!("${{x}}; }} {W} {{; {W}")),
    ];
    let refused = prop_oneof![
        ("[a-z]{3,5}zz|\\.[a-z]{2,4}zz|![a-z]{2,4}zz|bm|dx|!irp", inner.clone())
            .prop_map(|(word, rest)| word + " " + &rest),
        inner.clone().prop_map(|rest| format!("j (1 'x; {W}' {rest}")),
        inner.clone().prop_map(|rest| format!("j (nosuch!x) '{W}' ; '{W}' {rest}")),
        inner.clone().prop_map(|rest| format!(".if (1 {{ {W} }} {rest}")),
        inner.clone().prop_map(|rest| format!(".if (nosuch) {{ {W} }}; {rest}")),
        inner.clone().prop_map(|rest| format!(".while (1) {W}; {rest}")),
        inner.clone().prop_map(|rest| format!(".for ({W}; 1) {{ {W} }} {rest}")),
        inner.clone().prop_map(|rest| format!("bp nt!NtFlushKey \"{W}; nosuchword\"; {rest}")),
        inner.clone().prop_map(|rest| format!(".foreach (x {{ nosuchword; {W} }}) {{ {W} }}; {rest}")),
        inner.clone().prop_map(|rest| format!("? nosuch!name; {rest}")),
        inner.clone().prop_map(|rest| format!("r $t99=1; {rest}")),
        inner.prop_map(|rest| format!(".printf abc; {W}; {rest}")),
    ];
    (prop::collection::vec(good.clone(), 0..4), refused, prop::collection::vec(good, 0..3)).prop_map(
        |(before, refused, after)| {
            let writes = before.iter().map(|(_, writes)| writes).sum();
            let texts = before.iter().map(|(text, _)| text.clone()).chain([refused]);
            let line: Vec<String> = texts.chain(after.iter().map(|(text, _)| text.clone())).collect();
            (line.join("; "), writes)
        },
    )
}

#[test]
fn no_part_of_a_refused_statement_is_ever_executed() {
    let live = std::cell::RefCell::new(Live::article());
    live.borrow_mut().text(".allow_write on");
    let mut runner = TestRunner::new(Config { cases: 1000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&lines(), |(line, expected)| {
        let mut live = live.borrow_mut();
        let before = live.fake.stats().requests_of(WRITE);
        let (screen, failed, _) = live.run(&line);
        let writes = live.fake.stats().requests_of(WRITE) - before;
        prop_assert!(failed, "{}: {}", line, screen.text);
        prop_assert_eq!(writes, expected, "{}: {} {}", line, screen.text, screen.errors);
        Ok(())
    });
    outcome.unwrap();
    live.into_inner().leave();
}

#[test]
fn pseudo_registers_and_parts_have_their_names() {
    let mut live = Live::article();
    let value = |live: &mut Live, text: &str| live.result(&format!("? {text}"))["value"].as_str().unwrap().to_string();
    live.text("r $t3=5");
    for (one, other) in [
        ("$t3", "5"),
        ("@$t3", "5"),
        ("$proc", "@$proc"),
        ("$thread", "@$thread"),
        ("$ip", "@rip"),
        ("$ptrsize", "8"),
        ("@$pagesize", "1000"),
        ("@$exr_code", "0`80000003"),
        ("$exr_numparams", "@$exr_numparams"),
        ("@edx", "@rdx & 0`ffffffff"),
        ("@r8d", "@r8 & 0`ffffffff"),
        ("@al", "@rax & ff"),
        ("@ah", "(@rax >> 8) & ff"),
        ("eax", "@rax & 0`ffffffff"),
        ("@if", "(@efl >> 9) & 1"),
        ("@$tpid", "poi(@$proc + @@c++(#FIELD_OFFSET(nt!_EPROCESS, UniqueProcessId)))"),
        ("@@c++(sizeof(nt!_POOL_HEADER) + 2)", "12"),
        ("@@(@$proc->UniqueProcessId)", "@$tpid"),
        ("@@c++(((nt!_EPROCESS*)@$proc)->UniqueProcessId + @@masm(10))", "@$tpid + 10"),
        ("$spat(\"myfault.sys\", \"my*.sys\")", "1"),
        ("$vvalid(nt!PoolHitTag, 4)", "1"),
        ("$vvalid(0, 4)", "0"),
    ] {
        assert_eq!(value(&mut live, one), value(&mut live, other), "{one}");
    }
    assert_ne!(value(&mut live, "@$ra"), "0x0");
    assert_eq!(live.text(".if ($t3==5) { .echo five }; .printf \"%x %N\", $t3, @$t3"), "five\n5 0000000000000005");
    assert_eq!(live.text("r $t1 = $t3 + 1; r $t1"), "t1=".replace("t1", "$t1") + "0000000000000006\n");
    assert_eq!(
        live.text("r? $t2 = sizeof(nt!_POOL_HEADER) * 2; ? $t2"),
        "Evaluate expression: 32 = 00000000`00000020\n"
    );
    let rax = value(&mut live, "@rax & 0`ffffffff");
    let digits = rax.trim_start_matches("0x");
    assert_eq!(live.text("r eax"), format!("eax={digits:0>8}\n"));
    assert!(live.text("r cr3").starts_with("cr3=0000"));
    assert_eq!(live.text("r cr0, zf").lines().count(), 2);
    assert!(live.run("r nosuch").0.errors.starts_with("Bad register error at 'nosuch'"));
    assert!(live.run("? @$t20").0.errors.starts_with("Couldn't resolve error at '@$t20'"));
    live.text(".allow_write on");
    assert!(live.run("r cr3=0").0.errors.contains("cannot be set"));
    assert_eq!(live.text("r eax=0n17; r al; r rax=1`00000002; r ah=3; r eax"), "al=11\neax=00000302\n");
    live.leave();
}

#[test]
fn aliases_stand_for_text() {
    let mut live = Live::article();
    assert_eq!(live.text("al"), "No aliases\n");
    live.text("as Five 5; not split here");
    assert_eq!(
        live.text("al"),
        "  Alias            Value  \n -------          ------- \n Five             5; not split here \n"
    );
    live.text("aS Five 5; aS Tag nt!PoolHitTag");
    assert_eq!(live.text("? Five + ${Five}0"), "Evaluate expression: 85 = 00000000`00000055\n");
    assert_eq!(live.text(".echo ${/d:Five}${/d:None} ${/n:Tag} ${None}"), "10 Tag ${None}\n");
    // A line was looked at when it was entered, a block when it is reached.
    assert_eq!(live.text("aS New 7; .echo New; .block { .echo New }"), "New\n7\n");
    assert_eq!(live.text("as /x Sum ${Five} + 0n10"), "");
    assert_eq!(live.text(".echo Sum"), "0xf\n");
    live.text("as /ma Lab nt!NtBuildLab");
    assert!(live.text(".echo Lab").starts_with("7601."), "{}", live.text(".echo Lab"));
    live.text("as /c Out .echo one two");
    assert_eq!(live.text(".foreach /s (x \"Out\") { .echo <x> }"), "<x>\n<x>\n");
    live.text("r $.u3=\"? 1+1\"");
    assert_eq!(live.text("$u3"), "Evaluate expression: 2 = 00000000`00000002\n");
    live.text("ad Five; ad /q Five");
    assert!(live.run("ad Five").1);
    assert!(live.run("as Name").1 && live.run("as /y Name text").1);
    live.text("ad *");
    assert_eq!(live.text("al"), "No aliases\n");
    live.leave();
}

#[test]
fn scripts_come_as_windows_writes_them() {
    let mut live = Live::article();
    let folder = live.directory.path().join("my dir");
    fs::create_dir(&folder).unwrap();
    let (path, quoted) = (folder.join("f.txt"), live.file("my dir/f.txt"));
    let script = ".echo ${$arg1}-${/d:$arg1}-${/d:$arg3}-${$arg3}\r\n\t.if (${$arg2} == 5) {\r\n\t.echo five\r\n}\r\n";
    let wide: Vec<u8> = script.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [
        script.as_bytes().to_vec(),
        [b"\xef\xbb\xbf", script.as_bytes()].concat(),
        [b"\xff\xfe".to_vec(), wide.clone()].concat(),
        wide,
    ] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(live.text(&format!("$$>a<\"{quoted}\" \"a b\" 5")), "a b-1-0-${$arg3}\nfive\n");
    }
    fs::write(&path, b".echo caf\xe9\r\n* a comment; .echo never\r\n$$ another\r\n.echo on\r\n").unwrap();
    assert_eq!(live.text(&format!("$$>a<\"{quoted}\"")), "café\non\n");
    assert_eq!(live.text(&format!("$$<\"{quoted}\"; .echo end")), "café\non\nend\n");
    live.leave();
}

#[test]
fn control_flow_has_all_its_words() {
    let mut live = Live::article();
    assert_eq!(live.text("r $t0=0; .do { .printf \"%d\", $t0; r $t0=$t0+1 } ($t0 < 3); .echo"), "012\n");
    assert_eq!(live.text(".do { .echo once } (0)"), "once\n");
    assert_eq!(live.text("r $t1=$t1+1; .echo again; z ($t1 < 3); .echo done"), "again\nagain\nagain\ndone\n");
    let (text, errors) = echoed(&mut live, ".catch { .echo a; ? nosuch; .echo never }; .echo behind");
    assert_eq!(text, "a\nbehind\n");
    assert!(errors.contains("nosuch"), "{errors}");
    assert_eq!(live.text(".catch { .echo a; .leave; .echo never }; .echo behind"), "a\nbehind\n");
    let nested =
        ".for (r $t0=0; $t0<3; r $t0=$t0+1) { .catch { .if ($t0==1) { .leave }; .printf \"%d\", $t0 } }; .echo";
    assert_eq!(live.text(nested), "02\n");
    assert_eq!(live.text(".catch { .while (1) { .leave } }; .echo out"), "out\n");
    assert!(live.run(".leave").1 && live.run(".catch { k").1);
    live.leave();
}

#[test]
fn commands_run_for_each_of_many() {
    let mut live = Live::article();
    let listed = live.text("!for_each_module .echo @#ModuleName @#Base @#ModuleIndex");
    assert!(listed.contains("nt 0xfffff800") && listed.contains("myfault 0xfffff88004287000"), "{listed}");
    let one = ".if ($sicmp(\"@#ModuleName\", \"MYFAULT\") == 0) { .echo ${@#ImageName}; ? @#End - @#Base; ? @#Size }";
    assert_eq!(
        live.text(&format!("!for_each_module {one}; .echo end")),
        "myfault.sys\nEvaluate expression: 32768 = 00000000`00008000\nEvaluate expression: 32768 = \
         00000000`00008000\nend\n"
    );
    let names = live.text("!for_each_process \"dt nt!_EPROCESS @#Process ImageFileName\"");
    assert!(names.contains("\"System\"") && names.contains("\"NotMyfault.exe\""), "{names}");
    assert!(live.text("!for_each_thread .echo @#Thread").starts_with("0xfffffa80"));
    let entries = live.text("!list -t nt!_LIST_ENTRY.Flink -m 3 -x \"? @$extret; .echo -\" poi(nt!PsLoadedModuleList)");
    assert_eq!(entries.matches("Evaluate expression").count(), 3, "{entries}");
    let all = live.text("!list \"-t nt!_LIST_ENTRY.Flink -x \\\".echo\\\" -a \\\"x\\\" nt!PsActiveProcessHead\"");
    assert!(all.lines().count() > 3 && all.lines().all(|line| line == "x"), "{all}");
    assert!(live.run("!list -t nt!_LIST_ENTRY.Nosuch nt!PsLoadedModuleList").1);
    let (text, _) = echoed(&mut live, "!for_each_module \"nosuch\"; .echo on");
    assert_eq!(text, "on\n");
    live.leave();
}

#[test]
fn processes_are_found_by_id_and_members_in_any_order() {
    let mut live = Live::article();
    let system = live.text("!process 4 0");
    assert!(system.contains("Cid: 0004 ") && system.contains("Image: System\n"), "{system}");
    assert_eq!(live.text("!process 0n4 0"), system);
    assert!(live.run("!process 3 0").0.errors.contains("no process has the id 0x3"));
    assert_eq!(live.text("!thread -1"), live.text("!thread"));
    assert_eq!(live.text("!process -1 0"), live.text("!process @$proc 0"));
    let name = live.text("dt nt!_EPROCESS ImageFileName @$proc");
    assert!(name.contains("ImageFileName"), "{name}");
    assert_eq!(live.text("dt nt!_EPROCESS @$proc ImageFileName"), name);
    assert_eq!(live.text("dt nt!_EPROCESS @$proc -y ImageFile"), name);
    assert_eq!(live.text("dt -y nt!_EPROCESS ImageFile @$proc"), name);
    assert!(live.text("dt nt!_EPROCESS -y Image").contains("ImageFileName"));
    assert!(live.run("dt nt!_EPROCESS @$proc Nosuch").0.errors.contains("Cannot find specified field members"));
    live.leave();
}

#[test]
fn a_script_goes_on_when_the_target_stops_again() {
    let mut live =
        Live::article_with(|options| options.call = Some((kd_fake::kernel::ARTICLE_CALL, Duration::from_millis(20))));
    let (screen, failed, _) = live.run("bp nt!ViPoolLogStackTrace; g; r rip; bc *; g; .sleep 10; .break; r rip");
    assert!(!failed, "{}", screen.errors);
    assert!(screen.text.starts_with("rip="), "{}", screen.text);
    assert!(screen.remarks.contains("Breakpoint 0 hit\n"), "{}", screen.remarks);
    let script = live.file("g.txt");
    fs::write(&script, "bp nt!ViPoolLogStackTrace\ng\nk 1\nbc *\n").unwrap();
    let (screen, failed, _) = live.run(&format!("$$<{script}"));
    assert!(!failed && screen.text.contains("nt!ViPoolLogStackTrace"), "{} {}", screen.text, screen.errors);
    // Ctrl+C is a stop as well.
    let interrupt = live.interrupt.clone();
    let presser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        interrupt.raise();
    });
    let (screen, failed, _) = live.run("g; r rip; .echo on");
    presser.join().unwrap();
    assert!(!failed && screen.text.ends_with("\non\n"), "{} {}", screen.text, screen.errors);
    live.leave();
}

#[test]
fn code_is_shown_backwards_and_by_function() {
    let mut live = Live::article();
    let place = "nt!VeAllocatePoolWithTagPriority+0x2b6";
    let forwards = live.text("u nt!VeAllocatePoolWithTagPriority+0x2b1 L1");
    let call = forwards.lines().last().unwrap().to_string();
    let before = live.text(&format!("ub {place} L1"));
    assert_eq!(before.lines().last(), Some(call.as_str()), "{before}");
    let more = live.text(&format!("ub {place} L4"));
    assert!(more.lines().count() >= 5 && more.ends_with(&(call.clone() + "\n")), "{more}");
    let whole = live.text(&format!("uf {place}"));
    assert!(whole.starts_with("nt!VeAllocatePoolWithTagPriority:\n") && whole.contains(&call), "{whole}");
    assert!(whole.lines().any(|line| line.trim_end().ends_with("ret")), "{whole}");
    let calls = live.text(&format!("uf /c {place}"));
    assert!(calls.starts_with("nt!VeAllocatePoolWithTagPriority\n  nt!VeAllocatePoolWithTagPriority+0x"), "{calls}");
    assert!(calls.contains("    call to nt!ViPoolLogStackTrace\n"), "{calls}");
    assert!(live.run("uf /x nt!NtFlushKey").1 && live.run("ub 0").1);
    live.leave();
}

#[test]
fn processors_frames_and_events() {
    let mut live = Live::article();
    let one = live.text("k");
    let rows: Vec<&str> = one.lines().collect();
    assert!(rows[0] == " # Child-SP          RetAddr           Call Site" && rows[1].starts_with("00 "), "{one}");
    for count in [1, 2, 3] {
        assert_eq!(live.text(&format!("k {count}")).lines().count().min(count + 1), (count + 1).min(rows.len()));
    }
    assert_eq!(live.text("kn"), one);
    let all = live.text("~*k 1");
    assert_eq!(all.matches("Processor ").count(), all.matches(" # Child-SP").count());
    assert!(all.matches("\nProcessor 1:\n").count() == 1, "{all}");
    assert_eq!(live.text("~0r rip").lines().count(), 1);
    assert_eq!(
        live.text("~*e \"r rip; .echo x\"").matches("x\n").count(),
        live.text("~*r rip").matches("rip=").count()
    );
    assert_eq!(live.shell.prompt().as_deref(), Some("0: kd> "));
    assert!(live.run("~*nosuch").1 && live.run("~99k").1 && live.run("~x").1);
    assert_eq!(live.text(".frame 0"), format!("{}\n", rows[1]));
    assert_eq!(live.text(".frame; ? @$frame"), format!("{}\nEvaluate expression: 0 = 00000000`00000000\n", rows[1]));
    assert!(live.run(".frame 100").0.errors.starts_with("Cannot find frame 0x100"));
    assert!(
        live.text(".lastevent").starts_with("Last event: Break instruction exception - code 80000003 (first chance)\n")
    );
    let quiet = live.text(".bugcheck");
    assert!(quiet.starts_with("Bugcheck code 00000000\nArguments 00000000`00000000 "), "{quiet}");
    live.leave();
}

#[test]
fn modules_are_listed_as_they_are_asked_for() {
    let mut live = Live::article();
    let line = |live: &mut Live, command: &str| {
        let text = live.text(command);
        text.lines()
            .find(|line| line.contains("   myfault "))
            .unwrap_or_else(|| panic!("{command}: {text}"))
            .to_string()
    };
    assert!(line(&mut live, "lm n").ends_with("   myfault  myfault.sys"));
    assert!(line(&mut live, "lm f").contains("   myfault  \\"), "{}", line(&mut live, "lm f"));
    let timed = line(&mut live, "lm t n");
    assert!(timed.contains("   myfault  myfault.sys  ") && timed.ends_with(" 2009 (4A671DED)"), "{timed}");
    assert_eq!(line(&mut live, "lmtn"), timed);
    let sorted = live.text("lm sm");
    let names: Vec<String> = sorted
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line[38..].split_whitespace().next().unwrap().to_lowercase())
        .collect();
    assert!(names.is_sorted() && names.len() > 2, "{names:?}");
    let (screen, failed, _) = live.run("lmD");
    assert!(!failed && screen.text == live.text("lm") && screen.remarks.contains("no links"), "{}", screen.remarks);
    assert!(live.run("lm s").1 && live.run("lm z").1);
    assert_eq!(live.run("x nt!Ke*NoSuch*Ticks*").0.text, "");
    assert!(!live.run("x nt!Ke*NoSuch*Ticks*").1);
    let info = live.text("!lmi myfault");
    for part in ["Module: myfault\n", "Base Address: fffff88004287000\n", "Machine Type: 34404 (X64)\n", "Size: 8000\n"]
    {
        assert!(info.contains(part), "{part}: {info}");
    }
    assert_eq!(live.text("!lmi fffff880`04287100"), info);
    let kernel = live.text("!lmi nt");
    assert!(kernel.contains("RSDS - GUID: {8F1D2C67-6B64-4F6F-9C1A-6B64706F6F6C}\n"), "{kernel}");
    assert!(kernel.contains(" Age: 1, Pdb: ntkrnlmp.pdb\n") && kernel.contains("PDB - public symbols\n"), "{kernel}");
    assert!(live.run("!lmi nosuch").1);
    live.leave();
}

/// Without a symbol path names come from what images export, and the list says so.
#[test]
fn export_symbols_are_told_of_once_they_are_used() {
    let directory = tempfile::TempDir::new().unwrap();
    let mut live = Live::attach(kd_fake::kernel::article(), directory, |_| {});
    live.run("k");
    let (screen, failed, _) = live.run("x nt!Ke*NoSuch*");
    assert_eq!((screen.text.as_str(), screen.errors.as_str(), failed), ("", "", false));
    let list = live.text("lm");
    assert!(list.lines().any(|line| line.contains("   nt ") && line.contains("(export symbols)")), "{list}");
    live.leave();
}

#[test]
fn threads_have_their_stacks_or_a_word_why_not() {
    let mut live = Live::article();
    let (screen, failed, _) = live.run("!process fffffa80`02c05060 7");
    assert!(!failed, "{}", screen.errors);
    let threads = screen.text.matches("THREAD ").count();
    let told = screen.text.matches("Child-SP").count()
        + screen.text.matches("Kernel stack not resident.").count()
        + screen.text.matches("no stack: ").count();
    assert!(threads > 0 && told == threads, "{}", screen.text);
    let result = live.result("!process 0 7");
    for process in result["processes"].as_array().unwrap() {
        for thread in process["threads"].as_array().into_iter().flatten() {
            assert!(thread.get("stack").is_some() || thread.get("no_stack").is_some(), "{thread}");
        }
    }
    live.leave();
}

#[test]
fn what_kd_has_and_kdpool_has_not_says_what_comes_nearest() {
    let mut live = Live::article();
    for (word, nearest) in [
        ("bm nt!*", "bp"),
        ("dpp rsp", "dps"),
        (".writemem f 0 L1", ".logopen"),
        ("!object 0", "!drvobj"),
        ("!irp 0", "dt nt!_IRP"),
    ] {
        let (screen, failed, _) = live.run(word);
        assert!(failed && screen.errors.lines().count() == 1, "{word}");
        assert!(screen.errors.starts_with("kd has ") && screen.errors.contains(nearest), "{word}: {}", screen.errors);
    }
    for word in ["!stacks", "!dh nt", "dx @$curprocess", "!analyze -v", ".reload2"] {
        assert!(live.run(word).1, "{word}");
    }
    live.leave();
}

#[test]
fn the_target_stops_at_a_driver_that_is_waited_for() {
    use kd_fake::ModuleLoad;
    let mut live = Live::article();
    assert_eq!(live.text("sx"), "  ld - Load module - ignore\n  ud - Unload module - ignore\n");
    live.text("sxe ld:newdr*; sxe ud:newdrv.sys");
    assert!(live.text("sx").starts_with("  ld - Load module - break (only for newdr*)\n"));
    let module = |name: &str, unload| ModuleLoad {
        path: format!("\\SystemRoot\\system32\\drivers\\{name}.sys"),
        base: 0xffff_f880_0999_0000,
        size: 0x5000,
        unload,
    };
    live.text("g");
    live.fake.load_module(module("other", false));
    live.fake.load_module(module("newdrv", false));
    let stopped = live.text(".wait 0n20000");
    let line = "ModLoad: fffff880`09990000 fffff880`09995000   \\SystemRoot\\system32\\drivers\\newdrv.sys\n";
    assert!(stopped.starts_with(line), "{stopped}");
    assert!(live.text(".lastevent").starts_with("Last event: Load module "));
    assert!(!live.run("k").1 && live.text("r rip").starts_with("rip="));
    live.text("g");
    live.fake.load_module(module("newdrv", true));
    assert!(live.text(".wait 0n20000").starts_with("ModUnload: fffff880`09990000 "));
    live.text("sxd ld; sxr");
    live.text("g");
    live.fake.load_module(module("newdrv", false));
    assert!(live.run(".wait 0n500").1);
    assert!(!live.run(".break").1);
    for line in ["sxe", "sxe av", "sx ld", "sxr x"] {
        assert!(live.run(line).1, "{line}");
    }
    live.leave();
}

#[test]
fn a_machine_is_restarted_and_crashed_when_that_is_allowed() {
    let mut live = Live::article();
    for line in [".reboot", ".crash"] {
        assert!(live.run(line).0.errors.contains(".allow_write on"), "{line}");
    }
    let happens = |live: &Live, what: &dyn Fn(kd_fake::Stats) -> bool| {
        let start = std::time::Instant::now();
        while !what(live.fake.stats()) {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    live.text(".allow_write on; .crash");
    happens(&live, &|stats| stats.bugcheck == Some(0xe2));
    let mut live = Live::article();
    live.text(".allow_write on; .reboot");
    happens(&live, &|stats| stats.reboots == 1);
    live.leave();
}

#[test]
fn data_is_watched_by_debug_registers_that_are_off_when_we_leave() {
    let mut live = Live::article();
    // A continue is acknowledged before it is carried out.
    let dr7_becomes = |live: &Live, expected: u64| {
        let start = std::time::Instant::now();
        while live.fake.stats().continue_dr7 != Some(expected) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:x?}", live.fake.stats().continue_dr7);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    live.text("ba w4 nt!PoolHitTag; ba r8 nt!PoolBigPageTable \".echo hit; g\"; ba e1 nt!NtFlushKey");
    let list = live.text("bl");
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].ends_with(" w 4 0001 (0001) nt!PoolHitTag") && lines[0].starts_with(" 0 e fffff800`"), "{list}");
    assert!(
        lines[1].contains(" r 8 0001 (0001) nt!PoolBigPageTable") && lines[2].contains("     0001 (0001)"),
        "{list}"
    );
    // Nothing is on while it stands; both are while it runs.
    live.text("g");
    dr7_becomes(&live, 0x400 | 0b101 | 0b1101 << 16 | 0b1011 << 20);
    live.fake.hit_data(1, 0xffff_f800_0141_9000);
    live.fake.hit_data(0, 0xffff_f800_0141_9000);
    let stopped = live.text(".wait 0n20000");
    assert!(stopped.starts_with("hit\nBreakpoint 0 hit\n"), "{stopped}");
    live.text("bc 0");
    live.text("g");
    dr7_becomes(&live, 0x400 | 0b100 | 0b1011 << 20);
    live.text(".break");
    for line in ["ba w4 nt!PoolHitTag+1", "ba w3 nt!PoolHitTag", "ba e4 nt!NtFlushKey", "ba", "ba w4", "ba i1 60"] {
        assert!(live.run(line).1, "{line}");
    }
    live.text("bc *; ba w1 nt!PoolHitTag; ba w1 nt!PoolHitTag+1; ba w1 nt!PoolHitTag+2; ba w1 nt!PoolHitTag+3");
    assert!(live.run("ba w1 nt!PoolBigPageTable").0.errors.contains("all of them in use"));
    live.text("g");
    live.shell.take_target().unwrap().leave(kd_target::Leave::Running);
    dr7_becomes(&live, 0x400);
}
