//! KDNET: KD packets in encrypted, authenticated UDP datagrams.

mod key;

pub use key::{Key, KeyError};
