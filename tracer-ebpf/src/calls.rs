//! The system calls that open, close, map or unmap something.
//!
//! A program at the tracepoint of one of them is told by its cookie what the call does.

use crate::handles::{FdKind, classes};

/// What a call does.
pub mod action {
    /// Opens the descriptor that it returns; what it refers to is asked of the kernel.
    pub const OPENS: u8 = 1;
    /// `dup2`, `dup3`: as [`OPENS`], but for `dup2` to the same number.
    pub const DUPLICATES_TO: u8 = 2;
    /// `dup`: as [`OPENS`], of the kind of the first argument.
    pub const DUPLICATES: u8 = 3;
    /// `fcntl`.
    pub const FCNTL: u8 = 4;
    /// `bpf`.
    pub const BPF: u8 = 5;
    /// `pipe`, `pipe2`: two descriptors, stored where the first argument says.
    pub const PIPE: u8 = 6;
    /// `socketpair`: where the fourth says.
    pub const SOCKETPAIR: u8 = 7;
    /// `recvmsg`.
    pub const RECVMSG: u8 = 8;
    /// `recvmmsg`.
    pub const RECVMMSG: u8 = 9;
    /// `clone`.
    pub const CLONE: u8 = 10;
    /// `clone3`.
    pub const CLONE3: u8 = 11;
    /// `seccomp`.
    pub const SECCOMP: u8 = 12;
    /// `signalfd`, `signalfd4`: opens unless it changes one that is there.
    pub const SIGNALFD: u8 = 13;
    /// `close`.
    pub const CLOSE: u8 = 14;
    /// `close_range`.
    pub const CLOSE_RANGE: u8 = 15;
    /// `unshare`.
    pub const UNSHARE: u8 = 16;
    /// `mmap`.
    pub const MMAP: u8 = 17;
    /// `munmap`.
    pub const MUNMAP: u8 = 18;
    /// `mremap`.
    pub const MREMAP: u8 = 19;
    /// `brk`.
    pub const BRK: u8 = 20;
    /// `shmat`.
    pub const SHMAT: u8 = 21;
    /// `shmdt`.
    pub const SHMDT: u8 = 22;
    /// `landlock_create_ruleset`.
    pub const LANDLOCK: u8 = 23;
    /// `ioctl`: opens the descriptor that it returns if the request is one that does.
    pub const IOCTL: u8 = 24;
    /// `getsockopt`: opens one if it asks for `SO_PEERPIDFD`, stored where the fourth argument says.
    pub const GETSOCKOPT: u8 = 25;
    /// From here on: opens the descriptor that it returns, of the kind of which this is the value.
    pub const OPENS_KIND: u8 = 0x40;
}

const fn of(kind: FdKind) -> u8 {
    action::OPENS_KIND + kind as u8
}

/// Every call, by the name of its tracepoints, which is that of its function in the kernel.
pub const CALLS: &[(&str, u8)] = &[
    ("open", action::OPENS),
    ("creat", action::OPENS),
    ("openat", action::OPENS),
    ("openat2", action::OPENS),
    ("open_by_handle_at", action::OPENS),
    ("socket", action::OPENS),
    ("accept", action::OPENS),
    ("accept4", action::OPENS),
    ("pidfd_getfd", action::OPENS),
    ("mq_open", action::OPENS),
    ("open_tree", action::OPENS),
    ("open_tree_attr", action::OPENS),
    ("fsmount", action::OPENS),
    ("dup", action::DUPLICATES),
    ("dup2", action::DUPLICATES_TO),
    ("dup3", action::DUPLICATES_TO),
    ("fcntl", action::FCNTL),
    ("bpf", action::BPF),
    ("pipe", action::PIPE),
    ("pipe2", action::PIPE),
    ("socketpair", action::SOCKETPAIR),
    ("recvmsg", action::RECVMSG),
    ("recvmmsg", action::RECVMMSG),
    ("getsockopt", action::GETSOCKOPT),
    ("ioctl", action::IOCTL),
    ("clone", action::CLONE),
    ("clone3", action::CLONE3),
    ("seccomp", action::SECCOMP),
    ("signalfd", action::SIGNALFD),
    ("signalfd4", action::SIGNALFD),
    ("landlock_create_ruleset", action::LANDLOCK),
    ("eventfd", of(FdKind::Eventfd)),
    ("eventfd2", of(FdKind::Eventfd)),
    ("timerfd_create", of(FdKind::Timerfd)),
    ("epoll_create", of(FdKind::Epoll)),
    ("epoll_create1", of(FdKind::Epoll)),
    ("inotify_init", of(FdKind::Inotify)),
    ("inotify_init1", of(FdKind::Inotify)),
    ("memfd_create", of(FdKind::Memfd)),
    ("memfd_secret", of(FdKind::Memfd)),
    ("pidfd_open", of(FdKind::Pidfd)),
    ("io_uring_setup", of(FdKind::IoUring)),
    ("perf_event_open", of(FdKind::Other)),
    ("fanotify_init", of(FdKind::Other)),
    ("userfaultfd", of(FdKind::Other)),
    ("fsopen", of(FdKind::Other)),
    ("fspick", of(FdKind::Other)),
    ("close", action::CLOSE),
    ("close_range", action::CLOSE_RANGE),
    ("unshare", action::UNSHARE),
    ("mmap", action::MMAP),
    ("munmap", action::MUNMAP),
    ("mremap", action::MREMAP),
    ("brk", action::BRK),
    ("shmat", action::SHMAT),
    ("shmdt", action::SHMDT),
];

/// The classes of holdings that an action is of: bits of [`classes`].
pub const fn class_of(action: u8) -> u32 {
    match action {
        action::BRK => classes::GROWTH,
        action::MMAP | action::MREMAP => classes::MAPPING | classes::GROWTH,
        action::MUNMAP | action::SHMAT | action::SHMDT => classes::MAPPING,
        action::CLONE | action::CLONE3 => classes::FD | classes::MAPPING,
        _ => classes::FD,
    }
}

/// Whether a call takes something away, so that its entry is of interest.
pub const fn takes(action: u8) -> bool {
    matches!(
        action,
        action::CLOSE
            | action::CLOSE_RANGE
            | action::UNSHARE
            | action::MUNMAP
            | action::MREMAP
            | action::SHMDT
    )
}

/// Whether a call's return is of interest.
pub const fn returns(action: u8) -> bool {
    action != action::CLOSE
}
