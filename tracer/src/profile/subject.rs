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
}

impl Subject {
    /// How something came to be there, as in `[opened before tracing]`.
    pub(crate) fn made(self) -> &'static str {
        match self {
            Self::Heap => "allocated",
            Self::Descriptors => "opened",
            Self::Mappings => "mapped",
            Self::NewMemory => "touched",
        }
    }

    /// What amounts are amounts of, in profiles.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Heap => "blocks",
            Self::Descriptors => "descriptors",
            Self::Mappings | Self::NewMemory => "bytes",
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
        }
    }

    /// What is covered, one entry each; of the heap, a snapshot says so itself.
    pub(super) fn coverage(self) -> &'static [&'static str] {
        match self {
            Self::Heap => &[],
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
