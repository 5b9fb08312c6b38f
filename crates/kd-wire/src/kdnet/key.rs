//! The key that both ends of KDNET share.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// `w.x.y.z`: four numbers in base 36, each stored as a little-endian u64.
///
/// Never printed: whoever knows it can decrypt every session recorded with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<[u8; 32]>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key has four parts (w.x.y.z), not {0}")]
    Parts(usize),
    #[error("part {0} of the key is empty")]
    Empty(usize),
    #[error("part {0} of the key has a character that is neither a letter a-z nor a digit")]
    Character(usize),
    #[error("part {0} of the key is larger than 3w5e11264sgsf (64 bits)")]
    TooLarge(usize),
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
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}
