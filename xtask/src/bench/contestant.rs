//! Who is compared: how each tracer is provided, attached and ended.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
    process::Command,
};

use anyhow::Result;

use super::{
    memleak,
    target::{Program, Target},
    tracer::{Ready, Tracer},
};
use crate::{
    build::{Profile, build},
    process, setup, workspace,
};

/// The mean distance between two samples of [`Kind::Sampled`].
pub const SAMPLE_BYTES: &str = "512k";

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing attached.
    Untraced,
    /// Empty programs at memtrace's sites: what the kernel's part costs.
    Floor,
    /// memtrace.
    Memtrace,
    /// memtrace with `--sample-bytes 512k`.
    Sampled,
    /// bcc's memleak.
    Memleak,
    /// bpftrace with three probes that do what memleak does.
    Bpftrace,
    /// heaptrack, which is preloaded and not attached.
    Heaptrack,
}

impl Kind {
    /// All, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Untraced,
        Self::Floor,
        Self::Memtrace,
        Self::Sampled,
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
            Self::Sampled => "sampled",
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
            Kind::Floor | Kind::Memtrace | Kind::Sampled => vec![build(Profile::Release)?.into()],
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
        let ready = match self.kind {
            Kind::Floor | Kind::Memtrace | Kind::Sampled => Ready::Announced,
            _ => Ready::Quiet,
        };
        let command = self.attach_command(target.pid(), &program.libc);
        let tracer = Tracer::attach(command, target.pid(), ready)?;
        let breakpoints = tracer.breakpoints()?;
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
            Kind::Floor | Kind::Memtrace | Kind::Sampled => {
                match self.kind {
                    Kind::Floor => drop(command.arg("--floor")),
                    Kind::Sampled => drop(command.args(["--sample-bytes", SAMPLE_BYTES])),
                    _ => {}
                }
                command
                    .args(["--pid", &pid, "--output"])
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
    /// Whether all the probes that it was started with are still there, and no more.
    ///
    /// # Errors
    /// When the target is gone.
    pub fn is_steady(&self) -> Result<bool> {
        self.tracer
            .as_ref()
            .map_or(Ok(true), |tracer| Ok(tracer.breakpoints()? == self.breakpoints))
    }

    /// Ends the tracer and checks that it left nothing behind.
    ///
    /// # Errors
    /// When breakpoints are left.
    pub fn end(self) -> Result<()> {
        self.tracer.map_or(Ok(()), Tracer::end)
    }
}
