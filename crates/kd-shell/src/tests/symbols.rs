//! Where names come from: symbol files, images on disk, exports.

use super::*;
use crate::Monitor;

/// What a session without any symbol path shows.
fn bare(session: &mut Session, line: &str) -> Screen {
    let machine = Machine::new();
    run(session, Debuggee::Halted(&machine), line, Format::Kd)
}

#[test]
fn without_a_symbol_file_an_image_has_its_exports() {
    let empty = tempfile::tempdir().unwrap();
    let mut session = session(empty.path().to_str().unwrap());
    let reloaded = bare(&mut session, ".reload /f nt");
    assert!(
        reloaded
            .text
            .contains("\n*** ERROR: Symbol file could not be found.  Defaulted to export symbols for ntoskrnl.exe -\n"),
        "{}",
        reloaded.text
    );
    assert!(reloaded.errors.contains("no symbols of nt: no symbol file for ntkrnlmp.pdb"), "{}", reloaded.errors);
    let truth = text("x nt!ExFreePool*");
    let exported: String = truth
        .lines()
        .filter(|line| ["nt!ExFreePool ", "nt!ExFreePoolWithTag "].iter().any(|name| line.contains(name)))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(exported.lines().count(), 2, "{truth}");
    assert_eq!(bare(&mut session, "x nt!ExFreePool*").text, exported);
    let place = text("? nt!ExFreePoolWithTag");
    assert_eq!(bare(&mut session, "? nt!exfreepoolwithtag").text, place);
    assert!(bare(&mut session, "ln nt!ExFreePoolWithTag+8").text.contains("nt!ExFreePoolWithTag+0x8   |  ("));
    let listed = bare(&mut session, "lm m nt").text;
    assert!(listed.contains("   nt         (export symbols)       ntoskrnl.exe\n"), "{listed}");
    // What is not exported is not there, and the reason is said.
    assert_eq!(
        (bare(&mut session, "x nt!PoolBig*").text, bare(&mut session, "x nt!PoolBig*").errors),
        Default::default()
    );
    for line in ["? nt!PoolBigPageTable", "!poolused", "dt nt!_POOL_HEADER"] {
        let shown = bare(&mut session, line);
        assert!(shown.errors.contains("no symbols of nt: no symbol file for ntkrnlmp.pdb"), "{line}: {}", shown.errors);
    }
    // A driver that exports nothing has no symbols at all.
    bare(&mut session, "ln myfault+10");
    assert!(bare(&mut session, "lm m myfault").text.contains("   myfault    (no symbols)           \n"));
    let noisy = bare(&mut session, ".reload /f myfault").text;
    assert!(noisy.contains("*** ERROR: Module load completed but symbols could not be loaded for myfault.sys\n"));
}

/// The kernel's image as a file, as a symbol store keeps it.
fn store_with_image() -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    kd_fake::kernel::write_symbol_store(store.path()).unwrap();
    let facts = KERNEL.facts();
    let mut image = vec![0; facts.kernel_size as usize];
    for (page, bytes) in image.chunks_mut(0x1000).enumerate() {
        KERNEL.read_virtual(facts.kernel_base + page as u64 * 0x1000, bytes);
    }
    let header = u32::from_le_bytes(image[0x3c..0x40].try_into().unwrap()) as usize;
    let time = u32::from_le_bytes(image[header + 8..header + 12].try_into().unwrap());
    let folder = store.path().join("ntoskrnl.exe").join(format!("{time:08X}{:x}", facts.kernel_size));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ntoskrnl.exe"), image).unwrap();
    store
}

#[test]
fn a_module_whose_header_is_paged_out_is_known_by_its_image() {
    let store = store_with_image();
    let mut machine = Machine::new();
    machine.hole = machine.base()..machine.base() + 0x1000;
    let show = |path: &std::path::Path, line: &str| {
        run(&mut session(path.to_str().unwrap()), Debuggee::Halted(&machine), line, Format::Kd)
    };
    let shown = show(store.path(), "lm m nt; ? nt!PoolBigPageTable; lm m nt");
    assert_eq!(shown.errors, "");
    assert!(shown.text.contains("   nt         (pdb symbols)          "), "{}", shown.text);
    // Without the PDB the image's exports are left.
    std::fs::remove_dir_all(store.path().join("ntkrnlmp.pdb")).unwrap();
    let shown = show(store.path(), "ln nt!ExFreePoolWithTag; lm m nt");
    assert_eq!(shown.errors, "");
    assert!(shown.text.contains("nt!ExFreePoolWithTag   |  ("), "{}", shown.text);
    let file = store.path().join("ntoskrnl.exe");
    assert!(shown.text.contains(&format!("(export symbols)       {}", file.display())), "{}", shown.text);
    // With neither it is said what could not be read.
    let empty = tempfile::tempdir().unwrap();
    let shown = show(empty.path(), "x nt!ExFree*");
    assert!(shown.errors.contains("cannot read the header of the image"), "{}", shown.errors);
    assert!(shown.errors.contains("no image file for ntoskrnl.exe (time stamp "), "{}", shown.errors);
}

#[test]
fn a_header_of_zeros_is_said() {
    let mut machine = Machine::new();
    machine.zeros = machine.base()..machine.base() + 0x1000;
    let shown = run(&mut session(&store()), Debuggee::Halted(&machine), "x nt!Ex*; lm m nt", Format::Kd);
    assert!(shown.errors.contains("its header holds only zeros"), "{}", shown.errors);
    assert!(shown.text.contains("   nt         (no symbols)           \n"), "{}", shown.text);
}

#[test]
fn wildcards_in_names_and_modules() {
    let names = |line: &str| text(line).lines().filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect();
    let all: Vec<String> = names("x nt!Vf*");
    let wanted =
        |first: &str| all.iter().filter(|name| name[5..].starts_with(|c| first.contains(c))).cloned().collect();
    let (chosen, expected): (Vec<String>, Vec<String>) = (names("x nt!Vf[KW]*"), wanted("KkWw"));
    assert!(chosen == expected && chosen.len() > 10, "{chosen:?}");
    let found: Vec<String> = names("x *!PoolBigPageTable");
    assert_eq!(found, ["nt!PoolBigPageTable"]);
    let mut up: Vec<String> = names("x /n nt!PoolBig*");
    up.reverse();
    assert_eq!(names("x /N nt!PoolBig*") as Vec<String>, up);
    assert!(text("x /q nt!PoolBigPageTable").contains(" @!\"nt!PoolBigPageTable\" ("));
    assert!(text("dt nt!_POOL_HEAD*").contains("          ntkrnlmp!_POOL_HEADER\n"));
}

#[test]
fn drivers_that_come_and_go_are_shown_when_asked_for() {
    let path = String::from("\\SystemRoot\\x.sys");
    let mut event = kd_target::Event::ModuleChange { path, base: 0xffff_f880_0999_0000, size: 0x5000, unload: false };
    assert_eq!(crate::event_text(&event, false), None);
    let text = crate::event_text(&event, true);
    assert_eq!(text.as_deref(), Some("ModLoad: fffff880`09990000 fffff880`09995000   \\SystemRoot\\x.sys\n"));
    if let kd_target::Event::ModuleChange { unload, .. } = &mut event {
        *unload = true;
    }
    assert!(crate::event_text(&event, true).is_some_and(|text| text.starts_with("ModUnload: fffff880`09990000 ")));
}

/// What stands in the place of a person at a terminal: each question is counted.
fn asked(answer: bool) -> (Monitor, std::rc::Rc<std::cell::RefCell<Vec<String>>>) {
    let questions = std::rc::Rc::<std::cell::RefCell<Vec<String>>>::default();
    let heard = questions.clone();
    let monitor = Monitor::default().asking(Box::new(move |question| {
        heard.borrow_mut().push(question.to_owned());
        answer
    }));
    (monitor, questions)
}

fn without_a_path(monitor: Monitor) -> Session {
    let source = PathSource::read("").0.watched(monitor);
    Session::new(Symbols::new(Box::new(source)), PoolTags::built_in(), Log::default())
}

#[test]
fn without_a_path_one_question_is_asked_when_names_are_needed() {
    let (monitor, questions) = asked(false);
    let mut session = without_a_path(monitor);
    let machine = Machine::new();
    session.symbols.offline(|symbols| banner::target(&machine, symbols)).unwrap();
    bare(&mut session, "? 1+1");
    session.symbols.offline(|symbols| symbols.nt(&machine).err());
    assert_eq!(questions.borrow().len(), 0, "nobody needed a name");
    let shown = bare(&mut session, "? nt!PoolHitTag");
    assert!(shown.errors.contains("no symbol path is set; -y 'srv*'"), "{}", shown.errors);
    bare(&mut session, "!poolused");
    bare(&mut session, "dt nt!_EPROCESS");
    let questions = questions.borrow();
    assert_eq!(questions.len(), 1, "{questions:?}");
    assert!(
        questions[0].starts_with("No symbol path is set. Use Microsoft's symbol server, and keep "),
        "{questions:?}"
    );
}

#[test]
fn a_yes_sets_the_path() {
    let (monitor, questions) = asked(true);
    // No server is waited for here.
    let interrupt = kd_target::Interrupt::default();
    interrupt.raise();
    monitor.use_interrupt(interrupt);
    let mut session = without_a_path(monitor);
    bare(&mut session, "? nt!PoolHitTag");
    assert_eq!(session.symbols.source().path(), "srv*");
    assert_eq!(questions.borrow().len(), 1);
}

#[test]
fn a_bad_element_of_a_path_is_a_warning_and_the_rest_is_used() {
    let mut session = session("");
    let store = store();
    let shown = bare(&mut session, &format!(".sympath \"foo*bar;{store}\""));
    assert!(shown.text.contains(&format!("Symbol search path is: {store}\n")), "{}", shown.text);
    assert!(shown.text.contains("WARNING: symbol path element \"foo*bar\": "), "{}", shown.text);
    assert!(bare(&mut session, "? nt!PoolHitTag").errors.is_empty());
    // Nothing of use changes nothing.
    assert!(bare(&mut session, ".sympath foo*bar").errors.contains("foo*bar"));
    assert_eq!(session.symbols.source().path(), store);
    // kd's way to add the server.
    let shown = bare(&mut session, ".symfix+").text;
    assert!(shown.contains(&format!("Symbol search path is: {store};srv*\n")), "{shown}");
    let shown = bare(&mut session, ".symfix+ /c").text;
    assert!(shown.contains(";srv*;srv*/c*https://msdl.microsoft.com/download/symbols\n"), "{shown}");
    assert!(bare(&mut session, ".symfix").text.contains("Symbol search path is: srv*\n"));
}

#[test]
fn the_bits_of_symopt() {
    let mut session = session(&store());
    assert!(
        bare(&mut session, ".symopt")
            .text
            .starts_with("Symbol options are 0x7:\n  0x00000001 - SYMOPT_CASE_INSENSITIVE\n")
    );
    assert!(bare(&mut session, ".symopt+ 0x80000000").text.contains("0x80000000 - SYMOPT_DEBUG\n"));
    assert_eq!(bare(&mut session, "!sym").text, "noisy mode - symbol prompts on\n");
    assert!(bare(&mut session, ".symopt+40").text.starts_with("Symbol options are 0x80000047:\n"));
    assert!(session.symbols.takes_mismatched());
    assert!(bare(&mut session, ".symopt- 80000040").text.starts_with("Symbol options are 0x7:\n"));
    assert!(!session.symbols.takes_mismatched());
    // What would do nothing is refused.
    for line in [".symopt+ 10", ".symopt- 1", ".symopt 40", ".symopt+", ".symopt+ x"] {
        assert!(bare(&mut session, line).errors.contains("usage: .symopt"), "{line}");
    }
}
