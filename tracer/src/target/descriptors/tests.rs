use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_int},
    io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command},
};

use super::{Descriptor, FdKind, anonymous_kind, file_kind, protocol_kind};
use crate::target::{Process, TargetError};

/// The number of the first descriptor that a test makes.
const FIRST: i32 = 300;

/// A call that makes a descriptor; negative if the machine refuses.
type Call = Box<dyn Fn() -> c_int + Send + Sync>;

/// A program that has open what the calls made, from [`FIRST`] on.
struct Holder(Child);

impl Holder {
    /// Runs the calls in the child between fork and exec, where only system calls are allowed.
    fn new(calls: Vec<Call>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let open = move || {
            for (number, call) in (FIRST..).zip(&calls) {
                let descriptor = call();
                // SAFETY: system calls on numbers; what they close is the child's.
                let is_open = descriptor < 0
                    || unsafe { libc::dup2(descriptor, number) == number && libc::close(descriptor) == 0 };
                if !is_open {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only and allocates nothing.
        unsafe { command.pre_exec(open) };
        Self(command.spawn().unwrap())
    }

    fn process(&self) -> Process {
        Process::open(self.0.id()).unwrap()
    }

    fn descriptors(&self) -> HashMap<i32, Descriptor> {
        let all = self.process().descriptors().unwrap();
        assert!(all.is_sorted_by_key(|descriptor| descriptor.number));
        all.into_iter().map(|found| (found.number, found)).collect()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: takes no pointers.
    unsafe { libc::socket(family, kind, protocol) }
}

/// A system call that takes two numbers at most.
fn call(number: libc::c_long, arguments: [u32; 2]) -> c_int {
    // SAFETY: those that are called read no memory.
    unsafe { libc::syscall(number, arguments[0], arguments[1]) as c_int }
}

fn memfd() -> c_int {
    // SAFETY: the name ends with a zero.
    unsafe { libc::memfd_create(c"a (deleted) name".as_ptr(), 0) }
}

fn open(path: &CStr, flags: c_int) -> c_int {
    // SAFETY: the path ends with a zero.
    unsafe { libc::open(path.as_ptr(), flags) }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn first_of_pipe() -> c_int {
    let mut ends = [0; 2];
    // SAFETY: there is room for both.
    match unsafe { libc::pipe(ends.as_mut_ptr()) } {
        // SAFETY: the other end is the child's, and nobody's yet.
        0 if unsafe { libc::close(ends[1]) } == 0 => ends[0],
        _ => -1,
    }
}

fn signalfd() -> c_int {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the first call fills the set that the second reads.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::signalfd(-1, none.as_ptr(), 0)
    }
}

fn io_uring() -> c_int {
    // `struct io_uring_params` (`include/uapi/linux/io_uring.h`).
    let mut parameters = [0_u32; 30];
    // SAFETY: the parameters have their size.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) as c_int }
}

fn bpf_map() -> c_int {
    // `BPF_MAP_CREATE`: an array of one value (`include/uapi/linux/bpf.h`).
    let attributes = [2_u32, 4, 8, 1];
    // SAFETY: the attributes have the size that is given.
    unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) as c_int }
}

#[test]
fn every_kind_is_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = c_path(&folder.path().join("fifo"));
    // SAFETY: the path ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let certain: Vec<(FdKind, Call)> = vec![
        (FdKind::File, Box::new(|| open(c"/dev/null", libc::O_RDWR))),
        (
            FdKind::File,
            Box::new(|| open(c"/proc/self/ns/net", libc::O_RDONLY)),
        ),
        (FdKind::File, Box::new(|| open(c"/etc/passwd", libc::O_PATH))),
        (FdKind::Dir, Box::new(|| open(c"/", libc::O_RDONLY))),
        (FdKind::Pipe, Box::new(first_of_pipe)),
        (FdKind::Pipe, Box::new(move || open(&fifo, libc::O_RDWR))),
        (
            FdKind::Tcp,
            Box::new(|| socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
        ),
        (
            FdKind::Tcp,
            Box::new(|| socket(libc::AF_INET6, libc::SOCK_STREAM, 0)),
        ),
        (
            FdKind::Udp,
            Box::new(|| socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
        ),
        (
            FdKind::Udp,
            Box::new(|| socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)),
        ),
        (
            FdKind::Unix,
            Box::new(|| socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
        ),
        (
            FdKind::Unix,
            Box::new(|| socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)),
        ),
        (
            FdKind::Unix,
            Box::new(|| socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)),
        ),
        (
            FdKind::Other,
            Box::new(|| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
        ),
        (FdKind::Eventfd, Box::new(|| call(libc::SYS_eventfd2, [0, 0]))),
        (FdKind::Epoll, Box::new(|| call(libc::SYS_epoll_create1, [0, 0]))),
        (
            FdKind::Timerfd,
            Box::new(|| call(libc::SYS_timerfd_create, [1, 0])),
        ),
        (FdKind::Signalfd, Box::new(signalfd)),
        (
            FdKind::Inotify,
            Box::new(|| call(libc::SYS_inotify_init1, [0, 0])),
        ),
        (FdKind::Memfd, Box::new(memfd)),
        (
            FdKind::Pidfd,
            Box::new(|| call(libc::SYS_pidfd_open, [std::process::id(), 0])),
        ),
    ];
    let refusable: Vec<(FdKind, Call)> = vec![
        (
            FdKind::Tcp,
            Box::new(|| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
        ),
        (
            FdKind::Udp,
            Box::new(|| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
        ),
        (FdKind::IoUring, Box::new(io_uring)),
        (FdKind::Bpf, Box::new(bpf_map)),
    ];
    let certainly = certain.len();
    let calls = certain.into_iter().chain(refusable);
    let (kinds, calls): (Vec<_>, Vec<_>) = calls.unzip();
    let holder = Holder::new(calls);
    let found = holder.descriptors();
    for (index, (number, kind)) in (FIRST..).zip(&kinds).enumerate() {
        match found.get(&number) {
            Some(descriptor) => assert_eq!(descriptor.kind, *kind, "{descriptor:?}"),
            None => assert!(index >= certainly, "{kind:?} is not listed"),
        }
    }
    let Descriptor { target, inode, .. } = &found[&(FIRST + 4)];
    assert_eq!(*target, format!("pipe:[{}]", inode.unwrap()));
    let Descriptor { target, inode, .. } = &found[&(FIRST + 6)];
    assert_eq!(*target, format!("socket:[{}]", inode.unwrap()));
}

#[test]
fn a_file_is_the_same_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first");
    std::fs::write(&path, "").unwrap();
    let (one, other) = (c_path(&path), c_path(&path));
    let holder = Holder::new(vec![
        Box::new(move || open(&one, libc::O_RDONLY)),
        Box::new(|| open(c"/", libc::O_RDONLY)),
        Box::new(move || open(&other, libc::O_RDONLY)),
    ]);
    let before = holder.descriptors();
    std::fs::rename(&path, folder.path().join("second")).unwrap();
    let after = holder.descriptors();
    assert!(after[&FIRST].target.ends_with("/second"));
    assert!(after[&FIRST].is_same_file(&before[&FIRST]));
    assert!(after[&FIRST].is_same_file(&before[&(FIRST + 2)]));
    assert!(!after[&FIRST].is_same_file(&before[&(FIRST + 1)]));
}

/// The list is empty then, without an error.
#[test]
fn one_who_has_ended_has_no_list() {
    let mut holder = Holder::new(Vec::new());
    let process = holder.process();
    holder.0.kill().unwrap();
    while !process.has_ended() {
        std::thread::yield_now();
    }
    let zombie = process.descriptors();
    assert!(matches!(zombie, Err(TargetError::Ended { .. })), "{zombie:?}");
    holder.0.wait().unwrap();
    assert!(process.descriptors().is_err());
}

#[test]
fn names_of_other_kernels_are_known() {
    for (name, kind) in [
        (b"TCPv6\0\0".as_slice(), FdKind::Tcp),
        (b"MPTCPv6\0", FdKind::Tcp),
        (b"UDPLITEv6\0", FdKind::Udp),
        (b"UNIX-DGRAM\0", FdKind::Unix),
        (b"UNIX", FdKind::Unix),
        (b"\0", FdKind::Other),
        (b"TCPX\0", FdKind::Other),
    ] {
        assert_eq!(protocol_kind(name), kind, "{}", String::from_utf8_lossy(name));
    }
    for (name, kind) in [
        ("inotify", FdKind::Inotify),
        ("[inotify]", FdKind::Inotify),
        ("bpf_link", FdKind::Bpf),
        ("btf", FdKind::Bpf),
        ("[userfaultfd]", FdKind::Other),
    ] {
        assert_eq!(anonymous_kind(name), kind, "{name}");
    }
    assert_eq!(
        file_kind("/memfd:x", libc::S_IFREG),
        FdKind::File,
        "it has a name"
    );
    assert_eq!(file_kind("/run/socket", libc::S_IFSOCK), FdKind::Other);
}
