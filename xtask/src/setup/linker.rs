//! `bpf-linker`, which turns the compiler's bitcode into an eBPF object.

use std::{env, path::Path};

use anyhow::{Context as _, Result};

use super::debian;
use crate::process;

/// The major version of LLVM that bpf-linker is built against: the newest in Debian 12. A linker reads the bitcode of
/// its own LLVM and of older ones.
pub const LLVM: u32 = 22;

const VERSION: &str = "0.13.0";

/// What linking against LLVM needs.
const PACKAGES: [&str; 5] = [
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "libxml2-dev",
    "zlib1g-dev",
];

/// Makes sure that bpf-linker is on `PATH`.
///
/// # Errors
/// When it cannot be built.
pub fn provide() -> Result<()> {
    match process::find("bpf-linker") {
        Some(path) if process::output(process::command(&path).arg("--version")).is_some() => {
            println!("setup: using {}", path.display());
            Ok(())
        }
        _ => install(),
    }
}

/// Builds bpf-linker and puts it into cargo's `bin` directory, where `tracer/build.rs` finds it.
fn install() -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    if !Path::new(&prefix).join("include/llvm-c/Core.h").exists() {
        debian::install(&PACKAGES)?;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [Path::new(&prefix).join("bin")]
            .into_iter()
            .chain(env::split_paths(&path)),
    )
    .context("PATH holds a directory that cannot be quoted")?;
    let mut install = process::command("cargo");
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--no-default-features",
        ])
        .arg(format!("--features=llvm-{LLVM}"))
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", path)
        .env_remove("CARGO_TARGET_DIR");
    process::run(&mut install)
        .with_context(|| format!("cannot build bpf-linker against LLVM {LLVM} in {prefix}"))
}
