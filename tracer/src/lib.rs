//! memtrace says which code of a running, unmodified Linux process holds its memory.
//!
//! Data flows one way: `target` → `probe` → `kernel` → `snapshot` → `symbol` → `profile` → `output`.

pub mod cli;
pub mod go;
pub mod kernel;
pub mod output;
pub mod probe;
pub mod profile;
pub mod session;
pub mod snapshot;
pub mod symbol;
pub mod target;
pub mod text;
pub mod time;
pub mod unwind;
