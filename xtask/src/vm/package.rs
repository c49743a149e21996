//! The packages of one kernel, unpacked.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::suite::{Suite, remove};
use crate::workspace;

/// The package that depends on the newest kernel for cloud machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel's packages, unpacked.
pub struct Package {
    /// As `uname -r` will say it.
    pub release: String,
    directory: PathBuf,
}

impl Package {
    /// Fetches the suite's newest kernel.
    ///
    /// # Errors
    /// When the suite has none or it cannot be downloaded.
    pub fn fetch(suite: &Suite) -> Result<Self> {
        let meta = suite.dependencies(META_PACKAGE)?;
        let release = meta
            .iter()
            .find_map(|package| package.strip_prefix("linux-image-"))
            .with_context(|| format!("{META_PACKAGE} depends on no kernel"))?;
        // Since Linux 7 the image and its configuration are in packages that this one depends on.
        let image = format!("linux-image-{release}");
        let parts = ["binary", "base"].map(|part| format!("linux-{part}-{release}"));
        let dependencies = suite.dependencies(&image)?;
        let mut packages = vec![image];
        packages.extend(parts.into_iter().filter(|part| dependencies.contains(part)));
        let package = Self {
            release: release.to_owned(),
            directory: workspace::target().join("vm/unpacked"),
        };
        suite.unpack(&packages, &package.directory)?;
        Ok(package)
    }

    /// The compressed kernel.
    ///
    /// # Errors
    /// When the packages have none.
    pub fn vmlinuz(&self) -> Result<PathBuf> {
        self.file("vmlinuz")
    }

    /// What the kernel was built with.
    ///
    /// # Errors
    /// When the packages do not say.
    pub fn config(&self) -> Result<PathBuf> {
        self.file("config")
    }

    /// In `/boot`, since Linux 7 beside the modules.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let Self { release, directory } = self;
        let places = [
            format!("boot/{name}-{release}"),
            format!("usr/lib/modules/{release}/{name}"),
        ];
        places
            .iter()
            .map(|place| directory.join(place))
            .find(|file| file.is_file())
            .with_context(|| format!("the packages of {release} have no {}", places.join(" and no ")))
    }
}

impl Drop for Package {
    fn drop(&mut self) {
        // The modules take ten times what is kept. What cannot be removed now is before the next download.
        let _ = remove(&self.directory);
    }
}
