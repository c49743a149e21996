//! What a Go runtime knows of its own memory, goroutines and threads, read from outside.
//!
//! The runtime keeps the books that `runtime/pprof` publishes: sampled allocations by stack, every goroutine, every
//! thread. They are read with `process_vm_readv`, without a probe and without stopping the target, so each word may
//! change while it is read: whatever can be checked is (hashes, self references, ids before and after), and what does not
//! pass is counted, never shown. Layouts are those of Go 1.19 and 1.21 to 1.27 on amd64; any other is refused.

mod binaries;
mod binary;
mod build_info;
mod code;
mod dials;
mod goroutines;
mod heap;
mod image;
mod layout;
mod memory;
mod module;
mod pclntab;
mod rate;
mod stack;
mod system;
#[cfg(test)]
mod tests;
mod threads;
mod variables;
mod wait_reasons;

use std::sync::Arc;

pub use binaries::GoBinaries;
pub use binary::GoBinary;
pub use dials::DialFunctions;
pub use goroutines::{GoroutineGroup, group, read_goroutines};
pub use heap::{read_heap, scale};
pub use layout::{BucketLayout, GLayout, Layout, MLayout};
pub use memory::{Memory, Piece, read_u32, read_u64, read_words};
pub use pclntab::Pclntab;
pub use rate::{EnabledRate, RateError};
pub use stack::FrameSizes;
pub use system::is_system;
pub use threads::read_threads;

/// A version of Go, such as 1.24; the patch level changes no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 1.
    pub major: u32,
    /// The number behind the dot.
    pub minor: u32,
}

/// Why a Go runtime cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GoError {
    /// Its layouts are not known, or what is in memory contradicts them.
    #[error("{0}")]
    Layout(String),
    /// Its file could not be read.
    #[error("the file of the Go program cannot be read: {0}")]
    File(#[source] std::io::Error),
    /// Its memory could not be read.
    #[error("the memory of the Go runtime at {address:#x} cannot be read: {source}")]
    Memory {
        /// Where (virtual address).
        address: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A function call as the compiler recorded it in `.gopclntab`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoFrame {
    /// The function's name, such as `net/http.(*conn).serve`; with its type arguments, which Go's text forms (and Go 1.19)
    /// show as `[...]`.
    pub function: Arc<str>,
    /// The source file, as the compiler recorded it.
    pub file: Arc<str>,
    /// The line in `file`; 0 when not known.
    pub line: u32,
    /// The line where the function begins; 0 when not known (before Go 1.20).
    pub start_line: u32,
    /// Whether it is a wrapper that the compiler made (`funcID_wrapper`), which `runtime/pprof` leaves out.
    pub is_wrapper: bool,
}

/// Where the runtime keeps what is read (virtual addresses in the process).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// `runtime.mbuckets`: a pointer to the newest bucket of the heap profile.
    pub mbuckets: Option<u64>,
    /// `runtime.mProfCycle`, whose value shifted right by one is the cycle.
    pub mprof_cycle: Option<u64>,
    /// `runtime.MemProfileRate`.
    pub mem_profile_rate: Option<u64>,
    /// `runtime.allgs`: a slice of pointers to `g`.
    pub allgs: Option<u64>,
    /// `runtime.allm`: a pointer to the newest `m`.
    pub allm: Option<u64>,
}

/// Allocations and frees of one code path, as sampled: not yet scaled by the sampling rate. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemRecord {
    /// Sampled allocations.
    pub allocs: u64,
    /// Sampled blocks that were freed.
    pub frees: u64,
    /// Bytes of the sampled allocations.
    pub alloc_bytes: u64,
    /// Bytes of the sampled blocks that were freed.
    pub free_bytes: u64,
}

impl MemRecord {
    /// What came since an earlier record. What was sampled before and freed since counts as freed.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            allocs: self.allocs.saturating_sub(earlier.allocs),
            frees: self.frees.saturating_sub(earlier.frees),
            alloc_bytes: self.alloc_bytes.saturating_sub(earlier.alloc_bytes),
            free_bytes: self.free_bytes.saturating_sub(earlier.free_bytes),
        }
    }
}

/// A bucket of the heap profile: blocks of one size, allocated by one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemBucket {
    /// Size of each block in bytes.
    pub size: u64,
    /// Return addresses, innermost first (virtual addresses); inlined calls have entries of their own.
    pub stack: Vec<u64>,
    /// What the runtime publishes: as of the last completed garbage collection.
    pub published: MemRecord,
    /// With what has happened since: allocations are ahead of frees.
    pub now: MemRecord,
}

/// The heap profile of a runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoHeap {
    /// `runtime.MemProfileRate` in bytes: one sample in so many; 0 when profiling is off.
    pub rate: u64,
    /// Buckets that passed every check.
    pub buckets: Vec<MemBucket>,
    /// Whether nothing was published yet, so that the runtime would publish all there is: no garbage collection was completed.
    pub is_uncollected: bool,
    /// Buckets that did not, after they were read again; they are not shown.
    pub torn: u64,
}

/// What a goroutine does (`runtime2.go`, `_Gidle` …), without `_Gscan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GoStatus {
    /// On a run queue.
    Runnable,
    /// Running on a thread: its stack was not read.
    Running,
    /// In a system call.
    Syscall,
    /// Blocked.
    Waiting,
    /// Any other that is not dead.
    Other(u32),
}

/// A goroutine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// `goid`.
    pub id: u64,
    /// What it does.
    pub status: GoStatus,
    /// Why it waits, in the runtime's words, such as `chan receive`; empty when it does not wait.
    pub wait_reason: &'static str,
    /// Since when it waits (the runtime's `nanotime`, which is `CLOCK_MONOTONIC`; nanoseconds); 0 when that is not known: the
    /// runtime notes it at a garbage collection.
    pub wait_since: u64,
    /// The id of the goroutine that made it (`parentGoid`); 0 for the first, and before Go 1.21.
    pub parent: u64,
    /// The return address in the code that made it (`gopc`, virtual address); 0 for the first.
    pub created_at: u64,
    /// Its function's entry (`startpc`, virtual address).
    pub start: u64,
    /// Return addresses, innermost first (virtual addresses), physical frames: inlined calls are to be expanded. The innermost is
    /// `sched.pc`, or `syscallpc`. Empty when it runs.
    pub stack: Vec<u64>,
    /// Whether the stack could be read to its end.
    pub is_complete: bool,
    /// Whether it is locked to a thread (`runtime.LockOSThread`).
    pub is_locked: bool,
    /// The kernel's id of the thread it runs on, or is locked to; 0 if none.
    pub thread: u32,
}

/// The goroutines of a runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goroutines {
    /// Those that passed every check, system goroutines included.
    pub all: Vec<Goroutine>,
    /// Those that changed whenever they were read; they are not shown.
    pub torn: u64,
}

/// What holds a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadHold {
    /// A goroutine is locked to it (`runtime.LockOSThread`).
    Locked,
    /// Its goroutine is in a system call.
    Syscall,
    /// Its goroutine is in C code.
    Cgo,
    /// It runs a goroutine.
    Running,
    /// It waits for work.
    Idle,
}

impl ThreadHold {
    /// In words: `locked`, `syscall`, `cgo`, `running`, `idle`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Syscall => "syscall",
            Self::Cgo => "cgo",
            Self::Running => "running",
            Self::Idle => "idle",
        }
    }
}

/// A thread of the runtime (`m`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoThread {
    /// The kernel's id; 0 while it is being made.
    pub id: u32,
    /// What holds it.
    pub hold: ThreadHold,
    /// The goroutine on it, or locked to it; 0 if none.
    pub goroutine: u64,
    /// Return addresses of the code that had it made (`createstack`), innermost first; empty when the runtime did.
    pub created_by: Vec<u64>,
}
