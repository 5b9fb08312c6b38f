//! Compressed files of symbol stores (`x.pd_`): a cabinet with one file in it.
//!
//! ```text
//! header    0 "MSCF"  8 size of the cabinet  10 offset of the file entries  18 1a version 1.3  1a folders  1c files
//!           1e flags: 1 there is a previous cabinet, 2 a next one, 4 reserved areas  [24 their sizes: u16 u8 u8]
//! folder    0 offset of its first block  4 blocks  6 compression: 0 none, 1 MSZIP, 3 LZX (bits 8 to 12: its window)
//! file      0 size  4 offset in its folder  8 folder  a date  c time  e attributes  10 name\0
//! block     0 checksum  4 bytes here  6 bytes expanded  8 the bytes
//! ```
//!
//! The container is read here: the readers that exist panic on damaged ones. A block of MSZIP is "CK" and a deflate
//! stream that looks back into the blocks before it.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use lzxd::{Lzxd, WindowSize};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::bytes::{u16_at, u32_at};

pub(crate) const SIGNATURE: &[u8; 4] = b"MSCF";

/// A block expands to at most this, and MSZIP looks back as far.
const BLOCK: usize = 0x8000;
/// A block that does not shrink grows by a few bytes.
const LARGEST_BLOCK: usize = BLOCK + 0x1800;

/// Why a cabinet cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum CabError {
    /// It is no cabinet, or contradicts itself; how.
    #[error("not a usable cabinet: {0}")]
    Damaged(String),
    /// The cabinet cannot be read.
    #[error("cannot read it: {0}")]
    Read(io::Error),
    /// What comes out of it cannot be written.
    #[error("cannot write the expanded file: {0}")]
    Write(io::Error),
    /// Whoever watches wants it to end.
    #[error("cancelled")]
    Cancelled,
}

fn damaged(why: impl Into<String>) -> CabError {
    CabError::Damaged(why.into())
}

fn read<const N: usize>(cabinet: &mut impl Read) -> Result<[u8; N], CabError> {
    let mut bytes = [0; N];
    fill(cabinet, &mut bytes)?;
    Ok(bytes)
}

fn fill(cabinet: &mut impl Read, bytes: &mut [u8]) -> Result<(), CabError> {
    cabinet.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => CabError::Read(error),
    })
}

enum Expander {
    Stored,
    MsZip { history: Vec<u8> },
    Lzx(Box<Lzxd>),
}

impl Expander {
    fn new(compression: u16) -> Result<Expander, CabError> {
        Ok(match compression & 0xf {
            0 => Expander::Stored,
            1 => Expander::MsZip { history: Vec::new() },
            3 => Expander::Lzx(Box::new(Lzxd::new(match compression >> 8 & 0x1f {
                15 => WindowSize::KB32,
                16 => WindowSize::KB64,
                17 => WindowSize::KB128,
                18 => WindowSize::KB256,
                19 => WindowSize::KB512,
                20 => WindowSize::MB1,
                21 => WindowSize::MB2,
                bits => return Err(damaged(format!("its window of 2^{bits} bytes is not one of LZX"))),
            }))),
            kind => return Err(damaged(format!("its compression ({kind}) is neither MSZIP nor LZX"))),
        })
    }

    fn expand(&mut self, block: &[u8], size: usize) -> Result<Vec<u8>, CabError> {
        match self {
            Expander::Stored if block.len() == size => Ok(block.to_vec()),
            Expander::Stored => Err(damaged(format!("a stored block has {} bytes instead of {size}", block.len()))),
            Expander::MsZip { history } => {
                let deflated = block.strip_prefix(b"CK").ok_or_else(|| damaged("a block has no MSZIP signature"))?;
                let start = history.len();
                let mut out = std::mem::take(history);
                out.resize(start + size, 0);
                let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let mut state = DecompressorOxide::new();
                let (status, _, written) = decompress(&mut state, deflated, &mut out, start, flags);
                if status != TINFLStatus::Done || written != size {
                    return Err(damaged("a block of MSZIP does not expand to its size"));
                }
                *history = out[out.len().saturating_sub(BLOCK)..].to_vec();
                Ok(out.split_off(start))
            }
            Expander::Lzx(lzx) => {
                // It asserts what a damaged stream does not keep. Its state is not used again after that.
                let expanded = catch_unwind(AssertUnwindSafe(|| lzx.decompress_next(block, size).map(<[u8]>::to_vec)));
                match expanded {
                    Ok(Ok(bytes)) if bytes.len() == size => Ok(bytes),
                    Ok(Err(error)) => Err(damaged(format!("a block of LZX: {error}"))),
                    Ok(Ok(_)) | Err(_) => Err(damaged("a block of LZX does not expand to its size")),
                }
            }
        }
    }
}

/// Writes the first file of a cabinet to `out`; at most `limit` bytes. `cancelled` is asked before every block.
pub fn expand(
    cabinet: &mut (impl Read + Seek),
    out: &mut impl Write,
    limit: u64,
    cancelled: impl Fn() -> bool,
) -> Result<(), CabError> {
    let header: [u8; 0x24] = read(cabinet)?;
    if header[..4] != *SIGNATURE {
        return Err(damaged("it has no \"MSCF\""));
    }
    let at16 = |bytes: &[u8], at| u16_at(bytes, at).unwrap_or(0);
    let at32 = |bytes: &[u8], at| u32_at(bytes, at).unwrap_or(0);
    let (files_at, folders, flags) = (at32(&header, 0x10), at16(&header, 0x1a), at16(&header, 0x1e));
    if at16(&header, 0x1c) == 0 {
        return Err(damaged("there is no file in it"));
    }
    if flags & 3 != 0 {
        return Err(damaged("it is a part of a set of cabinets"));
    }
    let (mut folder_extra, mut block_extra) = (0, 0);
    if flags & 4 != 0 {
        let reserved: [u8; 4] = read(cabinet)?;
        (folder_extra, block_extra) = (u64::from(reserved[2]), i64::from(reserved[3]));
        seek(cabinet, SeekFrom::Current(at16(&reserved, 0).into()))?;
    }
    let folders_at = seek(cabinet, SeekFrom::Current(0))?;

    seek(cabinet, SeekFrom::Start(files_at.into()))?;
    let file: [u8; 0x10] = read(cabinet)?;
    let (size, offset, folder) = (u64::from(at32(&file, 0)), u64::from(at32(&file, 4)), at16(&file, 8));
    if folder >= folders {
        return Err(damaged(format!("its file lies in folder {folder} of {folders}")));
    }
    if size > limit {
        return Err(damaged(format!("its file is said to have {size} bytes, and {limit} are allowed")));
    }

    seek(cabinet, SeekFrom::Start(folders_at + u64::from(folder) * (8 + folder_extra)))?;
    let folder: [u8; 8] = read(cabinet)?;
    let mut expander = Expander::new(at16(&folder, 6))?;
    seek(cabinet, SeekFrom::Start(at32(&folder, 0).into()))?;
    let mut position = 0;
    let mut compressed = vec![0; LARGEST_BLOCK];
    for _ in 0..at16(&folder, 4) {
        if position >= offset + size {
            break;
        }
        if cancelled() {
            return Err(CabError::Cancelled);
        }
        let block: [u8; 8] = read(cabinet)?;
        seek(cabinet, SeekFrom::Current(block_extra))?;
        let (length, expanded) = (usize::from(at16(&block, 4)), usize::from(at16(&block, 6)));
        if length > LARGEST_BLOCK || expanded > BLOCK || expanded == 0 {
            return Err(damaged(format!("a block of {length:#x} bytes is said to expand to {expanded:#x}")));
        }
        let compressed = &mut compressed[..length];
        fill(cabinet, compressed)?;
        let bytes = expander.expand(compressed, expanded)?;
        let skip = offset.saturating_sub(position).min(bytes.len() as u64) as usize;
        let end = (offset + size - position).min(bytes.len() as u64) as usize;
        out.write_all(bytes.get(skip..end).unwrap_or_default()).map_err(CabError::Write)?;
        position += bytes.len() as u64;
    }
    if position < offset + size {
        return Err(damaged(format!("its blocks hold {position} bytes of {}", offset + size)));
    }
    Ok(())
}

fn seek(cabinet: &mut impl Seek, to: SeekFrom) -> Result<u64, CabError> {
    cabinet.seek(to).map_err(CabError::Read)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::testing::cabinet;

    fn expanded(bytes: &[u8]) -> Result<Vec<u8>, CabError> {
        let mut out = Vec::new();
        expand(&mut Cursor::new(bytes), &mut out, 1 << 20, || false).map(|()| out)
    }

    /// Repeats itself over more than a block, so that MSZIP looks back.
    fn text() -> Vec<u8> {
        (0..100_000u32).flat_map(|n| (n % 5003).to_le_bytes()).take(150_000).collect()
    }

    #[test]
    fn mszip_looks_back_over_blocks() {
        let cab = cabinet(&text());
        assert!(cab.len() < 60_000, "{}", cab.len());
        assert_eq!(expanded(&cab).unwrap(), text());
    }

    /// Made by Microsoft's makecab (from the tests of the cab crate, MIT): the first of two files.
    #[test]
    fn lzx() {
        let cab = b"\x4d\x53\x43\x46\x00\x00\x00\x00\x97\x00\x00\x00\x00\x00\x00\
            \x00\x2c\x00\x00\x00\x00\x00\x00\x00\x03\x01\x01\x00\x02\x00\
            \x00\x00\x2d\x05\x00\x00\x5b\x00\x00\x00\x01\x00\x03\x13\x0f\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x21\x53\x0d\xb2\x20\x00\
            \x68\x69\x2e\x74\x78\x74\x00\x10\x00\x00\x00\x0f\x00\x00\x00\
            \x00\x00\x21\x53\x0b\xb2\x20\x00\x62\x79\x65\x2e\x74\x78\x74\
            \x00\x5c\xef\x2a\xc7\x34\x00\x1f\x00\x5b\x80\x80\x8d\x00\x30\
            \xf0\x01\x10\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x48\
            \x65\x6c\x6c\x6f\x2c\x20\x77\x6f\x72\x6c\x64\x21\x0d\x0a\x53\
            \x65\x65\x20\x79\x6f\x75\x20\x6c\x61\x74\x65\x72\x21\x0d\x0a\
            \x00";
        assert_eq!(expanded(cab).unwrap(), b"Hello, world!\r\n");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let good = cabinet(&text());
        for (at, value, why) in [
            (0, 0, "no \"MSCF\""),
            (0x1c, 0, "no file in it"),
            (0x1e, 2, "part of a set"),
            (0x2a, 2, "neither MSZIP nor LZX"),
            (0x2c + 3, 1, "are allowed"),
            (0x2c + 8, 7, "folder 7 of 1"),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let error = expanded(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(expanded(&good[..good.len() - 1]).unwrap_err().to_string().contains("too early"));
        let cancelled = expand(&mut Cursor::new(&good), &mut Vec::new(), 1 << 20, || true);
        assert!(matches!(cancelled, Err(CabError::Cancelled)));
    }

    proptest::proptest! {
        #[test]
        fn damage_ends_in_an_answer(
            changes in proptest::collection::vec((0usize..0x97, proptest::prelude::any::<u8>()), 1..8), lzx: bool,
        ) {
            let mut bytes = cabinet(&text());
            if lzx {
                bytes[0x2a..0x2c].copy_from_slice(&[3, 15]);
            }
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = expanded(&bytes);
        }
    }
}
