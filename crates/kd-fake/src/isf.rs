//! Volatility 3 symbol tables (ISF).
