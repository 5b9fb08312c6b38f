//! The key that both ends of KDNET share.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// `w.x.y.z`: four numbers in base 36, each stored as a little-endian u64.
///
/// Never printed: whoever knows it can decrypt every session recorded with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<[u8; 32]>);

/// Why a key is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It has so many parts instead of four.
    #[error("a key has four parts (w.x.y.z), not {0}")]
    Parts(usize),
    /// This part, from 1, is empty.
    #[error("part {0} of the key is empty")]
    Empty(usize),
    /// This part, from 1, has a character that is no base-36 digit.
    #[error("part {0} of the key has a character that is neither a letter a-z nor a digit")]
    Character(usize),
    /// This part, from 1, is larger than 64 bits.
    #[error("part {0} of the key is larger than 3w5e11264sgsf (64 bits)")]
    TooLarge(usize),
    /// All of it is zero, which KDNET refuses.
    #[error("a key of zeros is not accepted by targets")]
    Zero,
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let count = text.split('.').count();
        if count != 4 {
            return Err(KeyError::Parts(count));
        }
        let mut key = Key(Zeroizing::new([0; 32]));
        for (index, part) in text.split('.').enumerate() {
            let position = index + 1;
            if part.is_empty() {
                return Err(KeyError::Empty(position));
            }
            let mut number = 0u64;
            for character in part.chars() {
                let digit = character.to_digit(36).ok_or(KeyError::Character(position))?;
                number = number
                    .checked_mul(36)
                    .and_then(|number| number.checked_add(u64::from(digit)))
                    .ok_or(KeyError::TooLarge(position))?;
            }
            key.0[8 * index..8 * index + 8].copy_from_slice(&number.to_le_bytes());
        }
        if *key.0 == [0; 32] { Err(KeyError::Zero) } else { Ok(key) }
    }
}

impl Key {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Authenticates both channels: every bit of the key inverted.
    pub(super) fn hmac_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.map(|byte| !byte))
    }

    /// The data channel's key after `response` was accepted: SHA-256 over this key and the response's whole body.
    pub fn data_key(&self, response: &[u8]) -> DataKey {
        let digest = Sha256::new().chain_update(self.bytes()).chain_update(response).finalize();
        DataKey(Zeroizing::new(digest.into()))
    }
}

/// Encrypts the data channel until the next response.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl DataKey {
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(hidden)")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> String {
        hex::encode(text.parse::<Key>().unwrap().bytes())
    }

    #[test]
    fn parts_are_base_36_little_endian() {
        assert_eq!(key("8.8.8.8"), "0800000000000000".repeat(4));
        assert_eq!(key("1.1.1.1"), "0100000000000000".repeat(4));
        let expected = "a8929c04000000002300000000000000ce51e5df49340000ffffffffffffffff";
        assert_eq!(key("1a2b3c.z.kdnet2026.3w5e11264sgsf"), expected);
        assert_eq!(key("1A2B3C.Z.KDNET2026.3W5E11264SGSF"), expected);
    }

    #[test]
    fn bad_keys_say_what_is_wrong() {
        let error = |text: &str| text.parse::<Key>().unwrap_err();
        assert_eq!(error("1.2.3"), KeyError::Parts(3));
        assert_eq!(error("1.2.3.4.5"), KeyError::Parts(5));
        assert_eq!(error("1..3.4"), KeyError::Empty(2));
        assert_eq!(error("1.2.3.!"), KeyError::Character(4));
        assert_eq!(error("1.2.3.3w5e11264sgsg"), KeyError::TooLarge(4));
        assert_eq!(error("0.0.0.0"), KeyError::Zero);
        assert_eq!(error(""), KeyError::Parts(1));
    }

    #[test]
    fn the_hmac_key_is_the_key_inverted() {
        assert_eq!(hex::encode("8.8.8.8".parse::<Key>().unwrap().hmac_key()), "f7ffffffffffffff".repeat(4));
    }

    #[test]
    fn debug_output_hides_keys() {
        let key: Key = "8.8.8.8".parse().unwrap();
        assert_eq!(format!("{key:?} {:?}", key.data_key(b"")), "Key(hidden) DataKey(hidden)");
    }
}
