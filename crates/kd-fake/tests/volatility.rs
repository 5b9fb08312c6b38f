//! Volatility 3 reads an exported memory image and finds the same large blocks.
//!
//! It runs where `vol` is, in the path or as `KDPOOL_VOLATILITY` says (`pip install volatility3`).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, SeededOptions};

#[test]
fn volatility_finds_the_large_blocks() {
    let program = std::env::var_os("KDPOOL_VOLATILITY").unwrap_or_else(|| OsString::from("vol"));
    if Command::new(&program).arg("--help").output().is_err() {
        println!("skipped: there is no Volatility 3");
        return;
    }
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tables = vec![crate_folder.join("data/339E74133576439CBCDF7E0229DA3773-1.json.xz")];
    let shared = std::env::var_os("KDPOOL_SHARED").map_or_else(|| crate_folder.join("../../../shared"), PathBuf::from);
    // 10 1607, 10 2004 and 11, where they are.
    for name in
        ["74A8630BA8B84B1B972E72CF98536F2C", "3789767E34B7A48A3FC80CE12DE18E65", "C224C641D4E1FDFA0EEA8DB742B93EF8"]
    {
        tables.push(shared.join(format!("isf/{name}-1.json.xz")));
    }
    for table in tables.iter().filter(|table| table.exists()) {
        let folder = tempfile::tempdir().unwrap();
        let symbols = folder.path().join("windows/ntkrnlmp.pdb");
        fs::create_dir_all(&symbols).unwrap();
        fs::copy(table, symbols.join(table.file_name().unwrap())).unwrap();
        let isf = Isf::from_xz(&fs::read(table).unwrap()).unwrap();
        let (kernel, truth) = kernel::seeded(&isf, 11, &SeededOptions::default()).unwrap();
        let image = folder.path().join("memory.raw");
        kernel.write_raw(&mut File::create(&image).unwrap()).unwrap();

        let mut command = Command::new(&program);
        command.args(["-q", "--offline", "-r", "csv", "-s"]).arg(folder.path());
        let output = command.arg("-f").arg(&image).arg("windows.bigpools").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found: BTreeSet<(u64, u64, String)> = text
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(',').collect();
                let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
                let [_, address, _, kind, bytes, "Allocated"] = fields[..] else { return None };
                Some((hex(address)? & 0xffff_ffff_ffff, hex(bytes)?, kind.to_owned()))
            })
            .collect();
        let expected: BTreeSet<(u64, u64, String)> = truth
            .large
            .iter()
            .map(|life| {
                let kind = format!("{:?}", life.kind);
                let kind = if kind.ends_with("Nx") { "NonPagedPoolNx".to_owned() } else { kind + "Pool" };
                (life.address & 0xffff_ffff_ffff, life.bytes, kind)
            })
            .collect();
        assert_eq!(found, expected, "build {}: {}", truth.build, String::from_utf8_lossy(&output.stderr));
    }
}
