//! The stacks as pprof reads them: `profile.proto`, gzipped.
//!
//! <https://github.com/google/pprof/blob/main/proto/profile.proto> is the format; only what is used of it is declared
//! here. Each stack is a sample with four values: blocks and bytes in use, and what both grew by since the mark.

use std::collections::BTreeMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use crate::check::CheckReport;
use crate::line::Line;
use crate::stack::{Frame, Module};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    /// The first is empty; others are named by their place.
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

/// What a value of a sample is: name and unit.
#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    /// Innermost first.
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

/// An image.
#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    /// GUID and age of its PDB, as symbol servers have them.
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

/// A frame.
#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    /// 0: of no image.
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<FunctionLine>,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionLine {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    /// The image's file: there are no names of sources.
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// `headline`: what the watch came to, which viewers show as a comment.
///
/// # Errors
///
/// None that a vector in memory would give.
pub fn pprof(report: &CheckReport, headline: Option<&str>) -> io::Result<Vec<u8>> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::default());
    zip.write_all(&Builder::profile(report, headline).encode_to_vec())?;
    zip.finish()
}

#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: BTreeMap<String, i64>,
    functions: BTreeMap<String, u64>,
    /// By address and name: a place may have no address.
    locations: BTreeMap<(u64, String), u64>,
}

impl Builder {
    fn profile(report: &CheckReport, headline: Option<&str>) -> Profile {
        let mut builder = Builder::default();
        builder.string("");
        for (name, unit) in [
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
            ("growth_objects", "count"),
            ("growth_space", "bytes"),
        ] {
            let (r#type, unit) = (builder.string(name), builder.string(unit));
            builder.profile.sample_type.push(ValueType { r#type, unit });
        }
        for module in &report.modules {
            builder.mapping(module);
        }
        for group in report.stacks.iter().chain(&report.unattributed) {
            let location_id = match group.id {
                Some(_) => group.frames.iter().map(|frame| builder.location(frame, &report.modules)).collect(),
                None => vec![builder.place(0, 0, "(not in the verifier's log)", 0)],
            };
            let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
            let value = vec![signed(group.count), signed(group.bytes), group.delta_count, group.delta_bytes];
            builder.profile.sample.push(Sample { location_id, value });
        }
        // A viewer shows first what grew, if anything did.
        let grew = report.stacks.iter().any(|group| group.delta_bytes > 0);
        builder.profile.default_sample_type = builder.string(if grew { "growth_space" } else { "inuse_space" });
        builder.profile.duration_nanos = i64::try_from(report.elapsed_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        if let Some(headline) = headline {
            let comment = builder.string(headline);
            builder.profile.comment.push(comment);
        }
        builder.profile
    }

    fn string(&mut self, text: &str) -> i64 {
        let next = i64::try_from(self.strings.len()).unwrap_or(i64::MAX);
        let place = *self.strings.entry(text.to_owned()).or_insert(next);
        if place == next {
            self.profile.string_table.push(text.to_owned().cleaned());
        }
        place
    }

    fn mapping(&mut self, module: &Module) {
        let pdb = module.pdb.as_ref().map_or(String::new(), |pdb| format!("{}{:X}", pdb.guid, pdb.age));
        let mapping = Mapping {
            id: self.profile.mapping.len() as u64 + 1,
            memory_start: module.base,
            memory_limit: module.base.wrapping_add(module.size.into()),
            filename: self.string(module.file.as_deref().unwrap_or(&module.name)),
            build_id: self.string(&pdb),
            has_functions: true,
        };
        self.profile.mapping.push(mapping);
    }

    fn location(&mut self, frame: &Frame, modules: &[Module]) -> u64 {
        let base = frame.address.wrapping_sub(frame.offset);
        let module = modules.iter().position(|module| frame.module.is_some() && module.base == base);
        let file = module.and_then(|place| self.profile.mapping.get(place)).map_or(0, |mapping| mapping.filename);
        // A function is one, wherever in it is called.
        let shown = frame.to_string();
        let name = match &frame.symbol {
            Some(_) => shown.rsplit_once("+0x").map_or(&shown[..], |(name, _)| name),
            None => &shown,
        };
        self.place(module.map_or(0, |place| place as u64 + 1), frame.address, name, file)
    }

    fn place(&mut self, mapping_id: u64, address: u64, name: &str, filename: i64) -> u64 {
        let key = (address, name.to_owned());
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let function_id = match self.functions.get(name) {
            Some(id) => *id,
            None => {
                let id = self.functions.len() as u64 + 1;
                let name_place = self.string(name);
                let function = Function { id, name: name_place, system_name: name_place, filename };
                self.profile.function.push(function);
                self.functions.insert(name.to_owned(), id);
                id
            }
        };
        let id = self.locations.len() as u64 + 1;
        self.profile.location.push(Location { id, mapping_id, address, line: vec![FunctionLine { function_id }] });
        self.locations.insert(key, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::check::Group;
    use crate::stack::{PdbName, Stacks};

    /// Protocol buffers read by hand, without what wrote them: number of a field, and its value or its bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            match key & 7 {
                0 => found.push((key >> 3, varint(&mut bytes), &[][..])),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    found.push((key >> 3, 0, &bytes[..length]));
                    bytes = &bytes[length..];
                }
                kind => panic!("kind {kind} is not in a profile"),
            }
        }
        found
    }

    fn packed(mut bytes: &[u8]) -> Vec<i64> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte < 0x80).unwrap() + 1;
            let value = bytes[..end].iter().rev().fold(0u64, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
            values.push(value as i64);
            bytes = &bytes[end..];
        }
        values
    }

    fn member(message: &[u8], number: u64) -> u64 {
        fields(message).iter().find(|field| field.0 == number).map_or(0, |field| field.1)
    }

    fn report() -> CheckReport {
        let frame = |module: &str, base: u64, offset, symbol: Option<&str>| Frame {
            address: base + offset,
            module: Some(module.into()),
            offset,
            symbol: symbol.map(Into::into),
        };
        let frames =
            vec![frame("myfault", 0x1_0000, 0x11f6, None), frame("nt", 0x8_0000, 0x142, Some("NtFlushKey+0x142"))];
        let mut group = Group {
            id: Some(Stacks::default().add(frames.clone())),
            bytes: 3_072_000,
            count: 3,
            delta_bytes: 2_048_000,
            delta_count: 2,
            frames,
        };
        let mut shrunk = group.clone();
        shrunk.frames.truncate(1);
        (shrunk.delta_bytes, shrunk.delta_count) = (-1_024_000, -1);
        let mut driver = Module { file: Some("myfault.sys".into()), ..Module::new(0x1_0000, 0x7000, "myfault") };
        driver.pdb = Some(PdbName { file: "myfault.pdb".into(), guid: "AB".repeat(16), age: 10 });
        let unattributed = Some(Group { id: None, frames: Vec::new(), ..group.clone() });
        group.bytes = 3_072_000;
        CheckReport {
            elapsed_ms: 4000,
            stacks: vec![group, shrunk],
            unattributed,
            modules: vec![driver, Module::new(0x8_0000, 0x1_0000, "nt")],
            ..CheckReport::default()
        }
    }

    #[test]
    fn another_reader_finds_the_stacks_and_their_numbers() {
        let zipped = pprof(&report(), Some("it leaks")).unwrap();
        assert_eq!(zipped[..2], [0x1f, 0x8b], "not gzip");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&zipped[..]).read_to_end(&mut bytes).unwrap();
        let all = fields(&bytes);
        let of = |number| -> Vec<&[u8]> { all.iter().filter(|field| field.0 == number).map(|field| field.2).collect() };
        let strings: Vec<&str> = of(6).iter().map(|text| std::str::from_utf8(text).unwrap()).collect();
        assert_eq!(strings[0], "");
        let string = |place: u64| strings[place as usize];
        let types: Vec<_> = of(1).iter().map(|kind| (string(member(kind, 1)), string(member(kind, 2)))).collect();
        assert_eq!(
            types,
            [
                ("inuse_objects", "count"),
                ("inuse_space", "bytes"),
                ("growth_objects", "count"),
                ("growth_space", "bytes")
            ]
        );
        let scalar = |number| all.iter().find(|field| field.0 == number).unwrap().1;
        assert_eq!((string(scalar(14)), scalar(10)), ("growth_space", 4_000_000_000));
        assert_eq!(packed(of(13)[0]).iter().map(|place| string(*place as u64)).collect::<Vec<_>>(), ["it leaks"]);

        let (mappings, locations, functions) = (of(3), of(4), of(5));
        assert_eq!(string(member(mappings[0], 5)), "myfault.sys");
        assert_eq!(string(member(mappings[0], 6)), format!("{}A", "AB".repeat(16)));
        assert_eq!((member(mappings[0], 2), member(mappings[0], 3)), (0x1_0000, 0x1_7000));
        let by_id = |list: &[&[u8]], id: u64| list.iter().position(|one| member(one, 1) == id).unwrap();
        let name = |location: i64| {
            let location = locations[by_id(&locations, location as u64)];
            let line = fields(location).iter().find(|field| field.0 == 4).unwrap().2;
            let function = functions[by_id(&functions, member(line, 1))];
            (string(member(function, 2)), member(location, 3), member(location, 2))
        };
        let samples: Vec<(Vec<_>, Vec<i64>)> = of(2)
            .iter()
            .map(|sample| {
                let inner = fields(sample);
                let list = |number| packed(inner.iter().find(|field| field.0 == number).unwrap().2);
                (list(1).into_iter().map(name).collect(), list(2))
            })
            .collect();
        let (driver, nt) = (("myfault+0x11f6", 0x1_11f6, 1), ("nt!NtFlushKey", 0x8_0142, 2));
        assert_eq!(samples[0], (vec![driver, nt], vec![3, 3_072_000, 2, 2_048_000]));
        assert_eq!(samples[1], (vec![driver], vec![3, 3_072_000, -1, -1_024_000]));
        assert_eq!(samples[2].0, [("(not in the verifier's log)", 0, 0)]);
        assert_eq!((locations.len(), functions.len()), (3, 3), "each place once");
    }
}
