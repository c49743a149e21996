//! The standard library for musl from source, for a machine to which rustup cannot bring it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail, ensure};

use crate::{process, setup, workspace};

/// Debian's musl-dev: the C library, and what a program begins and ends with.
const MUSL: &str = "/usr/lib/x86_64-linux-musl";

/// See there.
const UNWINDER: &str = include_str!("unwinder.c");

/// A cargo that builds the standard library, too, and links it with Debian's musl.
///
/// # Errors
/// When musl is not there, or the stand-in for the unwinder does not compile.
pub fn with_own_library() -> Result<Command> {
    if !Path::new(MUSL).join("rcrt1.o").exists() {
        bail!(
            "{MUSL}/rcrt1.o is missing, which Debian's musl-dev holds; install it, or run \
             `rustup target add {}`, then run this again",
            super::TARGET
        );
    }
    let unwinder = unwinder()?;
    let mut cargo = process::command("cargo");
    cargo
        .arg(format!("+{}", setup::TOOLCHAIN))
        .args(["-Z", "build-std=std,panic_abort", "-Z", "build-std-features="])
        // `-Z build-std` is needed whether or not the linked toolchain calls itself nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&unwinder).join("\x1f"));
    Ok(cargo)
}

/// How to link: what rustc does itself when the target is installed, with rustup's copies of these files.
fn flags(unwinder: &Path) -> Vec<String> {
    let before = [
        "-nostartfiles".to_owned(),
        "-nodefaultlibs".to_owned(),
        format!("{MUSL}/rcrt1.o"),
        format!("{MUSL}/crti.o"),
    ];
    let after = ["-lgcc".to_owned(), format!("{MUSL}/crtn.o")];
    let mut flags = vec!["-Clinker=gcc".to_owned(), "-Clink-self-contained=no".to_owned()];
    flags.extend(before.map(|argument| format!("-Zpre-link-args={argument}")));
    flags.push(format!("-Lnative={}", unwinder.display()));
    flags.push(format!("-Lnative={MUSL}"));
    flags.extend(after.map(|argument| format!("-Clink-arg={argument}")));
    flags
}

/// Makes the library that std links as its unwinder, and returns the directory that holds it.
fn unwinder() -> Result<PathBuf> {
    let directory = workspace::scratch().join("dist");
    fs::create_dir_all(&directory)?;
    let library = directory.join("libunwind.a");
    let (source, object) = (directory.join("unwinder.c"), directory.join("unwinder.o"));
    fs::write(&source, UNWINDER)?;
    let mut compile = process::command("musl-gcc");
    compile
        .args(["-O2", "-fPIC", "-c", "-o"])
        .args([&object, &source]);
    process::run(&mut compile)?;
    let mut archive = process::command("ar");
    process::run(archive.arg("rcs").args([&library, &object]))?;
    ensure!(library.exists(), "ar made no {}", library.display());
    Ok(directory)
}
