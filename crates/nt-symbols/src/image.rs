//! The headers of an image as it lies mapped in the target's memory.
//!
//! ```text
//! 0 "MZ"  3c offset of the NT headers
//! NT headers: 0 "PE\0\0"  4 machine  6 sections  8 time stamp  14 size of the optional header  18 optional header
//! optional header: 0 magic  38 size of image  40 checksum  5c / 6c number of directories, then 8 bytes each
//! debug directory, 1c bytes each: c type  10 size  14 RVA
//! CodeView record: 0 "RSDS"  4 GUID  14 age  18 PDB name\0
//! ```

use nt_memory::{Fault, Memory};

use crate::bytes::{u16_at, u32_at};
use crate::id::{PdbId, safe_file_name};

/// Covers the headers up to the data directories, and one reply carries it.
const FIRST_READ: usize = 0x400;
/// GUID, age and a path of some 1,000 bytes; Windows' own are far shorter, and a longer one is refused.
const CODE_VIEW_READ: usize = 0x400;
/// Images have 1 to 8.
const MAX_DEBUG_ENTRIES: u32 = 32;
/// The loader accepts 96.
const MAX_SECTIONS: u16 = 96;

const DIRECTORY_EXPORT: usize = 0;
const DIRECTORY_EXCEPTION: usize = 3;
const DIRECTORY_DEBUG: usize = 6;

const IMAGE_DEBUG_TYPE_CODEVIEW: u32 = 2;
const IMAGE_DEBUG_TYPE_REPRO: u32 = 16;

/// Why an image's headers, or the record that names its PDB, cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The source of memory is gone, or was interrupted.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Headers of drivers are paged out when nobody uses them.
    #[error(
        "cannot read the {what} of the image at {base:016x}: the target could not read {address:016x} (paged out?)"
    )]
    Unreadable {
        /// Where the image begins.
        base: u64,
        /// Which header or directory.
        what: &'static str,
        /// Where it lies.
        address: u64,
    },
    /// Its first bytes are not those of a PE image.
    #[error("no image at {base:016x}: {why}")]
    NotAnImage {
        /// Where one was said to begin.
        base: u64,
        /// What is there instead.
        why: String,
    },
    /// A header contradicts itself.
    #[error("the {what} of the image at {base:016x} is damaged: {why}")]
    Damaged {
        /// Where the image begins.
        base: u64,
        /// Which header or directory.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It does not name the PDB that it was built with.
    #[error("the image at {base:016x} does not name a PDB: {why}")]
    NoPdb {
        /// Where the image begins.
        base: u64,
        /// What it lacks.
        why: &'static str,
    },
    /// The name of its PDB cannot be a file's.
    #[error("the image at {base:016x} names a PDB whose name cannot be used: {why}")]
    BadPdbName {
        /// Where the image begins.
        base: u64,
        /// What is wrong with the name.
        why: crate::BadPdbName,
    },
}

/// One entry of the section table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `.text`, `PAGE`: eight bytes at most.
    pub name: String,
    /// Where it begins, from the image's base.
    pub rva: u32,
    /// Bytes in memory.
    pub size: u32,
    /// `IMAGE_SCN_` bits: 0x20 code, 0x02000000 discarded after start.
    pub characteristics: u32,
}

/// What the headers say of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where the image begins in memory.
    pub base: u64,
    /// `0x8664` x64, `0x14c` x86, `0xaa64` ARM64.
    pub machine: u16,
    /// Seconds since 1970, or a hash where the build is reproducible.
    pub time_date_stamp: u32,
    /// Bytes from its base to the end of its last section.
    pub size_of_image: u32,
    /// As the linker counted it; the loader checks it of drivers.
    pub check_sum: u32,
    /// RVA and size of the export, exception and debug directories, if present.
    pub exports: Option<(u32, u32)>,
    /// Where the exception directory (.pdata) lies from the base, and its bytes.
    pub exceptions: Option<(u32, u32)>,
    /// The same of the debug directory.
    pub debug: Option<(u32, u32)>,
    /// Where the section table lies and how many entries it has.
    section_table: (u64, u16),
}

/// An image and the PDB that was linked with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIdentity {
    /// The image itself.
    pub image: Image,
    /// The PDB that it was built with.
    pub pdb: PdbId,
    /// The PDB's file name without directories, checked to be harmless.
    pub pdb_name: String,
    /// The name as the linker wrote it, often with the build machine's directories. For display only.
    pub recorded_name: String,
    /// Where the record that says so lies in the image, as an RVA.
    pub record: u32,
}

impl Image {
    /// What the image's file is called in a symbol store.
    pub fn key(&self) -> crate::ImageKey {
        crate::ImageKey { time_date_stamp: self.time_date_stamp, size_of_image: self.size_of_image }
    }

    /// Reads the headers: one read as a rule, a second one if they lie unusually far from the start.
    pub fn read(memory: &(impl Memory + ?Sized), base: u64) -> Result<Image, ImageError> {
        let mut bytes = vec![0; FIRST_READ];
        let read = memory.read(base, &mut bytes)?.min(FIRST_READ);
        bytes.truncate(read);
        let unreadable = |what, at: usize| ImageError::Unreadable { base, what, address: base.wrapping_add(at as u64) };
        if read < 0x40 {
            return Err(unreadable("header", read));
        }
        if bytes[..2] != *b"MZ" {
            let zero = bytes.iter().all(|b| *b == 0);
            let why = if zero {
                "its header holds only zeros".to_owned()
            } else {
                format!("it starts with {:02x} {:02x} instead of \"MZ\"", bytes[0], bytes[1])
            };
            return Err(ImageError::NotAnImage { base, why });
        }
        let nt = u32_at(&bytes, 0x3c).unwrap_or(0);
        if !(0x40..0x10000).contains(&nt) {
            return Err(ImageError::NotAnImage { base, why: format!("its NT headers are said to lie at {nt:#x}") });
        }
        let nt = nt as usize;
        // 0x18 bytes before the optional header, whose directories end at 0xf0.
        let end = nt + 0x108;
        if read < end {
            if read < FIRST_READ {
                return Err(unreadable("NT headers", read));
            }
            bytes.resize(end, 0);
            let more = memory.read(base.wrapping_add(read as u64), &mut bytes[read..])?;
            if more < end - read {
                return Err(unreadable("NT headers", read + more));
            }
        }
        Image::parse(base, &bytes, nt).unwrap_or_else(|| {
            Err(ImageError::Damaged { base, what: "header", why: "it ends before its last field".into() })
        })
    }

    fn parse(base: u64, bytes: &[u8], nt: usize) -> Option<Result<Image, ImageError>> {
        let bad = |why: String| Some(Err(ImageError::NotAnImage { base, why }));
        if bytes.get(nt..nt + 4)? != b"PE\0\0" {
            return bad(format!("there is no \"PE\" signature at offset {nt:#x}"));
        }
        let optional = nt + 0x18;
        let directories = match u16_at(bytes, optional)? {
            0x10b => optional + 0x60,
            0x20b => optional + 0x70,
            magic => return bad(format!("its optional header has the unknown magic {magic:#06x}")),
        };
        let count = u32_at(bytes, directories - 4)?.min(16) as usize;
        let size_of_image = u32_at(bytes, optional + 0x38)?;
        let directory = |n: usize| {
            let at = directories + n * 8;
            let (rva, size) = (u32_at(bytes, at)?, u32_at(bytes, at + 4)?);
            (n < count && rva != 0 && size != 0).then_some((rva, size))
        };
        let optional_size = u16_at(bytes, nt + 0x14)?;
        Some(Ok(Image {
            base,
            machine: u16_at(bytes, nt + 4)?,
            time_date_stamp: u32_at(bytes, nt + 8)?,
            size_of_image,
            check_sum: u32_at(bytes, optional + 0x40)?,
            exports: directory(DIRECTORY_EXPORT),
            exceptions: directory(DIRECTORY_EXCEPTION),
            debug: directory(DIRECTORY_DEBUG),
            section_table: (optional as u64 + u64::from(optional_size), u16_at(bytes, nt + 6)?),
        }))
    }

    /// The section table's bytes.
    pub(crate) fn section_headers(&self, memory: &(impl Memory + ?Sized)) -> Result<Vec<u8>, ImageError> {
        let (offset, count) = self.section_table;
        let base = self.base;
        if count > MAX_SECTIONS {
            let why = format!("it has {count} entries, and the loader accepts {MAX_SECTIONS}");
            return Err(ImageError::Damaged { base, what: "section table", why });
        }
        let mut bytes = vec![0; usize::from(count) * 40];
        let at = base.wrapping_add(offset);
        let read = memory.read(at, &mut bytes)?;
        if read < bytes.len() {
            let address = at.wrapping_add(read as u64);
            return Err(ImageError::Unreadable { base, what: "section table", address });
        }
        Ok(bytes)
    }

    /// Reads the section table.
    pub fn sections(&self, memory: &(impl Memory + ?Sized)) -> Result<Vec<Section>, ImageError> {
        let bytes = self.section_headers(memory)?;
        let section = |entry: &[u8]| {
            let name = entry.get(..8)?.split(|b| *b == 0).next()?;
            Some(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                rva: u32_at(entry, 12)?,
                size: u32_at(entry, 8)?,
                characteristics: u32_at(entry, 36)?,
            })
        };
        Ok(bytes.chunks_exact(40).filter_map(section).collect())
    }

    /// Reads `wanted` bytes at an RVA that must lie in the image.
    pub(crate) fn read_at(
        &self,
        memory: &(impl Memory + ?Sized),
        what: &'static str,
        rva: u32,
        wanted: usize,
    ) -> Result<Vec<u8>, ImageError> {
        let base = self.base;
        if u64::from(rva) + wanted as u64 > u64::from(self.size_of_image) {
            let why =
                format!("it is said to lie at +{rva:#x}, {wanted:#x} bytes, in an image of {:#x}", self.size_of_image);
            return Err(ImageError::Damaged { base, what, why });
        }
        let mut bytes = vec![0; wanted];
        let at = base.wrapping_add(u64::from(rva));
        let read = memory.read(at, &mut bytes)?;
        if read < wanted {
            return Err(ImageError::Unreadable { base, what, address: at.wrapping_add(read as u64) });
        }
        Ok(bytes)
    }

    fn debug_directory(&self, memory: &(impl Memory + ?Sized)) -> Result<Vec<u8>, ImageError> {
        let Some((rva, size)) = self.debug else { return Ok(Vec::new()) };
        self.read_at(memory, "debug directory", rva, size.min(MAX_DEBUG_ENTRIES * 0x1c) as usize)
    }

    /// Whether the linker put a hash of the build where the time stamp was (`/Brepro`).
    pub fn is_reproducible(&self, memory: &(impl Memory + ?Sized)) -> Result<bool, ImageError> {
        let directory = self.debug_directory(memory)?;
        Ok(directory.chunks_exact(0x1c).any(|entry| u32_at(entry, 0xc) == Some(IMAGE_DEBUG_TYPE_REPRO)))
    }

    /// Reads the record that names the PDB: two reads.
    pub fn pdb(self, memory: &(impl Memory + ?Sized)) -> Result<ImageIdentity, ImageError> {
        let base = self.base;
        if self.debug.is_none() {
            return Err(ImageError::NoPdb { base, why: "it has no debug directory" });
        }
        let directory = self.debug_directory(memory)?;
        let mut entries = directory.chunks_exact(0x1c);
        let code_view = entries.find(|entry| u32_at(entry, 0xc) == Some(IMAGE_DEBUG_TYPE_CODEVIEW));
        let Some((rva, size)) = code_view.and_then(|entry| Some((u32_at(entry, 0x14)?, u32_at(entry, 0x10)?))) else {
            return Err(ImageError::NoPdb { base, why: "its debug directory has no CodeView record" });
        };
        if rva == 0 {
            return Err(ImageError::NoPdb { base, why: "its CodeView record is not mapped" });
        }
        let record = self.read_at(memory, "CodeView record", rva, (size as usize).min(CODE_VIEW_READ))?;
        let damaged = |why: String| ImageError::Damaged { base, what: "CodeView record", why };
        match record.get(..4) {
            Some(b"RSDS") => {}
            Some(b"NB10") => {
                return Err(ImageError::NoPdb { base, why: "its record is of the old kind (NB10) without a GUID" });
            }
            Some(other) => return Err(damaged(format!("it starts with {}", other.escape_ascii()))),
            None => return Err(damaged(format!("it has {size} bytes"))),
        }
        let Some((guid, age)) = record.get(4..20).and_then(|b| b.first_chunk().copied()).zip(u32_at(&record, 20))
        else {
            return Err(damaged(format!("it has only {size} bytes")));
        };
        let name = record.get(24..).unwrap_or_default();
        let name = match name.iter().position(|b| *b == 0) {
            Some(end) => &name[..end],
            None if record.len() < size as usize => {
                let why = crate::BadPdbName::TooLong(size as usize - 24);
                return Err(ImageError::BadPdbName { base, why });
            }
            None => name,
        };
        let pdb_name = safe_file_name(name).map_err(|why| ImageError::BadPdbName { base, why })?;
        let recorded_name = String::from_utf8_lossy(name).into_owned();
        Ok(ImageIdentity { image: self, pdb: PdbId::from_memory(guid, age), pdb_name, recorded_name, record: rva })
    }
}

/// The PDB that is named where the record was found before ([`ImageIdentity::record`]): one read. `None`: no record
/// lies there.
pub fn rsds_at(memory: &(impl Memory + ?Sized), base: u64, record: u32) -> Result<Option<PdbId>, Fault> {
    let mut bytes = [0; 24];
    let read = memory.read(base.wrapping_add(record.into()), &mut bytes)?;
    let is_record = read == bytes.len() && bytes.starts_with(b"RSDS");
    let id = bytes[4..].first_chunk().copied().zip(u32_at(&bytes, 20));
    Ok(id.filter(|_| is_record).map(|(guid, age)| PdbId::from_memory(guid, age)))
}

/// Which PDB belongs to the image mapped at `base`. Three reads as a rule: header, debug directory, CodeView record.
pub fn rsds(memory: &(impl Memory + ?Sized), base: u64) -> Result<ImageIdentity, ImageError> {
    Image::read(memory, base)?.pdb(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BASE, TestImage};

    #[test]
    fn three_reads_name_the_pdb() {
        let image = TestImage::new(b"D:\\obj\\ntkrnlmp.pdb");
        let identity = rsds(&image, BASE).unwrap();
        assert_eq!(image.reads(), 3);
        assert_eq!(rsds_at(&image, BASE, identity.record), Ok(Some(identity.pdb)));
        assert_eq!(image.reads(), 4);
        assert_eq!(rsds_at(&image, BASE, identity.record + 8), Ok(None));
        assert_eq!(identity.pdb_name, "ntkrnlmp.pdb");
        assert_eq!(identity.recorded_name, "D:\\obj\\ntkrnlmp.pdb");
        assert_eq!(identity.pdb.store_key(), "000102030405060708090A0B0C0D0E0F2");
        assert_eq!((identity.image.machine, identity.image.size_of_image), (0x8664, 0x4000));
        assert_eq!((identity.image.time_date_stamp, identity.image.check_sum), (0x5ce7_7c41, 0x0012_3456));
        let sections = identity.image.sections(&image).unwrap();
        assert_eq!(
            sections,
            [Section { name: ".text".into(), rva: 0x1000, size: 0x3000, characteristics: 0x6000_0020 }]
        );
    }

    #[test]
    fn a_reproducible_build_is_known() {
        let mut image = TestImage::new(b"x.pdb");
        let read = |image: &TestImage| Image::read(image, BASE).unwrap().is_reproducible(image).unwrap();
        assert!(!read(&image));
        let (rva, _) = Image::read(&image, BASE).unwrap().debug.unwrap();
        image.bytes[rva as usize + 0xc] = IMAGE_DEBUG_TYPE_REPRO as u8;
        assert!(read(&image));
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in [&b"..\\.."[..], b"NUL", b"\xff\xfe.pdb", b"", &[b'a'; 0x800]] {
            let error = rsds(&TestImage::new(name), BASE).unwrap_err();
            assert!(matches!(error, ImageError::BadPdbName { .. }), "{error}");
        }
        assert_eq!(rsds(&TestImage::new(b"..\\..\\x.pdb"), BASE).unwrap().pdb_name, "x.pdb");
    }

    #[test]
    fn errors_say_what_is_where() {
        let mut image = TestImage::new(b"x.pdb");
        image.hole(0x2000..0x3000);
        assert_eq!(
            rsds(&image, BASE).unwrap_err().to_string(),
            "cannot read the debug directory of the image at fffff80002600000: the target could not read \
             fffff80002602000 (paged out?)"
        );
        let mut image = TestImage::new(b"x.pdb");
        image.hole(0..0x1000);
        assert!(rsds(&image, BASE).unwrap_err().to_string().contains("cannot read the header"));
        let mut image = TestImage::new(b"x.pdb");
        image.bytes[..0x1000].fill(0);
        assert!(rsds(&image, BASE).unwrap_err().to_string().contains("only zeros"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_answer(changes in proptest::collection::vec((0usize..0x400, proptest::prelude::any::<u8>()), 0..40),
                                    tail in proptest::collection::vec((0x2000usize..0x2100, proptest::prelude::any::<u8>()), 0..20)) {
            let mut image = TestImage::new(b"x.pdb");
            for (at, byte) in changes.into_iter().chain(tail) {
                image.bytes[at] = byte;
            }
            if let Ok(identity) = rsds(&image, BASE) {
                let _ = identity.image.sections(&image);
                let _ = crate::Exports::read(&image, &identity.image, "x.sys");
            }
        }
    }
}
