//! Fetching kernels from Debian's archive with apt, from any suite, without touching the machine's own sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::package::Package;
use crate::{process, workspace};

/// The package that depends on the newest kernel for cloud machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The keys of Debian's archive (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of Debian, with package lists of its own below `target/vm`.
pub struct Suite {
    name: &'static str,
    directory: PathBuf,
}

impl Suite {
    /// Fetches the suite's package lists; `mirror` is a URL, by default that of the machine's own sources.
    ///
    /// # Errors
    /// When no mirror is known or it does not answer.
    pub fn open(name: &'static str, mirror: Option<&str>) -> Result<Self> {
        let mirror = match mirror {
            Some(mirror) => mirror.to_owned(),
            None => own_mirror()?,
        };
        let directory = workspace::target().join("vm/apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let suite = Self { name, directory };
        let signed = if Path::new(KEYRING).exists() {
            format!(" signed-by={KEYRING}")
        } else {
            String::new()
        };
        suite.write(
            "sources.list",
            &format!("deb [arch=amd64{signed}] {mirror} {name} main\n"),
        )?;
        suite.write("apt.conf", &suite.configuration())?;
        process::run(suite.apt("apt-get").args(["--quiet=2", "update"]))?;
        Ok(suite)
    }

    /// Fetches the suite's newest kernel and unpacks it.
    ///
    /// # Errors
    /// When the suite has none or it cannot be downloaded.
    pub fn kernel(&self) -> Result<Package> {
        let meta = self.dependencies(META_PACKAGE)?;
        let release = meta
            .iter()
            .find_map(|package| package.strip_prefix("linux-image-"))
            .with_context(|| format!("{META_PACKAGE} of {} depends on no kernel", self.name))?;
        // Since Linux 7 the image and its configuration are in packages that this one depends on.
        let image = format!("linux-image-{release}");
        let parts = ["binary", "base"].map(|part| format!("linux-{part}-{release}"));
        let dependencies = self.dependencies(&image)?;
        let mut packages = vec![image];
        packages.extend(parts.into_iter().filter(|part| dependencies.contains(part)));

        let directory = self.directory.join("unpacked");
        let package = Package::empty(release, directory.clone())?;
        process::run(
            self.apt("apt-get")
                .current_dir(&directory)
                .args(["--quiet=2", "download"])
                .args(&packages),
        )?;
        package.unpack()?;
        Ok(package)
    }

    /// The names of the packages that the newest version of `package` depends on.
    fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let shown = process::output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))
            .with_context(|| format!("Debian's {} has no package {package}", self.name))?;
        let depends = shown
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        let names = depends
            .split([',', '|'])
            .filter_map(|one| one.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = process::command(program);
        apt.env("APT_CONFIG", self.directory.join("apt.conf"));
        apt
    }

    /// Everything apt reads and writes is in the suite's directory; proxies and the like stay the machine's.
    fn configuration(&self) -> String {
        let directory = self.directory.display();
        format!(
            "Dir::Etc::SourceList \"{directory}/sources.list\";\n\
             Dir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\n\
             Dir::Etc::PreferencesParts \"/dev/null\";\n\
             Dir::State::Lists \"{directory}/lists\";\n\
             Dir::State::Status \"/dev/null\";\n\
             Dir::Cache \"{directory}/cache\";\n\
             APT::Architecture \"amd64\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.directory.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The mirror of Debian's archive that the machine's own sources name.
fn own_mirror() -> Result<String> {
    let targets = process::output(process::command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    ]));
    match targets.as_deref().and_then(|targets| targets.lines().next()) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!(
            "apt knows no mirror of Debian's archive here: run `apt-get update` if this is Debian, else name one with \
             `--mirror URL`"
        ),
    }
}
