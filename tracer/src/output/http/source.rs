//! What the server asks for profiles.

use std::{sync::Arc, time::SystemTime};

use crate::profile::Profile;

/// Who has the profiles.
pub trait Source: Send + Sync + 'static {
    /// The targets that are traced now. Called for most requests, so it must not wait for a snapshot.
    fn targets(&self) -> Vec<TargetSummary>;

    /// The profile of a target now. `name` is never [`ProfileName::Allocs`], which the server makes of the heap.
    ///
    /// The server asks for few at once, and goes on waiting for one when the client that wanted it has left.
    ///
    /// # Errors
    ///
    /// As [`SourceError`] says.
    fn profile(
        &self,
        target: &str,
        name: ProfileName,
    ) -> impl Future<Output = Result<Arc<Profile>, SourceError>> + Send;
}

/// What is shown of a target.
#[derive(Clone, Debug)]
pub struct TargetSummary {
    /// What it is called in addresses: ASCII letters, digits, `-`, `_` and `.`, unique in the daemon.
    pub id: String,
    /// What people know it by. No command line: whoever may see the profiles need not see those.
    pub title: String,
    /// Its processes.
    pub pids: Vec<u32>,
    /// When tracing began.
    pub since: SystemTime,
    /// The profiles that can be asked for; [`ProfileName::Allocs`] need not be named beside the heap.
    pub profiles: Vec<ProfileName>,
    /// What is not covered, one sentence each.
    pub notes: Vec<String>,
}

impl TargetSummary {
    /// Whether a profile can be asked for.
    pub(super) fn has(&self, name: ProfileName) -> bool {
        self.profiles.contains(&name.made_of())
    }

    /// The names of the profiles that can be asked for, in the order of [`ProfileName::ALL`].
    pub(super) fn names(&self) -> impl Iterator<Item = ProfileName> {
        ProfileName::ALL.into_iter().filter(|name| self.has(*name))
    }
}

/// The last part of a profile's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProfileName {
    /// The heap, with what was allocated in all shown first.
    Allocs,
    /// The heap, with what lives shown first.
    Heap,
    /// The C heap of a Go program.
    HeapNative,
    /// Descriptors.
    Fd,
    /// Mappings.
    Mmap,
    /// New memory.
    Growth,
    /// Goroutines.
    Goroutine,
    /// Threads of a Go program.
    Threadcreate,
}

impl ProfileName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Heap,
        Self::Allocs,
        Self::HeapNative,
        Self::Fd,
        Self::Mmap,
        Self::Growth,
        Self::Goroutine,
        Self::Threadcreate,
    ];

    /// As it stands in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allocs => "allocs",
            Self::Heap => "heap",
            Self::HeapNative => "heap-native",
            Self::Fd => "fd",
            Self::Mmap => "mmap",
            Self::Growth => "growth",
            Self::Goroutine => "goroutine",
            Self::Threadcreate => "threadcreate",
        }
    }

    /// The profile of this name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// The profile that a source has for it.
    pub(super) fn made_of(self) -> Self {
        match self {
            Self::Allocs => Self::Heap,
            other => other,
        }
    }

    /// What it shows.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Heap => "Live memory, by the code that allocated it",
            Self::Allocs => "The same profile; viewers begin with all that was allocated, freed or not",
            Self::HeapNative => "Live memory of the C allocators in a Go program",
            Self::Fd => "Open descriptors, by the code that opened them",
            Self::Mmap => "Mappings, by the code that made them",
            Self::Growth => "Memory by the code that touched it first",
            Self::Goroutine => "Goroutines, by where they are",
            Self::Threadcreate => "Threads of a Go program, by what holds them",
        }
    }
}

/// Why there is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The target has ended, or never was.
    #[error("this target is not traced (any more)")]
    Gone,
    /// The target has no such profile, and why.
    #[error("this target has no such profile: {0}")]
    NotAvailable(String),
    /// The source cannot answer now, and why; it may later.
    #[error("no profile now: {0}; try again")]
    Busy(String),
    /// Something failed.
    #[error("no profile: {0}")]
    Failed(String),
}
