//! Writes a seeded machine's physical memory, truth and symbols, for tools that read memory images.
//!
//! ```text
//! seeded TABLE SEED FOLDER     memory.raw, truth.json and the symbol store
//! ```

use kd_fake::isf::Isf;
use kd_fake::kernel::{self, SeededOptions};
use std::fs::File;
use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [table, seed, folder] = &arguments[..] else { return Err(io::Error::other("seeded TABLE SEED FOLDER")) };
    let bytes = std::fs::read(table)?;
    let isf = if table.ends_with(".xz") { Isf::from_xz(&bytes) } else { Isf::from_json(&bytes) };
    let isf = isf.map_err(io::Error::other)?;
    let seed = seed.parse().map_err(io::Error::other)?;
    let (kernel, truth) = kernel::seeded(&isf, seed, &SeededOptions::default()).map_err(io::Error::other)?;
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    kernel.write_raw(&mut File::create(folder.join("memory.raw"))?)?;
    serde_json::to_writer(File::create(folder.join("truth.json"))?, &truth)?;
    kernel::write_pdb(folder, &isf)?;
    Ok(())
}
