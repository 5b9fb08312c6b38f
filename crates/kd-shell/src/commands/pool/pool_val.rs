//! `!poolval address [level]`: whether the headers of a page of pool make sense.
//!
//! ```text
//! Pool page [ ffffe2809abee000 ] is INVALID.
//! ```
//!
//! kd holds the pages of a segment heap against the rules of the old pool and finds all of them invalid; here their own
//! rules count.

use std::fmt;

use nt_pool::around::{self, Contents};
use schemars::JsonSchema;
use serde::Serialize;

use super::balance::Balance;
use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::{evaluate_all, plain_number};
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &["!poolval"],
    usage: "!poolval address [level]",
    help: "check the headers of a page of pool",
    details: "Levels: 0 whether the page is valid, 1 and more its headers too. A chain that breaks is searched for single \
              bits\nthat were turned over.",
    results: &[ResultShape::of::<PoolVal>("poolval")],
    action: Action::Answer(run),
};

#[derive(Debug, JsonSchema, Serialize)]
struct PoolVal {
    address: Hex,
    page: Hex,
    region: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    bit_errors: Vec<BitError>,
    headers: Vec<Header>,
    /// What was counted twice, and whether it agrees.
    checks: Vec<Balance>,
    #[serde(skip)]
    width: Width,
}

#[derive(Debug, JsonSchema, Serialize)]
struct BitError {
    address: Hex,
    bit: u8,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Header {
    header: Hex,
    block_size: u64,
    previous_size: u64,
    tag: String,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    let text = context.arguments.trim();
    let (address, level) = match text.rsplit_once(char::is_whitespace) {
        Some((address, level)) => (address, plain_number(level).filter(|level| *level <= 3)),
        None => (text, Some(0)),
    };
    let level = level.ok_or_else(|| usage(&INFO, "levels are 0 to 3"))?;
    if address.is_empty() {
        return Err(usage(&INFO, "no address"));
    }
    let address = evaluate_all(address, &mut context.scope())?;
    let width = context.width();
    let address = width.address(address);
    let (found, bits) = context.pool(|kernel| {
        let found = around::read(kernel, address)?;
        let classic = found.problem.is_some() && !nt_pool::segment_heap::is_segment_heap(kernel)?;
        let bits = if classic { around::single_bit_errors(kernel, address)? } else { Vec::new() };
        Ok((found, bits))
    })?;
    let hex = |address: u64| Hex(width.address(address));
    let headers = match &found.contents {
        Contents::Blocks(blocks) if level > 0 => blocks
            .iter()
            .map(|block| Header {
                header: hex(block.header),
                block_size: block.block_size,
                previous_size: block.previous_size,
                tag: block.tag.to_string(),
            })
            .collect(),
        _ => Vec::new(),
    };
    let nothing =
        (found.contents == Contents::Nothing).then(|| "no pool headers and no large allocation are here".into());
    let problem = found.problem.or(nothing);
    let answer = PoolVal {
        address: hex(address),
        page: hex(found.page),
        region: found.pool.map_or("Unknown".into(), |pool| pool.to_string()),
        valid: problem.is_none(),
        problem,
        bit_errors: bits.into_iter().map(|(address, bit)| BitError { address: hex(address), bit }).collect(),
        headers,
        // Whether the page is valid is what was asked: a difference is the answer, and no doubt about it.
        checks: found.checks.iter().map(Balance::from).collect(),
        width,
    };
    Ok(Reply::with_notes(answer, found.notes))
}

impl Text for PoolVal {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let page = self.width.pointer(self.page.0);
        writeln!(out, "Pool page {} region is {}\n", self.width.pointer(self.address.0), self.region)?;
        writeln!(out, "Validating Pool headers for pool page: {page}\n")?;
        match &self.problem {
            None => writeln!(out, "Pool page [ {page} ] is VALID.")?,
            Some(problem) => {
                writeln!(out, "Pool page [ {page} ] is INVALID.\n\nAnalyzing linked list...\n{problem}\n\n")?;
                writeln!(out, "Scanning for single bit errors...\n")?;
                for BitError { address, bit } in &self.bit_errors {
                    writeln!(out, "bit {bit} of the byte at {} is turned over", self.width.pointer(address.0))?;
                }
                if self.bit_errors.is_empty() {
                    writeln!(out, "None found")?;
                }
            }
        }
        if !self.headers.is_empty() {
            writeln!(out)?;
        }
        for Header { header, block_size, previous_size, tag } in &self.headers {
            let header = self.width.pointer(header.0);
            writeln!(out, "[ {header} ]: size [ {block_size:#x} ] previous size [ {previous_size:#x} ] {tag}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// facts 8.4 and kd-ux 3.4.
    #[test]
    fn the_sample() {
        let mut found = PoolVal {
            address: Hex(0xffffbd06d46e0000),
            page: Hex(0xffffbd06d46e0000),
            region: "Paged pool".into(),
            valid: false,
            problem: Some("[ ffffbd06d46e0000 ]: invalid previous size [ 0x41 ] should be [ 0x0 ]".into()),
            bit_errors: Vec::new(),
            headers: Vec::new(),
            checks: Vec::new(),
            width: Width::Eight,
        };
        let text = |found: &PoolVal| {
            let mut text = String::new();
            found.text(&mut text).unwrap();
            text
        };
        assert_eq!(
            text(&found),
            "Pool page ffffbd06d46e0000 region is Paged pool

Validating Pool headers for pool page: ffffbd06d46e0000

Pool page [ ffffbd06d46e0000 ] is INVALID.

Analyzing linked list...
[ ffffbd06d46e0000 ]: invalid previous size [ 0x41 ] should be [ 0x0 ]


Scanning for single bit errors...

None found
"
        );
        found.problem = None;
        assert!(text(&found).ends_with("\n\nPool page [ ffffbd06d46e0000 ] is VALID.\n"));
    }
}
