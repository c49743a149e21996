//! Running heavy tests one at a time.

use std::{fs::File, path::Path};

use anyhow::Context;

use crate::{Result, compile};

/// Held by a test that loads the machine; the next one waits until it is dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "closing the file gives up the lock")] File);

/// Waits for this test's turn. The lock is a file's, so it also holds between test programs that run side by side.
pub fn turn() -> Result<Turn> {
    let path = compile::cache_directory()?.join("turn.lock");
    let file = open(&path).with_context(|| format!("opening {}", path.display()))?;
    file.lock()
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(Turn(file))
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}
