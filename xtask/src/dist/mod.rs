//! `cargo xtask dist`: memtrace as one file that needs nothing of the system it runs on, for images without a system.

mod musl;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use object::Object as _;

use crate::{process, setup, workspace};

/// The target of a program that holds its C library.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Where it is once it is built.
pub fn path() -> PathBuf {
    workspace::target().join("dist/memtrace")
}

/// Builds it and returns its path.
///
/// # Errors
/// When the tool chain is missing and cannot be installed, the code does not compile, or the result is not static.
pub fn dist() -> Result<PathBuf> {
    setup::setup(false)?;
    // The C code of a dependency is compiled by it.
    setup::program("musl-gcc", "musl-tools")?;
    let mut cargo = if has_target()? {
        println!("dist: with the standard library for {TARGET} that is installed");
        process::command("cargo")
    } else {
        println!("dist: no standard library for {TARGET} is installed; it is built from rust-src");
        musl::with_own_library()?
    };
    cargo.current_dir(workspace::root());
    cargo.args(["build", "--release", "--package", "memtrace", "--bins"]);
    cargo.args(["--target", TARGET]);
    // Nobody debugs it where there is no debugger, and an image is sent to every node.
    for setting in ["profile.release.debug=0", "profile.release.strip=\"debuginfo\""] {
        cargo.args(["--config", setting]);
    }
    process::run(&mut cargo)?;
    let built = workspace::target().join(TARGET).join("release/memtrace");
    check_static(&built)?;
    let kept = path();
    let directory = kept.parent().context("the path has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    println!("dist: {}", kept.display());
    Ok(kept)
}

/// Whether the toolchain that compiles memtrace has the target's standard library.
fn has_target() -> Result<bool> {
    let mut rustc = process::command("rustc");
    rustc
        .current_dir(workspace::root())
        .args(["--print", "target-libdir", "--target", TARGET]);
    let directory = process::output(&mut rustc).context("rustc does not say where its libraries are")?;
    Ok(Path::new(&directory).is_dir())
}

/// Insists that the program asks for no dynamic linker.
fn check_static(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let elf = object::File::parse(&*bytes).with_context(|| format!("{}", program.display()))?;
    if elf.section_by_name(".interp").is_some() {
        bail!(
            "{} is not static: it asks for a dynamic linker",
            program.display()
        );
    }
    Ok(())
}
