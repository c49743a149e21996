//! The calls into the allocator that a thread is in, outermost first.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_probe_read_user};
use memtrace_ebpf::{bound::masked, layout::Counter};

use super::{
    count,
    maps::{self, Call, MAX_NESTED, Thread},
};

/// The state of the current thread, made if it is new.
#[inline(always)]
pub fn thread_state(tid: u32) -> Option<&'static mut Thread> {
    if let Some(thread) = maps::THREADS.get_ptr_mut(&tid) {
        // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
        return Some(unsafe { &mut *thread });
    }
    let empty = maps::EMPTY_THREAD.get(0)?;
    maps::THREADS.insert(&tid, empty, BPF_NOEXIST as u64).ok()?;
    // SAFETY: as above.
    maps::THREADS
        .get_ptr_mut(&tid)
        .map(|thread| unsafe { &mut *thread })
}

/// Forgets calls that cannot return any more, because a longjmp or an exception left them; tells where the call that
/// begins will return to.
///
/// A call is still under way if the stack is below it and the slot of its return address holds the return probe's
/// trampoline. A call that begins at the very same slot is either the tail call of the one under way, which finds the
/// trampoline there, or a new one, which finds a return address.
#[inline(always)]
pub fn drop_abandoned(thread: &mut Thread, space: u32, sp: u64, found: u64) -> u64 {
    if thread.depth == 0 {
        return found;
    }
    let trampoline = match maps::SPACES.get_ptr(&space) {
        // SAFETY: the pointer is to a map's element.
        Some(space) => unsafe { (*space).trampoline },
        None => 0,
    };
    for _ in 0..MAX_NESTED {
        let depth = thread.depth as usize;
        if depth == 0 {
            break;
        }
        let call = &thread.calls[masked::<MAX_NESTED>(depth - 1)];
        let expected = if call.has_exits != 0 {
            call.return_address
        } else {
            trampoline
        };
        // SAFETY: the helper checks the address.
        if call.sp > sp
            && (expected == 0 || unsafe { bpf_probe_read_user(call.sp as *const u64) } == Ok(expected))
        {
            break;
        }
        if call.sp == sp && found != call.return_address {
            return call.return_address;
        }
        abandon(call);
        thread.depth = depth as u32 - 1;
    }
    found
}

/// Counts a call that never returned. One that is probed where it returns is expected to throw when it fails.
#[inline(always)]
fn abandon(call: &Call) {
    count(
        if call.has_exits != 0 {
            Counter::FailedCalls
        } else {
            Counter::AbandonedCalls
        },
        1,
    );
}

/// Ends the call that returns by an instruction that was reached with this `sp`, if it is one of those that are probed
/// there; true if it was the outermost.
#[inline(always)]
pub fn pop_at_exit(thread: &mut Thread, sp: u64) -> bool {
    for _ in 0..MAX_NESTED {
        let depth = thread.depth as usize;
        if depth == 0 {
            break;
        }
        let call = &thread.calls[masked::<MAX_NESTED>(depth - 1)];
        // The instruction may be part of another function, or of an inner call.
        if call.sp > sp || call.sp == sp && call.has_exits == 0 {
            break;
        }
        thread.depth = depth as u32 - 1;
        if call.sp == sp {
            return depth == 1;
        }
        abandon(call);
    }
    false
}

/// Ends the call that returns with this `sp`; true if it was the outermost.
#[inline(always)]
pub fn pop(thread: &mut Thread, sp: u64) -> bool {
    let slot = sp.wrapping_sub(8);
    for _ in 0..MAX_NESTED {
        let depth = thread.depth as usize;
        if depth == 0 {
            break;
        }
        thread.depth = depth as u32 - 1;
        let call = &thread.calls[masked::<MAX_NESTED>(depth - 1)];
        if call.sp == slot {
            return depth == 1;
        }
        abandon(call);
    }
    count(Counter::UnmatchedReturns, 1);
    false
}

/// Whether a free that matches no block is the allocator's own affair: the current thread is in a call, or the address
/// is the one that it just passed to another function that frees, which calls this one.
#[inline(always)]
pub fn is_allocators_own(tid: u32, address: u64) -> bool {
    let Some(thread) = maps::THREADS.get_ptr_mut(&tid) else {
        return false;
    };
    // SAFETY: the element is this thread's, and no other program runs for it meanwhile.
    let thread = unsafe { &mut *thread };
    if thread.depth != 0 {
        return true;
    }
    if thread.freed != address {
        return false;
    }
    thread.freed = 0;
    true
}
