//! Puts structures and variables where a kernel's symbols and types say they are.

use crate::isf::{Isf, IsfError, Type};
use crate::kernel::memory::{Memory, SELF_MAP};
use crate::kernel::rules::Rules;
use crate::pdb::{Section, sections};

/// A kernel in the making: its memory and what is known of its symbols and types.
pub struct Builder {
    pub(crate) isf: Isf,
    pub(crate) memory: Memory,
    pub(crate) base: u64,
    pub(crate) sections: Vec<Section>,
    pub(crate) rules: Rules,
}

impl Builder {
    /// A kernel loaded at `base` with code and zeroed data in place, and without anything else.
    pub fn new(isf: Isf, base: u64) -> Builder {
        let mut builder = Builder::zeroed(isf, base, SELF_MAP);
        let Builder { isf, memory, sections, .. } = &mut builder;
        for section in sections.iter().filter(|section| section.is_code()) {
            memory.write(base + u64::from(section.rva), &vec![0x90; section.size as usize]);
        }
        for symbol in isf.symbols.values() {
            let code = sections.iter().any(|section| {
                section.is_code() && (section.rva..section.rva + section.size).contains(&(symbol.address as u32))
            });
            // Read-only data shares sections with code; a pointer-sized import must not look like one.
            if code && symbol.address % 4 == 0 {
                memory.write(base + symbol.address + 1, &[0xc3]);
            }
        }
        builder
    }

    /// A kernel of which it is not known where its code ends and its data begins: all of it is zeros.
    pub(crate) fn zeroed(isf: Isf, base: u64, self_map: u64) -> Builder {
        let sections = sections(&isf);
        let mut memory = Memory::new(isf.machine, self_map);
        for section in &sections {
            memory.map(base + u64::from(section.rva), u64::from(section.size));
        }
        Builder { isf, memory, base, sections, rules: Rules::default() }
    }

    /// Bytes of the image in memory.
    pub fn image_size(&self) -> u32 {
        self.sections.last().map_or(0, |section| section.rva + section.size)
    }

    /// Address of a symbol.
    pub fn symbol(&self, name: &str) -> Result<u64, IsfError> {
        Ok(self.base + self.isf.symbol(name)?)
    }

    /// A place within a function, before the next symbol; none in a version that does not have it.
    pub(crate) fn inside(&self, function: &str) -> Option<u64> {
        let start = self.isf.symbol(function).ok()?;
        let later = self.isf.symbols.values().map(|symbol| symbol.address).filter(|address| *address > start);
        let room = later.min().map_or(0x40, |next| (next - start).min(0x40));
        Some(self.base + start + room / 2)
    }

    /// Bytes of a pointer.
    pub(crate) fn width(&self) -> u64 {
        self.isf.machine.pointer() as u64
    }

    /// A pointer in memory; 0 where nothing is mapped.
    pub(crate) fn pointer(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(address, &mut bytes[..self.isf.machine.pointer()]);
        u64::from_le_bytes(bytes)
    }

    /// Puts a pointer into memory.
    pub(crate) fn put_pointer(&mut self, address: u64, value: u64) {
        self.memory.put_pointer(address, value);
    }

    /// A variable of a pointer's size.
    pub(crate) fn variable(&self, name: &str) -> Result<u64, IsfError> {
        Ok(self.pointer(self.symbol(name)?))
    }

    /// Sets a variable of the kernel.
    pub fn set(&mut self, name: &str, bytes: &[u8]) -> Result<(), IsfError> {
        let at = self.symbol(name)?;
        self.memory.put(at, bytes);
        Ok(())
    }

    /// Sets a variable of 8 bytes.
    pub fn set_u64(&mut self, name: &str, value: u64) -> Result<(), IsfError> {
        self.set(name, &value.to_le_bytes())
    }

    /// Sets a variable of a pointer's size.
    pub(crate) fn set_pointer(&mut self, name: &str, value: u64) -> Result<(), IsfError> {
        let at = self.symbol(name)?;
        self.put_pointer(at, value);
        Ok(())
    }

    /// Sets a variable of a pointer's size that not every version has.
    pub(crate) fn set_known_pointer(&mut self, name: &str, value: u64) {
        if let Ok(at) = self.symbol(name) {
            self.put_pointer(at, value);
        }
    }

    /// Sets a variable of 4 bytes.
    pub fn set_u32(&mut self, name: &str, value: u32) -> Result<(), IsfError> {
        self.set(name, &value.to_le_bytes())
    }

    /// Sets a variable that not every version has.
    pub(crate) fn set_known(&mut self, name: &str, bytes: &[u8]) {
        if let Ok(at) = self.symbol(name) {
            self.memory.put(at, bytes);
        }
    }

    /// A zeroed structure, to be filled and then stored.
    pub fn object(&self, ty: &'static str) -> Result<Object, IsfError> {
        Ok(Object { ty, bytes: vec![0; self.isf.size(ty)? as usize] })
    }

    /// Sets a member of a structure: an integer, a pointer, an enumeration or a bit field.
    pub fn field(&self, object: &mut Object, path: &str, value: u64) -> Result<(), IsfError> {
        Place::of(&self.isf, object.ty, path)?.put(&mut object.bytes, value);
        Ok(())
    }

    /// Sets several members.
    pub fn fields(&self, object: &mut Object, values: &[(&str, u64)]) -> Result<(), IsfError> {
        values.iter().try_for_each(|(path, value)| self.field(object, path, *value))
    }

    /// Sets several members, where the machine has them.
    pub(crate) fn known_fields(&self, object: &mut Object, values: &[(&str, u64)]) {
        for (path, value) in values {
            if let Ok(place) = Place::of(&self.isf, object.ty, path) {
                place.put(&mut object.bytes, *value);
            }
        }
    }

    /// Sets the bytes at a member.
    pub fn bytes(&self, object: &mut Object, path: &str, bytes: &[u8]) -> Result<(), IsfError> {
        let offset = self.isf.offset(object.ty, path)? as usize;
        object.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Puts a structure into memory.
    pub fn store(&mut self, address: u64, object: &Object) {
        self.memory.put(address, &object.bytes);
    }

    /// Writes an `_SLIST_HEADER` with these elements, each of which starts with the link to the next.
    pub(crate) fn singly_linked(&mut self, head: u64, elements: &[u64]) {
        self.memory.map(head, 2 * self.width());
        for element in elements.iter().rev() {
            let next = self.memory.first_of(head);
            self.put_pointer(*element, next);
            self.memory.push_entry(head, *element);
        }
    }

    /// The first element of an `_SLIST_HEADER`; 0 for none.
    pub(crate) fn first_of(&self, head: u64) -> u64 {
        self.memory.first_of(head)
    }

    /// Links list entries into a circle: each entry's `Flink` to the next one, `Blink` to the one before.
    pub fn link(&mut self, entries: &[u64]) {
        self.memory.link(entries);
    }
}

/// Where a member lies in its structure: an integer, a pointer, an enumeration or a bit field.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    width: usize,
    shift: u32,
    /// Before it is shifted.
    mask: u64,
}

impl Place {
    pub(crate) fn of(isf: &Isf, ty: &str, path: &str) -> Result<Place, IsfError> {
        let (offset, ty) = isf.member(ty, path)?;
        let width = isf.size_of(ty)?.min(8) as usize;
        let (shift, bits) = match ty {
            Type::Bitfield { bit_position, bit_length, .. } => (u32::from(*bit_position), u32::from(*bit_length)),
            _ => (0, 8 * width as u32),
        };
        Ok(Place { offset: offset as usize, width, shift, mask: u64::MAX >> (64 - bits) })
    }

    /// The value, without its sign.
    pub(crate) fn get(&self, structure: &[u8]) -> u64 {
        let mut raw = [0; 8];
        raw[..self.width].copy_from_slice(&structure[self.offset..self.offset + self.width]);
        u64::from_le_bytes(raw) >> self.shift & self.mask
    }

    /// The value in a structure in memory.
    pub(crate) fn load(&self, memory: &Memory, structure: u64) -> u64 {
        let mut bytes = vec![0; self.offset + self.width];
        memory.read(structure, &mut bytes);
        self.get(&bytes)
    }

    /// Sets the value in a structure in memory.
    pub(crate) fn store(&self, memory: &mut Memory, structure: u64, value: u64) {
        let mut bytes = vec![0; self.offset + self.width];
        memory.read(structure, &mut bytes);
        self.put(&mut bytes, value);
        memory.put(structure + self.offset as u64, &bytes[self.offset..]);
    }

    /// Sets the value; what does not fit is cut off.
    pub(crate) fn put(&self, structure: &mut [u8], value: u64) {
        let place = &mut structure[self.offset..self.offset + self.width];
        let mut raw = [0; 8];
        raw[..self.width].copy_from_slice(place);
        let mask = self.mask << self.shift;
        let value = u64::from_le_bytes(raw) & !mask | value << self.shift & mask;
        place.copy_from_slice(&value.to_le_bytes()[..self.width]);
    }
}

/// A structure of the kernel, outside its memory.
pub struct Object {
    ty: &'static str,
    bytes: Vec<u8>,
}

impl Object {
    /// The structure's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
