//! The life of the targets: what they map, which processes they make, what they execute, when their threads end.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_comm, bpf_ktime_get_boot_ns, generated::bpf_send_signal},
    macros::{raw_tracepoint, tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::info;
use memtrace_ebpf::layout::{Counter, Member, NO_SPACE, Notice, NoticeKind, Space, Wish, WishKey};

use super::{atomic, count_for, current, ids, inherit, maps, recording, stack::layout_of};

/// `SIGSTOP` (`include/uapi/asm-generic/signal.h`).
const SIGSTOP: u32 = 19;
/// `CLONE_VM`, `CLONE_THREAD` (`include/uapi/linux/sched.h`).
const CLONE_VM: u64 = 0x100;
const CLONE_THREAD: u64 = 0x10000;

/// Where `task:task_newtask` has its fields (`include/trace/events/task.h`; the same in every kernel since 3.8).
mod newtask {
    pub const PID: usize = 8;
    pub const CLONE_FLAGS: usize = 32;
}

/// At the dynamic linker's `_dl_debug_state`, which it calls after it mapped or unmapped libraries.
#[uprobe]
fn linker_changed(ctx: ProbeContext) -> u32 {
    let (space, _) = current();
    let (process, _) = ids();
    let Some(control) = recording(&ctx, space) else {
        return 0;
    };
    wish(space, Wish::Stale);
    if let Some(control) = maps::CONTROL.get_ptr_mut(0) {
        // SAFETY: the pointers are to words of a map's element. Two linkers at once may raise the generation by one
        // only, which is enough.
        unsafe {
            (*control).stale = 1;
            (*control).generation = (*control).generation.wrapping_add(1);
        }
    }
    notify(NoticeKind::MappingsChanged, process, space, 0);
    if control.hold == process {
        // SAFETY: the helper has no preconditions. Who started the process sees it stop, nobody else.
        unsafe { bpf_send_signal(SIGSTOP) };
    }
    0
}

/// `task:task_newtask`, in the thread that made the new one, before that runs.
#[tracepoint]
fn process_forked(ctx: TracePointContext) -> u32 {
    let (process, _) = ids();
    let Some(parent) = member(process) else {
        return 0;
    };
    // SAFETY: the offsets are those of this tracepoint's fields.
    let (child, flags) = unsafe {
        (
            ctx.read_at::<u32>(newtask::PID),
            ctx.read_at::<u64>(newtask::CLONE_FLAGS),
        )
    };
    let (Ok(child), Ok(flags)) = (child, flags) else {
        return 0;
    };
    if flags & CLONE_THREAD != 0 {
        return 0;
    }
    if flags & CLONE_VM != 0 {
        let shares = Member {
            borrowed: 1,
            ..parent
        };
        if maps::PROCESSES.insert(&child, &shares, BPF_ANY as u64).is_err() {
            count_for(NO_SPACE, Counter::ProcessesFull, 1);
        }
        return 0;
    }
    if maps::CONTROL.get(0).is_none_or(|control| control.follow == 0) {
        // An id that was used before may be in the books.
        let _not_there = maps::PROCESSES.remove(&child);
        return 0;
    }
    if let Some(space) = new_space(child, layout_of(parent.space)) {
        notify(NoticeKind::Forked, child, space, parent.space);
        inherit::begin(&ctx, parent.space, space);
    }
    0
}

/// `sched_process_exec`: the old address space is gone, and with it every block.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_executed(ctx: RawTracePointContext) -> i32 {
    let (process, thread) = ids();
    let Some(before) = member(process) else {
        return 0;
    };
    // SAFETY: the second argument is the thread's id before (`include/trace/events/sched.h`): it takes the first's.
    let old_thread = unsafe { *ctx.as_ptr().cast::<u64>().add(1) } as u32;
    let _unknown = maps::THREADS.remove(&thread);
    let _unknown = maps::THREADS.remove(&old_thread);
    info!(&ctx, "process {} executed another program", process);
    let Some(control) = maps::CONTROL.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the pointer is to a word of a map's element.
    let follow = unsafe {
        (*control).generation = (*control).generation.wrapping_add(1);
        (*control).follow
    };
    if follow == 0 {
        let _not_there = maps::PROCESSES.remove(&process);
        if before.borrowed == 0 {
            notify(NoticeKind::Executed, process, before.space, before.space);
        }
        return 0;
    }
    match new_space(process, 0) {
        Some(space) => notify(NoticeKind::Executed, process, space, before.space),
        None => {
            let _not_there = maps::PROCESSES.remove(&process);
        }
    }
    0
}

/// `sched_process_exit`, which runs for every thread: its state must not meet the next thread with its id.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn thread_ended(_ctx: RawTracePointContext) -> i32 {
    let (process, thread) = ids();
    let _unknown_thread = maps::THREADS.remove(&thread);
    let Some(member) = member(process) else {
        return 0;
    };
    if process == thread {
        if member.borrowed != 0 {
            let _not_there = maps::PROCESSES.remove(&process);
        } else {
            notify(NoticeKind::Ended, process, member.space, 0);
        }
    }
    if let Some(control) = maps::CONTROL.get(0)
        && control.follow == 0
        && control.anchor == thread
    {
        notify(NoticeKind::AnchorEnded, process, member.space, 0);
    }
    0
}

/// Asks user space to read the mappings of an address space again, once until it did.
#[inline(always)]
pub fn ask_refresh(space: u32) {
    if wish(space, Wish::Refresh) {
        notify(NoticeKind::MappingsChanged, ids().0, space, 0);
    }
}

/// Whether user space has not read the mappings of an address space since they changed.
#[inline(always)]
pub fn is_stale(space: u32) -> bool {
    let key = WishKey {
        space,
        wish: Wish::Stale as u32,
    };
    maps::WISHES.get_ptr(&key).is_some()
}

/// Notes a wish; false if it was there before.
#[inline(always)]
fn wish(space: u32, wish: Wish) -> bool {
    let key = WishKey {
        space,
        wish: wish as u32,
    };
    maps::WISHES.insert(&key, &1, BPF_NOEXIST as u64).is_ok()
}

#[inline(always)]
fn member(process: u32) -> Option<Member> {
    let member = maps::PROCESSES.get_ptr(&process)?;
    // SAFETY: the pointer is to a map's element.
    Some(unsafe { *member })
}

/// Gives a process an address space of its own.
#[inline(always)]
fn new_space(process: u32, layout: u32) -> Option<u32> {
    let control = maps::CONTROL.get_ptr_mut(0)?;
    // SAFETY: the pointer is to a word of a map's element.
    let space = unsafe { atomic::fetch_add(&raw mut (*control).next_space, 1) } as u32;
    let known = Space {
        layout,
        ..Space::default()
    };
    let member = Member { space, borrowed: 0 };
    let ledger = maps::EMPTY_LEDGER.get(0)?;
    if maps::SPACES.insert(&space, &known, BPF_ANY as u64).is_err()
        || maps::LEDGERS.insert(&space, ledger, BPF_ANY as u64).is_err()
        || maps::PROCESSES.insert(&process, &member, BPF_ANY as u64).is_err()
    {
        count_for(NO_SPACE, Counter::ProcessesFull, 1);
        let _not_there = maps::SPACES.remove(&space);
        let _not_there = maps::LEDGERS.remove(&space);
        return None;
    }
    Some(space)
}

#[inline(always)]
fn notify(kind: NoticeKind, process: u32, space: u32, earlier: u32) {
    let notice = Notice {
        // SAFETY: the helper has no preconditions.
        time: unsafe { bpf_ktime_get_boot_ns() },
        kind: kind as u32,
        process,
        space,
        earlier,
        by: ids().0,
        _pad: 0,
        name: bpf_get_current_comm().unwrap_or_default(),
    };
    if maps::NOTICES.output::<Notice>(&notice, 0).is_err() {
        count_for(NO_SPACE, Counter::NoticesLost, 1);
    }
}
