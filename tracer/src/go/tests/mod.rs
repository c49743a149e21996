//! Go files, built for the test and crafted.

mod fixtures;
mod hostile;
mod process;
mod tables;
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
