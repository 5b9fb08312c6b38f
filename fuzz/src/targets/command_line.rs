//! Text as a line of commands, a block, an expression, a range, an alias.

use kd_shell::grammar::{self, Scope, ScopeError, alias, block, check, line};

/// Names and registers that a fuzzer may come upon.
struct Known;

impl Scope for Known {
    fn symbol(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
        Ok(name.ends_with('x').then_some(0xffff_f800_0260_0000))
    }

    fn register(&mut self, name: &str) -> Result<Option<u64>, ScopeError> {
        Ok(name.starts_with('r').then_some(u64::MAX))
    }

    fn read(&mut self, address: u64, _: usize, physical: bool) -> Result<u64, ScopeError> {
        if physical { Err(ScopeError::Because("no physical memory".into())) } else { Ok(address.rotate_left(7)) }
    }

    fn is_readable(&mut self, address: u64, _: u64) -> Result<bool, ScopeError> {
        Ok(address & 1 == 0)
    }

    fn typed(&mut self, text: &str) -> Result<u64, ScopeError> {
        Ok(text.len() as u64)
    }

    fn pointer_size(&self) -> u8 {
        8
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let statements = line::statements(text);
    assert!(statements.len() <= text.len() + 1);
    let _ = grammar::split(text);
    let _ = check::check(text, &|word| word.starts_with('!'));
    let _ = block::parse(text);
    if let Ok((_, rest)) = grammar::evaluate(text, &mut Known) {
        assert!(rest.len() <= text.len());
    }
    if let Ok(Some(range)) = grammar::range::parse(text, 4, &mut Known) {
        let _ = format!("{range:?}");
    }
    let _ = kd_shell::duration(text);
    let mut aliases = alias::Aliases::default();
    aliases.set("a", text);
    let _ = aliases.expand("a ${a} $u0");
}
