//! The packages of one kernel, unpacked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::process;

/// A kernel's packages, unpacked.
pub struct Package {
    /// As `uname -r` will say it.
    pub release: String,
    directory: PathBuf,
}

impl Package {
    /// In an empty directory, into which the packages are downloaded next.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn empty(release: &str, directory: PathBuf) -> Result<Self> {
        remove(&directory)?;
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok(Self {
            release: release.to_owned(),
            directory,
        })
    }

    /// Unpacks what was downloaded.
    ///
    /// # Errors
    /// When dpkg cannot.
    pub fn unpack(&self) -> Result<()> {
        let packages: Vec<_> = fs::read_dir(&self.directory)?.collect::<Result<_, _>>()?;
        for package in packages {
            let mut dpkg = process::command("dpkg");
            dpkg.arg("--extract").arg(package.path()).arg(&self.directory);
            process::run(&mut dpkg)?;
        }
        Ok(())
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
        // The modules take ten times what is kept. What stays is removed before the next download.
        let _ = remove(&self.directory);
    }
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
