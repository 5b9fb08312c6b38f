//! Call stacks, apart from the addresses that a driver happened to be loaded at.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use nt_memory::Fault;
use nt_pool::pool_log::{self, Trace};
use nt_symbols::matches_glob;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A loaded image.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Module {
    /// Where its image lies.
    #[serde(with = "crate::hex")]
    #[schemars(schema_with = "crate::hex::schema")]
    pub base: u64,
    /// Bytes of its image.
    pub size: u32,
    /// kd's short name: `nt`, `myfault`.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub name: String,
    /// `myfault.sys`
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::line::deserialize")]
    pub file: Option<String>,
    /// Of its image's header.
    pub checksum: u32,
    /// Of its image's header.
    #[serde(default)]
    pub timestamp: u32,
    /// A stack leads there, and its header was asked what its symbols are found by.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_stack: bool,
    /// The PDB that its image names.
    #[serde(default)]
    pub pdb: Option<PdbName>,
}

impl Module {
    /// A module of which no more is known.
    pub fn new(base: u64, size: u32, name: impl Into<String>) -> Self {
        Module { base, size, name: name.into(), file: None, checksum: 0, timestamp: 0, in_stack: false, pdb: None }
    }
}

/// One build of one PDB.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PdbName {
    /// `myfault.pdb`.
    #[serde(deserialize_with = "crate::line::deserialize")]
    pub file: String,
    /// 32 hexadecimal digits.
    pub guid: String,
    /// How often it was written since it was linked.
    pub age: u32,
}

/// The images that frames are looked up in, ordered by base.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Modules(Vec<Module>);

impl Modules {
    /// In any order; they do not overlap.
    pub fn new(mut modules: Vec<Module>) -> Self {
        modules.sort_by_key(|module| module.base);
        Modules(modules)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.iter()
    }

    /// Puts what is known better in the place of what was known.
    pub(crate) fn update(&mut self, known: &[Module]) {
        for module in &mut self.0 {
            if let Some(better) = known.iter().find(|better| better.base == module.base) {
                module.clone_from(better);
            }
        }
    }

    /// The module that the address lies in.
    pub fn find(&self, address: u64) -> Option<&Module> {
        let after = self.0.partition_point(|module| module.base <= address);
        let module = self.0.get(after.checked_sub(1)?)?;
        (address - module.base < u64::from(module.size)).then_some(module)
    }
}

/// Gives names to places in images.
pub trait Namer {
    /// `NtFlushKey+0x142`; `None` when there are no symbols.
    fn name(&mut self, module: &Module, rva: u32) -> Result<Option<String>, Fault>;

    /// Adds what ties a module to its symbols, for those who name its frames without the target.
    fn identify(&mut self, _: &mut Module) -> Result<(), Fault> {
        Ok(())
    }
}

/// Turns addresses into frames. Only the kernel and its verifier are named to tell what a stack is of: a driver's
/// symbols cost requests, and are asked for when a stack is to be shown.
pub struct Resolver<'a> {
    modules: &'a Modules,
    namer: &'a mut dyn Namer,
    names: HashMap<u64, Option<String>>,
}

impl<'a> Resolver<'a> {
    /// Names frames by what `namer` knows of `modules`.
    pub fn new(modules: &'a Modules, namer: &'a mut dyn Namer) -> Self {
        Resolver { modules, namer, names: HashMap::new() }
    }

    /// A stack to be shown.
    pub fn stack(&mut self, addresses: &[u64]) -> Result<Stack, Fault> {
        addresses.iter().map(|&address| self.frame(address, |_| true)).collect()
    }

    /// The modules that frames lie in, with what ties them to their symbols.
    pub(crate) fn identified<'f>(&mut self, frames: impl Iterator<Item = &'f Frame>) -> Result<Vec<Module>, Fault> {
        let bases: BTreeMap<u64, &Module> =
            frames.filter_map(|frame| self.modules.find(frame.address)).map(|module| (module.base, module)).collect();
        let mut found = Vec::new();
        for module in bases.into_values() {
            let mut module = module.clone();
            if !module.in_stack {
                self.namer.identify(&mut module)?;
                module.in_stack = true;
            }
            found.push(module);
        }
        Ok(found)
    }

    /// Whether a record is of an allocation or of a free.
    pub(crate) fn operation(&mut self, trace: &Trace) -> Result<pool_log::Operation, Fault> {
        let leading = trace.frames.iter().take(pool_log::LEADING);
        let frames: Vec<Frame> = leading.map(|&frame| self.frame(frame, is_allocator)).collect::<Result<_, _>>()?;
        let name = |address| frames.iter().find(|frame| frame.address == address).map(Frame::to_string);
        Ok(pool_log::operation(trace, &name))
    }

    /// The place in a driver that asked for the block: the first frame that is not the allocator's.
    pub(crate) fn site(&mut self, frames: &[u64]) -> Result<Option<(String, u64)>, Fault> {
        let allocator = Skip::default();
        for &address in frames {
            let frame = self.frame(address, is_allocator)?;
            if !allocator.matches(&frame) {
                return Ok(frame.module.map(|module| (module, frame.offset)));
            }
        }
        Ok(None)
    }

    fn frame(&mut self, address: u64, named: impl Fn(&str) -> bool) -> Result<Frame, Fault> {
        let Some(module) = self.modules.find(address) else {
            return Ok(Frame { address, module: None, offset: 0, symbol: None });
        };
        let offset = address - module.base;
        let symbol = match self.names.get(&address) {
            Some(known) => known.clone(),
            None if named(&module.name) => {
                let name = self.namer.name(module, offset as u32)?;
                self.names.insert(address, name.clone());
                name
            }
            None => None,
        };
        Ok(Frame { address, module: Some(module.name.clone()), offset, symbol })
    }
}

fn is_allocator(module: &str) -> bool {
    module.eq_ignore_ascii_case("nt") || module.eq_ignore_ascii_case("VerifierExt")
}

/// A return address.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Frame {
    /// Where the call returns to.
    #[serde(with = "crate::hex")]
    #[schemars(schema_with = "crate::hex::schema")]
    pub address: u64,
    /// The image and the place in it; `None` outside all images.
    #[serde(default, deserialize_with = "crate::line::deserialize")]
    pub module: Option<String>,
    /// From the module's base; without a module the address.
    pub offset: u64,
    /// `NtFlushKey+0x142`, as far as symbols were there when it was seen.
    #[serde(default, deserialize_with = "crate::line::deserialize")]
    pub symbol: Option<String>,
}

/// Frames in a report: as people read them, and with module and offset for those who add symbols later.
pub(crate) mod frames {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Frame;

    #[derive(JsonSchema, Serialize, Deserialize)]
    pub(crate) struct Shown {
        #[serde(with = "crate::hex")]
        #[schemars(schema_with = "crate::hex::schema")]
        address: u64,
        /// `nt!NtFlushKey+0x142`, `myfault+0x11f6`; `None` outside all modules.
        #[serde(default, deserialize_with = "crate::line::deserialize")]
        symbol: Option<String>,
        #[serde(default, deserialize_with = "crate::line::deserialize")]
        module: Option<String>,
        #[serde(default)]
        offset: u64,
    }

    pub(crate) fn serialize<S: Serializer>(frames: &[Frame], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(frames.iter().map(|frame| Shown {
            address: frame.address,
            symbol: frame.module.as_ref().map(|_| frame.to_string()),
            module: frame.module.clone(),
            offset: frame.offset,
        }))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Frame>, D::Error> {
        let shown = Vec::<Shown>::deserialize(deserializer)?;
        let frame = |Shown { address, symbol, module, offset }: Shown| {
            let name = module.as_deref().zip(symbol.as_deref());
            let name = name.and_then(|(module, symbol)| symbol.strip_prefix(module)?.strip_prefix('!'));
            let symbol = name.map(String::from);
            Frame { address, module, offset, symbol }
        };
        Ok(shown.into_iter().map(frame).collect())
    }
}

/// `nt!NtFlushKey+0x142`, `myfault+0x11f6`, or the address.
impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.module, &self.symbol) {
            (Some(module), Some(symbol)) => write!(f, "{module}!{symbol}"),
            (Some(module), None) => write!(f, "{module}+{:#x}", self.offset),
            (None, _) => write!(f, "{:016x}", self.address),
        }
    }
}

/// Names a stack in every mark and report of every machine: a hash of module names and offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackId(u32);

impl fmt::Display for StackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackTrace{:08X}", self.0)
    }
}

impl JsonSchema for StackId {
    fn schema_name() -> Cow<'static, str> {
        "StackId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^BackTrace[0-9A-F]{8}$" })
    }
}

impl Serialize for StackId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StackId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("BackTrace").unwrap_or_default();
        u32::from_str_radix(digits, 16).map(StackId).map_err(serde::de::Error::custom)
    }
}

/// Return addresses, innermost first.
pub type Stack = Vec<Frame>;

/// The name of a stack.
pub(crate) fn id(frames: &[Frame]) -> StackId {
    let mut hash = Sha256::new();
    for frame in frames {
        match &frame.module {
            Some(module) => {
                hash.update((module.len() as u64).to_le_bytes());
                hash.update(module.to_ascii_lowercase());
                hash.update(frame.offset.to_le_bytes());
            }
            None => {
                hash.update(u64::MAX.to_le_bytes());
                hash.update(frame.address.to_le_bytes());
            }
        }
    }
    let digest = hash.finalize();
    StackId(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// Stacks by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Stacks(BTreeMap<StackId, Stack>);

impl Stacks {
    /// The id of these frames, under which they are kept.
    pub fn add(&mut self, frames: Stack) -> StackId {
        let id = id(&frames);
        self.0.entry(id).or_insert(frames);
        id
    }

    pub(crate) fn frames(&self) -> impl Iterator<Item = &Frame> {
        self.0.values().flatten()
    }

    pub(crate) fn frames_mut(&mut self) -> impl Iterator<Item = &mut Frame> {
        self.0.values_mut().flatten()
    }

    /// Innermost first; empty for an id of another's.
    pub fn get(&self, id: StackId) -> &[Frame] {
        self.0.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Keeps those that somebody still names.
    pub fn retain(&mut self, keep: impl Fn(StackId) -> bool) {
        self.0.retain(|id, _| keep(*id));
    }

    /// Takes over the stacks of another look.
    pub fn merge(&mut self, other: &Stacks) {
        for (id, frames) in &other.0 {
            self.0.entry(*id).or_insert_with(|| frames.clone());
        }
    }
}

/// Frames that are the allocator's own: `nt!Ve*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(Vec<String>);

impl Default for Skip {
    fn default() -> Self {
        Skip(["nt!Ve*", "nt!Vf*", "nt!Vi*", "nt!Ex*", "nt!IovAllocate*", "VerifierExt!*"].map(String::from).into())
    }
}

impl Skip {
    /// Every frame counts.
    pub fn none() -> Self {
        Skip(Vec::new())
    }

    /// One more pattern, `module!function` with wildcards; without a `!` it stands for a module.
    pub fn add(&mut self, pattern: &str) {
        self.0.push(if pattern.contains('!') { pattern.into() } else { format!("{pattern}!*") });
    }

    fn matches(&self, frame: &Frame) -> bool {
        let Some(module) = &frame.module else { return false };
        let function = frame.symbol.as_deref().map_or("", |symbol| symbol.split('+').next().unwrap_or(symbol));
        let name = format!("{module}!{function}");
        self.0.iter().any(|pattern| matches_glob(pattern, &name))
    }

    /// The frames without the allocator's own at the inner end; all of them if nothing else would be left.
    pub fn fold<'f>(&self, frames: &'f [Frame]) -> &'f [Frame] {
        let first = frames.iter().position(|frame| !self.matches(frame)).unwrap_or(0);
        &frames[first..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(module: &str, offset: u64, symbol: Option<&str>, base: u64) -> Frame {
        Frame { address: base + offset, module: Some(module.into()), offset, symbol: symbol.map(String::from) }
    }

    fn article(base: u64) -> Stack {
        vec![
            frame("nt", 0x50bcc6, Some("VeAllocatePoolWithTagPriority+0x2b6"), base),
            frame("nt", 0x50bd3d, Some("VerifierExAllocatePoolEx+0x1d"), base),
            frame("myfault", 0x11f6, None, base + 0x7f00_0000),
            frame("nt", 0x516750, Some("IovCallDriver+0xa0"), base),
        ]
    }

    #[test]
    fn a_stack_keeps_its_name_when_its_drivers_move() {
        assert_eq!(id(&article(0xfffff80001418000)), id(&article(0xfffff80002a18000)));
        let mut other = article(0xfffff80001418000);
        other[2].offset += 1;
        assert_ne!(id(&article(0xfffff80001418000)), id(&other));
        assert!(id(&other).to_string().starts_with("BackTrace"));
        assert_eq!(id(&other).to_string().len(), "BackTrace".len() + 8);
    }

    #[test]
    fn folding_leaves_the_driver_on_top() {
        let stack = article(0);
        assert_eq!(Skip::default().fold(&stack)[0].to_string(), "myfault+0x11f6");
        assert_eq!(Skip::none().fold(&stack).len(), 4);
        let mut skip = Skip::default();
        skip.add("myfault");
        assert_eq!(skip.fold(&stack)[0].to_string(), "nt!IovCallDriver+0xa0");
        skip.add("nt");
        // With nothing left, all is shown.
        assert_eq!(skip.fold(&stack).len(), 4);
    }

    #[test]
    fn modules_are_found_by_their_addresses() {
        let module = |base, size, name: &str| Module::new(base, size, name);
        let modules = Modules::new(vec![module(0x3000, 0x1000, "b"), module(0x1000, 0x1000, "a")]);
        let name = |address| modules.find(address).map(|module| module.name.as_str());
        assert_eq!([0xfff, 0x1000, 0x1fff, 0x2000, 0x3800].map(name), [None, Some("a"), Some("a"), None, Some("b")]);
    }
}
