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

/// CRC-32 of each byte.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The hash of type records that have no name: CRC-32 without its inversions.
pub(crate) fn record(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc: u32, byte| crc >> 8 ^ CRC[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_record_hash_is_crc_32_of_the_check_string() {
        // CRC-32 of "123456789" is cbf43926: with its start value folded into the text and its end inverted.
        let mut text = *b"123456789";
        text[..4].iter_mut().for_each(|byte| *byte = !*byte);
        assert_eq!(!super::record(&text), 0xcbf4_3926);
    }
}
