//! Builds the eBPF programs with the toolchain that `cargo xtask setup` linked.

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The name under which `cargo xtask setup` links a toolchain that can build `core` from source.
const EBPF_TOOLCHAIN: &str = "memtrace-ebpf";

fn main() -> Result<()> {
    // `-Z build-std` is needed whether or not the linked toolchain calls itself nightly.
    //
    // SAFETY: a build script's main thread is its only one here.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    let package = Package {
        name: "memtrace-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf"),
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(EBPF_TOOLCHAIN))
        .context("the eBPF programs did not build; run `cargo xtask setup` once, then build again")
}
