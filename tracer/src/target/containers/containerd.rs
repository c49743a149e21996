//! containerd's own API: which namespaces there are, which containers are in them, and which of these have a process.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use super::{Engine, EngineError, Listed, grpc::Connection, listing};

/// The messages of containerd's API, with the fields that are needed
/// (<https://github.com/containerd/containerd/tree/main/api/services>).
mod api {
    use std::collections::HashMap;

    use prost::Message;

    /// A request without a field that is needed: `ListNamespacesRequest`, `ListContainersRequest`, `ListTasksRequest`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Everything {}

    /// `Namespace` of `namespaces/v1/namespace.proto`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Namespace {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }

    /// `ListNamespacesResponse`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Namespaces {
        #[prost(message, repeated, tag = "1")]
        pub(super) namespaces: Vec<Namespace>,
    }

    /// `Container` of `containers/v1/containers.proto`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Container {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(map = "string, string", tag = "2")]
        pub(super) labels: HashMap<String, String>,
        #[prost(string, tag = "3")]
        pub(super) image: String,
    }

    /// `ListContainersResponse`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Containers {
        #[prost(message, repeated, tag = "1")]
        pub(super) containers: Vec<Container>,
    }

    /// `Process` of `types/task/task.proto`; in a list of tasks, `id` is the container's.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Process {
        #[prost(string, tag = "2")]
        pub(super) id: String,
        #[prost(uint32, tag = "3")]
        pub(super) pid: u32,
        #[prost(int32, tag = "4")]
        pub(super) status: i32,
    }

    /// `ListTasksResponse` of `tasks/v1/tasks.proto`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Tasks {
        #[prost(message, repeated, tag = "1")]
        pub(super) tasks: Vec<Process>,
    }
}

/// The status of a task that runs, is paused or is about to be (`Status` of `types/task/task.proto`).
const LIVING: [i32; 3] = [2, 4, 5];
/// What containerd's CRI calls the container that holds a pod's namespaces (`internal/cri/labels/labels.go`).
const POD_KIND: (&str, &str) = ("io.cri-containerd.kind", "sandbox");
/// Where nerdctl keeps the name (`pkg/labels/labels.go`).
const NERDCTL_NAME: &str = "nerdctl/name";

/// The containers that run, in all namespaces.
pub(super) async fn list(socket: &Path) -> Result<Vec<Listed>, EngineError> {
    let mut connection = Connection::open(socket).await?;
    let method = "/containerd.services.namespaces.v1.Namespaces/List";
    let found: api::Namespaces = connection.ask(method, None, api::Everything {}).await?;
    let mut all = Vec::new();
    for space in found.namespaces {
        let method = "/containerd.services.tasks.v1.Tasks/List";
        let tasks: api::Tasks = connection
            .ask(method, Some(&space.name), api::Everything {})
            .await?;
        let living = tasks
            .tasks
            .into_iter()
            .filter(|task| LIVING.contains(&task.status));
        let pids: HashMap<String, u32> = living.map(|task| (task.id, task.pid)).collect();
        if pids.is_empty() {
            continue;
        }
        let method = "/containerd.services.containers.v1.Containers/List";
        let found: api::Containers = connection
            .ask(method, Some(&space.name), api::Everything {})
            .await?;
        let containers = found.containers.into_iter();
        all.extend(containers.filter_map(|one| {
            let pid = *pids.get(&one.id)?;
            listed(socket, &space.name, one, pid)
        }));
    }
    Ok(all)
}

fn listed(socket: &Path, space: &str, container: api::Container, pid: u32) -> Option<Listed> {
    let api::Container { id, labels, image } = container;
    if labels.get(POD_KIND.0).is_some_and(|kind| kind == POD_KIND.1) {
        return None;
    }
    let pod = listing::pod_of(&labels);
    let in_pod = pod.iter().map(|pod| pod.container.clone());
    let names = labels.get(NERDCTL_NAME).cloned().into_iter().chain(in_pod);
    Some(Listed {
        engine: Engine::Containerd,
        socket: socket.to_owned(),
        space: Some(space.to_owned()),
        names: names.collect(),
        image,
        pod,
        labels: labels.into_iter().collect::<BTreeMap<_, _>>(),
        pid: Some(pid).filter(|&pid| pid != 0),
        id,
    })
}
