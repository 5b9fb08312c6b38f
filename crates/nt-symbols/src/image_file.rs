//! An image's file, read as if it were loaded: for modules whose headers or sections are paged out.
//!
//! ```text
//! section header, 28 bytes: 8 size in memory  c RVA  10 size in the file  14 offset in the file
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use nt_memory::{Fault, Memory};

use crate::bytes::u32_at;
use crate::{Image, ImageError, SymbolError};

/// Kernels have some 15 MB, the largest drivers (graphics) 150.
const MAX_IMAGE: usize = 1 << 30;

/// The bytes of an image's file at the addresses at which the target has them. Relocations are not applied.
pub struct ImageFile {
    path: PathBuf,
    bytes: Vec<u8>,
    base: u64,
    /// RVA, size in memory, offset and size in the file.
    sections: Vec<[u32; 4]>,
    image: Image,
}

impl std::fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFile").field("path", &self.path).field("base", &self.base).finish_non_exhaustive()
    }
}

/// The file as it is, for its headers, which lie in memory as they do in the file.
struct Flat<'b>(&'b [u8]);

impl Memory for Flat<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let rest = usize::try_from(address).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let good = rest.len().min(buffer.len());
        buffer[..good].copy_from_slice(&rest[..good]);
        Ok(good)
    }
}

impl ImageFile {
    /// Reads the whole file. It is at base 0 until it is said where it is loaded.
    pub fn open(path: impl AsRef<Path>) -> Result<ImageFile, SymbolError> {
        let path = path.as_ref();
        let io = |source| SymbolError::Io { path: path.to_owned(), source };
        let bytes = File::open(path).and_then(|file| heap_limit::read_whole(file, MAX_IMAGE)).map_err(io)?;
        ImageFile::parse(path, bytes)
    }

    /// The same of a file's bytes.
    pub fn parse(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<ImageFile, SymbolError> {
        let path = path.into();
        let format = |why: ImageError| SymbolError::Format {
            path: path.clone(),
            format: "PE",
            why: match why {
                ImageError::NotAnImage { why, .. } | ImageError::Damaged { why, .. } => why,
                ImageError::Unreadable { what, .. } => format!("it ends in its {what}"),
                other => other.to_string(),
            },
        };
        let image = Image::read(&Flat(&bytes), 0).map_err(format)?;
        let table = image.section_headers(&Flat(&bytes)).map_err(format)?;
        let section =
            |entry: &[u8]| Some([u32_at(entry, 12)?, u32_at(entry, 8)?, u32_at(entry, 20)?, u32_at(entry, 16)?]);
        let sections = table.chunks_exact(40).filter_map(section).collect();
        Ok(ImageFile { path, bytes, base: 0, sections, image })
    }

    /// The same file, loaded at `base`.
    pub fn loaded_at(mut self, base: u64) -> ImageFile {
        self.base = base;
        self.image.base = base;
        self
    }

    /// The same file under another name.
    pub(crate) fn moved_to(mut self, path: &Path) -> ImageFile {
        self.path = path.to_owned();
        self
    }

    /// The file on this machine.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its headers, at the base at which the target has it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The bytes from `rva` to the end of their section, and how many zeros follow them.
    fn at(&self, rva: u32) -> Option<(&[u8], usize)> {
        let first = self.sections.iter().map(|section| section[0]).min().unwrap_or(u32::MAX);
        if rva < first {
            return Some((self.bytes.get(rva as usize..self.bytes.len().min(first as usize))?, 0));
        }
        let inside = |section: &&[u32; 4]| rva.checked_sub(section[0]).is_some_and(|offset| offset < section[1]);
        let [start, size, raw, raw_size] = *self.sections.iter().find(inside)?;
        let offset = rva - start;
        let file = self.bytes.get(raw as usize..).unwrap_or_default();
        let file = &file[..file.len().min(raw_size.min(size) as usize)];
        let bytes = file.get(offset as usize..).unwrap_or_default();
        Some((bytes, (size - offset) as usize - bytes.len()))
    }
}

impl Memory for ImageFile {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut good = 0;
        while good < buffer.len() {
            let rva = address.wrapping_sub(self.base).wrapping_add(good as u64);
            let Some((bytes, zeros)) = u32::try_from(rva).ok().and_then(|rva| self.at(rva)) else { break };
            let rest = &mut buffer[good..];
            let (copied, length) = (bytes.len().min(rest.len()), (bytes.len() + zeros).min(rest.len()));
            if length == 0 {
                break;
            }
            rest[..copied].copy_from_slice(&bytes[..copied]);
            rest[copied..length].fill(0);
            good += length;
        }
        Ok(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BASE, TestImage};

    /// The test image as a linker would write it: its section at 0x400.
    fn file() -> Vec<u8> {
        let image = TestImage::new(b"x.pdb");
        let mut bytes = image.bytes[..0x400].to_vec();
        let section = 0xe8 + 0x18 + 0xf0;
        bytes[section + 16..section + 20].copy_from_slice(&0x2200u32.to_le_bytes());
        bytes[section + 20..section + 24].copy_from_slice(&0x400u32.to_le_bytes());
        bytes.extend_from_slice(&image.bytes[0x1000..0x3200]);
        bytes
    }

    #[test]
    fn a_file_reads_as_the_loaded_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sys");
        std::fs::write(&path, file()).unwrap();
        let file = ImageFile::open(&path).unwrap().loaded_at(BASE);
        let loaded = TestImage::new(b"x.pdb");
        assert_eq!(crate::rsds(&file, BASE), crate::rsds(&loaded, BASE));
        assert_eq!(file.image(), &Image::read(&loaded, BASE).unwrap());
        let mut bytes = [1; 0x20];
        assert_eq!(file.read(BASE + 0x31f0, &mut bytes).unwrap(), 0x20);
        assert_eq!(bytes[0x10..], [0; 0x10], "what the file leaves out is zero");
        assert_eq!(file.read(BASE + 0x3ff0, &mut bytes).unwrap(), 0x10);
        assert_eq!(file.read(BASE - 1, &mut bytes).unwrap(), 0);
        std::fs::write(&path, b"MZ").unwrap();
        let error = ImageFile::open(&path).unwrap_err().to_string();
        assert!(error.ends_with("is not a usable PE file: it ends in its header"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_file_gives_an_answer(
            changes in proptest::collection::vec((0usize..0x400, proptest::prelude::any::<u8>()), 0..30), length in 0usize..0x2600,
        ) {
            let mut bytes = file();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(length);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.sys");
            std::fs::write(&path, bytes).unwrap();
            if let Ok(file) = ImageFile::open(&path) {
                let file = file.loaded_at(BASE);
                let _ = file.image().clone().pdb(&file);
                let mut buffer = vec![0; 0x5000];
                let _ = file.read(BASE, &mut buffer);
            }
        }
    }
}
