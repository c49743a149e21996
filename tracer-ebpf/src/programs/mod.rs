//! The programs, by what they keep: `heap` the books, `calls` the calls that have not returned, `inner` the probes that
//! need no return, `sampling` the choice of blocks, `stack` the walk and the stacks, `process` the life of the targets,
//! `inherit` what a fork copies; `syscalls` the system calls, `fds` the descriptors that they open and close, `files` what the
//! kernel knows of those, `messages` those that come with messages, `dials` for whom Go's `net/http` connects, `mappings` what they map, `growth` the pages that are touched, `io_uring` what is
//! opened without a system call.
//!
//! Two rules hold for every uprobe program. It can be preempted, so state that outlives a helper call is kept by
//! thread, never by CPU. And it must contain a tail call or use less than 64 bytes of stack: since Linux 6.13 any
//! other program may get a private stack per CPU (`kernel/bpf/verifier.c`, `bpf_enable_priv_stack`), which preempted
//! uprobe programs corrupt.

mod areas;
mod atomic;
mod calls;
mod dials;
mod fds;
mod files;
mod growth;
mod heap;
mod inherit;
mod inner;
mod io_uring;
mod mappings;
mod maps;
mod messages;
mod process;
mod sampling;
mod stack;
mod syscalls;

use aya_ebpf::{EbpfContext, helpers::bpf_get_current_pid_tgid};
use memtrace_ebpf::layout::{Control, Counter, NO_SPACE, tail};

/// The calling thread: (thread group id, thread id), in the initial PID namespace.
#[inline(always)]
fn ids() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// The calling thread: (address space, thread id); [`NO_SPACE`] if its process is not traced.
#[inline(always)]
fn current() -> (u32, u32) {
    let (process, thread) = ids();
    match maps::PROCESSES.get_ptr(&process) {
        // SAFETY: the pointer is to a map's element.
        Some(member) => (unsafe { (*member).space }, thread),
        None => (NO_SPACE, thread),
    }
}

/// The switches, if calls in this address space are to be recorded.
#[inline(always)]
fn recording<C: EbpfContext>(ctx: &C, space: u32) -> Option<&'static Control> {
    let control = maps::CONTROL.get(0)?;
    if control.enabled == 0 || space == NO_SPACE {
        keep_off_private_stack(ctx);
        return None;
    }
    Some(control)
}

/// A tail call that goes nowhere, see the rule above.
#[inline(always)]
fn keep_off_private_stack<C: EbpfContext>(ctx: &C) {
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::TAILS.tail_call(ctx, tail::NOWHERE) };
}

/// Counts for the current process's address space.
#[inline(always)]
fn count(counter: Counter, by: u64) {
    count_for(current().0, counter, by);
}

#[inline(always)]
fn count_for(space: u32, counter: Counter, by: u64) {
    count_at(space, counter as usize, by);
}

/// As [`count_for`], by index, which is less than [`memtrace_ebpf::layout::COUNTERS`].
#[inline(always)]
fn count_at(space: u32, index: usize, by: u64) {
    if let Some(ledger) = maps::LEDGERS.get_ptr_mut(&space) {
        // SAFETY: the pointer is to a map's element, of which the array is the beginning; the index is below its length.
        unsafe { atomic::add(ledger.cast::<u64>().add(index), by) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
