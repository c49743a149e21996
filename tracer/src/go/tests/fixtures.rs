//! One Go program, built by every version of Go in every way that changes its file. Built once, then kept.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

const SOURCES: [(&str, &str); 4] = [
    ("go.mod", include_str!("program/go.mod")),
    ("main.go", include_str!("program/main.go")),
    ("plain.go", include_str!("program/plain.go")),
    ("cgo.go", include_str!("program/cgo.go")),
];

const GO_1_19: &str = "/usr/lib/go-1.19/bin/go";
const TOOLCHAINS: [&str; 8] = [
    "go1.19",
    "go1.21.13",
    "go1.22.10",
    "go1.23.9",
    "go1.24.11",
    "go1.25.5",
    "go1.26.6",
    "go1.27.3",
];

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Default,
    Pie,
    Cgo,
    CgoPie,
}

/// A program that was built.
#[derive(Clone, Debug)]
pub(super) struct Fixture {
    pub toolchain: &'static str,
    pub mode: Mode,
    /// With symbols.
    pub path: PathBuf,
    /// The same code without: by `-ldflags="-s -w"` and by `strip`.
    pub stripped: Vec<PathBuf>,
}

impl Fixture {
    pub fn is_pie(&self) -> bool {
        matches!(self.mode, Mode::Pie | Mode::CgoPie)
    }

    pub fn go(&self) -> Command {
        go(self.toolchain)
    }
}

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(|| {
    let directory = directory();
    let (old, new) = TOOLCHAINS.split_at(TOOLCHAINS.len() / 2);
    let build = |toolchains: &[&'static str]| -> Vec<Fixture> {
        let available = toolchains.iter().filter(|toolchain| is_available(toolchain));
        available
            .flat_map(|toolchain| build(&directory, toolchain))
            .collect()
    };
    std::thread::scope(|scope| {
        let new = scope.spawn(|| build(new));
        let mut all = build(old);
        all.extend(new.join().expect("the programs are built"));
        all
    })
});

/// Every program that can be built here; those that cannot are named as skipped.
pub(super) fn all() -> &'static [Fixture] {
    for toolchain in TOOLCHAINS {
        if !FIXTURES.iter().any(|fixture| fixture.toolchain == toolchain) {
            println!("SKIPPED: {toolchain} is not installed");
        }
    }
    &FIXTURES
}

/// A directory under target/, which belongs to these sources.
fn directory() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    SOURCES.hash(&mut hasher);
    let test = std::env::current_exe().expect("the test's path is known");
    let target = test.ancestors().nth(3).expect("it is in target/debug/deps");
    let directory = target.join("tmp").join(format!("go-{:016x}", hasher.finish()));
    fs::create_dir_all(&directory).expect("target/ is writable");
    for (name, content) in SOURCES {
        fs::write(directory.join(name), content).expect("target/ is writable");
    }
    directory
}

fn go(toolchain: &str) -> Command {
    if toolchain == "go1.19" {
        return Command::new(GO_1_19);
    }
    let mut command = Command::new("go");
    command.env("GOTOOLCHAIN", toolchain);
    command
}

fn is_available(toolchain: &str) -> bool {
    let output = go(toolchain).arg("version").output();
    output.is_ok_and(|output| {
        let version = String::from_utf8_lossy(&output.stdout);
        output.status.success() && version.contains(toolchain)
    })
}

fn build(directory: &Path, toolchain: &'static str) -> Vec<Fixture> {
    let modes: [(Mode, &str, &[&str]); 4] = [
        (Mode::Default, "0", &[]),
        (Mode::Pie, "0", &["-buildmode=pie"]),
        (Mode::Cgo, "1", &["-ldflags=-linkmode=external"]),
        (
            Mode::CgoPie,
            "1",
            &["-buildmode=pie", "-ldflags=-linkmode=external"],
        ),
    ];
    let fixtures = modes.map(|(mode, cgo, arguments)| {
        let name = format!("{toolchain}-{mode:?}");
        let compile = |name: &str, arguments: &[&str]| {
            make(directory, name, |output| {
                let mut command = go(toolchain);
                command.current_dir(directory).env("CGO_ENABLED", cgo);
                command
                    .arg("build")
                    .args(arguments)
                    .arg("-o")
                    .arg(output)
                    .arg(".");
                command
            })
        };
        let path = compile(&name, arguments);
        let mut stripped = vec![make(directory, &format!("{name}-strip"), |output| {
            let mut command = Command::new("strip");
            command.arg("-o").arg(output).arg(&path);
            command
        })];
        if mode == Mode::Default {
            stripped.push(compile(&format!("{name}-sw"), &["-ldflags=-s -w"]));
        }
        Fixture {
            toolchain,
            mode,
            path,
            stripped,
        }
    });
    fixtures.into()
}

/// Runs the command that makes a file, unless it was made before.
fn make(directory: &Path, name: &str, command: impl FnOnce(&Path) -> Command) -> PathBuf {
    let path = directory.join(name);
    if !path.exists() {
        let unfinished = directory.join(format!("{name}.{}", std::process::id()));
        let output = command(&unfinished).output().expect("the tool is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}");
        fs::rename(&unfinished, &path).expect("target/ is writable");
    }
    path
}
