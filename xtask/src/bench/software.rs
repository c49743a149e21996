//! Real programs that ask much of the kernel, for `bystander`; those that are not installed are left out.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::target::Waiting;
use crate::{process, workspace};

/// Requests of one run of redis-benchmark.
const REQUESTS: u32 = 100_000;
/// redis-server is up long before.
const LIMIT: Duration = Duration::from_secs(10);

/// A program whose CPU time is measured.
pub enum Software {
    /// A shell's command, from its start to its end.
    Command {
        /// As the table calls it.
        name: &'static str,
        /// What the shell runs.
        line: &'static str,
    },
    /// A server, under the load of redis-benchmark.
    Redis {
        /// The server, which ends with this.
        server: Waiting,
        /// redis-benchmark.
        benchmark: PathBuf,
        /// The server's socket.
        socket: PathBuf,
    },
}

impl Software {
    /// Those that are installed.
    ///
    /// # Errors
    /// When one is, but cannot be started.
    pub fn installed() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        let commands = [("find", "find /usr -name x"), ("tar", "tar c /usr/include | cat")];
        for (name, line) in commands {
            match process::find(name) {
                Some(_) => all.push(Self::Command { name, line }),
                None => eprintln!("{name}: not installed, not measured"),
            }
        }
        match (process::find("redis-server"), process::find("redis-benchmark")) {
            (Some(server), Some(benchmark)) => all.push(Self::redis(server, benchmark)?),
            _ => eprintln!("redis-server and redis-benchmark: not installed, not measured"),
        }
        Ok(all)
    }

    fn redis(server: PathBuf, benchmark: PathBuf) -> Result<Self> {
        let socket = workspace::scratch().join("bystander-redis.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let server = Waiting::start(
            process::command(server)
                .args(["--port", "0", "--save", "", "--unixsocket"])
                .arg(&socket),
        )?;
        let start = Instant::now();
        while !socket.exists() {
            if start.elapsed() > LIMIT {
                bail!("redis-server made no socket within {} s", LIMIT.as_secs());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(Self::Redis {
            server,
            benchmark,
            socket,
        })
    }

    /// As the table calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Command { name, .. } => name,
            Self::Redis { .. } => "redis",
        }
    }

    /// CPU time (ns) of one run of a command and all its children, or of one request of a server.
    ///
    /// # Errors
    /// When it fails.
    pub fn measure(&self) -> Result<f64> {
        match self {
            Self::Command { line, .. } => {
                let before = cpu_of_children()?;
                run(process::command("sh").args(["-c", line]))?;
                Ok(cpu_of_children()? - before)
            }
            Self::Redis {
                server,
                benchmark,
                socket,
            } => {
                let before = cpu_of(server.pid())?;
                run(process::command(benchmark)
                    .args(["-q", "-t", "get", "-n", &REQUESTS.to_string(), "-s"])
                    .arg(socket))?;
                Ok((cpu_of(server.pid())? - before) / f64::from(REQUESTS))
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", process::line(command)))?;
    // find and tar fail when a file vanishes meanwhile; what they did until then still counts.
    match status.code() {
        Some(0 | 1) => Ok(()),
        _ => bail!("`{}` failed ({status})", process::line(command)),
    }
}

/// CPU time of all children that ended and were waited for, and of theirs (ns).
fn cpu_of_children() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is writable memory of the right size.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error()).context("getrusage");
    }
    // SAFETY: the call succeeded, so it is filled; all zeroes would be valid, too.
    let usage = unsafe { usage.assume_init() };
    let nanoseconds = |time: libc::timeval| time.tv_sec as f64 * 1e9 + time.tv_usec as f64 * 1e3;
    Ok(nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime))
}

/// CPU time of a process (ns): of its first thread, in which redis does everything.
fn cpu_of(pid: u32) -> Result<f64> {
    let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let on_cpu = schedstat.split(' ').next().context("schedstat is empty")?;
    Ok(on_cpu.parse()?)
}
