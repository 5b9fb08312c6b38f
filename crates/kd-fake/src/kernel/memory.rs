//! Physical memory, and virtual memory as the page tables in it say.

use crate::machine::Machine;

const PAGE: u64 = 0x1000;
const PRESENT: u64 = 1;
/// Present, writable, accessed, dirty.
const KERNEL_PAGE: u64 = 0x63;
/// ARM64: valid, a table or a page and not a block, with the access flag.
const ARM64_PAGE: u64 = 0x403;
/// Where 32-bit kernels map the page tables.
const SELF_MAP_32: u64 = 0xc000_0000;
/// The transition bit, and read-write protection.
const TRANSITION: u64 = 0x880;
/// Read-write protection; the place in the page file is in the upper half.
const PAGE_FILE: u64 = 0x80;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Where Windows up to 1511 maps the page tables into themselves: `FFFFF680'00000000`.
pub(crate) const SELF_MAP: u64 = 0x1ed;
/// First page table; what lies below belongs to the firmware.
const FIRST_FRAME: u64 = 0x18_7000;

/// Contiguous physical memory from 0 on. The only record of what is mapped where are the page tables in it.
pub(crate) struct Memory {
    machine: Machine,
    physical: Vec<u8>,
    root: u64,
    self_map: u64,
    /// Frames that are not mapped any more.
    free: Vec<u64>,
}

impl Memory {
    /// `self_map`: the entry of the topmost table that leads to that table itself, on 64-bit machines.
    pub(crate) fn new(machine: Machine, self_map: u64) -> Memory {
        let physical = vec![0; FIRST_FRAME as usize];
        let mut memory = Memory { machine, physical, root: FIRST_FRAME, self_map, free: Vec::new() };
        let root = memory.frame();
        match machine {
            Machine::X86 => memory.put_entry(root + 0x300 * 4, root | KERNEL_PAGE),
            Machine::X86Pae => {
                let directories = [(); 4].map(|()| memory.frame());
                for (slot, directory) in (0..).zip(directories) {
                    // Entries of the topmost table have no other bits.
                    memory.put_entry(root + slot * 8, directory | PRESENT);
                    memory.put_entry(directories[3] + slot * 8, directory | KERNEL_PAGE);
                }
            }
            Machine::X64 | Machine::Arm64 => memory.put_entry(root + self_map * 8, root | memory.entry_bits()),
        }
        memory
    }

    /// The bits of an entry that leads to a page or a table.
    fn entry_bits(&self) -> u64 {
        if self.machine == Machine::Arm64 { ARM64_PAGE } else { KERNEL_PAGE }
    }

    /// First bit of the index into each level's table, the topmost first.
    fn levels(&self) -> &'static [u32] {
        match self.machine {
            Machine::X86 => &[22, 12],
            Machine::X86Pae => &[30, 21, 12],
            Machine::X64 | Machine::Arm64 => &[39, 30, 21, 12],
        }
    }

    fn entry_size(&self) -> u64 {
        if self.machine == Machine::X86 { 4 } else { 8 }
    }

    /// Where the entry for an address is, in a table of the level with this first bit.
    fn place(&self, table: u64, address: u64, shift: u32) -> u64 {
        let bits = if self.machine == Machine::X86 { 0x3ff } else { 0x1ff };
        table + (address >> shift & bits) * self.entry_size()
    }

    /// An address as the page tables know it; debuggers give those of 32 bits with their sign.
    fn own(&self, address: u64) -> Option<u64> {
        if self.machine.is_x86() {
            return matches!(address >> 31, 0 | 1 | 0x1_ffff_ffff).then_some(address & 0xffff_ffff);
        }
        matches!(address >> 47, 0 | 0x1_ffff).then_some(address)
    }

    /// All of it, from address 0 on.
    pub(crate) fn physical(&self) -> &[u8] {
        &self.physical
    }

    /// Where the page tables are mapped: the value of `MmPteBase`.
    pub(crate) fn page_tables(&self) -> u64 {
        if self.machine.is_x86() { SELF_MAP_32 } else { 0xffff_0000_0000_0000 | self.self_map << 39 }
    }

    /// The value of CR3, or of TTBR1.
    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    /// The address space of a process: the kernel's half as it is now, and its own pages. Returns its root.
    pub(crate) fn address_space(&mut self, pages: &[(u64, &[u8])]) -> u64 {
        let own = self.frame();
        for entry in 0x100..0x200 {
            self.put_entry(own + entry * 8, self.entry(self.root + entry * 8));
        }
        self.put_entry(own + self.self_map * 8, own | KERNEL_PAGE);
        let kernel = self.enter(own);
        for (address, bytes) in pages {
            self.put(*address, bytes);
        }
        self.enter(kernel);
        own
    }

    /// Goes into another address space, as a processor does that takes another CR3; returns the root of the one before.
    pub(crate) fn enter(&mut self, root: u64) -> u64 {
        std::mem::replace(&mut self.root, root)
    }

    /// Maps zeroed memory to every page of the range that has none.
    pub(crate) fn map(&mut self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        let mut page = address & !(PAGE - 1);
        while page < address + length {
            let mut table = self.root;
            for &shift in self.levels() {
                let entry = self.place(table, page, shift);
                let mut value = self.entry(entry);
                if value & PRESENT == 0 {
                    value = self.frame() | self.entry_bits();
                    self.put_entry(entry, value);
                }
                table = value & FRAME;
            }
            page += PAGE;
        }
    }

    /// Takes the memory of the pages in the range away; the page tables stay.
    pub(crate) fn unmap(&mut self, address: u64, length: u64) {
        let mut page = address & !(PAGE - 1);
        let end = address.saturating_add(length);
        while let Some(at) = self.next_mapped(page).filter(|&at| at < end) {
            if let Some(entry) = self.page_entry(at) {
                self.free.push(self.entry(entry) & FRAME);
                self.put_entry(entry, 0);
            }
            page = at + PAGE;
        }
    }

    /// Makes a page's entry one of transition: not present, but the page is where it was.
    pub(crate) fn trim(&mut self, address: u64) {
        if let Some(entry) = self.page_entry(address) {
            let frame = self.entry(entry) & FRAME;
            self.put_entry(entry, frame | TRANSITION);
        }
    }

    /// Makes a page's entry one of a page file; its content is not in memory any more.
    pub(crate) fn page_out(&mut self, address: u64) {
        if let Some(entry) = self.page_entry(address) {
            self.free.push(self.entry(entry) & FRAME);
            let shift = if self.machine == Machine::X86 { 12 } else { 32 };
            self.put_entry(entry, (address >> 12 & 0xffff) << shift | PAGE_FILE);
        }
    }

    /// Where the entry of the last level for an address is.
    fn page_entry(&self, address: u64) -> Option<u64> {
        let (last, upper) = self.levels().split_last()?;
        let mut table = self.root;
        for &shift in upper {
            let value = self.entry(self.place(table, address, shift));
            if value & PRESENT == 0 {
                return None;
            }
            table = value & FRAME;
        }
        Some(self.place(table, address, *last))
    }

    /// Writes to memory that is mapped for it if need be.
    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        self.map(address, bytes.len() as u64);
        self.write(address, bytes);
    }

    pub(crate) fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let Some((at, room)) = self.translate(address, done) else { break };
            let count = room.min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&self.physical[at..at + count]);
            done += count;
        }
        done
    }

    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some((at, room)) = self.translate(address, done) else { break };
            let count = room.min(bytes.len() - done);
            self.physical[at..at + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        done
    }

    pub(crate) fn machine(&self) -> Machine {
        self.machine
    }

    /// Bytes of a pointer.
    pub(crate) fn pointer(&self) -> usize {
        self.machine.pointer()
    }

    /// The first element of an `_SLIST_HEADER`; 0 for none.
    ///
    /// ```text
    /// 64 bits: 0 u16 depth, 48-bit sequence; 8 address of the first element, 16-byte aligned, with flags in the low bits
    /// 32 bits: 0 address of the first element; 4 u16 depth; 6 u16 sequence
    /// ```
    pub(crate) fn first_of(&self, head: u64) -> u64 {
        let mut bytes = [0; 8];
        match self.machine.is_x86() {
            true => self.read(head, &mut bytes[..4]),
            false => self.read(head + 8, &mut bytes),
        };
        u64::from_le_bytes(bytes) & if self.machine.is_x86() { !0 } else { !0xf }
    }

    /// Makes an element, whose link is set, the first of an `_SLIST_HEADER`.
    pub(crate) fn push_entry(&mut self, head: u64, element: u64) {
        let mut bytes = [0; 8];
        if self.machine.is_x86() {
            self.read(head + 4, &mut bytes[..4]);
            // Depth and sequence number.
            let counts = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).wrapping_add(0x3_0001);
            self.write(head, &[(element as u32).to_le_bytes(), counts.to_le_bytes()].concat());
        } else {
            self.read(head, &mut bytes);
            let counts = u64::from_le_bytes(bytes).wrapping_add(0x3_0001);
            self.write(head, &[counts.to_le_bytes(), (element | 1).to_le_bytes()].concat());
        }
    }

    /// Puts a pointer into memory that is mapped for it if need be.
    pub(crate) fn put_pointer(&mut self, address: u64, value: u64) {
        let width = self.pointer();
        self.put(address, &value.to_le_bytes()[..width]);
    }

    /// Links list entries into a circle: each entry's `Flink` to the next one, `Blink` to the one before.
    pub(crate) fn link(&mut self, entries: &[u64]) {
        let width = self.pointer() as u64;
        for (at, entry) in entries.iter().enumerate() {
            let next = entries[(at + 1) % entries.len()];
            let previous = entries[(at + entries.len() - 1) % entries.len()];
            self.put_pointer(*entry, next);
            self.put_pointer(entry + width, previous);
        }
    }

    /// Writes an `RTL_RB_TREE` of `RTL_BALANCED_NODE`s, which are in ascending order.
    pub(crate) fn tree(&mut self, tree: u64, nodes: &[u64]) {
        let root = self.balanced(nodes, 0);
        self.put_pointer(tree, root);
        self.put_pointer(tree + self.pointer() as u64, nodes.first().copied().unwrap_or_default());
    }

    fn balanced(&mut self, nodes: &[u64], parent: u64) -> u64 {
        let middle = nodes.len() / 2;
        let Some(&node) = nodes.get(middle) else { return 0 };
        let left = self.balanced(&nodes[..middle], node);
        let right = self.balanced(&nodes[middle + 1..], node);
        for (place, value) in (0..).zip([left, right, parent]) {
            self.put_pointer(node + place * self.pointer() as u64, value);
        }
        node
    }

    pub(crate) fn read_physical(&self, address: u64, buffer: &mut [u8]) -> usize {
        let Some(source) = usize::try_from(address).ok().and_then(|at| self.physical.get(at..)) else { return 0 };
        let count = source.len().min(buffer.len());
        buffer[..count].copy_from_slice(&source[..count]);
        count
    }

    pub(crate) fn write_physical(&mut self, address: u64, bytes: &[u8]) -> usize {
        let start = usize::try_from(address).unwrap_or(usize::MAX).min(self.physical.len());
        let count = bytes.len().min(self.physical.len() - start);
        self.physical[start..start + count].copy_from_slice(&bytes[..count]);
        count
    }

    /// First place in the range where the whole pattern lies; what is not mapped is stepped over.
    pub(crate) fn search(&self, address: u64, length: u64, pattern: &[u8]) -> Option<u64> {
        let (&first, rest) = pattern.split_first()?;
        let address = self.own(address)?;
        // The last address at which the pattern may start.
        let last = address.saturating_add(length.checked_sub(pattern.len() as u64)?);
        let mut found = vec![0; rest.len()];
        let mut at = address;
        loop {
            at = self.next_mapped(at)?;
            if at > last {
                return None;
            }
            let (start, room) = self.translate(at, 0)?;
            let room = usize::try_from(last - at).unwrap_or(usize::MAX).saturating_add(1).min(room);
            let page = &self.physical[start..start + room];
            let mut from = 0;
            while let Some(hit) = page[from..].iter().position(|&byte| byte == first) {
                let candidate = at + (from + hit) as u64;
                if self.read(candidate.wrapping_add(1), &mut found) == rest.len() && found == rest {
                    return Some(candidate);
                }
                from += hit + 1;
            }
            at = (at | (PAGE - 1)).checked_add(1)?;
        }
    }

    /// The address itself or the start of the first mapped page above it.
    fn next_mapped(&self, mut address: u64) -> Option<u64> {
        'walk: loop {
            if self.own(address).is_none() {
                address = if self.machine.is_x86() { return None } else { 0xffff_8000_0000_0000 };
            }
            let mut table = self.root;
            for &shift in self.levels() {
                let value = self.entry(self.place(table, address, shift));
                if value & PRESENT == 0 {
                    // Everything below the missing entry is missing: step over all of it.
                    address = (address | ((1 << shift) - 1)).checked_add(1)?;
                    continue 'walk;
                }
                table = value & FRAME;
            }
            return Some(address);
        }
    }

    /// Where byte `address + done` is, and how many bytes of its page follow.
    fn translate(&self, address: u64, done: usize) -> Option<(usize, usize)> {
        let address = self.own(self.own(address)?.checked_add(done as u64)?)?;
        let mut table = self.root;
        for &shift in self.levels() {
            let value = self.entry(self.place(table, address, shift));
            if value & PRESENT == 0 {
                return None;
            }
            table = value & FRAME;
        }
        let offset = address & (PAGE - 1);
        let at = usize::try_from(table + offset).ok()?;
        let room = (PAGE - offset) as usize;
        (at + room <= self.physical.len()).then_some((at, room))
    }

    fn frame(&mut self) -> u64 {
        if let Some(frame) = self.free.pop() {
            self.physical[frame as usize..(frame + PAGE) as usize].fill(0);
            return frame;
        }
        let frame = self.physical.len() as u64;
        self.physical.resize(self.physical.len() + PAGE as usize, 0);
        frame
    }

    /// A page-table entry; 0, so not present, where a debugger wrote one that leads out of memory.
    fn entry(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read_physical(at, &mut bytes[..self.entry_size() as usize]);
        u64::from_le_bytes(bytes)
    }

    fn put_entry(&mut self, at: u64, value: u64) {
        let (at, size) = (at as usize, self.entry_size() as usize);
        self.physical[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_ends_at_the_first_missing_page() {
        let mut memory = Memory::new(Machine::X64, SELF_MAP);
        memory.put(0xffff_f800_0000_1ffe, b"ab");
        memory.put(0xffff_f800_0000_4000, b"cd");
        let mut buffer = [0xee; 8];
        assert_eq!(memory.read(0xffff_f800_0000_1ffe, &mut buffer), 2);
        assert_eq!(&buffer, b"ab\xee\xee\xee\xee\xee\xee");
        assert_eq!(memory.read(0xffff_f800_0000_3fff, &mut buffer), 0);
        assert_eq!(memory.read(0x0000_8000_0000_0000, &mut buffer), 0, "not canonical");
        assert_eq!(memory.read(u64::MAX, &mut buffer), 0, "no wrap past the top");
        assert_eq!(memory.write(0xffff_f800_0000_1fff, b"xyz"), 1);
    }

    #[test]
    fn unmapped_pages_are_gone_and_their_memory_is_used_again() {
        let mut memory = Memory::new(Machine::X64, SELF_MAP);
        let base = 0xffff_f8a0_0000_0000;
        memory.put(base, &[7; 0x3000]);
        let size = memory.physical.len();
        memory.unmap(base, 0x1001);
        let mut buffer = [0; 2];
        assert_eq!(memory.read(base + 0x1000, &mut buffer), 0);
        assert_eq!(memory.read(base + 0x1ffe, &mut buffer), 0);
        assert_eq!(memory.read(base + 0x2000, &mut buffer), 2);
        memory.map(base + 0x1000, 1);
        assert_eq!((memory.read(base + 0x1000, &mut buffer), buffer), (2, [0, 0]));
        assert_eq!(memory.physical.len(), size);
    }

    #[test]
    fn search_steps_over_holes_and_page_borders() {
        let mut memory = Memory::new(Machine::X64, SELF_MAP);
        let base = 0xffff_f800_0000_0000;
        memory.put(base + 0xffe, b"needle");
        memory.put(base + 0x4000_0ffd, b"nee");
        memory.put(base + 0x4000_2000, b"dle needle");
        assert_eq!(memory.search(0, u64::MAX, b"needle"), Some(base + 0xffe));
        assert_eq!(memory.search(base + 0xfff, u64::MAX / 2, b"needle"), Some(base + 0x4000_2004));
        assert_eq!(memory.search(base, 0x1000, b"needle"), None, "the match must end inside the range");
        assert_eq!(memory.search(base, 0x1004, b"needle"), Some(base + 0xffe));
        assert_eq!(memory.search(base, 0, b"needle"), None);
        assert_eq!(memory.search(base, 0x1000, b""), None);
    }

    #[test]
    fn every_machine_maps_its_page_tables() {
        for machine in [Machine::X86, Machine::X86Pae, Machine::X64, Machine::Arm64] {
            let mut memory = Memory::new(machine, 0x1f0);
            let address = if machine.is_x86() { 0x9801_2ffe } else { 0xffff_8a01_2345_6ffe };
            memory.put(address, b"abcd");
            let mut buffer = [0; 8];
            assert_eq!((memory.read(address, &mut buffer), &buffer[..4]), (8, &b"abcd"[..]), "{machine:?}");
            assert_eq!(memory.read(machine.extended(address), &mut buffer), 8);
            let size = memory.entry_size();
            let bits = if machine.is_x86() { 32 } else { 48 };
            let entry = memory.page_tables() + ((address & ((1 << bits) - 1)) >> 12) * size;
            let mut value = [0; 8];
            assert_eq!(memory.read(entry, &mut value[..size as usize]), size as usize, "{machine:?}");
            let mut page = [0; 4];
            memory.read_physical((u64::from_le_bytes(value) & FRAME) + 0xffe, &mut page[..2]);
            assert_eq!(&page[..2], b"ab", "{machine:?}");
            assert_eq!(memory.search(machine.extended(address) - 16, 0x40, b"bcd"), Some(address + 1), "{machine:?}");
            memory.page_out(address);
            assert_eq!(memory.read(address, &mut buffer), 0);
        }
    }

    #[test]
    fn the_self_map_shows_the_page_tables() {
        let mut memory = Memory::new(Machine::X64, SELF_MAP);
        memory.map(0xffff_f800_0000_0000, 1);
        let mut entry = [0; 8];
        // PXE of an address: PXE_BASE fffff6fb'7dbed000 + index * 8.
        assert_eq!(memory.read(0xffff_f6fb_7dbe_d000 + 0x1f0 * 8, &mut entry), 8);
        assert_eq!(u64::from_le_bytes(entry) & PRESENT, 1);
    }
}
