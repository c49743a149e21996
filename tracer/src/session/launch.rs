//! Starts a program that is traced from its first instruction on.
//!
//! memtrace is its tracer (`ptrace`) only until the dynamic linker has mapped what the program begins with: so long it
//! stops whenever that changes its mappings, and probes are in place before it goes on. Then nothing holds it any more.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Error, Settings, Tracer};
use crate::{
    snapshot::Origin,
    target::{Process, TargetError},
};

/// How often the linker tells of the mappings before a program begins: glibc before and after it maps the libraries, musl
/// after.
const GLIBC_STOPS: usize = 2;
const MUSL_STOPS: usize = 1;
/// A linker that does not get so far in this time (one that waits for a file server, or tells of nothing) is let go.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(1);

/// A program that memtrace started.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    program: OsString,
    /// How it ended, if that was seen while it was held.
    end: Option<String>,
    /// Whether it runs by itself.
    is_free: bool,
}

impl Drop for Launched {
    fn drop(&mut self) {
        // It has done nothing so far, and nobody wants it untraced.
        if !self.is_free {
            let _ended = self.child.kill();
            self.release();
        }
    }
}

impl Launched {
    /// Starts a program and stops it before its first instruction. It ignores these signals, as memtrace was started to.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(command: &[OsString], ignored: &[i32]) -> Result<Self, Error> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::Usage("no program to start after `--`".into()));
        };
        let mut prepared = Command::new(program);
        prepared.args(arguments);
        let ignored = ignored.to_vec();
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            prepared.pre_exec(move || {
                for &signal in &ignored {
                    libc::signal(signal, libc::SIG_IGN);
                }
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
        let mut launched = Self {
            child,
            program: program.clone(),
            end: None,
            is_free: false,
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
        let attached = self.attach_held(settings)?;
        self.is_free = true;
        self.release();
        Ok(attached)
    }

    fn attach_held(&mut self, settings: &Settings) -> Result<Tracer, Error> {
        let process = Arc::new(Process::open(self.pid())?);
        let has_linker = process.has_interpreter();
        let is_musl = process.maps_file_with("musl");
        let mut tracer = Tracer::attach(process, Origin::Started, settings)?;
        if !has_linker {
            return Ok(tracer);
        }
        tracer.hold(true);
        let mut stops = 0;
        let mut signal = 0;
        while stops < if is_musl { MUSL_STOPS } else { GLIBC_STOPS } {
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
                Stop::Ended | Stop::Late => break,
            };
        }
        tracer.hold(false);
        Ok(tracer)
    }

    /// Whether it has ended, and how, in words.
    pub fn ended(&mut self) -> Option<String> {
        if self.end.is_none() {
            self.end = self.child.try_wait().ok()?.map(|status| status.to_string());
        }
        self.end.clone()
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

    /// Waits until it stands still. One that is late is stopped.
    fn wait(&mut self) -> Result<Stop, Error> {
        let until = Instant::now() + PATIENCE;
        let mut is_late = false;
        loop {
            if let Some(stop) = self.look()? {
                let by_us = is_late && stop == Stop::Signal(libc::SIGSTOP);
                return Ok(if by_us { Stop::Late } else { stop });
            }
            if Instant::now() > until && !is_late {
                is_late = true;
                // SAFETY: plain integers; the program is ours and was not waited for, so the id is its own.
                unsafe { libc::kill(self.pid() as libc::pid_t, libc::SIGSTOP) };
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) -> Result<Option<Stop>, Error> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        match waitpid(pid, WaitOptions::NOHANG) {
            Ok(None) | Err(rustix::io::Errno::INTR) => Ok(None),
            Ok(Some((_, status))) => {
                if let Some(signal) = status.stopping_signal() {
                    return Ok(Some(Stop::Signal(signal)));
                }
                self.end = Some(std::process::ExitStatus::from_raw(status.as_raw()).to_string());
                Ok(Some(Stop::Ended))
            }
            Err(source) => Err(Error::System {
                what: "cannot wait for the program",
                source: source.into(),
            }),
        }
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
    /// It did not come to a stop by itself.
    Late,
    Ended,
}

/// The requests in the C library's declaration of `ptrace`: glibc has an enumeration, musl an `int`.
#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

fn request(request: Request, pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: these requests pass no pointers.
    let result = unsafe { libc::ptrace(request, pid as libc::pid_t, 0, libc::c_long::from(signal)) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
