//! Go programs that were opened, each once, for whoever reads them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::GoBinary;
use crate::target::FileVersion;

/// For how long a file is known that nobody uses: a program that was found is opened several times in a row.
const KEPT: Duration = Duration::from_secs(60);

/// A Go program, or why it cannot be read.
type Binary = Result<Arc<GoBinary>, String>;

/// A file that was opened.
#[derive(Debug)]
struct Slot {
    /// `None`: it was not built by Go. Empty while it is opened for the first time.
    binary: Arc<OnceLock<Option<Binary>>>,
    /// When it was opened last.
    opened: Instant,
}

impl Slot {
    fn new() -> Self {
        Self {
            binary: Arc::default(),
            opened: Instant::now(),
        }
    }

    /// Whether it is to be known further.
    fn is_wanted(&self) -> bool {
        let is_used = match self.binary.get() {
            Some(Some(Ok(binary))) => binary.is_used(),
            Some(_) => false,
            None => true,
        };
        is_used || self.opened.elapsed() < KEPT
    }
}

/// The programs of a run. Clones share what they know: opening a program with many functions takes most of a second. What
/// nobody uses any more is forgotten when the next is opened.
#[derive(Clone, Debug, Default)]
pub struct GoBinaries(Arc<Mutex<HashMap<FileVersion, Slot>>>);

impl GoBinaries {
    /// The Go program in a file, opened before or now; `None` when the file was not built by Go, or cannot be looked at.
    pub fn open(&self, file: &File) -> Option<Binary> {
        let version = FileVersion::of(file).ok()?;
        let slot = self.slot(version);
        let open = || match GoBinary::open(file) {
            Ok(binary) => binary.map(|binary| Ok(Arc::new(binary))),
            Err(error) => Some(Err(error.to_string())),
        };
        slot.get_or_init(open).clone()
    }

    fn slot(&self, version: FileVersion) -> Arc<OnceLock<Option<Binary>>> {
        // What panicked elsewhere left at most an empty slot.
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !slots.contains_key(&version) {
            slots.retain(|_, slot| slot.is_wanted());
        }
        let slot = slots.entry(version).or_insert_with(Slot::new);
        slot.opened = Instant::now();
        Arc::clone(&slot.binary)
    }
}

#[cfg(test)]
mod tests {
    use super::{File, GoBinaries, Instant, KEPT, PoisonError};

    #[test]
    fn what_nobody_uses_is_forgotten_after_a_while() {
        let binaries = GoBinaries::default();
        let open = |path: &str| {
            let file = File::open(path).expect("it is there");
            assert!(binaries.open(&file).is_none(), "{path} is not Go's");
        };
        let count = || binaries.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        open("/proc/self/exe");
        open("/dev/null");
        assert_eq!(count(), 2, "they may be opened again at once");
        let mut slots = binaries.0.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.values_mut() {
            slot.opened = Instant::now()
                .checked_sub(KEPT)
                .expect("the machine runs for longer");
        }
        drop(slots);
        open("/dev/null");
        assert_eq!(count(), 2, "a file that is known costs no look at the others");
        open("/dev/zero");
        assert_eq!(
            count(),
            2,
            "the program is forgotten, and what was opened just now is not"
        );
    }
}
