//! What a process has open, as `/proc/PID/fd` says. Nothing of it is opened to find out.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use memtrace_ebpf::handles::FdKind;
use procfs::process::FDTarget;
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, fstat, getxattr, makedev, openat, readlinkat,
        statx,
    },
    io::Errno,
};

use super::{
    Process, TargetError,
    process::{lost, read_status},
};

/// The attribute in which a socket has the name of its protocol (`net/socket.c`, `sockfs_xattr_get`).
const PROTOCOL_ATTRIBUTE: &CStr = c"system.sockprotoname";
/// Room for such a name (bytes): the kernel's have 32 at most (`include/net/sock.h`, `struct proto`).
const PROTOCOL_BYTES: usize = 64;

/// One open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// Where `/proc/PID/fd/N` leads: a path in memtrace's view, or `socket:[INODE]` and the like. What is not UTF-8 is
    /// replaced; empty if the path is longer than the kernel can say.
    pub target: String,
    /// What it is.
    pub kind: FdKind,
    /// The inode number that `target` names: of a socket or a pipe.
    pub inode: Option<u64>,
    /// Device and inode of the file, for what has a path.
    pub file_id: Option<(u64, u64)>,
}

impl Descriptor {
    /// Whether both lead to the same file, as far as can be told: a file keeps its identity when it is renamed or
    /// deleted; other things have only their link's text, which for many is that of every other of the kind.
    pub fn is_same_file(&self, other: &Self) -> bool {
        match (self.file_id, other.file_id) {
            (Some(one), Some(another)) => one == another,
            _ => self.target == other.target,
        }
    }
}

impl Process {
    /// What it has open, in the order of the numbers. What is closed meanwhile may be missing.
    ///
    /// # Errors
    /// When the process is gone or may not be read; also when [`Process::anchor`] is gone while other threads go on.
    pub fn descriptors(&self) -> Result<Vec<Descriptor>, TargetError> {
        let pid = self.pid();
        let links = Links::open(self.anchor()).map_err(|error| lost(pid, error))?;
        let mut descriptors = links.read().map_err(|error| lost(pid, error))?;
        // The list of one who exits is cut short without an error. Memory goes before descriptors (`kernel/exit.c`,
        // `do_exit`): while it is there, the list is whole.
        if read_status(pid, self.anchor())?.vmsize.is_none() {
            return Err(TargetError::Ended { pid });
        }
        descriptors.sort_unstable_by_key(|descriptor| descriptor.number);
        Ok(descriptors)
    }

    /// How many descriptors it has open; `None` if it has ended, or before Linux 6.2 (`fs/proc/fd.c`, `proc_fd_getattr`).
    pub fn descriptor_count(&self) -> Option<u64> {
        let links = Links::open(self.anchor()).ok()?;
        let count = fstat(&links.folder).ok()?.st_size;
        u64::try_from(count).ok().filter(|&count| count > 0)
    }
}

/// `/proc/PID/fd`. It stays that of this process even if another one gets the id.
struct Links {
    folder: OwnedFd,
}

impl Links {
    fn open(thread: u32) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, format!("/proc/{thread}/fd"), flags, Mode::empty())?;
        Ok(Self { folder })
    }

    fn read(&self) -> io::Result<Vec<Descriptor>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().ok().and_then(|name| name.parse().ok());
            // "." and ".." have none.
            let Some(number) = number else { continue };
            match self.describe(number, name) {
                Ok(descriptor) => found.push(descriptor),
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// `NOENT` if it is not open any more.
    fn describe(&self, number: i32, name: &CStr) -> Result<Descriptor, Errno> {
        let target = match readlinkat(&self.folder, name, Vec::new()) {
            Ok(target) => target.to_string_lossy().into_owned(),
            // A path of more than 4095 bytes (`fs/proc/base.c`, `do_proc_readlink`).
            Err(Errno::NAMETOOLONG) => String::new(),
            Err(error) => return Err(error),
        };
        let link = target.parse().ok();
        let inode = match link {
            Some(FDTarget::Socket(inode) | FDTarget::Pipe(inode)) => Some(inode),
            _ => None,
        };
        let mut descriptor = Descriptor {
            number,
            target,
            kind: FdKind::Other,
            inode,
            file_id: None,
        };
        match link {
            Some(FDTarget::Socket(_)) => descriptor.kind = self.socket_kind(number)?,
            Some(FDTarget::Pipe(_)) => descriptor.kind = FdKind::Pipe,
            Some(FDTarget::AnonInode(name)) => descriptor.kind = anonymous_kind(&name),
            // Where they have a file system of their own (`fs/pidfs.c`); most kernels name them as anonymous all the same.
            Some(FDTarget::Other(name, _)) if name == "pidfd" => descriptor.kind = FdKind::Pidfd,
            _ => self.describe_file(name, &mut descriptor)?,
        }
        Ok(descriptor)
    }

    fn socket_kind(&self, number: i32) -> Result<FdKind, Errno> {
        // There is no `getxattrat` before Linux 6.13.
        let path = format!("/proc/self/fd/{}/{number}", self.folder.as_raw_fd());
        let mut protocol = [0_u8; PROTOCOL_BYTES];
        match getxattr(path, PROTOCOL_ATTRIBUTE, &mut protocol) {
            Ok(_) => Ok(protocol_kind(&protocol)),
            Err(error @ (Errno::NOENT | Errno::SRCH)) => Err(error),
            // Something else has the number by now.
            Err(_) => Ok(FdKind::Other),
        }
    }

    fn describe_file(&self, name: &CStr, descriptor: &mut Descriptor) -> Result<(), Errno> {
        // What the kernel has at hand must do: a file system that the target serves itself need not answer.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        match statx(&self.folder, name, flags, StatxFlags::TYPE | StatxFlags::INO) {
            Ok(stat) => {
                let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
                descriptor.kind = file_kind(&descriptor.target, u32::from(stat.stx_mode));
                descriptor.file_id = Some((device, stat.stx_ino));
                Ok(())
            }
            Err(error @ (Errno::NOENT | Errno::SRCH)) => Err(error),
            // Such as a file of a server that does not know it any more. It has a path.
            Err(_) => {
                descriptor.kind = FdKind::File;
                Ok(())
            }
        }
    }
}

/// The kind of a socket with a protocol of this name, which ends at a zero.
fn protocol_kind(protocol: &[u8]) -> FdKind {
    let name = protocol.split(|&byte| byte == 0).next().unwrap_or_default();
    match name {
        b"TCP" | b"TCPv6" | b"MPTCP" | b"MPTCPv6" => FdKind::Tcp,
        // `UDPv6`, `UDP-Lite` and `UDPLITEv6`, too.
        name if name.starts_with(b"UDP") => FdKind::Udp,
        // `UNIX-STREAM`, too; which of them have which name changed.
        name if name.starts_with(b"UNIX") => FdKind::Unix,
        _ => FdKind::Other,
    }
}

/// The kind of what has no file, by what follows `anon_inode:`; some names are in brackets.
fn anonymous_kind(name: &str) -> FdKind {
    match name.trim_matches(['[', ']']) {
        "eventfd" => FdKind::Eventfd,
        "eventpoll" => FdKind::Epoll,
        "timerfd" => FdKind::Timerfd,
        "signalfd" => FdKind::Signalfd,
        "inotify" => FdKind::Inotify,
        "pidfd" => FdKind::Pidfd,
        "io_uring" => FdKind::IoUring,
        // `bpf-map`, `bpf-prog`, `bpf_link`, `bpf_iter`, `bpf-stats` (`kernel/bpf`).
        "btf" => FdKind::Bpf,
        name if name.starts_with("bpf") => FdKind::Bpf,
        _ => FdKind::Other,
    }
}

/// The kind of what has a path, or what looks like one.
fn file_kind(target: &str, mode: u32) -> FdKind {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => FdKind::Dir,
        FileType::Fifo => FdKind::Pipe,
        // They never had a name (`mm/memfd.c`, `mm/secretmem.c`).
        FileType::RegularFile if target.starts_with("/memfd:") && target.ends_with(" (deleted)") => {
            FdKind::Memfd
        }
        FileType::RegularFile if target == "/secretmem (deleted)" => FdKind::Memfd,
        FileType::RegularFile | FileType::CharacterDevice | FileType::BlockDevice => FdKind::File,
        _ => FdKind::Other,
    }
}

#[cfg(test)]
mod tests;
