//! `cargo xtask setup`: finds or installs what building and testing memtrace needs.
//!
//! memtrace itself is built by the stable toolchain. Its eBPF programs need `core` compiled from source, so a toolchain
//! with the component rust-src, and `bpf-linker`, which must be linked against an LLVM that is at least as new as that
//! toolchain's. Setup looks for the toolchain in this order, and links the first that works as [`TOOLCHAIN`]:
//!
//! 1. an installed toolchain with rust-src,
//! 2. rustup's nightly of [`toolchain::NIGHTLY`] with rust-src,
//! 3. Debian's packages.

mod debian;
mod linker;
mod toolchain;
mod verify;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::process;

/// The name under which the toolchain is linked; `tracer/build.rs` asks for it.
pub const TOOLCHAIN: &str = "memtrace-ebpf";

/// Makes building possible, and with `tests` also running the end-to-end tests.
///
/// # Errors
/// When something is missing that cannot be installed; the message says what to do.
pub fn setup(tests: bool) -> Result<()> {
    if let Some(ready) = verify::earlier() {
        println!("setup: {ready}");
    } else {
        linker::provide()?;
        toolchain::provide()?;
    }
    if tests {
        debian::provide_test_programs()
    } else {
        Ok(())
    }
}

/// A program's path; installs the Debian package that holds it if need be.
///
/// # Errors
/// When it cannot be installed.
pub fn program(name: &str, package: &str) -> Result<PathBuf> {
    if process::find(name).is_none() {
        debian::install(&[package])?;
    }
    process::find(name).with_context(|| format!("the package {package} brought no program {name}"))
}
