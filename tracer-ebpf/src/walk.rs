//! The stack walker.
