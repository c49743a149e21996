//! Building Go programs, with many versions of Go and in the ways that programs are shipped.

use std::{
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, bail, ensure};

use crate::{Result, compile, skip};

/// The versions of Go whose programs memtrace reads, and that tests can build with.
pub const VERSIONS: [&str; 8] = ["1.19", "1.21", "1.22", "1.23", "1.24", "1.25", "1.26", "1.27"];

/// Debian's package golang-1.19-go: older than what other versions can be had by.
const OLDEST: (&str, &str) = ("1.19", "/usr/lib/go-1.19/bin/go");

/// What any Go from 1.21 on fetches by itself when `GOTOOLCHAIN` names it: the version, and one release of it.
const RELEASES: [(&str, &str); 7] = [
    ("1.21", "go1.21.13"),
    ("1.22", "go1.22.10"),
    ("1.23", "go1.23.9"),
    ("1.24", "go1.24.11"),
    ("1.25", "go1.25.5"),
    ("1.26", "go1.26.6"),
    ("1.27", "go1.27.3"),
];

/// A Go that builds programs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    go: PathBuf,
    /// The value of `GOTOOLCHAIN`.
    choice: &'static str,
    /// What it says it is, such as `go1.24.11`.
    release: String,
}

impl Toolchain {
    /// The Go that is installed, of whatever version; otherwise says that there is none.
    pub fn installed() -> Result<Option<Self>> {
        match skip::installed(&["go"]) {
            Some(go) => Self::new(go, "local"),
            None => Ok(None),
        }
    }

    /// The Go of a version, such as `1.24`; otherwise says why there is none.
    pub fn of(version: &str) -> Result<Option<Self>> {
        if version == OLDEST.0 {
            if Path::new(OLDEST.1).exists() {
                return Self::new(OLDEST.1.into(), "local");
            }
            skip::skipped(&format!("Go {version} is not installed (golang-1.19-go)"));
            return Ok(None);
        }
        let release = RELEASES.iter().find(|(name, _)| *name == version);
        let (_, release) = release.with_context(|| format!("no release of Go {version} is known"))?;
        // As PATH has it: a distribution's own may be too old to fetch another.
        Self::new("go".into(), release)
    }

    fn new(go: PathBuf, choice: &'static str) -> Result<Option<Self>> {
        let mut command = Command::new(&go);
        command.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", choice);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                skip::skipped(&format!("Go ({choice}) cannot be run: {error}"));
                return Ok(None);
            }
        };
        let release = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        // A Go that cannot fetch others ignores GOTOOLCHAIN, and is of another version.
        if !output.status.success() || (choice != "local" && release != choice) {
            let reason = errors
                .lines()
                .last()
                .unwrap_or("the Go that is installed is too old");
            skip::skipped(&format!("{choice} cannot be had: {reason}"));
            return Ok(None);
        }
        Ok(Some(Self { go, choice, release }))
    }

    /// The command `go` in the directory of a module.
    fn command(&self, module: &str) -> Command {
        let mut command = Command::new(&self.go);
        command
            .current_dir(compile::target_sources().join(module))
            .env_remove("GOFLAGS")
            .env("GOWORK", "off")
            .env("GOTOOLCHAIN", self.choice);
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As `go build` does without cgo: static, with a symbol table and DWARF.
    Default,
    /// Without either (`-ldflags=-s -w`).
    NoSymbols,
    /// At an address that the kernel chooses (`-buildmode=pie`).
    Pie,
    /// With C code, linked with libc.
    Cgo,
    /// With C code, and libc linked into the program.
    StaticCgo,
    /// As [`Self::Default`], after `strip`.
    Stripped,
}

impl Variant {
    /// Those that programs are shipped in.
    pub const ALL: [Self; 5] = [
        Self::Default,
        Self::NoSymbols,
        Self::Pie,
        Self::Cgo,
        Self::Stripped,
    ];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default | Self::Cgo | Self::Stripped => &[],
            Self::NoSymbols => &["-ldflags=-s -w"],
            Self::Pie => &["-buildmode=pie"],
            Self::StaticCgo => &["-ldflags=-linkmode external -extldflags -static"],
        }
    }

    fn has_c_code(self) -> bool {
        matches!(self, Self::Cgo | Self::StaticCgo)
    }
}

/// A program to build from a module in `tests/targets/`.
#[derive(Clone, Debug)]
pub struct GoProgram {
    module: String,
    package: String,
    tags: String,
}

impl GoProgram {
    /// The program in the module's directory.
    pub fn new(module: &str) -> Self {
        Self {
            module: module.to_owned(),
            package: ".".to_owned(),
            tags: String::new(),
        }
    }

    /// The program in a directory of the module.
    pub fn package(mut self, directory: &str) -> Self {
        self.package = format!("./{directory}");
        self
    }

    /// Built with profiling by HTTP: the tag `withpprof`.
    pub fn with_pprof(mut self) -> Self {
        "withpprof".clone_into(&mut self.tags);
        self
    }

    /// Whether the modules that it needs are there or can be fetched; otherwise says why not.
    pub fn has_modules(&self, toolchain: &Toolchain) -> Result<bool> {
        let mut command = toolchain.command(&self.module);
        let output = command
            .args(["mod", "download"])
            .output()
            .with_context(|| format!("running {command:?}"))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let reason = errors.lines().last().unwrap_or_default();
            skip::skipped(&format!("the modules of {} cannot be had: {reason}", self.module));
        }
        Ok(output.status.success())
    }

    /// Builds it, unless the same source was built in the same way before.
    pub fn path(&self, toolchain: &Toolchain, variant: Variant) -> Result<PathBuf> {
        let fingerprint = self.fingerprint(toolchain, variant)?;
        let name = format!(
            "{}-{}-{variant:?}-{fingerprint:016x}",
            self.module, toolchain.release
        );
        let directory = compile::cache_directory()?.join("go").join(name);
        let built = directory.join(&self.module);
        if !built.exists() {
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
            self.build(toolchain, variant, &built)?;
        }
        Ok(built)
    }

    fn build(&self, toolchain: &Toolchain, variant: Variant, built: &Path) -> Result<()> {
        static ATTEMPT: AtomicU32 = AtomicU32::new(0);
        // As in `compile`: of two tests that build the same, the last rename wins.
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        let scratch = built.with_extension(format!("{}-{attempt}", std::process::id()));
        let mut command = toolchain.command(&self.module);
        command
            .args(["build", "-buildvcs=false", "-tags", &self.tags])
            .args(variant.flags())
            .arg("-o")
            .args([scratch.as_os_str(), self.package.as_ref()])
            .env("GOCACHE", compile::cache_directory()?.join("go/cache"))
            .env("CGO_ENABLED", if variant.has_c_code() { "1" } else { "0" });
        run(&mut command)?;
        if variant == Variant::Stripped {
            run(Command::new("strip").arg(&scratch))?;
        }
        fs::rename(&scratch, built).with_context(|| format!("renaming {}", scratch.display()))
    }

    /// Changes with the Go, the way of building, and every file of the module.
    fn fingerprint(&self, toolchain: &Toolchain, variant: Variant) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (&toolchain.release, variant, &self.package, &self.tags).hash(&mut hasher);
        let mut files = Vec::new();
        collect(&compile::target_sources().join(&self.module), &mut files)?;
        ensure!(!files.is_empty(), "there is no module {}", self.module);
        files.sort();
        for file in files {
            fs::read(&file)
                .with_context(|| format!("reading {}", file.display()))?
                .hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

/// The files in a directory and those below it.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
