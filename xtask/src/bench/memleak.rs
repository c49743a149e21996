//! bcc's memleak: a build without Python and LLVM is in the libbpf-tools of Debian 13, whose libc it needs.

use std::{ffi::OsString, fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// The release that has the tool.
const RELEASE: &str = "trixie";
/// The tool, and the libraries it is linked with.
const PACKAGES: [&str; 5] = ["libbpf-tools", "libc6", "libelf1t64", "zlib1g", "libzstd1"];

/// The words that start memleak; options follow.
///
/// # Errors
/// When it cannot be downloaded: on a system other than Debian, or without a network.
pub fn provide() -> Result<Vec<OsString>> {
    let directory = workspace::scratch().join("memleak");
    fs::create_dir_all(&directory)?;
    let directory = directory.canonicalize()?;
    let root = directory.join("root");
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let tool = root.join("usr/sbin/memleak-libbpf");
    let unpacked = directory.join("unpacked");
    if !unpacked.exists() {
        download(&directory)?;
        for package in packages_in(&directory)? {
            process::run(
                process::command("dpkg-deb")
                    .arg("--extract")
                    .arg(package)
                    .arg(&root),
            )?;
        }
        fs::write(&unpacked, RELEASE)?;
    }
    Ok(vec![
        libraries.join("ld-linux-x86-64.so.2").into(),
        "--library-path".into(),
        libraries.into(),
        tool.into(),
    ])
}

/// Has apt fetch and check the packages, with a configuration of its own: the system's does not change.
fn download(directory: &Path) -> Result<()> {
    let place = directory.display();
    for name in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(directory.join(name))?;
    }
    fs::write(directory.join("status"), "")?;
    fs::write(
        directory.join("sources.list"),
        format!("deb {} {RELEASE} main\n", archive()?),
    )?;
    let configuration = directory.join("apt.conf");
    fs::write(
        &configuration,
        format!(
            "Dir::Etc::sourcelist \"{place}/sources.list\";\nDir::Etc::sourceparts \"-\";\nDir::State \"{place}\";\n\
             Dir::State::status \"{place}/status\";\nDir::Cache \"{place}\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n"
        ),
    )?;
    let apt = |words: &[&str]| {
        let mut apt = process::command("apt-get");
        apt.current_dir(directory)
            .arg("--quiet")
            .args(words)
            .env("APT_CONFIG", &configuration);
        process::run(&mut apt)
    };
    apt(&["update"])?;
    apt(&[&["download"], &PACKAGES[..]].concat())
}

/// The Debian archive that this machine uses.
fn archive() -> Result<String> {
    let targets = process::output(process::command("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))
    .context("memleak comes from Debian, and there is no apt-get here")?;
    let Some(archive) = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
    else {
        bail!("apt knows no Debian archive; run `apt-get update` first");
    };
    Ok(archive.to_owned())
}

fn packages_in(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(entries
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}
