#![doc = include_str!("../README.md")]
//!
//! The Windows kernel debugger's wire protocols, without sockets or clocks.
//!
//! * [`packet`]: the packets that serial lines and KDNET share, and how to find them in a byte stream.
//! * [`message`]: what the packets carry.
//! * [`kdnet`]: the encrypted datagrams that carry packets over UDP.
//! * [`session`]: the two ends of a connection: acknowledgements, retransmission, attaching.
//! * [`dissect`]: recorded traffic, explained.

pub mod dissect;
pub mod kdnet;
pub mod message;
pub mod packet;
pub mod session;
