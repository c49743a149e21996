//! Asking the engines what runs, all at the same time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::{
    Container, Endpoint, Endpoints, Engine, EngineError, Pod, Tried, Wanted, containerd, cri, docker,
};

/// A running container as an engine lists it: without its processes.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) engine: Engine,
    /// Where to ask for more.
    pub(super) socket: PathBuf,
    pub(super) id: String,
    /// containerd's namespace.
    pub(super) space: Option<String>,
    /// The name that is shown comes first.
    pub(super) names: Vec<String>,
    pub(super) image: String,
    pub(super) pod: Option<Pod>,
    pub(super) labels: BTreeMap<String, String>,
    /// Its first process, if the list says it.
    pub(super) pid: Option<u32>,
}

impl Listed {
    /// The container, once its first process is known.
    pub(super) fn container(&self, init: u32) -> Container {
        Container {
            engine: self.engine,
            id: self.id.clone(),
            name: self.names.first().unwrap_or(&self.id).clone(),
            image: self.image.clone(),
            pod: self.pod.clone(),
            labels: self.labels.clone(),
            init,
        }
    }
}

/// The place in a pod that a kubelet has engines write into the labels of a container (`pkg/kubelet/types/labels.go`).
pub(super) fn pod_of(labels: &HashMap<String, String>) -> Option<Pod> {
    let label = |name: &str| labels.get(&format!("io.kubernetes.{name}")).cloned();
    Some(Pod {
        namespace: label("pod.namespace")?,
        name: label("pod.name")?,
        container: label("container.name")?,
        node: super::node_name(),
    })
}

/// Whether what is behind a socket lists containers for this engine.
fn is_asked(endpoint: &Endpoint, only: Option<Engine>) -> bool {
    only.is_none_or(|engine| engine == endpoint.engine)
}

/// Who was asked, and what runs, without those that an earlier engine told of.
pub(super) async fn of_all(endpoints: &Endpoints, only: Option<Engine>) -> (Vec<Tried>, Vec<Listed>) {
    let asked = endpoints.all.iter().filter(|endpoint| is_asked(endpoint, only));
    let mut questions = JoinSet::new();
    for (index, endpoint) in asked.cloned().enumerate() {
        questions.spawn(async move {
            let answer = of_one(&endpoint).await;
            (index, endpoint, answer)
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = questions.join_next().await {
        // A task that panicked has ended memtrace; none is aborted.
        answers.extend(answer);
    }
    answers.sort_by_key(|(index, ..)| *index);
    let mut seen = HashSet::new();
    let (mut tried, mut all) = (Vec::new(), Vec::new());
    for (_, endpoint, answer) in answers {
        let answer = answer.map(|listed| {
            let count = listed.len();
            all.extend(listed.into_iter().filter(|one| is_new(one, &mut seen)));
            count
        });
        tried.push(Tried {
            engine: endpoint.engine,
            socket: endpoint.socket,
            answer,
        });
    }
    (tried, all)
}

/// Ids that engines choose are unique; those that people choose are in their namespace only.
fn is_new(listed: &Listed, seen: &mut HashSet<(String, Option<String>)>) -> bool {
    let is_chosen = listed.id.len() != 64;
    seen.insert((listed.id.clone(), listed.space.clone().filter(|_| is_chosen)))
}

async fn of_one(endpoint: &Endpoint) -> Result<Vec<Listed>, EngineError> {
    let socket = endpoint.path()?;
    within_time(async {
        probe(socket).await?;
        match endpoint.engine {
            Engine::Docker | Engine::Podman => docker::list(endpoint.engine, socket).await,
            Engine::Cri => cri::list(socket).await,
            Engine::Containerd => containerd::list(socket).await,
            Engine::Cgroup => Ok(Vec::new()),
        }
    })
    .await
}

/// Whether somebody listens: the answer of the kernel says more than what the libraries make of it.
async fn probe(socket: &Path) -> Result<(), EngineError> {
    match UnixStream::connect(socket).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(EngineError::NoSocket),
        Err(error) => Err(EngineError::refused(&error)),
    }
}

/// What the engine says the first process of a container is, in the engine's PID namespace.
pub(super) async fn first_process(listed: &Listed) -> Result<u32, EngineError> {
    if let Some(pid) = listed.pid {
        return Ok(pid);
    }
    within_time(async {
        match listed.engine {
            Engine::Docker | Engine::Podman => docker::first_process(&listed.socket, &listed.id).await,
            Engine::Cri => cri::first_process(&listed.socket, &listed.id).await,
            Engine::Containerd | Engine::Cgroup => Err(EngineError::Refused("it has no process".to_owned())),
        }
    })
    .await
}

async fn within_time<T>(answer: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    timeout(EngineError::PATIENCE, answer)
        .await
        .unwrap_or(Err(EngineError::Late))
}

/// Those that are meant; the beginning of an id counts only if it is nobody's name.
pub(super) fn choose<'l>(wanted: &Wanted, listed: &'l [Listed]) -> Vec<&'l Listed> {
    let matching: Vec<_> = listed
        .iter()
        .filter_map(|one| Some((wanted.matches(one)?, one)))
        .collect();
    let best = matching.iter().map(|(how, _)| *how).max();
    matching
        .into_iter()
        .filter(|(how, _)| Some(*how) == best)
        .map(|(_, one)| one)
        .collect()
}
