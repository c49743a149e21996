//! The values that kernel and user space share of descriptors and mappings.

/// What the books of a stack are of. Stacks that differ by it, or by the kind of what was opened or mapped, have
/// books of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// Blocks of an allocator.
    Heap = 0,
    /// Descriptors; the stack's kind is a [`FdKind`].
    Fd = 1,
    /// Mappings; the stack's kind is a [`MappingKind`].
    Mapping = 2,
    /// New memory; the stack's kind is a [`GrowthKind`].
    Growth = 3,
}

/// What a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FdKind {
    /// None of the others, or not known.
    Other = 0,
    /// A file or a device.
    File = 1,
    /// A directory.
    Dir = 2,
    /// A TCP socket (MPTCP, too), whatever its state.
    Tcp = 3,
    /// A UDP socket.
    Udp = 4,
    /// A Unix socket.
    Unix = 5,
    /// An end of a pipe or FIFO.
    Pipe = 6,
    /// `eventfd`.
    Eventfd = 7,
    /// `epoll_create`.
    Epoll = 8,
    /// `timerfd_create`.
    Timerfd = 9,
    /// `signalfd`.
    Signalfd = 10,
    /// `inotify_init`.
    Inotify = 11,
    /// `memfd_create`.
    Memfd = 12,
    /// `pidfd_open`, `clone` with `CLONE_PIDFD`.
    Pidfd = 13,
    /// `io_uring_setup`.
    IoUring = 14,
    /// `bpf`.
    Bpf = 15,
}

impl FdKind {
    /// Every kind, in the order of its value.
    pub const ALL: [Self; 16] = [
        Self::Other,
        Self::File,
        Self::Dir,
        Self::Tcp,
        Self::Udp,
        Self::Unix,
        Self::Pipe,
        Self::Eventfd,
        Self::Epoll,
        Self::Timerfd,
        Self::Signalfd,
        Self::Inotify,
        Self::Memfd,
        Self::Pidfd,
        Self::IoUring,
        Self::Bpf,
    ];

    /// The kind with this value; [`FdKind::Other`] if there is none.
    pub const fn from_u8(value: u8) -> Self {
        if (value as usize) < Self::ALL.len() {
            Self::ALL[value as usize]
        } else {
            Self::Other
        }
    }

    /// Its name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::File => "file",
            Self::Dir => "dir",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
            Self::Pipe => "pipe",
            Self::Eventfd => "eventfd",
            Self::Epoll => "epoll",
            Self::Timerfd => "timerfd",
            Self::Signalfd => "signalfd",
            Self::Inotify => "inotify",
            Self::Memfd => "memfd",
            Self::Pidfd => "pidfd",
            Self::IoUring => "io_uring",
            Self::Bpf => "bpf",
        }
    }
}

/// What the books say instead of the index of a stack when no traced code opened a descriptor.
pub mod opener {
    /// It was open when tracing began.
    pub const BEFORE: u32 = u32::MAX;
    /// The program that the process executed before this one left it open.
    pub const EARLIER_PROGRAM: u32 = u32::MAX - 1;
    /// An io_uring opened it, in a thread of the kernel.
    pub const IO_URING: u32 = u32::MAX - 2;
    /// A call that is not traced opened it, or one that was lost.
    pub const UNTRACED: u32 = u32::MAX - 3;
}

/// What is behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MappingKind {
    /// Private memory without a file.
    Anon = 0,
    /// A file, mapped privately or shared.
    File = 1,
    /// Shared memory: without a file, or of one that is nothing but memory (memfd, `/dev/shm`, System V).
    Shared = 2,
    /// Memory that was asked for to be a stack: `MAP_STACK`, `MAP_GROWSDOWN`, or used as a thread's.
    Stack = 3,
}

impl MappingKind {
    /// In place of a kind: that of what `mremap` moved.
    pub const MOVED: u8 = 4;

    /// The kind with this value.
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::File,
            2 => Self::Shared,
            3 => Self::Stack,
            _ => Self::Anon,
        }
    }

    /// Its name in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::File => "file",
            Self::Shared => "shared",
            Self::Stack => "stack",
        }
    }
}

/// How new memory came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum GrowthKind {
    /// A page was touched for the first time.
    Touched = 0,
    /// `brk` moved the heap's end up.
    Brk = 1,
    /// `mmap` or `mremap` made or enlarged a mapping.
    Mapped = 2,
}

impl GrowthKind {
    /// The kind with this value.
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Brk,
            2 => Self::Mapped,
            _ => Self::Touched,
        }
    }
}

/// What happened to the mappings of an address space: an entry of the log that user space replays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MapEvent {
    /// `CLOCK_MONOTONIC` (nanoseconds).
    pub time: u64,
    /// First byte (virtual address); for [`MapEventKind::ThreadStarted`] the stack pointer that the thread began with.
    pub begin: u64,
    /// Bytes, a multiple of the page size; 0 if the call does not tell (`shmat`, `shmdt`).
    pub length: u64,
    /// [`MapEventKind::Mapped`] by `mremap`: where it was before (virtual address). By `shmat`: which segment.
    pub source: u64,
    /// A [`MapEventKind`].
    pub kind: u32,
    /// The address space.
    pub space: u32,
    /// The stack that did it, an index into the stacks.
    pub stack: u32,
    /// [`MapEventKind::Mapped`]: what `flags` of `mmap` was. [`MapEventKind::Forked`]: the parent's address space.
    pub flags: u32,
    /// The thread that did it; of [`MapEventKind::ThreadStarted`] and [`MapEventKind::ThreadEnded`] the one that they are of.
    pub thread: u32,
    /// A [`MappingKind`], or [`MappingKind::MOVED`].
    pub mapping: u8,
    /// Padding.
    pub _pad: [u8; 3],
}

const _: () = assert!(size_of::<MapEvent>() == 56);

/// What a [`MapEvent`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapEventKind {
    /// The range was mapped, over whatever was there.
    Mapped = 1,
    /// The range is about to be unmapped.
    Unmapping = 2,
    /// The last [`MapEventKind::Unmapping`] of this thread failed: what was there still is.
    Undone = 3,
    /// A thread was made that runs on the stack that holds the byte below `begin`.
    ThreadStarted = 4,
    /// A thread ended.
    ThreadEnded = 5,
    /// The address space was made by a fork, with all that its parent maps.
    Forked = 6,
}

impl MapEventKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Mapped,
        Self::Unmapping,
        Self::Undone,
        Self::ThreadStarted,
        Self::ThreadEnded,
        Self::Forked,
    ];
}

/// One open descriptor: which one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FdKey {
    /// The descriptor table: the number of the address space that it began with, or one from the same sequence.
    pub table: u32,
    /// The descriptor.
    pub number: i32,
}

/// One open descriptor: what is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fd {
    /// When it was opened: `CLOCK_MONOTONIC` (nanoseconds).
    pub opened: u64,
    /// Index into the stacks, or an [`opener`].
    pub stack: u32,
    /// A [`FdKind`].
    pub kind: u32,
    /// Of a connection that Go's `net/http` made for somebody: the id of the goroutine that dialed; 0 of everything else.
    pub dialer: u64,
}

/// What is known of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// No descriptor above this one is in the books.
    pub highest: i32,
    /// Padding.
    pub _pad: u32,
}

/// Where the kernel keeps what decides a descriptor's kind (offsets in bytes), taken from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    /// 1 if the others are known.
    pub known: u32,
    /// `task_struct.files`.
    pub task_files: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `signal_struct.flags`.
    pub signal_flags: u32,
    /// `files_struct.fdt`.
    pub files_fdt: u32,
    /// `fdtable.max_fds`.
    pub fdt_max: u32,
    /// `fdtable.fd`.
    pub fdt_fd: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `file.private_data`: of a socket's file, its `socket`.
    pub file_private: u32,
    /// `file.f_path.dentry`.
    pub file_dentry: u32,
    /// `dentry.d_name.name`.
    pub dentry_name: u32,
    /// `inode.i_mode`.
    pub inode_mode: u32,
    /// `inode.i_sb`.
    pub inode_super: u32,
    /// `super_block.s_magic`.
    pub super_magic: u32,
    /// `socket.sk`.
    pub socket_sock: u32,
    /// `sock.__sk_common.skc_family`.
    pub sock_family: u32,
    /// `sock.sk_type`.
    pub sock_type: u32,
    /// `sock.sk_protocol`.
    pub sock_protocol: u32,
    /// `io_kiocb.opcode`; 0 if it is not known.
    pub request_opcode: u32,
    /// `io_close.fd`, of a request that closes.
    pub close_fd: u32,
    /// `io_close.file_slot`, `io_open.file_slot`, `io_accept.file_slot` and `io_socket.file_slot` (`io_uring/openclose.c`,
    /// `io_uring/net.c`): not 0 for a slot of the ring's own table, which is no descriptor.
    pub close_slot: u32,
    /// See [`Offsets::close_slot`].
    pub open_slot: u32,
    /// See [`Offsets::close_slot`].
    pub accept_slot: u32,
    /// See [`Offsets::close_slot`].
    pub socket_slot: u32,
    /// `io_pipe.file_slot` (`io_uring/openclose.c`, Linux 6.16), as [`Offsets::close_slot`].
    pub pipe_slot: u32,
    /// `io_pipe.fds`: where the two numbers are stored; 0 if this kernel's rings make no pipes.
    pub pipe_fds: u32,
    /// `io_sr_msg.umsg` (`io_uring/net.c`): of a request that receives a message, where its header is; 0 if not known.
    pub message: u32,
    /// `vm_area_struct.vm_start`.
    pub vma_start: u32,
    /// `vm_area_struct.vm_end`.
    pub vma_end: u32,
    /// `vm_area_struct.vm_file`.
    pub vma_file: u32,
}

/// What the cookie of a probe in Go's `net/http` says: where in `g`, the runtime's structure of a goroutine
/// (`src/runtime/runtime2.go`), are the fields that tell which one it is. Three offsets of 16 bits (bytes).
pub mod goroutine {
    /// The cookie: `sched.g`, `goid`, and `parentGoid`, which is 0 where there is none.
    pub const fn cookie(own: u16, goid: u16, parent: u16) -> u64 {
        own as u64 | (goid as u64) << 16 | (parent as u64) << 32
    }

    /// `sched.g`: the address of the `g` itself.
    #[inline(always)]
    pub const fn own(cookie: u64) -> u64 {
        cookie & 0xffff
    }

    /// `goid`: a number that is never used again.
    #[inline(always)]
    pub const fn goid(cookie: u64) -> u64 {
        cookie >> 16 & 0xffff
    }

    /// `parentGoid`: the number of the goroutine that started it.
    #[inline(always)]
    pub const fn parent(cookie: u64) -> u64 {
        cookie >> 32 & 0xffff
    }
}

/// Bits of [`super::layout::Control::classes`]: what is traced.
pub mod classes {
    /// Blocks of allocators.
    pub const HEAP: u32 = 1;
    /// Descriptors.
    pub const FD: u32 = 2;
    /// Mappings.
    pub const MAPPING: u32 = 4;
    /// New memory.
    pub const GROWTH: u32 = 8;
}

/// Room for some 65,000 [`MapEvent`]s that user space has not read so far (bytes).
pub const MAP_EVENT_BYTES: u32 = 4 << 20;

const _: () = assert!(size_of::<FdKey>() == 8);
const _: () = assert!(size_of::<Fd>() == 24);
