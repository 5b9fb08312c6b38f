//! The tools: each is one question of the shell, with arguments of its own.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::arguments::{BadArgument, expression, number, tag, word};

/// What is to be done for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A line of the shell, with the target stopped.
    Line(String),
    /// A line that lets the target run between its looks and has an end of its own.
    Watch(String),
    /// What is known without stopping the target.
    Status,
    /// The target is let go.
    Run,
}

/// A tool's arguments, which know their line.
trait Question: DeserializeOwned + JsonSchema {
    fn ask(self) -> Result<Ask, BadArgument>;
}

/// A tool: its name, what a client is told of it, and how its arguments become a command.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    about: &'static str,
    /// It changes the target's memory or registers, or can.
    pub(crate) writes: bool,
    schema: fn() -> JsonObject,
    pub(crate) ask: fn(JsonObject) -> Result<Ask, BadArgument>,
}

impl Entry {
    const fn new<Q: Question>(name: &'static str, about: &'static str) -> Entry {
        Entry { name, about, writes: false, schema: schema::<Q>, ask: ask::<Q> }
    }

    const fn writing(self) -> Entry {
        Entry { writes: true, ..self }
    }

    /// As the client is told of it.
    pub(crate) fn tool(&self) -> Tool {
        let annotations = ToolAnnotations::new().read_only(!self.writes).destructive(self.writes).open_world(false);
        Tool::new(self.name, self.about, Arc::new((self.schema)())).with_annotations(annotations)
    }
}

fn schema<Q: Question>() -> JsonObject {
    match schemars::schema_for!(Q).to_value() {
        serde_json::Value::Object(object) => object,
        // A structure's schema is an object.
        _ => JsonObject::new(),
    }
}

fn ask<Q: Question>(arguments: JsonObject) -> Result<Ask, BadArgument> {
    let question: Q =
        serde_json::from_value(serde_json::Value::Object(arguments)).map_err(|error| BadArgument(error.to_string()))?;
    question.ask()
}

/// All tools, in the order in which they are listed.
pub(crate) const TOOLS: &[Entry] = &[
    Entry::new::<Status>(
        "target",
        "Whether the target is connected, runs or stands still, and what the session cost. Stops nothing.",
    ),
    Entry::new::<Run>(
        "run",
        "Let the target run now. It runs by itself when its lease ends; the next question stops it again.",
    ),
    Entry::new::<Version>("version", "The target's Windows version, kernel base, time and uptime."),
    Entry::new::<Tags>(
        "pool_tags",
        "Pool in use by tag: allocations, frees, bytes, description (!poolused). Compare two calls to see what grows.",
    ),
    Entry::new::<Top>(
        "pool_top",
        "The pool on one screen: totals, the biggest tags and block sizes (!pooltop). Small answer; begin here.",
    ),
    Entry::new::<Find>("pool_find", "The live blocks of one tag (!poolfind)."),
    Entry::new::<Block>("pool_block", "The pool block that an address lies in, and the others of its page (!pool)."),
    Entry::new::<Verifier>(
        "verifier",
        "Driver Verifier: its settings and the verified drivers, and with `allocations` what they hold (!verifier 1 or 3).",
    ),
    Entry::new::<VerifierLog>(
        "verifier_log",
        "Driver Verifier's pool log: who allocated and who freed, newest first, with call stacks (!verifier 0x80).",
    ),
    Entry::new::<Mark>("leak_mark", "Remember a tag's blocks, for leak_check (!leak mark)."),
    Entry::new::<Check>(
        "leak_check",
        "What became of the marked blocks: still, freed, reused, new or unknown, each with evidence, grouped by stack (!leak check). Let the target run in between.",
    ),
    Entry::new::<Watch>(
        "leak_watch",
        "Mark a tag, let the target run, look again several times, and say whether it leaks and who allocates it (!leak watch). Takes times * every_seconds.",
    ),
    Entry::new::<Freed>("leak_freed", "Who freed a block: the history of its address, newest first (!leak freed)."),
    Entry::new::<Modules>("modules", "The loaded drivers, with base, size and symbols (lm)."),
    Entry::new::<Nearest>("symbol_near", "The symbols before and after an address (ln)."),
    Entry::new::<Symbols>("symbols", "Symbols by name, with wildcards: module!pattern (x)."),
    Entry::new::<Evaluate>(
        "evaluate",
        "The value of an expression: symbols, registers, poi() and arithmetic, in hexadecimal (?).",
    ),
    Entry::new::<Memory>(
        "memory",
        "The target's memory, as numbers, pointers with symbols, or text (db, dd, dq, dps, da, du).",
    ),
    Entry::new::<Layout>("type", "A structure of the target's symbols, with an address its values (dt)."),
    Entry::new::<Stack>("stack", "The call stack of the processor that stopped (k)."),
    Entry::new::<Processes>("processes", "The processes (!process 0 0)."),
    Entry::new::<Trace>(
        "leak_trace",
        "Stop at each allocation of a tag for a while and collect stacks (!leak trace). Writes nt!PoolHitTag.",
    )
    .writing(),
    Entry::new::<Command>("command", "Any line of the shell, as typed at its prompt; writes where the line writes.")
        .writing(),
];

fn line(text: impl Into<String>) -> Result<Ask, BadArgument> {
    Ok(Ask::Line(text.into()))
}

macro_rules! no_arguments {
    ($($name:ident => $ask:expr;)*) => {$(
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct $name {}

        impl Question for $name {
            fn ask(self) -> Result<Ask, BadArgument> {
                Ok($ask)
            }
        }
    )*};
}

no_arguments! {
    Status => Ask::Status;
    Run => Ask::Run;
    Version => Ask::Line("vertarget".into());
    Processes => Ask::Line("!process 0 0".into());
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Pool {
    Nonpaged,
    Paged,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tags {
    /// Sort by this pool's bytes.
    sort: Option<Pool>,
    /// Only this tag; wildcards * and ?. Without it all tags come, thousands on a real machine.
    tag: Option<String>,
}

impl Question for Tags {
    fn ask(self) -> Result<Ask, BadArgument> {
        let flags = match self.sort {
            None => 0,
            Some(Pool::Nonpaged) => 2,
            Some(Pool::Paged) => 4,
        };
        match &self.tag {
            None => line(format!("!poolused {flags}")),
            Some(text) => line(format!("!poolused {flags} {}", tag(text)?)),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    Bytes,
    Count,
    Growth,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Top {
    /// How many tags and sizes, 1 to 1000; 16 without it.
    count: Option<u64>,
    /// What they are sorted by; `growth` is since the last pool_top.
    by: Option<By>,
}

impl Question for Top {
    fn ask(self) -> Result<Ask, BadArgument> {
        let mut text = String::from("!pooltop");
        if let Some(count) = self.count {
            text.push_str(&format!(" {}", number("count", count, 1000)?));
        }
        text.push_str(match self.by {
            None => "",
            Some(By::Bytes) => " -by bytes",
            Some(By::Count) => " -by count",
            Some(By::Growth) => " -by growth",
        });
        line(text)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Find {
    /// Up to four characters; wildcards * and ?.
    tag: String,
    /// Only this pool.
    pool: Option<Pool>,
    /// Search blocks below a page too, whatever that costs; without it they are searched when the counters say that
    /// there are some.
    small: Option<bool>,
    /// Read at most this many megabytes of pool, 1 to 65536.
    limit_mb: Option<u64>,
}

impl Question for Find {
    fn ask(self) -> Result<Ask, BadArgument> {
        let mut text = format!("!poolfind {}", tag(&self.tag)?);
        text.push_str(match self.pool {
            None => "",
            Some(Pool::Nonpaged) => " -nonpaged",
            Some(Pool::Paged) => " -paged",
        });
        text.push_str(match self.small {
            None => "",
            Some(true) => " -small",
            Some(false) => " -large",
        });
        if let Some(limit) = self.limit_mb {
            text.push_str(&format!(" -limit {}", number("limit_mb", limit, 65536)?));
        }
        line(text)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Block {
    /// An address in hexadecimal, or an expression without blanks.
    address: String,
}

impl Question for Block {
    fn ask(self) -> Result<Ask, BadArgument> {
        line(format!("!pool {}", word("address", &self.address)?))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Verifier {
    /// The drivers' outstanding allocations too.
    allocations: Option<bool>,
    /// Only this driver, such as myfault.sys.
    driver: Option<String>,
}

impl Question for Verifier {
    fn ask(self) -> Result<Ask, BadArgument> {
        let flags = if self.allocations == Some(true) { 3 } else { 1 };
        match &self.driver {
            None => line(format!("!verifier {flags}")),
            Some(driver) => line(format!("!verifier {flags} {}", word("driver", driver)?)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct VerifierLog {
    /// Only records of this block.
    address: Option<String>,
    /// Without an address: at most this many records, 1 to 65536; 100 without it.
    newest: Option<u64>,
    /// Only records of this tag's blocks.
    tag: Option<String>,
    /// Only records with this driver on their stacks.
    driver: Option<String>,
    /// Only records after this index, which an earlier answer has.
    since: Option<u64>,
    /// By stack, with counts and bytes, instead of one by one.
    group: Option<bool>,
    /// Only allocations that no later record frees.
    outstanding: Option<bool>,
}

impl Question for VerifierLog {
    fn ask(self) -> Result<Ask, BadArgument> {
        let mut text = String::from("!verifier 0x80");
        let newest = number("newest", self.newest.unwrap_or(100), 0x10000)?;
        match &self.address {
            Some(address) => text.push_str(&format!(" {}", word("address", address)?)),
            None => text.push_str(&format!(" {newest}")),
        }
        if let Some(given) = &self.tag {
            text.push_str(&format!(" -tag {}", tag(given)?));
        }
        if let Some(driver) = &self.driver {
            text.push_str(&format!(" -driver {}", word("driver", driver)?));
        }
        if let Some(since) = self.since {
            text.push_str(&format!(" -since 0x{since:x}"));
        }
        if self.group == Some(true) {
            text.push_str(" -group");
        }
        if self.outstanding == Some(true) {
            text.push_str(" -outstanding");
        }
        line(text)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// Four characters; without it all large allocations are marked.
    tag: Option<String>,
    /// The mark's name: letters and digits; `mark` without it.
    name: Option<String>,
}

/// A mark becomes a file's name.
fn name(text: &str) -> Result<&str, BadArgument> {
    let good = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // A word of four letters could be a tag.
    match good {
        true => Ok(text),
        false => Err(BadArgument(format!("name: '{}' is not 1 to 64 letters and digits", text.escape_debug()))),
    }
}

impl Question for Mark {
    fn ask(self) -> Result<Ask, BadArgument> {
        let mut text = format!("!leak mark {}", self.name.as_deref().map_or(Ok("mark"), name)?);
        if let Some(given) = &self.tag {
            text.push_str(&format!(" {}", tag(given)?));
        }
        line(text)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Check {
    /// The mark's name; the last one without it.
    name: Option<String>,
}

impl Question for Check {
    fn ask(self) -> Result<Ask, BadArgument> {
        match &self.name {
            None => line("!leak check"),
            Some(text) => line(format!("!leak check {}", name(text)?)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Watch {
    /// Four characters.
    tag: String,
    /// Number of looks, 1 to 100; 4 without it.
    times: Option<u64>,
    /// Seconds between two looks, 1 to 3600; 5 without it.
    every_seconds: Option<u64>,
}

impl Question for Watch {
    fn ask(self) -> Result<Ask, BadArgument> {
        let (times, every) = (self.times.unwrap_or(4), self.every_seconds.unwrap_or(5));
        number("times", times, 100)?;
        number("every_seconds", every, 3600)?;
        Ok(Ask::Watch(format!("!leak watch {} -every {every}s -times {times}", tag(&self.tag)?)))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Freed {
    /// The block's address.
    address: String,
}

impl Question for Freed {
    fn ask(self) -> Result<Ask, BadArgument> {
        line(format!("!leak freed {}", word("address", &self.address)?))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Modules {
    /// Only modules whose name matches; wildcards * and ?.
    pattern: Option<String>,
}

impl Question for Modules {
    fn ask(self) -> Result<Ask, BadArgument> {
        match &self.pattern {
            None => line("lm"),
            Some(pattern) => line(format!("lm m {}", word("pattern", pattern)?)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nearest {
    /// An address in hexadecimal, or an expression without blanks.
    address: String,
}

impl Question for Nearest {
    fn ask(self) -> Result<Ask, BadArgument> {
        line(format!("ln {}", word("address", &self.address)?))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Symbols {
    /// module!name; wildcards * and ?.
    pattern: String,
}

impl Question for Symbols {
    fn ask(self) -> Result<Ask, BadArgument> {
        line(format!("x {}", word("pattern", &self.pattern)?))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Evaluate {
    /// Numbers are hexadecimal, 0n makes them decimal; nt!Foo is a symbol's address, @rip a register, poi(a) a pointer.
    expression: String,
}

impl Question for Evaluate {
    fn ask(self) -> Result<Ask, BadArgument> {
        line(format!("? {}", expression("expression", &self.expression)?))
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum View {
    /// Bytes (db).
    Bytes,
    /// Numbers of four bytes (dd).
    Dwords,
    /// Numbers of eight bytes (dq).
    Qwords,
    /// Pointers with the symbols they lie in (dps).
    Symbols,
    /// Text of one byte a character (da).
    Ascii,
    /// Text of two bytes a character (du).
    Unicode,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// An address in hexadecimal, or an expression without blanks.
    address: String,
    /// How it is read; `qwords` without it.
    view: Option<View>,
    /// How many of them, 1 to 4096; 16 without it.
    count: Option<u64>,
}

impl Question for Memory {
    fn ask(self) -> Result<Ask, BadArgument> {
        let command = match self.view.unwrap_or(View::Qwords) {
            View::Bytes => "db",
            View::Dwords => "dd",
            View::Qwords => "dq",
            View::Symbols => "dps",
            View::Ascii => "da",
            View::Unicode => "du",
        };
        let count = number("count", self.count.unwrap_or(16), 4096)?;
        line(format!("{command} {} L{count}", word("address", &self.address)?))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Layout {
    /// module!type, such as nt!_EPROCESS.
    name: String,
    /// Where one lies.
    address: Option<String>,
}

impl Question for Layout {
    fn ask(self) -> Result<Ask, BadArgument> {
        let name = word("name", &self.name)?;
        match &self.address {
            None => line(format!("dt {name}")),
            Some(address) => line(format!("dt {name} {}", word("address", address)?)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Stack {
    /// At most this many frames, 1 to 256.
    frames: Option<u64>,
}

impl Question for Stack {
    fn ask(self) -> Result<Ask, BadArgument> {
        match self.frames {
            None => line("k"),
            Some(frames) => line(format!("k {}", number("frames", frames, 256)?)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Trace {
    /// Four characters.
    tag: String,
    /// End after this many hits, 1 to 1000; 20 without it.
    hits: Option<u64>,
    /// End after this many seconds, 1 to 600; 20 without it.
    seconds: Option<u64>,
}

impl Question for Trace {
    fn ask(self) -> Result<Ask, BadArgument> {
        let (hits, seconds) = (self.hits.unwrap_or(20), self.seconds.unwrap_or(20));
        number("hits", hits, 1000)?;
        number("seconds", seconds, 600)?;
        Ok(Ask::Watch(format!("!leak trace {} -hits {hits} -for {seconds}s", tag(&self.tag)?)))
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Command {
    /// The line. `q` does not end the server.
    line: String,
}

impl Question for Command {
    fn ask(self) -> Result<Ask, BadArgument> {
        match self.line.contains(['\n', '\r', '\0']) {
            true => Err(BadArgument("line: it has more than one".into())),
            false => line(self.line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(tool: &str, arguments: serde_json::Value) -> Result<Ask, BadArgument> {
        let entry = TOOLS.iter().find(|entry| entry.name == tool).unwrap();
        (entry.ask)(arguments.as_object().unwrap().clone())
    }

    #[test]
    fn tools_are_lines_of_the_shell() {
        for (tool, arguments, line) in [
            ("pool_tags", json!({ "sort": "paged" }), "!poolused 4"),
            ("pool_find", json!({ "tag": "Leak", "small": true }), "!poolfind \"Leak\" -small"),
            ("pool_block", json!({ "address": "fffff8a005800000" }), "!pool fffff8a005800000"),
            ("verifier_log", json!({ "address": "0x1000", "group": true }), "!verifier 0x80 0x1000 -group"),
            ("memory", json!({ "address": "nt!PoolBigPageTable", "view": "symbols" }), "dps nt!PoolBigPageTable L0x10"),
            ("type", json!({ "name": "nt!_POOL_HEADER" }), "dt nt!_POOL_HEADER"),
        ] {
            assert_eq!(asked(tool, arguments), Ok(Ask::Line(line.into())));
        }
        let watch = asked("leak_watch", json!({ "tag": "Leak", "every_seconds": 1 }));
        assert_eq!(watch, Ok(Ask::Watch("!leak watch \"Leak\" -every 1s -times 4".into())));
    }

    #[test]
    fn what_is_no_argument_is_refused() {
        for (tool, arguments) in [
            ("pool_tags", json!({ "flags": 2 })),
            ("pool_find", json!({})),
            ("pool_find", json!({ "tag": "Leak -x q" })),
            ("pool_block", json!({ "address": "1; ed nt!PoolHitTag 0" })),
            ("pool_block", json!({ "address": 4096 })),
            ("memory", json!({ "address": "1000", "count": 5000 })),
            ("leak_mark", json!({ "name": "../../etc/passwd" })),
            ("leak_watch", json!({ "tag": "Leak", "times": 0 })),
            ("symbols", json!({ "pattern": "nt!* -x" })),
        ] {
            assert!(asked(tool, arguments.clone()).is_err(), "{tool} {arguments}");
        }
    }

    #[test]
    fn every_tool_has_a_schema_that_names_its_arguments() {
        for entry in TOOLS {
            let tool = entry.tool();
            assert_eq!(tool.input_schema["type"], "object", "{}", entry.name);
            assert_eq!(tool.input_schema["additionalProperties"], false, "{}", entry.name);
            assert_eq!(tool.annotations.unwrap().read_only_hint, Some(!entry.writes));
        }
    }
}
