//! What the user wrote of a container.

use std::{fmt, str::FromStr};

use super::{Engine, Listed};

/// So many digits of an id are taken for its beginning: what Docker shows of one.
const SHORT_ID: usize = 12;

/// Which container is wanted, or which containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By name or id.
    Named {
        /// The only engine to ask, if one is named.
        engine: Option<Engine>,
        /// containerd's namespace, if one is named.
        space: Option<String>,
        /// The name, the id, or the first 12 digits of the id or more.
        name: String,
    },
    /// By its place in a pod.
    Pod {
        /// Kubernetes' namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The container's name in the pod; not needed if it has one container.
        container: Option<String>,
    },
    /// By labels, of its own or of its pod, all of which it must have.
    Labels(Vec<(String, String)>),
}

impl Wanted {
    /// Understands `NAME`, `ID`, `docker://NAME`, `podman://NAME`, `cri://NAME`, `containerd://ID`, `containerd://NAMESPACE/ID`,
    /// `pod/NAMESPACE/NAME`, `pod/NAMESPACE/NAME/CONTAINER`, and `LABEL=VALUE`, several of these with commas between.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(place) = text.strip_prefix("pod/") {
            return parse_pod(place);
        }
        if let Some((scheme, name)) = text.split_once("://") {
            return parse_scheme(scheme, name);
        }
        if text.contains('=') {
            return text
                .split(',')
                .map(parse_label)
                .collect::<Result<_, _>>()
                .map(Self::Labels);
        }
        Ok(Self::Named {
            engine: None,
            space: None,
            name: parse_name(text)?,
        })
    }

    /// The only engine to ask, if there is one.
    pub(super) fn engine(&self) -> Option<Engine> {
        match self {
            Self::Named { engine, .. } => *engine,
            Self::Pod { .. } | Self::Labels(_) => None,
        }
    }

    /// What may be an id, or the beginning of one, when no engine is named.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Named {
                engine: None, name, ..
            } if may_be_id(name) => Some(name),
            _ => None,
        }
    }

    /// How well a container is meant: not at all, by the beginning of its id, or by all that was written.
    pub(super) fn matches(&self, listed: &Listed) -> Option<Match> {
        match self {
            Self::Named { space, name, .. } => {
                if space.is_some() && *space != listed.space {
                    return None;
                }
                let is_named = listed.id == *name || listed.names.contains(name);
                let begins = || may_be_id(name) && listed.id.starts_with(name.as_str());
                match is_named {
                    true => Some(Match::Exact),
                    false => begins().then_some(Match::Beginning),
                }
            }
            Self::Pod {
                namespace,
                name,
                container,
            } => {
                let pod = listed.pod.as_ref()?;
                let is_it = pod.namespace == *namespace
                    && pod.name == *name
                    && container.as_ref().is_none_or(|wanted| pod.container == *wanted);
                is_it.then_some(Match::Exact)
            }
            Self::Labels(labels) => labels
                .iter()
                .all(|(key, value)| listed.labels.get(key) == Some(value))
                .then_some(Match::Exact),
        }
    }
}

/// How well a container is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    /// Its id begins like that.
    Beginning,
    /// It is what was written.
    Exact,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { engine, space, name } => {
                if let Some(engine) = engine {
                    write!(out, "{engine}://")?;
                }
                if let Some(space) = space {
                    write!(out, "{space}/")?;
                }
                out.write_str(name)
            }
            Self::Pod {
                namespace,
                name,
                container,
            } => {
                write!(out, "pod/{namespace}/{name}")?;
                container.iter().try_for_each(|name| write!(out, "/{name}"))
            }
            Self::Labels(labels) => {
                let labels: Vec<String> = labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                out.write_str(&labels.join(","))
            }
        }
    }
}

fn may_be_id(name: &str) -> bool {
    (SHORT_ID..=64).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Accepts what engines accept: letters, digits, and `_`, `.`, `-` (containerd also `+` and `~`, in snapshots' names only).
fn parse_name(text: &str) -> Result<String, String> {
    // Docker's own API shows names with a slash before them.
    let name = text.strip_prefix('/').unwrap_or(text);
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_good) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "`{text}` is no container's name; write for example web, docker://web, containerd://k8s.io/ID, \
             pod/default/shop, pod/default/shop/app, or app=shop"
        ))
    }
}

fn parse_scheme(scheme: &str, name: &str) -> Result<Wanted, String> {
    let engine = match scheme {
        "docker" => Engine::Docker,
        "podman" => Engine::Podman,
        "containerd" => Engine::Containerd,
        // As `kubectl` shows ids of CRI-O's.
        "cri" | "cri-o" => Engine::Cri,
        _ => {
            return Err(format!(
                "`{scheme}` is no engine that memtrace knows; write docker://, podman://, containerd://, or cri://"
            ));
        }
    };
    let (space, name) = match name.split_once('/') {
        Some((space, name)) if engine == Engine::Containerd => (Some(parse_name(space)?), name),
        _ => (None, name),
    };
    Ok(Wanted::Named {
        engine: Some(engine),
        space,
        name: parse_name(name)?,
    })
}

fn parse_pod(place: &str) -> Result<Wanted, String> {
    let parts: Vec<&str> = place.split('/').collect();
    let (namespace, name, container) = match parts[..] {
        [namespace, name] => (namespace, name, None),
        [namespace, name, container] => (namespace, name, Some(parse_name(container)?)),
        _ => {
            return Err(format!(
                "`pod/{place}` is no pod; write pod/NAMESPACE/NAME or pod/NAMESPACE/NAME/CONTAINER"
            ));
        }
    };
    Ok(Wanted::Pod {
        namespace: parse_name(namespace)?,
        name: parse_name(name)?,
        container,
    })
}

/// A label's key may have a prefix: `app.kubernetes.io/name`. Its value may be empty.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{text}` is no label; write for example app=shop, or app=shop,tier=web");
    let is_good = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '=' | '!');
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    // kubectl also takes `==`, which means the same.
    let value = value.strip_prefix('=').unwrap_or(value);
    if key.is_empty() || !key.chars().all(is_good) || !value.chars().all(is_good) {
        return Err(wrong());
    }
    Ok((key.to_owned(), value.to_owned()))
}
