//! For whom Go's `net/http` connects: another goroutine dials, and the code that asked is not on its stack.
//!
//! `(*Transport).queueForDial` runs in the goroutine that asks, `(*Transport).dialConnFor` in the one that dials; both have
//! the `wantConn` as their second argument. What that goroutine connects, and what those do that it starts, is then booked on
//! who asked (`src/net/http/transport.go`).

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, pt_regs},
    helpers::{
        bpf_get_attach_cookie, bpf_get_current_task_btf, bpf_probe_read_user, generated::bpf_task_pt_regs,
    },
    macros::uprobe,
    programs::ProbeContext,
};
use memtrace_ebpf::{
    handles::{Class, FdKind, goroutine},
    layout::{Control, Counter, EndReason, NO_SPACE, OVERFLOW_STACK},
};

use super::{
    calls::thread_state,
    count_for, ids, keep_off_private_stack,
    maps::{self, Dial, DialKey},
    process::member,
    recording,
    stack::{self, Start, saved},
};

/// The address space of the current thread and the switches, if anything is recorded of it.
#[inline(always)]
fn wanted(ctx: &ProbeContext) -> Option<(u32, &'static Control)> {
    let member = member(ids().0);
    let space = member.map_or(NO_SPACE, |member| member.space);
    let control = recording(ctx, space)?;
    Some((member?.stacks, control))
}

/// In `net/http.(*Transport).queueForDial`, before it has a frame.
#[uprobe]
fn connection_wanted(ctx: ProbeContext) -> u32 {
    let Some((space, control)) = wanted(&ctx) else {
        return 0;
    };
    // SAFETY: the context is the one that the kernel passed to this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if maps::GOROUTINES.get_ptr(&space).is_none()
        && maps::GOROUTINES.insert(&space, &cookie, BPF_ANY as u64).is_err()
    {
        return 0;
    }
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    // SAFETY: the helper checks the address.
    let Ok(return_address) = (unsafe { bpf_probe_read_user(regs.rsp as *const u64) }) else {
        return 0;
    };
    let (_, tid) = ids();
    let Some(thread) = thread_state(tid) else {
        count_for(space, Counter::ThreadsFull, 1);
        return 0;
    };
    thread.address = regs.rbx;
    let caller = Start {
        pc: return_address,
        sp: regs.rsp.wrapping_add(8),
        fp: regs.rbp,
    };
    stack::find_caller(&ctx, caller, control, (space, tid), thread);
    0
}

/// Notes who asked for a connection, once the stack is known.
#[uprobe]
fn book_dial(ctx: ProbeContext) -> u32 {
    let (_, tid) = ids();
    let (Some(thread), Some(control)) = (maps::THREADS.get_ptr_mut(&tid), maps::CONTROL.get(0)) else {
        keep_off_private_stack(&ctx);
        return 0;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    if let Some(walk) = stack::found(thread) {
        let end = EndReason::from_u8(walk.end).unwrap_or(EndReason::OutOfSteps);
        let dial = Dial {
            stack: stack::intern(thread.space, walk, end, Class::Fd, FdKind::Tcp as u8),
            generation: control.generation,
        };
        let key = DialKey {
            who: thread.address,
            space: thread.space,
            what: DialKey::WANTED,
        };
        note(&key, &dial);
    }
    stack::give_back(thread);
    0
}

/// In `net/http.(*Transport).dialConnFor`, before it has a frame.
#[uprobe]
fn connection_dialed(ctx: ProbeContext) -> u32 {
    let Some((space, _)) = wanted(&ctx) else {
        return 0;
    };
    // SAFETY: the kernel passes valid registers.
    let regs = unsafe { &*ctx.regs };
    let asked = DialKey {
        who: regs.rbx,
        space,
        what: DialKey::WANTED,
    };
    let Some(dial) = maps::DIALS.get_ptr(&asked) else {
        return 0;
    };
    // SAFETY: the pointer is to a map's element.
    let dial = unsafe { *dial };
    let _was_there = maps::DIALS.remove(&asked);
    // SAFETY: the context is the one that the kernel passed to this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if let Some(dialer) = goid(regs.r14, cookie) {
        let key = DialKey {
            who: dialer,
            space,
            what: DialKey::DIALER,
        };
        note(&key, &dial);
    }
    0
}

#[inline(always)]
fn note(key: &DialKey, dial: &Dial) {
    if dial.stack == OVERFLOW_STACK {
        // An address that was used before must not stand for who asked then.
        let _not_there = maps::DIALS.remove(key);
        return;
    }
    let _no_room = maps::DIALS.insert(key, dial, BPF_ANY as u64);
}

/// If the current goroutine dials for somebody, or the one that started it does: the stack of who asked, and the id of the one
/// that dials. For a thread in a system call.
#[inline(always)]
pub fn of_current(space: u32) -> Option<(u32, u64)> {
    let cookie = maps::GOROUTINES.get_ptr(&space)?;
    // SAFETY: the pointer is to a map's element.
    let cookie = unsafe { *cookie };
    // SAFETY: the helpers have no preconditions: the task is the current one.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    // Go keeps the goroutine in this register (`src/cmd/compile/abi-internal.md`), also when it enters the kernel.
    let g = saved(regs, offset_of!(pt_regs, r14));
    let own = goid(g, cookie)?;
    if let Some(stack) = dialed_by(space, own) {
        return Some((stack, own));
    }
    if goroutine::parent(cookie) == 0 {
        return None;
    }
    let parent = field(g, goroutine::parent(cookie))?;
    Some((dialed_by(space, parent)?, parent))
}

/// The stack of who asked for what a goroutine dials.
#[inline(always)]
fn dialed_by(space: u32, goroutine: u64) -> Option<u32> {
    let key = DialKey {
        who: goroutine,
        space,
        what: DialKey::DIALER,
    };
    let dial = maps::DIALS.get_ptr(&key)?;
    // SAFETY: the pointer is to a map's element.
    let dial = unsafe { *dial };
    let control = maps::CONTROL.get(0)?;
    (dial.generation == control.generation).then_some(dial.stack)
}

/// The id of a goroutine, if this is one.
#[inline(always)]
fn goid(g: u64, cookie: u64) -> Option<u64> {
    if field(g, goroutine::own(cookie))? != g {
        return None;
    }
    field(g, goroutine::goid(cookie)).filter(|goid| *goid != 0)
}

#[inline(always)]
fn field(g: u64, offset: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(g.wrapping_add(offset) as *const u64) }.ok()
}
