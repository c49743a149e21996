//! Who is compared: how each tracer is provided, attached and ended.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    attached::Code,
    memleak,
    target::{Program, Target},
};
use crate::{
    build::{Profile, build},
    process, setup, signal, workspace,
};

/// How long a tracer may take to end after SIGINT.
const END_LIMIT: Duration = Duration::from_secs(20);

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing attached.
    Untraced,
    /// Empty programs at memtrace's sites: what the kernel's part costs.
    Floor,
    /// memtrace.
    Memtrace,
    /// bcc's memleak.
    Memleak,
    /// bpftrace with three probes that do what memleak does.
    Bpftrace,
    /// heaptrack, which is preloaded and not attached.
    Heaptrack,
}

impl Kind {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Untraced,
        Self::Floor,
        Self::Memtrace,
        Self::Memleak,
        Self::Bpftrace,
        Self::Heaptrack,
    ];

    /// As the table and `--only` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Floor => "floor",
            Self::Memtrace => "memtrace",
            Self::Memleak => "memleak",
            Self::Bpftrace => "bpftrace",
            Self::Heaptrack => "heaptrack",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A contestant that is ready to run.
pub struct Contestant {
    /// Which one.
    pub kind: Kind,
    /// The words that start it; for memtrace and memleak, options follow.
    words: Vec<OsString>,
}

impl Contestant {
    /// Builds, downloads or finds what it needs.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn provide(kind: Kind) -> Result<Self> {
        let words = match kind {
            Kind::Untraced => Vec::new(),
            Kind::Floor | Kind::Memtrace => vec![build(Profile::Release)?.into()],
            Kind::Memleak => memleak::provide()?,
            Kind::Bpftrace => vec![setup::program("bpftrace", "bpftrace")?.into()],
            Kind::Heaptrack => vec![setup::program("heaptrack", "heaptrack")?.into()],
        };
        Ok(Self { kind, words })
    }

    /// Starts a target for it and attaches.
    ///
    /// # Errors
    /// When the target or the tracer does not start.
    pub fn start(&self, program: &Program) -> Result<Session> {
        if self.kind == Kind::Heaptrack {
            let record = workspace::scratch().join("heaptrack");
            let wrapper: Vec<&OsStr> = self
                .words
                .iter()
                .map(OsString::as_os_str)
                .chain(["-o".as_ref(), record.as_ref()])
                .collect();
            return Ok(Session {
                tracer: None,
                breakpoints: 0,
                target: Target::start(program.command(&wrapper))?,
            });
        }
        let target = Target::start(program.command(&[]))?;
        if self.kind == Kind::Untraced {
            return Ok(Session {
                tracer: None,
                breakpoints: 0,
                target,
            });
        }
        let mut tracer = Tracer::start(self.attach_command(target.pid(), &program.libc), target.pid())?;
        let (breakpoints, _) = tracer.wait_attached()?;
        Ok(Session {
            tracer: Some(tracer),
            breakpoints,
            target,
        })
    }

    /// The command that attaches to a process.
    fn attach_command(&self, pid: u32, libc: &Path) -> Command {
        let mut command = process::command(self.words.first().map_or(OsStr::new(""), OsString::as_os_str));
        command.args(self.words.iter().skip(1));
        let pid = pid.to_string();
        match self.kind {
            Kind::Untraced | Kind::Heaptrack => {}
            Kind::Floor | Kind::Memtrace => {
                if self.kind == Kind::Floor {
                    command.arg("--floor");
                }
                command
                    .args(["--quiet", "--pid", &pid, "--output"])
                    .arg(workspace::scratch().join("profiles"));
            }
            // The first report comes when all is over. memleak keeps 31 bytes of the path: it must be a short one.
            Kind::Memleak => drop(
                command
                    .current_dir(libc.parent().unwrap_or(Path::new("/")))
                    .args(["-p", &pid, "-O", "./libc.so.6", "3600"]),
            ),
            Kind::Bpftrace => drop(command.args(["-p", &pid, "-e"]).arg(one_liner(libc))),
        }
        command
    }
}

/// What memleak does, in bpftrace's language.
fn one_liner(libc: &Path) -> String {
    let libc = libc.display();
    format!(
        "uprobe:{libc}:malloc {{ @size[tid] = arg0; }} \
         uretprobe:{libc}:malloc /@size[tid]/ {{ @bytes[retval] = @size[tid]; @stack[retval] = ustack; delete(@size[tid]); }} \
         uprobe:{libc}:free /@bytes[arg0]/ {{ delete(@bytes[arg0]); delete(@stack[arg0]); }}"
    )
}

/// A target with its tracer.
pub struct Session {
    /// `None` when nothing attaches.
    tracer: Option<Tracer>,
    /// How many breakpoints the tracer set in libc.
    pub breakpoints: usize,
    /// The traced program.
    pub target: Target,
}

impl Session {
    /// Ends the tracer and checks that it left nothing behind.
    ///
    /// # Errors
    /// When breakpoints are left.
    pub fn end(self) -> Result<()> {
        self.tracer.map_or(Ok(()), Tracer::end)
    }
}

/// A running tracer; killed when dropped.
pub struct Tracer {
    child: Child,
    code: Code,
    line: String,
    log: PathBuf,
}

impl Tracer {
    /// Starts the command that traces the process `pid`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, pid: u32) -> Result<Self> {
        let code = Code::of(pid)?;
        let log = workspace::scratch().join("tracer.log");
        let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(Stdio::from(file));
        signal::die_with_parent(&mut command);
        let line = process::line(&command);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self {
            child,
            code,
            line,
            log,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is attached; returns its number of breakpoints and the time until the last was set.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn wait_attached(&mut self) -> Result<(usize, Duration)> {
        let Self {
            child,
            code,
            line,
            log,
        } = self;
        code.wait_attached(|| match child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("`{line}` ended at once ({status}): {}", last_line(log)),
        })
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
            if start.elapsed() > END_LIMIT {
                bail!(
                    "`{}` did not end within {} s of Ctrl-C",
                    self.line,
                    END_LIMIT.as_secs()
                );
            }
            sleep(Duration::from_millis(20));
        }
        self.code.wait_detached()
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
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
        .to_owned()
}
