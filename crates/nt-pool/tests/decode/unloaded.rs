//! The drivers that are gone.

use nt_pool::unloaded;

use crate::support::*;

/// Writes the ring with what was unloaded, oldest first.
fn world(version: Version, unloaded: &[(&str, u64, u64)]) -> World {
    let mut world = World::new(version);
    let pointer = u64::from(version.pointer);
    world.layout(
        "_UNICODE_STRING",
        2 * pointer,
        &[number("Length", 0, 2), number("MaximumLength", 2, 2), field("Buffer", pointer, pointer)],
    );
    let (table, names, slot) = (world.pool(1), world.pool(2), 4 * pointer + 8);
    world.write(table, &vec![0; 50 * slot as usize]);
    for (n, (name, start, end)) in unloaded.iter().enumerate() {
        let bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let (at, buffer) = (table + n as u64 % 50 * slot, names + n as u64 * 0x100);
        world.write(buffer, &bytes);
        world.put(at, bytes.len() as u64, 2);
        for (member, value) in [(pointer, buffer), (2 * pointer, *start), (3 * pointer, *end)] {
            world.put(at + member, value, version.pointer);
        }
    }
    world.pointer_variable("MmUnloadedDrivers", table);
    world.u32_variable("MmLastUnloadedDriver", unloaded.len() as u32 % 50);
    world
}

#[test]
fn the_last_one_at_a_place_is_named() {
    for version in [VISTA_X86, WIN7_X64, WIN11_21H2] {
        let place = World::new(version).pool(5);
        let mut gone = vec![("old.sys", place, place + 0x4000); 60];
        gone.push(("new.sys", place + 0x1000, place + 0x3000));
        let world = world(version, &gone);
        let kernel = world.kernel();
        let mut drivers = unloaded::drivers(&kernel).unwrap();
        assert_eq!(drivers.drivers.len(), 50);
        let mut name = |address| drivers.at(&kernel, address).unwrap();
        assert_eq!(name(place + 0x1000), Some(("new.sys".into(), place + 0x1000..place + 0x3000)));
        assert_eq!(name(place + 0x3000), Some(("old.sys".into(), place..place + 0x4000)));
        assert_eq!(name(place + 0x4000), None);
        assert!(drivers.notes.lines().is_empty());
    }
}

#[test]
fn nothing_unloaded_and_nothing_sensible() {
    let none = World::new(WIN7_X64);
    assert!(unloaded::drivers(&none.kernel()).unwrap().drivers.is_empty());
    let place = none.pool(5);

    let mut world = world(WIN7_X64, &[("a.sys", place, place + 1), ("b.sys", place + 9, place), ("c.sys", 7, 9)]);
    // The name is gone, and the index leads past the ring.
    let names = world.pool(2);
    world.unmap(names);
    let index = world.address_of("MmLastUnloadedDriver");
    world.put(index, 0xffff_ffff, 4);
    let kernel = world.kernel();
    let mut drivers = unloaded::drivers(&kernel).unwrap();
    assert_eq!(drivers.drivers.len(), 1);
    assert_eq!(drivers.at(&kernel, place).unwrap(), None);
    assert!(drivers.notes.lines()[0].contains("the name of the unloaded driver"), "{:?}", drivers.notes.lines());

    let table = world.address_of("MmUnloadedDrivers");
    world.put(table, 0x1000, 8);
    assert!(unloaded::drivers(&world.kernel()).unwrap_err().to_string().contains("no table in kernel memory"));
    world.put(table, 0, 8);
    assert!(unloaded::drivers(&world.kernel()).unwrap().drivers.is_empty());
}
