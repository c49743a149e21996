//! The programs, by what they keep: `heap` the books, `calls` the calls that have not returned, `inner` the probes that
//! need no return, `sampling` the choice of blocks, `stack` the walk and the stacks, `process` the life of the target.
//!
//! Two rules hold for every uprobe program. It can be preempted, so state that outlives a helper call is kept by
//! thread, never by CPU. And it must contain a tail call or use less than 64 bytes of stack: since Linux 6.13 any
//! other program may get a private stack per CPU (`kernel/bpf/verifier.c`, `bpf_enable_priv_stack`), which preempted
//! uprobe programs corrupt.

mod atomic;
mod calls;
mod heap;
mod inner;
mod maps;
mod process;
mod sampling;
mod stack;

use aya_ebpf::{EbpfContext, helpers::bpf_get_current_pid_tgid};
use memtrace_ebpf::layout::{Control, Counter, tail};

/// The calling thread: (thread group id, thread id), in the initial PID namespace.
#[inline(always)]
fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// The switches, if calls of the current process are to be recorded.
#[inline(always)]
fn recording<C: EbpfContext>(ctx: &C, process: u32) -> Option<&'static Control> {
    let control = maps::CONTROL.get(0)?;
    if control.enabled == 0 || control.process != process {
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

#[inline(always)]
fn count(counter: Counter, by: u64) {
    if let Some(value) = maps::COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to a map's element, which lives as long as the program.
        unsafe { atomic::add(value, by) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
