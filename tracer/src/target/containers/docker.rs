//! Docker's HTTP API (<https://docs.docker.com/reference/api/engine/>), which podman offers, too.

use std::path::Path;

use bollard::{
    API_DEFAULT_VERSION, Docker, models::ContainerSummary, query_parameters::ListContainersOptions,
};

use super::{Engine, EngineError, Listed, listing};

/// The label with which cri-dockerd tells the container that holds a pod's namespaces from the pod's own.
const POD_KIND: (&str, &str) = ("io.kubernetes.docker.type", "podsandbox");

/// The containers that run.
pub(super) async fn list(engine: Engine, socket: &Path) -> Result<Vec<Listed>, EngineError> {
    let docker = connect(socket).await?;
    // Without options: those that run.
    let containers = docker.list_containers(None::<ListContainersOptions>).await;
    let containers = containers.map_err(|error| EngineError::refused(&error))?;
    Ok(containers
        .into_iter()
        .filter_map(|summary| listed(engine, socket, summary))
        .collect())
}

fn listed(engine: Engine, socket: &Path, summary: ContainerSummary) -> Option<Listed> {
    let labels = summary.labels.unwrap_or_default();
    if labels.get(POD_KIND.0).is_some_and(|kind| kind == POD_KIND.1) {
        return None;
    }
    let names = summary.names.unwrap_or_default();
    let names = names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
    Some(Listed {
        engine,
        socket: socket.to_owned(),
        id: summary.id?,
        space: None,
        names: names.map(str::to_owned).collect(),
        image: summary.image.unwrap_or_default(),
        pod: listing::pod_of(&labels),
        labels: labels.into_iter().collect(),
        pid: None,
    })
}

/// The first process of a container.
pub(super) async fn first_process(socket: &Path, id: &str) -> Result<u32, EngineError> {
    let docker = connect(socket).await?;
    let details = docker.inspect_container(id, None).await;
    let details = details.map_err(|error| EngineError::refused(&error))?;
    let pid = details.state.and_then(|state| state.pid);
    // 0 of one that does not run.
    pid.and_then(|pid| u32::try_from(pid).ok())
        .filter(|&pid| pid != 0)
        .ok_or_else(|| EngineError::Refused("it has ended".to_owned()))
}

async fn connect(socket: &Path) -> Result<Docker, EngineError> {
    let path = socket.to_str();
    let path = path.ok_or_else(|| EngineError::Refused("its path is not UTF-8".to_owned()))?;
    // Who asks waits less long, and says so in words of its own.
    let patience = 2 * EngineError::PATIENCE.as_secs();
    let connected = Docker::connect_with_unix(path, patience, API_DEFAULT_VERSION);
    let docker = connected.map_err(|error| EngineError::refused(&error))?;
    // An older engine refuses questions of a newer version of the API.
    let agreed = docker.negotiate_version().await;
    agreed.map_err(|error| EngineError::refused(&error))
}
