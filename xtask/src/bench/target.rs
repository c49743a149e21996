//! The traced programs: `xtask/bench/pair.c`, with a libc of its own, and others.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{process, run, signal, workspace};

/// What every target is started from.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub pair: PathBuf,
    /// A copy of libc. Some tracers probe a file for every process that maps it; they shall slow down nobody else.
    pub libc: PathBuf,
}

impl Program {
    /// Compiles the program and copies libc beside it.
    ///
    /// # Errors
    /// When there is no C compiler or no libc to copy.
    pub fn prepare() -> Result<Self> {
        let pair =
            run::compile(&workspace::root().join("xtask/bench/pair.c"), &run::CFLAGS)?.canonicalize()?;
        let directory = workspace::scratch().join("libc");
        fs::create_dir_all(&directory)?;
        let libc = directory.join("libc.so.6");
        let original = libc_of(std::process::id())?;
        if !fs::read(&libc).is_ok_and(|copy| fs::read(&original).is_ok_and(|bytes| bytes == copy)) {
            fs::copy(&original, &libc).with_context(|| format!("cannot copy {}", original.display()))?;
        }
        Ok(Self {
            pair,
            libc: libc.canonicalize()?,
        })
    }

    /// A command that runs the program with its own libc; `wrapper` is put before it.
    pub fn command(&self, wrapper: &[&OsStr]) -> Command {
        let mut words = wrapper.iter().copied().chain([self.pair.as_os_str()]);
        let mut command = process::command(words.next().unwrap_or_default());
        command
            .args(words)
            .env("LD_LIBRARY_PATH", self.libc.parent().unwrap_or(Path::new("/")));
        command
    }
}

/// The file that a process maps as `libc.so.6`.
fn libc_of(pid: u32) -> Result<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.ends_with("/libc.so.6"));
    path.map(PathBuf::from)
        .with_context(|| format!("process {pid} maps no libc.so.6"))
}

/// One batch of malloc+free pairs, or of other operations.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Time that passed, per pair (ns).
    pub wall: f64,
    /// CPU time of the calling threads, per pair (ns); the kernel's part is in it.
    pub cpu: f64,
}

/// The running program; ends, at the end of its input, when dropped.
pub struct Target {
    child: Child,
    /// Closed first when it ends: a wrapper ends when the program does.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    /// Starts the command, and has it go once through what it does later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: Command) -> Result<Self> {
        let mut target = Self::spawn(command)?;
        target.run(1)?;
        Ok(target)
    }

    /// Starts the command, which may be another program that answers in the same way.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        signal::die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::line(&command)))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            stdin: Some(stdin.context("no stdin")?),
            stdout: BufReader::new(stdout.context("no stdout")?),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Allocates and frees for so many milliseconds.
    ///
    /// # Errors
    /// When the target died.
    pub fn run(&mut self, milliseconds: u64) -> Result<Batch> {
        self.batch(&format!("run {milliseconds}"))
    }

    /// Allocates and frees in so many threads at once.
    ///
    /// # Errors
    /// When the target died.
    pub fn run_threads(&mut self, threads: u32, milliseconds: u64) -> Result<Batch> {
        self.batch(&format!("threads {threads} {milliseconds}"))
    }

    /// Sends a command whose answer is a number of operations, and the nanoseconds that passed and were used by them.
    ///
    /// # Errors
    /// When the target died.
    pub fn batch(&mut self, command: &str) -> Result<Batch> {
        let answer = self.ask(command)?;
        let [pairs, wall, cpu] = answer[..] else {
            bail!("the target answered {answer:?}")
        };
        Ok(Batch {
            wall: wall / pairs,
            cpu: cpu / pairs,
        })
    }

    /// Allocates so many blocks and keeps them.
    ///
    /// # Errors
    /// When the target died.
    pub fn hold(&mut self, blocks: u64) -> Result<()> {
        self.ask(&format!("hold {blocks}")).map(|_| ())
    }

    /// Sends a command and returns the numbers of its answer, whose first word is the command's.
    fn ask(&mut self, command: &str) -> Result<Vec<f64>> {
        let mut line = String::new();
        let stdin = self.stdin.as_mut().context("the target has ended")?;
        writeln!(stdin, "{command}").context("the target died")?;
        let word = command.split(' ').next().unwrap_or_default();
        // A wrapper may print lines of its own.
        while !line.starts_with(word) {
            line.clear();
            if self.stdout.read_line(&mut line)? == 0 {
                bail!("the target died");
            }
        }
        line.split_whitespace()
            .skip(1)
            .map(|number| Ok(number.parse()?))
            .collect()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Fails only when the program is gone already.
        self.child.wait().ok();
    }
}

/// A program that waits to be traced; killed when dropped.
pub struct Waiting(Child);

impl Waiting {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::null());
        signal::die_with_parent(command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::line(command)))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
