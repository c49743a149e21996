//! What a Go runtime says of itself: its sampled heap, its goroutines, its threads.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::Site;

/// Which of the runtime's two views of its heap is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GoHeapView {
    /// As of the last completed garbage collection: what `runtime/pprof` shows.
    #[default]
    Published,
    /// With what has happened since: allocations are ahead of frees.
    Now,
}

/// What is wanted of Go targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoWishes {
    /// The heap profile.
    pub heap: bool,
    /// The goroutines.
    pub goroutines: bool,
    /// The threads.
    pub threads: bool,
    /// Which view of the heap.
    pub view: GoHeapView,
    /// The rate at which a runtime without a heap profile is to begin one (bytes).
    pub enable: Option<u64>,
}

impl GoWishes {
    /// Whether anything is wanted.
    pub fn any(&self) -> bool {
        self.heap || self.goroutines || self.threads
    }
}

/// The state of a Go runtime.
#[derive(Clone, Debug, Default)]
pub struct GoState {
    /// Its version in Go's words, such as `go1.24.11`.
    pub version: String,
    /// Its heap, if it was asked for and could be read.
    pub heap: Option<GoHeapState>,
    /// Its goroutines, if they were asked for and could be read.
    pub goroutines: Option<Vec<GoroutineGroup>>,
    /// Its threads, if they were asked for and could be read.
    pub threads: Option<Vec<ThreadGroup>>,
    /// The goroutines that wait for connections of `net/http`, by the id of the goroutine that dialed; from Go 1.21 on.
    pub loops: HashMap<u64, ConnectionLoops>,
    /// How long before this an earlier reading was made, which its changes refer to; zero if there was none.
    pub recent: Duration,
    /// What could not be read and why, and what was torn, one sentence each.
    pub notes: Vec<String>,
}

/// Goroutines that serve HTTP connections of a client, and wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLoops {
    /// How many are in `(*persistConn).readLoop`.
    pub readers: u64,
    /// How many are in `(*persistConn).writeLoop`.
    pub writers: u64,
}

impl ConnectionLoops {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds others to these.
    pub fn add(&mut self, other: Self) {
        self.readers += other.readers;
        self.writers += other.writers;
    }
}

/// The heap profile that the runtime keeps.
#[derive(Clone, Debug, Default)]
pub struct GoHeapState {
    /// Its code paths. Values are scaled by the sampling rate as `runtime/pprof` does; those from before the attach count.
    pub sites: Vec<Site>,
    /// `runtime.MemProfileRate` in bytes: one sample in so many on average; 0 when the runtime keeps no profile.
    pub rate: u64,
    /// Whether memtrace set the rate.
    pub is_enabled_by_us: bool,
    /// Which view the values are of.
    pub view: GoHeapView,
    /// Whether no garbage collection was completed since the runtime counts: garbage is among what lives.
    pub is_uncollected: bool,
    /// Of what was allocated, how much is not among the values, as no garbage collection was completed since (bytes).
    pub unpublished_bytes: u64,
    /// Buckets that could not be read; they are not shown.
    pub torn: u64,
}

impl GoHeapState {
    /// Live bytes and objects.
    pub fn live(&self) -> (u64, u64) {
        let sum = |value: fn(&Site) -> u64| self.sites.iter().map(value).sum();
        (sum(|site| site.live_bytes), sum(|site| site.live_objects))
    }

    /// Bytes that were allocated.
    pub fn allocated(&self) -> u64 {
        self.sites.iter().map(|site| site.alloc_bytes).sum()
    }

    /// Whether the values are of what was allocated before memtrace attached, too.
    pub fn is_from_before(&self) -> bool {
        self.rate > 0 && !self.is_enabled_by_us
    }
}

/// What [`GoroutineGroup::wait`] is of goroutines that run.
pub const RUNNING: &str = "running";

/// Goroutines that do the same.
#[derive(Clone, Debug, Default)]
pub struct GoroutineGroup {
    /// Their stack, innermost frame first, as packed by [`memtrace_ebpf::unwind::frame`].
    pub frames: Vec<u64>,
    /// The function that made them; empty for the first.
    pub created_by: Arc<str>,
    /// Why they wait, in the runtime's words, or else what they do, such as `running`.
    pub wait: &'static str,
    /// How many there are.
    pub count: u64,
    /// How many of them were there at the earlier reading.
    pub persistent: u64,
    /// Change of `count` over [`GoState::recent`].
    pub recent_change: i64,
    /// Whether they belong to the runtime itself, which `runtime/pprof` leaves out.
    pub is_system: bool,
}

impl GoroutineGroup {
    /// The frame that stands for what is missing of their stack: while they run, it cannot be read.
    pub fn innermost_frame(&self) -> Option<String> {
        (self.wait == RUNNING).then(|| format!("[{RUNNING}]"))
    }
}

/// Threads that are held by the same.
#[derive(Clone, Debug, Default)]
pub struct ThreadGroup {
    /// The stack of the goroutine that holds them, or of the code that had them made; innermost frame first.
    pub frames: Vec<u64>,
    /// What holds them: `locked`, `syscall`, `cgo`, `running`, `idle`.
    pub hold: &'static str,
    /// How many there are.
    pub count: u64,
    /// Change of `count` over [`GoState::recent`].
    pub recent_change: i64,
}

impl ThreadGroup {
    /// The frame that stands for their stack if there is none: what holds them.
    pub fn innermost_frame(&self) -> Option<String> {
        self.frames.is_empty().then(|| format!("[{}]", self.hold))
    }
}
