//! symbol.
