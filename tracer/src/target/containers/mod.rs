//! From what the user wrote of a container or a pod to its processes.
//!
//! The engines are asked on their sockets which containers run, under which names, and what the first process of each is
//! ([`find_all`]). The kernel is asked for everything else: all processes of a container are those in its cgroup
//! ([`Container::processes`]). Without an engine, the id of a container is found in the paths of cgroups alone.

mod cgroup;
mod containerd;
mod cri;
mod docker;
mod endpoints;
mod error;
mod grpc;
mod listing;
mod members;
mod wanted;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, io};

pub use endpoints::{Endpoint, Endpoints};
pub use error::{Candidate, ContainerError, EngineError, Tried};
use listing::Listed;
pub use wanted::Wanted;

/// What runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// Docker's, by its HTTP API.
    Docker,
    /// Podman, by the same API, which `podman system service` offers.
    Podman,
    /// What a kubelet asks: the Container Runtime Interface.
    Cri,
    /// containerd, by its own API.
    Containerd,
    /// None that answers: the container was found by its id in the paths of cgroups.
    Cgroup,
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Cri => "cri",
            Self::Containerd => "containerd",
            Self::Cgroup => "cgroup",
        })
    }
}

/// The place of a container in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Kubernetes' namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The container's name in the pod.
    pub container: String,
    /// The node: `NODE_NAME` of memtrace's environment, which a DaemonSet sets, or else this machine's name.
    pub node: String,
}

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Who told of it.
    pub engine: Engine,
    /// Its id: 64 hexadecimal digits, except for containers that were made with containerd's own tools, which choose.
    pub id: String,
    /// Its name; of a container in a pod, the name in the pod; the id if it has none.
    pub name: String,
    /// The image that it was made of, as the engine names it; empty if not known.
    pub image: String,
    /// Where it is in a pod, if it is.
    pub pod: Option<Pod>,
    /// Its labels, and those of its pod.
    pub labels: BTreeMap<String, String>,
    /// Its first process, in memtrace's PID namespace.
    pub init: u32,
}

impl Container {
    /// The processes of the container, in ascending order: those in its cgroup and in the cgroups below, whoever started
    /// them (`docker exec` does not fork from the first process). Without memtrace itself, which may run in a container.
    ///
    /// # Errors
    /// When the first process has ended.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        members::of(self.init, &self.id)
    }
}

/// The processes of a cgroup and of those below it, in ascending order: `path` is the path in its hierarchy, as in
/// `/proc/PID/cgroup`. Without memtrace itself.
pub fn processes_below(path: &str) -> Vec<u32> {
    members::below(path)
}

/// The one container that is wanted.
///
/// # Errors
/// [`ContainerError::Ambiguous`] when there are several; otherwise as [`find_all`].
pub async fn find(wanted: &Wanted, endpoints: &Endpoints) -> Result<Container, ContainerError> {
    let mut found = find_all(wanted, endpoints).await?;
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => Err(ambiguous(wanted, &found)),
    }
}

fn ambiguous(wanted: &Wanted, found: &[Container]) -> ContainerError {
    ContainerError::Ambiguous {
        wanted: wanted.clone(),
        candidates: found.iter().map(Candidate::of).collect(),
    }
}

/// All containers that are wanted, at least one: a name means one, labels and a pod may mean several. Asks every engine that may
/// know, all at the same time, and none for longer than [`EngineError::PATIENCE`] at a time.
///
/// # Errors
/// [`ContainerError::NotFound`] when no engine knows one that runs, with what each said; [`ContainerError::NotVisible`] when
/// the processes of one are not in memtrace's PID namespace; [`ContainerError::Ambiguous`] when several have the name; [`ContainerError::Engine`] when the engine that knows one did not
/// say what its first process is.
pub async fn find_all(wanted: &Wanted, endpoints: &Endpoints) -> Result<Vec<Container>, ContainerError> {
    let (tried, listed) = listing::of_all(endpoints, wanted.engine()).await;
    let matching = listing::choose(wanted, &listed);
    if matching.is_empty() {
        return without_engine(wanted).ok_or_else(|| ContainerError::NotFound {
            wanted: wanted.clone(),
            tried,
            running: listed.iter().map(Candidate::listed).collect(),
        });
    }
    let mut found = Vec::with_capacity(matching.len());
    let mut failure = None;
    for one in matching {
        match settle(one).await {
            Ok(container) => found.push(container),
            Err(error) => failure = Some(error),
        }
    }
    if matches!(wanted, Wanted::Named { .. }) && found.len() > 1 {
        return Err(ambiguous(wanted, &found));
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        // Of several, one may have ended since it was listed.
        Some(error) => {
            log::warn!("{error}");
            Ok(found)
        }
        None => Ok(found),
    }
}

/// Finds out what the first process of a container is.
async fn settle(listed: &Listed) -> Result<Container, ContainerError> {
    let told = listing::first_process(listed).await;
    let init = match (
        cgroup::first_process(&listed.id, told.as_ref().ok().copied()),
        told,
    ) {
        (Some(init), _) => init,
        (None, Ok(pid)) => {
            return Err(ContainerError::NotVisible {
                container: Candidate::listed(listed),
                pid,
            });
        }
        (None, Err(source)) => {
            return Err(ContainerError::Engine {
                container: Candidate::listed(listed),
                source,
            });
        }
    };
    Ok(listed.container(init))
}

/// The container whose id, or the beginning of it, is wanted, found in the paths of cgroups.
fn without_engine(wanted: &Wanted) -> Option<Vec<Container>> {
    let ids = cgroup::ids_that_begin_with(wanted.id()?);
    let containers = ids.into_iter().filter_map(|id| {
        let init = cgroup::first_process(&id, None)?;
        Some(Container {
            engine: Engine::Cgroup,
            name: id.clone(),
            id,
            image: String::new(),
            pod: None,
            labels: BTreeMap::new(),
            init,
        })
    });
    let containers: Vec<Container> = containers.collect();
    (!containers.is_empty()).then_some(containers)
}

/// The name of this node, for the labels of pods.
fn node_name() -> String {
    let told = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    told.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}
