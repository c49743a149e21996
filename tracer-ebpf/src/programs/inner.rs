//! Probes inside `malloc`, where the block is at hand before the function returns (`memtrace::probe`, `inner`).

use aya_ebpf::{
    EbpfContext as _,
    bindings::pt_regs,
    helpers::{bpf_get_attach_cookie, bpf_probe_read_user},
    macros::uprobe,
    programs::ProbeContext,
};
use memtrace_ebpf::layout::{Counter, inner};

use super::{
    calls::{drop_abandoned, thread_state},
    count, current,
    maps::{self, Thread},
    recording,
    sampling::is_chosen,
    stack,
};

/// Inside `malloc`, where the block is in `rax` and the size in `rbx`.
#[uprobe]
fn inner_done(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    // Before anything that costs time, also if it is in vain: in another process, or inside another call.
    if !maps::CONTROL
        .get(0)
        .is_some_and(|control| is_chosen(control, regs.rbx))
    {
        return 0;
    }
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space) else {
        return 0;
    };
    if let Some(thread) = outside_calls(space, tid, &ctx, regs) {
        thread.address = regs.rax;
        thread.size = regs.rbx;
        stack::find_and_book(&ctx, regs, stack::From::Inside, control, (space, tid), thread);
    }
    0
}

/// Inside `malloc`, where the size is in `rbx` for the last time.
#[uprobe]
fn inner_size(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    let (space, tid) = current();
    if recording(&ctx, space).is_none() {
        return 0;
    }
    match thread_state(tid) {
        Some(thread) => {
            thread.inner_slot = inner_slot(&ctx, regs);
            thread.inner_size = regs.rbx;
        }
        None => count(Counter::ThreadsFull, 1),
    }
    0
}

/// Inside `malloc`, where the block is in `rax`, or null if there is none so far.
#[uprobe]
fn inner_result(ctx: ProbeContext) -> u32 {
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    let (space, tid) = current();
    let Some(control) = recording(&ctx, space) else {
        return 0;
    };
    if regs.rax == 0 {
        return 0;
    }
    let Some(thread) = outside_calls(space, tid, &ctx, regs) else {
        return 0;
    };
    if thread.inner_slot != inner_slot(&ctx, regs) {
        count(Counter::UnmatchedReturns, 1);
        return 0;
    }
    thread.inner_slot = 0;
    if !is_chosen(control, thread.inner_size) {
        return 0;
    }
    thread.address = regs.rax;
    thread.size = thread.inner_size;
    stack::find_and_book(&ctx, regs, stack::From::Inside, control, (space, tid), thread);
    0
}

/// The slot of the return address of the `malloc` that is probed inside (virtual address).
#[inline(always)]
fn inner_slot(ctx: &ProbeContext, regs: &pt_regs) -> u64 {
    // SAFETY: the context is the one that the kernel passed to this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    regs.rsp.wrapping_add(cookie & inner::SLOT)
}

/// The state of the current thread, if the `malloc` that is probed inside is not itself inside another call.
#[inline(always)]
fn outside_calls(space: u32, tid: u32, ctx: &ProbeContext, regs: &pt_regs) -> Option<&'static mut Thread> {
    let Some(thread) = thread_state(tid) else {
        count(Counter::ThreadsFull, 1);
        return None;
    };
    if thread.depth != 0 {
        let slot = inner_slot(ctx, regs);
        // SAFETY: the helper checks the address.
        let found = unsafe { bpf_probe_read_user(slot as *const u64) }.unwrap_or(0);
        drop_abandoned(thread, space, slot, found);
        if thread.depth != 0 {
            return None;
        }
    }
    Some(thread)
}
