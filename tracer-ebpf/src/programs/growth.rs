//! Memory that is touched for the first time: page faults, of which a sample is recorded.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_task_btf,
        generated::{bpf_get_prandom_u32, bpf_task_pt_regs},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use memtrace_ebpf::{
    handles::{GrowthKind, classes},
    layout::{Counter, NO_SPACE, tail},
};

use super::{
    calls::thread_state,
    count_for, ids, mappings, maps,
    process::member,
    stack::{self, Start},
};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// Where the addresses of user space end (`arch/x86/include/asm/page_64_types.h`, `TASK_SIZE_MAX`, with five levels of tables).
const USER_END: u64 = 1 << 56;
/// Bits of a page fault's error code (`arch/x86/include/asm/trap_pf.h`): a page was there; it was written.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;

/// `exceptions:page_fault_user`: the program touched a page that is not there.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn touched(ctx: RawTracePointContext) -> i32 {
    touch(&ctx, ctx.arg::<*const pt_regs>(1))
}

/// `exceptions:page_fault_kernel`: the kernel did, for the program: `read` into fresh memory.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
fn touched_in_kernel(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u64>(0) >= USER_END || maps::CONTROL.get(0).is_none_or(|control| control.enabled == 0) {
        return 0;
    }
    // SAFETY: the helpers have no preconditions: the task is the current one.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    touch(&ctx, regs)
}

#[inline(always)]
fn touch(ctx: &RawTracePointContext, regs: *const pt_regs) -> i32 {
    // A page that is read first is the zero page: it takes no memory until it is written.
    if ctx.arg::<u64>(2) & (PRESENT | WRITE) != WRITE {
        return 0;
    }
    let Some(control) = maps::CONTROL.get(0) else {
        return 0;
    };
    if control.enabled == 0 || control.classes & classes::GROWTH == 0 {
        return 0;
    }
    let (process, tid) = ids();
    let Some(member) = member(process) else {
        return 0;
    };
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() } as u32;
    if member.space == NO_SPACE || random & control.touch_distance.wrapping_sub(1) != 0 {
        return 0;
    }
    let Some(thread) = thread_state(tid) else {
        count_for(member.stacks, Counter::TouchesLost, 1);
        return 0;
    };
    // SAFETY: the kernel passes valid registers, and the helper checks the address.
    let start = Start::saved(regs);
    stack::find_in_kernel(
        ctx,
        &maps::KERNEL_TAILS,
        start,
        control,
        (member.stacks, tid),
        thread,
        tail::BOOK_TOUCH,
    );
    0
}

/// Books a touched page, once its stack is known.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn book_touch(_ctx: RawTracePointContext) -> i32 {
    let (process, tid) = ids();
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    if let (Some(member), Some(control)) = (member(process), maps::CONTROL.get(0)) {
        let bytes = PAGE * control.touch_distance as u64;
        mappings::grow(member.stacks, thread, GrowthKind::Touched, bytes);
    }
    stack::give_back(thread);
    0
}
