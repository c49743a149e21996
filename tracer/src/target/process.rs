//! A process: its identity, its memory and its end.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use procfs::{ProcError, process::MemoryMap};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::TargetError;

/// What is known of the target, kept after it is gone.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// The process id, in memtrace's PID namespace.
    pub pid: u32,
    /// The command name (`/proc/PID/comm`).
    pub name: String,
    /// The path of the executable, in the target's view.
    pub executable: PathBuf,
}

/// A living process. The pidfd makes sure that a reused id is never taken for it.
#[derive(Debug)]
pub struct Process {
    info: ProcessInfo,
    pidfd: OwnedFd,
    /// A thread that lives: when the first one has ended, its files in /proc are empty although others go on.
    anchor: AtomicU32,
}

impl Process {
    /// Finds a process.
    ///
    /// # Errors
    /// [`TargetError::NoSuchProcess`], [`TargetError::IsThread`], [`TargetError::KernelThread`], [`TargetError::Own`],
    /// or [`TargetError::Unreadable`].
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        if pid == std::process::id() {
            return Err(TargetError::Own);
        }
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(TargetError::NoSuchProcess { pid })?;
        let proc = procfs::process::Process::new(raw.as_raw_nonzero().get()).map_err(|e| lost(pid, e))?;
        let status = proc.status().map_err(|e| lost(pid, e))?;
        if status.tgid != raw.as_raw_nonzero().get() {
            return Err(TargetError::IsThread {
                pid,
                process: status.tgid as u32,
            });
        }
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => TargetError::NoSuchProcess { pid },
            other => TargetError::Unreadable {
                pid,
                source: other.into(),
            },
        })?;
        if status.state.starts_with('Z') {
            return Err(TargetError::Ended { pid });
        }
        // Only kernel threads, and processes that have just ended, have no address space.
        if status.vmsize.is_none() {
            return Err(TargetError::KernelThread {
                pid,
                name: status.name,
            });
        }
        let executable = proc.exe().map_err(|e| lost(pid, e))?;
        Ok(Self {
            info: ProcessInfo {
                pid,
                name: status.name,
                executable,
            },
            pidfd,
            anchor: AtomicU32::new(pid),
        })
    }

    /// What is known of it.
    pub fn info(&self) -> &ProcessInfo {
        &self.info
    }

    /// The process id, in memtrace's PID namespace.
    pub fn pid(&self) -> u32 {
        self.info.pid
    }

    /// The descriptor that becomes readable when the process ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has ended; a zombie has.
    pub fn has_ended(&self) -> bool {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut watched, Some(&Timespec::default())), Ok(count) if count > 0)
    }

    /// A thread of the process that lives, as far as is known.
    pub fn anchor(&self) -> u32 {
        self.anchor.load(Ordering::Relaxed)
    }

    /// Chooses another living thread, if there is one, for when [`Process::anchor`] has ended.
    pub fn choose_anchor(&self) -> Option<NonZeroU32> {
        let pid = i32::try_from(self.info.pid).ok()?;
        let tasks = procfs::process::Process::new(pid).ok()?.tasks().ok()?;
        let living = tasks.flatten().find(|task| {
            let state = task.stat().map(|stat| stat.state);
            matches!(state, Ok(state) if !matches!(state, 'Z' | 'X')) && task.tid as u32 != self.anchor()
        })?;
        let thread = NonZeroU32::new(living.tid as u32)?;
        self.anchor.store(thread.get(), Ordering::Relaxed);
        Some(thread)
    }

    /// `/proc/PID/maps`.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn memory_maps(&self) -> Result<Vec<MemoryMap>, TargetError> {
        let pid = self.info.pid;
        let raw = i32::try_from(self.anchor()).map_err(|_| TargetError::NoSuchProcess { pid })?;
        let proc = procfs::process::Process::new(raw).map_err(|e| lost(pid, e))?;
        let maps = proc.maps().map_err(|e| lost(pid, e))?.0;
        if maps.is_empty() {
            return Err(TargetError::Ended { pid });
        }
        Ok(maps)
    }

    /// Fills `buffer` from the target's memory at this virtual address, without stopping it.
    ///
    /// # Errors
    /// When not every byte could be read.
    pub fn read_memory(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let wanted = buffer.len();
        let local = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: wanted,
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: wanted,
        };
        // SAFETY: `local` describes `buffer`, which the kernel fills; `remote` is only checked against the target.
        let read = unsafe { libc::process_vm_readv(self.anchor() as i32, &local, 1, &remote, 1, 0) };
        match usize::try_from(read) {
            Ok(read) if read == wanted => Ok(()),
            Ok(read) => Err(io::Error::other(format!(
                "only {read} of {wanted} bytes at {address:#x}"
            ))),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

fn lost(pid: u32, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::NoSuchProcess { pid },
        ProcError::PermissionDenied(_) => TargetError::Unreadable {
            pid,
            source: io::ErrorKind::PermissionDenied.into(),
        },
        // Reading a file in /proc of a process that has just ended.
        ProcError::Io(error, _) if error.raw_os_error() == Some(libc::ESRCH) => TargetError::Ended { pid },
        other => TargetError::Unreadable {
            pid,
            source: io::Error::other(other),
        },
    }
}
