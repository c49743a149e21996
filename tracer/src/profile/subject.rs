//! What a profile, or a section of the report, is about.

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Blocks of allocators.
    Heap,
    /// Descriptors.
    Descriptors,
    /// Mappings.
    Mappings,
    /// Memory by who touched it first.
    NewMemory,
    /// Blocks as a Go runtime samples them.
    GoHeap,
    /// Goroutines.
    Goroutines,
    /// Threads of a Go runtime.
    Threads,
}

impl Subject {
    /// How something came to be there, as in `[opened before tracing]`.
    pub(crate) fn made(self) -> &'static str {
        match self {
            Self::Heap | Self::GoHeap => "allocated",
            Self::Descriptors => "opened",
            Self::Mappings => "mapped",
            Self::NewMemory => "touched",
            Self::Goroutines | Self::Threads => "made",
        }
    }

    /// What amounts are amounts of, in profiles.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Heap | Self::GoHeap => "blocks",
            Self::Descriptors => "descriptors",
            Self::Mappings | Self::NewMemory => "bytes",
            Self::Goroutines => "goroutines",
            Self::Threads => "threads",
        }
    }

    /// What becomes of what was there when memtrace attached.
    pub(super) fn before_attach(self) -> &'static str {
        match self {
            Self::Heap => "Memory allocated before memtrace attached is not counted.",
            Self::Descriptors | Self::Mappings => {
                "What the process held before memtrace attached is shown apart."
            }
            Self::NewMemory => "Memory touched before memtrace attached is not counted.",
            Self::GoHeap => "What the Go runtime sampled before memtrace attached is counted.",
            Self::Goroutines | Self::Threads => "Those from before memtrace attached are among them.",
        }
    }

    /// What is covered, one entry each; of the heap, a snapshot says so itself.
    pub(super) fn coverage(self) -> &'static [&'static str] {
        match self {
            Self::Heap | Self::GoHeap => &[],
            Self::Goroutines => &["covered: every goroutine but those of the runtime itself"],
            Self::Threads => &["covered: every thread that the Go runtime knows, by what holds it"],
            Self::Descriptors => &[
                "covered: the descriptors that any thread opens, copies, receives and closes; those of calls that are not traced stand apart",
            ],
            Self::Mappings => &[
                "covered: what any thread maps, moves and unmaps, and the stacks of threads, by who made the thread",
                "not covered: what an allocator maps for its own use, and what brk adds",
            ],
            Self::NewMemory => {
                &["covered: pages that are touched for the first time, what brk adds, and what is mapped"]
            }
        }
    }
}
