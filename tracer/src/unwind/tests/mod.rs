//! Tests of the table builder on real files, on assembled fixtures and on damaged input.

mod crafted;
mod fixtures;
mod layout;
mod real_files;

use std::{fs, path::Path};

use super::UnwindTable;

/// The bytes of a file; `None`, with a note, if this machine does not have it.
fn read_or_skip(path: &str) -> Option<Vec<u8>> {
    if !Path::new(path).exists() {
        println!("SKIPPED: no {path} on this machine");
        return None;
    }
    Some(fs::read(path).expect("an existing library is readable"))
}

fn table(data: &[u8]) -> UnwindTable {
    UnwindTable::from_elf(data).expect("a system library has unwind tables")
}
