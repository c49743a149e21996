//! What an io_uring opens and closes: no system call of its own tells of it.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel, generated::bpf_task_pt_regs,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use memtrace_ebpf::{
    bound::masked,
    handles::{Fd, FdKey, classes, opener},
    layout::{Counter, Member, OPENED_BY_IO_URING, tail},
};

use super::{
    calls::thread_state,
    count_at, count_for, fds, files, ids, maps,
    process::member,
    stack::{self, Start, saved},
};

/// Operations (`include/uapi/linux/io_uring.h`, `enum io_uring_op`).
const ACCEPT: u8 = 13;
const OPENAT: u8 = 18;
const CLOSE: u8 = 19;
const OPENAT2: u8 = 28;
const SOCKET: u8 = 45;
const FIXED_FD_INSTALL: u8 = 54;

/// The number of the system call `io_uring_enter` (`arch/x86/entry/syscalls/syscall_64.tbl`).
const IO_URING_ENTER: u64 = 426;

/// `io_uring_complete` up to Linux 6.12: the request is the second argument, its result the fourth.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
fn request_done(ctx: RawTracePointContext) -> i32 {
    done(&ctx, ctx.arg(1), ctx.arg::<u64>(3) as i32)
}

/// The same in later versions: the third argument points to the completion.
#[raw_tracepoint(tracepoint = "io_uring_complete")]
fn request_done_by_entry(ctx: RawTracePointContext) -> i32 {
    // `struct io_uring_cqe` (`include/uapi/linux/io_uring.h`): user_data, res, flags.
    let result = ctx.arg::<u64>(2).wrapping_add(8) as *const i32;
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(result) } {
        Ok(result) => done(&ctx, ctx.arg(1), result),
        Err(_) => 0,
    }
}

#[inline(always)]
fn done(ctx: &RawTracePointContext, request: u64, result: i32) -> i32 {
    let (Some(control), Some(offsets)) = (maps::CONTROL.get(0), maps::OFFSETS.get(0)) else {
        return 0;
    };
    if control.enabled == 0 || control.classes & classes::FD == 0 || result < 0 {
        return 0;
    }
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    let field = |offset: u32| request.wrapping_add(offset as u64);
    // SAFETY: the helper checks the address.
    let operation = unsafe { bpf_probe_read_kernel(field(offsets.request_opcode) as *const u8) };
    let table = fds::table_of(&member, tid);
    let operation = operation.unwrap_or(0);
    let slot = match operation {
        CLOSE => offsets.close_slot,
        OPENAT | OPENAT2 => offsets.open_slot,
        ACCEPT => offsets.accept_slot,
        SOCKET => offsets.socket_slot,
        _ => 0,
    };
    // SAFETY: as above.
    if slot != 0 && unsafe { bpf_probe_read_kernel(field(slot) as *const u32) } != Ok(0) {
        return 0;
    }
    match operation {
        CLOSE => {
            // SAFETY: as above.
            let closed = unsafe { bpf_probe_read_kernel(field(offsets.close_fd) as *const i32) };
            // It may be open again: better by nobody knows whom than by who opened the one before.
            if let Ok(number) = closed {
                fds::close(table, number);
            }
            return 0;
        }
        ACCEPT | OPENAT | OPENAT2 | SOCKET | FIXED_FD_INSTALL => {}
        _ => return 0,
    }
    let number = result as u32;
    let key = FdKey {
        table,
        number: result,
    };
    // Where the slot is not known, the result may be one: then the number is not open, or was before.
    if table == fds::NO_TABLE || maps::FDS.get_ptr(&key).is_some() || !files::is_open(number) {
        return 0;
    }
    // SAFETY: the helpers have no preconditions: the task is the current one.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    let start = Start::saved(regs);
    // A thread of the kernel's own has no stack, and one that is on its way from another call did not ask for this.
    let asked = start.pc != 0 && saved(regs, offset_of!(pt_regs, orig_rax)) == IO_URING_ENTER;
    let Some(thread) = thread_state(tid).filter(|_| asked) else {
        book_without_stack(&member, &key);
        return 0;
    };
    thread.address = number as u64;
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

#[inline(always)]
fn book_without_stack(member: &Member, key: &FdKey) {
    let fd = Fd {
        // SAFETY: the helper has no preconditions.
        opened: unsafe { bpf_ktime_get_ns() },
        stack: opener::IO_URING,
        kind: files::kind_of(key.number as u32),
        dialer: 0,
    };
    if !fds::put(key.table, key.number, &fd) {
        count_for(member.stacks, Counter::FdsFull, 1);
    }
    count_at(
        member.stacks,
        OPENED_BY_IO_URING + masked::<16>(fd.kind as usize),
        1,
    );
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
    fds::book_fd(thread.address as u32, fds::ASK);
    stack::give_back(thread);
    0
}
