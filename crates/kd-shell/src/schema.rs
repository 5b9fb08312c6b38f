//! What answers look like in JSON: a JSON Schema of each, made from the type that is written. docs/schemas holds them,
//! docs/json.md says what is promised of them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use crate::answer::Done;
use crate::commands::{TABLE, commands};
use crate::grammar::line::command;
use crate::output::Record;

/// The `result` of a command, or of one way to call it.
#[derive(Debug, Clone, Copy)]
pub struct ResultShape {
    /// Of its file, without an ending: `poolused`, `leak-check`.
    pub name: &'static str,
    schema: fn(SchemaGenerator) -> Schema,
}

impl ResultShape {
    /// The shape of everything that is written from a `T`.
    pub const fn of<T: JsonSchema>(name: &'static str) -> Self {
        ResultShape { name, schema: SchemaGenerator::into_root_schema_for::<T> }
    }

    /// Of commands that answer with `{}`.
    pub(crate) const NOTHING: ResultShape = ResultShape::of::<Done>("nothing");

    /// The JSON Schema, draft 2020-12. What is not in it may come with a later version.
    pub fn schema(&self) -> Value {
        // What is written, and not what would be read: a field that is always there is required.
        let settings = SchemaSettings::draft2020_12().for_serialize();
        let mut schema = Value::from((self.schema)(settings.into_generator()));
        if let Some(members) = schema.as_object_mut() {
            // A Rust type's name; it is told from here on by the file's.
            members.insert("title".into(), self.name.into());
        }
        schema
    }
}

/// A command's whole line, whatever its result.
const RECORD: ResultShape = ResultShape::of::<Record<'static>>("record");

/// Every shape once: of a line, and of the results in the order of help.
pub fn shapes() -> Vec<ResultShape> {
    let mut shapes = vec![RECORD];
    for shape in commands().iter().flat_map(|info| info.results) {
        if shapes.iter().all(|known| known.name != shape.name) {
            shapes.push(*shape);
        }
    }
    shapes
}

/// What the result of a command can look like, as it was typed; nothing of what is no command.
pub fn shapes_of(text: &str) -> &'static [ResultShape] {
    command(text).and_then(|command| TABLE.find(&command.word)).map_or(&[], |info| info.results)
}

/// A number that is written in hexadecimal.
pub(crate) fn hexadecimal(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "string", "pattern": "^0x[0-9a-f]{1,16}$" })
}
