//! The drivers that are verified, loaded or not.
//!
//! Vista keeps one list, `nt!MiSuspectDriverList`, of entries that hold everything. Later versions keep names and load
//! counts in `nt!VfSuspectDriversList`, and loaded images in a forest of AVL trees, `nt!ViTargetDriversAvl`, whose
//! nodes (`_VF_TARGET_DRIVER`) lead to the counters of a verified image (`_VF_TARGET_VERIFIED_DRIVER_DATA`).

use std::collections::HashSet;
use std::ops::Range;

use super::Counters;
use crate::lists::{elements, links_at, note, pointer_at, slist_first, unicode_string};
use crate::record::{Member, Record};
use crate::table::{entries, note_holes, read_table};
use crate::{Kernel, Notes, PoolError};

/// kd's words for what happened to a driver since the machine started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It is there, and never left.
    Loaded,
    /// It left.
    Unloaded,
    /// It came back after it was unloaded.
    LoadedAndUnloaded,
    /// It is to be verified, and did not come yet.
    NeverLoaded,
}

/// A driver that is verified, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// `_VF_TARGET_DRIVER` of a loaded one, else its entry in the list of names.
    pub entry: u64,
    /// Empty when it could not be read.
    pub name: String,
    /// How often it came since the machine started.
    pub loads: u32,
    /// How often it left.
    pub unloads: u32,
    /// Where the image lies, or lay when the kernel still keeps what an unloaded driver left behind; else unknown.
    pub image: Option<Range<u64>>,
    /// Empty for a driver of which the kernel keeps nothing but the name.
    pub counters: Counters,
    /// What the driver's tracking pages name as their owner, and the first of them.
    pub(super) tracking: Option<(u64, u64)>,
}

impl State {
    /// As kd says it.
    pub fn words(self) -> &'static str {
        match self {
            State::Loaded => "Loaded",
            State::Unloaded => "Unloaded",
            State::LoadedAndUnloaded => "Loaded and Unloaded",
            State::NeverLoaded => "Never Loaded",
        }
    }
}

impl Driver {
    /// What its loads and unloads say.
    pub fn state(&self) -> State {
        match (self.loads, self.unloads) {
            (0, _) => State::NeverLoaded,
            (_, 0) => State::Loaded,
            (loads, unloads) if loads > unloads => State::LoadedAndUnloaded,
            _ => State::Unloaded,
        }
    }
}

/// The drivers that are verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drivers {
    /// In the order of the kernel's list of names.
    pub drivers: Vec<Driver>,
    /// What is missing, and what is worth saying.
    pub notes: Notes,
}

/// Trees of the forest; it has some dozens.
const MAX_TREES: u64 = 0x1000;

/// Nodes of one tree: no kernel has so many drivers.
const MAX_NODES: usize = 0x1_0000;

/// Whether the verifier has any driver to verify; costs one small read.
pub fn any_driver(kernel: &Kernel<'_>) -> Result<bool, PoolError> {
    let head = match kernel.find_symbol("MiSuspectDriverList") {
        Some(head) => head,
        None => kernel.symbol("VfSuspectDriversList")?,
    };
    let first = pointer_at(kernel, head)?;
    Ok(first != 0 && first != head)
}

/// Every driver the verifier knows by name, with its counters if it is loaded.
pub fn drivers(kernel: &Kernel<'_>) -> Result<Drivers, PoolError> {
    let mut found = Drivers::default();
    if let Some(head) = kernel.find_symbol("MiSuspectDriverList") {
        suspects(kernel, head, "MiSuspectDriverList", "_MI_VERIFIER_DRIVER_ENTRY", &mut found)?;
        return Ok(found);
    }
    let head = kernel.symbol("VfSuspectDriversList")?;
    suspects(kernel, head, "VfSuspectDriversList", "_VF_SUSPECT_DRIVER_ENTRY", &mut found)?;
    if any_driver(kernel)?
        && let Err(error) = targets(kernel, &mut found)
    {
        note(&mut found.notes, "the loaded drivers' counters are missing", error)?;
    }
    Ok(found)
}

/// A list of names and load counts; Vista's entries hold the counters as well.
fn suspects(kernel: &Kernel<'_>, head: u64, list: &str, type_name: &str, found: &mut Drivers) -> Result<(), PoolError> {
    let record = Record::new(kernel, type_name)?;
    let links = record.place("Links")?;
    let (loads, unloads) = (record.find("Loads"), record.find("Unloads"));
    let image = record.find("StartAddress").zip(record.find("EndAddress"));
    let Drivers { drivers, notes } = found;
    *drivers = elements(kernel, &format!("nt!{list}"), head, notes, &mut |link, notes| {
        let entry = link.wrapping_sub(links as u64);
        let bytes = record.read(entry)?;
        let name = match unicode_string(kernel, &record, &bytes, "BaseName") {
            Ok(name) => name,
            Err(error) => {
                note(notes, &format!("the name of the driver whose entry is {entry:016x}"), error)?;
                String::new()
            }
        };
        let get = |member: Option<Member>| member.map_or(0, |member| member.get(&bytes));
        let pages = record.place("PoolPageHeaders").ok().and_then(|at| slist_first(kernel, &bytes, at));
        let driver = Driver {
            entry,
            name,
            loads: get(loads) as u32,
            unloads: get(unloads) as u32,
            image: image.map(|(start, end)| start.get(&bytes)..end.get(&bytes)).filter(|image| image.start != 0),
            counters: pages.map(|_| Counters::new(&record, &bytes)).unwrap_or_default(),
            tracking: pages.map(|pages| (entry, pages)),
        };
        Ok((driver, links_at(kernel, &bytes, links)))
    })?;
    Ok(())
}

/// Completes the drivers with what the forest of loaded images says.
fn targets(kernel: &Kernel<'_>, found: &mut Drivers) -> Result<(), PoolError> {
    let tree = Record::new(kernel, "_VF_AVL_TREE")?;
    let table = Record::new(kernel, "_VF_AVL_TABLE")?;
    let root = table.member("RtlTable.BalancedRoot.RightChild")?;
    let bytes = tree.read(kernel.symbol("ViTargetDriversAvl")?)?;
    let address = tree.member("Tables")?.get(&bytes);
    let count = tree.member("TablesNo")?.get(&bytes);
    if !kernel.is_kernel_address(address) || count > MAX_TREES {
        return Err(PoolError::Unlikely(format!(
            "nt!ViTargetDriversAvl has {count:#x} trees at {address:016x}, which is not plausible (at most {MAX_TREES:#x})"
        )));
    }
    let tables = read_table(kernel, address, count as usize * table.size)?;
    note_holes(&mut found.notes, "nt!ViTargetDriversAvl", &tables);
    let walk = Walk {
        kernel,
        links: Record::new(kernel, "_RTL_BALANCED_LINKS")?,
        target: Record::new(kernel, "_VF_TARGET_DRIVER")?,
        data: Record::new(kernel, "_VF_TARGET_VERIFIED_DRIVER_DATA")?,
    };
    let mut seen = HashSet::new();
    for table in entries(&tables, table.size).flatten() {
        walk.tree(root.get(table), &mut seen, found)?;
    }
    Ok(())
}

struct Walk<'k> {
    kernel: &'k Kernel<'k>,
    links: Record<'k>,
    target: Record<'k>,
    data: Record<'k>,
}

impl Walk<'_> {
    fn tree(&self, root: u64, seen: &mut HashSet<u64>, found: &mut Drivers) -> Result<(), PoolError> {
        let left = self.links.member("LeftChild")?;
        let right = self.links.member("RightChild")?;
        let mut pending = vec![root];
        let mut strays = Vec::new();
        while let Some(node) = pending.pop() {
            if node == 0 {
                continue;
            }
            if !self.kernel.is_kernel_address(node) || seen.len() >= MAX_NODES || !seen.insert(node) {
                strays.push(node);
                continue;
            }
            let mut bytes = vec![0; self.links.size + self.target.size];
            if let Err(error) = self.kernel.memory.read_exact(node, &mut bytes) {
                note(&mut found.notes, "nt!ViTargetDriversAvl: drivers are missing", error)?;
                continue;
            }
            let (links, target) = bytes.split_at(self.links.size);
            pending.extend([left.get(links), right.get(links)]);
            let entry = node.wrapping_add(self.links.size as u64);
            if let Err(error) = self.driver(entry, target, found) {
                note(&mut found.notes, &format!("the driver whose entry is {entry:016x}"), error)?;
            }
        }
        if let [first, more @ ..] = &strays[..] {
            let others =
                if more.is_empty() { String::new() } else { format!(" and to {} more such places", more.len()) };
            found.notes.missing(format!(
                "nt!ViTargetDriversAvl: a tree leads to {first:016x}, which is no kernel address or was there \
                 before{others}; drivers may be missing"
            ));
        }
        Ok(())
    }

    fn driver(&self, entry: u64, target: &[u8], found: &mut Drivers) -> Result<(), PoolError> {
        let data = self.target.member("VerifiedData")?.get(target);
        if data == 0 {
            // A loaded image that is not verified.
            return Ok(());
        }
        if !self.kernel.is_kernel_address(data) {
            return Err(PoolError::Unlikely(format!("its data would lie at {data:016x}, which is no kernel address")));
        }
        let bytes = self.data.read(data)?;
        let suspect = self.data.member("SuspectDriverEntry")?.get(&bytes);
        let node = |name: &str| {
            let inner = self.target.find(&format!("TreeNode.{name}"));
            inner.or_else(|| self.target.find(&format!("TreeNode.Base.{name}"))).map(|member| member.get(target))
        };
        let image = node("p").map(|start| start..start.saturating_add(node("RangeSize").unwrap_or(0)));
        let pages = self.data.place("PoolPageHeaders").ok().and_then(|at| slist_first(self.kernel, &bytes, at));
        let counters = Counters::new(&self.data, &bytes);
        let tracking = pages.map(|pages| (data, pages));
        let named = found.drivers.iter_mut().find(|driver| driver.entry == suspect);
        match named {
            Some(driver) => {
                (driver.entry, driver.image, driver.counters, driver.tracking) = (entry, image, counters, tracking);
            }
            None => {
                // Its name's entry is not in the list (any more): what it allocated is still there.
                let (name, loads, unloads) = match self.named(suspect) {
                    Ok(named) => named,
                    Err(error) => {
                        let what = format!("the name of the driver whose entry is {entry:016x}");
                        note(&mut found.notes, &what, error)?;
                        // It is in the tree of loaded images: it was loaded.
                        (String::new(), 1, 0)
                    }
                };
                found.drivers.push(Driver { entry, name, loads, unloads, image, counters, tracking });
            }
        }
        Ok(())
    }

    /// Name, loads and unloads of a `_VF_SUSPECT_DRIVER_ENTRY`.
    fn named(&self, suspect: u64) -> Result<(String, u32, u32), PoolError> {
        if !self.kernel.is_kernel_address(suspect) {
            return Err(PoolError::Unlikely(format!("it would lie at {suspect:016x}, which is no kernel address")));
        }
        let names = Record::new(self.kernel, "_VF_SUSPECT_DRIVER_ENTRY")?;
        let bytes = names.read(suspect)?;
        let get = |name| names.find(name).map_or(0, |member| member.get(&bytes) as u32);
        Ok((unicode_string(self.kernel, &names, &bytes, "BaseName")?, get("Loads"), get("Unloads")))
    }
}
