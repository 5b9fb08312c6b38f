//! KDNET: KD packets in encrypted, authenticated UDP datagrams.

mod control;
mod datagram;
mod key;

pub use control::{OFFER_SIZE, Offer, Ping, RESPONSE_SIZE, Response};
pub use datagram::{Channel, Datagram, Header, Rejection, Sealed, open, peek, seal};
pub use key::{DataKey, Key, KeyError};
