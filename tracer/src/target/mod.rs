//! Who is traced: a process, its identity, its executable mappings and their files.

mod mapping;
mod process;

pub use mapping::{Backing, Mapping, Mappings};
pub use process::{Process, ProcessInfo};
