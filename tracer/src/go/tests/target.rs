//! Programs built for these tests, their runtime's variables, and the questions they answer.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

use object::{Object as _, ObjectSymbol as _};

use crate::{
    go::{Layout, Variables, Version},
    target::Process,
};

/// The toolchains: the minor version, and what `GOTOOLCHAIN` is set to; Debian's own for 1.19.
pub(super) const TOOLCHAINS: [(u32, &str); 8] = [
    (19, "local"),
    (21, "go1.21.13"),
    (22, "go1.22.10"),
    (23, "go1.23.9"),
    (24, "go1.24.11"),
    (25, "go1.25.5"),
    (26, "go1.26.6"),
    (27, "go1.27.3"),
];

const DEBIAN_GO: &str = "/usr/lib/go-1.19/bin/go";

/// Runs a test with the program of this name for each version that can be built here.
pub(super) fn for_each(name: &str, minors: &[u32], test: impl Fn(&mut Target)) {
    for (minor, toolchain) in TOOLCHAINS {
        if !minors.is_empty() && !minors.contains(&minor) {
            continue;
        }
        match built(name, minor, toolchain) {
            Some(program) => test(&mut Target::start(&program, minor)),
            None => println!("SKIPPED: Go 1.{minor} is not here"),
        }
    }
}

/// The program of this name, built once by this version.
pub(super) fn built(name: &str, minor: u32, toolchain: &str) -> Option<PathBuf> {
    static BUILT: OnceLock<Mutex<Vec<(String, PathBuf)>>> = OnceLock::new();
    let mut built = BUILT
        .get_or_init(Mutex::default)
        .lock()
        .expect("no test panicked");
    let key = format!("{name}-1.{minor}");
    if let Some((_, path)) = built.iter().find(|(other, _)| *other == key) {
        return Some(path.clone());
    }
    let go = if toolchain == "local" { DEBIAN_GO } else { "go" };
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", toolchain).env("CGO_ENABLED", "0");
    let version = command.arg("version").output();
    if !version.is_ok_and(|version| version.status.success()) {
        return None;
    }
    let test = std::env::current_exe().expect("this test has a path");
    let path = test.with_file_name(format!("go-runtime-{}-{key}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/go/tests/{name}.go"));
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", toolchain).env("CGO_ENABLED", "0");
    command.args(["build", "-buildvcs=false", "-o"]);
    let output = command.arg(&path).arg(source).output().expect("go was there");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    built.push((key, path.clone()));
    Some(path)
}

/// A program that runs, and answers.
pub(super) struct Target {
    pub process: Arc<Process>,
    pub version: Version,
    pub layout: &'static Layout,
    pub variables: Variables,
    pub symbols: Symbols,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Target {
    fn start(program: &Path, minor: u32) -> Self {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let version = Version { major: 1, minor };
        let symbols = Symbols::read(program);
        let mut target = Self {
            process: Arc::new(Process::open(child.id()).expect("it runs")),
            version,
            layout: Layout::of(version).expect("a known version"),
            variables: symbols.variables(),
            symbols,
            input: child.stdin.take().expect("a pipe"),
            output: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        };
        target.read_until("ready");
        target
    }

    /// Sends a command, and gives what the program wrote.
    pub(super) fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("it runs");
        self.read_until("done")
    }

    /// Ends the program.
    pub(super) fn end(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was ours");
    }

    fn read_until(&mut self, end: &str) -> String {
        let mut all = String::new();
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("text") > 0 {
            if line.trim_end() == end {
                return all;
            }
            all.push_str(&line);
            line.clear();
        }
        panic!("the program ended:\n{all}");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The symbols of a program, by address.
pub(super) struct Symbols {
    pub path: PathBuf,
    all: Vec<(u64, u64, String)>,
}

impl Symbols {
    pub(super) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("the program was built");
        let elf = object::File::parse(&*bytes).expect("an ELF file");
        let mut all: Vec<(u64, u64, String)> = elf
            .symbols()
            .filter(|symbol| symbol.is_definition())
            .map(|symbol| {
                let name = symbol.name().expect("a name").trim_end_matches(".abi0");
                (symbol.address(), symbol.size(), name.to_owned())
            })
            .collect();
        all.sort_unstable();
        Self {
            path: path.to_owned(),
            all,
        }
    }

    pub(super) fn address(&self, name: &str) -> Option<u64> {
        let found = self.all.iter().find(|(_, _, other)| other == name);
        found.map(|&(address, _, _)| address)
    }

    /// The symbol that this address is in: where it begins, and its name.
    pub(super) fn containing(&self, address: u64) -> Option<(u64, &str)> {
        let behind = self.all.partition_point(|&(begin, _, _)| begin <= address);
        let near = self.all[..behind].iter().rev().take(4);
        let mut inside = near.filter(|&&(begin, size, _)| address < begin + size);
        inside.next().map(|(begin, _, name)| (*begin, name.as_str()))
    }

    fn variables(&self) -> Variables {
        Variables {
            mbuckets: self.address("runtime.mbuckets"),
            mprof_cycle: self.address("runtime.mProfCycle"),
            mem_profile_rate: self.address("runtime.MemProfileRate"),
            allgs: self.address("runtime.allgs"),
            allm: self.address("runtime.allm"),
        }
    }
}
