//! The Container Runtime Interface, by which a kubelet asks for containers.

use std::{collections::HashMap, path::Path};

use super::{Engine, EngineError, Listed, Pod, grpc::Connection, node_name};

/// The messages of `runtime.v1` with the fields that are needed
/// (<https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>).
mod api {
    use std::collections::HashMap;

    use prost::Message;

    /// `ContainerStateValue`: 1 is `CONTAINER_RUNNING`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct State {
        #[prost(int32, tag = "1")]
        pub(super) state: i32,
    }

    /// `ContainerFilter`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Filter {
        #[prost(message, optional, tag = "2")]
        pub(super) state: Option<State>,
    }

    /// `ListContainersRequest`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ListContainers {
        #[prost(message, optional, tag = "1")]
        pub(super) filter: Option<Filter>,
    }

    /// `ContainerMetadata`, and `ImageSpec`, of which the first field is needed.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Text {
        #[prost(string, tag = "1")]
        pub(super) text: String,
    }

    /// `Container`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Container {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(string, tag = "2")]
        pub(super) pod: String,
        #[prost(message, optional, tag = "3")]
        pub(super) name: Option<Text>,
        #[prost(message, optional, tag = "4")]
        pub(super) image: Option<Text>,
        #[prost(map = "string, string", tag = "8")]
        pub(super) labels: HashMap<String, String>,
    }

    /// `ListContainersResponse`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Containers {
        #[prost(message, repeated, tag = "1")]
        pub(super) containers: Vec<Container>,
    }

    /// `ListPodSandboxRequest`, of all pods.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct ListPods {}

    /// `PodSandboxMetadata`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct PodName {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "3")]
        pub(super) namespace: String,
    }

    /// `PodSandbox`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Pod {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(message, optional, tag = "2")]
        pub(super) name: Option<PodName>,
        #[prost(map = "string, string", tag = "5")]
        pub(super) labels: HashMap<String, String>,
    }

    /// `ListPodSandboxResponse`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Pods {
        #[prost(message, repeated, tag = "1")]
        pub(super) pods: Vec<Pod>,
    }

    /// `ContainerStatusRequest`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AskStatus {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(bool, tag = "2")]
        pub(super) verbose: bool,
    }

    /// `ContainerStatusResponse`.
    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Status {
        #[prost(map = "string, string", tag = "2")]
        pub(super) info: HashMap<String, String>,
    }
}

/// `CONTAINER_RUNNING` of `ContainerState`.
const RUNNING: i32 = 1;

/// The containers that run.
pub(super) async fn list(socket: &Path) -> Result<Vec<Listed>, EngineError> {
    let mut connection = Connection::open(socket).await?;
    let method = "/runtime.v1.RuntimeService/ListPodSandbox";
    let pods: api::Pods = connection.ask(method, None, api::ListPods {}).await?;
    let pods: HashMap<String, api::Pod> = pods.pods.into_iter().map(|pod| (pod.id.clone(), pod)).collect();
    let state = Some(api::State { state: RUNNING });
    let question = api::ListContainers {
        filter: Some(api::Filter { state }),
    };
    let method = "/runtime.v1.RuntimeService/ListContainers";
    let found: api::Containers = connection.ask(method, None, question).await?;
    let containers = found.containers.into_iter();
    Ok(containers
        .map(|container| {
            let pod = pods.get(&container.pod);
            listed(socket, container, pod)
        })
        .collect())
}

fn listed(socket: &Path, container: api::Container, pod: Option<&api::Pod>) -> Listed {
    let name = container.name.map(|name| name.text);
    // What was made for the pod's sake has the pod's labels, which its own container does not repeat.
    let mut labels = pod.map(|pod| pod.labels.clone()).unwrap_or_default();
    labels.extend(container.labels);
    let place = pod.and_then(|pod| pod.name.as_ref()).zip(name.as_ref());
    Listed {
        engine: Engine::Cri,
        socket: socket.to_owned(),
        id: container.id,
        space: None,
        pod: place.map(|(pod, name)| Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            container: name.clone(),
            node: node_name(),
        }),
        names: name.into_iter().collect(),
        image: container.image.map(|image| image.text).unwrap_or_default(),
        labels: labels.into_iter().collect(),
        pid: None,
    }
}

/// The first process of a container: containerd and CRI-O say it in what they add to the status when asked to be verbose, a text
/// in JSON under `info`.
pub(super) async fn first_process(socket: &Path, id: &str) -> Result<u32, EngineError> {
    let mut connection = Connection::open(socket).await?;
    let question = api::AskStatus {
        id: id.to_owned(),
        verbose: true,
    };
    let method = "/runtime.v1.RuntimeService/ContainerStatus";
    let status: api::Status = connection.ask(method, None, question).await?;
    pid_in(&status.info).ok_or_else(|| EngineError::Refused("its status has no process id".to_owned()))
}

fn pid_in(info: &HashMap<String, String>) -> Option<u32> {
    let details: serde_json::Value = serde_json::from_str(info.get("info")?).ok()?;
    let pid = u32::try_from(details.get("pid")?.as_u64()?).ok()?;
    (pid != 0).then_some(pid)
}
