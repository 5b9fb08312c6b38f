//! `nt!MmVerifierData`: what is verified, and how often it was.

use super::Counters;
use crate::kernel::Variable;
use crate::lists;
use crate::record::Record;
use crate::{Kernel, Notes, PoolError};

/// What Driver Verifier is set to, and what it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The option bits; [`super::flags`] names them. 0: nothing is verified.
    pub level: u32,
    /// `_MM_DRIVER_VERIFIER_DATA`, `Level` among them.
    pub counters: Counters,
    /// `nt!VfOptionFlags` (Windows 7 and later). Bit 1: the pool log keeps no stacks; bit 6: the IRQL log neither.
    pub option_flags: Option<u32>,
    /// `nt!KernelVerifier`: the kernel itself is verified.
    pub kernel_verified: Option<bool>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// Reads level, counters and options.
pub fn settings(kernel: &Kernel<'_>) -> Result<Settings, PoolError> {
    let record = Record::new(kernel, "_MM_DRIVER_VERIFIER_DATA")?;
    let level = record.member("Level")?;
    let bytes = record.read(kernel.symbol("MmVerifierData")?)?;
    let mut notes = Notes::default();
    let mut optional = |name: &str| -> Result<Option<u32>, PoolError> {
        let Some(address) = kernel.find_symbol(name) else { return Ok(None) };
        match kernel.gather(&[Variable { address, size: 4 }])?.remove(0) {
            Ok(value) => Ok(Some(value as u32)),
            Err(error) => {
                lists::note(&mut notes, &format!("nt!{name}"), error)?;
                Ok(None)
            }
        }
    };
    let option_flags = optional("VfOptionFlags")?;
    let kernel_verified = optional("KernelVerifier")?.map(|value| value != 0);
    Ok(Settings {
        level: level.get(&bytes) as u32,
        counters: Counters::new(&record, &bytes),
        option_flags,
        kernel_verified,
        notes,
    })
}
