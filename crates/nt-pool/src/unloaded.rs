//! `nt!MmUnloadedDrivers`: where drivers lay that are gone, so that old stacks still have names.
//!
//! The kernel remembers 50 of them in a ring; `nt!MmLastUnloadedDriver` is the slot that is written next.

use std::ops::Range;

use nt_symbols::{Field, Layout};

use crate::kernel::Variable;
use crate::lists::{note, unicode_string};
use crate::record::{Member, Record};
use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, Notes, PoolError};

/// Slots of the ring, in every version (`MI_UNLOADED_DRIVERS`).
const SLOTS: usize = 50;

/// A driver that was unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnloadedDriver {
    /// Where its image lay.
    pub image: Range<u64>,
    /// Its slot, whose name is read when it is wanted.
    slot: Vec<u8>,
}

/// The drivers that were unloaded, as far as the kernel remembers them: some fifty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnloadedDrivers {
    /// The last one first: where two lay at the same place, it is the one to name.
    pub drivers: Vec<UnloadedDriver>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// The drivers that the kernel remembers; costs some three small reads.
pub fn drivers(kernel: &Kernel<'_>) -> Result<UnloadedDrivers, PoolError> {
    let mut found = UnloadedDrivers::default();
    let variables = [kernel.find_symbol("MmUnloadedDrivers"), kernel.find_symbol("MmLastUnloadedDriver")];
    let [Some(table), Some(next)] = variables else { return Ok(found) };
    let values = kernel
        .gather(&[Variable { address: table, size: kernel.pointer_size }, Variable { address: next, size: 4 }])?
        .into_iter()
        .collect::<Result<Vec<u64>, _>>()?;
    let [table, next] = [values[0], values[1]];
    if table == 0 {
        return Ok(found);
    }
    let record = record(kernel)?;
    if !kernel.is_kernel_range(table, (SLOTS * record.size) as u64) {
        return Err(PoolError::Unlikely(format!(
            "nt!MmUnloadedDrivers holds {table:016x}, which is no table in kernel memory"
        )));
    }
    let (start, end) = (record.member("StartAddress")?, record.member("EndAddress")?);
    let bytes = read_table(kernel, table, SLOTS * record.size)?;
    note_holes(&mut found.notes, "nt!MmUnloadedDrivers", &bytes);
    let slots: Vec<Option<&[u8]>> = entries(&bytes, record.size).collect();
    for age in 1..=SLOTS {
        let Some(slot) = slots[(next as usize % SLOTS + SLOTS - age) % SLOTS] else { continue };
        let image = image(kernel, start, slot)..image(kernel, end, slot);
        if kernel.is_kernel_address(image.start) && image.start < image.end {
            found.drivers.push(UnloadedDriver { image, slot: slot.to_vec() });
        }
    }
    Ok(found)
}

fn image(kernel: &Kernel<'_>, member: Member, slot: &[u8]) -> u64 {
    kernel.wrap(member.get(slot))
}

impl UnloadedDriver {
    /// The name of its file; costs one small read.
    pub fn name(&self, kernel: &Kernel<'_>) -> Result<String, PoolError> {
        unicode_string(kernel, &record(kernel)?, &self.slot, "Name")
    }
}

impl UnloadedDrivers {
    /// What lay at `address`: the driver's name and image.
    pub fn at(&mut self, kernel: &Kernel<'_>, address: u64) -> Result<Option<(String, Range<u64>)>, PoolError> {
        let Some(driver) = self.drivers.iter().find(|driver| driver.image.contains(&address)) else { return Ok(None) };
        match driver.name(kernel) {
            Ok(name) => Ok(Some((name, driver.image.clone()))),
            Err(error) => {
                let what = format!("the name of the unloaded driver at {:016x}", driver.image.start);
                note(&mut self.notes, &what, error)?;
                Ok(None)
            }
        }
    }
}

/// Few symbol files have the type (`_UNLOADED_DRIVERS`); it is the same in every version:
///
/// ```text
///        64-bit  32-bit
/// Name       00      00   _UNICODE_STRING
/// StartAddress
///            10      08
/// EndAddress 18      0c
/// CurrentTime
///            20      10   100 ns since 1601
/// size       28      18
/// ```
fn record<'k>(kernel: &'k Kernel<'k>) -> Result<Record<'k>, PoolError> {
    if let Some(layout) = kernel.symbols.layout("_UNLOADED_DRIVERS") {
        return Record::of(kernel, layout);
    }
    let pointer = u64::from(kernel.pointer_size);
    let field = |name: &str, place: u64, size: u64, type_name: &str| Field {
        name: name.into(),
        offset: place,
        size,
        bits: None,
        array: None,
        pointers: 0,
        type_name: type_name.into(),
    };
    let fields = vec![
        field("Name", 0, 2 * pointer, "_UNICODE_STRING"),
        field("StartAddress", 2 * pointer, pointer, "void"),
        field("EndAddress", 3 * pointer, pointer, "void"),
    ];
    let layout = Layout { name: "of nt!MmUnloadedDrivers".into(), size: 4 * pointer + 8, fields };
    Record::of(kernel, layout.into())
}
