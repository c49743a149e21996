//! The kernel's side: loads the programs, fills their tables, attaches them, reads their books.

mod array;
mod attach;
mod blocks;
mod books;
mod descriptors;
mod frames;
mod map_events;
mod offsets;
mod perf;
mod points;
mod programs;
mod ranges;
mod reuse;
mod sampling;
mod spaces;
mod tables;
#[cfg(test)]
mod tests;
mod tracefs;

use std::io;

use aya::{EbpfError, maps::MapError, programs::ProgramError};

pub use attach::{Batch, Threads};
pub use books::{Books, Counters, Live, RawStack};
pub use descriptors::{Descriptors, OpenByStack, OpenFd};
pub use map_events::MapEvents;
pub use programs::{FIRST_SPACE, Limits, Programs};
pub use spaces::Spaces;
pub use tables::{FileTable, TableRoom, Tables};

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The programs or their maps could not be loaded.
    #[error("the kernel did not load memtrace's programs: {0}")]
    Load(#[from] EbpfError),
    /// A program could not be loaded or attached.
    #[error("the kernel did not accept the program `{name}`{place}: {source}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// Where it was to be attached, with a leading space; empty when it was to be loaded.
        place: String,
        /// The kernel's answer.
        source: ProgramError,
    },
    /// An event of the trace file system could not be used.
    #[error(
        "cannot {what} an event for the program `{name}`: {source}; following children needs tracefs and many descriptors"
    )]
    Event {
        /// What was tried.
        what: &'static str,
        /// The program's name.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Every thread of the process has ended.
    #[error("the process has no thread left")]
    NoThread,
    /// A map could not be used.
    #[error("the map `{name}` cannot be used: {source}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// A map could not be mapped into memory.
    #[error("the map `{name}` cannot be mapped into memory: {source}")]
    Memory {
        /// The map's name.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The programs that were built do not have what this version expects.
    #[error("the built programs have no `{0}`; rebuild memtrace")]
    Missing(&'static str),
}

impl KernelError {
    /// Whether the cause is that this process may have no more descriptors.
    pub fn lacks_descriptors(&self) -> bool {
        self.errno() == Some(libc::EMFILE)
    }

    /// Whether the cause is a missing privilege or kernel feature, rather than a fault.
    pub fn is_privilege(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP)
        )
    }

    /// What the kernel answered, at the bottom of it.
    fn errno(&self) -> Option<i32> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            source = error.source();
        }
        None
    }
}
