//! Debian's packages: what setup installs when a program or library is missing.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What the end-to-end tests use: what shows that it is there, and the package that brings it. A path is a file that must
/// exist; a name is a program that may be anywhere on `PATH`, because many have a newer one than Debian's.
const TEST_PROGRAMS: [(&str, &str); 26] = [
    ("/usr/bin/gdb", "gdb"),
    ("/usr/sbin/bpftool", "bpftool"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/bin/redis-benchmark", "redis-tools"),
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/bin/ab", "apache2-utils"),
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("/usr/bin/python3", "python3"),
    ("go", "golang-go"),
    // The oldest Go whose programs are read, beside whatever `go` is.
    ("/usr/lib/go-1.19/bin/go", "golang-1.19-go"),
    ("/usr/bin/objdump", "binutils"),
    ("/usr/bin/musl-gcc", "musl-tools"),
    ("/usr/bin/g++", "g++"),
    ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "libjemalloc2"),
    (
        "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
        "libtcmalloc-minimal4",
    ),
    ("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0", "libmimalloc2.0"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/podman", "podman"),
    // The node of tests/kubernetes.
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/etcd", "etcd-server"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("gcc", "gcc"),
    ("/usr/share/doc/libc6-dbg", "libc6-dbg"),
];

/// A program that `invoke-rc.d` asks before it starts a service; 101 means: never (Debian's policy-rc.d interface).
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &[u8] = b"#!/bin/sh\nexit 101\n";

/// Installs what is missing of the programs that the tests need.
///
/// # Errors
/// When it cannot be installed.
pub fn provide_test_programs() -> Result<()> {
    let missing: Vec<&str> = TEST_PROGRAMS
        .iter()
        .filter(|(sign, _)| !is_there(sign))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        println!("setup: the programs that the tests need are there");
        return Ok(());
    }
    install(&missing)
}

/// Whether there is a file at this path, or a program of this name.
fn is_there(sign: &str) -> bool {
    if sign.contains('/') {
        Path::new(sign).exists()
    } else {
        process::find(sign).is_some()
    }
}

/// Installs packages with apt. No service of theirs is started.
///
/// # Errors
/// When this is not Debian, not root, or apt fails; the message holds the command to run.
pub fn install(packages: &[&str]) -> Result<()> {
    if process::find("apt-get").is_none() {
        bail!(
            "these Debian packages, or what they hold, are missing: {}. Install them, then run this again",
            packages.join(" ")
        );
    }
    if !process::is_root() {
        bail!(
            "packages are missing, and installing them needs root. Run this, then run `cargo xtask setup` again:\n\
             sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    let _policy = NoServices::enforce()?;
    // The package lists may be older than the archive, or not there at all.
    if apt_install(packages).is_err() {
        process::run(apt().arg("update"))?;
        apt_install(packages)?;
    }
    Ok(())
}

fn apt() -> std::process::Command {
    let mut apt = process::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    apt
}

fn apt_install(packages: &[&str]) -> Result<()> {
    process::run(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )
}

/// While this lives, packages start no services.
struct NoServices {
    /// Whether the policy is ours to remove.
    created: bool,
}

impl NoServices {
    fn enforce() -> Result<Self> {
        let policy = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        match policy {
            Ok(mut file) => {
                file.write_all(POLICY_TEXT)
                    .with_context(|| format!("cannot write {POLICY}"))?;
                Ok(Self { created: true })
            }
            // Somebody's own policy stays: containers commonly have one that says the same.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { created: false }),
            Err(error) => Err(error).with_context(|| format!("cannot create {POLICY}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.created
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("setup: remove {POLICY} yourself ({error}): it keeps packages from starting services");
        }
    }
}
