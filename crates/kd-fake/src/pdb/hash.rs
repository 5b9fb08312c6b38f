//! The hashes of PDB tables.

/// The hash of names, `LHashPbCb`.
pub(crate) fn name(name: &str) -> u32 {
    let mut hash = 0;
    let mut words = name.as_bytes().chunks_exact(4);
    for word in &mut words {
        hash ^= u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    }
    let mut rest = words.remainder();
    if let [low, high, more @ ..] = rest {
        hash ^= u32::from(u16::from_le_bytes([*low, *high]));
        rest = more;
    }
    if let [last] = rest {
        hash ^= u32::from(*last);
    }
    hash |= 0x2020_2020;
    hash ^= hash >> 11;
    hash ^ hash >> 16
}

/// The hash of type records that have no name: CRC-32 without its inversions.
pub(crate) fn record(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
