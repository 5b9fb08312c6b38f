//! `.formats expression`: one number in all its forms.
//!
//! ```text
//! Evaluate expression:
//!   Hex:     00000000`1c407e62
//!   Decimal: 473988706
//!   Octal:   0000000000003420077142
//!   Binary:  00000000 00000000 00000000 00000000 00011100 01000000 01111110 01100010
//!   Chars:   .....@~b
//!   Time:    Mon Jan  7 23:31:46 1985
//!   Float:   low 6.36908e-22 high 0
//!   Double:  2.34182e-315
//! ```

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Reply, Text};
use crate::command::{Action, CommandInfo, usage};
use crate::error::CommandError;
use crate::grammar::expression::evaluate_all;
use crate::schema::ResultShape;
use crate::session::Context;
use crate::text::{Hex, Width};

pub(in crate::commands) const INFO: CommandInfo = CommandInfo {
    names: &[".formats"],
    usage: ".formats expression",
    help: "show a number in several forms",
    details: "",
    results: &[ResultShape::of::<Formats>("formats")],
    action: Action::Answer(run),
};

/// From 1601 to 1970 in units of 100 ns.
const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

#[derive(JsonSchema, Serialize)]
struct Formats {
    value: Hex,
    decimal: String,
    octal: String,
    binary: String,
    chars: String,
    time: Option<String>,
    float_low: String,
    float_high: String,
    double: String,
    #[serde(skip)]
    width: Width,
}

fn run(context: &mut Context<'_>) -> Result<Reply, CommandError> {
    if context.arguments.is_empty() {
        return Err(usage(&INFO, "no expression"));
    }
    let value = evaluate_all(context.arguments, &mut context.scope())?;
    Ok(Reply::new(Formats::new(value, context.width())))
}

impl Formats {
    fn new(value: u64, width: Width) -> Self {
        let value = width.address(value);
        let size = width.bytes();
        let bytes = &value.to_be_bytes()[8 - size..];
        let decimal = match width {
            Width::Four => (value as i32).to_string(),
            Width::Eight => (value as i64).to_string(),
        };
        let digits = if size == 4 { 11 } else { 22 };
        let float = |bits: u32| general(f64::from(f32::from_bits(bits)));
        Self {
            value: Hex(value),
            decimal,
            octal: format!("{value:0digits$o}"),
            binary: bytes.iter().map(|byte| format!("{byte:08b}")).collect::<Vec<_>>().join(" "),
            chars: bytes.iter().map(|byte| if matches!(byte, 0x20..=0x7e) { *byte as char } else { '.' }).collect(),
            time: time(value),
            float_low: float(value as u32),
            float_high: float((value >> 32) as u32),
            double: general(f64::from_bits(value)),
            width,
        }
    }
}

/// Seconds since 1970 when it is that small, else FILETIME.
fn time(value: u64) -> Option<String> {
    let (time, fraction) = match i64::from(value as u32) {
        seconds if value >> 32 == 0 => (Timestamp::from_second(seconds).ok()?, false),
        _ => {
            let nanoseconds = (i128::from(value) - i128::from(UNIX_EPOCH)) * 100;
            (Timestamp::from_nanosecond(nanoseconds).ok()?, true)
        }
    };
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    Some(match fraction {
        false => time.strftime("%a %b %e %H:%M:%S %Y").to_string(),
        true => crate::text::time(&time),
    })
}

/// C's `%g`.
pub(in crate::commands) fn general(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string().to_ascii_lowercase();
    }
    if value == 0.0 {
        return "0".into();
    }
    let scientific = format!("{value:.5e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let short = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    match exponent {
        -4..6 => short(&format!("{value:.*}", usize::try_from(5 - exponent).unwrap_or(0))),
        _ => format!("{}e{}{:02}", short(digits), if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs()),
    }
}

impl Text for Formats {
    fn text(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "Evaluate expression:")?;
        writeln!(out, "  Hex:     {}", self.width.tick(self.value.0))?;
        writeln!(out, "  Decimal: {}", self.decimal)?;
        writeln!(out, "  Octal:   {}", self.octal)?;
        writeln!(out, "  Binary:  {}", self.binary)?;
        writeln!(out, "  Chars:   {}", self.chars)?;
        writeln!(out, "  Time:    {}", self.time.as_deref().unwrap_or("***** Invalid"))?;
        writeln!(out, "  Float:   low {} high {}", self.float_low, self.float_high)?;
        writeln!(out, "  Double:  {}", self.double)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: u64, width: Width) -> String {
        let mut text = String::new();
        Formats::new(value, width).text(&mut text).unwrap();
        text
    }

    #[test]
    fn the_documented_number() {
        assert_eq!(
            text(0x1c407e62, Width::Four),
            "Evaluate expression:\n  Hex:     1c407e62\n  Decimal: 473988706\n  Octal:   03420077142\n  \
             Binary:  00011100 01000000 01111110 01100010\n  Chars:   .@~b\n  Time:    Mon Jan  7 23:31:46 1985\n  \
             Float:   low 6.36908e-22 high 0\n  Double:  2.34182e-315\n"
        );
        let eight = text(u64::MAX, Width::Eight);
        assert!(eight.contains("  Decimal: -1\n  Octal:   1777777777777777777777\n"), "{eight}");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(1.0, "1"), (0.5, "0.5"), (123456.0, "123456"), (1234567.0, "1.23457e+06"), (-0.0001, "-0.0001")]
        {
            assert_eq!(general(value), text);
        }
    }
}
