//! What the kernel knows of the current thread's descriptors, read at the offsets that its BTF gives.

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

/// `TMPFS_MAGIC`, `HUGETLBFS_MAGIC`, `ANON_INODE_FS_MAGIC` (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;

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
        _ if super_magic(offsets, inode) == Some(ANON_INODE_FS_MAGIC) => FdKind::Other,
        _ => FdKind::File,
    })
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
