//! `cargo xtask run`: memtrace on the bundled demo, or with the caller's arguments.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{Profile, build},
    process, signal, workspace,
};

/// How long the demo is traced.
const DURATION: &str = "10s";

/// Optimized, without frame pointers, as Debian compiles; each call stays a frame. The demo and the benchmark ask for it.
pub const CFLAGS: [&str; 5] = [
    "-O2",
    "-g",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-pthread",
];

/// Replaces this process by memtrace with `args`.
///
/// # Errors
/// When memtrace cannot be built or started.
pub fn memtrace(args: &[String]) -> Result<ExitCode> {
    let binary = build(Profile::Release)?;
    let mut command = as_root(&binary)?;
    command.args(args).stdin(Stdio::inherit());
    Err(command.exec()).with_context(|| format!("cannot start `{}`", process::line(&command)))
}

/// Traces the demo for [`DURATION`]; memtrace then says how to open the profile.
///
/// # Errors
/// When something cannot be built or started.
pub fn demo() -> Result<ExitCode> {
    let binary = build(Profile::Release)?;
    let mut command = as_root(&binary)?;
    let demo = Demo::start(&compile_demo()?)?;
    let output = fresh_output()?;
    command
        .args([
            "--pid",
            &demo.pid().to_string(),
            "--duration",
            DURATION,
            "--output",
        ])
        .arg(&output);
    println!("+ {}", process::line(&command));
    let status = signal::wait_forwarding(&mut command)?;
    drop(demo);
    Ok(exit_code(status))
}

/// A command that runs `program` as root, through sudo if need be.
fn as_root(program: &Path) -> Result<Command> {
    if process::is_root() {
        return Ok(process::command(program));
    }
    let Some(sudo) = process::find("sudo") else {
        bail!(
            "memtrace needs root, and there is no sudo here; as root, run {}",
            program.display()
        );
    };
    let mut command = process::command(sudo);
    // sudo may ask for a password.
    command.arg(program).stdin(Stdio::inherit());
    Ok(command)
}

/// The code a shell would report.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The directory for the demo's profiles; memtrace makes it.
fn fresh_output() -> Result<PathBuf> {
    let directory = workspace::target().join("demo-profiles");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| {
            format!(
                "cannot remove the profiles of an earlier run in {}",
                directory.display()
            )
        }),
        _ => Ok(directory),
    }
}

/// Compiles the demo, if it is newer than its executable.
fn compile_demo() -> Result<PathBuf> {
    compile(&workspace::root().join("tests/targets/demo.c"), &CFLAGS)
}

/// Compiles a C program into xtask's scratch directory and returns the executable's path.
///
/// # Errors
/// When it does not compile.
pub fn compile(source: &Path, flags: &[&str]) -> Result<PathBuf> {
    let executable = workspace::scratch().join(source.file_stem().unwrap_or(OsStr::new("program")));
    fs::create_dir_all(workspace::scratch())?;
    process::run(
        process::command("cc")
            .args(flags)
            .arg(source)
            .arg("-o")
            .arg(&executable),
    )?;
    Ok(executable)
}

/// The running demo; ends when dropped.
struct Demo(Child);

impl Demo {
    /// Starts the demo and waits until it says that it runs.
    fn start(executable: &Path) -> Result<Self> {
        let mut command = process::command(executable);
        // A group of its own: Ctrl-C is for memtrace, which then still has a target to detach from.
        command.process_group(0).stdout(Stdio::piped());
        signal::die_with_parent(&mut command);
        let mut demo = Self(
            command
                .spawn()
                .with_context(|| format!("cannot start {}", executable.display()))?,
        );
        let stdout = demo.0.stdout.take().context("the demo has no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        print!("{line}");
        Ok(demo)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Both fail only when the demo is gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
