//! PDB files.
//!
//! The `pdb` crate reads the container (a file of streams made of pages) and the header with GUID and age; the records in
//! the streams are read here, because those readers can neither be kept between questions nor trusted with hostile
//! records (see `tpi`). Opening reads the headers only. Names are read when a name or address is first asked for, types
//! when a type is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use pdb::{SourceSlice, SourceView, StreamIndex};

use crate::bytes::{u16_at, u32_at};
use crate::names::{Names, NamesBuilder};
use crate::tpi::Types;
use crate::{Enumeration, Layout, PdbId, Symbol, SymbolError, SymbolFile, SymbolKind, undecorated};

const TPI_STREAM: u16 = 2;
const DBI_STREAM: u16 = 3;

/// Bytes of a PDB: a file, or memory.
trait Input: Read + Seek + Send {}
impl<T: Read + Seek + Send> Input for T {}

/// Hands out parts of the file, never more at once than the file holds: page lists can name a page any number of times.
struct Bounded {
    input: Arc<Mutex<Box<dyn Input>>>,
    length: u64,
}

impl std::fmt::Debug for Bounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bounded({} bytes)", self.length)
    }
}

#[derive(Debug)]
struct View(Vec<u8>);

impl SourceView<'_> for View {
    fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<'s> pdb::Source<'s> for Bounded {
    fn view(&mut self, slices: &[SourceSlice]) -> io::Result<Box<dyn SourceView<'s>>> {
        let total = slices.iter().try_fold(0u64, |sum, slice| sum.checked_add(slice.size as u64));
        let total = total.filter(|total| *total <= self.length).ok_or(io::ErrorKind::UnexpectedEof)?;
        heap_limit::room_for(total as usize)?;
        let mut bytes = vec![0; total as usize];
        let mut rest = &mut bytes[..];
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        for slice in slices {
            let (part, tail) = rest.split_at_mut(slice.size);
            input.seek(SeekFrom::Start(slice.offset))?;
            input.read_exact(part)?;
            rest = tail;
        }
        Ok(Box::new(View(bytes)))
    }
}

/// What the DBI stream's header says.
///
/// ```text
/// 0 ffffffff  20 stream of symbol records  24 sizes of the substreams: modules, contributions, section map, file info,
/// type servers  44 -  48 debug header's size  52 size of the edit-and-continue part  56 flags  58 machine
/// ```
#[derive(Debug, Clone, Copy)]
struct Dbi {
    machine: u16,
    stripped: bool,
    symbols: u16,
    /// Streams of section headers (as linked now, as linked first) and of the map from the first to the present layout.
    sections: u16,
    original_sections: u16,
    omap_from_source: u16,
    modules: (usize, usize),
}

const NO_STREAM: u16 = 0xffff;

impl Dbi {
    fn parse(bytes: &[u8]) -> Option<Dbi> {
        if u32_at(bytes, 0)? != u32::MAX {
            return None;
        }
        let mut debug_header = 64usize;
        for at in [24, 28, 32, 36, 40, 52] {
            debug_header = debug_header.checked_add(u32_at(bytes, at)? as usize)?;
        }
        let size = u32_at(bytes, 48)? as usize;
        let stream = |n: usize| if n * 2 + 2 <= size { u16_at(bytes, debug_header + n * 2) } else { None };
        Some(Dbi {
            machine: u16_at(bytes, 58)?,
            stripped: u16_at(bytes, 56)? & 2 != 0,
            symbols: u16_at(bytes, 20)?,
            omap_from_source: stream(4).unwrap_or(NO_STREAM),
            sections: stream(5).unwrap_or(NO_STREAM),
            original_sections: stream(10).unwrap_or(NO_STREAM),
            modules: (64, u32_at(bytes, 24)? as usize),
        })
    }
}

/// From a section and an offset in it to an offset from the image's base.
struct AddressMap {
    /// Virtual addresses of the sections.
    sections: Vec<u32>,
    /// (from, to), ordered, when the image was rearranged after linking.
    omap: Option<Vec<(u32, u32)>>,
}

impl AddressMap {
    fn rva(&self, section: u16, offset: u32) -> Option<u32> {
        let start = self.sections.get(usize::from(section).checked_sub(1)?)?;
        let linked = start.checked_add(offset)?;
        let Some(omap) = &self.omap else { return Some(linked) };
        let (from, to) = *omap.get(omap.partition_point(|(from, _)| *from <= linked).checked_sub(1)?)?;
        // A target of 0 says that this part was left out of the image.
        if to == 0 { None } else { to.checked_add(linked - from) }
    }
}

/// A PDB whose parts are read as they are needed.
pub struct Pdb {
    path: PathBuf,
    input: Arc<Mutex<Box<dyn Input>>>,
    length: u64,
    id: PdbId,
    dbi: Dbi,
    private: bool,
    names: OnceLock<Names>,
    types: OnceLock<Option<Types>>,
    notes: Mutex<Vec<String>>,
}

impl std::fmt::Debug for Pdb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pdb").field("path", &self.path).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Pdb {
    /// Opens a PDB and reads its headers.
    pub fn open(path: impl AsRef<Path>) -> Result<Pdb, SymbolError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| SymbolError::Io { path: path.to_owned(), source })?;
        Pdb::read(path, file)
    }

    /// Reads a PDB from anything that can be read and sought; `path` is what it is called in messages.
    pub fn read(path: impl Into<PathBuf>, input: impl Read + Seek + Send + 'static) -> Result<Pdb, SymbolError> {
        let path = path.into();
        let mut input: Box<dyn Input> = Box::new(input);
        let length = input.seek(SeekFrom::End(0)).map_err(|source| SymbolError::Io { path: path.clone(), source })?;
        let input = Arc::new(Mutex::new(input));
        let format = |why: String| SymbolError::Format { path: path.clone(), format: "PDB", why };

        let mut file = open(&input, length).map_err(|e| format(e.to_string()))?;
        let info = file.pdb_information().map_err(|e| format(format!("its information stream: {e}")))?;
        let bytes = stream(&mut file, DBI_STREAM).map_err(|e| format(format!("its debug information stream: {e}")))?;
        let dbi =
            Dbi::parse(&bytes).ok_or_else(|| format("its debug information header is damaged or too old".into()))?;
        // The linker raises the information stream's age on every write; the image carries the one in the DBI header.
        let age = u32_at(&bytes, 8).filter(|age| *age != 0).unwrap_or(info.age);
        let id = PdbId { guid: info.guid.as_u128(), age };
        let private = !dbi.stripped && modules(&bytes, dbi).any(|module| module.is_ok_and(|(_, size)| size > 4));
        Ok(Pdb {
            path,
            input,
            length,
            id,
            dbi,
            private,
            names: OnceLock::new(),
            types: OnceLock::new(),
            notes: Mutex::default(),
        })
    }

    /// GUID and age, as an image's debug record names them.
    pub fn id(&self) -> PdbId {
        self.id
    }

    /// The machine type of the image (`0x8664`, `0x14c`, `0xaa64`), 0 if the PDB does not say.
    pub fn machine(&self) -> u16 {
        self.dbi.machine
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < 100 {
            notes.push(text);
        }
    }

    fn names(&self) -> &Names {
        self.names.get_or_init(|| {
            let mut builder = NamesBuilder::default();
            if let Err(why) = self.read_names(&mut builder) {
                self.note(format!("the symbol records could not be read: {why}"));
            }
            let names = builder.build();
            if names.skipped() > 0 {
                self.note(format!("{} symbols are left out: too much text", names.skipped()));
            }
            tracing::debug!(path = %self.path.display(), count = names.len(), "names read");
            names
        })
    }

    fn read_names(&self, builder: &mut NamesBuilder) -> Result<(), String> {
        let mut file = open(&self.input, self.length).map_err(|e| e.to_string())?;
        let map = self.address_map(&mut file)?;
        let records = stream(&mut file, self.dbi.symbols).map_err(|e| e.to_string())?;
        let mut lost = 0usize;
        let whole = symbols(&records, |name, section, offset| match map.rva(section, offset) {
            Some(rva) => builder.push(undecorated(&String::from_utf8_lossy(name)), rva),
            None => lost += 1,
        });
        if !whole {
            self.note("the symbol records are damaged; those after the damage are left out".into());
        }
        if self.private {
            self.read_module_names(&mut file, &map, builder)?;
        }
        if lost > 0 {
            // Absolute symbols and code that the linker dropped have no address in the image; that is usual.
            tracing::debug!(path = %self.path.display(), lost, "symbols without an address in the image");
        }
        Ok(())
    }

    /// Static functions and data of a private PDB are told only by the modules' own streams.
    fn read_module_names(
        &self,
        file: &mut pdb::PDB<'static, Bounded>,
        map: &AddressMap,
        builder: &mut NamesBuilder,
    ) -> Result<(), String> {
        let bytes = stream(file, DBI_STREAM).map_err(|e| e.to_string())?;
        // All streams together fit into the file; a list of modules that names more than that is made up.
        let mut budget = self.length;
        for module in modules(&bytes, self.dbi) {
            let Ok((number, size)) = module else {
                self.note("the list of modules is damaged; symbols of some modules are missing".into());
                break;
            };
            if number == NO_STREAM || size <= 4 {
                continue;
            }
            let records = stream(file, number).map_err(|e| format!("module stream {number}: {e}"))?;
            let Some(left) = budget.checked_sub(records.len() as u64) else {
                self.note("the modules' streams are larger than the file; symbols of some modules are missing".into());
                break;
            };
            budget = left;
            // The first four bytes are the version of what follows.
            let whole = symbols(records.get(4..size).unwrap_or_default(), |name, section, offset| {
                if let Some(rva) = map.rva(section, offset) {
                    builder.push(undecorated(&String::from_utf8_lossy(name)), rva);
                }
            });
            if !whole {
                self.note(format!("symbols of module stream {number} are damaged; some are missing"));
            }
        }
        Ok(())
    }

    fn address_map(&self, file: &mut pdb::PDB<'static, Bounded>) -> Result<AddressMap, String> {
        let rearranged = self.dbi.original_sections != NO_STREAM && self.dbi.omap_from_source != NO_STREAM;
        let number = if rearranged { self.dbi.original_sections } else { self.dbi.sections };
        let headers = stream(file, number).map_err(|e| format!("section headers: {e}"))?;
        // IMAGE_SECTION_HEADER: 40 bytes, VirtualAddress at 12.
        let sections = headers.chunks_exact(40).filter_map(|header| u32_at(header, 12)).collect();
        let omap = if rearranged {
            let bytes = stream(file, self.dbi.omap_from_source).map_err(|e| format!("address map: {e}"))?;
            let pairs = bytes.chunks_exact(8);
            let mut omap: Vec<_> = pairs.filter_map(|pair| Some((u32_at(pair, 0)?, u32_at(pair, 4)?))).collect();
            omap.sort_by_key(|(from, _)| *from);
            Some(omap)
        } else {
            None
        };
        Ok(AddressMap { sections, omap })
    }

    fn types(&self) -> Option<&Types> {
        let types = self.types.get_or_init(|| {
            let read = open(&self.input, self.length).and_then(|mut file| stream(&mut file, TPI_STREAM));
            let pointer_size = if matches!(self.dbi.machine, 0x14c | 0x1c4 | 0x1c0) { 4 } else { 8 };
            match read.map_err(|e| e.to_string()).and_then(|bytes| Types::parse(bytes, pointer_size)) {
                Ok(types) => Some(types),
                Err(why) => {
                    self.note(format!("the type records could not be read: {why}"));
                    None
                }
            }
        });
        types.as_ref()
    }
}

fn open(input: &Arc<Mutex<Box<dyn Input>>>, length: u64) -> pdb::Result<pdb::PDB<'static, Bounded>> {
    pdb::PDB::open(Bounded { input: input.clone(), length })
}

/// A copy of a whole stream.
fn stream(file: &mut pdb::PDB<'static, Bounded>, number: u16) -> pdb::Result<Vec<u8>> {
    match file.raw_stream(StreamIndex(number))? {
        Some(stream) => Ok(stream.as_slice().to_vec()),
        None => Err(pdb::Error::StreamNotFound(u32::from(number))),
    }
}

/// Stream number of each module and how many bytes of symbols it starts with.
///
/// ```text
/// 0 -  34 stream  36 bytes of symbols  ...  64 name\0 object file\0, padded to 4
/// ```
fn modules(dbi_stream: &[u8], dbi: Dbi) -> impl Iterator<Item = Result<(u16, usize), ()>> + '_ {
    let (start, size) = dbi.modules;
    let mut rest = start.checked_add(size).and_then(|end| dbi_stream.get(start..end)).unwrap_or_default();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = rest;
        let one = || {
            let (number, size) = (u16_at(entry, 34)?, u32_at(entry, 36)? as usize);
            let mut end = 64;
            for _ in 0..2 {
                end += entry.get(end..)?.iter().position(|b| *b == 0)? + 1;
            }
            Some((number, size, end.next_multiple_of(4).min(entry.len())))
        };
        match one() {
            Some((number, size, length)) => {
                rest = &entry[length..];
                Some(Ok((number, size)))
            }
            None => {
                rest = &[];
                Some(Err(()))
            }
        }
    })
}

const S_LDATA32: u16 = 0x110c;
const S_GDATA32: u16 = 0x110d;
const S_PUB32: u16 = 0x110e;
const S_LPROC32: u16 = 0x110f;
const S_GPROC32: u16 = 0x1110;
const S_LPROC32_ID: u16 = 0x1146;
const S_GPROC32_ID: u16 = 0x1147;

/// Calls `each` with name, section and offset of every function, variable and public symbol. False if the records end in
/// damage.
///
/// ```text
/// S_PUB32              0 length  2 kind  4 flags  8 offset  12 section  14 name\0
/// S_GDATA32, S_LDATA32                   4 type   8 offset  12 section  14 name\0
/// S_GPROC32, S_LPROC32, .._ID            4 ..    32 offset  36 section  38 flags  39 name\0
/// ```
fn symbols(records: &[u8], mut each: impl FnMut(&[u8], u16, u32)) -> bool {
    let mut rest = records;
    while let Some(length) = u16_at(rest, 0) {
        let Some(record) = rest.get(..2 + usize::from(length)).filter(|record| record.len() >= 4) else {
            return false;
        };
        rest = &rest[record.len()..];
        let (offset, name) = match u16_at(record, 2) {
            Some(S_PUB32 | S_GDATA32 | S_LDATA32) => (8, 14),
            Some(S_GPROC32 | S_LPROC32 | S_GPROC32_ID | S_LPROC32_ID) => (32, 39),
            _ => continue,
        };
        let symbol = || {
            let name = record.get(name..)?;
            let name = &name[..name.iter().position(|b| *b == 0)?];
            Some((name, u16_at(record, offset + 4)?, u32_at(record, offset)?))
        };
        match symbol() {
            Some((name, section, offset)) => each(name, section, offset),
            None => return false,
        }
    }
    rest.is_empty()
}

impl SymbolFile for Pdb {
    fn kind(&self) -> SymbolKind {
        if self.private { SymbolKind::PrivatePdb } else { SymbolKind::PublicPdb }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn symbol(&self, name: &str) -> Option<Symbol> {
        self.names().symbol(name)
    }

    fn around(&self, rva: u32) -> (Option<Symbol>, Option<Symbol>) {
        self.names().around(rva)
    }

    fn matching(&self, pattern: &str) -> Vec<Symbol> {
        self.names().matching(pattern)
    }

    fn layout(&self, type_name: &str) -> Option<Arc<Layout>> {
        self.types()?.layout(type_name)
    }

    fn enumeration(&self, enum_name: &str) -> Option<Arc<Enumeration>> {
        self.types()?.enumeration(enum_name)
    }

    fn types_matching(&self, pattern: &str) -> Vec<String> {
        self.types().map(|types| types.matching(pattern)).unwrap_or_default()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        notes.extend(self.types.get().and_then(Option::as_ref).map(Types::notes).unwrap_or_default());
        notes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::Field;
    use crate::testing::TestPdb;

    fn read(bytes: Vec<u8>) -> Result<Pdb, SymbolError> {
        Pdb::read("test.pdb", Cursor::new(bytes))
    }

    fn good(pdb: &TestPdb) -> Pdb {
        read(pdb.bytes()).unwrap()
    }

    #[test]
    fn headers_and_names() {
        let mut file = TestPdb::new();
        file.public(1, 0x10, "_Foo@12");
        file.public(2, 0x8, "PoolHitTag");
        file.public(9, 0x8, "InNoSection");
        let pdb = good(&file);
        assert_eq!((pdb.id().store_key(), pdb.machine()), ("000102030405060708090A0B0C0D0E0F3".into(), 0x8664));
        assert_eq!(pdb.kind(), SymbolKind::PublicPdb);
        assert_eq!(pdb.symbol("foo"), Some(Symbol { name: "Foo".into(), rva: 0x1010 }));
        assert_eq!(pdb.symbol("_Foo@12").map(|s| s.rva), Some(0x1010));
        assert_eq!(pdb.symbol("InNoSection"), None);
        assert_eq!(pdb.around(0x5007).0.map(|s| s.name), Some("Foo".into()));
        assert_eq!(pdb.around(0x5008).0.map(|s| s.name), Some("PoolHitTag".into()));
        assert_eq!(pdb.notes(), [""; 0]);
    }

    #[test]
    fn a_rearranged_image_goes_through_its_map() {
        let mut file = TestPdb::new();
        file.public(1, 0x10, "Moved");
        file.public(1, 0x80, "Dropped");
        file.public(1, 0x100, "Kept");
        file.omap(&[(0x1000, 0x7000), (0x1080, 0), (0x1100, 0x1100)]);
        let pdb = good(&file);
        assert_eq!(pdb.symbol("Moved").map(|s| s.rva), Some(0x7010));
        assert_eq!(pdb.symbol("Dropped"), None);
        assert_eq!(pdb.symbol("Kept").map(|s| s.rva), Some(0x1100));
    }

    #[test]
    fn a_private_pdb_tells_static_functions_too() {
        let mut file = TestPdb::new();
        file.public(1, 0x10, "Foo");
        file.static_function(1, 0x40, "Helper");
        file.static_function(1, 0x80, &"Long".repeat(100));
        let pdb = good(&file);
        assert_eq!(pdb.kind(), SymbolKind::PrivatePdb);
        assert_eq!(pdb.around(0x1041).0, Some(Symbol { name: "Helper".into(), rva: 0x1040 }));
        assert_eq!(pdb.symbol("Foo").map(|s| s.rva), Some(0x1010));
        assert_eq!(pdb.notes(), [""; 0]);
        // Every module names the same stream: more than the file can hold.
        file.repeat_module(1000);
        let pdb = good(&file);
        assert_eq!(pdb.symbol("Helper").map(|s| s.rva), Some(0x1040));
        assert!(pdb.notes()[0].contains("larger than the file"), "{:?}", pdb.notes());
    }

    #[test]
    fn anonymous_members_that_multiply_end() {
        let mut file = TestPdb::new();
        let mut inner = file.structure("_EMPTY", 0, 0);
        for _ in 0..7 {
            let fields = file.field_list(&[("", inner, 0); 200]);
            inner = file.structure("_MANY", fields, 0);
        }
        let fields = file.field_list(&[("", inner, 0); 200]);
        file.structure("_TOP", fields, 0);
        let pdb = good(&file);
        assert!(pdb.layout("_TOP").is_some());
        assert!(pdb.notes().iter().any(|note| note.contains("more than 65536 members")), "{:?}", pdb.notes());
    }

    fn field(pdb: &Pdb, name: &str, member: &str) -> Field {
        pdb.layout(name).unwrap().field(member).unwrap().clone()
    }

    #[test]
    fn members_of_every_shape() {
        let mut file = TestPdb::new();
        let inner_fields = file.field_list(&[("Low", 0x22, 0), ("High", 0x12, 4)]);
        let inner = file.structure("__unnamed", inner_fields, 8);
        let forward = file.forward("_LATER");
        let pointer = file.pointer(forward);
        let bits = file.bit_field(0x22, 3, 5);
        let pointers = file.array(pointer, 4 * 8);
        let grid_row = file.array(0x20, 4);
        let grid = file.array(grid_row, 12);
        let fields = file.field_list(&[
            ("u", inner, 0),
            ("", inner, 8),
            ("Next", pointer, 16),
            ("Later", forward, 24),
            ("Bits", bits, 40),
            ("Table", pointers, 48),
            ("Grid", grid, 80),
            ("Context", 0x603, 92),
        ]);
        file.structure("_EVERY", fields, 100);
        let later = file.field_list(&[("X", 0x23, 8)]);
        file.structure("_LATER", later, 16);
        let kinds = file.enumerators(&[("First", 0), ("Last", -2), ("Big", 0x1_0000_0000)]);
        file.enumeration("_KIND", kinds);
        let pdb = good(&file);

        let names: Vec<_> = pdb.layout("_every").unwrap().fields.iter().map(|f| f.name.clone()).collect();
        assert_eq!(names, ["u", "Low", "High", "Next", "Later", "Bits", "Table", "Grid", "Context"]);
        let unnamed = format!("__unnamed_{inner:x}");
        assert_eq!(field(&pdb, "_EVERY", "u").type_name, unnamed);
        assert_eq!(pdb.layout(&unnamed).unwrap().size, 8);
        assert_eq!(field(&pdb, "_EVERY", "High").offset, 12);
        let next = field(&pdb, "_EVERY", "Next");
        assert_eq!((next.size, next.pointers, next.type_name.as_str()), (8, 1, "_LATER"));
        let later = field(&pdb, "_EVERY", "Later");
        assert_eq!((later.size, later.pointers, later.type_name.as_str()), (16, 0, "_LATER"));
        let bits = field(&pdb, "_EVERY", "Bits");
        assert_eq!((bits.size, bits.bits, bits.type_name.as_str()), (4, Some((3, 5)), "unsigned long"));
        let table = field(&pdb, "_EVERY", "Table");
        assert_eq!((table.size, table.array, table.pointers), (32, Some((4, 8)), 1));
        let grid = field(&pdb, "_EVERY", "Grid");
        assert_eq!((grid.array, grid.type_name.as_str()), (Some((3, 4)), "unsigned char"));
        let context = field(&pdb, "_EVERY", "Context");
        assert_eq!((context.size, context.pointers, context.type_name.as_str()), (8, 1, "void"));
        assert_eq!(pdb.enum_value("_KIND", "Last"), Some(-2));
        assert_eq!(pdb.enum_value("_kind", "Big"), Some(0x1_0000_0000));
        assert_eq!(pdb.enum_value("_KIND", "Middle"), None);
        assert_eq!(pdb.layout("_KIND"), None);
        assert_eq!(pdb.types_matching("_*"), ["_EVERY", "_KIND", "_LATER", unnamed.as_str()]);
        assert_eq!(pdb.notes(), [""; 0]);
    }

    #[test]
    fn types_that_hold_themselves_end() {
        let mut file = TestPdb::new();
        let next = file.next_type();
        // The list continues in itself; the array's element is the array; the anonymous member is its own parent.
        file.field_list_continued(&[("A", 0x22, 0)], next);
        let array = file.next_type();
        file.array(array, 16);
        let parent = file.next_type() + 1;
        let fields = file.field_list(&[("", parent, 0), ("Loop", array, 8)]);
        file.structure("_SELF", fields, 16);
        file.structure("_ENDLESS", next, 16);
        let modifier = file.next_type();
        file.modifier(modifier);
        let fields = file.field_list(&[("Round", modifier, 0)]);
        file.structure("_ROUND", fields, 16);
        let pdb = good(&file);
        for name in ["_SELF", "_ENDLESS", "_ROUND"] {
            assert!(pdb.layout(name).unwrap().fields.len() <= 64, "{name}");
        }
        let notes = pdb.notes();
        for said in ["holds itself", "continues too often", "has a damaged type"] {
            assert!(notes.iter().any(|note| note.contains(said)), "{said}: {notes:?}");
        }
    }

    #[test]
    fn a_truncated_file_is_an_error_or_says_what_is_missing() {
        let mut file = TestPdb::new();
        file.public(1, 0x10, "Foo");
        let fields = file.field_list(&[("A", 0x22, 0)]);
        file.structure("_S", fields, 4);
        let bytes = file.bytes();
        for length in (0..bytes.len()).step_by(97) {
            if let Ok(pdb) = read(bytes[..length].to_vec()) {
                let whole = pdb.symbol("Foo").is_some() && pdb.layout("_S").is_some();
                assert!(whole || !pdb.notes().is_empty(), "{length}");
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn flipped_bits_give_an_answer(flips in proptest::collection::vec((0.0..1.0f64, 0u8..8), 1..12)) {
            let mut file = TestPdb::new();
            file.public(1, 0x10, "Foo");
            let inner = file.field_list(&[("A", 0x22, 0), ("B", 0x603, 8)]);
            let inner = file.structure("_INNER", inner, 16);
            let array = file.array(inner, 64);
            let fields = file.field_list(&[("", inner, 0), ("Table", array, 16)]);
            file.structure("_OUTER", fields, 80);
            file.omap(&[(0, 0x100)]);
            let mut bytes = file.bytes();
            let length = bytes.len() as f64;
            for (at, bit) in flips {
                bytes[(at * length) as usize] ^= 1 << bit;
            }
            if let Ok(pdb) = read(bytes) {
                let _ = (pdb.symbol("Foo"), pdb.around(0x1234), pdb.types_matching("*"), pdb.notes());
                for name in ["_INNER", "_OUTER"] {
                    let _ = (pdb.layout(name), pdb.enumeration(name));
                }
            }
        }
    }
}
