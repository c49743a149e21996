//! A running tracer: started, attached, and ended as a person would.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::code::Code;
use crate::{process, signal, workspace};

/// No tracer here needs longer to attach, to end or to detach.
const LIMIT: Duration = Duration::from_secs(30);
/// Probes are set one after the other: attached is who set none for this long.
const QUIET: Duration = Duration::from_millis(1000);
const STEP: Duration = Duration::from_millis(5);

/// What memtrace prints when its probes are live.
const ANNOUNCEMENT: &str = "memtrace: tracing ";

/// How a tracer shows that it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It prints [`ANNOUNCEMENT`].
    Announced,
    /// It sets no more breakpoints.
    Quiet,
}

/// A running tracer; killed when dropped.
pub struct Tracer {
    child: Child,
    code: Code,
    line: String,
    log: PathBuf,
    /// From its start until it was attached, when it announces that.
    pub attach_time: Duration,
}

impl Tracer {
    /// Starts the command, which traces the process `pid`, and waits until it is attached.
    ///
    /// # Errors
    /// When it cannot be started, or ends instead.
    pub fn attach(mut command: Command, pid: u32, ready: Ready) -> Result<Self> {
        let code = Code::of(pid)?;
        let log = workspace::scratch().join("tracer.log");
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(Stdio::from(file));
        signal::die_with_parent(&mut command);
        let line = process::line(&command);
        let start = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let mut tracer = Self {
            child,
            code,
            line,
            log,
            attach_time: Duration::ZERO,
        };
        match ready {
            Ready::Announced => tracer.wait_announced(start)?,
            Ready::Quiet => tracer.wait_quiet(start)?,
        }
        tracer.attach_time = start.elapsed();
        Ok(tracer)
    }

    fn wait_announced(&mut self, start: Instant) -> Result<()> {
        while !fs::read_to_string(&self.log)?.contains(ANNOUNCEMENT) {
            self.wait_a_step(start)?;
        }
        Ok(())
    }

    fn wait_quiet(&mut self, start: Instant) -> Result<()> {
        let (mut count, mut changed) = (0, start);
        while count == 0 || changed.elapsed() < QUIET {
            let now = self.breakpoints()?;
            if now != count {
                (count, changed) = (now, Instant::now());
            }
            self.wait_a_step(start)?;
        }
        Ok(())
    }

    fn wait_a_step(&mut self, start: Instant) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "`{}` ended at once ({status}): {}",
                self.line,
                last_line(&self.log)
            );
        }
        if start.elapsed() > LIMIT {
            bail!("`{}` was not attached within {} s", self.line, LIMIT.as_secs());
        }
        sleep(STEP);
        Ok(())
    }

    /// The number of breakpoints in the target's libc.
    ///
    /// # Errors
    /// When the target is gone.
    pub fn breakpoints(&self) -> Result<usize> {
        self.code.breakpoints()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap_or(0);
        if pid > 0 {
            // SAFETY: `pid` is our child, which is not reaped while `self` holds it.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Ends it as a person would, by Ctrl-C.
    ///
    /// # Errors
    /// When it does not end, or leaves breakpoints.
    pub fn end(mut self) -> Result<()> {
        self.signal(libc::SIGINT);
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > LIMIT {
                bail!(
                    "`{}` did not end within {} s of Ctrl-C",
                    self.line,
                    LIMIT.as_secs()
                );
            }
            sleep(STEP);
        }
        while self.breakpoints()? > 0 {
            if start.elapsed() > LIMIT {
                bail!("`{}` left breakpoints in the target", self.line);
            }
            sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn last_line(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
        .to_owned()
}
