//! Address ranges: `addr`, `addr end` (inclusive), `addr L n` (objects), `addr L-n`, `addr L?n`.

use super::expression::{ExpressionError, Scope, evaluate, evaluate_all};

/// Above this many bytes kd wants `L?`.
pub const SANE_BYTES: u64 = 256 << 20;

/// How much of memory a command is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub address: u64,
    /// Objects of the command's size; `None` when the user gave no length.
    pub count: Option<u64>,
}

/// Why a range is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Its address, its end or its count.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// kd's words.
    #[error("Range error at '{at}': {why}")]
    Range {
        /// Where in the arguments.
        at: String,
        /// What is wrong there.
        why: &'static str,
    },
}

/// `Ok(None)` when there is no argument at all.
pub fn parse(text: &str, object: u64, scope: &mut dyn Scope) -> Result<Option<Range>, RangeError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (address, left) = evaluate(text, scope)?;
    let left = left.trim();
    let error = |why| RangeError::Range { at: left.into(), why };
    let (address, count, limited) = match left.strip_prefix(['L', 'l']) {
        _ if left.is_empty() => return Ok(Some(Range { address, count: None })),
        Some(length) => {
            let (length, limited) = match length.strip_prefix('?') {
                Some(length) => (length, false),
                None => (length, true),
            };
            let (length, backwards) = match length.trim_start().strip_prefix('-') {
                Some(length) => (length, true),
                None => (length, false),
            };
            let count = evaluate_all(length, scope)?;
            let bytes = count.checked_mul(object).ok_or_else(|| error("the length is too big"))?;
            (if backwards { address.wrapping_sub(bytes) } else { address }, count, limited)
        }
        None => {
            let end = evaluate_all(left, scope)?;
            let distance = end.checked_sub(address).ok_or_else(|| error("the end is before the start"))?;
            (address, (distance / object).saturating_add(1), true)
        }
    };
    if limited && count.saturating_mul(object) > SANE_BYTES {
        return Err(error("more than 256 MB; write L? to lift the limit"));
    }
    Ok(Some(Range { address, count: Some(count) }))
}

#[cfg(test)]
mod tests {
    use super::super::expression::ScopeError;
    use super::*;

    struct Nothing;

    impl Scope for Nothing {
        fn symbol(&mut self, _: &str) -> Result<Option<u64>, ScopeError> {
            Ok(None)
        }

        fn register(&mut self, _: &str) -> Result<Option<u64>, ScopeError> {
            Ok(None)
        }

        fn read(&mut self, _: u64, _: usize, _: bool) -> Result<u64, ScopeError> {
            Err(ScopeError::Because("nothing here".into()))
        }

        fn is_readable(&mut self, _: u64, _: u64) -> Result<bool, ScopeError> {
            Ok(false)
        }

        fn typed(&mut self, _: &str) -> Result<u64, ScopeError> {
            Err(ScopeError::Because("nothing here".into()))
        }

        fn pointer_size(&self) -> u8 {
            8
        }
    }

    fn range(text: &str) -> Result<Option<Range>, RangeError> {
        parse(text, 4, &mut Nothing)
    }

    #[test]
    fn forms() {
        let some = |address, count| Ok(Some(Range { address, count }));
        assert_eq!(range(""), Ok(None));
        assert_eq!(range("1000"), some(0x1000, None));
        assert_eq!(range("1000 L4"), some(0x1000, Some(4)));
        assert_eq!(range("1000 l 4+1"), some(0x1000, Some(5)));
        assert_eq!(range("1000 100f"), some(0x1000, Some(4)));
        assert_eq!(range("1000 L-4"), some(0xff0, Some(4)));
        assert_eq!(range("1000 L?10000000"), some(0x1000, Some(0x10000000)));
    }

    #[test]
    fn mistakes() {
        assert!(matches!(range("2000 1000"), Err(RangeError::Range { .. })));
        assert!(matches!(range("1000 L10000000"), Err(RangeError::Range { .. })));
        assert_eq!(range("1000 Lxyz").unwrap_err().to_string(), "Couldn't resolve error at 'xyz'");
    }
}
