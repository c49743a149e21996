//! Fetching packages from Debian's archive with apt, from any suite, without touching the machine's own sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// The keys of Debian's archive (package debian-archive-keyring).
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of Debian, with package lists of its own below `target/vm`.
pub struct Suite {
    name: String,
    directory: PathBuf,
}

impl Suite {
    /// Fetches the suite's package lists; `mirror` is a URL, by default that of the machine's own sources.
    ///
    /// # Errors
    /// When no mirror is known or it does not answer.
    pub fn open(name: &str, mirror: Option<&str>) -> Result<Self> {
        let mirror = match mirror {
            Some(mirror) => mirror.to_owned(),
            None => own_mirror()?,
        };
        let directory = workspace::target().join("vm/apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let suite = Self {
            name: name.to_owned(),
            directory,
        };
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

    /// Downloads packages and unpacks them into `directory`, replacing what was there.
    ///
    /// # Errors
    /// When the suite does not have them or they cannot be downloaded.
    pub fn unpack(&self, packages: &[String], directory: &Path) -> Result<()> {
        let [downloads, unpacked] = ["downloads", "unpacked"].map(|name| self.directory.join(name));
        for directory in [&downloads, &unpacked] {
            remove(directory)?;
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        process::run(
            self.apt("apt-get")
                .current_dir(&downloads)
                .args(["--quiet=2", "download"])
                .args(packages),
        )?;
        for package in fs::read_dir(&downloads)? {
            let mut dpkg = process::command("dpkg");
            dpkg.arg("--extract").arg(package?.path()).arg(&unpacked);
            process::run(&mut dpkg)?;
        }
        // Complete or not there at all.
        remove(directory)?;
        fs::rename(&unpacked, directory).with_context(|| format!("cannot create {}", directory.display()))?;
        remove(&downloads)
    }

    /// The names of the packages that the newest version of `package` depends on.
    ///
    /// # Errors
    /// When the suite has no such package.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
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
             APT::Update::Error-Mode \"any\";\n\
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

/// Removes a directory, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
