//! What people type: lines, commands, expressions, ranges.

pub mod alias;
pub mod block;
pub mod check;
pub mod expression;
pub mod line;
pub mod range;
pub(crate) mod words;

pub use expression::{ExpressionError, Scope, ScopeError, evaluate};
pub use line::{Statement, split};
pub use range::{Range, RangeError};
