//! Starting other programs: say what is started, and turn a failure into an error that names it.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Variables that cargo and rustup set for xtask, which must not choose the toolchain of what xtask starts.
const INHERITED: [&str; 7] = [
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "RUSTC",
    "RUSTDOC",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
];

/// A command that reads no input and runs with the environment that the user gave to `cargo xtask`.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    for name in INHERITED {
        command.env_remove(name);
    }
    command
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{word}'")
        }
    };
    let mut words = vec![quote(command.get_program())];
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

/// Runs the command and says so first.
///
/// # Errors
/// When the program cannot be started or does not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// As [`run`], without the lines that begin with this; all others go to stderr.
///
/// # Errors
/// As [`run`].
pub fn run_without(command: &mut Command, prefix: &str) -> Result<()> {
    println!("+ {}", line(command));
    let status = read_lines(command, |text| {
        if !text.starts_with(prefix) {
            eprintln!("{text}");
        }
    })?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs the command, and passes on each line of its stdout and stderr.
///
/// # Errors
/// When the program cannot be started or read from.
pub fn read_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let started = command.spawn();
    let mut child = started.with_context(|| format!("cannot start `{}`", line(command)))?;
    // The pipe ends when nobody can write to it, and the command's own ends are held by `command`.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for bytes in BufReader::new(reader).split(b'\n') {
        each(&String::from_utf8_lossy(&bytes?));
    }
    Ok(child.wait()?)
}

/// As [`run`], but kills the program when it takes longer than `limit`.
///
/// # Errors
/// As [`run`], and when the time is over.
pub fn run_within(limit: Duration, command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("`{}` failed ({status})", line(command)),
            None if start.elapsed() > limit => {
                child.kill()?;
                child.wait()?;
                bail!("`{}` did not end within {} s", line(command), limit.as_secs());
            }
            None => sleep(Duration::from_millis(100)),
        }
    }
}

/// What the command prints on stdout, or nothing when it cannot be started or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The program's full path, if it is on `PATH` or in one of the directories that `PATH` of a non-root user lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
