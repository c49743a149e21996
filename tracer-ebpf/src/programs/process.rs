//! The life of the target: what it maps, when it executes another program, when its threads end.

use aya_ebpf::{
    macros::{raw_tracepoint, uprobe},
    programs::{ProbeContext, RawTracePointContext},
};
use aya_log_ebpf::info;
use memtrace_ebpf::layout::Notice;

use super::{current, maps, recording};

/// At the dynamic linker's `_dl_debug_state`, which it calls after it mapped or unmapped libraries.
#[uprobe]
fn linker_changed(ctx: ProbeContext) -> u32 {
    let (process, _) = current();
    if recording(&ctx, process).is_none() {
        return 0;
    }
    if let Some(control) = maps::CONTROL.get_ptr_mut(0) {
        // SAFETY: the pointers are to words of a map's element. Two linkers at once may raise the generation by one
        // only, which is enough.
        unsafe {
            (*control).stale = 1;
            (*control).generation = (*control).generation.wrapping_add(1);
        }
    }
    notify(Notice::MappingsChanged);
    0
}

/// `sched_process_exec`: the old address space is gone, and with it every block.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_executed(ctx: RawTracePointContext) -> i32 {
    let (process, _) = current();
    let Some(control) = maps::CONTROL.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the pointer is to a map's element; the switch is a word that only ever goes to 0 here.
    unsafe {
        if (*control).enabled == 0 || (*control).process != process {
            return 0;
        }
        (*control).enabled = 0;
    }
    notify(Notice::Executed);
    info!(&ctx, "process {} executed another program", process);
    0
}

/// `sched_process_exit`, which runs for every thread: its state must not meet the next thread with its id.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn thread_ended(_ctx: RawTracePointContext) -> i32 {
    let (_, thread) = current();
    let _unknown_thread = maps::THREADS.remove(&thread);
    if let Some(control) = maps::CONTROL.get(0)
        && control.enabled != 0
        && control.anchor == thread
    {
        notify(Notice::AnchorEnded);
    }
    0
}

/// Asks user space to read the mappings again, once until it did.
#[inline(always)]
pub fn ask_refresh() {
    let Some(control) = maps::CONTROL.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the pointer is to a map's element; two threads that ask at once cause one reading too many.
    unsafe {
        if (*control).refresh_asked != 0 {
            return;
        }
        (*control).refresh_asked = 1;
    }
    notify(Notice::MappingsChanged);
}

#[inline(always)]
fn notify(notice: Notice) {
    // A full ring holds notices that are not read so far: one of them will do.
    let _full = maps::NOTICES.output::<u32>(&(notice as u32), 0);
}
