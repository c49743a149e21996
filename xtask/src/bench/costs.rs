//! What memtrace itself costs.
