//! What ties an image to its PDB, and the PDB's name as far as it can be trusted.

use std::fmt;

/// GUID and age: together they name one build of one PDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PdbId {
    /// The GUID's digits in the order in which they are written.
    pub guid: u128,
    /// How often the PDB was written since it was linked; part of its key in a store.
    pub age: u32,
}

impl PdbId {
    /// From a GUID as it lies in memory: three little-endian integers and eight bytes.
    pub fn from_memory(guid: [u8; 16], age: u32) -> PdbId {
        let mut b = guid;
        b[0..4].reverse();
        b[4..6].reverse();
        b[6..8].reverse();
        PdbId { guid: u128::from_be_bytes(b), age }
    }

    /// The directory's name in a symbol store: the GUID's digits, then the age, all hexadecimal.
    pub fn store_key(&self) -> String {
        format!("{:032X}{:X}", self.guid, self.age)
    }

    /// The file name that ISF packs use, without its extension.
    pub fn isf_key(&self) -> String {
        format!("{:032X}-{}", self.guid, self.age)
    }
}

impl fmt::Display for PdbId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032X} age {}", self.guid, self.age)
    }
}

/// Why a file name from the target is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPdbName {
    /// There is no name.
    #[error("it is empty")]
    Empty,
    /// Its bytes are no UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// So many bytes are no file's name.
    #[error("it is {0} bytes long, and 255 are allowed")]
    TooLong(usize),
    /// A character that a file's name must not have: a separator, or a control character.
    #[error("it holds the character {0:?}")]
    Character(char),
    /// A device's name on Windows, `CON` and its like.
    #[error("{0} names a device or a directory, or ends in a dot or a space")]
    Reserved(String),
}

/// The last component of a path that the target gave, if it is a harmless file name on every system.
pub fn safe_file_name(raw: &[u8]) -> Result<String, BadPdbName> {
    let last = raw.rsplit(|b| matches!(b, b'\\' | b'/')).next().unwrap_or(raw);
    if last.is_empty() {
        return Err(BadPdbName::Empty);
    }
    if last.len() > 255 {
        return Err(BadPdbName::TooLong(last.len()));
    }
    let name = std::str::from_utf8(last).map_err(|_| BadPdbName::NotUtf8)?;
    if let Some(bad) = name.chars().find(|c| c.is_control() || "<>:\"|?*".contains(*c)) {
        return Err(BadPdbName::Character(bad));
    }
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_uppercase();
    let device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" | "CLOCK$")
        || ["COM", "LPT"].iter().any(|port| {
            stem.strip_prefix(port).is_some_and(|n| {
                let mut digits = n.chars();
                matches!((digits.next(), digits.next()), (Some('0'..='9' | '¹' | '²' | '³'), None))
            })
        });
    if device || name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err(BadPdbName::Reserved(name.to_owned()));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_component_of_a_name_counts() {
        for (raw, name) in [
            ("ntkrnlmp.pdb", "ntkrnlmp.pdb"),
            (r"..\..\x.pdb", "x.pdb"),
            (r"C:\build\obj\x.pdb", "x.pdb"),
            ("/etc/x.pdb", "x.pdb"),
            ("ünï.pdb", "ünï.pdb"),
            ("console.pdb", "console.pdb"),
            ("com10.pdb", "com10.pdb"),
        ] {
            assert_eq!(safe_file_name(raw.as_bytes()), Ok(name.to_owned()), "{raw}");
        }
    }

    #[test]
    fn names_that_leave_the_store_are_refused() {
        for raw in [
            "",
            "x\\",
            "..",
            r"a\..",
            ".",
            "CON",
            "nul.pdb",
            "COM1.pdb",
            "lpt9",
            "aux .pdb",
            "com².pdb",
            "x.pdb.",
            "x.pdb ",
            "C:x.pdb",
            "x.pdb:stream",
            "a\nb",
            "a*b",
            "\u{7f}x",
        ] {
            assert!(safe_file_name(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert_eq!(safe_file_name(b"\xff\xfe.pdb"), Err(BadPdbName::NotUtf8));
        assert_eq!(safe_file_name(&[b'a'; 65536]), Err(BadPdbName::TooLong(65536)));
    }

    #[test]
    fn a_guid_in_memory_is_written_in_another_order() {
        let bytes = [0x33, 0x41, 0xe7, 0x39, 0x57, 0x33, 0x43, 0x76, 0x9c, 0xbc, 0xdf, 0x7e, 0x02, 0x29, 0xda, 0x37];
        let id = PdbId::from_memory(bytes, 0x1a);
        assert_eq!(id.store_key(), "39E74133335776439CBCDF7E0229DA371A");
        assert_eq!(id.isf_key(), "39E74133335776439CBCDF7E0229DA37-26");
    }
}
