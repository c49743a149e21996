//! Who is traced: a process, its identity, its memory, its executable mappings and their files.

pub mod containers;
mod descriptors;
mod file_bytes;
mod image;
mod mapping;
mod memory;
mod pagemap;
mod process;
mod root;
mod sockets;

use std::io;

pub use descriptors::Descriptor;
pub use file_bytes::FileBytes;
pub use mapping::{Backing, Change, FileVersion, Mapping, MappingReader, Mappings};
pub use memory::{Resident, Vma};
pub use pagemap::{Pagemap, Residency};
use process::descendants_of;
pub use process::{Piece, Process, ProcessInfo};
pub use root::Root;
pub use sockets::SocketDetails;

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is none with this id.
    #[error("no process with id {pid}; `ps -e` lists those that run")]
    NoSuchProcess {
        /// The id asked for.
        pid: u32,
    },
    /// It ended before tracing began.
    #[error("process {pid} has ended")]
    Ended {
        /// The id asked for.
        pid: u32,
    },
    /// The id is that of a thread.
    #[error("{pid} is a thread of process {process}; use --pid {process}")]
    IsThread {
        /// The id asked for.
        pid: u32,
        /// The process it belongs to.
        process: u32,
    },
    /// A kernel thread has no memory of its own.
    #[error("{pid} ({name}) is a kernel thread: it has no user memory to trace")]
    KernelThread {
        /// The id asked for.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// A program could not be executed.
    #[error("cannot start {program}: {source}")]
    NotStarted {
        /// The program asked for.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// memtrace was pointed at itself.
    #[error("memtrace cannot trace itself")]
    Own,
    /// The kernel refused.
    #[error("cannot read /proc/{pid}: {source}")]
    Unreadable {
        /// The id asked for.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}
