//! Where names come from: symbol files, images on disk, exports.

use super::*;

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
    for line in ["? nt!PoolBigPageTable", "!poolused", "dt nt!_POOL_HEADER", "!poolfind Leak"] {
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
