//! Go programs that were opened, each once, for whoever reads them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::GoBinary;
use crate::target::FileVersion;

/// A Go program, or why it cannot be read.
type Binary = Result<Arc<GoBinary>, String>;
/// `None`: it was not built by Go. Empty while it is opened for the first time.
type Slot = Arc<OnceLock<Option<Binary>>>;

/// The programs of a run. Clones share what they know: opening a program with many functions takes most of a second.
#[derive(Clone, Debug, Default)]
pub struct GoBinaries(Arc<Mutex<HashMap<FileVersion, Slot>>>);

impl GoBinaries {
    /// The Go program in a file, opened before or now; `None` when the file was not built by Go, or cannot be looked at.
    pub fn open(&self, file: &File) -> Option<Binary> {
        let version = FileVersion::of(file).ok()?;
        let slot = {
            // What panicked elsewhere left at most an empty slot.
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(version).or_default())
        };
        let open = || match GoBinary::open(file) {
            Ok(binary) => binary.map(|binary| Ok(Arc::new(binary))),
            Err(error) => Some(Err(error.to_string())),
        };
        slot.get_or_init(open).clone()
    }
}
