//! What lives: one consistent reading of the kernel's books.

mod go;
mod holdings;

use std::{
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, SystemTime},
};

use memtrace_ebpf::layout::EndReason;

pub use go::{
    ConnectionLoops, GoHeapState, GoHeapView, GoState, GoWishes, GoroutineGroup, RUNNING, ThreadGroup,
};
pub use holdings::{FdDetail, Growth, Growths, Holder, Holdings, Maker, MemoryPart, MemorySummary};

use crate::target::{Mappings, ProcessInfo};

/// One code path that allocated, with its books. Sizes are bytes.
#[derive(Clone, Debug)]
pub struct Site {
    /// Whether these blocks are from before the fork that made the process.
    pub inherited: bool,
    /// The stack, innermost frame first, as packed by [`memtrace_ebpf::unwind::frame`].
    pub frames: Vec<u64>,
    /// Why the walk of this stack stopped.
    pub end: EndReason,
    /// Blocks allocated since tracing began.
    pub alloc_objects: u64,
    /// Bytes allocated since tracing began.
    pub alloc_bytes: u64,
    /// Blocks that live now.
    pub live_objects: u64,
    /// Bytes that live now.
    pub live_bytes: u64,
    /// Mean age of the live blocks.
    pub mean_age: Duration,
    /// Change of `live_bytes` over [`Snapshot::recent`].
    pub recent_change: i64,
    /// When blocks are sampled: how many samples live; the other numbers are estimates.
    pub live_samples: u64,
}

/// Which blocks were recorded, and which of them are in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The mean distance between two samples (bytes); `None` when every block is recorded.
    ///
    /// With it, numbers of objects and bytes are unbiased estimates.
    pub sample_bytes: Option<NonZeroU64>,
    /// Smaller blocks were not recorded (bytes).
    pub min_size: u64,
    /// Younger blocks are not among the live ones.
    pub min_age: Duration,
}

impl Selection {
    /// A bound of the relative standard error of `bytes` that were estimated from so many samples; `None` if they are exact.
    ///
    /// A sample of s bytes, drawn with p = 1 − e^(−s/N), stands for s/p bytes, whose standard deviation s√(1−p)/p is less
    /// than N for every s. So that of n samples is less than N√n.
    pub fn standard_error(&self, samples: u64, bytes: u64) -> Option<f64> {
        let mean = self.sample_bytes?.get() as f64;
        Some(mean * (samples as f64).sqrt() / bytes.max(1) as f64)
    }
}

/// Everything that was not seen, not recorded or not understood, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Blocks not recorded because the block table (`--max-live`) was full.
    pub blocks_full: u64,
    /// Bytes of these.
    pub blocks_full_bytes: u64,
    /// Calls not recorded because the thread table was full.
    pub threads_full: u64,
    /// Blocks recorded without their stack: the stack table was full, or no walk state was free.
    pub without_stack: u64,
    /// Frees of blocks from before the attach, or of an untraced call.
    pub unmatched_frees: u64,
    /// Blocks whose free was missed.
    pub missed_frees: u64,
    /// Calls that never returned.
    pub abandoned_calls: u64,
    /// Returns of calls that began before the attach.
    pub unmatched_returns: u64,
    /// Calls deeper nested than the books can hold.
    pub nested_too_deep: u64,
    /// Results of `posix_memalign` that could not be read.
    pub unreadable_results: u64,
    /// Blocks booked while libraries came or went: their stacks may name the wrong one.
    pub stale_mappings: u64,
    /// Stacks of inherited blocks that are missing.
    pub not_inherited: u64,
    /// Blocks whose stack is not complete, by reason; never [`EndReason::Complete`].
    pub truncated: Vec<(EndReason, u64)>,
}

/// What the probes cover, in words for the person who reads the profile.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// One entry an allocator: `"libc.so.6: malloc, calloc, …, free"`.
    pub allocators: Vec<String>,
    /// What is not seen and why; empty when nothing is known to be missing.
    pub not_covered: Vec<String>,
}

/// How a process came to be traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// memtrace attached to it while it ran.
    #[default]
    Attached,
    /// memtrace started it, and saw everything.
    Started,
    /// A traced process forked it.
    Forked {
        /// That process's id.
        parent: u32,
    },
    /// A traced process made it to execute a program at once (`vfork`, `posix_spawn`), or before that was seen.
    Spawned {
        /// That process's id, if it is known.
        parent: Option<u32>,
    },
    /// A traced process executed another program, which ended one heap and began this one.
    Executed {
        /// The name of the program before.
        before: String,
    },
}

/// The state of one process's heap at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The number of the address space, unique in this run.
    pub space: u32,
    /// Whose heap this is.
    pub process: ProcessInfo,
    /// How the process came to be traced.
    pub origin: Origin,
    /// When tracing began.
    pub started: SystemTime,
    /// From `started` until this snapshot.
    pub duration: Duration,
    /// The last part of `duration`, to which [`Site::recent_change`] refers; zero when there is no earlier reading.
    pub recent: Duration,
    /// Sites that allocated at least once, in no order.
    pub sites: Vec<Site>,
    /// Which blocks were recorded and which are shown.
    pub selection: Selection,
    /// What was not recorded.
    pub losses: Losses,
    /// What was covered.
    pub coverage: Coverage,
    /// Calls in which the allocator returned no memory; not a loss.
    pub failed_calls: u64,
    /// The executable mappings that frames refer to.
    pub mappings: Arc<Mappings>,
    /// Whether the heap was traced; if not, `sites` is empty and says nothing.
    pub heap: bool,
    /// Descriptors, if they were traced: [`Holder::made`] and [`Holder::held`] are numbers of them.
    pub fds: Option<Holdings>,
    /// Each open descriptor, in the order of their numbers, if they were asked for.
    pub fd_details: Option<Vec<FdDetail>>,
    /// Mappings, if they were traced: [`Holder::made`] and [`Holder::held`] are bytes.
    pub mmap: Option<Holdings>,
    /// New memory, if it was traced.
    pub growth: Option<Growths>,
    /// Where the resident memory is, if the process could be asked.
    pub memory: Option<MemorySummary>,
    /// What its Go runtime knows, if it has one and anything of it is wanted.
    pub go: Option<GoState>,
}

impl Snapshot {
    /// What the profile of the traced allocators is called; `None` if there is none. Where there is a Go runtime, the heap
    /// profile is the runtime's.
    pub fn native_heap(&self) -> Option<&'static str> {
        match (self.heap, &self.go) {
            (false, _) => None,
            (true, None) => Some("heap"),
            (true, Some(_)) if self.coverage.allocators.is_empty() => None,
            (true, Some(_)) => Some("heap-native"),
        }
    }

    /// Bytes and blocks that live.
    pub fn live(&self) -> (u64, u64) {
        let sum = |value: fn(&Site) -> u64| self.sites.iter().map(value).sum();
        (sum(|site| site.live_bytes), sum(|site| site.live_objects))
    }
}
