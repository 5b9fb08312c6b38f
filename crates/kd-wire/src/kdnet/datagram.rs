//! One KDNET datagram.
//!
//! ```text
//!   0  4 B  "MDBG"
//!   4  u8   version
//!   5  u8   flags: bit 0 control channel, bit 1 target status, bit 2 tail in clear
//!   6  7 B  sequence, big-endian          \
//!  13  u8   bit 7 host to target, 0-3 pad  > encrypted: AES-256-CBC, the tag is the IV
//!  14  ...  body, zero padding            /
//! end-16    tag: HMAC-SHA256 over bytes 0 to 5 and the plaintext, cut to 16 bytes
//! ```

use aes::Aes256;
use aes::cipher::array::Array;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::key::{DataKey, Key};
use crate::message::Direction;

const MAGIC: &[u8; 4] = b"MDBG";
const CLEAR: usize = 6;
const TAG: usize = 16;
const METADATA: usize = 8;
/// Header, one block and the tag.
const SHORTEST: usize = CLEAR + 16 + TAG;

/// Which key seals a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Offers, responses and pings, under the user's key.
    Control,
    /// KD packets, under a key of the session.
    Data,
}

/// The part of a datagram that anybody can read, and nobody has authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the protocol.
    pub version: u8,
    /// As they stand there; see the module.
    pub flags: u8,
    /// Which key seals it.
    pub channel: Channel,
}

/// An authenticated datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Of the protocol.
    pub version: u8,
    /// As they stand there; see the module.
    pub flags: u8,
    /// Which key seals it.
    pub channel: Channel,
    /// Counts up in each direction; one that was seen is a replay.
    pub sequence: u64,
    /// Zero bytes that followed the body.
    pub pad: u8,
    /// What was sealed, without its padding.
    pub body: Bytes,
}

/// Why a datagram is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// So few bytes hold no header.
    #[error("{0} bytes are too short for KDNET")]
    Short(usize),
    /// It does not begin as KDNET does.
    #[error("it does not begin with MDBG")]
    NotKdnet,
    /// So many bytes are not what a sealed body can have.
    #[error("{0} bytes are not a whole number of cipher blocks")]
    Length(usize),
    /// A version that nobody has described.
    #[error("KDNET version {0} is unknown")]
    Version(u8),
    /// Flags that nobody has described.
    #[error("the flags {0:#04x} are unknown")]
    Flags(u8),
    /// Data, before the keys of a session are known.
    #[error("no data key is known")]
    NoDataKey,
    /// It does not authenticate: another key, or damage.
    #[error("it does not authenticate under this key")]
    Tag,
    /// Its direction is not that of whoever was to send it.
    #[error("it was sent by the other side")]
    Direction,
    /// More padding than there is body.
    #[error("{0} bytes of padding in a shorter body")]
    Padding(u8),
}

/// Reads what is not encrypted.
pub fn peek(bytes: &[u8]) -> Result<Header, Rejection> {
    if !bytes.starts_with(MAGIC) {
        return Err(Rejection::NotKdnet);
    }
    if bytes.len() < SHORTEST {
        return Err(Rejection::Short(bytes.len()));
    }
    if !(bytes.len() - CLEAR).is_multiple_of(16) {
        return Err(Rejection::Length(bytes.len()));
    }
    let (version, flags) = (bytes[4], bytes[5]);
    // 2 (Windows 8.1), 4 (Windows 10) and 5 are known; a later one is tried, because no version changed the format.
    if !matches!(version, 2 | 4..) {
        return Err(Rejection::Version(version));
    }
    if flags & !0b11 != 0 {
        return Err(Rejection::Flags(flags));
    }
    let channel = if flags & 1 == 1 { Channel::Control } else { Channel::Data };
    Ok(Header { version, flags, channel })
}

/// Decrypts and authenticates. Nothing of the result is looked at before the tag was found right.
pub fn open(key: &Key, data_key: Option<&DataKey>, from: Direction, bytes: &[u8]) -> Result<Datagram, Rejection> {
    let Header { version, flags, channel } = peek(bytes)?;
    let aes_key = match channel {
        Channel::Control => key.bytes(),
        Channel::Data => data_key.ok_or(Rejection::NoDataKey)?.bytes(),
    };
    let (clear, rest) = bytes.split_at(CLEAR);
    let (encrypted, tag) = rest.split_at(rest.len() - TAG);
    let mut plain = encrypted.to_vec();
    let mut iv = [0; TAG];
    iv.copy_from_slice(tag);
    let (blocks, _) = Array::slice_as_chunks_mut(&mut plain);
    cbc::Decryptor::<Aes256>::new(&(*aes_key).into(), &iv.into()).decrypt_blocks(blocks);
    if !bool::from(compute_tag(key, clear, &plain).ct_eq(tag)) {
        return Err(Rejection::Tag);
    }

    let from_host = plain[7] & 0x80 != 0;
    if from_host != (from == Direction::HostToTarget) {
        return Err(Rejection::Direction);
    }
    let pad = plain[7] & 0x7f;
    let Some(end) = plain.len().checked_sub(usize::from(pad)).filter(|end| *end >= METADATA && pad < 16) else {
        return Err(Rejection::Padding(pad));
    };
    let sequence = plain[..7].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let body = Bytes::from(plain).slice(METADATA..end);
    Ok(Datagram { version, flags, channel, sequence, pad, body })
}

/// What goes into a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    /// Of the protocol.
    pub version: u8,
    /// `None` is the control channel.
    pub data_key: Option<&'a DataKey>,
    /// Who sends it.
    pub from: Direction,
    /// One more than the last of this direction.
    pub sequence: u64,
    /// What is sealed.
    pub body: &'a [u8],
}

/// Makes a datagram.
pub fn seal(key: &Key, content: Sealed<'_>) -> Bytes {
    let (flags, aes_key) = match content.data_key {
        None => (1, key.bytes()),
        Some(data_key) => (0, data_key.bytes()),
    };
    let len = (METADATA + content.body.len()).next_multiple_of(16);
    let pad = (len - METADATA - content.body.len()) as u8;
    let direction = if content.from == Direction::HostToTarget { 0x80 } else { 0 };

    let mut plain = Vec::with_capacity(len);
    plain.extend_from_slice(&content.sequence.to_be_bytes()[1..]);
    plain.push(direction | pad);
    plain.extend_from_slice(content.body);
    plain.resize(len, 0);

    seal_plain(key, aes_key, content.version, flags, plain)
}

/// Encrypts and tags a plaintext that is whole blocks already.
fn seal_plain(key: &Key, aes_key: &[u8; 32], version: u8, flags: u8, mut plain: Vec<u8>) -> Bytes {
    let mut bytes = Vec::with_capacity(CLEAR + plain.len() + TAG);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[version, flags]);
    let tag = compute_tag(key, &bytes, &plain);
    let (blocks, _) = Array::slice_as_chunks_mut(&mut plain);
    cbc::Encryptor::<Aes256>::new(&(*aes_key).into(), &tag.into()).encrypt_blocks(blocks);
    bytes.extend_from_slice(&plain);
    bytes.extend_from_slice(&tag);
    bytes.into()
}

fn compute_tag(key: &Key, clear: &[u8], plain: &[u8]) -> [u8; TAG] {
    // HMAC's own key is one hash block; a shorter key is filled up with zeros.
    let mut block = Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(&*key.hmac_key());
    let mac = <Hmac<Sha256> as KeyInit>::new(&(*block).into()).chain_update(clear).chain_update(plain);
    let full = mac.finalize().into_bytes();
    std::array::from_fn(|i| full[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authentic_padding_that_does_not_fit_is_rejected() {
        let key: Key = "1.2.3.4".parse().unwrap();
        for (pad, expected) in [(8, Ok(0)), (9, Err(Rejection::Padding(9))), (16, Err(Rejection::Padding(16)))] {
            let mut plain = vec![0; 16];
            plain[7] = pad;
            let raw = seal_plain(&key, key.bytes(), 4, 1, plain);
            let opened = open(&key, None, Direction::TargetToHost, &raw).map(|datagram| datagram.body.len());
            assert_eq!(opened, expected);
        }
        let mut plain = vec![0; 32];
        plain[7] = 16;
        let raw = seal_plain(&key, key.bytes(), 4, 1, plain);
        assert_eq!(open(&key, None, Direction::TargetToHost, &raw).map(|_| ()), Err(Rejection::Padding(16)));
    }
}
