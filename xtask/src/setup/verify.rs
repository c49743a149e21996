//! Does the linked toolchain, with the linker on `PATH`, build an eBPF program? Tried once, then remembered.

use std::{fs, path::PathBuf, time::UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use super::{TOOLCHAIN, toolchain};
use crate::{process, workspace};

const MANIFEST: &str = r#"[package]
name = "verify"
version = "0.0.0"
edition = "2024"
[[bin]]
name = "verify"
path = "main.rs"
[workspace]
"#;

/// Uses `core` the way the real programs do: a panic path and arithmetic that must be compiled, not only checked.
const PROGRAM: &str = r#"#![no_std]
#![no_main]
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
pub extern "C" fn verify(context: *const u64) -> u64 {
    unsafe { context.as_ref() }.map_or(0, |value| value.rotate_left(7).count_ones() as u64)
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

/// One line that identifies the pair, if both are there and this very pair was found to work before.
pub fn earlier() -> Option<String> {
    let pair = pair()?;
    (fs::read_to_string(record()).ok()? == pair.identity).then_some(pair.summary)
}

/// Builds [`PROGRAM`], and remembers that it works.
///
/// # Errors
/// When it does not build.
pub fn verify() -> Result<()> {
    let directory = workspace::scratch().join("verify");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    fs::write(directory.join("Cargo.toml"), MANIFEST)?;
    fs::write(directory.join("main.rs"), PROGRAM)?;
    let mut cargo = process::command("rustup");
    cargo
        .current_dir(&directory)
        .args(["run", TOOLCHAIN, "cargo", "build", "--quiet", "--release"])
        .args([
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
            "target",
        ])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    process::run(&mut cargo).context("it does not build an eBPF program")?;
    let object = directory.join("target/bpfel-unknown-none/release/verify");
    // e_machine, at offset 18 of an ELF header, is EM_BPF (247).
    if fs::read(&object)
        .ok()
        .and_then(|elf| elf.get(18..20).map(<[u8]>::to_vec))
        != Some(vec![247, 0])
    {
        bail!("{} is not an eBPF object", object.display());
    }
    let pair = pair().context("the linked toolchain or bpf-linker is gone")?;
    fs::write(record(), &pair.identity).with_context(|| format!("cannot write {}", record().display()))?;
    println!("setup: {}", pair.summary);
    Ok(())
}

fn record() -> PathBuf {
    workspace::scratch().join("verified")
}

/// The linked toolchain and the linker.
struct Pair {
    /// Everything that, when it changes, asks for a new verification.
    identity: String,
    /// For people.
    summary: String,
}

fn pair() -> Option<Pair> {
    let version = process::output(process::command("rustc").args([&format!("+{TOOLCHAIN}"), "-vV"]))?;
    let sysroot = toolchain::sysroot(TOOLCHAIN)?;
    if !toolchain::has_source(&sysroot) {
        return None;
    }
    let sysroot = sysroot.display();
    let linker = process::find("bpf-linker")?;
    let modified = linker
        .metadata()
        .ok()?
        .modified()
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    let linker_version = process::output(process::command(&linker).arg("--version"))?;
    Some(Pair {
        identity: format!(
            "{version}\n{sysroot}\n{}\n{linker_version}\n{modified:?}\n",
            linker.display()
        ),
        summary: format!(
            "{TOOLCHAIN} is {} in {sysroot}; {linker_version}: ready",
            version.lines().next()?
        ),
    })
}
