//! All processes of a container.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use procfs::process::{MountInfo, Process, all_processes};

use super::cgroup::{self, Place};
use crate::target;

/// The processes of the container with this id and this first process, in ascending order.
pub(super) fn of(init: u32, id: &str) -> io::Result<Vec<u32>> {
    let places = cgroup::of_process(init)?;
    let mut pids = match cgroup::of_container(&places, id) {
        Some(own) => in_cgroup(init, &own),
        // Engines can be told to make no cgroup.
        None => in_namespace(init),
    };
    pids.retain(|&pid| pid != std::process::id());
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The processes of the cgroup with this path, in whichever hierarchy, and of those below it, in ascending order.
pub(super) fn below(path: &str) -> Vec<u32> {
    let path = format!("/{}", path.trim_matches('/'));
    let mut pids = listed_below(&path).unwrap_or_else(|| found_below(&path));
    pids.retain(|&pid| pid != std::process::id());
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// As the file system of cgroups lists them; `None` unless that shows every hierarchy: where it shows memtrace itself, it is the
/// right one.
fn listed_below(path: &str) -> Option<Vec<u32>> {
    let own = std::process::id();
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let mut pids = Vec::new();
    for place in cgroup::of_process(own).ok()? {
        let wanted = Place {
            path: path.to_owned(),
            ..place.clone()
        };
        let shows_own = |mount: &&MountInfo| {
            let directory = below_mount(mount, &place);
            directory.is_some_and(|directory| listed_in(&directory).is_ok_and(|pids| pids.contains(&own)))
        };
        let directory = below_mount(mounts.iter().find(shows_own)?, &wanted)?;
        match list_below(&directory, &mut pids) {
            // This hierarchy has no such cgroup.
            Err(error) if is_gone(&error) => {}
            listed => listed.ok()?,
        }
    }
    Some(pids)
}

/// The same, of all processes those that say so.
fn found_below(path: &str) -> Vec<u32> {
    let is_in = |place: &Place| {
        Place {
            // That of the root is then before every slash.
            path: path.trim_end_matches('/').to_owned(),
            ..place.clone()
        }
        .contains(place)
    };
    let all = cgroup::of_all_processes();
    let inside = all.filter(|(_, places)| places.iter().any(is_in));
    inside.map(|(pid, _)| pid).collect()
}

/// The processes in a cgroup and below it. The first process says whether the file system of cgroups shows the right one: it is
/// mounted elsewhere in each container.
fn in_cgroup(init: u32, own: &Place) -> Vec<u32> {
    let mut listed = Vec::new();
    let shown = directory_of(own).map(|directory| list_below(&directory, &mut listed));
    let is_in = |pid: &u32| {
        let places = cgroup::of_process(*pid).unwrap_or_default();
        places.iter().any(|place| own.contains(place))
    };
    listed.retain(is_in);
    if matches!(shown, Some(Ok(()))) && listed.contains(&init) {
        return listed;
    }
    let all = cgroup::of_all_processes();
    all.filter(|(_, places)| places.iter().any(|place| own.contains(place)))
        .map(|(pid, _)| pid)
        .collect()
}

/// Where a cgroup is in memtrace's view of the file system.
fn directory_of(place: &Place) -> Option<PathBuf> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    mounts.into_iter().find_map(|mount| below_mount(&mount, place))
}

fn below_mount(mount: &MountInfo, place: &Place) -> Option<PathBuf> {
    let is_its = match place.hierarchy {
        0 => mount.fs_type == "cgroup2",
        _ => {
            // `name=systemd` is an option with a value, `memory` one without.
            let has = |controller: &String| match controller.split_once('=') {
                Some((key, value)) => mount.super_options.get(key).and_then(Option::as_deref) == Some(value),
                None => mount.super_options.contains_key(controller),
            };
            mount.fs_type == "cgroup" && !place.controllers.is_empty() && place.controllers.iter().all(has)
        }
    };
    // What is mounted may be a part of the hierarchy.
    let below = place.path.strip_prefix(mount.root.trim_end_matches('/'))?;
    let leads_out = below.split('/').any(|component| component == "..");
    let is_below = below.starts_with('/') && !leads_out;
    (is_its && is_below).then(|| mount.mount_point.join(below.trim_start_matches('/')))
}

/// Adds the processes of a cgroup and those of the cgroups below it.
fn list_below(directory: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    pids.extend(listed_in(directory)?);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match list_below(&entry.path(), pids) {
            // It was removed meanwhile, and was empty then.
            Err(error) if is_gone(&error) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The processes of one cgroup.
fn listed_in(directory: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(directory.join("cgroup.procs"))?;
    let pids = text.lines().filter_map(|line| line.parse().ok());
    // 0 stands for a process of another PID namespace.
    Ok(pids.filter(|&pid: &u32| pid != 0).collect())
}

/// Whether a cgroup is not there, or not any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The first process, what descends from it, and what else is in its PID namespace if that is not memtrace's.
fn in_namespace(init: u32) -> Vec<u32> {
    let mut found = vec![init];
    found.extend(target::descendants_of(init));
    let of = |process: &Process| fs::read_link(format!("/proc/{}/ns/pid", process.pid)).ok();
    let own = Process::myself().ok().and_then(|process| of(&process));
    let inside = fs::read_link(format!("/proc/{init}/ns/pid")).ok();
    if inside.is_some() && own != inside {
        let all = all_processes().into_iter().flatten().flatten();
        found.extend(
            all.filter(|process| of(process) == inside)
                .map(|process| process.pid as u32),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process};

    use procfs::process::MountInfo;

    use super::{Place, below_mount, cgroup, found_below, listed_below, of};

    /// Both ways, where the first is open. Meanwhile others come and go.
    #[test]
    fn the_cgroup_of_this_process() {
        let own = process::id();
        for place in cgroup::of_process(own).expect("it lives") {
            assert!(found_below(&place.path).contains(&own), "{place:?}");
            match listed_below(&place.path) {
                Some(listed) => assert!(listed.contains(&own), "{place:?}: {listed:?}"),
                None => println!("SKIPPED: the file system of cgroups does not show {place:?}"),
            }
        }
        assert!(found_below("/").contains(&own), "everything is below the root");
        assert!(listed_below("/no/such/cgroup").is_none_or(|listed| listed.is_empty()));
        assert!(found_below("/no/such/cgroup").is_empty());
    }

    fn directory(mount: &str, hierarchy: u32, controllers: &[&str], path: &str) -> Option<String> {
        let mount = MountInfo::from_line(mount).expect("a line of mountinfo");
        let place = Place {
            hierarchy,
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            path: path.to_owned(),
        };
        let found = below_mount(&mount, &place)?;
        Some(found.to_string_lossy().into_owned())
    }

    #[test]
    fn where_a_cgroup_is_mounted() {
        let v2 = "41 30 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(
            directory(v2, 0, &[], "/docker/a").as_deref(),
            Some("/sys/fs/cgroup/docker/a")
        );
        assert_eq!(directory(v2, 8, &["pids"], "/docker/a"), None);
        let pids = "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids";
        assert_eq!(
            directory(pids, 8, &["pids"], "/docker/a").as_deref(),
            Some("/sys/fs/cgroup/pids/docker/a")
        );
        assert_eq!(directory(pids, 4, &["memory"], "/docker/a"), None);
        assert_eq!(directory(pids, 0, &[], "/docker/a"), None);
        let systemd = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(
            directory(systemd, 9, &["name=systemd"], "/a").as_deref(),
            Some("/sys/fs/cgroup/systemd/a")
        );
    }

    #[test]
    fn a_mount_of_a_part() {
        let part = "41 30 0:38 /docker/a /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(
            directory(part, 0, &[], "/docker/a/b").as_deref(),
            Some("/sys/fs/cgroup/b")
        );
        assert_eq!(directory(part, 0, &[], "/docker/ab"), None);
        assert_eq!(directory(part, 0, &[], "/docker/b"), None);
        // A cgroup namespace does not show what is outside.
        let own = "41 30 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(directory(own, 0, &[], "/../b"), None);
    }

    /// Of a process that no engine made, what is in its PID namespace when that is its own, and what descends from it.
    #[test]
    fn without_a_cgroup_of_its_own() {
        let mut child = process::Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .expect("a shell");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut found = Vec::new();
        while found.len() < 2 && std::time::Instant::now() < deadline {
            found = of(child.id(), "a container that is not").expect("it lives");
        }
        for pid in found.iter().rev() {
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            // SAFETY: plain integers; both are children of this test or of them.
            unsafe { libc::kill(*pid as i32, libc::SIGKILL) };
        }
        child.wait().expect("it is a child");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&child.id()));
    }
}
