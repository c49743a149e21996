//! The kernels that `cargo xtask vm` boots: Debian's for cloud machines, which need no modules to come up.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{package::Package, suite::Suite};
use crate::workspace;

/// A kernel that can be booted.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// What `cargo xtask vm` calls it: the beginning of its release, or [`NEWEST`].
    pub name: &'static str,
    /// The Debian suite that has it.
    pub suite: &'static str,
}

/// The name of the kernel whose release changes often.
const NEWEST: &str = "newest";

/// Every kernel, oldest first.
pub const KERNELS: [Kernel; 3] = [
    Kernel {
        name: "6.1",
        suite: "bookworm",
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
    },
    Kernel {
        name: NEWEST,
        suite: "trixie-backports",
    },
];

/// What memtrace needs of a kernel, by the words of its configuration.
const NEEDED: [(&str, &str); 6] = [
    ("CONFIG_BPF_SYSCALL", "eBPF"),
    ("CONFIG_BPF_JIT", "compiled eBPF"),
    ("CONFIG_BPF_EVENTS", "eBPF programs on probes and tracepoints"),
    ("CONFIG_UPROBE_EVENTS", "uprobes"),
    ("CONFIG_PERF_EVENTS", "perf events"),
    ("CONFIG_DEBUG_INFO_BTF", "the kernel's own types (BTF)"),
];

/// A kernel that is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// As `uname -r` says it.
    pub release: String,
    /// What qemu boots.
    pub vmlinuz: PathBuf,
}

impl Kernel {
    /// The kernel of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        let found = KERNELS.iter().find(|kernel| kernel.name == name);
        found.copied().with_context(|| {
            let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!(
                "there is no kernel called {name}; these are known: {}",
                names.join(", ")
            )
        })
    }

    /// What is here of it, if it was fetched before.
    pub fn cached(&self) -> Option<Image> {
        let directory = self.directory();
        Some(Image {
            release: fs::read_to_string(directory.join("release")).ok()?,
            vmlinuz: Some(directory.join("vmlinuz")).filter(|file| file.is_file())?,
        })
    }

    /// The kernel, fetched if it is not here, or if `anew`.
    ///
    /// # Errors
    /// When it cannot be fetched, is not what its name says, or lacks what memtrace needs.
    pub fn provide(&self, mirror: Option<&str>, anew: bool) -> Result<Image> {
        if anew || self.cached().is_none() {
            let directory = self.directory();
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
            let package = Package::fetch(&Suite::open(self.suite, mirror)?)?;
            fs::copy(package.vmlinuz()?, directory.join("vmlinuz"))?;
            fs::copy(package.config()?, directory.join("config"))?;
            // Last: with it, all is here.
            fs::write(directory.join("release"), &package.release)?;
        }
        let image = self.cached().context("a kernel that was just fetched is gone")?;
        self.check_name(&image.release)?;
        let config = fs::read_to_string(self.directory().join("config"))?;
        let missing = missing(&config);
        if !missing.is_empty() {
            bail!(
                "the kernel {} was built without {}",
                image.release,
                missing.join(", ")
            );
        }
        Ok(image)
    }

    fn check_name(&self, release: &str) -> Result<()> {
        let matches = release
            .strip_prefix(self.name)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
        if self.name != NEWEST && !matches {
            bail!(
                "Debian's {} now has Linux {release}, not {}: correct the table in {}",
                self.suite,
                self.name,
                file!()
            );
        }
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        workspace::target().join("vm/kernels").join(self.name)
    }
}

/// What of [`NEEDED`] a configuration does not have.
fn missing(config: &str) -> Vec<String> {
    let has = |option: &str| config.lines().any(|line| line.strip_prefix(option) == Some("=y"));
    NEEDED
        .iter()
        .filter(|(option, _)| !has(option))
        .map(|(option, meaning)| format!("{meaning} ({option})"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Kernel, NEEDED, missing};

    #[test]
    fn a_configuration_without_uprobes_is_found_out() {
        let all: String = NEEDED.iter().map(|(option, _)| format!("{option}=y\n")).collect();
        assert_eq!(missing(&all), Vec::<String>::new());
        let without = all.replace("CONFIG_UPROBE_EVENTS=y", "# CONFIG_UPROBE_EVENTS is not set");
        assert_eq!(missing(&without), ["uprobes (CONFIG_UPROBE_EVENTS)"]);
    }

    #[test]
    fn a_release_must_be_of_the_named_version() {
        let kernel = Kernel::named("6.1").expect("6.1 is known");
        assert!(kernel.check_name("6.1.0-50-cloud-amd64").is_ok());
        assert!(kernel.check_name("6.12.107+deb13-cloud-amd64").is_err());
    }
}
