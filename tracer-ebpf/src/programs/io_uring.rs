//! What an io_uring opens and closes: no system call of its own tells of it.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user,
        generated::bpf_task_pt_regs,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use memtrace_ebpf::{
    bound::masked,
    handles::{Fd, Offsets, classes, opener},
    layout::{Counter, OPENED_BY_IO_URING, tail},
};

use super::{
    calls::thread_state,
    count_at, count_for, fds, files, ids, maps,
    messages::{self, Receiver},
    process::member,
    stack::{self, Start, saved},
};

/// Operations (`include/uapi/linux/io_uring.h`, `enum io_uring_op`).
const RECVMSG: u8 = 10;
const ACCEPT: u8 = 13;
const OPENAT: u8 = 18;
const CLOSE: u8 = 19;
const OPENAT2: u8 = 28;
const SOCKET: u8 = 45;
const FIXED_FD_INSTALL: u8 = 54;
const PIPE: u8 = 62;
/// Stands for an accept that goes on (`IORING_ACCEPT_MULTISHOT`): the kernel tells of each connection without the request.
const MULTISHOT: u8 = u8::MAX;

/// Of a completion (`include/uapi/linux/io_uring.h`): a buffer was chosen, so it is data that was received; the request goes on.
const CQE_F_BUFFER: u32 = 1;
const CQE_F_MORE: u32 = 2;

/// The number of the system call `io_uring_enter` (`arch/x86/entry/syscalls/syscall_64.tbl`).
const IO_URING_ENTER: u64 = 426;

/// What the kernel tells of something that an io_uring has done.
#[derive(Clone, Copy)]
struct Completion {
    /// The request (`struct io_kiocb`); 0 if it goes on.
    request: u64,
    /// Its result.
    result: i32,
    /// `CQE_F_*`.
    flags: u32,
}

/// `io_uring_complete` up to Linux 6.12: the request is the second argument, its result the fourth, flags the fifth.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
fn request_done(ctx: RawTracePointContext) -> i32 {
    let completion = Completion {
        request: ctx.arg(1),
        result: ctx.arg::<u64>(3) as i32,
        flags: ctx.arg::<u64>(4) as u32,
    };
    done(&ctx, completion)
}

/// The same in later versions: the third argument points to the completion.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
fn request_done_by_entry(ctx: RawTracePointContext) -> i32 {
    // `struct io_uring_cqe` (`include/uapi/linux/io_uring.h`): user_data, res, flags.
    let entry = ctx.arg::<u64>(2).wrapping_add(8) as *const [u32; 2];
    // SAFETY: the helper checks the address.
    let Ok([result, flags]) = (unsafe { bpf_probe_read_kernel(entry) }) else {
        return 0;
    };
    let completion = Completion {
        request: ctx.arg(1),
        result: result as i32,
        flags,
    };
    done(&ctx, completion)
}

#[inline(always)]
fn done(ctx: &RawTracePointContext, completion: Completion) -> i32 {
    let (Some(control), Some(offsets)) = (maps::CONTROL.get(0), maps::OFFSETS.get(0)) else {
        return 0;
    };
    if control.enabled == 0 || control.classes & classes::FD == 0 || completion.result < 0 {
        return 0;
    }
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    let operation = operation_of(completion, offsets);
    if operation == CLOSE {
        let closed = field::<i32>(completion.request, offsets.close_fd);
        // It may be open again: better by nobody knows whom than by who opened the one before.
        if let Some(number) = closed {
            fds::close(fds::table_of(&member, tid), number);
        }
        return 0;
    }
    let Some(place) = opened_at(operation, completion, offsets) else {
        return 0;
    };
    // SAFETY: the helpers have no preconditions: the task is the current one.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    let start = Start::saved(regs);
    // A thread of the kernel's own has no stack, and one that is on its way from another call did not ask for this.
    let asked = start.pc != 0 && saved(regs, offset_of!(pt_regs, orig_rax)) == IO_URING_ENTER;
    let Some(thread) = thread_state(tid).filter(|_| asked) else {
        book(operation, place, Receiver::Kernel);
        return 0;
    };
    thread.address = place;
    thread.size = operation as u64;
    stack::find_in_kernel(
        ctx,
        &maps::KERNEL_TAILS,
        start,
        control,
        (member.stacks, tid),
        thread,
        tail::BOOK_REQUEST,
    );
    0
}

/// What was done, if it opens or closes a descriptor; 0 for what is of no interest, and for a slot of the ring's own table.
#[inline(always)]
fn operation_of(completion: Completion, offsets: &Offsets) -> u8 {
    if completion.request == 0 {
        let is_accept = completion.flags & (CQE_F_MORE | CQE_F_BUFFER) == CQE_F_MORE;
        return if is_accept { MULTISHOT } else { 0 };
    }
    let operation = field::<u8>(completion.request, offsets.request_opcode).unwrap_or(0);
    let slot = match operation {
        CLOSE => offsets.close_slot,
        OPENAT | OPENAT2 => offsets.open_slot,
        ACCEPT => offsets.accept_slot,
        SOCKET => offsets.socket_slot,
        PIPE => offsets.pipe_slot,
        RECVMSG | FIXED_FD_INSTALL => 0,
        _ => return 0,
    };
    match slot {
        0 => operation,
        _ if field::<u32>(completion.request, slot) == Some(0) => operation,
        _ => 0,
    }
}

/// The descriptor that an operation opened, or where in the program's memory it stored those that it opened; `None` if there
/// are none.
#[inline(always)]
fn opened_at(operation: u8, completion: Completion, offsets: &Offsets) -> Option<u64> {
    let number = completion.result as u32;
    match operation {
        0 => None,
        PIPE if offsets.pipe_fds == 0 => None,
        PIPE => field(completion.request, offsets.pipe_fds),
        RECVMSG if offsets.message == 0 => None,
        RECVMSG => {
            field(completion.request, offsets.message).filter(|&message| messages::has_control(message))
        }
        // The same is told of a poll that goes on, whose result are the events.
        MULTISHOT if !files::is_socket(number) => None,
        // Where the slot is not known, the result may be one: then the number is not open, or was before.
        _ => fds::is_new(number).then_some(number as u64),
    }
}

#[inline(always)]
fn field<T>(request: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(request.wrapping_add(offset as u64) as *const T) }.ok()
}

/// Books what an operation opened.
#[inline(always)]
fn book(operation: u8, place: u64, receiver: Receiver) {
    match operation {
        RECVMSG => {
            let (begin, length) = messages::control_of(place);
            messages::book_control(begin, length, receiver as u32);
        }
        PIPE => {
            // SAFETY: the helper checks the address.
            let ends = unsafe { bpf_probe_read_user(place as *const [u32; 2]) };
            if let Ok([first, second]) = ends {
                let receiver = receiver as u32;
                messages::book_received(first, receiver);
                messages::book_received(second, receiver);
            }
        }
        _ => {
            messages::book_received(place as u32, receiver as u32);
        }
    }
}

/// Books a descriptor that a thread of the kernel opened.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn book_without_stack(number: u32) -> u32 {
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    let fd = Fd {
        // SAFETY: the helper has no preconditions.
        opened: unsafe { bpf_ktime_get_ns() },
        stack: opener::IO_URING,
        kind: files::kind_of(number),
        dialer: 0,
    };
    if !fds::put(fds::table_of(&member, tid), number as i32, &fd) {
        count_for(member.stacks, Counter::FdsFull, 1);
    }
    count_at(
        member.stacks,
        OPENED_BY_IO_URING + masked::<16>(fd.kind as usize),
        1,
    );
    0
}

/// Books what was opened, once its stack is known.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
fn book_request(_ctx: RawTracePointContext) -> i32 {
    let (_, tid) = ids();
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    book(thread.size as u8, thread.address, Receiver::Ring);
    stack::give_back(thread);
    0
}
