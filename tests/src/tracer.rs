//! Running memtrace as a user does.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::{
    Result,
    child::{Child, PATIENCE},
    compile, family,
    fd_profile::Fds,
    profile::Heap,
};

/// A run of memtrace whose probes are live.
#[derive(Debug)]
pub struct Memtrace {
    child: Child,
    directory: TempDir,
    /// The line that announced the probes, after `memtrace: tracing `.
    pub announcement: String,
}

/// A run of memtrace that has ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The report.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
    directory: TempDir,
}

impl Memtrace {
    /// Attaches to `pid` and waits until the probes are live. Profiles go to a new directory.
    pub fn attach(pid: u32, arguments: &[&str]) -> Result<Self> {
        Self::attach_to(["--pid", &pid.to_string()], &[], arguments)
    }

    /// Attaches to a container by its name, with these environment variables, and waits until the probes are live.
    pub fn attach_container(name: &str, variables: &[(&str, String)], arguments: &[&str]) -> Result<Self> {
        Self::attach_to(["--container", name], variables, arguments)
    }

    fn attach_to(target: [&str; 2], variables: &[(&str, String)], arguments: &[&str]) -> Result<Self> {
        let directory = new_directory()?;
        let mut command = command()?;
        command
            .args(target)
            .arg("--output")
            .arg(output(&directory))
            .args(arguments)
            .envs(variables.iter().cloned());
        let mut child = Child::spawn(&mut command)?;
        match child.stderr.expect("memtrace: tracing ", PATIENCE) {
            Ok(announcement) => Ok(Self {
                child,
                directory,
                announcement,
            }),
            Err(error) => {
                let stdout = child.stdout.all(Duration::from_millis(100));
                let target = target.join(" ");
                Err(error.context(format!(
                    "memtrace did not attach with {target}; its stdout:\n{stdout}"
                )))
            }
        }
    }

    /// Starts a program under memtrace and waits until it goes on. Its output is memtrace's.
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: &[&str], program: I) -> Result<Self> {
        let directory = new_directory()?;
        let mut command = command()?;
        command
            .arg("--output")
            .arg(output(&directory))
            .args(arguments)
            .arg("--")
            .args(program);
        let mut child = Child::spawn(&mut command)?;
        let announcement = child.stderr.expect("memtrace: tracing ", PATIENCE)?;
        Ok(Self {
            child,
            directory,
            announcement,
        })
    }

    /// The process id of memtrace.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits for a message that begins like this.
    pub fn expect(&mut self, message: &str) -> Result<String> {
        self.child.stderr.expect(message, PATIENCE)
    }

    /// Sends memtrace a signal.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        self.child.signal(signal)
    }

    /// Whether memtrace still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        self.child.is_running()
    }

    /// Waits until memtrace has written the heap profile of this name, as after SIGUSR1, and reads it.
    pub fn snapshot(&self, name: &str) -> Result<Heap> {
        self.profile(name, Heap::read)
    }

    /// As [`Self::snapshot`], of any profile.
    pub fn profile<T>(&self, name: &str, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
        await_file(|| read(&output(&self.directory).join(name)))
    }

    /// As [`Self::profile`], of a process beside the first.
    pub fn profile_of<T>(&self, pid: u32, name: &str, read: impl Fn(&Path) -> Result<T>) -> Result<T> {
        await_file(|| read(&family::file_of(&output(&self.directory), pid, name)?))
    }

    /// Has memtrace write its next snapshot of the descriptors, and reads it; the `number`th, from 1 on.
    pub fn fd_snapshot(&self, number: u32) -> Result<Fds> {
        self.signal(libc::SIGUSR1)?;
        self.profile(&format!("fd-{number:04}.pb.gz"), Fds::read)
    }

    /// Reads the first snapshot of the descriptors of a process beside the first, once it has been asked for.
    pub fn fd_snapshot_of(&self, pid: u32) -> Result<Fds> {
        self.profile_of(pid, "fd-0001.pb.gz", Fds::read)
    }

    /// Sends SIGINT, as Ctrl-C does, and waits for the end.
    pub fn interrupt(self) -> Result<Outcome> {
        self.signal(libc::SIGINT)?;
        self.finish(PATIENCE)
    }

    /// Interrupts and insists on success: exit code 0 and a heap profile.
    pub fn stop(self) -> Result<(Heap, Outcome)> {
        self.interrupt()?.succeeded()
    }

    /// Waits for the end.
    pub fn finish(self, patience: Duration) -> Result<Outcome> {
        finish(self.child, self.directory, patience)
    }
}

impl Outcome {
    /// Insists on exit code 0 and a heap profile.
    pub fn succeeded(self) -> Result<(Heap, Self)> {
        let heap = self.profile("heap.pb.gz", Heap::read)?;
        Ok((heap, self))
    }

    /// Insists on exit code 0 and a profile of this name, and reads it.
    pub fn profile<T>(&self, name: &str, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.check_code()?;
        read(&self.output().join(name))
    }

    /// As [`Self::profile`], of a process beside the first.
    pub fn profile_of<T>(&self, pid: u32, name: &str, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.check_code()?;
        read(&family::file_of(&self.output(), pid, name)?)
    }

    /// Insists on exit code 0 and a profile of the descriptors.
    pub fn fds(&self) -> Result<Fds> {
        self.profile("fd.pb.gz", Fds::read)
    }

    /// As [`Self::fds`], of a process beside the first.
    pub fn fds_of(&self, pid: u32) -> Result<Fds> {
        self.profile_of(pid, "fd.pb.gz", Fds::read)
    }

    /// Insists on exit code 0.
    pub fn check_code(&self) -> Result<()> {
        if self.code != Some(0) {
            bail!("memtrace ended with {:?}:\n{}", self.code, self.stderr);
        }
        Ok(())
    }

    /// The heap profiles of the processes beside the first.
    pub fn other_heaps(&self) -> Result<Vec<Heap>> {
        let mut heaps = Vec::new();
        for entry in fs::read_dir(self.output())? {
            let path = entry?.path();
            if path.is_dir() {
                heaps.push(Heap::read(&path.join("heap.pb.gz"))?);
            }
        }
        Ok(heaps)
    }

    /// The directory of the profiles; it lives as long as this outcome.
    pub fn output(&self) -> PathBuf {
        output(&self.directory)
    }
}

/// Runs memtrace with these arguments until it ends by itself.
pub fn run<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I, patience: Duration) -> Result<Outcome> {
    let directory = new_directory()?;
    let mut command = command()?;
    // A run without `--output` creates its directory in the working directory.
    command.current_dir(directory.path()).args(arguments);
    finish(Child::spawn(&mut command)?, directory, patience)
}

/// The memtrace under test, without arguments.
pub fn command() -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
    Ok(command)
}

/// The memtrace under test: `$MEMTRACE_BIN`, or the binary in cargo's build directory.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("MEMTRACE_BIN") {
        Some(path) => PathBuf::from(path),
        None => compile::profile_directory()?.join("memtrace"),
    };
    // Absolute, because tests run it in directories of their own.
    fs::canonicalize(&path).with_context(|| {
        format!(
            "no memtrace at {}: build it (`cargo build -p memtrace`) or set MEMTRACE_BIN",
            path.display()
        )
    })
}

/// In the build directory, not in /tmp: whoever tidies up there would take a running test's profiles away.
fn new_directory() -> Result<TempDir> {
    let cache = compile::cache_directory()?;
    tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(cache)
        .context("creating a directory for profiles")
}

/// Reads a file that is about to be written: while it is, it does not decode.
fn await_file<T>(read: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match read() {
            Ok(content) => return Ok(content),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn output(directory: &TempDir) -> PathBuf {
    Path::join(directory.path(), "profiles")
}

fn finish(mut child: Child, directory: TempDir, patience: Duration) -> Result<Outcome> {
    let status = child.wait(patience).inspect_err(|_| {
        // The reason is in what it said so far; the caller only learns that it hangs.
        eprintln!("{}", child.stderr.all(Duration::ZERO));
    })?;
    let stdout = child.stdout.all(Duration::from_secs(2));
    let stderr = child.stderr.all(Duration::from_secs(2));
    Ok(Outcome {
        code: status.code(),
        stdout,
        stderr,
        directory,
    })
}
