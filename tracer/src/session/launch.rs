//! Starts a program that is traced from its first instruction on.
//!
//! memtrace is its tracer (`ptrace`) only until the dynamic linker has mapped what the program begins with: so long it
//! stops whenever that changes its mappings, and probes are in place before it goes on. Then nothing holds it any more.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    sync::Arc,
};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::{Error, Settings, Tracer};
use crate::{
    snapshot::Origin,
    target::{Process, TargetError},
};

/// How often the linker changes the mappings before a program begins: glibc tells before and after it maps the libraries.
const MOST_STOPS: usize = 2;

/// A program that memtrace started.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    program: OsString,
}

impl Launched {
    /// Starts a program and stops it before its first instruction.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(command: &[OsString]) -> Result<Self, Error> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::Usage("no program to start after `--`".into()));
        };
        let mut prepared = Command::new(program);
        prepared.args(arguments);
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            prepared.pre_exec(|| {
                if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = prepared.spawn().map_err(|source| {
            Error::Target(TargetError::NotStarted {
                program: program.to_string_lossy().into_owned(),
                source,
            })
        })?;
        let launched = Self {
            child,
            program: program.clone(),
        };
        match launched.wait()? {
            Stop::Signal(libc::SIGTRAP) => Ok(launched),
            other => Err(launched.vanished(other)),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Attaches to it, and lets it go once everything that it begins with is probed.
    ///
    /// # Errors
    /// When it cannot be traced; it is ended then.
    pub fn attach(&mut self, settings: &Settings) -> Result<Tracer, Error> {
        let attached = self.attach_held(settings);
        if attached.is_err() {
            // It has done nothing so far, and nobody wants it untraced.
            let _ended = self.child.kill();
        }
        self.release();
        attached
    }

    fn attach_held(&mut self, settings: &Settings) -> Result<Tracer, Error> {
        let process = Arc::new(Process::open(self.pid())?);
        let has_linker = process.has_interpreter();
        let mut tracer = Tracer::attach(process, Origin::Started, settings)?;
        if !has_linker {
            return Ok(tracer);
        }
        tracer.hold(true);
        let mut stops = 0;
        let mut signal = 0;
        while stops < MOST_STOPS {
            self.go_on(signal)?;
            signal = match self.wait()? {
                Stop::Signal(libc::SIGSTOP) => {
                    stops += 1;
                    tracer.handle_notices();
                    0
                }
                // It executed a program again, as a wrapper does: that one is to be held as well.
                Stop::Signal(libc::SIGTRAP) => {
                    if !settings.children {
                        break;
                    }
                    tracer.handle_notices();
                    stops = 0;
                    0
                }
                Stop::Signal(other) => other,
                Stop::Ended => break,
            };
        }
        tracer.hold(false);
        Ok(tracer)
    }

    /// Whether it has ended, and how, in words.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(status.to_string())
    }

    fn go_on(&self, signal: i32) -> Result<(), Error> {
        request(libc::PTRACE_CONT, self.pid(), signal).map_err(|source| Error::System {
            what: "cannot let the program go on",
            source,
        })
    }

    /// From here on it is a process like any other.
    fn release(&self) {
        if let Err(error) = request(libc::PTRACE_DETACH, self.pid(), 0) {
            log::debug!("{} is gone: {error}", self.program.display());
        }
    }

    fn wait(&self) -> Result<Stop, Error> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let status = loop {
            match waitpid(pid, WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        let status = status.map_err(|source| Error::System {
            what: "cannot wait for the program",
            source: source.into(),
        })?;
        Ok(status.map_or(Stop::Ended, |(_, status)| Stop::of(status)))
    }

    fn vanished(&self, stop: Stop) -> Error {
        Error::Target(TargetError::NotStarted {
            program: self.program.to_string_lossy().into_owned(),
            source: io::Error::other(format!("it did not get to its first instruction ({stop:?})")),
        })
    }
}

/// Why the program stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Signal(i32),
    Ended,
}

impl Stop {
    fn of(status: WaitStatus) -> Self {
        status.stopping_signal().map_or(Self::Ended, Self::Signal)
    }
}

fn request(request: libc::c_uint, pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: these requests pass no pointers.
    let result = unsafe { libc::ptrace(request, pid as libc::pid_t, 0, libc::c_long::from(signal)) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
