//! Executable mappings of the target, remembered for as long as a stored frame may refer to them.

use std::{fs::File, path::PathBuf, sync::Arc};

/// What is behind an executable mapping.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A file, opened through `/proc/PID/map_files` so that it is the very file the target maps.
    File(Arc<File>),
    /// An ELF image read from the target's memory, such as the vDSO.
    Image(Arc<[u8]>),
    /// Nothing on disk: JIT-compiled code.
    Anonymous,
    /// The file could not be opened; why.
    Unreadable(String),
}

/// One executable mapping, living or past.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Names the mapping in stored frames; never reused.
    pub id: u16,
    /// First byte (virtual address in the process).
    pub begin: u64,
    /// One past the last byte (virtual address in the process).
    pub end: u64,
    /// Offset in the file of the first byte.
    pub file_offset: u64,
    /// Load bias: process address minus the file's virtual address.
    pub bias: u64,
    /// As `/proc/PID/maps` shows it: the path in the target's view, `[vdso]`, or empty.
    pub path: PathBuf,
    /// The GNU build id, when the image has one.
    pub build_id: Option<Vec<u8>>,
    /// What is behind it.
    pub backing: Backing,
}

/// All executable mappings that the target has or had, by [`Mapping::id`].
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    /// The mapping with id `n` is at index `n`.
    pub all: Vec<Arc<Mapping>>,
}

impl Mappings {
    /// The mapping with this id.
    pub fn get(&self, id: u16) -> Option<&Arc<Mapping>> {
        self.all.get(usize::from(id))
    }
}
