//! System calls: which of them open, close, map or unmap something, and when each is booked.
//!
//! What a call makes is booked when it returns: nobody else can undo it before. What a call takes away is booked when it
//! is entered: when it returns, the number or the address may already be somebody else's.

use core::mem::offset_of;

use aya_ebpf::{bindings::pt_regs, macros::raw_tracepoint, programs::RawTracePointContext};
use memtrace_ebpf::{
    bound::masked,
    handles::{FdKind, classes},
    layout::{Control, Counter, Member, NO_SPACE, tail},
};

use super::{
    calls::thread_state,
    count_for, fds, ids, mappings, maps,
    process::member,
    stack::{self, Start, saved},
};

/// What a call does, as far as it is of interest.
pub mod action {
    /// Nothing.
    pub const NONE: u8 = 0;
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
    /// From here on: opens the descriptor that it returns, of the kind of which this is the value.
    pub const OPENS_KIND: u8 = 0x40;
}

/// How many numbers of calls are looked at (`arch/x86/entry/syscalls/syscall_64.tbl` ends below 480).
const CALLS: usize = 512;

/// By the number of the call.
static ACTIONS: [u8; CALLS] = actions();

const fn actions() -> [u8; CALLS] {
    use action::{
        BPF, BRK, CLONE, CLONE3, CLOSE, CLOSE_RANGE, DUPLICATES, DUPLICATES_TO, FCNTL, MMAP, MREMAP, MUNMAP,
        OPENS, OPENS_KIND, PIPE, RECVMMSG, RECVMSG, SECCOMP, SHMAT, SHMDT, SIGNALFD, SOCKETPAIR, UNSHARE,
    };
    const fn of(kind: FdKind) -> u8 {
        OPENS_KIND + kind as u8
    }
    let calls = [
        (2, OPENS),          // open
        (85, OPENS),         // creat
        (257, OPENS),        // openat
        (304, OPENS),        // open_by_handle_at
        (437, OPENS),        // openat2
        (41, OPENS),         // socket
        (43, OPENS),         // accept
        (288, OPENS),        // accept4
        (438, OPENS),        // pidfd_getfd
        (32, DUPLICATES),    // dup
        (33, DUPLICATES_TO), // dup2
        (292, DUPLICATES_TO),
        (72, FCNTL),
        (321, BPF),
        (22, PIPE),
        (293, PIPE),
        (53, SOCKETPAIR),
        (47, RECVMSG),
        (299, RECVMMSG),
        (56, CLONE),
        (435, CLONE3),
        (317, SECCOMP),
        (282, SIGNALFD),
        (289, SIGNALFD),
        (284, of(FdKind::Eventfd)), // eventfd
        (290, of(FdKind::Eventfd)), // eventfd2
        (283, of(FdKind::Timerfd)), // timerfd_create
        (213, of(FdKind::Epoll)),   // epoll_create
        (291, of(FdKind::Epoll)),   // epoll_create1
        (253, of(FdKind::Inotify)), // inotify_init
        (294, of(FdKind::Inotify)), // inotify_init1
        (319, of(FdKind::Memfd)),   // memfd_create
        (434, of(FdKind::Pidfd)),   // pidfd_open
        (425, of(FdKind::IoUring)), // io_uring_setup
        (240, of(FdKind::Other)),   // mq_open
        (298, of(FdKind::Other)),   // perf_event_open
        (300, of(FdKind::Other)),   // fanotify_init
        (323, of(FdKind::Other)),   // userfaultfd
        (428, OPENS),               // open_tree
        (430, of(FdKind::Other)),   // fsopen
        (432, OPENS),               // fsmount
        (433, of(FdKind::Other)),   // fspick
        (444, of(FdKind::Other)),   // landlock_create_ruleset
        (447, of(FdKind::Other)),   // memfd_secret
        (3, CLOSE),
        (436, CLOSE_RANGE),
        (272, UNSHARE),
        (9, MMAP),
        (11, MUNMAP),
        (25, MREMAP),
        (12, BRK),
        (30, SHMAT),
        (67, SHMDT),
    ];
    let mut actions = [action::NONE; CALLS];
    let mut i = 0;
    while i < calls.len() {
        actions[calls[i].0] = calls[i].1;
        i += 1;
    }
    actions
}

/// A call's registers, where the kernel saved them when the thread came. They are as they were then, but for `rax`, `rcx`
/// and `r11`.
#[derive(Clone, Copy)]
pub struct Call {
    regs: *const pt_regs,
    /// What it returned; of a call that was entered only, its number.
    pub result: i64,
}

impl Call {
    #[inline(always)]
    fn of(ctx: &RawTracePointContext) -> Self {
        Self {
            regs: ctx.arg(0),
            result: ctx.arg(1),
        }
    }

    /// Its number.
    #[inline(always)]
    fn number(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, orig_rax))
    }

    /// The first argument.
    #[inline(always)]
    pub fn first(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, rdi))
    }

    /// The second argument.
    #[inline(always)]
    pub fn second(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, rsi))
    }

    /// The third argument.
    #[inline(always)]
    pub fn third(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, rdx))
    }

    /// The fourth argument.
    #[inline(always)]
    pub fn fourth(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, r10))
    }

    /// The fifth argument.
    #[inline(always)]
    pub fn fifth(self) -> u64 {
        saved(self.regs, offset_of!(pt_regs, r8))
    }

    /// Where the thread goes on.
    #[inline(always)]
    fn start(self) -> Start {
        Start::saved(self.regs)
    }
}

/// What the call with this number does.
#[inline(always)]
fn action_of(number: u64) -> u8 {
    if number >= CALLS as u64 {
        return action::NONE;
    }
    ACTIONS[masked::<CALLS>(number as usize)]
}

/// The class of holdings that an action is of; 0 if it is of none.
#[inline(always)]
fn class_of(action: u8) -> u32 {
    match action {
        action::NONE => 0,
        action::BRK => classes::GROWTH,
        action::MMAP | action::MREMAP => classes::MAPPING | classes::GROWTH,
        action::MUNMAP | action::SHMAT | action::SHMDT => classes::MAPPING,
        action::CLONE | action::CLONE3 => classes::FD | classes::MAPPING,
        _ => classes::FD,
    }
}

/// The switches, if this action is to be recorded.
#[inline(always)]
fn wanted(action: u8) -> Option<&'static Control> {
    let control = maps::CONTROL.get(0)?;
    (control.enabled != 0 && control.classes & class_of(action) != 0).then_some(control)
}

/// A thread enters the kernel by a system call.
#[raw_tracepoint(tracepoint = "sys_enter")]
fn call_entered(ctx: RawTracePointContext) -> i32 {
    let call = Call::of(&ctx);
    let action = action_of(call.result as u64);
    let takes = matches!(
        action,
        action::CLOSE
            | action::CLOSE_RANGE
            | action::UNSHARE
            | action::MUNMAP
            | action::MREMAP
            | action::SHMDT
    );
    if !takes || wanted(action).is_none() {
        return 0;
    }
    let (process, thread) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    match action {
        action::CLOSE => fds::close(fds::table_of(&member, thread), call.first() as i32),
        action::CLOSE_RANGE => fds::enter_close_range(call, &member, thread),
        action::UNSHARE => fds::enter_unshare(call, thread),
        _ => mappings::enter(action, call, &member, thread),
    }
    0
}

/// A thread is about to go back to its program.
#[raw_tracepoint(tracepoint = "sys_exit")]
fn call_left(ctx: RawTracePointContext) -> i32 {
    let call = Call::of(&ctx);
    let action = action_of(call.number());
    if matches!(action, action::NONE | action::CLOSE) || !is_success(call.result) {
        if matches!(action, action::MUNMAP | action::MREMAP | action::SHMDT) && wanted(action).is_some() {
            let (process, thread) = ids();
            if let Some(member) = member(process) {
                mappings::undo(action, call, &member, thread);
            }
        }
        return 0;
    }
    let Some(control) = wanted(action) else {
        return 0;
    };
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    match action {
        action::MUNMAP | action::SHMDT => return 0,
        action::CLOSE_RANGE => {
            fds::leave_close_range(call, &member, tid);
            return 0;
        }
        action::UNSHARE => {
            fds::leave_unshare(call, &member, tid);
            return 0;
        }
        action::BRK if !mappings::grows(call, &member) => return 0,
        _ if !makes(action, call, &member, control) => return 0,
        _ => {}
    }
    let Some(thread) = thread_state(tid) else {
        count_for(member.stacks, Counter::ThreadsFull, 1);
        return 0;
    };
    let ids = (member.stacks, tid);
    let book = match action {
        action::CLONE | action::CLONE3 => tail::BOOK_CLONE,
        _ => tail::BOOK_CALL,
    };
    stack::find_in_kernel(&ctx, call.start(), control, ids, thread, book);
    0
}

/// Whether the kernel's answer is no error (`include/linux/err.h`, `MAX_ERRNO`).
#[inline(always)]
fn is_success(result: i64) -> bool {
    !(-4095..0).contains(&result)
}

/// Whether a call that succeeded made something, so that its stack is wanted.
#[inline(always)]
fn makes(action: u8, call: Call, member: &Member, control: &Control) -> bool {
    match action {
        action::BRK => true,
        action::MMAP | action::MREMAP | action::SHMAT => member.space != NO_SPACE,
        action::CLONE | action::CLONE3 => {
            mappings::makes_thread(action, call, control) || fds::makes_pidfd(action, call)
        }
        _ => member.table != fds::NO_TABLE && fds::opens(action, call),
    }
}

/// Books what a call made, once its stack is known.
#[raw_tracepoint(tracepoint = "sys_exit")]
fn book_call(ctx: RawTracePointContext) -> i32 {
    let (process, tid) = ids();
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    let call = Call::of(&ctx);
    let action = action_of(call.number());
    if let (Some(member), Some(control)) = (member(process), maps::CONTROL.get(0)) {
        match action {
            action::MMAP | action::MREMAP | action::SHMAT | action::BRK => {
                mappings::book(action, call, &member, thread, control)
            }
            action::CLONE | action::CLONE3 => {
                mappings::book_thread(action, call, &member, thread, control);
                fds::book_pidfd(action, call);
            }
            _ => fds::book(action, call, &member, tid),
        }
    }
    stack::give_back(thread);
    0
}
