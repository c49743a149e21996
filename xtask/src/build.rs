//! `cargo xtask build`: memtrace with its eBPF programs, after making sure that the tool chain is there.

use std::path::PathBuf;

use anyhow::Result;

use crate::{process, setup, workspace};

/// How memtrace is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Debug,
    /// Optimized.
    Release,
}

impl Profile {
    /// From the presence of `--release`.
    pub fn from_release(release: bool) -> Self {
        if release { Self::Release } else { Self::Debug }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds memtrace and returns the path of its executable.
///
/// # Errors
/// When the tool chain is missing and cannot be installed, or the code does not compile.
pub fn build(profile: Profile) -> Result<PathBuf> {
    setup::setup(false)?;
    let mut cargo = process::command("cargo");
    cargo
        .current_dir(workspace::root())
        .args(["build", "--package", "memtrace", "--bins"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    // Cargo shows again what building the eBPF programs once printed, as warnings.
    process::run_without(&mut cargo, "warning: memtrace@")?;
    Ok(workspace::target().join(profile.directory()).join("memtrace"))
}
