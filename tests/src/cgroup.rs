//! A cgroup for a test's processes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::{Result, skip};

/// Where cgroups are, in the order in which they are tried: a hierarchy of version 2, alone or beside others, and one of version 1.
const MOUNTS: [&str; 3] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/pids"];

/// A cgroup, which is removed when it is dropped. Its processes must have ended by then.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    path: String,
}

impl Cgroup {
    /// Makes one; `None` after saying that this machine does not let us.
    pub fn new(name: &str) -> Result<Option<Self>> {
        let mount = MOUNTS
            .map(Path::new)
            .into_iter()
            .find(|mount| mount.join("cgroup.procs").exists());
        let Some(mount) = mount else {
            skip::skipped("there is no cgroup file system");
            return Ok(None);
        };
        let path = format!("/memtrace-tests-{}/{name}.scope", std::process::id());
        let directory = mount.join(&path[1..]);
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        Ok(Some(Self { directory, path }))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path below the mount.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What fails leaves an empty cgroup behind, and there is nobody to tell.
        let _ = fs::remove_dir(&self.directory);
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}
