//! Child processes whose output is read line by line, and which end with the test.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child as StdChild, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::Result;

/// How long a test waits for something that should take a moment, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The lines of a pipe, as they come.
#[derive(Debug)]
pub struct Lines {
    incoming: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let (sender, incoming) = channel();
        // The thread ends with the pipe. It keeps draining, or the child would block on a full pipe.
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                // A test that no longer listens has no use for the line.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
                line.clear();
            }
        });
        Self {
            incoming,
            seen: Vec::new(),
        }
    }

    /// The next line; an error when none comes in time or the pipe is closed.
    pub fn next(&mut self, patience: Duration) -> Result<String> {
        match self.incoming.recv_timeout(patience) {
            Ok(line) => {
                self.seen.push(line.clone());
                Ok(line)
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("no line within {patience:?}, after:\n{}", self.seen.join("\n"))
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the output ended, after:\n{}", self.seen.join("\n"))
            }
        }
    }

    /// The next line that begins with `prefix`, with the prefix taken off.
    pub fn expect(&mut self, prefix: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .next(left)
                .with_context(|| format!("waiting for a line with {prefix:?}"))?;
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.to_owned());
            }
        }
    }

    /// Everything until the pipe is closed, earlier lines included. Waits no longer than `patience`: a process that
    /// inherited the pipe may keep it open.
    pub fn all(&mut self, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        while let Ok(line) = self
            .incoming
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }
}

/// A running child with pipes on all three standard streams; killed, by its id, when dropped.
#[derive(Debug)]
pub struct Child {
    child: StdChild,
    stdin: Option<ChildStdin>,
    /// What it writes to stdout.
    pub stdout: Lines,
    /// What it writes to stderr.
    pub stderr: Lines,
}

impl Child {
    /// Starts `command` with pipes.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let described = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {described}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the child has no stdout")?;
        let stderr = child.stderr.take().context("the child has no stderr")?;
        Ok(Self {
            child,
            stdin,
            stdout: Lines::read(stdout),
            stderr: Lines::read(stderr),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes one line to its stdin.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the child's stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("telling process {} to {line:?}", self.child.id()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        let pid = libc::pid_t::try_from(self.pid())?;
        // SAFETY: plain integers; the child is not reaped before `self` is gone or `wait` says so, so the id is its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("signal {signal} to process {pid}"));
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .context("asking for the state of a child")?
            .is_none())
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a child")? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("process {} still runs after {patience:?}", self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when it has already ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
