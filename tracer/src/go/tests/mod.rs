//! Real programs of each version of Go and what their own runtime says, and crafted files.

mod binaries;
mod debug_info;
mod fixtures;
mod goroutines;
mod heap;
mod hostile;
mod layouts;
mod process;
mod rate;
mod tables;
mod target;
mod threads;
mod variables;

use std::fs::File;
use std::path::Path;

use super::GoBinary;

fn open(path: &Path) -> GoBinary {
    let file = File::open(path).expect("the program is there");
    match GoBinary::open(&file) {
        Ok(Some(binary)) => binary,
        other => panic!("{}: {other:?}", path.display()),
    }
}
