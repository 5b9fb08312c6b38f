//! JSON of kdpool's against docs/schemas, for the tests of more than one crate.
//!
//! Here the schemas are read strictly: a member that they do not name is a mistake, so that nothing is printed that is
//! not described. A reader of the JSON must not be so strict: a later version may have more members.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "a test fails by panicking, and not each needs all")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use boon::{Compiler, SchemaIndex, Schemas};
use kd_shell::shapes_of;
use serde_json::{Map, Value};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Valid,
    /// What the validator says.
    Differs(String),
}

/// docs/schemas
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas")
}

pub(crate) fn schema(name: &str) -> Value {
    let path = folder().join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Forbids what a schema does not name.
fn strict(schema: &mut Value) {
    let mut parts = Vec::new();
    forbid_others(schema, false, &mut parts);
    for part in parts {
        if let Some(part) = schema.pointer_mut(&part).and_then(Value::as_object_mut) {
            part.remove("unevaluatedProperties");
        }
    }
}

/// What stands in an object's own `oneOf` describes the same object: it is for the object to forbid. Those of them that
/// stand elsewhere are told in `elsewhere`.
fn forbid_others(schema: &mut Value, same_object: bool, elsewhere: &mut Vec<String>) {
    let Some(members) = schema.as_object_mut() else { return };
    if same_object {
        elsewhere
            .extend(members.get("$ref").and_then(Value::as_str).map(|place| place.trim_start_matches('#').to_owned()));
    }
    let describes = members.contains_key("properties");
    for (name, value) in members.iter_mut() {
        match (name.as_str(), value) {
            ("oneOf" | "anyOf" | "allOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(|part| forbid_others(part, describes || same_object, elsewhere));
            }
            ("properties" | "$defs", Value::Object(parts)) => {
                parts.values_mut().for_each(|part| forbid_others(part, false, elsewhere))
            }
            ("items" | "additionalProperties", part) => forbid_others(part, false, elsewhere),
            _ => {}
        }
    }
    if describes && !same_object && !members.contains_key("additionalProperties") {
        members.insert("unevaluatedProperties".into(), false.into());
    }
}

struct Compiled {
    schemas: Schemas,
    by_name: HashMap<String, SchemaIndex>,
}

static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);

/// Whether a value is as docs/schemas/`name`.json says, with nothing beside it.
pub(crate) fn check(name: &str, value: &Value) -> Checked {
    let mut compiled = COMPILED.lock().unwrap();
    let Compiled { schemas, by_name } =
        compiled.get_or_insert_with(|| Compiled { schemas: Schemas::new(), by_name: HashMap::new() });
    let index = *by_name.entry(name.to_owned()).or_insert_with(|| {
        let mut schema = schema(name);
        strict(&mut schema);
        let place = format!("http://kdpool/{name}.json");
        let mut compiler = Compiler::new();
        compiler.add_resource(&place, schema).unwrap();
        compiler.compile(&place, schemas).unwrap_or_else(|error| panic!("{name}.json: {error}"))
    });
    match schemas.validate(value, index) {
        Ok(()) => Checked::Valid,
        Err(error) => Checked::Differs(format!("{error:#}")),
    }
}

/// Checks a line of `--format json`; returns the shape that its result has, if it has one.
pub(crate) fn check_record(record: &Value) -> Option<&'static str> {
    assert_eq!(check("record", record), Checked::Valid, "{record}");
    let command = record["command"].as_str().unwrap();
    let result = &record["result"];
    if result.is_null() {
        return None;
    }
    // `leak-report` of `!leak report`, before others that look alike.
    let named = command.trim_start_matches(['!', '.']).split_whitespace().take(2).collect::<Vec<_>>().join("-");
    let mut shapes = shapes_of(command).to_vec();
    shapes.sort_by_key(|shape| shape.name != named);
    let mut differs = String::new();
    for shape in shapes {
        match check(shape.name, result) {
            Checked::Valid => return Some(shape.name),
            Checked::Differs(why) => differs.push_str(&format!("\n{}: {why}", shape.name)),
        }
    }
    panic!("{command}: its result is of none of the shapes of the command:{differs}\n{result}")
}

/// Checks an answer of a tool of `kdpool mcp`.
pub(crate) fn check_tool(answer: &Value) {
    assert_eq!(check("mcp", answer), Checked::Valid, "{answer}");
    if answer["command"].is_string() {
        let mut record: Map<String, Value> = answer.as_object().unwrap().clone();
        record.remove("target");
        check_record(&record.into());
    }
}
