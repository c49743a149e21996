//! What the kernel knows of the current thread and its descriptors, read at the offsets that its BTF gives.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use memtrace_ebpf::handles::{FdKind, Offsets};

use super::maps;

/// `S_IFMT` and the types in it (`include/uapi/linux/stat.h`).
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFIFO: u16 = 0o010_000;

/// `AF_UNIX`, `AF_INET`, `AF_INET6`, `SOCK_STREAM`, `SOCK_DGRAM` (`include/linux/socket.h`, `include/linux/net.h`).
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_UDPLITE`, `IPPROTO_MPTCP` (`include/uapi/linux/in.h`).
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const IPPROTO_UDPLITE: u16 = 136;
const IPPROTO_MPTCP: u16 = 262;

/// File systems (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
const SECRETMEM_MAGIC: u64 = 0x5345_434d;
const PID_FS_MAGIC: u64 = 0x5049_4446;

/// The beginnings of names that the kernel gives to what has no path (`anon_inode_getfd` and its callers, `mm/memfd.c`), as
/// the programs read them.
const fn name(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}
const EVENTFD: u64 = name(b"[eventfd");
const EPOLL: u64 = name(b"[eventpo");
const TIMERFD: u64 = name(b"[timerfd");
const SIGNALFD: u64 = name(b"[signalf");
const IO_URING: u64 = name(b"[io_urin");
const PIDFD: u64 = name(b"[pidfd]\0");
const INOTIFY: u64 = name(b"inotify\0");
const BPF_MAP: u64 = name(b"bpf-map\0");
const BPF_PROG: u64 = name(b"bpf-prog");
const BPF_LINK: u64 = name(b"bpf_link");
const MEMFD: u64 = name(b"memfd:\0\0") & 0xffff_ffff_ffff;

/// How many processes and threads use the current thread's descriptor table; 1 if that is not known.
#[inline(always)]
pub fn table_users() -> u32 {
    let Some(offsets) = offsets() else {
        return 1;
    };
    // `files_struct.count` is its first member (`include/linux/fdtable.h`).
    files(offsets)
        .and_then(|files| read::<u32>(files, 0))
        .unwrap_or(1)
}

/// Whether every thread of the current process is about to end; false if that is not known.
#[inline(always)]
pub fn is_process_ending() -> bool {
    /// `SIGNAL_GROUP_EXIT` (`include/linux/sched/signal.h`).
    const SIGNAL_GROUP_EXIT: u32 = 4;
    let flags = offsets().and_then(|offsets| {
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let signal: u64 = read(task, offsets.task_signal)?;
        read::<u32>(signal, offsets.signal_flags)
    });
    flags.is_some_and(|flags| flags & SIGNAL_GROUP_EXIT != 0)
}

/// Whether a number is open in the current thread's descriptor table; true if that is not known.
#[inline(always)]
pub fn is_open(number: u32) -> bool {
    match offsets() {
        Some(offsets) => file(offsets, number).is_some(),
        None => true,
    }
}

/// The [`FdKind`] of what a number refers to; [`FdKind::Other`] if that is not known.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn kind_of(number: u32) -> u32 {
    find_kind(number).unwrap_or(FdKind::Other) as u32
}

/// Whether a number is open and refers to a socket.
#[inline(always)]
pub fn is_socket(number: u32) -> bool {
    let mode = offsets().and_then(|offsets| {
        let inode = inode(offsets, file(offsets, number)?)?;
        read::<u16>(inode, offsets.inode_mode)
    });
    mode.is_some_and(|mode| mode & S_IFMT == S_IFSOCK)
}

/// Whether a number refers to a file that is nothing but memory: `memfd_create`, `/dev/shm`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn is_memory(number: u32) -> u32 {
    let magic = offsets().and_then(|offsets| super_magic(offsets, inode(offsets, file(offsets, number)?)?));
    u32::from(matches!(magic, Some(TMPFS_MAGIC | HUGETLBFS_MAGIC)))
}

#[inline(always)]
fn find_kind(number: u32) -> Option<FdKind> {
    let offsets = offsets()?;
    let file = file(offsets, number)?;
    let inode = inode(offsets, file)?;
    let mode: u16 = read(inode, offsets.inode_mode)?;
    Some(match mode & S_IFMT {
        S_IFDIR => FdKind::Dir,
        S_IFIFO => FdKind::Pipe,
        S_IFSOCK => return socket_kind(offsets, file),
        _ => match super_magic(offsets, inode)? {
            ANON_INODE_FS_MAGIC => kind_by_name(name_of(offsets, file)?),
            // Files in /dev/shm are there, too.
            TMPFS_MAGIC | HUGETLBFS_MAGIC if name_of(offsets, file)? & 0xffff_ffff_ffff == MEMFD => {
                FdKind::Memfd
            }
            SECRETMEM_MAGIC => FdKind::Memfd,
            PID_FS_MAGIC => FdKind::Pidfd,
            _ => FdKind::File,
        },
    })
}

#[inline(always)]
fn kind_by_name(name: u64) -> FdKind {
    match name {
        EVENTFD => FdKind::Eventfd,
        EPOLL => FdKind::Epoll,
        TIMERFD => FdKind::Timerfd,
        SIGNALFD => FdKind::Signalfd,
        IO_URING => FdKind::IoUring,
        PIDFD => FdKind::Pidfd,
        INOTIFY => FdKind::Inotify,
        BPF_MAP | BPF_PROG | BPF_LINK => FdKind::Bpf,
        _ => FdKind::Other,
    }
}

/// The first eight bytes of a file's name.
#[inline(always)]
fn name_of(offsets: &Offsets, file: u64) -> Option<u64> {
    let dentry: u64 = read(file, offsets.file_dentry)?;
    let name: u64 = read(dentry, offsets.dentry_name)?;
    read(name, 0)
}

#[inline(always)]
fn socket_kind(offsets: &Offsets, file: u64) -> Option<FdKind> {
    let socket: u64 = read(file, offsets.file_private)?;
    let sock: u64 = read(socket, offsets.socket_sock)?;
    let family: u16 = read(sock, offsets.sock_family)?;
    let protocol: u16 = read(sock, offsets.sock_protocol)?;
    Some(match (family, protocol) {
        (AF_UNIX, _) => FdKind::Unix,
        (AF_INET | AF_INET6, IPPROTO_TCP | IPPROTO_MPTCP) => FdKind::Tcp,
        (AF_INET | AF_INET6, IPPROTO_UDP | IPPROTO_UDPLITE) => FdKind::Udp,
        _ => FdKind::Other,
    })
}

#[inline(always)]
fn offsets() -> Option<&'static Offsets> {
    maps::OFFSETS.get(0).filter(|offsets| offsets.known != 0)
}

#[inline(always)]
fn files(offsets: &Offsets) -> Option<u64> {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    read(task, offsets.task_files).filter(|&files| files != 0)
}

/// The file behind a number.
#[inline(always)]
fn file(offsets: &Offsets, number: u32) -> Option<u64> {
    let fdt: u64 = read(files(offsets)?, offsets.files_fdt)?;
    let max: u32 = read(fdt, offsets.fdt_max)?;
    if number >= max {
        return None;
    }
    let array: u64 = read(fdt, offsets.fdt_fd)?;
    let slot = array.wrapping_add(8 * number as u64);
    read(slot, 0).filter(|&file| file != 0)
}

#[inline(always)]
fn inode(offsets: &Offsets, file: u64) -> Option<u64> {
    read(file, offsets.file_inode)
}

#[inline(always)]
fn super_magic(offsets: &Offsets, inode: u64) -> Option<u64> {
    let super_block: u64 = read(inode, offsets.inode_super)?;
    read(super_block, offsets.super_magic)
}

#[inline(always)]
fn read<T>(pointer: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails if it cannot be read.
    unsafe { bpf_probe_read_kernel(pointer.wrapping_add(offset as u64) as *const T) }.ok()
}
