//! System calls: when what they do is booked.
//!
//! What a call makes is booked when it returns: nobody else can undo it before. What a call takes away is booked when it
//! is entered: when it returns, the number or the address may already be somebody else's.
//!
//! Each call of interest has a tracepoint of its own, so that no program runs at other calls, whoever makes them.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_get_current_task_btf, generated::bpf_task_pt_regs},
    macros::tracepoint,
    programs::TracePointContext,
};
use memtrace_ebpf::{
    calls::action,
    layout::{Control, Counter, Member, NO_SPACE, tail},
};

use super::{
    calls::thread_state,
    count_for, fds, ids, mappings, maps,
    process::member,
    stack::{self, Start, saved},
};

/// Where the tracepoints of system calls have the result (`kernel/trace/trace_syscalls.c`, `perf_call_bpf_exit`).
pub const RESULT: usize = 16;

/// A call's registers, where the kernel saved them when the thread came. They are as they were then, but for `rax`, `rcx`
/// and `r11`.
#[derive(Clone, Copy)]
pub struct Call {
    regs: *const pt_regs,
    /// What it returned, if it has.
    pub result: i64,
}

impl Call {
    /// One that is entered.
    #[inline(always)]
    fn entered() -> Self {
        // SAFETY: the helpers have no preconditions: the task is the current one.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
        Self { regs, result: 0 }
    }

    /// One that returns.
    #[inline(always)]
    fn left(ctx: &TracePointContext) -> Self {
        Self {
            // SAFETY: the offset is that of this tracepoint's field.
            result: unsafe { ctx.read_at(RESULT) }.unwrap_or(-1),
            ..Self::entered()
        }
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

/// What the call does at whose tracepoint the program runs.
#[inline(always)]
fn action_of(ctx: &TracePointContext) -> u8 {
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) as u8 }
}

/// The switches, if anything is recorded.
#[inline(always)]
fn recording() -> Option<&'static Control> {
    maps::CONTROL.get(0).filter(|control| control.enabled != 0)
}

/// A thread enters the kernel by a call that takes something away.
#[tracepoint]
fn call_entered(ctx: TracePointContext) -> u32 {
    let (process, thread) = ids();
    let (Some(member), Some(_)) = (member(process), recording()) else {
        return 0;
    };
    let call = Call::entered();
    match action_of(&ctx) {
        action::CLOSE => fds::close(fds::table_of(&member, thread), call.first() as i32),
        action::CLOSE_RANGE => fds::enter_close_range(call, &member, thread),
        action::UNSHARE => fds::enter_unshare(call, thread),
        action => mappings::enter(action, call, &member, thread),
    }
    0
}

/// A thread is about to go back to its program.
#[tracepoint]
fn call_left(ctx: TracePointContext) -> u32 {
    let (process, tid) = ids();
    let (Some(member), Some(control)) = (member(process), recording()) else {
        return 0;
    };
    let (call, action) = (Call::left(&ctx), action_of(&ctx));
    if !is_success(call.result) {
        if matches!(action, action::MUNMAP | action::MREMAP | action::SHMDT) {
            mappings::undo(action, call, &member, tid);
        }
        return 0;
    }
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
        _ if !makes(action, call, &member, tid, control) => return 0,
        _ => {}
    }
    let Some(thread) = thread_state(tid) else {
        count_for(member.stacks, Counter::ThreadsFull, 1);
        return 0;
    };
    let ids = (member.stacks, tid);
    let book = match action {
        action::CLONE | action::CLONE3 => tail::BOOK_CLONE,
        action::SHMAT => {
            thread.size = 0;
            tail::MEASURE
        }
        _ => tail::BOOK_CALL,
    };
    stack::find_in_kernel(&ctx, &maps::CALL_TAILS, call.start(), control, ids, thread, book);
    0
}

/// Whether the kernel's answer is no error (`include/linux/err.h`, `MAX_ERRNO`).
#[inline(always)]
fn is_success(result: i64) -> bool {
    !(-4095..0).contains(&result)
}

/// Whether a call that succeeded made something, so that its stack is wanted.
#[inline(always)]
fn makes(action: u8, call: Call, member: &Member, tid: u32, control: &Control) -> bool {
    match action {
        action::BRK => true,
        action::MMAP | action::MREMAP | action::SHMAT => member.space != NO_SPACE,
        action::CLONE | action::CLONE3 => {
            mappings::makes_thread(action, call, control)
                || fds::makes_pidfd(action, call, fds::table_of(member, tid))
        }
        _ => fds::table_of(member, tid) != fds::NO_TABLE && fds::opens(action, call),
    }
}

/// Books what a call made, once its stack is known.
#[tracepoint]
fn book_call(ctx: TracePointContext) -> u32 {
    let (process, tid) = ids();
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    let (call, action) = (Call::left(&ctx), action_of(&ctx));
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
