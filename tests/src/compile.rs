//! Building target programs with the system's C and C++ compilers.

use std::{
    ffi::{OsStr, OsString},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, bail};

use crate::Result;

/// Flags for a target whose stacks can be walked only by unwind tables, with every call visible in them.
pub const NO_FRAME_POINTERS: [&str; 2] = ["-fomit-frame-pointer", "-fno-optimize-sibling-calls"];

/// A program or shared library to build from a source in `tests/targets/`.
#[derive(Clone, Debug)]
pub struct Build {
    compiler: &'static str,
    name: String,
    source: String,
    flags: Vec<OsString>,
}

impl Build {
    /// A C program from `tests/targets/NAME.c`, at `-O2 -g`.
    pub fn c(name: &str) -> Self {
        Self::new("cc", name, format!("{name}.c"))
    }

    /// A C++ program from `tests/targets/NAME.cpp`, at `-O2 -g`.
    pub fn cpp(name: &str) -> Self {
        Self::new("c++", name, format!("{name}.cpp"))
    }

    /// The same with another compiler, such as `musl-gcc`.
    pub fn compiler(mut self, compiler: &'static str) -> Self {
        self.compiler = compiler;
        self
    }

    fn new(compiler: &'static str, name: &str, source: String) -> Self {
        let flags = ["-O2", "-g", "-Wall", "-Wextra", "-pthread"]
            .map(OsString::from)
            .to_vec();
        Self {
            compiler,
            name: name.to_owned(),
            source,
            flags,
        }
    }

    /// The name of the built file, when it is not the source's.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds a compiler or linker flag; the last one of a kind counts, so `-O0` overrides.
    pub fn flag(mut self, flag: impl AsRef<OsStr>) -> Self {
        self.flags.push(flag.as_ref().to_owned());
        self
    }

    /// Adds several flags.
    pub fn flags<I: IntoIterator<Item: AsRef<OsStr>>>(self, flags: I) -> Self {
        flags.into_iter().fold(self, Build::flag)
    }

    /// Builds, unless the same source was built with the same flags before. The file keeps its name, in a directory
    /// named for the flags.
    pub fn path(&self) -> Result<PathBuf> {
        let directory = cache_directory()?.join(format!("{}-{:016x}", self.name, self.fingerprint()?));
        let built = directory.join(&self.name);
        if !built.exists() {
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
            self.compile(&built)?;
        }
        Ok(built)
    }

    fn compile(&self, built: &Path) -> Result<()> {
        static ATTEMPT: AtomicU32 = AtomicU32::new(0);
        // Two tests may build the same program at the same time: each writes a file of its own, the last rename wins.
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let scratch = built.with_extension(format!("{}-{attempt}", std::process::id()));
        // Libraries come after the source that needs them.
        let mut command = Command::new(self.compiler);
        command
            .arg(target_sources().join(&self.source))
            .args(&self.flags)
            .arg("-o")
            .arg(&scratch);
        let output = command
            .output()
            .with_context(|| format!("running {}", self.compiler))?;
        if !output.status.success() {
            bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        fs::rename(&scratch, built).with_context(|| format!("renaming {}", scratch.display()))
    }

    /// Changes with the flags, the source and every header.
    fn fingerprint(&self) -> Result<u64> {
        let mut files = vec![target_sources().join(&self.source)];
        for entry in fs::read_dir(target_sources()).context("reading the sources of the targets")? {
            files.extend(
                Some(entry?.path()).filter(|path| path.extension().is_some_and(|extension| extension == "h")),
            );
        }
        files.sort();
        let mut hasher = DefaultHasher::new();
        (self.compiler, &self.flags).hash(&mut hasher);
        for file in files {
            fs::read(&file)
                .with_context(|| format!("reading {}", file.display()))?
                .hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

/// The Rust program from `tests/targets/rust_allocators/`, with the global allocator that the feature names.
///
/// Cargo builds it, with the C code of the allocator, if `cargo xtask test` has not done so before: minutes, the first time.
pub fn rust_allocators(feature: &str) -> Result<PathBuf> {
    let directory = profile_directory()?;
    let directory = directory.parent().context("the build directory is the root")?;
    let directory = directory.join("rust-allocators").join(feature);
    let mut command = Command::new("cargo");
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--features",
            feature,
            "--manifest-path",
        ])
        .arg(target_sources().join("rust_allocators/Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory);
    let output = command.output().context("running cargo")?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(directory.join("release/rust_allocators"))
}

/// Builds a C program of that name as most software is built, and gives its path as text.
pub fn program(name: &str) -> Result<String> {
    let path = Build::c(name).flags(NO_FRAME_POINTERS).path()?;
    Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
}

/// Where the sources of the targets are.
pub fn target_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("targets")
}

/// Where built targets are kept: `memtrace-tests` beside the test programs' own build directory.
pub fn cache_directory() -> Result<PathBuf> {
    let directory = profile_directory()?.join("memtrace-tests");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Cargo's directory for the profile this test was built with, such as `target/debug`.
pub fn profile_directory() -> Result<PathBuf> {
    let test = std::env::current_exe().context("asking for the path of this test program")?;
    let directory = test.parent().and_then(Path::parent);
    Ok(directory
        .with_context(|| format!("{} has no build directory", test.display()))?
        .to_owned())
}
