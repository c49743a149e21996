//! Which container a process is in, by the paths of its cgroups.
//!
//! Every engine makes a cgroup for each container whose path has the container's id: `/docker/ID`,
//! `/system.slice/docker-ID.scope`, `/kubepods/burstable/podUID/ID`, `/kubepods.slice/…/cri-containerd-ID.scope`,
//! `/machine.slice/libpod-ID.scope/container`, `/default/ID`. A container that runs containers has their cgroups below its own.

use std::{collections::BTreeSet, io};

use procfs::process::{Process, all_processes};

/// The inode of the initial PID namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;
/// In which of cgroup v1's hierarchies a container is looked for: those that every engine makes a cgroup in come first.
const HIERARCHIES: [&str; 3] = ["pids", "memory", "name=systemd"];

/// A cgroup: a line of `/proc/PID/cgroup` (`cgroups(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the hierarchy; 0 is cgroup v2.
    pub(super) hierarchy: u32,
    /// What the hierarchy controls; nothing is said of cgroup v2.
    pub(super) controllers: Vec<String>,
    /// The path in the hierarchy, from the root of memtrace's cgroup namespace; `/..` leads out of it.
    pub(super) path: String,
}

impl Place {
    /// The cgroup of the container with this id, if this is it or is below it.
    fn of_container(&self, id: &str) -> Option<Self> {
        let mut end = 0;
        for component in self.path.split('/') {
            end += component.len();
            if names(component, id) {
                let path = self.path[..end].to_owned();
                return Some(Self { path, ..self.clone() });
            }
            // The slash.
            end += 1;
        }
        None
    }

    /// Whether another cgroup of the same hierarchy is this one or is below it.
    pub(super) fn contains(&self, other: &Self) -> bool {
        let below = other.path.strip_prefix(&self.path);
        self.hierarchy == other.hierarchy
            && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The ids of containers in the path, the outermost first.
    fn ids(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter_map(id_of)
    }

    fn rank(&self) -> usize {
        match self.hierarchy {
            0 => 0,
            _ => {
                1 + HIERARCHIES
                    .iter()
                    .position(|wanted| self.controllers.iter().any(|one| one == wanted))
                    .unwrap_or(HIERARCHIES.len())
            }
        }
    }
}

/// What the name of a cgroup says of a container: its id, unless the cgroup is that of the monitor that Podman and CRI-O run
/// beside each container (`libpod-conmon-ID.scope`).
fn label_of(component: &str) -> Option<&str> {
    let label = component.strip_suffix(".scope").unwrap_or(component);
    (!label.contains("conmon-")).then_some(label)
}

/// Whether a cgroup of this name is that of the container.
fn names(component: &str, id: &str) -> bool {
    let Some(before) = label_of(component).and_then(|label| label.strip_suffix(id)) else {
        return false;
    };
    // runc's own form `SLICE:PREFIX:ID` becomes a path when its cgroup driver is another than the engine's. An id that
    // people chose may be the end of another one.
    before.is_empty() || before.ends_with(':') || (is_id(id) && before.ends_with('-'))
}

/// The container's id in the name of a cgroup.
fn id_of(component: &str) -> Option<&str> {
    let label = label_of(component)?;
    let id = label.rsplit(['-', ':']).next()?;
    is_id(id).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The cgroups of a process, one for each hierarchy.
pub(super) fn of_process(pid: u32) -> io::Result<Vec<Place>> {
    let process = Process::new(pid as i32).map_err(io::Error::other)?;
    places(&process).map_err(io::Error::other)
}

fn places(process: &Process) -> procfs::ProcResult<Vec<Place>> {
    let lines = process.cgroups()?.into_iter();
    Ok(lines
        .map(|line| Place {
            hierarchy: line.hierarchy,
            controllers: line.controllers,
            path: line.pathname,
        })
        .collect())
}

/// The processes there are, with their cgroups.
pub(super) fn of_all_processes() -> impl Iterator<Item = (u32, Vec<Place>)> {
    let processes = all_processes().into_iter().flatten().flatten();
    processes.filter_map(|process| Some((process.pid as u32, places(&process).ok()?)))
}

/// The container's own cgroup, where one of these is in it: of those in several hierarchies, the one that tells best. With both
/// versions of cgroups mounted, a container may be in the root of one, where everything else is, too.
pub(super) fn of_container(places: &[Place], id: &str) -> Option<Place> {
    let mut own: Vec<Place> = places.iter().filter_map(|place| place.of_container(id)).collect();
    own.sort_by_key(Place::rank);
    own.into_iter().next()
}

/// The first process of a container, in memtrace's PID namespace: the one that the engine told of, if it is that; or else the
/// eldest in the container's cgroup.
pub(super) fn first_process(id: &str, told: Option<u32>) -> Option<u32> {
    let is_in = |places: &[Place]| of_container(places, id).is_some();
    let told = told.and_then(|pid| Some((pid, of_process(pid).ok()?)));
    match &told {
        Some((pid, places)) if is_in(places) => return Some(*pid),
        _ => {}
    }
    let eldest = is_id(id).then(|| eldest_in(id)).flatten();
    eldest.or_else(|| told.map(|(pid, _)| pid).filter(|_| sees_every_process()))
}

/// The eldest process that is in a container and in none inside that.
fn eldest_in(id: &str) -> Option<u32> {
    let inside = of_all_processes().filter(|(_, places)| {
        let innermost = places.iter().filter_map(|place| place.ids().last());
        innermost.into_iter().any(|innermost| innermost == id)
    });
    let born = |pid: u32| Some((Process::new(pid as i32).ok()?.stat().ok()?.starttime, pid));
    let (_, pid) = inside.filter_map(|(pid, _)| born(pid)).min()?;
    Some(pid)
}

/// Whether memtrace is in the initial PID namespace, so that a process id of an engine means the same to it.
fn sees_every_process() -> bool {
    let own = Process::myself().and_then(|process| process.namespaces());
    own.is_ok_and(|namespaces| {
        let pid = namespaces.0.get(std::ffi::OsStr::new("pid"));
        pid.is_some_and(|namespace| namespace.identifier == INITIAL_PID_NAMESPACE)
    })
}

/// The ids of containers with processes that begin like this.
pub(super) fn ids_that_begin_with(beginning: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for (_, places) in of_all_processes() {
        let found = places.iter().flat_map(Place::ids);
        ids.extend(found.filter(|id| id.starts_with(beginning)).map(str::to_owned));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::{Place, id_of, names, of_container};

    const ID: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90";
    const OTHER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn place(hierarchy: u32, controllers: &str, path: &str) -> Place {
        let controllers = controllers.split(',').filter(|name| !name.is_empty());
        Place {
            hierarchy,
            controllers: controllers.map(str::to_owned).collect(),
            path: path.replace("ID", ID).replace("OTHER", OTHER),
        }
    }

    /// The container's cgroup, of a process with one cgroup.
    fn cut(path: &str) -> Option<String> {
        let own = of_container(&[place(0, "", path)], ID)?;
        Some(own.path.replace(ID, "ID"))
    }

    #[test]
    fn every_engine_and_both_cgroup_drivers() {
        let own = [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/libpod_parent/libpod-ID",
            "/machine.slice/libpod-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            "/default/ID",
            "/system.slice/nerdctl-ID.scope",
            "/kubepods/burstable/pod8f7c2f0e-1b1c-4f0b-9b54-0a1a2b3c4d5e/ID",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8f7c.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-pod8f7c.slice/crio-ID.scope",
            "/kubepods.slice/kubepods-pod8f7c.slice/docker-ID.scope",
            "/system.slice/containerd.service/kubepods-pod8f7c.slice:cri-containerd:ID",
            "/../../docker/ID",
            "/../ID",
        ];
        for path in own {
            assert_eq!(cut(path).as_deref(), Some(path));
            for below in [
                "/init.scope",
                "/container",
                "/system.slice/cron.service",
                "/docker/OTHER",
            ] {
                assert_eq!(cut(&format!("{path}{below}")).as_deref(), Some(path), "{below}");
            }
        }
    }

    #[test]
    fn what_is_not_the_containers() {
        for path in [
            "/",
            "/docker/OTHER",
            "/machine.slice/libpod-conmon-ID.scope",
            "/kubepods.slice/crio-conmon-ID.scope",
            "/docker/xID",
            "/docker/IDx",
            "/../..",
        ] {
            assert_eq!(cut(path), None, "{path}");
        }
        // Names that people chose.
        assert!(names("app", "app") && names("system.slice:ctr:app", "app"));
        assert!(!names("my-app", "app") && !names("app2", "app") && !names("app-1.scope", "app"));
    }

    #[test]
    fn the_hierarchy_that_tells_best() {
        let best = |places: &[Place]| of_container(places, ID).map(|own| own.hierarchy);
        // Both versions are mounted, and the container is in the root of the second.
        let hybrid = [
            place(9, "name=systemd", "/docker/ID"),
            place(4, "memory", "/docker/ID"),
            place(3, "cpu,cpuacct", "/docker/ID"),
            place(0, "", "/"),
        ];
        assert_eq!(best(&hybrid), Some(4));
        assert_eq!(best(&hybrid[..1]), Some(9));
        assert_eq!(best(&hybrid[2..]), Some(3));
        assert_eq!(best(&hybrid[3..]), None);
        let both = [place(8, "pids", "/docker/ID"), place(0, "", "/docker/ID")];
        assert_eq!(best(&both), Some(0));
    }

    #[test]
    fn what_is_below() {
        let own = place(0, "", "/docker/ID");
        assert!(own.contains(&place(0, "", "/docker/ID")));
        assert!(own.contains(&place(0, "", "/docker/ID/init.scope")));
        assert!(!own.contains(&place(0, "", "/docker/IDa")));
        assert!(!own.contains(&place(0, "", "/docker")));
        assert!(!own.contains(&place(1, "pids", "/docker/ID")));
    }

    #[test]
    fn ids_in_names() {
        for form in [
            "ID",
            "docker-ID.scope",
            "cri-containerd-ID.scope",
            "a:b:ID",
            "libpod-payload-ID",
        ] {
            assert_eq!(id_of(&form.replace("ID", ID)), Some(ID));
        }
        for form in ["libpod-conmon-ID", "IDa", "docker", "", "ID.slice", "-"] {
            assert_eq!(id_of(&form.replace("ID", ID)), None, "{form}");
        }
        assert_eq!(id_of(&ID.to_uppercase()), None);
    }
}
