//! What a target is called: in addresses, for people, and in stores.

use std::{collections::BTreeMap, sync::Arc};

use super::discovery::Found;
use crate::{cli::TargetArguments, target::containers::Container};

/// A process; `None` if there is none of this id.
pub fn of_process(arguments: &Arc<TargetArguments>, pid: u32) -> Option<Found> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?)
        .ok()?
        .stat()
        .ok()?;
    let name = arguments.name.clone().unwrap_or_else(|| stat.comm.clone());
    let mut labels = service(name.clone());
    // Several processes of one service are several series.
    labels.insert("pid".into(), pid.to_string());
    Some(Found {
        id: format!("pid-{pid}"),
        title: format!("{name} (process {pid})"),
        labels,
        spec: Arc::clone(arguments),
        pids: vec![pid],
        absent: None,
    })
}

/// The processes of a cgroup; `None` if there are none.
pub fn of_cgroup(arguments: &Arc<TargetArguments>, path: &str, pids: Vec<u32>) -> Option<Found> {
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("root");
    let name = arguments.name.clone().unwrap_or_else(|| last.to_owned());
    let mut labels = service(name.clone());
    labels.insert("cgroup".into(), path.to_owned());
    (!pids.is_empty()).then(|| Found {
        id: safe(&format!("cgroup-{}", path.trim_matches('/'))),
        title: format!("{name} (cgroup {path})"),
        labels,
        spec: Arc::clone(arguments),
        pids,
        absent: None,
    })
}

/// A container; `None` if it has no processes.
pub fn of_container(
    arguments: &Arc<TargetArguments>,
    container: &Container,
    pids: Vec<u32>,
) -> Option<Found> {
    let name = arguments.name.clone().unwrap_or_else(|| container.name.clone());
    let mut labels = service(name.clone());
    labels.insert("container".into(), container.name.clone());
    let (id, title) = match &container.pod {
        Some(pod) => {
            labels.insert("pod".into(), pod.name.clone());
            labels.insert("namespace".into(), pod.namespace.clone());
            labels.insert("node".into(), pod.node.clone());
            (
                format!("pod-{}-{}-{}", pod.namespace, pod.name, pod.container),
                format!(
                    "{name} (pod {}/{}, container {})",
                    pod.namespace, pod.name, pod.container
                ),
            )
        }
        None => (
            format!("{}-{}", container.engine, container.name),
            format!("{name} ({} container {})", container.engine, container.name),
        ),
    };
    (!pids.is_empty()).then(|| Found {
        id: safe(&id),
        title,
        labels,
        spec: Arc::clone(arguments),
        pids,
        absent: None,
    })
}

/// A target that was never there; `which` is what it was to be found by.
pub fn of_nobody(arguments: &Arc<TargetArguments>, kind: &str, which: &str, why: String) -> Found {
    let name = arguments.name.clone().unwrap_or_else(|| which.to_owned());
    Found {
        id: safe(&format!("{kind}-{}", which.trim_matches('/'))),
        title: format!("{name} ({kind} {which})"),
        labels: service(name),
        spec: Arc::clone(arguments),
        pids: Vec::new(),
        absent: Some(why),
    }
}

fn service(name: String) -> BTreeMap<String, String> {
    BTreeMap::from([("service_name".to_owned(), name)])
}

/// As it can stand in an address: ASCII letters, digits, `-`, `_` and `.`.
fn safe(text: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.chars().map(|c| if is_safe(c) { c } else { '-' }).collect()
}
