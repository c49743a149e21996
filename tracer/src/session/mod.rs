//! One run of memtrace: attach, wait, write what was found.

mod descriptors;
mod events;
mod fds;
mod files;
mod forget;
mod golang;
mod growth;
mod heirs;
mod history;
mod images;
mod launch;
mod lifecycle;
pub mod mapped;
mod mappings;
mod mmaps;
mod privilege;
mod profiles;
mod results;
mod run;
mod serve;
mod signals;
mod snapshot;
mod snapshots;
mod space;
mod tracer;
mod trend;

use std::{
    io::{self, Write as _},
    time::Duration,
};

pub use run::run;
pub use serve::serve;
pub use tracer::{Settings, Tracer};

use crate::{
    kernel::KernelError,
    output::OutputError,
    target::{TargetError, containers::ContainerError},
};

/// Why a run failed. Each kind has its exit code, see [`Error::exit_code`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// A privilege or a kernel feature is missing.
    #[error("{0}")]
    Privilege(String),
    /// The target cannot be traced.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The container was not found.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// This process may not have the descriptors that it takes.
    #[error(
        "memtrace may have no more than {limit} descriptors (ulimit -n), and needs one for each probe, map and event: raise \
         the limit and start it again, for example after: ulimit -n 65536"
    )]
    Descriptors {
        /// How many it may have.
        limit: u64,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(KernelError),
    /// A profile could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// An operating system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// 1: run-time failure, 2: usage, 3: no privilege or kernel feature, 4: no such target.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Output(_) | Self::System { .. } | Self::Descriptors { .. } => 1,
            Self::Usage(_) | Self::Container(ContainerError::Ambiguous { .. }) => 2,
            Self::Privilege(_) => 3,
            Self::Kernel(error) if error.is_privilege() => 3,
            Self::Kernel(_) => 1,
            Self::Target(TargetError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                3
            }
            Self::Target(_) | Self::Container(_) => 4,
        }
    }
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        if error.lacks_descriptors() {
            log::debug!("{error}");
            return Self::Descriptors {
                limit: privilege::descriptor_limit(),
            };
        }
        Self::Kernel(error)
    }
}

/// How long probes are removed before [`REMOVING`] is said.
const REMOVED_SOON: Duration = Duration::from_millis(500);
/// Said when it takes longer.
const REMOVING: &str = "removing probes: the kernel takes some seconds for it";

/// Tells the person who watches; that nobody does must not cost the profile.
fn say(text: &str) {
    let _nobody_listens = writeln!(io::stderr().lock(), "memtrace: {text}");
}
