//! MASM expressions: kd's default, unsigned 64-bit arithmetic with radix 16.
//!
//! ```text
//! lowest    and & xor ^ or |        left to right, one level
//!           < > <= >= = == !=
//!           << >> >>>
//!           + -
//!           * / mod %
//! highest   - + not hi low by wo dwo qwo poi      then numbers, symbols, @registers, 'tags', ( )
//! ```
//!
//! `$spat("text", "pattern")`, `$scmp("a", "b")` and `$sicmp` compare text, `$vvalid(address, length)` asks whether memory
//! can be read, `@@c++(...)` and `@@(...)` hold an expression of the other kind.
//!
//! An expression is parsed into a postfix program and run on a stack: the depth of the input never becomes depth of the
//! call stack beyond [`MAX_DEPTH`].

use nom::branch::alt;
use nom::bytes::complete::{is_not, tag, take_while, take_while1};
use nom::character::complete::{char, multispace0, satisfy};
use nom::combinator::{opt, recognize};
use nom::sequence::{delimited, pair, preceded};
use nom::{IResult, Parser};
use nt_memory::{Fault, ReadError};
use nt_symbols::matches_glob;

use super::block::enclosed;

/// Parentheses and unary operators inside each other.
pub const MAX_DEPTH: usize = 64;

/// Where names and memory come from.
pub trait Scope {
    /// The address of `name` (`nt!Foo`, `Foo`, `nt`).
    fn symbol(&mut self, name: &str) -> Result<Option<u64>, ScopeError>;
    /// The value of a register or pseudo-register, without its `@`.
    fn register(&mut self, name: &str) -> Result<Option<u64>, ScopeError>;
    /// `size` bytes (1, 2, 4, 8) at `address`, little endian.
    fn read(&mut self, address: u64, size: usize, physical: bool) -> Result<u64, ScopeError>;
    /// Whether all of a piece of memory can be read.
    fn is_readable(&mut self, address: u64, length: u64) -> Result<bool, ScopeError>;
    /// The value of a C++ expression.
    fn typed(&mut self, text: &str) -> Result<u64, ScopeError>;
    /// 4 or 8.
    fn pointer_size(&self) -> u8;
    /// Of numbers without a prefix: 8, 10 or 16.
    fn radix(&self) -> u32 {
        16
    }
}

/// Why a name or a piece of memory could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Nothing can be had any more.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Memory that cannot be read.
    #[error(transparent)]
    Hole(ReadError),
    /// Another reason, as a sentence.
    #[error("{0}")]
    Because(String),
}

impl From<ReadError> for ScopeError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Fault(fault) => Self::Fault(fault),
            hole => Self::Hole(hole),
        }
    }
}

/// kd's words, with the rest of the text from where it went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// A name that nobody knows.
    #[error("Couldn't resolve error at '{at}'")]
    Unresolved {
        /// Where in the expression.
        at: String,
    },
    /// A name whose value could not be had.
    #[error("Couldn't resolve error at '{at}': {why}")]
    UnresolvedBecause {
        /// Where in the expression.
        at: String,
        /// What hinders: memory that cannot be read, or a reason as a sentence.
        why: ScopeError,
    },
    /// It ends where a value is wanted.
    #[error("Numeric expression missing from '{at}'")]
    Missing {
        /// Where in the expression.
        at: String,
    },
    /// Something stands there that does not belong there.
    #[error("Syntax error at '{at}'")]
    Syntax {
        /// Where in the expression.
        at: String,
    },
    /// A number of more than 64 bits.
    #[error("Overflow error at '{at}'")]
    Overflow {
        /// Where in the expression.
        at: String,
    },
    /// A division by 0.
    #[error("Divide by zero at '{at}'")]
    DivideByZero {
        /// Where in the expression.
        at: String,
    },
    /// `poi` and its like, of memory that cannot be read.
    #[error("Memory access error at '{at}': {why}")]
    Memory {
        /// Where in the expression.
        at: String,
        /// Where reading ended, or why it did not begin.
        why: ScopeError,
    },
    /// The source of memory is gone, or Ctrl+C was pressed.
    #[error(transparent)]
    Fault(Fault),
    /// Brackets within brackets, deeper than anybody writes.
    #[error("Expression nested more than {MAX_DEPTH} levels at '{at}'")]
    TooDeep {
        /// Where in the expression.
        at: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binary {
    And,
    Xor,
    Or,
    Less,
    Greater,
    LessEqual,
    GreaterEqual,
    Equal,
    NotEqual,
    ShiftLeft,
    ShiftRight,
    ShiftRightArithmetic,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

impl Binary {
    fn level(self) -> u8 {
        use Binary::*;
        match self {
            And | Xor | Or => 0,
            Less | Greater | LessEqual | GreaterEqual | Equal | NotEqual => 1,
            ShiftLeft | ShiftRight | ShiftRightArithmetic => 2,
            Add | Subtract => 3,
            Multiply | Divide | Modulo => 4,
        }
    }

    fn apply(self, a: u64, b: u64) -> Option<u64> {
        use Binary::*;
        // A count that does not fit the width shifts everything out.
        let count = u32::try_from(b).unwrap_or(u32::MAX);
        Some(match self {
            And => a & b,
            Xor => a ^ b,
            Or => a | b,
            Less => (a < b).into(),
            Greater => (a > b).into(),
            LessEqual => (a <= b).into(),
            GreaterEqual => (a >= b).into(),
            Equal => (a == b).into(),
            NotEqual => (a != b).into(),
            ShiftLeft => a.checked_shl(count).unwrap_or(0),
            ShiftRight => a.checked_shr(count).unwrap_or(0),
            ShiftRightArithmetic => ((a as i64) >> count.min(63)) as u64,
            Add => a.wrapping_add(b),
            Subtract => a.wrapping_sub(b),
            Multiply => a.wrapping_mul(b),
            Divide => a.checked_div(b)?,
            Modulo => a.checked_rem(b)?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unary {
    Negate,
    /// Logical: 1 when the operand is 0.
    Not,
    High,
    Low,
    Read {
        /// 0: a pointer.
        size: u8,
        physical: bool,
    },
}

fn unary_word(word: &str) -> Option<Unary> {
    let read = |size, physical| Unary::Read { size, physical };
    Some(match word.to_ascii_lowercase().as_str() {
        "not" => Unary::Not,
        "hi" => Unary::High,
        "low" => Unary::Low,
        "by" => read(1, false),
        "wo" => read(2, false),
        "dwo" => read(4, false),
        "qwo" => read(8, false),
        "poi" => read(0, false),
        "$pby" => read(1, true),
        "$pwo" => read(2, true),
        "$pdwo" => read(4, true),
        "$pqwo" => read(8, true),
        "$ppoi" => read(0, true),
        _ => return None,
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step<'a> {
    Number(u64),
    Symbol(&'a str),
    Register(&'a str),
    /// A C++ expression.
    Typed(&'a str),
    Unary(Unary),
    Binary(Binary),
    /// Whether memory can be read: address, length.
    IsReadable,
}

/// A step and the input from where it was written.
type Placed<'a> = (Step<'a>, &'a str);

/// Evaluates the longest expression at the start of `input`; returns its value and what follows.
pub fn evaluate<'a>(input: &'a str, scope: &mut dyn Scope) -> Result<(u64, &'a str), ExpressionError> {
    let mut program = Vec::new();
    let left = level(input, 0, (0, scope.radix()), &mut program)?;
    Ok((run(&program, scope)?, left))
}

/// Evaluates `input`, all of it.
pub fn evaluate_all(input: &str, scope: &mut dyn Scope) -> Result<u64, ExpressionError> {
    let (value, left) = evaluate(input, scope)?;
    match left.trim() {
        "" => Ok(value),
        left => Err(ExpressionError::Syntax { at: left.into() }),
    }
}

/// What follows the longest expression at the start of `input`. Nothing is looked up for it.
pub fn expression_end(input: &str) -> Result<&str, ExpressionError> {
    level(input, 0, (0, 16), &mut Vec::new())
}

fn level<'a>(
    input: &'a str,
    lowest: u8,
    (depth, radix): (usize, u32),
    program: &mut Vec<Placed<'a>>,
) -> Result<&'a str, ExpressionError> {
    let mut left = operand(input, (depth, radix), program)?;
    while let Ok((after, operator)) = binary(left) {
        if operator.level() < lowest {
            break;
        }
        let at = left.trim_start();
        left = level(after, operator.level() + 1, (depth, radix), program)?;
        program.push((Step::Binary(operator), at));
    }
    Ok(left)
}

fn operand<'a>(
    input: &'a str,
    (depth, radix): (usize, u32),
    program: &mut Vec<Placed<'a>>,
) -> Result<&'a str, ExpressionError> {
    let input = input.trim_start();
    if input.is_empty() {
        return Err(ExpressionError::Missing { at: String::new() });
    }
    if depth >= MAX_DEPTH {
        return Err(ExpressionError::TooDeep { at: input.into() });
    }
    if let Some(after) = input.strip_prefix('(') {
        let after = level(after, 0, (depth + 1, radix), program)?.trim_start();
        return after.strip_prefix(')').ok_or_else(|| ExpressionError::Syntax { at: after.into() });
    }
    if let Some(after) = input.strip_prefix("@@masm").filter(|after| after.starts_with('(')) {
        return operand(after, (depth + 1, radix), program);
    }
    if let Some(after) = input.strip_prefix("@@c++").or_else(|| input.strip_prefix("@@")).map(str::trim_start)
        && after.starts_with('(')
    {
        let (inside, after) = enclosed(after, '(', ')').ok_or_else(|| ExpressionError::Syntax { at: after.into() })?;
        program.push((Step::Typed(inside), input));
        return Ok(after);
    }
    if let Some(after) = input.strip_prefix('-') {
        let after = operand(after, (depth + 1, radix), program)?;
        program.push((Step::Unary(Unary::Negate), input));
        return Ok(after);
    }
    if let Some(after) = input.strip_prefix('+') {
        return operand(after, (depth + 1, radix), program);
    }
    if let Ok((after, characters)) = quoted(input) {
        let value = characters.bytes().fold(0u64, |value, byte| value << 8 | u64::from(byte));
        if characters.len() > 8 {
            return Err(ExpressionError::Overflow { at: input.into() });
        }
        program.push((Step::Number(value), input));
        return Ok(after);
    }
    if let Ok((after, name)) = register(input) {
        program.push((Step::Register(name), input));
        return Ok(after);
    }
    let Ok((after, word)) = name(input) else {
        return Err(ExpressionError::Syntax { at: input.into() });
    };
    if let Some(after) = function(word, after, input, (depth, radix), program)? {
        return Ok(after);
    }
    if let Some(operator) = unary_word(word) {
        let after = operand(after, (depth + 1, radix), program)?;
        program.push((Step::Unary(operator), input));
        return Ok(after);
    }
    let step = match number(word, radix) {
        Some(Ok(value)) => Step::Number(value),
        Some(Err(())) => return Err(ExpressionError::Overflow { at: input.into() }),
        None => Step::Symbol(word),
    };
    program.push((step, input));
    Ok(after)
}

/// `$spat`, `$scmp`, `$sicmp` and `$vvalid` with their arguments; returns what follows.
fn function<'a>(
    word: &str,
    after: &'a str,
    input: &'a str,
    (depth, radix): (usize, u32),
    program: &mut Vec<Placed<'a>>,
) -> Result<Option<&'a str>, ExpressionError> {
    let word = word.to_ascii_lowercase();
    if !matches!(word.as_str(), "$spat" | "$scmp" | "$sicmp" | "$vvalid") {
        return Ok(None);
    }
    let wrong = |at: &str| ExpressionError::Syntax { at: at.trim().into() };
    let inside = after.trim_start().strip_prefix('(').ok_or_else(|| wrong(after))?;
    let left = if word == "$vvalid" {
        let left = level(inside, 0, (depth + 1, radix), program)?.trim_start();
        let left = left.strip_prefix(',').ok_or_else(|| wrong(left))?;
        let left = level(left, 0, (depth + 1, radix), program)?;
        program.push((Step::IsReadable, input));
        left
    } else {
        let (first, left) = text(inside).ok_or_else(|| wrong(inside))?;
        let left = left.trim_start().strip_prefix(',').ok_or_else(|| wrong(left))?;
        let (second, left) = text(left).ok_or_else(|| wrong(left))?;
        let value = match word.as_str() {
            "$spat" => u64::from(matches_glob(second, first)),
            // As strcmp: 0 when they are the same.
            "$sicmp" => order(&first.to_lowercase(), &second.to_lowercase()),
            _ => order(first, second),
        };
        program.push((Step::Number(value), input));
        left
    };
    let left = left.trim_start();
    left.strip_prefix(')').map(Some).ok_or_else(|| wrong(left))
}

/// -1, 0 or 1.
fn order(first: &str, second: &str) -> u64 {
    first.cmp(second) as i64 as u64
}

/// A text between double quotes, or a word, and what follows.
fn text(input: &str) -> Option<(&str, &str)> {
    let input = input.trim_start();
    match input.strip_prefix('"') {
        Some(inside) => inside.split_once('"'),
        None => {
            let end = input.find([',', ')'])?;
            Some((input[..end].trim_end(), &input[end..]))
        }
    }
}

fn run(program: &[Placed<'_>], scope: &mut dyn Scope) -> Result<u64, ExpressionError> {
    let mut stack: Vec<u64> = Vec::new();
    for (step, at) in program {
        let at = || at.trim_end().to_string();
        let value = match step {
            Step::Number(value) => *value,
            Step::Symbol(name) => resolve(scope.symbol(name), at)?,
            Step::Register(name) => resolve(scope.register(name), at)?,
            Step::Typed(text) => resolve(scope.typed(text).map(Some), at)?,
            Step::IsReadable => {
                let (Some(length), Some(address)) = (stack.pop(), stack.pop()) else {
                    return Err(ExpressionError::Syntax { at: at() });
                };
                resolve(scope.is_readable(address, length).map(|readable| Some(readable.into())), at)?
            }
            Step::Unary(operator) => {
                let Some(a) = stack.pop() else { return Err(ExpressionError::Syntax { at: at() }) };
                match *operator {
                    Unary::Negate => a.wrapping_neg(),
                    Unary::Not => (a == 0).into(),
                    Unary::High => a >> 16 & 0xffff,
                    Unary::Low => a & 0xffff,
                    Unary::Read { size, physical } => {
                        let bytes = if size == 0 { scope.pointer_size() } else { size };
                        match scope.read(a, bytes.into(), physical) {
                            // A pointer of 32 bits is an address.
                            Ok(value) if size == 0 && bytes == 4 => sign_extend(value),
                            Ok(value) => value,
                            Err(ScopeError::Fault(fault)) => return Err(ExpressionError::Fault(fault)),
                            Err(why) => return Err(ExpressionError::Memory { at: at(), why }),
                        }
                    }
                }
            }
            Step::Binary(operator) => {
                let (Some(b), Some(a)) = (stack.pop(), stack.pop()) else {
                    return Err(ExpressionError::Syntax { at: at() });
                };
                operator.apply(a, b).ok_or_else(|| ExpressionError::DivideByZero { at: at() })?
            }
        };
        stack.push(value);
    }
    stack.pop().ok_or(ExpressionError::Missing { at: String::new() })
}

fn resolve(found: Result<Option<u64>, ScopeError>, at: impl Fn() -> String) -> Result<u64, ExpressionError> {
    match found {
        Err(ScopeError::Fault(fault)) => Err(ExpressionError::Fault(fault)),
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(ExpressionError::Unresolved { at: at() }),
        Err(why) => Err(ExpressionError::UnresolvedBecause { at: at(), why }),
    }
}

fn binary(input: &str) -> IResult<&str, Binary> {
    preceded(
        multispace0,
        alt((
            tag(">>>").map(|_| Binary::ShiftRightArithmetic),
            tag(">>").map(|_| Binary::ShiftRight),
            tag("<<").map(|_| Binary::ShiftLeft),
            tag("<=").map(|_| Binary::LessEqual),
            tag(">=").map(|_| Binary::GreaterEqual),
            tag("==").map(|_| Binary::Equal),
            tag("!=").map(|_| Binary::NotEqual),
            alt((
                char('=').map(|_| Binary::Equal),
                char('<').map(|_| Binary::Less),
                char('>').map(|_| Binary::Greater),
                char('+').map(|_| Binary::Add),
                char('-').map(|_| Binary::Subtract),
                char('*').map(|_| Binary::Multiply),
                char('/').map(|_| Binary::Divide),
                char('%').map(|_| Binary::Modulo),
                char('&').map(|_| Binary::And),
                char('^').map(|_| Binary::Xor),
                char('|').map(|_| Binary::Or),
            )),
            name.map_opt(|word: &str| {
                Some(match word.to_ascii_lowercase().as_str() {
                    "and" => Binary::And,
                    "xor" => Binary::Xor,
                    "or" => Binary::Or,
                    "mod" => Binary::Modulo,
                    _ => return None,
                })
            }),
        )),
    )
    .parse(input)
}

/// The characters of `'abcd'`.
fn quoted(input: &str) -> IResult<&str, &str> {
    delimited(char('\''), is_not("'"), char('\'')).parse(input)
}

/// `@rip`, `@$ip`, `$ip`.
fn register(input: &str) -> IResult<&str, &str> {
    let name = || recognize(pair(opt(char('$')), take_while1(|c: char| c.is_ascii_alphanumeric() || c == '_')));
    preceded(char('@'), name()).parse(input)
}

/// A number, a symbol or an operator's word. `!sym` may start with the mark.
fn name(input: &str) -> IResult<&str, &str> {
    recognize(pair(
        satisfy(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '?' | '$' | '!')),
        take_while(|c: char| c.is_alphanumeric() || matches!(c, '_' | '?' | '$' | '!' | '`' | '@' | '.' | ':' | '~')),
    ))
    .parse(input)
}

/// The value of a word that is a number; `Some(Err)` when it does not fit 64 bits.
fn number(word: &str, default: u32) -> Option<Result<u64, ()>> {
    let explicit = word.contains('`');
    let digits = match explicit {
        true if word.matches('`').count() > 1 || word.starts_with('`') => return None,
        true => word.replacen('`', "", 1),
        false => word.to_string(),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0n") => (10, &lower[2..]),
        Some("0t") => (8, &lower[2..]),
        Some("0y") => (2, &lower[2..]),
        _ => match lower.strip_suffix('h').filter(|digits| !digits.is_empty()) {
            Some(digits) => (16, digits),
            None => (default, lower.as_str()),
        },
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    if digits.is_empty() {
        return Some(Ok(0));
    }
    Some(match u64::from_str_radix(digits, radix) {
        Ok(value) if explicit => Ok(value),
        Ok(value) => Ok(sign_extend(value)),
        Err(_) => Err(()),
    })
}

/// 32-bit values with the top bit set become kernel addresses, as in kd; a backtick prevents it.
fn sign_extend(value: u64) -> u64 {
    match u32::try_from(value) {
        Ok(value) => value as i32 as i64 as u64,
        Err(_) => value,
    }
}

/// A number as arguments of extensions are written (`80`, `0x80`, `0n128`), without sign extension.
pub fn plain_number(word: &str) -> Option<u64> {
    let value = number(word, 16)?.ok()?;
    match value >> 32 {
        0xffff_ffff if word.trim_start_matches("0x").len() <= 8 => Some(value & 0xffff_ffff),
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Names;

    impl Scope for Names {
        fn symbol(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
            Ok(match name {
                "nt!Foo" | "Foo" => Some(0xfffff800_01234560),
                _ => None,
            })
        }

        fn register(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
            Ok((name == "rip" || name == "$ip").then_some(0xfffff800_01489f60))
        }

        fn read(&mut self, address: u64, size: usize, physical: bool) -> Result<u64, ScopeError> {
            if address < 0x1000 {
                return Err(ScopeError::Hole(ReadError::Hole { address, wanted: size, read: 0 }));
            }
            if address == 0x9999 {
                return Err(Fault::Cancelled.into());
            }
            if physical {
                return Ok(0x70);
            }
            Ok(0x8877_6655_4433_2211 & (u64::MAX >> (64 - 8 * size)))
        }

        fn is_readable(&mut self, address: u64, length: u64) -> Result<bool, ScopeError> {
            Ok(address >= 0x1000 && length < 0x1000)
        }

        fn typed(&mut self, text: &str) -> Result<u64, ScopeError> {
            text.trim().parse().map_err(|_| ScopeError::Because("no number".into()))
        }

        fn pointer_size(&self) -> u8 {
            8
        }
    }

    fn value(text: &str) -> u64 {
        evaluate_all(text, &mut Names).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn error(text: &str) -> String {
        evaluate_all(text, &mut Names).unwrap_err().to_string()
    }

    #[test]
    fn numbers() {
        assert_eq!(value("10"), 16);
        assert_eq!(value("0n10"), 10);
        assert_eq!(value("0t10"), 8);
        assert_eq!(value("0y10"), 2);
        assert_eq!(value("0x"), 0);
        assert_eq!(value("12h"), 0x12);
        assert_eq!(value("4aB3H"), 0x4ab3);
        assert_eq!(value("fffff800`02a0e000"), 0xfffff800_02a0e000);
        assert_eq!(value("fffff80002a0e000"), 0xfffff800_02a0e000);
        assert_eq!(value("'abcd'"), 0x61626364);
        assert_eq!(value("' cbA'"), 0x20636241);
        assert_eq!(error("12345678123456781"), "Overflow error at '12345678123456781'");
    }

    #[test]
    fn another_radix_is_for_numbers_without_a_prefix() {
        struct Decimal;
        impl Scope for Decimal {
            fn symbol(&mut self, _: &str) -> Result<Option<u64>, ScopeError> {
                Ok(None)
            }

            fn register(&mut self, _: &str) -> Result<Option<u64>, ScopeError> {
                Ok(None)
            }

            fn read(&mut self, _: u64, _: usize, _: bool) -> Result<u64, ScopeError> {
                Ok(0)
            }

            fn is_readable(&mut self, _: u64, _: u64) -> Result<bool, ScopeError> {
                Ok(false)
            }

            fn typed(&mut self, _: &str) -> Result<u64, ScopeError> {
                Ok(0)
            }

            fn pointer_size(&self) -> u8 {
                8
            }

            fn radix(&self) -> u32 {
                10
            }
        }
        let value = |text| evaluate_all(text, &mut Decimal);
        assert_eq!((value("10"), value("0x10"), value("10h")), (Ok(10), Ok(16), Ok(16)));
        assert_eq!(value("1a"), Err(ExpressionError::Unresolved { at: "1a".into() }));
    }

    #[test]
    fn values_of_32_bits_are_sign_extended_without_a_backtick() {
        assert_eq!(value("80000000"), 0xffffffff_80000000);
        assert_eq!(value("0`80000000"), 0x80000000);
        assert_eq!(value("7fffffff"), 0x7fffffff);
        assert_eq!(plain_number("80000000"), Some(0x80000000));
        assert_eq!(plain_number("0x80"), Some(0x80));
        assert_eq!(plain_number("0n80"), Some(80));
        assert_eq!(plain_number("Leak"), None);
    }

    #[test]
    fn operators_and_their_order() {
        assert_eq!(value("1+2*3"), 7);
        assert_eq!(value("(1+2)*3"), 9);
        assert_eq!(value("10 mod 7"), 2);
        assert_eq!(value("10%7"), 2);
        assert_eq!(value("1 << 4 + 1"), 32);
        assert_eq!(value("-1 >>> 4"), u64::MAX);
        assert_eq!(value("-1 >> 3c"), 0xf);
        assert_eq!(value("1 << 40"), 0);
        assert_eq!(value("3 and 6 or 8"), 10);
        assert_eq!(value("f xor 3"), 0xc);
        assert_eq!(value("1 == 1"), 1);
        assert_eq!(value("2 != 2"), 0);
        assert_eq!(value("not 0"), 1);
        assert_eq!(value("hi(12345678)"), 0x1234);
        assert_eq!(value("low 12345678"), 0x5678);
        assert_eq!(value("--1"), 1);
    }

    #[test]
    fn names_registers_memory() {
        assert_eq!(value("nt!Foo+8"), 0xfffff800_01234568);
        assert_eq!(value("@rip"), value("@$ip"));
        assert_eq!(value("by(nt!Foo)"), 0x11);
        assert_eq!(value("wo nt!Foo"), 0x2211);
        assert_eq!(value("dwo(nt!Foo)"), 0x44332211);
        assert_eq!(value("poi(poi(nt!Foo))"), 0x88776655_44332211);
        assert_eq!(value("$pqwo(1000) + @@masm(1) + @@(2)"), 0x73);
        assert_eq!(value("@@c++( 12 ) + 1"), 13);
        assert_eq!(error("1 + @@c++(x)"), "Couldn't resolve error at '@@c++(x)': no number");
        assert_eq!(error("@@c++(1"), "Syntax error at '(1'");
    }

    #[test]
    fn texts_are_compared_and_memory_is_tried() {
        assert_eq!(value("$spat(\"myfault\", \"my*\")"), 1);
        assert_eq!(value("$spat(\"myfault\",\"nt*\")"), 0);
        assert_eq!(value("$scmp(\"a\",\"a\") + 1"), 1);
        assert_eq!(value("$scmp(\"a\",\"A\") == 1"), 1);
        assert_eq!(value("$sicmp(\"a, b)\",\"A, B)\") == 0"), 1);
        assert_eq!(value("$sicmp(a,b)"), u64::MAX);
        assert_eq!(value("$vvalid(1000, 4)"), 1);
        assert_eq!(value("$vvalid(poi(nt!Foo) - poi(nt!Foo), 4) | 2"), 2);
        assert_eq!(error("$vvalid(1000)"), "Syntax error at ')'");
        assert_eq!(error("$spat(\"a\")"), "Syntax error at ')'");
        assert_eq!(error("$scmp(\"a\",\"b\""), "Syntax error at ''");
    }

    #[test]
    fn an_expression_can_be_measured() {
        assert_eq!(expression_end("(nosuch!name + @nothing) .echo a"), Ok(" .echo a"));
        assert_eq!(expression_end("@eax==0xa '.echo'"), Ok(" '.echo'"));
        assert!(expression_end("").is_err() && expression_end("(1").is_err());
    }

    #[test]
    fn errors_point_at_the_text() {
        assert_eq!(error("1 + xyz"), "Couldn't resolve error at 'xyz'");
        assert_eq!(error("@foo"), "Couldn't resolve error at '@foo'");
        assert_eq!(error(""), "Numeric expression missing from ''");
        assert_eq!(error("1 +"), "Numeric expression missing from ''");
        assert_eq!(error("(1"), "Syntax error at ''");
        assert_eq!(error("1 2"), "Syntax error at '2'");
        assert_eq!(error("5 / 0"), "Divide by zero at '/ 0'");
        assert_eq!(
            error("poi(4)"),
            "Memory access error at 'poi(4)': cannot read 0x8 bytes at 0000000000000004: the target could not read \
             0000000000000004"
        );
        // What ends a command is no word about an expression.
        assert_eq!(evaluate_all("poi(9999)", &mut Names), Err(ExpressionError::Fault(Fault::Cancelled)));
        assert!(error(&"(".repeat(1000)).starts_with("Expression nested more than 64 levels"));
    }

    #[test]
    fn an_expression_ends_where_the_next_argument_begins() {
        assert_eq!(evaluate("nt!Foo L4", &mut Names), Ok((0xfffff800_01234560, " L4")));
        assert_eq!(evaluate("1000 2000", &mut Names), Ok((0x1000, " 2000")));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC*") {
            let _ = evaluate(&text, &mut Names);
        }

        #[test]
        fn operators_in_any_order_are_parsed_without_a_panic(text in "[0-9a-fx`'()@$!<>=&|^*/%+ -]{0,80}") {
            let _ = evaluate(&text, &mut Names);
        }

        #[test]
        fn sums_are_wrapping_sums(a: u64, b: u64) {
            prop_assert_eq!(value(&format!("{:08x}`{:08x} + {:08x}`{:08x}", a >> 32, a as u32, b >> 32, b as u32)), a.wrapping_add(b));
        }
    }
}
