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

use super::{
    atomic, count_for,
    fds::{self, CLONE_FILES},
    ids, inherit, mappings, maps, recording,
    stack::layout_of,
};

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
    let (process, _) = ids();
    let member = member(process);
    let space = member.map_or(NO_SPACE, |member| member.space);
    let (Some(control), Some(member)) = (recording(&ctx, space), member) else {
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
    notify(NoticeKind::MappingsChanged, process, &member, 0);
    if control.hold == process {
        // SAFETY: the helper has no preconditions. Who started the process sees it stop, nobody else.
        unsafe { bpf_send_signal(SIGSTOP) };
    }
    0
}

/// `task:task_newtask`, in the thread that made the new one, before that runs.
#[tracepoint]
fn process_forked(ctx: TracePointContext) -> u32 {
    let (process, thread) = ids();
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
    let shares_fds = flags & CLONE_FILES != 0;
    let table = fds::table_of(&parent, thread);
    if flags & CLONE_THREAD != 0 {
        if !shares_fds {
            fds::give_private_table(&parent, child, table);
        }
        return 0;
    }
    let follow = maps::CONTROL.get(0).is_some_and(|control| control.follow != 0);
    let borrows = flags & CLONE_VM != 0;
    if borrows || (!follow && shares_fds && parent.table != fds::NO_TABLE) {
        let shares = Member {
            space: if borrows { parent.space } else { NO_SPACE },
            borrowed: 1,
            table: if shares_fds { table } else { fds::NO_TABLE },
            stacks: parent.stacks,
        };
        if maps::PROCESSES.insert(&child, &shares, BPF_ANY as u64).is_err() {
            count_for(NO_SPACE, Counter::ProcessesFull, 1);
        }
        return 0;
    }
    if !follow || parent.space == NO_SPACE {
        // An id that was used before may be in the books.
        let _not_there = maps::PROCESSES.remove(&child);
        return 0;
    }
    let shared = if shares_fds { table } else { fds::NO_TABLE };
    if let Some(member) = new_space(child, layout_of(parent.space), shared) {
        if !shares_fds {
            fds::copy_table(table, member.table, member.space);
        }
        mappings::forked(&parent, member.space);
        notify(NoticeKind::Forked, child, &member, parent.space);
        inherit::begin(&ctx, parent.space, member.space);
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
            notify(NoticeKind::Executed, process, &before, before.space);
        }
        return 0;
    }
    let table = fds::table_of(&before, old_thread);
    let _not_there = maps::PRIVATE_TABLES.remove(&old_thread);
    match new_space(process, 0, fds::NO_TABLE) {
        Some(member) => {
            fds::copy_at_exec(table, member.table, member.space);
            notify(NoticeKind::Executed, process, &member, before.space);
        }
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
    let _unknown_thread = maps::PRIVATE_TABLES.remove(&thread);
    mappings::thread_ended(&member, thread);
    if process == thread {
        if member.borrowed != 0 {
            let _not_there = maps::PROCESSES.remove(&process);
        } else {
            notify(NoticeKind::Ended, process, &member, 0);
        }
    }
    if let Some(control) = maps::CONTROL.get(0)
        && control.follow == 0
        && control.anchor == thread
    {
        notify(NoticeKind::AnchorEnded, process, &member, 0);
    }
    0
}

/// Asks user space to read the mappings of an address space again, once until it did.
#[inline(always)]
pub fn ask_refresh(space: u32) {
    let (process, _) = ids();
    if wish(space, Wish::Refresh)
        && let Some(member) = member(process)
    {
        notify(
            NoticeKind::MappingsChanged,
            process,
            &Member { space, ..member },
            0,
        );
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

/// What is known of a process; `None` if it is not traced.
#[inline(always)]
pub fn member(process: u32) -> Option<Member> {
    let member = maps::PROCESSES.get_ptr(&process)?;
    // SAFETY: the pointer is to a map's element.
    Some(unsafe { *member })
}

/// A number that neither an address space nor a descriptor table has.
#[inline(always)]
pub fn new_number() -> Option<u32> {
    let control = maps::CONTROL.get_ptr_mut(0)?;
    // SAFETY: the pointer is to a word of a map's element.
    Some(unsafe { atomic::fetch_add(&raw mut (*control).next_space, 1) } as u32)
}

/// Gives a process an address space of its own, and a descriptor table unless it shares one.
#[inline(always)]
fn new_space(process: u32, layout: u32, table: u32) -> Option<Member> {
    let space = new_number()?;
    let known = Space {
        layout,
        ..Space::default()
    };
    let member = Member {
        space,
        borrowed: 0,
        table: if table == fds::NO_TABLE { space } else { table },
        stacks: space,
    };
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
    Some(member)
}

#[inline(always)]
fn notify(kind: NoticeKind, process: u32, member: &Member, earlier: u32) {
    let notice = Notice {
        // SAFETY: the helper has no preconditions.
        time: unsafe { bpf_ktime_get_boot_ns() },
        kind: kind as u32,
        process,
        space: member.space,
        earlier,
        by: ids().0,
        table: member.table,
        name: bpf_get_current_comm().unwrap_or_default(),
    };
    if maps::NOTICES.output::<Notice>(&notice, 0).is_err() {
        count_for(NO_SPACE, Counter::NoticesLost, 1);
    }
}
