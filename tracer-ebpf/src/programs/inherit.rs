//! A forked process has its parent's heap: its books begin with a copy of the parent's live sums.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_ns,
    macros::tracepoint,
    programs::TracePointContext,
};
use memtrace_ebpf::layout::{Block, BlockKey, Counter, Stack, TICK_SHIFT, tail};

use super::{
    atomic, count_for, heap, ids,
    maps::{self, Fork},
    stack::stack_key,
};

/// Stacks looked at in one program before it calls the next; the kernel allows 33 calls.
const STACKS_AT_ONCE: u32 = 512;
/// How many generations of ancestors a block is looked for in.
const GENERATIONS: u32 = 4;

/// Begins to copy the parent's books for the child. The parent has just made it, and it does not run yet.
#[inline(always)]
pub fn begin<C: EbpfContext>(ctx: &C, parent: u32, child: u32) {
    if let Some(ledger) = maps::LEDGERS.get_ptr_mut(&child) {
        // SAFETY: the pointer is to a map's element, which nobody else knows so far; the helper has no preconditions.
        unsafe {
            (*ledger).parent = parent;
            (*ledger).forked = (bpf_ktime_get_ns() >> TICK_SHIFT) as u32;
        }
    }
    let Some(control) = maps::CONTROL.get(0) else {
        return;
    };
    let used = control.next_stack.min(control.stacks) as u32;
    let fork = Fork {
        parent,
        child,
        next: 1,
        end: used,
    };
    if maps::FORKS.insert(&ids().1, &fork, BPF_ANY as u64).is_err() {
        return count_for(child, Counter::NotInherited, 1);
    }
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::FORK_TAILS.tail_call(ctx, tail::INHERIT) };
    count_for(child, Counter::NotInherited, 1);
}

/// Copies some stacks, then calls itself.
#[tracepoint]
fn inherit(ctx: TracePointContext) -> u32 {
    let (_, thread) = ids();
    let Some(fork) = maps::FORKS.get_ptr_mut(&thread) else {
        return 0;
    };
    // SAFETY: the element is this thread's.
    let fork = unsafe { &mut *fork };
    let first = fork.next;
    for i in 0..STACKS_AT_ONCE {
        let id = first.wrapping_add(i);
        if id >= fork.end {
            let _there = maps::FORKS.remove(&thread);
            return 0;
        }
        let Some(stack) = maps::STACKS.get_ptr(id) else {
            break;
        };
        // SAFETY: the pointer is to a map's element. Its sums may change, but not because of this process.
        let stack = unsafe { &*stack };
        if stack.space == fork.parent && stack.ready != 0 && stack.alloc_objects > stack.freed_objects {
            copy(stack, id, fork.child);
        }
    }
    fork.next = first.wrapping_add(STACKS_AT_ONCE);
    // SAFETY: the context is the one that the kernel passed to this program.
    unsafe { maps::FORK_TAILS.tail_call(&ctx, tail::INHERIT) };
    count_for(fork.child, Counter::NotInherited, 1);
    0
}

/// Gives the child a stack with what lives of this one.
#[inline(always)]
fn copy(stack: &Stack, id: u32, child: u32) {
    let Some(control) = maps::CONTROL.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the pointers are to words of a map's element.
    let new = unsafe {
        if (*control).next_stack >= (*control).stacks {
            return count_for(child, Counter::NotInherited, 1);
        }
        atomic::fetch_add(&raw mut (*control).next_stack, 1) as u32
    };
    let Some(slot) = maps::STACKS.get_ptr_mut(new) else {
        return count_for(child, Counter::NotInherited, 1);
    };
    let origin = if stack.origin != 0 { stack.origin } else { id };
    // SAFETY: the element was reserved for this stack.
    unsafe {
        (*slot).alloc_objects = stack.alloc_objects.wrapping_sub(stack.freed_objects);
        (*slot).alloc_bytes = stack.alloc_bytes.wrapping_sub(stack.freed_bytes);
        (*slot).born_sum = stack.born_sum;
        (*slot).frames_start = stack.frames_start;
        (*slot).frames_len = stack.frames_len;
        (*slot).end = stack.end;
        (*slot).space = child;
        (*slot).origin = origin;
        (*slot).ready = 1;
    }
    let _full = maps::STACK_IDS.insert(&copy_key(child, origin), &new, BPF_NOEXIST as u64);
}

/// Books that a process freed a block that it has from an ancestor; false if it has not.
#[inline(always)]
pub fn free(space: u32, address: u64) -> bool {
    let mut heir = space;
    for _ in 0..GENERATIONS {
        let Some(ledger) = maps::LEDGERS.get_ptr(&heir) else {
            return false;
        };
        // SAFETY: the pointer is to a map's element.
        let (ancestor, forked) = unsafe { ((*ledger).parent, (*ledger).forked) };
        if ancestor == 0 {
            return false;
        }
        let key = BlockKey {
            address,
            space: ancestor,
            _pad: 0,
        };
        if let Some(block) = maps::LIVE.get_ptr(&key) {
            // SAFETY: as above.
            let block = unsafe { *block };
            // A younger block is the ancestor's alone.
            return block.born <= forked && book_inherited(space, block);
        }
        heir = ancestor;
    }
    false
}

#[inline(always)]
fn book_inherited(space: u32, block: Block) -> bool {
    let Some(copy) = maps::STACK_IDS.get_ptr(&copy_key(space, block.stack)) else {
        return false;
    };
    // SAFETY: the pointer is to a map's element.
    let stack = unsafe { *copy };
    heap::book_free(&Block { stack, ..block });
    true
}

/// The key of an inherited stack in [`maps::STACK_IDS`].
#[inline(always)]
fn copy_key(space: u32, origin: u32) -> u64 {
    stack_key(space, !(origin as u64))
}
