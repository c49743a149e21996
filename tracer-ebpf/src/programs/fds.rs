//! The books of descriptors: which stack opened each number that is open in a descriptor table.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_user},
};
use memtrace_ebpf::{
    calls::action,
    handles::{Class, Fd, FdKey, FdKind, Table, classes, opener},
    layout::{Counter, EndReason, Member, OVERFLOW_STACK},
};

use super::{
    atomic, count_for, dials, files, ids,
    maps::{self, Thread},
    messages::{self, Receiver, SOL_SOCKET},
    process::{self, member},
    stack,
    syscalls::Call,
};

/// [`Member::table`] of a process whose descriptors are not shown.
pub const NO_TABLE: u32 = 0;
/// In place of a [`FdKind`]: to be asked of the kernel.
pub const ASK: u32 = u32::MAX;

/// `F_DUPFD`, `F_DUPFD_CLOEXEC` (`include/uapi/asm-generic/fcntl.h`, `include/uapi/linux/fcntl.h`).
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
/// `CLONE_FILES`, `CLONE_PIDFD` (`include/uapi/linux/sched.h`).
pub const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
/// `CLOSE_RANGE_UNSHARE`, `CLOSE_RANGE_CLOEXEC` (`include/uapi/linux/close_range.h`).
const CLOSE_RANGE_UNSHARE: u64 = 2;
const CLOSE_RANGE_CLOEXEC: u64 = 4;
/// `SECCOMP_SET_MODE_FILTER`, `SECCOMP_FILTER_FLAG_NEW_LISTENER` (`include/uapi/linux/seccomp.h`).
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const NEW_LISTENER: u64 = 8;
/// The commands of `bpf` that return a descriptor, as bits (`include/uapi/linux/bpf.h`, `enum bpf_cmd`): `MAP_CREATE`,
/// `PROG_LOAD`, `OBJ_GET`, `PROG_GET_FD_BY_ID`, `MAP_GET_FD_BY_ID`, `RAW_TRACEPOINT_OPEN`, `BTF_LOAD`, `BTF_GET_FD_BY_ID`,
/// `LINK_CREATE`, `LINK_GET_FD_BY_ID`, `ENABLE_STATS`, `ITER_CREATE`, `TOKEN_CREATE`.
const BPF_OPENS: u64 = 1 << 0
    | 1 << 5
    | 1 << 7
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 18
    | 1 << 19
    | 1 << 28
    | 1 << 30
    | 1 << 32
    | 1 << 33
    | 1 << 36;

/// `SO_PEERPIDFD` (`include/uapi/asm-generic/socket.h`), of `SOL_SOCKET`; Linux 6.5.
const SO_PEERPIDFD: u32 = 77;
/// The request of `ioctl` that opens the other end of a pseudoterminal, `TIOCGPTPEER` (`include/uapi/asm-generic/ioctls.h`).
const TIOCGPTPEER: u32 = 0x5441;
/// `NS_GET_USERNS`, `NS_GET_PARENT`, `NS_MNT_GET_NEXT`, `NS_MNT_GET_PREV` (`include/uapi/linux/nsfs.h`).
const NS_GET_USERNS: u32 = 0xb701;
const NS_GET_PARENT: u32 = 0xb702;
const NS_MNT_GET_NEXT: u32 = 0x8010_b70b;
const NS_MNT_GET_PREV: u32 = 0x8010_b70c;
/// The first and the last of the requests that open a namespace of a pidfd's process, `PIDFD_GET_CGROUP_NAMESPACE` to
/// `PIDFD_GET_UTS_NAMESPACE` (`include/uapi/linux/pidfd.h`).
const PIDFD_GET_FIRST: u32 = 0xff01;
const PIDFD_GET_LAST: u32 = 0xff0a;

/// Descriptors looked at in one part when a range is closed or a table copied, and how many parts.
const PART: u32 = 512;
const PARTS: u32 = 64;
/// The descriptor table that a thread uses.
#[inline(always)]
pub fn table_of(member: &Member, thread: u32) -> u32 {
    let has_private = maps::CONTROL
        .get(0)
        .is_some_and(|control| control.private_tables != 0);
    if has_private && let Some(table) = maps::PRIVATE_TABLES.get_ptr(&thread) {
        // SAFETY: the pointer is to a map's element.
        return unsafe { *table };
    }
    member.table
}

/// Whether a call that succeeded opened something.
#[inline(always)]
pub fn opens(action: u8, call: Call) -> bool {
    match action {
        action::DUPLICATES_TO => call.first() as u32 != call.second() as u32,
        action::FCNTL => matches!(call.second() as u32 as u64, F_DUPFD | F_DUPFD_CLOEXEC),
        action::BPF => {
            let command = call.first() as u32;
            command < 64 && BPF_OPENS >> command & 1 != 0
        }
        action::SECCOMP => {
            call.first() as u32 as u64 == SECCOMP_SET_MODE_FILTER && call.second() & NEW_LISTENER != 0
        }
        action::SIGNALFD => call.first() as i32 == -1,
        // With flags it answers questions.
        action::LANDLOCK => call.third() as u32 == 0,
        action::RECVMSG => messages::has_control(call.second()),
        action::IOCTL => opens_by_request(call.second() as u32) && is_new(call.result as u32),
        action::GETSOCKOPT => (call.second() as u32, call.third() as u32) == (SOL_SOCKET, SO_PEERPIDFD),
        _ => true,
    }
}

/// Books what a call opened.
#[inline(always)]
pub fn book(action: u8, call: Call, member: &Member, tid: u32) {
    let opened = call.result as u32;
    match action {
        action::PIPE => book_pair(call.first(), FdKind::Pipe as u32, member),
        action::SOCKETPAIR => book_pair(call.fourth(), ASK, member),
        action::RECVMSG => {
            let (begin, length) = messages::control_of(call.second());
            messages::book_control(begin, length, Receiver::Call as u32);
        }
        action::RECVMMSG => messages::book_messages(call, member),
        action::GETSOCKOPT => book_stored(call.fourth()),
        action::DUPLICATES | action::DUPLICATES_TO | action::FCNTL => {
            let table = table_of(member, tid);
            book_fd(opened, kind_of_number(table, call.first() as i32));
        }
        action::BPF => {
            book_fd(opened, FdKind::Bpf as u32);
        }
        action::SIGNALFD => {
            book_fd(opened, FdKind::Signalfd as u32);
        }
        action::SECCOMP | action::LANDLOCK => {
            book_fd(opened, FdKind::Other as u32);
        }
        action if action >= action::OPENS_KIND => {
            book_fd(opened, (action - action::OPENS_KIND) as u32);
        }
        _ => {
            book_fd(opened, ASK);
        }
    }
}

/// Whether a `clone` stored a descriptor of what it made.
#[inline(always)]
pub fn makes_pidfd(action: u8, call: Call, table: u32) -> bool {
    table != NO_TABLE && call.result > 0 && pidfd_place(action, call) != 0
}

/// Whether a request of `ioctl` opens the descriptor that it returns.
#[inline(always)]
fn opens_by_request(request: u32) -> bool {
    matches!(
        request,
        TIOCGPTPEER | NS_GET_USERNS | NS_GET_PARENT | NS_MNT_GET_NEXT | NS_MNT_GET_PREV | PIDFD_GET_FIRST
            ..=PIDFD_GET_LAST
    )
}

/// Whether a number is open and not in the books of the current thread's table: a request with another meaning, of another
/// device, may return a number that is no descriptor.
#[inline(always)]
pub fn is_new(number: u32) -> bool {
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return false;
    };
    let key = FdKey {
        table: table_of(&member, tid),
        number: number as i32,
    };
    key.table != NO_TABLE && maps::FDS.get_ptr(&key).is_none() && files::is_open(number)
}

/// Books the descriptor that a `clone` stored.
#[inline(always)]
pub fn book_pidfd(action: u8, call: Call) {
    let place = pidfd_place(action, call);
    if place != 0 {
        book_stored(place);
    }
}

/// Books a pidfd that a call stored at this address.
#[inline(always)]
fn book_stored(place: u64) {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(place as *const u32) } {
        Ok(number) => {
            book_fd(number, FdKind::Pidfd as u32);
        }
        Err(_) => {
            if let Some(member) = member(ids().0) {
                count_for(member.stacks, Counter::FdsUnreadable, 1);
            }
        }
    }
}

/// Where a `clone` stored the descriptor; 0 if it was not asked to (`kernel/fork.c`, `kernel_clone`).
#[inline(always)]
fn pidfd_place(action: u8, call: Call) -> u64 {
    let is_wanted = maps::CONTROL
        .get(0)
        .is_some_and(|control| control.classes & classes::FD != 0);
    if !is_wanted {
        return 0;
    }
    if action == action::CLONE {
        return if call.first() & CLONE_PIDFD != 0 {
            call.third()
        } else {
            0
        };
    }
    // `struct clone_args` (`include/uapi/linux/sched.h`): flags, pidfd.
    // SAFETY: the helper checks the address.
    let words = unsafe { bpf_probe_read_user(call.first() as *const [u64; 2]) }.unwrap_or([0; 2]);
    if words[0] & CLONE_PIDFD != 0 { words[1] } else { 0 }
}

/// A descriptor is about to be closed.
#[inline(always)]
pub fn close(table: u32, number: i32) {
    if table != NO_TABLE {
        let _not_there = maps::FDS.remove(&FdKey { table, number });
    }
}

/// `close_range` is entered.
#[inline(always)]
pub fn enter_close_range(call: Call, member: &Member, tid: u32) {
    let flags = call.third() as u32 as u64;
    // The kernel refuses what it does not know (`fs/file.c`, `__do_sys_close_range`).
    if flags & !(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) != 0 {
        return;
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        return enter_unshare_of(tid);
    }
    if flags & CLOSE_RANGE_CLOEXEC == 0 {
        close_all(call, member, tid);
    }
}

/// `close_range` succeeded.
#[inline(always)]
pub fn leave_close_range(call: Call, member: &Member, tid: u32) {
    let flags = call.third();
    if flags & CLOSE_RANGE_UNSHARE == 0 {
        return;
    }
    leave_unshare_of(member, tid);
    if flags & CLOSE_RANGE_CLOEXEC == 0 {
        close_all(call, member, tid);
    }
}

/// `unshare` is entered.
#[inline(always)]
pub fn enter_unshare(call: Call, tid: u32) {
    if call.first() & CLONE_FILES != 0 {
        enter_unshare_of(tid);
    }
}

/// `unshare` succeeded.
#[inline(always)]
pub fn leave_unshare(call: Call, member: &Member, tid: u32) {
    if call.first() & CLONE_FILES != 0 {
        leave_unshare_of(member, tid);
    }
}

/// A table that nobody else uses stays as it is.
#[inline(always)]
fn enter_unshare_of(tid: u32) {
    if files::table_users() > 1
        && let Some(thread) = super::calls::thread_state(tid)
    {
        thread.unshares = 1;
    }
}

#[inline(always)]
fn leave_unshare_of(member: &Member, tid: u32) {
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    if thread.unshares == 0 {
        return;
    }
    thread.unshares = 0;
    give_private_table(member, ids(), table_of(member, tid));
}

/// Gives a thread a copy of a descriptor table. Only that of a process's first thread is shown.
#[inline(always)]
pub fn give_private_table(member: &Member, ids: (u32, u32), from: u32) {
    let (process, tid) = ids;
    let table = match process == tid {
        true => process::new_number().unwrap_or(NO_TABLE),
        false => NO_TABLE,
    };
    if maps::PRIVATE_TABLES.insert(&tid, &table, BPF_ANY as u64).is_err() {
        return;
    }
    if let Some(control) = maps::CONTROL.get_ptr_mut(0) {
        // SAFETY: the pointer is to a word of a map's element.
        unsafe { (*control).private_tables = 1 };
    }
    if table == NO_TABLE {
        count_for(member.stacks, Counter::PrivateTables, 1);
    } else {
        copy_table(from, table, member.stacks);
    }
}

/// Forgets what is in the books of the range that `close_range` closes.
#[inline(always)]
fn close_all(call: Call, member: &Member, tid: u32) {
    let table = table_of(member, tid);
    let (first, last) = (call.first() as u32, call.second() as u32);
    for_each(Each::Close, (table, NO_TABLE), first, last, member.stacks);
}

/// Copies the books of a descriptor table.
#[inline(always)]
pub fn copy_table(from: u32, to: u32, space: u32) {
    for_each(Each::Copy, (from, to), 0, u32::MAX, space);
}

/// What an executed program has from the one before: what was not closed at the exec.
#[inline(always)]
pub fn copy_at_exec(from: u32, to: u32, space: u32) {
    for_each(Each::Keep, (from, to), 0, u32::MAX, space);
}

/// What becomes of each descriptor in a range.
#[repr(u32)]
enum Each {
    /// It is closed.
    Close = 0,
    /// Another table gets it, too.
    Copy = 1,
    /// The table of the program that was just executed gets it, if it is open.
    Keep = 2,
}

#[inline(always)]
fn for_each(what: Each, tables: (u32, u32), first: u32, last: u32, space: u32) {
    let Some(highest) = highest_of(tables.0) else {
        return;
    };
    let last = last.min(highest as u32);
    let mut next = first;
    let what = what as u32;
    for _ in 0..PARTS {
        if next > last {
            return;
        }
        for_part(what, tables.0, tables.1, next, last);
        next = next.saturating_add(PART);
    }
    count_for(space, Counter::FdRangesTooLarge, 1);
}

/// Up to [`PART`] descriptors. A function by itself, which the verifier follows once and not for each round of a loop.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn for_part(what: u32, from: u32, to: u32, first: u32, last: u32) -> u32 {
    for i in 0..PART {
        let number = first.wrapping_add(i);
        if number > last {
            break;
        }
        for_one(what, from, to, number);
    }
    0
}

/// See [`for_part`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn for_one(what: u32, from: u32, to: u32, number: u32) -> u32 {
    let key = FdKey {
        table: from,
        number: number as i32,
    };
    if what == Each::Close as u32 {
        let _not_there = maps::FDS.remove(&key);
        return 0;
    }
    let Some(fd) = maps::FDS.get_ptr(&key) else {
        return 0;
    };
    // SAFETY: the pointer is to a map's element.
    let mut fd = unsafe { *fd };
    if what == Each::Keep as u32 {
        if !files::is_open(number) {
            return 0;
        }
        fd.stack = opener::EARLIER_PROGRAM;
    }
    put(to, number as i32, &fd);
    0
}

#[inline(always)]
fn highest_of(table: u32) -> Option<i32> {
    let table = maps::TABLES.get_ptr(&table)?;
    // SAFETY: the pointer is to a map's element.
    Some(unsafe { (*table).highest })
}

/// Puts a descriptor into the books; false if there is no room.
#[inline(always)]
pub fn put(table: u32, number: i32, fd: &Fd) -> bool {
    if let Some(known) = maps::TABLES.get_ptr_mut(&table) {
        // SAFETY: the pointer is to a word of a map's element. Of two threads that raise it at once, the one that writes
        // last may be the lower: then the other's number is closed one by one only.
        unsafe {
            if (*known).highest < number {
                (*known).highest = number;
            }
        }
    } else {
        let new = Table {
            highest: number,
            _pad: 0,
        };
        if maps::TABLES.insert(&table, &new, BPF_ANY as u64).is_err() {
            return false;
        }
    }
    maps::FDS
        .insert(&FdKey { table, number }, fd, BPF_ANY as u64)
        .is_ok()
}

/// Books a descriptor that the current thread opened; its walk has found the stack. `kind` is a [`FdKind`] or [`ASK`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn book_fd(number: u32, kind: u32) -> u32 {
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &*thread };
    let table = table_of(&member, tid);
    if table == NO_TABLE {
        return 0;
    }
    let kind = if kind == ASK { files::kind_of(number) } else { kind };
    let dialed = match kind == FdKind::Tcp as u32 {
        true => dials::of_current(member.stacks),
        false => None,
    };
    let (stack, dialer) = match dialed {
        Some(dialed) => dialed,
        None => (stack_of(thread, member.stacks, kind), 0),
    };
    let fd = Fd {
        // SAFETY: the helper has no preconditions.
        opened: unsafe { bpf_ktime_get_ns() },
        stack,
        kind,
        dialer,
    };
    if !put(table, number as i32, &fd) {
        count_for(member.stacks, Counter::FdsFull, 1);
    }
    if stack == OVERFLOW_STACK {
        count_for(member.stacks, Counter::FdsWithoutStack, 1);
    } else if let Some(stack) = maps::STACKS.get_ptr_mut(stack) {
        // SAFETY: the pointer is to a word of a map's element.
        unsafe { atomic::add(&raw mut (*stack).alloc_objects, 1) };
    }
    0
}

#[inline(always)]
fn stack_of(thread: &Thread, space: u32, kind: u32) -> u32 {
    match stack::found(thread) {
        Some(walk) => {
            let end = EndReason::from_u8(walk.end).unwrap_or(EndReason::OutOfSteps);
            stack::intern(space, walk, end, Class::Fd, kind as u8)
        }
        None => OVERFLOW_STACK,
    }
}

/// The kind of what a number refers to, for its duplicate; [`ASK`] if it is not in the books.
#[inline(always)]
fn kind_of_number(table: u32, number: i32) -> u32 {
    match maps::FDS.get_ptr(&FdKey { table, number }) {
        // SAFETY: the pointer is to a map's element.
        Some(fd) => match unsafe { (*fd).kind } {
            kind if kind == FdKind::Other as u32 => ASK,
            kind => kind,
        },
        None => ASK,
    }
}

/// Books two descriptors that were stored at this address.
#[inline(always)]
fn book_pair(place: u64, kind: u32, member: &Member) {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(place as *const [u32; 2]) } {
        Ok([first, second]) => {
            book_fd(first, kind);
            book_fd(second, kind);
        }
        Err(_) => count_for(member.stacks, Counter::FdsUnreadable, 2),
    }
}
