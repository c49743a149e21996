//! The Rust toolchain for the eBPF programs: one that has the source of `core`.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{TOOLCHAIN, debian, linker, verify};
use crate::process;

/// The nightly that setup asks rustup for: the last whose LLVM is [`linker::LLVM`]. A dated one, so that every machine
/// gets the same and no toolchain that is installed changes.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// How long rustup may take to download it.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// The packages with Debian's own pair of Rust and its source, which its security archive keeps current.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm"];

/// The oldest Rust that compiles the eBPF programs.
const OLDEST: (u32, u32) = (1, 95);

/// A Rust toolchain on this machine.
struct Candidate {
    sysroot: PathBuf,
    /// Major and minor version of Rust.
    release: (u32, u32),
    /// Major version of its LLVM.
    llvm: u32,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (Rust {}.{}, LLVM {})",
            self.sysroot.display(),
            self.release.0,
            self.release.1,
            self.llvm
        )
    }
}

impl Candidate {
    /// Reads what the compiler in `sysroot` says of itself.
    fn at(sysroot: &Path) -> Option<Self> {
        let version = process::output(process::command(sysroot.join("bin/rustc")).arg("-vV"))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let mut release = field("release:")?.split('.').map(str::parse);
        Some(Self {
            sysroot: sysroot.to_owned(),
            release: (release.next()?.ok()?, release.next()?.ok()?),
            llvm: field("LLVM version:")?.split('.').next()?.parse().ok()?,
        })
    }

    /// Why it cannot build the programs, as far as can be said without trying.
    fn unfit(&self) -> Option<String> {
        if !has_source(&self.sysroot) {
            return Some("it has no rust-src".into());
        }
        if self.release < OLDEST {
            return Some(format!("it is older than Rust {}.{}", OLDEST.0, OLDEST.1));
        }
        (self.llvm > linker::LLVM)
            .then(|| format!("its LLVM is newer than bpf-linker's, which is {}", linker::LLVM))
    }

    /// Links it as [`TOOLCHAIN`], unless it is already, and tries it.
    fn adopt(&self) -> Result<()> {
        println!("setup: using {self}");
        if sysroot(TOOLCHAIN).as_deref() != Some(&self.sysroot) {
            process::run(
                process::command("rustup")
                    .args(["toolchain", "link", TOOLCHAIN])
                    .arg(&self.sysroot),
            )?;
        }
        verify::verify()
    }

    /// Whether it works; says why not.
    fn works(&self) -> bool {
        let result = match self.unfit() {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => self.adopt(),
        };
        result
            .inspect_err(|reason| println!("setup: not {self}: {reason:#}"))
            .is_ok()
    }
}

/// Whether the toolchain has the component rust-src.
pub fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// Finds or installs a toolchain and links it.
///
/// # Errors
/// When none works and none can be installed.
pub fn provide() -> Result<()> {
    if installed().iter().any(Candidate::works) || from_rustup().is_some_and(|candidate| candidate.works()) {
        return Ok(());
    }
    debian::install(&PACKAGES)?;
    match Candidate::at(Path::new("/usr")) {
        Some(candidate) if candidate.works() => Ok(()),
        _ => bail!(
            "no Rust toolchain here can build the eBPF programs. Give rustup one with rust-src, at least Rust {}.{} and \
             LLVM at most {}, and run `cargo xtask setup` again",
            OLDEST.0,
            OLDEST.1,
            linker::LLVM
        ),
    }
}

/// What is installed: rustup's toolchains (an earlier link among them) and Debian's.
fn installed() -> Vec<Candidate> {
    let listed = process::output(process::command("rustup").args(["toolchain", "list", "--verbose"]))
        .unwrap_or_default();
    let mut sysroots: Vec<PathBuf> = Vec::new();
    for path in listed
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .chain(["/usr"])
    {
        // Names may be links to one another, and `/usr` may be listed already.
        if let Ok(sysroot) = Path::new(path).canonicalize()
            && !sysroots.contains(&sysroot)
        {
            sysroots.push(sysroot);
        }
    }
    sysroots
        .iter()
        .filter_map(|sysroot| Candidate::at(sysroot))
        .collect()
}

/// Downloads [`NIGHTLY`], if that is possible.
fn from_rustup() -> Option<Candidate> {
    let mut install = process::command("rustup");
    install.args([
        "toolchain",
        "install",
        NIGHTLY,
        "--profile",
        "minimal",
        "--component",
        "rust-src",
        "--no-self-update",
    ]);
    if let Err(reason) = process::run_within(DOWNLOAD_LIMIT, &mut install) {
        println!("setup: rustup cannot provide {NIGHTLY}: {reason:#}");
        return None;
    }
    Candidate::at(&sysroot(NIGHTLY)?)
}

/// Where rustup finds the toolchain of this name.
pub fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let rustc =
        process::output(process::command("rustup").args(["which", "--toolchain", toolchain, "rustc"]))?;
    Path::new(&rustc).ancestors().nth(2)?.canonicalize().ok()
}
