//! A qemu whose emulation can be relied on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::suite::Suite;
use crate::{process, setup, workspace};

/// The first release that is known to be good. In a machine that 7.2 emulates, the flags register now and then holds
/// garbage after `cmpxchg16b`: of 115 boots of Debian's 6.12, 11 panicked, with 10.0, of 50, none.
const GOOD: u32 = 10;
/// What is fetched when the installed one is older. Its libraries come with the installed one.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];

/// A qemu for x86-64 machines.
pub struct Qemu {
    program: PathBuf,
    /// Where its firmware is, if not where it looks.
    data: Vec<PathBuf>,
}

impl Qemu {
    /// The installed one; beside an old one, that of Debian's backports, which is kept below `target/vm`.
    ///
    /// # Errors
    /// When there is none and none can be installed.
    pub fn provide(mirror: Option<&str>) -> Result<Self> {
        let program = setup::program("qemu-system-x86_64", "qemu-system-x86")?;
        let installed = Self {
            program,
            data: Vec::new(),
        };
        if installed.version()? >= GOOD {
            return Ok(installed);
        }
        match Self::from_backports(mirror) {
            Ok(newer) => Ok(newer),
            Err(error) => {
                println!(
                    "qemu before {GOOD} may crash a kernel that is not at fault, and there is no newer one: {error:#}"
                );
                Ok(installed)
            }
        }
    }

    fn from_backports(mirror: Option<&str>) -> Result<Self> {
        let directory = workspace::target().join("vm/qemu");
        let qemu = Self {
            program: directory.join("usr/bin/qemu-system-x86_64"),
            data: [&directory, Path::new("/")]
                .iter()
                .flat_map(|root| ["usr/share/qemu", "usr/share/seabios"].map(|data| root.join(data)))
                .collect(),
        };
        if !qemu.program.exists() {
            let release = debian_release().context("this is not Debian")?;
            let suite = Suite::open(&format!("{release}-backports"), mirror)?;
            suite.unpack(&PACKAGES.map(str::to_owned), &directory)?;
        }
        if qemu.version()? < GOOD {
            bail!("the backports have qemu {}", qemu.version()?);
        }
        Ok(qemu)
    }

    /// A command that runs it.
    pub fn command(&self) -> Command {
        let mut command = process::command(&self.program);
        for directory in &self.data {
            command.arg("-L").arg(directory);
        }
        command
    }

    fn version(&self) -> Result<u32> {
        let answer = process::output(self.command().arg("--version"))
            .with_context(|| format!("{} does not run; `ldd` on it says why", self.program.display()))?;
        major(&answer).with_context(|| format!("not a version of qemu: {answer}"))
    }
}

/// The first number in `QEMU emulator version 7.2.22 (…)`.
fn major(answer: &str) -> Option<u32> {
    let version = answer.split("version ").nth(1)?;
    version.split('.').next()?.parse().ok()
}

/// Debian's name for the release that runs here.
fn debian_release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key));
    let codename = value("VERSION_CODENAME=")?;
    (value("ID=")? == "debian").then(|| codename.to_owned())
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn the_version_is_read() {
        let answer =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(major(answer), Some(7));
        assert_eq!(major("something else"), None);
    }
}
