//! What a block looks like: its pool header and a digest of its first bytes. Weak evidence, both.

use nt_memory::{Fault, ReadError};
use nt_pool::Kernel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::snapshot::Block;

/// Blocks of one mark whose looks are kept; each costs a request.
pub(crate) const MAX_PRINTS: usize = 256;

/// Bytes of a block that are looked at.
const FIRST_BYTES: u64 = 64;

/// The pool header of a small block, byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    #[serde(with = "crate::hex")]
    pub address: u64,
    bytes: String,
}

impl Header {
    /// `None` when it cannot be read.
    pub(crate) fn read(kernel: &Kernel<'_>, address: u64) -> Result<Option<Self>, Fault> {
        let mut bytes = vec![0; 2 * usize::from(kernel.pointer_size)];
        Ok(whole(kernel, address, &mut bytes)?.then(|| Header { address, bytes: hexadecimal(&bytes) }))
    }
}

/// A digest of the bytes that a block begins with; `None` when they cannot be read.
pub(crate) fn first_bytes(kernel: &Kernel<'_>, block: &Block) -> Result<Option<String>, Fault> {
    let mut bytes = vec![0; block.size.min(FIRST_BYTES) as usize];
    let read = whole(kernel, block.address, &mut bytes)?;
    Ok(read.then(|| hexadecimal(&Sha256::digest(&bytes)[..8])))
}

fn whole(kernel: &Kernel<'_>, address: u64, bytes: &mut [u8]) -> Result<bool, Fault> {
    match kernel.memory.read_exact(address, bytes) {
        Ok(()) => Ok(!bytes.is_empty()),
        Err(ReadError::Fault(fault)) => Err(fault),
        Err(_) => Ok(false),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
