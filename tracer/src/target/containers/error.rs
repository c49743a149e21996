//! Why a container was not found.

use std::{error::Error, fmt, path::PathBuf, time::Duration};

use super::{Container, Engine, Listed, Wanted};
use crate::text::printable;

/// So many containers are named in an error.
const SHOWN: usize = 20;

/// So many characters of what an engine says are shown.
const LONGEST: usize = 300;

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is nothing at the path of its socket.
    #[error("no such socket")]
    NoSocket,
    /// The address is not that of a socket on this machine.
    #[error("not a socket of this machine, so its processes may not be here; write unix:///PATH")]
    NotLocal,
    /// It did not answer in time.
    #[error("no answer within {} s", EngineError::PATIENCE.as_secs())]
    Late,
    /// The socket refused, or the answer was an error or not understood.
    #[error("{0}")]
    Refused(String),
}

impl EngineError {
    /// How long one question may take.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    /// An error with everything that is behind it, which the outer ones do not say.
    pub(super) fn refused(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let inner = error.to_string();
            if !text.contains(&inner) {
                text = format!("{text}: {inner}");
            }
            source = error.source();
        }
        // An engine that is none may say anything.
        Self::Refused(text.chars().take(LONGEST).collect())
    }
}

/// An engine that was asked, or would have been.
#[derive(Debug)]
pub struct Tried {
    /// Which it is.
    pub engine: Engine,
    /// Its socket, or the address that was given in place of one.
    pub socket: PathBuf,
    /// How many containers it runs, or why it did not say.
    pub answer: Result<usize, EngineError>,
}

/// A container that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who told of it.
    pub engine: Engine,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it is in a pod: `NAMESPACE/NAME/CONTAINER`.
    pub pod: Option<String>,
}

impl Candidate {
    pub(super) fn of(container: &Container) -> Self {
        let pod = container.pod.as_ref();
        Self {
            engine: container.engine,
            id: container.id.clone(),
            name: container.name.clone(),
            pod: pod.map(|pod| format!("{}/{}/{}", pod.namespace, pod.name, pod.container)),
        }
    }

    pub(super) fn listed(listed: &Listed) -> Self {
        Self::of(&listed.container(0))
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.get(..12).unwrap_or(&self.id);
        write!(out, "{}://{}", self.engine, printable(id))?;
        match &self.pod {
            Some(pod) => write!(out, "  pod/{}", printable(pod)),
            None if self.name != self.id => write!(out, "  {}", printable(&self.name)),
            None => Ok(()),
        }
    }
}

/// Why a container was not found.
#[derive(Debug)]
pub enum ContainerError {
    /// No engine knows one that runs and is meant.
    NotFound {
        /// What was asked for.
        wanted: Wanted,
        /// Who was asked.
        tried: Vec<Tried>,
        /// What runs.
        running: Vec<Candidate>,
    },
    /// Several are meant where one is needed.
    Ambiguous {
        /// What was asked for.
        wanted: Wanted,
        /// They.
        candidates: Vec<Candidate>,
    },
    /// The process that the engine names is not in memtrace's PID namespace.
    NotVisible {
        /// The container.
        container: Candidate,
        /// Its first process, in the engine's PID namespace.
        pid: u32,
    },
    /// The engine knows the container, but did not say what its first process is, and no cgroup's path has its id.
    Engine {
        /// The container.
        container: Candidate,
        /// What the engine said.
        source: EngineError,
    },
}

impl Error for ContainerError {}

impl fmt::Display for ContainerError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound {
                wanted,
                tried,
                running,
            } => {
                write!(out, "no running container is {}", printable(&wanted.to_string()))?;
                if tried.is_empty() {
                    write!(out, "; there is no engine of that kind to ask")?;
                }
                for one in tried {
                    let socket = one.socket.display().to_string();
                    write!(out, "\n  {} at {}: ", one.engine, printable(&socket))?;
                    match &one.answer {
                        Ok(1) => write!(out, "1 container runs")?,
                        Ok(count) => write!(out, "{count} containers run")?,
                        Err(error) => write!(out, "{}", printable(&error.to_string()))?,
                    }
                }
                if !running.is_empty() {
                    write!(out, "\nThese run:")?;
                }
                list(out, running)
            }
            Self::Ambiguous { wanted, candidates } => {
                let wanted = wanted.to_string();
                write!(
                    out,
                    "{} means several containers; name one of these:",
                    printable(&wanted)
                )?;
                list(out, candidates)
            }
            Self::NotVisible { container, pid } => write!(
                out,
                "{container} runs as process {pid}, which memtrace cannot see: run it on the host, or in a container with \
                 the host's PID namespace (--pid=host, hostPID: true)"
            ),
            Self::Engine { container, source } => write!(
                out,
                "{container} runs, but what its first process is cannot be told: {}",
                printable(&source.to_string())
            ),
        }
    }
}

fn list(out: &mut fmt::Formatter<'_>, candidates: &[Candidate]) -> fmt::Result {
    for candidate in candidates.iter().take(SHOWN) {
        write!(out, "\n  {candidate}")?;
    }
    match candidates.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(out, "\n  and {more} more"),
    }
}
