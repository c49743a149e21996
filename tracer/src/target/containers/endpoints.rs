//! Where the engines listen: as their own tools find it.

use std::path::{Path, PathBuf};

use super::{Engine, EngineError};

/// Docker's socket (`docker`'s documentation of `DOCKER_HOST`).
const DOCKER: [&str; 1] = ["/run/docker.sock"];
/// Podman's, when root runs it (`podman-system-service(1)`).
const PODMAN: [&str; 1] = ["/run/podman/podman.sock"];
/// containerd's own, and those that K3s, Docker and MicroK8s start for themselves.
const CONTAINERD: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/docker/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];
/// What `crictl` tries, and K3s' and MicroK8s'.
const CRI: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];

/// One socket to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Who listens there.
    pub engine: Engine,
    /// The socket, or the address that was given in place of one.
    pub socket: PathBuf,
    /// Whether the address is not that of a socket on this machine.
    is_foreign: bool,
}

impl Endpoint {
    /// A socket of this machine.
    pub fn unix(engine: Engine, socket: impl Into<PathBuf>) -> Self {
        Self {
            engine,
            socket: socket.into(),
            is_foreign: false,
        }
    }

    /// The socket, if there is one.
    pub(super) fn path(&self) -> Result<&Path, EngineError> {
        match self.is_foreign {
            true => Err(EngineError::NotLocal),
            false => Ok(&self.socket),
        }
    }

    /// An address in the forms that the engines' tools take: `unix:///run/docker.sock`, or for some the path alone.
    pub(super) fn given(engine: Engine, address: &str) -> Self {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        Self {
            engine,
            socket: PathBuf::from(path),
            is_foreign: !path.starts_with('/'),
        }
    }
}

/// All sockets to ask, the most telling engine first: Docker's containers are containerd's, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// They.
    pub all: Vec<Endpoint>,
}

impl Endpoints {
    /// What the environment says (`DOCKER_HOST`, `CONTAINER_HOST`, `CONTAINERD_ADDRESS`, `CONTAINER_RUNTIME_ENDPOINT`), and
    /// where it is silent, the usual paths. `runtime` takes the place of `CONTAINER_RUNTIME_ENDPOINT`.
    pub fn from_environment(runtime: Option<&str>) -> Self {
        Self::from_variables(runtime, |name| std::env::var(name).ok())
    }

    pub(super) fn from_variables(runtime: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = |name: &str| {
            let directory = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
            directory
                .filter(|path| path.is_absolute())
                .map(|path| path.join(name))
        };
        let mut all = Vec::new();
        let mut add = |engine, given: Option<String>, usual: &[&str], of_user: Option<PathBuf>| match given {
            Some(address) => all.push(Endpoint::given(engine, &address)),
            None => all.extend(
                usual
                    .iter()
                    .map(PathBuf::from)
                    .chain(of_user)
                    .map(|path| Endpoint::unix(engine, path)),
            ),
        };
        add(
            Engine::Docker,
            variable("DOCKER_HOST"),
            &DOCKER,
            user("docker.sock"),
        );
        add(
            Engine::Podman,
            variable("CONTAINER_HOST"),
            &PODMAN,
            user("podman/podman.sock"),
        );
        let runtime = runtime.map(str::to_owned);
        let runtime = runtime.or_else(|| variable("CONTAINER_RUNTIME_ENDPOINT"));
        add(Engine::Cri, runtime, &CRI, None);
        add(
            Engine::Containerd,
            variable("CONTAINERD_ADDRESS"),
            &CONTAINERD,
            None,
        );
        Self { all }
    }
}
