//! A process: its identity, its memory and its end.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use procfs::{
    FromBufRead as _, FromRead as _,
    process::{MMapPath, MemoryMap, MemoryMaps, Stat, Status},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{Root, TargetError};

/// How many pieces one call reads (`UIO_MAXIOV`, `include/uapi/linux/uio.h`).
const MAX_PIECES: usize = 1024;

/// What is known of the target, kept after it is gone.
#[derive(Clone, Debug, Default)]
pub struct ProcessInfo {
    /// The process id, in memtrace's PID namespace.
    pub pid: u32,
    /// The command name (`/proc/PID/comm`).
    pub name: String,
    /// The path of the executable, in the target's view.
    pub executable: PathBuf,
}

/// A piece of memory to read, one of many.
#[derive(Debug)]
pub struct Piece<'b> {
    /// Where it is (virtual address).
    pub address: u64,
    /// What to fill.
    pub buffer: &'b mut [u8],
    /// Whether all of `buffer` was filled.
    pub is_read: bool,
}

/// A living process. The pidfd makes sure that a reused id is never taken for it.
#[derive(Debug)]
pub struct Process {
    info: ProcessInfo,
    pidfd: OwnedFd,
    /// A thread that lives: when the first one has ended, its files in /proc are empty although others go on.
    anchor: AtomicU32,
    root: Option<Arc<Root>>,
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
        let status = read_status(pid, pid)?;
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
        let mut process = Self {
            info: ProcessInfo {
                pid,
                name: status.name.clone(),
                executable: PathBuf::new(),
            },
            pidfd,
            anchor: AtomicU32::new(pid),
            root: None,
        };
        process.find_memory(&status)?;
        process.root = Root::of(process.anchor()).map(Arc::new);
        Ok(process)
    }

    /// Makes sure that there is an address space, and a living thread to reach it by.
    fn find_memory(&mut self, status: &Status) -> Result<(), TargetError> {
        let pid = self.info.pid;
        // The first thread can end before the others.
        if status.state.starts_with('Z') && self.choose_anchor().is_none() {
            return Err(TargetError::Ended { pid });
        }
        // Only kernel threads, and processes that have just ended, have no address space.
        if read_status(pid, self.anchor())?.vmsize.is_none() {
            return Err(TargetError::KernelThread {
                pid,
                name: status.name.clone(),
            });
        }
        let link = format!("/proc/{}/exe", self.anchor());
        self.info.executable = std::fs::read_link(link).map_err(|error| lost(pid, error))?;
        Ok(())
    }

    /// What is known of it.
    pub fn info(&self) -> &ProcessInfo {
        &self.info
    }

    /// The process id, in memtrace's PID namespace.
    pub fn pid(&self) -> u32 {
        self.info.pid
    }

    /// Its root directory, if memtrace has another: that of its container.
    pub fn root(&self) -> Option<&Arc<Root>> {
        self.root.as_ref()
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

    /// Chooses another living thread if [`Process::anchor`] has ended; true if it did.
    pub fn replace_anchor(&self) -> bool {
        let anchor = self.anchor();
        let state = procfs::process::Process::new(self.info.pid as i32)
            .and_then(|process| process.task_from_tid(anchor as i32))
            .and_then(|task| task.stat());
        let lives = state.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'));
        !lives && !self.has_ended() && self.choose_anchor().is_some()
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

    /// Finds a process that a program told of, which was made at this time (`CLOCK_BOOTTIME`, nanoseconds): one that has
    /// its id by now is not taken for it.
    ///
    /// # Errors
    /// As [`Process::open`]; [`TargetError::Ended`] if another process has the id.
    pub fn open_made_at(pid: u32, nanoseconds: u64) -> Result<Self, TargetError> {
        let process = Self::open(pid)?;
        let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|error| lost(pid, error))?;
        let stat = Stat::from_read(String::from_utf8_lossy(&stat).as_bytes());
        let began = stat
            .map_err(|error| lost(pid, io::Error::other(error)))?
            .starttime;
        let per_second = procfs::ticks_per_second();
        // The kernel notes the start a little before it tells, and ids come back only after all others were used.
        let told = nanoseconds / (1_000_000_000 / per_second);
        if began > told + per_second {
            return Err(TargetError::Ended { pid });
        }
        Ok(process)
    }

    /// Whether a dynamic linker is mapped, which will map more.
    pub fn has_interpreter(&self) -> bool {
        // `AT_BASE` is where the kernel mapped it (`include/uapi/linux/auxvec.h`).
        const AT_BASE: u64 = 7;
        let pid = i32::try_from(self.info.pid).unwrap_or(0);
        let auxv = procfs::process::Process::new(pid).and_then(|process| process.auxv());
        auxv.is_ok_and(|auxv| auxv.get(&AT_BASE).is_some_and(|&base| base != 0))
    }

    /// Whether memtrace is in the same namespace of this kind (`ipc`, `net`, …) as the process; false if that cannot be told.
    pub fn shares_namespace(&self, kind: &str) -> bool {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
        let own = of("self");
        own.is_some() && own == of(&self.anchor().to_string())
    }

    /// Whether it maps a file with this in its path.
    pub fn maps_file_with(&self, name: &str) -> bool {
        let maps = self.memory_maps().unwrap_or_default();
        maps.iter()
            .any(|map| matches!(&map.pathname, MMapPath::Path(path) if path.to_string_lossy().contains(name)))
    }

    /// The processes that descend from it, parents before children.
    pub fn descendants(&self) -> Vec<u32> {
        descendants_of(self.info.pid)
    }

    /// The threads that live, as far as is known.
    pub fn threads(&self) -> Vec<NonZeroU32> {
        let Ok(pid) = i32::try_from(self.info.pid) else {
            return Vec::new();
        };
        let tasks = procfs::process::Process::new(pid).and_then(|process| process.tasks());
        let ids = tasks.into_iter().flatten().flatten().map(|task| task.tid as u32);
        ids.filter_map(NonZeroU32::new).collect()
    }

    /// `/proc/PID/maps`.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn memory_maps(&self) -> Result<Vec<MemoryMap>, TargetError> {
        let pid = self.info.pid;
        let text = read_lossy(&format!("/proc/{}/maps", self.anchor())).map_err(|error| lost(pid, error))?;
        // procfs takes what follows /SYSV for a number and panics if it is too short, which a target can bring about.
        let text = text.replace(" /SYSV", " //SYSV");
        let maps = MemoryMaps::from_buf_read(text.as_bytes());
        let maps = maps.map_err(|error| lost(pid, io::Error::other(error)))?.0;
        if maps.is_empty() {
            return Err(TargetError::Ended { pid });
        }
        Ok(maps)
    }

    /// Where return probes return to (virtual address), if the kernel has made that page.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn trampoline(&self) -> Result<Option<u64>, TargetError> {
        let maps = self.memory_maps()?;
        let page = maps
            .iter()
            .find(|map| matches!(&map.pathname, MMapPath::Other(name) if name == "uprobes"));
        // The trampoline is the first thing on it (`kernel/events/uprobes.c`, `__create_xol_area`).
        Ok(page.map(|map| map.address.0))
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

    /// Reads many pieces of the target's memory with few calls, without stopping it. Each piece says whether it was read.
    pub fn read_pieces(&self, pieces: &mut [Piece<'_>]) {
        for piece in &mut *pieces {
            piece.is_read = false;
        }
        let mut rest = pieces;
        while !rest.is_empty() {
            let count = rest.len().min(MAX_PIECES);
            let Ok(whole) = self.read_first_pieces(&mut rest[..count]) else {
                return;
            };
            for piece in &mut rest[..whole] {
                piece.is_read = true;
            }
            // The kernel stops at a piece it cannot read; the ones behind it are still to be asked for.
            let done = if whole < count { whole + 1 } else { whole };
            rest = &mut rest[done..];
        }
    }

    /// Reads up to the first piece that cannot be read, and gives the number of those before it.
    fn read_first_pieces(&self, pieces: &mut [Piece<'_>]) -> io::Result<usize> {
        let remote: Vec<libc::iovec> = pieces
            .iter()
            .map(|piece| libc::iovec {
                iov_base: piece.address as *mut libc::c_void,
                iov_len: piece.buffer.len(),
            })
            .collect();
        let local: Vec<libc::iovec> = pieces
            .iter_mut()
            .map(|piece| libc::iovec {
                iov_base: piece.buffer.as_mut_ptr().cast(),
                iov_len: piece.buffer.len(),
            })
            .collect();
        let count = pieces.len() as libc::c_ulong;
        // SAFETY: `local` describes the buffers, which the kernel fills; `remote` is only checked against the target.
        let read = unsafe {
            libc::process_vm_readv(
                self.anchor() as i32,
                local.as_ptr(),
                count,
                remote.as_ptr(),
                count,
                0,
            )
        };
        let Ok(mut left) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::EFAULT) {
                Ok(0)
            } else {
                Err(error)
            };
        };
        let is_whole = |piece: &&Piece<'_>| {
            let is_whole = piece.buffer.len() <= left;
            left = left.saturating_sub(piece.buffer.len());
            is_whole
        };
        Ok(pieces.iter().take_while(is_whole).count())
    }
}

/// The processes that descend from one, parents before children.
pub(super) fn descendants_of(ancestor: u32) -> Vec<u32> {
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    let stats = all.filter_map(|process| process.stat().ok());
    let parents: Vec<(u32, u32)> = stats.map(|stat| (stat.pid as u32, stat.ppid as u32)).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|&&(pid, of)| of == parent && pid != parent);
        let children: Vec<u32> = children
            .map(|&(pid, _)| pid)
            .filter(|pid| !found.contains(pid))
            .collect();
        found.extend(children);
        next += 1;
    }
    found.remove(0);
    found
}

/// `/proc/THREAD/status`.
pub(super) fn read_status(pid: u32, thread: u32) -> Result<Status, TargetError> {
    let text = read_lossy(&format!("/proc/{thread}/status")).map_err(|error| lost(pid, error))?;
    Status::from_buf_read(text.as_bytes()).map_err(|error| lost(pid, io::Error::other(error)))
}

/// A file of /proc. Names of processes and files are bytes, not text: what is not UTF-8 is replaced.
pub(super) fn read_lossy(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// Why a file of /proc could not be read.
pub(super) fn lost(pid: u32, error: io::Error) -> TargetError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => TargetError::NoSuchProcess { pid },
        // Reading a file of a process that has just ended.
        Some(libc::ESRCH) => TargetError::Ended { pid },
        _ => TargetError::Unreadable { pid, source: error },
    }
}
