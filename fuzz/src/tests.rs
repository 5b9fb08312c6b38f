//! Every body on every input that is checked in, and on changes of them: without a fuzzer, in a few seconds, so that a
//! mistake, and a seed that is stale, is seen in every run of the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::seeds::{self, Seed};
use crate::targets::ALL;

/// A body takes milliseconds; a loaded machine and an unoptimized build take their time.
const HANG: Duration = Duration::from_secs(30);

/// Changes of each target's inputs. `KDPOOL_FUZZ_CHANGES` is another number, for long runs without a fuzzer.
const CHANGES: usize = 1500;

/// No target's changes take longer, in a run that asks for nothing else.
const SHARE: Duration = Duration::from_millis(1500);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")
}

/// The inputs in a target's folder, by name. `KDPOOL_FUZZ_CORPUS` is another place than `seeds/`.
fn inputs(target: &str) -> BTreeMap<String, Vec<u8>> {
    let place = env::var_os("KDPOOL_FUZZ_CORPUS").map_or_else(folder, PathBuf::from).join(target);
    let entries = fs::read_dir(&place).into_iter().flatten().flatten();
    let read =
        |entry: fs::DirEntry| Some((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).ok()?));
    entries.filter_map(read).collect()
}

/// Numbers that follow from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// What a fuzzer does to an input.
fn changed(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    const EDGES: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff];
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
            2 => {
                let value = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4][random.below(3)];
                bytes.iter_mut().skip(at).zip(&value[..width]).for_each(|(byte, value)| *byte = *value);
            }
            3 => bytes.truncate(at),
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                let _ = bytes.drain(at.min(end)..end);
            }
            5 => {
                let piece: Vec<u8> = bytes.iter().skip(at).take(1 + random.below(32)).copied().collect();
                let to = random.below(bytes.len() + 1);
                let _ = bytes.splice(to..to, piece).count();
            }
            6 => {
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend(other.iter().skip(from).take(4096));
            }
            _ => bytes.insert(at.min(bytes.len()), random.below(256) as u8),
        }
    }
    bytes
}

/// Runs one input; a body that panics, or does not end, says which it was.
fn run(target: &crate::Target, name: &str, bytes: &[u8]) {
    let begun = Instant::now();
    let ended = std::panic::catch_unwind(|| (target.run)(bytes));
    let text: String = bytes.iter().take(4096).map(|byte| format!("{byte:02x}")).collect();
    assert!(ended.is_ok(), "{} fails on a change of {name}: {text}", target.name);
    assert!(begun.elapsed() < HANG, "{} took {:?} on a change of {name}: {text}", target.name, begun.elapsed());
}

#[test]
fn every_target_takes_its_seeds_and_changes_of_them() {
    let asked: Option<usize> = env::var("KDPOOL_FUZZ_CHANGES").ok().map(|number| number.parse().expect("a number"));
    for target in ALL {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for (name, bytes) in &inputs {
            run(target, name, bytes);
        }
        let inputs: Vec<_> = inputs.into_iter().collect();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let begun = Instant::now();
        let mut done = 0;
        while done < asked.unwrap_or(CHANGES) && (asked.is_some() || begun.elapsed() < SHARE) {
            let (name, bytes) = &inputs[random.below(inputs.len())];
            let other = &inputs[random.below(inputs.len())].1;
            run(target, name, &changed(bytes, other, &mut random));
            done += 1;
        }
        println!("{}: {} inputs, {done} changes in {:?}", target.name, inputs.len(), begun.elapsed());
    }
}

/// `KDPOOL_BLESS=1` writes them anew.
#[test]
fn the_generated_seeds_are_those_in_the_folder() {
    let bless = env::var_os("KDPOOL_BLESS").is_some();
    for Seed { target, name, bytes } in seeds::all() {
        let file = folder().join(target).join(&name);
        if bless {
            fs::create_dir_all(folder().join(target)).expect("a folder");
            fs::write(&file, &bytes).expect("a file");
        }
        assert_eq!(fs::read(&file).ok().as_ref(), Some(&bytes), "{target}/{name} is stale: KDPOOL_BLESS=1 writes it");
    }
}

/// A target that no program hands to the fuzzer, or the other way round, would be fuzzed by nobody.
#[test]
fn targets_programs_and_folders_are_the_same() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(root.join(folder)).expect("a folder").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned()).collect();
        names.sort();
        names
    };
    let targets: Vec<&str> = ALL.iter().map(|target| target.name).collect();
    assert!(targets.is_sorted());
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("seeds"), targets);
    let readme = fs::read_to_string(root.join("README.md")).expect("a text");
    for target in targets {
        assert!(readme.contains(&format!("`{target}`")), "{target} is not in README.md");
    }
}

/// Seeds lead somewhere: they are read, not refused at the door.
#[test]
fn seeds_are_what_they_say() {
    let bytes = |target: &str, name: &str| inputs(target).remove(name).unwrap_or_else(|| panic!("{target}/{name}"));
    for name in ["stored", "stored-reserved", "zip", "lzx", "lzx-wide"] {
        let mut out = Vec::new();
        let cabinet = bytes("cabinet", name);
        nt_symbols::expand_cabinet(&mut std::io::Cursor::new(cabinet), &mut out, 1 << 20, || false)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(out.starts_with(b"Microsoft"), "{name}");
    }
    for name in ["small", "small-packed"] {
        assert!(nt_symbols::Isf::parse(name, bytes("isf", name)).is_ok(), "{name}");
    }
    let whole = bytes("pdb", "whole").split_off(1);
    assert!(nt_symbols::Pdb::read("whole", std::io::Cursor::new(whole)).is_ok());
    for name in ["x64", "x86"] {
        let file = nt_symbols::ImageFile::parse(name, bytes("image_file", name)).expect(name);
        assert_eq!(file.image().clone().pdb(&file).expect(name).pdb_name, "x.pdb");
    }
    for name in inputs("saved").into_keys().filter(|name| name.contains('-') && name != "demo-mark-body") {
        let text = String::from_utf8(bytes("saved", &name).split_off(1)).expect("text");
        if let Err(error) = nt_leaks::Saved::parse(&text, &name) {
            panic!("{name}: {error}");
        }
    }
    let text = String::from_utf8(bytes("self_check", "demo")).expect("text");
    kd_shell::SelfCheckReport::parse(&text).expect("a self-check");
    let is_ours = |name: &String| name.starts_with("link-") || ["line", "new"].contains(&name.as_str());
    for name in inputs("capture").into_keys().filter(is_ours) {
        let file = bytes("capture", &name);
        let reader = kd_link::CaptureReader::new(&file[..]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found: Vec<_> = reader.collect();
        assert!(name.starts_with("link-105") == found.is_empty(), "{name}: {found:?}");
    }
}
