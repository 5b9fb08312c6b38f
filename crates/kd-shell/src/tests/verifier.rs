//! `!verifier` on the article's machine.

use super::*;

const BLOCK: &str = "fffff8a005800000";

fn entries(line: &str) -> Vec<Value> {
    json(line)["result"]["entries"].as_array().unwrap().clone()
}

fn remarks(line: &str) -> String {
    let machine = Machine::new();
    run(&mut session(&store()), Debuggee::Halted(&machine), line, Format::Kd).remarks
}

#[test]
fn the_driver_that_leaks() {
    let todays = text("!verifier 3 myfault.sys");
    assert!(todays.starts_with("\nVerify Flags Level 0x"), "{todays}");
    assert!(
        todays.contains("  nt!_VF_TARGET_DRIVER 0xfffffa80") && todays.contains(": myfault.sys (Loaded)\n"),
        "{todays}"
    );
    let caller = "      0xfffff8a005800000  0x000fa000  Leak  0xfffff880042881f6  myfault+0x11f6\n";
    assert!(todays.contains(caller) && todays.contains("  Caller Address"), "{todays}");
    // A module's name means its records.
    assert_eq!(json("!verifier 0x80 myfault.sys")["result"], json("!verifier 0x80 -driver myfault.sys")["result"]);
    assert_eq!(json("!verifier 0x80 myfault")["result"], json("!verifier 0x80 -driver myfault")["result"]);
    assert!(error("!verifier 0x80 -old").contains("the logs have one layout"));
    let text = text("!verifier 3 -old myfault.sys");
    assert!(text.starts_with("\nVerify Level "), "{text}");
    assert!(text.contains("\nSummary of All Verifier Statistics\n\nRaiseIrqls                             0x0\n"));
    assert!(text.contains("\nPoolAddress  SizeInBytes    Tag       CallersAddress\n"), "{text}");
    let wanted = "fffff8a005800000     0x000fa000     Leak      fffff880042881f6\n";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(text.matches("     Leak      ").count(), 23);
    assert!(text.contains(" Loaded           00000000       "), "{text}");

    let result = json("!verifier 3 MYFAULT")["result"].clone();
    let driver = &result["drivers"][0];
    assert_eq!(driver["name"], "myfault.sys");
    assert_eq!(driver["state"], "loaded");
    assert_eq!(driver["counters"]["CurrentPagedPoolAllocations"], 23);
    let allocations = driver["allocations"].as_array().unwrap();
    assert_eq!(allocations.len(), 23);
    assert!(allocations.iter().all(|one| one["tag"] == "Leak" && one["symbol"] == "myfault+0x11f6"));
    assert!(result["level"].as_u64().is_some());
    assert!(result["statistics"]["AllocationsAttempted"].as_u64().is_some());

    let list = json("!verifier 1")["result"]["drivers"][0].clone();
    assert_eq!((&list["name"], list.get("allocations")), (&"myfault.sys".into(), None));
    assert!(json("!verifier")["result"].get("drivers").is_none());
    assert!(error("!verifier 3 other.sys").contains("other.sys is not verified; verified drivers: myfault.sys"));
    assert_eq!(remarks("!verifier 3"), "");
}

#[test]
fn logs_that_are_not_there_are_one_line() {
    for (line, why) in [
        ("!verifier 20", "This version of Windows has no driver hang verification."),
        ("!verifier 800", "This version of Windows has no systematic low resources simulation."),
        ("!verifier 40", "The kernel keeps no forced-pending IRP log now: force pending I/O requests (0x200) is off."),
    ] {
        assert_eq!(text(line), format!("{why}\n"), "{line}");
        let object = json(line);
        assert_eq!((&object["ok"], &object["result"]["unavailable"]), (&true.into(), &why.into()), "{line}");
        assert_eq!(object["result"]["log_entries"], 0);
    }
    assert!(text("!verifier f").contains("Fault injection trace log"));
    assert!(json("!verifier c")["result"]["logs"].as_array().unwrap().len() == 2);
}

#[test]
fn what_cannot_be_done_is_said() {
    assert!(error("!verifier -disable").contains("would write to the target's memory"));
    assert!(error("!verifier 1000").contains("unknown flags 0x1000"));
    assert!(error("!verifier zz").contains("the flags are a number"));
    assert!(error("!verifier 8 fffff8a005800000").contains("takes a quantity"));
    assert!(error("!verifier 0x80 -what").contains("unknown option -what"));
    assert!(error("!verifier 0x80 -since").contains("-since without an index"));
    assert!(error("!verifier 0x80 -op both").contains("-op is alloc or free"));
    assert!(error("!verifier 0x80 -timeline 5").contains("-timeline is of one address"));
    assert!(error("!verifier 0x80 -tag TooLong").contains("four characters"));
    assert!(error("!verifier 0x80 5 -driver nosuch").contains("no module 'nosuch' is loaded"));
    assert!(text("!verifier ?").contains("-outstanding"));
}

#[test]
fn options_of_the_pool_log() {
    let all = json("!verifier 0x80 -tag Leak")["result"].clone();
    let index = all["index"].as_u64().unwrap();
    let of_tag = all["entries"].as_array().unwrap();
    assert!(of_tag.len() >= 23, "{}", of_tag.len());
    let sequences: Vec<u64> = of_tag.iter().map(|entry| entry["sequence"].as_u64().unwrap()).collect();
    assert!(sequences.windows(2).all(|two| two[0] > two[1]));

    let allocations = entries("!verifier 0x80 -tag Leak -op alloc");
    assert_eq!(allocations.len(), 23);
    assert!(allocations.iter().all(|entry| entry["operation"] == "allocate" && entry["size"] == 0xfa000));
    assert_eq!(entries("!verifier 0x80 -tag Leak -outstanding"), allocations);
    assert_eq!(entries("!verifier 0x80 -driver myfault -outstanding -tag Leak"), allocations);
    assert_eq!(entries("!verifier 0x80 -tag Leak -driver myfault.sys -op free").len(), 0);

    let groups = json("!verifier 0x80 -tag Leak -outstanding -group")["result"]["groups"].clone();
    assert_eq!(groups.as_array().unwrap().len(), 1);
    assert_eq!((&groups[0]["count"], &groups[0]["bytes"]), (&23.into(), &(23 * 0xfa000).into()));
    assert_eq!(groups[0]["frames"][2]["symbol"], "myfault+0x11f6");
    let text_of = text("!verifier 0x80 -tag Leak -outstanding -group");
    assert!(text_of.contains("\n0x1676000 bytes in 0x17 allocations by:\nfffff80001923cc6 nt!VeAllocate"), "{text_of}");

    let since = format!("!verifier 0x80 -since {:#x}", index - 5);
    let newest = entries(&since);
    assert_eq!(newest.len(), 5);
    assert_eq!(newest, entries("!verifier 0x80 5"));
    assert!(error(&format!("!verifier 0x80 -since {:#x}", index + 1)).contains("the log's index is"));
    assert!(remarks(&since).contains(&format!("-since {index:#x} shows what is written from now on")));
    assert!(entries(&format!("!verifier 0x80 {BLOCK} -since {index:#x}")).is_empty());

    let call = json(&format!("!verifier 0x80 {BLOCK} -calls"))["result"]["entries"][0]["frames"][2].clone();
    assert_eq!((&call["address"], &call["symbol"]), (&"0xfffff880042881f5".into(), &"myfault+0x11f5".into()));

    let timeline = json(&format!("!verifier 0x80 -timeline {BLOCK}"))["result"]["timeline"].clone();
    assert_eq!((&timeline[0]["operation"], &timeline[1]["operation"]), (&"free".into(), &"allocate".into()));
    assert_eq!(timeline[1]["by"]["symbol"], "myfault+0x11f6");
    let text = text(&format!("!verifier 0x80 -timeline {BLOCK}"));
    assert!(text.contains("  allocate   fffff8a005800000  00000000000fa000  fffffa8002be4060  myfault+0x11f6\n"));
}

/// A question about the whole log reads it once; later ones read what is new.
#[test]
fn what_was_read_is_kept() {
    let machine = Machine::new();
    let mut session = session(&store());
    let mut ask = |line: &str| {
        let before = machine.reads.get();
        let screen = run(&mut session, Debuggee::Halted(&machine), line, Format::Json);
        let object: Value = serde_json::from_str(&screen.text).unwrap();
        check_record(&object);
        assert_eq!(object["ok"], true, "{object}");
        (object["result"].clone(), machine.reads.get() - before)
    };
    let (first, reads) = ask("!verifier 0x80 -outstanding -group");
    assert!(reads >= 2, "{reads}");
    let (again, reads) = ask("!verifier 0x80 -outstanding -group");
    assert_eq!(first, again);
    assert!(reads <= 12, "{reads} reads");
    // Blocks that the target would have to search for are known.
    let (inside, reads) = ask("!verifier 0x80 fffff8a005880000 -full");
    assert_eq!(inside["entries"].as_array().unwrap().len(), 1);
    assert!(reads <= 12, "{reads} reads");
}

#[test]
fn the_words_before_the_answer_do_not_change_it() {
    let machine = Machine::new();
    let screen =
        run(&mut session(&store()), Debuggee::Halted(&machine), &format!("!verifier 0x80 {BLOCK}"), Format::Kd);
    assert!(screen.remarks.contains("-full"), "{}", screen.remarks);
    assert!(screen.text.starts_with("\nLog of recent"));
}
